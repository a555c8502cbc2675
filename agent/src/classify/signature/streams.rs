//! Protocols over TCP that the first bytes of a side show.

use usher_models::Class;

use super::datagrams::{is_kerberos, is_rpc, rpc};
use super::{HTTP, Signature, TLS, ber_body, of, shared, stun, text};

/// What a side of a TCP connection that begins with these bytes speaks.
pub(super) fn read(bytes: &[u8]) -> Option<Signature> {
    person(bytes)
        .or_else(|| transfer(bytes))
        .or_else(|| store(bytes))
        .or_else(|| system(bytes))
        .or_else(|| text::read(bytes))
}

/// What a server is that said this first, should its client ask for no TLS after all.
pub(super) fn greeting(bytes: &[u8]) -> Option<Signature> {
    let line = bytes.get(..200).unwrap_or(bytes);
    let says = |word: &[u8]| line.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
    match bytes {
        [b'2', b'2', b'0', b' ' | b'-', ..] if says(b"FTP") => Some(of("ftp", Class::Bulk)),
        [b'2', b'2', b'0', b' ' | b'-', ..] if says(b"SMTP") => Some(of("smtp", Class::System)),
        [b'+', b'O', b'K', b' ' | b'\r', ..] => Some(of("pop3", Class::System)),
        [b'*', b' ', b'O', b'K', b' ', ..] => Some(of("imap", Class::System)),
        [_, _, 0, 0, 10, ..] => store(bytes),
        // From the middle of a connection: TLS records, an answer to a request.
        [20..=23, 3, 0..=4, high, _, ..] if *high <= 0x41 => Some(TLS),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', ..] => Some(HTTP),
        _ => None,
    }
}

/// What people talk, look and work by.
fn person(bytes: &[u8]) -> Option<Signature> {
    Some(match bytes {
        // Noise handshakes of the messenger, with and without edge routing before.
        [b'W', b'A', 1..=9, 0..=9, ..] | [b'E', b'D', 0, 1, ..] => of("whatsapp", Class::Social),
        // MTProto in clear: a transport's mark, and a message without a key.
        [0xef, length, 0, 0, 0, 0, 0, 0, 0, 0, ..] if *length < 0x7f => of("telegram", Class::Social),
        [0xee, 0xee, 0xee, 0xee, _, _, 0, 0, ..] | [0xdd, 0xdd, 0xdd, 0xdd, _, _, 0, 0, ..] => {
            of("telegram", Class::Social)
        }
        // The client's hello to an access point.
        [0, 4, 0, 0, _, _, 0x52, 0x0e | 0x0f, 0x50, ..] => of("spotify", Class::Other),
        // Version 3, then a time, four zeros and noise (RTMP 1.0, 5.2.2).
        // So does the middle of a hello of TLS read, where version 3.3 ends its list and extension 23 comes next.
        [3, a, b, c, d, 0, 0, 0, 0, ..] if bytes.len() >= 100 && [*a, *b, *c, *d] != [3, 0, 23, 0] => {
            shared("rtmp", Class::Video)
        }
        [b'R', b'F', b'B', b' ', b'0', b'0', b'0' | b'3' | b'4', ..] => of("vnc", Class::Other),
        _ if bytes.starts_with(b"SSH-2.0-") || bytes.starts_with(b"SSH-1.") => of("ssh", Class::Other),
        // TPKT and an X.224 connection request or its confirmation (MS-RDPBCGR, 2.2.1)
        [3, 0, high, low, length, 0xe0 | 0xd0, ..]
            if u16::from_be_bytes([*high, *low]) == u16::from(*length) + 5 =>
        {
            of("rdp", Class::Other)
        }
        [0x17, 0x24, 0x0a | 0x0d | 0x0e | 0x10..=0x20, ..] | [0x11, 0x30, 0x36..=0x39, 0, ..] => {
            of("teamviewer", Class::Other)
        }
        // Telnet (RFC 854): commands of three octets about options, nothing else in the first.
        [0xff, 0xfb..=0xfe, 0..=50, rest @ ..]
            if rest.is_empty() || matches!(rest, [0xff, 0xfa..=0xfe, ..]) =>
        {
            of("telnet", Class::Other)
        }
        // A handshake of the game: length, packet 0, a version, the server's name, its port, what comes next.
        [length, 0, rest @ ..] if is_minecraft(*length, rest) => of("minecraft", Class::Game),
        // Voice chat's version message before TLS does not exist; calls over TCP are STUN's.
        _ => {
            return stun::read(bytes)
                .filter(|_| bytes.len() >= 20 && bytes[4..8] == [0x21, 0x12, 0xa4, 0x42]);
        }
    })
}

/// What moves files.
fn transfer(bytes: &[u8]) -> Option<Signature> {
    Some(match bytes {
        _ if bytes.starts_with(b"\x13BitTorrent protocol") => of("bittorrent", Class::Bulk),
        _ if bytes.starts_with(b"GNUTELLA CONNECT/") => of("gnutella", Class::Bulk),
        // A hello of eDonkey: a mark, a length, type 1, a hash of sixteen octets.
        [0xe3, a, b, 0, 0, 1, 16, ..] if usize::from(u16::from_le_bytes([*a, *b])) + 5 == bytes.len() => {
            of("edonkey", Class::Bulk)
        }
        _ if bytes.starts_with(b"@RSYNCD: ") => of("rsync", Class::Bulk),
        // Of git's own transport: a length in hexadecimal, a service.
        [_, _, _, _, rest @ ..]
            if rest.starts_with(b"git-upload-pack ") || rest.starts_with(b"git-receive-pack ") =>
        {
            of("git", Class::Bulk)
        }
        // Direct TCP of SMB (MS-SMB2, 2.1): a length, and a header of 1, 2 or 3, or one that is encrypted.
        [0, _, _, _, 0xfd..=0xff, b'S', b'M', b'B', ..] => of("smb", Class::Bulk),
        // A record of an RPC (RFC 5531, 11), the last of its message.
        [0x80, a, b, c, rest @ ..]
            if usize::try_from(u32::from_be_bytes([0, *a, *b, *c]))
                .is_ok_and(|length| length >= rest.len())
                && is_rpc(rest) =>
        {
            rpc(rest)
        }
        _ => return None,
    })
}

/// Databases and queues.
fn store(bytes: &[u8]) -> Option<Signature> {
    let app = match bytes {
        // CONNECT of MQTT 3.1.1 and 5, or of 3.1
        [0x10, _, 0, 4, b'M', b'Q', b'T', b'T', ..]
        | [0x10, _, 0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => {
            return Some(of("mqtt", Class::System));
        }
        // AMQP 0-9-1 (4.2.2) and 1.0 (2.2): a name and a version
        [b'A', b'M', b'Q', b'P', 0..=3, 0 | 1, 0 | 9, 0 | 1, ..] => return Some(of("amqp", Class::System)),
        // A start of PostgreSQL's protocol 3: length, version, a user
        [0, 0, _, _, 0, 3, 0, 0, rest @ ..]
            if rest.starts_with(b"user\0") || rest.starts_with(b"database\0") =>
        {
            "postgresql"
        }
        // The greeting of MySQL: length, number 0, protocol 10, a version in digits
        [_, _, 0, 0, 10, b'3'..=b'9' | b'1', b'.' | b'0'..=b'9', ..] => "mysql",
        // TDS (MS-TDS, 2.2.3): a first message or batch, with its length
        [1 | 0x10 | 0x12, 0 | 1 | 9, high, low, 0, 0, 0 | 1, 0, ..]
            if usize::from(u16::from_be_bytes([*high, *low])) == bytes.len() =>
        {
            "tds"
        }
        // MongoDB: length, two numbers, a query or a message
        [a, b, 0, 0, _, _, _, _, _, _, _, _, 0xd4 | 0xdd, 7, 0, 0, ..]
            if usize::from(u16::from_le_bytes([*a, *b])) == bytes.len() =>
        {
            "mongodb"
        }
        // Redis: an array of strings
        [b'*', b'1'..=b'9', b'\r', b'\n', b'$', b'1'..=b'9', ..] => "redis",
        _ => return None,
    };
    Some(of(app, Class::Other))
}

/// What keeps networks, directories and machines running.
fn system(bytes: &[u8]) -> Option<Signature> {
    let long = |from: usize| {
        let length = bytes.get(from..from + 4)?;
        usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()
    };
    let app = match bytes {
        // NetBIOS sessions (RFC 1002, 4.3): a request, two encoded names
        [0x81, 0, 0, 0x44, 32, ..] => "netbios",
        // DCE/RPC (C706, 12.6): version 5, a bind or its answer, little-endian
        [5, 0 | 1, 11..=16, _, 0x10, 0, 0, 0, ..] => "dcerpc",
        // A length, then Kerberos (RFC 4120, 7.2.2)
        [0, _, _, _, rest @ ..]
            if long(0).is_some_and(|length| length >= rest.len()) && is_kerberos(rest) =>
        {
            "kerberos"
        }
        // LDAP (RFC 4511, 4.1.1): a message, its number, a bind or search
        [0x30, rest @ ..]
            if ber_body(rest).is_some_and(|body| {
                matches!(
                    body,
                    [2, 1, _, 0x60 | 0x61 | 0x63 | 0x64 | 0x65 | 0x77 | 0x78, ..]
                        | [2, 2, _, _, 0x60 | 0x61 | 0x63 | 0x64 | 0x65, ..]
                )
            }) =>
        {
            "ldap"
        }
        // RFC 6733, 3: version 1, a length of all, a request for capabilities of no application
        [1, _, _, _, _, 0, 1, 1, 0, 0, 0, 0, ..] => "diameter",
        // RFC 2637, 2: length, a control message, the cookie
        [0, _, 0, 1, 0x1a, 0x2b, 0x3c, 0x4d, ..] => return Some(of("pptp", Class::Other)),
        // OpenVPN over TCP: a length before what a datagram would have
        [0, length, 0x38 | 0x40 | 0x50, ..] if usize::from(*length) + 2 == bytes.len() => {
            let signature = super::datagrams::read([0, 0], &bytes[2..])?;
            return (signature.app == "openvpn").then_some(signature);
        }
        // RFC 4271, 4.1: a marker of ones, a length, an open message of version 4
        [0xff, 0xff, 0xff, 0xff, ..]
            if bytes.starts_with(&[0xff; 16]) && matches!(bytes.get(18), Some(1..=4)) =>
        {
            "bgp"
        }
        // Modbus (Messaging on TCP/IP, 3.1.3): a transaction, protocol 0, a length, a unit, a function and what it takes
        [_, _, 0, 0, 0, 6, _, 1..=6, _, _, _, _] => "modbus",
        [_, _, 0, 0, 0, length, _, 15 | 16, _, _, _, _, count, ..]
            if usize::from(*length) + 6 == bytes.len() && length.checked_sub(7) == Some(*count) =>
        {
            "modbus"
        }
        // DNP3 (IEEE 1815, 9.2): its start, a length that counts neither blocks' checks nor itself, and the header's check
        [5, 0x64, 5..=255, ..]
            if bytes.get(8..10).is_some_and(|check| check == dnp3_check(&bytes[..8]).to_le_bytes()) =>
        {
            "dnp3"
        }
        _ if is_iec104(bytes) => "iec104",
        // EtherNet/IP (CIP 2, 2-3): a registration
        [0x65, 0, 4, 0, 0, 0, 0, 0, ..] => "ethernet-ip",
        // S7: TPKT, data of X.224, its own mark
        [3, 0, _, _, 2, 0xf0, 0x80, 0x32, ..] => "s7",
        // FIX: a version, then the length of what follows
        [b'8', b'=', b'F', b'I', b'X', b'.' | b'T', ..] => return Some(of("fix", Class::Other)),
        // The network of the coin: its magic, then a command in letters
        [0xf9, 0xbe, 0xb4, 0xd9, b'a'..=b'z', ..] => return Some(of("bitcoin", Class::Other)),
        // Miners among themselves: JSON in lines
        [b'{', ..]
            if [
                &b"\"mining."[..],
                b"\"eth_submitLogin\"",
                b"\"login\",\"params\"",
                b"\"jsonrpc\":\"2.0\",\"method\":\"login\"",
            ]
            .iter()
            .any(|word| bytes.windows(word.len()).take(200).any(|part| part == *word)) =>
        {
            return Some(of("mining", Class::Other));
        }
        _ => return None,
    };
    Some(of(app, Class::System))
}

/// The check of a block of DNP3 (IEEE 1815, 9.2.4.1): sixteen bits by the polynomial 0x3d65, reflected, inverted at the end.
fn dnp3_check(block: &[u8]) -> u16 {
    let check =
        block.iter().fold(0, |check, octet| {
            (0..8).fold(check ^ u16::from(*octet), |check, _| {
                if check & 1 == 0 { check >> 1 } else { check >> 1 ^ 0xa6bc }
            })
        });
    !check
}

/// A unit of IEC 60870-5-104, 5: a start, the length of all, and a control field of four: one unnumbered function, or an
/// acknowledgement, or numbers and then data of a type, a count and a cause (60870-5-101, 7.2).
fn is_iec104(bytes: &[u8]) -> bool {
    let [0x68, length @ 4..=253, control @ ..] = bytes else { return false };
    usize::from(*length) + 2 == bytes.len()
        && match control {
            [0x07 | 0x0b | 0x13 | 0x23 | 0x43 | 0x83, 0, 0, 0] => true,
            [1, 0, low, _] => low & 1 == 0,
            [sent, _, received, _, 1..=127, count, cause, originator, ..] => {
                (sent | received) & 1 == 0
                    && *count != 0
                    && (1..=47).contains(&(cause & 0x3f))
                    && *originator == 0
            }
            _ => false,
        }
}

/// The rest of a handshake: a protocol's number of at most five octets, a name of at most 255, a port, an intent.
fn is_minecraft(length: u8, rest: &[u8]) -> bool {
    let Some(version) = rest.iter().take(5).position(|byte| byte & 0x80 == 0) else { return false };
    let Some((name, rest)) = rest.get(version + 1..).and_then(|rest| {
        let (length, rest) = rest.split_first()?;
        rest.split_at_checked(usize::from(*length))
    }) else {
        return false;
    };
    let all = 1 + version + 1 + 1 + name.len() + 3;
    usize::from(length) == all
        && length < 0x80
        && !name.is_empty()
        && name.iter().all(|byte| byte.is_ascii_graphic() || *byte == 0)
        && matches!(rest, [_, _, 1..=3, ..])
}
