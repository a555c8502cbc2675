//! The sub-command on captures that the tests write.

use etherparse::PacketBuilder;

use super::*;

const CLIENT: [u8; 4] = [10, 0, 0, 2];
const SERVER: [u8; 4] = [192, 0, 2, 10];

/// A pcapng file (section header, one Ethernet interface, a block a packet) of one plain flow.
fn capture() -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let length = u32::try_from(12 + body.len()).unwrap().to_le_bytes();
        [&kind.to_le_bytes()[..], &length, body, &length].concat()
    };
    let section = [&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
    let mut file = block(0x0a0d_0d0a, &section);
    file.extend(block(1, &[1, 0, 0, 0, 0, 0, 4, 0]));
    let time = 1_500_000_000_000_000_u64;
    for (number, (from, from_port, to, to_port, payload)) in
        [(CLIENT, 40_000, SERVER, 80, &b"no protocol known\n"[..]), (SERVER, 80, CLIENT, 40_000, &[0; 960])]
            .into_iter()
            .enumerate()
    {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .single_vlan(etherparse::VlanId::try_new(7).unwrap())
            .ipv4(from, to, 64)
            .tcp(from_port, to_port, 1, 1_000)
            .write(&mut frame, payload)
            .unwrap();
        let at = time + u64::try_from(number).unwrap() * 250_000;
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        frame.resize(frame.len().next_multiple_of(4), 0);
        let [high, low] = [at >> 32, at & 0xffff_ffff].map(|half| u32::try_from(half).unwrap().to_le_bytes());
        file.extend(block(6, &[&[0; 4][..], &high, &low, &length, &length, &frame].concat()));
    }
    file
}

fn classify(format: Format, files: &[(&str, &[u8])]) -> (String, Result<(), ClassifyError>) {
    let directory = tempfile::tempdir().unwrap();
    let captures = files
        .iter()
        .map(|(name, bytes)| {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        })
        .collect();
    let mut out = Vec::new();
    let result = run(&Args { format, catalogue: None, captures }, &mut out);
    (String::from_utf8(out).unwrap(), result)
}

#[test]
fn a_flow_is_one_json_object_on_a_line() {
    let (out, result) = classify(Format::Json, &[("one.pcapng", &capture())]);
    result.unwrap();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 1);
    let row: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
    let expected = serde_json::json!({
        "capture": "one.pcapng", "proto": "tcp", "client": "10.0.0.2:40000", "server": "192.0.2.10:80",
        "encap": ["vlan:7"], "app": null, "class": "other", "name": null, "via": null, "confidence": null,
        "bytes_up": 58, "bytes_down": 1000, "packets_up": 1, "packets_down": 1,
        "first": "2017-07-14T02:40:00Z", "last": "2017-07-14T02:40:00.25Z",
    });
    assert_eq!(row, expected);
}

#[test]
fn csv_has_one_header_and_table_one_a_capture() {
    let files: [(&str, &[u8]); 2] = [("one.pcapng", &capture()), ("two.pcapng", &capture())];
    let (out, _) = classify(Format::Csv, &files);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("capture,proto,client,"));
    assert!(lines[2].starts_with("two.pcapng,tcp,10.0.0.2:40000,192.0.2.10:80,vlan:7,,other,"));
    let (out, _) = classify(Format::Table, &files);
    assert!(out.contains("one.pcapng") && out.contains("two.pcapng"));
    assert_eq!(out.matches("192.0.2.10:80").count(), 2);
}

#[test]
fn a_capture_that_breaks_off_is_listed_as_far_as_it_goes_and_the_next_one_too() {
    let whole = capture();
    let files: [(&str, &[u8]); 2] = [("cut.pcapng", &whole[..whole.len() - 50]), ("two.pcapng", &whole)];
    let (out, result) = classify(Format::Json, &files);
    assert_eq!(out.lines().count(), 2);
    let message = result.unwrap_err().to_string();
    assert!(message.contains("cut.pcapng"), "{message}");
}

#[test]
fn after_a_time_stamp_out_of_all_order_flows_are_looked_at_as_before() {
    let mut file = [&0xa1b2_c3d4_u32.to_le_bytes()[..], &[2, 0, 4, 0], &[0; 8], &[0xff, 0xff, 0, 0]].concat();
    file.extend(101_u32.to_le_bytes());
    let mut packet = |millis: u32, port: u16, is_up: bool, sequence: u32, payload: &[u8]| {
        let (from, to) = if is_up { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
        let ports = if is_up { (port, 80) } else { (80, port) };
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4(from, to, 64).tcp(ports.0, ports.1, sequence, 1_000).ack(1);
        builder.write(&mut packet, payload).unwrap();
        let length = u32::try_from(packet.len()).unwrap();
        for field in [1_500_000_000 + millis / 1_000, millis % 1_000 * 1_000, length, length] {
            file.extend(field.to_le_bytes());
        }
        file.extend(packet);
    };
    packet(86_400_000, 40_001, true, 1, b"of another clock");
    packet(0, 40_000, true, 1, b"GET / HTTP/1.1\r\nHost: web.whatsapp.com\r\n\r\n");
    for number in 0..600 {
        packet(number * 20, 40_000, number % 2 == 0, 1_000 + number * 60, &[7; 120]);
    }
    let (out, result) = classify(Format::Csv, &[("call.pcap", &file)]);
    result.unwrap();
    assert!(out.contains(",whatsapp,call,web.whatsapp.com,packets,"), "{out}");
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

#[test]
fn a_packed_capture_has_the_same_flows() {
    let (plain, _) = classify(Format::Json, &[("one.pcapng", &capture())]);
    let (unpacked, result) = classify(Format::Json, &[("one.pcapng", &packed(&capture()))]);
    result.unwrap();
    assert_eq!(unpacked, plain);
    // What was packed in pieces is one file.
    let whole = capture();
    let (start, rest) = whole.split_at(100);
    let (unpacked, result) =
        classify(Format::Json, &[("one.pcapng", &[packed(start), packed(rest)].concat())]);
    result.unwrap();
    assert_eq!(unpacked, plain);
}

#[test]
fn a_packed_capture_that_breaks_off_says_so() {
    let whole = capture().repeat(50);
    let whole = packed(&whole);
    let cut = &whole[..whole.len() - 12];
    let (out, result) = classify(Format::Json, &[("cut.pcapng.gz", cut)]);
    assert_eq!(out.lines().count(), 1);
    let message = result.unwrap_err().to_string();
    assert!(message.contains("cut.pcapng.gz") && message.contains("unpack"), "{message}");
    let (_, result) = classify(Format::Json, &[("notes.gz", &packed(b"no capture"))]);
    let message = result.unwrap_err().to_string();
    assert!(message.contains("notes.gz") && message.contains("not a pcap"), "{message}");
}

#[test]
fn a_pipe_is_read_as_a_file_is() {
    let (far, mut near) = io::pipe().unwrap();
    near.write_all(&packed(&capture())).unwrap();
    drop(near);
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&far)));
    let mut out = Vec::new();
    run(&Args { format: Format::Json, catalogue: None, captures: vec![path] }, &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap().lines().count(), 1);
}

#[test]
fn a_file_that_is_no_capture_is_named() {
    let (out, result) = classify(Format::Json, &[("notes.txt", b"no capture")]);
    assert_eq!(out, "");
    let message = result.unwrap_err().to_string();
    assert!(message.contains("notes.txt") && message.contains("not a pcap"), "{message}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("one.pcapng");
    std::fs::write(&path, capture()).unwrap();
    for format in [Format::Json, Format::Csv, Format::Table] {
        let args = Args { format, catalogue: None, captures: vec![path.clone()] };
        assert!(run(&args, &mut Closed).is_ok(), "{format:?}");
    }
}
