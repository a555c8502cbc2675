//! Whom the first request of an HTTP/1 connection is for (RFC 9112, 3.2): the authority in its target, else its Host field.
//!
//! Reads lines as they stand and judges nothing else of a request: scanners, players and set-top boxes send requests that
//! a strict parser refuses, and servers answer them. Refuses HTTP/2 and later, whose names come in TLS.

use super::name;

/// Longest request line and head that are waited for.
const MAX_HEAD: usize = 15 * 1024;
/// Longest method: extensions of HTTP have `UPDATEREDIRECTREF`.
const MAX_METHOD: usize = 20;

/// What the beginning of a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// A request so far, its name not reached.
    Partial,
    /// A request to this authority, as [`name::authority`] writes it.
    For(Box<str>),
    /// A request for a tunnel to an address; the tunnel's first byte is here.
    Tunnel(usize),
    /// A request that names nobody.
    Nameless,
    /// Something else.
    NotHttp,
}

/// Whether bytes may be the first of a request.
pub(super) fn may_begin(bytes: &[u8]) -> bool {
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    (3..=MAX_METHOD).contains(&method) && bytes.get(method) == Some(&b' ')
}

/// Reads a client's first bytes.
pub(super) fn read(bytes: &[u8]) -> Request {
    let word = bytes.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    if word > MAX_METHOD || (word < bytes.len() && !may_begin(bytes)) {
        return Request::NotHttp;
    }
    let waiting = if bytes.len() < MAX_HEAD { Request::Partial } else { Request::Nameless };
    let mut lines = Lines { bytes, at: 0 };
    let Some(first) = lines.next() else { return waiting };
    let Some((target, is_tunnel)) = target(first) else { return Request::NotHttp };
    let asked = if is_tunnel { name::authority(target) } else { absolute(target).and_then(name::authority) };
    if let Some(asked) = asked
        && !(is_tunnel && name::host(&asked).is_none())
    {
        return Request::For(asked);
    }
    for line in &mut lines {
        if line.is_empty() {
            return if is_tunnel { Request::Tunnel(lines.at) } else { Request::Nameless };
        }
        if !is_tunnel && let Some(value) = host_field(line) {
            return name::authority(value).map_or(Request::Nameless, Request::For);
        }
    }
    waiting
}

/// Whole lines, without their ends.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        self.at += end + 1;
        let line = &rest[..end];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

/// The target of a request line, and whether it asks for a tunnel.
fn target(line: &[u8]) -> Option<(&[u8], bool)> {
    let method = line.iter().position(|byte| *byte == b' ')?;
    let version = line.iter().rposition(|byte| *byte == b' ')?;
    if !line[version + 1..].starts_with(b"HTTP/1.") {
        return None;
    }
    let target = line.get(method + 1..version).unwrap_or_default().trim_ascii();
    Some((target, &line[..method] == b"CONNECT"))
}

/// The authority of a target in absolute form.
fn absolute(target: &[u8]) -> Option<&[u8]> {
    let scheme = target.windows(3).position(|window| window == b"://")?;
    if scheme == 0 || !target[..scheme].iter().all(u8::is_ascii_alphabetic) {
        return None;
    }
    let rest = &target[scheme + 3..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let authority = &rest[..end];
    Some(authority.rsplit(|byte| *byte == b'@').next().unwrap_or(authority))
}

/// The value of a Host field.
fn host_field(line: &[u8]) -> Option<&[u8]> {
    let (field, value) = line.split_at_checked(5)?;
    field.eq_ignore_ascii_case(b"host:").then(|| value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_names_whom_it_is_for() {
        for (request, name) in [
            ("GET / HTTP/1.1\r\nAccept: */*\r\nHost: WWW.Pages.Example\r\n", "www.pages.example"),
            ("GET /a b?<script> HTTP/1.0\nhOsT:pages.example:8080\n", "pages.example:8080"),
            ("GET http://user@pages.example/a HTTP/1.1\r\nHost: proxy.test\r\n", "pages.example"),
            ("PROPFIND /?u=http://a.test/ HTTP/1.1\r\nHost: b.test\r\n", "b.test"),
            ("CONNECT pages.example:443 HTTP/1.1\r\nHost: proxy.test\r\n", "pages.example:443"),
            ("POST / HTTP/1.1\r\nHost: 192.0.2.1\r\n", "192.0.2.1"),
            ("GET / HTTP/1.1\r\nHost: [2001:DB8::0:1]:81\r\n", "[2001:db8::1]:81"),
        ] {
            assert_eq!(read(request.as_bytes()), Request::For(name.into()), "{request:?}");
            for cut in 0..request.len() - 1 {
                let read = read(&request.as_bytes()[..cut]);
                assert!(read == Request::Partial || read == Request::For(name.into()), "{cut} {read:?}");
            }
        }
    }

    #[test]
    fn a_tunnel_to_an_address_shows_where_its_content_begins() {
        let request = b"CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1:443\r\n\r\n";
        assert_eq!(read(&[&request[..], &[22, 3, 1]].concat()), Request::Tunnel(request.len()));
        assert_eq!(read(&request[..40]), Request::Partial);
    }

    #[test]
    fn what_names_nobody_and_what_is_no_request_are_told_apart() {
        for nameless in
            ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost: a b\r\n", "GET / HTTP/1.1\r\nHost:\r\n"]
        {
            assert_eq!(read(nameless.as_bytes()), Request::Nameless, "{nameless:?}");
        }
        for other in
            ["EHLO pages.example\r\n", "OPTIONS rtsp://a.test RTSP/1.0\r\n", "get / HTTP/1.1\r\n", "GE", "\n"]
        {
            let expected = if other == "GE" { Request::Partial } else { Request::NotHttp };
            assert_eq!(read(other.as_bytes()), expected, "{other:?}");
        }
        assert_eq!(read(&[b"GET /".as_slice(), &[b'a'; MAX_HEAD]].concat()), Request::Nameless);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            read(&bytes);
        }

        #[test]
        fn any_text_is_read_without_panic(text in "(GET|CONNECT|M-SEARCH) [ -~]{0,40} HTTP/1.1\r?\n([Hh]ost:[ -~\r\n]{0,40})?") {
            read(text.as_bytes());
        }
    }
}
