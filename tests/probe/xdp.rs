//! The program in the driver: it says and counts what that of traffic control does, and no packet is counted by both or by neither.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use aya::programs::xdp::XdpMode;
use aya::{Ebpf, EbpfLoader};
use usher_agent::dataplane::ForApp;
use usher_agent::probe::{Attach, Pattern, Probe, ProbeConfig, ProbeError, Trial, Verdict, Xdp};
use usher_agent::usage::Baseline;
use usher_models::units::Micros;
use usher_models::wire::{Cell, Class, Direction, Enforcement, Gate, Reason, TcpFlags};
use usher_tests::wait::{self, Seen};

use crate::apps::{told, used};
use crate::on_a_kernel;
use crate::rig::*;
use crate::upgrade::{PORTS, under_traffic};

use Direction::{Down, Up};

/// Bytes of an Ethernet header, which a veth leaves out of its count of what it receives once a program is in its driver.
const LINK: u64 = 14;

fn in_driver() -> Rig {
    let mut rig = Rig::new();
    rig.settings.xdp = Xdp::Native;
    rig
}

fn early(frame: &[u8]) -> Trial<'_> {
    Trial { in_driver: true, ..Trial::once(Up, frame) }
}

/// An Ethernet frame of a protocol over IPv4, from the subscriber.
fn over_ipv4(protocol: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [3; 6])
        .ipv4(SUBSCRIBER, SERVER, 64)
        .write(&mut frame, etherparse::IpNumber(protocol), content)
        .expect("writes");
    frame
}

/// A frame of every kind that the probe reads, and some that it does not.
fn every_kind() -> Vec<Vec<u8>> {
    let inner = tcp(Up, 4_000, b"hello");
    let packet = &inner[14..];
    let mut frames = vec![
        inner.clone(),
        tcp(Up, 4_000, &[1; 1_400]),
        tcp_with(TcpFlags::SYN, Up),
        tcp_of([10, 9, 9, 9], b"nobody's"),
        udp(5_000, 443, b"hello"),
        udp(5_000, 53, b"a name, please"),
        udp6(Up, 5_000, b"hello"),
        tagged(&inner, &[(0x88a8, 7), (0x8100, 8)]),
        tagged(&inner, &[(0x8100, 1); 9]),
        gtpu(packet),
        udp(4_000, 4_789, &[&[8, 0, 0, 0, 0, 0, 7, 0][..], &inner].concat()),
        over_ipv4(47, &[&[0, 0, 8, 0][..], packet].concat()),
        over_ipv4(4, packet),
        over_ipv4(1, &[8, 0, 0, 0, 0, 1, 0, 1]),
        // Hop-by-hop and destination options, then UDP.
        ipv6(
            0,
            &[&[60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0][..], &udp_header(5_000, 443, b"x")]
                .concat(),
        ),
        // The first part of a datagram, and a later one.
        ipv6(44, &[&[17, 0, 0, 1, 0, 0, 0, 9][..], &udp_header(5_000, 443, &[1; 40])].concat()),
        ipv6(44, &[&[17, 0, 0, 48, 0, 0, 0, 9][..], &[1; 40]].concat()),
    ];
    // MPLS with one label, PPPoE, and what is no IP.
    for (ethertype, before) in
        [(0x8847_u16, &[0, 0, 0x11, 64][..]), (0x8864, &[0x11, 0, 0, 7, 0, 47, 0, 0x21]), (0x0806, &[])]
    {
        frames.push([&inner[..12], &ethertype.to_be_bytes(), before, packet].concat());
    }
    frames
}

/// All that is counted up: of slots' classes, and by reason.
fn counted(probe: &Probe) -> (Vec<Cell>, Vec<(u64, u64)>) {
    let slots = (0..probe.slots()).map(|slot| probe.usage(slot).expect("reads"));
    let cells = slots.flat_map(|usage| usage.cells.map(|cells| cells[Up.index()])).collect();
    let tallies = probe.counters().expect("reads").into_iter();
    (cells, tallies.map(|(_, _, tally)| (tally.packets, tally.bytes)).collect())
}

/// What came on top of `before`.
fn since(
    before: &(Vec<Cell>, Vec<(u64, u64)>),
    now: &(Vec<Cell>, Vec<(u64, u64)>),
) -> (Vec<Cell>, Vec<(u64, u64)>) {
    let cells = before.0.iter().zip(&now.0).map(|(before, now)| Cell {
        bytes: now.bytes - before.bytes,
        packets: now.packets - before.packets,
        dropped_bytes: now.dropped_bytes - before.dropped_bytes,
        dropped_packets: now.dropped_packets - before.dropped_packets,
    });
    let tallies = before.1.iter().zip(&now.1).map(|(before, now)| (now.0 - before.0, now.1 - before.1));
    (cells.collect(), tallies.collect())
}

/// Lets every frame through both programs, which must say the same of it.
fn alike(probe: &mut Whole, frames: &[Vec<u8>]) {
    for (place, frame) in frames.iter().enumerate() {
        let before = counted(probe);
        let by_tc = probe.trial(&Trial::once(Up, frame)).expect("runs");
        let between = counted(probe);
        let by_driver = probe.trial(&early(frame)).expect("runs");
        let after = counted(probe);
        let told = format!("frame {place}: {frame:02x?}");
        assert_eq!((by_tc.verdict, &by_tc.frame), (by_driver.verdict, &by_driver.frame), "{told}");
        assert_eq!(since(&before, &between), since(&between, &after), "{told}");
        // The ring and a flow's budget are never the reason for a difference.
        samples(probe);
    }
}

#[test]
fn the_driver_says_of_every_kind_of_packet_what_traffic_control_does() {
    on_a_kernel!("the_driver_says_of_every_kind_of_packet_what_traffic_control_does", tcx);
    let mut rig = in_driver();
    rig.settings.sample_packets = 0;
    let mut probe = rig.probe();
    let whole = every_kind();
    let mut frames = whole.clone();
    for frame in &whole {
        // The kernel runs no program of traffic control on less than a whole IP header.
        frames.extend((55..frame.len()).step_by(3).map(|length| frame[..length].to_vec()));
    }
    // A byte of each changed to something, a little random number at a time (xorshift).
    let mut random = 0x9e37_79b9_u32;
    for turn in 0..600 {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        let mut frame = whole[turn % whole.len()].clone();
        let at = 14 + random as usize % (frame.len() - 14);
        frame[at] ^= (random >> 24) as u8;
        frames.push(frame);
    }
    alike(&mut probe, &frames);
    let counted = cell(&probe, SLOT, Class::Other, Up).packets;
    assert!(counted > 500, "most of them are the subscriber's: {counted}");
    for enforcement in [
        Enforcement::default().with_gate(Gate::Block),
        Enforcement::default().with_mark(Class::Other, Up, "ef".parse().expect("a name")),
    ] {
        probe.enforce(SLOT, &enforcement).expect("writes");
        alike(&mut probe, &whole);
    }
    probe.detach().expect("detaches");
}

#[test]
fn what_passes_the_driver_is_measured_there_and_marked_but_under_a_checksum() {
    on_a_kernel!("what_passes_the_driver_is_measured_there_and_marked_but_under_a_checksum", tcx);
    let rig = in_driver();
    let mut probe = rig.probe();
    let stamped = |direction, value: u8, echoed: u8, payload: &[u8]| {
        let mut frame = tcp(direction, 4_000, payload);
        // Twelve bytes of options: two that do nothing, then the time stamps.
        frame[14 + 20 + 12] = 8 << 4;
        frame[14 + 20 + 13] = 0x10;
        // Each begins where others do not.
        frame[14 + 20 + 6] = value;
        frame[14 + 3] += 12;
        let options = [1, 1, 8, 10, 0, 0, 0, value, 0, 0, 0, echoed];
        frame.splice(14 + 40..14 + 40, options);
        frame
    };
    let up = |probe: &Whole, value, echoed| {
        probe.trial(&early(&stamped(Up, value, echoed, b"x"))).expect("runs");
    };
    // The first one of each direction is only remembered.
    up(&probe, 10, 0);
    up(&probe, 11, 0);
    run(&probe, Down, &stamped(Down, 70, 11, b"hello"));
    run(&probe, Down, &stamped(Down, 71, 11, b"hello"));
    std::thread::sleep(Duration::from_millis(5));
    up(&probe, 12, 71);
    let measured = probe.measured(Micros::now());
    let mine = measured.iter().find(|measured| measured.slot == SLOT).expect("it was measured");
    let round_trips = Direction::BOTH.map(|direction| mine.counts[direction.index()].round_trips);
    assert_eq!(round_trips, [1, 1], "of both sides: the server answered, and then the subscriber");
    assert!(mine.counts[Up.index()].segments > 0, "{mine:?}");

    let mark = Enforcement::default().with_mark(Class::Other, Up, "ef".parse().expect("a name"));
    probe.enforce(SLOT, &mark).expect("writes");
    // The tunnel's UDP checksum covers the inner packet's traffic class.
    let frame = gtpu(&udp6(Up, 5_000, b"hello")[14..]);
    let tunnel = 14 + 20;
    assert_ne!(frame[tunnel + 6..tunnel + 8], [0, 0], "there is one");
    let outcome = probe.trial(&early(&frame)).expect("runs");
    assert_eq!(outcome.verdict, Verdict::Pass);
    assert_eq!(outcome.frame[tunnel..], frame[tunnel..], "from the tunnel's UDP header on");
    assert_eq!(tally(&probe, Reason::Unmarked, Up).packets, 1);
    probe.detach().expect("detaches");
}

#[test]
fn what_the_driver_counts_is_what_the_interface_received_through_kills_and_upgrades() {
    on_a_kernel!("what_the_driver_counts_is_what_the_interface_received_through_kills_and_upgrades", tcx);
    let rig = in_driver();
    let probe = rig.probe();
    // A slot's packets are held back for half of the time; one in ten is nobody's.
    let (probe, theirs, ours) = under_traffic(&rig, probe, |mut probe| {
        for gate in [Gate::Block, Gate::Pass] {
            drop(probe);
            probe = rig.load().expect("adopts");
            assert_eq!(probe.follow_interfaces().expect("looks").in_driver, 1);
            probe.enforce(SLOT, &Enforcement::default().with_gate(gate)).expect("writes");
        }
        probe
    });
    assert_eq!(ours, [theirs[0] + LINK * theirs[1], theirs[1], theirs[2], theirs[3]]);
    let mine = cell(&probe, SLOT, Class::Other, Up);
    assert!(mine.packets > 0 && mine.dropped_packets > 0, "{mine:?}");

    // Made again under the same name, the interface is another one.
    let mut probe = probe;
    rig.remove_interface();
    rig.make_interface();
    let followed = probe.follow_interfaces().expect("looks");
    assert_eq!((followed.came, followed.went, followed.in_driver), (1, 1, 1));
    expect_in_driver(&rig.interface, true);
    assert_eq!(pins(&rig).iter().filter(|pin| pin.starts_with("xdp_up_")).count(), 1, "none is left over");
    drop(probe);
    expect_in_driver(&rig.interface, true);
    Probe::remove(&rig.settings).expect("as the command does it");
    expect_in_driver(&rig.interface, false);
    assert!(!rig.settings.pin_dir.exists(), "no pin");
}

#[test]
fn into_the_driver_and_out_of_it_no_packet_is_lost_or_counted_twice() {
    on_a_kernel!("into_the_driver_and_out_of_it_no_packet_is_lost_or_counted_twice", tcx);
    let mut rig = Rig::new();
    rig.settings.max_flows = 4_096;
    let mut probe = rig.probe();
    // All of the subscriber's flows have a name before.
    for port in PORTS {
        run(&probe, Up, &tcp(Up, port, b""));
        assert_eq!(probe.count_for_app(&flow(6, port, 443), Some("streams")), ForApp::Counted);
    }
    let used_of = |probe: &Probe| [Up, Down].map(|way| cell(probe, SLOT, Class::Other, way).bytes);
    let before = used_of(&probe);
    let (probe, theirs, ours) = under_traffic(&rig, probe, |mut probe| {
        for xdp in [Xdp::Auto, Xdp::Off] {
            drop(probe);
            probe = Whole::load(ProbeConfig { xdp, ..rig.settings.clone() }).expect("adopts");
            expect_in_driver(&rig.interface, xdp != Xdp::Off);
        }
        probe
    });
    assert_eq!(ours[1..], theirs[1..], "every frame once, and every byte sent");
    // The interface leaves a header out for each frame that has come while a program was in its driver.
    let left_out = ours[0] - theirs[0];
    assert!(left_out % LINK == 0 && (1..theirs[1]).contains(&(left_out / LINK)), "{left_out}");
    let now = used_of(&probe);
    let streamed = [now[0] - before[0], now[1] - before[1]];
    assert_eq!(told(&probe, &mut Baseline::default()), [used(SLOT, "streams", streamed)], "nor of the app");
    probe.detach().expect("detaches");
    expect_in_driver(&rig.interface, false);
}

/// Programs of nobody's probe.
fn stranger(object: &str) -> Ebpf {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf").join(object);
    EbpfLoader::new().load_file(object).expect("loads")
}

/// Waits until a program is in an interface's driver, or none is: the kernel lets go of a link some milliseconds after its last pin.
fn expect_in_driver(interface: &str, expected: bool) {
    wait::until("the driver's program", Duration::from_secs(5), || {
        let shown = Command::new("ip").args(["link", "show", interface]).output()?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        Ok(Seen::when(shown.contains(" xdp ") == expected && !shown.contains("xdpgeneric"), (), shown))
    })
    .expect("is as it should be");
}

#[test]
fn where_the_driver_cannot_an_error_says_why_and_auto_leaves_it_to_traffic_control() {
    on_a_kernel!("where_the_driver_cannot_an_error_says_why_and_auto_leaves_it_to_traffic_control", tcx);
    let mut rig = in_driver();
    let refused = |rig: &Rig, why: &str| {
        let error = rig.load().expect_err("not in the driver");
        assert!(matches!(error, ProbeError::NotInDriver { .. }), "{error}");
        let told = error.to_string();
        assert!(told.contains(why) && told.contains("`auto`") && told.contains(&rig.interface), "{told}");
        assert!(!rig.settings.pin_dir.exists(), "nothing is left behind");
    };
    rig.settings.attach = Attach::Clsact;
    refused(&rig, "TCX");
    rig.settings.attach = Attach::Auto;

    // Somebody else's program, in the driver and then before the probe's. A probe that runs stays where it is.
    {
        let mut object = stranger("usher-probe.o");
        let program: &mut aya::programs::Xdp =
            object.program_mut("usher_xdp_wait").expect("there").try_into().expect("XDP");
        program.load().expect("loads");
        program.attach(&rig.interface, XdpMode::Driver).expect("attaches");
        refused(&rig, "somebody else's XDP program");
        // Where it need not be, traffic control counts; and goes on where it must be.
        let auto = ProbeConfig { xdp: Xdp::Auto, ..rig.settings.clone() };
        drop(Whole::load(auto).expect("leaves it to traffic control"));
        rig.load().expect_err("as before");
        let (_, programs) = SchedClassifier::query_tcx(&rig.interface, TcAttachType::Ingress).expect("asks");
        assert_eq!(programs.len(), 1, "still there");
        assert!(!pins(&rig).iter().any(|pin| pin.starts_with("xdp_")));
        Probe::remove(&rig.settings).expect("removes");
    }
    {
        let mut object = stranger("usher-probe-bench.o");
        let program: &mut SchedClassifier =
            object.program_mut("nothing").expect("there").try_into().expect("a classifier");
        program.load().expect("loads");
        program.attach(&rig.interface, TcAttachType::Ingress).expect("attaches");
        let number = program.info().expect("asks").id();
        refused(&rig, &format!("program {number} there before"));
    }

    // A bridge's frames are those of its ports.
    let bridge = rig.interface.replace("ut", "ub");
    ip(&["link", "add", &bridge, "type", "bridge"]);
    let port = std::mem::replace(&mut rig.interface, bridge.clone());
    rig.settings.interfaces = vec![Pattern::new(&bridge)];
    refused(&rig, "as they were on the wire");
    ip(&["link", "del", &bridge]);
    rig.interface = port;
}
