//! `usher-agent run`: builds the rooms, joins them, waits for what happens, and takes them down in order.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::{Instant, MissedTickBehavior, interval};
use usher_models::units::Micros;

use crate::catalogue;
use crate::classify::Classifier;
use crate::config::{Config, Source};
use crate::dataplane::DataPlane;
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::sessions::Sessions;
use crate::store::Store;
use crate::uplink::{Lines, Uplink, client};

/// Push steps and answers that may wait.
const QUEUE: usize = 256;

/// How long a stop waits for the orchestrator to take the last batches; what it does not take stays in the spool.
const FAREWELL: Duration = Duration::from_secs(3);

/// The least time to the next try at a setting whose time is up, for the one before may have failed.
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Why the gateway task ended.
enum End {
    /// A signal.
    Told,
    /// The capture file is read to its end and acknowledged.
    EndOfFile,
    /// The capture broke off.
    Broken(anyhow::Error),
}

/// Runs the agent until it is told to stop, or its capture ends.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Everything that can be refused is looked at before anything is touched.
    let endpoint = client::endpoint(&config.uplink)?;
    let catalogue = catalogue::load(config.catalogue.as_deref())?;
    let sessions = Sessions::load(&config.sessions, &config.home_plmns)?;
    let metrics = Metrics::new();
    metrics.spool_limit_bytes.set(i64::try_from(config.spool.0).unwrap_or(i64::MAX));
    let page = match config.metrics {
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("serve metrics on {address}"))?)
        }
        None => None,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let store = Arc::new(Store::open(&config.state_dir, config.spool)?);
    let plane = DataPlane::open(&config.source)?;
    let dry_run = plane.dry_run();
    let exit_at_end = matches!(&config.source, Source::Capture(capture) if capture.exit_at_end);
    tracing::info!(
        agent = config.agent,
        version = env!("CARGO_PKG_VERSION"),
        dry_run,
        sessions = sessions.len(),
        spooled_bytes = store.spooled(),
        "agent started"
    );

    let (push_sender, mut pushes) = mpsc::channel(QUEUE);
    let (reports, report_receiver) = mpsc::channel(QUEUE);
    let (spooled, spooled_receiver) = watch::channel(0);
    let (finish, finish_receiver) = watch::channel(false);
    let uplink = Uplink::new(endpoint, &config.agent, dry_run, store.clone(), metrics.clone());
    let lines = Lines {
        pushes: push_sender,
        reports: report_receiver,
        spooled: spooled_receiver,
        finish: finish_receiver,
    };
    let classifier = Classifier::new(catalogue);
    let now = Micros::now();
    let mut gateway = block_in_place(|| {
        Gateway::start(config, plane, store.clone(), classifier, sessions, metrics.clone(), now)
    })?;
    let uplink = tokio::spawn(uplink.run(lines));
    let page = page.map(|listener| tokio::spawn(serve_metrics(listener, metrics.clone())));

    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watchdog = sd_notify::watchdog_enabled(false, &mut 0);
    notify(&[NotifyState::Ready]);
    let mut ended = false;
    let end = loop {
        if ended && exit_at_end && store.spooled() == 0 {
            break End::EndOfFile;
        }
        let change =
            gateway.next_change().map(|at| Instant::now() + at.since(Micros::now()).max(AGAIN_AFTER));
        tokio::select! {
            biased;
            _ = terminate.recv() => break End::Told,
            _ = interrupt.recv() => break End::Told,
            _ = hangup.recv() => block_in_place(|| {
                gateway.reload_catalogue();
                gateway.reload(Micros::now());
            }),
            _ = seconds.tick() => {
                let now = Micros::now();
                if ended && exit_at_end {
                    // What was counted is told; a batch a second more would never let the spool run empty.
                    block_in_place(|| gateway.expire(now));
                } else {
                    block_in_place(|| gateway.tick(now));
                    spooled.send_modify(|count| *count += 1);
                }
                if watchdog {
                    notify(&[NotifyState::Watchdog]);
                }
            }
            () = at(change) => block_in_place(|| gateway.expire(Micros::now())),
            Some(push) = pushes.recv() => {
                for report in block_in_place(|| gateway.push(Micros::now(), push)) {
                    if reports.try_send(report).is_err() {
                        metrics.reports_dropped.inc();
                    }
                }
            }
            more = sample(&mut gateway), if !ended => if !more {
                ended = true;
                if let Some(error) = gateway.plane().broken() {
                    break End::Broken(error.into());
                }
                tracing::info!("the capture file is at its end");
                block_in_place(|| gateway.drain(Micros::now()));
                spooled.send_modify(|count| *count += 1);
            }
        }
    };
    notify(&[NotifyState::Stopping]);
    // A probe stays attached: counting and enforcement go on, and the next agent takes over.
    if !matches!(end, End::EndOfFile) {
        block_in_place(|| gateway.drain(Micros::now()));
    }
    farewell(uplink, &finish, &spooled).await;
    if let Some(page) = page {
        page.abort();
    }
    tracing::info!(spooled_bytes = store.spooled(), "agent stopped");
    match end {
        End::Told | End::EndOfFile => Ok(()),
        End::Broken(error) => Err(error),
    }
}

/// Looks at the next sample. False: there are no more, ever.
async fn sample(gateway: &mut Gateway) -> bool {
    let Some(sample) = gateway.plane().next_sample().await else { return false };
    gateway.observe(&sample, Micros::now());
    true
}

/// Lets the uplink send what there is, for a while.
async fn farewell(mut uplink: JoinHandle<()>, finish: &watch::Sender<bool>, spooled: &watch::Sender<u64>) {
    spooled.send_modify(|count| *count += 1);
    finish.send_replace(true);
    if tokio::time::timeout(FAREWELL, &mut uplink).await.is_err() {
        uplink.abort();
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

async fn serve_metrics(listener: TcpListener, metrics: Metrics) {
    let page = move || {
        let text = metrics.text();
        async move { ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text) }
    };
    let router = Router::new().route("/metrics", get(page));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("metrics are not served any more: {error}");
    }
}
