//! What is known of a subscriber before any packet is seen.

use std::collections::{BTreeMap, BTreeSet};

use usher_models::units::SubscriberId;

/// One customer line.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Stable name of the line; a pseudonym, for it is shown to operators.
    pub id: SubscriberId,
    /// Linked keys as `kind:value` (`imsi:001010000000001`). Each belongs to one subscriber only.
    pub keys: BTreeSet<String>,
    /// Name of a plan.
    pub plan: String,
    /// Add-ons held.
    #[serde(default)]
    pub addons: BTreeSet<String>,
    /// What the person agreed to, by purpose. Absent is no.
    #[serde(default)]
    pub consent: Consent,
    /// The line is in service.
    #[serde(default = "yes")]
    pub active: bool,
    /// A complaint is being handled: a reason to keep quiet.
    #[serde(default)]
    pub complaint_open: bool,
    /// Employer or household the line belongs to.
    #[serde(default)]
    pub organisation: Option<String>,
    /// IANA time zone where the person lives; the session's own goes first.
    #[serde(default)]
    pub time_zone: Option<String>,
    /// Day of the month the bill is made up to, 1 to 28.
    #[serde(default = "first")]
    pub bill_day: u8,
    /// The line has already moved to where its organisation is moving (`sub.moved`).
    #[serde(default)]
    pub moved: bool,
    /// What the operator's back office has worked out for this line.
    #[serde(default)]
    pub offer: Offer,
}

/// What the operator's back office has worked out for one line. What is left out is unknown.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The plan that would suit it.
    #[serde(default)]
    pub fit_plan: Option<String>,
    /// What that would save a month (`sub.fit_saves`).
    #[serde(default)]
    pub fit_saves: Option<f64>,
    /// The partner whose service would suit it.
    #[serde(default)]
    pub partner: Option<String>,
    /// How well, 0 to 1 (`sub.partner_fit`).
    #[serde(default)]
    pub partner_fit: Option<f64>,
}

/// Consent by purpose: `service` for silent reconfiguration, `advice` for messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    /// The network may be reconfigured for the person unasked.
    #[serde(default)]
    pub service: bool,
    /// The person may be written to.
    #[serde(default)]
    pub advice: bool,
}

/// A tariff: the settings it gives, and numbers and words that conditions read as `plan.NAME`.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Settings in force where nothing else was decided, as `video: sd`. Read by conditions as `plan.video`.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Further numbers for conditions, as `quota: 1.0e10` (bytes). `price`, `quota` and `over_price` say which plan suits.
    #[serde(default)]
    pub numbers: BTreeMap<String, f64>,
    /// What its prices are counted in (`EUR`), for messages; empty: the numbers stand alone.
    #[serde(default)]
    pub currency: String,
}

/// What being served in a country means to a subscriber. Found by the serving network's mobile country code.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Country {
    /// The country's name, for messages.
    pub name: String,
    /// Price of a day pass.
    pub pass_price: f64,
    /// What a day without one costs a typical traveller.
    pub expected_per_day: f64,
    /// What 10^6 bytes cost without a pass; left out: nothing is known of what use there adds to the bill.
    #[serde(default)]
    pub price_per_mb: Option<f64>,
    /// What these are counted in (`EUR`), for messages; empty: the numbers stand alone.
    #[serde(default)]
    pub currency: String,
}

const fn first() -> u8 {
    1
}

const fn yes() -> bool {
    true
}
