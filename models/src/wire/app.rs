//! What is counted of an app that a subscriber uses.

use super::Class;

/// Longest name of an app, bytes.
pub const MAX_APP_NAME: usize = 64;

/// One app of one subscriber slot in one class: its bytes, on one cache line with whose they are.
///
/// The probe adds to `bytes`, atomically; the agent writes the rest. A lane goes to another slot, class and app when no flow is counted in
/// it any more, and its counters rise on from where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct AppLane {
    /// Innermost IP bytes let through, by direction. Only ever rise, for as long as the maps live.
    pub bytes: [u64; 2],
    /// Whose they are; [`super::ANONYMOUS`]: the lane is free.
    pub slot: u32,
    /// Their class's number.
    pub class: u8,
    /// Which of the places where a slot and class have lanes this is.
    pub choice: u8,
    /// Bytes of the app's name.
    pub length: u8,
    /// Zero.
    pub zero: u8,
    /// The app's name, and zeros.
    pub name: [u8; MAX_APP_NAME],
    /// Zero.
    pub rest: [u8; 40],
}

impl AppLane {
    /// A slot and class have lanes at so many places, numbered from 1 on: so many apps at one time at the most.
    pub const CHOICES: u8 = 15;

    /// The place of a choice in the map, which has `mask` and one of them, a power of two. It is worked out of what a packet's flow says
    /// anyway, so that nothing else needs to be read to find it.
    #[inline]
    pub const fn place(mask: u32, slot: u32, class: Class, choice: u8) -> u32 {
        let key = (slot as u64) << 8 | (class as u64) << 4 | choice as u64;
        // Mixed twice: after one multiplication, choices would follow each other in the same steps for everybody, and meet in queues.
        let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ mixed >> 32).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32 & mask
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<AppLane>() == 128);
    assert!(offset_of!(AppLane, slot) == 16);
    assert!(offset_of!(AppLane, class) == 20);
    assert!(offset_of!(AppLane, name) == 24);
};
