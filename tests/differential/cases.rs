//! The cases: what is said, in what, and whether tshark can read it.

use std::net::{Ipv4Addr, Ipv6Addr};

use rustls::quic::Version;

use super::hellos::{self, Quic, answer, prefixed, question};
use super::talk::Talk;
use super::wrap::{self, WRAPS, Wrap};

/// The client's port in the first case; each has one more.
pub(crate) const FIRST_PORT: u16 = 20_000;
/// Connections that are cut and shuffled at random.
const SHUFFLED: u32 = 24;

/// One flow.
pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) wrap: Wrap,
    /// IP packets.
    pub(crate) packets: Vec<Vec<u8>>,
    /// What it is named.
    pub(crate) name: String,
    pub(crate) tshark: Tshark,
}

/// What tshark makes of it.
pub(crate) enum Tshark {
    /// The same.
    Same,
    /// Perhaps nothing, for this reason.
    Blind(&'static str),
}

const COALESCED: Tshark = Tshark::Blind("it puts no hello together from two packets of one datagram");
const SALTS: Tshark = Tshark::Blind("it tries no salts on versions that it does not know");

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn port(&self) -> u16 {
        FIRST_PORT + u16::try_from(self.0.len()).unwrap()
    }

    fn add(&mut self, what: &'static str, name: &str, talk: Talk) {
        self.add_in(Wrap::Ethernet, what, name, talk, Tshark::Same);
    }

    fn add_blind(&mut self, what: &'static str, name: &str, talk: Talk, tshark: Tshark) {
        self.add_in(Wrap::Ethernet, what, name, talk, tshark);
    }

    fn add_in(&mut self, wrap: Wrap, what: &'static str, name: &str, talk: Talk, tshark: Tshark) {
        self.0.push(Case { what, wrap, packets: talk.packets, name: name.to_owned(), tshark });
    }
}

/// All cases, each with a client's port of its own.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Cases::default();
    tls(&mut cases);
    http(&mut cases);
    dns(&mut cases);
    quic(&mut cases);
    wrapped(&mut cases);
    cases.0
}

fn tls(cases: &mut Cases) {
    let name = "whole.tls.example";
    let hello = hellos::tls(name, false);
    cases.add("a hello", name, Talk::new(cases.port(), 443).opened().up(&hello));
    cases.add("a hello by IPv6", name, Talk::v6(cases.port(), 443).opened().up(&hello));
    cases.add("a hello on a port of its own", name, Talk::new(cases.port(), 8_443).opened().up(&hello));

    let name = "large.tls.example";
    let hello = hellos::tls(name, true);
    let end = hello.len();
    assert!(end > 1_400, "a post-quantum hello");
    let talk = |port| Talk::new(port, 443).opened();
    cases.add("a hello in two segments", name, talk(cases.port()).parts(&hello, [(0, 1_200), (1_200, end)]));
    cases.add("its end first", name, talk(cases.port()).parts(&hello, [(1_200, end), (0, 1_200)]));
    let overlapping = [(0, 700), (400, 1_300), (0, 700), (1_100, end)];
    cases.add("overlaps and repeats", name, talk(cases.port()).parts(&hello, overlapping));
    cases.add("a first octet by itself", name, talk(cases.port()).parts(&hello, [(0, 1), (1, end)]));

    let name = "behind.tls.example";
    let hello = hellos::tls(name, false);
    cases.add(
        "after CONNECT to an address",
        name,
        Talk::new(cases.port(), 8_080)
            .opened()
            .up(b"CONNECT 203.0.113.5:443 HTTP/1.1\r\nHost: 203.0.113.5:443\r\n\r\n")
            .down(b"HTTP/1.1 200 Connection established\r\n\r\n")
            .up(&hello),
    );
    cases.add(
        "after STARTTLS",
        name,
        Talk::new(cases.port(), 587)
            .opened()
            .down(b"220 mail.example ESMTP\r\n")
            .up(b"EHLO client.example\r\n")
            .down(b"250-mail.example\r\n250 STARTTLS\r\n")
            .up(b"STARTTLS\r\n")
            .down(b"220 go on\r\n")
            .up(&hello),
    );
    cases.add(
        "after SOCKS 5 to an address",
        name,
        Talk::new(cases.port(), 1_080)
            .opened()
            .up(b"\x05\x01\0")
            .down(b"\x05\0")
            .up(b"\x05\x01\0\x01\xcb\0\x71\x05\x01\xbb")
            .down(b"\x05\0\0\x01\x0a\0\0\x01\x04\x38")
            .up(&hello),
    );
    cases.add(
        "after a PROXY line",
        name,
        Talk::new(cases.port(), 443)
            .opened()
            .up(b"PROXY TCP4 198.51.100.1 203.0.113.5 5000 443\r\n")
            .up(&hello),
    );

    let name = "shuffled.tls.example";
    for seed in 0..SHUFFLED {
        let hello = hellos::tls(name, seed % 2 == 0);
        let parts = shuffled(hello.len(), seed);
        cases.add("cut and shuffled at random", name, talk(cases.port()).parts(&hello, parts));
    }
}

/// Parts that together are the whole, in some order.
fn shuffled(end: usize, seed: u32) -> Vec<(usize, usize)> {
    let mut state = seed;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        usize::try_from(state >> 8).unwrap() % below
    };
    let mut places: Vec<usize> = (0..2 + random(6)).map(|_| 1 + random(end - 1)).collect();
    places.extend([0, end]);
    places.sort_unstable();
    places.dedup();
    let mut parts: Vec<_> = places.windows(2).map(|pair| (pair[0], pair[1])).collect();
    for last in (1..parts.len()).rev() {
        parts.swap(last, random(last + 1));
    }
    parts
}

fn http(cases: &mut Cases) {
    let talk = |port| Talk::new(port, 80).opened();
    for (what, name, request) in [
        ("a request", "pages.http.example", "GET / HTTP/1.1\r\nHost: pages.http.example\r\n\r\n"),
        ("with a port", "pages.http.example:8080", "GET / HTTP/1.1\r\nHost: pages.http.example:8080\r\n\r\n"),
        ("to an address", "203.0.113.5", "POST /a HTTP/1.1\r\nhost:203.0.113.5\r\nContent-Length: 0\r\n\r\n"),
        (
            "CONNECT",
            "behind.http.example:443",
            "CONNECT behind.http.example:443 HTTP/1.1\r\nHost: x.example\r\n\r\n",
        ),
        (
            "a strange method",
            "dav.http.example",
            "PROPFIND / HTTP/1.1\r\nDepth: 0\r\nHost: dav.http.example\r\n\r\n",
        ),
    ] {
        cases.add(what, name, talk(cases.port()).up(request.as_bytes()));
    }
    let request = b"GET /a HTTP/1.1\r\nUser-Agent: test\r\nHost: cut.http.example\r\n\r\n";
    let cut = [(0, 3), (3, 41), (41, request.len())];
    cases.add("a request in pieces", "cut.http.example", talk(cases.port()).parts(request, cut));
    let cut = [(41, request.len()), (3, 41), (0, 3)];
    cases.add("from its end on", "cut.http.example", talk(cases.port()).parts(request, cut));
}

fn dns(cases: &mut Cases) {
    let ask = |port, name: &str| Talk::new(port, 53).asks(&question(name)).answers(&answer(name));
    let name = "asked.dns.example";
    cases.add("a question", name, ask(cases.port(), name));
    cases.add("in mixed case", name, ask(cases.port(), "aSkED.dNs.ExaMPle"));
    cases.add("for a service", "_sip._udp.dns.example", ask(cases.port(), "_sip._udp.dns.example"));
    cases.add("for a pattern", "*.dns.example", ask(cases.port(), "*.dns.example"));
    cases.add("an answer alone", name, Talk::new(cases.port(), 53).answers(&answer(name)));
    let both = [prefixed(&question(name)), prefixed(&question("second.dns.example"))].concat();
    cases.add("over TCP, and another", name, Talk::new(cases.port(), 53).opened().up(&both));
    let cut = [(0, 1), (1, 9), (9, both.len())];
    cases.add("over TCP, cut", name, Talk::new(cases.port(), 53).opened().parts(&both, cut));
    let group = Ipv4Addr::new(224, 0, 0, 251);
    cases.add(
        "mDNS",
        "printer.local",
        Talk::new(cases.port(), 5_353).to(group).asks(&question("printer.local")),
    );
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 3);
    cases.add("LLMNR", "laptop", Talk::v6(cases.port(), 5_355).to(group).asks(&question("laptop")));
    cases.add("a question on another port", name, Talk::new(cases.port(), 5_300).asks(&question(name)));
}

fn quic(cases: &mut Cases) {
    let whole = |quic: &Quic| quic.datagram(0, &quic.frame(0, quic.hello.len()));
    let name = "whole.quic.example";
    let talk = |port| Talk::new(port, 443);
    for (what, version, salts, tshark) in [
        ("version 1", 1, Version::V1, Tshark::Same),
        ("version 2", 0x6b33_43cf, Version::V2, Tshark::Same),
        ("draft 29", 0xff00_001d, Version::V1Draft, Tshark::Same),
        ("a version that forces negotiation", 0x1a2a_3a4a, Version::V1, SALTS),
        ("a vendor's version", 0xabcd_0001, Version::V2, SALTS),
    ] {
        let quic = Quic { version, salts, ..Quic::new(name, false, cases.port()) };
        cases.add_blind(what, name, talk(cases.port()).asks(&whole(&quic)), tshark);
    }
    let quic = Quic { token: b"a token of a Retry", ..Quic::new(name, false, cases.port()) };
    cases.add("with a token", name, talk(cases.port()).asks(&whole(&quic)));
    let quic = Quic::new(name, false, cases.port());
    cases.add("by IPv6", name, Talk::v6(cases.port(), 443).asks(&whole(&quic)));

    let name = "cut.quic.example";
    let quic = Quic::new(name, false, cases.port());
    let end = quic.hello.len();
    let mut frames = vec![1, 0, 0, 0];
    for (from, to) in [(90, end), (40, 90), (0, 41)] {
        frames.extend(quic.frame(from, to));
        frames.extend([0, 0, 1]);
    }
    cases.add("frames shuffled in one packet", name, talk(cases.port()).asks(&quic.datagram(0, &frames)));
    let coalesced = [quic.initial(0, quic.frame(0, 60)), quic.datagram(1, &quic.frame(60, end))].concat();
    cases.add_blind("in two packets of a datagram", name, talk(cases.port()).asks(&coalesced), COALESCED);

    let name = "large.quic.example";
    for (what, order) in [("a large hello in two datagrams", [0, 1]), ("the second first", [1, 0])] {
        let quic = Quic::new(name, true, cases.port());
        // Whichever way it stands, the name is cut in two.
        let at = quic.hello.windows(name.len()).position(|part| part == name.as_bytes()).unwrap() + 4;
        let halves = [quic.frame(0, at), quic.frame(at, quic.hello.len())];
        let sent = [quic.datagram(0, &halves[0]), quic.datagram(1, &halves[1])];
        let talk = talk(cases.port()).asks(&sent[order[0]]).asks(&sent[order[1]]);
        cases.add(what, name, talk);
    }
}

fn wrapped(cases: &mut Cases) {
    for wrap in WRAPS {
        let name = "wrapped.tls.example";
        let hello = hellos::tls(name, true);
        let parts = [(0, 1_000), (1_000, hello.len())];
        let talk = Talk::new(cases.port(), 443).opened().parts(&hello, parts);
        cases.add_in(wrap, "TLS", name, talk, Tshark::Same);
        let talk = Talk::v6(cases.port(), 443).opened().parts(&hello, parts);
        cases.add_in(wrap, "TLS by IPv6", name, talk, Tshark::Same);
        let name = "wrapped.dns.example";
        let talk = Talk::new(cases.port(), 53).asks(&question(name)).answers(&answer(name));
        cases.add_in(wrap, "DNS", name, talk, Tshark::Same);
        let name = "wrapped.quic.example";
        let quic = Quic::new(name, false, cases.port());
        let datagram = quic.datagram(0, &quic.frame(0, quic.hello.len()));
        let talk = Talk::new(cases.port(), 443).asks(&datagram);
        cases.add_in(wrap, "QUIC", name, talk, Tshark::Same);
        let quic = Quic::new(name, false, cases.port());
        let datagram = quic.datagram(0, &quic.frame(0, quic.hello.len()));
        let mut talk = Talk::new(cases.port(), 443).asks(&datagram);
        talk.packets = wrap::fragments(&talk.packets[0], 648).to_vec();
        cases.add_in(wrap, "QUIC in fragments", name, talk, Tshark::Same);
    }
}
