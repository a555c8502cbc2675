//! Nothing is lost and nothing doubled: the books against the interface's own counters, a short form of `make bench-exact`.

#![expect(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

use std::time::Duration;

use usher_tests::exactness::{self, Behind, Offloads};
use usher_tests::netns::{INTERNET, Lab, Place, Side};
use usher_tests::site::Site;
use usher_tests::wait::{self, Seen};
use usher_tests::{floods, pins, process, skip};

/// Runs the rest of a test where it can, else says why not.
macro_rules! on_a_kernel {
    ($name:literal) => {
        if let Some(reason) = skip::why_no_probe().or_else(floods::why_not) {
            skip::skipped($name, &reason);
            return;
        }
    };
}

#[test]
fn what_the_books_say_is_what_passed_to_the_byte() {
    on_a_kernel!("what_the_books_say_is_what_passed_to_the_byte");
    for offloads in [Offloads::Off, Offloads::On, Offloads::InDriver] {
        if offloads == Offloads::InDriver
            && let Some(reason) = skip::why_no_tcx()
        {
            skip::skipped("what_the_books_say_is_what_passed_to_the_byte, in the driver", &reason);
            return;
        }
        let outcome = exactness::run(offloads).unwrap();
        let shown = format!("offloads {offloads:?}: {}", outcome.shown());
        process::say(&shown);
        assert!(outcome.exact(), "{shown}");
        let [up, down] = outcome.passed;
        assert!(up.packets > 20_000 && down.packets > 20_000, "{shown}");
        let joined = outcome.at_core < (up.packets + down.packets) * 2 / 3;
        assert_eq!(joined, offloads != Offloads::Off, "super-packets with offloads, none without: {shown}");
    }
}

/// IP bytes of a datagram of [`send`].
const BYTES: u64 = 20 + 8 + 100;

/// Sends so many datagrams of 100 bytes from one port to another: of one flow, however often it is called.
fn send(lab: &Lab, datagrams: u32) {
    let script = format!(
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(Proto => 'udp', LocalAddr => '10.77.0.11', LocalPort => 4000, \
         PeerAddr => '{INTERNET}', PeerPort => 4001) or die; for (1..{datagrams}) {{ $s->send('x' x 100) or redo; }}"
    );
    process::run(&mut lab.inside(Side::Subscribers, "perl", ["-e", &script])).unwrap();
}

/// Bytes and packets up of a subscriber.
fn up(site: &Site, subscriber: &str) -> (u64, u64) {
    let usage = site.usage().unwrap();
    let own =
        usage.iter().filter(|row| row.direction == "up" && row.subscriber.as_deref() == Some(subscriber));
    own.fold((0, 0), |(bytes, packets), row| (bytes + row.bytes, packets + row.packets))
}

/// Waits until so many datagrams of both subscribers are told.
fn expect_up(site: &mut Site, a: u64, b: u64) {
    // Nobody listens. What comes back is none of `up`, and only tells the sender to try the next one again.
    wait::until("the usage of both", Duration::from_secs(20), || {
        site.expect_running()?;
        let found = (up(site, "sub-a"), up(site, "sub-b"));
        Ok(Seen::when(found == ((a * BYTES, a), (b * BYTES, b)), (), format!("{found:?}")))
    })
    .unwrap();
}

#[test]
fn an_address_that_moves_takes_its_running_flow_along_from_the_next_packet_on() {
    on_a_kernel!("an_address_that_moves_takes_its_running_flow_along_from_the_next_packet_on");
    let mut site = exactness::site(Lab::new(Place::new().unwrap()).unwrap(), Offloads::Off).unwrap();
    send(site.lab().unwrap(), 1_000);
    exactness::move_address(&mut site, Behind::B).unwrap();
    send(site.lab().unwrap(), 700);
    expect_up(&mut site, 1_000, 700);
    site.agent().unwrap().kill().unwrap();
    send(site.lab().unwrap(), 50);
    site.start_agent().unwrap();
    exactness::move_address(&mut site, Behind::A).unwrap();
    send(site.lab().unwrap(), 30);
    expect_up(&mut site, 1_030, 750);
}

#[test]
fn a_killed_agent_is_followed_by_one_that_adopts_its_links_and_finds_nothing_amiss() {
    on_a_kernel!("a_killed_agent_is_followed_by_one_that_adopts_its_links_and_finds_nothing_amiss");
    if let Some(reason) = skip::why_no_tcx() {
        return skip::skipped(
            "a_killed_agent_is_followed_by_one_that_adopts_its_links_and_finds_nothing_amiss",
            &reason,
        );
    }
    for offloads in [Offloads::Off, Offloads::InDriver] {
        let mut site = exactness::site(Lab::new(Place::new().unwrap()).unwrap(), offloads).unwrap();
        let directory = site.ground().place().pins();
        let links = pins::links(&directory).unwrap();
        assert_eq!(links.len(), if offloads == Offloads::InDriver { 3 } else { 2 }, "{links:?}");
        send(site.lab().unwrap(), 1_000);
        site.agent().unwrap().kill().unwrap();
        send(site.lab().unwrap(), 50);
        site.start_agent().unwrap();
        assert_eq!(pins::links(&directory).unwrap(), links, "{offloads:?}");
        // Told to, it looks at its programs, too, before it reads the sessions.
        let in_force = |site: &mut Site| site.agent().unwrap().printed().matches("sessions in force").count();
        let before = in_force(&mut site);
        site.agent().unwrap().signal(rustix::process::Signal::HUP).unwrap();
        wait::until("the look", Duration::from_secs(20), || {
            Ok(Seen::when(in_force(&mut site) > before, (), "not yet"))
        })
        .unwrap();
        expect_up(&mut site, 1_050, 0);
        assert_eq!(pins::links(&directory).unwrap(), links, "{offloads:?}");
        let printed = site.agent().unwrap().printed();
        let amiss = |line: &str| line.contains("ERROR") || line.contains("WARN") && line.contains("probe");
        assert!(!printed.lines().any(amiss), "{printed}");
    }
}

#[test]
fn pins_that_go_end_the_agent_with_all_told_and_the_next_one_counts() {
    on_a_kernel!("pins_that_go_end_the_agent_with_all_told_and_the_next_one_counts");
    let mut site = exactness::site(Lab::new(Place::new().unwrap()).unwrap(), Offloads::Off).unwrap();
    let pins = site.ground().place().pins();
    let mut sent = 0;
    for (arguments, what) in [("-f $0/*", "`config`, `sessions`"), ("-r $0", "the directory")] {
        send(site.lab().unwrap(), 1_000);
        let before = site.agent().unwrap().printed().len();
        process::run(process::command("sh", ["-c", &format!("rm {arguments}")]).arg(&pins)).unwrap();
        let status = site.agent().unwrap().wait(Duration::from_secs(20)).unwrap();
        let printed = site.agent().unwrap().printed().split_off(before);
        assert_eq!(status.code(), Some(1), "{printed}");
        let complaints: Vec<&str> = printed
            .lines()
            .filter(|line| line.contains("ERROR") || line.starts_with("usher-agent:"))
            .collect();
        assert!(matches!(complaints[..], [one] if one.contains(what)), "{printed}");
        // As the unit does it.
        site.start_agent().unwrap();
        send(site.lab().unwrap(), 30);
        sent += 1_030;
        expect_up(&mut site, sent, 0);
    }
}
