//! Quality of outcome (draft-ietf-ippm-qoo-10, section 3.3): how near a use of the network was to what its kind of use needs, 0 to 100.
//!
//! A requirement has two points: from the first on nothing better would be noticed (ROP), from the second on the use is no use (CPUP). Between
//! them a score falls linearly. The score of all is the least: of each latency percentile, of loss, and of throughput, which is enough or not.

use usher_models::Class;

use super::quality::RoundTrips;

/// What a kind of use needs. Latencies are round-trip times, for they are measured there and back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Requirement {
    /// At the 50th percentile, milliseconds.
    pub median_ms: Points,
    /// At the 95th percentile, milliseconds.
    pub high_ms: Points,
    /// Share of packets lost.
    pub loss: Points,
    /// The least throughput, bits per second.
    pub throughput: u64,
}

/// Two points between which a score falls from 100 to 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Points {
    /// From here on down nothing better would be noticed.
    pub optimal: f64,
    /// From here on up it is of no use.
    pub unacceptable: f64,
}

const fn points(optimal: f64, unacceptable: f64) -> Points {
    Points { optimal, unacceptable }
}

/// What each class needs; `None`: nobody waits for it, or nobody knows what it is.
///
/// Calls: ITU-T G.114, 150 ms one way are good and 400 ms too many; ITU-T G.1010 (annex A), 3 % lost are too many for voice. The others
/// keep within what G.1010 says is tolerable (games 200 ms one way, streams 2 % lost and some seconds, pages 4 s for what takes several round
/// trips), but how much better is good, it does not say: those numbers are ours.
pub const fn requirement(class: Class) -> Option<Requirement> {
    Some(match class {
        Class::Call => Requirement {
            median_ms: points(150.0, 400.0),
            high_ms: points(300.0, 800.0),
            loss: points(0.005, 0.03),
            throughput: 64_000,
        },
        Class::Game => Requirement {
            median_ms: points(50.0, 200.0),
            high_ms: points(100.0, 400.0),
            loss: points(0.002, 0.03),
            throughput: 100_000,
        },
        Class::Video => Requirement {
            median_ms: points(150.0, 800.0),
            high_ms: points(300.0, 1_600.0),
            loss: points(0.01, 0.05),
            throughput: 1_000_000,
        },
        Class::Web | Class::Social => Requirement {
            median_ms: points(100.0, 600.0),
            high_ms: points(200.0, 1_200.0),
            loss: points(0.01, 0.05),
            throughput: 500_000,
        },
        Class::Bulk | Class::System | Class::Other => return None,
    })
}

/// What was measured of a use, as far as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measurement {
    /// Round-trip times from end to end.
    pub round_trips: Option<RoundTrips>,
    /// Share of packets lost.
    pub loss: Option<f64>,
    /// Bits per second, where more were wanted: a use that wants little says nothing of what it could have had.
    pub throughput: Option<u64>,
}

/// The score of a measurement, 0 to 100; `None` where neither latency nor loss was measured.
pub fn score(requirement: &Requirement, measured: &Measurement) -> Option<f64> {
    let latencies = measured.round_trips.map(|round_trips| {
        let median = between(requirement.median_ms, round_trips.p50_ms);
        median.min(between(requirement.high_ms, round_trips.p95_ms))
    });
    let loss = measured.loss.map(|loss| between(requirement.loss, loss));
    let least = [latencies, loss].into_iter().flatten().reduce(f64::min)?;
    let enough = measured.throughput.is_none_or(|throughput| throughput >= requirement.throughput);
    Some(if enough { least } else { 0.0 })
}

fn between(points: Points, measured: f64) -> f64 {
    let share = (measured - points.optimal) / (points.unacceptable - points.optimal);
    (1.0 - share).clamp(0.0, 1.0) * 100.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trips(p50_ms: f64, p95_ms: f64) -> RoundTrips {
        RoundTrips { p50_ms, p90_ms: p95_ms, p95_ms, p99_ms: p95_ms, samples: 100 }
    }

    /// The example of section 3.4. Its percentiles are the 99th and the 99.9th; the formula is the same for any two.
    #[test]
    fn the_drafts_example_scores_fifty() {
        let requirement = Requirement {
            median_ms: points(200.0, 500.0),
            high_ms: points(300.0, 600.0),
            loss: points(0.01, 0.05),
            throughput: 4_000_000,
        };
        let latency = Measurement { round_trips: Some(round_trips(350.0, 375.0)), ..Measurement::default() };
        let loss = Measurement { loss: Some(0.02), ..Measurement::default() };
        let all = Measurement { loss: loss.loss, throughput: Some(28_000_000), ..latency };
        let near = |measured, expected: f64| {
            let scored = score(&requirement, &measured).expect("something was measured");
            assert!((scored - expected).abs() < 1e-9, "{scored}, not {expected}");
        };
        near(latency, 50.0);
        near(loss, 75.0);
        near(all, 50.0);
        near(Measurement { throughput: Some(3_999_999), ..all }, 0.0);
        assert_eq!(score(&requirement, &Measurement::default()), None);
    }

    proptest! {
        #[test]
        fn worse_never_scores_better(
            class in 0..8_u8,
            median in 0.0..1_000.0_f64,
            high in 0.0..2_000.0_f64,
            loss in 0.0..0.1_f64,
            worse in 0.0..500.0_f64,
        ) {
            let Some(requirement) = requirement(Class::from_u8(class)) else { return Ok(()) };
            let measured = |median, high, loss| Measurement {
                round_trips: Some(round_trips(median, high)),
                loss: Some(loss),
                throughput: None,
            };
            let before = score(&requirement, &measured(median, high, loss)).expect("measured");
            prop_assert!((0.0..=100.0).contains(&before));
            for after in [
                measured(median + worse, high, loss),
                measured(median, high + worse, loss),
                measured(median, high, loss + worse / 1_000.0),
                Measurement { throughput: Some(0), ..measured(median, high, loss) },
            ] {
                prop_assert!(score(&requirement, &after).expect("measured") <= before);
            }
        }
    }
}
