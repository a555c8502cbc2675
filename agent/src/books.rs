//! The store, the accounts and the data plane, kept in step: every change in the one order that survives a crash.
//!
//! - a drain: read the counters, store batches and baseline together, then believe it;
//! - new sessions: tell what was counted so far; take away prefixes nobody holds; store who holds which slot; set what
//!   holds for a slot; bind. A crash in between leaves what the next start repeats.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;
use usher_models::telemetry;
use usher_models::units::Micros;
use usher_models::wire::{ANONYMOUS, Class, Enforcement};

use crate::dataplane::{Boot, DataPlaneError, Slots};
use crate::store::{Store, StoreError};
use crate::usage::quality::Sides;
use crate::usage::{ANONYMOUS_SLOTS, Accounts, Baseline, Counted, Drained, SessionFacts};

/// Why the books could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum BooksError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data plane.
    #[error(transparent)]
    DataPlane(#[from] DataPlaneError),
}

/// What a drain did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Batches stored.
    pub batches: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Counters found below their baseline.
    pub backwards: u64,
    /// Which flows to measure from now on, by class.
    pub masks: [u16; Class::COUNT],
}

/// What new sessions did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Sessions that closed.
    pub closed: Vec<String>,
    /// Sessions for which no slot is left.
    pub without_slot: Vec<String>,
    /// Prefixes for which the data plane has no place left: their packets count for a wider one's session, or for nobody.
    pub without_place: usize,
    /// How many opened, changed or closed.
    pub changes: usize,
}

/// What the counters say, what was told of them, and what holds for each slot.
#[derive(Debug)]
pub struct Books {
    store: Arc<Store>,
    accounts: Accounts,
    enforced: HashMap<u32, Enforcement>,
    sides: Sides,
    bypass: bool,
    owed: Owed,
}

/// What is still to be done about sessions that are in the accounts already.
#[derive(Debug)]
struct Owed {
    /// It is not known how far the agent before this one came, or the last try, a step of which failed: all is bound and set once more.
    everything: bool,
    /// The slots of sessions that changed.
    slots: BTreeSet<u32>,
    /// Sessions that closed, of which nobody has been told.
    closed: Vec<String>,
    /// Prefixes for which there was no place.
    prefixes: BTreeMap<IpNet, u32>,
}

impl Books {
    /// Opens the books of this life of the counters.
    pub fn open(
        store: Arc<Store>,
        plane: &mut impl Slots,
        boot: Boot,
        max_subscribers: u32,
        now: Micros,
    ) -> Result<Self, BooksError> {
        let mut failed = None;
        let restored = store.begin(boot, now, || {
            let all = ANONYMOUS..max_subscribers.saturating_add(1 + ANONYMOUS_SLOTS);
            let nothing = Baseline::default();
            let slots = plane.moved(&nothing, all);
            let counted = slots.and_then(|slots| Ok(Counted { slots, apps: plane.moved_apps(&nothing)? }));
            counted.unwrap_or_else(|error| {
                failed = Some(error);
                Counted::default()
            })
        })?;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(Self {
                store,
                accounts: Accounts::new(restored, max_subscribers),
                enforced: HashMap::new(),
                sides: Sides::default(),
                bypass: false,
                owed: Owed {
                    everything: true,
                    slots: BTreeSet::new(),
                    closed: Vec::new(),
                    prefixes: BTreeMap::new(),
                },
            }),
        }
    }

    /// The sessions.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Tells what was counted since the last drain. `None`: the spool is full, and the counters wait.
    pub fn drain(
        &mut self,
        now: Micros,
        plane: &mut impl Slots,
        flows: &[telemetry::FlowNamed],
    ) -> Result<Option<Told>, BooksError> {
        if self.store.has_room() { self.drain_last(now, plane, flows).map(Some) } else { Ok(None) }
    }

    /// The same, even if the spool is full: for counters that no agent will find again.
    pub fn drain_last(
        &mut self,
        now: Micros,
        plane: &mut impl Slots,
        flows: &[telemetry::FlowNamed],
    ) -> Result<Told, BooksError> {
        let mut moved = Vec::new();
        for slots in self.accounts.used_slots() {
            moved.extend(plane.moved(self.accounts.baseline(), slots)?);
        }
        let apps = plane.moved_apps(self.accounts.baseline())?;
        let holds = |slot| if self.bypass { None } else { self.enforced.get(&slot) };
        let served = self.sides.take(now, &plane.measured(now));
        let drained = self.accounts.drain(now, (moved, apps), &served, flows, holds);
        let bytes = self.store.drained(&drained, self.accounts.baseline())?;
        self.accounts.committed(&drained);
        let Drained { batches, backwards, masks, .. } = drained;
        Ok(Told { batches: batches.len(), bytes, backwards, masks })
    }

    /// Makes these the sessions. `holds` says what is done with a session's packets.
    ///
    /// `None`: what was counted under a session's former keys cannot be told yet, for the spool is full; ask again.
    pub fn set_sessions(
        &mut self,
        now: Micros,
        plane: &mut impl Slots,
        sessions: Vec<SessionFacts>,
        holds: impl Fn(&SessionFacts) -> Enforcement,
    ) -> Result<Option<Changed>, BooksError> {
        let told = self.drain(now, plane, &[])?.is_some();
        let everything = self.owed.everything;
        let mut plan = self.accounts.plan(sessions, now, everything);
        if plan.rekeyed && !told {
            return Ok(None);
        }
        if everything {
            // Whatever was left bound by an agent before this one, or by a try that failed: what is wanted is bound again below.
            let wanted: HashSet<IpNet> = plan.bind.iter().map(|(prefix, _)| *prefix).collect();
            plan.unbind = plane.bindings()?.into_iter().filter(|prefix| !wanted.contains(prefix)).collect();
            self.owed.prefixes.clear();
        }
        self.owed.everything = true;
        for prefix in &plan.unbind {
            plane.unbind(*prefix)?;
            self.owed.prefixes.remove(prefix);
        }
        let changes = plan.changed.len();
        if changes > 0 {
            self.store.sessions(&plan.changed)?;
        }
        for account in &plan.changed {
            self.sides.forget(account.slot);
            self.owed.slots.insert(account.slot);
            self.owed.closed.extend(account.closing.map(|_| account.facts.id.clone()));
        }
        self.accounts.apply(plan.changed);
        let mut enforce = self.owed.slots.clone();
        if everything {
            enforce.extend(self.accounts.all_open().map(|account| account.slot));
        }
        let by_slot: HashMap<u32, Enforcement> =
            self.accounts.all_open().map(|account| (account.slot, holds(&account.facts))).collect();
        for slot in enforce {
            // Nothing holds for a session that is gone: its slot waits, clean, for the next.
            self.enforce(plane, slot, &by_slot.get(&slot).copied().unwrap_or_default())?;
        }
        let mut bind = self.owed.prefixes.clone();
        bind.extend(plan.bind);
        for (prefix, slot) in bind {
            match plane.bind(prefix, slot) {
                // There may be one when sessions change again.
                Err(error) if error.is_full() => {
                    self.owed.prefixes.insert(prefix, slot);
                }
                bound => {
                    bound?;
                    self.owed.prefixes.remove(&prefix);
                }
            }
        }
        self.owed.everything = false;
        self.owed.slots.clear();
        let is_over = |session: &String| self.accounts.open(session).is_none();
        let closed = std::mem::take(&mut self.owed.closed).into_iter().filter(is_over).collect();
        let without_place = self.owed.prefixes.len();
        Ok(Some(Changed { closed, without_slot: plan.without_slot, without_place, changes }))
    }

    /// Whether all enforcement is off: then no rate is told with the usage.
    pub fn set_bypass(&mut self, bypass: bool) {
        self.bypass = bypass;
    }

    /// Sets what is done with a slot's packets.
    pub fn enforce(
        &mut self,
        plane: &mut impl Slots,
        slot: u32,
        enforcement: &Enforcement,
    ) -> Result<(), DataPlaneError> {
        plane.enforce(slot, enforcement)?;
        self.enforced.insert(slot, *enforcement);
        Ok(())
    }
}
