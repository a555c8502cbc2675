//! Pushes against real NETCONF servers: netconfd behind OpenSSH. Here is what the tests share.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod crashes;
mod devices;
mod gateways;

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
use usher_tests::netconfd::NetconfServer;

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
        let hooked = self.hook.lock().unwrap().as_mut().map_or(Ok(()), |hook| hook(&note));
        self.notes.lock().unwrap().push(note);
        hooked
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
        if let Some(reason) = usher_tests::netconfd::why_not() {
            usher_tests::skip::skipped($test, &reason);
            return;
        }
        usher_tests::netconfd::NetconfServer::start().unwrap()
    }};
}
use server;

async fn until_done(elements: &Elements, push: &Push) -> Outcome {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let outcome = elements.push(push, &[], &Notes::default().journal()).await.outcome;
        if outcome == Outcome::Done || std::time::Instant::now() > deadline {
            return outcome;
        }
    }
}
