//! What comes through: forwarded by the kernel, queued as it leaves.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use usher_agent::probe::{Pattern, ProbeConfig, Shaping, Xdp};
use usher_agent::usage;
use usher_models::wire::{Class, Direction, Enforcement, LINE, SlotUsage};
use usher_tests::netns::{ACCESS, INTERNET, INTERNET6, Lab, Place, Side};
use usher_tests::process;

use super::{MEGABIT, classes, has_tree, limited, root, set};
use crate::on_a_kernel;
use crate::rig::{Whole, cell, net};

use Direction::{Down, Up};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward_update_priority";

/// Moves this thread into one of the laboratory's namespaces.
fn enter(lab: &Lab, side: Side) {
    let namespace = File::open(lab.namespace_file(side)).expect("there");
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
}

/// Datagrams to one address, evenly.
#[derive(Debug, Clone, Copy)]
struct Flood {
    from: (Side, &'static str),
    to: (Side, &'static str),
    bits_per_second: u64,
    payload: u64,
}

const FULL: u64 = 1_400;

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
                    send(&socket, to.into(), flood, &counted.sent, over);
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

const fn headers(to: SocketAddr) -> u64 {
    8 + if to.is_ipv4() { 20 } else { 40 }
}

fn receive(socket: &UdpSocket, received: &AtomicU64, over: &AtomicBool) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("sets");
    // What waits for this thread's turn is not lost.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, 16 << 20).expect("sets");
    let headers = headers(socket.local_addr().expect("bound"));
    let mut room = [0; 2_048];
    while !over.load(Ordering::Relaxed) {
        if let Ok(payload) = socket.recv(&mut room) {
            received.fetch_add(payload as u64 + headers, Ordering::Relaxed);
        }
    }
}

fn send(socket: &UdpSocket, to: SocketAddr, flood: &Flood, sent: &AtomicU64, over: &AtomicBool) {
    let datagram = vec![0; usize::try_from(flood.payload).expect("small")];
    let (began, bytes, mut due) = (Instant::now(), flood.payload + headers(to), 0);
    while !over.load(Ordering::Relaxed) {
        let now = u64::try_from(began.elapsed().as_micros()).expect("short");
        let wanted = now * flood.bits_per_second / 8_000_000;
        // After a long pause not all of it at once.
        due = due.max(wanted.saturating_sub(1_000_000));
        while due < wanted {
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
        shaping: Some(Shaping {
            uplinks: uplinks.iter().copied().map(Pattern::new).collect(),
            ..Shaping::default()
        }),
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

#[test]
fn each_subscriber_gets_the_rate_it_has_whatever_becomes_of_the_agent() {
    const NAME: &str = "shaping::wire::each_subscriber_gets_the_rate_it_has_whatever_becomes_of_the_agent";
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
    let flood = |to, megabits, payload| Flood {
        from: (Side::Internet, INTERNET),
        to: (Side::Subscribers, to),
        bits_per_second: megabits * MEGABIT,
        payload,
    };
    // Small ones, of which the link-layer header would be a good part.
    let floods =
        [flood("10.77.0.11", 25, 200), flood("10.77.0.12", 140, FULL), flood("10.77.0.13", 30, FULL)];
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

/// TCP as fast as it goes, for so long, to a subscriber's address.
fn download(lab: &Lab, to: &str, lasting: Duration) {
    let to = SocketAddr::new(to.parse().expect("an address"), 9_100);
    let listener = lab.within(Side::Subscribers, || Ok(TcpListener::bind(to)?)).expect("listens");
    let patience = Duration::from_secs(5);
    let connect = || Ok(TcpStream::connect_timeout(&to, patience)?);
    let mut sender = lab.within(Side::Internet, connect).expect("connects");
    let (mut receiver, _) = listener.accept().expect("is connected");
    sender.set_write_timeout(Some(patience)).expect("sets");
    receiver.set_read_timeout(Some(patience)).expect("sets");
    let until = Instant::now() + lasting;
    std::thread::scope(|scope| {
        scope.spawn(move || while Instant::now() < until && sender.write(&[1; 10_000]).is_ok() {});
        let mut room = [0; 10_000];
        while receiver.read(&mut room).is_ok_and(|bytes| bytes > 0) {}
    });
}

/// Usage is counted before it waits: of a connection that the queue holds back no more than leaves the queue, and what is lost in it.
#[test]
fn a_shaped_line_is_told_to_be_at_its_rate_where_it_is_and_not_where_it_is_well_below() {
    on_a_kernel!("a_shaped_line_is_told_to_be_at_its_rate_where_it_is_and_not_where_it_is_well_below");
    let lab = laboratory();
    let flood = |to, megabits| Flood {
        from: (Side::Internet, INTERNET),
        to: (Side::Subscribers, to),
        bits_per_second: megabits * MEGABIT,
        payload: FULL,
    };
    std::thread::scope(|scope| {
        let floods = [flood("10.77.0.12", 6), flood("10.77.0.13", 15)];
        Floods::during(&lab, &floods, |_| {
            let mut probe = Whole::load(shaping_in(&lab, &[])).expect("loads");
            for (host, slot) in [("10.77.0.11/32", 3), ("10.77.0.12/32", 4), ("10.77.0.13/32", 5)] {
                probe.bind(net(host), slot).expect("binds");
                set(&mut probe, slot, &limited(LINE, Down, 10 * MEGABIT));
            }
            scope.spawn(|| download(&lab, "10.77.0.11", Duration::from_secs(4)));
            std::thread::sleep(Duration::from_secs(1));
            for _ in 0..2 {
                let used = |slot| cell(&probe, slot, Class::Other, Down);
                let (began, before) = (Instant::now(), [3, 4, 5].map(used));
                std::thread::sleep(Duration::from_secs(1));
                let (took, after) = (began.elapsed(), [3, 4, 5].map(used));
                let told = [0, 1, 2].map(|place| {
                    let mut of = SlotUsage::default();
                    of.cells[Class::Other.index()][Down.index()] =
                        usage::difference(&after[place], &before[place]).0;
                    let enforced = limited(LINE, Down, 10 * MEGABIT);
                    usage::at_cap(&of, &enforced, Class::Other, Down, took).map(|(_, share)| share)
                });
                assert_eq!(told, [Some(1.0), Some(0.0), Some(1.0)], "TCP, well below, well above");
            }
            probe.detach().expect("detaches");
        });
    });
}

#[test]
fn what_subscribers_send_is_shaped_where_it_leaves_for_the_internet() {
    on_a_kernel!("what_subscribers_send_is_shaped_where_it_leaves_for_the_internet");
    what_subscribers_send_is_shaped(Xdp::Off);
}

#[test]
fn what_was_met_in_the_driver_is_shaped_where_it_leaves_for_the_internet() {
    on_a_kernel!("what_was_met_in_the_driver_is_shaped_where_it_leaves_for_the_internet", tcx);
    what_subscribers_send_is_shaped(Xdp::Native);
}

fn what_subscribers_send_is_shaped(xdp: Xdp) {
    let lab = laboratory();
    let flood = |from, to, megabits| Flood {
        from: (Side::Subscribers, from),
        to: (Side::Internet, to),
        bits_per_second: megabits * MEGABIT,
        payload: FULL,
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
