//! A packet as the kernel's traffic control hands it to a program.

use core::ffi::c_void;
use core::ptr::addr_of_mut;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::TcContext;

use usher_models::wire::{Direction, Dscp, Reason};

use super::{Covered, Hook, bytes, copied, found};
use crate::apart;
use crate::parse::{Frame, Packet};
use crate::walk::Walk;

/// What is left to do with a packet: the program that measures it. Each version of the programs has its own, which is empty once no agent
/// is there to read what is measured.
#[map(name = "usher_rest")]
static REST: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// BPF_F_RECOMPUTE_CSUM (linux/bpf.h): the sum that a device made of the whole packet is kept right.
const RECOMPUTE: u64 = 1;
/// BPF_F_MARK_MANGLED_0 (linux/bpf.h): a checksum that comes out as 0, which says that there is none, is written as 0xffff.
const MARK_MANGLED_0: u64 = 1 << 5;

/// A packet as traffic control hands it to a program.
pub struct Skb {
    context: TcContext,
    data: usize,
    end: usize,
    /// Read once: to find it takes the kernel four reads, one after another.
    segment_bytes: u32,
}

impl Skb {
    #[inline(always)]
    pub fn new(context: TcContext) -> Self {
        let (data, end) = (context.data(), context.data_end());
        // SAFETY: the kernel hands every program a valid context, and rewrites this read of it; the same for all below.
        let segment_bytes = unsafe { (*context.skb.skb).gso_size };
        Self { context, data, end, segment_bytes }
    }

    /// Where what a program before has left of its own begins, and the packet after it.
    #[inline(always)]
    pub(super) fn metadata(&self) -> (usize, usize) {
        (unsafe { (*self.raw()).data_meta as usize }, self.data)
    }
}

impl Hook for Skb {
    type Context = __sk_buff;

    #[inline(always)]
    fn of(context: *mut __sk_buff) -> Self {
        Self::new(TcContext::new(context))
    }

    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
        self.context.skb.skb
    }

    #[inline(always)]
    fn segment_bytes(&self) -> u32 {
        self.segment_bytes
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        unsafe { (*self.raw()).gso_segs }
    }

    #[inline(always)]
    fn set_priority(&self, class: u32) {
        // SAFETY: as above, and this write likewise.
        unsafe { addr_of_mut!((*self.raw()).priority).write_volatile(class) }
    }

    #[inline(always)]
    unsafe fn copy_to(&self, at: u32, to: *mut c_void, length: u32) -> bool {
        // SAFETY: the caller's promise about `to`; the helper refuses to read beyond the packet.
        unsafe { bpf_skb_load_bytes(self.context.as_ptr(), at, to, length) == 0 }
    }

    #[inline(always)]
    fn store<const N: usize>(&self, at: u32, words: &[u32; N], covered: Covered) -> bool {
        let flags = if covered == Covered::Changed { RECOMPUTE } else { 0 };
        // SAFETY: the helper copies out of `words` as many bytes as it has, and refuses to write beyond the packet.
        unsafe {
            let from = words.as_ptr().cast();
            bpf_skb_store_bytes(self.context.as_ptr().cast(), at, from, (N * 4) as u32, flags) == 0
        }
    }

    #[inline(always)]
    fn adjust(&self, at: u32, before: u32, after: u32) -> bool {
        let half = |word: u32| {
            let [first, second, ..] = word.to_ne_bytes();
            u64::from(u16::from_ne_bytes([first, second]))
        };
        let flags = MARK_MANGLED_0 | 2;
        // SAFETY: the helper refuses to write beyond the packet.
        unsafe {
            bpf_l4_csum_replace(self.context.as_ptr().cast(), at, half(before), half(after), flags) == 0
        }
    }

    #[inline(always)]
    fn search(&self, first: u32, direction: Direction) -> u32 {
        apart::usher_search(self.raw(), first, direction as u32)
    }

    #[inline(always)]
    fn offer(&self, place: u64, whose: u64, ports: u32, flow: u32) {
        let _ = apart::usher_offer(self.raw(), place, whose, ports, flow);
    }

    #[inline(always)]
    fn mark(&self, ip_at: u32, around: u32, dscp: Dscp, direction: Direction) {
        let _ = apart::usher_mark(self.raw(), ip_at, around, u32::from(dscp.get()), direction as u32);
    }

    #[inline(always)]
    fn measure(&self) {
        // SAFETY: the program that may be there takes packets of the same kind.
        let _ = unsafe { REST.tail_call(&self.context, 0) };
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.context.len()
    }

    #[inline(always)]
    fn is_super_packet(&self) -> bool {
        self.segment_bytes() != 0
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
        // Headers beyond the linear part: rare, and the helper copies them from wherever they are.
        copied(self, at)
    }

    #[inline(always)]
    fn begin(&self, walk: Walk) {
        found::begin(walk);
    }

    #[inline(always)]
    fn step(&self) -> bool {
        apart::usher_step(self.raw()) != 0
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
