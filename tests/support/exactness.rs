//! The books against the wire: everything that passed the subscriber-facing interface, counted by the interface itself, is in
//! somebody's usage, nobody's, or outside of usage for a reason; to the byte and the packet.
//!
//! Real TCP, UDP and TLS over both versions of IP, several subscribers, one held to rates, one unknown; an agent that is killed
//! and sessions that move while all of it runs. Frames that the probe let through and the interface could not send, for its other
//! end was full, are in the books: the interface tells how many they were, not how long.
//!
//! With offloads on, the probe sees super-packets both ways, and the interface still counts what is on the wire: it cuts up what it
//! sends, and counts what it receives before joining it. So it does with the probe in its driver, which sees frames; what goes on is joined.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::floods::{Flood, Servers};
use crate::netns::{ACCESS, Lab, Place, Side};
use crate::nginx::{Nginx, VIDEO};
use crate::player::{Player, Stream};
use crate::process;
use crate::site::{Ground, Site, Variant};
use crate::views::Usage;
use crate::wait::{self, Seen};

/// Bytes of an Ethernet header.
const ETHERNET: u64 = 14;
/// Bytes of a frame, at the least with nothing but an IP header, and at the most.
const LEAST_FRAME: u64 = ETHERNET + 20;
const MOST_FRAME: u64 = ETHERNET + 1_500;
/// How long the floods of a run last, seconds.
const SECONDS: u32 = 4;

/// Who joins packets and who cuts them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloads {
    /// Nobody: every packet is a frame.
    Off,
    /// The probe sees super-packets: the internet's server sends them, and what subscribers send is joined on its way in.
    On,
    /// The same, and what subscribers send is met in the driver (XDP): before it is joined, and cut up by their end, whose kernel would send
    /// super-packets if it were let.
    InDriver,
}

impl Offloads {
    fn set(self, lab: &Lab) -> Result<()> {
        if self == Self::Off {
            return Ok(());
        }
        if self == Self::InDriver {
            process::run(&mut lab.inside(
                Side::Subscribers,
                "ethtool",
                ["-K", "line", "tso", "on", "gso", "on"],
            ))?;
        }
        for (side, interface, cut) in
            [(Side::Internet, "net", "on"), (Side::Gateway, "core", "on"), (Side::Gateway, ACCESS, "off")]
        {
            let words = ["-K", interface, "tso", cut, "gso", cut, "gro", "on"];
            process::run(&mut lab.inside(side, "ethtool", words))?;
        }
        Ok(())
    }

    /// Bytes of link-layer header that the subscriber-facing interface leaves out of its count of received bytes. A virtual
    /// Ethernet counts at the sender; where it joins what it receives it counts in its own poll, with the header taken off
    /// (`veth_xdp_rcv` in the kernel's drivers/net/veth.c).
    const fn uncounted_header(self) -> u64 {
        match self {
            Self::Off => 0,
            Self::On | Self::InDriver => ETHERNET,
        }
    }
}

/// Everything that went one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// Bytes of frames.
    pub bytes: u64,
    /// Frames.
    pub packets: u64,
}

/// What a run came to: up, then down.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// By the interface's own counters.
    pub passed: [Sum; 2],
    /// By the books.
    pub counted: [Sum; 2],
    /// Frames that were on their way down and that the interface could not send.
    pub lost: u64,
    /// Packets on the gateway's other side, where a super-packet is one.
    pub at_core: u64,
}

impl Outcome {
    /// Whether the books are right.
    pub fn exact(&self) -> bool {
        let ([up, down], [counted_up, counted_down]) = (self.passed, self.counted);
        let lost_bytes = self.lost * LEAST_FRAME..=self.lost * MOST_FRAME;
        up == counted_up
            && counted_down.packets == down.packets + self.lost
            && counted_down.bytes.checked_sub(down.bytes).is_some_and(|bytes| lost_bytes.contains(&bytes))
    }

    /// For people.
    pub fn shown(&self) -> String {
        let way = |name: &str, at: usize| {
            let (passed, counted) = (self.passed[at], self.counted[at]);
            format!(
                "{name} {} of {} bytes, {} of {} frames",
                counted.bytes, passed.bytes, counted.packets, passed.packets
            )
        };
        format!(
            "{}; {}, and {} frames not sent; {} packets at core",
            way("up", 0),
            way("down", 1),
            self.lost,
            self.at_core
        )
    }
}

/// Who is behind the first subscriber's IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Its own subscriber, `sub-a`.
    A,
    /// Another one, `sub-b`.
    B,
}

/// The sessions file.
pub fn sessions(behind: Behind) -> String {
    let (a, b) = match behind {
        Behind::A => ("10.77.0.11/32, ", ""),
        Behind::B => ("", "10.77.0.11/32, "),
    };
    format!(
        "sessions:
  - {{id: session-a, keys: [\"imsi:001010000000001\"], prefixes: [{a}\"fd77::11/128\"]}}
  - {{id: session-b, keys: [\"imsi:001010000000002\"], prefixes: [{b}10.77.0.12/32, \"fd77::12/128\"]}}
  - {{id: session-c, keys: [\"imsi:001010000000003\"], prefixes: [10.77.0.13/32, \"fd77::13/128\"]}}
"
    )
}

/// Three subscribers, of whom the last is held to rates on the whole line, the others on video only.
const PROFILES: &str = "plans:
  open: {settings: {video: hd, roam_pass: none}}
  basic: {settings: {line: home, video: sd, roam_pass: none}}
subscribers:
  - {id: sub-a, keys: [\"imsi:001010000000001\"], plan: open, consent: {service: false, advice: false}}
  - {id: sub-b, keys: [\"imsi:001010000000002\"], plan: open, consent: {service: false, advice: false}}
  - {id: sub-c, keys: [\"imsi:001010000000003\"], plan: basic, consent: {service: false, advice: false}}
";

/// A site with those sessions, its daemons running and the line plugged in.
pub fn site(lab: Lab, offloads: Offloads) -> Result<Site> {
    let mut site = Site::new(Ground::Lab(lab), &Variant::default())?;
    site.edit("sessions.yaml", |_| sessions(Behind::A))?;
    site.edit("profiles.yaml", |_| PROFILES.to_owned())?;
    site.edit("agent.yaml", |text| {
        let text = text.replace("home: {down: 6 Mbit/s}", "home: {up: 20 Mbit/s, down: 6 Mbit/s}");
        if offloads == Offloads::InDriver {
            text.replace("{probe: {", "{probe: {xdp: native, ")
        } else {
            text
        }
    })?;
    site.start_orchestrator()?;
    site.start_agent()?;
    let lab = site.lab()?;
    lab.connect()?;
    lab.add_device(&["10.77.0.11/24", "10.77.0.12/24", "10.77.0.13/24", "10.77.0.14/24"])?;
    lab.add_device(&["fd77::11/64", "fd77::12/64", "fd77::13/64", "fd77::14/64"])?;
    Ok(site)
}

/// Moves the address, and waits until that is in force.
pub fn move_address(site: &mut Site, behind: Behind) -> Result<()> {
    let in_force = |site: &mut Site| {
        Ok::<_, anyhow::Error>(site.agent()?.printed().matches("sessions in force").count())
    };
    let before = in_force(site)?;
    site.edit("sessions.yaml", |_| sessions(behind))?;
    wait::until("the new sessions in force", Duration::from_secs(20), || {
        site.expect_running()?;
        let now = in_force(site)?;
        Ok(Seen::when(now > before, (), format!("{now} times")))
    })
}

/// One run.
pub fn run(offloads: Offloads) -> Result<Outcome> {
    let lab = Lab::new(Place::new()?)?;
    offloads.set(&lab)?;
    let nginx = Nginx::start(&lab)?;
    let mut servers = Servers::start(&lab, 6)?;
    let mut site = site(lab, offloads)?;
    let outcome = load(&mut site, &nginx, &mut servers).and_then(|()| reconcile(&mut site, offloads));
    outcome.map_err(|error| error.context(site.last_words()))
}

/// Everything at once.
fn load(site: &mut Site, nginx: &Nginx, servers: &mut Servers) -> Result<()> {
    let tcp = |subscriber, down| Flood { subscriber, down, udp: None, seconds: SECONDS };
    let udp = |subscriber, down, megabits: u64, bytes| Flood {
        udp: Some((megabits * 1_000_000, bytes)),
        ..tcp(subscriber, down)
    };
    let floods = [
        tcp("10.77.0.11", true),
        tcp("fd77::11", false),
        udp("10.77.0.12", false, 200, 1_200),
        udp("10.77.0.14", true, 150, 700),
        // Held to a rate, either way.
        tcp("fd77::13", true),
        udp("10.77.0.13", false, 40, 1_000),
    ];
    let lab = site.lab()?;
    let mut running = Vec::new();
    for (server, flood) in (0..).zip(floods) {
        running.push(servers.flood(lab, server, flood)?);
    }
    let stream = Stream { from: "fd77::12", name: VIDEO, segments: "large" };
    let player = Player::start(lab, nginx.authority(), stream)?;
    move_address(site, Behind::B)?;
    site.replace_agent()?;
    move_address(site, Behind::A)?;
    for flood in running {
        flood.end(Duration::from_mins(1))?;
    }
    drop(player);
    Ok(())
}

/// Takes the line down and compares.
fn reconcile(site: &mut Site, offloads: Offloads) -> Result<Outcome> {
    let lab = site.lab()?;
    lab.disconnect()?;
    let (counters, core) = (lab.access_counters()?, lab.counters("core")?);
    let received = counters.rx_bytes + offloads.uncounted_header() * counters.rx_packets;
    let passed = [
        Sum { bytes: received, packets: counters.rx_packets },
        Sum { bytes: counters.tx_bytes, packets: counters.tx_packets },
    ];
    let mut outcome = Outcome {
        passed,
        counted: Default::default(),
        lost: counters.tx_dropped,
        at_core: core.rx_packets + core.tx_packets,
    };
    let settled = wait::until("the books equal to the wire", Duration::from_secs(20), || {
        site.expect_running()?;
        outcome.counted = counted(site)?;
        Ok(Seen::when(outcome.exact(), (), outcome.shown()))
    });
    // What is still not equal then is the outcome.
    if settled.is_err() {
        ensure!(outcome.counted != [Sum::default(); 2], "nothing was counted: {}", site.last_words());
    }
    Ok(outcome)
}

/// Everything that was told, as frames.
fn counted(site: &Site) -> Result<[Sum; 2]> {
    let usage = site.usage()?;
    let outside = site.outside_usage_by_direction()?;
    let mut sums = outside.map(|(bytes, packets)| Sum { bytes, packets });
    for (sum, direction) in sums.iter_mut().zip(["up", "down"]) {
        for row in usage.iter().filter(|row| row.direction == direction) {
            // What is held back on its way down never reaches the interface; on its way up it already has.
            let Usage { bytes, packets, dropped_bytes, dropped_packets, .. } = row;
            let held = if direction == "up" { (*dropped_bytes, *dropped_packets) } else { (0, 0) };
            sum.bytes += bytes + held.0 + ETHERNET * (packets + held.1);
            sum.packets += packets + held.1;
        }
    }
    Ok(sums)
}
