//! Whose session is whose: what turns a batch of session ids into usage of subscribers. No I/O.
//!
//! Closed sessions stay known for a while, for their last usage comes after their end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use usher_models::units::{Bytes, Micros, SubscriberId};
use usher_models::{Class, Direction};

use crate::agents::{Batch, Usage};
use crate::engine::io::{Observed, SessionSeen, UsageSeen};
use crate::identity::{Directory, Resolved as Lookup};
use crate::ledger::{AppRecord, BatchRecord, Reassigned, SessionRecord, SessionRow, UsageRecord};

/// Sessions known of one agent, closed ones included. Usage of further ones counts as anonymous.
const SESSIONS_MAX: usize = 1 << 19;
/// How long a closed session is known.
const CLOSED_KEPT: Duration = Duration::from_hours(1);

/// All sessions of all agents.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_agent: HashMap<String, OfAgent>,
}

#[derive(Debug, Default)]
struct OfAgent {
    known: HashMap<String, Known>,
    /// When each closed, oldest first.
    closed: VecDeque<(Micros, String)>,
}

#[derive(Debug, Clone)]
struct Known {
    subscriber: Option<SubscriberId>,
    open: bool,
    keys: Vec<String>,
    serving_plmn: String,
    roaming: bool,
    time_zone: String,
}

/// A batch in terms of subscribers.
#[derive(Debug)]
pub(super) struct Resolved {
    /// For the ledger.
    pub(super) record: BatchRecord,
    /// For the engine: known subscribers only.
    pub(super) observed: Observed,
    /// Records left out or set right, by reason.
    pub(super) ignored: BTreeMap<&'static str, u64>,
    /// From first packet to verdict, flow by flow.
    pub(super) verdicts: Vec<Duration>,
}

impl Sessions {
    /// As the ledger has them.
    pub(super) fn restore(rows: Vec<SessionRow>) -> Self {
        let mut sessions = Self::default();
        let mut closed: Vec<_> = rows
            .iter()
            .filter(|row| !row.open)
            .map(|row| (row.changed, row.agent.clone(), row.session.clone()))
            .collect();
        closed.sort();
        for row in rows {
            let known = Known {
                subscriber: row.subscriber,
                open: row.open,
                keys: row.keys,
                serving_plmn: row.serving_plmn,
                roaming: row.roaming,
                time_zone: row.time_zone,
            };
            sessions.by_agent.entry(row.agent).or_default().known.insert(row.session, known);
        }
        for (at, agent, session) in closed {
            sessions.by_agent.entry(agent).or_default().closed.push_back((at, session));
        }
        sessions
    }

    /// `batch` with its sessions resolved by `directory`; what it says about sessions is remembered.
    pub(super) fn resolve(&mut self, batch: Batch, directory: &Directory) -> Resolved {
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
            if of_agent.note(&session, batch.end, &mut seen) {
                records.push(session);
            } else {
                *ignored.entry("sessions_full").or_default() += 1;
            }
        }
        let mut totals = Totals::default();
        for usage in batch.usage {
            let subscriber = of_agent.whose(&usage.session, &mut ignored);
            totals.add(subscriber, &usage);
        }
        let mut verdicts = Vec::with_capacity(batch.flows.len());
        let apps = batch
            .flows
            .into_iter()
            .map(|flow| {
                verdicts.push(flow.took);
                AppRecord {
                    subscriber: of_agent.whose(&flow.session, &mut ignored),
                    app: flow.app,
                    class: flow.class,
                    via: flow.via,
                    at: flow.at,
                    verdict_us: u64::try_from(flow.took.as_micros()).unwrap_or(u64::MAX),
                }
            })
            .collect();
        of_agent.forget_closed(batch.end);
        let usage = if batch.timed { totals.seen() } else { Vec::new() };
        Resolved {
            observed: Observed {
                agent: batch.agent.clone(),
                start: batch.start,
                end: batch.end,
                sessions: seen,
                usage,
            },
            record: BatchRecord {
                agent: batch.agent,
                mark: batch.mark,
                start: batch.start,
                end: batch.end,
                sessions: records,
                usage: totals.records(),
                apps,
            },
            ignored,
            verdicts,
        }
    }

    /// Resolves every session anew after a change of the directory: what the ledger is to note, and what the engine is
    /// to hear, agent by agent.
    pub(super) fn reassign(&mut self, directory: &Directory, at: Micros) -> (Vec<Reassigned>, Vec<Observed>) {
        let (mut reassigned, mut observed) = (Vec::new(), Vec::new());
        for (agent, of_agent) in &mut self.by_agent {
            let mut seen = Vec::new();
            for (session, known) in &mut of_agent.known {
                let subscriber = directory.resolve(&known.keys).cloned();
                if subscriber == known.subscriber {
                    continue;
                }
                if known.open {
                    seen.extend(known.seen(session, false));
                }
                known.subscriber.clone_from(&subscriber);
                if known.open {
                    seen.extend(known.seen(session, true));
                }
                reassigned.push(Reassigned { agent: agent.clone(), session: session.clone(), subscriber });
            }
            if !seen.is_empty() {
                seen.sort_by(|a, b| (a.open, &a.session).cmp(&(b.open, &b.session)));
                observed.push(Observed {
                    agent: agent.clone(),
                    start: at,
                    end: at,
                    sessions: seen,
                    usage: Vec::new(),
                });
            }
        }
        (reassigned, observed)
    }
}

impl OfAgent {
    /// Remembers what is said about a session and adds what the engine is to hear. False: there is no room for it.
    fn note(&mut self, session: &SessionRecord, at: Micros, seen: &mut Vec<SessionSeen>) -> bool {
        if self.known.len() >= SESSIONS_MAX && !self.known.contains_key(&session.session) {
            return false;
        }
        let known = Known {
            subscriber: session.subscriber.clone(),
            open: session.open,
            keys: session.keys.clone(),
            serving_plmn: session.serving_plmn.clone(),
            roaming: session.roaming,
            time_zone: session.time_zone.clone(),
        };
        if !session.open {
            self.closed.push_back((at, session.session.clone()));
        }
        seen.extend(known.seen(&session.session, session.open));
        let before = self.known.insert(session.session.clone(), known);
        // The same session under another subscriber has ended for the first one.
        if let Some(before) = before.filter(|before| before.open && before.subscriber != session.subscriber) {
            seen.extend(before.seen(&session.session, false));
        }
        true
    }

    fn whose(&self, session: &str, ignored: &mut BTreeMap<&'static str, u64>) -> Option<SubscriberId> {
        if session.is_empty() {
            return None;
        }
        let known = self.known.get(session);
        if known.is_none() {
            *ignored.entry("session_unknown").or_default() += 1;
        }
        known.and_then(|known| known.subscriber.clone())
    }

    fn forget_closed(&mut self, now: Micros) {
        let before = now.before(CLOSED_KEPT);
        while self.closed.front().is_some_and(|(at, _)| *at < before) {
            let Some((_, session)) = self.closed.pop_front() else { return };
            // It may have opened again since.
            if self.known.get(&session).is_some_and(|known| !known.open) {
                self.known.remove(&session);
            }
        }
    }
}

impl Known {
    /// What the engine is to hear of it; nothing where nobody known is behind it.
    fn seen(&self, session: &str, open: bool) -> Option<SessionSeen> {
        Some(SessionSeen {
            subscriber: self.subscriber.clone()?,
            session: session.to_owned(),
            open,
            serving_plmn: self.serving_plmn.clone(),
            roaming: self.roaming,
            time_zone: self.time_zone.clone(),
        })
    }
}

/// Usage by subscriber, class and direction. Amounts of one record are bounded, and so are their sums.
#[derive(Debug, Default)]
struct Totals {
    by_kind: BTreeMap<(Option<SubscriberId>, Class, Direction), Total>,
}

#[derive(Debug, Default)]
struct Total {
    bytes: u64,
    packets: u64,
    dropped_bytes: u64,
    dropped_packets: u64,
    at_cap: Option<f64>,
}

impl Totals {
    fn add(&mut self, subscriber: Option<SubscriberId>, usage: &Usage) {
        let total = self.by_kind.entry((subscriber, usage.class, usage.direction)).or_default();
        for (sum, amount) in [
            (&mut total.bytes, usage.bytes),
            (&mut total.packets, usage.packets),
            (&mut total.dropped_bytes, usage.dropped_bytes),
            (&mut total.dropped_packets, usage.dropped_packets),
        ] {
            // As much as the ledger can store: an agent gone mad must not stop everybody's.
            *sum = sum.saturating_add(amount).min(i64::MAX.unsigned_abs());
        }
        // Of several sessions the one held back most speaks for the person.
        total.at_cap = match (total.at_cap, usage.at_cap) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
    }

    fn seen(&self) -> Vec<UsageSeen> {
        let of_known =
            |((subscriber, class, direction), total): (&(Option<SubscriberId>, _, Direction), &Total)| {
                Some(UsageSeen {
                    subscriber: subscriber.clone()?,
                    class: *class,
                    direction: (*direction).into(),
                    bytes: Bytes(total.bytes),
                    packets: total.packets,
                    dropped_packets: total.dropped_packets,
                    at_cap: total.at_cap,
                })
            };
        self.by_kind.iter().filter_map(of_known).collect()
    }

    fn records(self) -> Vec<UsageRecord> {
        self.by_kind
            .into_iter()
            .map(|((subscriber, class, direction), total)| UsageRecord {
                subscriber,
                class,
                direction,
                bytes: total.bytes,
                packets: total.packets,
                dropped_bytes: total.dropped_bytes,
                dropped_packets: total.dropped_packets,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::BatchMark;

    const PROFILES: &str = "plans: {basic: {}}\ncountries: {}\nsubscribers:\n  - {id: a, keys: ['imsi:1'], plan: basic}\n  \
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

    fn usage(session: &str, bytes: u64, at_cap: Option<f64>) -> Usage {
        Usage {
            session: session.into(),
            class: Class::Video,
            direction: Direction::Down,
            bytes,
            packets: 1,
            dropped_bytes: 0,
            dropped_packets: 0,
            at_cap,
        }
    }

    fn batch(at: i64, sessions: Vec<SessionRecord>, usage: Vec<Usage>) -> Batch {
        Batch {
            agent: "gw1".into(),
            mark: BatchMark::default(),
            end: Micros::new(at),
            timed: true,
            sessions,
            usage,
            ..Batch::default()
        }
    }

    fn bytes(resolved: &Resolved) -> Vec<(Option<&str>, u64)> {
        let usage = resolved.record.usage.iter();
        usage.map(|usage| (usage.subscriber.as_ref().map(|id| id.0.as_str()), usage.bytes)).collect()
    }

    #[test]
    fn the_last_usage_of_a_session_that_closed_is_its_subscribers() {
        let directory = directory(PROFILES);
        let mut sessions = Sessions::default();
        sessions.resolve(batch(1, vec![session("s1", &["imsi:1"], true)], Vec::new()), &directory);
        let closed = vec![session("s1", &["imsi:1"], false)];
        let last = sessions.resolve(batch(2, closed, vec![usage("s1", 5, None)]), &directory);
        assert_eq!(bytes(&last), [(Some("a"), 5)]);
        assert!(!last.observed.sessions[0].open);
        let hour = i64::try_from(CLOSED_KEPT.as_micros()).unwrap();
        sessions.resolve(batch(hour + 3, Vec::new(), Vec::new()), &directory);
        let late = sessions.resolve(batch(hour + 4, Vec::new(), vec![usage("s1", 5, None)]), &directory);
        assert_eq!(bytes(&late), [(None, 5)], "after an hour it is anonymous, never lost");
        assert_eq!(late.ignored, BTreeMap::from([("session_unknown", 1)]));
    }

    #[test]
    fn a_session_that_changes_hands_ends_for_the_first_and_opens_for_the_second() {
        let directory = directory(PROFILES);
        let mut sessions = Sessions::default();
        sessions.resolve(batch(1, vec![session("s1", &["imsi:1"], true)], Vec::new()), &directory);
        let moved =
            sessions.resolve(batch(2, vec![session("s1", &["imsi:2"], true)], Vec::new()), &directory);
        let mut seen: Vec<_> =
            moved.observed.sessions.iter().map(|seen| (seen.subscriber.0.as_str(), seen.open)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [("a", false), ("b", true)]);
    }

    #[test]
    fn what_no_gateway_can_have_counted_still_fits_the_ledger() {
        let directory = directory(PROFILES);
        let mut sessions = Sessions::default();
        let impossible = (0..4).map(|_| usage("s1", u64::MAX / 2, None)).collect();
        let resolved = sessions.resolve(batch(1, Vec::new(), impossible), &directory);
        assert_eq!(bytes(&resolved), [(None, i64::MAX.unsigned_abs())]);
    }

    #[test]
    fn keys_of_two_people_are_nobodys_and_counted() {
        let directory = directory(PROFILES);
        let mut sessions = Sessions::default();
        let both = vec![session("s1", &["imsi:1", "imsi:2"], true)];
        let resolved = sessions.resolve(batch(1, both, vec![usage("s1", 5, None)]), &directory);
        assert_eq!(bytes(&resolved), [(None, 5)]);
        assert_eq!(resolved.ignored, BTreeMap::from([("session_ambiguous", 1)]));
        assert!(resolved.observed.sessions.is_empty() && resolved.observed.usage.is_empty());
    }

    #[test]
    fn of_several_sessions_the_one_held_back_most_speaks_for_the_person() {
        let directory = directory(PROFILES);
        let mut sessions = Sessions::default();
        let open = vec![session("s1", &["imsi:1"], true), session("s2", &["imsi:1"], true)];
        let used = vec![usage("s1", 5, Some(0.2)), usage("s2", 6, Some(0.9)), usage("s2", 7, None)];
        let resolved = sessions.resolve(batch(1, open, used), &directory);
        assert_eq!(bytes(&resolved), [(Some("a"), 18)]);
        assert_eq!(resolved.observed.usage[0].at_cap, Some(0.9));
    }

    #[test]
    fn what_is_restored_resolves_as_before() {
        let old = directory(PROFILES);
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
        let mut sessions = Sessions::restore(vec![row]);
        let resolved = sessions.resolve(batch(1, Vec::new(), vec![usage("s1", 5, None)]), &old);
        assert_eq!(bytes(&resolved), [(Some("a"), 5)]);
        assert_eq!(sessions.reassign(&old, Micros::new(2)), (Vec::new(), Vec::new()));
        // The line was given to somebody else while nobody looked.
        let new = directory(&PROFILES.replace("imsi:1", "imsi:9").replace("imsi:2", "imsi:1"));
        let (reassigned, observed) = sessions.reassign(&new, Micros::new(3));
        assert_eq!(reassigned[0].subscriber, Some(SubscriberId("b".into())));
        let seen: Vec<_> =
            observed[0].sessions.iter().map(|seen| (seen.subscriber.0.as_str(), seen.open)).collect();
        assert_eq!(seen, [("a", false), ("b", true)]);
    }
}
