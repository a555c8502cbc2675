//! Makes the recording the capture mode plays: what passes the gateway's subscriber-facing interface during a story.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::netns::{ACCESS, Lab, Side};
use crate::packets;
use crate::process::{self, Running};
use crate::wait::{self, Seen};

/// Packets of a flow kept whole, each way together: what a classifier may want to see.
const WHOLE: u32 = 12;

/// Bytes kept of any later packet: Ethernet, IP, TCP with time stamps.
const fn headers(frame: &[u8]) -> usize {
    // EtherType of IPv6.
    if frame.len() > 13 && frame[12] == 0x86 && frame[13] == 0xdd { 14 + 40 + 32 } else { 14 + 20 + 32 }
}

/// tcpdump at work.
#[derive(Debug)]
pub struct Recording {
    tcpdump: Running,
    raw: PathBuf,
}

impl Recording {
    /// Starts it; what passed before is not in it.
    pub fn start(lab: &Lab) -> Result<Self> {
        let raw = lab.place().folder().join("raw.pcap");
        let tcpdump = lab.inside(
            Side::Gateway,
            "tcpdump",
            ["-i", ACCESS, "-s", "0", "-B", "65536", "-U", "-Z", "root", "-w", &raw.to_string_lossy()],
        );
        let mut tcpdump = Running::start("tcpdump", tcpdump, lab.place().folder())?;
        wait::until("tcpdump listening", Duration::from_secs(10), || {
            tcpdump.expect_running()?;
            let printed = tcpdump.printed();
            Ok(Seen::when(printed.contains("listening on"), (), printed))
        })?;
        Ok(Self { tcpdump, raw })
    }

    /// Stops it once it has seen the `passed` bytes of frames there were, and writes them, cut short, to `file`.
    pub fn finish(mut self, passed: u64, file: &Path) -> Result<()> {
        wait::until("tcpdump having written everything", Duration::from_secs(10), || {
            self.tcpdump.expect_running()?;
            // While it writes, the file may end in the middle of a packet.
            let seen = packets::frame_bytes(&self.raw).unwrap_or_default();
            Ok(Seen::when(seen == passed, (), format!("{seen} of {passed} bytes")))
        })?;
        self.tcpdump.stop(Duration::from_secs(10))?;
        let printed = self.tcpdump.printed();
        if !printed.contains("\n0 packets dropped by kernel") {
            bail!("tcpdump lost packets:\n{printed}");
        }
        let cut = self.raw.with_file_name("cut.pcap");
        shorten(&self.raw, &cut)?;
        process::run(&mut process::command("gzip", ["-9", "-n", "-f", &cut.to_string_lossy()]))?;
        std::fs::copy(cut.with_extension("pcap.gz"), file)
            .with_context(|| format!("write {}", file.display()))?;
        Ok(())
    }
}

/// Copies a capture, with the tail of each packet beyond a flow's first few cut off; the lengths on the wire stay.
fn shorten(from: &Path, to: &Path) -> Result<()> {
    let mut capture = pcap::Capture::from_file(from).with_context(|| format!("open {}", from.display()))?;
    let mut file = capture.savefile(to).with_context(|| format!("write {}", to.display()))?;
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    loop {
        let packet = match capture.next_packet() {
            Ok(packet) => packet,
            Err(pcap::Error::NoMorePackets) => break,
            Err(error) => return Err(error).with_context(|| format!("read {}", from.display())),
        };
        let count = seen.entry(flow(packet.data)).or_default();
        *count += 1;
        let keep =
            if *count <= WHOLE { packet.data.len() } else { packet.data.len().min(headers(packet.data)) };
        let mut header = *packet.header;
        header.caplen = u32::try_from(keep)?;
        file.write(&pcap::Packet { header: &header, data: &packet.data[..keep] });
    }
    file.flush().context("finish the capture file")
}

/// What tells a flow from others: both addresses and ports, in either order. Frames of no flow share one name.
fn flow(frame: &[u8]) -> Vec<u8> {
    let Ok(sliced) = etherparse::SlicedPacket::from_ethernet(frame) else { return Vec::new() };
    let mut ends = match &sliced.net {
        Some(etherparse::NetSlice::Ipv4(ip)) => {
            [ip.header().source().to_vec(), ip.header().destination().to_vec()]
        }
        Some(etherparse::NetSlice::Ipv6(ip)) => {
            [ip.header().source().to_vec(), ip.header().destination().to_vec()]
        }
        _ => return Vec::new(),
    };
    let ports = match &sliced.transport {
        Some(etherparse::TransportSlice::Tcp(tcp)) => [tcp.source_port(), tcp.destination_port()],
        Some(etherparse::TransportSlice::Udp(udp)) => [udp.source_port(), udp.destination_port()],
        _ => [0, 0],
    };
    for (end, port) in ends.iter_mut().zip(ports) {
        end.extend(port.to_be_bytes());
    }
    ends.sort();
    ends.concat()
}
