//! What is written correctly and is most likely a mistake, and what the law refuses.

use super::*;
use crate::policy::Jurisdiction;

fn parsed(text: &str) -> Policy {
    Policy::parse("policy.yaml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn plans() -> BTreeMap<String, Plan> {
    BTreeMap::from([
        ("basic".to_owned(), plan(&[("video", "sd"), ("pass", "none")], &[("quota", 5.0)])),
        ("plus".to_owned(), plan(&[("video", "hd"), ("pass", "none")], &[("quota", 9.0)])),
    ])
}

fn warnings(text: &str) -> Vec<String> {
    parsed(text).warnings(Some(&plans())).iter().map(ToString::to_string).collect()
}

#[test]
fn the_shipped_policy_has_no_warnings() {
    let directory =
        crate::identity::Directory::parse("profiles.yaml", include_str!("../../../../deploy/profiles.yaml"))
            .unwrap();
    let policy = parsed(SHIPPED);
    assert_eq!(policy.warnings(Some(directory.plans())), []);
    assert_eq!(policy.warnings(None), []);
    assert_eq!(policy.jurisdiction(), Jurisdiction::Eu);
    assert_eq!(parsed(SMALL).warnings(Some(&plans())), []);
}

#[test]
fn a_moment_that_can_never_be_is_told_where_it_stands() {
    let never = [
        "capped > 1.0",
        "capped > 0.8 && capped < 0.2",
        "capped > 0.8 && 0.8 >= capped",
        "!(capped <= 1.0)",
        "capped * 2.0 > 2.0",
        "capped - 0.5 > 0.5 || capped < 0.0",
        "plan.video == 'hdd'",
        "plan.video != 'sd' && plan.video != 'hd'",
        "setting.video == 'uhd'",
        "plan.quota < 5.0",
        "sub.roaming && !sub.roaming",
        "sub.cycle_left > 1.0",
        "capped > 0.5 && (sub.active ? capped < 0.5 : capped < 0.4)",
        "load > 0.5",
        "idle_app < 0.0",
    ];
    let facts = "facts:\n  idle_app: {of: hdtv.bytes, stat: sum, over: 30d, every: 1d}\n  \
                 load: {of: access.up_util, stat: mean, over: 10s, every: 1s}\n";
    let with = |condition: &str| {
        let text = SMALL.replace("facts:\n", facts).replace("capped > 0.8 && plan.video == 'sd'", condition);
        warnings(&text).into_iter().filter(|warning| warning.contains("can never fire")).collect::<Vec<_>>()
    };
    for condition in never {
        let found = with(condition);
        assert!(
            found.len() == 1 && found[0].starts_with("8:19: `starved` can never fire"),
            "{condition}: {found:?}"
        );
    }
    let sometimes = [
        "capped >= 1.0",
        "capped > 0.8 || capped < 0.2",
        "!(capped < 1.0)",
        "plan.video == 'hd'",
        "setting.video == 'hd' && plan.video == 'sd'",
        "plan.quota <= 5.0",
        "sub.roaming || !sub.roaming",
        "idle_app == 0.0",
        "capped / capped > 7.0",
        "sub.country == 'Testland'",
        "sub.addons.exists(addon, addon == 'x')",
    ];
    for condition in sometimes {
        assert_eq!(with(condition), Vec::<String>::new(), "{condition}");
    }
}

proptest! {
    /// What is said never to be true is not true of any values in range.
    #[test]
    fn nothing_that_can_be_is_called_impossible(
        condition in condition(),
        capped in prop_oneof![Just(0.0), Just(0.5), Just(1.0), 0.0..1.0],
        limit in prop_oneof![Just(0.0), Just(2.0), -3.0..3.0],
        hd in any::<bool>(), active in any::<bool>(), hdtv in any::<bool>(),
    ) {
        let text = SMALL.replace("capped > 0.8 && plan.video == 'sd'", &condition);
        let Ok(policy) = Policy::parse("policy.yaml", &text) else { return Ok(()) };
        let known = |read: &Read| match read {
            Read::Fact(_) => Some(Known::Number(capped)),
            Read::Plan(field) if field == "limit" => Some(Known::Number(limit)),
            Read::Plan(_) => Some(Known::Word(if hd { "hd" } else { "sd" }.to_owned())),
            Read::Sub("active") => Some(Known::Truth(active)),
            Read::Sub(_) => Some(Known::Words(hdtv.then(|| "hdtv".to_owned()).into_iter().collect())),
            _ => None,
        };
        if policy.moments()["starved"].when.truth(known) == Ok(true) {
            let plans = BTreeMap::from([
                ("a".to_owned(), plan(&[("video", "sd")], &[("limit", -3.0)])),
                ("b".to_owned(), plan(&[("video", "hd")], &[("limit", 3.0)])),
            ]);
            let found = policy.warnings(Some(&plans));
            prop_assert!(!found.iter().any(|warning| warning.message.contains("can never fire")), "{found:?}");
        }
    }
}

#[test]
fn an_action_that_can_never_win_is_told_with_what_would_do() {
    let floor = SMALL.replace("choose:\n", "choose:\n  floor: 0.4\n");
    // 0.1 * 1.5 * (4 - 1) is 0.45: above; 0.1 * 1.5 * (3.5 - 1) is below.
    assert_eq!(warnings(&floor), Vec::<String>::new());
    let found = warnings(&floor.replace("value: 4.0, cost: 1.0", "value: 3.5, cost: 1.0"));
    let expected = "9:3: `advice` can never win: at best it scores 0.100 * 1.500 * 2.500 = 0.375, below the floor 0.4 \
                    (a value of 2.67 above its cost would do, or a lower `choose.floor`)";
    assert_eq!(found, [expected]);
    let found = warnings(&SMALL.replace("value: 4.0, cost: 1.0", "value: \"sub.cycle_left\", cost: 1.0"));
    assert_eq!(
        found,
        [
            "9:3: `advice` can never win: `value > cost` never holds for it (raise its `value`, or lower its `cost`)"
        ]
    );
    let open =
        SMALL.replace("value: 4.0, cost: 1.0", "value: \"sub.roam_expected\", cost: \"sub.roam_price\"");
    assert_eq!(warnings(&open), Vec::<String>::new());
}

#[test]
fn what_nobody_reads_and_nobody_acts_on_is_told() {
    let text = SMALL
        .replace("moments:\n", "  spare: {of: all.bytes, stat: sum, over: 10s}\nmoments:\n  lone: {when: \"sub.active\", rearm: 1h}\n");
    assert_eq!(
        warnings(&text),
        [
            "5:3: nothing reads the fact `spare` (drop it: it costs every subscriber memory)",
            "7:3: no action is at the moment `lone` (drop it, or name it in an action's `at`)",
        ]
    );
}

#[test]
fn more_than_anybody_oversees_is_refused() {
    let more = (0..33).fold(String::new(), |more, number| {
        more + &format!("  m{number}: {{when: \"sub.active\", rearm: 1h}}\n")
    });
    let found = complaints(&SMALL.replace("moments:\n", &format!("moments:\n{more}")));
    assert!(found[0].contains("34 moments: expected at most 32"), "{found:?}");
}

/// What a jurisdiction says of the small policy, broken in one place.
fn breaches(jurisdiction: &str, right: &str, broken: &str) -> Vec<String> {
    assert!(SMALL.contains(right), "the table is stale: {right}");
    let text = SMALL.replacen(right, broken, 1).replacen(
        "version: 1\n",
        &format!("version: 1\njurisdiction: {jurisdiction}\n"),
        1,
    );
    let policy = parsed(&text);
    let found: Vec<String> = policy.breaches().iter().map(ToString::to_string).collect();
    // Nobody may run it.
    let refused = policy.check(&BTreeMap::new()).unwrap_err().to_string();
    assert!(found.iter().all(|one| refused.contains(one)), "{refused}");
    found
}

#[test]
fn a_jurisdiction_refuses_with_place_law_and_remedy() {
    let set = "set: {video: hd, for: 3h}";
    let table = [
        (
            set,
            "set: {netflix: blocked, for: 3h}",
            "9:34: `netflix: blocked` blocks or slows the app `netflix`",
            "2015/2120, article 3(3)",
            "3101(a)",
        ),
        (
            set,
            "set: {youtube_rate: 2mbit, for: 3h}",
            "9:34: `youtube_rate: 2mbit` blocks or slows the app `youtube`",
            "2015/2120",
            "3101(a)",
        ),
        (
            set,
            "set: {social: zero_rated, for: 3h}",
            "9:34: `social: zero_rated` takes some traffic off the bill",
            "C-854/19",
            "3101(a)(5)",
        ),
        (set, "set: {video: sd, for: 3h}", "9:34: `video: sd` caps video unasked", "2015/2120", "3101(a)"),
        (
            set,
            "set: {video: 480p, for: 3h}",
            "9:34: `video: 480p` caps video unasked",
            "2015/2120",
            "3101(a)",
        ),
        (
            "eligible: \"sub.active\"",
            "consent: {say: service}",
            "12:13: messages go out without consent",
            "2002/58/EC, article 13(1)",
            "64.1200(a)(2)",
        ),
        ("quiet: \"21:00-08:00\", ", "", "14:3: messages have no quiet hours", "2005/29/EC", "64.1200(c)(1)"),
    ];
    for (right, broken, place, eu, us) in table {
        for (jurisdiction, law) in [("eu", eu), ("us", us)] {
            let found = breaches(jurisdiction, right, broken);
            let one = found.iter().find(|found| found.starts_with(place) && found.contains(law));
            assert!(one.is_some_and(|one| one.ends_with(')')), "{jurisdiction} {broken}: {found:#?}");
        }
        assert_eq!(breaches("none", right, broken), Vec::<String>::new());
    }
    assert_eq!(breaches("eu", set, set), Vec::<String>::new());
    // The subscriber's own choice is theirs.
    let chosen = "say: \"Save data?\", tap: {video: sd, for: 3h}";
    assert_eq!(breaches("eu", set, chosen), Vec::<String>::new());
    // Hours that do for the Union and not for the States.
    let late = "quiet: \"22:00-08:00\"";
    assert_eq!(breaches("eu", "quiet: \"21:00-08:00\"", late), Vec::<String>::new());
    assert!(breaches("us", "quiet: \"21:00-08:00\"", late)[0].contains("64.1200(c)(1)"));
}

#[test]
fn what_is_regulated_is_about_roaming_and_alone_at_its_moment() {
    let regulated = |when: &str| {
        let text = SMALL
            .replace("actions:\n", &format!("  there: {{when: \"{when}\", rearm: trip}}\nactions:\n"))
            .replace("  advice: {at: [starved], ", "  advice: {at: [there], regulated: true, ")
            .replace(", value: 4.0, cost: 1.0", "")
            .replacen("version: 1\n", "version: 1\njurisdiction: eu\n", 1);
        parsed(&text).breaches().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(regulated("sub.roaming"), Vec::<String>::new());
    let found = regulated("sub.active");
    assert!(
        found[0].starts_with(
            "11:25: `advice` is called regulated and is not about roaming: Regulation (EU) 2022/612"
        ),
        "{found:?}"
    );
    let shared = SMALL
        .replace("  advice: {at: [starved], ", "  advice: {regulated: true, at: [starved], ")
        .replace(", value: 4.0, cost: 1.0", "");
    let found = complaints(&shared);
    assert!(found[0].starts_with("9:3: `advice` and `evening` are both at `starved`"), "{found:?}");
    let weighed = SMALL.replace("value: 4.0", "regulated: true, value: 4.0");
    assert!(
        complaints(&weighed)
            .iter()
            .any(|found| found.contains("what is regulated is not weighed: drop `value`"))
    );
}

#[test]
fn what_a_change_may_be_is_told() {
    let tap = "tap: {pass: day, for: 1h}";
    let table = [
        (tap, "tap: {pass: day}", "`tap` lacks `for`"),
        (
            tap,
            "tap: {plan: flex, for: 1h}",
            "`plan` is an order: expected it in a `tap` without `for` and settings",
        ),
        (tap, "tap: {plan: flex, pass: day}", "`plan` is an order"),
        ("set: {video: hd, for: 3h}", "set: {plan: flex, for: 3h}", "`plan` is an order"),
        (
            "set: {video: hd, for: 3h}",
            "set: {video: \"{fit_plan}\", for: 3h}",
            "a placeholder in what is set unasked",
        ),
        ("of: video.at_cap", "of: hdtv.rtt_ms", "`hdtv.rtt_ms` has no meaning: agents tell that of classes"),
        (
            "of: video.at_cap, stat: mean",
            "of: hdtv.bytes, stat: max",
            "of an app's bytes there is a `sum` and a `mean`, nothing else",
        ),
        ("of: video.at_cap", "of: hdtv.packets", "of apps, `bytes` and `flows`"),
        ("of: video.at_cap", "of: video.spend", "`video.spend` has no meaning: only use abroad"),
        ("of: video.at_cap", "of: roaming.qoo", "`roaming.qoo` has no meaning: of use abroad"),
        ("of: video.at_cap", "of: roaming.spend", "of what use abroad costs there is a `sum`"),
        ("capped > 0.8", "capped * 3 > 0.8", "write `3.0`, not `3`"),
    ];
    for (right, broken, expected) in table {
        assert!(SMALL.contains(right), "the table is stale: {right}");
        let found = complaints(&SMALL.replacen(right, broken, 1));
        assert!(found.iter().any(|found| found.contains(expected)), "{broken}: {found:?}");
    }
    let order = SMALL.replace(tap, "tap: {plan: flex}");
    let said: Vec<String> = parsed(&order).check_plans(&plans()).iter().map(ToString::to_string).collect();
    assert_eq!(said, ["9:55: no plan is called `flex`"]);
    assert!(parsed(&order.replace("plan: flex", "plan: plus")).check_plans(&plans()).is_empty());
    let setting = SMALL.replace("plan.video", "setting.vidoe");
    let said: Vec<String> = parsed(&setting).check_plans(&plans()).iter().map(ToString::to_string).collect();
    assert_eq!(said, ["6:36: no plan gives a setting `vidoe` (did you mean `setting.video`?)"]);
}
