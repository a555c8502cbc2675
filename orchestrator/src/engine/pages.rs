//! The memory of all subscribers: lines in pages, each page with the blocks of its lines.
//!
//! A page is shared until it is written to: a snapshot takes hold of every page in no time and writes them out at leisure,
//! while the engine goes on with copies of only those it changes meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use smol_str::SmolStr;
use usher_models::units::Micros;

use super::io::Line;
use super::layout::{HEADER, Layout};
use super::moments::Phase;
use super::roster::Card;
use super::sketch::Sample;

/// Lines of a page.
pub(super) const PAGE: usize = 64;
/// Bytes by which the room for packed states grows.
const STATES_STEP: usize = 256;
/// No block.
const NONE: u8 = u8::MAX;

/// What is looked at for every line, again and again.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Seat {
    /// The subscriber's id; empty: the seat is free.
    pub(super) id: SmolStr,
    pub(super) card: Card,
    /// Moments that are neither idle nor never looked at, by index.
    pub(super) phases: Option<Box<Phases>>,
    /// A session has been open since then, without a break.
    pub(super) present_since: Micros,
    /// The first session ever seen opened then.
    pub(super) known_since: Micros,
    /// Where its sessions are.
    pub(super) agents: Agents,
    /// Served by a foreign network.
    pub(super) roaming: bool,
}

impl Seat {
    pub(super) fn free() -> Self {
        Self {
            id: SmolStr::default(),
            card: Card::default(),
            phases: None,
            present_since: Micros::new(i64::MAX),
            known_since: Micros::new(i64::MAX),
            agents: Agents::None,
            roaming: false,
        }
    }
}

pub(super) type Phases = BTreeMap<u8, Phase>;

/// Which agents see a subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Agents {
    /// No session is open.
    None,
    /// All sessions are on this one.
    One(u16),
    /// On several: the packed state has them.
    Several,
}

/// Blocks of one group, without gaps.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
struct Pool {
    words: Vec<u32>,
}

/// Neighbouring lines and their blocks.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Page {
    pub(super) seats: Vec<Seat>,
    /// [`super::SubscriberState`] of each seat, packed, one after the other: nothing where there is nothing to tell.
    states: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<u32>,
    /// Place of each line's block in its group's pool, group after group.
    places: Vec<u8>,
    pools: Vec<Pool>,
    /// Samples of facts that are percentiles, by seat and fact.
    pub(super) samples: BTreeMap<(u8, u8), Vec<Sample>>,
    /// Bytes used abroad and in no trip yet, by seat.
    pub(super) roamed: BTreeMap<u8, u64>,
}

impl Page {
    fn new(groups: usize) -> Self {
        Self {
            seats: Vec::with_capacity(PAGE),
            states: Vec::new(),
            ends: Vec::with_capacity(PAGE),
            places: vec![NONE; PAGE * groups],
            pools: vec![Pool::default(); groups],
            samples: BTreeMap::new(),
            roamed: BTreeMap::new(),
        }
    }

    /// The same seats, with room for other windows.
    pub(super) fn without_blocks(&self, groups: usize) -> Self {
        let Self { seats, states, ends, roamed, .. } = self.clone();
        Self { seats, states, ends, roamed, ..Self::new(groups) }
    }

    /// Whether every word is where this layout looks for it.
    pub(super) fn fits(&self, layout: &Layout) -> bool {
        let groups = layout.groups.len();
        let whole = |(group, pool): (usize, &Pool)| {
            let words = layout.groups[group].words;
            let blocks = pool.words.len() / words;
            let places = &self.places[group * PAGE..(group + 1) * PAGE];
            let owned = |(seat, place): (usize, &u8)| {
                let at = usize::from(*place) * words;
                *place == NONE || pool.words.get(at).is_some_and(|owner| *owner as usize == seat)
            };
            pool.words.len() == blocks * words && places.iter().enumerate().all(owned)
        };
        self.seats.len() <= PAGE
            && self.ends.len() == self.seats.len()
            && self.ends.is_sorted()
            && self.ends.last().is_none_or(|last| *last as usize == self.states.len())
            && self.places.len() == PAGE * groups
            && self.pools.len() == groups
            && self.pools.iter().enumerate().all(whole)
    }

    /// The packed state of a seat.
    pub(super) fn state(&self, seat: usize) -> &[u8] {
        &self.states[self.state_at(seat)]
    }

    fn state_at(&self, seat: usize) -> std::ops::Range<usize> {
        let from = seat.checked_sub(1).map_or(0, |before| self.ends[before]);
        from as usize..self.ends[seat] as usize
    }

    pub(super) fn set_state(&mut self, seat: usize, state: &[u8]) {
        let at = self.state_at(seat);
        let (before, after) = (self.states.len(), self.states.len() - at.len() + state.len());
        if after > self.states.capacity() {
            // As with blocks: doubling would leave half of it unused.
            self.states.reserve_exact(after - before + STATES_STEP);
        }
        self.states.splice(at, state.iter().copied());
        for end in &mut self.ends[seat..] {
            *end = u32::try_from(*end as usize + after - before).unwrap_or(u32::MAX);
        }
        if self.states.capacity() > after + 4 * STATES_STEP {
            self.states.shrink_to(after + STATES_STEP);
        }
    }

    /// The block of a seat in a group.
    pub(super) fn block(&mut self, layout: &Layout, group: usize, seat: usize) -> Option<&mut [u32]> {
        let at = usize::from(*self.places.get(group * PAGE + seat)?);
        let words = layout.groups[group].words;
        (at != usize::from(NONE)).then(|| &mut self.pools[group].words[at * words..(at + 1) * words])
    }

    /// The same; made where there is none.
    pub(super) fn block_or_new(&mut self, layout: &Layout, group: usize, seat: usize) -> &mut [u32] {
        let words = layout.groups[group].words;
        let place = &mut self.places[group * PAGE + seat];
        let pool = &mut self.pools[group].words;
        if *place == NONE {
            let at = pool.len() / words;
            if pool.capacity() < pool.len() + words {
                // In steps of an eighth of a page: doubling would leave half of it unused.
                pool.reserve_exact(words * (PAGE / 8));
            }
            pool.extend_from_slice(&layout.groups[group].fresh);
            #[expect(clippy::cast_possible_truncation, reason = "a page has 64 seats")]
            {
                pool[at * words] = seat as u32;
                *place = at as u8;
            }
        }
        let at = usize::from(*place);
        &mut pool[at * words..(at + 1) * words]
    }

    /// Gives a block back; the last of the pool takes its place.
    pub(super) fn free(&mut self, layout: &Layout, group: usize, seat: usize) {
        let place = self.places[group * PAGE + seat];
        if place == NONE {
            return;
        }
        self.places[group * PAGE + seat] = NONE;
        let words = layout.groups[group].words;
        let pool = &mut self.pools[group].words;
        let (at, last) = (usize::from(place) * words, pool.len() - words);
        if at != last {
            pool.copy_within(last.., at);
            let owner = pool[at] as usize;
            self.places[group * PAGE + owner] = place;
        }
        pool.truncate(last);
        if pool.capacity() >= 2 * words * (PAGE / 8) + pool.len() {
            pool.shrink_to(pool.len() + words * (PAGE / 8));
        }
        if let Ok(seat) = u8::try_from(seat) {
            for fact in layout.groups[group].facts.iter().filter_map(|fact| u8::try_from(*fact).ok()) {
                self.samples.remove(&(seat, fact));
            }
        }
    }

    /// When a block was last used, seconds.
    pub(super) fn last_use(block: &[u32]) -> u32 {
        block[HEADER - 1]
    }
}

/// All pages.
#[derive(Debug, Clone, Default)]
pub(super) struct Pages {
    all: Vec<Arc<Page>>,
    groups: usize,
    lines: usize,
}

impl Pages {
    pub(super) fn new(groups: usize) -> Self {
        Self { all: Vec::new(), groups, lines: 0 }
    }

    /// As a snapshot has them.
    pub(super) fn restore(groups: usize, pages: Vec<Page>) -> Self {
        let lines = pages.iter().map(|page| page.seats.len()).sum();
        Self { all: pages.into_iter().map(Arc::new).collect(), groups, lines }
    }

    /// Every page, shared.
    pub(super) fn share(&self) -> Vec<Arc<Page>> {
        self.all.clone()
    }

    pub(super) fn len(&self) -> usize {
        self.lines
    }

    /// A seat more.
    pub(super) fn push(&mut self, seat: Seat) -> Line {
        if self.lines.is_multiple_of(PAGE) {
            self.all.push(Arc::new(Page::new(self.groups)));
        }
        let line = Line(u32::try_from(self.lines).unwrap_or(u32::MAX));
        self.lines += 1;
        if let Some(page) = self.all.last_mut() {
            let page = Arc::make_mut(page);
            page.seats.push(seat);
            page.ends.push(page.ends.last().copied().unwrap_or_default());
        }
        line
    }

    pub(super) fn seat(&self, line: Line) -> &Seat {
        let (page, seat) = place(line);
        &self.all[page].seats[seat]
    }

    /// The seat of a line that may not be.
    pub(super) fn get(&self, line: Line) -> Option<&Seat> {
        let (page, seat) = place(line);
        self.all.get(page)?.seats.get(seat).filter(|seat| !seat.id.is_empty())
    }

    pub(super) fn seat_mut(&mut self, line: Line) -> &mut Seat {
        let (page, seat) = place(line);
        &mut Arc::make_mut(&mut self.all[page]).seats[seat]
    }

    /// The packed state of a line.
    pub(super) fn state(&self, line: Line) -> &[u8] {
        let (page, seat) = place(line);
        self.all[page].state(seat)
    }

    pub(super) fn set_state(&mut self, line: Line, state: &[u8]) {
        let (page, seat) = self.page_mut(line);
        page.set_state(seat, state);
    }

    /// The page of a line, to be changed, and the line's seat in it.
    pub(super) fn page_mut(&mut self, line: Line) -> (&mut Page, usize) {
        let (page, seat) = place(line);
        (Arc::make_mut(&mut self.all[page]), seat)
    }

    /// Lines in use, in their order.
    pub(super) fn lines(&self) -> impl Iterator<Item = Line> + use<> {
        (0..u32::try_from(self.lines).unwrap_or(u32::MAX)).map(Line)
    }
}

fn place(line: Line) -> (usize, usize) {
    (line.0 as usize / PAGE, line.0 as usize % PAGE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_line_keeps_its_own_state(
            lines in 1_usize..150,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..3_000), 1..60),
        ) {
            let mut pages = Pages::new(0);
            for _ in 0..lines {
                pages.push(Seat::free());
            }
            let mut expected = vec![Vec::new(); lines];
            for (number, (line, length)) in changes.iter().enumerate() {
                let (line, state) = (line.index(lines), vec![u8::try_from(number).unwrap(); *length]);
                pages.set_state(Line(u32::try_from(line).unwrap()), &state);
                expected[line] = state;
            }
            for (line, state) in pages.lines().zip(&expected) {
                prop_assert_eq!(pages.state(line), &state[..]);
            }
            for page in &pages.all {
                prop_assert!(page.ends.len() == page.seats.len() && page.states.len() == page.ends[page.ends.len() - 1] as usize);
                prop_assert!(page.states.capacity() <= page.states.len() + 4 * STATES_STEP);
            }
        }
    }
}
