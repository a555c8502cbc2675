//! The reference page says what the parser does: every key, field, measure, statistic, placeholder and limit, and no other.

use std::collections::BTreeSet;

use super::super::{check, sections};
use super::*;

const PAGE: &str = include_str!("../../../../docs/policy.md");

/// First cells, in backticks, of the table after this line.
fn table(after: &str) -> BTreeSet<String> {
    let (_, rest) = PAGE.split_once(after).unwrap_or_else(|| panic!("the page lacks: {after}"));
    let rows = rest.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let rows = rows.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('`').nth(1).unwrap_or_else(|| panic!("no name in {row}")).to_owned()).collect()
}

/// What the parser says it would take in place of a key that nobody knows.
fn keys(text: &str) -> BTreeSet<String> {
    let found = complaints(text);
    let of_key = found.iter().find_map(|found| found.split_once("unknown key `qqqqqqqqqqqq` in "));
    let (_, said) = of_key.unwrap_or_else(|| panic!("{text}\n{found:#?}"));
    let (_, list) = said.trim_end_matches(')').split_once("(expected one of ").unwrap();
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn every_key_is_on_the_reference_page_and_no_other() {
    let whole = |section: &str| {
        let text = SMALL
            .replace("guard: {mode: live}", "guard: {mode: live, pushes: {all: 1/s}, canary: {steps: [1%]}}");
        let text =
            text.replace("  contact: {", "  consent: {set: service}\n  backoff: {ignored: 1d}\n  contact: {");
        assert!(text.contains(section), "{section}");
        text.replacen(section, &format!("{section}qqqqqqqqqqqq: 1, "), 1)
    };
    let pairs = [
        ("## The file", SMALL.replacen("version: 1\n", "version: 1\nqqqqqqqqqqqq: 1\n", 1)),
        ("A fact has:", whole("capped: {")),
        ("## moments", whole("starved: {")),
        ("## actions", whole("evening: {")),
        ("## policy", SMALL.replacen("policy:\n", "policy:\n  qqqqqqqqqqqq: 1\n", 1)),
        ("`consent`, each", whole("consent: {")),
        ("`contact`:", whole("contact: {")),
        ("`backoff`:", whole("backoff: {")),
        ("## choose", SMALL.replacen("choose:\n", "choose:\n  qqqqqqqqqqqq: 1\n", 1)),
        ("`learn`:", whole("learn: {")),
        ("## guard", whole("guard: {")),
        ("`pushes`, that", whole("pushes: {")),
        ("`canary`:", whole("canary: {")),
    ];
    for (heading, text) in pairs {
        assert_eq!(table(heading), keys(&text), "{heading}");
    }
    // Keys beside names of the operator's own.
    assert_eq!(table("and one key of all facts:"), BTreeSet::from(["lateness".to_owned()]));
    assert_eq!(table("`set` and `tap` are"), BTreeSet::from(["for".to_owned()]));
    assert_eq!(table("`relevance`:"), BTreeSet::from(["default".to_owned()]));
}

#[test]
fn every_name_is_on_the_reference_page_and_no_other() {
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    let fields: Vec<String> = check::field_names().collect();
    assert_eq!(table("| field | kind | what |"), fields.into_iter().collect());
    let placeholders = sections::PLACEHOLDERS.iter().map(|name| format!("{{{name}}}")).collect();
    assert_eq!(table("| placeholder | what |"), placeholders);
    let listed = |right: &str, broken: &str| -> BTreeSet<String> {
        let found = complaints(&SMALL.replacen(right, broken, 1));
        let list = found[0].split_once("expected one of ").unwrap().1.trim_end_matches(')');
        list.split(", ").map(str::to_owned).collect()
    };
    assert_eq!(table("### Measures"), listed("video.at_cap", "video.qqqqqqqqqqqq"));
    assert_eq!(table("### Statistics"), listed("stat: mean", "stat: qqqqqqqqqqqq"));
    assert_eq!(table("| prefix | what |"), named(&["plan.NAME", "setting.NAME", "sub.NAME", "org.NAME"]));
}

#[test]
fn the_limits_on_the_reference_page_are_the_parsers() {
    let most = sections::MAX_NAMES;
    assert!(PAGE.contains(&format!("most {most} facts, {most} moments and {most} actions")));
    assert!(PAGE.contains(&format!("| {} characters |", sections::MAX_MESSAGE)));
    let minutes = sections::MAX_LATENESS.as_secs() / 60;
    assert!(PAGE.contains(&format!("| `5s` | {minutes}m |")));
    let days = sections::MAX_WINDOW.as_secs() / 86_400;
    assert!(PAGE.contains(&format!("1s to {days}d")) && PAGE.contains(&format!("10s to {days}d")));
    assert!(PAGE.contains(&format!(
        "at most {} steps a window, {} different",
        sections::MAX_PANES,
        sections::MAX_STEPS
    )));
    assert!(PAGE.contains(&format!(
        "{}\ncharacters and {} operators",
        check::MAX_LENGTH,
        check::MAX_OPERATORS
    )));
    assert!(PAGE.contains(&format!("fits {} messages", crate::engine::MAX_CONTACTS)));
    assert!(PAGE.contains(&format!("The last {} are remembered", crate::engine::MAX_TRIPS)));
    // Defaults, by a policy that says next to nothing.
    let bare = "version: 1\nmoments: {m: {when: \"sub.active\", rearm: 1h}}\n\
                actions: {a: {at: [m], set: {x: y, for: 1h}, value: 1.0, cost: 0.0}}\nguard: {mode: live}\n";
    let policy = Policy::parse("policy.yaml", bare).unwrap();
    assert_eq!(policy.lateness(), Duration::from_secs(5));
    assert_eq!(policy.moments()["m"].hold, Duration::ZERO);
    assert_eq!(policy.rules().contact.expire, Duration::from_hours(2));
    assert_eq!(policy.rules().suitable.source(), "value > cost");
    assert_eq!(
        (policy.rules().consent_to_set, policy.rules().consent_to_say),
        (Purpose::Service, Purpose::Advice)
    );
    assert_eq!(policy.jurisdiction(), Jurisdiction::None);
}
