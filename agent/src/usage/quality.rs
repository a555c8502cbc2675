//! What was measured in an interval, as numbers people use: percentiles, shares, round-trip times from end to end.
//!
//! The probe sees both sides of the path one at a time, and not each of them in every second: a download has answers from the subscriber all
//! the time and asks the server now and then. A side that says nothing is as it was lately.

use std::collections::HashMap;
use std::time::Duration;

use usher_models::units::Micros;
use usher_models::wire::{Class, Direction, Quality, QualityCounts, ROUND_TRIP_BUCKETS};

use crate::dataplane::Measured;

/// How long a side of the path that says nothing is taken to be as it was.
const LATELY: Duration = Duration::from_mins(1);

/// Segments from which a share of them means something.
const MIN_SEGMENTS: u32 = 20;

/// Packets a second of one class that are measured at the most, of all subscribers together: 200,000 of all eight classes, some per cent of
/// a CPU.
const MEASURED_PER_SECOND: u64 = 25_000;

/// The widest mask: one turn in 4,096.
const WIDEST: u16 = (1 << 12) - 1;

/// Percentiles of the round-trip times of an interval, milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RoundTrips {
    /// The median.
    pub p50_ms: f64,
    /// Nine of ten are shorter.
    pub p90_ms: f64,
    /// Nineteen of twenty are.
    pub p95_ms: f64,
    /// Ninety-nine of a hundred are.
    pub p99_ms: f64,
    /// How many were measured.
    pub samples: u32,
}

impl RoundTrips {
    /// Of counts by the buckets of [`Quality`]; right to the width of a bucket, an eighth. `None`: there are none.
    pub fn of(buckets: &[u32; ROUND_TRIP_BUCKETS]) -> Option<Self> {
        let samples = buckets.iter().map(|count| u64::from(*count)).sum::<u64>();
        if samples == 0 {
            return None;
        }
        let at = |share: f64| percentile(buckets, samples, share);
        Some(Self {
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            samples: u32::try_from(samples).unwrap_or(u32::MAX),
        })
    }

    /// Those of two stretches of one path, one behind the other. Percentile by percentile, so not less than those of the whole.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            p50_ms: self.p50_ms + other.p50_ms,
            p90_ms: self.p90_ms + other.p90_ms,
            p95_ms: self.p95_ms + other.p95_ms,
            p99_ms: self.p99_ms + other.p99_ms,
            samples: self.samples.min(other.samples),
        }
    }
}

/// Milliseconds below which a share of the samples is, as if those of a bucket were evenly spread in it.
#[expect(clippy::cast_precision_loss, reason = "counts of a second, and microseconds of some seconds")]
fn percentile(buckets: &[u32; ROUND_TRIP_BUCKETS], samples: u64, share: f64) -> f64 {
    let rank = samples as f64 * share;
    let mut below = 0.0;
    for (bucket, count) in buckets.iter().enumerate() {
        let count = f64::from(*count);
        if count > 0.0 && below + count >= rank {
            let (from, to) = (Quality::bucket_from(bucket) as f64, Quality::bucket_from(bucket + 1) as f64);
            return (from + (to - from) * ((rank - below) / count)) / 1_000.0;
        }
        below += count;
    }
    Quality::bucket_from(ROUND_TRIP_BUCKETS) as f64 / 1_000.0
}

/// How well one class of a slot was served in an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Served {
    /// Round-trip times of the interval, by the direction of the packets that were answered.
    pub sides: [Option<RoundTrips>; 2],
    /// From end to end, where both sides are known and one of them said something in the interval.
    pub round_trips: Option<RoundTrips>,
    /// Share of segments that were sent again, by direction.
    pub loss: [Option<f64>; 2],
    /// Share of segments that were overtaken.
    pub reordered: [Option<f64>; 2],
    /// Of calls: share of windows of 134 ms in which as many packets as usual came, within a half.
    pub regularity: [Option<f64>; 2],
}

impl Served {
    /// The share lost in the direction where it is the larger.
    pub fn worst_loss(&self) -> Option<f64> {
        self.loss.into_iter().flatten().reduce(f64::max)
    }
}

/// By slot and class.
pub type ServedBySlot = HashMap<(u32, Class), Served>;

/// What is remembered of the sides of each slot's and class's paths: as many as the data plane measures at one time, for a minute.
#[derive(Debug, Default)]
pub struct Sides {
    lately: HashMap<(u32, Class), [Lately; 2]>,
}

/// What a side said last, and when.
type Lately = Option<(RoundTrips, Micros)>;

impl Sides {
    /// Takes in what an interval that ends now measured.
    pub fn take(&mut self, now: Micros, measured: &[Measured]) -> ServedBySlot {
        self.lately.retain(|_, sides| sides.iter().flatten().any(|(_, at)| now.since(*at) < LATELY));
        measured.iter().map(|measured| ((measured.slot, measured.class), self.one(now, measured))).collect()
    }

    /// A slot is another session's from now on.
    pub fn forget(&mut self, slot: u32) {
        self.lately.retain(|(of, _), _| *of != slot);
    }

    fn one(&mut self, now: Micros, measured: &Measured) -> Served {
        let lately = self.lately.entry((measured.slot, measured.class)).or_default();
        let mut served = Served::default();
        for direction in Direction::BOTH.map(Direction::index) {
            let counts = &measured.counts[direction];
            served.loss[direction] = share(counts.retransmitted, counts.segments, MIN_SEGMENTS);
            served.reordered[direction] = share(counts.reordered, counts.segments, MIN_SEGMENTS);
            served.regularity[direction] = regular(counts);
            served.sides[direction] = RoundTrips::of(&measured.round_trips[direction]);
            if let Some(round_trips) = served.sides[direction] {
                lately[direction] = Some((round_trips, now));
            }
        }
        let said = served.sides.iter().any(Option::is_some);
        let known =
            |side: usize| lately[side].filter(|(_, at)| now.since(*at) < LATELY).map(|(side, _)| side);
        if let (true, Some(up), Some(down)) = (said, known(0), known(1)) {
            served.round_trips = Some(up.and(down));
        }
        served
    }
}

fn share(part: u32, whole: u32, least: u32) -> Option<f64> {
    (whole >= least).then(|| (f64::from(part) / f64::from(whole)).min(1.0))
}

fn regular(counts: &QualityCounts) -> Option<f64> {
    share(counts.irregular, counts.windows, 1).map(|irregular| 1.0 - irregular)
}

/// The masks by which few enough packets are measured, where so many of each class came in an interval, see
/// [`usher_models::wire::Turn::masks`].
pub fn masks(packets: &[u64; Class::COUNT], interval: Duration) -> [u16; Class::COUNT] {
    let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
    packets.map(|packets| {
        let per_second = packets.saturating_mul(1_000) / millis;
        let turns = per_second.div_ceil(MEASURED_PER_SECOND).max(1).checked_next_power_of_two();
        turns.and_then(|turns| u16::try_from(turns - 1).ok()).map_or(WIDEST, |mask| mask.min(WIDEST))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Micros {
        Micros::new(seconds * 1_000_000)
    }

    fn nothing() -> Measured {
        Measured::between(3, Class::Web, &Quality::NONE, &Quality::NONE)
    }

    /// One round trip of so many milliseconds on a side.
    fn trip(side: Direction, millis: u64) -> Measured {
        let mut measured = nothing();
        measured.round_trips[side.index()][Quality::bucket(millis * 1_000)] = 1;
        measured
    }

    fn told(sides: &mut Sides, now: Micros, measured: Measured) -> Served {
        sides.take(now, &[measured])[&(3, Class::Web)]
    }

    #[test]
    fn the_whole_path_is_both_sides_of_which_one_may_be_from_lately() {
        let mut sides = Sides::default();
        let first = told(&mut sides, at(1), trip(Direction::Up, 40));
        assert_eq!((first.round_trips, first.sides[1]), (None, None), "the other side is not known yet");
        let second = told(&mut sides, at(10), trip(Direction::Down, 10));
        let whole = second.round_trips.expect("both sides are known").p50_ms;
        assert!((whole - 50.0).abs() < 50.0 / 8.0, "{whole}");
        assert_eq!(told(&mut sides, at(11), nothing()).round_trips, None, "neither side said anything");
        assert_eq!(told(&mut sides, at(61), trip(Direction::Down, 10)).round_trips, None, "too long ago");
        assert!(told(&mut sides, at(62), trip(Direction::Up, 40)).round_trips.is_some());
        sides.forget(3);
        assert_eq!(told(&mut sides, at(63), trip(Direction::Up, 40)).round_trips, None, "another's");
    }

    #[test]
    fn a_share_of_few_segments_says_nothing() {
        let mut measured = nothing();
        measured.counts[0] = QualityCounts { segments: 19, retransmitted: 1, ..QualityCounts::default() };
        measured.counts[1] =
            QualityCounts { segments: 40, retransmitted: 1, reordered: 2, ..QualityCounts::default() };
        let served = told(&mut Sides::default(), at(1), measured);
        assert_eq!(served.loss, [None, Some(0.025)]);
        assert_eq!(served.reordered, [None, Some(0.05)]);
        assert_eq!(served.worst_loss(), Some(0.025));
    }

    #[test]
    fn a_quiet_gateway_measures_all_and_a_busy_one_a_share_by_class() {
        let mut packets = [0; Class::COUNT];
        packets[Class::Bulk.index()] = 1_000_000;
        packets[Class::Call.index()] = MEASURED_PER_SECOND;
        packets[Class::Web.index()] = MEASURED_PER_SECOND + 1;
        packets[Class::Video.index()] = u64::MAX;
        let masks = masks(&packets, Duration::from_secs(1));
        assert_eq!(masks[Class::Call.index()], 0);
        assert_eq!(masks[Class::Game.index()], 0);
        assert_eq!(masks[Class::Web.index()], 1);
        assert_eq!(masks[Class::Bulk.index()], 63);
        assert_eq!(masks[Class::Video.index()], WIDEST);
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_times_to_an_eighth(
            mut micros in proptest::collection::vec(300_u64..5_000_000, 1..200),
        ) {
            let mut buckets = [0; ROUND_TRIP_BUCKETS];
            for micros in &micros {
                buckets[Quality::bucket(*micros)] += 1;
            }
            micros.sort_unstable();
            let told = RoundTrips::of(&buckets).expect("there are some");
            prop_assert_eq!(usize::try_from(told.samples), Ok(micros.len()));
            for (share, told) in [(50, told.p50_ms), (90, told.p90_ms), (95, told.p95_ms), (99, told.p99_ms)] {
                let rank = (micros.len() * share).div_ceil(100).max(1);
                #[expect(clippy::cast_precision_loss, reason = "some seconds")]
                let exact = micros[rank - 1] as f64 / 1_000.0;
                prop_assert!((told - exact).abs() <= exact / 7.9, "p{share}: {told}, not {exact}");
            }
        }
    }
}
