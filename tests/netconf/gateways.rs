//! A gateway beside a device: the agent's own state machine answers, carried out at once on a data plane that agrees or
//! does not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use usher_agent::service::{Effect, Service};
use usher_agent::uplink::settings::{Command, Event, Kept, Pushes};
use usher_models::setting::{Setting, Settings};
use usher_models::units::{BitsPerSecond, Micros};
use usher_models::{Class, telemetry};
use usher_orchestrator::elements::{
    Answer, Ask, AskError, ElementState, Elements, ElementsConfig, NetconfConfig, Outcome, Push, PushId,
    PushState, Reach,
};

use super::crashes::{Shop, crash_at};
use super::{Note, Notes, device, holds, server, video};

/// An agent without its packets.
struct Agent {
    pushes: Mutex<Pushes>,
    agrees: bool,
    connected: AtomicBool,
}

impl Agent {
    fn new(agrees: bool) -> Arc<Self> {
        let rate =
            |rate| Effect { class: Some(Class::Video), down: Some(BitsPerSecond(rate)), ..Effect::default() };
        let values = BTreeMap::from([("sd".to_owned(), rate(1_500_000)), ("hd".to_owned(), rate(8_000_000))]);
        let service = Service::new(BTreeMap::from([("video".to_owned(), values)]), Effect::PASS);
        let pushes = Pushes::new(service, Kept::default(), 100, Micros::now());
        Arc::new(Self { pushes: Mutex::new(pushes), agrees, connected: AtomicBool::new(true) })
    }

    fn step(&self, push: telemetry::Push) -> telemetry::Report {
        let mut pushes = self.pushes.lock().unwrap();
        let mut commands: VecDeque<Command> =
            pushes.handle(Micros::now(), Event::Step(push), |_| true).into();
        let mut report = None;
        while let Some(command) = commands.pop_front() {
            match command {
                Command::Verify { push, sessions, write, toward } => {
                    let agrees = self.agrees || !write;
                    let result = if agrees { Ok(()) } else { Err("the map says otherwise".to_owned()) };
                    let verified = Event::Verified { push, sessions, toward, result };
                    commands.extend(pushes.handle(Micros::now(), verified, |_| true));
                }
                Command::Answer(answer) => report = Some(answer),
                Command::Save(_) | Command::Apply(_) => {}
            }
        }
        report.unwrap()
    }

    fn video(&self) -> Option<String> {
        let pushes = self.pushes.lock().unwrap();
        Some(pushes.in_force("s1")?.values["video"].at(Micros::now()).to_owned())
    }
}

/// The agent's uplink.
struct Uplink(Arc<Agent>);

impl Ask for Uplink {
    fn ask<'a>(&'a self, agent: &'a str, push: telemetry::Push, _: Duration) -> Answer<'a> {
        let known = agent == "gw1" && self.0.connected.load(Ordering::SeqCst);
        // An agent that was restarted, too, is back after a while.
        self.0.connected.store(true, Ordering::SeqCst);
        Box::pin(async move { if known { Ok(self.0.step(push)) } else { Err(AskError::NotConnected) } })
    }
}

fn elements(agent: &Arc<Agent>, devices: &[NetconfConfig]) -> Elements {
    let config = ElementsConfig { netconf: devices.to_vec(), ..ElementsConfig::default() };
    Elements::new(&config, std::path::Path::new("/"), Arc::new(Uplink(Arc::clone(agent)))).unwrap()
}

fn reach(agent: &str) -> [Reach; 1] {
    [Reach { agent: agent.to_owned(), session: "s1".to_owned() }]
}

async fn push(elements: &Elements, push: &Push) -> Outcome {
    elements.push(push, &reach("gw1"), &Notes::default().journal()).await.outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_and_device_change_together_and_an_expiry_brings_both_back() {
    let server = server!("gateway_and_device_change_together_and_an_expiry_brings_both_back");
    let agent = Agent::new(true);
    let elements = elements(&agent, &[device("x", &server)]);
    assert_eq!(push(&elements, &video("sd")).await, Outcome::Done);
    let entry = server.entry(super::LINE).unwrap();

    let mut evening = video("hd");
    let until = Micros::now().after(Duration::from_hours(3));
    let setting = Setting { value: "hd".into(), until: Some(until), otherwise: "sd".into() };
    evening.settings = Settings { revision: 2, values: BTreeMap::from([("video".to_owned(), setting)]) };
    let outcome = elements.push(&evening, &reach("gw1"), &Notes::default().journal()).await;
    assert_eq!(outcome.outcome, Outcome::Done, "{outcome:?}");
    let shown: Vec<_> = outcome.elements.iter().map(|part| (part.element.as_str(), part.state)).collect();
    assert_eq!(shown, [("gateway:gw1", ElementState::Confirmed), ("netconf:x", ElementState::Confirmed)]);
    assert!(outcome.elements[0].changes[0].to_string().starts_with("s1/video: sd -> hd until 2"));
    assert_eq!(agent.video().as_deref(), Some("hd"));
    holds(&server, Some("hd"));

    let mut over = video("sd");
    over.settings.revision = 3;
    assert_eq!(push(&elements, &over).await, Outcome::Done);
    assert_eq!(agent.video().as_deref(), Some("sd"));
    assert_eq!(server.entry(super::LINE).unwrap(), entry);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_data_plane_disagrees_takes_the_device_back() {
    let server = server!("a_gateway_whose_data_plane_disagrees_takes_the_device_back");
    let agent = Agent::new(false);
    let outcome = push(&elements(&agent, &[device("x", &server)]), &video("hd")).await;
    let Outcome::RolledBack { error } = outcome else { panic!("{outcome:?}") };
    assert_eq!(error, "gateway:gw1: the agent refused it: the map says otherwise");
    assert_eq!(agent.video(), None);
    holds(&server, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_cannot_be_confirmed_takes_the_gateway_back() {
    let server = server!("a_device_that_cannot_be_confirmed_takes_the_gateway_back");
    let agent = Agent::new(true);
    let config = device("x", &server);
    let server = Arc::new(Mutex::new(server));
    let elements = elements(&agent, &[config]);
    assert_eq!(push(&elements, &video("sd")).await, Outcome::Done);
    let cut = Arc::clone(&server);
    let notes = Notes::at(move |note| {
        if *note == Note::Push(PushState::Confirming) {
            cut.lock().unwrap().cut_off().unwrap();
        }
        Ok(())
    });
    let outcome = elements.push(&video("hd"), &reach("gw1"), &notes.journal()).await;
    let states: Vec<_> = outcome.elements.iter().map(|part| part.state).collect();
    assert_eq!(states, [ElementState::RolledBack, ElementState::Unverified], "{outcome:?}");
    assert_eq!(agent.video().as_deref(), Some("sd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_connected_fails_the_push_before_anything_is_sent() {
    let server = server!("an_agent_that_is_not_connected_fails_the_push_before_anything_is_sent");
    let elements = elements(&Agent::new(true), &[device("x", &server)]);
    let outcome = elements.push(&video("hd"), &reach("gw2"), &Notes::default().journal()).await;
    let Outcome::RolledBack { error } = &outcome.outcome else { panic!("{outcome:?}") };
    assert_eq!(error, "gateway:gw2: the agent is not connected");
    holds(&server, None);
}

#[tokio::test]
async fn a_gateway_alone_needs_no_device() {
    let agent = Agent::new(true);
    let elements = elements(&agent, &[]);
    let first = video("hd");
    let plan = elements.plan(&first, &reach("gw1")).await;
    assert_eq!(plan[0].changes[0].to_string(), "s1/video: - -> hd");
    assert_eq!(agent.video(), None, "a plan changes nothing");
    assert_eq!(push(&elements, &first).await, Outcome::Done);
    assert_eq!(agent.video().as_deref(), Some("hd"));
    let again = Push { id: PushId::new(), ..first };
    let outcome = elements.push(&again, &reach("gw1"), &Notes::default().journal()).await;
    assert_eq!(outcome.elements[0].state, ElementState::Unchanged);
}

#[tokio::test]
async fn a_session_that_changed_hands_takes_the_settings_of_the_next_whose_revisions_are_lower() {
    let agent = Agent::new(true);
    let elements = elements(&agent, &[]);
    let mut first = video("hd");
    first.settings.revision = 7;
    assert_eq!(push(&elements, &first).await, Outcome::Done);
    let mut next = video("sd");
    next.settings.revision = 1;
    assert_eq!(push(&elements, &next).await, Outcome::Done);
    assert_eq!(agent.video().as_deref(), Some("sd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_is_confirmed_on_a_gateway_that_comes_back_after_the_crash() {
    let agent = Agent::new(true);
    let shop = Shop::new();
    let push = video("hd");
    let confirming = |note: &Note| *note == Note::Push(PushState::Confirming);
    crash_at(&shop, elements(&agent, &[]), &reach("gw1"), &push, confirming).await;
    agent.connected.store(false, Ordering::SeqCst);
    let record = shop.work_off(&Arc::new(elements(&agent, &[])), &push).await;
    assert_eq!(record.state, PushState::Done, "{record:?}");
    assert_eq!(record.elements[0].state, ElementState::Confirmed, "it was never taken back");
    assert_eq!(agent.video().as_deref(), Some("hd"));
}
