//! What a probe is told at its start: where it goes, and how large it is.

use std::path::PathBuf;
use std::time::Duration;

use usher_models::units::BitsPerSecond;

use super::{Attach, Pattern, Shaping, Xdp};

/// What a probe is attached to and how large its maps are. Sizes are fixed for the life of the pinned maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeConfig {
    /// The subscriber-facing interfaces: their ingress is up, their egress down. A name's must be there at the start.
    pub interfaces: Vec<Pattern>,
    /// The directory, on a bpffs, of the pinned maps and links. One per probe.
    pub pin_dir: PathBuf,
    /// Flows known at once. What does not fit is counted without a label.
    pub max_flows: u32,
    /// Subscriber slots, slot 0 (anonymous) included.
    pub max_subscribers: u32,
    /// Session prefixes.
    pub max_prefixes: u32,
    /// Subscribers' classes whose quality is measured at one time. What does not fit is not measured.
    pub max_measured: u32,
    /// Apps of subscribers whose bytes are counted at one time. Those of an app that does not fit are counted without it.
    pub max_apps: u32,
    /// Bytes of the ring of first bytes; rounded up to a power of two of pages.
    pub ring_bytes: u32,
    /// Packets of a new flow handed to the classifier. Flows to port 53 are not held to it.
    pub sample_packets: u32,
    /// Bytes of each of them, at the most [`MAX_FIRST_BYTES`](usher_models::wire::MAX_FIRST_BYTES).
    pub sample_bytes: u32,
    /// How fast one subscriber's packets may be handed to the classifier, with half the ring at once: nobody fills it for all.
    pub sample_rate: BitsPerSecond,
    /// A flow without a packet for this long is forgotten by [`Probe::sweep`](super::Probe::sweep).
    pub flow_idle: Duration,
    /// Which hook of the kernel to use.
    pub attach: Attach,
    /// Whether what subscribers send is met in the driver.
    pub xdp: Xdp,
    /// Rates are kept by queues; `None`: by dropping what is above them.
    pub shaping: Option<Shaping>,
}

impl ProbeConfig {
    /// Sizes for a gateway of some thousand subscribers, on `interface`, pinned in /sys/fs/bpf/usher.
    pub fn new(interface: impl Into<String>) -> Self {
        Self {
            interfaces: vec![Pattern::new(interface)],
            pin_dir: PathBuf::from("/sys/fs/bpf/usher"),
            max_flows: 262_144,
            max_subscribers: 16_384,
            max_prefixes: 65_536,
            max_measured: 32_768,
            max_apps: 65_536,
            ring_bytes: 16 << 20,
            sample_packets: 24,
            sample_bytes: 2_048,
            sample_rate: BitsPerSecond(40_000_000),
            flow_idle: Duration::from_mins(5),
            attach: Attach::Auto,
            xdp: Xdp::Off,
            shaping: None,
        }
    }
}
