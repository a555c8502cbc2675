//! Pushes against real NETCONF servers: netconfd behind OpenSSH.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use usher_models::setting::{Setting, Settings};
use usher_models::telemetry;
use usher_models::units::{Micros, SubscriberId};
use usher_orchestrator::elements::{
    Answer, Ask, AskError, ElementOutcome, ElementState, Elements, ElementsConfig, Executor, Journal,
    JournalError, NetconfConfig, Outcome, Push, PushId, PushState, PushesConfig,
};
use usher_orchestrator::engine::io::Cause;
use usher_orchestrator::ledger::Ledger;
use usher_orchestrator::ledger::pushes::PushRecord;
use usher_orchestrator::metrics::{self, Metrics};
use usher_tests::netconfd::{self, NetconfServer};
use usher_tests::skip;
use usher_tests::wait::{self, Seen};

/// There is no gateway in these tests.
struct NoAgents;

impl Ask for NoAgents {
    fn ask<'a>(&'a self, _: &'a str, _: telemetry::Push, _: Duration) -> Answer<'a> {
        Box::pin(async { Err(AskError::UnknownAgent) })
    }
}

type Hook = Box<dyn FnMut(&Note) -> Result<(), JournalError> + Send>;

/// What the transaction noted, and something to do at that very moment.
#[derive(Clone, Default)]
struct Notes {
    notes: Arc<Mutex<Vec<Note>>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Note {
    Push(PushState),
    Element(String, ElementState),
}

impl Notes {
    fn at(hook: impl FnMut(&Note) -> Result<(), JournalError> + Send + 'static) -> Self {
        Self { notes: Arc::default(), hook: Arc::new(Mutex::new(Some(Box::new(hook)))) }
    }

    fn journal(&self) -> Arc<dyn Journal> {
        Arc::new(self.clone())
    }

    fn take(&self, note: Note) -> Result<(), JournalError> {
        self.notes.lock().unwrap().push(note.clone());
        self.hook.lock().unwrap().as_mut().map_or(Ok(()), |hook| hook(&note))
    }
}

impl Journal for Notes {
    fn push(&self, _: &PushId, state: PushState) -> Result<(), JournalError> {
        self.take(Note::Push(state))
    }

    fn element(&self, _: &PushId, element: &ElementOutcome) -> Result<(), JournalError> {
        self.take(Note::Element(element.element.clone(), element.state))
    }
}

fn template() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../orchestrator/templates/usher-subscriber-services.yaml")
}

fn device(name: &str, server: &NetconfServer) -> NetconfConfig {
    let video = |quality: &str, down: &str| {
        BTreeMap::from([("quality".to_owned(), quality.to_owned()), ("down".to_owned(), down.to_owned())])
    };
    NetconfConfig {
        name: name.to_owned(),
        address: server.address.clone(),
        user: server.user.clone(),
        key: Some(server.key.clone()),
        password: None,
        known_hosts: server.known_hosts.clone(),
        template: template(),
        settings: BTreeMap::from([(
            "video".to_owned(),
            BTreeMap::from([
                ("sd".to_owned(), video("sd", "1.5 Mbit/s")),
                ("hd".to_owned(), video("hd", "8 Mbit/s")),
            ]),
        )]),
        connect: Duration::from_secs(5),
        rpc: Duration::from_secs(5),
        lock: Duration::from_secs(2),
        confirm: Duration::from_secs(4),
        dry_run: false,
    }
}

fn elements(devices: &[NetconfConfig]) -> Elements {
    let config = ElementsConfig { netconf: devices.to_vec(), ..ElementsConfig::default() };
    Elements::new(&config, Path::new("/"), Arc::new(NoAgents)).unwrap()
}

fn video(value: &str) -> Push {
    Push {
        id: PushId::new(),
        subscriber: SubscriberId("line <1> & co".to_owned()),
        cause: Cause::Plan,
        settings: Settings {
            revision: 1,
            values: BTreeMap::from([("video".to_owned(), Setting::of_plan(value))]),
        },
        desired_at: Micros::now(),
    }
}

/// As the subscriber's name stands in XML.
const LINE: &str = "line &lt;1&gt; &amp; co";

fn holds(server: &NetconfServer, quality: Option<&str>) {
    assert_eq!(server.video_quality(LINE).unwrap().as_deref(), quality);
}

/// Starts a server, or says why the test cannot run.
macro_rules! server {
    ($test:literal) => {{
        if let Some(reason) = netconfd::why_not() {
            skip::skipped($test, &reason);
            return;
        }
        NetconfServer::start().unwrap()
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_in_force_read_back_and_confirmed() {
    let server = server!("a_push_is_in_force_read_back_and_confirmed");
    let elements = elements(&[device("x", &server)]);
    let notes = Notes::default();
    let push = video("hd");
    let plan = elements.plan(&push, &[]).await;
    assert_eq!(plan[0].error, None);
    assert_eq!(plan[0].changes.len(), 3, "{plan:?}");
    holds(&server, None);

    let done = elements.push(&push, &[], &notes.journal()).await;
    assert_eq!(done.outcome, Outcome::Done, "{done:?}");
    let part = &done.elements[0];
    assert_eq!((part.element.as_str(), part.state), ("netconf:x", ElementState::Confirmed));
    assert!(part.started <= part.enforced.unwrap() && part.enforced <= part.confirmed);
    holds(&server, Some("hd"));
    assert_eq!(
        *notes.notes.lock().unwrap(),
        [
            Note::Element("netconf:x".into(), ElementState::Committing),
            Note::Element("netconf:x".into(), ElementState::Enforced),
            Note::Push(PushState::Confirming),
        ]
    );

    let again = elements.push(&video("hd"), &[], &notes.journal()).await;
    assert_eq!(again.elements[0].state, ElementState::Unchanged, "what is there already is not sent again");
    assert_eq!(notes.notes.lock().unwrap().len(), 3);
    assert_eq!(elements.connects().collect::<Vec<_>>(), [("x", 1)], "one session serves many pushes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_brings_back_exactly_what_was_there() {
    let server = server!("an_expiry_brings_back_exactly_what_was_there");
    let elements = elements(&[device("x", &server)]);
    server
        .configure(&format!(
            "<subscriber><id>{LINE}</id><video-quality>sd</video-quality><down-rate-bps>1500000</down-rate-bps>\
             <note>somebody else's</note></subscriber><subscriber><id>another</id><video-quality>uhd</video-quality></subscriber>"
        ))
        .unwrap();
    let before = server.subscribers().unwrap();
    let journal = Notes::default().journal();
    let mut push = video("hd");
    assert_eq!(elements.push(&push, &[], &journal).await.outcome, Outcome::Done);
    holds(&server, Some("hd"));

    // What the engine desires once the time is up, and what an expired setting means in itself, is the same.
    push.id = PushId::new();
    let expired = Setting { value: "hd".into(), until: Some(Micros::new(1)), otherwise: "sd".into() };
    push.settings.values.insert("video".into(), expired);
    assert_eq!(elements.push(&push, &[], &journal).await.outcome, Outcome::Done);
    assert_eq!(server.subscribers().unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_host_key_is_named_and_nothing_is_sent() {
    let mut server = server!("a_changed_host_key_is_named_and_nothing_is_sent");
    server.change_host_key().unwrap();
    let mut config = device("x", &server);
    config.connect = Duration::from_secs(2);
    let elements = elements(&[config]);
    let journal = Notes::default().journal();
    let outcome = elements.push(&video("hd"), &[], &journal).await.outcome;
    let Outcome::RolledBack { error } = outcome else { panic!("{outcome:?}") };
    assert!(error.starts_with("netconf:x: the host key of 127.0.0.1:"), "{error}");
    assert!(error.contains("has changed") && error.matches("SHA256:").count() == 2, "{error}");
    assert!(error.contains("ssh-ed25519") && error.contains("nothing was sent"), "{error}");

    std::fs::write(&server.known_hosts, "").unwrap();
    let unknown = elements_until(&elements, "is not in").await;
    assert!(unknown.contains("SHA256:") && unknown.contains("nothing was sent"), "{unknown}");

    server.know_host_key().unwrap();
    holds(&server, None);
    let done = until_done(&elements, &video("hd")).await;
    assert_eq!(done, Outcome::Done);
}

/// Pushes until it fails with those words: an unreachable device is not tried again at once.
async fn elements_until(elements: &Elements, words: &str) -> String {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        match elements.push(&video("hd"), &[], &Notes::default().journal()).await.outcome {
            Outcome::RolledBack { error } if error.contains(words) => return error,
            other => assert!(std::time::Instant::now() < deadline, "{other:?}"),
        }
    }
}

async fn until_done(elements: &Elements, push: &Push) -> Outcome {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let outcome = elements.push(push, &[], &Notes::default().journal()).await.outcome;
        if outcome == Outcome::Done || std::time::Instant::now() > deadline {
            return outcome;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_the_device_does_not_know_is_refused_with_the_users_name() {
    let server = server!("a_key_the_device_does_not_know_is_refused_with_the_users_name");
    let mut config = device("x", &server);
    config.key = Some(server.folder().join("host"));
    let outcome = elements(&[config]).push(&video("hd"), &[], &Notes::default().journal()).await.outcome;
    let Outcome::RolledBack { error } = outcome else { panic!("{outcome:?}") };
    assert!(error.contains(&format!("does not let user `{}` in", server.user)), "{error}");
    holds(&server, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_another_manager_are_waited_for_within_a_bound() {
    let server = server!("locks_of_another_manager_are_waited_for_within_a_bound");
    let elements = elements(&[device("x", &server)]);
    let journal = Notes::default().journal();
    let mut other = server.client().unwrap();
    other.ask("<lock><target><candidate/></target></lock>").unwrap();
    let since = std::time::Instant::now();
    let outcome = elements.push(&video("hd"), &[], &journal).await.outcome;
    let Outcome::RolledBack { error } = outcome else { panic!("{outcome:?}") };
    assert!(error.contains("lock of candidate was refused"), "{error}");
    let took = since.elapsed();
    assert!(took > Duration::from_millis(800) && took < Duration::from_secs(8), "{took:?}");

    // Let go while the push tries.
    let push = video("hd");
    let release =
        tokio::task::spawn_blocking(move || other.ask("<unlock><target><candidate/></target></unlock>"));
    let (outcome, released) = tokio::join!(elements.push(&push, &[], &journal), release);
    released.unwrap().unwrap();
    assert_eq!(outcome.outcome, Outcome::Done, "{outcome:?}");
    holds(&server, Some("hd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_somebody_else_left_in_the_candidate_are_not_published() {
    let server = server!("edits_somebody_else_left_in_the_candidate_are_not_published");
    let elements = elements(&[device("x", &server)]);
    let mut other = server.client().unwrap();
    other.edit("<subscriber><id>theirs</id><video-quality>uhd</video-quality></subscriber>").unwrap();
    let outcome = elements.push(&video("hd"), &[], &Notes::default().journal()).await.outcome;
    assert!(matches!(outcome, Outcome::RolledBack { .. }), "{outcome:?}");
    holds(&server, None);
    assert_eq!(server.video_quality("theirs").unwrap(), None);
    other.ask("<discard-changes/>").unwrap();
    assert_eq!(until_done(&elements, &video("hd")).await, Outcome::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_does_nothing_and_says_ok_is_found_out() {
    let server = server!("a_commit_that_does_nothing_and_says_ok_is_found_out");
    let elements = elements(&[device("x", &server)]);
    // This server takes the commit after somebody's validate for done, and does nothing.
    let mut other = server.client().unwrap();
    let validate = move |note: &Note| {
        if matches!(note, Note::Element(_, ElementState::Committing)) {
            other.ask("<validate><source><candidate/></source></validate>").unwrap();
        }
        Ok(())
    };
    let outcome = elements.push(&video("hd"), &[], &Notes::at(validate).journal()).await;
    let Outcome::RolledBack { error } = &outcome.outcome else { panic!("{outcome:?}") };
    assert!(error.contains("does not hold what it was told to"), "{error}");
    assert_eq!(outcome.elements[0].state, ElementState::RolledBack);
    holds(&server, None);
    assert_eq!(until_done(&elements, &video("hd")).await, Outcome::Done);
    holds(&server, Some("hd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_device_that_refuses_keeps_the_other_as_it_was() {
    let good = server!("one_device_that_refuses_keeps_the_other_as_it_was");
    let strict = NetconfServer::start().unwrap();
    let mut config = device("strict", &strict);
    let slow = ("down".to_owned(), "1 kbit/s".to_owned());
    config.settings.get_mut("video").unwrap().get_mut("hd").unwrap().extend([slow]);
    let elements = elements(&[device("good", &good), config]);
    let notes = Notes::default();
    let outcome = elements.push(&video("hd"), &[], &notes.journal()).await;
    let Outcome::RolledBack { error } = &outcome.outcome else { panic!("{outcome:?}") };
    assert!(error.starts_with("netconf:strict: edit-config was refused"), "{error}");
    assert!(notes.notes.lock().unwrap().is_empty(), "nothing was committed anywhere");
    holds(&good, None);
    holds(&strict, None);
    // Nothing is left in the candidate and no lock is held.
    assert_eq!(until_done(&elements, &video("sd")).await, Outcome::Done);
    holds(&good, Some("sd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gone_before_its_commit_takes_the_other_back_at_once() {
    let stays = server!("a_device_gone_before_its_commit_takes_the_other_back_at_once");
    let goes = Arc::new(Mutex::new(NetconfServer::start().unwrap()));
    let elements = elements(&[device("stays", &stays), device("goes", &goes.lock().unwrap())]);
    assert_eq!(until_done(&elements, &video("sd")).await, Outcome::Done);
    let cut = Arc::clone(&goes);
    let hook = move |note: &Note| {
        if matches!(note, Note::Element(_, ElementState::Committing)) {
            cut.lock().unwrap().cut_off().unwrap();
        }
        Ok(())
    };
    let push = video("hd");
    let outcome = elements.push(&push, &[], &Notes::at(hook).journal()).await;
    assert!(
        matches!(&outcome.outcome, Outcome::Unverified { error } if error.starts_with("netconf:goes")),
        "{outcome:?}"
    );
    assert_eq!(outcome.elements[0].state, ElementState::Unverified);
    assert_eq!(outcome.elements[1].state, ElementState::RolledBack, "{outcome:?}");
    holds(&stays, Some("sd"));
    goes.lock().unwrap().start_sshd().unwrap();
    settle(&elements, &push.id, "netconf:goes").await;
    holds(&goes.lock().unwrap(), Some("sd"));
}

/// Cancels what is left, as soon as the device can be talked to again.
async fn settle(elements: &Elements, push: &PushId, element: &str) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while let Err(error) = elements.cancel_leftover(push, element).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gone_before_it_is_confirmed_goes_back_by_its_own_timer() {
    let server = server!("a_device_gone_before_it_is_confirmed_goes_back_by_its_own_timer");
    let config = device("x", &server);
    let server = Arc::new(Mutex::new(server));
    let elements = elements(&[config]);
    assert_eq!(until_done(&elements, &video("sd")).await, Outcome::Done);
    let cut = Arc::clone(&server);
    let hook = move |note: &Note| {
        if *note == Note::Push(PushState::Confirming) {
            cut.lock().unwrap().cut_off().unwrap();
        }
        Ok(())
    };
    let outcome = elements.push(&video("hd"), &[], &Notes::at(hook).journal()).await;
    assert!(matches!(outcome.outcome, Outcome::Unverified { .. }), "{outcome:?}");
    assert_eq!(outcome.elements[0].state, ElementState::Unverified);
    // The device's own timer runs only while nobody talks to it, so its log is watched instead.
    let log = server.lock().unwrap().folder().join("netconfd.log");
    wait::until("the device's own roll-back", Duration::from_secs(30), || {
        let log = std::fs::read_to_string(&log)?;
        Ok(Seen::when(
            log.contains("on session 0 by superuser") && log.trim_end().ends_with("'line <1> & co']"),
            (),
            &log,
        ))
    })
    .unwrap();
    let mut server = server.lock().unwrap();
    server.start_sshd().unwrap();
    holds(&server, Some("sd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmation_that_fails_half_way_is_undone_where_it_had_succeeded() {
    let first = server!("a_confirmation_that_fails_half_way_is_undone_where_it_had_succeeded");
    let second = Arc::new(Mutex::new(NetconfServer::start().unwrap()));
    let elements = elements(&[device("a", &first), device("b", &second.lock().unwrap())]);
    assert_eq!(until_done(&elements, &video("sd")).await, Outcome::Done);
    let cut = Arc::clone(&second);
    let hook = move |note: &Note| {
        if *note == Note::Push(PushState::Confirming) {
            cut.lock().unwrap().cut_off().unwrap();
        }
        Ok(())
    };
    let push = video("hd");
    let outcome = elements.push(&push, &[], &Notes::at(hook).journal()).await;
    assert_eq!(outcome.elements[0].state, ElementState::RolledBack, "{outcome:?}");
    assert_eq!(outcome.elements[1].state, ElementState::Unverified, "{outcome:?}");
    holds(&first, Some("sd"));
    second.lock().unwrap().start_sshd().unwrap();
    settle(&elements, &push.id, "netconf:b").await;
    holds(&second.lock().unwrap(), Some("sd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_element_is_planned_and_left_alone() {
    let server = server!("a_dry_run_element_is_planned_and_left_alone");
    let mut config = device("x", &server);
    config.dry_run = true;
    let elements = elements(&[config]);
    let outcome = elements.push(&video("hd"), &[], &Notes::default().journal()).await;
    assert_eq!(outcome.outcome, Outcome::Done);
    assert_eq!(outcome.elements[0].state, ElementState::DryRun);
    assert_eq!(outcome.elements[0].changes.len(), 3);
    holds(&server, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hangs_holds_up_only_pushes_that_touch_it() {
    let well = server!("a_device_that_hangs_holds_up_only_pushes_that_touch_it");
    let hung = NetconfServer::start().unwrap();
    let mut slow = device("hung", &hung);
    let values = slow.settings.remove("video").unwrap();
    slow.settings.insert("qos_down".to_owned(), values);
    slow.template = hung.folder().join("qos.yaml");
    let text = std::fs::read_to_string(template())
        .unwrap()
        .replace("video is", "qos_down is")
        .replace("video.", "qos_down.");
    std::fs::write(&slow.template, text).unwrap();
    let elements = Arc::new(elements(&[device("well", &well), slow]));
    let both = {
        let mut push = video("hd");
        push.settings.values.insert("qos_down".to_owned(), Setting::of_plan("hd"));
        push
    };
    assert_eq!(until_done(&elements, &both).await, Outcome::Done);
    hung.freeze().unwrap();
    let stuck = tokio::spawn({
        let (elements, mut push) = (Arc::clone(&elements), both.clone());
        push.settings.values.insert("qos_down".to_owned(), Setting::of_plan("sd"));
        push.settings.values.insert("video".to_owned(), Setting::of_plan("sd"));
        async move { elements.push(&push, &[], &Notes::default().journal()).await }
    });
    let mut other = video("sd");
    other.subscriber = SubscriberId("another".to_owned());
    let since = std::time::Instant::now();
    assert_eq!(elements.push(&other, &[], &Notes::default().journal()).await.outcome, Outcome::Done);
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    let outcome = stuck.await.unwrap().outcome;
    assert!(
        matches!(&outcome, Outcome::RolledBack { error } if error.starts_with("netconf:hung: no ")),
        "{outcome:?}"
    );
    hung.thaw().unwrap();
    holds(&well, Some("hd"));
}

/// A ledger of its own, and an executor over it that tries often.
struct Shop {
    ledger: Ledger,
    _folder: tempfile::TempDir,
}

impl Shop {
    fn new() -> Self {
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

    fn record(&self, push: &Push) -> PushRecord {
        self.ledger.push(&push.id).unwrap().unwrap()
    }

    /// Lets an executor work until the push has come to an end.
    async fn work_off(&self, elements: &Arc<Elements>, push: &Push) -> PushRecord {
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
async fn crash_at(shop: &Shop, config: NetconfConfig, push: &Push, at: fn(&Note) -> bool) {
    let elements = elements(&[config]);
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
        outcome = elements.push(push, &[], &journal) => panic!("it went through: {outcome:?}"),
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
    config.confirm = Duration::from_secs(60);
    let shop = Shop::new();
    let push = video("hd");
    crash_at(&shop, config.clone(), &push, |note| *note == Note::Push(PushState::Confirming)).await;
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
    config.confirm = Duration::from_secs(60);
    let shop = Shop::new();
    let push = video("hd");
    let enforced = |note: &Note| matches!(note, Note::Element(_, ElementState::Enforced));
    crash_at(&shop, config.clone(), &push, enforced).await;
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
async fn a_push_that_cannot_be_is_given_up_after_its_attempts() {
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
    let ended = tokio::task::spawn_blocking(move || {
        wait::until("the end of the push", Duration::from_secs(20), || {
            let record = ledger.push(&id)?.unwrap();
            Ok(if record.state.is_final() { Seen::Done(record) } else { Seen::NotYet(format!("{record:?}")) })
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
    assert_eq!((record.state, record.attempts), (PushState::Failed, 3));
    assert_eq!(metrics.pushes_retried.get(), 2);
}
