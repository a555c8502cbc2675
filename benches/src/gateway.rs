//! A gateway for benches that need the probe and not the agent: the laboratory, with the probe loaded in it or not.

use anyhow::{Context as _, Result};
use usher_agent::probe::{Flows, Probe, ProbeConfig, Shaping};
use usher_tests::netns::{ACCESS, Lab, Side};
use usher_tests::process;

/// The laboratory's gateway.
#[derive(Debug)]
pub struct Gateway {
    lab: Lab,
}

impl Gateway {
    /// That of a laboratory.
    pub fn of(lab: Lab) -> Self {
        Self { lab }
    }

    /// The laboratory.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Loads the probe on the subscriber-facing interface, with rates kept as told.
    pub fn probe(&self, shaping: Option<Shaping>) -> Result<(Probe, Flows)> {
        let config = ProbeConfig { pin_dir: self.lab.place().pins(), shaping, ..ProbeConfig::new(ACCESS) };
        self.lab.within(Side::Gateway, || Probe::load(config).context("load the probe"))
    }

    /// Segmentation and joining of packets, everywhere, on or off; and the size of a frame's payload.
    pub fn links(&self, offloads: bool, mtu: u32) -> Result<()> {
        let state = if offloads { "on" } else { "off" };
        for (side, interface) in [
            (Side::Subscribers, "line"),
            (Side::Gateway, ACCESS),
            (Side::Gateway, "core"),
            (Side::Internet, "net"),
        ] {
            let words = ["-K", interface, "tso", state, "gso", state, "gro", state];
            process::run(&mut self.lab.inside(side, "ethtool", words))?;
            let mtu = mtu.to_string();
            process::run(&mut self.lab.inside(side, "ip", ["link", "set", interface, "mtu", &mtu]))?;
        }
        Ok(())
    }
}
