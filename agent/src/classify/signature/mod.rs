//! Protocols that show what they are in the first bytes of a flow, and name nobody.
//!
//! Owns one packet's worth of evidence each: fixed bytes and lengths that agree; a port only beside them, where they alone
//! would say too little. Refuses state.

mod datagrams;
mod streams;
mod stun;
mod text;

use usher_models::Class;

/// A protocol that was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature {
    /// The app it is of, or the protocol's own id.
    pub(crate) app: &'static str,
    pub(crate) class: Class,
    pub(crate) whose: Whose,
}

/// Whose a protocol is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// One app's, or none's but its own.
    Its,
    /// Many apps': the app's own name is better, where another proof gives it; the class is the protocol's.
    Many,
    /// Anybody's, for anything: app and class are better from wherever they come.
    Anybody,
}

/// TLS that names nobody.
pub(crate) const TLS: Signature = anybodys("tls", Class::Web);
/// A request that names nobody.
pub(crate) const HTTP: Signature = anybodys("http", Class::Web);

const fn of(app: &'static str, class: Class) -> Signature {
    Signature { app, class, whose: Whose::Its }
}

const fn shared(app: &'static str, class: Class) -> Signature {
    Signature { app, class, whose: Whose::Many }
}

const fn anybodys(app: &'static str, class: Class) -> Signature {
    Signature { app, class, whose: Whose::Anybody }
}

/// What an IP packet of this protocol is (IANA, protocol numbers), other than TCP and UDP.
pub(crate) fn ip(protocol: u8) -> Option<Signature> {
    Some(match protocol {
        1 | 58 => of("icmp", Class::System),
        2 => of("igmp", Class::System),
        4 | 41 => of("ipip", Class::Other),
        47 => of("gre", Class::Other),
        50 | 51 => of("ipsec", Class::Other),
        88 => of("eigrp", Class::System),
        89 => of("ospf", Class::System),
        103 => of("pim", Class::System),
        112 => of("vrrp", Class::System),
        132 => of("sctp", Class::Other),
        _ => return None,
    })
}

/// What a datagram between these ports is.
pub(crate) fn udp(ports: [u16; 2], bytes: &[u8]) -> Option<Signature> {
    datagrams::read(ports, bytes)
}

/// What a side of a TCP connection that begins with these bytes speaks.
pub(crate) fn tcp(bytes: &[u8]) -> Option<Signature> {
    streams::read(bytes)
}

/// What a server is that said this first, should its client ask for no TLS after all.
pub(crate) fn greeting(bytes: &[u8]) -> Option<Signature> {
    streams::greeting(bytes)
}

/// What stands after a length in BER (X.690, 8.1.3), if that fits what is there.
fn ber_body(bytes: &[u8]) -> Option<&[u8]> {
    let (first, rest) = bytes.split_first()?;
    let octets = usize::from(first & 0x7f);
    let (length, body) = if first & 0x80 == 0 {
        (octets, rest)
    } else if (1..=3).contains(&octets) {
        let (length, body) = rest.split_at_checked(octets)?;
        (length.iter().fold(0, |sum, octet| sum << 8 | usize::from(*octet)), body)
    } else {
        return None;
    };
    // A message over TCP may go on in the next segment.
    (length >= 3 && length + 4 >= body.len()).then_some(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

    fn stun_with(attribute: u16) -> Vec<u8> {
        let [high, low] = attribute.to_be_bytes();
        [&[0, 1, 0, 16][..], &COOKIE, &[7; 12], &[0, 6, 0, 3, 1, 2, 3, 0, high, low, 0, 4, 0, 0, 0, 1]]
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
        assert_eq!(app(b"USER someone\r\n"), None, "of several protocols");
    }

    #[test]
    fn each_stream_shows_its_protocol() {
        let tds = [&[0x12, 1, 0, 47, 0, 0, 1, 0][..], &[0; 39]].concat();
        let rtmp = [&[3, 0, 0, 0, 0, 0, 0, 0, 0][..], &[7; 1_528]].concat();
        let mongodb = [&[20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xdd, 7, 0, 0][..], &[0; 4]].concat();
        let nfs = [
            &[0x80, 0, 0, 40, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0x86, 0xa3, 0, 0, 0, 4][..],
            &[0; 20],
        ]
        .concat();
        let diameter = [&[1, 0, 0, 40, 0x80, 0, 1, 1, 0, 0, 0, 0][..], &[0; 28]].concat();
        let bgp = [&[0xff; 16][..], &[0, 29, 1, 4]].concat();
        let minecraft = b"\x10\0\xff\x05\x09localhost\x63\xdd\x01";
        for (bytes, name) in [
            (&tds[..], "tds"),
            (&rtmp, "rtmp"),
            (&mongodb, "mongodb"),
            (&nfs, "nfs"),
            (&diameter, "diameter"),
            (&bgp, "bgp"),
            (minecraft, "minecraft"),
            (b"RFB 003.008\n", "vnc"),
            (b"\xff\xfd\x18\xff\xfd\x20", "telnet"),
            (b"\0\0\0\x2d\xfeSMB@\0", "smb"),
            (b"\x81\0\0\x44\x20CK", "netbios"),
            (b"\0\x9c\0\x01\x1a\x2b\x3c\x4d\0\x01", "pptp"),
            (b"AMQP\0\0\x09\x01", "amqp"),
            (b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\0\x80\0", "ldap"),
            (b"0032git-upload-pack /project.git\0host=a.test\0", "git"),
            (b"\0\x01\0\0\0\x06\x01\x03\0\0\0\x0a", "modbus"),
            (b"\x68\x04\x07\0\0\0", "iec104"),
            (b"\x68\x0e\0\0\0\0\x64\x01\x06\0\x01\0\0\0\0\x14", "iec104"),
            (b"\x05\x64\x05\xc0\x01\0\0\x04\xe9\x21", "dnp3"),
            (b"NICK me\r\nUSER me 0 * :Me\r\n", "irc"),
            (b"*1\r\n$4\r\nPING\r\n", "redis"),
            (b"8=FIX.4.2\x019=65\x01", "fix"),
            (b"\xef\x0a\0\0\0\0\0\0\0\0", "telegram"),
            (b"\x17\x24\x0a\x20", "teamviewer"),
            (b"\xf9\xbe\xb4\xd9version\0\0\0\0\0", "bitcoin"),
        ] {
            assert_eq!(tcp(bytes).map(|signature| signature.app), Some(name));
        }
        // What a wrong check or the middle of a hello of TLS looks like.
        let middle = [&[3, 3, 0, 23, 0, 0, 0, 0, 0, 17][..], &[7; 200]].concat();
        for bytes in [&b"\x05\x64\x05\xc0\x01\0\0\x04\xe9\x22"[..], b"\x68\x04\x05\0\0\x01", &middle] {
            assert_eq!(tcp(bytes), None, "{bytes:?}");
        }
        for (bytes, name) in [
            (&b"220 files FTP server\r\n"[..], "ftp"),
            (b"220 mail.test ESMTP\r\n", "smtp"),
            (b"+OK ready\r\n", "pop3"),
            (b"* OK IMAP4rev1\r\n", "imap"),
            (b"\x17\x03\x03\x01\x00", "tls"),
            (b"HTTP/1.1 200 OK\r\n", "http"),
        ] {
            assert_eq!(greeting(bytes).map(|signature| signature.app), Some(name));
        }
    }

    #[test]
    fn each_datagram_shows_its_protocol() {
        let any = [40_000, 50_000];
        let classic = b"\0\x01\0\x18\xc1\x5d\xae\x63\x58\x5d\x14\x39\x2e\x58\x2c\x26\x04\x03\xbf\x30\x01\x01\0\x141234567890123456789\0";
        let realm = [&[0, 3, 0, 16][..], &COOKIE, &[7; 12], &[0, 20, 0, 10], b"signal.org\0\0"].concat();
        let openvpn = [&[0x38][..], &[9; 8], &[0; 5]].concat();
        let checked = [&[0x38][..], &[9; 8], &[5; 20], &[0, 0, 0, 1, 1, 2, 3, 4], &[0; 5]].concat();
        let dtls = [&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4][..], &[1; 4]].concat();
        let bedrock = [
            &[0x1c][..],
            &[1; 16],
            &[0, 255, 255, 0, 254, 254, 254, 254, 253, 253, 253, 253, 18, 52, 86, 120],
            b"\0\x04MCPE",
        ]
        .concat();
        let discovery = [&[0, 1, 0, 70][..], &[0; 70]].concat();
        let radius = [&[1, 7, 0, 20][..], &[3; 16]].concat();
        let wake = [&[0xff; 6][..], &[1, 2, 3, 4, 5, 6].repeat(16)].concat();
        let television = [&[0x47][..], &[0; 187]].concat().repeat(7);
        for (ports, bytes, name) in [
            (any, &classic[..], "zoom"),
            (any, &realm, "signal"),
            (any, &openvpn, "openvpn"),
            (any, &checked, "openvpn"),
            (any, &dtls, "dtls"),
            (any, &bedrock, "minecraft"),
            (any, &discovery, "discord"),
            ([40_000, 1_812], &radius, "radius"),
            (any, &radius, ""),
            (any, &wake, "wake-on-lan"),
            (any, &television, "mpegts"),
            (any, b"TS3INIT1\0\x65", "teamspeak"),
            (any, b"\xff\xff\xff\xffTSource Engine Query\0", "steam"),
            (any, b"\xff\xff\xff\xffgetstatus\n", "quake"),
            (any, b"\x32\xab\x98\x64\x02\x56\x03", "nintendo"),
            (any, b"\x6a\x0c\x30\x0a\xa1\x03\x02\x01\x05\xa2\x03\x02\x01\x0a", "kerberos"),
            (any, b"\xc8\x02\0\x0c\0\0\0\0\0\0\0\0", "l2tp"),
            (any, b"\x30\x26\x02\x01\x01\x04\x06public\xa0\x19\x02\x04", "snmp"),
            ([40_000, 5_683], b"\x40\x01\x30\x39", "coap"),
            ([40_000, 3_478], b"\x40\0\0\x04\x01\x02\x03\x04", "stun"),
            (any, b"\x40\0\0\x04\x01\x02\x03\x04", ""),
            ([2_152, 2_152], b"\x30\xff\0\x04\0\0\0\x07\x45\0\0\0", "gtp-u"),
            ([50_000, 4_789], b"\x08\0\0\0\0\0\x07\0\x02\x02", "vxlan"),
            ([50_000, 3_544], &[&[0x60, 0, 0, 0, 0, 4, 59, 64][..], &[3; 36]].concat(), "teredo"),
            ([137, 137], &[&[0; 12][..], &[32; 33], &[0; 5]].concat(), "netbios"),
        ] {
            let found = udp(ports, bytes).map_or("", |signature| signature.app);
            assert_eq!(found, name, "{bytes:?}");
        }
    }

    proptest! {
        /// Encrypted payloads are random bytes: nothing may be seen in them.
        #[test]
        fn random_datagrams_show_nothing(bytes in proptest::collection::vec(any::<u8>(), 100..400)) {
            prop_assert_eq!(udp([40_000, 50_000], &bytes), None);
            prop_assert_eq!(tcp(&bytes), None);
        }

        #[test]
        fn any_bytes_are_looked_at_without_panic(
            ports in any::<[u16; 2]>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            attributes in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            udp(ports, &bytes);
            tcp(&bytes);
            let length = u8::try_from(attributes.len()).unwrap();
            udp(ports, &[&[0, 1, 0, length][..], &COOKIE, &[7; 12], &attributes].concat());
        }
    }
}
