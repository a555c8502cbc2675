//! Whose session is whose: what turns a batch of session ids into usage of subscribers. No I/O.
//!
//! Closed sessions stay known for a while, for their last usage comes after their end.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use smol_str::SmolStr;
use usher_models::units::{Bytes, Micros, SubscriberId};
use usher_models::{Class, Direction};

use crate::agents::{Batch, Usage};
use crate::engine::Engine;
use crate::engine::io::{AppUsageSeen, Line, NamedSeen, Observed, Quality, SessionSeen, UsageSeen};
use crate::identity::{Directory, Resolved as Lookup};
use crate::ledger::{
    AppBytes, AppRecord, BatchMark, BatchRecord, Reassigned, SessionRecord, SessionRow, UsageRecord,
};

/// Sessions known of one agent, closed ones included. Usage of further ones counts as anonymous.
const SESSIONS_MAX: usize = 1 << 21;
/// Names of anonymous traffic, of all agents together. Usage under further ones counts without a name.
const ANONYMOUS_NAMES: usize = 256;
/// How long a closed session is known.
const CLOSED_KEPT: Duration = Duration::from_hours(1);
/// The line of what is nobody's that is known; sorts last.
const NOBODY: Line = Line(u32::MAX);

/// All sessions of all agents.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_agent: HashMap<String, OfAgent>,
    /// Names of anonymous traffic seen so far.
    names: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct OfAgent {
    /// Places in `known`, by session id.
    by_id: HashTable<u32>,
    hasher: RandomState,
    known: Vec<Known>,
    free: Vec<u32>,
    /// When each closed, oldest first.
    closed: VecDeque<(Micros, SmolStr)>,
}

#[derive(Debug, Clone)]
struct Known {
    /// Empty: the place is free.
    id: SmolStr,
    line: Line,
    open: bool,
}

/// A batch in terms of subscribers.
#[derive(Debug)]
pub(super) struct Resolved {
    /// For the engine: known subscribers only.
    pub(super) observed: Observed,
    /// What else the ledger is to keep of it.
    pub(super) kept: Kept,
    /// Records left out or set right, by reason.
    pub(super) ignored: BTreeMap<&'static str, u64>,
    /// From first packet to verdict, flow by flow.
    pub(super) verdicts: Vec<Duration>,
}

/// What the ledger keeps of a batch, subscribers still by line.
#[derive(Debug)]
pub struct Kept {
    agent: String,
    mark: BatchMark,
    start: Micros,
    end: Micros,
    sessions: Vec<SessionRecord>,
    usage: Vec<Total>,
    /// Of anonymous traffic that has a name.
    anonymous: Vec<UsageRecord>,
    apps: Vec<(Line, AppRecord)>,
    app_bytes: Vec<AppUsageSeen>,
}

impl Kept {
    /// For the ledger.
    pub(super) fn record(self, engine: &Engine) -> BatchRecord {
        let usage = self.usage.into_iter().map(|total| UsageRecord {
            subscriber: engine.id_of(total.line),
            anonymous: String::new(),
            class: total.class,
            direction: total.direction,
            bytes: total.bytes,
            packets: total.packets,
            dropped_bytes: total.dropped_bytes,
            dropped_packets: total.dropped_packets,
        });
        let apps = self.apps.into_iter();
        let app_bytes = self.app_bytes.into_iter().map(|seen| AppBytes {
            subscriber: engine.id_of(seen.line),
            app: seen.app,
            bytes: seen.bytes.0,
        });
        BatchRecord {
            agent: self.agent,
            mark: self.mark,
            start: self.start,
            end: self.end,
            sessions: self.sessions,
            usage: usage.chain(self.anonymous).collect(),
            apps: apps.map(|(line, app)| AppRecord { subscriber: engine.id_of(line), ..app }).collect(),
            app_bytes: app_bytes.collect(),
        }
    }

    /// When it ended.
    pub(super) fn end(&self) -> Micros {
        self.end
    }

    /// How many sums of usage it has.
    pub(super) fn usage_records(&self) -> usize {
        self.usage.len() + self.anonymous.len()
    }

    /// Of anonymous traffic that has a name.
    pub(super) fn anonymous(&self) -> &[UsageRecord] {
        &self.anonymous
    }
}

impl Sessions {
    /// As the ledger has them.
    pub(super) fn restore(rows: impl IntoIterator<Item = SessionRow>, engine: &Engine) -> Self {
        let mut sessions = Self::default();
        let mut closed = Vec::new();
        for row in rows {
            if !row.open {
                closed.push((row.changed, row.agent.clone(), row.session.clone()));
            }
            let line = row.subscriber.as_ref().and_then(|id| engine.line(id)).unwrap_or(NOBODY);
            let of_agent = sessions.by_agent.entry(row.agent).or_default();
            of_agent.remember(&row.session, line, row.open);
        }
        closed.sort();
        for (at, agent, session) in closed {
            sessions.by_agent.entry(agent).or_default().closed.push_back((at, session.into()));
        }
        sessions
    }

    /// The sessions that are open in an engine.
    pub(super) fn of_engine(engine: &Engine) -> Self {
        let mut sessions = Self::default();
        engine.open_sessions(|agent, session, line| {
            if !sessions.by_agent.contains_key(agent) {
                sessions.by_agent.insert(agent.to_owned(), OfAgent::default());
            }
            if let Some(of_agent) = sessions.by_agent.get_mut(agent) {
                of_agent.remember(session, line, true);
            }
        });
        sessions
    }

    /// `batch` with its sessions resolved by `directory`; what it says about sessions is remembered.
    pub(super) fn resolve(&mut self, batch: Batch, directory: &Directory, engine: &Engine) -> Resolved {
        if !self.by_agent.contains_key(&batch.agent) {
            self.by_agent.insert(batch.agent.clone(), OfAgent::default());
        }
        let of_agent = self.by_agent.entry(batch.agent.clone()).or_default();
        let mut ignored = batch.ignored;
        let mut seen = Vec::new();
        let mut records = Vec::with_capacity(batch.sessions.len());
        for mut session in batch.sessions {
            session.subscriber = match directory.lookup(&session.keys) {
                Lookup::One(subscriber) => Some(subscriber.clone()),
                Lookup::Nobody => None,
                Lookup::Ambiguous(_) => {
                    *ignored.entry("session_ambiguous").or_default() += 1;
                    None
                }
            };
            if of_agent.note(&session, batch.end, engine, &mut seen) {
                records.push(session);
            } else {
                *ignored.entry("sessions_full").or_default() += 1;
            }
        }
        let mut totals = Vec::with_capacity(batch.usage.len());
        let mut named_anonymous = Vec::new();
        let (mut last, mut line) = (None, NOBODY);
        for usage in &batch.usage {
            let anonymous = usage.anonymous(&batch.words);
            if !anonymous.is_empty() {
                if self.names.contains(anonymous) || self.names.len() < ANONYMOUS_NAMES {
                    self.names.insert(anonymous.to_owned());
                    named_anonymous.push(of_anonymous(anonymous, usage));
                    continue;
                }
                *ignored.entry("anonymous_names_full").or_default() += 1;
            }
            let session = usage.session(&batch.words);
            // Records of one session mostly stand together.
            if last != Some(session) {
                (last, line) = (Some(session), of_agent.whose(session, &mut ignored));
            }
            totals.push(Total::of(line, usage));
        }
        let totals = together(totals);
        let mut verdicts = Vec::with_capacity(batch.flows.len());
        let mut named = Vec::new();
        let mut apps = Vec::with_capacity(batch.flows.len());
        for flow in batch.flows {
            verdicts.push(flow.took);
            let line = of_agent.whose(&flow.session, &mut ignored);
            if line != NOBODY && batch.timed {
                let (app, class) = (flow.app.clone(), flow.class);
                named.push(NamedSeen { line, app, class, at: flow.at, counted: flow.counted });
            }
            let record = AppRecord {
                subscriber: None,
                app: flow.app,
                class: flow.class,
                via: flow.via,
                at: flow.at,
                verdict_us: u64::try_from(flow.took.as_micros()).unwrap_or(u64::MAX),
            };
            apps.push((line, record));
        }
        let mut app_bytes = Vec::with_capacity(batch.apps.len());
        for usage in batch.apps {
            let line = of_agent.whose(&usage.session, &mut ignored);
            if line != NOBODY {
                app_bytes.push(AppUsageSeen { line, app: usage.app, bytes: Bytes(usage.bytes) });
            }
        }
        let app_bytes = by_app(app_bytes);
        of_agent.forget_closed(batch.end);
        let known = totals.iter().take_while(|total| total.line != NOBODY);
        let usage = if batch.timed { known.map(Total::seen).collect() } else { Vec::new() };
        Resolved {
            observed: Observed {
                agent: batch.agent.clone(),
                start: batch.start,
                end: batch.end,
                sessions: seen,
                usage,
                named,
                apps: if batch.timed { app_bytes.clone() } else { Vec::new() },
            },
            kept: Kept {
                agent: batch.agent,
                mark: batch.mark,
                start: batch.start,
                end: batch.end,
                sessions: records,
                usage: totals,
                anonymous: named_anonymous,
                apps,
                app_bytes,
            },
            ignored,
            verdicts,
        }
    }

    /// Resolves every session, `rows` as the ledger has them, anew after a change of the directory: what the ledger is to
    /// note, and what the engine is to hear, agent by agent. `closes` is for the engine before it, `opens` after it knows
    /// the new profiles.
    pub(super) fn reassign(
        &mut self,
        rows: Vec<SessionRow>,
        directory: &Directory,
        engine: &Engine,
        at: Micros,
    ) -> (Vec<Reassigned>, Vec<Observed>) {
        let mut reassigned = Vec::new();
        let mut by_agent: BTreeMap<String, Vec<SessionSeen>> = BTreeMap::new();
        for row in rows {
            let subscriber = directory.resolve(&row.keys).cloned();
            let line = subscriber.as_ref().and_then(|id| engine.line(id)).unwrap_or(NOBODY);
            if let Some(of_agent) = self.by_agent.get_mut(&row.agent) {
                of_agent.remember(&row.session, line, row.open);
            }
            if subscriber == row.subscriber {
                continue;
            }
            if row.open {
                let seen = by_agent.entry(row.agent.clone()).or_default();
                seen.extend(row.subscriber.clone().map(|id| row_seen(&row, id, false)));
                seen.extend(subscriber.clone().map(|id| row_seen(&row, id, true)));
            }
            reassigned.push(Reassigned { agent: row.agent, session: row.session, subscriber });
        }
        let observed = by_agent.into_iter().filter(|(_, seen)| !seen.is_empty()).map(|(agent, mut seen)| {
            seen.sort_by(|a, b| (a.open, &a.session).cmp(&(b.open, &b.session)));
            Observed {
                agent,
                start: at,
                end: at,
                sessions: seen,
                usage: Vec::new(),
                named: Vec::new(),
                apps: Vec::new(),
            }
        });
        (reassigned, observed.collect())
    }
}

fn row_seen(row: &SessionRow, subscriber: SubscriberId, open: bool) -> SessionSeen {
    SessionSeen {
        subscriber,
        session: row.session.clone(),
        open,
        serving_plmn: row.serving_plmn.clone(),
        roaming: row.roaming,
        time_zone: row.time_zone.clone(),
        rat: row.rat.clone(),
    }
}

impl OfAgent {
    /// Remembers what is said about a session and adds what the engine is to hear. False: there is no room for it.
    fn note(
        &mut self,
        session: &SessionRecord,
        at: Micros,
        engine: &Engine,
        seen: &mut Vec<SessionSeen>,
    ) -> bool {
        let before = self.find(&session.session).cloned();
        if before.is_none() && self.by_id.len() >= SESSIONS_MAX {
            return false;
        }
        let line = session.subscriber.as_ref().and_then(|id| engine.line(id)).unwrap_or(NOBODY);
        if !session.open {
            self.closed.push_back((at, session.session.as_str().into()));
        }
        let said = |subscriber: SubscriberId, open: bool| SessionSeen {
            subscriber,
            session: session.session.clone(),
            open,
            serving_plmn: session.serving_plmn.clone(),
            roaming: session.roaming,
            time_zone: session.time_zone.clone(),
            rat: session.rat.clone(),
        };
        seen.extend(session.subscriber.clone().map(|id| said(id, session.open)));
        self.remember(&session.session, line, session.open);
        // The same session under another subscriber has ended for the first one.
        if let Some(before) = before.filter(|before| before.open && before.line != line) {
            seen.extend(engine.id_of(before.line).map(|id| said(id, false)));
        }
        true
    }

    fn find(&self, session: &str) -> Option<&Known> {
        let hash = self.hasher.hash_one(session);
        let found = self.by_id.find(hash, |place| *self.known[*place as usize].id == *session)?;
        Some(&self.known[*found as usize])
    }

    fn remember(&mut self, session: &str, line: Line, open: bool) {
        let (hasher, known) = (&self.hasher, &mut self.known);
        let hash = hasher.hash_one(session);
        if let Some(place) = self.by_id.find(hash, |place| *known[*place as usize].id == *session) {
            let known = &mut known[*place as usize];
            (known.line, known.open) = (line, open);
            return;
        }
        let new = Known { id: session.into(), line, open };
        let place = if let Some(place) = self.free.pop() {
            known[place as usize] = new;
            place
        } else {
            known.push(new);
            u32::try_from(known.len() - 1).unwrap_or(u32::MAX)
        };
        let known = &self.known;
        self.by_id.insert_unique(hash, place, |place| hasher.hash_one(known[*place as usize].id.as_str()));
    }

    fn whose(&self, session: &str, ignored: &mut BTreeMap<&'static str, u64>) -> Line {
        if session.is_empty() {
            return NOBODY;
        }
        let known = self.find(session);
        if known.is_none() {
            *ignored.entry("session_unknown").or_default() += 1;
        }
        known.map_or(NOBODY, |known| known.line)
    }

    fn forget_closed(&mut self, now: Micros) {
        let before = now.before(CLOSED_KEPT);
        while self.closed.front().is_some_and(|(at, _)| *at < before) {
            let Some((_, session)) = self.closed.pop_front() else { return };
            // It may have opened again since.
            if self.find(&session).is_some_and(|known| !known.open) {
                let (hash, known) = (self.hasher.hash_one(session.as_str()), &mut self.known);
                let found = self.by_id.find_entry(hash, |place| known[*place as usize].id == session);
                if let Ok(entry) = found {
                    let (place, _) = entry.remove();
                    known[place as usize].id = SmolStr::default();
                    self.free.push(place);
                }
            }
        }
    }
}

fn of_anonymous(name: &str, usage: &Usage) -> UsageRecord {
    UsageRecord {
        subscriber: None,
        anonymous: name.to_owned(),
        class: usage.class,
        direction: usage.direction,
        bytes: usage.bytes,
        packets: usage.packets,
        dropped_bytes: usage.dropped_bytes,
        dropped_packets: usage.dropped_packets,
    }
}

/// Usage of one line, class and direction. Amounts of one record are bounded, and so are their sums.
#[derive(Debug, Clone, Copy)]
struct Total {
    line: Line,
    class: Class,
    direction: Direction,
    bytes: u64,
    packets: u64,
    dropped_bytes: u64,
    dropped_packets: u64,
    at_cap: Option<f32>,
    quality: Quality,
}

impl Total {
    fn of(line: Line, usage: &Usage) -> Self {
        Self {
            line,
            class: usage.class,
            direction: usage.direction,
            bytes: usage.bytes,
            packets: usage.packets,
            dropped_bytes: usage.dropped_bytes,
            dropped_packets: usage.dropped_packets,
            at_cap: usage.at_cap,
            quality: usage.quality,
        }
    }

    fn kind(&self) -> (Line, usize, bool) {
        (self.line, self.class.index(), self.direction == Direction::Down)
    }

    fn add(&mut self, other: &Self) {
        // Of several sessions the one held back most, and the one served worst, speaks for the person.
        let most = |a: Option<f32>, b: Option<f32>| match (a, b) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        for (sum, amount) in [
            (&mut self.bytes, other.bytes),
            (&mut self.packets, other.packets),
            (&mut self.dropped_bytes, other.dropped_bytes),
            (&mut self.dropped_packets, other.dropped_packets),
        ] {
            // As much as the ledger can store: an agent gone mad must not stop everybody's.
            *sum = sum.saturating_add(amount).min(i64::MAX.unsigned_abs());
        }
        self.at_cap = most(self.at_cap, other.at_cap);
        let (mine, theirs) = (&mut self.quality, other.quality);
        mine.rtt_ms = most(mine.rtt_ms, theirs.rtt_ms);
        mine.loss = most(mine.loss, theirs.loss);
        mine.qoo = match (mine.qoo, theirs.qoo) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    fn seen(&self) -> UsageSeen {
        UsageSeen {
            line: self.line,
            class: self.class,
            direction: self.direction.into(),
            bytes: Bytes(self.bytes),
            packets: self.packets,
            dropped_packets: self.dropped_packets,
            at_cap: self.at_cap,
            quality: self.quality,
        }
    }
}

/// One total for each line, class and direction, in their order.
fn together(mut totals: Vec<Total>) -> Vec<Total> {
    if !totals.is_sorted_by_key(Total::kind) {
        totals.sort_by_key(Total::kind);
    }
    totals.dedup_by(|later, earlier| {
        let same = later.kind() == earlier.kind();
        if same {
            earlier.add(later);
        }
        same
    });
    totals
}

/// One record for each line and app, in their order.
fn by_app(mut records: Vec<AppUsageSeen>) -> Vec<AppUsageSeen> {
    records.sort_by(|a, b| (a.line, &a.app).cmp(&(b.line, &b.app)));
    records.dedup_by(|later, earlier| {
        let same = (later.line, &later.app) == (earlier.line, &earlier.app);
        if same {
            // As much as the ledger can store.
            earlier.bytes.0 = earlier.bytes.0.saturating_add(later.bytes.0).min(i64::MAX.unsigned_abs());
        }
        same
    });
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::AppUsage;
    use crate::policy::Policy;

    const POLICY: &str = include_str!("../../../tests/demo/policy.yaml");
    const PROFILES: &str = "plans: {basic: {settings: {video: sd, roam_pass: none}}}\ncountries: {}\nsubscribers:\n  - {id: a, keys: ['imsi:1'], plan: basic}\n  \
                            - {id: b, keys: ['imsi:2'], plan: basic}\n";

    fn directory(text: &str) -> Directory {
        Directory::parse("profiles.yaml", text).unwrap()
    }

    fn session(id: &str, keys: &[&str], open: bool) -> SessionRecord {
        SessionRecord {
            session: id.into(),
            subscriber: None,
            open,
            prefixes: Vec::new(),
            keys: keys.iter().map(|&key| key.to_owned()).collect(),
            serving_plmn: String::new(),
            roaming: false,
            rat: String::new(),
            time_zone: String::new(),
            since: Micros::new(0),
        }
    }

    fn engine(directory: &Directory) -> Engine {
        let policy = Policy::parse("policy.yaml", POLICY).unwrap();
        Engine::new(policy, directory).unwrap()
    }

    fn usage(session: &str, bytes: u64, at_cap: Option<f32>) -> (String, Usage) {
        (session.to_owned(), Usage::video(bytes, at_cap))
    }

    fn batch(at: i64, sessions: Vec<SessionRecord>, usage: Vec<(String, Usage)>) -> Batch {
        let batch =
            Batch { agent: "gw1".into(), end: Micros::new(at), timed: true, sessions, ..Batch::default() };
        batch.with_usage(usage)
    }

    /// Profiles, and an engine that knows them.
    struct Rig {
        directory: Directory,
        engine: Engine,
        sessions: Sessions,
    }

    impl Rig {
        fn new(profiles: &str) -> Self {
            let directory = directory(profiles);
            Self { engine: engine(&directory), directory, sessions: Sessions::default() }
        }

        fn resolve(&mut self, batch: Batch) -> (BatchRecord, Observed, BTreeMap<&'static str, u64>) {
            let resolved = self.sessions.resolve(batch, &self.directory, &self.engine);
            (resolved.kept.record(&self.engine), resolved.observed, resolved.ignored)
        }
    }

    fn bytes(record: &BatchRecord) -> Vec<(Option<&str>, u64)> {
        let usage = record.usage.iter();
        usage.map(|usage| (usage.subscriber.as_ref().map(|id| id.0.as_str()), usage.bytes)).collect()
    }

    #[test]
    fn the_last_usage_of_a_session_that_closed_is_its_subscribers() {
        let mut rig = Rig::new(PROFILES);
        rig.resolve(batch(1, vec![session("s1", &["imsi:1"], true)], Vec::new()));
        let closed = vec![session("s1", &["imsi:1"], false)];
        let (last, observed, _) = rig.resolve(batch(2, closed, vec![usage("s1", 5, None)]));
        assert_eq!(bytes(&last), [(Some("a"), 5)]);
        assert!(!observed.sessions[0].open);
        let hour = i64::try_from(CLOSED_KEPT.as_micros()).unwrap();
        rig.resolve(batch(hour + 3, Vec::new(), Vec::new()));
        let (late, _, ignored) = rig.resolve(batch(hour + 4, Vec::new(), vec![usage("s1", 5, None)]));
        assert_eq!(bytes(&late), [(None, 5)], "after an hour it is anonymous, never lost");
        assert_eq!(ignored, BTreeMap::from([("session_unknown", 1)]));
    }

    #[test]
    fn a_session_that_changes_hands_ends_for_the_first_and_opens_for_the_second() {
        let mut rig = Rig::new(PROFILES);
        rig.resolve(batch(1, vec![session("s1", &["imsi:1"], true)], Vec::new()));
        let (_, moved, _) = rig.resolve(batch(2, vec![session("s1", &["imsi:2"], true)], Vec::new()));
        let mut seen: Vec<_> =
            moved.sessions.iter().map(|seen| (seen.subscriber.0.as_str(), seen.open)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [("a", false), ("b", true)]);
    }

    #[test]
    fn what_no_gateway_can_have_counted_still_fits_the_ledger() {
        let mut rig = Rig::new(PROFILES);
        let impossible = (0..4).map(|_| usage("s1", u64::MAX / 2, None)).collect();
        let (record, ..) = rig.resolve(batch(1, Vec::new(), impossible));
        assert_eq!(bytes(&record), [(None, i64::MAX.unsigned_abs())]);
    }

    #[test]
    fn keys_of_two_people_are_nobodys_and_counted() {
        let mut rig = Rig::new(PROFILES);
        let both = vec![session("s1", &["imsi:1", "imsi:2"], true)];
        let (record, observed, ignored) = rig.resolve(batch(1, both, vec![usage("s1", 5, None)]));
        assert_eq!(bytes(&record), [(None, 5)]);
        assert_eq!(ignored, BTreeMap::from([("session_ambiguous", 1)]));
        assert!(observed.sessions.is_empty() && observed.usage.is_empty());
    }

    #[test]
    fn of_several_sessions_the_one_held_back_most_speaks_for_the_person() {
        let mut rig = Rig::new(PROFILES);
        let open = vec![session("s1", &["imsi:1"], true), session("s2", &["imsi:1"], true)];
        let used = vec![usage("s1", 5, Some(0.2)), usage("s2", 6, Some(0.9)), usage("s2", 7, None)];
        let (record, observed, _) = rig.resolve(batch(1, open, used));
        assert_eq!(bytes(&record), [(Some("a"), 18)]);
        assert_eq!(observed.usage[0].at_cap, Some(0.9));
    }

    #[test]
    fn bytes_by_app_are_the_subscribers_whatever_the_session() {
        let mut rig = Rig::new(PROFILES);
        let open = vec![session("s1", &["imsi:2"], true), session("s2", &["imsi:1"], true)];
        let used =
            |session: &str, app: &str, bytes| AppUsage { session: session.into(), app: app.into(), bytes };
        let mut told = batch(1, open, Vec::new());
        told.apps = vec![
            used("s1", "chat", 5),
            used("s2", "streams", 70),
            used("s9", "streams", 9),
            used("s1", "chat", u64::MAX),
            used("s2", "chat", 1),
        ];
        let (record, observed, ignored) = rig.resolve(told);
        let seen =
            |line, app: &str, bytes| AppUsageSeen { line: Line(line), app: app.into(), bytes: Bytes(bytes) };
        let most = i64::MAX.unsigned_abs();
        assert_eq!(observed.apps, [seen(0, "chat", 1), seen(0, "streams", 70), seen(1, "chat", most)]);
        assert_eq!(ignored, BTreeMap::from([("session_unknown", 1)]));
        let kept: Vec<_> =
            record.app_bytes.iter().map(|kept| (kept.subscriber.clone().unwrap().0, kept.bytes)).collect();
        assert_eq!(kept, [("a".into(), 1), ("a".into(), 70), ("b".into(), most)]);
    }

    #[test]
    fn what_is_restored_resolves_as_before() {
        let row = SessionRow {
            agent: "gw1".into(),
            session: "s1".into(),
            subscriber: Some(SubscriberId("a".into())),
            open: true,
            prefixes: Vec::new(),
            keys: vec!["imsi:1".into()],
            serving_plmn: String::new(),
            roaming: false,
            rat: String::new(),
            time_zone: String::new(),
            since: Micros::new(0),
            changed: Micros::new(0),
        };
        let mut rig = Rig::new(PROFILES);
        rig.sessions = Sessions::restore(vec![row.clone()], &rig.engine);
        let (record, ..) = rig.resolve(batch(1, Vec::new(), vec![usage("s1", 5, None)]));
        assert_eq!(bytes(&record), [(Some("a"), 5)]);
        let mut reassign = |directory: &Directory, at: i64| {
            rig.sessions.reassign(vec![row.clone()], directory, &rig.engine, Micros::new(at))
        };
        assert_eq!(reassign(&rig.directory, 2), (Vec::new(), Vec::new()));
        // The line was given to somebody else while nobody looked.
        let new = directory(&PROFILES.replace("imsi:1", "imsi:9").replace("imsi:2", "imsi:1"));
        let (reassigned, observed) = reassign(&new, 3);
        assert_eq!(reassigned[0].subscriber, Some(SubscriberId("b".into())));
        let seen: Vec<_> =
            observed[0].sessions.iter().map(|seen| (seen.subscriber.0.as_str(), seen.open)).collect();
        assert_eq!(seen, [("a", false), ("b", true)]);
    }
}
