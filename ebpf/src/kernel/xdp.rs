//! A frame as the driver hands it to a program, before the kernel has made a packet of it; and the word that is left for the program of traffic
//! control, which comes after.
//!
//! The word lies in the packet's metadata, is nowhere on a wire, and says: counted. What comes without one, because the driver has no room for
//! it or nothing ran in it, is counted by who comes after. The kernel joins packets (GRO) only if their metadata is the same, so nothing that is
//! one packet's alone may be in it; and a word of an older version of the programs must be understood, for both are there during an upgrade.

use core::ffi::c_void;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{
    bpf_xdp_adjust_meta, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::XdpContext;

use usher_models::wire::{Direction, Dscp, Reason};

use super::{ConfigEntry, Covered, Hook, Skb, bytes, copied, found};
use crate::apart;
use crate::parse::{Frame, Packet};
use crate::walk::Walk;

/// As `usher_rest`, for an array holds programs of one hook.
#[map(name = "usher_rest_xdp")]
static REST: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// What is left in the metadata.
#[repr(C)]
struct Word {
    /// Of this probe, and of no other one that a packet may pass later on this machine.
    mark: u32,
    /// The class of a queueing discipline that is to send the packet; 0 for none.
    priority: u32,
}

const WORD_BYTES: usize = size_of::<Word>();

/// A frame as the driver hands it to a program.
pub struct Xdp {
    context: XdpContext,
    data: usize,
    end: usize,
}

impl Xdp {
    /// With a word for the program after; nothing where the driver has no room for one.
    #[inline(always)]
    pub fn with_word(context: *mut xdp_md, config: &ConfigEntry) -> Option<Self> {
        // SAFETY: the context is the kernel's own.
        if unsafe { bpf_xdp_adjust_meta(context, -(WORD_BYTES as i32)) } != 0 {
            return None;
        }
        let this = Self::of(context);
        let word = this.word()?;
        // SAFETY: as `word` says. What lay there before may be the word of an earlier packet.
        unsafe { word.write(Word { mark: config.mark_of_words(), priority: 0 }) };
        Some(this)
    }

    #[inline(always)]
    fn word(&self) -> Option<*mut Word> {
        let at = self.context.metadata();
        // Within the metadata, as the verifier checks again; the kernel aligns it to four bytes.
        if at + WORD_BYTES > self.context.metadata_end() { None } else { Some(at as *mut Word) }
    }
}

/// The class in the word of a packet that was counted before; nothing of one that was not.
#[inline(always)]
pub fn counted_as(skb: &Skb, config: &ConfigEntry) -> Option<u32> {
    let (at, end) = skb.metadata();
    if at + WORD_BYTES > end {
        return None;
    }
    // SAFETY: within the metadata, as the verifier checks again.
    let word = unsafe { (at as *const Word).read() };
    (word.mark == config.mark_of_words()).then_some(word.priority)
}

impl Hook for Xdp {
    type Context = xdp_md;

    #[inline(always)]
    fn of(context: *mut xdp_md) -> Self {
        let context = XdpContext::new(context);
        let (data, end) = (context.data(), context.data_end());
        Self { context, data, end }
    }

    #[inline(always)]
    fn raw(&self) -> *mut xdp_md {
        self.context.ctx
    }

    /// None: nothing has put frames together yet.
    #[inline(always)]
    fn segment_bytes(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn set_priority(&self, class: u32) {
        if let Some(word) = self.word() {
            // SAFETY: as `word` says.
            unsafe { (*word).priority = class };
        }
    }

    #[inline(always)]
    unsafe fn copy_to(&self, at: u32, to: *mut c_void, length: u32) -> bool {
        // SAFETY: the caller's promise about `to`; the helper refuses to read beyond the frame.
        unsafe { bpf_xdp_load_bytes(self.raw(), at, to, length) == 0 }
    }

    #[inline(always)]
    fn store<const N: usize>(&self, at: u32, words: &[u32; N], _: Covered) -> bool {
        // SAFETY: the helper copies out of `words` as many bytes as it has, and refuses to write beyond the frame.
        unsafe { bpf_xdp_store_bytes(self.raw(), at, words.as_ptr().cast_mut().cast(), (N * 4) as u32) == 0 }
    }

    /// Never: a checksum that a sender on this machine has left to be made cannot be told here from one that is there.
    #[inline(always)]
    fn adjust(&self, _: u32, _: u32, _: u32) -> bool {
        false
    }

    #[inline(always)]
    fn search(&self, first: u32, direction: Direction) -> u32 {
        apart::usher_search_xdp(self.raw(), first, direction as u32)
    }

    #[inline(always)]
    fn offer(&self, place: u64, whose: u64, ports: u32, flow: u32) {
        let _ = apart::usher_offer_xdp(self.raw(), place, whose, ports, flow);
    }

    #[inline(always)]
    fn mark(&self, ip_at: u32, around: u32, dscp: Dscp, direction: Direction) {
        let _ = apart::usher_mark_xdp(self.raw(), ip_at, around, u32::from(dscp.get()), direction as u32);
    }

    #[inline(always)]
    fn measure(&self) {
        // SAFETY: the program that may be there takes frames of the same kind.
        let _ = unsafe { REST.tail_call(&self.context, 0) };
    }
}

impl Frame for Xdp {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is the kernel's own.
        unsafe { bpf_xdp_get_buff_len(self.raw()) as u32 }
    }

    #[inline(always)]
    fn is_super_packet(&self) -> bool {
        false
    }

    #[inline(always)]
    fn words_at_hand<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        bytes::words(self.data, self.end, at)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        if let Some(words) = self.words_at_hand(bytes::bounded(at)?) {
            return Some(words);
        }
        // In a further buffer of a frame that has several.
        copied(self, at)
    }

    #[inline(always)]
    fn begin(&self, walk: Walk) {
        found::begin(walk);
    }

    #[inline(always)]
    fn step(&self) -> bool {
        apart::usher_step_xdp(self.raw()) != 0
    }

    #[inline(always)]
    fn ended(&self) -> Result<u32, Reason> {
        found::walk().map_or(Err(Reason::TooManyTags), |walk| walk.ended())
    }

    #[inline(always)]
    fn keep(&self, place: u32, packet: &Packet) {
        found::keep(place, packet);
    }
}
