//! How well a packet's flow gets through, for those packets whose turn it is: what [`segments`] and [`datagrams`] find is counted for the slot and
//! class.
//!
//! A packet that is not measured costs the comparison that says so; nothing here is read or written for it.

pub mod datagrams;
pub mod segments;

use usher_models::wire::{Class, Direction, Reason};

use crate::kernel::{self, ConfigEntry, FlowEntry, HandedOver, Hook, QualityWords};
use crate::parse::{Fragment, Packet, TCP, UDP, tcp_flags};

use self::datagrams::Datagram;
pub use self::segments::Measured;
use self::segments::{Half, Segment, Stamps, TICK_SHIFT, Ticks};

/// The first word of the options of a segment with time stamps as RFC 7323 (appendix A) wants them: two that do nothing, kind, length.
const TIME_STAMPS: u32 = u32::from_ne_bytes([1, 1, 8, 10]);
/// The port of QUIC's servers of HTTP/3 (RFC 9114, 3.1); others are not looked for.
const QUIC_PORT: u16 = 443;
/// What a packet is measured as.
const SEGMENT: u32 = 0;
const CALL: u32 = 1;
const QUIC: u32 = 2;
/// Bytes of a UDP header.
const UDP_BYTES: u32 = 8;
/// Bytes of a TCP header without options.
const TCP_BYTES: u32 = 20;
/// And with time stamps.
const STAMPED_BYTES: u32 = 32;

/// Hands a packet that passes over to [`measure`]; false where it tells nothing.
#[inline(always)]
pub fn hand_over(packet: &Packet, flow: &FlowEntry, slot: u32, class: Class, direction: Direction) -> bool {
    // A fragment has a part of what there is to read; a packet in trouble has none.
    if packet.transport_at == 0 || packet.fragment != Fragment::Whole {
        return false;
    }
    let [from, to] = packet.ports;
    let kind = match packet.protocol {
        TCP => SEGMENT,
        UDP if class == Class::Call => CALL,
        UDP if from == QUIC_PORT || to == QUIC_PORT => QUIC,
        _ => return false,
    };
    kernel::hand_over(HandedOver {
        transport_at: packet.transport_at,
        payload_bytes: packet.ip_bytes.saturating_sub(packet.header_bytes),
        flow: flow.place(),
        slot,
        class: class as u32,
        direction: direction as u32,
        kind,
        zero: 0,
    })
}

/// Measures the packet that was handed over: a program of its own, for few packets come here, and what it needs of stack and instructions
/// is not to be among those of all the others.
#[inline(always)]
pub fn measure(frame: &impl Hook) {
    let (Some(config), Some(packet)) = (kernel::config(), kernel::handed_over()) else { return };
    let class = Class::from_u8(packet.class as u8);
    let direction = if packet.direction == 0 { Direction::Up } else { Direction::Down };
    let Some(words) = kernel::quality_words(packet.flow) else { return };
    let answered = direction.opposite();
    if packet.kind != SEGMENT {
        datagram(frame, &config, packet, &words, class, direction);
        return;
    }
    let Some(segment) = segment(frame, packet) else { return };
    let waiting = words.half(answered);
    let other = Half::of(waiting);
    let before = words.half(direction);
    let (own, told) = segments::take(Half::of(before), &other, &segment, &config.turn(class), now);
    words.set_half(direction, before[0], own.words());
    // Of two answers on two CPUs one is counted.
    let answers = told.answers && words.exchange(answered, waiting[0], other.waiting.over().word());
    let round_trip = if answers { told.round_trip } else { 0 };
    if told.segments == 0 && round_trip == 0 {
        return;
    }
    let Some(quality) = kernel::quality(&config, packet.slot, class) else {
        kernel::tally(Reason::QualityFull, direction, frame.length());
        return;
    };
    if told.segments != 0 {
        quality.segments(direction, told.segments, told.retransmitted, told.reordered);
    }
    if round_trip != 0 {
        quality.round_trip(answered, (u64::from(round_trip) << TICK_SHIFT) / 1_000);
    }
}

/// Measures a datagram, of QUIC or of a call.
#[inline(always)]
fn datagram(
    frame: &impl Hook,
    config: &ConfigEntry,
    packet: &HandedOver,
    words: &QualityWords,
    class: Class,
    direction: Direction,
) {
    let before = words.half(direction);
    let own = datagrams::Half::of(before);
    let (own, told) = if packet.kind == CALL {
        datagrams::take_call(own, &config.turn(class), kernel::coarse_ns())
    } else {
        let Some([first, second]) = frame.words(packet.transport_at + UDP_BYTES) else { return };
        let ([first, a, b, c], [d, ..]) = (first.to_ne_bytes(), second.to_ne_bytes());
        let version = u32::from_be_bytes([a, b, c, d]);
        let datagram = Datagram { first, version, up: direction == Direction::Up };
        let other = datagrams::Half::of(words.half(direction.opposite()));
        datagrams::take_quic(own, &other, &datagram, &config.turn(class), now)
    };
    words.set_half(direction, before[0], own.words());
    if told.round_trip == 0 && told.windows == 0 {
        return;
    }
    let Some(quality) = kernel::quality(config, packet.slot, class) else {
        kernel::tally(Reason::QualityFull, direction, frame.length());
        return;
    };
    if told.windows != 0 {
        quality.windows(direction, told.windows, told.irregular);
    }
    if told.round_trip != 0 {
        quality.round_trip(direction.opposite(), (u64::from(told.round_trip) << TICK_SHIFT) / 1_000);
    }
}

/// The TCP segment a packet is.
#[inline(always)]
fn segment(frame: &impl Hook, packet: &HandedOver) -> Option<Segment> {
    let at = packet.transport_at;
    let [_, sequence, acknowledgement, offset] = frame.words(at)?;
    let room = (offset.to_ne_bytes()[0] >> 4) as u32 * 4 >= STAMPED_BYTES;
    let [first, value, echoed] = frame.words(at + TCP_BYTES).unwrap_or([0; 3]);
    let there = room && first == TIME_STAMPS;
    let stamps = Stamps { there, value: u32::from_be(value), echoed: u32::from_be(echoed) };
    Some(Segment {
        sequence: u32::from_be(sequence),
        acknowledgement: u32::from_be(acknowledgement),
        flags: tcp_flags(offset),
        payload_bytes: packet.payload_bytes,
        segment_bytes: frame.segment_bytes(),
        stamps,
    })
}

#[inline(always)]
fn now() -> Ticks {
    (kernel::now_ns() >> TICK_SHIFT) as Ticks
}
