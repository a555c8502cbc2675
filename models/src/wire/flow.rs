//! What the probe keeps about a flow, what it is told, and what it hands up.

use super::{FlowKey, Rate};

/// Bits of a session prefix's address; IPv4 prefixes are mapped, so that /32 is 128 here.
pub const PREFIX_BITS: u32 = 128;

/// The most bytes of one packet handed to the agent: a coalesced pair of full Ethernet frames.
pub const MAX_FIRST_BYTES: usize = 3072;

/// A flow's number of samples left that is never used up.
pub const UNLIMITED_SAMPLES: u16 = u16::MAX;

/// The generation before the first: the probe counts generations from 1.
pub const GENERATION_NONE: u32 = 0;

/// Whose a flow is, and since which epoch: one 64-bit word, so that both change at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Binding(pub u64);

impl Binding {
    /// `slot`, as looked up in `epoch`.
    #[inline]
    pub const fn new(epoch: u32, slot: u32) -> Self {
        Self((epoch as u64) << 32 | slot as u64)
    }

    /// The subscriber slot.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the slot")]
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    /// The epoch of the look-up.
    #[inline]
    pub const fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What the probe keeps about a flow. The agent writes `class` and `sampling`, the probe the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// The subscriber slot, good while the epoch is [`Config::epoch`].
    pub binding: Binding,
    /// When the first packet was seen.
    pub first_packet_ns: u64,
    /// The [`Config::generation`] in which the last packet was seen.
    pub generation: u32,
    /// Packets that may still be handed to the agent.
    pub samples_left: u16,
    /// A [`super::Class`]'s number.
    pub class: u8,
    /// Not zero while the agent wants samples.
    pub sampling: u8,
}

/// What the agent tells the probe about all packets, and what the maps are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// [`super::LAYOUT`] of every record in the maps. Stays in the first four bytes for ever.
    pub layout: u32,
    /// Not zero: all enforcement is off.
    pub bypass: u32,
    /// Rises with every change of a session prefix.
    pub epoch: u32,
    /// Rises with every sweep; a flow whose generation is old is idle.
    pub generation: u32,
    /// Packets of a new flow handed to the agent.
    pub sample_packets: u32,
    /// Bytes of a packet handed to the agent at the most; not more than [`MAX_FIRST_BYTES`].
    pub sample_bytes: u32,
    /// The interface the programs were attached to.
    pub interface: u32,
    /// Zero.
    pub zero: u32,
    /// The life of these maps, drawn at random when they were made.
    pub boot: [u8; 16],
    /// Bytes of one subscriber slot handed to the agent, so that nobody fills the ring for all.
    pub sample_rate: Rate,
}

/// The head of a ring-buffer record; `length` bytes of the packet follow, from its innermost IP header on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct FirstBytes {
    /// Whose flow, and with whom.
    pub flow: FlowKey,
    /// When the flow's first packet was seen.
    pub first_packet_ns: u64,
    /// When this packet was seen.
    pub seen_ns: u64,
    /// The subscriber slot the flow is counted for.
    pub slot: u32,
    /// Bytes of the packet that follow.
    pub length: u32,
    /// A [`super::Direction`]'s number.
    pub direction: u32,
    /// Zero.
    pub zero: u32,
}

impl FirstBytes {
    /// Bytes of the head.
    pub const SIZE: usize = size_of::<Self>();

    /// The head at the beginning of a record, and the packet's bytes after it; `None` where the record is shorter than it says.
    ///
    /// Native byte order, as the kernel wrote it.
    pub fn split(record: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = record.split_at_checked(Self::SIZE)?;
        let word = |at: usize| head.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let long = |at: usize| head.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
        let port = |at: usize| head.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
        let this = Self {
            flow: FlowKey {
                subscriber: head.get(0..16)?.try_into().ok()?,
                remote: head.get(16..32)?.try_into().ok()?,
                subscriber_port: port(32)?,
                remote_port: port(34)?,
                protocol: *head.get(36)?,
                zero: [0; 3],
            },
            first_packet_ns: long(40)?,
            seen_ns: long(48)?,
            slot: word(56)?,
            length: word(60)?,
            direction: word(64)?,
            zero: 0,
        };
        let packet = rest.get(..usize::try_from(this.length).ok()?)?;
        Some((this, packet))
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Flow>() == 24);
    assert!(size_of::<Config>() == 72);
    assert!(size_of::<FirstBytes>() == 72);
    assert!(offset_of!(Config, layout) == 0);
    assert!(offset_of!(FlowKey, subscriber_port) == 32);
    assert!(offset_of!(FlowKey, protocol) == 36);
    assert!(offset_of!(FirstBytes, first_packet_ns) == 40);
    assert!(offset_of!(FirstBytes, seen_ns) == 48);
    assert!(offset_of!(FirstBytes, slot) == 56);
    assert!(offset_of!(FirstBytes, length) == 60);
    assert!(offset_of!(FirstBytes, direction) == 64);
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The record as the kernel lays it out.
    fn written(head: &FirstBytes, packet: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend(head.flow.subscriber);
        record.extend(head.flow.remote);
        record.extend(head.flow.subscriber_port.to_ne_bytes());
        record.extend(head.flow.remote_port.to_ne_bytes());
        record.push(head.flow.protocol);
        record.extend([0; 3]);
        record.extend(head.first_packet_ns.to_ne_bytes());
        record.extend(head.seen_ns.to_ne_bytes());
        for word in [head.slot, head.length, head.direction, 0] {
            record.extend(word.to_ne_bytes());
        }
        record.extend(packet);
        record
    }

    proptest! {
        #[test]
        fn a_record_survives_the_ring(
            subscriber: [u8; 16], remote: [u8; 16], ports: (u16, u16), protocol: u8,
            times: (u64, u64), slot: u32, direction in 0_u32..2, packet: Vec<u8>, padding in 0_usize..8,
        ) {
            let flow = FlowKey {
                subscriber, remote, subscriber_port: ports.0, remote_port: ports.1, protocol, zero: [0; 3],
            };
            let length = u32::try_from(packet.len()).expect("short");
            let head = FirstBytes {
                flow, first_packet_ns: times.0, seen_ns: times.1, slot, length, direction, zero: 0,
            };
            let mut record = written(&head, &packet);
            record.extend(vec![0; padding]);
            prop_assert_eq!(FirstBytes::split(&record), Some((head, packet.as_slice())));
        }

        #[test]
        fn splitting_any_bytes_never_panics(record: Vec<u8>) {
            let _ = FirstBytes::split(&record);
        }

        #[test]
        fn a_binding_keeps_both_halves(epoch: u32, slot: u32) {
            let binding = Binding::new(epoch, slot);
            prop_assert_eq!((binding.epoch(), binding.slot()), (epoch, slot));
        }
    }
}
