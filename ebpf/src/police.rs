//! Whether a packet fits its subscriber's gate and rates. Called only where nothing bypasses enforcement.

use usher_models::wire::{Class, Direction, Gate, LINE, Rate, Reason};

use crate::Verdict;
use crate::kernel::{self, Bucket, ConfigEntry};

/// How often a bucket's time is tried to be moved before it is moved blindly.
const TRIES: u32 = 4;

/// Holds a packet of `bytes` to the gate, the rate of its class and the rate of the line.
///
/// A packet is charged to both or to none: one that the line holds back does not use up its class.
#[inline(always)]
pub fn police(slot: u32, class: Class, direction: Direction, bytes: u32) -> Verdict {
    let Some(rules) = kernel::rules(slot) else { return Verdict::Pass };
    if Gate::from_u32(rules.gate()) == Gate::Block {
        return Verdict::Drop;
    }
    if !rules.limited() {
        return Verdict::Pass;
    }
    let lane = kernel::place(class);
    let class_rate = rules.rate(lane, direction);
    let line_rate = rules.rate(LINE, direction);
    if !class_rate.limits() && !line_rate.limits() {
        return Verdict::Pass;
    }
    let (Some(class_bucket), Some(line_bucket)) =
        (kernel::bucket(slot, lane, direction), kernel::bucket(slot, LINE, direction))
    else {
        return Verdict::Pass;
    };
    let now = kernel::coarse_ns() << Rate::TICK_SHIFT;
    if !admits(&class_rate, &class_bucket, now) || !admits(&line_rate, &line_bucket, now) {
        return Verdict::Drop;
    }
    charge(&class_rate, &class_bucket, now, direction, bytes);
    charge(&line_rate, &line_bucket, now, direction, bytes);
    Verdict::Pass
}

/// Whether a slot has had its share of the ring of first bytes; takes `bytes` of it where not.
#[inline(always)]
pub fn rationed(config: &ConfigEntry, slot: u32, direction: Direction, bytes: u32) -> bool {
    let rate = config.sample_rate();
    let Some(bucket) = kernel::sample_bucket(slot) else { return false };
    let now = kernel::coarse_ns() << Rate::TICK_SHIFT;
    if !admits(&rate, &bucket, now) {
        return true;
    }
    charge(&rate, &bucket, now, direction, bytes);
    false
}

#[inline(always)]
fn admits(rate: &Rate, bucket: &Bucket, now: u64) -> bool {
    !rate.limits() || rate.admits(bucket.empty_at(), now)
}

/// Takes a packet's bytes from a bucket. Every packet that passes is charged, so that the rate holds however many CPUs
/// passed one at the same time.
#[inline(always)]
fn charge(rate: &Rate, bucket: &Bucket, now: u64, direction: Direction, bytes: u32) {
    if !rate.limits() {
        return;
    }
    let mut seen = bucket.empty_at();
    for _ in 0..TRIES {
        match bucket.exchange(seen, rate.charged(seen, now, bytes)) {
            Ok(()) => return,
            Err(found) => seen = found,
        }
    }
    // So contended that it is not behind now: adding to it is the same.
    bucket.advance(rate.ticks(bytes));
    kernel::tally(Reason::BucketContended, direction, bytes);
}
