//! The maps, the packet and the clocks: everything of the kernel's, behind functions that cannot be used wrongly.
//!
//! With its rooms the only place with raw pointers. What the agent or another CPU may write meanwhile is read and written word by
//! word, never through a reference. Sizes of maps are the agent's to choose when it loads them.

mod bytes;
mod found;
mod quality;
mod skb;
mod xdp;

use core::arch::asm;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, LpmTrie, PerCpuArray, RingBuf};
use usher_models::wire::{
    ANONYMOUS, Action, AppLane, Cell, Class, Config, Direction, Dscp, Fingerprint, FirstBytes, Flow,
    FlowDetails, FlowLine, FlowState, HashKeys, LINE, Lane, MAX_FIRST_BYTES, PREFIX_BITS, Rate, Reason,
    SlotUsage, Tally, Turn, WAYS,
};

pub use self::found::{found, found_to_change, keep_around, ports, walk};
pub use self::quality::{HandedOver, QualityWords, hand_over, handed_over, quality, quality_words};
pub use self::skb::Skb;
pub use self::xdp::{Xdp, counted_as};
use crate::parse::{Frame, Packet, mapped};
use crate::quality::Measured;

/// BPF_F_MMAPABLE (linux/bpf.h): the agent sees the map as memory; and its values begin on a page, hence on a cache line.
const MMAPABLE: u32 = 1 << 10;

#[map(name = "usher_config")]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map(name = "usher_sessions")]
static SESSIONS: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(1, 0);
#[map(name = "usher_flows")]
static FLOWS: Array<FlowLine> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "usher_details")]
static DETAILS: Array<FlowDetails> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "usher_lanes")]
static LANES: Array<Lane> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "usher_apps")]
static APPS: Array<AppLane> = Array::with_max_entries(1, MMAPABLE);
/// What is nobody's, by CPU: it comes on all of them.
#[map(name = "usher_anonymous")]
static ANONYMOUS_USAGE: PerCpuArray<SlotUsage> = PerCpuArray::with_max_entries(1, 0);
/// When each slot's share of the ring is used up.
#[map(name = "usher_rations")]
static RATIONS: Array<u64> = Array::with_max_entries(1, 0);
#[map(name = "usher_tallies")]
static TALLIES: PerCpuArray<Tally> = PerCpuArray::with_max_entries((Reason::COUNT * 2) as u32, 0);
#[map(name = "usher_samples")]
static SAMPLES: RingBuf = RingBuf::with_byte_size(65_536, 0);
/// Where a sample is put together: too large for the stack. Not shared between runs, hence not pinned.
#[map(name = "usher_scratch")]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// What the session table said lately, by CPU: a search of it is the dearest thing that can happen to a packet. Good for an
/// epoch, hence not pinned.
#[map(name = "usher_recent")]
static RECENT: PerCpuArray<[Recent; RECENT_PAGE]> = PerCpuArray::with_max_entries(RECENT_PAGES, 0);

/// An address and its slot.
#[derive(Clone, Copy)]
#[repr(C)]
struct Recent {
    address: u64,
    state: FlowState,
}

/// Addresses remembered on each CPU: 1 MB of them.
const RECENT_PAGES: u32 = 256;
const RECENT_PAGE: usize = 256;

#[repr(C)]
struct Scratch {
    head: FirstBytes,
    packet: [u8; MAX_FIRST_BYTES],
}

/// A frame at one of the kernel's hooks.
pub trait Hook: Frame {
    /// What the kernel hands to a program there.
    type Context;

    /// The frame of a context.
    fn of(context: *mut Self::Context) -> Self;

    /// The context of the frame.
    fn raw(&self) -> *mut Self::Context;

    /// Bytes of payload in each segment of a super-packet; 0 for a plain packet.
    fn segment_bytes(&self) -> u32;

    /// Segments of a super-packet as the kernel counted them; 0 where it did not.
    fn segments(&self) -> u32;

    /// Names the class of a queueing discipline that is to send the packet (tc-htb(8): its priority, where it has the major number of the
    /// discipline).
    fn set_priority(&self, class: u32);

    /// Copies bytes from `at` on; false beyond the end.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of `length` bytes.
    unsafe fn copy_to(&self, at: u32, to: *mut c_void, length: u32) -> bool;

    /// `N` times four bytes from `at` on, each as it lies in memory; also after something was written, when [`Frame::words`] is over.
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        copied(self, at)
    }

    /// Four bytes from `at` on as two numbers, likewise.
    #[inline(always)]
    fn load_halves(&self, at: u32) -> Option<[u16; 2]> {
        copied(self, at)
    }

    /// Writes words at `at`; false where the kernel refuses. A packet whose bytes others share gets its own first.
    fn store<const N: usize>(&self, at: u32, words: &[u32; N], covered: Covered) -> bool;

    /// Keeps the 16-bit checksum at `at` right when the first half of a word it covers goes from `before` to `after`; false, and nothing is
    /// written, where that cannot be.
    fn adjust(&self, at: u32, before: u32, after: u32) -> bool;

    /// What [`crate::search`] does.
    fn search(&self, first: u32, direction: Direction) -> u32;

    /// What [`crate::offer`] does.
    fn offer(&self, place: u64, whose: u64, ports: u32, flow: u32);

    /// What [`crate::mark::mark`] does.
    fn mark(&self, ip_at: u32, around: u32, dscp: Dscp, direction: Direction);

    /// Goes on in the program that measures, of this hook. Comes back where there is none.
    fn measure(&self);
}

/// Whether the one's complement sum over a packet is another one after a change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Covered {
    /// No: a checksum within what is changed takes it up.
    Balanced,
    /// Yes.
    Changed,
}

/// A copy of bytes from `at` on. Only numbers are read.
#[inline(always)]
fn copied<T: Copy>(frame: &(impl Hook + ?Sized), at: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: `value` has room for what is asked for, and all of it is filled where that is not refused.
    unsafe {
        let filled = frame.copy_to(at, value.as_mut_ptr().cast(), size_of::<T>() as u32);
        if filled { Some(value.assume_init()) } else { None }
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
    /// The time of look-ups that are good now, see [`FlowState::time`].
    #[inline(always)]
    pub fn time(&self) -> u64 {
        // SAFETY: a map value is valid for the length of a run; the same for all below.
        let epoch = unsafe { addr_of!((*self.0).epoch).read_volatile() };
        let generation = unsafe { addr_of!((*self.0).generation).read_volatile() };
        FlowState::time(epoch, generation)
    }

    /// What marks a word between programs as one of this probe's: of the random number that is its own.
    #[inline(always)]
    pub fn mark_of_words(&self) -> u32 {
        // SAFETY: written once, before the programs are attached.
        unsafe { addr_of!((*self.0).boot).cast::<u32>().read_volatile() }
    }

    /// The random numbers behind fingerprints.
    #[inline(always)]
    pub fn hash_keys(&self) -> &HashKeys {
        // SAFETY: written once, before the programs are attached.
        unsafe { &(*self.0).hash_keys }
    }

    #[inline(always)]
    fn line_mask(&self) -> u32 {
        unsafe { addr_of!((*self.0).line_mask).read_volatile() }
    }

    /// Subscriber slots.
    #[inline(always)]
    fn slots(&self) -> u32 {
        unsafe { addr_of!((*self.0).slots).read_volatile() }
    }

    #[inline(always)]
    pub fn bypass(&self) -> bool {
        unsafe { addr_of!((*self.0).bypass).read_volatile() != 0 }
    }

    /// Packets of a new flow handed to the agent.
    #[inline(always)]
    pub fn sample_packets(&self) -> u32 {
        unsafe { addr_of!((*self.0).sample_packets).read_volatile() }
    }

    /// Bytes of one subscriber slot handed to the agent.
    #[inline(always)]
    pub fn sample_rate(&self) -> Rate {
        unsafe { addr_of!((*self.0).sample_rate).read_volatile() }
    }

    /// Whether a flow is measured now.
    #[inline(always)]
    pub fn measures(&self, flow: &FlowEntry, class: Class) -> bool {
        const { assert!(Class::COUNT == 8) };
        let mut place = class.index();
        believed(&mut place, 7);
        // SAFETY: as above; the class is within the masks.
        let mask = unsafe { addr_of!((*self.0).turn.masks).cast::<u16>().add(place).read_volatile() };
        Turn::measures(flow.place / WAYS as u32, self.turn_number(), mask)
    }

    /// The turn, and whether flows of the class are measured in each.
    #[inline(always)]
    pub fn turn(&self, class: Class) -> Measured {
        let mut place = class.index();
        believed(&mut place, 7);
        // SAFETY: as above.
        let mask = unsafe { addr_of!((*self.0).turn.masks).cast::<u16>().add(place).read_volatile() };
        Measured { turn: self.turn_number() as u8, always: mask == 0 }
    }

    #[inline(always)]
    fn turn_number(&self) -> u32 {
        unsafe { addr_of!((*self.0).turn.number).read_volatile() }
    }

    /// Records of quality, less one.
    #[inline(always)]
    fn quality_mask(&self) -> u32 {
        unsafe { addr_of!((*self.0).turn.quality_mask).read_volatile() }
    }

    /// Lanes of apps, less one.
    #[inline(always)]
    fn app_mask(&self) -> u32 {
        unsafe { addr_of!((*self.0).app_mask).read_volatile() }
    }

    /// Bytes of a packet handed to the agent at the most.
    #[inline(always)]
    pub fn sample_bytes(&self) -> u32 {
        unsafe { addr_of!((*self.0).sample_bytes).read_volatile() }
    }
}

/// The subscriber slot of an address at this time: that of its longest prefix, else nobody's.
#[inline(always)]
pub fn session(config: &ConfigEntry, time: u64, subscriber: &[u32; 4]) -> u32 {
    let address = Fingerprint::of_address(config.hash_keys(), subscriber);
    // Mixed as a flow's line is: addresses in a row are at even distances before that, which may be such that they share a few places.
    let place = address.line(u32::MAX);
    let pair = RECENT.get_ptr_mut(place % RECENT_PAGES).map(|page| {
        let mut pair = (place / RECENT_PAGES) as usize & (RECENT_PAGE / 2 - 1);
        believed(&mut pair, RECENT_PAGE / 2 - 1);
        // SAFETY: the pair is one of the page's, which is valid for the length of a run.
        unsafe { page.cast::<[Recent; 2]>().add(pair) }
    });
    let Some(pair) = pair else { return ANONYMOUS };
    // SAFETY: within the page, and this CPU's alone.
    unsafe {
        let [newer, older] = [addr_of_mut!((*pair)[0]), addr_of_mut!((*pair)[1])];
        for recent in [newer, older] {
            if (*recent).address == address.get()
                && let Some(slot) = (*recent).state.slot(time)
            {
                return slot;
            }
        }
        let [a, b, c, d] = subscriber.map(u64::from);
        let slot = longest_prefix(b << 32 | a, d << 32 | c);
        let state = FlowState::default().bound(address, slot, time);
        if (*newer).address != address.get() {
            *older = *newer;
        }
        *newer = Recent { address: address.get(), state };
        slot
    }
}

/// The slot of an address's longest prefix. A function of its own, for what is on its stack is then not on that of every packet.
#[inline(never)]
fn longest_prefix(first: u64, second: u64) -> u32 {
    let words = [first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32];
    SESSIONS.get(Key::new(PREFIX_BITS, crate::parse::address(words))).map_or(ANONYMOUS, |slot| *slot)
}

/// A flow in the table.
#[derive(Clone, Copy)]
pub struct FlowEntry {
    of: Fingerprint,
    flow: *mut Flow,
    /// Its place among all.
    place: u32,
}

/// The two lines a flow may be in.
#[inline(always)]
fn lines(config: &ConfigEntry, of: Fingerprint) -> [u32; 2] {
    let line = of.line(config.line_mask());
    [line, line ^ 1]
}

/// A flow that is in the table.
#[inline(always)]
pub fn flow(config: &ConfigEntry, of: Fingerprint) -> Option<FlowEntry> {
    for line in lines(config, of) {
        let ways = FLOWS.get_ptr_mut(line)?.cast::<Flow>();
        // Which way it is depends on who came first: nothing a CPU could foresee, hence no branch for each. The verifier, too,
        // has one place to think about instead of eight. Of two, which CPUs can make that enter a flow at once, it is the last.
        let mut way = 0_u64;
        for place in 0..WAYS {
            // SAFETY: a line has that many ways, and is valid for the length of a run; the same for all below.
            let fingerprint = unsafe { addr_of!((*ways.add(place)).fingerprint).read_volatile() };
            way =
                way.wrapping_add(equal(fingerprint, of.get()).wrapping_mul((place as u64).wrapping_sub(way)));
        }
        let mut way = way as usize;
        believed(&mut way, WAYS - 1);
        let flow = unsafe { ways.add(way) };
        if unsafe { addr_of!((*flow).fingerprint).read_volatile() } == of.get() {
            return Some(FlowEntry { of, flow, place: line * WAYS as u32 + way as u32 });
        }
    }
    None
}

/// The flow at a place.
#[inline(always)]
pub fn flow_at(place: u32) -> Option<FlowEntry> {
    let mut way = place as usize;
    believed(&mut way, WAYS - 1);
    // SAFETY: a line has that many ways, and is valid for the length of a run.
    let flow = unsafe { FLOWS.get_ptr_mut(place / WAYS as u32)?.cast::<Flow>().add(way) };
    let fingerprint = unsafe { addr_of!((*flow).fingerprint).read_volatile() };
    Some(FlowEntry { of: Fingerprint::read(fingerprint)?, flow, place })
}

/// Enters a flow in the first free place of its lines, unless they are full. A place is taken by putting the fingerprint into it; the
/// rest of it is zero then, which is how a flow begins. One that another CPU entered meanwhile is in.
#[inline(always)]
pub fn enter(config: &ConfigEntry, of: Fingerprint) {
    for line in lines(config, of) {
        let Some(ways) = FLOWS.get_ptr_mut(line) else { return };
        for way in 0..WAYS {
            // SAFETY: as above.
            let fingerprint = unsafe { addr_of_mut!((*ways.cast::<Flow>().add(way)).fingerprint) };
            match compare_exchange(fingerprint, Fingerprint::FREE, of.get()) {
                Ok(()) => {
                    if let Some(details) = DETAILS.get_ptr_mut(line * WAYS as u32 + way as u32) {
                        // SAFETY: as above.
                        unsafe { addr_of_mut!((*details).first_packet_ns).write_volatile(now_ns()) }
                    }
                    return;
                }
                Err(found) if found == of.get() => return,
                Err(_) => {}
            }
        }
    }
}

/// 1 where two words are equal, else 0, without a branch.
#[inline(always)]
fn equal(a: u64, b: u64) -> u64 {
    let mut difference = a ^ b;
    // SAFETY: arithmetic on its own registers. Assembly, because the compiler makes a branch of anything that comes to this.
    unsafe {
        asm!(
            "{negative} = {difference}",
            "{negative} = -{negative}",
            "{difference} |= {negative}",
            "{difference} >>= 63",
            "{difference} ^= 1",
            difference = inout(reg) difference,
            negative = out(reg) _,
            options(pure, nomem, nostack),
        );
    }
    difference
}

impl FlowEntry {
    /// What is known of the flow; nothing where the agent cleared it this very moment.
    #[inline(always)]
    pub fn state(&self) -> FlowState {
        // SAFETY: a map value is valid for the length of a run; the same for all below.
        let state = unsafe { addr_of!((*self.flow).state).read_volatile() };
        if state.is_of(self.of) { state } else { FlowState::default() }
    }

    /// Where it is in the table.
    #[inline(always)]
    pub fn place(&self) -> u32 {
        self.place
    }

    /// Notes whose the flow is, and that it lives, unless something else was noted since `seen` was: then the next packet does.
    #[inline(always)]
    pub fn bind(&self, seen: FlowState, slot: u32, time: u64) {
        self.change(seen, seen.bound(self.of, slot, time));
    }

    #[inline(always)]
    fn change(&self, seen: FlowState, next: FlowState) {
        let word = unsafe { addr_of_mut!((*self.flow).state) }.cast();
        let _ = compare_exchange(word, seen.0, next.0);
    }

    #[inline(always)]
    fn details(&self) -> Option<*mut FlowDetails> {
        DETAILS.get_ptr_mut(self.place)
    }

    /// Takes a sample off a budget: when the flow's first packet was seen, or none where the budget is used up. Then the flow is settled,
    /// until the agent wants to go on, and its next packets do without this. A connection that opens, perhaps of another name than the
    /// one before it on the same ports, begins with a whole budget.
    #[inline(always)]
    pub fn takes_sample(&self, opens_connection: bool, budget: u32) -> Option<u64> {
        let details = self.details()?;
        unsafe {
            let samples = addr_of_mut!((*details).samples);
            if opens_connection {
                let seen = self.state();
                self.change(seen, seen.unsettle());
                samples.write_volatile(0);
                addr_of_mut!((*details).first_packet_ns).write_volatile(now_ns());
            }
            let taken = samples.read_volatile();
            if taken >= budget {
                let seen = self.state();
                self.change(seen, seen.settle());
                return None;
            }
            samples.write_volatile(taken + 1);
            Some(addr_of!((*details).first_packet_ns).read_volatile())
        }
    }
}

/// Makes the verifier believe that `place` is at most `mask`, which is one less than a power of two. The compiler knows that it is and
/// drops any check, so the check is written where it does not look.
#[inline(always)]
fn believed(place: &mut usize, mask: usize) {
    // SAFETY: changes nothing but its operand, and that not at all: it is not larger.
    unsafe {
        asm!("{place} &= {mask}", place = inout(reg) *place, mask = in(reg) mask, options(pure, nomem, nostack))
    };
}

/// The same packet, of whose places the verifier knows nothing: else it follows each way of reading one through all that is done with it.
#[inline(always)]
pub fn forgotten(packet: Packet) -> Packet {
    // All of an address of IPv4, some of one of IPv6: it can be any number.
    let [[_, _, _, by], _] = packet.ends;
    Packet {
        ip_bytes: forgotten_number(packet.ip_bytes, by),
        protocol: forgotten_number(u32::from(packet.protocol), by) as u8,
        ip_at: forgotten_number(packet.ip_at, by),
        transport_at: forgotten_number(packet.transport_at, by),
        header_bytes: forgotten_number(packet.header_bytes, by),
        ..packet
    }
}

/// The same number, for the verifier as unknown as `by`.
#[inline(always)]
fn forgotten_number(number: u32, by: u32) -> u32 {
    let mut number = u64::from(number);
    // SAFETY: twice the same changes nothing.
    unsafe {
        asm!(
            "{number} ^= {by}",
            "{number} ^= {by}",
            number = inout(reg) number,
            by = in(reg) u64::from(by),
            options(pure, nomem, nostack)
        );
    }
    number as u32
}

/// Moves a word from `seen` to `next`, atomically; gives what it is instead where another CPU was faster.
#[inline(always)]
fn compare_exchange(word: *mut u64, seen: u64, next: u64) -> Result<(), u64> {
    let found: u64;
    // SAFETY: callers pass aligned words of map values, valid for the length of a run. Assembly, because the compiler's model of this
    // target has no compare-exchange although the instruction set has from version 3 on.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {next})",
            word = in(reg) word,
            next = in(reg) next,
            inout("r0") seen => found,
        );
    }
    if found == seen { Ok(()) } else { Err(found) }
}

/// Adds to a word, atomically.
#[inline(always)]
fn add(word: *mut u64, value: u64) {
    // SAFETY: as above.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value) };
}

/// A class of a slot in one direction: what is counted and enforced of it.
pub struct LaneEntry(*mut Lane);

#[inline(always)]
pub fn lane(config: &ConfigEntry, slot: u32, class: Class, direction: Direction) -> Option<LaneEntry> {
    lane_at(config, slot, class.index(), direction)
}

#[inline(always)]
fn lane_at(config: &ConfigEntry, slot: u32, lane: usize, direction: Direction) -> Option<LaneEntry> {
    let slots = config.slots();
    if slot >= slots {
        return None;
    }
    LANES.get_ptr_mut(Lane::place(slots, slot, lane, direction)).map(LaneEntry)
}

/// The lane of a slot's whole line.
#[inline(always)]
pub fn line(config: &ConfigEntry, slot: u32, direction: Direction) -> Option<LaneEntry> {
    lane_at(config, slot, LINE, direction)
}

impl LaneEntry {
    #[inline(always)]
    pub fn action(&self) -> Action {
        // SAFETY: a map value is valid for the length of a run; the same for all below.
        unsafe { addr_of!((*self.0).action).read_volatile() }
    }

    /// The lane's rate. One that the agent changes meanwhile may be read half old, half new: for one packet.
    #[inline(always)]
    pub fn rate(&self) -> Rate {
        unsafe {
            Rate {
                bits_per_second: 0,
                cost: addr_of!((*self.0).cost).read_volatile(),
                burst: u64::from(addr_of!((*self.0).burst).read_volatile()) * Rate::BURST_UNIT,
            }
        }
    }

    #[inline(always)]
    pub fn bucket(&self) -> Bucket {
        Bucket(unsafe { addr_of_mut!((*self.0).empty_at) })
    }

    /// Adds to the counters.
    #[inline(always)]
    pub fn count(&self, dropped: bool, bytes: u32, packets: u32) {
        unsafe {
            let cell = addr_of_mut!((*self.0).cell);
            if dropped {
                add(addr_of_mut!((*cell).dropped_bytes), u64::from(bytes));
                add(addr_of_mut!((*cell).dropped_packets), u64::from(packets));
            } else {
                add(addr_of_mut!((*cell).bytes), u64::from(bytes));
                add(addr_of_mut!((*cell).packets), u64::from(packets));
            }
        }
    }
}

/// Adds to the bytes of a slot's app.
#[inline(always)]
pub fn count_for_app(config: &ConfigEntry, slot: u32, state: FlowState, direction: Direction, bytes: u32) {
    let place = AppLane::place(config.app_mask(), slot, state.class(), state.app());
    let Some(lane) = APPS.get_ptr_mut(place) else { return };
    // SAFETY: a map value is valid for the length of a run, and the direction is within it.
    unsafe {
        if addr_of!((*lane).slot).read_volatile() == slot {
            add(addr_of_mut!((*lane).bytes).cast::<u64>().add(direction.index()), u64::from(bytes));
        }
    }
}

/// Adds to nobody's counters.
#[inline(always)]
pub fn count_anonymous(class: Class, direction: Direction, dropped: bool, bytes: u32, packets: u32) {
    let Some(usage) = ANONYMOUS_USAGE.get_ptr_mut(0) else { return };
    const { assert!(Class::COUNT == 8) };
    let mut place = class.index();
    believed(&mut place, 7);
    // SAFETY: the value is valid for the length of a run, class and direction are within it, and this CPU alone writes it. By pointer,
    // for a slice's check would leave a panic in the program.
    unsafe {
        let cells = addr_of_mut!((*usage).cells).cast::<[Cell; 2]>();
        let cell = cells.add(place).cast::<Cell>().add(direction.index());
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

/// A bucket's time.
pub struct Bucket(*mut u64);

/// The bucket of what a slot hands to the agent.
#[inline(always)]
pub fn ration(slot: u32) -> Option<Bucket> {
    RATIONS.get_ptr_mut(slot).map(Bucket)
}

impl Bucket {
    #[inline(always)]
    pub fn empty_at(&self) -> u64 {
        // SAFETY: a word of a map value, valid for the length of a run.
        unsafe { self.0.read_volatile() }
    }

    /// Moves the time from `seen` to `next`, atomically; gives what it is instead where another CPU was faster.
    #[inline(always)]
    pub fn exchange(&self, seen: u64, next: u64) -> Result<(), u64> {
        compare_exchange(self.0, seen, next)
    }

    /// Moves the time on by `ticks`, whatever it is, atomically.
    #[inline(always)]
    pub fn advance(&self, ticks: u64) {
        add(self.0, ticks);
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

/// The least of a packet that is worth to be seen: its IP header, of either version.
const IP_BYTES: u32 = 20;
const IPV6_BYTES: u32 = 40;

/// What of a packet the agent is to see.
pub struct Sample {
    pub ip_at: u32,
    pub ip_bytes: u32,
    pub protocol: u8,
    /// The subscriber's in the upper half.
    pub ports: u32,
    pub slot: u32,
    pub direction: Direction,
    pub first_packet_ns: u64,
}

/// Hands the beginning of a packet to the agent; false where that failed.
#[inline(always)]
pub fn sample(frame: &impl Hook, sample: &Sample, config: &ConfigEntry) -> bool {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return false };
    let length = sample.ip_bytes.min(config.sample_bytes());
    if length < IP_BYTES || length > MAX_FIRST_BYTES as u32 {
        return false;
    }
    // SAFETY: the value is valid for the length of a run and this CPU's alone; `length` bytes fit into it, and the helper
    // refuses to read beyond the packet. The head is written field by field, for put together elsewhere first it would be on the stack.
    unsafe {
        let to = addr_of_mut!((*scratch).packet).cast();
        if !frame.copy_to(sample.ip_at, to, length) {
            return false;
        }
        let head = addr_of_mut!((*scratch).head);
        let ends: [*mut [u32; 4]; 2] =
            [addr_of_mut!((*head).flow.subscriber).cast(), addr_of_mut!((*head).flow.remote).cast()];
        let [source, destination] = match sample.direction {
            Direction::Up => ends,
            Direction::Down => [ends[1], ends[0]],
        };
        // From the packet itself, which is there by now.
        let packet = addr_of!((*scratch).packet).cast::<u32>();
        if packet.cast::<u8>().read() >> 4 == 4 {
            source.write(mapped(packet.add(3).read()));
            destination.write(mapped(packet.add(4).read()));
        } else if length < IPV6_BYTES {
            return false;
        } else {
            source.write(packet.add(2).cast::<[u32; 4]>().read());
            destination.write(packet.add(6).cast::<[u32; 4]>().read());
        }
        addr_of_mut!((*head).flow.subscriber_port).write((sample.ports >> 16) as u16);
        addr_of_mut!((*head).flow.remote_port).write(sample.ports as u16);
        addr_of_mut!((*head).flow.protocol).cast::<u32>().write(u32::from(sample.protocol).to_le());
        addr_of_mut!((*head).first_packet_ns).write(sample.first_packet_ns);
        addr_of_mut!((*head).seen_ns).write(now_ns());
        addr_of_mut!((*head).slot).write(sample.slot);
        addr_of_mut!((*head).length).write(length);
        addr_of_mut!((*head).direction).write(sample.direction as u32);
        addr_of_mut!((*head).zero).write(0);
        let record = core::slice::from_raw_parts(scratch.cast::<u8>(), FirstBytes::SIZE + length as usize);
        SAMPLES.output::<[u8]>(record, 0).is_ok()
    }
}
