//! The probe in the kernel, as the rest of the agent sees it. The only place that knows aya.
//!
//! Owns loading, pinning and adopting the programs and maps, and the conversion of the kernel's records and times. Refuses
//! maps of another layout or size, and knows neither sessions nor settings: it is told prefixes, slots and enforcement.
//!
//! ```text
//! pins      config  sessions  flows  details  lanes  apps  quality  anonymous  rations  tallies  samples  link_up_N  link_down_N  xdp_up_N  tree_down_N_...
//! agent      rw      rw        rw     rw       rw     rw    rw       r          -        r        r
//! programs   r       r         rw     rw       rw     rw    rw       w          rw       w        w
//! ```
//!
//! One probe is on any number of interfaces, which come and go ([`Probe::follow_interfaces`]); all of them share its maps.
//!
//! Everything is pinned: dropping a [`Probe`] leaves counting and enforcement running, and the next [`Probe::load`] on the
//! same directory takes over without losing or doubling a packet. [`Probe::detach`] ends it.

mod apps;
mod attach;
mod clock;
mod config;
mod early;
mod environment;
mod error;
mod follow;
mod interfaces;
mod lanes;
mod layout;
mod mapped;
mod maps;
mod memory;
mod netlink;
mod quality;
mod samples;
mod shaping;
mod table;
mod tcx;
mod trial;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use aya::Ebpf;
use ipnet::IpNet;
use usher_models::units::Micros;
use usher_models::wire::{
    ANONYMOUS, Class, Config, Direction, Enforcement, FlowLine, FlowState, HashKeys, LAYOUT, MAX_FIRST_BYTES,
    Rate, Reason, SlotUsage, Tally, Turn,
};

pub use attach::Attach;
pub use config::ProbeConfig;
pub use early::Xdp;
pub use error::ProbeError;
pub use follow::{Failed, Followed, would_be_on};
pub use interfaces::Pattern;
pub use memory::{Cost, memory};
pub use netlink::LinkEvents;
pub use samples::Flows;
pub use shaping::{Leaf, MAX_CLASSES, Shaped, Shaping};
pub use trial::{Trial, TrialOutcome, Verdict};

use crate::dataplane::{Boot, Measured};
use crate::usage::apps::{AppMoved, lanes};
use crate::usage::{Baseline, Moved};
use attach::Attachments;
use follow::{Without, look};
use interfaces::{Choice, Interface};
use maps::Maps;
use shaping::Shaper;
use table::FlowTable;

/// Generations that begin, at the most, in the time after which a flow is idle. Far fewer than there are numbers for, so that an old
/// one is never taken for a new one.
const GENERATIONS: u32 = 64;

/// The generation after another.
const fn next_generation(generation: u32) -> u32 {
    generation % FlowState::LAST_GENERATION + 1
}

/// The probe, loaded and attached.
pub struct Probe {
    ebpf: Ebpf,
    maps: Maps,
    flows: Arc<FlowTable>,
    config: Config,
    settings: ProbeConfig,
    attachments: Attachments,
    shaper: Option<Shaper>,
    /// What of the configured interfaces does not carry the programs, as it was told last.
    without: Without,
    /// When each of the latest generations began, oldest first; the last is the one now.
    generations: VecDeque<(u32, Micros)>,
    /// Packets whose flow found no place in the table, so far.
    without_place: u64,
    /// Two agents would take each other's samples; the kernel lets go of this one with its process.
    lock: File,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe")
            .field("settings", &self.settings)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Probe {
    /// Loads the programs, adopts what is pinned in the directory or makes it, and attaches. The second half names flows,
    /// on a thread of its own where there is one.
    ///
    /// What a running probe counts and enforces is untouched when this fails.
    pub fn load(settings: ProbeConfig) -> Result<(Self, Flows), ProbeError> {
        let (choice, present) = look(&settings)?;
        let lock = environment::pin_directory(&settings.pin_dir)?;
        let fresh = fs::read_dir(&settings.pin_dir).is_ok_and(|mut pins| pins.next().is_none());
        let made = settings.clone();
        let loaded = Self::take_over(settings, &choice, &present, lock);
        if loaded.is_err() && fresh {
            // Nothing was counted yet. What fails here too is told by the next start.
            let _ = remove(&made);
        }
        loaded
    }

    fn take_over(
        settings: ProbeConfig,
        choice: &Choice,
        present: &[Interface],
        lock: File,
    ) -> Result<(Self, Flows), ProbeError> {
        let former = layout::prepare(&settings)?;
        let mut ebpf = maps::load(&settings)?;
        for program in attach::PROGRAMS {
            attach::load(&mut ebpf, program)?;
        }
        let mut maps = Maps::take(&mut ebpf, &settings)?;
        let mut config = maps.config()?;
        if let Some(former) = former {
            config = former;
        } else if config.layout == 0 {
            let boot = *uuid::Uuid::new_v4().as_bytes();
            config = Config { layout: LAYOUT, boot, epoch: 1, hash_keys: hash_keys(), ..Config::default() };
        }
        let table = Arc::new(maps::flow_table(&mut ebpf, &settings, &config, Arc::clone(&maps.apps))?);
        let flows = Flows::take(&mut ebpf, Arc::clone(&table))?;
        config.line_mask = table.in_use() - 1;
        config.slots = settings.max_subscribers;
        config.sample_packets = settings.sample_packets;
        config.sample_bytes = settings.sample_bytes.min(u32::try_from(MAX_FIRST_BYTES).unwrap_or(u32::MAX));
        config.sample_rate = Rate::per_second(settings.sample_rate.0, u64::from(settings.ring_bytes / 2));
        config.app_mask = lanes(settings.max_apps) - 1;
        config.turn.quality_mask = maps::quality_records(settings.max_measured) - 1;
        config.generation = next_generation(config.generation);
        maps.set_config(&config)?;
        shaping::end(&settings.pin_dir, settings.shaping.as_ref(), &maps.lanes)?;
        let adopt = |shaping| Shaper::adopt(&settings.pin_dir, shaping, &maps.lanes);
        let shaper = settings.shaping.as_ref().map(adopt).transpose()?;
        let without_place = maps.packets(Reason::FlowTableFull)?;
        let attachments = Attachments::new(&settings.pin_dir, settings.attach, settings.xdp);
        let generations = VecDeque::from([(config.generation, Micros::now())]);
        let without = Without::default();
        let mut probe = Self {
            ebpf,
            maps,
            flows: table,
            config,
            settings,
            attachments,
            shaper,
            without,
            generations,
            without_place,
            lock,
        };
        let named = |interface: &Interface| {
            probe.settings.interfaces.iter().any(|it| it.is_name() && it.matches(&interface.name))
        };
        let named: Vec<u32> = choice.chosen.values().filter(|it| named(it)).map(|it| it.index).collect();
        let followed = probe.follow(choice, present)?;
        if let Some(failed) = followed.failed.into_iter().find(|failed| named.contains(&failed.index)) {
            return Err(failed.error);
        }
        layout::finish(&probe.settings.pin_dir)?;
        Ok((probe, flows))
    }

    /// The life of the counters: survives agents, ends with the pins.
    pub fn boot(&self) -> Boot {
        Boot(self.config.boot)
    }

    /// Whether enforcement touches no packet. Never, here.
    pub fn dry_run(&self) -> bool {
        false
    }

    /// Subscriber slots there are, slot 0 included.
    pub fn slots(&self) -> u32 {
        self.settings.max_subscribers
    }

    /// The counters of a subscriber slot, cumulative, summed over the CPUs.
    pub fn usage(&self, slot: u32) -> Result<SlotUsage, ProbeError> {
        self.maps.usage(slot)
    }

    /// Makes the addresses in `prefix` those of `slot`, from the next packet on, running flows included.
    ///
    /// The longest prefix decides. A prefix that belonged to another slot moves.
    pub fn bind(&mut self, prefix: IpNet, slot: u32) -> Result<(), ProbeError> {
        if slot == ANONYMOUS || slot >= self.settings.max_subscribers {
            return Err(ProbeError::NoSuchSlot { slot, slots: self.settings.max_subscribers });
        }
        self.maps.bind(prefix, slot, self.settings.max_prefixes)?;
        self.next_epoch()
    }

    /// Makes the addresses in `prefix` nobody's, or those of a wider prefix. One that is not bound is no error.
    pub fn unbind(&mut self, prefix: IpNet) -> Result<(), ProbeError> {
        self.maps.unbind(prefix)?;
        self.next_epoch()
    }

    /// The prefixes bound now, in no order: after an adoption, those the former agent bound.
    pub fn bindings(&self) -> Result<Vec<(IpNet, u32)>, ProbeError> {
        self.maps.bindings()
    }

    /// Puts enforcement of a slot in force with the next packet.
    pub fn enforce(&mut self, slot: u32, enforcement: &Enforcement) -> Result<(), ProbeError> {
        self.maps.lanes.enforce(slot, enforcement)?;
        if let Some(shaper) = &mut self.shaper {
            shaper.shape(slot, &self.maps.lanes);
        }
        Ok(())
    }

    /// A second has passed: classes that shape packets are made for slots that wait for one, and removed where none goes to them any more; as many as
    /// there is time for.
    pub fn shape_on(&mut self) {
        if let Some(shaper) = &mut self.shaper {
            shaper.work(&self.maps.lanes);
        }
    }

    /// How much is shaped; `None`: nothing is to be.
    pub fn shaped(&self) -> Option<Shaped> {
        self.shaper.as_ref().map(Shaper::shaped)
    }

    /// The enforcement in force for a slot, read back from the kernel.
    pub fn enforcement(&self, slot: u32) -> Result<Enforcement, ProbeError> {
        self.maps.lanes.enforcement(slot)
    }

    /// Turns all enforcement off, or on again. Counting goes on.
    pub fn set_bypass(&mut self, bypass: bool) -> Result<(), ProbeError> {
        self.change(|config| config.bypass = u32::from(bypass))
    }

    /// Whether all enforcement is off.
    pub fn bypass(&self) -> bool {
        self.config.bypass != 0
    }

    /// The counters of those slots that are not where the baseline has them, in the order of slots.
    pub fn moved(&self, baseline: &Baseline, slots: Range<u32>) -> Result<Vec<Moved>, ProbeError> {
        let mut moved = Vec::new();
        if slots.contains(&ANONYMOUS) {
            moved.extend(baseline.moved(ANONYMOUS, &self.usage(ANONYMOUS)?));
        }
        self.maps.lanes.moved(baseline, slots.start.max(ANONYMOUS + 1)..slots.end, &mut moved);
        Ok(moved)
    }

    /// The bytes by app that are not where the baseline has them, in the order of lanes.
    ///
    /// A lane that no flow has been counted in for two sweeps is another app's from here on, if the baseline has all of it.
    pub fn moved_apps(&self, baseline: &Baseline) -> Vec<AppMoved> {
        self.maps.apps.moved(baseline)
    }

    /// Apps of slots that are counted.
    pub fn apps(&self) -> usize {
        self.maps.apps.len()
    }

    /// What was measured since the last call, in no order.
    pub fn measured(&mut self, now: Micros) -> Vec<Measured> {
        self.maps.qualities.since_last(now)
    }

    /// Begins the next turn of measuring, in which a flow is measured if its class's mask says so, see [`Turn`].
    pub fn next_turn(&mut self, masks: [u16; Class::COUNT]) -> Result<(), ProbeError> {
        let before = self.config.turn;
        // Where a class is measured always from now on, no flow of it takes up what it was before.
        let anew = before.masks.iter().zip(masks).any(|(before, mask)| *before != 0 && mask == 0);
        let step = if anew { u32::from(Turn::PATIENCE) + 1 } else { 1 };
        self.change(|config| {
            config.turn.number = config.turn.number.wrapping_add(step);
            config.turn.masks = masks;
        })
    }

    /// What the probe did less with, and why; cumulative. Every reason and direction, in the order of their numbers.
    pub fn counters(&self) -> Result<Vec<(Reason, Direction, Tally)>, ProbeError> {
        self.maps.tallies()
    }

    /// Forgets flows without a packet for [`ProbeConfig::flow_idle`]; says how many are left and how many went.
    ///
    /// Costs a flow's label at the worst, if a packet of it comes just then: usage is kept elsewhere. Idle time is known to
    /// the interval between two calls.
    pub fn sweep(&mut self, now: Micros) -> Result<Swept, ProbeError> {
        // A flow last seen in generation g was idle since the beginning of g + 1 at the latest.
        let idle = self.settings.flow_idle;
        let over = self.generations.iter().skip(1).rposition(|(_, began)| now.since(*began) >= idle);
        if let Some(last) = over {
            self.generations.drain(..=last);
        }
        let swept = match (over, self.generations.front()) {
            (Some(_), Some((oldest, _))) => self.flows.sweep(Some(*oldest), self.config.generation),
            _ => self.flows.sweep(None, self.config.generation),
        };
        self.maps.qualities.sweep(now, idle);
        let began = self.generations.back().map_or(now, |(_, began)| *began);
        if now.since(began) >= idle / GENERATIONS {
            self.change(|config| config.generation = next_generation(config.generation))?;
            self.generations.push_back((self.config.generation, now));
        }
        Ok(swept)
    }

    /// A second has passed: makes room for more flows where those that there are begin to crowd, until there is room for
    /// [`ProbeConfig::max_flows`]. Says for how many there is.
    pub fn make_room(&mut self) -> Result<u32, ProbeError> {
        let without_place = self.maps.packets(Reason::FlowTableFull)?;
        let more = without_place.saturating_sub(self.without_place);
        self.without_place = without_place;
        if let Some(lines) = self.flows.crowded(more) {
            let (table, began) = (Arc::clone(&self.flows), Instant::now());
            table.grow(lines, || self.change(|config| config.line_mask = lines - 1))?;
            tracing::info!(lines, took = ?began.elapsed(), "more lines of the flow table are in use");
        }
        Ok(FlowLine::room(self.flows.in_use()))
    }

    /// Ends counting and enforcement: detaches the programs and removes the pins.
    pub fn detach(self) -> Result<(), ProbeError> {
        remove(&self.settings)
    }

    /// [`Probe::detach`] of a probe that no agent has loaded, of whatever layout its maps are.
    pub fn remove(settings: &ProbeConfig) -> Result<(), ProbeError> {
        let _lock =
            if settings.pin_dir.exists() { Some(environment::lock(&settings.pin_dir)?) } else { None };
        remove(settings)
    }

    /// Runs one of the programs on a frame, off the wire (BPF_PROG_TEST_RUN). Counts and charges as on the wire.
    pub fn trial(&self, trial: &Trial<'_>) -> Result<TrialOutcome, ProbeError> {
        trial::run(&self.ebpf, trial)
    }

    fn next_epoch(&mut self) -> Result<(), ProbeError> {
        self.change(|config| config.epoch = config.epoch % FlowState::LAST_EPOCH + 1)
    }

    fn change(&mut self, change: impl FnOnce(&mut Config)) -> Result<(), ProbeError> {
        let mut config = self.config;
        change(&mut config);
        self.maps.set_config(&config)?;
        self.config = config;
        Ok(())
    }
}

/// Random numbers that nobody outside knows: who did could make flows that the table takes for one.
fn hash_keys() -> HashKeys {
    // Two of a random UUID's 128 bits say its variant and four its version: each half's are covered by the other half.
    let random = || {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        high.rotate_left(32) ^ low
    };
    std::array::from_fn(|_| std::array::from_fn(|_| random()))
}

/// Takes the programs off the interface, then removes what they counted.
fn remove(settings: &ProbeConfig) -> Result<(), ProbeError> {
    attach::detach_all(settings)?;
    for direction in Direction::BOTH {
        shaping::uproot_all(&settings.pin_dir, direction)?;
    }
    layout::remove_pins(&settings.pin_dir)?;
    // Somebody else's pins may be in there: then it stays.
    let _ = fs::remove_dir(&settings.pin_dir);
    Ok(())
}

/// What a sweep found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows still known.
    pub kept: usize,
    /// Flows forgotten.
    pub forgotten: usize,
}
