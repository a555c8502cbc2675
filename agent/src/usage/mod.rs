//! Sans-I/O: drained counters in, usage batches out.
//!
//! The counters only ever rise and belong to the data plane. What the agent has told of them already is its *baseline*;
//! a drain tells the difference and moves the baseline, both in one transaction of the store, so that no byte is told
//! twice and none is left out, wherever the agent is stopped.
//!
//! What was measured is told with the usage it is of, and has no baseline: it may be lost.
//!
//! Refuses clocks, maps and files: readings and times come in, batches and the new baseline go out.

mod accounts;
pub mod apps;
mod baseline;
mod batches;
pub mod qoo;
pub mod quality;

pub use accounts::{
    ANONYMOUS_SLOTS, Account, Accounts, Counted, Drained, MAX_ANONYMOUS, Plan, Restored, SessionFacts,
};
pub use baseline::{Baseline, CELLS, Moved, PAGE, cells};
pub use batches::Encoded;

use std::time::Duration;

use usher_models::units::{BitsPerSecond, Bytes};
use usher_models::wire::{Cell, Class, Direction, Enforcement, Gate, LINE, SlotUsage};

/// Share of the enforced rate, in percent, from which an interval counts as "at the rate" even where nothing was seen to
/// be held back, as in a capture. A bucket may carry a fifth of a second's worth from one second into the next: traffic
/// at its rate all the time shows 86 % in one second and 108 % in the next.
const NEAR_CAP: u64 = 80;

/// What a counter has counted since the baseline, and how many of its numbers were found below it.
///
/// A counter below its baseline is broken books (a map was changed behind the agent's back): nothing is told for it, and
/// the caller counts it.
pub fn difference(now: &Cell, before: &Cell) -> (Cell, u64) {
    let mut backwards = 0;
    let mut rise = |now: u64, before: u64| {
        now.checked_sub(before).unwrap_or_else(|| {
            backwards += 1;
            0
        })
    };
    let difference = Cell {
        bytes: rise(now.bytes, before.bytes),
        packets: rise(now.packets, before.packets),
        dropped_bytes: rise(now.dropped_bytes, before.dropped_bytes),
        dropped_packets: rise(now.dropped_packets, before.dropped_packets),
    };
    (difference, backwards)
}

/// The rate that holds for a class and direction, and the share of the interval spent at it.
///
/// The share is told for a whole interval at once, 1 or 0: it is 1 where packets were held back, or where at least 80 %
/// of the rate was used. `None`: no rate holds. Where the class has a rate and the line has one, the lower one is told,
/// and either of them counts.
pub fn at_cap(
    used: &SlotUsage,
    enforcement: &Enforcement,
    class: Class,
    direction: Direction,
    interval: Duration,
) -> Option<(BitsPerSecond, f64)> {
    let rate = |lane: usize| enforcement.rates[lane][direction.index()].bits_per_second;
    let class_rate = rate(class.index());
    let line_rate = rate(LINE);
    let blocked = enforcement.gate == Gate::Block;
    if class_rate == 0 && line_rate == 0 && !blocked {
        return None;
    }
    let cell = &used.cells[class.index()][direction.index()];
    let line = used.cells.iter().map(|class| class[direction.index()].bytes).fold(0, u64::saturating_add);
    let near = |rate: u64, bytes: u64| {
        rate > 0 && BitsPerSecond::of(Bytes(bytes), interval).0 >= rate.saturating_mul(NEAR_CAP) / 100
    };
    let capped = cell.dropped_packets > 0 || near(class_rate, cell.bytes) || near(line_rate, line);
    let told = [class_rate, line_rate].into_iter().filter(|rate| *rate > 0).min().unwrap_or(0);
    Some((BitsPerSecond(told), if capped { 1.0 } else { 0.0 }))
}

#[cfg(test)]
mod tests {
    use usher_models::wire::Rate;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn video(bytes: u64, dropped_packets: u64) -> SlotUsage {
        let mut usage = SlotUsage::default();
        usage.cells[Class::Video.index()][Direction::Down.index()] =
            Cell { bytes, packets: bytes / 1_000, dropped_bytes: dropped_packets * 1_000, dropped_packets };
        usage
    }

    fn limited(lane: usize, bits_per_second: u64) -> Enforcement {
        let mut enforcement = Enforcement::default();
        enforcement.rates[lane][Direction::Down.index()] = Rate { bits_per_second, cost: 1, burst: 1 };
        enforcement
    }

    fn share(used: &SlotUsage, enforcement: &Enforcement) -> Option<f64> {
        at_cap(used, enforcement, Class::Video, Direction::Down, SECOND).map(|(_, share)| share)
    }

    #[test]
    fn an_interval_is_at_the_cap_when_packets_were_held_back_or_the_rate_was_nearly_used() {
        let sd = limited(Class::Video.index(), 1_000_000);
        assert_eq!(share(&video(10_000, 0), &sd), Some(0.0));
        assert_eq!(share(&video(10_000, 1), &sd), Some(1.0));
        assert_eq!(share(&video(100_000, 0), &sd), Some(1.0));
        assert_eq!(share(&video(99_999, 0), &sd), Some(0.0));
        assert_eq!(share(&video(112_500, 0), &Enforcement::default()), None);
        assert_eq!(share(&video(112_500, 0), &limited(LINE, 1_000_000)), Some(1.0));
    }

    #[test]
    fn the_rate_told_is_the_lower_of_the_class_and_the_line() {
        let mut both = limited(Class::Video.index(), 8_000_000);
        both.rates[LINE] = limited(LINE, 1_000_000).rates[LINE];
        let (rate, _) = at_cap(&video(1, 0), &both, Class::Video, Direction::Down, SECOND).unwrap();
        assert_eq!(rate, BitsPerSecond(1_000_000));
    }

    #[test]
    fn a_counter_that_went_backwards_is_counted_and_never_wraps() {
        let counted = |bytes| Cell { bytes, packets: bytes / 1_000, ..Cell::default() };
        let (difference, backwards) = difference(&counted(5_000), &counted(9_000));
        assert_eq!(difference, Cell::default());
        assert_eq!(backwards, 2);
    }
}
