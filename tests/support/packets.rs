//! Where the story's packets come from: real players in the laboratory, or the recording of such a run.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::netns::Lab;
use crate::nginx::{Nginx, PAGES, VIDEO};
use crate::player::{Player, Stream};
use crate::process;
use crate::site::Site;
use crate::wait::{self, Seen};

/// One of the three people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Streams video.
    A,
    /// Comes from abroad and browses.
    B,
    /// Streams video over IPv6 and wants to be left alone.
    C,
}

impl Who {
    /// The subscriber's id in the demo's profiles.
    pub const fn subscriber(self) -> &'static str {
        match self {
            Self::A => "sub-a",
            Self::B => "sub-b",
            Self::C => "sub-c",
        }
    }

    const fn addresses(self) -> &'static [&'static str] {
        match self {
            Self::A => &["10.77.0.11/24", "fd77::11/64"],
            Self::B => &["10.77.0.12/24"],
            Self::C => &["10.77.0.13/24", "fd77::13/64"],
        }
    }

    const fn stream(self) -> Stream<'static> {
        match self {
            Self::A => Stream { from: "10.77.0.11", name: VIDEO, segments: "large" },
            Self::B => Stream { from: "10.77.0.12", name: PAGES, segments: "small" },
            Self::C => Stream { from: "fd77::13", name: VIDEO, segments: "large" },
        }
    }
}

/// Where packets come from.
#[derive(Debug)]
pub enum Packets {
    /// From people with real clients.
    Live {
        /// What they use.
        players: Vec<(Who, Player)>,
        /// Whom they use it from.
        nginx: Nginx,
    },
    /// From a recording of them, played by the agent itself.
    Recorded(PathBuf),
}

impl Packets {
    /// Real ones.
    pub fn live(lab: &Lab) -> Result<Self> {
        Ok(Self::Live { players: Vec::new(), nginx: Nginx::start(lab)? })
    }

    /// A person's device appears on the line.
    pub fn appear(&self, site: &Site, who: Who) -> Result<()> {
        match self {
            Self::Live { .. } => site.lab()?.add_device(who.addresses()),
            Self::Recorded(_) => Ok(()),
        }
    }

    /// A person starts to fetch, segment after segment.
    pub fn fetch(&mut self, site: &Site, who: Who) -> Result<()> {
        if let Self::Live { players, nginx } = self {
            players.push((who, Player::start(site.lab()?, nginx.authority(), who.stream())?));
        }
        Ok(())
    }

    /// What a person measures over `segments` segments asked for after `since`, in bits per second. A recording tells it
    /// by what the orchestrator was told, and is waited for until it comes to the part that is `expected`.
    pub fn rate(
        &mut self,
        site: &Site,
        who: Who,
        (since, segments): (Instant, usize),
        expected: RangeInclusive<u64>,
    ) -> Result<u64> {
        match self {
            Self::Live { players, .. } => {
                let (_, player) =
                    players.iter_mut().find(|(whose, _)| *whose == who).context("nobody fetches")?;
                player.rate((since, segments), &expected, Duration::from_secs(15)).with_context(|| {
                    format!("{who:?} is to measure {} to {} bit/s", expected.start(), expected.end())
                })
            }
            Self::Recorded(_) => recorded_rate(site, who, &expected),
        }
    }

    /// Everyone puts the device away, and the line is taken down; gives the bytes of all frames that passed, by the
    /// interface's own counters, or by the lengths in the recording.
    pub fn end(&mut self, site: &Site) -> Result<u64> {
        match self {
            Self::Live { players, .. } => {
                players.clear();
                let lab = site.lab()?;
                lab.disconnect()?;
                let counters = lab.access_counters()?;
                Ok(counters.rx_bytes + counters.tx_bytes)
            }
            Self::Recorded(file) => frame_bytes(file),
        }
    }
}

/// The rate of what reached a subscriber, over three seconds, once it is as `expected`.
fn recorded_rate(site: &Site, who: Who, expected: &RangeInclusive<u64>) -> Result<u64> {
    const OVER: Duration = Duration::from_millis(2_900);
    let mut seen: Vec<(Instant, u64)> = Vec::new();
    wait::until(&format!("the expected rate of {who:?}"), Duration::from_mins(1), || {
        let bytes = site
            .usage()?
            .iter()
            .filter(|row| row.subscriber.as_deref() == Some(who.subscriber()) && row.direction == "down")
            .map(|row| row.bytes)
            .sum::<u64>();
        if seen.last().is_none_or(|(_, last)| *last != bytes) {
            seen.push((Instant::now(), bytes));
        }
        let Some((last, bytes)) = seen.last().copied() else { return Ok(Seen::NotYet("nothing".to_owned())) };
        let Some((first, before)) = seen.iter().rev().find(|(at, _)| last - *at >= OVER).copied() else {
            return Ok(Seen::NotYet(format!("{bytes} bytes")));
        };
        let micros = (last - first).as_micros();
        let rate = u64::try_from(u128::from(bytes - before) * 8_000_000 / micros)?;
        Ok(Seen::when(expected.contains(&rate), rate, format!("{rate} bit/s")))
    })
}

/// The lengths of all frames in a capture file, on the wire.
pub fn frame_bytes(file: &Path) -> Result<u64> {
    let mut capture = pcap::Capture::from_file(file).with_context(|| format!("open {}", file.display()))?;
    let mut bytes = 0;
    loop {
        match capture.next_packet() {
            Ok(packet) => bytes += u64::from(packet.header.len),
            Err(pcap::Error::NoMorePackets) => return Ok(bytes),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        }
    }
}

/// The recording in this repository, unpacked into `folder`.
pub fn recording(folder: &Path) -> Result<PathBuf> {
    let packed = folder.join("demo.pcap.gz");
    std::fs::write(&packed, include_bytes!("../demo/demo.pcap.gz"))?;
    unpack(&packed)
}

/// A capture file without a packet, in `folder`.
pub fn silence(folder: &Path) -> Result<PathBuf> {
    let file = folder.join("silence.pcap");
    pcap::Capture::dead(pcap::Linktype::ETHERNET)?.savefile(&file)?.flush()?;
    Ok(file)
}

/// Unpacks `FILE.gz` to `FILE` beside it.
pub fn unpack(packed: &Path) -> Result<PathBuf> {
    process::run(&mut process::command("gzip", ["-d", "-f", &packed.to_string_lossy()]))?;
    Ok(packed.with_extension(""))
}
