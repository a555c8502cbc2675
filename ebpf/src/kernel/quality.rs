//! What is kept of a flow to measure it, and the records in which quality is counted.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use usher_models::wire::{Class, Direction, QUALITY_WAYS, Quality, QualityCounts, ROUND_TRIP_BUCKETS};

use super::{ConfigEntry, DETAILS, MMAPABLE, believed, compare_exchange};

#[map(name = "usher_quality")]
static QUALITY: Array<Quality> = Array::with_max_entries(1, MMAPABLE);

/// The packet that is to be measured, on each CPU. Not shared between runs.
#[map(name = "usher_handed_over")]
static HANDED_OVER: PerCpuArray<HandedOver> = PerCpuArray::with_max_entries(1, 0);

/// What is known already of a packet that is to be measured.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct HandedOver {
    /// Where its transport header begins.
    pub transport_at: u32,
    /// Bytes after that header.
    pub payload_bytes: u32,
    /// Its flow's place.
    pub flow: u32,
    pub slot: u32,
    pub class: u32,
    pub direction: u32,
    /// What it is measured as.
    pub kind: u32,
    /// Zero.
    pub zero: u32,
}

/// Keeps a packet for the program that measures it.
#[inline(always)]
pub fn hand_over(packet: HandedOver) -> bool {
    let Some(place) = HANDED_OVER.get_ptr_mut(0) else { return false };
    // SAFETY: valid for the length of a run, and this CPU's alone; the same below.
    unsafe { place.write(packet) };
    true
}

/// The packet that was kept.
#[inline(always)]
pub fn handed_over() -> Option<&'static HandedOver> {
    HANDED_OVER.get_ptr(0).map(|packet| unsafe { &*packet })
}

/// The words that a flow's measurement is kept in.
pub struct QualityWords(*mut u64);

/// Those of the flow at a place.
#[inline(always)]
pub fn quality_words(place: u32) -> Option<QualityWords> {
    // SAFETY: a map value is valid for the length of a run; the same for all below.
    DETAILS.get_ptr_mut(place).map(|details| QualityWords(unsafe { addr_of_mut!((*details).quality) }.cast()))
}

impl QualityWords {
    /// Three of the six.
    #[inline(always)]
    pub fn half(&self, direction: Direction) -> [u64; 3] {
        let half = self.at(direction);
        unsafe { [half.read_volatile(), half.add(1).read_volatile(), half.add(2).read_volatile()] }
    }

    /// Writes a half. Its first word, which the other direction's packets write too, only where it is another than it was.
    #[inline(always)]
    pub fn set_half(&self, direction: Direction, first: u64, words: [u64; 3]) {
        let half = self.at(direction);
        unsafe {
            if words[0] != first {
                half.write_volatile(words[0]);
            }
            half.add(1).write_volatile(words[1]);
            half.add(2).write_volatile(words[2]);
        }
    }

    /// Moves the first word of a half from `seen` to `next`, unless it was moved meanwhile.
    #[inline(always)]
    pub fn exchange(&self, direction: Direction, seen: u64, next: u64) -> bool {
        compare_exchange(self.at(direction), seen, next).is_ok()
    }

    #[inline(always)]
    fn at(&self, direction: Direction) -> *mut u64 {
        // SAFETY: each half is three of six words.
        unsafe { if direction.index() == 0 { self.0 } else { self.0.add(3) } }
    }
}

/// A record of quality.
pub struct QualityEntry(*mut Quality);

/// The record of a slot's class; a free one where there was none, or nothing where none is free.
#[inline(always)]
pub fn quality(config: &ConfigEntry, slot: u32, class: Class) -> Option<QualityEntry> {
    let owner = Quality::owner(slot, class);
    let group = Quality::group(owner, config.quality_mask());
    for way in 0..QUALITY_WAYS {
        let record = QUALITY.get_ptr_mut(group + way)?;
        if unsafe { addr_of!((*record).owner).read_volatile() } == owner {
            return Some(QualityEntry(record));
        }
    }
    for way in 0..QUALITY_WAYS {
        let record = QUALITY.get_ptr_mut(group + way)?;
        match compare_exchange(unsafe { addr_of_mut!((*record).owner) }, Quality::FREE, owner) {
            Ok(()) => return Some(QualityEntry(record)),
            Err(found) if found == owner => return Some(QualityEntry(record)),
            Err(_) => {}
        }
    }
    None
}

/// Adds to half a word, atomically.
#[inline(always)]
fn add_half(word: *mut u32, value: u32) {
    // SAFETY: callers pass aligned words of map values, valid for the length of a run.
    unsafe {
        core::arch::asm!("lock *(u32 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) u64::from(value));
    }
}

impl QualityEntry {
    /// Counts segments of a direction.
    #[inline(always)]
    pub fn segments(&self, direction: Direction, segments: u32, retransmitted: u32, reordered: u32) {
        let counts = self.counts(direction);
        unsafe {
            add_half(addr_of_mut!((*counts).segments), segments);
            if retransmitted != 0 {
                add_half(addr_of_mut!((*counts).retransmitted), retransmitted);
            }
            if reordered != 0 {
                add_half(addr_of_mut!((*counts).reordered), reordered);
            }
        }
    }

    /// Counts windows of a call.
    #[inline(always)]
    pub fn windows(&self, direction: Direction, windows: u32, irregular: u32) {
        let counts = self.counts(direction);
        unsafe {
            add_half(addr_of_mut!((*counts).windows), windows);
            if irregular != 0 {
                add_half(addr_of_mut!((*counts).irregular), irregular);
            }
        }
    }

    /// Counts a round trip that began with a packet of this direction.
    #[inline(always)]
    pub fn round_trip(&self, direction: Direction, micros: u64) {
        let mut bucket = Quality::bucket(micros);
        believed(&mut bucket, ROUND_TRIP_BUCKETS - 1);
        let side = Quality::side(direction) * ROUND_TRIP_BUCKETS;
        unsafe {
            let buckets = addr_of_mut!((*self.0).round_trips).cast::<u32>();
            add_half(buckets.add(side).add(bucket), 1);
            add_half(addr_of_mut!((*self.counts(direction)).round_trips), 1);
        }
    }

    #[inline(always)]
    fn counts(&self, direction: Direction) -> *mut QualityCounts {
        // SAFETY: there is one for each direction.
        unsafe { addr_of_mut!((*self.0).counts).cast::<QualityCounts>().add(direction.index()) }
    }
}
