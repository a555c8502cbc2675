//! Protocols over UDP that one datagram shows.

use usher_models::Class;

use super::{Signature, Whose, anybodys, of, shared, stun, text};

const RAKNET_MAGIC: [u8; 16] =
    [0, 0xff, 0xff, 0, 0xfe, 0xfe, 0xfe, 0xfe, 0xfd, 0xfd, 0xfd, 0xfd, 0x12, 0x34, 0x56, 0x78];
/// Of relays (RFC 8656, 18) and of the large conferences.
const RELAYS: [u16; 7] = [3_478, 3_479, 3_480, 3_481, 5_349, 19_302, 19_305];

/// What a datagram between these ports is.
pub(super) fn read(ports: [u16; 2], bytes: &[u8]) -> Option<Signature> {
    stun::read(bytes)
        .or_else(|| tunnel(ports, bytes))
        .or_else(|| torrent(bytes))
        .or_else(|| text::read(bytes))
        .or_else(|| talk(ports, bytes))
        .or_else(|| game(bytes))
        .or_else(|| system(ports, bytes))
}

fn between(ports: [u16; 2], port: u16) -> bool {
    ports.contains(&port)
}

/// Private networks.
fn tunnel(ports: [u16; 2], bytes: &[u8]) -> Option<Signature> {
    let at = |port| between(ports, port);
    match bytes {
        // WireGuard (protocol and cryptography, 5.4): the messages of its handshake have a type, three zeros and fixed lengths.
        [1, 0, 0, 0, ..] if bytes.len() == 148 => Some(of("wireguard", Class::Other)),
        [2, 0, 0, 0, ..] if bytes.len() == 92 => Some(of("wireguard", Class::Other)),
        [3, 0, 0, 0, ..] if bytes.len() == 64 => Some(of("wireguard", Class::Other)),
        // Its data, of whose handshake nothing was seen: padded to sixteen octets.
        [4, 0, 0, 0, ..] if at(51_820) && bytes.len() >= 32 && bytes.len().is_multiple_of(16) => {
            Some(of("wireguard", Class::Other))
        }
        _ if is_openvpn(bytes) => Some(of("openvpn", Class::Other)),
        [0x38 | 0x40 | 0x50, ..] if at(1_194) && bytes.len() >= 14 => Some(of("openvpn", Class::Other)),
        _ if (at(500) || at(4_500)) && is_ike(bytes) => Some(of("ipsec", Class::Other)),
        // RFC 3948, 2: a keep-alive, or ESP, whose SPI is above 255 (RFC 4303, 2.1) and whose length is padded.
        [0xff] if at(4_500) => Some(of("ipsec", Class::Other)),
        [a, b, c, _, ..] if at(4_500) && [*a, *b, *c] != [0; 3] && bytes.len() >= 32 => {
            bytes.len().is_multiple_of(4).then(|| of("ipsec", Class::Other))
        }
        // RFC 2661, 3.1: a control message with its length and numbers, of version 2.
        [0xc8, 2, high, low, ..] if usize::from(u16::from_be_bytes([*high, *low])) == bytes.len() => {
            Some(of("l2tp", Class::Other))
        }
        // A subscriber's own tunnels, each at its port: GTP-U with a packet in it (3GPP TS 29.281, 5.1), VXLAN (RFC 7348, 5),
        // Teredo (RFC 4380, 4).
        [0x30..=0x37, 0xff, high, low, ..]
            if at(2_152) && usize::from(u16::from_be_bytes([*high, *low])) + 8 == bytes.len() =>
        {
            Some(of("gtp-u", Class::Other))
        }
        [8, 0, 0, 0, _, _, _, 0, ..] if at(4_789) => Some(of("vxlan", Class::Other)),
        [0x60..=0x6f, _, _, _, high, low, ..]
            if at(3_544) && usize::from(u16::from_be_bytes([*high, *low])) + 40 == bytes.len() =>
        {
            Some(of("teredo", Class::Other))
        }
        // DTLS (RFC 6347, 4.1): a record of its first epoch whose length fits; 1.0 and 1.2.
        [20..=23, 0xfe, 0xff | 0xfd, 0, 0, 0, _, _, _, _, _, high, low, rest @ ..]
            if usize::from(u16::from_be_bytes([*high, *low])) <= rest.len() =>
        {
            Some(anybodys("dtls", Class::Other))
        }
        _ => None,
    }
}

/// BitTorrent's distributed table (BEP 5), tracker (BEP 15), local discovery (BEP 14) and transport (BEP 29).
fn torrent(bytes: &[u8]) -> Option<Signature> {
    let is_table = [&b"d1:ad2:id20:"[..], b"d1:rd2:id20:", b"d1:eli20", b"d2:ip6:", b"d2:ip4:"]
        .iter()
        .any(|begin| bytes.starts_with(begin));
    let is_tracker =
        bytes.len() == 16 && bytes.starts_with(&[0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80, 0, 0, 0, 0]);
    // A first packet of the transport: type and version, no extension, number 1, nothing acknowledged.
    let is_transport = bytes.len() == 20
        && bytes.starts_with(&[0x41, 0])
        && bytes.get(8..12) == Some(&[0; 4])
        && bytes.get(16..20) == Some(&[0, 1, 0, 0]);
    let is_local = bytes.starts_with(b"BT-SEARCH * HTTP/1.");
    (is_table || is_tracker || is_transport || is_local).then(|| of("bittorrent", Class::Bulk))
}

/// Calls and conferences.
fn talk(ports: [u16; 2], bytes: &[u8]) -> Option<Signature> {
    let at = |port| between(ports, port);
    match bytes {
        // Reflectors of calls: a tag of the pair, then who is spoken to.
        _ if bytes.get(16..28).is_some_and(|mark| mark == [0xff; 12]) => Some(of("telegram", Class::Call)),
        // The public voice protocol's discovery of one's own address: type, length, source, address, port.
        [0, 1 | 2, 0, 70, ..] if bytes.len() == 74 => Some(of("discord", Class::Call)),
        // A conference's media server: its own header around RTP, whose kind says audio, video or reports.
        [5, _, _, _, _, _, _, 0 | 4, 13 | 15 | 16 | 30 | 33..=35, ..] if at(8_801) => {
            Some(of("zoom", Class::Call))
        }
        // Its handshake: a type, a number and the same identity in question and answer.
        [1 | 2, 0, 1 | 2, _, _, _, _, 0xff, ..] if at(8_801) => Some(of("zoom", Class::Call)),
        [b'T', b'S', b'3', b'I', b'N', b'I', b'T', b'1', ..] => Some(of("teamspeak", Class::Call)),
        // Mumble's ping of a server: four zeros and a stamp.
        [0, 0, 0, 0, ..] if at(64_738) && bytes.len() == 12 => Some(of("mumble", Class::Call)),
        _ if RELAYS.iter().any(|relay| at(*relay)) && stun::is_channel(bytes) => {
            Some(shared("stun", Class::Call))
        }
        // MPEG transport streams without RTP around them: packets of 188 bytes, each with its mark (ISO 13818-1, 2.4.3).
        [0x47, ..]
            if bytes.len() >= 3 * 188
                && bytes.len().is_multiple_of(188)
                && bytes.chunks(188).all(|packet| packet[0] == 0x47) =>
        {
            Some(shared("mpegts", Class::Video))
        }
        _ => None,
    }
}

/// Games and what sells them.
fn game(bytes: &[u8]) -> Option<Signature> {
    /// Words of a query or its answer after the mark of packets without a connection.
    const QUAKE: [&[u8]; 9] = [
        b"getinfo",
        b"getstatus",
        b"getchallenge",
        b"getservers",
        b"infoResponse",
        b"statusResponse",
        b"challengeResponse",
        b"connectResponse",
        b"connect \"",
    ];
    match bytes {
        // Unconnected pings of the library that many games use; an edition says whose.
        [1 | 2, ..] if bytes.get(9..25) == Some(&RAKNET_MAGIC) => Some(RAKNET),
        [0x1c, ..] if bytes.get(17..33) == Some(&RAKNET_MAGIC) => {
            let name = bytes.get(35..39);
            Some(if name == Some(b"MCPE") { of("minecraft", Class::Game) } else { RAKNET })
        }
        [5..=8, ..] if bytes.get(1..17) == Some(&RAKNET_MAGIC) => Some(RAKNET),
        // Valve's server queries and their answers, its streaming, its relays.
        [0xff, 0xff, 0xff, 0xff, b'T', rest @ ..] if rest.starts_with(b"Source Engine Query\0") => {
            Some(of("steam", Class::Game))
        }
        [0xff, 0xff, 0xff, 0xff, b'A' | b'U' | b'V' | b'W', ..] if bytes.len() == 9 => {
            Some(of("steam", Class::Game))
        }
        [0xff, 0xff, 0xff, 0xff, b'I', 0x11, ..]
        | [0xff, 0xff, 0xff, 0xff, 0x21, 0x4c, 0x5f, 0xa0, ..]
        | [b'V', b'S', b'0', b'1', ..]
        | [1, _, b's', b'd', b'p', b'i', b'n', b'g', ..] => Some(of("steam", Class::Game)),
        [0xff, 0xff, 0xff, 0xff, rest @ ..] if QUAKE.iter().any(|word| rest.starts_with(word)) => {
            Some(shared("quake", Class::Game))
        }
        // Consoles among themselves.
        [0x32, 0xab, 0x98, 0x64, 2 | 4 | 0x82 | 0x84, ..] => Some(of("nintendo", Class::Game)),
        _ => None,
    }
}

const RAKNET: Signature = Signature { app: "raknet", class: Class::Game, whose: Whose::Many };

/// What keeps networks and their devices running.
fn system(ports: [u16; 2], bytes: &[u8]) -> Option<Signature> {
    let at = |port| between(ports, port);
    let word = |from: usize| {
        bytes.get(from..from + 2).map(|word| usize::from(u16::from_be_bytes([word[0], word[1]])))
    };
    let fits = |from: usize, rest: usize| word(from).is_some_and(|length| length + rest == bytes.len());
    let app = match bytes {
        _ if at(17_500) && bytes.starts_with(b"{\"") => return Some(of("dropbox", Class::Bulk)),
        _ if at(57_621) && bytes.starts_with(b"SpotUdp") => return Some(of("spotify", Class::Other)),
        // RFC 5905, 7.3: version 1 to 4, and a mode; the smallest message has 48 octets.
        [first, ..] if at(123) && bytes.len() >= 48 && (1..=4).contains(&(first >> 3 & 7)) => "ntp",
        _ if (at(67) || at(68)) && bytes.get(236..240) == Some(&[99, 130, 83, 99]) => "dhcp",
        // RFC 8415, 8: a type, a transaction, options.
        [1..=13, _, _, _, 0, _, ..] if at(546) || at(547) => "dhcp",
        // RFC 1157, 4; RFC 3416; RFC 3412, 6: a sequence of a version and a community or header.
        [0x30, ..] if is_snmp(bytes) => "snmp",
        // RFC 1002, 4.2: a header as that of DNS and an encoded name of 32 octets; 4.4: a datagram's type and flags.
        _ if at(137) && bytes.get(4..6).is_some() && bytes.get(12) == Some(&32) => "netbios",
        [0x10..=0x16, _, ..] if at(138) && bytes.len() >= 14 => "netbios",
        // RFC 2865, 3: code, identifier, length of all.
        [1..=5 | 11..=13 | 40..=45, _, ..]
            if [1_812, 1_813, 1_645, 1_646, 3_799].iter().any(|port| at(*port)) && fits(2, 0) =>
        {
            "radius"
        }
        _ if is_kerberos(bytes) => "kerberos",
        // RFC 4511, 4.1.1, over UDP: a message, its number, a search or its answer.
        [0x30, rest @ ..] if at(389) && super::ber_body(rest).is_some_and(|body| body.starts_with(&[2])) => {
            "ldap"
        }
        _ if is_rpc(bytes) => return Some(rpc(bytes)),
        // RFC 7252, 3: version 1, a short token, a method or answer.
        [0x40..=0x78, code, _, _, ..] if at(5_683) && (*code <= 7 || (64..=165).contains(code)) => "coap",
        // RFC 1350, 5, and RFC 7440: a request for a file in a mode.
        [0, 1 | 2, rest @ ..] if at(69) && rest.split(|byte| *byte == 0).nth(2).is_some() => "tftp",
        // RFC 5424, 6.2.1
        [b'<', b'0'..=b'9', rest @ ..] if at(514) && rest.iter().take(4).any(|byte| *byte == b'>') => {
            "syslog"
        }
        // NetFlow 5 and 9 and IPFIX (RFC 7011, 3.1)
        [0, 5 | 9, ..] if [2_055, 9_995, 9_996].iter().any(|port| at(*port)) => "netflow",
        [0, 10, ..] if fits(2, 0) && bytes.len() > 20 => "netflow",
        // 3GPP TS 29.060, 6; TS 29.274, 5.1: a version and the length of what follows.
        [0x32, 1..=3 | 16..=31, ..] if at(2_123) && fits(2, 8) => "gtp-c",
        [0x40 | 0x48, 1..=3 | 32..=39, ..] if at(2_123) && fits(2, 4) => "gtp-c",
        // BACnet/IP (ASHRAE 135, annex J): a type, a function and the length of all.
        [0x81, 0..=0x0c, ..] if at(47_808) && fits(2, 0) => "bacnet",
        // RFC 5880, 4.1: version 1 and its length.
        [0x20..=0x3f, _, _, length, ..] if at(3_784) && usize::from(*length) == bytes.len() => "bfd",
        // Wake-on-LAN: six times ff, sixteen times the address.
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, rest @ ..]
            if rest.len() >= 96 && rest.chunks(6).take(16).all(|chunk| chunk == &rest[..6]) =>
        {
            "wake-on-lan"
        }
        // Remote help: a command with the maker's mark.
        [0, ..] if at(5_938) && bytes.get(11..13) == Some(&[0x17, 0x24]) => {
            return Some(of("teamviewer", Class::Other));
        }
        _ => return None,
    };
    Some(of(app, Class::System))
}

/// A client's or a server's reset of the control channel: an opcode, a session, then nothing, a check or an encryption of
/// known length around an empty list and packet number zero.
fn is_openvpn(bytes: &[u8]) -> bool {
    let [0x38 | 0x40 | 0x50, rest @ ..] = bytes else { return false };
    let Some(after) = rest.get(8..) else { return false };
    match after.len() {
        5 => after == [0; 5],
        // Encrypted (tls-crypt): its own packet number and a time before the tag.
        45 => after.starts_with(&[0, 0, 0, 1]),
        // Checked (tls-auth): the hash first.
        length => [16, 20, 28, 32, 48, 64].into_iter().any(|hash| {
            length == hash + 13 && after[hash..].starts_with(&[0, 0, 0, 1]) && after[hash + 8..] == [0; 5]
        }),
    }
}

/// A header of IKE (RFC 7296, 3.1; RFC 2408, 3.1), perhaps after the marker that tells it from ESP (RFC 3948, 2.2).
fn is_ike(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(&[0; 4]).unwrap_or(bytes);
    let length = bytes.get(24..28).map(|length| u32::from_be_bytes(length.try_into().unwrap_or_default()));
    matches!(bytes.get(17), Some(0x10 | 0x20)) && length.is_some_and(|length| length as usize == bytes.len())
}

/// SNMP: a sequence, an integer of one octet from 0 to 3, then a community or a sequence.
fn is_snmp(bytes: &[u8]) -> bool {
    let Some(body) = bytes.get(1..).and_then(super::ber_body) else { return false };
    matches!(body, [2, 1, 0 | 1, 4, length, rest @ ..]
        if rest.get(usize::from(*length)).is_some_and(|kind| (0xa0..=0xa8).contains(kind)))
        || matches!(body, [2, 1, 3, 0x30, ..])
}

/// A message of RFC 4120, 5.4 to 5.9: an application's tag, a length that fits, a sequence that begins with version 5.
pub(super) fn is_kerberos(bytes: &[u8]) -> bool {
    let [0x6a | 0x6b | 0x6c | 0x6d | 0x6e | 0x6f | 0x7e, rest @ ..] = bytes else { return false };
    super::ber_body(rest)
        .and_then(|body| super::ber_body(body.strip_prefix(&[0x30])?))
        .is_some_and(|fields| matches!(fields, [0xa0 | 0xa1, 3, 2, 1, 5, ..]))
}

/// A call of RFC 5531, 9: message type 0, protocol version 2, a program's number.
pub(super) fn is_rpc(bytes: &[u8]) -> bool {
    bytes.len() >= 40
        && bytes.get(4..12) == Some(&[0, 0, 0, 0, 0, 0, 0, 2])
        && bytes.get(12..14) == Some(&[0, 1])
        && bytes.get(16..19) == Some(&[0, 0, 0])
}

pub(super) fn rpc(bytes: &[u8]) -> Signature {
    // Programs of RFC 7530, 18 and of its mount protocol.
    match bytes.get(12..16) {
        Some([0, 1, 0x86, 0xa3 | 0xa5]) => of("nfs", Class::Bulk),
        _ => of("rpc", Class::System),
    }
}
