//! Makes the flat form of a catalogue, a rule at a time.
//!
//! Rules come in files, one after the other: within a file a domain has one rule of each kind, and a later file replaces
//! what an earlier one said. The build script shares this file.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::layout::{HEADER, Hash, Header, MAGIC, NO_ENTRY, RANGE, Range, SLOT, Slot, checksum};

/// Most rules a catalogue holds, for domains and prefixes each.
pub(super) const MAX_RULES: usize = 1 << 22;

/// Most pairs of app and class.
pub(super) const MAX_ENTRIES: usize = NO_ENTRY as usize;

/// Why a rule was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The file has a rule of this kind for the domain or prefix already.
    Twice,
    /// More rules than a catalogue holds, or more text than they may have.
    TooMany,
}

/// A catalogue in the making.
#[derive(Debug)]
pub(super) struct Builder {
    /// Room for the header, and the text after it.
    bytes: Vec<u8>,
    /// Their count is a power of two, and at most three in four are taken.
    slots: Vec<Slot>,
    rules: usize,
    most_labels: usize,
    /// Where the text of the present file begins.
    file: usize,
    apps: String,
    entries: HashMap<String, u16>,
    /// By first address and length; with the number of the file.
    prefixes: BTreeMap<(u128, u8), (u16, u32)>,
    files: u32,
}

impl Builder {
    pub(super) fn new() -> Self {
        // The text's first byte is nobody's, so that a slot of zeros is free.
        let bytes = vec![0; HEADER + 1];
        Self {
            file: bytes.len(),
            bytes,
            slots: vec![FREE; 64],
            rules: 0,
            most_labels: 0,
            apps: String::new(),
            entries: HashMap::new(),
            prefixes: BTreeMap::new(),
            files: 0,
        }
    }

    /// What comes from here on is another file's. An operator has one file; the built-in catalogue has two.
    #[allow(dead_code, reason = "the build script's")]
    pub(super) fn next_file(&mut self) {
        self.file = self.bytes.len();
        self.files += 1;
    }

    /// The number of an app with a class; `None` where there are too many.
    pub(super) fn entry(&mut self, app: &str, class: &str) -> Option<u16> {
        let line = format!("{app} {class}\n");
        if let Some(entry) = self.entries.get(&line) {
            return Some(*entry);
        }
        let entry = u16::try_from(self.entries.len()).ok().filter(|entry| *entry != NO_ENTRY)?;
        self.apps.push_str(&line);
        self.entries.insert(line, entry);
        Some(entry)
    }

    /// A rule for a canonical name: for itself alone if `exact`, or for itself and all names below it.
    pub(super) fn domain(&mut self, domain: &str, exact: bool, entry: u16) -> Result<(), Refused> {
        let hash = Hash::of(domain.as_bytes());
        let (same, other) = self.find(domain, hash, exact);
        // What an earlier file said of the domain alone, this file says of it too.
        if !exact
            && let Some(other) = other
            && !self.is_of_this_file(other)
        {
            self.slots[other].entry = entry;
        }
        if same.is_some_and(|same| self.is_of_this_file(same)) {
            return Err(Refused::Twice);
        }
        let (Ok(length), Ok(at)) = (u8::try_from(domain.len()), u32::try_from(self.bytes.len() - HEADER))
        else {
            return Err(Refused::TooMany);
        };
        if self.rules >= MAX_RULES {
            return Err(Refused::TooMany);
        }
        self.bytes.push(length);
        self.bytes.extend_from_slice(domain.as_bytes());
        let slot = Slot { at, entry, tag: hash.tag(exact) };
        if let Some(same) = same {
            self.slots[same] = slot;
            return Ok(());
        }
        self.rules += 1;
        self.most_labels = self.most_labels.max(1 + domain.bytes().filter(|byte| *byte == b'.').count());
        if self.rules * 4 > self.slots.len() * 3 {
            let larger = vec![FREE; self.slots.len() * 2];
            self.slots = self.placed_in(larger).0;
        }
        place(&mut self.slots, slot, hash);
        Ok(())
    }

    /// A rule for the addresses that share the first `length` bits with `address`.
    pub(super) fn prefix(&mut self, address: IpAddr, length: u8, entry: u16) -> Result<(), Refused> {
        let (bits, length) = match address {
            IpAddr::V4(v4) => (u128::from(v4.to_ipv6_mapped()), length.saturating_add(96)),
            IpAddr::V6(v6) => (u128::from(v6), length),
        };
        let start = bits & mask(length);
        if self.prefixes.len() >= MAX_RULES {
            return Err(Refused::TooMany);
        }
        match self.prefixes.insert((start, length), (entry, self.files)) {
            Some((_, file)) if file == self.files => Err(Refused::Twice),
            _ => Ok(()),
        }
    }

    /// The flat form.
    pub(super) fn finish(mut self) -> Vec<u8> {
        // As many slots as rules fill to three in four; those of a builder are a power of two.
        let (slots, reach) = self.placed_in(vec![FREE; self.rules * 4 / 3 + 1]);
        self.slots = Vec::new();
        let ranges = ranges(&self.prefixes);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let header = Header {
            text: count(self.bytes.len() - HEADER),
            entries: count(self.apps.len()),
            ranges: count(ranges.len()),
            slots: count(slots.len()),
            rules: count(self.rules),
            prefixes: count(self.prefixes.len()),
            most_labels: count(self.most_labels),
            reach: count(reach),
        };
        let mut bytes = self.bytes;
        bytes.reserve_exact(self.apps.len() + ranges.len() * RANGE + slots.len() * SLOT);
        bytes.extend_from_slice(self.apps.as_bytes());
        for range in ranges {
            bytes.extend_from_slice(&range.start.to_le_bytes());
            bytes.extend_from_slice(&range.entry.to_le_bytes());
            bytes.extend_from_slice(&[range.length, 0]);
        }
        bytes.extend(slots.iter().flat_map(|slot| slot.to_bytes()));
        for (field, room) in header.fields().iter().zip(bytes[16..HEADER].as_chunks_mut::<4>().0) {
            *room = field.to_le_bytes();
        }
        let sum = checksum(&bytes[16..]);
        bytes[8..16].copy_from_slice(&sum.to_le_bytes());
        bytes[..8].copy_from_slice(&MAGIC);
        bytes
    }

    fn is_of_this_file(&self, slot: usize) -> bool {
        self.slots[slot].at as usize + HEADER >= self.file
    }

    /// The slots of the rule of this kind for the domain, and of the other kind.
    fn find(&self, domain: &str, hash: Hash, exact: bool) -> (Option<usize>, Option<usize>) {
        let (mut same, mut other) = (None, None);
        let mut slot = hash.slot(self.slots.len());
        while !self.slots[slot].is_free() {
            let rule = self.slots[slot];
            if rule.may_be(hash) && self.domain_of(rule) == domain.as_bytes() {
                *if rule.is_exact() == exact { &mut same } else { &mut other } = Some(slot);
            }
            slot = (slot + 1) % self.slots.len();
        }
        (same, other)
    }

    fn domain_of(&self, rule: Slot) -> &[u8] {
        let at = HEADER + rule.at as usize;
        &self.bytes[at + 1..][..usize::from(self.bytes[at])]
    }

    /// All rules in another table, and how far from the slot its hash names the farthest one is.
    fn placed_in(&self, mut table: Vec<Slot>) -> (Vec<Slot>, usize) {
        let mut reach = 0;
        for rule in self.slots.iter().filter(|slot| !slot.is_free()) {
            reach = reach.max(place(&mut table, *rule, Hash::of(self.domain_of(*rule))));
        }
        (table, reach)
    }
}

const FREE: Slot = Slot { at: 0, entry: 0, tag: 0 };

/// Puts a rule in the next free slot, and says how many it passed.
fn place(table: &mut [Slot], rule: Slot, hash: Hash) -> usize {
    let mut slot = hash.slot(table.len());
    let mut passed = 0;
    while !table[slot].is_free() {
        slot = (slot + 1) % table.len();
        passed += 1;
    }
    table[slot] = rule;
    passed
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)
}

/// The address space cut where prefixes begin and end, each piece with the longest prefix it is in.
fn ranges(prefixes: &BTreeMap<(u128, u8), (u16, u32)>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    // The prefixes that the present one lies in, from the widest on, with their last addresses.
    let mut open: Vec<(u128, Range)> = Vec::new();
    let mut cut = |range: Range| match ranges.last_mut() {
        Some(last) if last.start == range.start => *last = range,
        _ => ranges.push(range),
    };
    let close = |open: &mut Vec<(u128, Range)>, cut: &mut dyn FnMut(Range), before: Option<u128>| {
        while let Some((last, _)) =
            open.last().copied().filter(|(last, _)| before.is_none_or(|before| *last < before))
        {
            open.pop();
            if let Some(start) = last.checked_add(1) {
                let outer = open.last().map_or((NO_ENTRY, 0), |(_, outer)| (outer.entry, outer.length));
                cut(Range { start, entry: outer.0, length: outer.1 });
            }
        }
    };
    for ((start, length), (entry, _)) in prefixes {
        close(&mut open, &mut cut, Some(*start));
        let range = Range { start: *start, entry: *entry, length: *length };
        open.push((start | !mask(*length), range));
        cut(range);
    }
    close(&mut open, &mut cut, None);
    ranges
}
