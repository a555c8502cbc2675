//! Who holds which slot, what was told of each slot's counters, and what is to be told next.
//!
//! ```text
//!            opens                 gone from the sessions           a drain, LINGER later
//!  (no slot) ------> Open (slot) ------------------------> Closing ----------------------> (slot free)
//!                     ^  | changes: announced again           |
//!                     |  v                                    | comes back: same slot
//!                     +---------------------------------------+
//! ```
//!
//! A closing session keeps its slot until a drain well after its addresses were taken from it, so that packets that were
//! on their way are still told as its own; then its close is told, after its last usage.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use ipnet::IpNet;
use usher_models::telemetry;
use usher_models::units::Micros;
use usher_models::wire::{ANONYMOUS, Cell, Class, Direction, Enforcement, SlotUsage};

use super::apps::AppMoved;
use super::batches::{Batches, Encoded, outcome, session, tell_quality, tell_usage};
use super::quality::{ServedBySlot, masks};
use super::{Baseline, Moved, at_cap, difference};
use crate::dataplane::Boot;

/// How long a closed session keeps its slot.
const LINGER: Duration = Duration::from_secs(2);

/// Prefixes of no session that are counted under a name: names, at the most.
pub const MAX_ANONYMOUS: usize = 64;

/// Slots kept for them beyond those of sessions: for twice as many, because a name that goes keeps its own for a while.
pub const ANONYMOUS_SLOTS: u32 = 128;

/// What the id of such a slot's holder begins with; in a session's there is no space.
const NAMED: &str = "anonymous ";

/// What the operator's session source says of one session, or the configuration of prefixes of no session under a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SessionFacts {
    /// Unique on the agent.
    pub id: String,
    /// Keys of the subscriber, as `kind:value`.
    pub keys: Vec<String>,
    /// Where its packets come from and go to.
    pub prefixes: Vec<IpNet>,
    /// Serving network; empty where unknown.
    pub plmn: String,
    /// Whether that is a foreign one.
    pub roaming: bool,
    /// Radio access; empty where unknown.
    pub rat: String,
    /// IANA name; empty where unknown.
    pub time_zone: String,
}

impl SessionFacts {
    /// Those of prefixes under a name: counted like a session, told as anonymous, nothing ever enforced.
    pub fn anonymous(name: &str, prefixes: Vec<IpNet>) -> Self {
        Self { id: format!("{NAMED}{name}"), prefixes, ..Self::default() }
    }

    /// The name, where these are of no session.
    pub fn anonymous_name(&self) -> Option<&str> {
        self.id.strip_prefix(NAMED)
    }
}

/// A session and its slot. Kept in the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Account {
    /// Where its packets are counted.
    pub slot: u32,
    /// Who it is.
    pub facts: SessionFacts,
    /// When it opened.
    pub since: Micros,
    /// When it closed, if it has.
    pub closing: Option<Micros>,
}

/// Counters as they are found: those that are not zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// Of slots, in their order.
    pub slots: Vec<Moved>,
    /// Bytes by app, in the order of lanes.
    pub apps: Vec<AppMoved>,
}

/// What the store gives back at the start.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The life of the counters that all of this is about.
    pub boot: Boot,
    /// The last batch's number; 0: none yet.
    pub sequence: u64,
    /// The end of the last batch's interval.
    pub drained: Micros,
    /// What was told.
    pub baseline: Vec<Moved>,
    /// What was told of bytes by app, by lane and direction.
    pub apps: Vec<(u32, [u64; 2])>,
    /// All sessions that hold a slot.
    pub accounts: Vec<Account>,
}

/// What must happen so that the sessions are the new ones. In this order: unbind, store, (enforce,) bind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Prefixes that nobody holds any more.
    pub unbind: Vec<IpNet>,
    /// Accounts that are new or changed.
    pub changed: Vec<Account>,
    /// Prefixes and who holds them now.
    pub bind: Vec<(IpNet, u32)>,
    /// Sessions for which no slot is left; their traffic counts as anonymous.
    pub without_slot: Vec<String>,
    /// Somebody else's keys stand behind a session that goes on: what was counted so far must be told first.
    pub rekeyed: bool,
}

/// One drain: what is told, and the books after it. To be stored in one transaction.
#[derive(Debug, Clone)]
pub struct Drained {
    /// In the order of their sequence.
    pub batches: Vec<Encoded>,
    /// What moves the baseline, in the order of slots.
    pub moved: Vec<Moved>,
    /// The same of bytes by app, in the order of lanes.
    pub apps: Vec<AppMoved>,
    /// Sessions that are gone and whose slots are free.
    pub released: Vec<String>,
    /// The end of the interval.
    pub until: Micros,
    /// Counters found below their baseline.
    pub backwards: u64,
    /// Which flows to measure from now on, by class, for so many packets as came.
    pub masks: [u16; Class::COUNT],
}

/// The books of one boot.
#[derive(Debug)]
pub struct Accounts {
    boot: Boot,
    sequence: u64,
    drained: Micros,
    baseline: Baseline,
    by_session: BTreeMap<String, Account>,
    /// Whose each slot is; empty: nobody's.
    by_slot: Vec<String>,
    announce: BTreeSet<String>,
    /// Sessions that have closed and still hold their slots.
    closing: BTreeSet<String>,
    /// Slots that were used and are not.
    free: BTreeSet<u32>,
    /// Slots of sessions that were never used.
    fresh: RangeInclusive<u32>,
    /// The last slot of a session; those of the anonymous with a name follow.
    last: u32,
}

impl Accounts {
    /// Takes up the books where they were left. `max_subscribers`: sessions' slots go from 1 up to and including it.
    pub fn new(restored: Restored, max_subscribers: u32) -> Self {
        let end = max_subscribers.saturating_add(ANONYMOUS_SLOTS);
        // Beyond the last slot: from before the configuration was made smaller. Such a session gets another slot.
        let within = restored.accounts.into_iter().filter(|account| account.slot <= end);
        let accounts: BTreeMap<_, _> = within.map(|account| (account.facts.id.clone(), account)).collect();
        let used: BTreeSet<u32> = accounts.values().map(|account| account.slot).collect();
        let highest = used.range(..=max_subscribers).next_back().copied().unwrap_or(ANONYMOUS);
        let unused = (1..highest).chain(max_subscribers + 1..=end);
        let mut baseline = Baseline::default();
        for told in restored.baseline.iter().filter(|told| told.slot <= end) {
            baseline.set(told);
        }
        for (lane, bytes) in restored.apps {
            baseline.set_app(lane, bytes);
        }
        let mut by_slot = Vec::new();
        for account in accounts.values() {
            take(&mut by_slot, account);
        }
        let closing = accounts.values().filter(|account| account.closing.is_some());
        Self {
            boot: restored.boot,
            sequence: restored.sequence,
            drained: restored.drained,
            baseline,
            announce: accounts.keys().cloned().collect(),
            closing: closing.map(|account| account.facts.id.clone()).collect(),
            by_slot,
            by_session: accounts,
            free: unused.filter(|slot| !used.contains(slot)).collect(),
            fresh: highest + 1..=max_subscribers,
            last: max_subscribers,
        }
    }

    /// The open session of this id.
    pub fn open(&self, session: &str) -> Option<&Account> {
        let account = self.by_session.get(session)?;
        (account.closing.is_none() && account.facts.anonymous_name().is_none()).then_some(account)
    }

    /// Whose slot it is, open or closing; empty: no session's.
    pub fn session_of(&self, slot: u32) -> &str {
        self.holder(slot).0
    }

    /// The session whose slot it is, or the name of the anonymous.
    fn holder(&self, slot: u32) -> (&str, &str) {
        let id =
            usize::try_from(slot).ok().and_then(|slot| self.by_slot.get(slot)).map_or("", String::as_str);
        id.strip_prefix(NAMED).map_or((id, ""), |name| ("", name))
    }

    /// All open sessions, and prefixes under a name.
    pub fn all_open(&self) -> impl Iterator<Item = &Account> {
        self.by_session.values().filter(|account| account.closing.is_none())
    }

    /// What was told of the counters.
    pub fn baseline(&self) -> &Baseline {
        &self.baseline
    }

    /// Slots whose counters may have moved, in their order: up to the highest that a session ever had, and from the first to the highest that a
    /// name had. What is found in a slot that is nobody's is told as the anonymous', that its next session inherits nothing.
    pub fn used_slots(&self) -> [Range<u32>; 2] {
        let end = u32::try_from(self.by_slot.len()).unwrap_or(u32::MAX);
        [ANONYMOUS..*self.fresh.start(), self.last + 1..end.max(self.last + 1)]
    }

    /// The slot of a session that is open, or has closed not long ago.
    pub fn slot_of(&self, session: &str) -> Option<u32> {
        self.by_session.get(session).map(|account| account.slot)
    }

    /// What it takes to go from the sessions as they are to `sessions`. With `everything`, what is bound already is
    /// bound again: at the start, when it is not known how far the agent before this one came.
    pub fn plan(&self, sessions: Vec<SessionFacts>, now: Micros, everything: bool) -> Plan {
        let mut plan = Plan::default();
        let mut free = self.free.range(..=self.last).copied().chain(self.fresh.clone());
        let mut kept_free = self.free.range(self.last + 1..).copied();
        let mut held: HashMap<IpNet, u32> = HashMap::new();
        for account in self.all_open() {
            hold(&mut held, &account.facts, account.slot);
        }
        let mut wanted: HashMap<IpNet, u32> = HashMap::new();
        let mut seen = BTreeSet::new();
        for facts in sessions {
            seen.insert(facts.id.clone());
            let known = self.by_session.get(&facts.id);
            let next = || if facts.anonymous_name().is_some() { kept_free.next() } else { free.next() };
            let Some(slot) = known.map(|account| account.slot).or_else(next) else {
                plan.without_slot.push(facts.id);
                continue;
            };
            hold(&mut wanted, &facts, slot);
            let unchanged = known.is_some_and(|account| account.closing.is_none() && account.facts == facts);
            plan.rekeyed |= known.is_some_and(|account| account.facts.keys != facts.keys);
            if !unchanged {
                let since =
                    known.filter(|account| account.closing.is_none()).map_or(now, |account| account.since);
                plan.changed.push(Account { slot, facts, since, closing: None });
            }
        }
        for account in self.all_open().filter(|account| !seen.contains(&account.facts.id)) {
            plan.changed.push(Account { closing: Some(now), ..account.clone() });
        }
        plan.unbind = held.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect();
        plan.bind = wanted
            .into_iter()
            .filter(|(prefix, slot)| everything || held.get(prefix) != Some(slot))
            .collect();
        plan.unbind.sort_unstable();
        plan.bind.sort_unstable();
        plan
    }

    /// The plan's changes are stored: they hold now.
    pub fn apply(&mut self, changed: Vec<Account>) {
        for account in changed {
            self.free.remove(&account.slot);
            if self.fresh.contains(&account.slot) {
                self.free.extend(*self.fresh.start()..account.slot);
                self.fresh = account.slot + 1..=*self.fresh.end();
            }
            take(&mut self.by_slot, &account);
            if account.closing.is_none() {
                self.announce.insert(account.facts.id.clone());
                self.closing.remove(&account.facts.id);
            } else {
                self.closing.insert(account.facts.id.clone());
            }
            self.by_session.insert(account.facts.id.clone(), account);
        }
    }

    /// What there is to tell of `[last drain, now)`. `moved` are the counters that are not where the baseline has them, in the order of
    /// slots, `apps` the bytes by app likewise, in the order of lanes. `enforcement` is what holds for a slot; `None`: nothing.
    pub fn drain<'a>(
        &self,
        now: Micros,
        (moved, apps): (Vec<Moved>, Vec<AppMoved>),
        served: &ServedBySlot,
        flows: &[telemetry::FlowNamed],
        enforcement: impl Fn(u32) -> Option<&'a Enforcement>,
    ) -> Drained {
        // A clock set back makes no interval that ends before it begins.
        let until = now.max(Micros::new(self.drained.get() + 1));
        let interval = until.since(self.drained);
        let mut batches = Batches::new(self.boot, self.sequence, (self.drained, until));
        for id in &self.announce {
            if let Some(account) = self.open(id) {
                batches.session(session(account, telemetry::SessionState::Open));
            }
        }
        let mut backwards = 0;
        let mut packets = [0_u64; Class::COUNT];
        for of_slot in moved.chunk_by(|one, next| one.slot == next.slot) {
            let slot = of_slot.first().map_or(ANONYMOUS, |moved| moved.slot);
            let mut used = SlotUsage::default();
            for Moved { class, direction, now, .. } in of_slot {
                let (cell, below) = difference(now, &self.baseline.cell(slot, *class, *direction));
                backwards += below;
                used.cells[class.index()][direction.index()] = cell;
            }
            let rates = enforcement(slot);
            let holder = self.holder(slot);
            for of_class in of_slot.chunk_by(|one, next| one.class == next.class) {
                let class = of_class.first().map_or(Class::Other, |moved| moved.class);
                let caps = Direction::BOTH
                    .map(|way| rates.and_then(|rates| at_cap(&used, rates, class, way, interval)));
                let mut quality =
                    served.get(&(slot, class)).map(|served| (served, Some(outcome(class, served, &caps))));
                for direction in of_class.iter().map(|moved| moved.direction) {
                    let cell = used.cells[class.index()][direction.index()];
                    packets[class.index()] = packets[class.index()].saturating_add(cell.packets);
                    if cell != Cell::default() {
                        batches.usage(|usage| {
                            tell_usage(usage, holder, class, direction, cell, caps[direction.index()]);
                            if let Some((served, qoo)) = &mut quality {
                                tell_quality(usage, served, direction.index(), qoo.take());
                            }
                        });
                    }
                }
            }
        }
        backwards += self.drain_apps(&apps, &mut batches);
        for flow in flows {
            batches.flow(flow.clone());
        }
        let over: Vec<&Account> = self
            .closing
            .iter()
            .filter_map(|id| self.by_session.get(id))
            .filter(|account| account.closing.is_some_and(|closed| until.since(closed) >= LINGER))
            .collect();
        if !over.is_empty() {
            batches.cut();
        }
        let mut released = Vec::new();
        for account in over {
            if account.facts.anonymous_name().is_none() {
                batches.session(session(account, telemetry::SessionState::Closed));
            }
            released.push(account.facts.id.clone());
        }
        let masks = masks(&packets, interval);
        Drained { batches: batches.done(), moved, apps, released, until, backwards, masks }
    }

    /// Tells bytes by app, session by session; what is no session's is told with no app. Counters found below their baseline.
    fn drain_apps(&self, apps: &[AppMoved], batches: &mut Batches) -> u64 {
        let mut backwards = 0;
        let mut rows: Vec<(u32, &str, [u64; 2])> = Vec::with_capacity(apps.len());
        for AppMoved { lane, slot, app, now } in apps {
            let told = self.baseline.app(*lane);
            let bytes = [0, 1].map(|way| {
                backwards += u64::from(now[way] < told[way]);
                now[way].saturating_sub(told[way])
            });
            rows.push((*slot, app, bytes));
        }
        rows.sort_unstable();
        // Of each class that flows of the app are of there is one.
        rows.dedup_by(|(slot, app, later), (of, same, bytes)| {
            let is_same = (*slot, *app) == (*of, *same);
            if is_same {
                *bytes = [0, 1].map(|way| bytes[way].saturating_add(later[way]));
            }
            is_same
        });
        for (slot, app, [bytes_up, bytes_down]) in rows {
            let session = self.session_of(slot);
            if !session.is_empty() && !app.is_empty() && bytes_up + bytes_down > 0 {
                let (session, app) = (session.to_owned(), app.to_owned());
                batches.app(telemetry::AppUsage { session, app, bytes_up, bytes_down });
            }
        }
        backwards
    }

    /// The drain is stored: its books hold now.
    pub fn committed(&mut self, drained: &Drained) {
        self.sequence = drained.batches.last().map_or(self.sequence, |batch| batch.sequence);
        self.drained = drained.until;
        for moved in &drained.moved {
            self.baseline.set(moved);
        }
        for moved in &drained.apps {
            self.baseline.set_app(moved.lane, moved.now);
        }
        self.announce.clear();
        for id in &drained.released {
            self.closing.remove(id);
            if let Some(account) = self.by_session.remove(id) {
                if let Some(holder) =
                    usize::try_from(account.slot).ok().and_then(|slot| self.by_slot.get_mut(slot))
                {
                    holder.clear();
                }
                self.free.insert(account.slot);
            }
        }
    }
}

/// Notes whose an account's slot is.
fn take(by_slot: &mut Vec<String>, account: &Account) {
    let slot = usize::try_from(account.slot).unwrap_or(usize::MAX);
    if by_slot.len() <= slot {
        by_slot.resize(slot + 1, String::new());
    }
    by_slot[slot].clone_from(&account.facts.id);
}

/// Makes the prefixes those of a slot. Where a session has the same prefix as the anonymous, it is the session's.
fn hold(prefixes: &mut HashMap<IpNet, u32>, facts: &SessionFacts, slot: u32) {
    for prefix in &facts.prefixes {
        if facts.anonymous_name().is_some() {
            prefixes.entry(*prefix).or_insert(slot);
        } else {
            prefixes.insert(*prefix, slot);
        }
    }
}

#[cfg(test)]
mod tests;
