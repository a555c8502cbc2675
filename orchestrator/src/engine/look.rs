//! One subscriber at one boundary: facts worked out as they are asked for, conditions on them.

use usher_models::units::Micros;

use super::calendar::{Cycle, Cycles};
use super::clock::Clock;
use super::fit::fit;
use super::layout::{self, Placed, Shape};
use super::moments::before;
use super::pages::{Agents, Page, Seat};
use super::roster::Cards;
use super::state::SubscriberState;
use super::subscriber::Subscriber;
use super::window::{Area, Calendar as _};
use super::world::{Leaf, World};
use crate::identity::Profile;
use crate::policy::{Known, Measure, Read};

/// Windows up to this long need a session open all along; longer ones may have nights in them.
const PRESENT: i64 = 3_600_000_000;

pub(super) struct Look<'e> {
    pub(super) world: &'e World,
    pub(super) cards: &'e Cards,
    pub(super) clock: &'e Clock,
    pub(super) cycles: &'e mut Cycles,
    pub(super) page: &'e mut Page,
    pub(super) seat: usize,
    /// Event time up to which everything is told.
    pub(super) boundary: i64,
    /// Our time.
    pub(super) now: Micros,
    /// The subscriber, where something was asked for that only the packed state has.
    pub(super) opened: Option<Box<(Profile, Subscriber)>>,
}

impl Look<'_> {
    pub(super) fn seat(&self) -> &Seat {
        &self.page.seats[self.seat]
    }

    /// A fact at its last boundary; `None`: unknown.
    pub(super) fn fact(&mut self, index: usize) -> Option<f64> {
        let placed = &self.world.layout.facts[index];
        let boundary = self.boundary.div_euclid(placed.step) * placed.step;
        if self.is_covered(placed, boundary) { self.value(index, boundary) } else { None }
    }

    /// Whether there is something in the windows of one of these facts.
    pub(super) fn has_use(&mut self, facts: &[usize]) -> bool {
        let layout = &self.world.layout;
        facts.iter().any(|index| self.page.block(layout, layout.facts[*index].group, self.seat).is_some())
    }

    /// Whether nothing of these facts is unknown for want of telling.
    pub(super) fn all_known(&mut self, facts: &[usize]) -> bool {
        facts.iter().all(|index| {
            let placed = &self.world.layout.facts[*index];
            let boundary = self.boundary.div_euclid(placed.step) * placed.step;
            self.is_covered(placed, boundary)
        })
    }

    /// Whether the whole window of a fact was told of.
    pub(super) fn is_covered(&mut self, placed: &Placed, boundary: i64) -> bool {
        // It can only be more.
        if placed.fact.measure == Measure::Spend {
            return self.seat().agents != Agents::None;
        }
        let from = match placed.shape {
            Shape::Ring { panes } => boundary - i64::from(panes) * placed.step,
            Shape::Ewma { half_life } => boundary.saturating_sub(half_life),
            Shape::Tumbling { over } => (boundary - 1).div_euclid(over) * over,
            Shape::Cycle => self.cycle().cycle_start(boundary - 1),
        };
        self.is_told(from, boundary)
    }

    fn is_told(&self, from: i64, to: i64) -> bool {
        let long = to - from > PRESENT;
        let (from, to) = (Micros::new(from), Micros::new(to));
        let seat = self.seat();
        let since = if long { seat.known_since } else { seat.present_since };
        let clock = self.clock;
        since <= from
            && match seat.agents {
                Agents::None => false,
                Agents::One(agent) => clock.covers(agent, from, to),
                Agents::Several => {
                    let state = SubscriberState::unpack(self.page.state(self.seat), self.cards);
                    let mut agents = state.sessions.keys();
                    agents.all(|agent| clock.find(agent).is_some_and(|agent| clock.covers(agent, from, to)))
                }
            }
    }

    /// Used in the last whole billing cycles, the newest first, as far back as they were told of.
    pub(super) fn used_in_cycles(&mut self) -> Vec<f64> {
        let Some(index) = self.world.fit else { return Vec::new() };
        let layout = &self.world.layout;
        let placed = &layout.facts[index];
        let boundary = self.boundary.div_euclid(placed.step) * placed.step;
        let card = self.seat().card;
        let zone = (card.zone, self.cards.zone(card));
        let mut cycle = Cycle { cycles: self.cycles, zone, bill_day: card.bill_day };
        let totals = match self.page.block(layout, placed.group, self.seat) {
            Some(block) => {
                let words = &mut block[placed.offset..placed.offset + placed.words()];
                Area { placed, words }.cycles(boundary, &mut cycle)
            }
            None => [0.0; layout::CYCLES],
        };
        let mut end = cycle.cycle_start(boundary - 1);
        let mut known = Vec::new();
        for total in totals {
            let start = self.cycle().cycle_start(end - 1);
            if !self.is_told(start, end) {
                break;
            }
            known.push(total);
            end = start;
        }
        known
    }

    /// What its panes say of a fact.
    fn value(&mut self, index: usize, boundary: i64) -> Option<f64> {
        let layout = &self.world.layout;
        let placed = &layout.facts[index];
        let card = self.seat().card;
        let zone = (card.zone, self.cards.zone(card));
        let key = (u8::try_from(self.seat).unwrap_or_default(), u8::try_from(index).unwrap_or_default());
        let mut samples = self.page.samples.remove(&key);
        let block = self.page.block(layout, placed.group, self.seat);
        let value = match block {
            Some(block) => {
                let words = &mut block[placed.offset..placed.offset + placed.words()];
                let mut cycle = Cycle { cycles: self.cycles, zone, bill_day: card.bill_day };
                Area { placed, words }.value(boundary, samples.as_mut(), &mut cycle)
            }
            None => layout::is_zero_without_use(&placed.fact).then_some(0.0),
        };
        if let Some(samples) = samples.filter(|samples| !samples.is_empty()) {
            self.page.samples.insert(key, samples);
        }
        value
    }

    /// Adds what is closed to the totals of facts that have them: later reports need the room.
    pub(super) fn close(&mut self, grid: usize) {
        for index in &self.world.layout.grids[grid].facts {
            let placed = &self.world.layout.facts[*index];
            let samples = placed.keeps == layout::Keeps::Samples;
            if samples || !matches!(placed.shape, Shape::Ring { .. }) {
                self.value(*index, self.boundary);
            }
        }
    }

    /// What a condition reads.
    pub(super) fn read(&mut self, leaf: &Leaf) -> Option<Known> {
        let read = match leaf {
            Leaf::Fact(index) => return self.fact(*index).map(Known::Number),
            Leaf::Other(read) => read,
        };
        let card = self.seat().card;
        match read {
            Read::Plan(field) => {
                let plan = self.world.plans.get(self.cards.plan(card))?;
                let setting = plan.settings.get(field).map(|value| Known::Word(value.clone()));
                setting.or_else(|| plan.numbers.get(field).map(|number| Known::Number(*number)))
            }
            Read::Sub("active") => Some(Known::Truth(card.is_active())),
            Read::Sub("complaint_open") => Some(Known::Truth(card.has_complaint())),
            Read::Sub("moved") => Some(Known::Truth(card.has_moved())),
            Read::Sub("roaming") => {
                let seat = self.seat();
                (seat.agents != Agents::None).then_some(Known::Truth(seat.roaming))
            }
            Read::Sub("fit_saves") => {
                let offered = self.cards.offer(card).and_then(|offer| offer.fit_saves);
                let saves = offered.or_else(|| {
                    let cycles = self.used_in_cycles();
                    Some(fit(&self.world.plans, self.cards.plan(card), &cycles)?.saves)
                });
                saves.map(Known::Number)
            }
            Read::Sub("cycle_left") => {
                let then = before(Micros::new(self.boundary)).get();
                Some(Known::Number(self.cycle().left(then)))
            }
            _ => {
                if self.opened.is_none() {
                    let seat = self.seat();
                    let profile = self.cards.profile(&seat.id, card);
                    let state = SubscriberState::unpack(self.page.state(self.seat), self.cards);
                    let organisation = card.organisation;
                    let now = self.now;
                    let subscriber = Subscriber { state, now, organisation, ..Subscriber::default() };
                    self.opened = Some(Box::new((profile, subscriber)));
                }
                let (profile, subscriber) = &**self.opened.as_ref()?;
                subscriber.read(self.world, profile, read)
            }
        }
    }

    pub(super) fn cycle(&mut self) -> Cycle<'_> {
        let card = self.page.seats[self.seat].card;
        let zone = (card.zone, self.cards.zone(card));
        Cycle { cycles: self.cycles, zone, bill_day: card.bill_day }
    }
}
