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
use prost::Message as _;
use usher_models::telemetry;
use usher_models::units::Micros;
use usher_models::wire::{ANONYMOUS, Cell, Class, Direction, Enforcement, SlotUsage};

use super::apps::AppMoved;
use super::quality::{RoundTrips, Served, ServedBySlot, masks};
use super::{Baseline, Moved, at_cap, difference, qoo};
use crate::dataplane::Boot;

/// How long a closed session keeps its slot.
const LINGER: Duration = Duration::from_secs(2);

/// The encoded size from which a drain goes on in another batch; gRPC's usual bound on a message is 4 MiB.
const BATCH_BYTES: usize = 512 << 10;

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

/// A batch as it is stored and goes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Its number.
    pub sequence: u64,
    /// A [`telemetry::Batch`].
    pub bytes: Vec<u8>,
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
        let mut batches = Batches::new(self, until);
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

/// Cuts what is told into batches of bounded size, numbered one after the other; never less than one.
///
/// Each is encoded as it grows: encodings one behind the other are the encoding of all together (Protocol Buffers, encoding, "last one
/// wins"), so that a drain of all subscribers is never there as messages.
struct Batches {
    head: telemetry::Batch,
    bytes: Vec<u8>,
    /// Whether there is more than its head.
    grown: bool,
    /// A batch of one row, whose text is written anew for each.
    row: telemetry::Batch,
    done: Vec<Encoded>,
}

impl Batches {
    fn new(accounts: &Accounts, end: Micros) -> Self {
        let head = telemetry::Batch {
            boot: accounts.boot.0.to_vec(),
            sequence: accounts.sequence,
            start_us: accounts.drained.get(),
            end_us: end.get(),
            ..telemetry::Batch::default()
        };
        let row =
            telemetry::Batch { usage: vec![telemetry::Usage::default()], ..telemetry::Batch::default() };
        let mut batches = Self { head, bytes: Vec::new(), grown: false, row, done: Vec::new() };
        batches.begin();
        batches
    }

    fn begin(&mut self) {
        self.head.sequence += 1;
        self.bytes = self.head.encode_to_vec();
        self.grown = false;
    }

    fn end(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.done.push(Encoded { sequence: self.head.sequence, bytes });
    }

    fn cut(&mut self) {
        if self.grown {
            self.end();
            self.begin();
        }
    }

    fn add(&mut self, part: &telemetry::Batch) {
        let from = self.bytes.len();
        encode(part, &mut self.bytes);
        self.grew(from);
    }

    /// What begins at `from` was added; where that is too much, it begins another batch.
    fn grew(&mut self, from: usize) {
        if self.grown && self.bytes.len() > BATCH_BYTES {
            let part = self.bytes.split_off(from);
            self.end();
            self.begin();
            self.bytes.extend(part);
        }
        self.grown = true;
    }

    fn session(&mut self, session: telemetry::Session) {
        self.add(&telemetry::Batch { sessions: vec![session], ..telemetry::Batch::default() });
    }

    fn usage(&mut self, tell: impl FnOnce(&mut telemetry::Usage)) {
        if let Some(usage) = self.row.usage.first_mut() {
            tell(usage);
        }
        let from = self.bytes.len();
        encode(&self.row, &mut self.bytes);
        self.grew(from);
    }

    fn app(&mut self, usage: telemetry::AppUsage) {
        self.add(&telemetry::Batch { apps: vec![usage], ..telemetry::Batch::default() });
    }

    fn flow(&mut self, flow: telemetry::FlowNamed) {
        self.add(&telemetry::Batch { flows: vec![flow], ..telemetry::Batch::default() });
    }

    fn done(mut self) -> Vec<Encoded> {
        self.end();
        self.done
    }
}

fn encode(part: &telemetry::Batch, bytes: &mut Vec<u8>) {
    part.encode(bytes).expect("memory grows as it is needed");
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

fn session(account: &Account, state: telemetry::SessionState) -> telemetry::Session {
    let facts = &account.facts;
    telemetry::Session {
        id: facts.id.clone(),
        keys: facts.keys.clone(),
        prefixes: facts.prefixes.iter().map(ToString::to_string).collect(),
        serving_plmn: facts.plmn.clone(),
        roaming: facts.roaming,
        rat: facts.rat.clone(),
        time_zone: facts.time_zone.clone(),
        state: state.into(),
        since_us: account.since.get(),
    }
}

/// Makes a row that of a cell, whatever it told before.
fn tell_usage(
    row: &mut telemetry::Usage,
    (session, anonymous): (&str, &str),
    class: Class,
    direction: Direction,
    cell: Cell,
    cap: Cap,
) {
    row.clear();
    row.session.push_str(session);
    row.anonymous.push_str(anonymous);
    row.class = telemetry::Class::from(class).into();
    row.direction = telemetry::Direction::from(direction).into();
    (row.bytes, row.packets) = (cell.bytes, cell.packets);
    (row.dropped_bytes, row.dropped_packets) = (cell.dropped_bytes, cell.dropped_packets);
    row.rate_bits_per_second = cap.map_or(0, |(rate, _)| rate.0);
    row.at_cap = cap.map(|(_, share)| share);
}

/// A rate that holds, and the share of the interval spent at it.
type Cap = Option<(usher_models::units::BitsPerSecond, f64)>;

/// What is told once of a class, with the first of its directions: the path from end to end, and the score.
struct Outcome {
    round_trips: Option<RoundTrips>,
    qoo: Option<f64>,
}

fn outcome(class: Class, served: &Served, caps: &[Cap; 2]) -> Outcome {
    let held = caps.iter().flatten().filter(|(rate, share)| *share > 0.0 && rate.0 > 0);
    let measured = qoo::Measurement {
        round_trips: served.round_trips,
        loss: served.worst_loss(),
        throughput: held.map(|(rate, _)| rate.0).min(),
    };
    let qoo = qoo::requirement(class).and_then(|needed| qoo::score(&needed, &measured));
    Outcome { round_trips: served.round_trips, qoo }
}

fn tell_quality(usage: &mut telemetry::Usage, served: &Served, direction: usize, outcome: Option<Outcome>) {
    let told = |round_trips: RoundTrips| telemetry::RoundTrips {
        p50_ms: round_trips.p50_ms,
        p90_ms: round_trips.p90_ms,
        p95_ms: round_trips.p95_ms,
        p99_ms: round_trips.p99_ms,
        samples: round_trips.samples,
    };
    usage.side = served.sides[direction].map(told);
    usage.loss = served.loss[direction];
    usage.reordered = served.reordered[direction];
    usage.regularity = served.regularity[direction];
    if let Some(outcome) = outcome {
        usage.path = outcome.round_trips.map(told);
        usage.qoo = outcome.qoo;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        let restored = Restored {
            boot: Boot([7; 16]),
            sequence: 0,
            drained: Micros::new(0),
            baseline: Vec::new(),
            apps: Vec::new(),
            accounts: Vec::new(),
        };
        Accounts::new(restored, 3)
    }

    fn facts(id: &str, prefix: &str) -> SessionFacts {
        let keys = vec![format!("imsi:{id}")];
        SessionFacts {
            id: id.into(),
            keys,
            prefixes: vec![prefix.parse().unwrap()],
            ..SessionFacts::default()
        }
    }

    fn counted(bytes: u64) -> SlotUsage {
        let mut usage = SlotUsage::default();
        usage.cells[0][0] = Cell { bytes, packets: 1, ..Cell::default() };
        usage
    }

    fn at(seconds: i64) -> Micros {
        Micros::new(seconds * 1_000_000)
    }

    fn become_(accounts: &mut Accounts, sessions: &[SessionFacts], now: Micros) -> Plan {
        let plan = accounts.plan(sessions.to_vec(), now, false);
        accounts.apply(plan.changed.clone());
        plan
    }

    fn decoded(batch: &Encoded) -> telemetry::Batch {
        let decoded = telemetry::Batch::decode(batch.bytes.as_slice()).unwrap();
        assert_eq!(decoded.sequence, batch.sequence);
        decoded
    }

    fn tell(accounts: &mut Accounts, now: Micros, readings: &[(u32, SlotUsage)]) -> Vec<telemetry::Batch> {
        tell_all(accounts, now, readings, &[])
    }

    fn tell_all(
        accounts: &mut Accounts,
        now: Micros,
        readings: &[(u32, SlotUsage)],
        apps: &[AppMoved],
    ) -> Vec<telemetry::Batch> {
        let moved =
            readings.iter().flat_map(|(slot, usage)| accounts.baseline().moved(*slot, usage)).collect();
        let drained = accounts.drain(now, (moved, apps.to_vec()), &ServedBySlot::new(), &[], |_| None);
        accounts.committed(&drained);
        drained.batches.iter().map(decoded).collect()
    }

    #[test]
    fn an_address_that_moves_takes_none_of_the_old_ones_usage_along() {
        let mut accounts = accounts();
        let old = become_(&mut accounts, &[facts("a", "10.0.0.2/32")], at(0));
        assert_eq!(old.bind, [("10.0.0.2/32".parse().unwrap(), 1)]);
        tell(&mut accounts, at(1), &[(1, counted(100))]);

        let moved = become_(&mut accounts, &[facts("b", "10.0.0.2/32")], at(2));
        assert_eq!(moved.unbind, []);
        assert_eq!(moved.bind, [("10.0.0.2/32".parse().unwrap(), 2)]);
        let batches = tell(&mut accounts, at(3), &[(1, counted(150)), (2, counted(7))]);
        let told: Vec<_> =
            batches[0].usage.iter().map(|usage| (usage.session.as_str(), usage.bytes)).collect();
        assert_eq!(told, [("a", 50), ("b", 7)]);
    }

    #[test]
    fn bytes_by_app_are_told_of_sessions_alone_and_once() {
        let mut accounts = accounts();
        become_(&mut accounts, &[facts("a", "10.0.0.2/32"), facts("b", "10.0.0.3/32")], at(0));
        let moved = |lane, slot, app: &str, now| AppMoved { lane, slot, app: app.into(), now };
        let mut told = |seconds, apps: &[AppMoved]| {
            let batches = tell_all(&mut accounts, at(seconds), &[], apps);
            let rows = batches.into_iter().flat_map(|batch| batch.apps);
            rows.map(|row| (row.session, row.app, row.bytes_up, row.bytes_down)).collect::<Vec<_>>()
        };
        let row = |session: &str, app: &str, up, down| (session.to_owned(), app.to_owned(), up, down);
        let first = [
            moved(0, 2, "streams", [0, 1]),
            moved(1, 2, "streams", [5, 69]),
            moved(2, 1, "streams", [1, 0]),
            moved(3, 3, "chat", [9, 9]),
        ];
        assert_eq!(
            told(1, &first),
            [row("a", "streams", 1, 0), row("b", "streams", 5, 70)],
            "slot 3 is nobody's"
        );
        // The lane that was nobody's is an app's by now: it is told what came since.
        let then = [moved(1, 2, "streams", [6, 69]), moved(3, 1, "chat", [9, 11])];
        assert_eq!(told(2, &then), [row("a", "chat", 0, 2), row("b", "streams", 1, 0)]);
    }

    #[test]
    fn a_close_is_told_after_the_last_usage_and_frees_the_slot() {
        let mut accounts = accounts();
        become_(&mut accounts, &[facts("a", "10.0.0.2/32")], at(0));
        tell(&mut accounts, at(1), &[]);
        let plan = become_(&mut accounts, &[], at(2));
        assert_eq!(plan.unbind, ["10.0.0.2/32".parse().unwrap()]);
        assert!(accounts.open("a").is_none());
        assert_eq!(tell(&mut accounts, at(3), &[(1, counted(10))]).len(), 1);
        let batches = tell(&mut accounts, at(4), &[(1, counted(30))]);
        assert_eq!(batches.iter().map(|batch| batch.sequence).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(batches[0].usage[0].bytes, 20);
        assert_eq!(batches[1].sessions[0].state(), telemetry::SessionState::Closed);
        assert_eq!(accounts.session_of(1), "");
        assert_eq!(accounts.used_slots(), [0..2, 4..4], "none of names");

        // What still comes in a slot that is nobody's is nobody's; its next holder starts where the counters stand.
        let batches = tell(&mut accounts, at(5), &[(1, counted(37))]);
        assert_eq!((batches[0].usage[0].session.as_str(), batches[0].usage[0].bytes), ("", 7));
        become_(&mut accounts, &[facts("b", "10.0.0.3/32")], at(5));
        let batches = tell(&mut accounts, at(6), &[(1, counted(38))]);
        assert_eq!((batches[0].usage[0].session.as_str(), batches[0].usage[0].bytes), ("b", 1));
    }

    #[test]
    fn a_session_that_comes_back_keeps_its_slot() {
        let mut accounts = accounts();
        become_(&mut accounts, &[facts("a", "10.0.0.2/32")], at(0));
        become_(&mut accounts, &[], at(1));
        let plan = become_(&mut accounts, &[facts("a", "10.0.0.2/32")], at(2));
        assert_eq!(plan.bind, [("10.0.0.2/32".parse().unwrap(), 1)]);
        assert_eq!(accounts.open("a").unwrap().slot, 1);
    }

    #[test]
    fn prefixes_under_a_name_are_counted_apart_and_give_way_to_a_session() {
        let mut accounts = accounts();
        let guests = |prefix: &str| SessionFacts::anonymous("guests", vec![prefix.parse().unwrap()]);
        let first = become_(&mut accounts, &[guests("100.64.0.0/10"), facts("a", "10.0.0.2/32")], at(0));
        let slot = 4;
        assert_eq!(
            first.bind.last(),
            Some(&("100.64.0.0/10".parse().unwrap(), slot)),
            "beyond sessions' slots"
        );
        assert!(accounts.open("anonymous guests").is_none(), "no session: nothing can be set for it");
        let batch = &tell(&mut accounts, at(1), &[(ANONYMOUS, counted(3)), (slot, counted(5))])[0];
        let told: Vec<_> = batch
            .usage
            .iter()
            .map(|usage| (usage.session.as_str(), usage.anonymous.as_str(), usage.bytes))
            .collect();
        assert_eq!(told, [("", "", 3), ("", "guests", 5)]);
        assert_eq!(batch.sessions.len(), 1, "only the session is announced");

        // A session of the very same prefix has it, and gives it back when it closes.
        let taken = become_(&mut accounts, &[facts("b", "100.64.0.0/10"), guests("100.64.0.0/10")], at(2));
        assert_eq!(taken.bind, [("100.64.0.0/10".parse().unwrap(), 2)]);
        let back = become_(&mut accounts, &[guests("100.64.0.0/10")], at(3));
        assert_eq!(back.bind, [("100.64.0.0/10".parse().unwrap(), slot)]);

        // Gone from the configuration: its last usage is told under its name, its end is no session's.
        become_(&mut accounts, &[], at(4));
        let last = tell(&mut accounts, at(5), &[(slot, counted(6))]);
        assert_eq!((last[0].usage[0].anonymous.as_str(), last[0].usage[0].bytes), ("guests", 1));
        let ends = tell(&mut accounts, at(9), &[]);
        let ended: Vec<_> =
            last.iter().chain(&ends).flat_map(|batch| &batch.sessions).map(|session| &session.id).collect();
        assert_eq!(ended, ["a", "b"]);
        assert_eq!(accounts.session_of(slot), "");
    }

    #[test]
    fn names_keep_their_slots_over_a_restart_and_take_none_of_sessions() {
        let guests = SessionFacts::anonymous("guests", vec!["100.64.0.0/10".parse().unwrap()]);
        let account = Account { slot: 5, facts: guests.clone(), since: at(0), closing: None };
        let mut accounts = Accounts::new(Restored { accounts: vec![account], ..accounts_restored() }, 3);
        let mut all: Vec<_> = (0..4).map(|n| facts(&format!("s{n}"), &format!("10.0.0.{n}/32"))).collect();
        all.push(guests);
        let more = (0..MAX_ANONYMOUS - 1).map(|n| {
            SessionFacts::anonymous(&format!("n{n}"), vec![format!("100.{n}.0.0/16").parse().unwrap()])
        });
        all.extend(more);
        let plan = become_(&mut accounts, &all, at(1));
        assert_eq!(plan.without_slot, ["s3"]);
        assert!(
            accounts.all_open().all(|account| (account.slot > 3) == account.facts.anonymous_name().is_some())
        );
        assert_eq!(accounts.slot_of("anonymous guests"), Some(5));
        let slots: BTreeSet<u32> = accounts.all_open().map(|account| account.slot).collect();
        assert_eq!(slots.len(), 3 + MAX_ANONYMOUS);
    }

    #[test]
    fn a_drain_looks_at_no_slot_between_those_of_few_sessions_and_those_of_names() {
        let mut accounts = Accounts::new(accounts_restored(), 200_000);
        assert_eq!(accounts.used_slots()[0], 0..1);
        let guests = SessionFacts::anonymous("guests", vec!["100.64.0.0/10".parse().unwrap()]);
        become_(&mut accounts, &[facts("a", "10.0.0.2/32"), facts("b", "10.0.0.3/32"), guests], at(0));
        assert_eq!(accounts.used_slots(), [0..3, 200_001..200_002]);
        let restored = Restored { accounts: accounts.all_open().cloned().collect(), ..accounts_restored() };
        assert_eq!(Accounts::new(restored, 200_000).used_slots(), [0..3, 200_001..200_002]);
    }

    #[test]
    fn sessions_beyond_the_last_slot_are_named_and_left_anonymous() {
        let accounts = accounts();
        let many: Vec<_> = (0..5).map(|n| facts(&format!("s{n}"), &format!("10.0.0.{n}/32"))).collect();
        let plan = accounts.plan(many, at(0), false);
        assert_eq!(plan.without_slot, ["s3", "s4"]);
        assert_eq!(plan.bind.len(), 3);
    }

    #[test]
    fn every_open_session_is_announced_in_the_first_batch_and_again_when_it_changes() {
        let mut accounts = accounts();
        become_(&mut accounts, &[facts("a", "10.0.0.2/32"), facts("b", "10.0.0.3/32")], at(0));
        assert_eq!(tell(&mut accounts, at(1), &[])[0].sessions.len(), 2);
        assert_eq!(tell(&mut accounts, at(2), &[])[0].sessions.len(), 0);
        let roaming = SessionFacts { roaming: true, ..facts("a", "10.0.0.2/32") };
        become_(&mut accounts, &[roaming, facts("b", "10.0.0.3/32")], at(3));
        let sessions = &tell(&mut accounts, at(4), &[])[0].sessions;
        assert_eq!(sessions.iter().map(|session| session.id.as_str()).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_drain_of_many_sessions_is_cut_into_batches_of_bounded_size() {
        let restored = Restored { boot: Boot([7; 16]), sequence: 4, ..accounts_restored() };
        let mut accounts = Accounts::new(restored, 30_000);
        let many: Vec<_> = (0..30_000_u32)
            .map(|n| facts(&format!("s{n}"), &format!("10.{}.{}.1/32", n >> 8, n & 255)))
            .collect();
        become_(&mut accounts, &many, at(0));
        let batches = tell(&mut accounts, at(1), &[]);
        assert!(batches.len() > 1);
        assert!(batches.iter().all(|batch| batch.encoded_len() < 2 * BATCH_BYTES));
        assert!(batches.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
        assert_eq!(batches.iter().map(|batch| batch.sessions.len()).sum::<usize>(), 30_000);
    }

    fn accounts_restored() -> Restored {
        Restored {
            boot: Boot([0; 16]),
            sequence: 0,
            drained: at(0),
            baseline: Vec::new(),
            apps: Vec::new(),
            accounts: Vec::new(),
        }
    }

    #[test]
    fn a_clock_set_back_makes_no_interval_that_ends_before_it_begins() {
        let mut accounts = accounts();
        tell(&mut accounts, at(10), &[]);
        let batch = &tell(&mut accounts, at(5), &[])[0];
        assert!(batch.end_us > batch.start_us);
    }
}
