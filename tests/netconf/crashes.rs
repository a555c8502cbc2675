//! The executor: crashes at the worst moments, devices that are away, pushes that cannot be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use usher_models::setting::Settings;
use usher_models::units::SubscriberId;
use usher_orchestrator::elements::{
    ElementOutcome, ElementState, Elements, Executor, Journal, JournalError, NetconfConfig, Push, PushId,
    PushState, PushesConfig, Reach,
};
use usher_orchestrator::ledger::Ledger;
use usher_orchestrator::ledger::pushes::PushRecord;
use usher_orchestrator::metrics::{self, Metrics};
use usher_tests::wait::{self, Seen};

use super::{Note, Notes, device, elements, holds, server, template, video};

/// A ledger of its own, and an executor over it that tries often.
pub(super) struct Shop {
    ledger: Ledger,
    _folder: tempfile::TempDir,
}

impl Shop {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { ledger: Ledger::open(&folder.path().join("ledger.sqlite")).unwrap(), _folder: folder }
    }

    fn executor(&self, elements: &Arc<Elements>) -> Executor {
        let config = PushesConfig {
            first_retry: Duration::from_millis(200),
            longest_retry: Duration::from_secs(1),
            ..PushesConfig::default()
        };
        let metrics = Metrics::register(&mut metrics::registry());
        Executor::new(Arc::clone(elements), self.ledger.clone(), config, metrics)
    }

    pub(super) fn record(&self, push: &Push) -> PushRecord {
        self.ledger.push(&push.id).unwrap().unwrap()
    }

    /// Lets an executor work until the push has come to an end.
    pub(super) async fn work_off(&self, elements: &Arc<Elements>, push: &Push) -> PushRecord {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(self.executor(elements).run(async move {
            let _ = stopped.await;
        }));
        let (ledger, id) = (self.ledger.clone(), push.id.clone());
        let record = tokio::task::spawn_blocking(move || {
            wait::until("the end of the push", Duration::from_secs(30), || {
                let record = ledger.push(&id)?.unwrap();
                Ok(if record.state.is_final() {
                    Seen::Done(record)
                } else {
                    Seen::NotYet(format!("{record:?}"))
                })
            })
        });
        let record = record.await.unwrap().unwrap();
        drop(stop);
        running.await.unwrap();
        record
    }
}

/// The process ends while `at` is being noted: the note is on the disk, and nothing after it happens.
pub(super) async fn crash_at(
    shop: &Shop,
    elements: Elements,
    reach: &[Reach],
    push: &Push,
    at: fn(&Note) -> bool,
) {
    shop.ledger.push_enqueue(push).unwrap();
    shop.ledger.push_begin(&push.id).unwrap();
    let (reached, crash) = tokio::sync::oneshot::channel::<()>();
    let mut reached = Some(reached);
    let (go_on, gone) = std::sync::mpsc::channel::<()>();
    let notes = Notes::at(move |note| {
        if at(note) {
            drop(reached.take());
            let _ = gone.recv();
        }
        Ok(())
    });
    let journal: Arc<dyn Journal> = Arc::new(Both(shop.ledger.clone(), notes));
    tokio::select! {
        outcome = elements.push(push, reach, &journal) => panic!("it went through: {outcome:?}"),
        _ = crash => {}
    }
    drop(go_on);
}

/// Into the ledger, and then to the test.
struct Both(Ledger, Notes);

impl Journal for Both {
    fn push(&self, push: &PushId, state: PushState) -> Result<(), JournalError> {
        Journal::push(&self.0, push, state)?;
        Journal::push(&self.1, push, state)
    }

    fn element(&self, push: &PushId, element: &ElementOutcome) -> Result<(), JournalError> {
        self.0.element(push, element)?;
        self.1.element(push, element)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_was_decided_is_confirmed_after_a_crash() {
    let server = server!("a_push_that_was_decided_is_confirmed_after_a_crash");
    let mut config = device("x", &server);
    config.confirm = Duration::from_mins(1);
    let shop = Shop::new();
    let push = video("hd");
    crash_at(&shop, elements(&[config.clone()]), &[], &push, |note| {
        *note == Note::Push(PushState::Confirming)
    })
    .await;
    assert_eq!(shop.record(&push).state, PushState::Confirming);
    let edits = server.transactions();
    let elements = Arc::new(elements(&[config]));
    let record = shop.work_off(&elements, &push).await;
    assert_eq!(record.state, PushState::Done, "{record:?}");
    assert_eq!(server.transactions(), edits, "nothing is pushed a second time");
    // Nothing is pending any more that could take it back.
    elements.cancel_leftover(&push.id, "netconf:x").await.unwrap();
    holds(&server, Some("hd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_was_not_decided_is_taken_back_after_a_crash_and_made_again() {
    let server = server!("a_push_that_was_not_decided_is_taken_back_after_a_crash_and_made_again");
    let mut config = device("x", &server);
    config.confirm = Duration::from_mins(1);
    let shop = Shop::new();
    let push = video("hd");
    let enforced = |note: &Note| matches!(note, Note::Element(_, ElementState::Enforced));
    crash_at(&shop, elements(&[config.clone()]), &[], &push, enforced).await;
    assert_eq!(shop.record(&push).state, PushState::Running);
    holds(&server, Some("hd"));
    // Meanwhile something newer is desired: the older push is not made again.
    let newer = video("sd");
    shop.ledger.push_enqueue(&newer).unwrap();
    let elements = Arc::new(elements(&[config]));
    let record = shop.work_off(&elements, &newer).await;
    assert_eq!(record.state, PushState::Done, "{record:?}");
    let older = shop.record(&push);
    assert_eq!((older.state, older.elements[0].state), (PushState::Superseded, ElementState::RolledBack));
    elements.cancel_leftover(&push.id, "netconf:x").await.unwrap();
    holds(&server, Some("sd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_waits_for_a_device_that_is_away() {
    let mut server = server!("a_push_waits_for_a_device_that_is_away");
    let mut config = device("x", &server);
    config.connect = Duration::from_secs(2);
    server.cut_off().unwrap();
    let shop = Shop::new();
    let push = video("hd");
    shop.ledger.push_enqueue(&push).unwrap();
    let elements = Arc::new(elements(&[config]));
    let back = tokio::task::spawn_blocking({
        let (ledger, id) = (shop.ledger.clone(), push.id.clone());
        move || {
            wait::until("two attempts", Duration::from_secs(20), || {
                let record = ledger.push(&id)?.unwrap();
                Ok(Seen::when(record.attempts >= 2, record.error.clone(), format!("{record:?}")))
            })
            .map(|error| {
                server.start_sshd().unwrap();
                (server, error)
            })
        }
    });
    let record = shop.work_off(&elements, &push).await;
    let (server, error) = back.await.unwrap().unwrap();
    assert!(error.unwrap().contains("Connection refused"));
    assert_eq!(record.state, PushState::Done, "{record:?}");
    assert!(record.elements[0].enforced.is_some());
    holds(&server, Some("hd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_cannot_be_counts_as_failed_after_its_attempts_and_is_tried_on_until_something_newer_is_desired()
 {
    let shop = Shop::new();
    let push = video("hd");
    shop.ledger.push_enqueue(&push).unwrap();
    let config = NetconfConfig {
        name: "x".into(),
        address: "127.0.0.1:9".into(),
        user: "nobody".into(),
        key: Some("/nonexistent".into()),
        password: None,
        known_hosts: "/nonexistent".into(),
        template: template(),
        settings: BTreeMap::from([(
            "video".to_owned(),
            BTreeMap::from([(
                "hd".to_owned(),
                BTreeMap::from([
                    ("quality".to_owned(), "hd".to_owned()),
                    ("down".to_owned(), "8 Mbit/s".to_owned()),
                ]),
            )]),
        )]),
        connect: Duration::from_millis(100),
        rpc: Duration::from_secs(1),
        lock: Duration::from_secs(1),
        confirm: Duration::from_secs(4),
        dry_run: false,
    };
    let elements = Arc::new(elements(&[config]));
    let config = PushesConfig {
        attempts: 3,
        first_retry: Duration::from_millis(1),
        longest_retry: Duration::from_millis(1),
        ..PushesConfig::default()
    };
    let metrics = Metrics::register(&mut metrics::registry());
    let (ledger, id) = (shop.ledger.clone(), push.id.clone());
    // Something newer that touches no element is in force at once.
    let newer = Push { settings: Settings { revision: 2, values: BTreeMap::new() }, ..video("hd") };
    let then = newer.clone();
    let ended = tokio::task::spawn_blocking(move || {
        wait::until("two attempts more", Duration::from_secs(20), || {
            let record = ledger.push(&id)?.unwrap();
            let tried_on = record.state == PushState::Failed && record.attempts >= 5;
            Ok(if tried_on { Seen::Done(()) } else { Seen::NotYet(format!("{record:?}")) })
        })?;
        ledger.push_enqueue(&then)?;
        wait::until("the end of the push", Duration::from_secs(20), || {
            let record = ledger.push(&id)?.unwrap();
            let done = ledger.push(&then.id)?.unwrap().state == PushState::Done;
            Ok(if record.state.is_final() && done {
                Seen::Done(record)
            } else {
                Seen::NotYet(format!("{record:?}"))
            })
        })
    });
    let mut record = None;
    let executor = Executor::new(elements, shop.ledger.clone(), config, metrics.clone());
    executor
        .run(async {
            record = Some(ended.await.unwrap().unwrap());
        })
        .await;
    let record = record.unwrap();
    assert_eq!(record.state, PushState::Superseded);
    assert!(record.attempts >= 5, "{record:?}");
    assert_eq!(metrics.pushes_ended.get_or_create(&metrics::Reason { reason: "failed" }).get(), 1);
    assert_eq!(shop.record(&newer).state, PushState::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_away_for_longer_than_all_attempts_is_brought_there_when_it_is_back() {
    let mut server =
        server!("a_device_that_was_away_for_longer_than_all_attempts_is_brought_there_when_it_is_back");
    let mut device = device("x", &server);
    device.connect = Duration::from_secs(2);
    let shop = Shop::new();
    let elements = Arc::new(elements(&[device]));
    let set = video("hd");
    shop.ledger.push_enqueue(&set).unwrap();
    assert_eq!(shop.work_off(&elements, &set).await.state, PushState::Done);
    server.cut_off().unwrap();
    let ending = video("sd");
    shop.ledger.push_enqueue(&ending).unwrap();
    let config = PushesConfig {
        attempts: 2,
        first_retry: Duration::from_millis(1),
        longest_retry: Duration::from_millis(200),
        ..PushesConfig::default()
    };
    let metrics = Metrics::register(&mut metrics::registry());
    let (ledger, id) = (shop.ledger.clone(), ending.id.clone());
    let seen = tokio::task::spawn_blocking(move || {
        wait::until("a failed push", Duration::from_secs(20), || {
            let record = ledger.push(&id)?.unwrap();
            let failed = matches!(record.state, PushState::Failed | PushState::NeedsRepair);
            Ok(if failed { Seen::Done(()) } else { Seen::NotYet(format!("{record:?}")) })
        })?;
        server.start_sshd().unwrap();
        wait::until("the end of the push", Duration::from_secs(30), || {
            let record = ledger.push(&id)?.unwrap();
            let done = record.state == PushState::Done;
            Ok(if done { Seen::Done(()) } else { Seen::NotYet(format!("{record:?}")) })
        })
        .map(|()| server)
    });
    let mut server = None;
    let executor = Executor::new(elements, shop.ledger.clone(), config, metrics);
    executor.run(async { server = Some(seen.await.unwrap().unwrap()) }).await;
    holds(&server.unwrap(), Some("sd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_subscribers_at_once_share_one_device() {
    let server = server!("many_subscribers_at_once_share_one_device");
    let mut config = device("x", &server);
    config.rpc = Duration::from_secs(20);
    config.confirm = Duration::from_secs(30);
    let shop = Shop::new();
    let pushes: Vec<Push> = (0..24)
        .map(|line| {
            let mut push = video(if line % 2 == 0 { "hd" } else { "sd" });
            push.subscriber = SubscriberId(format!("line-{line}"));
            push
        })
        .collect();
    for push in &pushes {
        shop.ledger.push_enqueue(push).unwrap();
    }
    let elements = Arc::new(elements(&[config]));
    for push in &pushes {
        let record = shop.work_off(&elements, push).await;
        assert_eq!((record.state, record.attempts), (PushState::Done, 1), "{record:?}");
    }
    assert_eq!(server.subscribers().unwrap().matches("<video-quality>hd").count(), 12);
    assert_eq!(server.subscribers().unwrap().matches("<video-quality>sd").count(), 12);
    assert_eq!(elements.connects().collect::<Vec<_>>(), [("x", 1)], "over one session");
}
