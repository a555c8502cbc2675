//! Sets the story's stage: in the laboratory with the probe, or on loopback with the recording.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::netconfd::{self, NetconfServer};
use crate::netns::{Lab, Place, Side};
use crate::packets::{self, Packets};
use crate::report::Report;
use crate::scenario::{Device, Story};
use crate::site::{Ground, Site, Variant};

/// What the device's payloads are, as an operator would copy it.
const TEMPLATE: &str = include_str!("../../orchestrator/templates/usher-subscriber-services.yaml");

impl Device for NetconfServer {
    fn video(&self, subscriber: &str) -> Result<Option<String>> {
        self.video_quality(subscriber)
    }
}

/// Three namespaces, the probe on the subscriber-facing interface, a real NETCONF device.
pub fn in_lab(report: Report) -> Result<Story> {
    let lab = Lab::new(Place::new()?).context("make the network")?;
    let packets = Packets::live(&lab)?;
    report.note("three namespaces, a TLS server");
    let device = match netconfd::why_not() {
        None => Some(device(lab.place().folder(), Some(lab.namespace_file(Side::Gateway)))?),
        Some(reason) => left_out(&report, &reason),
    };
    set(Ground::Lab(lab), packets, device, report)
}

/// Everything on this machine's loopback, packets from the recording, the gateway element in dry-run.
pub fn on_loopback(report: Report) -> Result<Story> {
    let place = Place::new()?;
    let file = packets::recording(place.folder())?;
    report.note("packets come from tests/demo/demo.pcap.gz, the gateway element is in dry-run");
    // An ordinary user may have no shell, or be locked out of sshd for other reasons: the loop closes without it too.
    let device = match device(place.folder(), None) {
        Ok(device) => Some(device),
        Err(error) => left_out(&report, &format!("{error:#}")),
    };
    set(Ground::Loopback(place), Packets::Recorded(file), device, report)
}

fn left_out(report: &Report, reason: &str) -> Option<NetconfServer> {
    report.note(&format!("left out, no NETCONF device can be had here: {reason}"));
    None
}

fn set(ground: Ground, packets: Packets, device: Option<NetconfServer>, report: Report) -> Result<Story> {
    let mut variant = Variant::default();
    if let Packets::Recorded(file) = &packets {
        variant.capture = Some(file.clone());
    }
    if let Some(device) = &device {
        report.note("a NETCONF device: netconfd behind OpenSSH");
        variant.elements = elements(device);
    }
    let site = Site::new(ground, &variant)?;
    let device = device.map(|device| Box::new(device) as Box<dyn Device>);
    Story::new(site, packets, device, report)
}

/// A device that can be logged in to.
pub fn device(parent: &Path, namespace: Option<PathBuf>) -> Result<NetconfServer> {
    let device = NetconfServer::start_in(parent, namespace)?;
    device.subscribers().context("ask the NETCONF device")?;
    fs::write(parent.join("device.yaml"), TEMPLATE)?;
    Ok(device)
}

/// The device in `orchestrator.yaml`.
pub fn elements(device: &NetconfServer) -> String {
    format!(
        "elements:
  netconf:
    - name: bng-1
      address: {}
      user: {}
      key: {}
      known_hosts: {}
      template: device.yaml
      settings:
        video:
          sd: {{quality: sd, down: 1.5 Mbit/s}}
          hd: {{quality: hd, down: 4 Mbit/s}}
        roam_pass:
          none: {{pass: none}}
          day: {{pass: day}}
",
        device.address,
        device.user,
        device.key.display(),
        device.known_hosts.display(),
    )
}
