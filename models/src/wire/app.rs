//! What is counted of an app that a subscriber uses.

/// Longest name of an app, bytes.
pub const MAX_APP_NAME: usize = 64;

/// One app of one subscriber slot: its bytes, on one cache line with whose they are.
///
/// The probe adds to `bytes`, atomically; the agent writes the rest. A lane goes to another slot and app when no flow is counted in it any
/// more, and its counters rise on from where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct AppLane {
    /// Innermost IP bytes let through, by direction. Only ever rise, for as long as the maps live.
    pub bytes: [u64; 2],
    /// Whose they are; [`super::ANONYMOUS`]: the lane is free.
    pub slot: u32,
    /// Bytes of the app's name.
    pub length: u32,
    /// The app's name, and zeros.
    pub name: [u8; MAX_APP_NAME],
    /// Zero.
    pub zero: [u8; 40],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<AppLane>() == 128);
    assert!(offset_of!(AppLane, slot) == 16);
    assert!(offset_of!(AppLane, name) == 24);
};
