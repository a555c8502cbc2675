//! A capture re-wrapped has the rows it had: only what is told of its wrapping differs.

use std::net::IpAddr;
use std::path::Path;

use usher_agent::capture::file::CaptureFile;
use usher_agent::capture::frame;

use crate::rows::{self, ETHERNET, Frame, Row};
use crate::traffic::{self, End};
use crate::wrap::{Bytes, Content, Order, WRAPS, Wrap, ethernet, typed};

/// An IP packet, and microseconds since the capture began.
#[derive(Debug, Clone)]
struct Packet {
    at: u64,
    ip: Bytes,
}

/// A few conversations of every kind: named by what they carry, by what DNS said, by what they look like, and not at all.
fn conversations() -> Vec<Packet> {
    let v4 = |last, port| -> End { (IpAddr::from([10, 0, 0, last]), port) };
    let v6 = |last: u8, port| -> End {
        (IpAddr::from([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]), port)
    };
    let server = |last, port| -> End { (IpAddr::from([192, 0, 2, last]), port) };
    let long = format!("GET /{} HTTP/1.1\r\nHost: www.example.net\r\n\r\n", "path/".repeat(500));
    let socks =
        [&b"\x05\x01\0\x05\x01\0\x01\xc0\0\x02\x01\x01\xbb"[..], &traffic::hello("www.netflix.com", true)];
    let mut flows = vec![
        traffic::connection(v4(2, 40_000), server(1, 443), &traffic::hello("www.youtube.com", true), 5_000),
        traffic::connection(v4(2, 40_001), server(2, 443), &traffic::hello("unheard.example.org", false), 90),
        traffic::connection(v6(2, 40_002), v6(9, 443), &traffic::hello("web.whatsapp.com", true), 3_000),
        traffic::connection(v4(3, 40_003), server(3, 80), long.as_bytes(), 2_000),
        traffic::connection(v4(3, 40_004), server(4, 1_080), &socks.concat(), 200),
        traffic::connection(v4(3, 40_005), server(5, 7_777), b"\x01 unheard of", 2_000),
    ];
    let [asked, answered] = traffic::resolution("cdn.example.net", [192, 0, 2, 77]);
    let (asking, resolver, named) = (v4(4, 5_000), server(53, 53), server(77, 9_999));
    flows.push(vec![
        traffic::datagram(asking, resolver, &asked),
        traffic::datagram(resolver, asking, &answered),
        traffic::datagram(v4(4, 5_001), named, &[9; 1_300]),
        traffic::datagram(named, v4(4, 5_001), &[9; 1_300]),
    ]);
    // A binding request of STUN (RFC 8489), one that has attributes of no meaning.
    let stun = [&[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42][..], &[5; 12], &[0x80, 0x22, 0, 4], b"none"].concat();
    flows.push(vec![traffic::datagram(v6(4, 6_000), v6(8, 3_478), &stun)]);
    let mut packets: Vec<Packet> = Vec::new();
    for (flow, conversation) in flows.into_iter().enumerate() {
        for (number, ip) in conversation.into_iter().enumerate() {
            packets.push(Packet { at: 1_000 * number as u64 + flow as u64, ip: Bytes::whole(ip) });
        }
    }
    packets.sort_by_key(|packet| packet.at);
    packets
}

/// Frames of Ethernet with the packets so wrapped, from the innermost on. What cannot be carried so is left as it is.
fn wrapped(packets: &[Packet], wraps: &[Wrap]) -> Vec<Frame> {
    let mut frames = Vec::new();
    for (number, Packet { at, ip }) in packets.iter().enumerate() {
        let mut contents = vec![Content::Ip(ip.clone())];
        for (depth, wrap) in wraps.iter().enumerate() {
            let number = u32::try_from(number * 4 + depth).unwrap();
            contents = contents
                .into_iter()
                .enumerate()
                .flat_map(|(part, content)| {
                    // Of a tunnel's own packets each has a number of its own.
                    let number = number.wrapping_add(u32::try_from(part << 20).unwrap());
                    wrap.around(content.clone(), number).unwrap_or_else(|| vec![content])
                })
                .collect();
        }
        frames.extend(contents.into_iter().map(|content| Frame { at: *at, bytes: ethernet(content) }));
    }
    frames
}

fn cuts(wrap: Wrap) -> bool {
    matches!(wrap, Wrap::Fragments { .. })
}

/// The rows that packets so wrapped must have.
fn expected(packets: &[Packet], plain: &[Row], wraps: &[Wrap]) -> Vec<Row> {
    if !wraps.first().is_some_and(|wrap| cuts(*wrap)) {
        return plain.to_vec();
    }
    // The subscribers' own packets were cut: each fragment counts, and for the flow of its packet.
    let inner = wraps.iter().copied().take_while(|wrap| cuts(*wrap)).collect::<Vec<_>>();
    let cut = rows::of_frames(ETHERNET, &wrapped(packets, &inner));
    let same = |rows: &[Row]| rows.iter().cloned().map(Row::uncounted).collect::<Vec<_>>();
    assert_eq!(same(&cut), same(plain), "{inner:?}");
    let sent = |rows: &[Row]| rows.iter().map(|row| row.packets_up + row.packets_down).sum::<u64>();
    assert_eq!(sent(&cut), wrapped(packets, &inner).len() as u64, "{inner:?}");
    cut
}

#[track_caller]
fn assert_rows(found: &[Row], expected: &[Row], what: &str) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected, "{what}");
    }
    assert_eq!(found.len(), expected.len(), "{what}: {found:#?}");
}

#[test]
fn the_plain_capture_has_its_names() {
    let plain = rows::of_frames(ETHERNET, &wrapped(&conversations(), &[]));
    let named = |name: &str, via: &str| {
        assert!(
            plain.iter().any(|row| row.name.as_deref() == Some(name) && row.via.as_deref() == Some(via)),
            "{name} via {via}: {plain:#?}"
        );
    };
    named("www.youtube.com", "sni");
    named("unheard.example.org", "sni");
    named("web.whatsapp.com", "sni");
    named("www.netflix.com", "sni");
    named("www.example.net", "http");
    named("cdn.example.net", "dns");
    assert!(plain.iter().any(|row| row.via.as_deref() == Some("signature")), "{plain:#?}");
    assert_eq!(plain.len(), 9);
}

#[test]
fn each_encapsulation_and_every_two_make_no_difference() {
    let packets = conversations();
    let plain = rows::of_frames(ETHERNET, &wrapped(&packets, &[]));
    for inner in WRAPS {
        let expected = expected(&packets, &plain, &[inner]);
        assert_rows(
            &rows::of_frames(ETHERNET, &wrapped(&packets, &[inner])),
            &expected,
            &format!("{inner:?}"),
        );
        for outer in WRAPS.into_iter().filter(|outer| !(cuts(inner) && cuts(*outer))) {
            let frames = wrapped(&packets, &[inner, outer]);
            assert_rows(&rows::of_frames(ETHERNET, &frames), &expected, &format!("{inner:?} in {outer:?}"));
        }
    }
}

#[test]
fn two_tunnels_both_in_fragments_make_no_difference() {
    let packets = conversations();
    let plain = rows::of_frames(ETHERNET, &wrapped(&packets, &[]));
    let cut = |of, order| Wrap::Fragments { of, order };
    for [a, b] in [
        [Wrap::Gtpu { flags: 4 }, Wrap::Gre { flags: 0x20 }],
        [Wrap::Vxlan, Wrap::InIpv6 { extensions: false }],
        [Wrap::InIpv6 { extensions: false }, Wrap::GreBridge],
        [Wrap::Teredo { indications: true }, Wrap::CapwapWireless],
    ] {
        for [inner, outer] in [
            [cut(1_000, Order::Forwards), cut(600, Order::Backwards)],
            [cut(800, Order::Overlapping), cut(400, Order::Overlapping)],
        ] {
            let wraps = [a, inner, b, outer, Wrap::QinQ];
            assert_rows(
                &rows::of_frames(ETHERNET, &wrapped(&packets, &wraps)),
                &plain,
                &format!("{wraps:?}"),
            );
        }
    }
}

#[test]
fn every_link_layer_makes_no_difference() {
    let packets = conversations();
    let plain = rows::of_frames(ETHERNET, &wrapped(&packets, &[]));
    for (name, link, head) in [
        ("raw", 101, None),
        ("null", 0, Some(vec![2, 0, 0, 0])),
        ("loop", 108, Some(vec![0, 0, 0, 2])),
        ("ppp", 9, Some(vec![0xff, 3])),
        ("ppp_hdlc", 50, Some(vec![])),
        ("c_hdlc", 104, Some(vec![0x0f, 0])),
        ("linux_sll", 113, Some(vec![0; 14])),
        ("linux_sll2", 276, None),
    ] {
        let frames: Vec<Frame> = packets
            .iter()
            .map(|Packet { at, ip }| {
                let (ether_type, ip) = typed(Content::Ip(ip.clone()));
                let ppp: [u8; 2] = if ether_type == 0x86dd { [0, 0x57] } else { [0, 0x21] };
                let header = match (name, &head) {
                    ("raw", _) => vec![],
                    ("linux_sll2", _) => [&ether_type.to_be_bytes()[..], &[0; 18]].concat(),
                    ("null" | "loop", Some(head)) => head.clone(),
                    ("ppp" | "ppp_hdlc", Some(head)) => [&head[..], &ppp].concat(),
                    (_, Some(head)) => [&head[..], &ether_type.to_be_bytes()].concat(),
                    (_, None) => unreachable!("each has its header"),
                };
                let captured = [&header[..], &ip.captured].concat();
                Frame { at: *at, bytes: Bytes { wire: header.len() + ip.wire, captured } }
            })
            .collect();
        assert_rows(&rows::of_frames(link, &frames), &plain, name);
    }
}

/// The outermost IP packets of a capture file, and what else is in it.
fn packets_of(path: &Path) -> Vec<Packet> {
    let mut packets = Vec::new();
    let mut file = CaptureFile::open(path).unwrap();
    while let Ok(Some(packet)) = file.next_packet() {
        let at = u64::try_from(packet.seen.get()).unwrap();
        if let Some(Ok(found)) = frame::packets(packet.link, packet.bytes, packet.wire).next() {
            packets.push(Packet { at, ip: Bytes { captured: found.ip.to_vec(), wire: found.wire } });
        }
    }
    packets
}

#[test]
#[ignore = "reads the captures of the folder that USHER_CAPTURES names"]
fn captures_of_a_folder_wrapped_have_their_rows() {
    let folder = std::env::var_os("USHER_CAPTURES").expect("USHER_CAPTURES names a folder");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let (mut compared, mut differ) = (0, 0);
    for (place, path) in paths.iter().enumerate() {
        let packets = packets_of(path);
        let plain = rows::of_file(path);
        let pairs =
            (0..WRAPS.len()).map(|inner| vec![WRAPS[inner], WRAPS[(inner * 7 + place) % WRAPS.len()]]);
        for wraps in WRAPS.into_iter().map(|wrap| vec![wrap]).chain(pairs) {
            if wraps.iter().filter(|wrap| cuts(**wrap)).count() > 1 {
                continue;
            }
            let frames = wrapped(&packets, &wraps);
            let found = rows::of_frames(ETHERNET, &frames);
            let cut = wraps.first().is_some_and(|wrap| cuts(*wrap));
            let same = |rows: &[Row]| {
                rows.iter().cloned().map(|row| if cut { row.uncounted() } else { row }).collect::<Vec<_>>()
            };
            let (found, expected) = (same(&found), same(&plain));
            compared += 1;
            if found != expected {
                differ += 1;
                let only = |a: &[Row], b: &[Row]| {
                    a.iter().filter(|row| !b.contains(row)).take(3).cloned().collect::<Vec<_>>()
                };
                let (less, more) = (only(&expected, &found), only(&found, &expected));
                println!("{} {wraps:?}:\n  lacks {less:?}\n  has {more:?}", path.display());
            }
        }
    }
    assert_eq!(differ, 0, "of {compared}");
}
