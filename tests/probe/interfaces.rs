//! One probe on several interfaces, which come and go.

use std::fs;
use std::path::Path;
use std::time::Duration;

use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use usher_agent::probe::{Attach, Followed, Pattern, Probe, ProbeConfig, ProbeError, Trial, Xdp};
use usher_models::wire::{Class, Direction};
use usher_tests::wait::{self, Seen};
use usher_tests::{pins, process, skip};

use crate::on_a_kernel;
use crate::rig::*;

use Direction::{Down, Up};

/// Pairs of interfaces whose names begin alike, gone when dropped.
struct Pairs {
    stem: String,
    rig: Rig,
}

impl Pairs {
    fn new() -> Self {
        let rig = Rig::new();
        // The rig's own pair stays down and is not configured: it is there to be not meant.
        let stem = rig.interface.replace("ut", "um");
        Self { stem, rig }
    }

    /// The name of an interface towards subscribers; its other end is what they send by.
    fn name(&self, which: &str) -> String {
        format!("{}{which}", self.stem)
    }

    fn peer(&self, which: &str) -> String {
        self.name(which).replace("um", "un")
    }

    fn make(&self, which: &str) {
        let (name, peer) = (self.name(which), self.peer(which));
        ip(&["link", "add", &name, "type", "veth", "peer", "name", &peer]);
        for end in [&name, &peer] {
            ip(&["link", "set", end, "addrgenmode", "none", "up"]);
        }
    }

    fn delete(&self, which: &str) {
        ip(&["link", "del", &self.name(which)]);
    }

    fn load(&self, patterns: &[&str]) -> Result<Whole, ProbeError> {
        let interfaces = patterns.iter().map(|which| Pattern::new(self.name(which))).collect();
        let settings = ProbeConfig { interfaces, ..self.rig.settings.clone() };
        Whole::load(settings)
    }

    fn probe(&self, patterns: &[&str]) -> Whole {
        let mut probe = self.load(patterns).expect("the probe loads");
        probe.bind(net("10.0.0.2/32"), SLOT).expect("binds");
        probe
    }

    /// A subscriber sends one segment by the other end of an interface.
    fn send(&self, which: &str) {
        send(&self.peer(which), &tcp(Up, 4_000, b"hello"));
    }
}

/// Waits until the subscriber has sent `packets` so far.
fn counted(probe: &Probe, packets: u64) {
    wait::until("the packets are counted", Duration::from_secs(5), || {
        let up = cell(probe, SLOT, Class::Other, Up).packets;
        Ok(Seen::when(up == packets, (), format!("{up} of {packets}")))
    })
    .expect("they are");
}

impl Drop for Pairs {
    fn drop(&mut self) {
        let listed = std::process::Command::new("ip").args(["-o", "link"]).output().expect("ip runs");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let names = listed
            .lines()
            .filter_map(|line| line.split([':', '@', ' ']).filter(|word| !word.is_empty()).nth(1));
        for name in names.filter(|name| name.starts_with(&self.stem)) {
            let _ = std::process::Command::new("ip").args(["link", "del", name]).status();
        }
    }
}

fn send(interface: &str, frame: &[u8]) {
    let open = pcap::Capture::from_device(interface).and_then(pcap::Capture::open);
    open.expect("the interface opens").sendpacket(frame).expect("a frame is sent");
}

fn told(followed: &Followed) -> (usize, usize, usize, usize) {
    (followed.on, followed.came, followed.went, followed.without)
}

#[test]
fn several_interfaces_share_flows_and_counters() {
    on_a_kernel!("several_interfaces_share_flows_and_counters");
    let pairs = Pairs::new();
    pairs.make("a");
    pairs.make("b");
    let mut probe = pairs.probe(&["a", "b"]);
    pairs.send("a");
    pairs.send("b");
    counted(&probe, 2);
    probe.name_flow(&flow(6, 4_000, 443), Class::Web, false).expect("names");
    pairs.send("b");
    wait::until("the class holds on both", Duration::from_secs(5), || {
        let web = cell(&probe, SLOT, Class::Web, Up).packets;
        Ok(Seen::when(web == 1, (), web))
    })
    .expect("it does");
    // What goes out of either is down.
    send(&pairs.name("a"), &tcp(Down, 4_000, b"hello"));
    assert_eq!(cell(&probe, SLOT, Class::Web, Down).packets, 1);
    probe.detach().expect("detaches");
}

#[test]
fn interfaces_that_come_get_the_probe_and_those_that_go_are_forgotten() {
    on_a_kernel!("interfaces_that_come_get_the_probe_and_those_that_go_are_forgotten");
    let pairs = Pairs::new();
    let mut probe = pairs.probe(&["p*"]);
    assert_eq!(told(&probe.follow_interfaces().expect("looks")), (0, 0, 0, 0), "a pattern may mean none");
    pairs.make("p0");
    pairs.make("q0");
    assert_eq!(told(&probe.follow_interfaces().expect("looks")), (1, 1, 0, 0));
    assert_eq!(told(&probe.follow_interfaces().expect("looks")), (1, 0, 0, 0));
    pairs.send("p0");
    pairs.send("q0");
    counted(&probe, 1);

    // Made again under the same name, it is another one.
    pairs.delete("p0");
    pairs.make("p0");
    assert_eq!(told(&probe.follow_interfaces().expect("looks")), (1, 1, 1, 0));
    pairs.send("p0");
    counted(&probe, 2);
    assert_eq!(
        pins(&pairs.rig).iter().filter(|pin| pin.starts_with("link_") || pin.starts_with("filter_")).count(),
        2,
        "none is left over"
    );

    // Renamed, it is the same one, for as long as it is meant.
    let rename = |from: &str, to: &str| ip(&["link", "set", &pairs.name(from), "name", &pairs.name(to)]);
    rename("p0", "p7");
    assert_eq!(told(&probe.follow_interfaces().expect("looks")), (1, 0, 0, 0));
    send(&pairs.peer("p0"), &tcp(Up, 4_000, b"hello"));
    counted(&probe, 3);
    rename("p7", "q7");
    assert_eq!(told(&probe.follow_interfaces().expect("looks")), (0, 0, 1, 0));
    send(&pairs.peer("p0"), &tcp(Up, 4_000, b"hello"));
    rename("q7", "p8");
    assert_eq!(told(&probe.follow_interfaces().expect("looks")), (1, 1, 0, 0));
    send(&pairs.peer("p0"), &tcp(Up, 4_000, b"hello"));
    counted(&probe, 4);
    probe.detach().expect("detaches");
}

#[test]
fn a_named_interface_must_be_there_at_the_start_and_may_go_and_come_back() {
    on_a_kernel!("a_named_interface_must_be_there_at_the_start_and_may_go_and_come_back");
    let pairs = Pairs::new();
    let error = pairs.load(&["a"]).expect_err("it is not there");
    assert!(matches!(&error, ProbeError::NoInterface { name, .. } if *name == pairs.name("a")), "{error}");
    pairs.make("a");
    let mut probe = pairs.probe(&["a"]);
    pairs.delete("a");
    assert_eq!(told(&probe.follow_interfaces().expect("looks")), (0, 0, 1, 1));
    pairs.make("a");
    assert_eq!(told(&probe.follow_interfaces().expect("looks")), (1, 1, 0, 0));
    pairs.send("a");
    counted(&probe, 1);
    probe.detach().expect("detaches");
}

#[test]
fn the_next_agent_adopts_every_interface_and_leaves_those_it_is_not_told() {
    on_a_kernel!("the_next_agent_adopts_every_interface_and_leaves_those_it_is_not_told");
    let mut pairs = Pairs::new();
    for which in ["a", "b", "c"] {
        pairs.make(which);
    }
    for (attach, patterns, carry) in [
        (Attach::Auto, &["a", "b"][..], &["a", "b"][..]),
        (Attach::Auto, &["b", "c"], &["b", "c"]),
        (Attach::Clsact, &["*"], &["a", "b", "c"]),
        (Attach::Clsact, &["a"], &["a"]),
        (Attach::Auto, &["c"], &["c"]),
    ] {
        pairs.rig.settings.attach = attach;
        let probe = pairs.probe(patterns);
        let before = cell(&probe, SLOT, Class::Other, Up).packets;
        drop(probe);
        // No agent runs.
        for which in ["a", "b", "c"] {
            pairs.send(which);
        }
        let probe = pairs.load(patterns).expect("adopts");
        counted(&probe, before + carry.len() as u64);
        for which in ["a", "b", "c"] {
            let filters = filters(&pairs.name(which));
            let expected = attach == Attach::Clsact && carry.contains(&which);
            assert_eq!(!filters.is_empty(), expected, "{which}: {filters}");
        }
    }
    pairs.load(&["c"]).expect("adopts").detach().expect("detaches");
}

/// What hangs in the clsact qdisc of an interface, and whether there is one.
fn filters(interface: &str) -> String {
    let shown = |arguments: &[&str]| {
        let output = std::process::Command::new("tc").args(arguments).output().expect("tc runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let qdiscs = shown(&["qdisc", "show", "dev", interface]);
    if !qdiscs.contains("clsact") {
        return String::new();
    }
    format!(
        "clsact {}{}",
        shown(&["filter", "show", "dev", interface, "ingress"]),
        shown(&["filter", "show", "dev", interface, "egress"])
    )
}

#[test]
fn detach_leaves_nothing_behind() {
    on_a_kernel!("detach_leaves_nothing_behind");
    let mut pairs = Pairs::new();
    for which in ["a", "b"] {
        pairs.make(which);
    }
    // Somebody else's program, in the same place: it takes every packet and lets it go on.
    let stranger = pairs.name("b");
    let stays = ["filter", "add", "dev", &stranger, "ingress", "prio", "7", "bpf", "bytecode", "1,6 0 0 0,"];
    for attach in [Attach::Auto, Attach::Clsact] {
        pairs.rig.settings.attach = attach;
        drop(pairs.probe(&["a", "b"]));
        if attach == Attach::Clsact {
            let added = std::process::Command::new("tc").args(stays).status().expect("tc runs");
            assert!(added.success());
        }
        // As the command does it: by what is pinned, whatever is configured now.
        let settings =
            ProbeConfig { interfaces: vec![Pattern::new("usher-nowhere*")], ..pairs.rig.settings.clone() };
        Probe::remove(&settings).expect("removes");
        assert!(!pairs.rig.settings.pin_dir.exists(), "no pin");
        for which in ["a", "b"] {
            let name = pairs.name(which);
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                if skip::why_no_tcx().is_some() {
                    continue;
                }
                // The kernel lets go of a link some milliseconds after its last pin.
                wait::until("no program is left", Duration::from_secs(5), || {
                    let (_, programs) = SchedClassifier::query_tcx(&name, hook)?;
                    Ok(Seen::when(programs.is_empty(), (), programs.len()))
                })
                .expect("none is");
            }
            let filters = filters(&name);
            assert!(!filters.contains("usher"), "{attach:?}: {filters}");
            let others = which == "b" && attach == Attach::Clsact;
            assert_eq!(filters.contains("pref 7"), others, "{attach:?} {name}: {filters}");
            assert_eq!(filters.is_empty(), !others, "{attach:?} {name}: {filters}");
        }
    }
}

#[test]
fn programs_that_somebody_took_off_are_put_back_by_the_next_close_look() {
    on_a_kernel!("programs_that_somebody_took_off_are_put_back_by_the_next_close_look");
    let mut pairs = Pairs::new();
    pairs.make("a");
    let access = pairs.name("a");
    for (attach, xdp) in [(Attach::Clsact, Xdp::Off), (Attach::Auto, Xdp::Off), (Attach::Auto, Xdp::Native)] {
        if attach == Attach::Auto
            && let Some(reason) = skip::why_no_tcx()
        {
            skip::skipped(
                "programs_that_somebody_took_off_are_put_back_by_the_next_close_look, by links",
                &reason,
            );
            return;
        }
        (pairs.rig.settings.attach, pairs.rig.settings.xdp) = (attach, xdp);
        let mut probe = pairs.probe(&["a"]);
        let mut before = cell(&probe, SLOT, Class::Other, Up).packets;
        let ways: &[&str] = if xdp == Xdp::Off { &["link_up", "link_down"] } else { &["xdp_up"] };
        for way in ways {
            if attach == Attach::Clsact {
                let gone = std::process::Command::new("tc")
                    .args(["qdisc", "del", "dev", &access, "clsact"])
                    .status();
                assert!(gone.expect("tc runs").success());
            } else {
                let pin = pins(&pairs.rig).into_iter().find(|pin| pin.starts_with(way)).expect("is pinned");
                fs::remove_file(pairs.rig.settings.pin_dir.join(pin)).expect("is removed");
            }
            wait::until("the programs are gone and put back", Duration::from_secs(5), || {
                probe.notice_taken_off();
                let followed = probe.follow_interfaces()?;
                Ok(Seen::when(told(&followed) == (1, 1, 0, 0), (), format!("{followed:?}")))
            })
            .expect("they are");
            probe.notice_taken_off();
            assert_eq!(told(&probe.follow_interfaces().expect("looks")), (1, 0, 0, 0), "and once only");
            before += 1;
            pairs.send("a");
            counted(&probe, before);
            send(&access, &tcp(Down, 4_000, b"hello"));
        }
        assert_eq!(cell(&probe, SLOT, Class::Other, Down).packets, ways.len() as u64, "{attach:?} {xdp:?}");
        probe.detach().expect("detaches");
    }
}

#[test]
fn an_interface_that_went_or_was_renamed_is_none_off_which_somebody_took_the_programs() {
    on_a_kernel!("an_interface_that_went_or_was_renamed_is_none_off_which_somebody_took_the_programs");
    let mut pairs = Pairs::new();
    for (attach, xdp) in [(Attach::Clsact, Xdp::Off), (Attach::Auto, Xdp::Off), (Attach::Auto, Xdp::Native)] {
        if attach == Attach::Auto
            && let Some(reason) = skip::why_no_tcx()
        {
            skip::skipped(
                "an_interface_that_went_or_was_renamed_is_none_off_which_somebody_took_the_programs, by links",
                &reason,
            );
            return;
        }
        (pairs.rig.settings.attach, pairs.rig.settings.xdp) = (attach, xdp);
        pairs.make("p0");
        let mut probe = pairs.probe(&["p*"]);
        ip(&["link", "set", &pairs.name("p0"), "name", &pairs.name("p7")]);
        probe.notice_taken_off();
        let followed = probe.follow_interfaces().expect("looks");
        assert_eq!(told(&followed), (1, 0, 0, 0), "it is the same one: {attach:?} {xdp:?}");
        send(&pairs.peer("p0"), &tcp(Up, 4_000, b"hello"));
        counted(&probe, 1);
        pairs.delete("p7");
        probe.notice_taken_off();
        let followed = probe.follow_interfaces().expect("looks");
        assert_eq!(told(&followed), (0, 0, 1, 0), "it went, and is counted so: {attach:?} {xdp:?}");
        probe.detach().expect("detaches");
    }
}

/// Set where a test runs itself once more with no more of root's power than the unit leaves the agent.
const BOUNDED: &str = "USHER_TEST_BOUNDED";

#[test]
fn as_bounded_as_the_unit_an_agent_adopts_links_and_knows_that_they_stand() {
    const NAME: &str = "as_bounded_as_the_unit_an_agent_adopts_links_and_knows_that_they_stand";
    if std::env::var_os(BOUNDED).is_none() {
        on_a_kernel!("as_bounded_as_the_unit_an_agent_adopts_links_and_knows_that_they_stand", tcx);
        let words = process::as_the_unit().expect("the unit says");
        let mut itself = process::command(&words[0], &words[1..]);
        itself.arg(std::env::current_exe().expect("this test")).env(BOUNDED, "1");
        itself.args(["--exact", &format!("interfaces::{NAME}"), "--nocapture"]);
        process::run(&mut itself).expect("holds");
        return;
    }
    let mut pairs = Pairs::new();
    pairs.make("a");
    for (xdp, number) in [(Xdp::Off, 2), (Xdp::Native, 3)] {
        pairs.rig.settings.xdp = xdp;
        drop(pairs.probe(&["a"]));
        let before = pins::links(&pairs.rig.settings.pin_dir).expect("reads");
        assert_eq!(before.len(), number, "{before:?}");
        let mut probe = pairs.load(&["a"]).expect("adopts");
        assert_eq!(pins::links(&pairs.rig.settings.pin_dir).expect("reads"), before, "{xdp:?}");
        probe.notice_taken_off();
        assert_eq!(told(&probe.follow_interfaces().expect("looks")), (1, 0, 0, 0), "{xdp:?}");
        // Nor is nothing ever noticed.
        fs::remove_file(pairs.rig.settings.pin_dir.join(before.keys().next().expect("some")))
            .expect("is removed");
        wait::until("the program is gone and put back", Duration::from_secs(5), || {
            probe.notice_taken_off();
            let followed = probe.follow_interfaces()?;
            Ok(Seen::when(told(&followed) == (1, 1, 0, 0), (), format!("{followed:?}")))
        })
        .expect("it is");
        probe.detach().expect("detaches");
    }
}

/// What an operator, or a program that tidies up, may do to the directory of the pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Removed,
    Replaced,
    Emptied,
    Without(&'static str),
}

impl Harm {
    const ALL: [Self; 5] =
        [Self::Removed, Self::Replaced, Self::Emptied, Self::Without("config"), Self::Without("lanes")];

    fn come(self, directory: &Path) {
        match self {
            Self::Removed => fs::remove_dir_all(directory).expect("is removed"),
            Self::Replaced => {
                Self::Removed.come(directory);
                fs::create_dir(directory).expect("is made");
            }
            Self::Emptied => {
                for pin in fs::read_dir(directory).expect("lists") {
                    fs::remove_file(pin.expect("a pin").path()).expect("is removed");
                }
            }
            Self::Without(pin) => fs::remove_file(directory.join(pin)).expect("is removed"),
        }
    }
}

#[test]
fn where_pins_are_gone_the_agent_is_told_and_the_next_one_begins_anew() {
    on_a_kernel!("where_pins_are_gone_the_agent_is_told_and_the_next_one_begins_anew");
    let mut pairs = Pairs::new();
    pairs.make("a");
    let directory = pairs.rig.settings.pin_dir.clone();
    for attach in [Attach::Clsact, Attach::Auto] {
        pairs.rig.settings.attach = attach;
        for harm in Harm::ALL {
            let mut probe = pairs.probe(&["a"]);
            let boot = probe.boot();
            harm.come(&directory);
            let left = pins(&pairs.rig);
            probe.notice_taken_off();
            let error = probe.follow_interfaces().expect_err("it is noticed").to_string();
            let what = match harm {
                Harm::Removed | Harm::Replaced => "the directory",
                Harm::Emptied => "`config`, `sessions`",
                Harm::Without(pin) => pin,
            };
            let told = error.contains(directory.to_str().expect("text")) && error.contains(what);
            assert!(told && error.contains("begin anew"), "{harm:?}: {error}");
            assert_eq!(pins(&pairs.rig), left, "nothing is put where another agent may be");
            drop(probe);
            let probe = pairs.probe(&["a"]);
            assert_ne!(probe.boot(), boot, "{attach:?} {harm:?}");
            pairs.send("a");
            counted(&probe, 1);
            probe.detach().expect("detaches");
        }
    }
}

#[test]
fn pins_that_go_while_no_agent_runs_do_not_keep_the_next_one_from_counting() {
    on_a_kernel!("pins_that_go_while_no_agent_runs_do_not_keep_the_next_one_from_counting");
    let pairs = Pairs::new();
    pairs.make("a");
    let directory = &pairs.rig.settings.pin_dir;
    for harm in Harm::ALL {
        let probe = pairs.probe(&["a"]);
        let boot = probe.boot();
        drop(probe);
        let before = pins::links(directory).expect("reads");
        harm.come(directory);
        let probe = pairs.probe(&["a"]);
        assert_ne!(probe.boot(), boot, "{harm:?}");
        assert_eq!(probe.bindings().expect("lists").len(), 1, "none of before: {harm:?}");
        if let Harm::Without(_) = harm {
            assert_eq!(pins::links(directory).expect("reads"), before, "programs change in one step");
        }
        pairs.send("a");
        counted(&probe, 1);
        probe.detach().expect("detaches");
    }
}

#[test]
fn of_interfaces_on_each_other_two_names_are_refused_and_a_patterns_are_left_out() {
    on_a_kernel!("of_interfaces_on_each_other_two_names_are_refused_and_a_patterns_are_left_out");
    let pairs = Pairs::new();
    pairs.make("a");
    pairs.make("c");
    let (bridge, port, macvlan) = (pairs.name("br"), pairs.name("a"), pairs.name("mv"));
    ip(&["link", "add", &bridge, "type", "bridge"]);
    ip(&["link", "set", &port, "master", &bridge]);
    ip(&["link", "add", "link", &pairs.name("c"), "name", &macvlan, "type", "macvlan"]);
    for (both, named) in [(["br", "a"], (&port, &bridge)), (["c", "mv"], (&macvlan, &pairs.name("c")))] {
        let error = pairs.load(&both).expect_err("counted twice");
        let ProbeError::CountedTwice { name, other } = &error else { panic!("{error}") };
        assert_eq!((name, other), (named.0, named.1), "{error}");
        assert!(error.to_string().contains("one of the two"), "{error}");
        assert!(!pairs.rig.settings.pin_dir.exists());
    }
    let mut probe = pairs.probe(&["br", "*"]);
    let followed = probe.follow_interfaces().expect("looks");
    assert_eq!(
        told(&followed),
        (2, 0, 0, 2),
        "the bridge and the pair; not its port, nor what is on the pair"
    );
    // Out of the bridge, it carries its own.
    ip(&["link", "set", &port, "nomaster"]);
    assert_eq!(told(&probe.follow_interfaces().expect("looks")), (3, 1, 0, 1));
    probe.detach().expect("detaches");
}

#[test]
fn packets_without_a_link_layer_header_are_counted_beside_those_with_one() {
    on_a_kernel!("packets_without_a_link_layer_header_are_counted_beside_those_with_one");
    let pairs = Pairs::new();
    pairs.make("a");
    let tun = pairs.name("t");
    ip(&["tuntap", "add", "dev", &tun, "mode", "tun"]);
    ip(&["link", "set", &tun, "addrgenmode", "none", "up"]);
    let mut probe = pairs.probe(&["a", "t"]);
    let down = tcp(Down, 4_000, b"hello");
    send(&tun, &down[14..]);
    send(&pairs.name("a"), &down);
    let bytes = down.len() as u64 - 14;
    assert_eq!(cell(&probe, SLOT, Class::Other, Down), passed(2 * bytes, 2));
    assert_eq!(
        samples(&mut probe).iter().map(|sample| &*sample.packet).collect::<Vec<_>>(),
        [&down[14..]; 2]
    );
    // The way up, which nothing sends by here, on the program itself. Its frame is the packet: the kernel's test run takes an Ethernet
    // header off a frame that is none.
    let up = tcp(Up, 4_000, b"hello");
    probe.trial(&Trial { no_link_layer: true, ..Trial::once(Up, &up[14..]) }).expect("runs");
    assert_eq!(cell(&probe, SLOT, Class::Other, Up), passed(bytes, 1));
    probe.detach().expect("detaches");
}
