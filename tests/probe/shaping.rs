//! Rates kept by classes of HTB: what trees there are and what becomes of them, and what comes through.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use usher_agent::probe::{Leaf, Pattern, Probe, ProbeConfig, ProbeError, Shaping, Trial, Verdict, Xdp};
use usher_models::wire::{Class, Direction, Enforcement, Gate, LINE, Rate};
use usher_tests::netns::{ACCESS, INTERNET, INTERNET6, Lab, Place, Side};
use usher_tests::process;

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

const MEGABIT: u64 = 1_000_000;
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward_update_priority";

fn shaping_rig() -> Rig {
    let mut rig = Rig::new();
    rig.settings.shaping = Some(Shaping::default());
    rig
}

fn limited(lane: usize, direction: Direction, bits_per_second: u64) -> Enforcement {
    Enforcement::default().with_rate(lane, direction, Rate::per_second(bits_per_second, 0))
}

/// Puts enforcement in force, and waits for its classes if this second's time for making such is used up.
fn set(probe: &mut Probe, slot: u32, enforcement: &Enforcement) {
    probe.enforce(slot, enforcement).expect("sets");
    settle(probe);
}

/// Lets some seconds pass, if something waits for that.
fn settle(probe: &mut Probe) {
    for _ in 0..10 {
        if probe.shaped().is_some_and(|shaped| shaped.policed != [0, 0]) {
            probe.shape_on();
        }
    }
}

fn tc(words: &[&str]) -> String {
    let shown = Command::new("tc").args(words).output().expect("tc runs");
    assert!(shown.status.success(), "tc {words:?}: {}", String::from_utf8_lossy(&shown.stderr));
    String::from_utf8(shown.stdout).expect("text")
}

fn root(interface: &str) -> String {
    let shown = tc(&["qdisc", "show", "dev", interface]);
    shown.lines().find(|line| line.contains(" root ")).unwrap_or_default().to_owned()
}

fn has_tree(interface: &str) -> bool {
    root(interface).contains("htb")
}

/// The classes of an interface as `5554:1 root 8Mbit 8Mbit pfifo`, in the order of their numbers.
fn classes(interface: &str) -> Vec<String> {
    let queues = tc(&["qdisc", "show", "dev", interface]);
    let shown = tc(&["class", "show", "dev", interface]);
    let mut classes: Vec<(u16, String)> = shown
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let after = |word: &str| {
                words.iter().position(|other| *other == word).and_then(|at| words.get(at + 1)).copied()
            };
            let class = after("htb").expect("of HTB");
            let queue = queues.lines().find(|queue| queue.contains(&format!(" parent {class} ")));
            let queue = queue.and_then(|queue| queue.split(' ').nth(1)).unwrap_or("-");
            let rates = [after("rate"), after("ceil")].map(|rate| rate.expect("a rate"));
            let minor = class.split(':').nth(1).and_then(|minor| u16::from_str_radix(minor, 16).ok());
            let place = after("parent").unwrap_or("root");
            (minor.expect("a number"), format!("{class} {place} {} {} {queue}", rates[0], rates[1]))
        })
        .collect();
    classes.sort_unstable();
    classes.into_iter().map(|(_, class)| class).collect()
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

/// Moves this thread into one of the laboratory's namespaces.
fn enter(lab: &Lab, side: Side) {
    let namespace = File::open(lab.namespace_file(side)).expect("there");
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
}

/// Datagrams of full size to one address, evenly.
#[derive(Debug, Clone, Copy)]
struct Flood {
    from: (Side, &'static str),
    to: (Side, &'static str),
    bits_per_second: u64,
}

const PAYLOAD: u64 = 1_400;

/// Whole IP bytes of floods, sent and received so far.
#[derive(Debug, Default)]
struct Counted {
    sent: AtomicU64,
    received: AtomicU64,
}

/// Floods on their way.
struct Floods {
    counted: Vec<Counted>,
    over: AtomicBool,
}

impl Floods {
    /// What was sent and received of each in some time, in bits a second.
    fn measured(&self) -> Vec<[f64; 2]> {
        // What queued before a change has gone by then.
        std::thread::sleep(Duration::from_millis(200));
        let look = || -> Vec<[u64; 2]> {
            let counts = |it: &Counted| [&it.sent, &it.received].map(|count| count.load(Ordering::Relaxed));
            self.counted.iter().map(counts).collect()
        };
        let (began, before) = (Instant::now(), look());
        std::thread::sleep(Duration::from_millis(800));
        let (took, after) = (began.elapsed().as_secs_f64(), look());
        #[expect(clippy::cast_precision_loss, reason = "a rate to a few digits")]
        let rate = |before: u64, after: u64| (after - before) as f64 * 8.0 / took;
        let rates = before.iter().zip(&after);
        rates.map(|(before, after)| [rate(before[0], after[0]), rate(before[1], after[1])]).collect()
    }

    /// Runs what is to be tried inside the gateway while the floods go on.
    fn during(lab: &Lab, floods: &[Flood], inside: impl FnOnce(&Self) + Send) {
        let counted = floods.iter().map(|_| Counted::default()).collect();
        let running = Self { counted, over: AtomicBool::new(false) };
        std::thread::scope(|scope| {
            for (place, flood) in floods.iter().enumerate() {
                let (counted, over) = (&running.counted[place], &running.over);
                let port = 9_000 + u16::try_from(place).expect("few");
                let to = (flood.to.1.parse::<IpAddr>().expect("an address"), port);
                scope.spawn(move || {
                    enter(lab, flood.to.0);
                    receive(&UdpSocket::bind(to).expect("binds"), &counted.received, over);
                });
                scope.spawn(move || {
                    enter(lab, flood.from.0);
                    let socket = UdpSocket::bind((flood.from.1, 0)).expect("binds");
                    send(&socket, to.into(), flood.bits_per_second, &counted.sent, over);
                });
            }
            let gateway = scope.spawn(|| {
                enter(lab, Side::Gateway);
                inside(&running);
            });
            let done = gateway.join();
            running.over.store(true, Ordering::Relaxed);
            if let Err(panic) = done {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

fn ip_bytes(to: SocketAddr) -> u64 {
    PAYLOAD + 8 + if to.is_ipv4() { 20 } else { 40 }
}

fn receive(socket: &UdpSocket, received: &AtomicU64, over: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("sets");
    // What waits for this thread's turn is not lost.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, 16 << 20).expect("sets");
    let bytes = ip_bytes(socket.local_addr().expect("bound"));
    let mut room = [0; 2_048];
    while !over.load(Ordering::Relaxed) {
        if socket.recv(&mut room).is_ok() {
            received.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

fn send(socket: &UdpSocket, to: SocketAddr, bits_per_second: u64, sent: &AtomicU64, over: &AtomicBool) {
    let datagram = vec![0; usize::try_from(PAYLOAD).expect("small")];
    let (began, bytes, mut due) = (Instant::now(), ip_bytes(to), 0);
    while !over.load(Ordering::Relaxed) {
        let now = u64::try_from(began.elapsed().as_micros()).expect("short");
        // After a long pause not all of it at once.
        due = due.max((now * bits_per_second / 8_000_000).saturating_sub(1_000_000));
        while due < now * bits_per_second / 8_000_000 {
            due += bytes;
            if socket.send_to(&datagram, to).is_ok() {
                sent.fetch_add(bytes, Ordering::Relaxed);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether something is within 5 % of a rate.
#[track_caller]
fn at(bits_per_second: u64, measured: f64) {
    #[expect(clippy::cast_precision_loss, reason = "a rate to a few digits")]
    let share = measured / bits_per_second as f64;
    process::say(&format!("{bits_per_second} bit/s: {share:.4} of it"));
    assert!((0.95..=1.05).contains(&share), "{measured:.0} bit/s at {bits_per_second} bit/s");
}

fn shaping_in(lab: &Lab, uplinks: &[&str]) -> ProbeConfig {
    ProbeConfig {
        pin_dir: lab.place().pins(),
        max_flows: 1_024,
        max_subscribers: 16,
        shaping: Some(Shaping { uplinks: uplinks.iter().copied().map(Pattern::new).collect(), leaf: None }),
        ..ProbeConfig::new(ACCESS)
    }
}

fn laboratory() -> Lab {
    let lab = Lab::new(Place::new().expect("a place")).expect("a laboratory");
    lab.connect().expect("connects");
    lab.add_device(&["10.77.0.11/24", "10.77.0.12/24", "10.77.0.13/24", "fd77::12/64"]).expect("adds");
    lab
}

/// Set where a test runs itself once more, inside the gateway: the directory of its pins.
const INSIDE: &str = "USHER_TEST_SHAPING_PINS";

/// Inside the gateway: an agent that is killed as soon as two subscribers are shaped.
fn be_killed(settings: ProbeConfig) -> ! {
    let mut probe = Whole::load(settings).expect("loads");
    for (host, slot, megabits) in [("10.77.0.11/32", 3, 10), ("10.77.0.12/32", 4, 100)] {
        probe.bind(net(host), slot).expect("binds");
        set(&mut probe, slot, &limited(LINE, Down, megabits * MEGABIT));
    }
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::KILL).expect("kills");
    unreachable!("killed")
}

/// The real way of packets: forwarded by the kernel, queued as they leave.
#[test]
fn each_subscriber_gets_the_rate_it_has_whatever_becomes_of_the_agent() {
    const NAME: &str = "shaping::each_subscriber_gets_the_rate_it_has_whatever_becomes_of_the_agent";
    on_a_kernel!("each_subscriber_gets_the_rate_it_has_whatever_becomes_of_the_agent");
    if let Ok(pins) = std::env::var(INSIDE) {
        let shaping = Some(Shaping::default());
        be_killed(ProbeConfig {
            pin_dir: pins.into(),
            shaping,
            max_flows: 1_024,
            max_subscribers: 16,
            ..ProbeConfig::new(ACCESS)
        });
    }
    let lab = laboratory();
    let flood = |to, megabits| Flood {
        from: (Side::Internet, INTERNET),
        to: (Side::Subscribers, to),
        bits_per_second: megabits * MEGABIT,
    };
    let floods = [flood("10.77.0.11", 25), flood("10.77.0.12", 140), flood("10.77.0.13", 30)];
    Floods::during(&lab, &floods, |floods| {
        let mut agent = Command::new(std::env::current_exe().expect("this test"));
        agent.args(["--exact", NAME, "--nocapture"]).env(INSIDE, lab.place().pins());
        let ended = agent.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("runs");
        assert_eq!(ended.signal(), Some(9), "{ended}");
        let [slow, fast, free] = floods.measured().try_into().expect("three");
        at(10 * MEGABIT, slow[1]);
        at(100 * MEGABIT, fast[1]);
        assert!(free[1] >= 0.98 * free[0], "of no rate: {free:?}");

        let before = classes(ACCESS);
        let mut probe = Whole::load(shaping_in(&lab, &[])).expect("adopts");
        assert_eq!(classes(ACCESS), before);
        set(&mut probe, 3, &limited(LINE, Down, 20 * MEGABIT));
        let [changed, fast, _] = floods.measured().try_into().expect("three");
        at(20 * MEGABIT, changed[1]);
        at(100 * MEGABIT, fast[1]);
        assert_eq!(cell(&probe, 3, Class::Other, Down).dropped_packets, 0, "the probe drops nothing");

        probe.enforce(3, &Enforcement::default()).expect("ends");
        let [ended, ..] = floods.measured()[..] else { panic!("three") };
        assert!(ended[1] >= 0.98 * ended[0], "a rate that ended: {ended:?}");
        probe.shape_on();
        assert_eq!(classes(ACCESS).len(), 1);

        set(&mut probe, 3, &limited(LINE, Down, 10 * MEGABIT));
        probe.set_bypass(true).expect("bypasses");
        let [bypassed, ..] = floods.measured()[..] else { panic!("three") };
        assert!(bypassed[1] >= 0.98 * bypassed[0], "bypassed: {bypassed:?}");
        probe.detach().expect("detaches");
        assert!(!has_tree(ACCESS), "{}", root(ACCESS));
    });
}

#[test]
fn what_subscribers_send_is_shaped_where_it_leaves_for_the_internet() {
    on_a_kernel!("what_subscribers_send_is_shaped_where_it_leaves_for_the_internet");
    what_subscribers_send_is_shaped(Xdp::Off);
}

#[test]
fn what_was_met_in_the_driver_is_shaped_where_it_leaves_for_the_internet() {
    on_a_kernel!("what_was_met_in_the_driver_is_shaped_where_it_leaves_for_the_internet");
    what_subscribers_send_is_shaped(Xdp::Native);
}

fn what_subscribers_send_is_shaped(xdp: Xdp) {
    let lab = laboratory();
    let flood = |from, to, megabits| Flood {
        from: (Side::Subscribers, from),
        to: (Side::Internet, to),
        bits_per_second: megabits * MEGABIT,
    };
    let floods = [flood("10.77.0.11", INTERNET, 25), flood("fd77::12", INTERNET6, 50)];
    Floods::during(&lab, &floods, |floods| {
        let settings = ProbeConfig { xdp, ..shaping_in(&lab, &["core"]) };
        fs::write(FORWARDING, "1").expect("sets");
        let refused = Whole::load(settings.clone()).expect_err("forwarding forgets").to_string();
        assert!(refused.contains("net.ipv4.ip_forward_update_priority"), "{refused}");
        assert!(!has_tree("core"), "{}", root("core"));
        let both = Whole::load(shaping_in(&lab, &[ACCESS])).expect_err("both sides").to_string();
        assert!(both.contains("`access`"), "{both}");

        fs::write(FORWARDING, "0").expect("sets");
        let mut probe = Whole::load(settings).expect("loads");
        for (host, slot, megabits) in [("10.77.0.11/32", 3, 10), ("fd77::12/128", 4, 20)] {
            probe.bind(net(host), slot).expect("binds");
            set(&mut probe, slot, &limited(LINE, Up, megabits * MEGABIT));
        }
        assert_eq!(classes("core").len(), 2);
        assert!(classes("core")[0].starts_with("5553:1 root 10Mbit"), "{:?}", classes("core"));
        assert_eq!(classes(ACCESS), [""; 0]);
        let [four, six] = floods.measured().try_into().expect("two");
        at(10 * MEGABIT, four[1]);
        at(20 * MEGABIT, six[1]);

        // Somebody lets forwarding forget again: what that does, and that the buckets hold from the next look on.
        fs::write(FORWARDING, "1").expect("sets");
        let [four, six] = floods.measured().try_into().expect("two");
        assert!(four[1] >= 0.98 * four[0], "forgotten: {four:?}");
        at(20 * MEGABIT, six[1]);
        probe.follow_interfaces().expect("looks");
        let [four, six] = floods.measured().try_into().expect("two");
        at(10 * MEGABIT, four[1]);
        at(20 * MEGABIT, six[1]);
        assert_eq!(probe.shaped().expect("should").policed, [2, 0]);
        probe.detach().expect("detaches");
        assert!(!has_tree("core"), "{}", root("core"));
    });
}
