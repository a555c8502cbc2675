//! What of a subscriber must survive a restart, and its bounds.

use std::collections::BTreeMap;

use usher_models::setting::Setting;
use usher_models::units::Micros;

use super::io::{Decision, DecisionId};
use super::learning::Tally;
use super::roster::Cards;
use super::trips::{self, Trip};
use crate::identity::Plan;

/// Most messages remembered of one subscriber. The quotas of a policy look back over these, and a policy that would need
/// more is refused.
pub const MAX_CONTACTS: usize = 256;
/// Most sessions one subscriber has open at a time; further ones are not seen.
pub const MAX_SESSIONS: usize = 64;

/// The durable part of what the engine knows of one subscriber: one row, JSON.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubscriberState {
    /// Of the last desired settings; rises with each.
    #[serde(default)]
    pub revision: u64,
    /// The last desired settings.
    #[serde(default)]
    pub desired: BTreeMap<String, Setting>,
    /// What decisions and taps put over the plan's settings.
    #[serde(default)]
    pub overlays: BTreeMap<String, Overlay>,
    /// Moments that have fired at least once.
    #[serde(default)]
    pub moments: BTreeMap<String, Fired>,
    /// Messages sent, oldest first.
    #[serde(default)]
    pub contacts: Vec<SentMessage>,
    /// Open sessions by agent and session id.
    #[serde(default)]
    pub sessions: BTreeMap<String, BTreeMap<String, OpenSession>>,
    /// What the person told us, beyond taps.
    #[serde(default)]
    pub told: Told,
    /// Decisions whose outcome is still to be seen.
    #[serde(default)]
    pub trials: Vec<Trial>,
    /// When decisions led to pushes, as far as a budget looks back.
    #[serde(default)]
    pub pushed: Vec<Micros>,
    /// The offer a partner is being asked about.
    #[serde(default)]
    pub asking: Option<Box<Asking>>,
    /// What taps have ordered, by name, until the profile says so, or something else.
    #[serde(default)]
    pub orders: BTreeMap<String, Order>,
    /// Stays abroad, oldest first.
    #[serde(default)]
    pub trips: Vec<Trip>,
}

/// A moment fired, and something was set for it, or nothing was done: how good things were then, to be compared later.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The moment.
    pub moment: String,
    /// What was set; empty: nothing was done.
    pub action: String,
    /// Of whom it teaches.
    pub segment: String,
    /// Thousandths of points, of 100.
    pub before: i32,
    /// When to look again.
    pub due: Micros,
}

/// What a person told us that holds for all messages.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Told {
    /// Consent to advice is withdrawn, since then.
    pub stop: Option<Micros>,
    /// The last complaint.
    pub complaint: Option<Micros>,
    /// How messages of each style were answered.
    pub styles: BTreeMap<String, Tally>,
}

/// A decision that waits for a partner's answer.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asking {
    /// As it is made if the answer is good.
    pub decision: Decision,
    /// Of whom it teaches.
    pub segment: String,
    /// How long to wait.
    pub until: Micros,
}

/// Something ordered by a tap.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What was ordered.
    pub value: String,
    /// What the profile said then.
    pub instead_of: String,
}

/// A value in force until a time.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overlay {
    /// The setting's value.
    pub value: String,
    /// When the plan's own comes back.
    pub until: Micros,
    /// The person tapped for it, or the law asks for it: no guard takes it back.
    #[serde(default)]
    pub tapped: bool,
}

/// How often a moment fired and how long it keeps silent.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fired {
    /// Times fired.
    pub episodes: u64,
    /// Silent before this time.
    pub silent_until: Micros,
}

/// A message sent.
#[expect(clippy::struct_excessive_bools, reason = "each is said of a message by itself")]
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentMessage {
    /// The decision it came from.
    pub decision: DecisionId,
    /// The action.
    pub action: String,
    /// When.
    pub at: Micros,
    /// When its link ends.
    pub expires: Micros,
    /// What a tap sets.
    pub tap: BTreeMap<String, String>,
    /// For how many seconds from the tap; zero: it stays, or nothing is set.
    pub tap_seconds: u64,
    /// Until the next billing day instead.
    #[serde(default)]
    pub to_cycle_end: bool,
    /// It was tapped.
    pub used: bool,
    /// The law asked for it: no budget counts it.
    #[serde(default)]
    pub regulated: bool,
    /// The person said no, then.
    #[serde(default)]
    pub declined: Option<Micros>,
    /// Its style; empty where there is but one text.
    #[serde(default)]
    pub style: String,
    /// Of whom it teaches.
    #[serde(default)]
    pub segment: String,
    /// What became of it was learnt.
    #[serde(default)]
    pub judged: bool,
}

impl SentMessage {
    /// Nobody has answered it.
    pub(super) const fn is_open(&self) -> bool {
        !self.used && self.declined.is_none()
    }
}

/// Where a subscriber is now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenSession {
    /// Serving network.
    pub serving_plmn: String,
    /// Served by a foreign network.
    pub roaming: bool,
    /// IANA name; empty where unknown.
    pub time_zone: String,
    /// Radio technology; empty where unknown.
    #[serde(default)]
    pub rat: String,
}

impl SubscriberState {
    /// As it is kept in memory and in snapshots.
    pub(super) fn pack(&self, cards: &mut Cards) -> Vec<u8> {
        if *self == Self::default() {
            return Vec::new();
        }
        let (mut of_plan, mut desired) = (Vec::new(), Vec::new());
        for (name, setting) in &self.desired {
            if *setting == Setting::of_plan(setting.value.as_str()) {
                of_plan.push((name.clone(), setting.value.clone()));
            } else {
                desired.push((name.clone(), setting.clone().into()));
            }
        }
        let packed = Packed {
            revision: self.revision,
            of_plan: cards.number_of_settings(&of_plan),
            desired,
            overlays: self.overlays.clone(),
            moments: self.moments.clone(),
            contacts: self.contacts.clone(),
            sessions: cards.pack_sessions(&self.sessions),
            trials: self.trials.clone(),
            pushed: self.pushed.clone(),
            asking: self.asking.clone(),
            told: (self.told != Told::default()).then(|| self.told.clone()),
            orders: self.orders.clone(),
            trips: self.trips.clone(),
        };
        postcard::to_allocvec(&packed).expect("numbers, words and lists can be packed")
    }

    /// The state that was packed.
    pub(super) fn unpack(packed: &[u8], cards: &Cards) -> Self {
        if packed.is_empty() {
            return Self::default();
        }
        let packed: Packed = postcard::from_bytes(packed).expect("it was packed here");
        let of_plan = cards.settings(packed.of_plan).iter();
        let of_plan = of_plan.map(|(name, value)| (name.clone(), Setting::of_plan(value.as_str())));
        let changed = packed.desired.into_iter().map(|(name, setting)| (name, setting.into()));
        Self {
            revision: packed.revision,
            desired: of_plan.chain(changed).collect(),
            overlays: packed.overlays,
            moments: packed.moments,
            contacts: packed.contacts,
            sessions: cards.unpack_sessions(packed.sessions),
            trials: packed.trials,
            pushed: packed.pushed,
            asking: packed.asking,
            told: packed.told.unwrap_or_default(),
            orders: packed.orders,
            trips: packed.trips,
        }
    }

    /// The decisions whose messages are remembered, or that wait for an answer; `None`: these bytes are no state.
    pub(super) fn decisions_of(packed: &[u8]) -> Option<Vec<DecisionId>> {
        if packed.is_empty() {
            return Some(Vec::new());
        }
        let packed: Packed = postcard::from_bytes(packed).ok()?;
        let asking = packed.asking.map(|asking| asking.decision.id);
        Some(packed.contacts.into_iter().map(|contact| contact.decision).chain(asking).collect())
    }

    /// The session that says where the person is: a roaming one before others.
    pub(super) fn whereabouts(&self) -> Option<&OpenSession> {
        let mut sessions = self.open_sessions();
        let first = sessions.next()?;
        Some(if first.roaming { first } else { sessions.find(|session| session.roaming).unwrap_or(first) })
    }

    /// The country the person is in, where that is abroad.
    pub(super) fn abroad(&self) -> Option<u16> {
        self.whereabouts().and_then(trips::abroad)
    }

    /// The value of a setting now.
    pub(super) fn setting<'s>(&'s self, plan: Option<&'s Plan>, name: &str) -> Option<&'s String> {
        let overlay = self.overlays.get(name).map(|overlay| &overlay.value);
        overlay.or_else(|| plan?.settings.get(name))
    }

    /// A roaming pass is in force.
    pub(super) fn has_pass(&self, plan: Option<&Plan>) -> bool {
        self.setting(plan, "roam_pass").is_some_and(|value| value != "none")
    }

    /// Sessions open on any agent, in a fixed order.
    pub fn open_sessions(&self) -> impl Iterator<Item = &OpenSession> {
        self.sessions.values().flat_map(BTreeMap::values)
    }
}

/// [`SubscriberState`] in few bytes.
#[derive(serde::Serialize, serde::Deserialize)]
struct Packed {
    revision: u64,
    /// Number of the settings that are as a plan gives them: the same for many.
    of_plan: u32,
    /// Those that are not.
    desired: Vec<(String, Changed)>,
    overlays: BTreeMap<String, Overlay>,
    moments: BTreeMap<String, Fired>,
    contacts: Vec<SentMessage>,
    sessions: PackedSessions,
    trials: Vec<Trial>,
    pushed: Vec<Micros>,
    asking: Option<Box<Asking>>,
    /// Most people tell us nothing.
    told: Option<Told>,
    orders: BTreeMap<String, Order>,
    trips: Vec<Trip>,
}

/// Of each agent, by number, the sessions and where they are.
pub(super) type PackedSessions = Vec<(u32, Vec<(String, Whereabouts)>)>;

/// An [`OpenSession`].
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) enum Whereabouts {
    /// Number of one that many have alike.
    Shared(u32),
    /// One beyond the bound on those.
    Own(OpenSession),
}

/// A setting with an end, or that is followed by another value.
#[derive(serde::Serialize, serde::Deserialize)]
struct Changed {
    value: String,
    until: Option<Micros>,
    otherwise: String,
}

impl From<Setting> for Changed {
    fn from(setting: Setting) -> Self {
        Self { value: setting.value, until: setting.until, otherwise: setting.otherwise }
    }
}

impl From<Changed> for Setting {
    fn from(changed: Changed) -> Self {
        Self { value: changed.value, until: changed.until, otherwise: changed.otherwise }
    }
}
