//! Long headers of QUIC packets (RFC 8999; RFC 9000, 17.2) and the packets coalesced in one datagram (RFC 9000, 12.2).
//!
//! Owns lengths and ids in the clear. Refuses keys and payloads.

use super::keys::{Scheme, schemes};

/// Longest connection id of the versions that are known.
const MAX_CONNECTION_ID: usize = 20;

/// A packet with a long header.
#[derive(Debug)]
pub(super) struct Long<'a> {
    pub(super) version: u32,
    /// Destination connection id.
    pub(super) connection_id: &'a [u8],
    /// Where the packet number stands, if the packet may be an Initial.
    pub(super) number_at: Option<usize>,
    /// The whole packet.
    pub(super) bytes: &'a [u8],
    kind: u8,
}

impl<'a> Long<'a> {
    /// The first packet of a datagram, and what follows it.
    pub(super) fn split(datagram: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let mut cursor = Cursor { bytes: datagram, at: 0 };
        let first = cursor.octet()?;
        if !is_long(first) {
            return None;
        }
        let version = cursor.number(4)?;
        let connection_id = cursor.connection_id()?;
        cursor.connection_id()?;
        let kind = first >> 4 & 3;
        let mut long = Self {
            version: u32::try_from(version).ok()?,
            connection_id,
            number_at: None,
            bytes: datagram,
            kind,
        };
        let is_initial = long.schemes().next().is_some();
        // Version negotiation and Retry have no length: nothing follows them.
        if long.version == 0 || (!is_initial && kind == retry_type(long.version)) {
            return Some((long, &[]));
        }
        if is_initial {
            let token = cursor.varint()?;
            cursor.skip(token)?;
        }
        let length = usize::try_from(cursor.varint()?).ok()?;
        let number_at = cursor.at;
        let (packet, rest) = datagram.split_at_checked(number_at.checked_add(length)?)?;
        long.number_at = is_initial.then_some(number_at);
        long.bytes = packet;
        Some((long, rest))
    }

    /// The schemes by which this packet may be an Initial.
    pub(super) fn schemes(&self) -> impl Iterator<Item = &'static Scheme> + use<> {
        let (kind, version) = (self.kind, self.version);
        let schemes: &[_] = if version == 0 { &[] } else { schemes(version) };
        schemes.iter().copied().filter(move |scheme| scheme.initial_type == kind)
    }
}

/// Whether a first byte begins a long header: form and fixed bits.
pub(super) fn is_long(first: u8) -> bool {
    first & 0xc0 == 0xc0
}

/// The long packet type of a Retry: one before that of an Initial.
fn retry_type(version: u32) -> u8 {
    schemes(version).first().map_or(3, |scheme| scheme.initial_type.wrapping_sub(1) & 3)
}

/// Bytes read from the front.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn octet(&mut self) -> Option<u8> {
        let octet = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(octet)
    }

    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let to = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..to)?;
        self.at = to;
        Some(taken)
    }

    /// Most significant octet first.
    pub(super) fn number(&mut self, octets: usize) -> Option<u64> {
        Some(self.take(octets)?.iter().fold(0, |number, octet| number << 8 | u64::from(*octet)))
    }

    /// A variable-length integer (RFC 9000, 16).
    pub(super) fn varint(&mut self) -> Option<u64> {
        let first = self.octet()?;
        let more = (1_usize << (first >> 6)) - 1;
        let rest = self.number(more)?;
        Some(u64::from(first & 0x3f) << (8 * more) | rest)
    }

    pub(super) fn skip(&mut self, count: u64) -> Option<()> {
        self.take(usize::try_from(count).ok()?).map(|_| ())
    }

    fn connection_id(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.octet()?);
        if length > MAX_CONNECTION_ID { None } else { self.take(length) }
    }
}
