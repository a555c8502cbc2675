//! The gateway task: the one owner of the data plane's counters and enforcement, the books and the settings.
//!
//! Everything but the naming of flows ([`crate::verdicts`]) comes through here, one thing at a time: a second, a push, new
//! sessions. Time is an argument; what to wait for is the business of [`crate::run`].

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use usher_models::dscp::Dscp;
use usher_models::setting::Settings;
use usher_models::telemetry::{self, Stage};
use usher_models::units::Micros;
use usher_models::wire::Enforcement;

use crate::books::{Books, BooksError};
use crate::catalogue;
use crate::config::Config;
use crate::dataplane::{DataPlane, DataPlaneError, Slots as _};
use crate::metrics::Metrics;
use crate::probe::ProbeError;
use crate::sessions::{Session, Sessions};
use crate::store::Store;
use crate::uplink::settings::{Command, Event, Pushes};
use crate::usage::SessionFacts;
use crate::verdicts::{Named, Order};

/// Named flows kept until a drain tells them; more than these are counted and not told.
pub const MAX_FLOWS_TOLD: usize = 65_536;

/// Seconds between two looks for idle flows.
const SWEEP_EVERY: u64 = 10;

/// Seconds between two looks for interfaces that nothing has told of.
const LOOK_EVERY: u64 = 60;

/// Drains that fail one after the other until the agent gives up: a state file that failed once stays unusable to the
/// process that has it open.
const MAX_FAILED_DRAINS: u32 = 3;

/// What a file was when it was last read.
type Stamp = Option<(u64, u64, i64, i64)>;

/// Why an agent cannot go on. The next one can, and until then counting and enforcement go on in the kernel, as far as they stand there.
#[derive(Debug, thiserror::Error)]
pub enum Stuck {
    /// Nothing can be stored any more. The next agent takes up from what the file holds.
    #[error(
        "the state file cannot be used any more (see above): free space or mend the disk, and start again"
    )]
    Store,
    /// The probe's pins are gone.
    #[error(transparent)]
    Pins(DataPlaneError),
}

/// The gateway task's line to the verdicts' thread.
#[derive(Debug)]
pub struct Line {
    /// What the thread is to do.
    pub orders: mpsc::Sender<Order>,
    /// What it has named.
    pub named: mpsc::Receiver<Named>,
}

/// The gateway task's state.
pub struct Gateway {
    config: Config,
    plane: DataPlane,
    books: Books,
    pushes: Pushes,
    store: Arc<Store>,
    metrics: Metrics,
    line: Line,
    /// Named, not told yet.
    flows: Vec<telemetry::FlowNamed>,
    /// Slots whose sessions are over, not asked to be forgotten yet.
    forget: Vec<u32>,
    read: Stamp,
    read_catalogue: Stamp,
    waiting: Option<Sessions>,
    seconds: u64,
    failed_drains: u32,
    /// That the probe's pins are gone.
    without_pins: Option<DataPlaneError>,
    /// No agent finds these counters again.
    last: bool,
}

impl Gateway {
    /// Takes up where the last agent left: books, sessions, settings. `sessions` has just been read.
    pub fn start(
        config: Config,
        mut plane: DataPlane,
        store: Arc<Store>,
        line: Line,
        sessions: Sessions,
        metrics: Metrics,
        now: Micros,
    ) -> Result<Self, BooksError> {
        let boot = plane.boot();
        let mut books = Books::open(store.clone(), &mut plane, boot, config.max_subscribers(), now)?;
        plane.set_bypass(config.bypass)?;
        books.set_bypass(config.bypass);
        metrics.bypass.set(i64::from(config.bypass));
        let pushes = Pushes::new(config.service.clone(), store.settings()?, Store::max_ended(), now);
        let read = stamp(&config.sessions);
        let read_catalogue = config.catalogue.as_deref().and_then(stamp);
        let mut gateway = Self {
            config,
            plane,
            books,
            pushes,
            store,
            metrics,
            line,
            flows: Vec::new(),
            forget: Vec::new(),
            read,
            read_catalogue,
            waiting: None,
            seconds: 0,
            failed_drains: 0,
            without_pins: None,
            last: false,
        };
        gateway.set_sessions(now, sessions)?;
        gateway.follow_interfaces();
        // Settings of sessions that are gone since the last agent ran.
        let gone = gateway.pushes.sessions();
        let gone =
            gone.into_iter().filter(|session| gateway.books.accounts().open(session).is_none()).collect();
        gateway.settle(now, Event::Closed(gone))?;
        Ok(gateway)
    }

    /// Why the agent cannot go on, once it cannot. A last drain may tell what was counted.
    pub fn stuck(&mut self) -> Option<Stuck> {
        if self.failed_drains >= MAX_FAILED_DRAINS {
            return Some(Stuck::Store);
        }
        let error = self.without_pins.take()?;
        self.last = true;
        Some(Stuck::Pins(error))
    }

    /// When the next setting or hold ends by itself.
    pub fn next_change(&self) -> Option<Micros> {
        self.pushes.next()
    }

    /// Takes over what was named, while it is known whose each slot is.
    fn hear(&mut self) {
        while let Ok(named) = self.line.named.try_recv() {
            if self.flows.len() >= MAX_FLOWS_TOLD {
                self.metrics.flows_untold.inc();
                continue;
            }
            self.flows.push(telemetry::FlowNamed {
                session: self.books.accounts().session_of(named.slot).to_owned(),
                app: named.app.as_deref().unwrap_or_default().to_owned(),
                class: telemetry::Class::from(named.class).into(),
                via: named.via.name().to_owned(),
                confidence: named.confidence.get(),
                first_packet_us: named.first_packet.get(),
                verdict_us: named.at.get(),
                counted: named.counted,
            });
        }
    }

    /// A second has passed. Returns whether what was counted is spooled.
    pub fn tick(&mut self, now: Micros) -> bool {
        self.seconds += 1;
        if let Err(error) = self.plane.check_pins() {
            self.without_pins = Some(error);
            return false;
        }
        self.expire(now);
        if stamp(&self.config.sessions) != self.read {
            self.reload(now);
        } else if let Some(sessions) = self.waiting.take() {
            self.try_sessions(now, sessions);
        }
        if self.config.catalogue.as_deref().and_then(stamp) != self.read_catalogue {
            self.reload_catalogue();
        }
        // Changes are told at once; what failed, or was told to nobody, is looked at now and then.
        if self.seconds.is_multiple_of(LOOK_EVERY) {
            self.look_closely();
        } else if self.plane.interfaces_wait() {
            self.follow_interfaces();
        }
        let told = self.drain(now);
        self.forget();
        match self.plane.counters() {
            Ok(counts) => self.metrics.packets(&counts),
            Err(error) => tracing::warn!("the data plane's counters could not be read: {error}"),
        }
        if let Some(shaped) = self.plane.shape_on() {
            self.metrics.shaped(&shaped);
        }
        match self.plane.make_room() {
            Ok(Some(room)) => {
                self.metrics.flows_room.set(i64::from(room));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("no room was made for more flows: {error}"),
        }
        self.metrics.apps.set(i64::try_from(self.plane.apps()).unwrap_or(i64::MAX));
        if self.seconds.is_multiple_of(SWEEP_EVERY) {
            match self.plane.sweep(now) {
                Ok(kept) => {
                    self.metrics.flows.set(i64::try_from(kept).unwrap_or(i64::MAX));
                }
                Err(error) => tracing::warn!("idle flows could not be forgotten: {error}"),
            }
        }
        told
    }

    /// Whether the probe is still where it was put is looked at, too.
    pub fn look_closely(&mut self) {
        self.plane.notice_taken_off();
        self.follow_interfaces();
    }

    /// Interfaces have come, gone or changed: the probe follows.
    pub fn follow_interfaces(&mut self) {
        match self.plane.follow_interfaces() {
            Ok(Some(followed)) => self.metrics.followed(&followed),
            Ok(None) => {}
            Err(error @ DataPlaneError::Probe(ProbeError::PinsGone { .. })) => {
                self.without_pins = Some(error);
            }
            Err(error) => {
                self.metrics.interface_failures.inc();
                tracing::error!("the interfaces stay as they are: {error}");
            }
        }
    }

    /// Holds and settings whose time is up are taken back.
    pub fn expire(&mut self, now: Micros) {
        if let Err(error) = self.settle(now, Event::Tick) {
            tracing::error!("settings could not be taken back in time: {error}");
        }
    }

    /// Tells what was counted. Returns whether something was spooled.
    pub fn drain(&mut self, now: Micros) -> bool {
        self.hear();
        let result = if self.last {
            self.books.drain_last(now, &mut self.plane, &self.flows).map(Some)
        } else {
            self.books.drain(now, &mut self.plane, &self.flows)
        };
        self.metrics.spooled(self.store.spooled());
        match result {
            Ok(Some(told)) => {
                self.failed_drains = 0;
                self.flows.clear();
                self.metrics.drained("told");
                self.metrics.batch_bytes.inc_by(told.bytes);
                match self.plane.next_turn(told.masks) {
                    Ok(()) => self.metrics.measured(&told.masks),
                    Err(error) => tracing::warn!("the same flows are measured on: {error}"),
                }
                if told.backwards > 0 {
                    self.metrics.counters_backwards.inc_by(told.backwards);
                    tracing::error!(
                        counters = told.backwards,
                        "counters went backwards: the maps were changed behind the agent's back"
                    );
                }
                true
            }
            Ok(None) => {
                self.metrics.drained("spool_full");
                false
            }
            Err(error) => {
                self.metrics.drained("failed");
                self.failed_drains += 1;
                tracing::error!("usage waits in the counters, for it could not be stored: {error}");
                false
            }
        }
    }

    /// Reads the sessions again. A bad file changes nothing.
    pub fn reload(&mut self, now: Micros) {
        self.read = stamp(&self.config.sessions);
        match Sessions::load(&self.config.sessions, &self.config.home_plmns) {
            Ok(sessions) => self.try_sessions(now, sessions),
            Err(error) => {
                self.metrics.reload_failures.inc();
                tracing::error!("sessions stay as they are: {error}");
            }
        }
    }

    /// Reads the catalogue again. A bad file changes nothing. The verdicts' thread goes on by the old one meanwhile, and is
    /// handed the new one between two samples.
    pub fn reload_catalogue(&mut self) {
        self.read_catalogue = self.config.catalogue.as_deref().and_then(stamp);
        match catalogue::load(self.config.catalogue.as_deref()) {
            Ok(catalogue) => {
                let rules = catalogue.len();
                if self.line.orders.try_send(Order::Catalogue(Box::new(catalogue))).is_ok() {
                    self.metrics.catalogue_rules.set(i64::try_from(rules).unwrap_or(i64::MAX));
                    tracing::info!(rules, "catalogue in force");
                } else {
                    // Read again at the next second.
                    self.read_catalogue = None;
                    self.metrics.reload_failures.inc();
                    tracing::error!("the catalogue stays as it is: the verdicts' thread takes no orders");
                }
            }
            Err(error) => {
                self.metrics.reload_failures.inc();
                tracing::error!("the catalogue stays as it is: {error}");
            }
        }
    }

    fn try_sessions(&mut self, now: Micros, sessions: Sessions) {
        if let Err(error) = self.set_sessions(now, sessions.clone()) {
            // What was done is repeated, what was not is done: at the next second.
            self.waiting = Some(sessions);
            tracing::error!("sessions could not be put in force, trying again: {error}");
        }
    }

    fn set_sessions(&mut self, now: Micros, sessions: Sessions) -> Result<(), BooksError> {
        self.hear();
        let named = self.config.anonymous.iter();
        let named = named.map(|(name, prefixes)| SessionFacts::anonymous(name, prefixes.clone()));
        let facts = sessions.iter().map(facts).chain(named).collect();
        let pushes = &self.pushes;
        let holds = |facts: &SessionFacts| enforcement(pushes, &facts.id, facts.roaming, now);
        let changed = self.books.set_sessions(now, &mut self.plane, facts, holds)?;
        let Some(changed) = changed else {
            self.waiting = Some(sessions);
            return Ok(());
        };
        self.waiting = None;
        // The slot's next session must not inherit what this one's subscriber asked for.
        for session in &changed.closed {
            self.forget.extend(self.books.accounts().slot_of(session));
        }
        self.forget();
        let open = self.books.accounts().all_open();
        let open = open.filter(|account| account.facts.anonymous_name().is_none()).count();
        self.metrics.sessions.set(i64::try_from(open).unwrap_or(i64::MAX));
        self.metrics.sessions_without_slot.set(i64::try_from(changed.without_slot.len()).unwrap_or(i64::MAX));
        if !changed.without_slot.is_empty() {
            tracing::error!(
                sessions = changed.without_slot.len(),
                "more sessions than `max_subscribers`: the rest counts as anonymous"
            );
        }
        self.metrics.prefixes_without_place.set(i64::try_from(changed.without_place).unwrap_or(i64::MAX));
        if changed.without_place > 0 {
            tracing::error!(
                prefixes = changed.without_place,
                "more prefixes than there is room for: raise `max_subscribers`, there are four prefixes for each; the rest counts as anonymous"
            );
        }
        tracing::info!(open, changes = changed.changes, closed = changed.closed.len(), "sessions in force");
        self.settle(now, Event::Closed(changed.closed))
    }

    /// Asks to forget what was learnt for sessions that are over; what finds no room in the line waits for the next second.
    fn forget(&mut self) {
        if self.forget.is_empty() {
            return;
        }
        if let Err(error) = self.line.orders.try_send(Order::Forget(std::mem::take(&mut self.forget)))
            && let Order::Forget(slots) = error.into_inner()
        {
            self.forget = slots;
        }
    }

    /// A step of a push; the answers to give.
    pub fn push(&mut self, now: Micros, push: telemetry::Push) -> Vec<telemetry::Report> {
        let id = push.push.clone();
        match self.carry_out(now, Event::Step(push)) {
            Ok(reports) => {
                for report in &reports {
                    self.metrics.stepped(stage_name(report.stage()));
                    if report.stage() == Stage::Refused {
                        tracing::warn!(push = report.push, why = report.error, "push step refused");
                    } else {
                        tracing::info!(
                            push = report.push,
                            stage = stage_name(report.stage()),
                            "push step done"
                        );
                    }
                }
                reports
            }
            Err(error) => {
                self.metrics.stepped("failed");
                tracing::error!(push = id, "push step failed: {error}");
                let stage = Stage::Refused.into();
                vec![telemetry::Report { push: id, stage, error: error.to_string(), running: vec![] }]
            }
        }
    }

    /// An event that nobody waits for an answer to.
    fn settle(&mut self, now: Micros, event: Event) -> Result<(), BooksError> {
        self.carry_out(now, event).map(|_| ())
    }

    fn carry_out(&mut self, now: Micros, event: Event) -> Result<Vec<telemetry::Report>, BooksError> {
        let mut commands = VecDeque::from(self.handle(now, event));
        let mut answers = Vec::new();
        while let Some(command) = commands.pop_front() {
            match command {
                Command::Save(change) => {
                    if let Err(error) = self.store.change(&change) {
                        // What could not be stored did not happen: the store knows what did.
                        let kept = self.store.settings()?;
                        let service = self.config.service.clone();
                        self.pushes = Pushes::new(service, kept, Store::max_ended(), now);
                        return Err(error.into());
                    }
                }
                Command::Apply(sessions) => {
                    for session in sessions {
                        if let Err(why) = self.run_session(&session, true, now) {
                            self.metrics.enforcement_failures.inc();
                            tracing::error!("settings not in force: {why}");
                        }
                    }
                }
                Command::Verify { push, sessions, write, toward } => {
                    let result =
                        sessions.iter().try_for_each(|session| self.run_session(session, write, now));
                    if result.is_err() {
                        self.metrics.enforcement_failures.inc();
                    }
                    let verified = Event::Verified { push, sessions, toward, result };
                    commands.extend(self.handle(now, verified));
                }
                Command::Answer(report) => answers.push(report),
            }
        }
        Ok(answers)
    }

    fn handle(&mut self, now: Micros, event: Event) -> Vec<Command> {
        let accounts = self.books.accounts();
        self.pushes.handle(now, event, |session| accounts.open(session).is_some())
    }

    /// Puts in force what holds for a session (with `write`), reads it back, and says what differs.
    fn run_session(&mut self, session: &str, write: bool, now: Micros) -> Result<(), String> {
        let Some(account) = self.books.accounts().open(session) else {
            return Ok(());
        };
        let (slot, roaming) = (account.slot, account.facts.roaming);
        let wanted = enforcement(&self.pushes, session, roaming, now);
        if write {
            self.books
                .enforce(&mut self.plane, slot, &wanted)
                .map_err(|error| format!("session `{session}`: {error}"))?;
        }
        let found = self.plane.enforcement(slot).map_err(|error| format!("session `{session}`: {error}"))?;
        if found == wanted {
            Ok(())
        } else {
            Err(format!(
                "session `{session}`: the data plane does not run what was set: {}",
                difference(&wanted, &found)
            ))
        }
    }
}

fn enforcement(pushes: &Pushes, session: &str, roaming: bool, now: Micros) -> Enforcement {
    let none = Settings::default();
    let settings = pushes.in_force(session).unwrap_or(&none);
    pushes.service().enforcement(settings, roaming, now).unwrap_or_else(|error| {
        // Kept from before the configuration was changed: what is still known holds, what is not holds nothing back.
        tracing::warn!(session, "settings kept from an earlier configuration: {error}");
        pushes.service().enforcement_of_known(settings, roaming, now)
    })
}

fn difference(wanted: &Enforcement, found: &Enforcement) -> String {
    if wanted.gate != found.gate {
        return format!("gate {:?}, not {:?}", found.gate, wanted.gate);
    }
    let rates = wanted.rates.iter().flatten().zip(found.rates.iter().flatten());
    let rates = rates
        .filter(|(wanted, found)| wanted != found)
        .map(|(wanted, found)| format!("{} bit/s, not {}", found.bits_per_second, wanted.bits_per_second));
    let name = |mark: &Option<Dscp>| mark.map_or_else(|| "none".to_owned(), |dscp| dscp.to_string());
    let marks = wanted.marks.iter().flatten().zip(found.marks.iter().flatten());
    let marks = marks
        .filter(|(wanted, found)| wanted != found)
        .map(|(wanted, found)| format!("DSCP {}, not {}", name(found), name(wanted)));
    rates.chain(marks).collect::<Vec<_>>().join(", ")
}

fn facts(session: &Session) -> SessionFacts {
    SessionFacts {
        id: session.id.clone(),
        keys: session.keys.clone(),
        prefixes: session.prefixes.clone(),
        plmn: session.plmn.clone().unwrap_or_default(),
        roaming: session.roaming,
        rat: session.rat.clone().unwrap_or_default(),
        time_zone: session.time_zone.clone().unwrap_or_default(),
    }
}

fn stamp(file: &Path) -> Stamp {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

const fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Unspecified => "none",
        Stage::Running => "running",
        Stage::Prepared => "prepared",
        Stage::Confirmed => "confirmed",
        Stage::Cancelled => "cancelled",
        Stage::Refused => "refused",
    }
}
