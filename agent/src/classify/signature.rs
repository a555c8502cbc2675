//! Protocols that show what they are in the first bytes of a flow, and name nobody.
//!
//! Owns one packet's worth of evidence each: fixed bytes and lengths that agree, never a port alone. Refuses state.

use usher_models::Class;

/// A protocol that was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature {
    /// The app it is of, or the protocol's own id.
    pub(crate) app: &'static str,
    pub(crate) class: Class,
    /// Whether many apps speak it: then the app's own name is better, where another proof gives it.
    pub(crate) shared: bool,
}

const fn of(app: &'static str, class: Class) -> Signature {
    Signature { app, class, shared: false }
}

const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const RAKNET_MAGIC: [u8; 16] =
    [0, 0xff, 0xff, 0, 0xfe, 0xfe, 0xfe, 0xfe, 0xfd, 0xfd, 0xfd, 0xfd, 0x12, 0x34, 0x56, 0x78];

/// What an IP packet of this protocol is.
pub(crate) fn ip(protocol: u8, _bytes: &[u8]) -> Option<Signature> {
    match protocol {
        1 | 58 => Some(of("icmp", Class::System)),
        50 | 51 => Some(of("ipsec", Class::Other)),
        _ => None,
    }
}

/// What a datagram between these ports is.
pub(crate) fn udp(ports: [u16; 2], bytes: &[u8]) -> Option<Signature> {
    let between = |port: u16| ports.contains(&port);
    stun(bytes).or_else(|| wireguard(bytes)).or_else(|| torrent(bytes)).or_else(|| text(bytes)).or_else(
        || match bytes {
            // Reflectors of calls: a tag of the pair, then who is spoken to.
            _ if bytes.get(16..28).is_some_and(|mark| mark == [0xff; 12]) => {
                Some(of("telegram", Class::Call))
            }
            _ if between(17_500) && bytes.starts_with(b"{\"") => Some(of("dropbox", Class::Bulk)),
            _ if between(57_621) && bytes.starts_with(b"SpotUdp") => Some(of("spotify", Class::Other)),
            [0xff, 0xff, 0xff, 0xff, 0x21, 0x4c, 0x5f, 0xa0, ..] | [b'V', b'S', b'0', b'1', ..] => {
                Some(of("steam", Class::Game))
            }
            [1 | 2, ..] if bytes.get(9..25) == Some(&RAKNET_MAGIC) => Some(of("raknet", Class::Game)),
            [5..=8, ..] if bytes.get(1..17) == Some(&RAKNET_MAGIC) => Some(of("raknet", Class::Game)),
            // RFC 5905, 7.3: version 1 to 4, and a mode; the smallest message has 48 octets.
            [first, ..] if between(123) && bytes.len() >= 48 && (1..=4).contains(&(first >> 3 & 7)) => {
                Some(of("ntp", Class::System))
            }
            _ if (between(67) || between(68)) && bytes.get(236..240) == Some(&[99, 130, 83, 99]) => {
                Some(of("dhcp", Class::System))
            }
            _ if (between(500) || between(4500)) && is_ike(bytes) => Some(of("ipsec", Class::Other)),
            // WireGuard's data, of whose handshake nothing was seen: padded to sixteen octets.
            [4, 0, 0, 0, ..] if between(51_820) && bytes.len() >= 32 && bytes.len().is_multiple_of(16) => {
                Some(of("wireguard", Class::Other))
            }
            // A reset of the control channel by a client or a server, with an acknowledgement list and a packet id.
            [0x38 | 0x40, ..] if between(1194) && bytes.len() >= 14 => Some(of("openvpn", Class::Other)),
            _ => None,
        },
    )
}

/// What a side of a TCP connection that begins with these bytes speaks.
pub(crate) fn tcp(bytes: &[u8]) -> Option<Signature> {
    if bytes.starts_with(b"\x13BitTorrent protocol") {
        return Some(of("bittorrent", Class::Bulk));
    }
    if bytes.starts_with(b"SSH-2.0-") || bytes.starts_with(b"SSH-1.") {
        return Some(of("ssh", Class::Other));
    }
    match bytes {
        // TPKT and an X.224 connection request or its confirmation (MS-RDPBCGR, 2.2.1)
        [3, 0, high, low, length, 0xe0 | 0xd0, ..]
            if u16::from_be_bytes([*high, *low]) == u16::from(*length) + 5 =>
        {
            Some(of("rdp", Class::Other))
        }
        // CONNECT of MQTT 3.1.1 and 5, or of 3.1
        [0x10, _, 0, 4, b'M', b'Q', b'T', b'T', ..]
        | [0x10, _, 0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => Some(of("mqtt", Class::System)),
        // Noise handshakes of the messenger, with and without edge routing before.
        [b'W', b'A', 1..=9, 0..=9, ..] | [b'E', b'D', 0, 1, ..] => Some(of("whatsapp", Class::Social)),
        // The client's hello to an access point.
        [0, 4, 0, 0, _, _, 0x52, 0x0e | 0x0f, 0x50, ..] => Some(of("spotify", Class::Other)),
        _ => text(bytes),
    }
}

/// STUN and TURN (RFC 8489, 5): a type, the length of what follows, the cookie. Attributes of their own give some apps
/// away.
fn stun(bytes: &[u8]) -> Option<Signature> {
    let (header, mut attributes) = bytes.split_first_chunk::<20>()?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] & 0xc0 != 0 || header[4..8] != STUN_COOKIE || length > attributes.len() {
        return None;
    }
    attributes = &attributes[..length];
    while let Some((&[high, low, length_high, length_low], rest)) = attributes.split_first_chunk::<4>() {
        match u16::from_be_bytes([high, low]) {
            0x4000..=0x4007 => return Some(of("whatsapp", Class::Call)),
            // MS-TURN, MS-ICE2: version, sequence number, service quality, implementation
            0x8006 | 0x8008 | 0x8055 | 0x8070 => return Some(of("teams", Class::Call)),
            _ => {}
        }
        let padded = usize::from(u16::from_be_bytes([length_high, length_low])).next_multiple_of(4);
        attributes = rest.get(padded..).unwrap_or_default();
    }
    Some(Signature { app: "stun", class: Class::Call, shared: true })
}

/// The messages of WireGuard's handshake, whose lengths are fixed.
fn wireguard(bytes: &[u8]) -> Option<Signature> {
    matches!(
        (bytes.first_chunk::<4>()?, bytes.len()),
        ([1, 0, 0, 0], 148) | ([2, 0, 0, 0], 92) | ([3, 0, 0, 0], 64)
    )
    .then_some(Signature { app: "wireguard", class: Class::Other, shared: false })
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
    if is_table || is_tracker || is_transport || is_local {
        Some(of("bittorrent", Class::Bulk))
    } else {
        None
    }
}

/// Protocols of lines with a version at the first one's end.
fn text(bytes: &[u8]) -> Option<Signature> {
    if bytes.starts_with(b"SIP/2.0 ") {
        return Some(of("sip", Class::Call));
    }
    if bytes.starts_with(b"RTSP/1.0 ") {
        return Some(of("rtsp", Class::Video));
    }
    let line = bytes.get(..400).unwrap_or(bytes).split(|byte| *byte == b'\r').next()?;
    if !line.first()?.is_ascii_uppercase() {
        return None;
    }
    if line.ends_with(b" SIP/2.0") {
        Some(of("sip", Class::Call))
    } else if line.ends_with(b" RTSP/1.0") {
        Some(of("rtsp", Class::Video))
    } else if line == b"M-SEARCH * HTTP/1.1" || line == b"NOTIFY * HTTP/1.1" {
        Some(of("ssdp", Class::System))
    } else {
        None
    }
}

/// A header of IKE (RFC 7296, 3.1), perhaps after the marker that tells it from ESP (RFC 3948, 2.2).
fn is_ike(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(&[0; 4]).unwrap_or(bytes);
    let length = bytes.get(24..28).map(|length| u32::from_be_bytes(length.try_into().unwrap_or_default()));
    matches!(bytes.get(17), Some(0x10 | 0x20)) && length.is_some_and(|length| length as usize == bytes.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stun_with(attribute: u16) -> Vec<u8> {
        let [high, low] = attribute.to_be_bytes();
        [&[0, 1, 0, 16][..], &STUN_COOKIE, &[7; 12], &[0, 6, 0, 3, 1, 2, 3, 0, high, low, 0, 4, 0, 0, 0, 1]]
            .concat()
    }

    #[test]
    fn protocols_are_known_by_their_first_bytes() {
        let app = |ports, bytes: &[u8]| udp(ports, bytes).map(|signature| (signature.app, signature.class));
        let any = [40_000, 50_000];
        assert_eq!(app(any, &stun_with(0x24)), Some(("stun", Class::Call)));
        assert_eq!(app(any, &stun_with(0x4000)), Some(("whatsapp", Class::Call)));
        assert_eq!(app(any, &stun_with(0x8070)), Some(("teams", Class::Call)));
        assert_eq!(app(any, &[&[1, 0, 0, 0][..], &[7; 144]].concat()), Some(("wireguard", Class::Other)));
        assert_eq!(app(any, b"d1:ad2:id20:abcdefghij0123456789e"), Some(("bittorrent", Class::Bulk)));
        assert_eq!(app(any, b"INVITE sip:a@b.test SIP/2.0\r\nVia: x\r\n"), Some(("sip", Class::Call)));
        assert_eq!(app(any, b"M-SEARCH * HTTP/1.1\r\n"), Some(("ssdp", Class::System)));
        assert_eq!(app([40_000, 123], &[0x23; 48]), Some(("ntp", Class::System)));
        assert_eq!(app(any, &[0x23; 48]), None);
        let ike = [&[7; 16][..], &[33, 0x20, 34, 8, 0, 0, 0, 0, 0, 0, 0, 28]].concat();
        assert_eq!(app([500, 500], &ike), Some(("ipsec", Class::Other)));
        assert_eq!(app([4500, 4500], &[&[0; 4][..], &ike].concat()), Some(("ipsec", Class::Other)));
        let reflected = [&[7; 16][..], &[0xff; 12], &[1, 2, 3, 4]].concat();
        assert_eq!(app(any, &reflected), Some(("telegram", Class::Call)));
        let app = |bytes: &[u8]| tcp(bytes).map(|signature| signature.app);
        assert_eq!(app(b"\x13BitTorrent protocol\0\0"), Some("bittorrent"));
        assert_eq!(app(b"SSH-2.0-x\r\n"), Some("ssh"));
        assert_eq!(app(b"\x10\x0e\0\x04MQTT\x04"), Some("mqtt"));
        assert_eq!(app(b"DESCRIBE rtsp://a.test/b RTSP/1.0\r\n"), Some("rtsp"));
        assert_eq!(app(b"GET / HTTP/1.1\r\n"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_panic(
            ports in any::<[u16; 2]>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            attributes in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            udp(ports, &bytes);
            tcp(&bytes);
            let length = u8::try_from(attributes.len()).unwrap();
            udp(ports, &[&[0, 1, 0, length][..], &STUN_COOKIE, &[7; 12], &attributes].concat());
        }
    }
}
