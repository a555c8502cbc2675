//! As much traffic as the machine carries: iperf3 between the laboratory's subscribers and its internet, TCP or UDP, either way.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::netns::{INTERNET, INTERNET6, Lab, Side};
use crate::process::{self, Running};
use crate::wait::{self, Seen};

/// The first server's port; the others have the next ones.
const FIRST_PORT: u16 = 5_201;

/// Why iperf3 cannot be used here; `None`: it can.
pub fn why_not() -> Option<String> {
    (!process::installed("iperf3"))
        .then(|| "iperf3 is not installed (scripts/install.sh installs it)".to_owned())
}

/// iperf3's servers in the internet, each for one flood at a time.
#[derive(Debug)]
pub struct Servers {
    running: Vec<Running>,
    started: u32,
}

/// One flood.
#[derive(Debug, Clone, Copy)]
pub struct Flood<'a> {
    /// The subscriber's address.
    pub subscriber: &'a str,
    /// Whether it goes to the subscriber.
    pub down: bool,
    /// UDP of so many bits a second in datagrams of so many bytes; `None`: TCP, as fast as it goes.
    pub udp: Option<(u64, u16)>,
    /// For so long.
    pub seconds: u32,
}

/// A flood that is running.
#[derive(Debug)]
pub struct Flooding(Running);

impl Servers {
    /// Starts so many and waits until they listen.
    pub fn start(lab: &Lab, count: u16) -> Result<Self> {
        let mut running = Vec::new();
        for port in (FIRST_PORT..).take(count.into()) {
            let words = ["--server", "--forceflush", "--port", &port.to_string()];
            let server = lab.inside(Side::Internet, "iperf3", words);
            running.push(Running::start(&format!("iperf3-{port}"), server, lab.place().folder())?);
        }
        wait::until("iperf3 listening", Duration::from_secs(10), || {
            let listening =
                running.iter().filter(|server| server.printed().contains("Server listening")).count();
            Ok(Seen::when(listening == running.len(), (), format!("{listening} of {}", running.len())))
        })?;
        Ok(Self { running, started: 0 })
    }

    /// Waits until one of the servers, by its number, has ended the flood before too: until then it takes no other.
    pub fn wait_for(&self, server: u16) -> Result<()> {
        let running = self.running.get(usize::from(server)).context("no such server")?;
        wait::until("an iperf3 server at rest", Duration::from_secs(30), || {
            let printed = running.printed();
            let listens = printed.rfind("Server listening") > printed.rfind("Accepted connection");
            Ok(Seen::when(listens, (), "it is busy".to_owned()))
        })
    }

    /// Starts a flood against one of the servers, by its number.
    pub fn flood(&mut self, lab: &Lab, server: u16, flood: Flood<'_>) -> Result<Flooding> {
        let running = self.running.get_mut(usize::from(server)).context("no such server")?;
        running.expect_running()?;
        let mut words = vec![
            "--client".to_owned(),
            if flood.subscriber.contains(':') { INTERNET6 } else { INTERNET }.to_owned(),
            "--bind".to_owned(),
            flood.subscriber.to_owned(),
            "--port".to_owned(),
            (FIRST_PORT + server).to_string(),
            "--time".to_owned(),
            flood.seconds.to_string(),
            "--json".to_owned(),
        ];
        if flood.down {
            words.push("--reverse".to_owned());
        }
        if let Some((bits, bytes)) = flood.udp {
            let udp =
                ["--udp", "--bitrate", &bits.to_string(), "--length", &bytes.to_string()].map(str::to_owned);
            words.extend(udp);
        } else {
            // Less than a virtual line holds: its far end is seldom full.
            words.extend(["--window", "256K"].map(str::to_owned));
        }
        self.started += 1;
        let client = lab.inside(Side::Subscribers, "iperf3", words.iter().map(String::as_str));
        Running::start(&format!("flood-{}", self.started), client, lab.place().folder()).map(Flooding)
    }
}

impl Flooding {
    /// Waits for its end; gives the payload that arrived, in bits a second. A flood of which the last word was lost, for it was drowned, is
    /// an error.
    pub fn end(mut self, within: Duration) -> Result<f64> {
        let status: ExitStatus = self.0.wait(within)?;
        let printed = self.0.printed();
        ensure!(status.success(), "iperf3 ended with {status}: {printed}");
        let told: Value = serde_json::from_str(&printed).context("read what iperf3 printed")?;
        let end = &told["end"];
        let received = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
        received["bits_per_second"].as_f64().with_context(|| format!("iperf3 told no rate: {printed}"))
    }
}
