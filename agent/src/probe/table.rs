//! The flow table, in the memory the programs work on: naming flows, by class and app, and clearing idle ones.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use aya::Ebpf;
use usher_models::wire::{
    ANONYMOUS, Class, Fingerprint, Flow, FlowDetails, FlowKey, FlowLine, FlowState, HashKeys, WAYS,
};

use super::apps::AppLanes;
use super::mapped::Mapped;
use super::{ProbeError, Swept};
use crate::dataplane::ForApp;

/// All places of the table.
pub(super) struct FlowTable {
    table: Mapped,
    details: Mapped,
    lines: u32,
    keys: HashKeys,
    apps: Arc<AppLanes>,
}

impl FlowTable {
    pub(super) fn take(
        ebpf: &mut Ebpf,
        [table, details]: [&'static str; 2],
        lines: u32,
        keys: HashKeys,
        apps: Arc<AppLanes>,
    ) -> Result<Self, ProbeError> {
        let table = Mapped::take::<FlowLine>(ebpf, table, lines)?;
        let details = Mapped::take::<[FlowDetails; WAYS]>(ebpf, details, lines)?;
        Ok(Self { table, details, lines, keys, apps })
    }

    /// Gives a flow its class, and says whether more of its packets are wanted; false where it is not in the table.
    pub(super) fn name(&self, key: &FlowKey, class: Class, sampling: bool) -> bool {
        let Some((flow, place)) = self.find(key) else { return false };
        self.change(place, |state| state.is_of(flow).then(|| state.named(flow, class, sampling)))
    }

    /// Counts a flow's bytes for an app of its slot from now on, or for none.
    pub(super) fn count_for_app(&self, key: &FlowKey, app: Option<&str>) -> ForApp {
        let Some((flow, place)) = self.find(key) else { return ForApp::Not };
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

    /// Where a flow is.
    fn find(&self, key: &FlowKey) -> Option<(Fingerprint, usize)> {
        let flow = Fingerprint::of_key(&self.keys, key);
        let line = usize::try_from(flow.line(self.lines - 1)).unwrap_or(usize::MAX);
        let mut places =
            [line, line ^ 1].into_iter().flat_map(|line| (0..WAYS).map(move |way| line * WAYS + way));
        places.find(|place| self.fingerprint(*place) == flow.get()).map(|place| (flow, place))
    }

    /// Forgets flows last seen before generation `oldest`, if there is one, in the generation `now`; and looks which apps are still counted.
    pub(super) fn sweep(&self, oldest: Option<u32>, now: u32) -> Swept {
        let mut swept = Swept::default();
        let mut used = BTreeSet::new();
        for place in self.places() {
            let found = self.fingerprint(place);
            if found == Fingerprint::FREE {
                continue;
            }
            let generation = self.state(place).generation();
            if generation == 0 && found != Fingerprint::CLEARING {
                // Its first packet is on its way: it ages from here on.
                self.change(place, |state| (state.generation() == 0).then(|| state.seen(now)));
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
        let flow = Fingerprint::of_number(self.fingerprint(place))?;
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

    fn places(&self) -> impl Iterator<Item = usize> {
        0..usize::try_from(self.lines).unwrap_or(usize::MAX).saturating_mul(WAYS)
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

/// Generations from one to a later one; they go from 1 to the last and from 1 again.
fn age(generation: u32, now: u32) -> u32 {
    (now + FlowState::LAST_GENERATION - generation) % FlowState::LAST_GENERATION
}
