//! How a drain is told: its rows, and the batches of bounded size that they go up in.

use prost::Message as _;
use usher_models::telemetry;
use usher_models::units::{BitsPerSecond, Micros};
use usher_models::wire::{Cell, Class, Direction};

use super::accounts::Account;
use super::qoo;
use super::quality::{RoundTrips, Served};
use crate::dataplane::Boot;

/// The encoded size from which a drain goes on in another batch; gRPC's usual bound on a message is 4 MiB.
pub(super) const BATCH_BYTES: usize = 512 << 10;

/// A batch as it is stored and goes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Its number.
    pub sequence: u64,
    /// A [`telemetry::Batch`].
    pub bytes: Vec<u8>,
}

/// Cuts what is told into batches of bounded size, numbered one after the other; never less than one.
///
/// Each is encoded as it grows: encodings one behind the other are the encoding of all together (Protocol Buffers, encoding, "last one
/// wins"), so that a drain of all subscribers is never there as messages.
pub(super) struct Batches {
    head: telemetry::Batch,
    bytes: Vec<u8>,
    /// Whether there is more than its head.
    grown: bool,
    /// A batch of one row, whose text is written anew for each.
    row: telemetry::Batch,
    done: Vec<Encoded>,
}

impl Batches {
    /// Those of `[start, end)`, the first of them numbered behind `last`.
    pub(super) fn new(boot: Boot, last: u64, (start, end): (Micros, Micros)) -> Self {
        let head = telemetry::Batch {
            boot: boot.0.to_vec(),
            sequence: last,
            start_us: start.get(),
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

    pub(super) fn cut(&mut self) {
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

    pub(super) fn session(&mut self, session: telemetry::Session) {
        self.add(&telemetry::Batch { sessions: vec![session], ..telemetry::Batch::default() });
    }

    pub(super) fn usage(&mut self, tell: impl FnOnce(&mut telemetry::Usage)) {
        if let Some(usage) = self.row.usage.first_mut() {
            tell(usage);
        }
        let from = self.bytes.len();
        encode(&self.row, &mut self.bytes);
        self.grew(from);
    }

    pub(super) fn app(&mut self, usage: telemetry::AppUsage) {
        self.add(&telemetry::Batch { apps: vec![usage], ..telemetry::Batch::default() });
    }

    pub(super) fn flow(&mut self, flow: telemetry::FlowNamed) {
        self.add(&telemetry::Batch { flows: vec![flow], ..telemetry::Batch::default() });
    }

    pub(super) fn done(mut self) -> Vec<Encoded> {
        self.end();
        self.done
    }
}

fn encode(part: &telemetry::Batch, bytes: &mut Vec<u8>) {
    part.encode(bytes).expect("memory grows as it is needed");
}

pub(super) fn session(account: &Account, state: telemetry::SessionState) -> telemetry::Session {
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
pub(super) fn tell_usage(
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
pub(super) type Cap = Option<(BitsPerSecond, f64)>;

/// What is told once of a class, with the first of its directions: the path from end to end, and the score.
pub(super) struct Outcome {
    round_trips: Option<RoundTrips>,
    qoo: Option<f64>,
}

pub(super) fn outcome(class: Class, served: &Served, caps: &[Cap; 2]) -> Outcome {
    let held = caps.iter().flatten().filter(|(rate, share)| *share > 0.0 && rate.0 > 0);
    let measured = qoo::Measurement {
        round_trips: served.round_trips,
        loss: served.worst_loss(),
        throughput: held.map(|(rate, _)| rate.0).min(),
    };
    let qoo = qoo::requirement(class).and_then(|needed| qoo::score(&needed, &measured));
    Outcome { round_trips: served.round_trips, qoo }
}

pub(super) fn tell_quality(
    usage: &mut telemetry::Usage,
    served: &Served,
    direction: usize,
    outcome: Option<Outcome>,
) {
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
