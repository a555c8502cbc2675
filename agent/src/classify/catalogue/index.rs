//! Reads the flat form of a catalogue where it lies.
//!
//! Owns the search for the longest domain that a name ends in, in one pass over the name from its end, and for the longest
//! prefix an address is in. The bytes are checked once, when they are taken; whatever they hold, a look-up ends after a
//! bounded number of steps and reads within them.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops;
use std::sync::Arc;

use super::layout::{HEADER, Hash, Header, MAGIC, NO_ENTRY, RANGE, SLOT, Slot, checksum};
use super::{Entry, name};

/// Farthest that a rule may be from the slot its hash names: tables made by the builder stay far below.
const MAX_REACH: u32 = 4_096;

/// Bytes that are no catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Something else, or the form of another version.
    #[error(
        "not a compiled catalogue of this version: compile it again with `usher-agent catalogue compile`"
    )]
    Magic,
    /// The bytes are not those that were written.
    #[error(
        "the compiled catalogue is damaged or cut short: compile it again with `usher-agent catalogue compile`"
    )]
    Damaged,
}

/// A catalogue's rules.
#[derive(Debug)]
pub(super) struct Index {
    bytes: Cow<'static, [u8]>,
    header: Header,
    /// Where in the bytes each part lies.
    text: ops::Range<usize>,
    ranges: ops::Range<usize>,
    slots: ops::Range<usize>,
    entries: Vec<Entry>,
}

/// A rule that a name fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes of the name that the rule's domain covers.
    pub(super) length: usize,
    /// Whether it holds for the domain alone.
    pub(super) exact: bool,
    entry: u16,
}

impl Index {
    /// Whether bytes are meant to be a compiled catalogue.
    pub(super) fn is_meant_by(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC[..7])
    }

    /// Takes bytes in the flat form.
    pub(super) fn read(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, IndexError> {
        let bytes = bytes.into();
        let (head, _) = bytes.split_first_chunk::<HEADER>().ok_or(IndexError::Magic)?;
        if !head.starts_with(&MAGIC) {
            return Err(IndexError::Magic);
        }
        let words = head[16..].as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let header = header(words).ok_or(IndexError::Damaged)?;
        let sum = u64::from_le_bytes(head[8..16].try_into().map_err(|_| IndexError::Damaged)?);
        let mut at = HEADER;
        let mut part = |count: u32, size: usize| {
            let start = at;
            at = (count as usize).checked_mul(size)?.checked_add(at)?;
            Some(start..at)
        };
        let mut parts = || {
            Some([
                part(header.text, 1)?,
                part(header.entries, 1)?,
                part(header.ranges, RANGE)?,
                part(header.slots, SLOT)?,
            ])
        };
        let [text, entries, ranges, slots] = parts().ok_or(IndexError::Damaged)?;
        if slots.end != bytes.len()
            || header.slots == 0
            || header.reach > MAX_REACH
            || checksum(&bytes[16..]) != sum
        {
            return Err(IndexError::Damaged);
        }
        let entries = self::entries(&bytes[entries]).ok_or(IndexError::Damaged)?;
        Ok(Self { bytes, header, text, ranges, slots, entries })
    }

    /// How many rules there are for domains.
    pub(super) fn domains(&self) -> usize {
        self.header.rules as usize
    }

    /// How many rules there are for prefixes.
    pub(super) fn prefixes(&self) -> usize {
        self.header.prefixes as usize
    }

    /// Labels of the longest domain.
    pub(super) fn most_labels(&self) -> usize {
        self.header.most_labels as usize
    }

    /// The bytes, those in the program's own pages too.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Memory in use beside the bytes.
    pub(super) fn held(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
            + self.entries.iter().map(|entry| entry.app.len() + 2 * size_of::<usize>()).sum::<usize>()
    }

    /// The rule for `domain`, whose hash this is: for itself alone only where it is the `whole` name.
    pub(super) fn find(&self, domain: &[u8], hash: Hash, whole: bool) -> Option<Found> {
        let slots = self.bytes[self.slots.clone()].as_chunks::<SLOT>().0;
        let text = &self.bytes[self.text.clone()];
        let (before, after) = slots.split_at(hash.slot(slots.len()));
        let mut found = None;
        for slot in after.iter().chain(before).take(self.header.reach as usize + 1) {
            let rule = Slot::of_bytes(*slot);
            if rule.is_free() {
                break;
            }
            if rule.may_be(hash) && (whole || !rule.is_exact()) && domain_at(text, rule.at) == Some(domain) {
                found = Some(Found { length: domain.len(), exact: rule.is_exact(), entry: rule.entry });
                if rule.is_exact() {
                    break;
                }
            }
        }
        found
    }

    /// The longest prefix that an address is in: its length in bits of an IPv6 address, and whose it is.
    pub(super) fn find_address(&self, address: IpAddr) -> Option<(u8, &Entry)> {
        let address = match address {
            IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let ranges = self.bytes[self.ranges.clone()].as_chunks::<RANGE>().0;
        let start = |range: &[u8; RANGE]| range.first_chunk().map_or(0, |start| u128::from_le_bytes(*start));
        let after = ranges.partition_point(|range| start(range) <= address);
        let [.., low, high, length, _] = ranges.get(after.checked_sub(1)?)?;
        let entry = u16::from_le_bytes([*low, *high]);
        Some((*length, self.entry_at(entry)?))
    }

    /// Whose a rule is.
    pub(super) fn entry(&self, found: Found) -> Option<&Entry> {
        self.entry_at(found.entry)
    }

    fn entry_at(&self, entry: u16) -> Option<&Entry> {
        if entry == NO_ENTRY { None } else { self.entries.get(usize::from(entry)) }
    }
}

fn header(mut words: impl Iterator<Item = u32>) -> Option<Header> {
    Some(Header {
        text: words.next()?,
        entries: words.next()?,
        ranges: words.next()?,
        slots: words.next()?,
        rules: words.next()?,
        prefixes: words.next()?,
        most_labels: words.next()?,
        reach: words.next()?,
    })
}

/// The apps and classes, a line each.
fn entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut entries: Vec<Entry> = Vec::with_capacity(text.lines().count());
    for line in text.lines() {
        let (app, class) = line.split_once(' ').filter(|(app, _)| name::is_app(app))?;
        entries.push(Entry { app: Arc::from(app), class: class.parse().ok()? });
    }
    Some(entries)
}

fn domain_at(text: &[u8], at: u32) -> Option<&[u8]> {
    let (length, rest) = text.get(at as usize..)?.split_first()?;
    rest.get(..usize::from(*length))
}
