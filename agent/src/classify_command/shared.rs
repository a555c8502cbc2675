//! Verdicts that many flows have, held once.
//!
//! Owns the last of them by what they say, a bounded number; what is not among them any more is held anew. Flows keep theirs
//! as long as they live.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::classify::Verdict;

/// Verdicts that are remembered.
const PLACES: u64 = 4_096;

/// The last verdicts.
#[derive(Debug)]
pub(super) struct Shared {
    places: Vec<Option<Arc<Verdict>>>,
    keys: RandomState,
}

impl Default for Shared {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| None).collect(), keys: RandomState::default() }
    }
}

impl Shared {
    /// The verdict, with other flows that have the same if there were any lately.
    pub(super) fn share(&mut self, verdict: Verdict) -> Arc<Verdict> {
        let hash = self.keys.hash_one((&verdict.name, &verdict.app));
        let place = usize::try_from(hash % PLACES).unwrap_or_default();
        let Some(place) = self.places.get_mut(place) else { return Arc::new(verdict) };
        match place {
            Some(known) if **known == verdict => Arc::clone(known),
            other => Arc::clone(other.insert(Arc::new(verdict))),
        }
    }
}

#[cfg(test)]
mod tests {
    use usher_models::Class;

    use super::*;
    use crate::classify::Via;

    #[test]
    fn the_same_verdict_is_held_once_and_another_is_another() {
        let verdict = |name: &str| Verdict {
            app: Some("app".into()),
            class: Class::Web,
            via: Via::Sni,
            confidence: crate::classify::SURE,
            name: Some(name.into()),
            keeps_sampling: false,
        };
        let mut shared = Shared::default();
        let first = shared.share(verdict("a.example"));
        assert!(Arc::ptr_eq(&first, &shared.share(verdict("a.example"))));
        for number in 0..2 * PLACES {
            let name = format!("{number}.example");
            assert_eq!(*shared.share(verdict(&name)), verdict(&name));
        }
        assert_eq!(*first, verdict("a.example"));
    }
}
