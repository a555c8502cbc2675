//! The maps, the packet and the clocks: everything of the kernel's, behind functions that cannot be used wrongly.
//!
//! The only file with raw pointers. What the agent or another CPU may write meanwhile is read and written word by word,
//! never through a reference. Sizes of maps are the agent's to choose when it loads them.

use core::arch::asm;
use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf};
use aya_ebpf::programs::TcContext;
use usher_models::wire::{
    ANONYMOUS, Binding, Buckets, Cell, Class, Config, Direction, Enforcement, FirstBytes, Flow, FlowKey,
    MAX_FIRST_BYTES, PREFIX_BITS, Rate, Reason, SlotUsage, Tally, UNLIMITED_SAMPLES,
};

use crate::parse::{Frame, Packet};

#[map(name = "usher_config")]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map(name = "usher_sessions")]
static SESSIONS: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(1, 0);
#[map(name = "usher_flows")]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1, 0);
#[map(name = "usher_usage")]
static USAGE: PerCpuArray<SlotUsage> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "usher_enforce")]
static ENFORCEMENT: Array<Enforcement> = Array::with_max_entries(1, 0);
#[map(name = "usher_buckets")]
static BUCKETS: Array<Buckets> = Array::with_max_entries(1, 0);
#[map(name = "usher_tallies")]
static TALLIES: PerCpuArray<Tally> = PerCpuArray::with_max_entries((Reason::COUNT * 2) as u32, 0);
#[map(name = "usher_samples")]
static SAMPLES: RingBuf = RingBuf::with_byte_size(65_536, 0);
/// Where a sample is put together: too large for the stack. Not shared between runs, hence not pinned.
#[map(name = "usher_scratch")]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
struct Scratch {
    head: FirstBytes,
    packet: [u8; MAX_FIRST_BYTES],
}

/// BPF_NOEXIST: add, never replace.
const NOEXIST: u64 = 1;

/// The furthest a header is looked for. No bound of the parser's reaches it; the verifier wants to see one.
const FURTHEST: u32 = 0x3fff;

/// A packet as the kernel hands it to a program.
pub struct Skb {
    context: TcContext,
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
    fn raw(&self) -> *mut __sk_buff {
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
    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        if at > FURTHEST {
            return None;
        }
        let from = self.data + at as usize;
        if from + N * 4 <= self.end {
            // SAFETY: `from` to `from + 4 N` is within the packet's linear part, as the verifier checks again. IP headers are
            // at even addresses only, but the kernel takes word reads there on every architecture that runs BPF at speed.
            return Some(unsafe { *(from as *const [u32; N]) });
        }
        // Headers beyond the linear part: rare, and the helper copies them from wherever they are.
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        // SAFETY: `words` has room for what is asked for; the helper refuses to read beyond the packet, and fills all of
        // `words` where it does not refuse.
        unsafe {
            let to = words.as_mut_ptr().cast();
            let refused = bpf_skb_load_bytes(self.context.as_ptr(), at, to, (N * 4) as u32) != 0;
            if refused { None } else { Some(words.assume_init()) }
        }
    }
}

/// What the agent tells about all packets.
pub struct ConfigEntry(*const Config);

/// The configuration; there always is one.
#[inline(always)]
pub fn config() -> Option<ConfigEntry> {
    CONFIG.get_ptr(0).map(ConfigEntry)
}

impl ConfigEntry {
    #[inline(always)]
    pub fn epoch(&self) -> u32 {
        // SAFETY: a map value is valid for the length of a run; the same for all below.
        unsafe { addr_of!((*self.0).epoch).read_volatile() }
    }

    #[inline(always)]
    pub fn generation(&self) -> u32 {
        unsafe { addr_of!((*self.0).generation).read_volatile() }
    }

    #[inline(always)]
    pub fn bypass(&self) -> bool {
        unsafe { addr_of!((*self.0).bypass).read_volatile() != 0 }
    }

    /// Packets of a new flow handed to the agent; never [`UNLIMITED_SAMPLES`].
    #[inline(always)]
    pub fn sample_packets(&self) -> u16 {
        let packets = unsafe { addr_of!((*self.0).sample_packets).read_volatile() };
        packets.min(u32::from(UNLIMITED_SAMPLES) - 1) as u16
    }

    /// Bytes of one subscriber slot handed to the agent.
    #[inline(always)]
    pub fn sample_rate(&self) -> Rate {
        unsafe { addr_of!((*self.0).sample_rate).read_volatile() }
    }

    /// Bytes of a packet handed to the agent at the most.
    #[inline(always)]
    pub fn sample_bytes(&self) -> u32 {
        unsafe { addr_of!((*self.0).sample_bytes).read_volatile() }
    }
}

/// The subscriber slot of an address: that of its longest prefix, else nobody's.
#[inline(always)]
pub fn session(subscriber: &[u8; 16]) -> u32 {
    SESSIONS.get(Key::new(PREFIX_BITS, *subscriber)).map_or(ANONYMOUS, |slot| *slot)
}

/// A flow in the table.
pub struct FlowEntry(*mut Flow);

#[inline(always)]
pub fn flow(key: &FlowKey) -> Option<FlowEntry> {
    FLOWS.get_ptr_mut(key).map(FlowEntry)
}

/// Enters a flow; false where the table is full. One that another CPU entered meanwhile is in.
#[inline(always)]
pub fn remember(key: &FlowKey, flow: &Flow) -> bool {
    const EEXIST: i32 = -17;
    match FLOWS.insert(key, flow, NOEXIST) {
        Ok(()) => true,
        Err(error) => error == EEXIST,
    }
}

impl FlowEntry {
    #[inline(always)]
    pub fn binding(&self) -> Binding {
        // SAFETY: a map value is valid for the length of a run, even if its flow is forgotten meanwhile; the same for all
        // below. One that is used again for another flow by then may get this one's class or a sample less: a label.
        unsafe { addr_of!((*self.0).binding).read_volatile() }
    }

    #[inline(always)]
    pub fn bind(&self, binding: Binding) {
        unsafe { addr_of_mut!((*self.0).binding).write_volatile(binding) }
    }

    #[inline(always)]
    pub fn class(&self) -> Class {
        Class::from_u8(unsafe { addr_of!((*self.0).class).read_volatile() })
    }

    #[inline(always)]
    pub fn first_packet_ns(&self) -> u64 {
        unsafe { addr_of!((*self.0).first_packet_ns).read_volatile() }
    }

    /// Notes that the flow lives. Writes only what changes: the entry's cache line stays shared between CPUs.
    #[inline(always)]
    pub fn touch(&self, generation: u32) {
        unsafe {
            let field = addr_of_mut!((*self.0).generation);
            if field.read_volatile() != generation {
                field.write_volatile(generation);
            }
        }
    }

    /// Whether a sample of this packet is wanted; takes it off the budget.
    #[inline(always)]
    pub fn takes_sample(&self) -> bool {
        unsafe {
            if addr_of!((*self.0).sampling).read_volatile() == 0 {
                return false;
            }
            let left = addr_of_mut!((*self.0).samples_left);
            match left.read_volatile() {
                0 => false,
                UNLIMITED_SAMPLES => true,
                some => {
                    left.write_volatile(some - 1);
                    true
                }
            }
        }
    }
}

/// A class's place in arrays, in a form the verifier believes: the compiler knows that there are but eight and drops any
/// check, so the check is written where it does not look. It then does not know either: index with pointers, for a slice's
/// check would leave a panic in the program.
#[inline(always)]
pub fn place(class: Class) -> usize {
    const { assert!(Class::COUNT == 8) };
    let mut place = class.index();
    // SAFETY: changes nothing but its operand, and that not at all: no class has a higher number.
    unsafe { asm!("{place} &= 7", place = inout(reg) place, options(pure, nomem, nostack)) };
    place
}

/// Adds to a slot's counters. A slot outside the map is counted as nobody's.
#[inline(always)]
pub fn count(slot: u32, class: Class, direction: Direction, dropped: bool, bytes: u32, packets: u32) {
    let usage = match USAGE.get_ptr_mut(slot) {
        Some(usage) => usage,
        None => {
            tally(Reason::NoSuchSlot, direction, bytes);
            match USAGE.get_ptr_mut(ANONYMOUS) {
                Some(usage) => usage,
                None => return,
            }
        }
    };
    // SAFETY: the value is valid for the length of a run, class and direction are within it, and this CPU alone writes it.
    unsafe {
        let cells = addr_of_mut!((*usage).cells).cast::<[Cell; 2]>();
        let cell = cells.add(place(class)).cast::<Cell>().add(direction.index());
        if dropped {
            (*cell).dropped_bytes += u64::from(bytes);
            (*cell).dropped_packets += u64::from(packets);
        } else {
            (*cell).bytes += u64::from(bytes);
            (*cell).packets += u64::from(packets);
        }
    }
}

/// Counts a frame by reason.
#[inline(always)]
pub fn tally(reason: Reason, direction: Direction, bytes: u32) {
    let place = reason.index() * 2 + direction.index();
    if let Some(tally) = TALLIES.get_ptr_mut(place as u32) {
        // SAFETY: the value is valid for the length of a run, and this CPU alone writes it.
        unsafe {
            (*tally).packets += 1;
            (*tally).bytes += u64::from(bytes);
        }
    }
}

/// What is enforced for a slot.
pub struct Rules(*const Enforcement);

#[inline(always)]
pub fn rules(slot: u32) -> Option<Rules> {
    ENFORCEMENT.get_ptr(slot).map(Rules)
}

impl Rules {
    /// A [`usher_models::wire::Gate`]'s number.
    #[inline(always)]
    pub fn gate(&self) -> u32 {
        // SAFETY: a map value is valid for the length of a run; the same for all below.
        unsafe { addr_of!((*self.0).gate).read_volatile() }
    }

    /// Whether any rate is set.
    #[inline(always)]
    pub fn limited(&self) -> bool {
        unsafe { addr_of!((*self.0).limited).read_volatile() != 0 }
    }

    #[inline(always)]
    pub fn rate(&self, lane: usize, direction: Direction) -> Rate {
        // SAFETY: lanes are constants or a class's place, all within the array. A rate the agent changes meanwhile may be
        // read half old, half new: for one packet.
        unsafe {
            let rates = addr_of!((*self.0).rates).cast::<[Rate; 2]>();
            rates.add(lane).cast::<Rate>().add(direction.index()).read_volatile()
        }
    }
}

/// A bucket's time.
pub struct Bucket(*mut u64);

#[inline(always)]
pub fn bucket(slot: u32, lane: usize, direction: Direction) -> Option<Bucket> {
    BUCKETS.get_ptr_mut(slot).map(|buckets| {
        // SAFETY: lanes are constants or a class's place, all within the value, which is valid for the length of a run.
        Bucket(unsafe {
            let times = addr_of_mut!((*buckets).empty_at).cast::<[u64; 2]>();
            times.add(lane).cast::<u64>().add(direction.index())
        })
    })
}

/// The bucket of what a slot hands to the agent.
#[inline(always)]
pub fn sample_bucket(slot: u32) -> Option<Bucket> {
    // SAFETY: within the value, which is valid for the length of a run.
    BUCKETS.get_ptr_mut(slot).map(|buckets| Bucket(unsafe { addr_of_mut!((*buckets).samples_empty_at) }))
}

impl Bucket {
    #[inline(always)]
    pub fn empty_at(&self) -> u64 {
        // SAFETY: valid and aligned, as above.
        unsafe { self.0.read_volatile() }
    }

    /// Moves the time from `seen` to `next`, atomically; gives what it is instead where another CPU was faster.
    #[inline(always)]
    pub fn exchange(&self, seen: u64, next: u64) -> Result<(), u64> {
        let found: u64;
        // SAFETY: valid and aligned, as above. Assembly, because the compiler's model of this target has no compare-exchange
        // although the instruction set has from version 3 on.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({time} + 0, r0, {next})",
                time = in(reg) self.0,
                next = in(reg) next,
                inout("r0") seen => found,
            );
        }
        if found == seen { Ok(()) } else { Err(found) }
    }

    /// Moves the time on by `ticks`, whatever it is, atomically.
    #[inline(always)]
    pub fn advance(&self, ticks: u64) {
        // SAFETY: as above.
        unsafe { asm!("lock *(u64 *)({time} + 0) += {ticks}", time = in(reg) self.0, ticks = in(reg) ticks) };
    }
}

/// The monotonic clock, exact and dear.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// The monotonic clock as of the last tick: cheap, and good to some milliseconds.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Hands the beginning of a packet to the agent; false where that failed.
#[inline(always)]
pub fn sample(
    skb: &Skb,
    packet: &Packet,
    config: &ConfigEntry,
    slot: u32,
    direction: Direction,
    first_packet_ns: u64,
) -> bool {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return false };
    let length = packet.ip_bytes.min(config.sample_bytes());
    if length == 0 || length > MAX_FIRST_BYTES as u32 {
        return false;
    }
    // SAFETY: the value is valid for the length of a run and this CPU's alone; `length` bytes fit into it, and the helper
    // refuses to read beyond the packet.
    unsafe {
        let to = addr_of_mut!((*scratch).packet).cast();
        if bpf_skb_load_bytes(skb.context.as_ptr(), packet.ip_at, to, length) != 0 {
            return false;
        }
        addr_of_mut!((*scratch).head).write(FirstBytes {
            flow: packet.flow,
            first_packet_ns,
            seen_ns: now_ns(),
            slot,
            length,
            direction: direction as u32,
            zero: 0,
        });
        let record = core::slice::from_raw_parts(scratch.cast::<u8>(), FirstBytes::SIZE + length as usize);
        SAMPLES.output::<[u8]>(record, 0).is_ok()
    }
}
