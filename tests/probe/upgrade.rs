//! New programs in place of old ones, under traffic, and maps of an older layout.

use std::io::Read as _;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, MapData};
use aya::programs::SchedClassifier;
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachType;
use aya::{Ebpf, EbpfLoader};
use usher_agent::probe::{Attach, Probe, ProbeError};
use usher_models::wire::{ANONYMOUS, Class, Direction, FlowLine, LAYOUT, SLOT_LANES, WAYS};

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

/// The object of layout 2, as it was committed.
static LAYOUT_2: &[u8] = include_bytes!("former/layout-2.o.gz");

/// The Ethernet header's bytes.
const LINK: u64 = 14;

/// The subscriber's ports in what is sent, each of one flow.
pub(crate) const PORTS: Range<u16> = 1_000..1_064;
/// Frames sent each way before they are waited for: fewer than any queue on the way has room for.
const AT_ONCE: u64 = 32;
/// And how long at the most: an interface that is being changed may lose some.
const PATIENCE: Duration = Duration::from_millis(50);

/// Sends both ways through an interface until told to stop, frames of all sizes, one in ten of nobody's. Says what the interface was handed
/// and could not send, bytes and frames: the probe has counted it.
fn traffic(interface: &str, peer: &str, stop: &AtomicBool) -> [u64; 2] {
    let (mut inside, mut outside) = (wire(interface), wire(peer));
    let mut arrived = interface_counters(interface)[1];
    let mut not_sent = [0; 2];
    for number in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if (number as u64).is_multiple_of(AT_ONCE) {
            let (last, begin) = (arrived + AT_ONCE, Instant::now());
            while number > 0 && arrived < last && begin.elapsed() < PATIENCE {
                // The two CPUs of a small machine are for those that work meanwhile.
                std::thread::sleep(Duration::from_micros(500));
                arrived = interface_counters(interface)[1];
            }
        }
        let payload = vec![1; number * 37 % 1_400];
        let port = PORTS.start + u16::try_from(number % PORTS.len()).expect("small");
        let up =
            if number.is_multiple_of(10) { tcp_of([10, 9, 9, 9], &payload) } else { tcp(Up, port, &payload) };
        // What does not leave the other end never comes.
        let _ = outside.sendpacket(up.as_slice());
        let down = tcp(Down, port, &payload);
        if inside.sendpacket(down.as_slice()).is_err() {
            not_sent = [not_sent[0] + down.len() as u64, not_sent[1] + 1];
        }
    }
    not_sent
}

/// The same as an interface counts, as the probe has counted it: all that is in usage, with an Ethernet header each, and all that is not.
fn probe_counters(probe: &Probe) -> [u64; 4] {
    let mut counters = [0; 4];
    for slot in 0..probe.slots() {
        for cells in probe.usage(slot).expect("reads").cells {
            for (direction, cell) in Direction::BOTH.into_iter().zip(cells) {
                let packets = cell.packets + cell.dropped_packets;
                counters[direction.index() * 2] += cell.bytes + cell.dropped_bytes + LINK * packets;
                counters[direction.index() * 2 + 1] += packets;
            }
        }
    }
    for (reason, direction, tally) in probe.counters().expect("reads") {
        if reason.outside_usage() {
            counters[direction.index() * 2] += tally.bytes;
            counters[direction.index() * 2 + 1] += tally.packets;
        }
    }
    counters
}

/// Brings a rig's pair up and sends through it while `work` is done; then what the interface and the probe have counted of it.
pub(crate) fn under_traffic(
    rig: &Rig,
    mut probe: Whole,
    work: impl FnOnce(Whole) -> Whole,
) -> (Whole, [u64; 4], [u64; 4]) {
    let peer = rig.peer();
    rig.up();
    let before = probe_counters(&probe);
    let stop = AtomicBool::new(false);
    let not_sent;
    (probe, not_sent) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| traffic(&rig.interface, &peer, &stop));
        let probe = work(probe);
        stop.store(true, Ordering::Relaxed);
        (probe, sender.join().expect("the sender ends well"))
    });
    // What is on its way arrives before the interface is down.
    ip(&["link", "set", &peer, "down"]);
    let (mut theirs, mut ours) = (interface_counters(&rig.interface), probe_counters(&probe));
    ours.iter_mut().zip(before).for_each(|(ours, before)| *ours -= before);
    theirs[2] += not_sent[0];
    theirs[3] += not_sent[1];
    usher_tests::process::say(&format!(
        "received and sent, bytes and frames: interface {theirs:?}, probe {ours:?}"
    ));
    assert!(theirs[1] > 1_000 && theirs[3] > 1_000, "some traffic: {theirs:?}");
    (probe, theirs, ours)
}

/// Ten upgrades in a row by one of the kernel's hooks.
fn upgrades(attach: Attach) {
    let mut rig = Rig::new();
    rig.settings.attach = attach;
    let probe = rig.probe();
    let boot = probe.boot();
    let (probe, theirs, ours) = under_traffic(&rig, probe, |mut probe| {
        for _ in 0..10 {
            drop(probe);
            probe = rig.load().expect("adopts");
        }
        probe
    });
    assert_eq!(ours, theirs);
    assert_eq!(probe.boot(), boot);
    probe.detach().expect("detaches");
}

#[test]
fn ten_upgrades_in_a_row_lose_no_byte_and_count_none_twice() {
    on_a_kernel!("ten_upgrades_in_a_row_lose_no_byte_and_count_none_twice");
    upgrades(Attach::Auto);
}

#[test]
fn ten_upgrades_in_a_row_by_clsact_lose_no_byte_and_count_none_twice() {
    on_a_kernel!("ten_upgrades_in_a_row_by_clsact_lose_no_byte_and_count_none_twice");
    upgrades(Attach::Clsact);
}

/// An agent of layout 2 that has run: its maps, programs and links are pinned.
struct Former {
    ebpf: Ebpf,
}

impl Former {
    const BOOT: [u8; 16] = [7; 16];

    fn load(rig: &Rig, layout: u32) -> Self {
        let mut object = Vec::new();
        flate2::read::GzDecoder::new(LAYOUT_2).read_to_end(&mut object).expect("whole");
        let pins = &rig.settings.pin_dir;
        std::fs::create_dir(pins).expect("makes the directory");
        let lines = FlowLine::lines(rig.settings.max_flows);
        let slots = rig.settings.max_subscribers;
        let mut loader = EbpfLoader::new();
        let sizes = [
            ("config", 1),
            ("sessions", rig.settings.max_prefixes),
            ("flows", lines),
            ("details", lines * u32::try_from(WAYS).expect("small")),
            ("rations", slots),
            ("lanes", slots * u32::try_from(SLOT_LANES).expect("small")),
            ("anonymous", 1),
            ("tallies", 24),
            ("samples", rig.settings.ring_bytes),
        ];
        let paths = sizes.map(|(name, entries)| (format!("usher_{name}"), pins.join(name), entries));
        for (name, path, entries) in &paths {
            loader.map_max_entries(name, *entries).map_pin_path(name, path.as_path());
        }
        let mut ebpf = loader.load(&object).expect("the former object loads");
        let mut config = [0_u8; 240];
        let words =
            [(0, layout), (8, 1), (12, 1), (16, 4), (20, 2_048), (24, 0), (28, lines - 1), (52, slots)];
        for (at, word) in words {
            config[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        config[24..28].copy_from_slice(&index(&rig.interface).to_ne_bytes());
        config[32..48].copy_from_slice(&Self::BOOT);
        for (at, byte) in config[80..].iter_mut().enumerate() {
            *byte = u8::try_from(at * 97 % 251).expect("small");
        }
        let mut map: Array<&mut MapData, [u8; 240]> =
            ebpf.map_mut("usher_config").expect("there").try_into().expect("an array");
        map.set(0, config, 0).expect("writes");
        let mut sessions: LpmTrie<&mut MapData, [u8; 16], u32> =
            ebpf.map_mut("usher_sessions").expect("there").try_into().expect("a trie");
        sessions.insert(&Key::new(128, mapped(SUBSCRIBER)), SLOT, 0).expect("binds");
        for (name, hook) in [("usher_up", TcAttachType::Ingress), ("usher_down", TcAttachType::Egress)] {
            let program: &mut SchedClassifier =
                ebpf.program_mut(name).expect("there").try_into().expect("a classifier");
            program.load().expect("loads");
            let link = program.attach(&rig.interface, hook).expect("attaches");
            let link = FdLink::try_from(program.take_link(link).expect("there")).expect("a link");
            link.pin(pins.join(name.replace("usher", "link"))).expect("pins");
        }
        Self { ebpf }
    }

    fn die(self) {
        drop(self.ebpf);
    }
}

fn index(interface: &str) -> u32 {
    let file = Path::new("/sys/class/net").join(interface).join("ifindex");
    std::fs::read_to_string(file).expect("there").trim().parse().expect("a number")
}

#[test]
fn counters_of_an_older_layout_go_on_under_traffic() {
    on_a_kernel!("counters_of_an_older_layout_go_on_under_traffic", tcx);
    let rig = Rig::new();
    Former::load(&rig, 2).die();
    let peer = rig.peer();
    rig.up();
    let stop = AtomicBool::new(false);
    let (probe, not_sent) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| traffic(&rig.interface, &peer, &stop));
        // The former programs alone, then the new ones.
        while interface_counters(&rig.interface)[1] < 500 {}
        let before = interface_counters(&rig.interface)[1];
        let probe = rig.load().expect("migrates");
        while interface_counters(&rig.interface)[1] < before + 500 {}
        stop.store(true, Ordering::Relaxed);
        (probe, sender.join().expect("the sender ends well"))
    });
    ip(&["link", "set", &peer, "down"]);
    assert_eq!(probe.boot().0, Former::BOOT, "the same life of the counters");
    let [received_bytes, received, sent_bytes, sent] = interface_counters(&rig.interface);
    let handed_over = [received_bytes, received, sent_bytes + not_sent[0], sent + not_sent[1]];
    assert_eq!(probe_counters(&probe), handed_over);
    let mine = cell(&probe, SLOT, Class::Other, Up);
    let nobodys = cell(&probe, ANONYMOUS, Class::Other, Up);
    assert!(nobodys.packets > 0 && mine.packets > 8 * nobodys.packets, "{mine:?} {nobodys:?}");
    assert!(
        !rig.settings.pin_dir.join("config_former").exists()
            && !rig.settings.pin_dir.join("link_up").exists()
    );
    drop(probe);
    rig.load().expect("is an agent's like any other").detach().expect("detaches");
    assert!(!rig.settings.pin_dir.exists());
}

#[test]
fn a_migration_that_was_cut_short_is_ended_by_the_next_agent() {
    on_a_kernel!("a_migration_that_was_cut_short_is_ended_by_the_next_agent", tcx);
    // Killed after the first step, and after some more.
    for gone in [&[][..], &["samples", "rations"]] {
        let rig = Rig::new();
        Former::load(&rig, 2).die();
        let pin = |name: &str| rig.settings.pin_dir.join(name);
        std::fs::rename(pin("config"), pin("config_former")).expect("renames");
        for name in gone {
            std::fs::remove_file(pin(name)).expect("removes");
        }
        let probe = rig.load().expect("goes on");
        assert_eq!(probe.boot().0, Former::BOOT);
        assert_eq!(probe.bindings().expect("lists"), [(net("10.0.0.2/32"), SLOT)]);
        assert!(!pin("config_former").exists());
        probe.detach().expect("detaches");
    }
}

#[test]
fn maps_of_a_layout_that_cannot_be_taken_along_are_refused_with_both_and_left_alone() {
    on_a_kernel!("maps_of_a_layout_that_cannot_be_taken_along_are_refused_with_both_and_left_alone", tcx);
    for layout in [1, 77] {
        let rig = Rig::new();
        Former::load(&rig, layout).die();
        let before = pins(&rig);
        let error = rig.load().expect_err("not ours");
        let ProbeError::OtherLayout { pinned, ours, differences, .. } = &error else { panic!("{error}") };
        assert_eq!((*pinned, *ours), (layout, LAYOUT));
        assert!(
            differences.iter().any(|text| text.starts_with("config: 1 of 4 + 240 bytes there")),
            "{error}"
        );
        let said = error.to_string();
        assert!(said.contains("`detach`") && said.contains(&format!("{LAYOUT} (config")), "{said}");
        assert_eq!(pins(&rig), before);
        Probe::remove(&rig.settings).expect("what nobody can read can be removed");
        assert!(pins(&rig).is_empty() || !rig.settings.pin_dir.exists(), "{:?}", pins(&rig));
    }
}
