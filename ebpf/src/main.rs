//! The probe: one program for each direction of a subscriber-facing interface, and one that measures for both; the same again for
//! interfaces without a link-layer header: which of them an interface has is told when they are attached, and costs a packet nothing.
//! Where the driver runs programs (XDP), what comes from subscribers can be met there already, by [`usher_xdp`].
//!
//! A packet's way, forwards: [`entry`] or [`early`] -> [`decide`]: [`parse::plain`], or [`search`] and [`walk::walk`] where the frame is not
//! plain -> [`carry`]: its flow, or the longest prefix for a flow's first packet -> [`police::police`] -> its counters -> perhaps a sample to
//! the agent -> perhaps [`mark::mark`] -> perhaps [`quality::measure`]. What goes wrong is counted by reason, and the packet passes:
//! forwarding goes first.
//!
//! Owns what happens to a packet. Refuses raw pointers, which are [`kernel`]'s.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod apart;
mod kernel;
mod mark;
mod parse;
mod police;
mod quality;
mod walk;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use usher_models::wire::{
    ANONYMOUS, Action, Class, Direction, Fingerprint, FlowState, Reason, tells_without_end, tree,
};

use kernel::{ConfigEntry, Hook, Sample, Skb, Xdp};
use parse::{Packet, Plain};

/// The packet goes on: TCX_NEXT, which to clsact is TC_ACT_UNSPEC. Other programs still see it.
const PASS: i32 = -1;
/// The packet is held back: TCX_DROP, which to clsact is TC_ACT_SHOT.
const DROP: i32 = 2;

/// Packets from subscribers, but for those that [`usher_xdp`] has counted.
#[classifier]
#[inline(always)]
pub fn usher_up(context: TcContext) -> i32 {
    let skb = Skb::new(context);
    if let Some(config) = kernel::config()
        && let Some(class) = kernel::counted_as(&skb, &config)
    {
        if class != 0 {
            skb.set_priority(class);
        }
        return PASS;
    }
    entry(&skb, Link::Ethernet, Direction::Up)
}

/// Packets to subscribers.
#[classifier]
#[inline(always)]
pub fn usher_down(context: TcContext) -> i32 {
    entry(&Skb::new(context), Link::Ethernet, Direction::Down)
}

/// Packets from subscribers, without a link-layer header.
#[classifier]
pub fn usher_ip_up(context: TcContext) -> i32 {
    entry(&Skb::new(context), Link::Ip, Direction::Up)
}

/// Packets to subscribers, likewise.
#[classifier]
pub fn usher_ip_down(context: TcContext) -> i32 {
    entry(&Skb::new(context), Link::Ip, Direction::Down)
}

/// Packets from subscribers, in the driver. [`usher_up`] comes after it.
#[xdp(frags)]
#[inline(always)]
pub fn usher_xdp(context: XdpContext) -> u32 {
    early(context)
}

/// In the place of [`usher_xdp`] until what was sent before that was there has arrived: a virtual Ethernet's other end sends
/// super-packets until then, and what they are made of is not to be seen in the driver.
#[xdp(frags)]
pub fn usher_xdp_wait(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// What an interface's frames begin with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Ethernet,
    Ip,
}

/// The last of a packet whose turn it is to be measured; called by the two above, and never attached.
#[classifier]
#[inline(always)]
pub fn usher_measure(context: TcContext) -> i32 {
    quality::measure(&Skb::new(context));
    PASS
}

/// As [`usher_measure`], for [`usher_xdp`].
#[xdp(frags)]
#[inline(always)]
pub fn usher_measure_xdp(context: XdpContext) -> u32 {
    quality::measure(&Xdp::of(context.ctx));
    xdp_action::XDP_PASS
}

/// Whether a packet goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    /// It goes on, and it is its flow's turn to be measured.
    Measure,
    Drop,
}

#[inline(always)]
fn entry(skb: &Skb, link: Link, direction: Direction) -> i32 {
    // There always is one: an array's entries are there from its making.
    let Some(config) = kernel::config() else { return PASS };
    match decide(skb, &config, link, direction) {
        Verdict::Pass => PASS,
        Verdict::Measure => {
            // Comes back only where there is no such program.
            skb.measure();
            PASS
        }
        Verdict::Drop => DROP,
    }
}

#[inline(always)]
fn early(context: XdpContext) -> u32 {
    // Where no word can be left for the program after, that one does all of it.
    let Some(config) = kernel::config() else { return xdp_action::XDP_PASS };
    let Some(frame) = Xdp::with_word(context.ctx, &config) else { return xdp_action::XDP_PASS };
    match decide(&frame, &config, Link::Ethernet, Direction::Up) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Measure => {
            frame.measure();
            xdp_action::XDP_PASS
        }
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

#[inline(always)]
fn decide(frame: &impl Hook, config: &ConfigEntry, link: Link, direction: Direction) -> Verdict {
    let plain = match link {
        Link::Ethernet => parse::plain(frame),
        Link::Ip => None,
    };
    match plain {
        Some(Plain::Packet(packet)) => carry(frame, config, &packet, 0, direction),
        Some(Plain::Gtpu([outer, inner])) if !is_session(config, &outer, direction) => {
            let [outer, inner] = [outer, inner].map(kernel::forgotten);
            kernel::keep_around(&outer);
            carry(frame, config, &inner, 1, direction)
        }
        _ => {
            let first = match link {
                Link::Ethernet => walk::ETHERNET_HEADER,
                Link::Ip => walk::IP_HEADER,
            };
            let Some(around) = frame.search(first, direction).checked_sub(1) else { return Verdict::Pass };
            let Some(packet) = kernel::found(around) else { return Verdict::Pass };
            carry(frame, config, packet, around, direction)
        }
    }
}

/// Looks for the subscriber's packet in a frame that is not plain: its place among those found in it, from 1 on; 0 where there is none, which is
/// counted by reason. Called by [`Hook::search`].
#[inline(always)]
fn search(frame: &impl Hook, first: u32, direction: Direction) -> u32 {
    let found = match walk::walk(frame, first) {
        Ok(found) => found,
        Err(reason) => {
            kernel::tally(reason, direction, frame.length());
            return 0;
        }
    };
    let Some(config) = kernel::config() else { return 0 };
    let around = subscribers(&config, found, direction);
    let Some(innermost) = kernel::found(found - 1) else { return 0 };
    let headers_end = innermost.ip_at + innermost.header_bytes;
    // Changed where it is kept: a copy would take stack.
    let Some(packet) = kernel::found_to_change(around) else { return 0 };
    packet.ports = kernel::ports(packet);
    if let Some(trouble) = packet.trouble {
        kernel::tally(trouble, direction, frame.length());
    }
    // What is around the innermost packet is around each of its segments.
    packet.header_bytes = headers_end - packet.ip_at;
    around + 1
}

/// Of packets in packets the place of the outermost that is a session's, for what is inside it is that subscriber's tunnel, whatever
/// addresses it bears; else of the innermost.
#[inline(always)]
fn subscribers(config: &ConfigEntry, found: u32, direction: Direction) -> u32 {
    let innermost = found - 1;
    for place in 0..walk::MAX_PACKETS {
        if place >= innermost {
            break;
        }
        let Some(packet) = kernel::found(place) else { break };
        if is_session(config, packet, direction) {
            return place;
        }
    }
    innermost
}

/// Whether a packet's subscriber has a session.
#[inline(always)]
fn is_session(config: &ConfigEntry, packet: &Packet, direction: Direction) -> bool {
    let ([subscriber, _], _) = packet.ends_and_ports(direction);
    kernel::session(config, config.time(), &subscriber) != ANONYMOUS
}

/// Counts a packet, which lies in `around` others, for its subscriber and class, holds it to their rates or hands it to the class that
/// shapes it, shows it to the agent if that asked, and marks it.
#[inline(always)]
fn carry(
    frame: &impl Hook,
    config: &ConfigEntry,
    packet: &Packet,
    around: u32,
    direction: Direction,
) -> Verdict {
    // The time is read before the session table: a binding made meanwhile is then looked up again.
    let time = config.time();
    let ([subscriber, remote], [subscriber_port, remote_port]) = packet.ends_and_ports(direction);
    let rest = Fingerprint::rest(subscriber_port, remote_port, packet.protocol);
    let fingerprint = Fingerprint::of(config.hash_keys(), &[subscriber, remote], rest);
    let flow = kernel::flow(config, fingerprint).or_else(|| {
        kernel::enter(config, fingerprint);
        kernel::flow(config, fingerprint)
    });
    let state = flow.map_or(FlowState::default(), |flow| flow.state());
    let slot = match state.slot(time) {
        Some(slot) => slot,
        None => {
            let slot = kernel::session(config, time, &subscriber);
            match flow {
                Some(flow) => flow.bind(state, slot, time),
                None => kernel::tally(Reason::FlowTableFull, direction, frame.length()),
            }
            slot
        }
    };

    let (bytes, packets) = on_the_wire(frame, packet);
    let (verdict, action) = account(config, slot, state.class(), direction, bytes, packets);
    // A flow that has just changed hands is counted for no app until the agent has found which one it is of its new slot's.
    if state.app() != 0 && state.last_slot() == slot && slot != ANONYMOUS && verdict == Verdict::Pass {
        kernel::count_for_app(config, slot, state, direction, bytes);
    }

    // What is held back comes again; its sample is taken, and paid for, when it passes.
    if verdict == Verdict::Pass
        && packet.worth_a_sample
        && (packet.opens_connection || !state.settled())
        && let Some(flow) = flow
    {
        let place = u64::from(packet.ip_bytes) << 32 | u64::from(packet.ip_at);
        let opens = u64::from(packet.opens_connection) << 1;
        let whose = u64::from(slot) << 32 | u64::from(packet.protocol) << 8 | opens | direction as u64;
        let ports = u32::from(subscriber_port) << 16 | u32::from(remote_port);
        frame.offer(place, whose, ports, flow.place());
    }
    if verdict == Verdict::Pass && action.shaper() != 0 {
        frame.set_priority(u32::from(tree(direction)) << 16 | u32::from(action.shaper()));
    }
    // From here on nothing looks into the packet: once something is written, what was found in the packet's memory is to be looked for again.
    if verdict == Verdict::Pass
        && let Some(dscp) = action.mark()
    {
        frame.mark(packet.ip_at, around, dscp, direction);
    }
    // What is held back is lost to the path behind, and told by what is sent in its place.
    if verdict == Verdict::Pass
        && let Some(flow) = flow
        && config.measures(&flow, state.class())
        && slot != ANONYMOUS
        && quality::hand_over(packet, &flow, slot, state.class(), direction)
    {
        return Verdict::Measure;
    }
    verdict
}

/// Holds a packet to what is enforced, and counts it as let through or held back; also says what else is enforced.
#[inline(always)]
fn account(
    config: &ConfigEntry,
    slot: u32,
    class: Class,
    direction: Direction,
    bytes: u32,
    packets: u32,
) -> (Verdict, Action) {
    let Some(lane) = kernel::lane(config, slot, class, direction) else {
        kernel::tally(Reason::NoSuchSlot, direction, bytes);
        kernel::count_anonymous(class, direction, false, bytes, packets);
        return (Verdict::Pass, Action::default());
    };
    // Of no gate, no limit and no mark where enforcement is off.
    let (verdict, action) = if config.bypass() {
        (Verdict::Pass, Action::default())
    } else {
        let action = lane.action();
        (police::police(config, slot, &lane, action, direction, bytes), action)
    };
    let dropped = verdict == Verdict::Drop;
    if slot == ANONYMOUS {
        kernel::count_anonymous(class, direction, dropped, bytes, packets);
    } else {
        lane.count(dropped, bytes, packets);
    }
    (verdict, action)
}

/// Hands the beginning of a packet to the agent, unless its flow or its slot has had its share. Called by [`Hook::offer`]; reads the addresses
/// once more: for the few packets it is called for, all others need not keep them.
///
/// `place` is where the IP header begins and, above it, how long the packet is; `whose` the slot and, below it, protocol, whether a connection
/// opens, and direction; `flow` where the flow is in the table.
#[inline(always)]
fn offer(frame: &impl Hook, place: u64, whose: u64, ports: u32, flow: u32) {
    let (ip_at, ip_bytes) = (place as u32, (place >> 32) as u32);
    let (slot, protocol) = ((whose >> 32) as u32, (whose >> 8) as u8);
    let direction = apart::way(whose as u32 & 1);
    let (Some(config), Some(flow)) = (kernel::config(), kernel::flow_at(flow)) else { return };
    let unlimited = tells_without_end([(ports >> 16) as u16, ports as u16]);
    let budget = if unlimited { u32::MAX } else { config.sample_packets() };
    let Some(first_packet_ns) = flow.takes_sample(whose & 2 != 0, budget) else { return };
    let sample = Sample { ip_at, ip_bytes, protocol, ports, slot, direction, first_packet_ns };
    if police::rationed(&config, slot, direction, ip_bytes.min(config.sample_bytes())) {
        kernel::tally(Reason::SampleRationed, direction, frame.length());
    } else if !kernel::sample(frame, &sample, &config) {
        kernel::tally(Reason::SampleLost, direction, frame.length());
    }
}

/// Bytes and packets as they are on the wire, where a super-packet's segments each have the headers.
#[inline(always)]
fn on_the_wire(frame: &impl Hook, packet: &Packet) -> (u32, u32) {
    let segment_bytes = frame.segment_bytes();
    if segment_bytes == 0 {
        return (packet.ip_bytes, 1);
    }
    let payload_bytes = packet.ip_bytes - packet.header_bytes;
    let segments = frame.segments().max(payload_bytes.div_ceil(segment_bytes)).max(1);
    (packet.ip_bytes + (segments - 1) * packet.header_bytes, segments)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No code path reaches this: a program with one would not pass the verifier.
    loop {}
}

/// The kernel lets programs of other licences than the GPL call all helpers the probe calls.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 18] = *b"MIT OR Apache-2.0\0";
