//! The profiles file: `plans`, `countries`, `subscribers`. Every mistake with its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use usher_models::units::SubscriberId;

use super::{Consent, Country, Directory, Offer, Plan, Profile};
use crate::document::{self, Fields, Issue, Kind, Node, Span, boolean, items, nearest, number, text};

/// Longest id or key: they stand in logs, file names and links.
const MAX_NAME: usize = 64;
/// Kinds of keys that identify a line.
const KEY_KINDS: [&str; 5] = ["imsi", "msisdn", "account", "mac", "user"];

pub(super) fn directory(yaml: &str) -> Result<Directory, Vec<Issue>> {
    let root = document::parse(yaml)?;
    let mut issues = Vec::new();
    let mut directory = Directory::default();
    if let Some(mut fields) = Fields::of(&root, "a profiles file", &mut issues) {
        directory.plans =
            fields.require("plans", &mut issues).map_or_else(BTreeMap::new, |node| plans(node, &mut issues));
        directory.countries =
            fields.take("countries").map_or_else(BTreeMap::new, |node| countries(node, &mut issues));
        if let Some(node) = fields.require("subscribers", &mut issues) {
            subscribers(node, &mut directory, &mut issues);
        }
        fields.finish(&mut issues);
    }
    if issues.is_empty() { Ok(directory) } else { Err(issues) }
}

fn plans(node: &Node, issues: &mut Vec<Issue>) -> BTreeMap<String, Plan> {
    let mut plans = BTreeMap::new();
    let Some(fields) = Fields::of(node, "plans", issues) else { return plans };
    for (name, span, node) in fields.others() {
        check_name(name, "plan name", span, issues);
        let Some(mut fields) = Fields::of(node, format!("plan `{name}`"), issues) else { continue };
        let mut plan = Plan::default();
        if let Some(settings) = fields.take("settings").and_then(|node| Fields::of(node, "settings", issues))
        {
            for (setting, span, node) in settings.others() {
                check_word(setting, "setting name", span, issues);
                if let Some(value) = text(node, "a setting's value", issues) {
                    plan.settings.insert(setting.to_owned(), value.to_owned());
                }
            }
        }
        if let Some(numbers) = fields.take("numbers").and_then(|node| Fields::of(node, "numbers", issues)) {
            for (number_name, span, node) in numbers.others() {
                check_word(number_name, "number's name", span, issues);
                if plan.settings.contains_key(number_name) {
                    let message = format!(
                        "`{number_name}` is a setting of this plan already: conditions could not tell them apart"
                    );
                    issues.push(Issue::new(span, message));
                }
                if let Some(value) = number(node, "a plan's number", issues) {
                    plan.numbers.insert(number_name.to_owned(), value);
                }
            }
        }
        if let Some(currency) = fields.take("currency").and_then(|node| text(node, "a currency", issues)) {
            currency.clone_into(&mut plan.currency);
        }
        fields.finish(issues);
        plans.insert(name.to_owned(), plan);
    }
    plans
}

fn countries(node: &Node, issues: &mut Vec<Issue>) -> BTreeMap<String, Country> {
    let mut countries = BTreeMap::new();
    let Some(fields) = Fields::of(node, "countries", issues) else { return countries };
    for (mcc, span, node) in fields.others() {
        if mcc.len() != 3 || !mcc.bytes().all(|byte| byte.is_ascii_digit()) {
            let message =
                format!("`{mcc}` is no country: expected a mobile country code of three digits, as \"262\"");
            issues.push(Issue::new(span, message));
        }
        let Some(mut fields) = Fields::of(node, format!("country `{mcc}`"), issues) else { continue };
        let name = fields.require("name", issues).and_then(|node| text(node, "a country's name", issues));
        let pass_price = fields.require("pass_price", issues).and_then(|node| price(node, issues));
        let expected = fields.require("expected_per_day", issues).and_then(|node| price(node, issues));
        let price_per_mb = fields.take("price_per_mb").and_then(|node| price(node, issues));
        let currency =
            fields.take("currency").and_then(|node| text(node, "a currency", issues)).unwrap_or_default();
        fields.finish(issues);
        if let (Some(name), Some(pass_price), Some(expected_per_day)) = (name, pass_price, expected) {
            let (name, currency) = (name.to_owned(), currency.to_owned());
            let country = Country { name, pass_price, expected_per_day, price_per_mb, currency };
            countries.insert(mcc.to_owned(), country);
        }
    }
    countries
}

fn price(node: &Node, issues: &mut Vec<Issue>) -> Option<f64> {
    let value = number(node, "a price", issues)?;
    if value < 0.0 {
        issues.push(Issue::new(node.span, format!("expected a price of zero or more, found {value}")));
    }
    Some(value)
}

fn subscribers(node: &Node, directory: &mut Directory, issues: &mut Vec<Issue>) {
    let Some(nodes) = items(node, "subscribers", issues) else { return };
    let mut lines: HashMap<String, usize> = HashMap::new();
    let mut owners: HashMap<String, (SubscriberId, usize)> = HashMap::new();
    for node in nodes {
        let Some((profile, id_span, keys)) = subscriber(node, &directory.plans, issues) else { continue };
        if let Some(line) = lines.insert(profile.id.0.clone(), id_span.line) {
            let message = format!("subscriber `{}` stands here twice: first on line {line}", profile.id);
            issues.push(Issue::new(id_span, message));
            continue;
        }
        for (key, span) in keys {
            match owners.get(&key) {
                Some((owner, line)) if *owner == profile.id => {
                    let message = format!("key `{key}` stands twice for `{owner}`: first on line {line}");
                    issues.push(Issue::new(span, message));
                }
                Some((owner, line)) => {
                    let message = format!(
                        "key `{key}` is linked to two subscribers: `{owner}` (line {line}) and `{}`",
                        profile.id
                    );
                    issues.push(Issue::new(span, message).with_help("a key identifies one line"));
                }
                None => {
                    owners.insert(key.clone(), (profile.id.clone(), span.line));
                    directory.by_key.insert(key, profile.id.clone());
                }
            }
        }
        directory.profiles.insert(profile.id.clone(), profile);
    }
}

/// A profile, where its id stands, and where each of its keys does.
type Found = (Profile, Span, Vec<(String, Span)>);

fn subscriber(node: &Node, plans: &BTreeMap<String, Plan>, issues: &mut Vec<Issue>) -> Option<Found> {
    let mut fields = Fields::of(node, "a subscriber", issues)?;
    let id_node = fields.require("id", issues);
    let id = id_node.and_then(|node| text(node, "a subscriber's id", issues));
    if let (Some(id), Some(node)) = (id, id_node) {
        check_name(id, "subscriber id", node.span, issues);
    }
    let keys = fields.require("keys", issues).map_or_else(Vec::new, |node| keys(node, issues));
    let plan_node = fields.require("plan", issues);
    let plan = plan_node.and_then(|node| text(node, "a plan's name", issues));
    if let (Some(plan), Some(node)) = (plan, plan_node)
        && !plans.contains_key(plan)
    {
        let issue = Issue::new(node.span, format!("unknown plan `{plan}`"));
        let names = || plans.keys().map(String::as_str);
        issues.push(issue.with_help(match nearest(plan, names()) {
            Some(right) => format!("did you mean `{right}`?"),
            None => format!("plans of this file: {}", names().take(20).collect::<Vec<_>>().join(", ")),
        }));
    }
    let mut addons = BTreeSet::new();
    for node in fields.take("addons").and_then(|node| items(node, "addons", issues)).unwrap_or_default() {
        addons.extend(text(node, "an add-on's name", issues).map(str::to_owned));
    }
    let mut consent = Consent::default();
    if let Some(mut fields) = fields.take("consent").and_then(|node| Fields::of(node, "consent", issues)) {
        consent.service = flag(fields.take("service"), "consent to service", false, issues);
        consent.advice = flag(fields.take("advice"), "consent to advice", false, issues);
        fields.finish(issues);
    }
    let active = flag(fields.take("active"), "`active`", true, issues);
    let complaint_open = flag(fields.take("complaint_open"), "`complaint_open`", false, issues);
    let organisation =
        fields.take("organisation").and_then(|node| text(node, "an organisation", issues)).map(str::to_owned);
    let time_zone = fields.take("time_zone").and_then(|node| {
        let name = text(node, "a time zone", issues)?;
        if jiff::tz::TimeZone::get(name).is_err() {
            let message = format!("unknown time zone `{name}`: expected an IANA name, as Europe/Berlin");
            issues.push(Issue::new(node.span, message));
        }
        Some(name.to_owned())
    });
    let bill_day = fields.take("bill_day").and_then(|node| bill_day(node, issues)).unwrap_or(1);
    let moved = flag(fields.take("moved"), "`moved`", false, issues);
    let offer = fields.take("offer").map_or_else(Offer::default, |node| offer(node, issues));
    fields.finish(issues);
    let profile = Profile {
        id: SubscriberId(id?.to_owned()),
        keys: keys.iter().map(|(key, _)| key.clone()).collect(),
        plan: plan?.to_owned(),
        addons,
        consent,
        active,
        complaint_open,
        organisation,
        time_zone,
        bill_day,
        moved,
        offer,
    };
    Some((profile, id_node?.span, keys))
}

fn bill_day(node: &Node, issues: &mut Vec<Issue>) -> Option<u8> {
    let found = text(node, "a day of the month", issues)?;
    let day = found.parse().ok().filter(|day| (1..=28).contains(day));
    if day.is_none() {
        issues.push(Issue::new(node.span, format!("`{found}` is no billing day: expected 1 to 28")));
    }
    day
}

fn offer(node: &Node, issues: &mut Vec<Issue>) -> Offer {
    let mut offer = Offer::default();
    let Some(mut fields) = Fields::of(node, "an offer", issues) else { return offer };
    let mut word = |name: &'static str, issues: &mut Vec<Issue>| {
        fields.take(name).and_then(|node| text(node, "a name", issues)).map(str::to_owned)
    };
    offer.fit_plan = word("fit_plan", issues);
    offer.partner = word("partner", issues);
    offer.fit_saves = fields.take("fit_saves").and_then(|node| number(node, "a saving", issues));
    offer.partner_fit = fields.take("partner_fit").and_then(|node| number(node, "a fit", issues));
    fields.finish(issues);
    offer
}

fn flag(node: Option<&Node>, what: &str, default: bool, issues: &mut Vec<Issue>) -> bool {
    node.and_then(|node| boolean(node, what, issues)).unwrap_or(default)
}

fn keys(node: &Node, issues: &mut Vec<Issue>) -> Vec<(String, Span)> {
    let nodes = items(node, "keys", issues).unwrap_or_default();
    if nodes.is_empty() && matches!(node.kind, Kind::List(_)) {
        issues.push(Issue::new(node.span, "a subscriber without keys is never seen: expected at least one"));
    }
    let mut keys = Vec::new();
    for node in nodes {
        let Some(key) = text(node, "a key", issues) else { continue };
        check_name(key, "key", node.span, issues);
        match key.split_once(':') {
            Some((kind, value)) if KEY_KINDS.contains(&kind) && !value.is_empty() => {}
            _ => {
                let message = format!("`{key}` is no key: expected `kind:value`, as imsi:001010000000001");
                issues.push(
                    Issue::new(node.span, message).with_help(format!("kinds: {}", KEY_KINDS.join(", "))),
                );
            }
        }
        keys.push((key.to_owned(), node.span));
    }
    keys
}

/// Ids and keys go into file names and logs.
fn check_name(name: &str, what: &str, span: Span, issues: &mut Vec<Issue>) {
    if name.chars().count() > MAX_NAME || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let message = format!("{what} must be at most {MAX_NAME} characters without blanks");
        issues.push(Issue::new(span, message));
    }
}

/// Names that conditions can spell.
fn check_word(name: &str, what: &str, span: Span, issues: &mut Vec<Issue>) {
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !starts || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        let message = format!("`{name}` is no {what}: expected lower-case letters, digits and `_`");
        issues.push(Issue::new(span, message));
    }
}
