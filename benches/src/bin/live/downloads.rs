//! Downloads of several megabytes, each the only flow of its subscriber, and how their first megabytes were counted.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use usher_models::wire::Class;
use usher_tests::netns::{INTERNET, Lab, Side};
use usher_tests::nginx::{PAGES, VIDEO};
use usher_tests::process;

use crate::maps::Usage;
use crate::quic;

/// Names of known classes, in turns.
pub(crate) const NAMES: [(&str, Class); 2] = [(VIDEO, Class::Video), (PAGES, Class::Web)];
/// Downloads of each kind and phase.
const EACH: usize = 40;
/// With load and without.
const PHASES: usize = 2;
/// Segments of 250 kB that a download over TLS fetches, on one connection.
const SEGMENTS: usize = 16;
const QUIC_BYTES: usize = 4_000_000;
const MEGABYTE: u64 = 1_000_000;
/// Of the first megabyte, what may be counted in another class.
const TOLERATED: u64 = MEGABYTE / 20;
/// curl at a time.
const AT_ONCE: usize = 3;

/// The address of a downloading subscriber.
pub(crate) fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 0, 11).to_bits() + u32::try_from(number).unwrap_or_default())
}

/// All of them.
pub(crate) fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    (0..EACH * 2 * PHASES).map(address)
}

/// What the QUIC server serves, or its client fetches.
pub(crate) fn quic_task(certificates: &Path, fetches: Vec<(Ipv4Addr, String)>, every_ms: u64) -> quic::Task {
    let server = INTERNET.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
    quic::Task { certificates: certificates.to_owned(), server, fetches, bytes: QUIC_BYTES, every_ms }
}

/// How the first megabytes were counted.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct FirstMegabyte {
    /// Share of right flows.
    #[serde(rename = "first_megabyte_right")]
    pub(crate) flows_right: f64,
    /// Share of right bytes.
    #[serde(rename = "first_megabyte_bytes_right")]
    pub(crate) bytes_right: f64,
    pub(crate) tls: Counted,
    pub(crate) quic: Counted,
}

/// Flows of one kind.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Counted {
    pub(crate) flows: usize,
    /// With 95 % or more of the first megabyte in the right class.
    pub(crate) right: usize,
    /// Whose verdict stood before the first megabyte had passed.
    pub(crate) in_time: usize,
    /// Bytes counted in other classes: the most of any flow, and all.
    pub(crate) most_before: u64,
    pub(crate) before: u64,
}

/// The downloads of one phase.
pub(crate) struct Downloads<'a> {
    lab: &'a Lab,
    authority: PathBuf,
    first: usize,
}

impl<'a> Downloads<'a> {
    pub(crate) fn new(lab: &'a Lab, authority: &Path, phase: usize) -> Self {
        Self { lab, authority: authority.to_owned(), first: phase * EACH * 2 }
    }

    fn tls(&self) -> impl Iterator<Item = (Ipv4Addr, (&'static str, Class))> {
        let first = self.first;
        (0..EACH).map(move |number| (address(first + number), NAMES[number % NAMES.len()]))
    }

    fn quic(&self) -> impl Iterator<Item = (Ipv4Addr, (&'static str, Class))> {
        let first = self.first + EACH;
        (0..EACH).map(move |number| (address(first + number), NAMES[number % NAMES.len()]))
    }

    /// Fetches all, spread over `duration`.
    pub(crate) fn fetch(&self, duration: Duration) -> Result<()> {
        let every = duration.mul_f64(0.85) / u32::try_from(EACH)?;
        let certificates = self.lab.place().folder().join("pki");
        let fetches = self.quic().map(|(address, (name, _))| (address, name.to_owned())).collect();
        let task = quic_task(&certificates, fetches, u64::try_from(every.as_millis())?);
        let task = serde_json::to_string(&task)?;
        let mut quic = crate::role(self.lab, Side::Subscribers, "quic-fetch", &task)?;
        let began = Instant::now();
        std::thread::scope(|scope| {
            let quic = scope.spawn(move || process::run(&mut quic));
            let workers: Vec<_> = (0..AT_ONCE)
                .map(|worker| {
                    scope.spawn(move || {
                        let turns = self.tls().enumerate();
                        for (turn, (address, (name, _))) in turns.skip(worker).step_by(AT_ONCE) {
                            let due = every * u32::try_from(turn)?;
                            std::thread::sleep(due.saturating_sub(began.elapsed()));
                            self.curl(address, name)?;
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            for worker in workers {
                worker.join().map_err(|_| anyhow::anyhow!("a download died"))??;
            }
            quic.join().map_err(|_| anyhow::anyhow!("the QUIC downloads died"))?.context("fetch over QUIC")
        })?;
        Ok(())
    }

    fn curl(&self, from: Ipv4Addr, name: &str) -> Result<()> {
        let authority = self.authority.to_string_lossy().into_owned();
        let (from, resolve) = (from.to_string(), format!("{name}:443:{INTERNET}"));
        let url = format!("https://{name}/large/[1-{SEGMENTS}]");
        let words = ["-sS", "--fail", "--http1.1", "--max-time", "60", "--interface", &from, "--resolve"];
        let rest = [resolve.as_str(), "--cacert", &authority, "--output", "/dev/null", &url];
        process::run(&mut self.lab.inside(Side::Subscribers, "curl", words.into_iter().chain(rest))).map(drop)
    }

    /// How the downloads were counted, once all are done.
    pub(crate) fn first_megabyte(&self) -> Result<FirstMegabyte> {
        let usage = Usage::open(&self.lab.place().pins())?;
        let tls = right(&usage, self.tls())?;
        let quic = right(&usage, self.quic())?;
        let flows = tls.flows + quic.flows;
        let before: u64 =
            tls.before.min(MEGABYTE * tls.flows as u64) + quic.before.min(MEGABYTE * quic.flows as u64);
        Ok(FirstMegabyte {
            flows_right: ratio(tls.right + quic.right, flows),
            bytes_right: 1.0 - ratio(usize::try_from(before)?, flows * usize::try_from(MEGABYTE)?),
            tls,
            quic,
        })
    }
}

fn right(usage: &Usage, flows: impl Iterator<Item = (Ipv4Addr, (&'static str, Class))>) -> Result<Counted> {
    let mut sum = Counted::default();
    for (address, (_, class)) in flows {
        let by_class = usage.of(address)?;
        let all: u64 = by_class.iter().sum();
        ensure!(all > 3 * MEGABYTE, "{address} downloaded {all} bytes only");
        let before = all - by_class[class.index()];
        sum.flows += 1;
        sum.right += usize::from(before <= TOLERATED);
        sum.in_time += usize::from(before < MEGABYTE);
        sum.most_before = sum.most_before.max(before);
        sum.before += before.min(MEGABYTE);
    }
    Ok(sum)
}

#[expect(clippy::cast_precision_loss, reason = "a figure to print")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}
