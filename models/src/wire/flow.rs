//! What the probe keeps about a flow, what it is told, and what it hands up.

use super::{AppLane, Class, FlowKey, Rate, Turn};

/// Bits of a session prefix's address; IPv4 prefixes are mapped, so that /32 is 128 here.
pub const PREFIX_BITS: u32 = 128;

/// The most bytes of one packet handed to the agent: a coalesced pair of full Ethernet frames.
pub const MAX_FIRST_BYTES: usize = 3072;

/// Flows in a line of the flow table.
pub const WAYS: usize = 4;

/// Words of a [`FlowKey`] that go into its fingerprint, and random numbers it takes for each of the two halves.
pub const KEY_WORDS: usize = 10;

/// The random numbers behind fingerprints, drawn with the boot: `[half][word]`.
pub type HashKeys = [[u64; KEY_WORDS]; 2];

/// What stands for a flow in the flow table: 64 bits of its key under the maps' secret random numbers.
///
/// Each half is a multilinear hash (Lemire and Kaser, "Strongly universal string hashing is fast", 2014, without the constant term): the
/// sum of word times random number modulo 2^64, of which the upper 32 bits count. Two flows share both halves with a
/// chance of some 2^-64, whoever chose them without knowing the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// No flow's: a place in the table that is free.
    pub const FREE: u64 = 0;
    /// No flow's either: a place that the agent is clearing.
    pub const CLEARING: u64 = 1;

    /// Of a flow whose addresses are `ends`, subscriber first, as they lie in memory. `rest` holds both ports, the subscriber's in
    /// the upper half, and the protocol.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's programs have no calls")]
    pub fn of(keys: &HashKeys, ends: &[[u32; 4]; 2], rest: [u32; 2]) -> Self {
        let mut halves = [0_u64; 2];
        let mut half = 0;
        while half < 2 {
            let keys = &keys[half];
            let product = |word: usize, value: u32| keys[word].wrapping_mul(u64::from(value));
            let [subscriber, remote] = ends;
            let mut sum = product(8, rest[0]).wrapping_add(product(9, rest[1]));
            sum = sum.wrapping_add(product(3, subscriber[3])).wrapping_add(product(7, remote[3]));
            // The rest of an IPv4 address is the same in all of them.
            if !(is_mapped(subscriber) && is_mapped(remote)) {
                let mut word = 0;
                while word < 3 {
                    sum = sum.wrapping_add(product(word, subscriber[word]));
                    sum = sum.wrapping_add(product(word + 4, remote[word]));
                    word += 1;
                }
            }
            halves[half] = sum >> 32;
            half += 1;
        }
        let whole = halves[0] << 32 | halves[1];
        Self(if whole > Self::CLEARING { whole } else { whole + 2 })
    }

    /// Of a flow's key.
    pub fn of_key(keys: &HashKeys, key: &FlowKey) -> Self {
        let words = |address: &[u8; 16]| {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(address.chunks_exact(4)) {
                *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            words
        };
        let rest = Self::rest(key.subscriber_port, key.remote_port, key.protocol);
        Self::of(keys, &[words(&key.subscriber), words(&key.remote)], rest)
    }

    /// Ports and protocol as [`Fingerprint::of`] takes them.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's programs have no calls")]
    pub const fn rest(subscriber_port: u16, remote_port: u16, protocol: u8) -> [u32; 2] {
        [(subscriber_port as u32) << 16 | remote_port as u32, protocol as u32]
    }

    /// Of an address alone.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's programs have no calls")]
    pub fn of_address(keys: &HashKeys, address: &[u32; 4]) -> Self {
        // With an IPv4 address, so that of another one a single word is to be multiplied.
        Self::of(keys, &[*address, [0, 0, MAPPED, 0]], [0; 2])
    }

    /// The one that a place in the table holds; `None` where that is [`Fingerprint::FREE`] or [`Fingerprint::CLEARING`].
    #[inline]
    pub const fn read(word: u64) -> Option<Self> {
        if word > Self::CLEARING { Some(Self(word)) } else { None }
    }

    /// All 64 bits; neither [`Fingerprint::FREE`] nor [`Fingerprint::CLEARING`].
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The line its flow is in, of `line_mask` and one, which are a power of two: the first, or where that is full its neighbour.
    #[inline]
    pub const fn line(self, line_mask: u32) -> u32 {
        // Flows whose keys are in a row have fingerprints at even distances: mixed once more, they spread as if by chance.
        ((self.0 ^ self.0 >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & line_mask
    }
}

/// Whether an address is IPv4, mapped (RFC 4291, 2.5.5.2); its words as they lie in memory.
#[inline(always)]
#[expect(clippy::inline_always, reason = "the kernel's programs have no calls")]
const fn is_mapped(address: &[u32; 4]) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == MAPPED
}

/// The third word of a mapped address, as it lies in memory.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// What is known of a flow: whose it is, what it is, and when it was last seen. One 64-bit word, so that all of it changes at
/// once, with a part of the flow's fingerprint in it, so that a place in the table that went to another flow in this very moment changes
/// nothing for either. Zero is a flow of which nothing is known yet.
///
/// From the lowest bit: slot 20, app 4, epoch 20, generation 8, class 3, settled 1, fingerprint 8.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct FlowState(pub u64);

impl FlowState {
    /// The most slots that fit.
    pub const MAX_SLOTS: u32 = 1 << 20;
    /// Epochs count from 1 to this, and then from 1 again: an epoch of zero is before all of them.
    pub const LAST_EPOCH: u32 = (1 << 20) - 1;
    /// Generations likewise.
    pub const LAST_GENERATION: u32 = (1 << 8) - 1;

    const APP: u32 = 20;
    const APPS: u64 = 15 << Self::APP;
    const EPOCH: u32 = 24;
    const GENERATION: u32 = 44;
    const CLASS: u32 = 52;
    const SETTLED: u64 = 1 << 55;
    const OF: u32 = 56;
    /// Epoch, generation and fingerprint: what must be right for the slot to be.
    const TIMES: u64 =
        (Self::LAST_EPOCH as u64) << Self::EPOCH | (Self::LAST_GENERATION as u64) << Self::GENERATION;

    /// The word of a time: what [`FlowState::slot`] compares with, the same for all flows.
    #[inline]
    pub const fn time(epoch: u32, generation: u32) -> u64 {
        ((epoch as u64) << Self::EPOCH | (generation as u64) << Self::GENERATION) & Self::TIMES
    }

    /// The subscriber slot, if it was looked up at that time.
    #[inline]
    pub const fn slot(self, time: u64) -> Option<u32> {
        if self.0 & Self::TIMES == time { Some(self.last_slot()) } else { None }
    }

    /// The subscriber slot that was looked up last, whenever that was.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "20 bits are the slot")]
    pub const fn last_slot(self) -> u32 {
        self.0 as u32 & (Self::MAX_SLOTS - 1)
    }

    /// Whether this is of that flow, or of none yet.
    #[inline]
    pub const fn is_of(self, flow: Fingerprint) -> bool {
        self.0 == 0 || self.0 >> Self::OF == flow.0 >> Self::OF
    }

    /// The same with the slot that was looked up at a time. Where it is another, it is not counted for an app any more: which place that
    /// app has in this slot, the agent knows.
    #[inline]
    #[must_use]
    pub const fn bound(self, flow: Fingerprint, slot: u32, time: u64) -> Self {
        let app = if self.last_slot() == slot { Self::APPS } else { 0 };
        let kept = self.0 & (7 << Self::CLASS | Self::SETTLED | app);
        Self(flow.0 >> Self::OF << Self::OF | kept | time | (slot & (Self::MAX_SLOTS - 1)) as u64)
    }

    /// The same with a class, and with more samples wanted or not. In another class it is not counted for an app any more.
    #[must_use]
    pub const fn named(self, flow: Fingerprint, class: Class, sampling: bool) -> Self {
        let app = if self.class() as u8 == class as u8 { 0 } else { Self::APPS };
        let kept = self.0 & !(7 << Self::CLASS | Self::SETTLED | app) & !(0xff << Self::OF);
        let settled = if sampling { 0 } else { Self::SETTLED };
        Self(flow.0 >> Self::OF << Self::OF | kept | (class as u64) << Self::CLASS | settled)
    }

    /// The same, its bytes counted for the app at this choice of its slot's and class's places, see [`AppLane::place`]; 0: for none.
    #[must_use]
    pub const fn for_app(self, flow: Fingerprint, choice: u8) -> Self {
        let kept = self.0 & !Self::APPS & !(0xff << Self::OF);
        Self(flow.0 >> Self::OF << Self::OF | kept | (choice as u64) << Self::APP & Self::APPS)
    }

    /// The same with no more samples wanted.
    #[inline]
    #[must_use]
    pub const fn settle(self) -> Self {
        Self(self.0 | Self::SETTLED)
    }

    /// The same with samples wanted again.
    #[inline]
    #[must_use]
    pub const fn unsettle(self) -> Self {
        Self(self.0 & !Self::SETTLED)
    }

    /// The same, last seen in a generation.
    #[must_use]
    pub const fn seen(self, flow: Fingerprint, generation: u32) -> Self {
        let kept = self.0 & !((Self::LAST_GENERATION as u64) << Self::GENERATION) & !(0xff << Self::OF);
        Self(flow.0 >> Self::OF << Self::OF | kept | Self::time(0, generation))
    }

    /// Its class.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "three bits")]
    pub const fn class(self) -> Class {
        Class::from_u8((self.0 >> Self::CLASS) as u8 & 7)
    }

    /// Whether no more samples are wanted: the agent said so, or the flow has had its share.
    #[inline]
    pub const fn settled(self) -> bool {
        self.0 & Self::SETTLED != 0
    }

    /// The choice of its slot's and class's places at which its app is counted; 0: for no app.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "four bits")]
    pub const fn app(self) -> u8 {
        (self.0 >> Self::APP) as u8 & AppLane::CHOICES
    }

    /// The [`Config::generation`] in which the last packet was seen; 0 for none.
    pub const fn generation(self) -> u32 {
        (self.0 >> Self::GENERATION) as u32 & Self::LAST_GENERATION
    }
}

/// A flow in the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// A [`Fingerprint`], or why there is none.
    pub fingerprint: u64,
    /// What is known of it.
    pub state: FlowState,
}

/// The flows of one cache line of the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FlowLine {
    /// In the order in which they came, but for those cleared since.
    pub ways: [Flow; WAYS],
}

impl FlowLine {
    /// How many lines hold `flows`, a power of two. There is room for twice as many, for they do not spread evenly: with
    /// `flows` flows in the table, one in a hundred finds its two lines full.
    #[expect(clippy::cast_possible_truncation, reason = "four")]
    pub const fn lines(flows: u32) -> u32 {
        let wanted = flows.saturating_mul(2).div_ceil(WAYS as u32);
        if wanted < 2 {
            2
        } else if wanted > 1 << 28 {
            1 << 28
        } else {
            wanted.next_power_of_two()
        }
    }

    /// How many flows there is room for in so many lines.
    #[expect(clippy::cast_possible_truncation, reason = "four")]
    pub const fn room(lines: u32) -> u32 {
        lines.saturating_mul(WAYS as u32) / 2
    }
}

/// What else is kept about a flow, at the same place as it is: nothing that a packet of a settled flow needs. Written by the probe, but for
/// `app`, and cleared by the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FlowDetails {
    /// When the first packet was seen.
    pub first_packet_ns: u64,
    /// Packets handed to the agent so far.
    pub samples: u32,
    /// The place of the [`AppLane`] of its app, and one; 0: it is of none. The agent's alone, which finds by it what a flow of another slot
    /// is to be counted for.
    pub app: u32,
    /// What the programs measure of the flow, as they alone read it.
    pub quality: [u64; 6],
}

/// What the agent tells the probe about all packets, and what the maps are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// [`super::LAYOUT`] of every record in the maps. Stays in the first four bytes for ever.
    pub layout: u32,
    /// Not zero: all enforcement is off.
    pub bypass: u32,
    /// Rises with every change of a session prefix, see [`FlowState::LAST_EPOCH`].
    pub epoch: u32,
    /// Rises with time, see [`FlowState::LAST_GENERATION`]; a flow whose generation is old is idle.
    pub generation: u32,
    /// Packets of a new flow handed to the agent.
    pub sample_packets: u32,
    /// Bytes of a packet handed to the agent at the most; not more than [`MAX_FIRST_BYTES`].
    pub sample_bytes: u32,
    /// Subscriber slots.
    pub slots: u32,
    /// Lines of the flow table that are in use, less one.
    pub line_mask: u32,
    /// The life of these maps, drawn at random when they were made.
    pub boot: [u8; 16],
    /// Bytes of one subscriber slot handed to the agent, so that nobody fills the ring for all.
    pub sample_rate: Rate,
    /// Drawn at random with the boot.
    pub hash_keys: HashKeys,
    /// Which flows are measured.
    pub turn: Turn,
    /// Lanes of apps, less one.
    pub app_mask: u32,
    /// Zero.
    pub zero: u32,
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
    assert!(size_of::<FlowLine>() == 64);
    assert!(size_of::<FlowDetails>() == 64);
    assert!(Class::COUNT <= 8 && AppLane::CHOICES == 15);
    assert!(size_of::<Config>() == 72 + 160 + 24 + 8);
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
        fn a_state_holds_for_its_flow_and_time_alone(
            epoch in 1..=FlowState::LAST_EPOCH, generation in 1..=FlowState::LAST_GENERATION,
            slot in 0..FlowState::MAX_SLOTS, class in 0_u8..8, sampling: bool, app in 0..=AppLane::CHOICES, ours: u64, other: u64,
        ) {
            let (ours, other) = (Fingerprint(ours), Fingerprint(other));
            let time = FlowState::time(epoch, generation);
            let class = Class::from_u8(class);
            for state in [
                FlowState::default().bound(ours, slot, time).named(ours, class, sampling).for_app(ours, app),
                FlowState::default()
                    .bound(ours, slot, FlowState::time(epoch, 1))
                    .named(ours, class, !sampling)
                    .for_app(ours, app)
                    .named(ours, class, sampling)
                    .bound(ours, slot, time),
                FlowState::default()
                    .bound(ours, 1, FlowState::time(epoch, 1))
                    .named(ours, class, sampling)
                    .for_app(ours, 7)
                    .bound(ours, slot, time)
                    .for_app(ours, app),
            ] {
                prop_assert_eq!((state.slot(time), state.last_slot(), state.app()), (Some(slot), slot, app));
                let another = Class::from_u8((class as u8 + 1) % 8);
                prop_assert_eq!(state.named(ours, another, sampling).app(), 0, "another class has other places");
                prop_assert_eq!(state.bound(ours, slot ^ 1, time).app(), 0, "and another slot");
                prop_assert_eq!((state.class(), state.settled(), state.generation()), (class, !sampling, generation));
                prop_assert!(state.is_of(ours));
                prop_assert_eq!(state.is_of(other), ours.0 >> 56 == other.0 >> 56);
                prop_assert_eq!(state.slot(FlowState::time(epoch % FlowState::LAST_EPOCH + 1, generation)), None);
                prop_assert_eq!(state.slot(FlowState::time(epoch, generation % FlowState::LAST_GENERATION + 1)), None);
            }
            for unbound in [
                FlowState::default().seen(ours, generation),
                FlowState::default().named(ours, class, sampling).seen(ours, generation),
            ] {
                prop_assert_eq!(unbound.slot(time), None, "what was never bound is nobody's yet");
                prop_assert_eq!(unbound.generation(), generation);
                prop_assert!(unbound.is_of(ours), "and still its flow's");
            }
            prop_assert_eq!(FlowState::default().slot(time), None);
        }

        #[test]
        fn every_bit_of_a_flow_counts_in_its_fingerprint(
            keys: [[u64; KEY_WORDS]; 2], bytes: [u8; 32], ports: (u16, u16), protocol: u8, v4: bool, bit in 0_usize..296,
        ) {
            let mut key = FlowKey {
                subscriber: bytes[..16].try_into().expect("16"), remote: bytes[16..].try_into().expect("16"),
                subscriber_port: ports.0, remote_port: ports.1, protocol, zero: [0; 3],
            };
            if v4 {
                for address in [&mut key.subscriber, &mut key.remote] {
                    address[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
                }
            }
            let before = Fingerprint::of_key(&keys, &key);
            prop_assert!(before.get() > Fingerprint::CLEARING);
            match (bit / 8, 1_u8 << (bit % 8)) {
                (byte @ 0..16, bit) => key.subscriber[byte] ^= bit,
                (byte @ 16..32, bit) => key.remote[byte - 16] ^= bit,
                (byte @ 32..34, bit) => key.subscriber_port ^= u16::from(bit) << (8 * (byte - 32)),
                (byte @ 34..36, bit) => key.remote_port ^= u16::from(bit) << (8 * (byte - 34)),
                (_, bit) => key.protocol ^= bit,
            }
            prop_assert_ne!(before, Fingerprint::of_key(&keys, &key));
        }
    }

    #[test]
    fn a_table_has_room_for_twice_its_flows() {
        for flows in [0, 1, 8, 1_000, 1 << 20] {
            let lines = FlowLine::lines(flows);
            assert!(
                lines.is_power_of_two() && lines as usize * WAYS >= 2 * flows as usize,
                "{flows}: {lines}"
            );
        }
        assert_eq!(FlowLine::lines(u32::MAX), 1 << 28);
    }
}
