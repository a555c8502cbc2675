//! Protocols of lines: a word at their beginning or a version at the first one's end.

use usher_models::Class;

use super::{Signature, of};

/// Longest first line that is looked at.
const MAX_LINE: usize = 400;

pub(super) fn read(bytes: &[u8]) -> Option<Signature> {
    if bytes.starts_with(b"SIP/2.0 ") {
        return Some(of("sip", Class::Call));
    }
    if bytes.starts_with(b"RTSP/1.0 ") {
        return Some(of("rtsp", Class::Video));
    }
    let first = *bytes.first()?;
    if !first.is_ascii_uppercase() && first != b':' && first != b'<' {
        return None;
    }
    let line = bytes.get(..MAX_LINE).unwrap_or(bytes).split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    let begins = |word: &[u8]| line.starts_with(word);
    let ends = |word: &[u8]| line.ends_with(word);
    if ends(b" SIP/2.0") {
        return Some(of("sip", Class::Call));
    }
    if ends(b" RTSP/1.0") {
        return Some(of("rtsp", Class::Video));
    }
    let (app, class) = match line {
        b"M-SEARCH * HTTP/1.1" | b"NOTIFY * HTTP/1.1" => ("ssdp", Class::System),
        _ if ends(b" MGCP 1.0") => ("mgcp", Class::Call),
        // RFC 1459, 4.1, and what came before registration since; a user's four parts tell it from a transfer's login.
        _ if begins(b"NICK ") || begins(b"CAP LS") => ("irc", Class::Social),
        _ if begins(b"USER ") && line.windows(2).any(|part| part == b" :") => ("irc", Class::Social),
        // RFC 6120, 4.2: a stream that did not ask for TLS.
        _ if begins(b"<?xml version='1.0'?><stream:stream") || begins(b"<stream:stream ") => {
            ("xmpp", Class::Social)
        }
        // RFC 5321, 4.1.1.1
        _ if begins(b"EHLO ") || begins(b"HELO ") => ("smtp", Class::System),
        _ if begins(b"CONNECTED") || (begins(b"STOMP") && line.len() == 5) => ("stomp", Class::System),
        _ => return None,
    };
    Some(of(app, class))
}
