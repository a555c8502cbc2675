//! Messages to one person: how many, when, and what the person answered.
//!
//! Owns the gates that only messages pass (budget, spacing, quiet hours, back-off), what is remembered of messages sent, and
//! what a no, a STOP and a complaint change. Refuses to weigh: that is `choose`.

use std::time::Duration;

use jiff::tz::TimeZone;
use usher_models::units::{Micros, SubscriberId};

use super::Engine;
use super::choose::Case;
use super::io::{Cause, DecisionId, Effect, Gate, TapState};
use super::state::{MAX_CONTACTS, SentMessage};
use super::world::World;
use crate::policy::Quota;

/// How long a message is remembered beyond its link, so that a late tap is told the right thing.
pub(crate) const REMEMBERED: Duration = Duration::from_hours(7 * 24);

impl Case<'_> {
    /// Whether a message of this action may be sent now; the first rule that forbids it is the reason.
    pub(super) fn contact_gates(&self, name: &str) -> Result<(), (Gate, String)> {
        let rules = self.world.policy.rules();
        let contacts = &self.subscriber.state.contacts;
        if contacts.len() >= MAX_CONTACTS {
            return Err((Gate::Budget, format!("{MAX_CONTACTS} messages are still remembered")));
        }
        let sent = |quota: Quota, action: Option<&str>| {
            let since = self.now.before(quota.per);
            let counts = |contact: &&SentMessage| {
                !contact.regulated
                    && contact.at > since
                    && action.is_none_or(|action| contact.action == action)
            };
            let count = contacts.iter().filter(counts).count();
            let seconds = quota.per.as_secs();
            let why = format!("{count} in the last {}, at most {}", describe(seconds), quota.count);
            if count < quota.count as usize { Ok(()) } else { Err(why) }
        };
        if let Some(quota) = rules.contact.budget {
            sent(quota, None).map_err(|why| (Gate::Budget, format!("messages: {why}")))?;
        }
        if let Some(quota) = rules.contact.same_action {
            sent(quota, Some(name))
                .map_err(|why| (Gate::SameAction, format!("messages of `{name}`: {why}")))?;
        }
        if let Some(quiet) = rules.contact.quiet {
            let (zone, from) = self.time_zone();
            let local = local_minute(self.now, &zone);
            if quiet.covers(local) {
                let why = format!("it is {:02}:{:02} there ({from})", local / 60, local % 60);
                return Err((Gate::Quiet, why));
            }
        }
        self.backoff(name).map_or(Ok(()), |why| Err((Gate::Backoff, why)))
    }

    /// Why to keep silent after what the person answered, or did not: about this action, and after a complaint about all.
    fn backoff(&self, name: &str) -> Option<String> {
        let backoff = self.world.policy.rules().backoff;
        let told = &self.subscriber.state.told;
        let lasts = |since: Micros, silence: Option<Duration>| {
            silence.is_some_and(|silence| self.now < since.after(silence))
        };
        if let Some(at) = told.complaint.filter(|at| lasts(*at, backoff.complaint)) {
            return Some(format!("there was a complaint at {at}"));
        }
        let of_action = || self.subscriber.state.contacts.iter().filter(|contact| contact.action == name);
        let declined = of_action().filter_map(|contact| contact.declined).max();
        if let Some(at) = declined.filter(|at| lasts(*at, backoff.declined)) {
            return Some(format!("a message of `{name}` was declined at {at}"));
        }
        let ran_out = |contact: &&SentMessage| contact.is_open() && contact.expires <= self.now;
        let ignored = of_action().filter(ran_out).map(|contact| contact.expires).max();
        let at = ignored.filter(|at| lasts(*at, backoff.ignored))?;
        Some(format!("a message of `{name}` ran out untapped at {at}"))
    }

    /// When quiet hours are over where the person is.
    pub(super) fn quiet_until(&self) -> Micros {
        let Some(quiet) = self.world.policy.rules().contact.quiet else { return self.now };
        let local = i64::from(local_minute(self.now, &self.time_zone().0));
        let left = (i64::from(quiet.to) - local).rem_euclid(24 * 60).max(1);
        Micros::new((self.now.get().div_euclid(60_000_000) + left) * 60_000_000)
    }

    /// Where the person is now, else where they live, else UTC.
    fn time_zone(&self) -> (TimeZone, String) {
        let session = self.subscriber.state.whereabouts().map(|session| session.time_zone.as_str());
        for name in session.into_iter().chain(self.profile.time_zone.as_deref()) {
            if let Ok(zone) = TimeZone::get(name) {
                return (zone, name.to_owned());
            }
        }
        (TimeZone::UTC, "UTC, for want of a time zone".to_owned())
    }
}

impl Engine {
    /// The person says no to an offer that is still open.
    pub(super) fn decline(&mut self, decision: &DecisionId) {
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
        contact.declined = Some(now);
        self.judge_message(&mut state.told, contact, false);
        opened.changed = true;
        self.close(&opened);
    }

    /// The person withdraws consent to advice (STOP), or gives it back. What the profile says is needed besides.
    pub(super) fn consent(&mut self, id: &SubscriberId, advice: bool, effects: &mut Vec<Effect>) {
        let Some(line) = self.line(id) else { return };
        let mut opened = self.open(line);
        let stop = &mut opened.subscriber.state.told.stop;
        if !advice {
            // Also where it was withdrawn before: nothing that waits may be sent.
            effects.push(Effect::Withdraw(id.clone()));
        }
        if stop.is_none() == advice {
            return;
        }
        *stop = if advice { None } else { Some(self.now) };
        opened.changed = true;
        self.look_at_opened(&mut opened, Cause::Plan, false, effects);
        self.close(&opened);
    }

    /// The person complains.
    pub(super) fn complain(&mut self, id: &SubscriberId) {
        let Some(line) = self.line(id) else { return };
        let mut opened = self.open(line);
        opened.subscriber.state.told.complaint = Some(self.now);
        opened.changed = true;
        self.close(&opened);
        self.guard_complaint(id);
    }
}

/// Forgets messages that no rule and no late tap asks about any more; gives their decisions.
pub(super) fn forget_contacts(
    world: &World,
    contacts: &mut Vec<SentMessage>,
    now: Micros,
) -> Vec<DecisionId> {
    let rules = world.policy.rules();
    let quotas = [rules.contact.budget, rules.contact.same_action];
    let longest = quotas.into_iter().flatten().map(|quota| quota.per).max().unwrap_or_default();
    let after_link = REMEMBERED.max(rules.backoff.ignored.unwrap_or_default());
    let after_no = rules.backoff.declined.unwrap_or_default();
    let mut forgotten = Vec::new();
    contacts.retain(|contact| {
        let keep = contact.at.after(longest) > now
            || contact.expires.after(after_link) > now
            || contact.declined.is_some_and(|at| at.after(after_no) > now);
        if !keep {
            forgotten.push(contact.decision.clone());
        }
        keep
    });
    forgotten
}

fn local_minute(now: Micros, zone: &TimeZone) -> u16 {
    let timestamp = jiff::Timestamp::from_microsecond(now.get()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let time = zone.to_datetime(timestamp).time();
    u16::try_from(i16::from(time.hour()) * 60 + i16::from(time.minute())).unwrap_or_default()
}

/// `7d`, `90m`, `30s`: the largest unit that divides it.
fn describe(seconds: u64) -> String {
    for (unit, name) in [(86_400, "d"), (3_600, "h"), (60, "m")] {
        if seconds >= unit && seconds.is_multiple_of(unit) {
            return format!("{}{name}", seconds / unit);
        }
    }
    format!("{seconds}s")
}
