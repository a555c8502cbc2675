//! `usher-agent run`: builds the rooms, joins them, waits for what happens, and takes them down in order.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sd_notify::NotifyState;
use thread_priority::ThreadPriority;
use thread_priority::unix::{
    DeadlineFlags, RealtimeThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::{Instant, MissedTickBehavior, interval};
use usher_models::telemetry;
use usher_models::units::Micros;

use crate::catalogue;
use crate::classify::Classifier;
use crate::config::{Config, Source};
use crate::dataplane::{DataPlane, DataPlaneError};
use crate::gateway::{Gateway, Line, MAX_FLOWS_TOLD};
use crate::metrics::Metrics;
use crate::page;
use crate::probe::LinkEvents;
use crate::sessions::Sessions;
use crate::store::Store;
use crate::uplink::{Lines, Uplink, client};
use crate::verdicts::{Order, Verdicts};

/// Push steps and answers that may wait.
const QUEUE: usize = 256;

/// How much of every [`VERDICTS_PERIOD`] is the verdicts' thread's before any other thread's, and no more than that: half of
/// one CPU, so that a flood of new flows cannot take the rest from forwarding. What it has no time for waits in the ring.
const VERDICTS_SHARE: Duration = Duration::from_millis(1);

/// The longest that the verdicts' thread waits for a CPU while it keeps within its share.
const VERDICTS_PERIOD: Duration = Duration::from_millis(2);

/// Orders to the verdicts' thread that may wait.
const ORDERS: usize = 16;

/// How long a stop waits for the orchestrator to take the last batches; what it does not take stays in the spool.
const FAREWELL: Duration = Duration::from_secs(3);

/// The least time to the next try at a setting whose time is up, for the one before may have failed.
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Why the gateway task ended.
enum End {
    /// A signal.
    Told,
    /// The capture file is read to its end, and all of it acknowledged.
    AllRead,
    /// The capture broke off, or the store did.
    Broken(anyhow::Error),
}

/// The gateway task's ends of what joins it to the rest.
struct Joints {
    pushes: mpsc::Receiver<telemetry::Push>,
    reports: mpsc::Sender<telemetry::Report>,
    spooled: watch::Sender<u64>,
    finish: watch::Sender<bool>,
    /// That interfaces have come, gone or changed; nothing of a capture's.
    changes: Option<LinkEvents>,
    /// That there are no more samples, and why if not because a file is at its end.
    ended: oneshot::Receiver<Option<DataPlaneError>>,
    store: Arc<Store>,
    metrics: Metrics,
}

/// What tells the agent to do something from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Runs the agent until it is told to stop, or its capture ends.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Everything that can be refused is looked at before anything is touched.
    let endpoint = client::endpoint(&config.uplink)?;
    let catalogue = catalogue::load(config.catalogue.as_deref())?;
    let rules = catalogue.len();
    let classifier = Classifier::new(catalogue);
    let sessions = Sessions::load(&config.sessions, &config.home_plmns)?;
    let metrics = Metrics::new();
    metrics.catalogue_rules.set(i64::try_from(rules).unwrap_or(i64::MAX));
    metrics.spool_limit_bytes.set(i64::try_from(config.spool.0).unwrap_or(i64::MAX));
    let page = match config.metrics {
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("serve metrics on {address}"))?)
        }
        None => None,
    };
    let signals = Signals::listen()?;
    let store = Arc::new(Store::open(&config.state_dir, config.spool)?);
    // Before the probe looks at the interfaces, so that none comes in between.
    let changes = match &config.source {
        Source::Probe(_) => Some(LinkEvents::listen().context("listen for changes of interfaces")?),
        Source::Capture(_) => None,
    };
    let (plane, flows) = DataPlane::open(&config.source)?;
    let dry_run = plane.dry_run();
    let exit_at_end = matches!(&config.source, Source::Capture(capture) if capture.exit_at_end);
    let agent = config.agent.as_str();
    let spooled_bytes = store.spooled();
    tracing::info!(agent, version = env!("CARGO_PKG_VERSION"), dry_run, spooled_bytes, "agent starts");

    let (push_sender, pushes) = mpsc::channel(QUEUE);
    let (reports, report_receiver) = mpsc::channel(QUEUE);
    let (spooled, spooled_receiver) = watch::channel(0);
    let (finish, finish_receiver) = watch::channel(false);
    let uplink = Uplink::new(endpoint, agent, dry_run, store.clone(), metrics.clone());
    let lines = Lines {
        pushes: push_sender,
        reports: report_receiver,
        spooled: spooled_receiver,
        finish: finish_receiver,
    };
    let (orders, orders_receiver) = mpsc::channel(ORDERS);
    let (named_sender, named) = mpsc::channel(MAX_FLOWS_TOLD);
    let (ended_sender, ended) = oneshot::channel();
    let mut joints = Joints {
        pushes,
        reports,
        spooled,
        finish,
        changes,
        ended,
        store: store.clone(),
        metrics: metrics.clone(),
    };
    let line = Line { orders, named };
    let mut gateway = block_in_place(|| {
        Gateway::start(config, plane, store, line, sessions, metrics.clone(), Micros::now())
    })?;
    // Not before every session has its slot: a capture counts as it is read.
    let verdicts = Verdicts::new(flows, classifier, named_sender, metrics.clone());
    start_verdicts(verdicts, orders_receiver, ended_sender).context("start the verdicts' thread")?;
    let uplink = tokio::spawn(uplink.run(lines));
    let visitors = page.map(|listener| tokio::spawn(page::serve(listener, metrics)));

    notify(&[NotifyState::Ready]);
    let end = work(&mut gateway, &mut joints, signals, exit_at_end).await;
    notify(&[NotifyState::Stopping]);
    // A probe stays attached: counting and enforcement go on, and the next agent takes over.
    if !matches!(end, End::AllRead) {
        block_in_place(|| gateway.drain(Micros::now()));
    }
    farewell(uplink, &joints).await;
    if let Some(visitors) = visitors {
        visitors.abort();
    }
    tracing::info!(spooled_bytes = joints.store.spooled(), "agent stopped");
    match end {
        End::Told | End::AllRead => Ok(()),
        End::Broken(error) => Err(error),
    }
}

/// The gateway task: one thing at a time, the urgent before the many.
async fn work(gateway: &mut Gateway, joints: &mut Joints, mut signals: Signals, exit_at_end: bool) -> End {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watchdog = sd_notify::watchdog_enabled(false, &mut 0);
    let (mut ended, mut told) = (false, false);
    loop {
        if let Some(why) = gateway.stuck() {
            return End::Broken(why.into());
        }
        let all_told = ended && exit_at_end && told;
        if all_told && joints.store.spooled() == 0 {
            return End::AllRead;
        }
        let change =
            gateway.next_change().map(|at| Instant::now() + at.since(Micros::now()).max(AGAIN_AFTER));
        tokio::select! {
            biased;
            _ = signals.terminate.recv() => return End::Told,
            _ = signals.interrupt.recv() => return End::Told,
            _ = signals.hangup.recv() => block_in_place(|| {
                gateway.look_closely();
                gateway.reload_catalogue();
                gateway.reload(Micros::now());
            }),
            _ = seconds.tick() => {
                let now = Micros::now();
                if all_told {
                    // A batch a second more would never let the spool run empty.
                    block_in_place(|| gateway.expire(now));
                } else {
                    told = block_in_place(|| gateway.tick(now));
                    joints.spooled.send_modify(|count| *count += 1);
                }
                if watchdog {
                    notify(&[NotifyState::Watchdog]);
                }
            }
            () = changed(&mut joints.changes) => block_in_place(|| gateway.follow_interfaces()),
            () = at(change) => block_in_place(|| gateway.expire(Micros::now())),
            Some(push) = joints.pushes.recv() => {
                for report in block_in_place(|| gateway.push(Micros::now(), push)) {
                    if joints.reports.try_send(report).is_err() {
                        joints.metrics.reports_dropped.inc();
                    }
                }
            }
            end = &mut joints.ended, if !ended => match end {
                Ok(None) => {
                    ended = true;
                    tracing::info!("the capture file is at its end");
                    told = block_in_place(|| gateway.drain(Micros::now()));
                    joints.spooled.send_modify(|count| *count += 1);
                }
                Ok(Some(error)) => return End::Broken(error.into()),
                Err(_) => return End::Broken(anyhow::anyhow!("the verdicts' thread ended: see above")),
            },
        }
    }
}

/// Gives the verdicts a thread of their own, which waits for samples itself: no other task's work is in between. It ends
/// when nobody can give it orders any more.
fn start_verdicts(
    mut verdicts: Verdicts,
    mut orders: mpsc::Receiver<Order>,
    ended: oneshot::Sender<Option<DataPlaneError>>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = async move {
        reserve_time();
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ended = Some(ended);
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(order) => verdicts.obey(order),
                    None => return,
                },
                _ = seconds.tick() => verdicts.expire(Micros::now()),
                more = verdicts.next(Micros::now), if ended.is_some() => if !more && let Some(ended) = ended.take() {
                    verdicts.finish(Micros::now());
                    // Nobody waits for it any more where the agent is stopping.
                    let _ = ended.send(verdicts.broken());
                }
            }
        }
    };
    std::thread::Builder::new().name("verdicts".to_owned()).spawn(move || runtime.block_on(work)).map(drop)
}

/// Reserves CPU time for this thread (SCHED_DEADLINE, sched(7)): a verdict that waits for other threads' turns is a
/// megabyte in no class.
fn reserve_time() {
    let share = ThreadPriority::Deadline {
        runtime: VERDICTS_SHARE,
        deadline: VERDICTS_PERIOD,
        period: VERDICTS_PERIOD,
        flags: DeadlineFlags::RESET_ON_FORK,
    };
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Deadline);
    // Thread 0 is the one that asks.
    if set_thread_priority_and_policy(0, share, policy).is_err() {
        tracing::warn!(
            why = %std::io::Error::last_os_error(),
            "no CPU time is reserved for verdicts, they come late on a busy gateway: give the agent CAP_SYS_NICE, all CPUs, \
             and in its unit RestrictRealtime=no"
        );
    }
}

/// Lets the uplink send what there is, for a while.
async fn farewell(mut uplink: JoinHandle<()>, joints: &Joints) {
    joints.spooled.send_modify(|count| *count += 1);
    joints.finish.send_replace(true);
    if tokio::time::timeout(FAREWELL, &mut uplink).await.is_err() {
        uplink.abort();
    }
}

async fn changed(changes: &mut Option<LinkEvents>) {
    match changes {
        Some(changes) => changes.changed().await,
        None => pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => pending().await,
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::warn!("systemd could not be notified: {error}");
    }
}
