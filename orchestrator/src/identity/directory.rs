//! The profiles file as tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use usher_models::units::SubscriberId;

use super::{Country, DirectoryErrors, Plan, Profile, parse};
use crate::document::Issues;
use crate::engine::io::Input;

/// Plans, countries and subscribers, with every linked key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Directory {
    pub(super) plans: BTreeMap<String, Plan>,
    pub(super) countries: BTreeMap<String, Country>,
    pub(super) profiles: BTreeMap<SubscriberId, Profile>,
    pub(super) by_key: HashMap<String, SubscriberId>,
}

/// Whose a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved<'d> {
    /// One subscriber's; keys nobody has are no contradiction.
    One(&'d SubscriberId),
    /// No key is known.
    Nobody,
    /// The keys belong to several subscribers: counted for none of them, and a reason to look at the sources.
    Ambiguous(BTreeSet<&'d SubscriberId>),
}

impl Directory {
    /// Reads a profiles file; `file_name` is for the messages. All mistakes at once.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, DirectoryErrors> {
        parse::directory(text).map_err(|issues| Issues::new(file_name, text, issues))
    }

    /// Whose a session with these keys is; `None` where nobody's or not one person's.
    pub fn resolve<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> Option<&SubscriberId> {
        match self.lookup(keys) {
            Resolved::One(id) => Some(id),
            Resolved::Nobody | Resolved::Ambiguous(_) => None,
        }
    }

    /// Whose a session with these keys is, and if nobody's, why.
    pub fn lookup<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> Resolved<'_> {
        let owners: BTreeSet<&SubscriberId> =
            keys.into_iter().filter_map(|key| self.by_key.get(key.as_ref())).collect();
        match owners.first() {
            None => Resolved::Nobody,
            Some(one) if owners.len() == 1 => Resolved::One(one),
            Some(_) => Resolved::Ambiguous(owners),
        }
    }

    /// What is known of a subscriber.
    pub fn profile(&self, id: &SubscriberId) -> Option<&Profile> {
        self.profiles.get(id)
    }

    /// All subscribers, in the order of their ids.
    pub fn profiles(&self) -> impl ExactSizeIterator<Item = &Profile> {
        self.profiles.values()
    }

    /// Subscribers whose ids come after `after`, in order; all of them where it is `None`.
    pub fn profiles_after(&self, after: Option<&SubscriberId>) -> impl Iterator<Item = &Profile> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.profiles.range((from, Bound::Unbounded)).map(|(_, profile)| profile)
    }

    /// All plans by name.
    pub fn plans(&self) -> &BTreeMap<String, Plan> {
        &self.plans
    }

    /// All countries by mobile country code.
    pub fn countries(&self) -> &BTreeMap<String, Country> {
        &self.countries
    }

    /// The country a network serves in, by the MCC its PLMN starts with.
    pub fn country(&self, serving_plmn: &str) -> Option<&Country> {
        self.countries.get(serving_plmn.get(..3)?)
    }

    /// What the engine has to hear when this directory takes the place of `old`: only what differs.
    pub fn inputs_since(&self, old: &Self) -> Vec<Input> {
        let mut inputs = Vec::new();
        if self.plans != old.plans || self.countries != old.countries {
            inputs.push(Input::Tariffs { plans: self.plans.clone(), countries: self.countries.clone() });
        }
        let gone = old.profiles.keys().filter(|id| !self.profiles.contains_key(id));
        inputs.extend(gone.cloned().map(Input::ProfileGone));
        let changed = self.profiles.values().filter(|profile| old.profiles.get(&profile.id) != Some(profile));
        inputs.extend(changed.cloned().map(Input::Profile));
        inputs
    }
}
