//! Programs of the bench alone: what drives the probe, and what it is measured beside. Never attached, not shipped.
//!
//! [`drive`] makes each run's packet one of the next flow and calls whichever program is in the table of targets. All of
//! them are measured behind the same driver, so that only what they do differs.

#![no_std]
#![no_main]

#[path = "bench_plan.rs"]
mod plan;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::bpf_xdp_adjust_meta;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, HashMap, ProgramArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use plan::{BOTH, DOWN, GTPU, GTPU_AT, IPV4, IPV6, PLAIN_AT, Plan, REMOTE, SUBSCRIBER, UP};
use usher_models::wire::FlowKey;

/// TCX_NEXT.
const PASS: i32 = -1;
const TCP: u8 = 6;
/// Where the TCP header's timestamp is, after two bytes of padding, kind and length.
const TIMESTAMP_AT: usize = 24;
/// Where its sequence number is, and the acknowledgement after it.
const SEQUENCE_AT: usize = 4;
/// Bytes by which a segment moves its numbers on.
const PAYLOAD_BYTES: u32 = 62;

#[map(name = "bench_plan")]
static PLAN: Array<Plan> = Array::with_max_entries(1, 0);
/// The program of each direction.
#[map(name = "bench_targets")]
static TARGETS: ProgramArray = ProgramArray::with_max_entries(2, 0);
/// The same for programs of the driver.
#[map(name = "bench_targets_xdp")]
static TARGETS_XDP: ProgramArray = ProgramArray::with_max_entries(2, 0);
#[map(name = "bench_flows")]
static FLOWS: HashMap<FlowKey, u64> = HashMap::with_max_entries(1, 0);

/// A packet at either hook: where its bytes begin and end.
trait Packet {
    fn begin(&self) -> usize;
    fn end(&self) -> usize;
}

impl Packet for TcContext {
    #[inline(always)]
    fn begin(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

impl Packet for XdpContext {
    #[inline(always)]
    fn begin(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

/// Makes the packet the next flow's and hands it to the target of its direction.
#[classifier]
pub fn drive(context: TcContext) -> i32 {
    if let Some(direction) = next(&context) {
        // SAFETY: the table has room for both directions; where nothing is in it, the call comes back.
        let _ = unsafe { TARGETS.tail_call(&context, direction) };
    }
    PASS
}

/// The same in the driver.
#[xdp(frags)]
pub fn drive_xdp(context: XdpContext) -> u32 {
    // What the run before has left in the metadata is still there: a test run's frame is one and the same.
    let left = context.data() - context.metadata();
    // SAFETY: the context is the kernel's own.
    if left != 0 && unsafe { bpf_xdp_adjust_meta(context.ctx, left as i32) } != 0 {
        return XDP_DROP;
    }
    if let Some(direction) = next(&context) {
        // SAFETY: as above.
        let _ = unsafe { TARGETS_XDP.tail_call(&context, direction) };
    }
    XDP_PASS
}

/// Makes the packet the next flow's; its direction.
#[inline(always)]
fn next(context: &impl Packet) -> Option<u32> {
    let plan = PLAN.get_ptr_mut(0)?;
    // SAFETY: a map value is valid for the length of a run, and one CPU runs the bench.
    let plan = unsafe { &mut *plan };
    let turn = plan.turn;
    plan.turn = turn.wrapping_add(1);
    let (direction, step) = match plan.ways {
        BOTH => (1 ^ (turn & 1), turn >> 1),
        UP => (0, turn),
        DOWN => (1, turn),
        _ => return None,
    };
    let flow = permuted(step & plan.flow_mask, plan.flow_mask);
    let subscriber = flow % plan.subscribers.max(1);
    let pass = step / plan.flow_mask.wrapping_add(1).max(1);
    let up = direction == 0;
    let remote = flow.wrapping_add(plan.remote_offset);
    match plan.shape {
        IPV4 => ipv4::<PLAIN_AT>(context, subscriber, remote, up)
            .and_then(|()| timestamps::<{ PLAIN_AT + 20 }>(context, pass, up)),
        IPV6 => ipv6::<PLAIN_AT>(context, subscriber, remote, up)
            .and_then(|()| timestamps::<{ PLAIN_AT + 40 }>(context, pass, up)),
        GTPU => ipv4::<GTPU_AT>(context, subscriber, remote, up)
            .and_then(|()| timestamps::<{ GTPU_AT + 20 }>(context, pass, up)),
        _ => None,
    }?;
    Some(direction)
}

/// What an empty program costs, behind the driver.
#[classifier]
pub fn nothing(_: TcContext) -> i32 {
    PASS
}

#[xdp(frags)]
pub fn nothing_xdp(_: XdpContext) -> u32 {
    XDP_PASS
}

/// One look-up of the packet's 5-tuple in a hash map, and nothing else.
#[classifier]
pub fn look_up(context: TcContext) -> i32 {
    match key(&context).and_then(|key| FLOWS.get_ptr(&key)) {
        // SAFETY: a map value is valid for the length of a run.
        Some(value) => PASS - i32::from(unsafe { *value } != 0),
        None => 0,
    }
}

#[xdp(frags)]
pub fn look_up_xdp(context: XdpContext) -> u32 {
    match key(&context).and_then(|key| FLOWS.get_ptr(&key)) {
        // SAFETY: as above.
        Some(value) => XDP_PASS - u32::from(unsafe { *value } != 0),
        None => XDP_DROP,
    }
}

/// Puts the packet's 5-tuple where [`look_up`] finds it.
#[classifier]
pub fn remember(context: TcContext) -> i32 {
    if let Some(key) = key(&context) {
        let _ = FLOWS.insert(&key, 0_u64, 0);
    }
    PASS
}

#[xdp(frags)]
pub fn remember_xdp(context: XdpContext) -> u32 {
    if let Some(key) = key(&context) {
        let _ = FLOWS.insert(&key, 0_u64, 0);
    }
    XDP_PASS
}

/// The `number` of a flow to a number as far from it as may be: multiplications and shifts that undo none of each other.
#[inline(always)]
fn permuted(number: u32, mask: u32) -> u32 {
    let half = (32 - mask.leading_zeros()) / 2;
    let mut x = number.wrapping_mul(0x9e37_79b1) & mask;
    x ^= x >> half;
    x = x.wrapping_mul(0x85eb_ca6b) & mask;
    x ^ x >> half
}

#[inline(always)]
fn ipv4<const AT: usize>(context: &impl Packet, subscriber: u32, remote: u32, up: bool) -> Option<()> {
    let subscriber = SUBSCRIBER.wrapping_add(subscriber).to_be();
    let remote = REMOTE.wrapping_add(remote).to_be();
    let ends = if up { [subscriber, remote] } else { [remote, subscriber] };
    write(context, AT + 12, ends)
}

#[inline(always)]
fn ipv6<const AT: usize>(context: &impl Packet, subscriber: u32, remote: u32, up: bool) -> Option<()> {
    let network = 0x2001_0db8_u32.to_be();
    let subscriber = [network, subscriber.to_be(), 0, 1_u32.to_be()];
    let remote = [network, 0xffff_0000_u32.to_be(), 0, remote.to_be()];
    let [a, b] = if up { [subscriber, remote] } else { [remote, subscriber] };
    write(context, AT + 8, [a, b])
}

/// Sequence numbers and time stamps as two ends that answer each other at once send them, of which the one below comes first.
#[inline(always)]
fn timestamps<const TCP_AT: usize>(context: &impl Packet, pass: u32, up: bool) -> Option<()> {
    let sent = pass.wrapping_mul(PAYLOAD_BYTES);
    let (echoed, received) =
        if up { (pass, sent.wrapping_add(PAYLOAD_BYTES)) } else { (pass.wrapping_sub(1), sent) };
    write(context, TCP_AT + SEQUENCE_AT, [sent.to_be(), received.to_be()])?;
    write(context, TCP_AT + TIMESTAMP_AT, [pass.to_be(), echoed.to_be()])
}

#[inline(always)]
fn write<T>(context: &impl Packet, at: usize, value: T) -> Option<()> {
    let from = context.begin() + at;
    if from + size_of::<T>() > context.end() {
        return None;
    }
    // SAFETY: within the packet's linear part, as the verifier checks again.
    unsafe { (from as *mut T).write_unaligned(value) };
    Some(())
}

#[inline(always)]
fn read<T: Copy, P: Packet>(context: &P, at: usize) -> Option<T> {
    let from = context.begin() + at;
    if from + size_of::<T>() > context.end() {
        return None;
    }
    // SAFETY: as above; only numbers are read.
    Some(unsafe { (from as *const T).read_unaligned() })
}

/// The 5-tuple of a packet the driver made, with as little as it takes.
#[inline(always)]
fn key(context: &impl Packet) -> Option<FlowKey> {
    let (ends, ports) = match PLAN.get(0)?.shape {
        IPV4 => (read::<[u32; 2], _>(context, PLAIN_AT + 12)?, read(context, PLAIN_AT + 20)?),
        GTPU => (read::<[u32; 2], _>(context, GTPU_AT + 12)?, read(context, GTPU_AT + 20)?),
        _ => {
            let [source, destination] = read::<[[u8; 16]; 2], _>(context, PLAIN_AT + 8)?;
            return Some(flow_key(source, destination, read(context, PLAIN_AT + 40)?));
        }
    };
    Some(flow_key(mapped(ends[0]), mapped(ends[1]), ports))
}

#[inline(always)]
fn flow_key(subscriber: [u8; 16], remote: [u8; 16], ports: [u16; 2]) -> FlowKey {
    FlowKey {
        subscriber,
        remote,
        subscriber_port: ports[0],
        remote_port: ports[1],
        protocol: TCP,
        zero: [0; 3],
    }
}

#[inline(always)]
fn mapped(address: u32) -> [u8; 16] {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No code path reaches this: a program with one would not pass the verifier.
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 18] = *b"MIT OR Apache-2.0\0";
