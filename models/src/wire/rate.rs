//! The shape of a token bucket, computed once by the agent so that the probe multiplies and shifts only.

/// A token bucket's shape, as the kernel computes with it. All zero: no limit.
///
/// The bucket is a generic cell rate algorithm (ITU-T I.371, Annex A) on one 64-bit time, the moment at which the bucket is
/// empty again: a packet passes if that moment is not more than `burst` ticks ahead of now, and a packet of `n` bytes
/// that passes moves it on by `n * cost >> COST_SHIFT` ticks. So no packet is too large to pass ever (a GSO super-packet
/// may be larger than a small burst), and what one packet took too much the next ones wait for: the rate is exact.
///
/// The probe's clock ticks in milliseconds, hence [`Rate::MIN_BURST_NS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// The rate as configured, for people and read-back; bits per second.
    pub bits_per_second: u64,
    /// Ticks a byte costs, shifted left by [`Rate::COST_SHIFT`].
    pub cost: u64,
    /// Ticks the bucket may run ahead; whole [`Rate::BURST_UNIT`]s.
    pub burst: u64,
}

impl Rate {
    /// Ticks per nanosecond as a shift: 1/64 ns, so that a byte at 100 Gbit/s still costs 5.12 ticks and u64 lasts 9 years.
    pub const TICK_SHIFT: u32 = 6;
    /// Fraction bits of [`Rate::cost`].
    pub const COST_SHIFT: u32 = 18;
    /// The slowest rate a bucket keeps, in bits per second: below it a large packet's cost would not fit 64 bits.
    pub const MIN_BITS_PER_SECOND: u64 = 8_000;
    /// The fastest rate a bucket keeps, in bits per second: above it a byte's cost has too few digits.
    pub const MAX_BITS_PER_SECOND: u64 = 10_000_000_000_000;
    /// The least a bucket may run ahead: two ticks of the slowest kernel clock (100 Hz), for between ticks no time passes.
    pub const MIN_BURST_NS: u64 = 20_000_000;
    /// Nor less than this many bytes, two full Ethernet frames: time that passes while a bucket is full is lost to it, and a
    /// slow bucket of less would be full before the next packet comes.
    pub const MIN_BURST_BYTES: u64 = 3_028;
    /// The most a bucket may run ahead: an hour.
    pub const MAX_BURST_NS: u64 = 3_600_000_000_000;
    /// Ticks in a unit of burst, some microsecond: so that the longest burst fits 32 bits.
    pub const BURST_UNIT: u64 = 1 << 16;
    /// The most bytes a packet is charged for; no packet has more, GSO super-packets included.
    pub const MAX_CHARGE: u32 = (1 << 20) - 1;

    /// No limit.
    pub const UNLIMITED: Self = Self { bits_per_second: 0, cost: 0, burst: 0 };

    /// The bucket of `bits_per_second` that lets `burst` bytes pass at once.
    ///
    /// The rate is held between [`Rate::MIN_BITS_PER_SECOND`] and [`Rate::MAX_BITS_PER_SECOND`], the burst between
    /// [`Rate::MIN_BURST_NS`] or [`Rate::MIN_BURST_BYTES`] and [`Rate::MAX_BURST_NS`] of the rate. Zero bits per second mean no limit: to let nothing
    /// pass is the gate's work.
    pub const fn per_second(bits_per_second: u64, burst: u64) -> Self {
        if bits_per_second == 0 {
            return Self::UNLIMITED;
        }
        let kept = clamp(bits_per_second, Self::MIN_BITS_PER_SECOND, Self::MAX_BITS_PER_SECOND);
        // 8 bits a byte x 1e9 ns a second x 64 ticks a ns < 2^39, shifted by 18: below 2^57.
        let ticks_per_byte_per_bit = (8 * 1_000_000_000_u64) << (Self::TICK_SHIFT + Self::COST_SHIFT);
        let cost = (ticks_per_byte_per_bit + kept / 2) / kept;
        let burst = clamp(burst, Self::MIN_BURST_BYTES, u64::MAX);
        let wanted = (burst as u128 * cost as u128) >> Self::COST_SHIFT;
        let longest = Self::MAX_BURST_NS << Self::TICK_SHIFT;
        #[expect(clippy::cast_possible_truncation, reason = "held to `longest` first")]
        let wanted = if wanted > longest as u128 { longest } else { wanted as u64 };
        let burst = clamp(wanted, Self::MIN_BURST_NS << Self::TICK_SHIFT, longest);
        Self { bits_per_second, cost, burst: burst.next_multiple_of(Self::BURST_UNIT) }
    }

    /// Whether this holds anything back.
    #[inline]
    pub const fn limits(&self) -> bool {
        self.cost != 0
    }

    /// The ticks a packet of `bytes` costs. Packets are charged for [`Rate::MAX_CHARGE`] bytes at the most.
    #[inline]
    pub const fn ticks(&self, bytes: u32) -> u64 {
        let charged = if bytes > Self::MAX_CHARGE { Self::MAX_CHARGE } else { bytes };
        (charged as u64).wrapping_mul(self.cost) >> Self::COST_SHIFT
    }

    /// Whether a bucket that is empty again at `empty_at` lets a packet pass at `now`.
    #[inline]
    pub const fn admits(&self, empty_at: u64, now: u64) -> bool {
        empty_at <= now.wrapping_add(self.burst)
    }

    /// When the bucket is empty again after a packet of `bytes` passed at `now`.
    #[inline]
    pub const fn charged(&self, empty_at: u64, now: u64, bytes: u32) -> u64 {
        let from = if empty_at > now { empty_at } else { now };
        from.wrapping_add(self.ticks(bytes))
    }
}

const fn clamp(value: u64, least: u64, most: u64) -> u64 {
    if value < least {
        least
    } else if value > most {
        most
    } else {
        value
    }
}

const _: () = {
    assert!(size_of::<Rate>() == 24);
    // The dearest byte times the largest charge still fits.
    let dearest = Rate::per_second(1, 0).cost;
    assert!(dearest.checked_mul(Rate::MAX_CHARGE as u64).is_some());
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bits per second that pass when packets of `bytes` are offered at `offered` times the rate for `seconds`, on a clock
    /// that ticks every `tick_ns`, after a bucket's burst is spent.
    #[expect(clippy::cast_precision_loss, reason = "a rate to a few digits")]
    fn measured(rate: Rate, bytes: u32, tick_ns: u64, seconds: u64) -> f64 {
        let gap_ns = (f64::from(bytes) * 8e9 / rate.bits_per_second as f64 / 1.7).max(0.001);
        let mut empty_at = 0;
        let mut passed = 0_u64;
        let (mut started, mut at) = (None, 0.0_f64);
        let end = seconds as f64 * 1e9;
        while at < end {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
            let now = ((at as u64) / tick_ns * tick_ns) << Rate::TICK_SHIFT;
            if rate.admits(empty_at, now) {
                empty_at = rate.charged(empty_at, now, bytes);
                if started.is_some() {
                    passed += u64::from(bytes);
                }
            } else if started.is_none() {
                started = Some(at);
            }
            at += gap_ns;
        }
        passed as f64 * 8e9 / (end - started.expect("the burst is spent"))
    }

    #[test]
    fn rates_hold_to_two_percent_from_64_kbit_to_100_gbit() {
        for (bits, bytes, tick_ns, seconds) in [
            (64_000, 1_500, 4_000_000, 600),
            (64_000, 64, 10_000_000, 60),
            (1_500_000, 1_500, 4_000_000, 30),
            (8_000_000, 1_500, 1_000_000, 20),
            (1_000_000_000, 1_500, 4_000_000, 2),
            (10_000_000_000, 1_500, 10_000_000, 1),
            (100_000_000_000, 65_535, 4_000_000, 2),
            (100_000_000_000, 1_500, 10_000_000, 1),
        ] {
            let rate = Rate::per_second(bits, 0);
            let got = measured(rate, bytes, tick_ns, seconds);
            #[expect(clippy::cast_precision_loss, reason = "a rate to a few digits")]
            let error = (got - bits as f64).abs() / bits as f64;
            assert!(error < 0.02, "{bits} bit/s with {bytes}-byte packets: {got} bit/s");
        }
    }

    #[test]
    fn no_rate_is_no_limit() {
        assert_eq!(Rate::per_second(0, 1_000), Rate::UNLIMITED);
        assert!(!Rate::UNLIMITED.limits());
        assert!(Rate::per_second(1, 0).limits());
    }

    #[test]
    fn a_packet_larger_than_the_burst_passes_and_the_next_ones_wait_for_it() {
        let rate = Rate::per_second(64_000, 0);
        let now = 1_u64 << 50;
        assert!(rate.admits(0, now));
        let empty_at = rate.charged(0, now, 65_536);
        let waits_ns = (empty_at - now) >> Rate::TICK_SHIFT;
        assert_eq!(waits_ns, 65_536 * 8 * 1_000_000_000 / 64_000);
        assert!(!rate.admits(empty_at, now));
        assert!(rate.admits(empty_at, empty_at));
    }

    #[test]
    fn a_burst_lets_that_many_bytes_pass_at_once() {
        let rate = Rate::per_second(8_000_000, 150_000);
        let now = 1_u64 << 50;
        let mut empty_at = 0;
        let mut passed = 0;
        while rate.admits(empty_at, now) {
            empty_at = rate.charged(empty_at, now, 1_500);
            passed += 1_500;
        }
        assert_eq!(passed, 150_000 + 1_500);
    }

    proptest! {
        #[test]
        fn the_cost_of_any_packet_at_any_rate_is_right_to_two_percent(
            bits in 64_000_u64..=100_000_000_000,
            bytes in 64_u32..=65_536,
        ) {
            let rate = Rate::per_second(bits, 0);
            prop_assert!(u64::from(bytes).checked_mul(rate.cost).is_some());
            let exact = (u128::from(bytes) * 8_000_000_000 * 64) / u128::from(bits);
            let error = exact.abs_diff(u128::from(rate.ticks(bytes)));
            prop_assert!(error * 50 <= exact.max(1), "{} ticks for {}", rate.ticks(bytes), exact);
        }

        #[test]
        fn no_rate_burst_or_packet_overflows(bits: u64, burst: u64, bytes: u32) {
            let rate = Rate::per_second(bits, burst);
            prop_assert!(u64::from(bytes.min(Rate::MAX_CHARGE)).checked_mul(rate.cost).is_some());
            prop_assert!(rate.burst < (Rate::MAX_BURST_NS << Rate::TICK_SHIFT) + Rate::BURST_UNIT);
            prop_assert!(rate.burst.is_multiple_of(Rate::BURST_UNIT) && u32::try_from(rate.burst / Rate::BURST_UNIT).is_ok());
            prop_assert_eq!(rate.bits_per_second, bits);
        }
    }
}
