//! What a TCP client says first: a TLS hello or an HTTP request, perhaps after words to a proxy or a mail server.
//!
//! Owns the prefixes after which the name comes: PROXY protocol, SOCKS 4 and 5 (RFC 1928, RFC 1929), HTTP CONNECT, and the
//! requests for TLS of mail, file transfer and chat (RFC 3207, 2595, 4217, 6120), LDAP (RFC 4511, 4.14), PostgreSQL, MySQL and RDP.
//! Refuses to follow such a protocol further than to its request for TLS.

use std::net::IpAddr;

use super::http::{self, Request};
use super::signature::{self, Signature};
use super::tls::{self, Hello};
use super::{Via, name};

/// Most prefixes in each other.
const MAX_PREFIXES: usize = 4;
/// Most lines to a server before the request for TLS.
const MAX_LINES: usize = 24;
/// Longest of them (RFC 5321, 4.5.3.1).
const MAX_LINE: usize = 1_000;

/// Longest first line of a request that is looked at for its end.
const MAX_REQUEST: usize = 4_000;

/// First words of clients that may ask for TLS later.
const WORDS: [&str; 12] =
    ["EHLO", "HELO", "LHLO", "CAPA", "STLS", "STARTTLS", "AUTH", "FEAT", "NOOP", "CAPABILITY", "ID", "HELP"];

/// What the beginning of a client's stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Opening {
    /// More must come.
    Partial,
    /// The name the client asks for, or an authority as [`name::authority`] writes it, and how.
    Name(Box<str>, Via),
    /// No name will come, but this is what it is.
    Protocol(Signature),
    /// No name will come.
    Nothing,
}

enum Prefix {
    Partial,
    /// As many bytes, then something else.
    Passed(usize),
    Name(Box<str>, Via),
    Nothing,
}

/// Whether a segment may be the first of a connection's client.
pub(crate) fn may_begin(bytes: &[u8]) -> bool {
    tls::may_be_hello(bytes) || http::may_begin(bytes) || signature::tcp(bytes).is_some()
}

/// Whether a segment may be the first of a server that was sent nothing yet, and whose client may still ask for TLS.
pub(crate) fn may_greet(bytes: &[u8]) -> bool {
    tls::may_be_answer(bytes)
        || matches!(bytes, [b'2', b'2', b'0', b' ' | b'-', ..])
        || bytes.starts_with(b"+OK")
        || bytes.starts_with(b"* OK")
        || bytes.starts_with(b"* PREAUTH")
        // MySQL's: length, number 0, protocol 10, a version in digits
        || matches!(bytes, [_, _, 0, 0, 10, b'1' | b'3'..=b'9', b'.' | b'0'..=b'9', ..])
        // The answer to a request that was not captured; another may follow.
        || bytes.starts_with(b"HTTP/1.")
}

/// What carries the client's first bytes, where they name nobody.
pub(crate) fn carrier(stream: &[u8]) -> Option<Signature> {
    if tls::may_be_hello(stream) && stream.len() > 5 {
        return Some(signature::TLS);
    }
    let line = stream.get(..MAX_REQUEST).unwrap_or(stream).split(|byte| *byte == b'\r').next()?;
    (line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")).then_some(signature::HTTP)
}

/// Reads the client's first bytes.
pub(crate) fn read(stream: &[u8]) -> Opening {
    let mut rest = stream;
    for _ in 0..=MAX_PREFIXES {
        match prefix(rest) {
            Prefix::Partial => return Opening::Partial,
            Prefix::Name(name, via) => return Opening::Name(name, via),
            Prefix::Nothing => return signature::tcp(stream).map_or(Opening::Nothing, Opening::Protocol),
            Prefix::Passed(count) => rest = rest.get(count..).unwrap_or_default(),
        }
    }
    Opening::Nothing
}

fn prefix(bytes: &[u8]) -> Prefix {
    let Some(first) = bytes.first() else { return Prefix::Partial };
    match first {
        22 => match tls::read(bytes) {
            Hello::Partial => Prefix::Partial,
            Hello::Name(name) => Prefix::Name(name, Via::Sni),
            Hello::Nameless | Hello::NotTls => Prefix::Nothing,
        },
        0 => fixed(bytes, &[0, 0, 0, 8, 4, 210, 22, 47]),
        // MySQL's request for TLS: a login's first 32 bytes, with that flag set
        32 => match bytes {
            [32, 0, 0, 1, _, flags, ..] if flags & 0x08 != 0 => Prefix::Passed(4 + 32),
            [32, rest @ ..] if rest.len() < 5 && [0, 0, 1].starts_with(&rest[..rest.len().min(3)]) => {
                Prefix::Partial
            }
            _ => text(bytes),
        },
        // TPKT (RFC 1006) with an X.224 connection request
        3 => match bytes {
            [3, 0, high, low, _, 0xe0, ..] => {
                Prefix::Passed(usize::from(u16::from_be_bytes([*high, *low])).max(6))
            }
            [3, 0, ..] if bytes.len() < 6 => Prefix::Partial,
            [3] => Prefix::Partial,
            _ => Prefix::Nothing,
        },
        4 => socks4(bytes).unwrap_or(Prefix::Partial),
        5 => socks5(bytes).unwrap_or(Prefix::Partial),
        0x30 => ldap(bytes),
        // Empty lines before a request are to be passed over (RFC 9112, 2.2).
        b'\r' => match proxy_v2(bytes) {
            Prefix::Nothing if bytes.starts_with(b"\r\n") => Prefix::Passed(2),
            other => other,
        },
        b'<' => xmpp(bytes),
        _ => text(bytes),
    }
}

fn fixed(bytes: &[u8], expected: &[u8]) -> Prefix {
    if bytes.starts_with(expected) {
        Prefix::Passed(expected.len())
    } else if expected.starts_with(bytes) {
        Prefix::Partial
    } else {
        Prefix::Nothing
    }
}

/// A request by SOCKS 4 or 4A. `None`: more must come.
fn socks4(bytes: &[u8]) -> Option<Prefix> {
    if !matches!(bytes.get(1)?, 1 | 2) {
        return Some(Prefix::Nothing);
    }
    let user_at = 8;
    let user = bytes.get(user_at..)?.iter().position(|byte| *byte == 0)?;
    let after = user_at + user + 1;
    if !matches!(bytes[4..8], [0, 0, 0, last] if last != 0) {
        return Some(Prefix::Passed(after));
    }
    let domain = bytes.get(after..)?;
    let end = domain.iter().position(|byte| *byte == 0)?;
    Some(asked(&domain[..end], after + end + 1))
}

/// Methods, perhaps user and password, and the request of SOCKS 5. `None`: more must come.
fn socks5(bytes: &[u8]) -> Option<Prefix> {
    let methods = usize::from(*bytes.get(1)?);
    if methods == 0 || methods > 16 {
        return Some(Prefix::Nothing);
    }
    let mut at = 2 + methods;
    if *bytes.get(at)? == 1 {
        let user = usize::from(*bytes.get(at + 1)?);
        let password = usize::from(*bytes.get(at + 2 + user)?);
        at += 3 + user + password;
    }
    let &[5, 1..=3, 0, kind] = bytes.get(at..at + 4)? else { return Some(Prefix::Nothing) };
    let address = at + 4;
    match kind {
        1 => Some(Prefix::Passed(address + 4 + 2)),
        4 => Some(Prefix::Passed(address + 16 + 2)),
        3 => {
            let length = usize::from(*bytes.get(address)?);
            let domain = bytes.get(address + 1..address + 1 + length)?;
            Some(asked(domain, address + 1 + length + 2))
        }
        _ => Some(Prefix::Nothing),
    }
}

/// A name given to a SOCKS proxy, which may be an address in words.
fn asked(domain: &[u8], length: usize) -> Prefix {
    let is_address = std::str::from_utf8(domain).is_ok_and(|text| text.parse::<IpAddr>().is_ok());
    match name::canonical(domain) {
        Some(name) if !is_address => Prefix::Name(name, Via::Socks),
        _ => Prefix::Passed(length),
    }
}

/// An LDAP request, if it is the one for TLS.
fn ldap(bytes: &[u8]) -> Prefix {
    const START_TLS: &[u8] = b"1.3.6.1.4.1.1466.20037";
    let Some(length) = bytes.get(1) else { return Prefix::Partial };
    let end = 2 + usize::from(*length);
    match bytes.get(..end) {
        _ if *length > 60 => Prefix::Nothing,
        None => Prefix::Partial,
        Some(message) if message.windows(START_TLS.len()).any(|window| window == START_TLS) => {
            Prefix::Passed(end)
        }
        Some(_) => Prefix::Nothing,
    }
}

/// Version 2 of the PROXY protocol.
fn proxy_v2(bytes: &[u8]) -> Prefix {
    match fixed(bytes, b"\r\n\r\n\0\r\nQUIT\n") {
        Prefix::Passed(at) => match bytes.get(at..at + 4) {
            Some([_, _, high, low]) => {
                Prefix::Passed(at + 4 + usize::from(u16::from_be_bytes([*high, *low])))
            }
            _ => Prefix::Partial,
        },
        other => other,
    }
}

/// A chat stream up to its request for TLS.
fn xmpp(bytes: &[u8]) -> Prefix {
    const START_TLS: &[u8] = b"<starttls";
    if !(bytes.starts_with(b"<?xml") || bytes.starts_with(b"<stream") || bytes.len() < 7) {
        return Prefix::Nothing;
    }
    let Some(at) = bytes.windows(START_TLS.len()).position(|window| window == START_TLS) else {
        return if bytes.len() < MAX_LINE * 2 { Prefix::Partial } else { Prefix::Nothing };
    };
    // The element closes in itself or after its tag; a TLS record begins with neither text nor space.
    match bytes[at..].iter().position(|byte| *byte == 22) {
        Some(record) => Prefix::Passed(at + record),
        None => Prefix::Partial,
    }
}

/// Lines: a request, version 1 of the PROXY protocol, or words to a server that may end in a request for TLS.
fn text(bytes: &[u8]) -> Prefix {
    if bytes.starts_with(b"PROXY ") {
        return match bytes.iter().take(108).position(|byte| *byte == b'\n') {
            Some(end) => Prefix::Passed(end + 1),
            None if bytes.len() < 108 => Prefix::Partial,
            None => Prefix::Nothing,
        };
    }
    match http::read(bytes) {
        Request::For(name) => return Prefix::Name(name, Via::Http),
        Request::Tunnel(at) => return Prefix::Passed(at),
        Request::Nameless => return Prefix::Nothing,
        Request::Partial => return Prefix::Partial,
        Request::NotHttp => {}
    }
    let mut at = 0;
    for number in 0..MAX_LINES {
        let rest = &bytes[at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = &rest[..end.unwrap_or(rest.len())];
        if line.len() > MAX_LINE || line.iter().any(|byte| *byte < b' ' && !matches!(byte, b'\r' | b'\t')) {
            return Prefix::Nothing;
        }
        let Some(end) = end else { return Prefix::Partial };
        at += end + 1;
        match command(line) {
            Command::StartTls => return Prefix::Passed(at),
            Command::Other if number == 0 => return Prefix::Nothing,
            Command::Known | Command::Other => {}
        }
    }
    Prefix::Nothing
}

enum Command {
    StartTls,
    Known,
    Other,
}

fn command(line: &[u8]) -> Command {
    let Ok(line) = std::str::from_utf8(line) else { return Command::Other };
    let mut words = line.split_ascii_whitespace().map(str::to_ascii_uppercase);
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match (&*first, &*second) {
        // By themselves, for file transfer, and after IMAP's tag.
        ("STARTTLS" | "STLS", _) | ("AUTH", "TLS" | "SSL" | "TLS-C" | "TLS-P") | (_, "STARTTLS") => {
            Command::StartTls
        }
        (first, second) if WORDS.contains(&first) || WORDS.contains(&second) => Command::Known,
        _ => Command::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A hello for `pages.example` with nothing else in it.
    fn hello() -> Vec<u8> {
        let name = b"pages.example";
        let extension = [&[0, 0, 0, 18, 0, 16, 0, 0, 13][..], name].concat();
        let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 19, 1, 1, 0, 0, 22], &extension].concat();
        let length = u8::try_from(body.len()).unwrap();
        [&[22, 3, 1, 0, length + 4, 1, 0, 0, length], &body[..]].concat()
    }

    fn named(via: Via) -> Opening {
        Opening::Name("pages.example".into(), via)
    }

    #[test]
    fn a_hello_is_read_after_whatever_leads_to_it() {
        let ldap = [&[0x30, 29, 2, 1, 1, 0x77, 24, 0x80, 22][..], b"1.3.6.1.4.1.1466.20037"].concat();
        let rdp = [&[3, 0, 0, 19, 14, 0xe0][..], &[0; 13]].concat();
        for before in [
            &b""[..],
            b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\x04\x01\x01\xbb\xc0\0\x02\x01user\0",
            b"\x05\x01\0\x05\x01\0\x01\xc0\0\x02\x01\x01\xbb",
            b"\x05\x02\0\x02\x01\x04user\x04word\x05\x01\0\x03\x09192.0.2.1\x01\xbb",
            b"CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
            b"EHLO client.test\r\nSTARTTLS\r\n",
            b"CAPA\r\nSTLS\r\n",
            b"a1 CAPABILITY\r\na2 starttls\r\n",
            b"AUTH TLS\r\n",
            b"<?xml version='1.0'?><stream:stream to='a'><starttls xmlns='urn'/>\n",
            &[0, 0, 0, 8, 4, 210, 22, 47],
            &[&[32, 0, 0, 1, 0x85, 0xae][..], &[0; 30]].concat(),
            &ldap,
            &rdp,
            // Through one proxy to another, and to a mail server behind it.
            b"PROXY UNKNOWN\r\n\x05\x01\0\x05\x01\0\x01\xc0\0\x02\x01\0\x19EHLO a\r\nSTARTTLS\r\n",
        ] {
            let stream = [before, &hello()].concat();
            assert_eq!(read(&stream), named(Via::Sni), "{before:?}");
            for cut in 0..stream.len() - 1 {
                let read = read(&stream[..cut]);
                assert!(
                    read == Opening::Partial || read == named(Via::Sni),
                    "{before:?} cut at {cut}: {read:?}"
                );
            }
        }
    }

    #[test]
    fn a_name_given_to_a_proxy_is_the_name() {
        for request in [
            &b"\x05\x01\0\x05\x01\0\x03\x0dPAGES.example\x01\xbb"[..],
            b"\x04\x01\x01\xbb\0\0\0\x01user\0pages.example\0",
        ] {
            assert_eq!(read(request), named(Via::Socks));
        }
        for empty in ["", "\r\n", "\r\n\r\n"] {
            let request = format!("{empty}GET / HTTP/1.1\r\nHost: pages.example\r\n");
            assert_eq!(read(request.as_bytes()), named(Via::Http));
        }
    }

    #[test]
    fn other_protocols_end_at_their_first_bytes() {
        for other in
            [&b"hello there\r\n"[..], b"\x16\x03\x03\0\x04\x02\0\0\0", b"\x05\0", b"\0\0\0\x10", b"<html>  "]
        {
            assert_eq!(read(other), Opening::Nothing, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            first in prop_oneof![Just(22_u8), Just(0), Just(3), Just(4), Just(5), Just(0x30), Just(b'<'), any::<u8>()],
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            read(&[&[first], &bytes[..]].concat());
            may_begin(&bytes);
            may_greet(&bytes);
        }

        #[test]
        fn any_lines_are_read_without_panic(text in "((EHLO|a STARTTLS|PROXY|CAPA|<stream)[ -~]{0,20}\r?\n){0,30}") {
            read(text.as_bytes());
        }
    }
}
