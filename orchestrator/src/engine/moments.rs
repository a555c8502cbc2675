//! True for `hold` -> fires once -> silent for `rearm`.
//!
//! ```text
//!   idle --condition true--> Holding(since) --for hold--> fire --> Silent(until) --over--> idle
//!    ^---- false or unknown -----'                          '----> Quiet(until) --over--> fire again, or idle
//! ```
//!
//! What would have been said but for quiet hours is looked at again when they are over, and said if it still holds.
//!
//! A moment that reads facts lives in event time and is looked at on the boundaries of those facts; one that reads none
//! lives in our time and is looked at when something it may read changes, or when its time has come. A condition that
//! stays true fires again after `rearm`, as a new episode.
//!
//! At a boundary only those are looked at for whom something may have changed: lines are *listed* on a grid by use, by a
//! change of what conditions read, and stay listed while a window has something in it or a moment is under way. Of many,
//! so many are looked at in one step, those with a moment under way first; the next boundary waits for the last of them.

use std::collections::BTreeMap;
use std::time::Duration;

use usher_models::units::{Micros, SubscriberId};

use super::Engine;
use super::choose::Case;
use super::clock::AGENT_IDLE;
use super::contact::forget_contacts;
use super::io::{Cause, Decision, Desire, Effect, Gate, Line, Say};
use super::listed::Crossing;
use super::look::Look;
use super::pages::{Agents, Page, Phases};
use super::state::{Fired, MAX_CONTACTS, Overlay, SentMessage};
use super::world::World;
use super::{Opened, bits, micros_of};
use crate::policy::{ActionKind, Lasts, Rearm};

/// Most moments remembered of one subscriber, those of policies past included: their episodes must not come again.
const MAX_FIRED: usize = 1_024;
/// Most boundaries looked at in one step; event time that jumps further skips the oldest.
const MAX_BOUNDARIES: i64 = 1_000;
/// Most lines looked at for a boundary in one step: some milliseconds' work.
pub(super) const MAX_LOOKS: usize = 4_096;

/// Facts are taken as they are now up to this long after their last boundary.
const STALE: Duration = Duration::from_mins(2);
/// Silent until something else ends it.
const FOR_EVER: Micros = Micros::new(i64::MAX);

/// Where a moment stands that is not idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Phase {
    /// Its condition has held since then.
    Holding(Micros),
    /// It fired and keeps silent until then.
    Silent(Micros),
    /// It fired in quiet hours, which are over then, our time.
    Quiet(Micros),
}

impl Engine {
    /// Everybody whose time has come.
    pub(super) fn catch_up(&mut self, effects: &mut Vec<Effect>) {
        while let Some((due, _)) = self.agenda.first()
            && *due <= self.now
            && let Some((_, line)) = self.agenda.pop_first()
        {
            self.due.remove(&line);
            self.look_at(Line(line), Cause::Plan, false, effects);
        }
    }

    /// Brings one subscriber up to date: what is over ends, desired settings follow, moments without facts are looked
    /// at. `again`: a session opened, so the settings are desired anew even if they are the same.
    pub(super) fn look_at(&mut self, line: Line, cause: Cause, again: bool, effects: &mut Vec<Effect>) {
        let mut opened = self.open(line);
        self.look_at_opened(&mut opened, cause, again, effects);
        self.close(&opened);
    }

    pub(super) fn look_at_opened(
        &mut self,
        opened: &mut Opened,
        cause: Cause,
        again: bool,
        effects: &mut Vec<Effect>,
    ) {
        self.judge(opened);
        self.stop_asking(opened, effects);
        let subscriber = &mut opened.subscriber;
        let expired = subscriber.expire(self.now);
        let forgotten = forget_contacts(&self.world, &mut subscriber.state.contacts, self.now);
        opened.changed |= expired || !forgotten.is_empty();
        for decision in forgotten {
            self.by_decision.remove(&decision);
        }
        let cause = if expired && cause == Cause::Plan { Cause::Expiry } else { cause };
        if let Some(desire) = subscriber.reconcile(&self.world, &opened.profile, cause, again) {
            opened.changed = true;
            self.counters.desired += 1;
            effects.push(Effect::Desire(desire));
        }
        for index in 0..self.world.moments.len() {
            let watched = &self.world.moments[index];
            let phase = self.phases(opened.line).and_then(|phases| phases.get(&number(index))).copied();
            match phase {
                Some(Phase::Silent(until) | Phase::Quiet(until)) if until > self.now => continue,
                Some(Phase::Quiet(_)) => {
                    self.put_off.push((opened.line, index));
                    continue;
                }
                _ if watched.facts.is_empty() => {}
                _ => continue,
            }
            let holds = watched.holds(|leaf| opened.read(&self.world, leaf));
            if self.turn(opened.line, index, self.now, holds) {
                self.fire(opened, index, self.now, effects);
            }
        }
        self.list_everywhere(opened.line);
        self.plan_next_look(opened);
    }

    fn phases(&self, line: Line) -> Option<&Phases> {
        self.pages.seat(line).phases.as_deref()
    }

    /// What was put off in quiet hours that are over, as of now: facts as of the last boundary.
    pub(super) fn take_up_again(&mut self, effects: &mut Vec<Effect>) {
        for (line, index) in std::mem::take(&mut self.put_off) {
            let phase = self.phases(line).and_then(|phases| phases.get(&number(index))).copied();
            if !matches!(phase, Some(Phase::Quiet(until)) if until <= self.now) {
                continue;
            }
            let of_facts = !self.world.moments[index].facts.is_empty();
            let boundary = self.boundary.filter(|_| of_facts);
            // What is long past says nothing of now.
            let fresh = |boundary: i64| {
                self.now.since(Micros::new(boundary)) < AGENT_IDLE + self.world.policy.lateness() + STALE
            };
            if of_facts && !boundary.is_some_and(fresh) {
                let later = Phase::Quiet(self.now.after(STALE));
                self.stand(line, index, Some(later));
                let opened = self.open(line);
                self.plan_next_look(&opened);
                continue;
            }
            let mut opened = match boundary {
                Some(boundary) => self.open_at(line, boundary),
                None => self.open(line),
            };
            self.stand(line, index, None);
            if self.world.moments[index].holds(|leaf| opened.read(&self.world, leaf)) {
                self.fire(&mut opened, index, boundary.map_or(self.now, Micros::new), effects);
            }
            self.plan_next_look(&opened);
            self.close(&opened);
        }
    }

    /// The condition of a moment that is not silent holds, or does not. True: it has held long enough.
    fn turn(&mut self, line: Line, index: usize, clock: Micros, holds: bool) -> bool {
        let hold = self.world.moments[index].moment.hold;
        let known = self.phases(line).and_then(|phases| phases.get(&number(index))).copied();
        if !holds {
            if known.is_some() {
                self.stand(line, index, None);
            }
            return false;
        }
        let since = match known {
            Some(Phase::Holding(since)) => since,
            _ => clock,
        };
        if clock.since(since) >= hold {
            return true;
        }
        let phase = Phase::Holding(since);
        if known != Some(phase) {
            self.stand(line, index, Some(phase));
        }
        false
    }

    /// Where a moment of a line stands from now on.
    fn stand(&mut self, line: Line, index: usize, phase: Option<Phase>) {
        let phases = &mut self.pages.seat_mut(line).phases;
        set_phase(phases, index, phase);
        self.holding.set(line, is_any_under_way(phases.as_deref()));
    }

    pub(super) fn plan_next_look(&mut self, opened: &Opened) {
        let line = opened.line;
        let ends = opened.subscriber.state.overlays.values().map(|overlay| overlay.until);
        let learning = self.world.policy.choose().learning;
        let open = opened.subscriber.state.contacts.iter().filter(|contact| !contact.judged);
        let answers = learning
            .into_iter()
            .flat_map(|learning| open.clone().map(move |contact| contact.judged_at(learning)));
        let trials = opened.subscriber.state.trials.iter().map(|trial| trial.due);
        let asking = opened.subscriber.state.asking.as_ref().map(|asking| asking.until);
        let ends = ends.chain(answers).chain(trials).chain(asking);
        let phases = self.phases(line).into_iter().flatten();
        let moments = phases.filter_map(|(index, phase)| {
            let watched = self.world.moments.get(usize::from(*index))?;
            match phase {
                Phase::Quiet(until) => (*until > self.now).then_some(*until),
                _ if !watched.facts.is_empty() => None,
                Phase::Holding(since) => Some(since.after(watched.moment.hold)),
                // A silence that is over was looked at just now: the condition does not hold.
                Phase::Silent(until) => (*until > self.now && *until < FOR_EVER).then_some(*until),
            }
        });
        let ahead = super::trips::ahead(&opened.subscriber.state.trips).filter(|_| self.world.keeps_trips);
        let ahead = ahead.map(|(from, _)| from).filter(|from| *from > self.now);
        let due = ends.chain(moments).chain(ahead).min();
        if due != self.due.get(&line.0).copied() {
            self.forget_due(line);
            if let Some(due) = due {
                self.agenda.insert((due, line.0));
                self.due.insert(line.0, due);
            }
        }
    }

    pub(super) fn forget_due(&mut self, line: Line) {
        if let Some(old) = self.due.remove(&line.0) {
            self.agenda.remove(&(old, line.0));
        }
    }

    /// Has a line looked at on the next boundary of every grid that a moment waits on.
    fn list_everywhere(&mut self, line: Line) {
        self.listed.insert(line, self.world.waited_on);
    }

    /// Walks event time from boundary to boundary up to the watermark.
    pub(super) fn cross_boundaries(&mut self, effects: &mut Vec<Effect>) {
        let watermark = self.clock.advance(self.now, self.world.policy.lateness());
        match (watermark, self.boundary) {
            // What came before the first report is nobody's to judge.
            (Some(watermark), None) => self.stand_at(watermark.get()),
            (Some(watermark), Some(last)) => {
                let mut last = self.skip_to(last, watermark, effects);
                while let Some(next) = self.boundary_by(last, watermark) {
                    self.look_at_those_due(usize::MAX, effects);
                    self.begin_crossing(last, next);
                    last = next;
                }
            }
            (None, _) => {}
        }
        self.look_at_those_due(self.most_looks, effects);
    }

    fn boundary_by(&self, last: i64, watermark: Micros) -> Option<i64> {
        self.world.layout.boundary_after(last).filter(|next| *next <= watermark.get())
    }

    /// From where to walk on: where event time jumped, the oldest boundaries are left out, and no condition counts as
    /// having held over them.
    fn skip_to(&mut self, last: i64, watermark: Micros, effects: &mut Vec<Effect>) -> i64 {
        let Some(step) = self.world.layout.grids.first().map(|grid| grid.step) else { return last };
        let from = watermark.get().saturating_sub(step.saturating_mul(MAX_BOUNDARIES));
        if last >= from {
            return last;
        }
        self.look_at_those_due(usize::MAX, effects);
        self.counters.boundaries_skipped += u64::try_from((from - last) / step).unwrap_or(0);
        // What waits for a boundary that is left out has no room on the next: no window that it is in is known.
        if let Some(lost) = self.waiting.first().filter(|first| *first < from) {
            self.clock.lose(Micros::new(lost), Micros::new(from));
        }
        let of_facts = |index: u8| {
            self.world.moments.get(usize::from(index)).is_none_or(|watched| !watched.facts.is_empty())
        };
        let mut forgotten = Vec::new();
        for line in self.holding.iter() {
            for (index, phase) in self.phases(line).into_iter().flatten() {
                if matches!(phase, Phase::Holding(_)) && of_facts(*index) {
                    forgotten.push((line, usize::from(*index)));
                }
            }
        }
        for (line, index) in forgotten {
            self.stand(line, index, None);
        }
        self.stand_at(from);
        from
    }

    /// Stands at a boundary without a look at anybody: what is closed is added to its totals before what comes next takes
    /// its room.
    fn stand_at(&mut self, boundary: i64) {
        self.boundary = Some(boundary);
        for grid in 0..self.world.layout.grids.len() {
            let lines: Vec<Line> = self.listed.on(grid).iter().collect();
            for line in lines {
                self.look(line, boundary).close(grid);
            }
        }
        self.let_in();
    }

    /// Everybody listed on the grids that have a boundary here is to be looked at.
    fn begin_crossing(&mut self, last: i64, boundary: i64) {
        self.boundary = Some(boundary);
        let (due, _) = self.world.due_at(boundary);
        self.crossing = Some(Crossing::new((last, boundary), self.listed.take(due), &self.holding));
    }

    /// Goes on with the boundary that is being crossed: the moments that read facts of the grids that have it, of so many
    /// lines.
    fn look_at_those_due(&mut self, most: usize, effects: &mut Vec<Effect>) {
        let Some(mut crossing) = self.crossing.take() else { return };
        let boundary = crossing.to;
        let (due, moments) = self.world.due_at(boundary);
        for line in crossing.next(most) {
            let fires = self.look_at_boundary(line, boundary, due, moments);
            for index in fires.into_iter().flatten() {
                let mut opened = self.open_at(line, boundary);
                self.fire(&mut opened, index, Micros::new(boundary), effects);
                self.plan_next_look(&opened);
                self.close(&opened);
            }
        }
        if crossing.is_over() {
            self.let_in();
        } else {
            self.crossing = Some(crossing);
        }
    }

    /// One line at one boundary: which moments fire, if any, and whether it stays listed.
    fn look_at_boundary(&mut self, line: Line, boundary: i64, due: u8, moments: u64) -> Option<Vec<usize>> {
        let clock = Micros::new(boundary);
        let (page, seat) = self.pages.page_mut(line);
        if page.seats[seat].id.is_empty() {
            return None;
        }
        let mut look = Look {
            world: &self.world,
            cards: &self.cards,
            clock: &self.clock,
            cycles: &mut self.cycles,
            page,
            seat,
            boundary,
            now: self.now,
            opened: None,
        };
        for grid in bits(due.into()) {
            look.close(grid);
        }
        let mut fires: Option<Vec<usize>> = None;
        let mut stays = 0_u8;
        for index in bits(moments) {
            let watched = &self.world.moments[index];
            let known = look.seat().phases.as_ref().and_then(|phases| phases.get(&number(index))).copied();
            let next = match known {
                Some(Phase::Silent(until)) if until > clock => known,
                Some(Phase::Quiet(_)) => known,
                _ if watched.holds(|leaf| look.read(leaf)) => {
                    let since = match known {
                        Some(Phase::Holding(since)) => since,
                        _ => clock,
                    };
                    if clock.since(since) >= watched.moment.hold {
                        fires.get_or_insert_default().push(index);
                    }
                    Some(Phase::Holding(since))
                }
                _ => None,
            };
            if next != known {
                set_phase(&mut look.page.seats[seat].phases, index, next);
            }
            let waits = match next {
                Some(Phase::Holding(_)) => true,
                // Once it is no longer silent it may fire on any of its facts' boundaries, of those without use, too.
                Some(Phase::Silent(_) | Phase::Quiet(_)) => watched.wakes || look.has_use(&watched.facts),
                // What one fact says may wait for another to be told of, on the other's own boundaries.
                None => {
                    look.seat().agents != Agents::None
                        && (watched.wakes || look.has_use(&watched.facts))
                        && !look.all_known(&watched.facts)
                }
            };
            if waits {
                for fact in &watched.facts {
                    stays |= due & 1 << self.world.layout.facts[*fact].grid;
                }
            }
        }
        stays |= keep_blocks(&self.world, look.page, seat, boundary, due);
        self.holding.set(line, is_any_under_way(look.seat().phases.as_deref()));
        self.listed.insert(line, stays);
        fires
    }

    /// A moment fires: its decision, and what comes of it.
    fn fire(&mut self, opened: &mut Opened, index: usize, clock: Micros, effects: &mut Vec<Effect>) {
        let watched = &self.world.moments[index];
        let silent_until = match watched.moment.rearm {
            Rearm::After(rearm) => clock.after(rearm),
            // The boundary at which a cycle ends is still of that cycle.
            Rearm::BillCycle if watched.facts.is_empty() => opened.cycle_end(&mut self.cycles, clock),
            Rearm::BillCycle => after(opened.cycle_end(&mut self.cycles, before(clock))),
            Rearm::Trip => FOR_EVER,
        };
        let fired = opened.subscriber.state.moments.get(&watched.name);
        let episode = fired.map_or(0, |fired| fired.episodes) + 1;
        let (profile, subscriber) = (&opened.profile, &opened.subscriber);
        let case = Case { world: &self.world, profile, subscriber, now: self.now };
        let (decision, segment) = (case.decide(watched, episode), case.segment());
        let phase = if is_put_off(&decision) {
            Phase::Quiet(case.quiet_until().min(silent_until))
        } else {
            Phase::Silent(silent_until)
        };
        let (Phase::Holding(silent_until) | Phase::Silent(silent_until) | Phase::Quiet(silent_until)) = phase;
        let state = &mut opened.subscriber.state;
        state.moments.insert(watched.name.clone(), Fired { episodes: episode, silent_until });
        forget_moments(&self.world, &mut state.moments);
        opened.changed = true;
        self.counters.fired += 1;
        self.stand(opened.line, index, Some(phase));
        self.settle_decision(opened, index, decision, segment, effects);
    }

    pub(super) fn carry_out(
        &mut self,
        opened: &mut Opened,
        index: usize,
        decision: Decision,
        segment: String,
        effects: &mut Vec<Effect>,
    ) {
        let (id, style) = (decision.id.clone(), decision.style.clone());
        let chosen = decision.carried_out().map(str::to_owned);
        effects.push(Effect::Decided(decision));
        let Some(chosen) = chosen else { return };
        let Some((name, action)) = self.world.moments[index].actions.iter().find(|(name, _)| *name == chosen)
        else {
            return;
        };
        let cycle_end = opened.cycle_end(&mut self.cycles, self.now);
        let (profile, subscriber) = (&opened.profile, &mut opened.subscriber);
        match &action.kind {
            ActionKind::Set(change) => {
                let until = match change.lasts {
                    Lasts::For(duration) => self.now.after(duration),
                    Lasts::BillCycle | Lasts::Stays => cycle_end,
                };
                for (name, value) in &change.values {
                    let overlay = Overlay { value: value.clone(), until, tapped: action.regulated };
                    subscriber.state.overlays.insert(name.clone(), overlay);
                }
                let elements = self.world.elements_of(subscriber, change);
                let desire: Option<Desire> =
                    subscriber.reconcile(&self.world, profile, Cause::Decision(id), false);
                self.counters.desired += u64::from(desire.is_some());
                if desire.is_some() {
                    self.guard_pushes(&mut opened.subscriber, elements);
                }
                effects.extend(desire.map(Effect::Desire));
                // Conditions may read what was set.
                self.again.push(opened.line);
            }
            ActionKind::Say { template, styles, tap } => {
                let case = Case { world: &self.world, profile, subscriber, now: self.now };
                // The gates have filled it in once: it can be filled in.
                let template = style.as_ref().and_then(|style| styles.get(style)).unwrap_or(template);
                let Ok(text) = case.fill(template) else { return };
                let Ok(set) = tap.as_ref().map(|tap| case.fill_change(tap)).transpose() else { return };
                let tap_seconds = match tap.as_ref().map(|tap| tap.lasts) {
                    Some(Lasts::For(duration)) => duration.as_secs(),
                    Some(Lasts::BillCycle) => cycle_end.since(self.now).as_secs().max(1),
                    Some(Lasts::Stays) | None => 0,
                };
                let to_cycle_end = tap.as_ref().is_some_and(|tap| tap.lasts == Lasts::BillCycle);
                let expires = if action.regulated && to_cycle_end {
                    cycle_end
                } else {
                    self.now.after(self.world.policy.rules().contact.expire)
                };
                let (tap, regulated) = (set.unwrap_or_default(), action.regulated);
                while subscriber.state.contacts.len() >= MAX_CONTACTS {
                    self.by_decision.remove(&subscriber.state.contacts.remove(0).decision);
                }
                subscriber.state.contacts.push(SentMessage {
                    decision: id.clone(),
                    action: name.clone(),
                    at: self.now,
                    expires,
                    tap: tap.clone(),
                    tap_seconds,
                    to_cycle_end,
                    regulated,
                    used: false,
                    declined: None,
                    style: style.unwrap_or_default(),
                    segment,
                    // The law asked for it: what comes of it teaches nothing.
                    judged: regulated,
                });
                self.by_decision.insert(id.clone(), opened.line);
                self.counters.said += 1;
                let (action, subscriber) = (name.clone(), SubscriberId(profile.id.0.clone()));
                effects.push(Effect::Say(Say {
                    decision: id,
                    subscriber,
                    action,
                    text,
                    tap,
                    tap_seconds,
                    expires,
                    regulated,
                }));
            }
        }
    }

    /// Looks again at those for whom something was set: a condition may read it.
    pub(super) fn look_again(&mut self, effects: &mut Vec<Effect>) {
        while let Some(line) = self.again.pop() {
            self.look_at(line, Cause::Plan, false, effects);
        }
    }
}

/// Whether the line's windows may still change at the boundaries of these grids; what has long been unused is given back.
fn keep_blocks(world: &World, page: &mut Page, seat: usize, boundary: i64, due: u8) -> u8 {
    let mut stays = 0;
    for (index, group) in world.layout.groups.iter().enumerate() {
        if group.grids & due == 0 {
            continue;
        }
        let Some(block) = page.block(&world.layout, index, seat) else { continue };
        let unused = boundary - micros_of(Page::last_use(block));
        for (grid, keeps) in &group.keeps {
            if unused < *keeps {
                stays |= due & 1 << grid;
            }
        }
        if unused >= group.lingers {
            page.free(&world.layout, index, seat);
        }
    }
    stays
}

/// The last instant before a boundary: what facts at it are about.
pub(super) fn before(boundary: Micros) -> Micros {
    boundary.before(Duration::from_micros(1))
}

fn after(boundary: Micros) -> Micros {
    boundary.after(Duration::from_micros(1))
}

/// Nothing was said, and something might have been but for the hour.
fn is_put_off(decision: &Decision) -> bool {
    let quiet = |stopped: &super::io::Stopped| stopped.gate == Gate::Quiet;
    decision.chosen.is_none()
        && decision.candidates.iter().any(|candidate| candidate.stopped_by.as_ref().is_some_and(quiet))
}

fn set_phase(phases: &mut Option<Box<Phases>>, index: usize, phase: Option<Phase>) {
    match phase {
        Some(phase) => drop(phases.get_or_insert_default().insert(number(index), phase)),
        None => {
            if let Some(some) = phases {
                some.remove(&number(index));
                if some.is_empty() {
                    *phases = None;
                }
            }
        }
    }
}

/// Whether a moment's condition holds and it has not fired yet.
pub(super) fn is_any_under_way(phases: Option<&Phases>) -> bool {
    phases.into_iter().flatten().any(|(_, phase)| matches!(phase, Phase::Holding(_)))
}

/// Moments are fewer than 64.
fn number(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(u8::MAX)
}

/// Keeps the moments of the policy in force and the latest of others.
fn forget_moments(world: &World, moments: &mut BTreeMap<String, Fired>) {
    while moments.len() > MAX_FIRED {
        let past = |name: &str| !world.policy.moments().contains_key(name);
        let oldest =
            moments.iter().filter(|(name, _)| past(name)).min_by_key(|(_, fired)| fired.silent_until);
        let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { return };
        moments.remove(&oldest);
    }
}
