//! Whether a packet fits its subscriber's gate and rates. Called only where nothing bypasses enforcement.

use usher_models::wire::{Action, Direction, Gate, Rate, Reason};

use crate::Verdict;
use crate::kernel::{self, Bucket, ConfigEntry, LaneEntry};

/// How often a bucket's time is tried to be moved before it is moved blindly.
const TRIES: u32 = 4;

/// Holds a packet of `bytes` to the gate, the rate of its class and the rate of the line, by its lane's `action`. Rates that a class of a
/// queueing discipline keeps are not this one's: the packet waits there.
///
/// A packet is charged to both or to none: one that the line holds back does not use up its class.
#[inline(always)]
pub fn police(
    config: &ConfigEntry,
    slot: u32,
    lane: &LaneEntry,
    action: Action,
    direction: Direction,
    bytes: u32,
) -> Verdict {
    if action.gate() == Gate::Block {
        return Verdict::Drop;
    }
    if action.shaper() != 0 {
        return Verdict::Pass;
    }
    let rate = lane.rate();
    if !action.line_limited() {
        if !rate.limits() {
            return Verdict::Pass;
        }
        let now = kernel::coarse_ns() << Rate::TICK_SHIFT;
        if !admits(&rate, &lane.bucket(), now) {
            return Verdict::Drop;
        }
        charge(&rate, &lane.bucket(), now, direction, bytes);
        return Verdict::Pass;
    }
    let Some(line) = kernel::line(config, slot, direction) else { return Verdict::Pass };
    let line_rate = line.rate();
    let now = kernel::coarse_ns() << Rate::TICK_SHIFT;
    if !admits(&rate, &lane.bucket(), now) || !admits(&line_rate, &line.bucket(), now) {
        return Verdict::Drop;
    }
    charge(&rate, &lane.bucket(), now, direction, bytes);
    charge(&line_rate, &line.bucket(), now, direction, bytes);
    Verdict::Pass
}

/// Whether a slot has had its share of the ring of first bytes; takes `bytes` of it where not.
#[inline(always)]
pub fn rationed(config: &ConfigEntry, slot: u32, direction: Direction, bytes: u32) -> bool {
    let rate = config.sample_rate();
    let Some(bucket) = kernel::ration(slot) else { return false };
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
