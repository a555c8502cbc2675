//! The uplinks there are, and asking an agent over its own.
//!
//! One uplink an agent: a newer one takes the place of the older, for an agent that came back knows best that its old
//! connection is dead. Reports are matched to asks by push id and step.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use usher_models::telemetry::{self, Stage, ToAgent, push::Step, to_agent};
use usher_models::units::Micros;

use crate::elements::{Answer, Ask, AskError};
use crate::metrics::Metrics;

/// Asks under way on one uplink at most.
const ASKS_MAX: usize = 256;

/// What an agent said of itself as it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Its name.
    pub agent: String,
    /// When it connected.
    pub since: Micros,
    /// Of its software.
    pub version: String,
    /// Settings are held and read back, but no packet is touched.
    pub dry_run: bool,
}

/// The uplinks of all agents. Clones share them.
#[derive(Debug, Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    allowed: BTreeSet<String>,
    metrics: Metrics,
    links: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// Tells an uplink from the one that took its place.
    last: u64,
    by_agent: HashMap<String, Link>,
}

#[derive(Debug)]
struct Link {
    number: u64,
    connected: Connected,
    down: mpsc::Sender<ToAgent>,
    /// By push id.
    asks: HashMap<String, Waiting>,
    /// Dropped when the uplink is replaced, which ends it.
    _replaced: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Waiting {
    expected: Stage,
    answer: oneshot::Sender<telemetry::Report>,
}

/// An uplink's place among the links. Leaves it when dropped.
#[derive(Debug)]
pub(super) struct Place {
    links: Links,
    agent: String,
    number: u64,
}

impl Links {
    /// No uplink yet; only `allowed` agents will have one.
    pub fn new(allowed: BTreeSet<String>, metrics: Metrics) -> Self {
        Self { shared: Arc::new(Shared { allowed, metrics, links: Mutex::default() }) }
    }

    /// The agent may have an uplink.
    pub fn allows(&self, agent: &str) -> bool {
        self.shared.allowed.contains(agent)
    }

    /// Agents with an uplink at this moment, sorted by name.
    pub fn connected(&self) -> Vec<Connected> {
        let mut connected: Vec<_> =
            self.open().by_agent.values().map(|link| link.connected.clone()).collect();
        connected.sort_by(|a, b| a.agent.cmp(&b.agent));
        connected
    }

    /// Names of agents that may have one.
    pub fn allowed(&self) -> &BTreeSet<String> {
        &self.shared.allowed
    }

    /// Takes the place of the agent's uplink. The receiver resolves once another one takes it over.
    pub(super) fn enter(
        &self,
        connected: Connected,
        down: mpsc::Sender<ToAgent>,
    ) -> (Place, oneshot::Receiver<()>) {
        let (replaced, taken_over) = oneshot::channel();
        let mut open = self.open();
        open.last += 1;
        let number = open.last;
        let agent = connected.agent.clone();
        let link = Link { number, connected, down, asks: HashMap::new(), _replaced: replaced };
        open.by_agent.insert(agent.clone(), link);
        self.count(&open);
        (Place { links: self.clone(), agent, number }, taken_over)
    }

    fn begin(
        &self,
        agent: &str,
        push: &telemetry::Push,
    ) -> Result<(mpsc::Sender<ToAgent>, oneshot::Receiver<telemetry::Report>), AskError> {
        if !self.allows(agent) {
            return Err(AskError::UnknownAgent);
        }
        let mut open = self.open();
        let link = open.by_agent.get_mut(agent).ok_or(AskError::NotConnected)?;
        if link.asks.len() >= ASKS_MAX {
            self.shared.metrics.asks_refused.inc();
            return Err(AskError::Busy);
        }
        let (answer, report) = oneshot::channel();
        link.asks.insert(push.push.clone(), Waiting { expected: expected(push), answer });
        Ok((link.down.clone(), report))
    }

    async fn send_and_wait(
        &self,
        agent: &str,
        push: telemetry::Push,
        timeout: Duration,
    ) -> Result<telemetry::Report, AskError> {
        let id = push.push.clone();
        let (down, report) = self.begin(agent, &push)?;
        let message = ToAgent { message: Some(to_agent::Message::Push(push)) };
        let asked = async {
            down.send(message).await.map_err(|_| AskError::Closed)?;
            report.await.map_err(|_| AskError::Closed)
        };
        let answer = tokio::time::timeout(timeout, asked).await.unwrap_or(Err(AskError::TimedOut));
        if answer.is_err() {
            self.forget(agent, &id);
        }
        answer
    }

    fn forget(&self, agent: &str, push: &str) {
        if let Some(link) = self.open().by_agent.get_mut(agent) {
            link.asks.remove(push);
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.shared.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, open: &Open) {
        self.shared.metrics.agents_connected.set(i64::try_from(open.by_agent.len()).unwrap_or(i64::MAX));
    }
}

impl Ask for Links {
    fn ask<'a>(&'a self, agent: &'a str, push: telemetry::Push, timeout: Duration) -> Answer<'a> {
        Box::pin(self.send_and_wait(agent, push, timeout))
    }
}

impl Place {
    /// A report came up this uplink.
    pub(super) fn reported(&self, report: telemetry::Report) {
        let mut open = self.links.open();
        let waiting =
            open.by_agent.get_mut(&self.agent).filter(|link| link.number == self.number).and_then(|link| {
                let waiting = link.asks.get(&report.push)?;
                let fits = report.stage() == waiting.expected || report.stage() == Stage::Refused;
                if fits { link.asks.remove(&report.push) } else { None }
            });
        drop(open);
        // One that nobody waits for came after its time-out: what it says is found by reading.
        if waiting.is_none_or(|waiting| waiting.answer.send(report).is_err()) {
            self.links.shared.metrics.reports_unexpected.inc();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.links.open();
        if open.by_agent.get(&self.agent).is_some_and(|link| link.number == self.number) {
            open.by_agent.remove(&self.agent);
        }
        self.links.count(&open);
    }
}

/// The stage that answers a step; `Refused` answers each.
const fn expected(push: &telemetry::Push) -> Stage {
    match push.step {
        Some(Step::Read(_)) => Stage::Running,
        Some(Step::Prepare(_)) => Stage::Prepared,
        Some(Step::Confirm(_)) => Stage::Confirmed,
        Some(Step::Cancel(_)) => Stage::Cancelled,
        None => Stage::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use usher_models::telemetry::{Cancel, Prepare, Report};

    use super::*;
    use crate::metrics;

    const MINUTE: Duration = Duration::from_mins(1);

    fn links() -> Links {
        let metrics = Metrics::register(&mut metrics::registry());
        Links::new(BTreeSet::from(["gw1".to_owned(), "gw2".to_owned()]), metrics)
    }

    fn gw1(version: &str) -> Connected {
        Connected { agent: "gw1".into(), since: Micros::new(0), version: version.into(), dry_run: false }
    }

    fn prepare(id: &str) -> telemetry::Push {
        telemetry::Push { push: id.into(), step: Some(Step::Prepare(Prepare::default())) }
    }

    fn cancel(id: &str) -> telemetry::Push {
        telemetry::Push { push: id.into(), step: Some(Step::Cancel(Cancel {})) }
    }

    fn report(id: &str, stage: Stage) -> Report {
        Report { push: id.into(), stage: stage.into(), ..Report::default() }
    }

    #[tokio::test]
    async fn a_late_report_of_one_step_never_answers_the_next() {
        let links = links();
        let (down, mut sent) = mpsc::channel(4);
        let (place, _taken_over) = links.enter(gw1("1"), down);
        assert_eq!(links.ask("gw1", prepare("p"), Duration::ZERO).await, Err(AskError::TimedOut));
        let agent = async {
            assert!(sent.recv().await.is_some());
            assert!(sent.recv().await.is_some());
            place.reported(report("p", Stage::Prepared));
            place.reported(report("p", Stage::Cancelled));
        };
        let (answer, ()) = tokio::join!(links.ask("gw1", cancel("p"), MINUTE), agent);
        assert_eq!(answer.unwrap().stage(), Stage::Cancelled);
        assert_eq!(links.shared.metrics.reports_unexpected.get(), 1);
    }

    #[tokio::test]
    async fn a_refusal_answers_any_step() {
        let links = links();
        let (down, _sent) = mpsc::channel(4);
        let (place, _taken_over) = links.enter(gw1("1"), down);
        let asked = links.ask("gw1", prepare("p"), MINUTE);
        let agent = async { place.reported(report("p", Stage::Refused)) };
        let (answer, ()) = tokio::join!(asked, agent);
        assert_eq!(answer.unwrap().stage(), Stage::Refused);
    }

    #[tokio::test]
    async fn a_new_uplink_ends_the_old_one_and_what_was_asked_there() {
        let links = links();
        let (down, _sent) = mpsc::channel(4);
        let (old, taken_over) = links.enter(gw1("1"), down);
        let asked = links.ask("gw1", prepare("p"), MINUTE);
        let comes_back = async {
            let (down, _sent) = mpsc::channel(4);
            links.enter(gw1("2"), down).0
        };
        let (answer, new) = tokio::join!(asked, comes_back);
        assert_eq!(answer, Err(AskError::Closed));
        assert!(taken_over.await.is_err());
        drop(old);
        assert_eq!(links.connected(), [gw1("2")], "the old one's end leaves the new one in place");
        drop(new);
        assert!(links.connected().is_empty());
    }

    #[tokio::test]
    async fn who_is_not_there_is_told_apart_from_who_is_not_known() {
        let links = links();
        assert_eq!(links.ask("gw2", prepare("p"), MINUTE).await, Err(AskError::NotConnected));
        assert_eq!(links.ask("gw9", prepare("p"), MINUTE).await, Err(AskError::UnknownAgent));
    }

    #[tokio::test]
    async fn asks_under_way_are_bounded() {
        let links = links();
        let (down, _sent) = mpsc::channel(2 * ASKS_MAX);
        let (_place, _taken_over) = links.enter(gw1("1"), down);
        let under_way: Vec<_> =
            (0..ASKS_MAX).map(|n| links.begin("gw1", &prepare(&n.to_string())).unwrap()).collect();
        assert_eq!(links.ask("gw1", prepare("more"), MINUTE).await, Err(AskError::Busy));
        drop(under_way);
    }
}
