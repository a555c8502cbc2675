//! Stays abroad: where, when, and with how much use. Only of those who went, the last [`MAX_TRIPS`] of each.
//!
//! A trip is to one country, whatever networks serve there. Who comes back to it within [`SAME_TRIP`] is on the same one, so
//! that a border is no trip and a notice on arrival comes once.

use std::time::Duration;

use usher_models::units::Micros;

use super::Engine;
use super::io::UsageSeen;
use super::moments::Phase;
use super::state::{OpenSession, SubscriberState};
use super::world::World;
use crate::identity::Plan;
use crate::policy::Rearm;

/// Most trips remembered of one subscriber.
pub const MAX_TRIPS: usize = 8;
/// Who is in the same country again within this is on the same trip.
const SAME_TRIP: Duration = Duration::from_hours(72);
/// A shorter trip says nothing of how much is used abroad.
const TELLING: Duration = Duration::from_hours(24);
/// Trips before the last one that make what is usual.
const USUAL_MIN: usize = 2;
/// Trips that make a traveller regular, if the times between their beginnings differ from the mean by no more than a quarter.
const REGULAR_MIN: usize = 4;
/// How long before it is due the next trip is ahead, at the most; a quarter of the time between trips, where that is less.
const AHEAD: Duration = Duration::from_hours(7 * 24);

/// One stay in one country.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trip {
    /// Mobile country code.
    pub country: u16,
    /// Its first session opened.
    pub from: Micros,
    /// Last known to be there; while it lasts, when its sessions last changed.
    pub to: Micros,
    /// Used there, both directions.
    pub bytes: u64,
}

impl Trip {
    #[expect(clippy::cast_precision_loss, reason = "a trip's bytes are far below 2^53")]
    fn bytes_per_day(&self) -> f64 {
        self.bytes as f64 / (self.to.since(self.from).as_secs_f64() / 86_400.0).max(1.0)
    }
}

/// The country a session is served in, where that is abroad.
pub(super) fn abroad(session: &OpenSession) -> Option<u16> {
    if session.roaming { session.serving_plmn.get(..3)?.parse().ok() } else { None }
}

/// Sessions changed from being in one country to being in another, or `None`: at home, or nowhere; `roamed` bytes were
/// used in the first. True: a trip has begun.
pub(super) fn travel(
    trips: &mut Vec<Trip>,
    (was, is): (Option<u16>, Option<u16>),
    now: Micros,
    roamed: u64,
) -> bool {
    fn latest(trips: &mut [Trip], country: Option<u16>) -> Option<&mut Trip> {
        trips.iter_mut().rev().find(|trip| Some(trip.country) == country)
    }
    if let Some(trip) = latest(trips, was) {
        trip.to = trip.to.max(now);
        trip.bytes += roamed;
    }
    let Some(country) = is.filter(|_| is != was) else { return false };
    if let Some(trip) = latest(trips, is).filter(|trip| now.since(trip.to) < SAME_TRIP) {
        trip.to = trip.to.max(now);
        return false;
    }
    if trips.len() >= MAX_TRIPS {
        trips.remove(0);
    }
    trips.push(Trip { country, from: now, to: now, bytes: 0 });
    true
}

/// Trips that are over.
pub(super) fn over(trips: &[Trip], abroad: Option<u16>) -> impl DoubleEndedIterator<Item = &Trip> {
    let current = trips.iter().rposition(|trip| Some(trip.country) == abroad);
    trips.iter().enumerate().filter(move |(index, _)| Some(*index) != current).map(|(_, trip)| trip)
}

/// How much the last trip was used, a day, in shares of what is usual abroad. `None`: it was too short to tell, or there were
/// too few before it, or without use.
pub(super) fn share(trips: &[Trip], abroad: Option<u16>) -> Option<f64> {
    let telling = |trip: &&Trip| trip.to.since(trip.from) >= TELLING;
    let mut past: Vec<&Trip> = over(trips, abroad).collect();
    let last = past.pop().filter(telling)?;
    past.retain(telling);
    if past.len() < USUAL_MIN {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let usual = past.iter().map(|trip| trip.bytes_per_day()).sum::<f64>() / past.len() as f64;
    (usual > 0.0).then(|| last.bytes_per_day() / usual)
}

/// From when until when the next trip of a regular traveller is ahead.
pub(super) fn ahead(trips: &[Trip]) -> Option<(Micros, Micros)> {
    let starts: Vec<i64> = trips.iter().map(|trip| trip.from.get()).collect();
    let gaps: Vec<i64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    if starts.len() < REGULAR_MIN {
        return None;
    }
    let mean = gaps.iter().sum::<i64>() / i64::try_from(gaps.len()).ok()?;
    if gaps.iter().any(|gap| (gap - mean).abs() > mean / 4) {
        return None;
    }
    let lead = i64::try_from(AHEAD.as_micros()).unwrap_or(i64::MAX).min(mean / 4);
    let due = starts.last()? + mean;
    Some((Micros::new(due - lead), Micros::new(due + lead)))
}

/// What a byte adds to the bill where the subscriber is now; `None`: the country says no price.
pub(super) fn price_of_a_byte(world: &World, state: &SubscriberState, plan: Option<&Plan>) -> Option<f64> {
    let country = world.country(state.whereabouts()?)?;
    if state.has_pass(plan) { Some(0.0) } else { country.price_per_mb.map(|price| price / 1e6) }
}

impl Engine {
    /// Counts use abroad; it is added to the trip when its sessions change.
    pub(super) fn count_abroad(&mut self, usage: &[UsageSeen]) {
        for seen in usage {
            if self.pages.get(seen.line).is_some_and(|seat| seat.roaming) {
                let (page, seat) = self.pages.page_mut(seen.line);
                *page.roamed.entry(u8::try_from(seat).unwrap_or_default()).or_default() += seen.bytes.0;
            }
        }
    }

    /// A trip has begun: moments that keep silent for a trip may fire again.
    pub(super) fn rearm_for_trip(&mut self, line: super::io::Line, state: &mut SubscriberState) {
        for (index, watched) in self.world.moments.iter().enumerate() {
            if watched.moment.rearm != Rearm::Trip {
                continue;
            }
            if let Some(fired) = state.moments.get_mut(&watched.name) {
                fired.silent_until = fired.silent_until.min(self.now);
            }
            if let Some(phases) = &mut self.pages.seat_mut(line).phases {
                let index = u8::try_from(index).unwrap_or(u8::MAX);
                if matches!(phases.get(&index), Some(Phase::Silent(_) | Phase::Quiet(_))) {
                    phases.remove(&index);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(day: i64) -> Micros {
        Micros::new(day * 86_400_000_000)
    }

    /// Trips to Germany: first day, days, megabytes.
    fn trips(list: &[(i64, i64, u64)]) -> Vec<Trip> {
        let mut trips = Vec::new();
        for (from, days, megabytes) in list {
            assert!(travel(&mut trips, (None, Some(262)), day(*from), 0));
            assert!(!travel(&mut trips, (Some(262), None), day(from + days), megabytes * 1_000_000));
        }
        trips
    }

    #[test]
    fn a_trip_is_to_one_country_and_a_border_is_none() {
        let mut trips = Vec::new();
        assert!(travel(&mut trips, (None, Some(262)), day(0), 0));
        assert!(travel(&mut trips, (Some(262), Some(232)), day(1), 10));
        assert!(!travel(&mut trips, (Some(232), Some(262)), day(2), 20), "back within three days");
        assert!(!travel(&mut trips, (Some(262), None), day(4), 5));
        assert_eq!(
            trips.iter().map(|trip| (trip.country, trip.bytes)).collect::<Vec<_>>(),
            [(262, 15), (232, 20)]
        );
        assert!(travel(&mut trips, (None, Some(262)), day(8), 0), "another trip to the same country");
        for again in 0..20 {
            travel(&mut trips, (None, Some(300 + again)), day(9), 0);
        }
        assert_eq!(trips.len(), MAX_TRIPS);
    }

    #[test]
    fn a_silent_trip_is_told_from_a_used_one_and_from_one_too_short_to_tell() {
        let known = |list: &[(i64, i64, u64)]| share(&trips(list), None);
        assert_eq!(known(&[(0, 4, 400), (50, 2, 200), (100, 5, 0)]), Some(0.0));
        assert_eq!(known(&[(0, 4, 400), (50, 2, 200), (100, 5, 250)]), Some(0.5));
        assert_eq!(known(&[(0, 4, 400), (100, 5, 0)]), None, "one trip is no habit");
        assert_eq!(known(&[(0, 4, 0), (50, 4, 0), (100, 5, 0)]), None, "never used abroad");
        assert_eq!(known(&[(0, 4, 400), (50, 2, 200), (100, 0, 0)]), None, "a day has not passed");
        let mut again = trips(&[(0, 4, 400), (50, 2, 200), (100, 5, 250), (150, 0, 0)]);
        assert!(travel(&mut again, (None, Some(232)), day(200), 0));
        assert_eq!(share(&again, Some(232)), None, "nor had it on the last trip, of somebody on the next");
    }

    #[test]
    fn the_next_trip_of_a_regular_traveller_is_ahead_and_of_others_is_not() {
        let monthly = trips(&[(0, 3, 1), (30, 3, 1), (61, 3, 1), (90, 3, 1)]);
        assert_eq!(ahead(&monthly), Some((day(113), day(127))));
        assert_eq!(ahead(&monthly[1..]), None);
        assert_eq!(ahead(&trips(&[(0, 3, 1), (30, 3, 1), (75, 3, 1), (90, 3, 1)])), None);
    }
}
