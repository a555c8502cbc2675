//! The load: new flows at a steady rate, sent as frames on the subscribers' line; and the watch over some of them.
//!
//! Of every [`WATCHED`]th flow the time is taken just before its deciding packet is sent, and its entry in the probe's
//! flow table is looked at every [`LOOK`] until the verdict stands there. What is measured so is never less than
//! the truth: it has the sending, the way to the probe and up to one look more in it. Sender and witness stand for other
//! machines and a stopwatch, so that CPU time is reserved for them where the kernel allows it ([`reserve`]).

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use thread_priority::ThreadPriority;
use thread_priority::unix::{
    DeadlineFlags, RealtimeThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy,
};
use usher_models::wire::Class;

use crate::frames::{Ends, Kind, NAMES, openings};
use crate::maps::{self, Flows};

const WATCHED: u64 = 32;
const LOOK: Duration = Duration::from_micros(100);
/// After this long no verdict comes any more.
const PATIENCE: Duration = Duration::from_secs(3);
/// The load's subscribers have addresses from here on.
pub(crate) const FIRST: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// Servers of the load: benchmarking addresses (RFC 2544), of no prefix that the catalogue knows.
const SERVERS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const FIRST_PORT: u16 = 2_048;

/// What to send.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) interface: String,
    /// Of the line and of the gateway behind it.
    pub(crate) macs: [[u8; 6]; 2],
    pub(crate) pins: PathBuf,
    pub(crate) subscribers: u32,
    pub(crate) flows_per_second: u32,
    pub(crate) seconds: u32,
}

/// What was sent, and what became of the watched flows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) flows: u64,
    pub(crate) frames: u64,
    pub(crate) seconds: f64,
    /// Flows of any kind by class, in the order of [`Class::ALL`].
    pub(crate) by_class: [u64; Class::COUNT],
    /// Watched flows that got no verdict, and those that got a wrong one.
    pub(crate) unnamed: u64,
    pub(crate) wrong: u64,
    /// Milliseconds to the verdict, sorted.
    pub(crate) verdict_ms: Vec<f64>,
}

/// A flow whose deciding packet was sent.
struct Watched {
    key: usher_models::wire::FlowKey,
    class: Class,
    sent: Instant,
}

/// Sends it.
pub(crate) async fn generate(task: &Task) -> Result<Sent> {
    let mut openings = openings(task.macs).await?;
    let mut line = pcap::Capture::from_device(task.interface.as_str())?.snaplen(64).open()?;
    // It only sends: nothing of what comes in is to be kept for it.
    line.filter("less 1", true)?;
    let flows = Flows::open(&task.pins)?;
    let (watch, watched) = channel();
    let witness = std::thread::spawn(move || {
        reserve(Duration::from_micros(60), Duration::from_micros(300));
        witness(&flows, &watched)
    });
    reserve(Duration::from_millis(1), Duration::from_millis(2));
    let mut sent = Sent {
        flows: 0,
        frames: 0,
        seconds: 0.0,
        by_class: [0; Class::COUNT],
        unnamed: 0,
        wrong: 0,
        verdict_ms: vec![],
    };
    let began = Instant::now();
    let duration = Duration::from_secs(u64::from(task.seconds));
    while began.elapsed() < duration {
        let due = began.elapsed().as_micros() * u128::from(task.flows_per_second) / 1_000_000;
        while u128::from(sent.flows) < due {
            send(&mut line, &mut openings, task, &mut sent, &watch)?;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    sent.seconds = began.elapsed().as_secs_f64();
    drop(watch);
    let (mut latencies, unnamed, wrong) = witness.join().map_err(|_| anyhow::anyhow!("the witness died"))?;
    latencies.sort_unstable();
    sent.verdict_ms = latencies.into_iter().map(|latency| latency.as_secs_f64() * 1e3).collect();
    (sent.unnamed, sent.wrong) = (unnamed, wrong);
    Ok(sent)
}

fn send(
    line: &mut pcap::Capture<pcap::Active>,
    openings: &mut [crate::frames::Opening],
    task: &Task,
    sent: &mut Sent,
    watch: &Sender<Watched>,
) -> Result<()> {
    let number = sent.flows;
    let places = openings.len() as u64;
    let opening = &mut openings[usize::try_from(number % places)?];
    let subscriber = u32::try_from(number % u64::from(task.subscribers))?;
    let round = number / u64::from(task.subscribers) % u64::from(u16::MAX - FIRST_PORT);
    let ends = Ends {
        subscriber: Ipv4Addr::from_bits(FIRST.to_bits() + subscriber),
        subscriber_port: FIRST_PORT + u16::try_from(round)?,
        remote: Ipv4Addr::from_bits(SERVERS.to_bits() + 1 + u32::try_from(number * 7 % 100_000)?),
    };
    let (kind, class) = (opening.kind, opening.class);
    let key = maps::key(
        (ends.subscriber, ends.subscriber_port),
        (ends.remote, opening.remote_port),
        opening.protocol,
    );
    let mut at = Instant::now();
    let is_watched = number.is_multiple_of(WATCHED) && kind != Kind::Dns;
    for frame in opening.frames(ends) {
        if is_watched {
            at = Instant::now();
        }
        line.sendpacket(frame).context("send a frame")?;
        sent.frames += 1;
    }
    sent.flows += 1;
    sent.by_class[class.index()] += 1;
    if is_watched {
        watch.send(Watched { key, class, sent: at }).context("the witness is gone")?;
    }
    Ok(())
}

/// Looks after the watched flows until there are no more. Gives how long each took, how many got no verdict and how many
/// a wrong one.
fn witness(flows: &Flows, watched: &Receiver<Watched>) -> (Vec<Duration>, u64, u64) {
    let mut pending: Vec<Watched> = Vec::new();
    let (mut latencies, mut unnamed, mut wrong) = (Vec::new(), 0, 0);
    loop {
        if pending.is_empty() {
            match watched.recv() {
                Ok(next) => pending.push(next),
                Err(_) => return (latencies, unnamed, wrong),
            }
        }
        pending.extend(watched.try_iter());
        pending.retain(|flow| {
            let verdict = flows.verdict(&flow.key);
            let took = flow.sent.elapsed();
            match verdict {
                Some(class) => {
                    latencies.push(took);
                    wrong += u64::from(class != flow.class);
                    false
                }
                None if took > PATIENCE => {
                    unnamed += 1;
                    false
                }
                None => true,
            }
        });
        std::thread::sleep(LOOK);
    }
}

/// Reserves CPU time for the calling thread: `share` of every `period`.
fn reserve(share: Duration, period: Duration) {
    let priority = ThreadPriority::Deadline {
        runtime: share,
        deadline: period,
        period,
        flags: DeadlineFlags::RESET_ON_FORK,
    };
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Deadline);
    if set_thread_priority_and_policy(0, priority, policy).is_err() {
        // On stderr: on stdout stands what was measured.
        usher_tests::process::say(
            "no CPU time could be reserved for the load: what it measures has its own delays in it",
        );
    }
}

/// How many names the load asks for, for the reader of its report.
pub(crate) const fn names() -> usize {
    NAMES.len()
}
