//! The same packets from libpcap: a live interface or a file.
//!
//! Owns the reading of frames and the counting in user space, with the meaning the probe has in the kernel ([`table`]).
//! Holds settings and reads them back, and touches no packet: always a dry run. Refuses to outlive the process: its
//! counters are one [`Boot`] that ends with it.
//!
//! ```text
//! libpcap -> reading thread (paced) -> bounded channel -> next_sample: frame -> table -> counted, perhaps a Sample
//! ```
//!
//! Frames are counted inside [`Flows::next_sample`], so a verdict given for one sample holds for every packet after it,
//! however fast a file is read; and nothing is counted while nobody asks for samples. The table is shared between
//! [`Flows`], on the thread that names flows, and [`Capture`], which binds and reads counters: each holds it for one frame
//! or one answer.

mod apps;
pub mod file;
pub mod flow;
pub mod fragments;
pub mod frame;
pub mod layer;
pub mod pace;
mod plain;
pub mod records;
mod slab;
pub mod source;
pub mod table;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use usher_models::Class;
use usher_models::units::Micros;
use usher_models::wire::{Enforcement, FlowKey, SlotUsage};

pub use self::pace::Pace;
pub use self::source::{CaptureError, Source};
use self::source::{Frame, Health, Reading};
use self::table::Table;
pub use self::table::{BindingsFull, TableLimits};
use crate::dataplane::{Boot, ForApp, Sample};
use crate::usage::apps::AppMoved;
use crate::usage::{Baseline, Moved};

/// A capture that counts, samples and pretends to enforce.
#[derive(Debug)]
pub struct Capture {
    boot: Boot,
    table: Arc<Mutex<Table>>,
    health: Arc<Health>,
    enforcement: HashMap<u32, Enforcement>,
    bypass: bool,
}

/// What reads a capture's frames and gives its flows their classes.
#[derive(Debug)]
pub struct Flows {
    reading: Reading,
    table: Arc<Mutex<Table>>,
    time: Option<Micros>,
    /// When fragments that wait in vain were last looked for.
    ticked: Option<Micros>,
    /// What they still show.
    late: VecDeque<Sample<'static>>,
}

/// How often fragments that wait in vain are looked for, in the capture's time.
const TICK: Duration = Duration::from_secs(1);

/// The table, for one frame or one answer. A thread that died with it left whole counters behind: each is added to once.
fn hold(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flows {
    /// Counts frames until one is of use to the classifier. `None`: the file ended, or the interface went away; then
    /// [`Self::broken`] tells which, and every further call returns `None` at once.
    ///
    /// Cancel-safe: a frame is counted when it is taken from the channel, and then its sample is returned without waiting.
    pub async fn next_sample(&mut self) -> Option<Sample<'static>> {
        loop {
            if let Some(late) = self.late.pop_front() {
                return Some(late);
            }
            let Some(frame) = self.reading.frames.recv().await else {
                self.late.extend(hold(&self.table).rest_of_fragments());
                return self.late.pop_front();
            };
            if let Some(sample) = self.count(frame) {
                return Some(sample);
            }
        }
    }

    /// The same without waiting: `None` where there is no such frame now.
    pub fn try_next_sample(&mut self) -> Option<Sample<'static>> {
        loop {
            if let Some(late) = self.late.pop_front() {
                return Some(late);
            }
            let frame = self.reading.frames.try_recv().ok()?;
            if let Some(sample) = self.count(frame) {
                return Some(sample);
            }
        }
    }

    fn count(&mut self, Frame { link, seen, wire, bytes }: Frame) -> Option<Sample<'static>> {
        self.time = Some(seen);
        let mut table = hold(&self.table);
        if self.ticked.is_none_or(|ticked| seen.since(ticked) > TICK) {
            self.ticked = Some(seen);
            self.late.extend(table.overdue_fragments(seen));
        }
        table.frame(link, &bytes, wire, seen).map(Sample::into_owned)
    }

    /// Counts the flow's further packets in `class`, and goes on handing out their first bytes or not. False where the flow
    /// is not known any more.
    pub fn name_flow(&mut self, flow: &FlowKey, class: Class, sampling: bool) -> bool {
        hold(&self.table).name_flow(flow, class, sampling)
    }

    /// Counts the bytes of a flow's further packets for an app of a slot, or for none.
    pub fn count_for_app(&mut self, flow: &FlowKey, slot: u32, app: Option<&str>) -> ForApp {
        hold(&self.table).count_for_app(flow, slot, app)
    }

    /// Why the source ended before its end, if it did.
    pub fn broken(&self) -> Option<CaptureError> {
        self.reading.health.broken.lock().ok()?.clone()
    }

    /// The time of the last frame: with [`Pace::Fast`], ahead of the clock.
    pub fn time(&self) -> Option<Micros> {
        self.time
    }
}

impl Capture {
    /// Opens an interface or file and starts to read.
    pub fn open(source: &Source) -> Result<(Self, Flows), CaptureError> {
        Self::with_limits(source, TableLimits::default())
    }

    /// As [`Self::open`], with bounds of its own.
    pub fn with_limits(source: &Source, limits: TableLimits) -> Result<(Self, Flows), CaptureError> {
        let reading = Reading::start(source)?;
        let health = Arc::clone(&reading.health);
        let table = Arc::new(Mutex::new(Table::new(limits)));
        let flows =
            Flows { reading, table: Arc::clone(&table), time: None, ticked: None, late: VecDeque::new() };
        let boot = Boot(uuid::Uuid::new_v4().into_bytes());
        Ok((Self { boot, table, health, enforcement: HashMap::new(), bypass: false }, flows))
    }

    /// The life of these counters: this object's.
    pub fn boot(&self) -> Boot {
        self.boot
    }

    /// A slot's counters, which only ever rise.
    pub fn usage(&self, slot: u32) -> SlotUsage {
        hold(&self.table).usage(slot)
    }

    /// The counters of those slots that are not where the baseline has them, in the order of slots.
    pub fn moved(&self, baseline: &Baseline, slots: Range<u32>) -> Vec<Moved> {
        slots.flat_map(|slot| baseline.moved(slot, &self.usage(slot))).collect()
    }

    /// The bytes by app that are not where the baseline has them, in the order of lanes. A lane that no flow has been counted in for two
    /// sweeps is another app's from here on, if the baseline has all of it.
    pub fn moved_apps(&mut self, baseline: &Baseline) -> Vec<AppMoved> {
        hold(&self.table).moved_apps(baseline)
    }

    /// Apps of slots that are counted.
    pub fn apps(&self) -> usize {
        hold(&self.table).apps()
    }

    /// Binds a prefix to a slot; a narrower prefix wins over a wider one.
    pub fn bind(&mut self, prefix: IpNet, slot: u32) -> Result<(), BindingsFull> {
        hold(&self.table).bind(prefix, slot)
    }

    /// Takes a binding back.
    pub fn unbind(&mut self, prefix: IpNet) {
        hold(&self.table).unbind(prefix);
    }

    /// All bindings.
    pub fn bindings(&self) -> Vec<(IpNet, u32)> {
        hold(&self.table).bindings()
    }

    /// Holds what enforcement would do with a slot.
    pub fn enforce(&mut self, slot: u32, enforcement: &Enforcement) {
        if *enforcement == Enforcement::default() {
            self.enforcement.remove(&slot);
        } else {
            self.enforcement.insert(slot, *enforcement);
        }
    }

    /// What is held for a slot.
    pub fn enforcement(&self, slot: u32) -> Enforcement {
        self.enforcement.get(&slot).copied().unwrap_or_default()
    }

    /// Holds whether enforcement would be off.
    pub fn set_bypass(&mut self, bypass: bool) {
        self.bypass = bypass;
    }

    /// Whether enforcement would be off.
    pub fn bypass(&self) -> bool {
        self.bypass
    }

    /// What was not counted or not handed out, by reason.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = hold(&self.table).counters();
        counters.push(("dropped_before_reading", self.health.dropped.load(Ordering::Relaxed)));
        counters
    }

    /// Bytes of the frames that were not counted, link-layer header included, by reason.
    pub fn refused_bytes(&self) -> Vec<(&'static str, u64)> {
        hold(&self.table).refused_bytes().collect()
    }

    /// Forgets idle flows; says how many.
    pub fn sweep(&mut self, now: Micros) -> usize {
        hold(&self.table).sweep(now).len()
    }

    /// How many flows are held.
    pub fn flows(&self) -> usize {
        hold(&self.table).flows()
    }

    /// A capture touches no packet.
    pub const fn dry_run(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
