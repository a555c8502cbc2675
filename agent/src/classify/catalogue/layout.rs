//! The flat form of a catalogue: what lies where, and how a domain's text leads to its slot.
//!
//! ```text
//!   header | text | entries | ranges | slots
//! ```
//!
//! Numbers are little-endian and nothing is aligned, so the bytes serve in place wherever they lie. *Text* holds the domains,
//! each behind its length; *entries* the apps and classes, a line each; *ranges* cut the address space at the published
//! prefixes; *slots* are a hash table of domains with linear probing. The build script shares this file.

/// What a catalogue begins with; the digit is the form's version.
pub(super) const MAGIC: [u8; 8] = *b"usher-c1";

/// The header's bytes: the magic, the checksum of all that follows it, and [`Header`].
pub(super) const HEADER: usize = 16 + 8 * 4;

/// An entry's number that stands for none.
pub(super) const NO_ENTRY: u16 = u16::MAX;

/// Bytes of a [`Slot`].
pub(super) const SLOT: usize = 8;

/// Bytes of a [`Range`].
pub(super) const RANGE: usize = 20;

/// How much there is of everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of text.
    pub(super) text: u32,
    /// Bytes of entries.
    pub(super) entries: u32,
    pub(super) ranges: u32,
    pub(super) slots: u32,
    /// Slots that are taken.
    pub(super) rules: u32,
    pub(super) prefixes: u32,
    /// Labels of the longest domain: suffixes of more need no look-up.
    pub(super) most_labels: u32,
    /// Slots from the one that a domain's hash names to the one it is in, at most.
    pub(super) reach: u32,
}

impl Header {
    pub(super) fn fields(self) -> [u32; 8] {
        let Self { text, entries, ranges, slots, rules, prefixes, most_labels, reach } = self;
        [text, entries, ranges, slots, rules, prefixes, most_labels, reach]
    }
}

/// One place of the hash table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// Where in the text the domain's length stands; 0, which holds none, where the slot is free.
    pub(super) at: u32,
    pub(super) entry: u16,
    /// Bits of the domain's hash, and the lowest whether the rule holds for the domain alone.
    pub(super) tag: u16,
}

impl Slot {
    pub(super) fn is_free(self) -> bool {
        self.at == 0
    }

    pub(super) fn is_exact(self) -> bool {
        self.tag & 1 == 1
    }

    /// Whether the domain may be the one of this hash.
    pub(super) fn may_be(self, hash: Hash) -> bool {
        self.tag | 1 == hash.tag(true)
    }

    pub(super) fn to_bytes(self) -> [u8; SLOT] {
        (u64::from(self.at) | u64::from(self.entry) << 32 | u64::from(self.tag) << 48).to_le_bytes()
    }

    pub(super) fn of_bytes(bytes: [u8; SLOT]) -> Self {
        let [at @ .., entry_low, entry_high, tag_low, tag_high] = bytes;
        let (entry, tag) = ([entry_low, entry_high], [tag_low, tag_high]);
        Self { at: u32::from_le_bytes(at), entry: u16::from_le_bytes(entry), tag: u16::from_le_bytes(tag) }
    }
}

/// Addresses from `start` to the next range's start; IPv4 as in `::ffff:0:0/96`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u128,
    /// [`NO_ENTRY`] between prefixes.
    pub(super) entry: u16,
    /// Of the prefix, in bits of an IPv6 address.
    pub(super) length: u8,
}

/// Of a text's bytes from the last to the first, so that the hash of a suffix leads to that of a longer one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hash(u64);

impl Hash {
    pub(super) const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    pub(super) fn of(text: &[u8]) -> Self {
        text.iter().rev().fold(Self::EMPTY, |hash, byte| hash.then(*byte))
    }

    /// FNV-1a's step.
    pub(super) fn then(self, byte: u8) -> Self {
        Self((self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    fn mixed(self) -> u64 {
        let folded = self.0 ^ (self.0 >> 32);
        folded.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Where a table of `slots` is searched from.
    pub(super) fn slot(self, slots: usize) -> usize {
        let slot = (u128::from(self.mixed()) * slots as u128) >> 64;
        usize::try_from(slot).unwrap_or_default()
    }

    pub(super) fn tag(self, exact: bool) -> u16 {
        // The low bits: a slot is named by the high ones.
        let [low, high, ..] = self.mixed().to_le_bytes();
        u16::from_le_bytes([low, high]) & !1 | u16::from(exact)
    }
}

/// Shows damage, not malice.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| (sum.rotate_left(29) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(bytes.len() as u64, |sum, word| step(sum, u64::from_le_bytes(*word)));
    rest.iter().fold(sum, |sum, byte| step(sum, u64::from(*byte)))
}
