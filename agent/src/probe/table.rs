//! The flow table, in the memory the programs work on: naming flows and clearing idle ones.

use std::mem::offset_of;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use aya::Ebpf;
use usher_models::wire::{
    Class, Fingerprint, Flow, FlowDetails, FlowKey, FlowLine, FlowState, HashKeys, WAYS,
};

use super::mapped::Mapped;
use super::{ProbeError, Swept};

/// All places of the table.
pub(super) struct FlowTable {
    table: Mapped,
    details: Mapped,
    lines: u32,
    keys: HashKeys,
}

impl FlowTable {
    pub(super) fn take(
        ebpf: &mut Ebpf,
        [table, details]: [&'static str; 2],
        lines: u32,
        keys: HashKeys,
    ) -> Result<Self, ProbeError> {
        let table = Mapped::take::<FlowLine>(ebpf, table, lines)?;
        let details = Mapped::take::<[FlowDetails; WAYS]>(ebpf, details, lines)?;
        Ok(Self { table, details, lines, keys })
    }

    /// Gives a flow its class, and says whether more of its packets are wanted; false where it is not in the table.
    pub(super) fn name(&self, key: &FlowKey, class: Class, sampling: bool) -> bool {
        let flow = Fingerprint::of_key(&self.keys, key);
        let line = usize::try_from(flow.line(self.lines - 1)).unwrap_or(usize::MAX);
        let mut places =
            [line, line ^ 1].into_iter().flat_map(|line| (0..WAYS).map(move |way| line * WAYS + way));
        let Some(place) = places.find(|place| self.fingerprint(*place) == flow.get()) else { return false };
        self.change(place, |state| state.is_of(flow).then(|| state.named(flow, class, sampling)))
    }

    /// Flows known now.
    pub(super) fn count(&self) -> usize {
        self.places().filter(|place| self.fingerprint(*place) > Fingerprint::CLEARING).count()
    }

    /// Forgets flows last seen before generation `oldest`, in the generation `now`.
    pub(super) fn sweep(&self, oldest: u32, now: u32) -> Swept {
        let mut swept = Swept::default();
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
            let idle = generation != 0 && age(generation, now) > age(oldest, now);
            if found == Fingerprint::CLEARING || idle {
                swept.forgotten += usize::from(self.clear(place, found));
            } else {
                swept.kept += 1;
            }
        }
        swept
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
