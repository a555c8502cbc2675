//! The flow table, in the memory the programs work on: naming flows, by class and app, clearing idle ones, and making room.
//!
//! Of all lines only so many are in use as the flows there are need: few flows lie in few pages, and a packet finds its own sooner. Where they
//! begin to crowd the agent puts more lines in use, and moves flows to where they are looked for then.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Arc, PoisonError, RwLock};

use aya::Ebpf;
use usher_models::wire::{
    ANONYMOUS, Class, Config, Fingerprint, Flow, FlowDetails, FlowKey, FlowLine, FlowState, HashKeys, WAYS,
};

use super::apps::AppLanes;
use super::mapped::Mapped;
use super::{ProbeError, Swept};
use crate::dataplane::ForApp;

/// Flows that there is room for at first: 2 MB of the table.
const FIRST_FLOWS: u32 = 65_536;

/// Every so manieth line is looked at to tell how many flows there are.
const LOOKED_AT: usize = 16;

/// All places of the table.
pub(super) struct FlowTable {
    table: Mapped,
    details: Mapped,
    /// All lines.
    lines: u32,
    /// Lines in use, a power of two. Who names a flow reads it, so that none is moved meanwhile.
    in_use: RwLock<u32>,
    keys: HashKeys,
    apps: Arc<AppLanes>,
}

impl FlowTable {
    /// With as many lines in use as the config says; one that says nothing is of a new table.
    pub(super) fn take(
        ebpf: &mut Ebpf,
        [table, details]: [&'static str; 2],
        lines: u32,
        config: &Config,
        apps: Arc<AppLanes>,
    ) -> Result<Self, ProbeError> {
        let table = Mapped::take::<FlowLine>(ebpf, table, lines)?;
        let details = Mapped::take::<[FlowDetails; WAYS]>(ebpf, details, lines)?;
        let in_use = match config.line_mask {
            0 => FlowLine::lines(FIRST_FLOWS),
            mask => mask.saturating_add(1).next_power_of_two(),
        };
        let in_use = RwLock::new(in_use.min(lines));
        Ok(Self { table, details, lines, in_use, keys: config.hash_keys, apps })
    }

    /// Lines in use.
    pub(super) fn in_use(&self) -> u32 {
        *self.in_use.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a flow its class, and says whether more of its packets are wanted; false where it is not in the table.
    pub(super) fn name(&self, key: &FlowKey, class: Class, sampling: bool) -> bool {
        let in_use = self.in_use.read().unwrap_or_else(PoisonError::into_inner);
        let Some((flow, place)) = self.find(key, *in_use) else { return false };
        self.change(place, |state| state.is_of(flow).then(|| state.named(flow, class, sampling)))
    }

    /// Counts a flow's bytes for an app of its slot from now on, or for none.
    pub(super) fn count_for_app(&self, key: &FlowKey, app: Option<&str>) -> ForApp {
        let in_use = self.in_use.read().unwrap_or_else(PoisonError::into_inner);
        let Some((flow, place)) = self.find(key, *in_use) else { return ForApp::Not };
        let (slot, class) = self.whose(place);
        let given = app.and_then(|app| self.apps.lane(slot, class, app));
        if let Some(word) = self.app(place) {
            word.store(given.map_or(0, |given| given.lane + 1), Release);
        }
        let changed = self.count_at(place, flow, (slot, class), given.map_or(0, |given| given.choice));
        match (app, given) {
            (_, Some(_)) if changed => ForApp::Counted,
            (Some(_), None) if slot != ANONYMOUS => ForApp::Full,
            _ => ForApp::Not,
        }
    }

    /// The slot and class that a flow is counted for.
    fn whose(&self, place: usize) -> (u32, Class) {
        let state = self.state(place);
        (state.last_slot(), state.class())
    }

    /// Has a flow's app counted at a choice of its slot's and class's places, if these are still its.
    fn count_at(&self, place: usize, flow: Fingerprint, (slot, class): (u32, Class), choice: u8) -> bool {
        self.change(place, |state| {
            let is_so = state.is_of(flow) && (state.last_slot(), state.class()) == (slot, class);
            is_so.then(|| state.for_app(flow, choice))
        })
    }

    /// Where a flow is, of so many lines.
    fn find(&self, key: &FlowKey, in_use: u32) -> Option<(Fingerprint, usize)> {
        let flow = Fingerprint::of_key(&self.keys, key);
        let line = size(flow.line(in_use - 1));
        let mut places =
            [line, line ^ 1].into_iter().flat_map(|line| (0..WAYS).map(move |way| line * WAYS + way));
        places.find(|place| self.fingerprint(*place) == flow.get()).map(|place| (flow, place))
    }

    /// Forgets flows last seen before generation `oldest`, if there is one, in the generation `now`; and looks which apps are still counted.
    pub(super) fn sweep(&self, oldest: Option<u32>, now: u32) -> Swept {
        let mut swept = Swept::default();
        let mut used = BTreeSet::new();
        for place in places(0..self.in_use()) {
            let found = self.fingerprint(place);
            if found == Fingerprint::FREE {
                continue;
            }
            let generation = self.state(place).generation();
            if generation == 0
                && let Some(flow) = Fingerprint::read(found)
            {
                // Its first packet is on its way: it ages from here on.
                self.change(place, |state| (state.generation() == 0).then(|| state.seen(flow, now)));
            }
            // An agent that ended while it cleared a place left it to the next one.
            let idle =
                generation != 0 && oldest.is_some_and(|oldest| age(generation, now) > age(oldest, now));
            if found == Fingerprint::CLEARING || idle {
                swept.forgotten += usize::from(self.clear(place, found));
            } else {
                swept.kept += 1;
                used.extend(self.keep_app(place));
            }
        }
        self.apps.swept(&used);
        swept
    }

    /// The lane of a flow's app. A flow whose address has gone to another slot, or that has another class, is counted for that one's app from
    /// here on.
    fn keep_app(&self, place: usize) -> Option<u32> {
        let word = self.app(place)?;
        let noted = word.load(Acquire);
        let lane = noted.checked_sub(1)?;
        let (slot, class) = self.whose(place);
        if slot == ANONYMOUS || self.state(place).app() != 0 {
            return Some(lane);
        }
        let flow = Fingerprint::read(self.fingerprint(place))?;
        let Some(given) = self.apps.lane_of_same_app(lane, slot, class) else { return Some(lane) };
        // Where it was given another app meanwhile, that one stays.
        if word.compare_exchange(noted, given.lane + 1, AcqRel, Acquire).is_ok() {
            self.count_at(place, flow, (slot, class), given.choice);
        }
        Some(given.lane)
    }

    fn app(&self, place: usize) -> Option<&AtomicU32> {
        self.details.u32(place * size_of::<FlowDetails>() + offset_of!(FlowDetails, app))
    }

    /// How many lines should be in use, where flows crowd in those that are and there are more; so many packets found no place lately.
    pub(super) fn crowded(&self, without_place: u64) -> Option<u32> {
        let in_use = self.in_use();
        if in_use == self.lines {
            return None;
        }
        let flows = self.estimate(in_use).saturating_add(u32::try_from(without_place).unwrap_or(u32::MAX));
        // A third more room than they take, for more will have come when this is asked again.
        let wanted = FlowLine::lines(flows.saturating_add(flows / 3)).min(self.lines);
        (wanted > in_use).then_some(wanted)
    }

    /// About how many flows there are in so many lines.
    fn estimate(&self, lines: u32) -> u32 {
        let step = if size(lines) < LOOKED_AT * LOOKED_AT { 1 } else { LOOKED_AT };
        let looked_at = (0..size(lines)).step_by(step).flat_map(|line| line * WAYS..(line + 1) * WAYS);
        let found = looked_at.filter(|place| Fingerprint::read(self.fingerprint(*place)).is_some()).count();
        u32::try_from(found * step).unwrap_or(u32::MAX)
    }

    /// Puts more lines in use, a power of two, and moves the flows that are looked for in them from now on. `tell` makes the programs look there.
    ///
    /// Until then a flow is found at its old place alone, and at its new one alone after. What a packet writes between the two is written
    /// where nobody looks any more: the next one asks again whose the flow is. Naming waits meanwhile.
    pub(super) fn grow(
        &self,
        lines: u32,
        tell: impl FnOnce() -> Result<(), ProbeError>,
    ) -> Result<(), ProbeError> {
        // What an agent that ended in the midst of this has left there.
        for place in places(self.in_use()..lines) {
            let left = self.fingerprint(place);
            if left != Fingerprint::FREE {
                self.clear(place, left);
            }
        }
        let mut in_use = self.in_use.write().unwrap_or_else(PoisonError::into_inner);
        let mut moved = Vec::new();
        for place in places(0..*in_use) {
            let Some(flow) = Fingerprint::read(self.fingerprint(place)) else { continue };
            // The lines of before are the same few of every so many now, and which of those it is the fingerprint says.
            let upper = flow.line(lines - 1) & !(*in_use - 1);
            if upper != 0 {
                self.copy(flow, place, place + size(upper) * WAYS);
                moved.push((place, flow));
            }
        }
        tell()?;
        *in_use = lines;
        drop(in_use);
        for (place, flow) in moved {
            // One whose first packet is on its way is left to the sweep: that packet's word would stay behind in a free place.
            if self.state(place) != FlowState::default() {
                self.clear(place, flow.get());
            }
        }
        Ok(())
    }

    /// Copies all that is known of a flow to a free place where nobody looks yet.
    fn copy(&self, flow: Fingerprint, from: usize, to: usize) {
        let bytes = size_of::<FlowDetails>();
        for at in (0..bytes).step_by(8) {
            if let (Some(from), Some(to)) =
                (self.details.u64(from * bytes + at), self.details.u64(to * bytes + at))
            {
                to.store(from.load(Relaxed), Relaxed);
            }
        }
        let state = self.state(from);
        self.change(to, |_| state.is_of(flow).then_some(state));
        if let Some(word) = self.table.u64(to * size_of::<Flow>() + offset_of!(Flow, fingerprint)) {
            word.store(flow.get(), Release);
        }
    }

    /// Frees a place. Nobody finds the flow any more before the rest is zero, and nobody takes the place before that.
    fn clear(&self, place: usize, found: u64) -> bool {
        let Some(fingerprint) = self.table.u64(place * size_of::<Flow>()) else { return false };
        if fingerprint.compare_exchange(found, Fingerprint::CLEARING, AcqRel, Acquire).is_err() {
            return false;
        }
        for at in (0..size_of::<FlowDetails>()).step_by(8) {
            if let Some(word) = self.details.u64(place * size_of::<FlowDetails>() + at) {
                word.store(0, Relaxed);
            }
        }
        self.change(place, |_| Some(FlowState::default()));
        fingerprint.store(Fingerprint::FREE, Release);
        true
    }

    fn fingerprint(&self, place: usize) -> u64 {
        let word = self.table.u64(place * size_of::<Flow>() + offset_of!(Flow, fingerprint));
        word.map_or(Fingerprint::FREE, |word| word.load(Acquire))
    }

    fn state(&self, place: usize) -> FlowState {
        let word = self.table.u64(place * size_of::<Flow>() + offset_of!(Flow, state));
        FlowState(word.map_or(0, |word| word.load(Acquire)))
    }

    /// Changes what is known of a flow, in one step, if the change still wants to.
    fn change(&self, place: usize, change: impl Fn(FlowState) -> Option<FlowState>) -> bool {
        let word = self.table.u64(place * size_of::<Flow>() + offset_of!(Flow, state));
        word.is_some_and(|word| {
            word.fetch_update(AcqRel, Acquire, |state| change(FlowState(state)).map(|state| state.0)).is_ok()
        })
    }
}

/// The places of lines.
fn places(lines: Range<u32>) -> impl Iterator<Item = usize> {
    size(lines.start).saturating_mul(WAYS)..size(lines.end).saturating_mul(WAYS)
}

fn size(lines: u32) -> usize {
    usize::try_from(lines).unwrap_or(usize::MAX)
}

/// Generations from one to a later one; they go from 1 to the last and from 1 again.
fn age(generation: u32, now: u32) -> u32 {
    (now + FlowState::LAST_GENERATION - generation) % FlowState::LAST_GENERATION
}
