//! Sets the story's stage: in the laboratory with the probe, or on loopback with the recording.

use anyhow::{Context as _, Result};

use crate::netns::{Lab, Place};
use crate::packets::{self, Packets};
use crate::report::Report;
use crate::scenario::Story;
use crate::site::{Ground, Site, Variant};

/// Three namespaces, the probe on the subscriber-facing interface, a real NETCONF device.
pub fn in_lab(report: Report) -> Result<Story> {
    let lab = Lab::new(Place::new()?).context("make the network")?;
    let packets = Packets::live(&lab)?;
    report.note("three namespaces, a TLS server");
    let ground = Ground::Lab(lab);
    let site = Site::new(ground, &Variant::default())?;
    Story::new(site, packets, None, report)
}

/// Everything on this machine's loopback, packets from the recording, the gateway element in dry-run.
pub fn on_loopback(report: Report) -> Result<Story> {
    let place = Place::new()?;
    let file = packets::recording(place.folder())?;
    report.note("packets come from tests/demo/demo.pcap.gz, the gateway element is in dry-run");
    let variant = Variant { capture: Some(file.clone()), ..Variant::default() };
    let site = Site::new(Ground::Loopback(place), &variant)?;
    Story::new(site, Packets::Recorded(file), None, report)
}
