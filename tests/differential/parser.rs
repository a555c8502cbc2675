//! The probe's parser, compiled for the host, beside the agent's own, packet by packet of captures: the same packets with the same ends, ports
//! and bytes, or refused for the same reason; or the difference is one of those listed here.
//!
//! Runs over the generated capture, and over every capture in the folder that `USHER_CAPTURES` names, if it names one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use usher_agent::capture::file::{CaptureFile, Captured};
use usher_agent::capture::frame::{self, Found, Layer, Refused};
use usher_agent::classify::packet::address;
use usher_models::wire::Reason;
use usher_tests::process;

use super::parse::{self, Fragment, Frame, Packet, Plain};
use super::{cases, walk, wrap};

/// libpcap's numbers of link layers that the probe meets: Ethernet, and none.
const ETHERNET: i32 = 1;
const RAW: [i32; 5] = [12, 14, 101, 228, 229];

/// A captured frame, as the kernel would hold it.
struct Captive<'a> {
    captured: &'a Captured<'a>,
    walk: RefCell<Option<walk::Walk>>,
    kept: RefCell<Vec<Packet>>,
}

impl Frame for Captive<'_> {
    fn length(&self) -> u32 {
        u32::try_from(self.captured.wire).unwrap()
    }

    fn is_super_packet(&self) -> bool {
        false
    }

    fn words_at_hand<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        let from = usize::try_from(at).unwrap();
        let bytes = self.captured.bytes.get(from..from + N * 4)?;
        let (words, _) = bytes.as_chunks::<4>();
        Some(std::array::from_fn(|word| u32::from_ne_bytes(words[word])))
    }

    fn words<const N: usize>(&self, at: u32) -> Option<[u32; N]> {
        self.words_at_hand(at)
    }

    fn begin(&self, walk: walk::Walk) {
        self.walk.replace(Some(walk));
    }

    fn step(&self) -> bool {
        self.walk.borrow_mut().as_mut().unwrap().step(self)
    }

    fn ended(&self) -> Result<u32, Reason> {
        self.walk.borrow().as_ref().unwrap().ended()
    }

    fn keep(&self, _: u32, packet: &Packet) {
        self.kept.borrow_mut().push(*packet);
    }
}

/// What both say of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    protocol: u8,
    bytes: u64,
}

/// The probe's reading of a frame.
fn probes(captured: &Captured<'_>) -> Result<Vec<Packet>, Reason> {
    let frame = Captive { captured, walk: RefCell::default(), kept: RefCell::default() };
    let ethernet = captured.link == ETHERNET;
    match parse::plain(&frame).filter(|_| ethernet) {
        Some(Plain::Packet(packet)) => return Ok(vec![packet]),
        Some(Plain::Gtpu(both)) => return Ok(both.to_vec()),
        None => {}
    }
    walk::walk(&frame, if ethernet { walk::ETHERNET_HEADER } else { walk::IP_HEADER })?;
    Ok(frame.kept.into_inner())
}

fn facts(packet: &Packet) -> Facts {
    let [source, destination] = packet.ends.map(|end| address(parse::address(end)));
    Facts {
        source: (source, packet.ports[0]),
        destination: (destination, packet.ports[1]),
        protocol: packet.protocol,
        bytes: packet.ip_bytes.into(),
    }
}

fn agents_facts(found: &Found<'_>) -> Facts {
    let packet = &found.packet;
    Facts {
        source: (packet.source, packet.source_port),
        destination: (packet.destination, packet.destination_port),
        protocol: packet.protocol,
        bytes: found.bytes(),
    }
}

/// Whether two refusals are the same one: the agent has fewer words.
const fn same_refusal(probe: Reason, agent: Refused) -> bool {
    matches!(
        (probe, agent),
        (Reason::NotIp, Refused::NotIp)
            | (Reason::TruncatedLink | Reason::TruncatedIp, Refused::Truncated)
            | (Reason::BadIp | Reason::TruncatedIp, Refused::Malformed)
            | (Reason::TooManyTags, Refused::TooDeep)
    )
}

/// Compares; `Err` says how they differ, in words where the difference is a known one.
fn compare(captured: &Captured<'_>) -> Result<(), (Option<&'static str>, String)> {
    let ours = probes(captured);
    let theirs: Vec<_> = frame::packets(captured.link, captured.bytes, captured.wire).collect();
    let found: Vec<&Found<'_>> = theirs.iter().map_while(|found| found.as_ref().ok()).collect();
    let refused = theirs.last().and_then(|last| last.as_ref().err());
    let most = usize::try_from(walk::MAX_PACKETS).unwrap();
    let differ = |why| Err((why, format!("the probe {ours:?}, the agent {theirs:?}")));
    let ours = match &ours {
        Err(reason) => {
            return match refused {
                Some(refused) if found.is_empty() && same_refusal(*reason, *refused) => Ok(()),
                _ => differ(refusal(captured, *reason, &found, refused.copied())),
            };
        }
        Ok(ours) => ours,
    };
    for (packet, found) in ours.iter().zip(&found) {
        if facts(packet) != agents_facts(found) {
            return differ(packets(captured, packet, found));
        }
    }
    if ours.len() == found.len().min(most) {
        return Ok(());
    }
    differ(depth(ours, &found))
}

/// Why the probe finds no packet where the agent does, or another reason.
fn refusal(
    captured: &Captured<'_>,
    reason: Reason,
    found: &[&Found<'_>],
    refused: Option<Refused>,
) -> Option<&'static str> {
    let is_cut = captured.bytes.len() < captured.wire;
    let ethertype = captured.bytes.get(12..14).map(|at| u16::from_be_bytes([at[0], at[1]]));
    let Some(first) = found.first() else {
        return match (reason, refused) {
            _ if is_cut => Some("cut by the capture within headers"),
            (Reason::NotIp, _) if ethertype.is_some_and(|kind| kind <= 1_500) => {
                Some("802.2: the agent looks for a type in it, the probe does not")
            }
            _ => None,
        };
    };
    match reason {
        Reason::NotIp if ethertype.is_some_and(|kind| kind <= 1_500) => {
            Some("802.2: the agent looks for a type in it, the probe does not")
        }
        Reason::NotIp if first.layers.iter().any(|layer| matches!(layer, Layer::Mpls(_))) => {
            Some("below MPLS the agent guesses better")
        }
        Reason::NotIp if first.layers.iter().any(|layer| matches!(layer, Layer::Pppoe(_))) => {
            Some("a compressed PPP protocol field: the agent's alone")
        }
        Reason::TruncatedIp if first.packet.length.is_some_and(|length| length as usize > first.wire) => {
            Some("the header says more bytes than there are: outside of usage for the probe")
        }
        Reason::BadIp if first.packet.length.is_none() => Some(
            "a length of zero or less than the header: a super-packet, which the kernel knows from the frame's own record",
        ),
        Reason::TruncatedIp | Reason::TruncatedLink if is_cut => Some("cut by the capture within headers"),
        Reason::BadIp
            if found
                .iter()
                .any(|found| is_mapped(found.packet.source) || is_mapped(found.packet.destination)) =>
        {
            Some("an IPv4-mapped address in IPv6: outside of usage for the probe")
        }
        _ => None,
    }
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// Why the two say different things of the same packet.
fn packets(captured: &Captured<'_>, packet: &Packet, found: &Found<'_>) -> Option<&'static str> {
    let (ours, theirs) = (facts(packet), agents_facts(found));
    let same_ends = (ours.source.0, ours.destination.0) == (theirs.source.0, theirs.destination.0);
    if !same_ends {
        return None;
    }
    match packet.trouble {
        Some(Reason::BadTransport) => Some(
            "a transport header that contradicts itself: the probe reads no ports, the agent what is there",
        ),
        Some(Reason::Extensions) => {
            Some("more extension headers than the probe looks through, or one cut short")
        }
        _ if captured.bytes.len() < captured.wire => Some("cut by the capture within headers"),
        _ if matches!(packet.fragment, Fragment::Later(_)) && ours.bytes == theirs.bytes => {
            Some("a later fragment: of which the agent shows the protocol of the header it begins with")
        }
        _ => None,
    }
}

/// Why one goes deeper than the other.
fn depth(ours: &[Packet], found: &[&Found<'_>]) -> Option<&'static str> {
    if let Some(next) = found.get(ours.len()) {
        let opened = next.layers.iter().last();
        return match opened {
            Some(Layer::Teredo | Layer::Capwap) => Some("Teredo and CAPWAP: the agent's alone"),
            Some(Layer::Vxlan(_)) => Some("VXLAN on its old port: the agent's alone"),
            _ if ours.last().is_some_and(|packet| packet.fragment != Fragment::Whole) => {
                Some("what is in a fragment: the agent puts it together, the probe leaves it")
            }
            _ => None,
        };
    }
    None
}

/// Differences by why, each with how many there are and where the first is.
#[derive(Debug, Default)]
struct Differences {
    packets: u64,
    link_layers: u64,
    explained: BTreeMap<&'static str, (u64, String)>,
    unexplained: Vec<String>,
}

impl Differences {
    fn read(&mut self, capture: &Path) {
        let mut file = match CaptureFile::open(capture) {
            Ok(file) => file,
            Err(error) => return process::say(&format!("left out: {}: {error}", capture.display())),
        };
        let mut number = 0_u64;
        // A capture that breaks off tells what it told.
        while let Ok(Some(captured)) = file.next_packet() {
            number += 1;
            if captured.link != ETHERNET && !RAW.contains(&captured.link) {
                self.link_layers += 1;
                continue;
            }
            self.packets += 1;
            if let Err((why, how)) = compare(&captured) {
                let place = format!("{}, packet {number}", capture.display());
                match why {
                    Some(why) => self.explained.entry(why).or_insert((0, place)).0 += 1,
                    None => self.unexplained.push(format!("{place}: {how}")),
                }
            }
        }
    }

    fn tell(&self) {
        process::say(&format!(
            "{} packets; {} of link layers that the probe does not meet",
            self.packets, self.link_layers
        ));
        for (why, (count, first)) in &self.explained {
            process::say(&format!("{count:8} {why}; first: {first}"));
        }
    }
}

#[test]
fn the_probe_and_the_agent_read_the_same_packets() {
    let folder = tempfile::tempdir().unwrap();
    let generated = folder.path().join("generated.pcap");
    std::fs::write(&generated, wrap::recording(&cases::all())).unwrap();
    let mut differences = Differences::default();
    differences.read(&generated);
    assert!(differences.packets > 100);
    assert_eq!(differences.explained.len(), 0, "generated packets leave nothing to explain: {differences:?}");

    if let Some(folder) = std::env::var_os("USHER_CAPTURES") {
        let mut captures: Vec<PathBuf> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        captures.sort();
        for capture in captures {
            differences.read(&capture);
        }
    }
    differences.tell();
    let shown = differences.unexplained.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        differences.unexplained.is_empty(),
        "{} packets differ without an explanation:\n{shown}",
        differences.unexplained.len()
    );
}
