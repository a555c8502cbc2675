//! The server name in a TLS ClientHello (RFC 8446, 4.1.2; RFC 6066, 3), from however much of it is there.
//!
//! The hello is walked as it comes, so a name in the first segment is found before the last one arrives, and a hello cut
//! short by sampling still gives the name that stands before the cut. Refuses to judge versions, ciphers and the rest.

use tls_parser::{SNIType, TlsExtension};

use super::name;

/// A record of the handshake (RFC 8446, 5.1), as which a hello begins.
pub(crate) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;

/// What the beginning of a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hello {
    /// A ClientHello so far, its name not reached.
    Partial,
    /// A ClientHello for this name.
    Name(Box<str>),
    /// A whole ClientHello without a usable name.
    Nameless,
    /// Something else.
    NotTls,
}

/// Whether a segment, of at least three bytes, may be the first of a TLS connection's client.
pub(crate) fn may_be_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [HANDSHAKE, 3, 0..=4, ..]) && bytes.get(5).is_none_or(|kind| *kind == CLIENT_HELLO)
}

/// Whether a segment may be the first of a TLS connection's server.
pub(crate) fn may_be_answer(bytes: &[u8]) -> bool {
    // A handshake record, or an alert that refuses the hello.
    matches!(bytes, [HANDSHAKE | 21, 3, 0..=4, ..])
}

/// Reads the client's first bytes.
pub(crate) fn read(stream: &[u8]) -> Hello {
    let mut handshake = Vec::new();
    match unwrap_records(stream, &mut handshake) {
        Err(NotTls) => Hello::NotTls,
        Ok(()) => read_handshake(&handshake),
    }
}

/// Reads a client's handshake bytes, out of their records or never in any, as in QUIC.
pub(crate) fn read_handshake(handshake: &[u8]) -> Hello {
    if handshake.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Hello::NotTls;
    }
    match server_name(handshake) {
        Ok(Some(name)) => Hello::Name(name),
        Ok(None) | Err(Stop::Broken) => Hello::Nameless,
        Err(Stop::Short) => Hello::Partial,
    }
}

struct NotTls;

/// The handshake bytes of leading records (RFC 8446, 5.1), as far as they are there. Another kind of record ends them.
fn unwrap_records(mut stream: &[u8], handshake: &mut Vec<u8>) -> Result<(), NotTls> {
    let mut first = true;
    while let Some((header, rest)) = stream.split_first_chunk::<5>() {
        let [kind, major, minor, high, low] = *header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != HANDSHAKE || major != 3 || minor > 4 || length == 0 || length > (1 << 14) + 256 {
            return if first { Err(NotTls) } else { Ok(()) };
        }
        first = false;
        handshake.extend_from_slice(&rest[..length.min(rest.len())]);
        if rest.len() < length {
            return Ok(());
        }
        stream = &rest[length..];
    }
    // Fewer bytes than a record header: what there is of the first one must still fit.
    let fits = |at: usize, allowed: std::ops::RangeInclusive<u8>| {
        stream.get(at).is_none_or(|byte| allowed.contains(byte))
    };
    if first && !(fits(0, HANDSHAKE..=HANDSHAKE) && fits(1, 3..=3) && fits(2, 0..=4)) {
        return Err(NotTls);
    }
    Ok(())
}

/// Why a walk stopped before its end.
enum Stop {
    /// The bytes ended where more must come.
    Short,
    /// The lengths contradict each other.
    Broken,
}

/// A cursor over bytes of which `end` belong together though fewer may be there.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Walk<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let to = self.at + count;
        if to > self.end {
            return Err(Stop::Broken);
        }
        let taken = self.bytes.get(self.at..to).ok_or(Stop::Short)?;
        self.at = to;
        Ok(taken)
    }

    fn number(&mut self, octets: usize) -> Result<usize, Stop> {
        Ok(self.take(octets)?.iter().fold(0, |number, octet| number << 8 | usize::from(*octet)))
    }

    /// Passes over a vector with a length of `octets` bytes before it, whether or not it is all there.
    fn skip_vector(&mut self, octets: usize) -> Result<(), Stop> {
        let length = self.number(octets)?;
        self.skip(length)
    }

    fn skip(&mut self, count: usize) -> Result<(), Stop> {
        self.at += count;
        if self.at > self.end { Err(Stop::Broken) } else { Ok(()) }
    }
}

/// The name, `None` after the whole of a hello without one.
fn server_name(handshake: &[u8]) -> Result<Option<Box<str>>, Stop> {
    let mut hello = Walk { bytes: handshake, at: 1, end: usize::MAX };
    hello.end = hello.number(3)? + 4;
    hello.skip(2 + 32)?; // legacy_version, random
    hello.skip_vector(1)?; // legacy_session_id
    hello.skip_vector(2)?; // cipher_suites
    hello.skip_vector(1)?; // legacy_compression_methods
    if hello.at == hello.end {
        return Ok(None); // no extensions at all (RFC 5246)
    }
    let extensions = hello.number(2)?;
    if hello.at + extensions > hello.end {
        return Err(Stop::Broken);
    }
    hello.end = hello.at + extensions;
    while hello.at < hello.end {
        let kind = u16::try_from(hello.number(2)?).unwrap_or(u16::MAX);
        let length = hello.number(2)?;
        if kind == SERVER_NAME {
            let content = hello.take(length)?;
            return Ok(first_host_name(content));
        }
        hello.skip(length)?;
    }
    Ok(None)
}

fn first_host_name(content: &[u8]) -> Option<Box<str>> {
    let (_, TlsExtension::SNI(names)) = tls_parser::parse_tls_extension_sni_content(content).ok()? else {
        return None;
    };
    names.into_iter().find(|(kind, _)| *kind == SNIType::HostName).and_then(|(_, raw)| name::canonical(raw))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&bytes);
        }

        #[test]
        fn any_handshake_is_read_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 60..600)) {
            bytes[..9].copy_from_slice(&[22, 3, 1, 2, 0, 1, 0, 1, 0]);
            let _ = read(&bytes);
        }
    }

    #[test]
    fn other_protocols_are_told_apart_from_their_first_bytes() {
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0", b"\x16\x02", b"\x17\x03\x03\x00\x10", b"\x15"] {
            assert_eq!(read(other), Hello::NotTls, "{other:?}");
        }
        assert_eq!(read(&[22, 3, 3, 0, 4, 2, 0, 0, 0]), Hello::NotTls, "a ServerHello");
        for partial in [&b""[..], b"\x16", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01"] {
            assert_eq!(read(partial), Hello::Partial, "{partial:?}");
        }
    }
}
