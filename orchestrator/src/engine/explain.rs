//! One subscriber as the engine sees it at this moment: facts, where each moment stands, and what each would come to if it
//! fired now. Nothing is changed by looking.

use std::collections::BTreeMap;

use usher_models::units::{Micros, SubscriberId};

use super::Engine;
use super::choose::Case;
use super::io::Candidate;
use super::moments::Phase;

/// What the engine sees of one subscriber.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Seen {
    /// What conditions would read; `None`: unknown.
    pub facts: BTreeMap<String, Option<f64>>,
    /// Every moment of the policy.
    pub moments: Vec<MomentSeen>,
}

/// Where one moment stands.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct MomentSeen {
    /// Its name.
    pub moment: String,
    /// Where it stands.
    pub stands: Stands,
    /// Times it has fired.
    pub episodes: u64,
    /// What each action would come to if it fired now.
    pub candidates: Vec<Candidate>,
    /// The one that would be taken; `None`: nothing would be done.
    pub would_choose: Option<String>,
}

/// Where a moment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stands {
    /// It fires once its condition has held for its time.
    Armed,
    /// Its condition has held since then.
    HoldingSince(Micros),
    /// It fired, and keeps silent until then.
    SilentUntil(Micros),
}

impl Engine {
    /// What the engine sees of a subscriber at `at`; `None`: it knows nobody of this id.
    pub fn seen(&mut self, id: &SubscriberId, at: Micros) -> Option<Seen> {
        let line = self.line(id)?;
        let facts = self.facts_of(id, at);
        let opened = match self.boundary {
            Some(boundary) => self.open_at(line, boundary),
            None => self.open(line),
        };
        let phases = self.pages.seat(line).phases.as_deref();
        let now = self.now.max(at);
        let case = Case { world: &self.world, profile: &opened.profile, subscriber: &opened.subscriber, now };
        let moments = self.world.moments.iter().enumerate().map(|(index, watched)| {
            let phase = u8::try_from(index).ok().and_then(|index| phases?.get(&index));
            let episodes =
                opened.subscriber.state.moments.get(&watched.name).map_or(0, |fired| fired.episodes);
            let decision = case.decide(watched, episodes + 1);
            MomentSeen {
                moment: watched.name.clone(),
                stands: match phase {
                    Some(Phase::Holding(since)) => Stands::HoldingSince(*since),
                    Some(Phase::Silent(until) | Phase::Quiet(until)) if *until > now => {
                        Stands::SilentUntil(*until)
                    }
                    _ => Stands::Armed,
                },
                episodes,
                candidates: decision.candidates,
                would_choose: decision.chosen,
            }
        });
        Some(Seen { facts, moments: moments.collect() })
    }
}
