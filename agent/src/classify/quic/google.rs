//! Google's QUIC from before the standard: versions Q0nn, whose client hello (`CHLO`) is a table of tags.
//!
//! Up to Q046 the hello is in the clear, after a header of two shapes; in Q050 it is in an Initial packet. It fits one
//! datagram: clients pad it to fill one. Refuses everything after it.

use super::super::name;
use super::super::tls::Hello;

/// The version whose hello stands in an Initial packet.
pub(super) const Q050: u32 = 0x5130_3530;
/// The hello begins at most this far into a datagram: after header, packet number, hash and frame header.
const MAX_BEFORE: usize = 64;
/// Most tags of a hello; clients send about thirty.
const MAX_TAGS: usize = 128;

/// Whether a datagram is one of a client whose hello is in the clear.
pub(super) fn is_clear(datagram: &[u8]) -> bool {
    let version = |at: usize| {
        matches!(datagram.get(at..at + 4), Some([b'Q', b'0', tens, ones])
            if tens.is_ascii_digit() && ones.is_ascii_digit() && *tens < b'5')
    };
    match datagram.first() {
        // Q046 to Q049: a long header, version first.
        Some(first) if first & 0xc0 == 0xc0 => version(1),
        // Before: a flag for the version and one for eight octets of connection id, which comes first.
        Some(first) => first & 0xc9 == 0x09 && version(9),
        None => false,
    }
}

/// Reads the hello in a clear datagram, or in an opened packet.
pub(super) fn read(bytes: &[u8]) -> Hello {
    let head = bytes.get(..MAX_BEFORE).unwrap_or(bytes);
    let Some(at) = head.windows(4).position(|window| window == b"CHLO") else { return Hello::Partial };
    match server_name(bytes.get(at + 4..).unwrap_or_default()) {
        Some(raw) => name::canonical(raw).map_or(Hello::Nameless, Hello::Name),
        None => Hello::Nameless,
    }
}

/// The value of the tag `SNI`. A count of tags, two octets of nothing; then each tag with the end of its value, least
/// significant octet first; then the values.
fn server_name(table: &[u8]) -> Option<&[u8]> {
    let count = usize::from(u16::from_le_bytes(*table.first_chunk()?)).min(MAX_TAGS);
    let (index, values) = table.get(4..)?.split_at_checked(count * 8)?;
    let mut start = 0;
    for entry in index.as_chunks::<8>().0 {
        let [tag @ .., e0, e1, e2, e3] = entry;
        let end = usize::try_from(u32::from_le_bytes([*e0, *e1, *e2, *e3])).ok()?;
        if tag == b"SNI\0" {
            return values.get(start..end);
        }
        start = end;
    }
    None
}
