//! No batch applied twice, no second forgotten, no decision repeated, nobody written to twice, no push half done, wherever the
//! process is killed.
//!
//! A short history (sessions, capped video, a roamer's message and tap, a policy tried and confirmed) is played once for
//! every durable step of it, with the process killed before that step, and once more somewhere in its next life: before any
//! transaction of ledger, engine, messenger or executor, between the writes of a snapshot or a day, before a message leaves,
//! before and after a gateway does what it was asked. Gateway, outbox and files live on; the next process finds them as they
//! are. At the end everything must be as a slow, obvious model of the history says.

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use usher_models::telemetry;
use usher_models::telemetry::push::Step;

use super::*;
use crate::advice::{Links, Outbox};
use crate::elements::{Answer, Ask, AskError, Elements, Executor, GatewayConfig, PushesConfig};
use crate::ledger::Fuse;
use crate::ledger::pushes::PushFilter;
use crate::messenger::Messenger;

/// A gateway: what it runs, and what is in force until it is confirmed. It outlives the orchestrator.
#[derive(Debug, Default)]
struct Gateway {
    running: Sessions,
    /// What comes back unless a push is confirmed.
    before: BTreeMap<String, Sessions>,
}

type Sessions = BTreeMap<String, telemetry::Desired>;

impl Gateway {
    fn answer(&mut self, push: &str, step: Step) -> telemetry::Report {
        let (stage, sessions) = match step {
            Step::Read(read) => (telemetry::Stage::Running, read.sessions),
            Step::Prepare(prepare) => {
                let sessions: Vec<String> =
                    prepare.desired.iter().map(|desired| desired.session.clone()).collect();
                let of_these = |session: &&String| self.running.contains_key(*session);
                let before = sessions.iter().filter(of_these);
                let before = before.map(|session| (session.clone(), self.running[session].clone())).collect();
                self.before.entry(push.to_owned()).or_insert(before);
                let desired = prepare.desired.into_iter();
                self.running.extend(desired.map(|desired| (desired.session.clone(), desired)));
                (telemetry::Stage::Prepared, sessions)
            }
            Step::Confirm(_) if self.before.remove(push).is_some() => {
                (telemetry::Stage::Confirmed, Vec::new())
            }
            Step::Cancel(_) => match self.before.remove(push) {
                Some(before) => {
                    self.running.extend(before);
                    (telemetry::Stage::Cancelled, Vec::new())
                }
                None => return refused(push),
            },
            Step::Confirm(_) => return refused(push),
        };
        let running = sessions.iter().filter_map(|session| self.running.get(session)).cloned().collect();
        telemetry::Report {
            push: push.to_owned(),
            stage: stage.into(),
            running,
            ..telemetry::Report::default()
        }
    }
}

fn refused(push: &str) -> telemetry::Report {
    let (stage, error) = (telemetry::Stage::Refused.into(), "nothing of it is here".to_owned());
    telemetry::Report { push: push.to_owned(), stage, error, ..telemetry::Report::default() }
}

/// A process's way to the gateway.
struct Uplink {
    gateway: Arc<Mutex<Gateway>>,
    fuse: Fuse,
}

impl Ask for Uplink {
    fn ask<'a>(&'a self, _: &'a str, push: telemetry::Push, _: Duration) -> Answer<'a> {
        Box::pin(async move {
            let step = push.step.ok_or(AskError::Closed)?;
            if !self.fuse.step() {
                return Err(AskError::Closed);
            }
            let report = self.gateway.lock().unwrap().answer(&push.push, step);
            // Done, and nobody left to hear of it.
            if self.fuse.step() { Ok(report) } else { Err(AskError::Closed) }
        })
    }
}

/// What outlives the orchestrator.
struct Ground {
    dir: tempfile::TempDir,
    gateway: Arc<Mutex<Gateway>>,
    now: Micros,
}

impl Ground {
    fn new() -> Self {
        // What is in memory need not be waited for; a kill loses none of it either way.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        // On a second, so that windows end where batches do.
        let now = Micros::now();
        let now = now.before(Duration::from_micros(now.get().unsigned_abs() % 1_000_000));
        Self { dir, gateway: Arc::default(), now }
    }

    /// The decisions of the messages that left.
    fn outbox(&self) -> BTreeSet<String> {
        let files = std::fs::read_dir(self.dir.path().join("outbox")).into_iter().flatten();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect()
    }
}

/// One life of the orchestrator.
struct Life {
    rig: Rig,
    fuse: Fuse,
    others: Vec<JoinHandle<()>>,
}

impl Life {
    /// `None`: it was killed before it was ready.
    async fn start(ground: &Ground, fuse: Fuse) -> Option<Self> {
        let dir = ground.dir.path();
        let ledger = Ledger::open_with_fuse(&dir.join("ledger.sqlite"), fuse.clone()).unwrap();
        let outbox = dir.join("outbox");
        std::fs::create_dir_all(&outbox).unwrap();
        let mut registry = metrics::registry();
        let advice_metrics = advice::Metrics::register(&mut registry);
        let outbox = Arc::new(Outbox::open(&outbox, advice_metrics).unwrap());
        let links = Arc::new(Links::open_or_create(dir, "https://advice.example").unwrap());
        let uplink = Uplink { gateway: ground.gateway.clone(), fuse: fuse.clone() };
        let pushes = PushesConfig {
            first_retry: Duration::from_millis(1),
            longest_retry: Duration::from_millis(5),
            ..PushesConfig::default()
        };
        let config =
            crate::elements::ElementsConfig { gateway: GatewayConfig::default(), ..Default::default() };
        let elements = Elements::new(&config, Path::new(""), Arc::new(uplink)).unwrap();
        let metrics = Metrics::register(&mut registry);
        let executor = Executor::new(Arc::new(elements), ledger.clone(), pushes, metrics.clone());
        let bells = Bells { pushes: executor.wake(), ..Bells::default() };
        let news = bells.messages.clone();
        let of_task = (ledger.clone(), metrics.clone());
        let rig =
            Rig::with_book(book(PROFILES), of_task.0, of_task.1, registry, bells, Some(recording(dir))).await;
        let messenger = Messenger { ledger, outbox, links, metrics, news };
        let executing = tokio::spawn(executor.run(std::future::pending()));
        let sending = tokio::spawn(async move {
            let (_stop, stopped) = watch::channel(false);
            let _ = messenger.run(stopped).await;
        });
        let others = vec![executing, sending];
        let Ok(rig) = rig else {
            end(others).await;
            return None;
        };
        Some(Self { rig, fuse, others })
    }

    async fn kill(self) {
        // From here on nothing that lasts is done any more.
        self.fuse.kill();
        end(self.others).await;
        self.rig.kill().await;
    }

    /// Does one thing of the history; `None`: the process died over it, or before.
    async fn act(&self, ground: &Ground, act: &Act) -> Option<()> {
        match act {
            Act::Batch(sequence) => {
                let batch = second(*sequence, ground.now, 1.0);
                self.rig.inbox.batch(batch).await.ok().map(|mark| assert!(mark.sequence >= *sequence))
            }
            Act::Tap => {
                let decision = self.rig.ledger.messages(None, 9).unwrap().remove(0).say.decision;
                let (answer, tapped) = oneshot::channel();
                let ask = advice::Ask::Tap { decision, at: Micros::now(), answer };
                self.rig.advice.send(ask).await.ok()?;
                let tapped = tapped.await.ok()?;
                assert!(matches!(tapped, advice::Tapped::Accepted | advice::Tapped::Already), "{tapped:?}");
                Some(())
            }
            Act::Apply => {
                let (answer, applied) = oneshot::channel();
                let policy = Box::new(with_floor("floor: 0.3").policy.clone());
                let confirm_within = Duration::from_hours(1);
                let ask = api::Ask::Apply { policy, confirm_within, answer };
                self.rig.api.send(ask).await.ok()?;
                match applied.await.ok()? {
                    Ok(_) | Err(api::Refused::InForce) => Some(()),
                    Err(refused) => panic!("{refused}"),
                }
            }
            Act::Confirm => {
                let (answer, confirmed) = oneshot::channel();
                self.rig.api.send(api::Ask::Confirm { answer }).await.ok()?;
                // A second time there is nothing left to confirm.
                let _ = confirmed.await.ok()?;
                Some(())
            }
        }
    }

    /// Waits until nothing is left to be carried out; `None`: the process died over it.
    async fn rest(&self) -> Option<()> {
        loop {
            let ledger = &self.rig.ledger;
            let is_done = |push: &crate::ledger::pushes::PushRecord| {
                matches!(
                    push.state,
                    crate::elements::PushState::Done | crate::elements::PushState::Superseded
                )
            };
            if ledger.pending_messages(9).unwrap().is_empty()
                && ledger.pushes(&PushFilter::default(), 99).unwrap().iter().all(is_done)
            {
                return Some(());
            }
            if !self.fuse.is_whole() || self.rig.task.is_finished() {
                return None;
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
}

async fn end(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        task.abort();
        let _ = task.await;
    }
}

const BATCHES: u64 = 9;

enum Act {
    Batch(u64),
    Tap,
    Apply,
    Confirm,
}

/// Seconds of capped video, in which everything else happens. With the ninth it is known that it was so for five seconds and
/// three more: were any of the others forgotten, it would not be.
fn history() -> Vec<Act> {
    let mut acts: Vec<Act> = (1..=4).map(Act::Batch).collect();
    acts.extend([Act::Tap, Act::Batch(5), Act::Apply, Act::Batch(6), Act::Confirm]);
    acts.extend((7..=BATCHES).map(Act::Batch));
    acts
}

/// How it all came out.
#[derive(Debug, PartialEq)]
struct Outcome {
    totals: BTreeMap<Option<String>, u64>,
    /// Moments and what was chosen, each with its episode.
    decisions: BTreeSet<(String, String, u64, Option<String>)>,
    /// To whom, and what for: a file in the outbox each.
    messages: Vec<(String, String)>,
    taps: usize,
    policy: String,
    /// By session.
    settings: BTreeMap<String, BTreeMap<String, String>>,
}

/// Plays the history; killed before the steps `kills` of one life after the other.
async fn play(kills: &[u64]) -> (Outcome, u64) {
    let ground = Ground::new();
    let mut kills = kills.iter().copied();
    let mut steps = 0;
    let mut life: Option<Life> = None;
    let history = history();
    let mut acts = history.iter().peekable();
    loop {
        let Some(alive) = &life else {
            let fuse = Fuse::killing_before(kills.next());
            life = Box::pin(Life::start(&ground, fuse)).await;
            continue;
        };
        let done = match acts.peek() {
            Some(act) => alive.act(&ground, act).await,
            None => alive.rest().await,
        };
        reserved(&ground, &alive.rig.ledger);
        match done {
            Some(()) if acts.peek().is_none() => {
                steps += alive.fuse.taken();
                let outcome = outcome(&ground, &alive.rig);
                if let Some(life) = life {
                    life.kill().await;
                }
                return (outcome, steps);
            }
            Some(()) => drop(acts.next()),
            None => {
                steps += alive.fuse.taken();
                if let Some(life) = life.take() {
                    life.kill().await;
                }
            }
        }
    }
}

/// A message that left was counted against its subscriber's budget before.
fn reserved(ground: &Ground, ledger: &Ledger) {
    for file in ground.outbox() {
        let decision = DecisionId(file.clone());
        let row = ledger.message(&decision).unwrap().unwrap_or_else(|| panic!("{file} came from nowhere"));
        let state = ledger.engine_row(&row.say.subscriber).unwrap().unwrap();
        assert!(state.contains(&decision.0), "{file} was sent before it was counted");
    }
}

fn outcome(ground: &Ground, rig: &Rig) -> Outcome {
    let ledger = &rig.ledger;
    let decisions = ledger.decisions(None, 99).unwrap().into_iter().map(|row| {
        let decision = row.decision;
        (decision.subscriber.0, decision.moment, decision.episode, decision.chosen)
    });
    let decisions: Vec<_> = decisions.collect();
    let distinct: BTreeSet<_> = decisions.iter().cloned().collect();
    assert_eq!(distinct.len(), decisions.len(), "a decision was made twice: {decisions:?}");
    let pushes = ledger.pushes(&PushFilter::default(), 99).unwrap();
    let revisions: BTreeSet<_> =
        pushes.iter().map(|push| (push.push.subscriber.clone(), push.push.settings.revision)).collect();
    assert_eq!(revisions.len(), pushes.len(), "a revision was pushed twice");
    let outbox = ground.outbox().into_iter();
    let messages = outbox.map(|file| {
        let say = ledger.message(&DecisionId(file.clone())).unwrap().unwrap().say;
        (say.subscriber.0, say.action)
    });
    let gateway = ground.gateway.lock().unwrap();
    assert!(gateway.before.is_empty(), "a push is half done: {gateway:?}");
    let values = |desired: &telemetry::Desired| {
        desired.settings.iter().map(|setting| (setting.name.clone(), setting.value.clone())).collect()
    };
    Outcome {
        totals: rig.totals(),
        decisions: distinct,
        messages: messages.collect(),
        taps: ledger.messages(None, 99).unwrap().iter().filter(|row| row.tapped.is_some()).count(),
        policy: rig.in_force(),
        settings: gateway
            .running
            .iter()
            .map(|(session, desired)| (session.clone(), values(desired)))
            .collect(),
    }
}

/// The model: what the history says by itself.
fn expected() -> Outcome {
    let decision = |subscriber: &str, moment: &str, chosen: &str| {
        (subscriber.to_owned(), moment.to_owned(), 1, Some(chosen.to_owned()))
    };
    let settings = |video: &str, pass: &str| -> BTreeMap<String, String> {
        let settings = [("line", "home"), ("roam_pass", pass), ("video", video)];
        settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    };
    Outcome {
        totals: BTreeMap::from([(Some("sub-a".to_owned()), BATCHES * 1_000)]),
        decisions: BTreeSet::from([
            decision("sub-a", "hd_starved", "hd_evening"),
            decision("sub-b", "roam_bare", "roam_pass"),
        ]),
        messages: vec![("sub-b".to_owned(), "roam_pass".to_owned())],
        taps: 1,
        policy: with_floor("floor: 0.3").policy.revision().to_owned(),
        settings: BTreeMap::from([
            ("s-a".to_owned(), settings("hd", "none")),
            ("s-b".to_owned(), settings("sd", "day")),
        ]),
    }
}

/// Times every step is killed before, with another second kill each time.
const ROUNDS: u64 = 3;

#[test]
fn wherever_it_is_killed_everything_happens_once() {
    let played = |kills: &[u64]| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(kills))
    };
    let (unharmed, steps) = played(&[]);
    assert_eq!(unharmed, expected(), "the history by itself");
    assert!(steps >= 50, "only {steps} steps: the history is too short");
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, NonZero::get) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= steps * ROUNDS {
                        break;
                    }
                    // And somewhere in the next life, its start included.
                    let (kill, again) = (number % steps, number.wrapping_mul(7_919) % steps);
                    let (outcome, _) = played(&[kill, again]);
                    assert_eq!(
                        outcome,
                        expected(),
                        "killed before step {kill} of {steps}, then before {again}"
                    );
                }
            });
        }
    });
}
