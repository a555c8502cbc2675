//! Host names as they are compared: lower case, no trailing dot.

/// Longest host name (RFC 1035, 2.3.4), without the trailing dot.
pub const MAX_NAME: usize = 253;

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

#[cfg(test)]
mod tests {
    use super::*;

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
