//! A packet as the kernel hands it to a program, and the packets found in it.

use core::mem::MaybeUninit;
use core::ptr::addr_of_mut;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;

use crate::parse::{Fragment, Frame, Packet};
use crate::walk::MAX_PACKETS;

/// The packets found in a frame, on each CPU, and where numbers are put to be forgotten. Not shared between runs.
#[map(name = "usher_found")]
static FOUND: PerCpuArray<Packet> = PerCpuArray::with_max_entries(MAX_PACKETS, 0);
#[map(name = "usher_forget")]
static FORGET: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
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

/// The furthest a header is looked for. No bound of the parser's reaches it; the verifier wants to see one.
const FURTHEST: u32 = 0x3fff;

/// BPF_F_RECOMPUTE_CSUM (linux/bpf.h): the sum that a device made of the whole packet is kept right.
const RECOMPUTE: u64 = 1;
/// BPF_F_MARK_MANGLED_0 (linux/bpf.h): a checksum that comes out as 0, which says that there is none, is written as 0xffff.
const MARK_MANGLED_0: u64 = 1 << 5;

/// Whether the one's complement sum over a packet is another one after a change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Covered {
    /// No: a checksum within what is changed takes it up.
    Balanced,
    /// Yes.
    Changed,
}

/// A packet as the kernel hands it to a program.
pub struct Skb {
    pub(super) context: TcContext,
    data: usize,
    end: usize,
}

impl Skb {
    #[inline(always)]
    pub fn new(context: TcContext) -> Self {
        let (data, end) = (context.data(), context.data_end());
        Self { context, data, end }
    }

    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.context.skb.skb
    }

    /// Bytes of payload in each segment of a super-packet; 0 for a plain packet.
    #[inline(always)]
    pub fn segment_bytes(&self) -> u32 {
        // SAFETY: the kernel hands every program a valid context, and rewrites this read of it.
        unsafe { (*self.raw()).gso_size }
    }

    /// Segments of a super-packet as the kernel counted them; 0 where it did not.
    #[inline(always)]
    pub fn segments(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw()).gso_segs }
    }

    /// Names the class of a queueing discipline that is to send the packet (tc-htb(8): its priority, where it has the major number of the
    /// discipline).
    #[inline(always)]
    pub fn set_priority(&self, class: u32) {
        // SAFETY: as above, and this write likewise.
        unsafe { addr_of_mut!((*self.raw()).priority).write_volatile(class) }
    }

    /// `N` times four bytes from `at` on, each as it lies in memory; also after something was written, when [`Frame::words`] is over.
    #[inline(always)]
    pub fn load<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        self.copy(at)
    }

    /// Four bytes from `at` on as two numbers, likewise.
    #[inline(always)]
    pub fn load_halves(&self, at: u32) -> Option<[u16; 2]> {
        self.copy(at)
    }

    /// A copy of bytes from `at` on.
    #[inline(always)]
    fn copy<T: Copy>(&self, at: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: `value` has room for what is asked for; the helper refuses to read beyond the packet, and fills all of `value` where
        // it does not refuse. Only numbers are read.
        unsafe {
            let to = value.as_mut_ptr().cast();
            let refused = bpf_skb_load_bytes(self.context.as_ptr(), at, to, size_of::<T>() as u32) != 0;
            if refused { None } else { Some(value.assume_init()) }
        }
    }

    /// Writes words at `at`; false where the kernel refuses. A packet whose bytes others share gets its own first.
    #[inline(always)]
    pub fn store<const N: usize>(&self, at: u32, words: &[u32; N], covered: Covered) -> bool {
        let flags = if covered == Covered::Changed { RECOMPUTE } else { 0 };
        // SAFETY: the helper copies out of `words` as many bytes as it has, and refuses to write beyond the packet.
        unsafe {
            let from = words.as_ptr().cast();
            bpf_skb_store_bytes(self.context.as_ptr().cast(), at, from, (N * 4) as u32, flags) == 0
        }
    }

    /// Keeps the 16-bit checksum at `at` right after the first half of a word it covers went from `before` to `after`.
    #[inline(always)]
    pub fn adjust(&self, at: u32, before: u32, after: u32) -> bool {
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
        let from = self.data + at as usize;
        if from + N * 4 <= self.end {
            // SAFETY: `from` to `from + 4 N` is within the packet's linear part, as the verifier checks again. IP headers are
            // at even addresses only, but the kernel takes word reads there on every architecture that runs BPF at speed.
            return Some(unsafe { *(from as *const [u32; N]) });
        }
        None
    }

    #[inline(always)]
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        if at > FURTHEST {
            return None;
        }
        if let Some(words) = self.words_at_hand(at) {
            return Some(words);
        }
        // Headers beyond the linear part: rare, and the helper copies them from wherever they are.
        self.copy(at)
    }

    #[inline(always)]
    fn forget(&self, number: u32) -> u32 {
        let Some(place) = FORGET.get_ptr_mut(0) else { return number };
        // SAFETY: valid for the length of a run, and this CPU's alone.
        unsafe {
            place.write_volatile(number);
            place.read_volatile()
        }
    }

    #[inline(always)]
    fn keep(&self, place: u32, packet: &Packet) {
        if let Some(kept) = FOUND.get_ptr_mut(place) {
            // SAFETY: as above.
            unsafe { kept.write(*packet) };
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
