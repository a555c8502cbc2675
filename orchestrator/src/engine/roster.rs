//! Who is who: subscribers' ids to line numbers, and profiles in few bytes.
//!
//! A line number is given once and stays; somebody gone leaves a seat that the next one takes. What many profiles have in
//! common (plan, add-ons, time zone, ...) is kept once.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use usher_models::units::SubscriberId;

use super::io::Line;
use super::pages::Pages;
use super::state::{OpenSession, Order, PackedSessions, Whereabouts};
use crate::identity::{Consent, Offer, Profile};

/// A profile without what others have too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Card {
    pub(super) plan: u32,
    addons: u32,
    pub(super) organisation: u32,
    pub(super) zone: u32,
    offer: u32,
    pub(super) flags: u8,
    pub(super) bill_day: u8,
}

/// Places of sessions kept once: networks, radio technologies and time zones as they go together. Further ones are kept with
/// each session.
const WHEREABOUTS_MAX: usize = 4_096;

const ACTIVE: u8 = 1;
const COMPLAINT: u8 = 2;
const SERVICE: u8 = 4;
const ADVICE: u8 = 8;
const MOVED: u8 = 16;
const ORDERED: u8 = 32;

impl Card {
    pub(super) const fn is_active(self) -> bool {
        self.flags & ACTIVE != 0
    }

    pub(super) const fn has_complaint(self) -> bool {
        self.flags & COMPLAINT != 0
    }

    /// The plan, or an add-on, is not the profile's own: a tap ordered it.
    pub(super) const fn has_order(self) -> bool {
        self.flags & ORDERED != 0
    }

    pub(super) const fn has_moved(self) -> bool {
        self.flags & MOVED != 0
    }
}

/// Values that many share, each kept once, by number. Number 0 is nothing.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Shared<T: Ord> {
    by_value: BTreeMap<T, u32>,
    values: Vec<T>,
}

impl<T: Ord> Default for Shared<T> {
    fn default() -> Self {
        Self { by_value: BTreeMap::new(), values: Vec::new() }
    }
}

impl<T: Ord + Clone> Shared<T> {
    fn number(&mut self, value: &T) -> u32 {
        if let Some(number) = self.by_value.get(value) {
            return *number;
        }
        self.values.push(value.clone());
        let number = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        self.by_value.insert(value.clone(), number);
        number
    }

    /// The same, of no more than so many.
    fn number_within(&mut self, value: &T, most: usize) -> Option<u32> {
        (self.values.len() < most || self.by_value.contains_key(value)).then(|| self.number(value))
    }

    fn get(&self, number: u32) -> Option<&T> {
        self.values.get((number as usize).checked_sub(1)?)
    }
}

/// What cards refer to.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Cards {
    plans: Shared<String>,
    addons: Shared<BTreeSet<String>>,
    organisations: Shared<String>,
    zones: Shared<String>,
    settings: Shared<Vec<(String, String)>>,
    agents: Shared<String>,
    whereabouts: Shared<OpenSession>,
    /// What the back office has worked out for one subscriber; its seat's own, in no order.
    offers: BTreeMap<u32, Offer>,
    next_offer: u32,
}

impl Cards {
    /// The card of a profile, in place of `old`.
    pub(super) fn card(&mut self, profile: &Profile, old: Card) -> Card {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        self.offers.remove(&old.offer);
        let offer = if profile.offer == Offer::default() {
            0
        } else {
            self.next_offer += 1;
            self.offers.insert(self.next_offer, profile.offer.clone());
            self.next_offer
        };
        Card {
            plan: self.plans.number(&profile.plan),
            addons: if profile.addons.is_empty() { 0 } else { self.addons.number(&profile.addons) },
            organisation: profile.organisation.as_ref().map_or(0, |name| self.organisations.number(name)),
            zone: profile.time_zone.as_ref().map_or(0, |name| self.zones.number(name)),
            offer,
            flags: flag(profile.active, ACTIVE)
                | flag(profile.complaint_open, COMPLAINT)
                | flag(profile.consent.service, SERVICE)
                | flag(profile.consent.advice, ADVICE)
                | flag(profile.moved, MOVED),
            bill_day: profile.bill_day,
        }
    }

    /// The card with what was ordered.
    pub(super) fn with_orders(&mut self, card: Card, orders: &BTreeMap<String, Order>) -> Card {
        let flags = if orders.is_empty() { card.flags & !ORDERED } else { card.flags | ORDERED };
        let plan = orders.get("plan").map_or(card.plan, |order| self.plans.number(&order.value));
        Card { plan, flags, ..card }
    }

    /// What the back office has worked out.
    pub(super) fn offer(&self, card: Card) -> Option<&Offer> {
        self.offers.get(&card.offer)
    }

    /// Nothing refers to it any more.
    pub(super) fn forget(&mut self, card: Card) {
        self.offers.remove(&card.offer);
    }

    /// The profile again; of its keys, which only say whose a session is, the engine keeps none.
    pub(super) fn profile(&self, id: &str, card: Card) -> Profile {
        Profile {
            id: SubscriberId(id.to_owned()),
            keys: BTreeSet::new(),
            plan: self.plan(card).to_owned(),
            addons: self.addons.get(card.addons).cloned().unwrap_or_default(),
            consent: Consent { service: card.flags & SERVICE != 0, advice: card.flags & ADVICE != 0 },
            active: card.is_active(),
            complaint_open: card.has_complaint(),
            organisation: self.organisations.get(card.organisation).cloned(),
            time_zone: self.zone(card).map(str::to_owned),
            bill_day: card.bill_day,
            moved: card.has_moved(),
            offer: self.offers.get(&card.offer).cloned().unwrap_or_default(),
        }
    }

    /// The number of settings that many have alike; 0: none.
    pub(super) fn number_of_settings(&mut self, settings: &Vec<(String, String)>) -> u32 {
        if settings.is_empty() { 0 } else { self.settings.number(settings) }
    }

    /// The settings of a number.
    pub(super) fn settings(&self, number: u32) -> &[(String, String)] {
        self.settings.get(number).map_or(&[], Vec::as_slice)
    }

    /// Sessions by agent, names and places by number.
    pub(super) fn pack_sessions(
        &mut self,
        sessions: &BTreeMap<String, BTreeMap<String, OpenSession>>,
    ) -> PackedSessions {
        let by_agent = sessions.iter().map(|(agent, sessions)| {
            let sessions = sessions.iter().map(|(id, open)| {
                let number = self.whereabouts.number_within(open, WHEREABOUTS_MAX);
                (id.clone(), number.map_or_else(|| Whereabouts::Own(open.clone()), Whereabouts::Shared))
            });
            let sessions = sessions.collect();
            (self.agents.number(agent), sessions)
        });
        by_agent.collect()
    }

    /// The same by name again.
    pub(super) fn unpack_sessions(
        &self,
        packed: PackedSessions,
    ) -> BTreeMap<String, BTreeMap<String, OpenSession>> {
        let open = |whereabouts| match whereabouts {
            Whereabouts::Shared(number) => self.whereabouts.get(number).cloned(),
            Whereabouts::Own(open) => Some(open),
        };
        let by_agent = packed.into_iter().filter_map(|(agent, sessions)| {
            let sessions =
                sessions.into_iter().filter_map(|(id, whereabouts)| Some((id, open(whereabouts)?)));
            Some((self.agents.get(agent)?.clone(), sessions.collect()))
        });
        by_agent.collect()
    }

    pub(super) fn plan(&self, card: Card) -> &str {
        self.plans.get(card.plan).map_or("", String::as_str)
    }

    pub(super) fn zone(&self, card: Card) -> Option<&str> {
        self.zones.get(card.zone).map(String::as_str)
    }
}

/// Line numbers by id. The ids themselves are in the seats.
#[derive(Debug, Default)]
pub(super) struct Roster {
    by_id: HashTable<u32>,
    hasher: RandomState,
    free: BTreeSet<u32>,
}

impl Roster {
    pub(super) fn find(&self, id: &str, pages: &Pages) -> Option<Line> {
        let hash = self.hasher.hash_one(id);
        self.by_id.find(hash, |line| *pages.seat(Line(*line)).id == *id).map(|line| Line(*line))
    }

    /// Notes that a line is of this id.
    pub(super) fn insert(&mut self, line: Line, pages: &Pages) {
        let hasher = &self.hasher;
        let hash = |line: &u32| hasher.hash_one(pages.seat(Line(*line)).id.as_str());
        self.by_id.insert_unique(hash(&line.0), line.0, hash);
    }

    /// A seat that somebody left.
    pub(super) fn take_free(&mut self) -> Option<Line> {
        self.free.pop_first().map(Line)
    }

    pub(super) fn remove(&mut self, id: &str, pages: &Pages) {
        let hash = self.hasher.hash_one(id);
        let found = self.by_id.find_entry(hash, |line| *pages.seat(Line(*line)).id == *id);
        if let Ok(entry) = found {
            let (line, _) = entry.remove();
            self.free.insert(line);
        }
    }

    /// As the seats of a snapshot are.
    pub(super) fn restore(pages: &Pages) -> Self {
        let mut roster = Self::default();
        roster.by_id.reserve(pages.len(), |line| roster.hasher.hash_one(pages.seat(Line(*line)).id.as_str()));
        for line in pages.lines() {
            if pages.seat(line).id.is_empty() {
                roster.free.insert(line.0);
            } else {
                roster.insert(line, pages);
            }
        }
        roster
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}
