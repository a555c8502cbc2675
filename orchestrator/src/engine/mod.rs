//! Facts -> moments -> decisions, sans-I/O. Time is an argument; the same inputs give the same effects.
//!
//! ```text
//! step(at, input) -> [effects]
//!     Observed -> sessions (a new one: Desire) -> windows -> watermark -> boundaries -> moments that read facts
//!     Profile, Tariffs, Tapped, Stop, Policy -> what it changes
//!     any -> what is due by now: expiries, holds, rearms -> moments that read no fact
//!     a moment fires -> candidates through the gates -> Decided, then Desire or Say
//! ```
//!
//! Owns the desired settings of every subscriber and their revision. Refuses clocks, files, sockets and luck: whatever
//! is ordered here is ordered by time, then by line. Durable state leaves by [`Engine::take_dirty`] and comes back by
//! [`Engine::restore`].

mod calendar;
mod choose;
mod clock;
pub(crate) mod contact;
pub mod explain;
mod feed;
mod fit;
mod guard;
pub mod io;
mod layout;
mod learning;
mod listed;
mod look;
mod luck;
mod moments;
mod outcome;
mod pages;
pub(crate) mod partner;
mod roster;
mod sketch;
pub mod snapshot;
mod state;
mod subscriber;
#[cfg(test)]
mod tests;
mod trips;
mod under;
mod window;
mod words;
mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use foldhash::fast::FixedState;
use smol_str::SmolStr;
use usher_models::setting::Settings;
use usher_models::units::{Micros, SubscriberId};

use self::calendar::{Cycle, Cycles};
use self::clock::Clock;
use self::feed::Waiting;
use self::io::{Cause, DecisionId, Effect, Input, Line, SessionSeen, TapState};
pub use self::learning::{Learned, Tally};
use self::listed::{Crossing, Lines, Listed};
use self::look::Look;
use self::pages::{Agents, Pages, Seat};
use self::roster::{Card, Cards, Roster};
pub use self::state::{
    Asking, Fired, MAX_CONTACTS, MAX_SESSIONS, OpenSession, Order, Overlay, SentMessage, SubscriberState,
    Told, Trial,
};
use self::subscriber::Subscriber;
use self::trips::travel;
pub use self::trips::{MAX_TRIPS, Trip};
use self::world::{Leaf, World};
use crate::identity::{Directory, Profile};
use crate::policy::{Known, ORDERS, Policy, PolicyErrors};

/// What the engine has counted since it was made. Each only rises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// Usage of which something was too late for its window.
    pub late: u64,
    /// Batches that ended too far in the future, or before they started: their usage was not applied.
    pub misdated: u64,
    /// Sessions and usage of subscribers without a profile.
    pub strangers: u64,
    /// Sessions beyond [`MAX_SESSIONS`] of one subscriber.
    pub sessions_refused: u64,
    /// Moments that fired.
    pub fired: u64,
    /// Messages sent.
    pub said: u64,
    /// New desired settings.
    pub desired: u64,
    /// Boundaries of windows skipped because event time jumped.
    pub boundaries_skipped: u64,
    /// Times event time went on without an agent that was too far behind for what waited for it.
    pub overtaken: u64,
    /// Outcomes that were learnt of the action only: it has too many segments.
    pub segments_full: u64,
}

/// The engine. One task owns it.
#[derive(Debug)]
pub struct Engine {
    world: World,
    roster: Roster,
    cards: Cards,
    pages: Pages,
    clock: Clock,
    cycles: Cycles,
    /// The last boundary looked at, event time.
    boundary: Option<i64>,
    /// The boundary on which some are still to be looked at.
    crossing: Option<Crossing>,
    /// Lines to be looked at on the next boundary.
    listed: Listed,
    /// Lines with a moment under way: worked out from the seats.
    holding: Lines,
    /// Most lines looked at for a boundary in one step.
    most_looks: usize,
    /// Reports that are ahead of what their windows have room for.
    waiting: Waiting,
    /// When whom to look at without an input of their own.
    agenda: BTreeSet<(Micros, u32)>,
    due: HashMap<u32, Micros, FixedState>,
    /// Whom to look at again before the step is over.
    again: Vec<Line>,
    /// Moments of lines whose quiet hours are over, to be looked at before the step is.
    put_off: Vec<(Line, usize)>,
    by_decision: BTreeMap<DecisionId, Line>,
    dirty: BTreeSet<u32>,
    /// Forgotten since the last call.
    gone: Vec<SubscriberId>,
    /// Restored, but without a profile: taken back at the first step.
    lost: Vec<(SubscriberId, SubscriberState)>,
    /// Restored, and not looked at since.
    unsettled: Vec<Line>,
    now: Micros,
    counters: Counters,
}

/// One subscriber taken out of memory, to be looked at and changed.
struct Opened {
    line: Line,
    profile: Profile,
    /// Number of the time zone.
    zone: u32,
    subscriber: Subscriber,
    changed: bool,
}

impl Opened {
    /// When the present billing cycle ends.
    fn cycle_end(&self, cycles: &mut Cycles, now: Micros) -> Micros {
        Micros::new(self.cycle(cycles).at(now.get().max(0)).1)
    }

    fn cycle<'c>(&'c self, cycles: &'c mut Cycles) -> Cycle<'c> {
        let zone = (self.zone, self.profile.time_zone.as_deref());
        Cycle { cycles, zone, bill_day: self.profile.bill_day }
    }

    fn read(&self, world: &World, leaf: &Leaf) -> Option<Known> {
        match leaf {
            Leaf::Fact(index) => self.subscriber.facts.get(*index).copied().flatten().map(Known::Number),
            Leaf::Other(read) => self.subscriber.read(world, &self.profile, read),
        }
    }
}

impl Engine {
    /// An engine for a policy; refused where the policy does not fit the plans.
    pub fn new(policy: Policy, directory: &Directory) -> Result<Self, PolicyErrors> {
        policy.check(directory.plans())?;
        let world = World::new(policy, directory.plans().clone(), directory.countries().clone());
        let mut engine = Self::with_world(world);
        for profile in directory.profiles() {
            engine.admit(profile);
        }
        Ok(engine)
    }

    /// An engine that knows nobody.
    fn with_world(world: World) -> Self {
        Self {
            roster: Roster::default(),
            cards: Cards::default(),
            pages: Pages::new(world.layout.groups.len()),
            clock: Clock::default(),
            cycles: Cycles::default(),
            boundary: None,
            crossing: None,
            listed: Listed::new(world.layout.grids.len()),
            holding: Lines::default(),
            most_looks: moments::MAX_LOOKS,
            waiting: Waiting::default(),
            agenda: BTreeSet::new(),
            due: HashMap::default(),
            again: Vec::new(),
            put_off: Vec::new(),
            by_decision: BTreeMap::new(),
            dirty: BTreeSet::new(),
            gone: Vec::new(),
            lost: Vec::new(),
            unsettled: Vec::new(),
            now: Micros::new(i64::MIN),
            counters: Counters::default(),
            world,
        }
    }

    /// Takes back what [`Engine::take_dirty`] gave. Before the first step; what changed meanwhile, or ran out, shows in
    /// the effects of the first step.
    pub fn restore(&mut self, id: SubscriberId, state: SubscriberState) {
        let Some(line) = self.line(&id) else {
            self.lost.push((id, state));
            return;
        };
        self.by_decision.extend(state.contacts.iter().map(|contact| (contact.decision.clone(), line)));
        self.by_decision.extend(state.asking.iter().map(|asking| (asking.decision.id.clone(), line)));
        let mut opened = self.open(line);
        opened.subscriber.state = state;
        let orders = &mut opened.subscriber.state.orders;
        orders.retain(|name, order| order.instead_of == told(name, &opened.profile));
        let card = self.cards.with_orders(self.pages.seat(line).card, orders);
        let seat = self.pages.seat_mut(line);
        seat.card = card;
        // Sessions kept over a restart were open all along; whether the agents told of it is the clock's to say.
        (seat.present_since, seat.known_since) = (Micros::new(i64::MIN), Micros::new(i64::MIN));
        for (index, watched) in self.world.moments.iter().enumerate() {
            if let Some(fired) = opened.subscriber.state.moments.get(&watched.name) {
                let phases = seat.phases.get_or_insert_default();
                phases.insert(
                    u8::try_from(index).unwrap_or(u8::MAX),
                    moments::Phase::Silent(fired.silent_until),
                );
            }
        }
        opened.changed = true;
        self.close(&opened);
        self.dirty.remove(&line.0);
        self.unsettled.push(line);
    }

    /// How actions fared, to be kept over a change of policy.
    pub fn learned(&self) -> &Learned {
        &self.world.learned
    }

    /// Takes up what was learnt before, as far as it is of actions and moments there still are. Before the first step.
    pub fn learn_from(&mut self, mut learned: Learned) {
        let policy = &self.world.policy;
        learned.keep_only(
            |name| policy.actions().contains_key(name),
            |name| policy.moments().contains_key(name),
        );
        self.world.learned = learned;
    }

    /// Takes in one thing that happened and gives what is to be done, in order. Time that goes back stands still.
    pub fn step(&mut self, at: Micros, input: Input) -> Vec<Effect> {
        self.now = self.now.max(at);
        let mut effects = Vec::new();
        self.settle(&mut effects);
        match input {
            Input::Profile(profile) => {
                let line = self.admit(&profile);
                self.look_at(line, Cause::Plan, false, &mut effects);
                self.look_at_colleagues(line, &mut effects);
            }
            Input::ProfileGone(id) => {
                if let Some(line) = self.line(&id) {
                    self.forget(line, &mut effects);
                }
            }
            Input::Tariffs { plans, countries } => {
                self.world.plans = plans;
                self.world.countries = countries;
                for line in self.pages.lines() {
                    if !self.pages.state(line).is_empty() {
                        self.look_at(line, Cause::Plan, false, &mut effects);
                    }
                }
            }
            Input::Observed(observed) => self.observe(observed, &mut effects),
            Input::Tapped(decision) => self.tap(&decision, &mut effects),
            Input::Stop(stop) => self.world.stopped = stop,
            Input::Tick => {}
            Input::Declined(decision) => self.decline(&decision),
            Input::Consent { subscriber, advice } => self.consent(&subscriber, advice, &mut effects),
            Input::Complaint(subscriber) => self.complain(&subscriber),
            Input::Pushed { ok, .. } => self.guard_pushed(ok),
            Input::Resume => self.guard_resume(&mut effects),
            Input::Elements(elements) => self.world.elements = elements,
            Input::Answered { decision, offer } => self.answered(&decision, offer, &mut effects),
            Input::Policy { file_name, text, plans, countries } => {
                // Whoever gives it has parsed it before.
                if let Ok(policy) = Policy::parse(&file_name, &text) {
                    *self = self.under(policy, plans, countries);
                    self.settle(&mut effects);
                }
            }
        }
        self.catch_up(&mut effects);
        self.cross_boundaries(&mut effects);
        self.take_up_again(&mut effects);
        self.look_again(&mut effects);
        self.guard_turn(&mut effects);
        effects
    }

    /// Durable state that changed since the last call, to be made durable together with the effects of the step. `None`:
    /// the subscriber is forgotten.
    pub fn take_dirty(&mut self) -> Vec<(SubscriberId, Option<SubscriberState>)> {
        let gone = std::mem::take(&mut self.gone).into_iter().map(|id| (id, None));
        let dirty = std::mem::take(&mut self.dirty);
        let state = |line: u32| {
            let seat = self.pages.get(Line(line))?;
            Some((SubscriberId(seat.id.to_string()), Some(self.state(Line(line)))))
        };
        gone.chain(dirty.into_iter().filter_map(state)).collect()
    }

    /// When [`Input::Tick`] is next of use; `None`: not before another input.
    pub fn next_due(&self) -> Option<Micros> {
        if !self.unsettled.is_empty() || !self.lost.is_empty() || self.is_crossing() {
            return Some(self.now);
        }
        let agenda = self.agenda.first().map(|(due, _)| *due);
        [agenda, self.clock.next_idle(self.now), self.guard_due()].into_iter().flatten().min()
    }

    /// What accepts settings, as it was told last.
    pub fn elements(&self) -> &io::Elements {
        &self.world.elements
    }

    /// Whether some are still to be looked at on the last boundary: every step goes on with them, a tick too.
    pub fn is_crossing(&self) -> bool {
        self.crossing.is_some()
    }

    /// Up to when everything was told, event time.
    pub fn watermark(&self) -> Option<Micros> {
        self.clock.watermark()
    }

    /// Every profile, but for its keys.
    pub fn profiles(&self) -> impl Iterator<Item = Profile> {
        let seats = self.pages.lines().filter_map(|line| self.pages.get(line));
        seats.map(|seat| self.cards.profile(&seat.id, seat.card))
    }

    /// What makes an engine with these plans, countries and profiles of this one, where it was taken up again.
    pub fn inputs_to(&self, directory: &Directory) -> Vec<Input> {
        let mut inputs = Vec::new();
        if *directory.plans() != self.world.plans || *directory.countries() != self.world.countries {
            let (plans, countries) = (directory.plans().clone(), directory.countries().clone());
            inputs.push(Input::Tariffs { plans, countries });
        }
        let gone = self.profiles().filter(|profile| directory.profile(&profile.id).is_none());
        inputs.extend(gone.map(|profile| Input::ProfileGone(profile.id)));
        for profile in directory.profiles() {
            let keyless = Profile { keys: BTreeSet::new(), ..profile.clone() };
            // What was ordered is told of until the file says so: it may now.
            let ordered = self.line(&profile.id).is_some_and(|line| self.pages.seat(line).card.has_order());
            if ordered || self.profile(&profile.id).is_none_or(|known| known != keyless) {
                inputs.push(Input::Profile(keyless));
            }
        }
        inputs
    }

    /// The line of a subscriber with a profile.
    pub fn line(&self, id: &SubscriberId) -> Option<Line> {
        self.roster.find(&id.0, &self.pages)
    }

    /// Whose line it is; `None`: nobody's.
    pub fn id_of(&self, line: Line) -> Option<SubscriberId> {
        self.pages.get(line).map(|seat| SubscriberId(seat.id.to_string()))
    }

    /// What a tap on the message of a decision would meet.
    pub fn tap_state(&self, decision: &DecisionId, at: Micros) -> TapState {
        match self.contact(decision) {
            None => TapState::Unknown,
            Some(contact) if contact.used => TapState::Used,
            Some(contact) if contact.declined.is_some() => TapState::Declined,
            Some(contact) if contact.expires <= at => TapState::Expired,
            Some(_) => TapState::Open,
        }
    }

    /// The message of a decision, while it is remembered.
    pub fn contact(&self, decision: &DecisionId) -> Option<SentMessage> {
        let contacts = self.state(*self.by_decision.get(decision)?).contacts;
        contacts.into_iter().find(|contact| contact.decision == *decision)
    }

    /// The facts of a subscriber at the last boundary, and the numbers conditions read of the subscriber (`sub.*`; truth
    /// is 1); `None`: unknown. Empty for somebody unknown.
    pub fn facts_of(&mut self, id: &SubscriberId, at: Micros) -> BTreeMap<String, Option<f64>> {
        const FIELDS: [&str; 13] = [
            "active",
            "complaint_open",
            "cycle_left",
            "fit_saves",
            "moved",
            "partner_fit",
            "roam_expected",
            "roam_pass",
            "roam_price",
            "roaming",
            "trip_ahead",
            "trip_share",
            "trips",
        ];
        let Some(line) = self.line(id) else { return BTreeMap::new() };
        let opened = match self.boundary {
            Some(boundary) => self.open_at(line, boundary),
            None => self.open(line),
        };
        let mut facts = BTreeMap::new();
        for (index, (name, placed)) in self.world.facts.iter().zip(&self.world.layout.facts).enumerate() {
            // A fact is as old as its last boundary; long after, it says nothing of now.
            let still = clock::AGENT_IDLE + self.world.policy.lateness() + placed.fact.window.every();
            let fresh = self.boundary.is_some_and(|boundary| at.since(Micros::new(boundary)) < still);
            let value = opened.subscriber.facts.get(index).copied().flatten();
            facts.insert(name.clone(), value.filter(|_| fresh));
        }
        for field in FIELDS {
            let read = crate::policy::Read::Sub(field);
            let known = opened.subscriber.read(&self.world, &opened.profile, &read);
            facts.insert(read.to_string(), known.and_then(|known| known.number()));
        }
        facts
    }

    /// The desired settings of a subscriber; revision 0: none yet.
    pub fn settings_of(&self, id: &SubscriberId) -> Option<Settings> {
        let state = self.state_of(id)?;
        Some(Subscriber { state, ..Subscriber::default() }.settings())
    }

    /// The durable state of a subscriber.
    pub fn state_of(&self, id: &SubscriberId) -> Option<SubscriberState> {
        Some(self.state(self.line(id)?))
    }

    fn state(&self, line: Line) -> SubscriberState {
        SubscriberState::unpack(self.pages.state(line), &self.cards)
    }

    /// What is known of a subscriber, but for the keys.
    pub fn profile(&self, id: &SubscriberId) -> Option<Profile> {
        let seat = self.pages.get(self.line(id)?)?;
        Some(self.cards.profile(&seat.id, seat.card))
    }

    /// Tells of every open session: its agent, its id, whose it is.
    pub fn open_sessions(&self, mut tell: impl FnMut(&str, &str, Line)) {
        for line in self.pages.lines() {
            for (agent, sessions) in &self.state(line).sessions {
                for session in sessions.keys() {
                    tell(agent, session, line);
                }
            }
        }
    }

    /// How many subscribers have a profile.
    pub fn subscribers(&self) -> usize {
        self.roster.len()
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.world.policy
    }

    /// What becomes of decisions now: the policy's mode, or stop.
    pub fn mode(&self) -> io::Mode {
        self.world.mode()
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// A profile that is new or has changed.
    fn admit(&mut self, profile: &Profile) -> Line {
        let known = self.line(&profile.id);
        let old = known.map_or_else(Card::default, |line| self.pages.seat(line).card);
        let card = self.cards.card(profile, old);
        let line = match known {
            Some(line) => {
                self.pages.seat_mut(line).card = card;
                if old.has_order() {
                    self.keep_orders(line, profile);
                }
                line
            }
            None => self.take_seat(&profile.id, card),
        };
        self.leave_organisation(line, old);
        if card.organisation != 0 {
            let organisation = self.world.organisations.entry(card.organisation).or_default();
            organisation.members.insert(line.0);
            organisation.moved += usize::from(card.has_moved());
        }
        line
    }

    /// A profile was told of to whom something was ordered: as long as it says what it said then, the order stands.
    fn keep_orders(&mut self, line: Line, profile: &Profile) {
        let mut state = self.state(line);
        state.orders.retain(|name, order| order.instead_of == told(name, profile));
        self.pages.seat_mut(line).card = self.cards.with_orders(self.pages.seat(line).card, &state.orders);
        self.pages.set_state(line, &state.pack(&mut self.cards));
        self.dirty.insert(line.0);
    }

    fn take_seat(&mut self, id: &SubscriberId, card: Card) -> Line {
        let seat = Seat { id: SmolStr::new(&id.0), card, ..Seat::free() };
        let line = match self.roster.take_free() {
            Some(line) => {
                *self.pages.seat_mut(line) = seat;
                line
            }
            None => self.pages.push(seat),
        };
        self.roster.insert(line, &self.pages);
        line
    }

    fn leave_organisation(&mut self, line: Line, card: Card) {
        if let Some(organisation) = self.world.organisations.get_mut(&card.organisation)
            && organisation.members.remove(&line.0)
        {
            organisation.moved -= usize::from(card.has_moved());
        }
    }

    /// Conditions of others may read what became of this one.
    fn look_at_colleagues(&mut self, line: Line, effects: &mut Vec<Effect>) {
        if !self.world.reads_organisations {
            return;
        }
        let organisation = self.pages.seat(line).card.organisation;
        let members = self.world.organisations.get(&organisation).map(|found| found.members.clone());
        for member in members.into_iter().flatten().filter(|member| *member != line.0) {
            self.look_at(Line(member), Cause::Plan, false, effects);
        }
    }

    /// Everybody who was restored is looked at once; those without a profile are put back and forgotten.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        for (id, state) in std::mem::take(&mut self.lost) {
            let mut subscriber = Subscriber { state, ..Subscriber::default() };
            if let Some(desire) = subscriber.take_back(&id) {
                self.counters.desired += 1;
                effects.push(Effect::Desire(desire));
            }
            self.gone.push(id);
        }
        for line in std::mem::take(&mut self.unsettled) {
            self.look_at(line, Cause::Plan, false, effects);
        }
    }

    /// Somebody without a profile: what was set is taken back, nothing is kept.
    fn forget(&mut self, line: Line, effects: &mut Vec<Effect>) {
        let mut opened = self.open(line);
        let id = opened.profile.id.clone();
        if let Some(desire) = opened.subscriber.take_back(&id) {
            self.counters.desired += 1;
            effects.push(Effect::Desire(desire));
        }
        self.forget_due(line);
        for contact in &opened.subscriber.state.contacts {
            self.by_decision.remove(&contact.decision);
        }
        if let Some(asking) = &opened.subscriber.state.asking {
            self.by_decision.remove(&asking.decision.id);
        }
        let card = self.pages.seat(line).card;
        self.leave_organisation(line, card);
        self.cards.forget(card);
        self.roster.remove(&id.0, &self.pages);
        let layout = &self.world.layout;
        let (page, seat) = self.pages.page_mut(line);
        for group in 0..layout.groups.len() {
            page.free(layout, group, seat);
        }
        page.roamed.remove(&u8::try_from(seat).unwrap_or_default());
        page.set_state(seat, &[]);
        page.seats[seat] = Seat::free();
        self.holding.set(line, false);
        self.dirty.remove(&line.0);
        if opened.subscriber.state != SubscriberState::default() {
            self.gone.push(id);
        }
    }

    fn open(&mut self, line: Line) -> Opened {
        let seat = self.pages.seat(line);
        let card = seat.card;
        let profile = self.cards.profile(&seat.id, card);
        let zone = (card.zone, profile.time_zone.as_deref());
        let mut cycle = Cycle { cycles: &mut self.cycles, zone, bill_day: profile.bill_day };
        let cycle_left = cycle.left(self.now.get().max(0));
        let state = self.state(line);
        let subscriber = Subscriber {
            state,
            facts: Vec::new(),
            cycle_left: Some(cycle_left),
            cycles: self.used_in_cycles(line),
            now: self.now,
            organisation: card.organisation,
        };
        Opened { line, profile, zone: card.zone, subscriber, changed: false }
    }

    fn used_in_cycles(&mut self, line: Line) -> Vec<f64> {
        match (self.world.fit, self.boundary) {
            (Some(_), Some(boundary)) => self.look(line, boundary).used_in_cycles(),
            _ => Vec::new(),
        }
    }

    fn look(&mut self, line: Line, boundary: i64) -> Look<'_> {
        let (page, seat) = self.pages.page_mut(line);
        Look {
            world: &self.world,
            cards: &self.cards,
            clock: &self.clock,
            cycles: &mut self.cycles,
            page,
            seat,
            boundary,
            now: self.now,
            opened: None,
        }
    }

    /// The same, with the facts at a boundary.
    fn open_at(&mut self, line: Line, boundary: i64) -> Opened {
        let mut opened = self.open(line);
        opened.subscriber.facts = self.facts_at(line, boundary);
        // What facts are about is what is told beside them.
        let then = moments::before(Micros::new(boundary)).get().max(0);
        opened.subscriber.cycle_left = Some(opened.cycle(&mut self.cycles).left(then));
        opened
    }

    fn facts_at(&mut self, line: Line, boundary: i64) -> Vec<Option<f64>> {
        let facts = self.world.facts.len();
        let mut look = self.look(line, boundary);
        (0..facts).map(|index| look.fact(index)).collect()
    }

    fn close(&mut self, opened: &Opened) {
        if !opened.changed {
            return;
        }
        let state = &opened.subscriber.state;
        let agents = match state.sessions.len() {
            0 => Agents::None,
            1 => {
                let agent = state.sessions.keys().next().map_or("", String::as_str);
                Agents::One(self.clock.number(agent))
            }
            _ => Agents::Several,
        };
        let roaming = state.whereabouts().is_some_and(|session| session.roaming);
        self.pages.set_state(opened.line, &state.pack(&mut self.cards));
        let seat = self.pages.seat_mut(opened.line);
        (seat.agents, seat.roaming) = (agents, roaming);
        self.dirty.insert(opened.line.0);
    }

    fn session(&mut self, agent: &str, since: Micros, seen: &SessionSeen, effects: &mut Vec<Effect>) {
        let Some(line) = self.line(&seen.subscriber) else {
            self.counters.strangers += 1;
            return;
        };
        let mut opened = self.open(line);
        let was = opened.subscriber.state.abroad();
        let sessions = &mut opened.subscriber.state.sessions;
        let mut new = false;
        if seen.open {
            let open = OpenSession {
                serving_plmn: seen.serving_plmn.clone(),
                roaming: seen.roaming,
                time_zone: seen.time_zone.clone(),
                rat: seen.rat.clone(),
            };
            let count: usize = sessions.values().map(BTreeMap::len).sum();
            let before = sessions.get(agent).and_then(|sessions| sessions.get(&seen.session));
            if before == Some(&open) {
                return;
            }
            new = before.is_none();
            if new && count >= MAX_SESSIONS {
                self.counters.sessions_refused += 1;
                return;
            }
            sessions.entry(agent.to_owned()).or_default().insert(seen.session.clone(), open);
            let seat = self.pages.seat_mut(line);
            seat.present_since = seat.present_since.min(since);
            seat.known_since = seat.known_since.min(since);
        } else {
            let Some(on_agent) = sessions.get_mut(agent) else { return };
            if on_agent.remove(&seen.session).is_none() {
                return;
            }
            if on_agent.is_empty() {
                sessions.remove(agent);
            }
            if sessions.is_empty() {
                self.pages.seat_mut(line).present_since = Micros::new(i64::MAX);
            }
        }
        opened.changed = true;
        if self.world.keeps_trips {
            let state = &mut opened.subscriber.state;
            let (page, seat) = self.pages.page_mut(line);
            let roamed = was.and_then(|_| page.roamed.remove(&u8::try_from(seat).unwrap_or_default()));
            let between = (was, state.abroad());
            if travel(&mut state.trips, between, self.now, roamed.unwrap_or_default()) {
                self.rearm_for_trip(line, state);
            }
        }
        self.look_at_opened(&mut opened, Cause::Plan, new, effects);
        self.close(&opened);
    }

    fn tap(&mut self, decision: &DecisionId, effects: &mut Vec<Effect>) {
        if self.tap_state(decision, self.now) != TapState::Open {
            return;
        }
        let Some(line) = self.by_decision.get(decision).copied() else { return };
        let mut opened = self.open(line);
        let now = self.now;
        let state = &mut opened.subscriber.state;
        let Some(contact) = state.contacts.iter_mut().find(|contact| contact.decision == *decision) else {
            return;
        };
        contact.used = true;
        self.judge_message(&mut state.told, contact, true);
        let contact = contact.clone();
        let until = if contact.to_cycle_end {
            opened.cycle_end(&mut self.cycles, now)
        } else {
            now.after(std::time::Duration::from_secs(contact.tap_seconds))
        };
        let state = &mut opened.subscriber.state;
        for (name, value) in contact.tap {
            if ORDERS.contains(&name.as_str()) {
                let instead_of = told(&name, &opened.profile);
                state.orders.insert(name, Order { value, instead_of });
            } else {
                state.overlays.insert(name, Overlay { value, until, tapped: true });
            }
        }
        if let Some(order) = state.orders.get("plan") {
            opened.profile.plan.clone_from(&order.value);
        }
        let card = self.cards.with_orders(self.pages.seat(line).card, &state.orders);
        self.pages.seat_mut(line).card = card;
        opened.changed = true;
        self.look_at_opened(&mut opened, Cause::Tap(decision.clone()), false, effects);
        self.close(&opened);
    }
}

/// What a profile says of something that can be ordered.
fn told(name: &str, profile: &Profile) -> String {
    match name {
        "plan" => profile.plan.clone(),
        _ => profile.addons.iter().map(String::as_str).collect::<Vec<_>>().join(" "),
    }
}

/// The numbers of the bits that are set.
fn bits(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (next < 64).then_some(next as usize)
    })
}

/// Seconds as micros.
fn micros_of(seconds: u32) -> i64 {
    i64::from(seconds) * 1_000_000
}
