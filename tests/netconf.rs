//! Pushes against real NETCONF servers: netconfd behind OpenSSH.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use usher_models::setting::{Setting, Settings};
use usher_models::telemetry;
use usher_models::units::{Micros, SubscriberId};
use usher_orchestrator::elements::{
    Answer, Ask, AskError, ElementOutcome, ElementState, Elements, ElementsConfig, Journal, JournalError,
    NetconfConfig, Outcome, Push, PushId, PushState,
};
use usher_orchestrator::engine::io::Cause;
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
