//! Policies as operators write them, and get them wrong.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

mod lint;
mod reference;

/// The example by which the language is specified, letter by letter.
const EXAMPLE: &str = include_str!("example.yaml");
/// The policy the product ships with.
const SHIPPED: &str = include_str!("../../../deploy/policy.yaml");

/// Small and right: what the tests below break.
const SMALL: &str = r#"version: 1
facts:
  lateness: 1s
  capped: {of: video.at_cap, stat: mean, over: 10s, every: 1s}
moments:
  starved: {when: "capped > 0.8 && plan.video == 'sd'", hold: 5s, rearm: 1h}
actions:
  evening: {at: [starved], set: {video: hd, for: 3h}, value: 2.0, cost: 0.0}
  advice: {at: [starved], say: "In {country}.", tap: {pass: day, for: 1h}, value: 4.0, cost: 1.0}
policy:
  eligible: "sub.active"
  suitable: "value > cost"
  contact: {budget: 2/7d, quiet: "21:00-08:00", expire: 2h}
choose:
  relevance: {default: 1.0, starved: 1.5}
  learn: {say: [2, 18], set: [8, 2]}
guard: {mode: live}
"#;

fn complaints(text: &str) -> Vec<String> {
    match Policy::parse("policy.yaml", text) {
        Ok(_) => vec!["taken".to_owned()],
        Err(errors) => errors.issues.iter().map(ToString::to_string).collect(),
    }
}

fn plan(settings: &[(&str, &str)], numbers: &[(&str, f64)]) -> Plan {
    Plan {
        settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        numbers: numbers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        ..Plan::default()
    }
}

#[test]
fn the_whole_example_is_a_valid_policy_for_its_plans() {
    let policy = Policy::parse("example.yaml", EXAMPLE).unwrap_or_else(|errors| panic!("{errors}"));
    let settings = [("video", "sd"), ("qos_up", "normal"), ("qos_down", "normal"), ("roam_pass", "none")];
    let plans = BTreeMap::from([("basic".to_owned(), plan(&settings, &[("quota", 1.0e10)]))]);
    policy.check(&plans).unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
fn the_shipped_policy_is_valid_for_the_shipped_plans() {
    let policy = Policy::parse("policy.yaml", SHIPPED).unwrap_or_else(|errors| panic!("{errors}"));
    let profiles = include_str!("../../../deploy/profiles.yaml");
    let directory = crate::identity::Directory::parse("profiles.yaml", profiles).unwrap();
    policy.check(directory.plans()).unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
fn the_small_policy_is_right() {
    let policy = Policy::parse("policy.yaml", SMALL).unwrap_or_else(|errors| panic!("{errors}"));
    let sliding = Window::Sliding { over: Duration::from_secs(10), every: Duration::from_secs(1) };
    assert_eq!(policy.facts()["capped"].window, sliding);
    assert!((policy.choose().prior_set.mean() - 0.8).abs() < 1e-12);
    assert!((policy.choose().prior_say.mean() - 0.1).abs() < 1e-12);
}

/// What is wrong, and what is said about it: each breaks the small policy in one place.
#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn each_mistake_is_told_with_its_place_and_what_was_expected() {
    let table: &[(&str, &str, &str)] = &[
        // The whole.
        ("version: 1", "version: 2", "1:10: version `2` is not known: expected 1"),
        ("version: 1\n", "", "1:1: a policy lacks `version`"),
        ("guard: {mode: live}", "", "1:1: a policy lacks `guard`"),
        ("choose:", "chose:", "14:1: unknown key `chose` in a policy (did you mean `choose`?)"),
        (
            "guard: {mode: live}",
            "guard: {mode: live}\nguard: {mode: stop}",
            "18:1: `guard` stands here twice: first on line 17",
        ),
        // Facts.
        (
            "over: 10s",
            "over: 10",
            "4:48: `10` is no duration: expected the length of a window as a whole number and a unit (ms, s, m, h, d), as `90s` or `6h`",
        ),
        ("over: 10s", "over: 10s, oven: 3", "4:53: unknown key `oven` in a fact (did you mean `over`?)"),
        ("every: 1s", "every: 3s", "4:48: `over` must be a whole multiple of `every`: 10s is none of 3s"),
        ("every: 1s", "every: 500ms", "4:60: `every` is below 1s: agents report once a second"),
        (
            "stat: mean",
            "stat: median",
            "4:36: `median` is no statistic: expected one of mean, sum, min, max, last, count, ewma, p50, p90, p95, p99, distinct (did you mean `mean`?)",
        ),
        (
            "of: video.at_cap",
            "of: video.atcap",
            "4:16: unknown measure `atcap` in `video.atcap` (did you mean `video.at_cap`?)",
        ),
        (
            "of: video.at_cap",
            "of: vidoe.at_cap",
            "4:16: unknown class `vidoe` in `vidoe.at_cap` (did you mean `video.at_cap`?)",
        ),
        (
            "of: video.at_cap",
            "of: all.at_cap",
            "4:16: `all.at_cap` has no meaning: each class has a rate of its own",
        ),
        (
            "of: video.at_cap",
            "of: video",
            "4:16: `video` is no source: expected a class and a measure, as `video.at_cap`",
        ),
        ("of: video.at_cap, ", "", "4:11: a fact lacks `of`"),
        ("lateness: 1s", "lateness: 1h", "3:13: a lateness above 10m keeps too much open: expected less"),
        (
            "  capped:",
            "  Capped:",
            "4:3: `Capped` cannot name a fact: expected lower-case letters, digits and `_`, starting with a letter",
        ),
        ("  capped:", "  plan:", "4:3: `plan` cannot name a fact: the word is taken"),
        // Moments.
        (
            "hold: 5s",
            "hold: soon",
            "6:63: `soon` is no duration: expected a hold as a whole number and a unit (ms, s, m, h, d), as `90s` or `6h`",
        ),
        (", rearm: 1h", "", "6:12: a moment lacks `rearm`"),
        // Expressions.
        ("capped > 0.8", "caped > 0.8", "6:20: unknown fact `caped` (did you mean `capped`?)"),
        ("capped > 0.8", "capped > ", "6:30: not CEL: Syntax error: extraneous input '&&'"),
        ("capped > 0.8", "capped > 'a'", "6:20: `>` does not apply to a double and a string"),
        (
            "capped > 0.8",
            "capped * 2 > 0.8",
            "6:20: `*` does not apply to a double and an int (every number is a double: write `2.0`, not `2`)",
        ),
        ("capped > 0.8", "capped == 'a'", "6:20: compares a double with a string: that is never equal"),
        ("capped > 0.8", "capped", "6:20: `&&` wants bools, found a double"),
        ("\"capped > 0.8 && plan.video == 'sd'\"", "capped + 1.0", "6:19: gives a double, expected a bool"),
        ("capped > 0.8", "plan", "6:20: `plan` by itself says nothing (read a field of it, as `plan.name`)"),
        ("capped > 0.8", "sub.romaing", "6:20: unknown field `sub.romaing` (did you mean `sub.roaming`?)"),
        ("capped > 0.8", "nosuch(capped)", "6:20: cannot be computed: Undeclared reference to 'nosuch'"),
        (
            "capped > 0.8",
            "value > 0.8",
            "6:20: unknown fact `value` (known here: capped, plan, setting, sub, org)",
        ),
        (
            "value: 2.0",
            "value: \"2\" , value2: 3",
            "8:68: unknown key `value2` in action `evening` (did you mean `value`?)",
        ),
        (
            "value: 2.0",
            "value: \"1 + 1\"",
            "8:62: gives an int, expected a double (every number is a double: write `2.0`, not `2`)",
        ),
        ("value: 2.0", "value: .inf", "8:63: unknown fact `.inf`"),
        (
            "eligible: \"sub.active\"",
            "eligible: \"sub.active == 'yes'\"",
            "11:14: compares a bool with a string: that is never equal",
        ),
        (
            "suitable: \"value > cost\"",
            "suitable: \"value > costs\"",
            "12:22: unknown fact `costs` (did you mean `cost`?)",
        ),
        // Actions.
        (
            "at: [starved], set",
            "at: [starve], set",
            "8:18: unknown moment `starve` (did you mean `starved`?)",
        ),
        ("at: [starved], set", "at: starved, set", "8:17: expected moments as a list, found `starved`"),
        (
            "at: [starved], set",
            "at: [], set",
            "8:17: an action at no moment never happens: expected at least one",
        ),
        (
            "set: {video: hd, for: 3h}",
            "set: {video: hd}",
            "8:33: `set` lacks `for`: what is set always ends, as `for: 3h`",
        ),
        (
            "set: {video: hd, for: 3h}",
            "set: {for: 3h}",
            "8:33: `set` changes nothing: expected a setting, as `video: hd`",
        ),
        (
            "set: {video: hd, for: 3h}",
            "set: {video: [hd], for: 3h}",
            "8:41: expected a setting's value, found a list",
        ),
        (
            "set: {video: hd, for: 3h}",
            "tap: {video: hd, for: 3h}",
            "8:33: `tap` belongs to `say`: what is set unasked needs no tap",
        ),
        (
            "set: {video: hd, for: 3h}",
            "set: {video: hd, for: 3h}, say: hello",
            "8:60: an action sets or says, not both: make two of it",
        ),
        ("set: {video: hd, for: 3h}, ", "", "8:12: action `evening` lacks `set` or `say`"),
        ("{country}", "{contry}", "9:32: unknown placeholder `{contry}` (did you mean `{country}`?)"),
        ("{country}", "{country", "9:32: a brace without its other half: expected `{name}`"),
        ("cost: 1.0", "costs: 1.0", "9:11: action `advice` lacks `cost`"),
        // Rules.
        (
            "budget: 2/7d",
            "budget: 2 a week",
            "13:21: `2 a week` is no quota: expected a budget as a count in a time, as `2/7d`",
        ),
        (
            "budget: 2/7d, ",
            "",
            "13:12: messages need a `policy.contact.budget` (as `contact: {budget: 2/7d}`)",
        ),
        (
            "21:00-08:00",
            "21-8",
            "13:34: `21-8` are no quiet hours: expected two different times, as `\"21:00-08:00\"`",
        ),
        (
            "budget: 2/7d",
            "budget: 100/1d",
            "13:12: 100 messages in 86400s over a look-back of 612000s are more than the 256 remembered",
        ),
        ("expire: 2h", "expire: 0s", "13:57: expected a link's life above zero"),
        // Choose and guard.
        ("starved: 1.5", "starve: 1.5", "15:29: unknown moment `starve` (did you mean `starved`?)"),
        ("starved: 1.5", "starved: -1", "15:38: expected a weight of zero or more, found -1"),
        (
            "say: [2, 18]",
            "say: [2]",
            "16:16: expected a prior of two numbers above zero, as [2, 18] for 2 of 20",
        ),
        (
            "say: [2, 18]",
            "say: [0, 18]",
            "16:16: expected a prior of two numbers above zero, as [2, 18] for 2 of 20",
        ),
        (
            "mode: live",
            "mode: life",
            "17:15: `life` is no mode: expected one of stop, plan, canary, live (did you mean `live`?)",
        ),
        (
            "mode: live",
            "mode: live, pushes: {element: 60}",
            "17:39: `60` is no rate: expected a bound on pushes as a count per s, min, h or d, as `60/min`",
        ),
        (
            "mode: live",
            "mode: live, rollback: \"qoe_dleta < 0.0\"",
            "17:32: unknown name `qoe_dleta` (did you mean `qoe_delta`?)",
        ),
        (
            "mode: live",
            "mode: live, canary: {steps: [1%, 1%], bake: 1m, min_samples: 2}",
            "17:37: expected steps that rise",
        ),
    ];
    let mut wrong = Vec::new();
    for (right, broken, expected) in table {
        assert!(SMALL.contains(right), "the table is stale: {right}");
        let found = complaints(&SMALL.replacen(right, broken, 1));
        if !found.iter().any(|found| found.starts_with(expected)) {
            wrong
                .push(format!("{broken}\n  expected {expected}\n  found    {}", found.join("\n           ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let broken = SMALL
        .replace("mean", "men")
        .replace("capped >", "caped >")
        .replace("live", "life")
        .replace("2h", "2x");
    let places: Vec<String> = complaints(&broken)
        .iter()
        .map(|line| line.split(": ").next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(places, ["4:36", "6:20", "13:57", "17:15"]);
    let shown = Policy::parse("policy.yaml", &broken).unwrap_err().to_string();
    assert!(shown.starts_with("policy.yaml:4:36: "), "{shown}");
}

#[test]
fn a_mistake_behind_a_short_circuit_is_found() {
    let broken =
        SMALL.replace("capped > 0.8 && plan.video == 'sd'", "plan.video == 'sd' || capped * 2 > 1.0");
    assert!(complaints(&broken)[0].starts_with("6:42: `*` does not apply"), "{:?}", complaints(&broken));
}

#[test]
fn plans_that_do_not_fit_are_told_where_the_policy_asks_for_them() {
    let policy = Policy::parse("policy.yaml", SMALL).unwrap();
    let said = |plan: Plan| -> Vec<String> {
        let plans = BTreeMap::from([("basic".to_owned(), plan)]);
        policy.check_plans(&plans).iter().map(ToString::to_string).collect()
    };
    assert_eq!(said(plan(&[("video", "sd"), ("pass", "none")], &[])), Vec::<String>::new());
    assert_eq!(
        said(plan(&[("vidoe", "sd"), ("pass", "none")], &[])),
        [
            "6:36: no plan has `video` (did you mean `plan.vidoe`?)",
            "8:34: plan `basic` gives no `video` to return to (give it one: `basic: {settings: {video: ...}}`)",
        ]
    );
    assert_eq!(
        said(plan(&[("pass", "none")], &[("video", 1.0)]))[0],
        "6:36: compares a double with a string: that is never equal"
    );
}

#[test]
fn the_revision_follows_what_is_said_and_not_how() {
    let revision = |text: &str| Policy::parse("policy.yaml", text).unwrap().revision().to_owned();
    assert_eq!(
        revision(SMALL),
        revision(&format!("# a word before\n{}", SMALL.replace("2.0, cost", "2.0,   cost")))
    );
    assert_ne!(revision(SMALL), revision(&SMALL.replace("0.8", "0.7")));
}

#[test]
fn plan_fields_are_words_or_numbers_as_they_are_used() {
    for condition in
        ["capped > plan.limit", "plan.video == 'sd' && capped > 2.0 * plan.limit", "plan.a == plan.b"]
    {
        let text = SMALL.replace("capped > 0.8 && plan.video == 'sd'", condition);
        Policy::parse("policy.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    }
}

fn spans_are_sound(text: &str) {
    let Err(errors) = Policy::parse("policy.yaml", text) else { return };
    assert!(!errors.issues.is_empty());
    for issue in &errors.issues {
        assert!(issue.span.line >= 1 && issue.span.column >= 1, "{issue}");
        assert!(issue.span.offset <= text.len(), "{issue}");
    }
    let _ = errors.to_string();
}

proptest! {
    #[test]
    fn any_text_is_a_policy_or_errors_with_places(text in "[ -~\\n\u{e9}]{0,300}") {
        spans_are_sound(&text);
    }

    #[test]
    fn a_mutated_policy_is_a_policy_or_errors_with_places(
        example in any::<bool>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..12, "[ -~\\n]{0,6}|[{}\\[\\]:,\"'&*!|>-]|\u{2028}"), 1..6),
    ) {
        let mut text: Vec<char> = if example { EXAMPLE } else { SMALL }.chars().collect();
        for (at, remove, insert) in edits {
            let at = at.index(text.len().max(1)).min(text.len());
            let end = (at + remove).min(text.len());
            text.splice(at..end, insert.chars());
        }
        spans_are_sound(&text.into_iter().collect::<String>());
    }

    #[test]
    fn any_condition_is_compiled_or_refused(condition in "[a-z.()<>=!&|+*/ 0-9'?:\\[\\]]{0,60}") {
        let text = SMALL.replace("\"capped > 0.8 && plan.video == 'sd'\"", &format!("{:?}", format!("capped > 0.5 && {condition}")));
        spans_are_sound(&text);
    }
}

#[test]
fn deep_and_long_expressions_are_refused_or_evaluated_and_never_overflow_the_stack() {
    let deep = [
        "!".repeat(900) + "sub.active",
        "(".repeat(900) + "sub.active" + &")".repeat(900),
        "[".repeat(900) + &"]".repeat(900) + " == []",
        vec!["capped"; 140].join("+") + " > 0.5",
        vec!["sub.active"; 80].join("&&"),
        "-".repeat(900) + "capped > 0.5",
        "sub.active?".repeat(50) + "true" + &":false".repeat(50),
        "(".repeat(32) + "sub.active" + &")".repeat(32),
        "[".repeat(32) + &"]".repeat(32) + " == []",
        "sub.active?".repeat(32) + "true" + &":false".repeat(32),
        vec!["capped"; 30].join("+") + " > 0.5",
        vec!["sub.active"; 32].join("&&"),
        vec!["capped"; 64].join("+") + " > 0.5",
        "!(".repeat(31) + "sub.active" + &")".repeat(31),
        "capped".to_owned() + &".a".repeat(63),
        "capped".to_owned() + &"[0]".repeat(31),
        "capped".to_owned() + &".a".repeat(490),
        "capped".to_owned() + &"[0]".repeat(330),
        "capped".to_owned() + &".a()".repeat(240),
    ];
    let mut taken = 0;
    for condition in deep {
        let text = SMALL.replace("capped > 0.8 && plan.video == 'sd'", &condition);
        spans_are_sound(&text);
        // What is taken is evaluated on an ordinary stack.
        if let Ok(policy) = Policy::parse("policy.yaml", &text) {
            let known = |read: &Read| match read {
                Read::Fact(_) => Some(Known::Number(1.0)),
                _ => Some(Known::Truth(true)),
            };
            assert!(policy.moments()["starved"].when.truth(known).is_ok(), "{condition}");
            taken += 1;
        }
    }
    assert!(taken >= 3, "{taken}");
}

/// A condition over two facts, a number and a word of the plan and a truth, as text.
fn condition() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        Just("capped".to_owned()),
        Just("plan.limit".to_owned()),
        prop_oneof![Just("0.0"), Just("0.5"), Just("-1.5"), Just("2.0")].prop_map(str::to_owned),
    ];
    let number = number.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            (inner.clone(), prop_oneof![Just("+"), Just("-"), Just("*"), Just("/")], inner.clone())
                .prop_map(|(a, sign, b)| format!("({a} {sign} {b})")),
            inner.prop_map(|a| format!("-({a})")),
        ]
    });
    let signs = prop_oneof![Just("<"), Just("<="), Just(">"), Just(">="), Just("=="), Just("!=")];
    let simple = prop_oneof![
        4 => (number.clone(), signs.clone(), number).prop_map(|(a, sign, b)| format!("{a} {sign} {b}")),
        1 => signs.prop_map(|sign| format!("plan.video {sign} 'hd'")),
        1 => Just("sub.active".to_owned()),
        1 => Just("'hdtv' in sub.addons".to_owned()),
        1 => Just("true".to_owned()),
    ];
    simple.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            (inner.clone(), prop_oneof![Just("&&"), Just("||")], inner.clone())
                .prop_map(|(a, sign, b)| format!("({a} {sign} {b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
        ]
    })
}

proptest! {
    #[test]
    fn the_fast_form_of_a_condition_says_what_cel_says(
        condition in condition(),
        capped in prop_oneof![Just(0.0), Just(0.5), Just(f64::NAN), Just(f64::INFINITY), -3.0..3.0],
        limit in prop_oneof![Just(0.0), Just(2.0), -3.0..3.0],
        hd in any::<bool>(), active in any::<bool>(), hdtv in any::<bool>(),
    ) {
        let text = SMALL.replace("capped > 0.8 && plan.video == 'sd'", &condition);
        let Ok(policy) = Policy::parse("policy.yaml", &text) else { return Ok(()) };
        let when = &policy.moments()["starved"].when;
        let known = |read: &Read| match read {
            Read::Fact(_) => Some(Known::Number(capped)),
            Read::Plan(field) if field == "limit" => Some(Known::Number(limit)),
            Read::Plan(_) => Some(Known::Word(if hd { "hd" } else { "sd" }.to_owned())),
            Read::Sub("active") => Some(Known::Truth(active)),
            Read::Sub(_) => Some(Known::Words(hdtv.then(|| "hdtv".to_owned()).into_iter().collect())),
            _ => None,
        };
        let reads: Vec<Read> = when.reads().cloned().collect();
        let native = when.native().expect("nothing in it but what a tree can say");
        let fast = native.truth(&mut |place| known(&reads[place]));
        prop_assert_eq!(fast == Some(true), when.truth(known) == Ok(true), "{}", condition);
        // What may never hold, does not, whatever is known.
        let none = |_: usize| None;
        prop_assert!(native.may_hold(&none) || fast != Some(true));
    }
}
