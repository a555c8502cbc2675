//! A batch as it came, made fit to be applied. Sans-I/O.
//!
//! An agent is let in by its certificate, but what it says is still foreign: it may be broken, or its gateway taken over.
//! What makes no sense as a whole is [`Refused`]; a record that makes no sense is left out or set right, and counted
//! under a reason. Bytes that can be counted are counted, if only as anonymous.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;
use smol_str::SmolStr;
use usher_models::telemetry;
use usher_models::units::Micros;
use usher_models::{Class, Direction};

use super::fields::{Fields, Malformed};
use crate::engine::io::Quality;
use crate::ledger::{BatchMark, SessionRecord};

/// Length of a boot id, bytes.
pub const BOOT_LENGTH: usize = 16;
/// Most sessions in one batch: all of a gateway's, after its agent's start.
const SESSIONS_MAX: usize = 1 << 18;
/// Most usage records in one batch.
const USAGE_MAX: usize = 1 << 20;
/// Most records of bytes by app in one batch.
const APPS_MAX: usize = 1 << 20;
/// Most verdicts in one batch.
const FLOWS_MAX: usize = 1 << 18;
/// Longest session id, bytes.
const SESSION_ID_MAX: usize = 128;
/// Most keys or prefixes of one session.
const LIST_MAX: usize = 32;
/// Longest key, bytes.
const KEY_MAX: usize = 128;
/// Longest other word (RAT, time zone, app, via), bytes.
const WORD_MAX: usize = 64;
/// Most bytes, or packets, one record can add: a terabit a second for two and a half hours.
const AMOUNT_MAX: u64 = 1 << 50;
/// Longest round-trip time that is believed, milliseconds: ten minutes.
const ROUND_TRIP_MS_MAX: f64 = 600_000.0;
/// Largest sequence of a batch: the next one can be counted, and both can be stored.
const SEQUENCE_MAX: u64 = 1 << 62;
/// How far a gateway's clock may run ahead of ours before its times are not believed.
const CLOCK_AHEAD_MAX: Duration = Duration::from_mins(1);

/// Why a whole batch was refused. Nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no batch.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// The boot id has another length.
    #[error("boot id of {0} bytes: expected {BOOT_LENGTH}")]
    Boot(usize),
    /// Sequences begin with 1, and no agent lives to see the last one.
    #[error("batch sequence {0}: expected 1, for the first batch of a boot, to {SEQUENCE_MAX}")]
    Sequence(u64),
    /// More records than a batch can have.
    #[error("{count} {what} in one batch: at most {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

impl Refused {
    /// For the metric.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Boot(_) => "boot",
            Self::Sequence(_) => "sequence",
            Self::TooMany { .. } => "too_many_records",
        }
    }
}

/// A batch fit to be applied, its sessions not yet resolved.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Name of the agent, from its certificate.
    pub agent: String,
    /// Which one.
    pub mark: BatchMark,
    /// Start of its interval, event time.
    pub start: Micros,
    /// End of its interval, event time.
    pub end: Micros,
    /// False: its times are not to be believed (already counted). Its bytes count, no fact is made of them.
    pub timed: bool,
    /// Sessions, their subscriber not yet resolved.
    pub sessions: Vec<SessionRecord>,
    /// Usage.
    pub usage: Vec<Usage>,
    /// Session ids that usage refers to, one after another.
    pub words: String,
    /// Verdicts.
    pub flows: Vec<Flow>,
    /// Bytes by app.
    pub apps: Vec<AppUsage>,
    /// Records left out or set right, by reason.
    pub ignored: BTreeMap<&'static str, u64>,
}

/// Usage of a session.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Where its id is among the batch's words; empty: anonymous.
    session: (u32, u32),
    /// Where the name of its prefix is likewise, for anonymous traffic that has one.
    anonymous: (u32, u32),
    /// Kind of use.
    pub class: Class,
    /// Which way.
    pub direction: Direction,
    /// Let through.
    pub bytes: u64,
    /// Let through.
    pub packets: u64,
    /// Held back.
    pub dropped_bytes: u64,
    /// Held back.
    pub dropped_packets: u64,
    /// Share of the interval at the enforced rate, 0 to 1.
    pub at_cap: Option<f32>,
    /// How good it was, as far as it was told.
    pub quality: Quality,
}

#[cfg(test)]
impl Usage {
    /// Video to a subscriber, for tests.
    pub(crate) fn video(bytes: u64, at_cap: Option<f32>) -> Self {
        Self {
            session: (0, 0),
            anonymous: (0, 0),
            class: Class::Video,
            direction: Direction::Down,
            bytes,
            packets: 1,
            dropped_bytes: 0,
            dropped_packets: 0,
            at_cap,
            quality: Quality::default(),
        }
    }
}

impl Usage {
    /// The id of its session, among the words of its batch; empty: anonymous.
    pub fn session<'w>(&self, words: &'w str) -> &'w str {
        word(words, self.session)
    }

    /// The name of the prefix that anonymous traffic is from, likewise; empty: none.
    pub fn anonymous<'w>(&self, words: &'w str) -> &'w str {
        word(words, self.anonymous)
    }
}

fn word(words: &str, (start, end): (u32, u32)) -> &str {
    words.get(start as usize..end as usize).unwrap_or_default()
}

/// A flow that got its verdict.
#[derive(Debug, Clone, PartialEq)]
pub struct Flow {
    /// Its session's id; empty: anonymous.
    pub session: String,
    /// Which app.
    pub app: String,
    /// Its class.
    pub class: Class,
    /// What the verdict rests on.
    pub via: String,
    /// When it came.
    pub at: Micros,
    /// From the first packet to the verdict.
    pub took: Duration,
    /// Whether its bytes are told as its app's from then on.
    pub counted: bool,
}

/// What a session moved in one app, both directions.
#[derive(Debug, Clone, PartialEq)]
pub struct AppUsage {
    /// Its id.
    pub session: SmolStr,
    /// Which app.
    pub app: SmolStr,
    /// Let through.
    pub bytes: u64,
}

/// The batch of `agent` that `encoded` is, which arrived at `now`.
pub fn decode(agent: &str, encoded: &[u8], now: Micros) -> Result<Batch, Refused> {
    let mut batch = Batch { agent: agent.to_owned(), timed: true, ..Batch::default() };
    let (mut start_us, mut end_us) = (0, 0);
    let (mut sessions, mut usage, mut flows, mut apps) = (0, 0, 0, 0);
    let mut fields = Fields::new(encoded);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => batch.mark.boot = value.bytes()?.to_vec(),
            2 => batch.mark.sequence = value.number()?,
            3 => start_us = value.number()?.cast_signed(),
            4 => end_us = value.number()?.cast_signed(),
            5 => sessions += 1,
            6 => usage += 1,
            7 => flows += 1,
            8 => apps += 1,
            _ => {}
        }
    }
    check_shape(&batch.mark, [sessions, usage, flows, apps])?;
    (batch.start, batch.end) = (Micros::new(start_us), Micros::new(end_us));
    if start_us < 0 || end_us < start_us {
        batch.distrust_times("interval", now);
    } else if batch.end > now.after(CLOCK_AHEAD_MAX) {
        batch.distrust_times("clock_ahead", now);
    }
    batch.usage.reserve_exact(usage);
    // Fields may come in any order: what usage refers to is resolved later.
    let mut fields = Fields::new(encoded);
    while let Some((field, value)) = fields.next()? {
        match field {
            5 => {
                let session = telemetry::Session::decode(value.bytes()?);
                batch.session(session.map_err(|_| Malformed)?, now);
            }
            6 => batch.usage(value.bytes()?)?,
            7 => {
                let flow = telemetry::FlowNamed::decode(value.bytes()?);
                batch.flow(flow.map_err(|_| Malformed)?, now);
            }
            8 => batch.app(value.bytes()?)?,
            _ => {}
        }
    }
    Ok(batch)
}

fn check_shape(mark: &BatchMark, [sessions, usage, flows, apps]: [usize; 4]) -> Result<(), Refused> {
    if mark.boot.len() != BOOT_LENGTH {
        return Err(Refused::Boot(mark.boot.len()));
    }
    if !(1..=SEQUENCE_MAX).contains(&mark.sequence) {
        return Err(Refused::Sequence(mark.sequence));
    }
    for (what, count, max) in [
        ("sessions", sessions, SESSIONS_MAX),
        ("usage records", usage, USAGE_MAX),
        ("verdicts", flows, FLOWS_MAX),
        ("records of bytes by app", apps, APPS_MAX),
    ] {
        if count > max {
            return Err(Refused::TooMany { what, count, max });
        }
    }
    Ok(())
}

impl Batch {
    fn ignore(&mut self, reason: &'static str) {
        *self.ignored.entry(reason).or_default() += 1;
    }

    fn distrust_times(&mut self, reason: &'static str, now: Micros) {
        self.ignore(reason);
        self.timed = false;
        (self.start, self.end) = (now, now);
    }

    fn session(&mut self, session: telemetry::Session, now: Micros) {
        if !is_word(&session.id, SESSION_ID_MAX) {
            return self.ignore("session_id");
        }
        let open = match telemetry::SessionState::try_from(session.state) {
            Ok(telemetry::SessionState::Open) => true,
            Ok(telemetry::SessionState::Closed) => false,
            Ok(telemetry::SessionState::Unspecified) | Err(_) => return self.ignore("session_state"),
        };
        let keys = self.list(session.keys, "session_key", |key| {
            is_word(key, KEY_MAX)
                && key.split_once(':').is_some_and(|(kind, value)| !kind.is_empty() && !value.is_empty())
        });
        let prefixes = self.list(session.prefixes, "session_prefix", |prefix| {
            prefix.parse::<ipnet::IpNet>().is_ok() || prefix.parse::<std::net::IpAddr>().is_ok()
        });
        let plmn =
            |plmn: &str| (5..=6).contains(&plmn.len()) && plmn.bytes().all(|byte| byte.is_ascii_digit());
        let serving_plmn = self.word(session.serving_plmn, "session_plmn", plmn);
        let rat = self.word(session.rat, "session_rat", |word| is_word(word, WORD_MAX));
        let time_zone = self.word(session.time_zone, "session_time_zone", |word| is_word(word, WORD_MAX));
        self.sessions.push(SessionRecord {
            session: session.id,
            subscriber: None,
            open,
            prefixes,
            keys,
            serving_plmn,
            roaming: session.roaming,
            rat,
            time_zone,
            since: Micros::new(session.since_us.max(0)).min(now),
        });
    }

    /// The entries that make sense, the first [`LIST_MAX`] of them.
    fn list(&mut self, list: Vec<String>, reason: &'static str, good: impl Fn(&str) -> bool) -> Vec<String> {
        let count = list.len();
        let kept: Vec<_> = list.into_iter().filter(|entry| good(entry)).take(LIST_MAX).collect();
        for _ in kept.len()..count {
            self.ignore(reason);
        }
        kept
    }

    /// The word, or nothing where it makes no sense.
    fn word(&mut self, word: String, reason: &'static str, good: impl Fn(&str) -> bool) -> String {
        if word.is_empty() || good(&word) {
            return word;
        }
        self.ignore(reason);
        String::new()
    }

    fn usage(&mut self, encoded: &[u8]) -> Result<(), Refused> {
        let (mut session, mut anonymous, mut class, mut direction) = ("", "", 0, 0);
        let [mut bytes, mut packets, mut dropped_bytes, mut dropped_packets] = [0; 4];
        let mut at_cap = None;
        let [mut path_ms, mut loss, mut qoo] = [None; 3];
        let mut fields = Fields::new(encoded);
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => session = value.text()?,
                2 => class = value.variant()?,
                3 => direction = value.variant()?,
                4 => bytes = value.number()?,
                5 => packets = value.number()?,
                6 => dropped_bytes = value.number()?,
                7 => dropped_packets = value.number()?,
                9 => at_cap = Some(value.double()?),
                11 => path_ms = Some(median(value.bytes()?)?),
                12 => loss = Some(value.double()?),
                14 => qoo = Some(value.double()?),
                16 => anonymous = value.text()?,
                _ => {}
            }
        }
        let Ok(direction) = telemetry::Direction::try_from(direction) else {
            self.ignore("usage_direction");
            return Ok(());
        };
        if [bytes, packets, dropped_bytes, dropped_packets].iter().any(|&amount| amount > AMOUNT_MAX) {
            self.ignore("usage_amount");
            return Ok(());
        }
        let class = self.class(class, "usage_class");
        let at_cap = self.within(at_cap, 1.0, "usage_at_cap");
        let quality = Quality {
            rtt_ms: self.within(path_ms, ROUND_TRIP_MS_MAX, "usage_round_trip"),
            loss: self.within(loss, 1.0, "usage_loss"),
            qoo: self.within(qoo, 100.0, "usage_qoo"),
        };
        let anonymous = match anonymous {
            name if name.is_empty() || !session.is_empty() => (0, 0),
            name if is_anonymous_name(name) => self.add_word(name),
            _ => {
                self.ignore("usage_anonymous");
                (0, 0)
            }
        };
        let usage = Usage {
            session: (0, 0),
            anonymous,
            class,
            direction: direction.into(),
            bytes,
            packets,
            dropped_bytes,
            dropped_packets,
            at_cap,
            quality,
        };
        self.push(session, usage);
        Ok(())
    }

    /// A measure between 0 and its maximum; one that is not is none.
    fn within(&mut self, measure: Option<f64>, max: f64, reason: &'static str) -> Option<f32> {
        match measure {
            Some(value) if !(0.0..=max).contains(&value) => {
                self.ignore(reason);
                None
            }
            #[expect(clippy::cast_possible_truncation, reason = "a measure: seven digits are plenty")]
            value => value.map(|value| value as f32),
        }
    }

    /// Adds usage of a session; an id that cannot be one counts as anonymous.
    fn push(&mut self, session: &str, usage: Usage) {
        let place = match self.usage.last() {
            // Records of one session mostly stand together.
            Some(last) if last.session(&self.words) == session => last.session,
            _ if session.is_empty() => (0, 0),
            _ if !is_word(session, SESSION_ID_MAX) => {
                self.ignore("usage_session");
                (0, 0)
            }
            _ => self.add_word(session),
        };
        self.usage.push(Usage { session: place, ..usage });
    }

    fn add_word(&mut self, word: &str) -> (u32, u32) {
        let start = self.words.len();
        self.words.push_str(word);
        // A batch is smaller than 4 GiB.
        let place = |at: usize| u32::try_from(at).unwrap_or_default();
        (place(start), place(self.words.len()))
    }

    /// A batch of usage, for tests.
    #[cfg(test)]
    pub(crate) fn with_usage(mut self, usage: impl IntoIterator<Item = (String, Usage)>) -> Self {
        for (session, usage) in usage {
            self.push(&session, usage);
        }
        self
    }

    fn app(&mut self, encoded: &[u8]) -> Result<(), Refused> {
        let (mut session, mut app, mut bytes) = ("", "", 0_u64);
        let mut fields = Fields::new(encoded);
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => session = value.text()?,
                2 => app = value.text()?,
                3 | 4 => bytes = bytes.saturating_add(value.number()?),
                _ => {}
            }
        }
        if !is_word(session, SESSION_ID_MAX) || !is_name(app) || bytes > AMOUNT_MAX {
            self.ignore("app_usage");
            return Ok(());
        }
        self.apps.push(AppUsage { session: session.into(), app: app.into(), bytes });
        Ok(())
    }

    fn flow(&mut self, flow: telemetry::FlowNamed, now: Micros) {
        if !is_name(&flow.app) || !is_name(&flow.via) || !(0.0..=1.0).contains(&flow.confidence) {
            return self.ignore("flow");
        }
        let (first, verdict) = (Micros::new(flow.first_packet_us), Micros::new(flow.verdict_us));
        if first > verdict || first < Micros::default() || verdict > now.after(CLOCK_AHEAD_MAX) {
            return self.ignore("flow_times");
        }
        let class = self.class(flow.class, "flow_class");
        let session = self.word(flow.session, "flow_session", |session| is_word(session, SESSION_ID_MAX));
        let took = verdict.since(first);
        self.flows.push(Flow {
            session,
            app: flow.app,
            class,
            via: flow.via,
            at: verdict,
            took,
            counted: flow.counted,
        });
    }

    /// A class this build does not know is `other`: a newer agent may have more.
    fn class(&mut self, class: i32, reason: &'static str) -> Class {
        telemetry::Class::try_from(class).map_or_else(
            |_| {
                self.ignore(reason);
                Class::Other
            },
            Class::from,
        )
    }
}

/// The median of encoded round-trip times, milliseconds.
fn median(encoded: &[u8]) -> Result<f64, Refused> {
    let mut median = 0.0;
    let mut fields = Fields::new(encoded);
    while let Some((field, value)) = fields.next()? {
        if field == 1 {
            median = value.double()?;
        }
    }
    Ok(median)
}

/// Whether it can be the id of an app, or what a verdict rests on.
fn is_name(word: &str) -> bool {
    is_word(word, WORD_MAX)
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte))
}

/// Whether it can be the name of anonymous traffic: what an agent's configuration takes, and no subscriber's id.
fn is_anonymous_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    (1..=32).contains(&name.len()) && name.bytes().all(fits)
}

/// Something to be kept and shown: not empty, not long, nothing invisible in it.
fn is_word(word: &str, max: usize) -> bool {
    !word.is_empty() && word.len() <= max && !word.chars().any(|c| c.is_control() || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Micros = Micros::new(1_700_000_000_000_000);

    fn batch() -> telemetry::Batch {
        telemetry::Batch {
            boot: vec![7; BOOT_LENGTH],
            sequence: 1,
            start_us: NOW.get() - 1_000_000,
            end_us: NOW.get(),
            ..telemetry::Batch::default()
        }
    }

    fn taken(batch: &telemetry::Batch) -> Result<Batch, Refused> {
        decode("gw1", &batch.encode_to_vec(), NOW)
    }

    fn usage(bytes: u64) -> telemetry::Usage {
        telemetry::Usage { session: "s1".into(), bytes, packets: 1, ..telemetry::Usage::default() }
    }

    #[test]
    fn anonymous_usage_keeps_a_name_that_can_be_one() {
        let of = |session: &str, anonymous: &str| telemetry::Usage {
            session: session.into(),
            anonymous: anonymous.into(),
            ..usage(5)
        };
        let usage = vec![of("", "guests"), of("", ""), of("s1", "guests"), of("", " guests"), of("", "Ä")];
        let batch = taken(&telemetry::Batch { usage, ..batch() }).unwrap();
        let told: Vec<_> = batch
            .usage
            .iter()
            .map(|usage| (usage.session(&batch.words), usage.anonymous(&batch.words), usage.bytes))
            .collect();
        assert_eq!(told, [("", "guests", 5), ("", "", 5), ("s1", "", 5), ("", "", 5), ("", "", 5)]);
        assert_eq!(batch.ignored["usage_anonymous"], 2);
    }

    #[test]
    fn a_batch_that_makes_no_sense_as_a_whole_is_refused() {
        let refused = |change: fn(&mut telemetry::Batch)| {
            let mut batch = batch();
            change(&mut batch);
            taken(&batch).unwrap_err()
        };
        assert_eq!(refused(|batch| batch.boot = vec![1; 3]), Refused::Boot(3));
        assert_eq!(refused(|batch| batch.sequence = 0), Refused::Sequence(0));
        assert_eq!(refused(|batch| batch.sequence = u64::MAX), Refused::Sequence(u64::MAX));
        let many = refused(|batch| batch.usage = vec![telemetry::Usage::default(); USAGE_MAX + 1]);
        assert_eq!(many.to_string(), "1048577 usage records in one batch: at most 1048576");
    }

    #[test]
    fn a_clock_that_runs_ahead_costs_facts_but_no_bytes() {
        for (start, end, reason) in [
            (NOW.get(), NOW.get() + 61_000_000, "clock_ahead"),
            (NOW.get(), i64::MAX, "clock_ahead"),
            (NOW.get(), NOW.get() - 1, "interval"),
            (i64::MIN, NOW.get(), "interval"),
        ] {
            let hostile = telemetry::Batch { start_us: start, end_us: end, usage: vec![usage(5)], ..batch() };
            let decoded = taken(&hostile).unwrap();
            assert!(!decoded.timed);
            assert_eq!((decoded.start, decoded.end), (NOW, NOW));
            assert_eq!(decoded.ignored, BTreeMap::from([(reason, 1)]));
            assert_eq!(decoded.usage[0].bytes, 5);
        }
    }

    #[test]
    fn what_was_measured_is_taken_over_and_what_cannot_be_is_unknown() {
        let trips = |p50_ms| telemetry::RoundTrips { p50_ms, ..telemetry::RoundTrips::default() };
        let path = |p50_ms| telemetry::Usage { path: Some(trips(p50_ms)), ..usage(1) };
        let mut measured = batch();
        measured.usage = vec![
            telemetry::Usage { side: Some(trips(9.0)), loss: Some(0.25), qoo: Some(75.0), ..path(42.0) },
            path(-1.0),
            path(f64::INFINITY),
            telemetry::Usage { loss: Some(1.5), qoo: Some(f64::NAN), ..usage(1) },
        ];
        let decoded = taken(&measured).unwrap();
        let qualities: Vec<_> = decoded.usage.iter().map(|usage| usage.quality).collect();
        let first = Quality { rtt_ms: Some(42.0), loss: Some(0.25), qoo: Some(75.0) };
        assert_eq!(qualities, [first, Quality::default(), Quality::default(), Quality::default()]);
        let ignored = [("usage_loss", 1), ("usage_qoo", 1), ("usage_round_trip", 2)];
        assert_eq!(decoded.ignored, BTreeMap::from(ignored));
    }

    #[test]
    fn hostile_records_are_left_out_or_set_right_one_by_one() {
        let mut hostile = batch();
        hostile.usage = vec![
            telemetry::Usage { at_cap: Some(f64::NAN), ..usage(1) },
            telemetry::Usage { at_cap: Some(1.5), ..usage(2) },
            telemetry::Usage { direction: 9, ..usage(4) },
            telemetry::Usage { class: 99, ..usage(8) },
            telemetry::Usage { session: "s".repeat(129), ..usage(16) },
            usage(u64::MAX),
        ];
        hostile.sessions = vec![
            telemetry::Session { id: "s\n1".into(), state: 1, ..telemetry::Session::default() },
            telemetry::Session { id: "s2".into(), state: 7, ..telemetry::Session::default() },
            telemetry::Session {
                id: "s3".into(),
                state: 1,
                keys: vec!["imsi:1".into(), "nonsense".into(), ":".into()],
                prefixes: vec!["10.0.0.1/32".into(), "10.0.0.1/33".into()],
                serving_plmn: "0010x".into(),
                since_us: i64::MAX,
                ..telemetry::Session::default()
            },
        ];
        let decoded = taken(&hostile).unwrap();
        let bytes: Vec<_> = decoded.usage.iter().map(|usage| usage.bytes).collect();
        assert_eq!(bytes, [1, 2, 8, 16]);
        assert!(decoded.usage.iter().all(|usage| usage.at_cap.is_none()));
        assert_eq!(
            decoded.usage[3].session(&decoded.words),
            "",
            "an impossible session id counts as anonymous"
        );
        assert_eq!(decoded.sessions.len(), 1);
        assert_eq!(decoded.sessions[0].keys, ["imsi:1"]);
        assert_eq!(decoded.sessions[0].prefixes, ["10.0.0.1/32"]);
        assert_eq!(decoded.sessions[0].serving_plmn, "");
        assert_eq!(decoded.sessions[0].since, NOW);
        assert_eq!(
            decoded.ignored,
            BTreeMap::from([
                ("session_id", 1),
                ("session_key", 2),
                ("session_plmn", 1),
                ("session_prefix", 1),
                ("session_state", 1),
                ("usage_amount", 1),
                ("usage_at_cap", 2),
                ("usage_class", 1),
                ("usage_direction", 1),
                ("usage_session", 1),
            ])
        );
    }

    fn foreign_usage() -> impl Strategy<Value = telemetry::Usage> {
        (any::<String>(), any::<i32>(), 0..3_i32, any::<(u64, u64)>(), any::<Option<f64>>()).prop_map(
            |(session, class, direction, (bytes, packets), at_cap)| telemetry::Usage {
                session,
                class,
                direction,
                bytes,
                packets,
                at_cap,
                ..telemetry::Usage::default()
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_comes_is_in_bounds_or_counted(
            records in proptest::collection::vec(foreign_usage(), 0..20),
            times in any::<(i64, i64)>(),
            verdict in any::<(String, f64, i64, i64)>(),
            (session, used, bytes) in ("[a-z]{0,130}|.{0,9}", "[a-z-]{0,66}|.{0,9}", any::<(u64, u64)>()),
        ) {
            let (app, confidence, first_packet_us, verdict_us) = verdict;
            let foreign = telemetry::Batch {
                start_us: times.0,
                end_us: times.1,
                flows: vec![telemetry::FlowNamed {
                    app, confidence, first_packet_us, verdict_us, ..telemetry::FlowNamed::default()
                }],
                usage: records.clone(),
                apps: vec![telemetry::AppUsage { session: session.clone(), app: used, bytes_up: bytes.0, bytes_down: bytes.1 }],
                ..batch()
            };
            let decoded = taken(&foreign).unwrap();
            prop_assert!(decoded.start <= decoded.end && decoded.end <= NOW.after(CLOCK_AHEAD_MAX));
            let left_out = decoded.ignored.get("usage_direction").copied().unwrap_or(0)
                + decoded.ignored.get("usage_amount").copied().unwrap_or(0);
            prop_assert_eq!(decoded.usage.len() as u64 + left_out, records.len() as u64);
            prop_assert_eq!(decoded.apps.len() as u64 + decoded.ignored.get("app_usage").copied().unwrap_or(0), 1);
            for usage in &decoded.apps {
                prop_assert_eq!(usage.bytes, bytes.0 + bytes.1);
                prop_assert!(usage.bytes <= AMOUNT_MAX && is_name(&usage.app) && usage.session.len() <= SESSION_ID_MAX);
            }
            for usage in &decoded.usage {
                prop_assert!(usage.bytes <= AMOUNT_MAX && usage.session(&decoded.words).len() <= SESSION_ID_MAX);
                prop_assert!(usage.at_cap.is_none_or(|share| (0.0..=1.0).contains(&share)));
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode("gw1", &bytes, NOW);
            // What is a batch to the library is one here, and nothing else is.
            let foreign = telemetry::Batch { boot: bytes.clone(), ..batch() };
            prop_assert_eq!(taken(&foreign).is_ok(), bytes.len() == BOOT_LENGTH);
        }
    }
}
