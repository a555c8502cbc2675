//! Percentiles and numbers of different things, in little memory and with a known error.

use crate::policy::Measure;

/// Reports of one pane that fell on one code of the scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Sample {
    pub(super) pane: u32,
    pub(super) code: u8,
    pub(super) count: u32,
}

/// How a measure's values are told apart by 256 codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Even steps from 0 to `most`: off by at most 0.2 % of it.
    Even { most: f64 },
    /// Zero, then steps of one ratio from `least` to `most`.
    Ratio { least: f64, most: f64 },
}

impl Scale {
    pub(super) fn of(measure: Measure) -> Self {
        match measure {
            Measure::RttMs => Self::Ratio { least: 0.1, most: 100_000.0 },
            Measure::Qoo => Self::Even { most: 100.0 },
            Measure::AtCap | Measure::Loss | Measure::UpUtil | Measure::DownUtil => Self::Even { most: 1.0 },
            Measure::Bytes | Measure::Packets | Measure::Drops | Measure::Flows | Measure::Spend => {
                Self::Ratio { least: 1.0, most: 1e12 }
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the codes")]
    pub(super) fn code(self, value: f64) -> u8 {
        match self {
            Self::Even { most } => (value / most * 255.0).round().clamp(0.0, 255.0) as u8,
            Self::Ratio { least, .. } if value < least => 0,
            Self::Ratio { least, most } => {
                let ratio = (most / least).ln() / 254.0;
                (1.0 + ((value / least).ln() / ratio).round()).clamp(1.0, 255.0) as u8
            }
        }
    }

    pub(super) fn value(self, code: u8) -> f64 {
        match self {
            Self::Even { most } => f64::from(code) / 255.0 * most,
            Self::Ratio { .. } if code == 0 => 0.0,
            Self::Ratio { least, most } => {
                let ratio = (most / least).ln() / 254.0;
                least * (f64::from(code - 1) * ratio).exp()
            }
        }
    }
}

/// Adds one report. Samples stay in the order of their panes, then codes.
pub(super) fn add(samples: &mut Vec<Sample>, pane: u32, code: u8) {
    match samples.binary_search_by_key(&(pane, code), |sample| (sample.pane, sample.code)) {
        Ok(at) => samples[at].count += 1,
        Err(at) => samples.insert(at, Sample { pane, code, count: 1 }),
    }
}

/// Forgets panes before `first`.
pub(super) fn forget(samples: &mut Vec<Sample>, first: u32) {
    let gone = samples.partition_point(|sample| sample.pane < first);
    samples.drain(..gone);
}

/// Makes one pane, `first`, of those before `end`.
pub(super) fn merge(samples: &mut Vec<Sample>, first: u32, end: u32) {
    let merged = samples.partition_point(|sample| sample.pane < end);
    if samples[..merged].iter().all(|sample| sample.pane == first) {
        return;
    }
    for sample in &mut samples[..merged] {
        sample.pane = first;
    }
    samples[..merged].sort_unstable_by_key(|sample| sample.code);
    samples.dedup_by(|later, earlier| {
        let same = (later.pane, later.code) == (earlier.pane, earlier.code);
        if same {
            earlier.count = earlier.count.saturating_add(later.count);
        }
        same
    });
}

/// The code that `percent` of the reports in the panes `[first, end)` stay at or below.
pub(super) fn percentile(samples: &[Sample], first: u32, end: u32, percent: u8) -> Option<u8> {
    let mut counts = [0_u64; 256];
    let mut total = 0;
    for sample in samples.iter().filter(|sample| (first..end).contains(&sample.pane)) {
        counts[usize::from(sample.code)] += u64::from(sample.count);
        total += u64::from(sample.count);
    }
    let rank = (total * u64::from(percent)).div_ceil(100).max(1);
    let mut seen = 0;
    let at = counts.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    u8::try_from(at).ok()
}

/// How many different ones set these bits, estimated (linear counting).
pub(super) fn distinct(bits: u64) -> f64 {
    // The last one is taken for set by half: there is no estimate for all 64.
    let free = f64::from(bits.count_zeros()).max(0.5);
    (-64.0 * (free / 64.0).ln()).max(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn distinct_is_near_the_truth() {
        assert!(distinct(0).abs() < 1e-12);
        assert!((distinct(1) - 1.0).abs() < 0.02);
        assert!((distinct(u64::from(u8::MAX)) - 8.5).abs() < 0.1);
        assert!(distinct(u64::MAX).is_finite());
    }

    proptest! {
        #[test]
        fn a_code_is_near_its_value(ms in 0.1_f64..100_000.0, bytes in 1.0_f64..1e12, share in 0.0_f64..1.0) {
            for (measure, value, error) in [
                (Measure::RttMs, ms, 0.03 * ms), (Measure::Bytes, bytes, 0.06 * bytes), (Measure::Loss, share, 0.002),
                (Measure::Qoo, share * 100.0, 0.2),
            ] {
                let scale = Scale::of(measure);
                prop_assert!((scale.value(scale.code(value)) - value).abs() <= error, "{measure:?} {value}");
            }
        }

        #[test]
        fn a_percentile_is_the_one_of_the_sorted_reports(
            reports in proptest::collection::vec((0_u32..6, any::<u8>()), 1..60), percent in 1_u8..=99,
        ) {
            let mut samples = Vec::new();
            for (pane, code) in &reports {
                add(&mut samples, *pane, *code);
            }
            let mut inside: Vec<u8> = reports.iter().filter(|(pane, _)| (1..4).contains(pane)).map(|(_, code)| *code).collect();
            inside.sort_unstable();
            let rank = (inside.len() * usize::from(percent)).div_ceil(100).max(1);
            let expected = inside.get(rank - 1).copied();
            prop_assert_eq!(percentile(&samples, 1, 4, percent), expected);
            forget(&mut samples, 1);
            merge(&mut samples, 1, 4);
            prop_assert_eq!(percentile(&samples, 1, 4, percent), expected);
        }
    }
}
