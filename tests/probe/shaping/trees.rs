//! What trees there are on interfaces, and what becomes of them.

use std::process::{Command, Stdio};

use usher_agent::probe::{Leaf, Pattern, Probe, ProbeError, Shaping, Trial, Verdict};
use usher_models::wire::{Class, Direction, Enforcement, Gate, LINE, Rate};

use super::{MEGABIT, classes, has_tree, limited, root, set, settle, tc};
use crate::on_a_kernel;
use crate::rig::{Rig, SLOT, cell, ip, run, tcp};

use Direction::{Down, Up};

fn shaping_rig() -> Rig {
    let mut rig = Rig::new();
    rig.settings.shaping = Some(Shaping::default());
    rig
}

#[test]
fn a_limited_line_has_a_class_that_follows_its_rate_and_goes_with_it() {
    on_a_kernel!("a_limited_line_has_a_class_that_follows_its_rate_and_goes_with_it");
    let rig = shaping_rig();
    let mut probe = rig.probe();
    assert!(root(&rig.interface).starts_with("qdisc htb 5554: root"), "{}", root(&rig.interface));
    assert_eq!(classes(&rig.interface), [""; 0]);
    set(&mut probe, SLOT, &limited(LINE, Down, 8 * MEGABIT));
    assert_eq!(classes(&rig.interface), ["5554:1 root 8Mbit 8Mbit pfifo"]);
    assert_eq!(probe.enforcement(SLOT).expect("reads back"), limited(LINE, Down, 8 * MEGABIT));
    set(&mut probe, SLOT + 1, &limited(LINE, Down, 2 * MEGABIT));
    set(&mut probe, SLOT, &limited(LINE, Down, 40_000 * MEGABIT));
    let expected = ["5554:1 root 40Gbit 40Gbit pfifo", "5554:2 root 2Mbit 2Mbit pfifo"];
    assert_eq!(classes(&rig.interface), expected, "beyond 32 bits of bytes a second");
    let shaped = probe.shaped().expect("shapes");
    assert_eq!((shaped.classes, shaped.policed), ([0, 2], [0, 0]));
    probe.enforce(SLOT, &Enforcement::default()).expect("ends");
    assert_eq!(classes(&rig.interface), expected, "what waits in it may still leave");
    probe.shape_on();
    assert_eq!(classes(&rig.interface), ["5554:2 root 2Mbit 2Mbit pfifo"]);
    probe.detach().expect("detaches");
    assert!(!has_tree(&rig.interface), "{}", root(&rig.interface));
    assert!(!rig.settings.pin_dir.exists());
}

#[test]
fn classes_of_use_share_a_limited_line() {
    on_a_kernel!("classes_of_use_share_a_limited_line");
    let rig = shaping_rig();
    let mut probe = rig.probe();
    let video = limited(Class::Video.index(), Down, 2 * MEGABIT);
    set(&mut probe, SLOT, &video);
    assert_eq!(classes(&rig.interface), ["5554:1 root 2Mbit 2Mbit pfifo"]);
    let both = video.with_rate(LINE, Down, Rate::per_second(8 * MEGABIT, 0));
    set(&mut probe, SLOT, &both);
    probe.shape_on();
    let expected =
        ["5554:2 root 8Mbit 8Mbit -", "5554:3 5554:2 4Mbit 8Mbit pfifo", "5554:4 5554:2 2Mbit 2Mbit pfifo"];
    assert_eq!(classes(&rig.interface), expected);
    probe.enforce(SLOT, &Enforcement::default()).expect("ends");
    probe.shape_on();
    assert_eq!(classes(&rig.interface), [""; 0]);
    probe.detach().expect("detaches");
}

#[test]
fn a_slot_that_no_class_is_left_for_is_policed_until_there_is_one() {
    on_a_kernel!("a_slot_that_no_class_is_left_for_is_policed_until_there_is_one");
    let mut rig = shaping_rig();
    rig.settings.shaping = Some(Shaping { max_classes: 2, ..Shaping::default() });
    let mut probe = rig.probe();
    let slow = limited(LINE, Down, 64_000);
    set(&mut probe, SLOT + 1, &slow);
    let shaped = |probe: &Probe| {
        let shaped = probe.shaped().expect("shapes");
        (shaped.classes[Down.index()], shaped.policed[Down.index()])
    };
    // Of a line and a class of use there are three.
    set(&mut probe, SLOT, &slow.with_rate(Class::Video.index(), Down, Rate::per_second(64_000, 0)));
    assert_eq!(shaped(&probe), (1, 1));
    set(&mut probe, SLOT + 2, &slow);
    assert_eq!(shaped(&probe), (2, 1), "one that there is room for");
    set(&mut probe, SLOT, &slow);
    assert_eq!(shaped(&probe), (2, 1));
    assert_eq!(classes(&rig.interface).len(), 2);
    let dropped = |probe: &Probe| {
        let flood = tcp(Down, 4_000, &[1; 1_000]);
        probe.trial(&Trial { repeat: 1_000, ..Trial::once(Down, &flood) }).expect("runs");
        cell(probe, SLOT, Class::Other, Down).dropped_packets
    };
    let by_the_bucket = dropped(&probe);
    assert!(by_the_bucket > 900, "{by_the_bucket}");

    probe.enforce(SLOT + 1, &Enforcement::default()).expect("ends");
    assert_eq!(shaped(&probe), (2, 1), "what waits in it may still leave");
    probe.shape_on();
    assert_eq!(shaped(&probe), (2, 0));
    assert_eq!(dropped(&probe), by_the_bucket, "waits in a class from now on");
    probe.detach().expect("detaches");
}

#[test]
fn more_interfaces_than_there_are_trees_for_are_refused_at_the_start_and_policed_after_it() {
    on_a_kernel!("more_interfaces_than_there_are_trees_for_are_refused_at_the_start_and_policed_after_it");
    // Sixteen are both ends of eight pairs; and one of another, which comes and goes.
    let mut rig = shaping_rig();
    let others: Vec<Rig> = (0..8).map(|_| Rig::new()).collect();
    let both = |rig: &Rig| [rig.interface.clone(), rig.interface.replace("ut", "up")];
    let trees: Vec<String> = others.iter().flat_map(both).collect();
    let ending = |name: &String| Pattern::new(format!("*{name}"));
    rig.settings.interfaces = trees.iter().chain([&rig.interface]).map(ending).collect();
    let error = rig.load().expect_err("too many");
    assert!(matches!(error, ProbeError::TooManyTrees { interfaces: 17, most: 16, .. }), "{error}");
    assert!(!rig.settings.pin_dir.exists());

    rig.remove_interface();
    let mut probe = rig.probe();
    set(&mut probe, SLOT, &limited(LINE, Down, MEGABIT));
    let policed = |probe: &Probe| probe.shaped().expect("shapes").policed[Down.index()];
    assert_eq!(policed(&probe), 0);
    assert!(trees.iter().all(|name| classes(name).len() == 1));
    rig.make_interface();
    probe.follow_interfaces().expect("looks");
    assert_eq!(policed(&probe), 1, "the buckets know no interfaces");
    assert!(!trees.iter().any(|name| has_tree(name)));
    rig.remove_interface();
    probe.follow_interfaces().expect("looks");
    settle(&mut probe);
    assert_eq!(policed(&probe), 0);
    assert!(trees.iter().all(|name| classes(name).len() == 1));
    probe.detach().expect("detaches");
}

/// The size table of an interface, as `overhead -14`, with how many entries it has.
fn size_table(interface: &str) -> (String, usize) {
    let shown = tc(&["-d", "qdisc", "show", "dev", interface]);
    let words: Vec<&str> = shown.split_whitespace().collect();
    let after = |word| words.iter().position(|other| *other == word).map(|at| words[at + 1]);
    let entries = after("tsize").map_or(0, |entries| entries.parse().expect("a number"));
    (after("overhead").unwrap_or_default().to_owned(), entries)
}

#[test]
fn what_packets_count_for_goes_with_their_interfaces_frames() {
    on_a_kernel!("what_packets_count_for_goes_with_their_interfaces_frames");
    let rig = shaping_rig();
    let mut probe = rig.probe();
    let mut entries = Vec::new();
    for mtu in ["1500", "9000", "60000"] {
        ip(&["link", "set", &rig.interface, "mtu", mtu]);
        probe.follow_interfaces().expect("looks");
        let (overhead, of_mtu) = size_table(&rig.interface);
        assert_eq!(overhead, "-14");
        entries.push(of_mtu);
    }
    assert_eq!(entries, [8 * 1_448, 3 * 8_948, 0]);
    probe.detach().expect("detaches");
}

#[test]
fn a_shaped_packet_is_never_dropped_by_the_probe_and_a_blocked_one_is() {
    on_a_kernel!("a_shaped_packet_is_never_dropped_by_the_probe_and_a_blocked_one_is");
    let rig = shaping_rig();
    let mut probe = rig.probe();
    let slow = limited(LINE, Down, 64_000).with_rate(LINE, Up, Rate::per_second(64_000, 0));
    set(&mut probe, SLOT, &slow);
    let trial = |probe: &Probe, direction, frame: &[u8]| {
        probe.trial(&Trial { repeat: 1_000, ..Trial::once(direction, frame) }).expect("runs").verdict
    };
    assert_eq!(trial(&probe, Down, &tcp(Down, 4_000, &[1; 1_000])), Verdict::Pass);
    let counted = cell(&probe, SLOT, Class::Other, Down);
    assert_eq!((counted.packets, counted.dropped_packets), (1_000, 0));
    // Without uplinks what subscribers send is policed.
    assert_eq!(trial(&probe, Up, &tcp(Up, 4_000, &[1; 1_000])), Verdict::Drop);
    set(&mut probe, SLOT, &slow.with_gate(Gate::Block));
    assert_eq!(run(&probe, Down, &tcp(Down, 4_000, b"x")), Verdict::Drop);
    probe.detach().expect("detaches");
}

#[test]
fn the_next_agent_adopts_the_tree_and_puts_right_what_is_not_as_the_lanes_say() {
    on_a_kernel!("the_next_agent_adopts_the_tree_and_puts_right_what_is_not_as_the_lanes_say");
    let rig = shaping_rig();
    let mut probe = rig.probe();
    set(&mut probe, SLOT, &limited(LINE, Down, 8 * MEGABIT));
    set(&mut probe, SLOT + 1, &limited(LINE, Down, 2 * MEGABIT));
    let before = classes(&rig.interface);
    drop(probe);
    assert_eq!(classes(&rig.interface), before, "they outlive the agent");
    // As if it had died between two steps.
    let interface = rig.interface.as_str();
    tc(&["class", "del", "dev", interface, "classid", "5554:2"]);
    tc(&[
        "class", "change", "dev", interface, "parent", "5554:", "classid", "5554:1", "htb", "rate", "5mbit",
    ]);
    for (class, rate) in [("5554:77", "1mbit"), ("5554:78", "1mbit")] {
        let parent = if class == "5554:77" { "5554:" } else { "5554:77" };
        tc(&["class", "add", "dev", interface, "parent", parent, "classid", class, "htb", "rate", rate]);
    }
    let mut probe = rig.load().expect("adopts");
    assert_eq!(classes(interface).len(), 4);
    probe.shape_on();
    assert_eq!(classes(interface), before);
    set(&mut probe, SLOT + 2, &limited(LINE, Down, MEGABIT));
    assert_eq!(classes(interface).len(), 3);
    // And a tree that somebody has removed meanwhile.
    tc(&["qdisc", "del", "dev", interface, "root"]);
    probe.follow_interfaces().expect("looks");
    assert_eq!(probe.shaped().expect("shapes").policed, [0, 3]);
    settle(&mut probe);
    assert_eq!(probe.shaped().expect("shapes").policed, [0, 0]);
    assert_eq!(classes(interface).len(), 3);
    probe.detach().expect("detaches");
}

#[test]
fn what_is_shaped_is_policed_after_a_start_without_and_shaped_again_after_one_with() {
    on_a_kernel!("what_is_shaped_is_policed_after_a_start_without_and_shaped_again_after_one_with");
    let mut rig = shaping_rig();
    let mut probe = rig.probe();
    set(&mut probe, SLOT, &limited(LINE, Down, 64_000));
    drop(probe);
    rig.settings.shaping = None;
    let probe = rig.load().expect("adopts");
    assert!(!has_tree(&rig.interface), "{}", root(&rig.interface));
    assert_eq!(probe.enforcement(SLOT).expect("reads"), limited(LINE, Down, 64_000));
    let flood = tcp(Down, 4_000, &[1; 1_000]);
    probe.trial(&Trial { repeat: 1_000, ..Trial::once(Down, &flood) }).expect("runs");
    assert!(cell(&probe, SLOT, Class::Other, Down).dropped_packets > 900);
    drop(probe);
    rig.settings.shaping = Some(Shaping { leaf: Some(Leaf::Pfifo), ..Shaping::default() });
    let mut probe = rig.load().expect("adopts");
    probe.shape_on();
    assert_eq!(classes(&rig.interface), ["5554:1 root 64Kbit 64Kbit pfifo"]);
    drop(probe);
    Probe::remove(&rig.settings).expect("detaches what no agent has loaded");
    assert!(!has_tree(&rig.interface), "{}", root(&rig.interface));
    assert!(!rig.settings.pin_dir.exists());
}

#[test]
fn a_queueing_discipline_of_somebody_elses_is_refused_and_left_alone() {
    on_a_kernel!("a_queueing_discipline_of_somebody_elses_is_refused_and_left_alone");
    let rig = shaping_rig();
    for foreign in [&["handle", "10:", "htb"][..], &["handle", "5554:", "htb"], &["handle", "7:", "pfifo"]] {
        tc(&[&["qdisc", "add", "dev", &rig.interface, "root"], foreign].concat());
        let before = root(&rig.interface);
        let error = rig.load().expect_err("somebody else's");
        assert!(matches!(error, ProbeError::ForeignQdisc { .. }), "{error}");
        let told = error.to_string();
        assert!(told.contains(&format!("tc qdisc del dev {} root", rig.interface)), "{told}");
        assert_eq!(root(&rig.interface), before);
        assert!(!rig.settings.pin_dir.exists());
        tc(&["qdisc", "del", "dev", &rig.interface, "root"]);
    }
    // One that comes while the agent runs: then the buckets hold the rates.
    let mut probe = rig.probe();
    set(&mut probe, SLOT, &limited(LINE, Down, 64_000));
    tc(&["qdisc", "replace", "dev", &rig.interface, "root", "handle", "7:", "pfifo"]);
    probe.follow_interfaces().expect("looks");
    assert!(probe.interfaces_wait());
    assert_eq!(probe.shaped().expect("should").policed, [0, 1]);
    let flood = tcp(Down, 4_000, &[1; 1_000]);
    probe.trial(&Trial { repeat: 1_000, ..Trial::once(Down, &flood) }).expect("runs");
    assert!(cell(&probe, SLOT, Class::Other, Down).dropped_packets > 900);
    tc(&["qdisc", "del", "dev", &rig.interface, "root"]);
    probe.follow_interfaces().expect("looks");
    assert!(!probe.interfaces_wait());
    probe.shape_on();
    assert_eq!(classes(&rig.interface), ["5554:2 root 64Kbit 64Kbit pfifo"]);
    probe.detach().expect("detaches");
}

#[test]
fn a_kind_of_queue_that_the_kernel_lacks_is_told_and_the_best_it_has_is_taken() {
    on_a_kernel!("a_kind_of_queue_that_the_kernel_lacks_is_told_and_the_best_it_has_is_taken");
    let rig = Rig::new();
    let before = root("lo");
    let mut there = Vec::new();
    for leaf in [Leaf::Cake, Leaf::FqCodel, Leaf::Pfifo] {
        let words = ["qdisc", "replace", "dev", &rig.interface, "root", "handle", "77:", leaf.name()];
        let made = Command::new("tc").args(words).stderr(Stdio::null()).status().expect("tc runs");
        let chosen = Leaf::choose(Some(leaf));
        assert_eq!(chosen.is_ok(), made.success(), "{chosen:?}");
        match chosen {
            Ok(_) => there.push(leaf),
            Err(error) => assert!(error.to_string().contains(leaf.name()), "{error}"),
        }
    }
    assert_eq!(Leaf::choose(None).expect("there is one"), there[0]);
    assert_eq!(root("lo"), before, "asking changes nothing");
}
