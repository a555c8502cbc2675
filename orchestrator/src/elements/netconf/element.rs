//! A NETCONF device's part in a push.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};
use usher_models::units::Micros;

use super::device::{Datastore, Device, OpenSession};
use super::error::NetconfError;
use super::transport::host_and_port;
use super::tree::{Node, edit, prune};
use crate::elements::template::{Rendered, Template};
use crate::elements::{Change, ElementsError, NetconfConfig, Push, PushId};

/// Between two looks at a device that is to roll back. Longer than the second of quiet that some servers need for it.
const ROLL_BACK_PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(1200),
    Duration::from_millis(1500),
    Duration::from_millis(2500),
];

/// A device as it is configured.
#[derive(Debug)]
pub(in crate::elements) struct NetconfElement {
    config: NetconfConfig,
    template: Template,
    device: Device,
    /// One push at a time edits the candidate.
    turn: Arc<Mutex<()>>,
}

impl NetconfElement {
    /// Checks the configuration, loads the template, starts the device's thread. Paths are relative to `base`.
    pub(in crate::elements) fn new(mut config: NetconfConfig, base: &Path) -> Result<Self, ElementsError> {
        let wrong = |why: String| ElementsError::Config { element: config.name.clone(), why };
        if config.name.is_empty() || config.name.contains(':') {
            return Err(wrong("`name` must not be empty and must not hold a colon".to_owned()));
        }
        host_and_port(&config.address).map_err(|error| wrong(error.to_string()))?;
        if config.key.is_none() && config.password.is_none() {
            return Err(wrong("`key` or `password` must name a file".to_owned()));
        }
        if config.settings.is_empty() {
            return Err(wrong("`settings` must name at least one setting it accepts".to_owned()));
        }
        if [config.connect, config.rpc].iter().any(Duration::is_zero) {
            return Err(wrong("`connect` and `rpc` must be longer than nothing".to_owned()));
        }
        if config.confirm < Duration::from_secs(1) || config.confirm.subsec_nanos() != 0 {
            return Err(wrong("`confirm` must be whole seconds, and at least one".to_owned()));
        }
        for path in [&mut config.known_hosts, &mut config.template]
            .into_iter()
            .chain(&mut config.key)
            .chain(&mut config.password)
        {
            *path = base.join(&*path);
        }
        let failed = |why: String| ElementsError::Config { element: config.name.clone(), why };
        let template = Template::load(&config.template, config.settings.clone())
            .map_err(|error| failed(error.to_string()))?;
        let device = Device::start(config.clone(), &template.requires)
            .map_err(|error| failed(format!("start its thread: {error}")))?;
        Ok(Self { config, template, device, turn: Arc::default() })
    }

    pub(in crate::elements) fn config(&self) -> &NetconfConfig {
        &self.config
    }

    /// How often it was connected to since the start.
    pub(in crate::elements) fn connects(&self) -> u64 {
        self.device.connects()
    }

    /// It has a use for at least one of the push's settings.
    pub(in crate::elements) fn concerns(&self, push: &Push) -> bool {
        push.settings.values.keys().any(|setting| self.template.accepts(setting))
    }

    /// Makes sure that nothing provisional of that push is left: cancels it, or is told that there is nothing.
    pub(in crate::elements) async fn cancel_leftover(&self, push: &PushId) -> Result<(), NetconfError> {
        let _turn = self.turn.lock().await;
        match self.device.open().await?.cancel(push).await {
            Err(error) if error.is_refusal() && !error.is_lock_denied() => Ok(()),
            other => other,
        }
    }

    /// Confirms what that push left provisionally; refused where the device holds nothing of it any more.
    pub(in crate::elements) async fn confirm_leftover(&self, push: &PushId) -> Result<(), NetconfError> {
        let _turn = self.turn.lock().await;
        self.device.open().await?.confirm(push).await
    }
}

/// One device's part in one push, from plan to release.
#[derive(Debug)]
pub(in crate::elements) struct NetconfWork {
    element: Arc<NetconfElement>,
    rendered: Option<Rendered>,
    /// What the device held of it before.
    before: Vec<Node>,
    /// What brings it there.
    payload: String,
    session: Option<OpenSession>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl NetconfWork {
    pub(in crate::elements) fn new(element: Arc<NetconfElement>) -> Self {
        Self {
            element,
            rendered: None,
            before: Vec::new(),
            payload: String::new(),
            session: None,
            turn: None,
        }
    }

    pub(in crate::elements) fn config(&self) -> &NetconfConfig {
        &self.element.config
    }

    /// Desired against running. A session found dead is replaced once.
    pub(in crate::elements) async fn plan(
        &mut self,
        push: &Push,
        now: Micros,
    ) -> Result<Vec<Change>, NetconfWorkError> {
        let values = push.settings.values.iter().map(|(name, setting)| (name.as_str(), setting.at(now)));
        let rendered = self
            .element
            .template
            .render(&push.subscriber, values)
            .map_err(|error| NetconfWorkError::Template(error.to_string()))?;
        let mut session = self.element.device.open().await?;
        let running = match session.get(Datastore::Running, &rendered.filter).await {
            Err(error) if error.is_lost() => {
                session = self.element.device.open().await?;
                session.get(Datastore::Running, &rendered.filter).await?
            }
            other => other?,
        };
        let changes = self.compare(&rendered, running);
        self.rendered = Some(rendered);
        self.session = Some(session);
        Ok(changes)
    }

    /// Waits for its turn among our own pushes, then locks both datastores and plans again under the locks.
    pub(in crate::elements) async fn lock(&mut self) -> Result<Vec<Change>, NetconfWorkError> {
        if self.turn.is_none() {
            // Bounded like the rest: whoever has the turn holds it for a bounded number of bounded requests.
            let patience = self.config().lock.max(self.config().rpc) + self.config().confirm;
            let turn = Arc::clone(&self.element.turn).lock_owned();
            let turn = tokio::time::timeout(patience, turn).await;
            self.turn = Some(turn.map_err(|_| NetconfWorkError::Busy(patience))?);
        }
        // The session of the plan may have ended while waiting.
        let mut session = self.element.device.open().await?;
        session.lock().await?;
        self.session = Some(session);
        let rendered = self.rendered()?.clone();
        let running = self.session()?.get(Datastore::Running, &rendered.filter).await?;
        Ok(self.compare(&rendered, running))
    }

    /// Edits the candidate, once it is sure that nobody else's edits are in it.
    pub(in crate::elements) async fn stage(&mut self) -> Result<(), NetconfWorkError> {
        let rendered = self.rendered()?.clone();
        let mut candidate = self.session()?.get(Datastore::Candidate, &rendered.filter).await?;
        prune(&mut candidate, &rendered.filter);
        let foreign = edit(&self.before, &candidate, &self.element.template.shape);
        if !foreign.changes.is_empty() {
            return Err(NetconfWorkError::DirtyCandidate(shown(&foreign.changes)));
        }
        let payload = self.payload.clone();
        Ok(self.session()?.edit(&payload).await?)
    }

    /// In force until confirmed or the device's timer runs out.
    pub(in crate::elements) async fn commit(&mut self, push: &PushId) -> Result<(), NetconfWorkError> {
        let within = self.config().confirm;
        Ok(self.session()?.commit_provisionally(push, within).await?)
    }

    /// Does the device hold what it said it would?
    pub(in crate::elements) async fn read_back(&mut self) -> Result<(), NetconfWorkError> {
        let desired = self.rendered()?.desired.clone();
        self.holds(&desired).await
    }

    /// For good. A device that does not answer is asked once more, on a new session; one that knows of nothing to
    /// confirm is taken by what it holds.
    pub(in crate::elements) async fn confirm(&mut self, push: &PushId) -> Result<(), NetconfWorkError> {
        let first = match self.session()?.confirm(push).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !first.is_lost() {
            return Err(first.into());
        }
        self.session = Some(self.element.device.open().await?);
        match self.session()?.confirm(push).await {
            Ok(()) => Ok(()),
            // The first confirmation may have been carried out and only its answer lost.
            Err(error) if error.is_refusal() => match self.read_back().await {
                Ok(()) if self.cancel_refused(push).await => Ok(()),
                _ => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// True where the device knows of nothing pending under that id.
    async fn cancel_refused(&mut self, push: &PushId) -> bool {
        match &mut self.session {
            Some(session) => matches!(session.cancel(push).await, Err(error) if error.is_refusal()),
            None => false,
        }
    }

    /// Takes back a provisional commit, whether or not the device is known to have carried it out, and looks.
    ///
    /// The locks go first: a server was seen that answers `ok` to cancel-commit while running is locked, fails to restore
    /// it, and forgets that anything was pending.
    pub(in crate::elements) async fn cancel(&mut self, push: &PushId) -> Result<(), NetconfWorkError> {
        let session = self.session()?;
        session.unlock().await;
        let mut answer = session.cancel(push).await;
        if answer.as_ref().is_err_and(NetconfError::is_lost) {
            self.session = Some(self.element.device.open().await?);
            answer = self.session()?.cancel(push).await;
        }
        // A refusal says that nothing is pending, which is what is wanted; what counts is what the device holds.
        match answer {
            Err(error) if !error.is_refusal() => return Err(error.into()),
            _ => {}
        }
        let before = self.before.clone();
        let mut held = self.holds(&before).await;
        // Some servers answer first and roll back when they have had a moment without requests.
        for pause in ROLL_BACK_PAUSES {
            if !matches!(held, Err(NetconfWorkError::Differs(_))) {
                return held;
            }
            tokio::time::sleep(pause).await;
            held = self.holds(&before).await;
        }
        match held {
            Err(NetconfWorkError::Differs(_)) => self.undo(push).await,
            other => other,
        }
    }

    /// Brings back what was there before, where there is nothing to cancel (any more), by a transaction of its own.
    pub(in crate::elements) async fn undo(&mut self, push: &PushId) -> Result<(), NetconfWorkError> {
        let undo = PushId(format!("{push}-undo"));
        let filter = self.rendered()?.filter.clone();
        let before = self.before.clone();
        if let Some(mut held) = self.session.take() {
            held.unlock().await;
        }
        let mut session = self.element.device.open().await?;
        session.lock().await?;
        self.session = Some(session);
        let mut running = self.session()?.get(Datastore::Running, &filter).await?;
        prune(&mut running, &filter);
        let inverse = edit(&running, &before, &self.element.template.shape);
        if inverse.changes.is_empty() {
            return Ok(());
        }
        self.session()?.edit(&inverse.xml).await?;
        self.commit(&undo).await?;
        let held = self.holds(&before).await;
        match held {
            Ok(()) => Ok(self.session()?.confirm(&undo).await?),
            Err(error) => {
                let session = self.session()?;
                session.unlock().await;
                let _ = session.cancel(&undo).await;
                Err(error)
            }
        }
    }

    /// Forgets edits that were not committed, lets go of the locks, and lets the next push have its turn.
    pub(in crate::elements) async fn release(&mut self) {
        if let Some(mut session) = self.session.take() {
            session.unlock().await;
        }
        self.turn = None;
    }

    /// Lets go of the device's locks but not of the turn, to try again.
    pub(in crate::elements) async fn unlock(&mut self) {
        if let Some(session) = &mut self.session {
            session.unlock().await;
        }
    }

    async fn holds(&mut self, expected: &[Node]) -> Result<(), NetconfWorkError> {
        let filter = self.rendered()?.filter.clone();
        let mut running = self.session()?.get(Datastore::Running, &filter).await?;
        prune(&mut running, &filter);
        let off = edit(&running, expected, &self.element.template.shape);
        if off.changes.is_empty() { Ok(()) } else { Err(NetconfWorkError::Differs(shown(&off.changes))) }
    }

    fn compare(&mut self, rendered: &Rendered, mut running: Vec<Node>) -> Vec<Change> {
        prune(&mut running, &rendered.filter);
        let difference = edit(&running, &rendered.desired, &self.element.template.shape);
        self.before = running;
        self.payload = difference.xml;
        difference.changes
    }

    fn rendered(&self) -> Result<&Rendered, NetconfWorkError> {
        self.rendered.as_ref().ok_or(NetconfWorkError::NotPlanned)
    }

    fn session(&mut self) -> Result<&mut OpenSession, NetconfWorkError> {
        self.session.as_mut().ok_or(NetconfWorkError::NotPlanned)
    }
}

/// Until when to keep trying for a device's locks.
pub(in crate::elements) fn lock_deadline(config: &NetconfConfig) -> Instant {
    Instant::now() + config.lock
}

fn shown(changes: &[Change]) -> String {
    let mut shown: Vec<String> = changes.iter().take(5).map(ToString::to_string).collect();
    if changes.len() > shown.len() {
        shown.push(format!("and {} more", changes.len() - shown.len()));
    }
    shown.join(", ")
}

/// Why a device's part failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::elements) enum NetconfWorkError {
    #[error(transparent)]
    Device(#[from] NetconfError),
    #[error("{0}")]
    Template(String),
    #[error("its candidate holds somebody else's edits ({0}): commit or discard them on the device")]
    DirtyCandidate(String),
    #[error("it does not hold what it was told to: {0}")]
    Differs(String),
    #[error("another push has held it for {0:?}")]
    Busy(Duration),
    #[error("it was not planned")]
    NotPlanned,
}

impl NetconfWorkError {
    /// Somebody else holds the locks.
    pub(in crate::elements) fn is_lock_denied(&self) -> bool {
        matches!(self, Self::Device(error) if error.is_lock_denied())
    }
}
