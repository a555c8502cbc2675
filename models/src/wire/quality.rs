//! How well packets get through: what the probe keeps of a flow to measure it, and what it counts of a subscriber slot and class.
//!
//! Every flow is measured for one turn of so many, a turn being about a second: the agent chooses how many, by class, from how many packets
//! there are. A gateway with little to do measures all flows all the time.

use super::{Class, Direction};

/// Round-trip times are counted in so many buckets.
pub const ROUND_TRIP_BUCKETS: usize = 128;

/// The width of the first buckets, a power of two, in microseconds.
const UNIT_SHIFT: u32 = 5;
/// Buckets in an octave, as a power of two: a bucket is an eighth as wide as it is far, at the most.
const OCTAVE_SHIFT: u32 = 3;

/// Records in which a slot and class may be: a group of neighbours, none of which is a better place.
pub const QUALITY_WAYS: u32 = 4;

/// What is known of how well one class of one slot is served. Found by [`Quality::owner`]; there are fewer of them than slots and classes, for few
/// are used at one time. Counters only rise, and wrap, until the agent clears a record that nothing was added to for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Quality {
    /// Whose it is, see [`Quality::owner`]; [`Quality::FREE`] or [`Quality::CLEARING`] where nobody's.
    pub owner: u64,
    /// By direction of the segments.
    pub counts: [QualityCounts; 2],
    /// Zero.
    pub zero: u64,
    /// By the side they were measured on, see [`Quality::round_trips`], and [`Quality::bucket`].
    pub round_trips: [[u32; ROUND_TRIP_BUCKETS]; 2],
}

/// Counts of a direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct QualityCounts {
    /// TCP segments that take sequence numbers; a GSO super-packet counts its segments.
    pub segments: u32,
    /// Those of them that had been sent before.
    pub retransmitted: u32,
    /// Those of them that came after a later one, but not so late that they could have been sent again.
    pub reordered: u32,
    /// Round-trip times measured on this side.
    pub round_trips: u32,
    /// Windows of 134 ms in which calls' packets were counted.
    pub windows: u32,
    /// Those in which half as many more or fewer of them came than usual.
    pub irregular: u32,
}

impl Quality {
    /// Nobody's record.
    pub const FREE: u64 = 0;
    /// Nobody's either: a record that the agent is clearing.
    pub const CLEARING: u64 = 1;

    /// No record yet.
    pub const NONE: Self = Self {
        owner: Self::FREE,
        counts: [QualityCounts::ZERO; 2],
        zero: 0,
        round_trips: [[0; ROUND_TRIP_BUCKETS]; 2],
    };

    /// The owner of a slot's class.
    #[inline]
    pub const fn owner(slot: u32, class: Class) -> u64 {
        (slot as u64) << 8 | (class as u64) << 2 | 2
    }

    /// The slot and class of an owner; `None` where it is nobody.
    #[expect(clippy::cast_possible_truncation, reason = "24 bits are the slot, three the class")]
    pub const fn owned(owner: u64) -> Option<(u32, Class)> {
        if owner & 3 == 2 {
            Some(((owner >> 8) as u32, Class::from_u8((owner >> 2) as u8 & 7)))
        } else {
            None
        }
    }

    /// The first of the [`QUALITY_WAYS`] records where an owner may be, of `mask` and one, a power of two not less than them.
    #[inline]
    pub const fn group(owner: u64, mask: u32) -> u32 {
        (owner.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & mask & !(QUALITY_WAYS - 1)
    }

    /// The side on which a packet of this direction has its answer: one that goes up is answered from the internet.
    #[inline]
    pub const fn side(direction: Direction) -> usize {
        direction.index()
    }

    /// The bucket of a round-trip time in microseconds: linear below [`Quality::bucket_from`] of 8, then eight to the octave.
    #[inline]
    #[expect(clippy::manual_ilog2, reason = "that one can panic, which a program of the kernel's must not")]
    #[expect(clippy::cast_possible_truncation, reason = "buckets are few")]
    pub const fn bucket(micros: u64) -> usize {
        let units = micros >> UNIT_SHIFT;
        if units < 1 << OCTAVE_SHIFT {
            return units as usize;
        }
        let octave = 63 - units.leading_zeros() - OCTAVE_SHIFT;
        let bucket = ((octave + 1) << OCTAVE_SHIFT) as u64 + ((units >> octave) & 7);
        if bucket < ROUND_TRIP_BUCKETS as u64 { bucket as usize } else { ROUND_TRIP_BUCKETS - 1 }
    }

    /// Where a bucket begins, in microseconds; that of the last and one more is where the last one is taken to end.
    pub const fn bucket_from(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < 8 {
            return bucket << UNIT_SHIFT;
        }
        let octave = (bucket >> OCTAVE_SHIFT) - 1;
        (8 + (bucket & 7)) << octave << UNIT_SHIFT
    }
}

impl QualityCounts {
    const ZERO: Self =
        Self { segments: 0, retransmitted: 0, reordered: 0, round_trips: 0, windows: 0, irregular: 0 };
}

/// Which flows are measured now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Turn {
    /// Rises by one a turn.
    pub number: u32,
    /// Records of [`Quality`], less one.
    pub quality_mask: u32,
    /// By class, a power of two less one: for how many turns a flow is not measured for each in which it is.
    pub masks: [u16; Class::COUNT],
}

impl Turn {
    /// Turns that can pass until a flow that is always measured has said too little for too long to be told what was from what is.
    pub const PATIENCE: u8 = 8;

    /// Whether a flow at this line of the table is measured now, by the mask of its class.
    #[inline]
    pub const fn measures(line: u32, number: u32, mask: u16) -> bool {
        (line ^ number) & mask as u32 == 0
    }
}

const _: () = {
    assert!(size_of::<QualityCounts>() == 24);
    assert!(size_of::<Quality>() == 64 + 2 * 4 * ROUND_TRIP_BUCKETS);
    assert!(core::mem::offset_of!(Quality, round_trips) == 64);
    assert!(size_of::<Turn>() == 24);
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_bucket_begins_where_the_one_before_it_ends() {
        for bucket in 0..ROUND_TRIP_BUCKETS {
            let from = Quality::bucket_from(bucket);
            assert_eq!(Quality::bucket(from), bucket, "{from} us");
            assert_eq!(Quality::bucket(Quality::bucket_from(bucket + 1) - 1), bucket);
        }
        assert_eq!(Quality::bucket(u64::MAX), ROUND_TRIP_BUCKETS - 1);
        assert_eq!(Quality::bucket_from(ROUND_TRIP_BUCKETS), 8_388_608, "the longest that is told apart");
    }

    #[test]
    fn each_flow_is_measured_in_one_of_so_many_turns() {
        for line in [0, 1, 77, u32::MAX] {
            for mask in [0, 1, 7, 4095] {
                let measured = (0..=u32::from(mask)).filter(|turn| Turn::measures(line, *turn, mask)).count();
                assert_eq!(measured, 1, "line {line}, mask {mask}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_bucket_is_an_eighth_as_wide_as_it_is_far(micros in 256_u64..8_000_000) {
            let bucket = Quality::bucket(micros);
            let (from, to) = (Quality::bucket_from(bucket), Quality::bucket_from(bucket + 1));
            prop_assert!((from..to).contains(&micros));
            prop_assert!((to - from) * 8 <= from);
        }

        #[test]
        fn an_owner_is_a_slot_and_class(slot in 0_u32..1 << 24, class in 0..8_u8) {
            let class = Class::from_u8(class);
            let owner = Quality::owner(slot, class);
            prop_assert_eq!(Quality::owned(owner), Some((slot, class)));
            prop_assert!(owner > Quality::CLEARING);
            let group = Quality::group(owner, 1023);
            prop_assert!(group + QUALITY_WAYS <= 1024);
        }
    }

    #[test]
    fn nobody_owns_a_free_record() {
        assert_eq!(Quality::owned(Quality::FREE), None);
        assert_eq!(Quality::owned(Quality::CLEARING), None);
    }
}
