//! The gateway's own data plane as an element: its agent is asked over its uplink.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use usher_models::setting::{Setting, Settings};
use usher_models::telemetry;
use usher_models::telemetry::push::Step;
use usher_models::units::Micros;

use super::{Change, GatewayConfig, Push, PushId};

/// Why an agent did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No agent of that name has ever been let in.
    #[error("no agent of that name is known")]
    UnknownAgent,
    /// It has no uplink at present.
    #[error("the agent is not connected")]
    NotConnected,
    /// No answer came in time.
    #[error("the agent did not answer in time")]
    TimedOut,
    /// Too many asks are under way on its uplink.
    #[error("too many steps are under way on the agent's uplink")]
    Busy,
    /// The uplink closed before the answer came.
    #[error("the agent's uplink closed before it answered")]
    Closed,
}

/// An answer on its way.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<telemetry::Report, AskError>> + Send + 'a>>;

/// All that is needed of the agents' uplinks: send one step, get the report on it.
///
/// Reports are matched to the ask by the agent and the push id; one ask at a time is under way for such a pair.
pub trait Ask: Send + Sync {
    /// Asks `agent` and waits for its report, at most for `timeout`.
    fn ask<'a>(&'a self, agent: &'a str, push: telemetry::Push, timeout: Duration) -> Answer<'a>;
}

/// One gateway's part in one push, from plan to confirmation.
pub(super) struct GatewayWork {
    agents: Arc<dyn Ask>,
    agent: String,
    sessions: Vec<String>,
    config: GatewayConfig,
    desired: Vec<telemetry::Desired>,
    /// What it held before.
    before: Held,
}

/// Settings by session, each as it stands now: an expired one is what follows it.
type Held = BTreeMap<String, BTreeMap<String, Setting>>;

/// Why a gateway's part failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum GatewayError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the agent refused it: {0}")]
    Refused(String),
    #[error("the agent answered a {asked} with stage {got}")]
    Unexpected { asked: &'static str, got: i32 },
    #[error("it does not hold what it was told to: {0}")]
    Differs(String),
}

impl GatewayWork {
    pub(super) fn new(
        agents: Arc<dyn Ask>,
        agent: String,
        sessions: Vec<String>,
        config: GatewayConfig,
    ) -> Self {
        Self { agents, agent, sessions, config, desired: Vec::new(), before: Held::new() }
    }

    pub(super) fn config(&self) -> &GatewayConfig {
        &self.config
    }

    /// Desired against running, session by session.
    pub(super) async fn plan(&mut self, push: &Push, now: Micros) -> Result<Vec<Change>, GatewayError> {
        let mut settings = push.settings.clone();
        if let Some(accepted) = &self.config.settings {
            settings.values.retain(|name, _| accepted.contains(name));
        }
        self.desired = self.sessions.iter().map(|session| settings.to_desired(session)).collect();
        let running = self.running(&push.id).await?;
        for desired in &mut self.desired {
            // Revisions are counted by subscriber. A session that changed hands, or whose subscriber was forgotten
            // meanwhile, may run a higher one, below which the agent takes nothing.
            let runs = running.iter().find(|running| running.session == desired.session);
            desired.revision = desired.revision.max(runs.map_or(0, |running| running.revision));
        }
        self.before = held(&running, now);
        Ok(changes(&self.before, &held(&self.desired, now)))
    }

    /// In force until confirmed or the agent's timer runs out, and read back from the data plane.
    pub(super) async fn prepare(&self, push: &PushId, now: Micros) -> Result<(), GatewayError> {
        self.put(push, self.desired.clone(), now).await
    }

    /// For good.
    pub(super) async fn confirm(&self, push: &PushId) -> Result<(), GatewayError> {
        let report = self.ask(push, Step::Confirm(telemetry::Confirm {})).await?;
        expect(&report, telemetry::Stage::Confirmed, "confirm")
    }

    /// Takes back what was prepared, and looks. A refusal says that nothing is prepared under that id.
    pub(super) async fn cancel(&self, push: &PushId, now: Micros) -> Result<(), GatewayError> {
        self.ask(push, Step::Cancel(telemetry::Cancel {})).await?;
        let running = self.read(push, now).await?;
        let off = changes(&running, &self.before);
        if off.is_empty() { Ok(()) } else { Err(GatewayError::Differs(shown(&off))) }
    }

    /// Brings back what was there before, after it was confirmed.
    pub(super) async fn undo(&self, push: &PushId, now: Micros) -> Result<(), GatewayError> {
        let undo = PushId(format!("{push}-undo"));
        // The same revision: an older one would be refused.
        let before = self
            .desired
            .iter()
            .map(|desired| {
                let values = self.before.get(&desired.session).cloned().unwrap_or_default();
                Settings { revision: desired.revision, values }.to_desired(&desired.session)
            })
            .collect();
        self.put(&undo, before, now).await?;
        self.confirm(&undo).await
    }

    async fn put(
        &self,
        push: &PushId,
        desired: Vec<telemetry::Desired>,
        now: Micros,
    ) -> Result<(), GatewayError> {
        let confirm_within_ms = u32::try_from(self.config.confirm.as_millis()).unwrap_or(u32::MAX);
        let expected = held(&desired, now);
        let report = self.ask(push, Step::Prepare(telemetry::Prepare { desired, confirm_within_ms })).await?;
        expect(&report, telemetry::Stage::Prepared, "prepare")?;
        let off = changes(&held(&report.running, now), &expected);
        if off.is_empty() { Ok(()) } else { Err(GatewayError::Differs(shown(&off))) }
    }

    async fn read(&self, push: &PushId, now: Micros) -> Result<Held, GatewayError> {
        Ok(held(&self.running(push).await?, now))
    }

    /// What its sessions run.
    async fn running(&self, push: &PushId) -> Result<Vec<telemetry::Desired>, GatewayError> {
        let mut report =
            self.ask(push, Step::Read(telemetry::Read { sessions: self.sessions.clone() })).await?;
        expect(&report, telemetry::Stage::Running, "read")?;
        report.running.retain(|running| self.sessions.contains(&running.session));
        Ok(report.running)
    }

    async fn ask(&self, push: &PushId, step: Step) -> Result<telemetry::Report, GatewayError> {
        ask(&*self.agents, &self.agent, push, step, self.config.rpc).await
    }
}

/// Makes sure that nothing provisional of that push is left on a gateway.
pub(super) async fn cancel_leftover(
    agents: &dyn Ask,
    agent: &str,
    push: &PushId,
    config: &GatewayConfig,
) -> Result<(), GatewayError> {
    ask(agents, agent, push, Step::Cancel(telemetry::Cancel {}), config.rpc).await.map(drop)
}

/// Confirms what that push left provisionally; refused where the gateway holds nothing of it any more.
pub(super) async fn confirm_leftover(
    agents: &dyn Ask,
    agent: &str,
    push: &PushId,
    config: &GatewayConfig,
) -> Result<(), GatewayError> {
    let report = ask(agents, agent, push, Step::Confirm(telemetry::Confirm {}), config.rpc).await?;
    expect(&report, telemetry::Stage::Confirmed, "confirm")
}

async fn ask(
    agents: &dyn Ask,
    agent: &str,
    push: &PushId,
    step: Step,
    timeout: Duration,
) -> Result<telemetry::Report, GatewayError> {
    let push = telemetry::Push { push: push.0.clone(), step: Some(step) };
    Ok(agents.ask(agent, push, timeout).await?)
}

fn expect(
    report: &telemetry::Report,
    stage: telemetry::Stage,
    asked: &'static str,
) -> Result<(), GatewayError> {
    if report.stage == stage as i32 {
        Ok(())
    } else if report.stage == telemetry::Stage::Refused as i32 {
        Err(GatewayError::Refused(report.error.clone()))
    } else {
        Err(GatewayError::Unexpected { asked, got: report.stage })
    }
}

fn held(desired: &[telemetry::Desired], now: Micros) -> Held {
    desired
        .iter()
        .map(|desired| {
            let values = Settings::from_desired(desired).values.into_iter().map(|(name, setting)| {
                let ended = setting.until.is_some_and(|until| until <= now);
                (name, if ended { Setting::of_plan(setting.otherwise) } else { setting })
            });
            (desired.session.clone(), values.collect())
        })
        .collect()
}

fn changes(from: &Held, to: &Held) -> Vec<Change> {
    let empty = BTreeMap::new();
    let sessions: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let mut changes = Vec::new();
    for session in sessions {
        let (have, want) = (from.get(session).unwrap_or(&empty), to.get(session).unwrap_or(&empty));
        let names: BTreeSet<&String> = have.keys().chain(want.keys()).collect();
        for name in names {
            let (from, to) = (have.get(name), want.get(name));
            if from != to {
                changes.push(Change {
                    path: format!("{session}/{name}"),
                    from: from.map(shown_setting),
                    to: to.map(shown_setting),
                });
            }
        }
    }
    changes
}

fn shown_setting(setting: &Setting) -> String {
    match setting.until {
        Some(until) => format!("{} until {until}, then {}", setting.value, setting.otherwise),
        None => setting.value.clone(),
    }
}

fn shown(changes: &[Change]) -> String {
    changes.iter().take(5).map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
