//! What a jurisdiction refuses, as far as a policy shows it. Each breach with its place, the law by name and the remedy.
//!
//! A help for whoever writes a policy, no legal advice: it finds what settings, values and rules say by their words.

use super::lint::Places;
use super::types::{Action, ActionKind, Change, Purpose, Quiet, Source};
use super::{Policy, Read};
use crate::document::Issue;

/// Whose law a policy is written under: `jurisdiction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Jurisdiction {
    /// None is checked.
    #[default]
    None,
    /// The European Union.
    Eu,
    /// The United States.
    Us,
}

impl Jurisdiction {
    /// As it is written.
    pub(super) const NAMES: [(&str, Self); 3] = [("eu", Self::Eu), ("us", Self::Us), ("none", Self::None)];

    /// The law by name: in the Union, in the States.
    fn law(self, eu: &'static str, us: &'static str) -> &'static str {
        if self == Self::Us { us } else { eu }
    }
}

/// Words that hold something back, in a setting's name or value.
const SLOWS: [&str; 20] = [
    "block",
    "blocked",
    "cap",
    "capped",
    "closed",
    "deny",
    "denied",
    "drop",
    "limit",
    "limited",
    "low",
    "off",
    "sd",
    "slow",
    "slowed",
    "slower",
    "stop",
    "stopped",
    "throttle",
    "throttled",
];
/// Words that take something off the bill.
const FREES: [&str; 9] =
    ["free", "sponsored", "unbilled", "uncounted", "unlimited", "unmetered", "zero", "zerorate", "zerorated"];
/// Apps that a setting may be about though no fact is.
const APPS: [&str; 18] = [
    "amazon",
    "disneyplus",
    "facebook",
    "instagram",
    "netflix",
    "primevideo",
    "signal",
    "skype",
    "snapchat",
    "spotify",
    "teams",
    "telegram",
    "tiktok",
    "twitch",
    "twitter",
    "whatsapp",
    "youtube",
    "zoom",
];
/// When nobody may be solicited in the States: 21:00 to 08:00.
const US_NIGHT: Quiet = Quiet { from: 21 * 60, to: 8 * 60 };

const EQUAL_EU: &str = "Regulation (EU) 2015/2120, article 3(3)";
const EQUAL_US: &str = "California Civil Code section 3101(a)";

/// Everything that the policy's jurisdiction refuses.
pub(super) fn breaches(policy: &Policy, places: &Places) -> Vec<Issue> {
    let mut issues = Vec::new();
    if policy.jurisdiction == Jurisdiction::None {
        return issues;
    }
    for (name, action) in &policy.actions {
        traffic(policy, places, (name, action), &mut issues);
        exempted(policy, places, (name, action), &mut issues);
    }
    messages(policy, places, &mut issues);
    issues
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
}

/// A rate or a picture's height: `2mbit`, `480p`.
fn is_amount(word: &str) -> bool {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() < word.len()
        && (rest == "p" || ["kbit", "mbit", "kbps", "mbps"].iter().any(|unit| rest.starts_with(unit)))
}

/// Equal treatment of traffic.
fn traffic(policy: &Policy, places: &Places, (name, action): (&String, &Action), issues: &mut Vec<Issue>) {
    let law = |eu, us| policy.jurisdiction.law(eu, us);
    let (change, key): (&Change, _) = match &action.kind {
        ActionKind::Set(change) => (change, "set"),
        ActionKind::Say { tap: Some(tap), .. } => (tap, "tap"),
        ActionKind::Say { .. } => return,
    };
    let of_policy: Vec<&str> = policy
        .facts
        .values()
        .filter_map(|fact| if let Source::App(app) = &fact.source { Some(app.as_str()) } else { None })
        .collect();
    for (setting, value) in &change.values {
        let place = places.key(&["actions", name, key, setting]);
        let all: Vec<String> = words(setting).chain(words(value)).collect();
        let slows = all.iter().any(|word| SLOWS.contains(&word.as_str()) || is_amount(word));
        let app =
            words(setting).find(|word| APPS.contains(&word.as_str()) || of_policy.contains(&word.as_str()));
        if all.iter().any(|word| FREES.contains(&word.as_str())) {
            let law = law(
                "article 3(3) of Regulation (EU) 2015/2120, by the Court of Justice in C-854/19, C-5/20 and C-34/20",
                "California Civil Code section 3101(a)(5) and (6)",
            );
            let message =
                format!("`{setting}: {value}` takes some traffic off the bill: {law} forbids zero-rating");
            let help = "raise the allowance for all traffic alike, as `quota: more`";
            issues.push(Issue::new(place, message).with_help(help));
        } else if let Some(app) = app.filter(|_| slows) {
            let law = law(EQUAL_EU, EQUAL_US);
            let message = format!("`{setting}: {value}` blocks or slows the app `{app}`: {law} forbids it");
            let help = "set the class for everybody's apps alike, as `video: hd`, or leave it alone";
            issues.push(Issue::new(place, message).with_help(help));
        } else if key == "set" && slows && words(setting).any(|word| word == "video") {
            let law = law(EQUAL_EU, EQUAL_US);
            let message = format!(
                "`{setting}: {value}` caps video unasked: under {law} that is the subscriber's own choice"
            );
            let help = "make it a `say` with this as its `tap`, or a plan of its own";
            issues.push(Issue::new(place, message).with_help(help));
        }
    }
}

/// What needs no consent must be what the law asks for.
fn exempted(policy: &Policy, places: &Places, (name, action): (&String, &Action), issues: &mut Vec<Issue>) {
    let is_abroad = |read: &Read| match read {
        Read::Sub("roaming") => true,
        Read::Fact(fact) => policy.facts.get(fact).is_some_and(|fact| fact.source == Source::Roaming),
        _ => false,
    };
    let mut moments = action.at.iter().filter_map(|at| policy.moments.get(at));
    if action.regulated && !moments.all(|moment| moment.when.reads().any(is_abroad)) {
        let law = policy.jurisdiction.law(
            "Regulation (EU) 2022/612, articles 13 and 14, asks for notices about roaming alone",
            "47 CFR 64.1200(a) knows no such exemption",
        );
        let message = format!("`{name}` is called regulated and is not about roaming: {law}");
        let help = "drop `regulated`, or have its moments read `sub.roaming` or a fact of `roaming`";
        issues.push(Issue::new(places.key(&["actions", name, "regulated"]), message).with_help(help));
    }
}

/// Consent and the hours of messages.
fn messages(policy: &Policy, places: &Places, issues: &mut Vec<Issue>) {
    let says = |action: &&Action| matches!(action.kind, ActionKind::Say { .. }) && !action.regulated;
    if !policy.actions.values().any(|action| says(&action)) {
        return;
    }
    let law = |eu, us| policy.jurisdiction.law(eu, us);
    if policy.rules.consent_to_say != Purpose::Advice {
        let law =
            law("Directive 2002/58/EC, article 13(1),", "47 U.S.C. 227(b)(1)(A) with 47 CFR 64.1200(a)(2)");
        let message = format!("messages go out without consent to messages: {law} asks for it");
        let help = "write `consent: {say: advice}`";
        issues.push(Issue::new(places.key(&["policy", "consent", "say"]), message).with_help(help));
    }
    let covers = |quiet: Quiet| {
        policy.jurisdiction != Jurisdiction::Us
            || (0..24 * 60).all(|minute| !US_NIGHT.covers(minute) || quiet.covers(minute))
    };
    if !policy.rules.contact.quiet.is_some_and(covers) {
        let law = law(
            "Directive 2005/29/EC, Annex I no. 26 (unwanted solicitation), and national law on hours of calling",
            "47 CFR 64.1200(c)(1) (no solicitation before 8:00 and after 21:00 where the person is)",
        );
        let message = format!("messages have no quiet hours, or too few: {law}");
        let help = "write `contact: {quiet: \"21:00-08:00\"}`";
        issues.push(Issue::new(places.key(&["policy", "contact", "quiet"]), message).with_help(help));
    }
}
