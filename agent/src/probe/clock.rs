//! The kernel's monotonic nanoseconds as event time.

use usher_models::units::Micros;

/// Reads both clocks once; the difference moves when the wall clock is set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    wall_minus_monotonic_us: i64,
}

impl Clock {
    /// The clocks as they stand now.
    pub(super) fn read() -> Self {
        let monotonic_us = monotonic_ns() / 1_000;
        let wall_us = Micros::now().get();
        Self { wall_minus_monotonic_us: wall_us.saturating_sub_unsigned(monotonic_us) }
    }

    /// The event time of a kernel time.
    pub(super) fn micros(self, ns: u64) -> Micros {
        Micros::new(self.wall_minus_monotonic_us.saturating_add_unsigned(ns / 1_000))
    }
}

/// CLOCK_MONOTONIC, which is what bpf_ktime_get_ns reads.
#[expect(unsafe_code, reason = "the standard library does not show this clock's number")]
fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes for the length of the call.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } != 0;
    // It cannot fail on Linux for this clock and a valid pointer; zero would date samples to the boot.
    if failed { 0 } else { time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_kernel_time_of_now_is_now() {
        let clock = Clock::read();
        let now = clock.micros(monotonic_ns());
        assert!(Micros::now().since(now) < Duration::from_secs(5));
        assert!(now.since(Micros::now()) < Duration::from_secs(5));
    }
}
