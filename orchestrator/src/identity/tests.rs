//! Profiles files as operators write them, and get them wrong.

use std::collections::BTreeMap;

use proptest::prelude::*;
use usher_models::units::SubscriberId;

use super::*;
use crate::engine::io::Input;

const SMALL: &str = r#"plans:
  basic: {settings: {video: sd, roam_pass: none}, numbers: {quota: 1.0e10}}
countries:
  "262": {name: Testland, pass_price: 3.0, expected_per_day: 12.0, currency: EUR}
subscribers:
  - {id: line-a, keys: ["imsi:001010000000001", "msisdn:15550001"], plan: basic, consent: {service: true}}
  - {id: line-b, keys: ["imsi:001010000000002"], plan: basic, addons: [hdtv], time_zone: Europe/Berlin}
"#;

fn id(name: &str) -> SubscriberId {
    SubscriberId(name.to_owned())
}

fn complaints(text: &str) -> Vec<String> {
    match Directory::parse("profiles.yaml", text) {
        Ok(_) => vec!["taken".to_owned()],
        Err(errors) => errors.issues.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_profiles_file_is_read() {
    let directory = Directory::parse("profiles.yaml", SMALL).unwrap_or_else(|errors| panic!("{errors}"));
    let line = directory.profile(&id("line-a")).unwrap();
    assert!(line.consent.service && !line.consent.advice && line.active && !line.complaint_open);
    assert_eq!(directory.plans()["basic"].settings["video"], "sd");
    assert_eq!(directory.country("26201").map(|country| country.name.as_str()), Some("Testland"));
    assert_eq!(directory.country("00101"), None);
    assert_eq!(directory.country(""), None);
}

#[test]
fn a_session_belongs_to_the_one_its_keys_name() {
    let directory = Directory::parse("profiles.yaml", SMALL).unwrap();
    assert_eq!(directory.resolve(["msisdn:15550001"]), Some(&id("line-a")));
    assert_eq!(
        directory.resolve(["imsi:999", "imsi:001010000000001", "msisdn:15550001"]),
        Some(&id("line-a"))
    );
    assert_eq!(directory.lookup(["imsi:999"]), Resolved::Nobody);
    assert_eq!(directory.resolve::<&str>([]), None);
}

#[test]
fn a_session_with_keys_of_two_subscribers_is_nobodys_and_said_so() {
    let directory = Directory::parse("profiles.yaml", SMALL).unwrap();
    let keys = ["imsi:001010000000001", "imsi:001010000000002"];
    assert_eq!(directory.resolve(keys), None);
    assert_eq!(directory.lookup(keys), Resolved::Ambiguous([&id("line-a"), &id("line-b")].into()));
}

#[test]
fn each_mistake_is_told_with_its_place() {
    let table = [
        ("id: line-b", "id: line-a", "7:10: subscriber `line-a` stands here twice: first on line 6"),
        (
            "imsi:001010000000002",
            "msisdn:15550001",
            "7:25: key `msisdn:15550001` is linked to two subscribers: `line-a` (line 6) and `line-b`",
        ),
        (
            "msisdn:15550001",
            "imsi:001010000000001",
            "6:49: key `imsi:001010000000001` stands twice for `line-a`",
        ),
        ("msisdn:15550001", "phone:15550001", "6:49: `phone:15550001` is no key: expected `kind:value`"),
        ("plan: basic, addons", "plan: basci, addons", "7:56: unknown plan `basci` (did you mean `basic`?)"),
        ("\"262\"", "\"26\"", "4:3: `26` is no country: expected a mobile country code of three digits"),
        ("pass_price: 3.0", "pass_price: three", "4:39: expected a price as a number, found `three`"),
        ("pass_price: 3.0", "pass_price: -3", "4:39: expected a price of zero or more, found -3"),
        ("addons: [hdtv]", "addons: hdtv", "7:71: expected addons as a list, found `hdtv`"),
        (
            "consent: {service: true}",
            "consent: {servcie: true}",
            "6:92: unknown key `servcie` in consent (did you",
        ),
        (
            "service: true",
            "service: yes",
            "6:101: expected consent to service as `true` or `false`, found `yes`",
        ),
        ("Europe/Berlin", "Europe/Atlantis", "7:90: unknown time zone `Europe/Atlantis`"),
        ("settings: {video: sd, ", "settings: {Video: sd, ", "2:22: `Video` is no setting name"),
        ("quota: 1.0e10", "video: 1.0", "2:61: `video` is a setting of this plan already"),
        ("id: line-b, ", "", "7:5: a subscriber lacks `id`"),
        ("[\"imsi:001010000000002\"]", "[]", "7:24: a subscriber without keys is never seen"),
    ];
    for (right, broken, expected) in table {
        assert!(SMALL.contains(right), "the table is stale: {right}");
        let found = complaints(&SMALL.replacen(right, broken, 1));
        assert!(found.iter().any(|found| found.starts_with(expected)), "{expected}\n{found:#?}");
    }
}

#[test]
fn only_what_changed_is_told_to_the_engine() {
    let old = Directory::parse("profiles.yaml", SMALL).unwrap();
    assert_eq!(old.inputs_since(&old), []);
    assert_eq!(old.inputs_since(&Directory::default()).len(), 3);
    let changed = SMALL.replace("consent: {service: true}", "consent: {}").replace("line-b", "line-c");
    let new = Directory::parse("profiles.yaml", &changed).unwrap();
    let names: Vec<String> = new
        .inputs_since(&old)
        .into_iter()
        .map(|input| match input {
            Input::Profile(profile) => format!("is {}", profile.id),
            Input::ProfileGone(id) => format!("gone {id}"),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["gone line-b", "is line-a", "is line-c"]);
    let dearer = Directory::parse("profiles.yaml", &SMALL.replace("3.0", "4.0")).unwrap();
    assert!(matches!(dearer.inputs_since(&old)[..], [Input::Tariffs { .. }]));
    assert_eq!(dearer.profiles().count(), 2);
    assert_eq!(BTreeMap::len(dearer.countries()), 1);
}

proptest! {
    #[test]
    fn a_mutated_file_is_read_or_refused_with_places(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..12, "[ -~\\n]{0,6}|[{}\\[\\]:,\"'&*!|>-]"), 1..6),
    ) {
        let mut text: Vec<char> = SMALL.chars().collect();
        for (at, remove, insert) in edits {
            let at = at.index(text.len().max(1)).min(text.len());
            let end = (at + remove).min(text.len());
            text.splice(at..end, insert.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(errors) = Directory::parse("profiles.yaml", &text) {
            prop_assert!(!errors.issues.is_empty());
            for issue in errors.issues {
                prop_assert!(issue.span.line >= 1 && issue.span.column >= 1);
            }
        }
    }
}
