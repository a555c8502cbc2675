//! One subscriber, unpacked: the durable state, and the numbers of now.

use usher_models::setting::{Setting, Settings};
use usher_models::units::{Micros, SubscriberId};

use super::fit::{Fit, fit};
use super::io::{Cause, Desire};
use super::state::SubscriberState;
use super::trips;
use super::world::World;
use crate::identity::Profile;
use crate::policy::{Known, Read};

#[derive(Debug, Clone, Default)]
pub(super) struct Subscriber {
    pub(super) state: SubscriberState,
    /// By fact; empty where none was asked for.
    pub(super) facts: Vec<Option<f64>>,
    /// Share of the billing cycle that is left.
    pub(super) cycle_left: Option<f64>,
    /// Used in the last whole billing cycles, bytes, as far as they are known.
    pub(super) cycles: Vec<f64>,
    /// As of when.
    pub(super) now: Micros,
    /// Number of the organisation; 0: none.
    pub(super) organisation: u32,
}

impl Subscriber {
    /// The plan that suits, worked out from what was used.
    pub(super) fn fit<'w>(&self, world: &'w World, profile: &Profile) -> Option<Fit<'w>> {
        fit(&world.plans, &profile.plan, &self.cycles)
    }

    /// What an expression reads, as of now.
    pub(super) fn read(&self, world: &World, profile: &Profile, read: &Read) -> Option<Known> {
        match read {
            Read::Fact(name) => {
                let index = world.facts.binary_search(name).ok()?;
                self.facts.get(index).copied().flatten().map(Known::Number)
            }
            Read::Plan(field) => {
                let plan = world.plans.get(&profile.plan)?;
                let setting = plan.settings.get(field).map(|value| Known::Word(value.clone()));
                setting.or_else(|| plan.numbers.get(field).map(|number| Known::Number(*number)))
            }
            Read::Setting(name) => self
                .state
                .setting(world.plans.get(&profile.plan), name)
                .map(|value| Known::Word(value.clone())),
            Read::Sub(field) => self.read_field(world, profile, field),
            Read::Org(field) => world.organisations.get(&self.organisation)?.read(field),
            Read::Value | Read::Cost | Read::Outcome(_) => None,
        }
    }

    fn read_field(&self, world: &World, profile: &Profile, field: &str) -> Option<Known> {
        let session = self.state.whereabouts();
        let country = || session.filter(|session| session.roaming).and_then(|session| world.country(session));
        match field {
            "active" => Some(Known::Truth(profile.active)),
            "complaint_open" => Some(Known::Truth(profile.complaint_open)),
            "addons" => Some(Known::Words(profile.addons.clone())),
            "roaming" => session.map(|session| Known::Truth(session.roaming)),
            "roam_pass" => Some(Known::Truth(self.state.has_pass(world.plans.get(&profile.plan)))),
            "roam_expected" => country().map(|country| Known::Number(country.expected_per_day)),
            "roam_price" => country().map(|country| Known::Number(country.pass_price)),
            "plmn" => session.map(|session| Known::Word(session.serving_plmn.clone())),
            "rat" => session.map(|session| Known::Word(session.rat.clone())),
            "time_zone" => session.map(|session| Known::Word(session.time_zone.clone())),
            "country" => {
                let country = session.and_then(|session| world.country(session));
                country.map(|country| Known::Word(country.name.clone()))
            }
            "moved" => Some(Known::Truth(profile.moved)),
            "fit_saves" => {
                let saves = profile.offer.fit_saves;
                saves.or_else(|| self.fit(world, profile).map(|fit| fit.saves)).map(Known::Number)
            }
            "partner_fit" => profile.offer.partner_fit.map(Known::Number),
            "trips" => {
                let over = trips::over(&self.state.trips, self.state.abroad()).count();
                Some(Known::Number(f64::from(u32::try_from(over).unwrap_or(u32::MAX))))
            }
            "trip_share" => trips::share(&self.state.trips, self.state.abroad()).map(Known::Number),
            "trip_ahead" => {
                let ahead = trips::ahead(&self.state.trips).filter(|_| self.state.abroad().is_none());
                Some(Known::Truth(ahead.is_some_and(|(from, to)| from <= self.now && self.now < to)))
            }
            "cycle_left" => self.cycle_left.map(Known::Number),
            _ => None,
        }
    }

    /// Ends what is over. True: something was.
    pub(super) fn expire(&mut self, now: Micros) -> bool {
        let before = self.state.overlays.len();
        self.state.overlays.retain(|_, overlay| overlay.until > now);
        self.state.overlays.len() < before
    }

    /// New desired settings, where they differ from the last, or where `again` asks for them all the same: a session
    /// that opens has to be brought there too. Nothing for somebody never seen.
    pub(super) fn reconcile(
        &mut self,
        world: &World,
        profile: &Profile,
        cause: Cause,
        again: bool,
    ) -> Option<Desire> {
        if self.state.revision == 0 && self.state.open_sessions().next().is_none() {
            return None;
        }
        let plan = world.plans.get(&profile.plan)?;
        let wanted = plan
            .settings
            .iter()
            .map(|(name, base)| {
                let setting = match self.state.overlays.get(name) {
                    Some(overlay) => Setting {
                        value: overlay.value.clone(),
                        until: Some(overlay.until),
                        otherwise: base.clone(),
                    },
                    None => Setting::of_plan(base.clone()),
                };
                (name.clone(), setting)
            })
            .collect();
        if self.state.desired == wanted && self.state.revision > 0 && !again {
            return None;
        }
        self.state.desired = wanted;
        self.state.revision += 1;
        Some(self.desire(&profile.id, cause))
    }

    /// What takes back all that was set, for somebody who is gone, whose plan may be gone too. Nothing where no element
    /// was ever asked for more than the plan gives.
    pub(super) fn take_back(&mut self, id: &SubscriberId) -> Option<Desire> {
        let desired = &mut self.state.desired;
        if desired.values().all(|setting| setting.until.is_none()) {
            return None;
        }
        for setting in desired.values_mut() {
            *setting = Setting::of_plan(setting.otherwise.clone());
        }
        self.state.revision += 1;
        Some(self.desire(id, Cause::Gone))
    }

    fn desire(&self, id: &SubscriberId, cause: Cause) -> Desire {
        Desire { subscriber: id.clone(), settings: self.settings(), cause }
    }

    /// The last desired settings.
    pub(super) fn settings(&self) -> Settings {
        Settings { revision: self.state.revision, values: self.state.desired.clone() }
    }
}
