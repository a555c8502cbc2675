//! The packets found in a frame, and the ports of those of which this is a later part.

use core::ptr::addr_of_mut;

use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};

use crate::parse::{Fragment, Packet};
use crate::walk::{MAX_PACKETS, Walk};

/// The walk through a frame and the packets found in it, on each CPU. Not shared between runs.
#[map(name = "usher_walk")]
static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "usher_found")]
static FOUND: PerCpuArray<Packet> = PerCpuArray::with_max_entries(MAX_PACKETS, 0);
/// The ports of packets whose first fragment has passed; the longest unused go when it is full. Not shared between runs.
#[map(name = "usher_fragments")]
static FRAGMENTS: LruHashMap<FragmentKey, [u16; 2]> = LruHashMap::with_max_entries(8_192, 0);

/// Where a key of theirs is put together, on each CPU: the stack has no room for it. Not shared between runs.
#[map(name = "usher_fragment")]
static KEY: PerCpuArray<FragmentKey> = PerCpuArray::with_max_entries(1, 0);

/// What the fragments of a packet have in common (RFC 791, 3.2; RFC 8200, 4.5).
#[repr(C)]
struct FragmentKey {
    ends: [[u32; 4]; 2],
    identification: u32,
    protocol: u32,
}

/// Keeps a walk that begins.
#[inline(always)]
pub fn begin(walk: Walk) {
    if let Some(kept) = WALK.get_ptr_mut(0) {
        // SAFETY: valid for the length of a run, and this CPU's alone; the same for all below.
        unsafe { kept.write(walk) };
    }
}

/// The walk that is kept: what [`begin`] kept in this run, and what the steps since have made of it.
#[inline(always)]
pub fn walk() -> Option<&'static mut Walk> {
    // SAFETY: who asks for it lets go of it before the next one asks.
    WALK.get_ptr_mut(0).map(|walk| unsafe { &mut *walk })
}

/// Keeps a packet found in a frame.
#[inline(always)]
pub fn keep(place: u32, packet: &Packet) {
    if let Some(kept) = FOUND.get_ptr_mut(place) {
        unsafe { kept.write(*packet) };
    }
}

/// Keeps of the one packet around another what is asked of such: where it is and what is in it.
#[inline(always)]
pub fn keep_around(packet: &Packet) {
    if let Some(kept) = FOUND.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe {
            addr_of_mut!((*kept).ip_at).write(packet.ip_at);
            addr_of_mut!((*kept).header_bytes).write(packet.header_bytes);
            addr_of_mut!((*kept).protocol).write(packet.protocol);
        }
    }
}

/// A packet that was kept.
#[inline(always)]
pub fn found(place: u32) -> Option<&'static Packet> {
    // SAFETY: kept by this CPU in this run, which writes none of them from here on; none outlives the run.
    FOUND.get_ptr(place).map(|packet| unsafe { &*packet })
}

/// The same, to be changed: once in a run, and by who looks at no other reference to it.
#[inline(always)]
pub fn found_to_change(place: u32) -> Option<&'static mut Packet> {
    // SAFETY: this CPU's alone, and of the references to it none is used from here on.
    FOUND.get_ptr_mut(place).map(|packet| unsafe { &mut *packet })
}

/// The ports of a packet, of which a later fragment shows none: those of the first one, if that has passed.
#[inline(always)]
pub fn ports(packet: &Packet) -> [u16; 2] {
    let (identification, first) = match packet.fragment {
        Fragment::Whole => return packet.ports,
        Fragment::First(identification) => (identification, true),
        Fragment::Later(identification) => (identification, false),
    };
    let Some(key) = KEY.get_ptr_mut(0) else { return packet.ports };
    // SAFETY: valid for the length of a run, and this CPU's alone.
    let key = unsafe {
        (*key).ends = packet.ends;
        (*key).identification = identification;
        (*key).protocol = u32::from(packet.protocol);
        &*key
    };
    if first {
        // Where this fails the later ones are another flow: a label.
        let _ = FRAGMENTS.insert(key, &packet.ports, 0);
        return packet.ports;
    }
    // SAFETY: read at once, as one word.
    unsafe { FRAGMENTS.get(key) }.copied().unwrap_or([0; 2])
}
