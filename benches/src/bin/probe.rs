//! What the probe costs a packet: the programs themselves under BPF_PROG_TEST_RUN, beside one that does nothing.
//!
//! Needs root. The flow is warm: known, named, its subscriber bound. All runs are interleaved, so that the machine's moods
//! meet them alike.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use usher_agent::probe::{Probe, ProbeConfig, Trial};
use usher_benches::{Case, Report, median, say};
use usher_models::wire::{Class, Direction, Enforcement, FlowKey, LINE, Rate};

const ROUNDS: usize = 15;
const REPEAT: u32 = 400_000;
/// The frame of the comparisons in the architecture: 128 bytes of TCP.
const FRAME_BYTES: usize = 128;
const SLOT: u32 = 1;

fn main() -> anyhow::Result<()> {
    let interface = Interface::make()?;
    let mut probe = Probe::load(ProbeConfig {
        pin_dir: format!("/sys/fs/bpf/{}", interface.name).into(),
        ..ProbeConfig::new(&interface.name)
    })?;
    let measured = measure(&mut probe);
    probe.detach()?;
    measured?.finish()?;
    Ok(())
}

fn measure(probe: &mut Probe) -> anyhow::Result<Report> {
    let frame = frame();
    let down = Trial { repeat: REPEAT, ..Trial::once(Direction::Down, &frame) };
    let nothing = Trial { direction: None, ..down };
    probe.bind("10.0.0.2/32".parse()?, SLOT)?;
    probe.trial(&Trial { repeat: 1, ..down })?;
    ensure!(probe.name_flow(&flow(), Class::Video, false)?, "the flow is not known after a packet of it");

    // So fast that nothing is held back: what is measured is the bucket, not a drop.
    let fast = Rate::per_second(1_000_000_000_000, 0);
    let free = Enforcement::default();
    let class = free.with_rate(Class::Video.index(), Direction::Down, fast);
    let both = class.with_rate(LINE, Direction::Down, fast);
    let cases =
        [("a warm packet", free), ("with its class's rate", class), ("with the line's rate too", both)];

    let mut empty = Vec::new();
    let mut taken: [Vec<Duration>; 3] = Default::default();
    for _ in 0..ROUNDS {
        empty.push(probe.trial(&nothing)?.duration);
        for ((_, enforcement), taken) in cases.iter().zip(&mut taken) {
            probe.enforce(SLOT, enforcement)?;
            taken.push(probe.trial(&down)?.duration);
        }
    }
    let empty = nanoseconds(median(empty));
    let mut report = Report::new("probe");
    for ((name, _), taken) in cases.iter().zip(taken) {
        report.add(Case::new(*name, nanoseconds(median(taken)), "ns", "an empty program", empty));
    }
    say(&format!("{FRAME_BYTES}-byte TCP frame, one flow, median of {ROUNDS} x {REPEAT} runs"));
    Ok(report)
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

/// A segment from a server to the subscriber.
fn frame() -> Vec<u8> {
    let ip_bytes = u16::try_from(FRAME_BYTES - 14).unwrap_or(u16::MAX).to_be_bytes();
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    frame.extend([0x45, 0, ip_bytes[0], ip_bytes[1], 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend([198, 51, 100, 7, 10, 0, 0, 2]);
    frame.extend([0x01, 0xbb, 0x0f, 0xa0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(FRAME_BYTES, 0);
    frame
}

fn flow() -> FlowKey {
    let mapped =
        |last: [u8; 4]| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, last[0], last[1], last[2], last[3]];
    FlowKey {
        subscriber: mapped([10, 0, 0, 2]),
        remote: mapped([198, 51, 100, 7]),
        subscriber_port: 4_000,
        remote_port: 443,
        protocol: 6,
        zero: [0; 3],
    }
}

/// A pair of interfaces nobody sends through. Gone when dropped.
struct Interface {
    name: String,
}

impl Interface {
    fn make() -> anyhow::Result<Self> {
        let name = format!("ub{}", std::process::id());
        let peer = format!("uc{}", std::process::id());
        ip(&["link", "add", &name, "type", "veth", "peer", "name", &peer])?;
        Ok(Self { name })
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // Nothing is left to do about it where this fails.
        let _ = ip(&["link", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("ip").args(arguments).status().context("run `ip` (Debian: iproute2)")?;
    ensure!(status.success(), "`ip {}` failed: this bench needs root", arguments.join(" "));
    Ok(())
}
