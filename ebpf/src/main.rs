//! The probe: one program for each direction of a subscriber-facing interface.
//!
//! A packet's way, forwards: [`entry`] -> [`parse::parse`] -> [`carry`]: its flow, or the longest prefix for a flow's first
//! packet -> [`police::police`] -> its counters -> perhaps a sample to the agent. What goes wrong is counted by reason,
//! and the packet passes: forwarding goes first.
//!
//! Owns what happens to a packet. Refuses raw pointers, which are [`kernel`]'s.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod kernel;
mod parse;
mod police;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use usher_models::wire::{Binding, Class, Direction, Flow, Reason, UNLIMITED_SAMPLES};

use kernel::{ConfigEntry, FlowEntry, Skb};
use parse::{Frame as _, Packet};

/// The packet goes on: TCX_NEXT, which to clsact is TC_ACT_UNSPEC. Other programs still see it.
const PASS: i32 = -1;
/// The packet is held back: TCX_DROP, which to clsact is TC_ACT_SHOT.
const DROP: i32 = 2;

/// DNS keeps sampling: its answers name the flows to come.
const DOMAIN: u16 = 53;

/// Packets from subscribers.
#[classifier]
pub fn usher_up(context: TcContext) -> i32 {
    entry(&Skb::new(context), Direction::Up)
}

/// Packets to subscribers.
#[classifier]
pub fn usher_down(context: TcContext) -> i32 {
    entry(&Skb::new(context), Direction::Down)
}

/// Whether a packet goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Drop,
}

/// Whose packet the agent may be shown.
enum FirstBytes {
    /// That of a flow in the table, while it has samples left.
    OfKnown(FlowEntry),
    /// That of a flow entered just now.
    OfNew { first_packet_ns: u64 },
    /// Nobody's: the table was full.
    None,
}

#[inline(always)]
fn entry(skb: &Skb, direction: Direction) -> i32 {
    match parse::parse(skb, direction).map(|packet| carry(skb, &packet, direction)) {
        Ok(Verdict::Pass) => PASS,
        Ok(Verdict::Drop) => DROP,
        Err(reason) => {
            kernel::tally(reason, direction, skb.length());
            PASS
        }
    }
}

/// Counts a packet for its subscriber and class, holds it to their rates, and shows it to the agent if that asked.
#[inline(always)]
fn carry(skb: &Skb, packet: &Packet, direction: Direction) -> Verdict {
    if let Some(trouble) = packet.trouble {
        kernel::tally(trouble, direction, skb.length());
    }
    // There always is one: an array's entries are there from its making.
    let Some(config) = kernel::config() else { return Verdict::Pass };
    // The epoch is read before the session table: a binding made meanwhile is then looked up again.
    let epoch = config.epoch();
    let (slot, class, first_bytes) = match kernel::flow(&packet.flow) {
        Some(flow) => {
            let binding = flow.binding();
            let slot = if binding.epoch() == epoch {
                binding.slot()
            } else {
                let slot = kernel::session(&packet.flow.subscriber);
                flow.bind(Binding::new(epoch, slot));
                slot
            };
            flow.touch(config.generation());
            (slot, flow.class(), FirstBytes::OfKnown(flow))
        }
        None => {
            let slot = kernel::session(&packet.flow.subscriber);
            let now = kernel::now_ns();
            let known = remember(packet, &config, Binding::new(epoch, slot), now);
            if !known {
                kernel::tally(Reason::FlowTableFull, direction, skb.length());
            }
            (
                slot,
                Class::Other,
                if known { FirstBytes::OfNew { first_packet_ns: now } } else { FirstBytes::None },
            )
        }
    };

    let (bytes, packets) = on_the_wire(skb, packet);
    let verdict = if config.bypass() { Verdict::Pass } else { police::police(slot, class, direction, bytes) };
    kernel::count(slot, class, direction, verdict == Verdict::Drop, bytes, packets);

    // What is held back comes again; its sample is taken, and paid for, when it passes.
    if verdict == Verdict::Pass && packet.worth_a_sample {
        let first_packet_ns = match first_bytes {
            FirstBytes::OfKnown(flow) => flow.takes_sample().then(|| flow.first_packet_ns()),
            FirstBytes::OfNew { first_packet_ns } => Some(first_packet_ns),
            FirstBytes::None => None,
        };
        if let Some(first_packet_ns) = first_packet_ns {
            show(skb, packet, &config, slot, direction, first_packet_ns);
        }
    }
    verdict
}

/// Hands the beginning of a packet to the agent, within what its subscriber may have of the ring.
#[inline(always)]
fn show(
    skb: &Skb,
    packet: &Packet,
    config: &ConfigEntry,
    slot: u32,
    direction: Direction,
    first_packet_ns: u64,
) {
    if police::rationed(config, slot, direction, packet.ip_bytes.min(config.sample_bytes())) {
        kernel::tally(Reason::SampleRationed, direction, skb.length());
    } else if !kernel::sample(skb, packet, config, slot, direction, first_packet_ns) {
        kernel::tally(Reason::SampleLost, direction, skb.length());
    }
}

/// Enters a flow in the table; false where that is full.
#[inline(always)]
fn remember(packet: &Packet, config: &ConfigEntry, binding: Binding, now: u64) -> bool {
    let samples = if packet.flow.remote_port == DOMAIN {
        UNLIMITED_SAMPLES
    } else {
        // One less: this packet is the first of them.
        config.sample_packets().saturating_sub(u16::from(packet.worth_a_sample))
    };
    kernel::remember(
        &packet.flow,
        &Flow {
            binding,
            first_packet_ns: now,
            generation: config.generation(),
            samples_left: samples,
            class: Class::Other as u8,
            sampling: 1,
        },
    )
}

/// Bytes and packets as they are on the wire, where a super-packet's segments each have the headers.
#[inline(always)]
fn on_the_wire(skb: &Skb, packet: &Packet) -> (u32, u32) {
    let segment_bytes = skb.segment_bytes();
    if segment_bytes == 0 {
        return (packet.ip_bytes, 1);
    }
    let payload_bytes = packet.ip_bytes - packet.header_bytes;
    let segments = skb.segments().max(payload_bytes.div_ceil(segment_bytes)).max(1);
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
