//! Files of both formats, beside libpcap's reading of them.

use proptest::prelude::*;

use super::*;

/// Stamp in microseconds, link type and bytes of a packet, owned.
type Packet = (i64, i32, Vec<u8>);

fn read(file: &[u8]) -> (Vec<Packet>, Result<(), BadRecord>) {
    let mut packets = Vec::new();
    let mut records = match Records::new(file) {
        Ok(records) => records,
        Err(error) => return (packets, Err(error)),
    };
    loop {
        match records.next_packet() {
            Ok(Some(packet)) => packets.push((packet.seen.get(), packet.link, packet.bytes.to_vec())),
            Ok(None) => return (packets, Ok(())),
            Err(error) => return (packets, Err(error)),
        }
    }
}

/// What libpcap reads of the same file, and whether it read it to its end.
fn read_by_libpcap(file: &[u8]) -> (Vec<Packet>, bool) {
    let written = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(written.path(), file).unwrap();
    let mut packets = Vec::new();
    let Ok(mut capture) = pcap::Capture::from_file(written.path()) else { return (packets, false) };
    let link = capture.get_datalink().0;
    loop {
        match capture.next_packet() {
            Ok(packet) => {
                let micros = packet.header.ts.tv_sec * 1_000_000 + packet.header.ts.tv_usec;
                packets.push((micros, link, packet.data.to_vec()));
            }
            Err(error) => return (packets, error == pcap::Error::NoMorePackets),
        }
    }
}

fn word(order: Order, word: u32) -> [u8; 4] {
    if order == Order::Big { word.to_be_bytes() } else { word.to_le_bytes() }
}

fn half(order: Order, half: u16) -> [u8; 2] {
    if order == Order::Big { half.to_be_bytes() } else { half.to_le_bytes() }
}

fn pcap_file(order: Order, magic: u32, minor: u16, packets: &[(u32, u32, Vec<u8>)]) -> Vec<u8> {
    let versions = [half(order, 2), half(order, minor)].concat();
    let mut file =
        [&word(order, magic)[..], &versions, &[0; 8], &word(order, 65_535), &word(order, 1)].concat();
    for (seconds, fraction, bytes) in packets {
        let length = u32::try_from(bytes.len()).unwrap();
        let lengths = if minor < 3 { [length + 3, length] } else { [length, length + 3] };
        for field in [*seconds, *fraction, lengths[0], lengths[1]] {
            file.extend(word(order, field));
        }
        file.extend(bytes);
    }
    file
}

fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(body.len().next_multiple_of(4), 0);
    let length = word(order, u32::try_from(body.len() + 12).unwrap());
    [&word(order, kind)[..], &length, &body, &length].concat()
}

fn section(order: Order) -> Vec<u8> {
    block(
        order,
        SECTION,
        &[&word(order, 0x1a2b_3c4d)[..], &half(order, 1), &half(order, 0), &[0xff; 8]].concat(),
    )
}

fn interface(order: Order, link: u16, resolution: u8) -> Vec<u8> {
    let options = [&half(order, 9)[..], &half(order, 1), &[resolution, 0, 0, 0], &[0; 4]].concat();
    block(order, INTERFACE, &[&half(order, link)[..], &[0; 2], &word(order, 65_535), &options].concat())
}

fn packet(order: Order, interface: u32, stamp: u64, bytes: &[u8]) -> Vec<u8> {
    let [high, low] = [stamp >> 32, stamp & 0xffff_ffff].map(|half| u32::try_from(half).unwrap());
    let length = u32::try_from(bytes.len()).unwrap();
    let fields: Vec<u8> =
        [interface, high, low, length, length].into_iter().flat_map(|field| word(order, field)).collect();
    block(order, PACKET, &[&fields, bytes].concat())
}

#[test]
fn each_interface_has_its_link_and_its_clock() {
    for order in [Order::Little, Order::Big] {
        let file = [
            section(order),
            interface(order, 1, 6),
            interface(order, 101, 9),
            block(order, 4, b"names of hosts"),
            packet(order, 0, 5_000_000, b"a"),
            packet(order, 1, 6_000_001_999, b"bc"),
            block(order, SIMPLE_PACKET, &[&word(order, 2)[..], b"de"].concat()),
            // A section starts anew.
            section(order),
            interface(order, 113, 0x8a),
            packet(order, 0, 1_536, b"f"),
        ]
        .concat();
        let (packets, end) = read(&file);
        end.unwrap();
        let expected = [
            (5_000_000, 1, b"a".to_vec()),
            (6_000_001, 101, b"bc".to_vec()),
            (0, 1, b"de".to_vec()),
            (1_500_000, 113, b"f".to_vec()),
        ];
        assert_eq!(packets, expected, "{order:?}");
    }
}

#[test]
fn a_block_longer_than_the_buffer_is_passed_and_a_packet_longer_than_it_is_read() {
    let order = Order::Little;
    let long = vec![7; BUFFER + 100];
    let file = [
        section(order),
        interface(order, 1, 6),
        block(order, 10, &vec![0; 3 * BUFFER]),
        packet(order, 0, 1, &long),
        packet(order, 0, 2, b"b"),
    ]
    .concat();
    let (packets, end) = read(&file);
    end.unwrap();
    assert_eq!(packets, [(1, 1, long), (2, 1, b"b".to_vec())]);
}

#[test]
fn what_contradicts_itself_ends_the_reading_with_a_reason() {
    let order = Order::Little;
    let begun = [section(order), interface(order, 1, 6)].concat();
    let with = |more: &[u8]| [&begun, more].concat();
    let mut lengths_differ = packet(order, 0, 1, b"abcd");
    let last = lengths_differ.len() - 4;
    lengths_differ[last] = 99;
    let huge = pcap_file(order, 0xa1b2_c3d4, 4, &[]);
    let huge = [&huge[..], &[0; 8], &[0xff; 4], &[0; 4]].concat();
    for (file, expected) in [
        (with(&packet(order, 1, 1, b"a")), "interface that is not described"),
        (with(&lengths_differ), "two lengths differ"),
        (with(&[6, 0, 0, 0, 7, 0, 0, 0]), "length is wrong"),
        (with(&interface(order, 1, 100)), "described wrongly"),
        (with(&packet(order, 0, 1, b"a")[..20]), "truncated"),
        (huge, "longer than any link"),
        (b"none at all".to_vec(), "unknown file format"),
        (vec![], "unknown file format"),
    ] {
        let error = read(&file).1.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}: {expected}");
    }
}

proptest! {
    #[test]
    fn files_are_read_as_libpcap_reads_them(
        big in any::<bool>(),
        minor in 2_u16..5,
        magic in prop_oneof![Just(0xa1b2_c3d4_u32), Just(0xa1b2_3c4d)],
        resolution in prop_oneof![Just(6_u8), Just(9), Just(3), Just(0x94)],
        packets in proptest::collection::vec(
            (0_u32..2_000_000_000, 0_u32..1_000_000, proptest::collection::vec(any::<u8>(), 0..100)), 0..12),
        cut in 0_usize..40,
    ) {
        let order = if big { Order::Big } else { Order::Little };
        let blocks = packets.iter().flat_map(|(seconds, fraction, bytes)| {
            packet(order, 0, u64::from(*seconds) << 20 | u64::from(*fraction), bytes)
        });
        let begun = [section(order), interface(order, 1, resolution)].concat();
        let (least, new) = (begun.len(), begun.into_iter().chain(blocks).collect());
        // libpcap refuses files in whose header the cut is.
        for (file, least) in [(pcap_file(order, magic, minor, &packets), 24), (new, least)] {
            let (expected, whole) = read_by_libpcap(&file);
            let (found, end) = read(&file);
            prop_assert_eq!(found, expected);
            prop_assert_eq!((end.is_ok(), whole), (true, true));
            // Cut short, it has the packets before the cut, and is known to be cut.
            let file = &file[..file.len().saturating_sub(cut).max(least)];
            let (expected, whole) = read_by_libpcap(file);
            let (found, end) = read(file);
            prop_assert_eq!(found, expected);
            prop_assert_eq!(end.is_ok(), whole);
        }
    }

    #[test]
    fn any_bytes_are_read_to_an_end(
        magic in prop_oneof![
            Just([0xd4, 0xc3, 0xb2, 0xa1]), Just([0xa1, 0xb2, 0x3c, 0x4d]), Just([0x0a, 0x0d, 0x0d, 0x0a])],
        order in prop_oneof![Just([0x4d, 0x3c, 0x2b, 0x1a]), Just([0x1a, 0x2b, 0x3c, 0x4d])],
        bytes in proptest::collection::vec(prop_oneof![4 => Just(0_u8), 1 => any::<u8>()], 0..300),
    ) {
        let (_, _) = read(&[&magic[..], &[28, 0, 0, 0], &order, &[1, 0, 0, 0], &bytes].concat());
    }
}
