//! The seam between the agent and whatever sees and counts packets: the probe in the kernel, or a capture.
//!
//! Two halves, each with one owner: [`DataPlane`] counts, binds and enforces by subscriber slot, and is the gateway task's;
//! [`Flows`] shows new flows' first bytes and takes their classes, and is the verdicts' thread's. They share nothing that
//! one could keep from the other for longer than a look-up takes. Both kinds have the same methods with the same meaning; a
//! capture holds settings and reads them back, but touches no packet ("dry run").

use std::borrow::Cow;
use std::ops::Range;

use ipnet::IpNet;
use usher_models::units::Micros;
use usher_models::wire::{
    Class, Direction, Enforcement, FlowKey, Quality, QualityCounts, ROUND_TRIP_BUCKETS, SlotUsage,
};

use crate::capture::{self, BindingsFull, Capture, CaptureError, Source};
use crate::config;
use crate::probe::{self, Probe, ProbeConfig, ProbeError};
use crate::usage::apps::AppMoved;
use crate::usage::{ANONYMOUS_SLOTS, Baseline, Moved};

/// How many prefixes the probe has room for, a session on the average.
const PREFIXES_A_SESSION: u32 = 4;

const _: () = assert!(config::MAX_ANONYMOUS_PREFIXES <= ANONYMOUS_SLOTS * PREFIXES_A_SESSION);

/// One life of the counters. The probe's outlives the agent's process, a capture's does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boot(pub [u8; 16]);

/// The first bytes of a flow, for the classifier. Never written to disk, never sent away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample<'a> {
    /// Whose flow, and with whom.
    pub flow: FlowKey,
    /// The subscriber slot the flow is counted for.
    pub slot: u32,
    /// Which way this packet goes.
    pub direction: Direction,
    /// When the flow's first packet was seen.
    pub first_packet: Micros,
    /// When this packet was seen.
    pub seen: Micros,
    /// The packet from its innermost IP header on, perhaps truncated; lent by who looks at it at once.
    pub packet: Cow<'a, [u8]>,
}

impl Sample<'_> {
    /// With a packet of its own.
    pub fn into_owned(self) -> Sample<'static> {
        Sample { packet: self.packet.into_owned().into(), ..self }
    }
}

/// The data plane did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    /// The probe.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The capture, asked for too much.
    #[error(transparent)]
    BindingsFull(#[from] BindingsFull),
    /// The counters of a test, at the step where they are stopped.
    #[cfg(test)]
    #[error("killed")]
    Killed,
}

impl DataPlaneError {
    /// Whether it says that there is no place for a prefix.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Probe(ProbeError::SessionsFull { .. }) | Self::BindingsFull(_))
    }
}

/// What the books need of a data plane: counters by slot, who is behind a prefix, and what holds for a slot.
///
/// A trait, so that the books' promise (no byte lost or told twice, wherever the agent stops) is tested on counters whose
/// every step can be stopped.
pub trait Slots {
    /// Cumulative counters of a slot.
    fn usage(&mut self, slot: u32) -> Result<SlotUsage, DataPlaneError>;
    /// The counters of those slots that are not where the baseline has them, in the order of slots.
    fn moved(&mut self, baseline: &Baseline, slots: Range<u32>) -> Result<Vec<Moved>, DataPlaneError>;
    /// Bytes by app that are not where the baseline has them, in the order of lanes.
    fn moved_apps(&mut self, baseline: &Baseline) -> Result<Vec<AppMoved>, DataPlaneError>;
    /// From now on the prefix counts for this slot. Doing it twice is doing it once.
    fn bind(&mut self, prefix: IpNet, slot: u32) -> Result<(), DataPlaneError>;
    /// The prefixes that count for a slot now.
    fn bindings(&mut self) -> Result<Vec<IpNet>, DataPlaneError>;
    /// The prefix is nobody's. Doing it twice is doing it once.
    fn unbind(&mut self, prefix: IpNet) -> Result<(), DataPlaneError>;
    /// What is done with a slot's packets from now on.
    fn enforce(&mut self, slot: u32, enforcement: &Enforcement) -> Result<(), DataPlaneError>;
    /// What is done with a slot's packets, read back.
    fn enforcement(&mut self, slot: u32) -> Result<Enforcement, DataPlaneError>;
    /// What was measured since the last call. What is told once is not told again: it may be lost, which counters may not.
    fn measured(&mut self, now: Micros) -> Vec<Measured>;
}

/// What was measured of one class of a slot in some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    /// The subscriber slot.
    pub slot: u32,
    /// The class.
    pub class: Class,
    /// By direction of the packets.
    pub counts: [QualityCounts; 2],
    /// Round-trip times in the buckets of [`Quality`], by the direction of the packets that were answered: down is the side of the
    /// subscriber, up that of the internet.
    pub round_trips: [[u32; ROUND_TRIP_BUCKETS]; 2],
}

impl Measured {
    /// What was added to a record between two looks at it.
    pub fn between(slot: u32, class: Class, before: &Quality, now: &Quality) -> Self {
        let counts = std::array::from_fn(|direction| {
            let (before, now) = (&before.counts[direction], &now.counts[direction]);
            QualityCounts {
                segments: now.segments.wrapping_sub(before.segments),
                retransmitted: now.retransmitted.wrapping_sub(before.retransmitted),
                reordered: now.reordered.wrapping_sub(before.reordered),
                round_trips: now.round_trips.wrapping_sub(before.round_trips),
                windows: now.windows.wrapping_sub(before.windows),
                irregular: now.irregular.wrapping_sub(before.irregular),
            }
        });
        let round_trips = std::array::from_fn(|side| {
            let (before, now) = (&before.round_trips[side], &now.round_trips[side]);
            std::array::from_fn(|bucket| now[bucket].wrapping_sub(before[bucket]))
        });
        Self { slot, class, counts, round_trips }
    }
}

/// Packets of one reason, cumulative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasonCount {
    /// Why less was done with them.
    pub reason: &'static str,
    /// Which way they went; `None` where that is not told apart.
    pub direction: Option<Direction>,
    /// How many.
    pub packets: u64,
    /// Their bytes with the link-layer header, where they are told.
    pub bytes: Option<u64>,
}

/// What became of a wish to count a flow's bytes for an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForApp {
    /// They are.
    Counted,
    /// They are not, and should not be: the flow is of no app, nobody's, or not known any more.
    Not,
    /// They are not, for there is room for no other app of a slot.
    Full,
}

/// What sees new flows and gives them their classes.
#[derive(Debug)]
pub enum Flows {
    /// The probe's ring and flow table.
    Probe(Box<probe::Flows>),
    /// A capture's frames and flows.
    Capture(Box<capture::Flows>),
}

impl Flows {
    /// The next packet the classifier should see. Loses nothing when cancelled. `None`: the capture has ended.
    pub async fn next_sample(&mut self) -> Option<Sample<'static>> {
        match self {
            Self::Probe(flows) => flows.next_sample().await,
            Self::Capture(flows) => flows.next_sample().await,
        }
    }

    /// The same without waiting: `None` where there is none now.
    pub fn try_next_sample(&mut self) -> Option<Sample<'static>> {
        match self {
            Self::Probe(flows) => flows.try_next_sample(),
            Self::Capture(flows) => flows.try_next_sample(),
        }
    }

    /// Gives a flow its class, and says whether more of its packets are wanted. False where the flow is not known any more.
    pub fn name_flow(
        &mut self,
        flow: &FlowKey,
        class: Class,
        sampling: bool,
    ) -> Result<bool, DataPlaneError> {
        match self {
            Self::Probe(flows) => Ok(flows.name_flow(flow, class, sampling)?),
            Self::Capture(flows) => Ok(flows.name_flow(flow, class, sampling)),
        }
    }

    /// Counts the bytes of a flow's further packets for an app of the slot, or for none. The probe knows better than its samples whose the
    /// flow is by now.
    pub fn count_for_app(&mut self, flow: &FlowKey, slot: u32, app: Option<&str>) -> ForApp {
        match self {
            Self::Probe(flows) => flows.count_for_app(flow, app),
            Self::Capture(flows) => flows.count_for_app(flow, slot, app),
        }
    }

    /// Why the source ended, if not by the end of a file.
    pub fn broken(&self) -> Option<DataPlaneError> {
        match self {
            Self::Probe(_) => None,
            Self::Capture(flows) => flows.broken().map(DataPlaneError::from),
        }
    }
}

/// What counts packets by subscriber slot, and enforces.
#[derive(Debug)]
pub enum DataPlane {
    /// The probe in the kernel.
    Probe(Box<Probe>),
    /// A capture, in user space.
    Capture(Box<Capture>),
}

impl DataPlane {
    /// Loads the probe or opens the capture.
    pub fn open(source: &config::Source) -> Result<(Self, Flows), DataPlaneError> {
        match source {
            config::Source::Probe(source) => {
                let (probe, flows) = Probe::load(probe_config(source))?;
                Ok((Self::Probe(Box::new(probe)), Flows::Probe(Box::new(flows))))
            }
            config::Source::Capture(source) => {
                let source = match (&source.interface, &source.file) {
                    (Some(interface), _) => Source::Interface(interface.clone()),
                    (None, file) => {
                        Source::File { path: file.clone().unwrap_or_default(), pace: source.pace }
                    }
                };
                let (capture, flows) = Capture::open(&source)?;
                Ok((Self::Capture(Box::new(capture)), Flows::Capture(Box::new(flows))))
            }
        }
    }

    /// The life of the counters.
    pub fn boot(&self) -> Boot {
        match self {
            Self::Probe(probe) => probe.boot(),
            Self::Capture(capture) => capture.boot(),
        }
    }

    /// Whether settings are held and read back, but no packet is touched.
    pub fn dry_run(&self) -> bool {
        match self {
            Self::Probe(probe) => probe.dry_run(),
            Self::Capture(capture) => capture.dry_run(),
        }
    }

    /// Turns all enforcement off, or on again.
    pub fn set_bypass(&mut self, bypass: bool) -> Result<(), DataPlaneError> {
        match self {
            Self::Probe(probe) => probe.set_bypass(bypass)?,
            Self::Capture(capture) => capture.set_bypass(bypass),
        }
        Ok(())
    }

    /// Begins the next turn of measuring, with a mask for each class.
    pub fn next_turn(&mut self, masks: [u16; Class::COUNT]) -> Result<(), DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(probe.next_turn(masks)?),
            Self::Capture(_) => Ok(()),
        }
    }

    /// What less was done with, and why.
    pub fn counters(&self) -> Result<Vec<ReasonCount>, DataPlaneError> {
        Ok(match self {
            Self::Probe(probe) => probe
                .counters()?
                .into_iter()
                .map(|(reason, direction, tally)| ReasonCount {
                    reason: reason.name(),
                    direction: Some(direction),
                    packets: tally.packets,
                    bytes: Some(tally.bytes),
                })
                .collect(),
            Self::Capture(capture) => {
                let refused = capture.refused_bytes();
                let counted = |(reason, packets)| {
                    let bytes = refused.iter().find(|(refused, _)| *refused == reason);
                    let bytes = bytes.map(|(_, bytes)| *bytes);
                    ReasonCount { reason, direction: None, packets, bytes }
                };
                capture.counters().into_iter().map(counted).collect()
            }
        })
    }

    /// Puts the probe on interfaces that have come, and forgets those that are gone. A capture has the one it began with.
    pub fn follow_interfaces(&mut self) -> Result<Option<probe::Followed>, DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(Some(probe.follow_interfaces()?)),
            Self::Capture(_) => Ok(None),
        }
    }

    /// Fails where the probe's pins are gone, so that this agent should give way to one that begins anew.
    pub fn check_pins(&self) -> Result<(), DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(probe.check_pins()?),
            Self::Capture(_) => Ok(()),
        }
    }

    /// Notices where somebody has taken the probe off an interface: the next look puts it back. Takes as long as there are interfaces.
    pub fn notice_taken_off(&mut self) {
        match self {
            Self::Probe(probe) => probe.notice_taken_off(),
            Self::Capture(_) => {}
        }
    }

    /// A second has passed: what waits to be shaped is, as much as there is time for. Says how much is; `None`: nothing is to be.
    pub fn shape_on(&mut self) -> Option<probe::Shaped> {
        match self {
            Self::Probe(probe) => {
                probe.shape_on();
                probe.shaped()
            }
            Self::Capture(_) => None,
        }
    }

    /// Whether an interface waits to be tried again.
    pub fn interfaces_wait(&self) -> bool {
        match self {
            Self::Probe(probe) => probe.interfaces_wait(),
            Self::Capture(_) => false,
        }
    }

    /// Apps of slots that are counted.
    pub fn apps(&self) -> usize {
        match self {
            Self::Probe(probe) => probe.apps(),
            Self::Capture(capture) => capture.apps(),
        }
    }

    /// A second has passed: makes room for more flows where those that there are crowd, and says for how many there is. A capture's table grows by
    /// itself.
    pub fn make_room(&mut self) -> Result<Option<u32>, DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(Some(probe.make_room()?)),
            Self::Capture(_) => Ok(None),
        }
    }

    /// Forgets idle flows; says how many are left.
    pub fn sweep(&mut self, now: Micros) -> Result<usize, DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(probe.sweep(now)?.kept),
            Self::Capture(capture) => {
                capture.sweep(now);
                Ok(capture.flows())
            }
        }
    }
}

/// The probe's sizes as configured: slots for sessions, a first one for the anonymous and more for those with a name, and prefixes for
/// all of them.
pub fn probe_config(source: &config::ProbeSource) -> ProbeConfig {
    ProbeConfig {
        pin_dir: source.pin_dir.clone(),
        max_flows: source.max_flows,
        max_subscribers: source.max_subscribers.saturating_add(1 + ANONYMOUS_SLOTS),
        max_prefixes: source
            .max_subscribers
            .saturating_add(ANONYMOUS_SLOTS)
            .saturating_mul(PREFIXES_A_SESSION),
        max_measured: source.max_measured,
        max_apps: source.max_apps,
        interfaces: source.interfaces.clone(),
        xdp: source.xdp,
        shaping: source.shaping.clone().map(Into::into),
        ..ProbeConfig::new("")
    }
}

impl Slots for DataPlane {
    fn usage(&mut self, slot: u32) -> Result<SlotUsage, DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(probe.usage(slot)?),
            Self::Capture(capture) => Ok(capture.usage(slot)),
        }
    }

    fn moved(&mut self, baseline: &Baseline, slots: Range<u32>) -> Result<Vec<Moved>, DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(probe.moved(baseline, slots)?),
            Self::Capture(capture) => Ok(capture.moved(baseline, slots)),
        }
    }

    fn moved_apps(&mut self, baseline: &Baseline) -> Result<Vec<AppMoved>, DataPlaneError> {
        Ok(match self {
            Self::Probe(probe) => probe.moved_apps(baseline),
            Self::Capture(capture) => capture.moved_apps(baseline),
        })
    }

    fn bind(&mut self, prefix: IpNet, slot: u32) -> Result<(), DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(probe.bind(prefix, slot)?),
            Self::Capture(capture) => Ok(capture.bind(prefix, slot)?),
        }
    }

    fn bindings(&mut self) -> Result<Vec<IpNet>, DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(probe.bindings()?.into_iter().map(|(prefix, _)| prefix).collect()),
            Self::Capture(capture) => Ok(capture.bindings().into_iter().map(|(prefix, _)| prefix).collect()),
        }
    }

    fn unbind(&mut self, prefix: IpNet) -> Result<(), DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(probe.unbind(prefix)?),
            Self::Capture(capture) => {
                capture.unbind(prefix);
                Ok(())
            }
        }
    }

    fn enforce(&mut self, slot: u32, enforcement: &Enforcement) -> Result<(), DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(probe.enforce(slot, enforcement)?),
            Self::Capture(capture) => {
                capture.enforce(slot, enforcement);
                Ok(())
            }
        }
    }

    fn enforcement(&mut self, slot: u32) -> Result<Enforcement, DataPlaneError> {
        match self {
            Self::Probe(probe) => Ok(probe.enforcement(slot)?),
            Self::Capture(capture) => Ok(capture.enforcement(slot)),
        }
    }

    fn measured(&mut self, now: Micros) -> Vec<Measured> {
        match self {
            Self::Probe(probe) => probe.measured(now),
            // A capture measures nothing: it sees a copy, when it comes to it.
            Self::Capture(_) => vec![],
        }
    }
}
