//! Host names as they are compared: lower case, no trailing dot; the authorities that HTTP writes them in; and ids of apps.

use std::net::{IpAddr, Ipv6Addr};

/// Longest host name (RFC 1035, 2.3.4), without the trailing dot.
pub const MAX_NAME: usize = 253;

/// What a domain in an operator's file looks like.
pub(super) const DOMAIN_EXPECTED: &str = "expected labels of letters, digits, `-` and `_`, as in `video.example`; names below it are included without `*.`";

/// What an app's id looks like.
pub(super) const APP_EXPECTED: &str =
    "expected up to 64 lower-case letters, digits and `-`, as in `my-video`";

/// Whether a word may be an app's id, which stands in metrics and policies.
pub(super) fn is_app(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= 64
        && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// A host name read from foreign bytes, in canonical form: lower case, no trailing dot, labels of letters, digits, `-` and
/// `_`. `None` for anything else, so that no hostile byte travels further.
pub fn canonical(raw: &[u8]) -> Option<Box<str>> {
    let raw = raw.strip_suffix(b".").unwrap_or(raw);
    if raw.is_empty() || raw.len() > MAX_NAME {
        return None;
    }
    let plausible = raw.split(|byte| *byte == b'.').all(|label| {
        !label.is_empty()
            && label.len() <= 63
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    });
    if !plausible {
        return None;
    }
    std::str::from_utf8(raw).ok().map(|name| name.to_ascii_lowercase().into_boxed_str())
}

/// An authority read from foreign bytes, in canonical form: a host name or an address, and the port if one was given
/// (RFC 3986, 3.2).
pub fn authority(raw: &[u8]) -> Option<Box<str>> {
    let text = std::str::from_utf8(raw).ok()?;
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host = match host.strip_prefix('[') {
        Some(v6) => format!("[{}]", v6.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?).into_boxed_str(),
        None => canonical(host.as_bytes())?,
    };
    match port {
        Some(port) if !port.is_empty() => {
            Some(format!("{host}:{}", port.parse::<u16>().ok()?).into_boxed_str())
        }
        _ => Some(host),
    }
}

/// The host of a canonical name or authority; `None` where it is an address.
pub fn host(authority: &str) -> Option<&str> {
    if authority.starts_with('[') {
        return None;
    }
    let host = authority.split_once(':').map_or(authority, |(host, _)| host);
    if host.parse::<IpAddr>().is_ok() { None } else { Some(host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_made_canonical_or_refused() {
        for (raw, expected, name) in [
            ("Pages.Example.", "pages.example", Some("pages.example")),
            ("pages.example:8080", "pages.example:8080", Some("pages.example")),
            ("pages.example:", "pages.example", Some("pages.example")),
            ("192.0.2.1:80", "192.0.2.1:80", None),
            ("192.0.2.1", "192.0.2.1", None),
            ("[2001:DB8::1]", "[2001:db8::1]", None),
            ("[2001:DB8::1]:443", "[2001:db8::1]:443", None),
        ] {
            let canonical = authority(raw.as_bytes()).unwrap();
            assert_eq!((&*canonical, host(&canonical)), (expected, name));
        }
        for wrong in ["", ":80", "a b", "a:b", "a:99999", "[::1", "[x]", "[::1]x", "::1", "\u{e4}"] {
            assert_eq!(authority(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn names_are_made_canonical_or_refused() {
        assert_eq!(canonical(b"WWW.Example.COM.").as_deref(), Some("www.example.com"));
        assert_eq!(canonical(b"_dmarc.example").as_deref(), Some("_dmarc.example"));
        for wrong in [&b""[..], b".", b"a..b", b".a", b"a b", b"a\n", "ä.example".as_bytes(), &[b'a'; 64]] {
            assert_eq!(canonical(wrong), None, "{wrong:?}");
        }
        assert_eq!(canonical(&b"a.".repeat(127)).map(|name| name.len()), Some(253));
        assert_eq!(canonical(&b"a.".repeat(128)), None);
    }
}
