//! Holdout, exploration, styles and what is learnt: many people at the same moments.

use std::fmt::Write as _;

use super::*;
use crate::engine::learning::Of;

const DAY: i64 = 86_400;

pub(super) fn people(count: usize) -> Directory {
    let mut text = PROFILES.split("subscribers:").next().unwrap().to_owned() + "subscribers:\n";
    for who in 0..count {
        writeln!(
            text,
            "  - {{id: p{who:03}, keys: [\"imsi:{who}\"], plan: basic, consent: {{service: true, advice: true}}}}"
        )
        .unwrap();
    }
    Directory::parse("profiles.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

pub(super) fn engine_of(policy: &str, count: usize) -> Engine {
    let policy = Policy::parse("policy.yaml", policy).unwrap_or_else(|errors| panic!("{errors}"));
    Engine::new(policy, &people(count)).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Sessions of all of them, in this network.
pub(super) fn all_open(count: usize, plmn: &str) -> Vec<SessionSeen> {
    (0..count).map(|who| session(&format!("p{who:03}"), true, plmn)).collect()
}

fn says_policy(choose: &str) -> String {
    format!(
        "version: 1
moments:
  abroad: {{when: \"sub.roaming\", rearm: 1d}}
actions:
  first: {{at: [abroad], say: {{plain: \"first plain\", price: \"first price\"}}, value: 9.0, cost: 0.0}}
  second: {{at: [abroad], say: \"second\", value: 8.0, cost: 0.0}}
  third: {{at: [abroad], say: \"third\", value: 0.5, cost: 1.0}}
policy:
  contact: {{budget: 9/1d, expire: 1h}}
choose: {choose}
guard: {{mode: live}}
"
    )
}

#[test]
fn who_is_held_out_stays_so_for_a_quarter_and_the_record_says_what_was_withheld() {
    let mut engine = engine_of(&says_policy("{holdout: 0.3, learn: {styles: [plain, price]}}"), 400);
    let held_out = |effects: &[Effect]| -> Vec<String> {
        let made = decisions(effects);
        assert_eq!(made.len(), 400);
        let said = says(effects).len();
        let held: Vec<_> = made.into_iter().filter(|made| made.chosen.is_none()).collect();
        assert_eq!(said + held.len(), 400);
        for made in &held {
            assert_eq!(gate(&made.candidates[0]), Some(Gate::Holdout), "{made:?}");
            assert_eq!(gate(&made.candidates[1]), Some(Gate::Outscored));
        }
        held.into_iter().map(|made| made.subscriber.0.clone()).collect()
    };
    let first = held_out(&second(&mut engine, 0, all_open(400, "26201"), Vec::new()));
    assert!((90..150).contains(&first.len()), "{}", first.len());
    assert_eq!(held_out(&engine.step(s(DAY + 10), Input::Tick)), first, "sticky");
    // The 21st of November and two months: another quarter.
    let later = held_out(&engine.step(s(60 * DAY), Input::Tick));
    assert_ne!(later, first);
    assert!((90..150).contains(&later.len()), "{}", later.len());
}

#[test]
fn messages_are_tried_with_the_chance_that_is_logged_and_what_the_policy_stops_is_never_tried() {
    for (floor, best) in [(0.0, true), (99.0, false)] {
        let choose = format!("{{explore: 0.4, floor: {floor}, learn: {{styles: [plain, price]}}}}");
        let mut engine = engine_of(&says_policy(&choose), 900);
        let effects = second(&mut engine, 0, all_open(900, "26201"), Vec::new());
        let mut seen: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        let mut of_styles = [0.0_f64; 2];
        for made in decisions(&effects) {
            *seen.entry(made.chosen.as_deref()).or_default() += 1;
            let expected = match (made.chosen.as_deref(), best) {
                (Some("first"), true) => 0.8,
                (None, false) => 0.6,
                _ => 0.2,
            };
            // Both styles are as likely as long as nothing is known.
            let of_style = if made.chosen.as_deref() == Some("first") { 0.5 } else { 1.0 };
            assert!((made.probability - expected * of_style).abs() < 1e-9, "{made:?}");
            if let Some(style) = &made.style {
                of_styles[usize::from(style == "price")] += 1.0;
            }
            assert_eq!(gate(&made.candidates[2]), Some(Gate::Suitable));
        }
        assert_eq!(seen.get(&Some("third")), None);
        let near = |found: usize, share: f64| {
            (f64::from(u32::try_from(found).unwrap()) - 900.0 * share).abs() < 60.0
        };
        assert!(near(seen[&Some("second")], 0.2), "{seen:?}");
        assert!(near(seen[&Some("first")], if best { 0.8 } else { 0.2 }), "{seen:?}");
        assert!(near(seen.get(&None).copied().unwrap_or(0), if best { 0.0 } else { 0.6 }), "{seen:?}");
        let share = of_styles[0] / (of_styles[0] + of_styles[1]);
        assert!((share - 0.5).abs() < 0.1, "{of_styles:?}");
        for say in says(&effects).iter().filter(|say| say.action == "first") {
            assert!(["first plain", "first price"].contains(&say.text.as_str()));
        }
    }
}

#[test]
fn a_set_is_never_tried() {
    let policy = POLICY.replace("floor: 0.4", "floor: 0.4\n  explore: 1.0");
    let mut engine = engine_with(&policy);
    open(&mut engine, 0, "a", "00101");
    let effects = capped(&mut engine, "a", 1, 17);
    let made = decisions(&effects);
    assert_eq!((made[0].chosen.as_deref(), made[0].probability), (Some("evening"), 1.0));
}

#[test]
fn answers_are_learnt_once_each_within_their_time_and_survive_a_restart() {
    let choose = "{learn: {say: [2, 18], half_life: 30d, credit: 30m, styles: [plain, price]}}";
    let mut engine = engine_of(&says_policy(choose), 100);
    let effects = second(&mut engine, 0, all_open(100, "26201"), Vec::new());
    let messages = says(&effects);
    // Ten take it up, ten decline, ten take it up too late, the rest never answer.
    for (index, say) in messages.iter().enumerate() {
        let input = match index {
            0..10 => Input::Tapped(say.decision.clone()),
            10..20 => Input::Declined(say.decision.clone()),
            _ => continue,
        };
        engine.step(s(600), input.clone());
        engine.step(s(601), input);
    }
    let mut file = Vec::new();
    engine.snapshot(0).write(&mut file).unwrap();
    let (mut again, _) = Engine::from_snapshot(&file[..]).unwrap();
    for engine in [&mut engine, &mut again] {
        assert_eq!(engine.next_due(), Some(s(1).after(std::time::Duration::from_millis(30 * 60_000 + 500))));
        engine.step(s(1_900), Input::Tick);
        for say in &messages[20..30] {
            engine.step(s(2_000), Input::Tapped(say.decision.clone()));
        }
        engine.step(s(4_000), Input::Tick);
        let choose = engine.policy().choose();
        let of = Of { action: "first", segment: "basic abroad", style: "" };
        let found = engine.learned().propensity(of, choose.prior_say, choose, s(4_000));
        // Ten of a hundred, on a prior of 2 of 20, at either level: nearly a tenth.
        assert!((found - 0.1).abs() < 0.002, "{found}");
    }
    assert_eq!(engine.learned(), again.learned());
    let next = engine.step(s(DAY + 10), Input::Tick);
    let score = decisions(&next)[0].candidates[0].score.unwrap();
    assert!((score.propensity - 0.1).abs() < 0.005, "{score:?}");
}

/// A hundred people at their cap, for whom something is done or not; those treated are freed where it works.
fn propensity_after(works: bool) -> f64 {
    let policy = POLICY
        .replace(
            "learn: {say: [2, 18], set: [8, 2]}",
            "holdout: 0.5\n  learn: {set: [8, 2], half_life: 30d, credit: 20s}",
        )
        .replace("rearm: 60s}", "rearm: 61s}");
    let count = 150;
    let mut engine = engine_of(&policy, count);
    let mut treated: Vec<bool> = vec![false; count];
    let mut last = 0.0;
    second(&mut engine, 0, all_open(count, "00101"), Vec::new());
    for at in 1..100 {
        let usage = (0..count).map(|who| {
            let capped = if works && treated[who] { 0.0 } else { 1.0 };
            let line = Line(u32::try_from(who).unwrap());
            UsageSeen { line, ..video("a", Some(capped), 1_000) }
        });
        let usage: Vec<_> = usage.collect();
        for effect in second(&mut engine, at, Vec::new(), usage) {
            if let Effect::Decided(made) = effect {
                last = made.candidates[0].score.unwrap().propensity;
                let who: usize = made.subscriber.0[1..].parse().unwrap();
                treated[who] |= made.chosen.is_some();
            }
        }
    }
    assert!((40..110).contains(&treated.iter().filter(|treated| **treated).count()));
    last
}

#[test]
fn a_set_is_judged_by_whether_quality_rose_against_those_for_whom_nothing_was_done() {
    let (works, does_not) = (propensity_after(true), propensity_after(false));
    assert!(works > 0.9, "{works}");
    assert!(does_not < 0.3, "{does_not}");
}

/// A slow, obvious chooser: every outcome is kept for ever, every propensity is worked out from all of them.
struct Slow {
    /// Messages nobody answered in time yet: until when, whose, which action and segment.
    open: Vec<(Micros, usize, DecisionId, String, String)>,
    /// When whose moment comes again.
    rearm: Vec<Micros>,
    /// When, which action and segment, and whether it was taken up.
    outcomes: Vec<(Micros, String, String, bool)>,
}

impl Slow {
    const HALF_LIFE: f64 = 2.0 * 86_400.0;

    fn propensity(&self, action: &str, segment: &str, now: Micros) -> f64 {
        let sums = |counts: &dyn Fn(&str) -> bool| {
            let of = self.outcomes.iter().filter(|(_, of, segment, _)| of == action && counts(segment));
            of.fold((0.0, 0.0), |(good, all), (at, _, _, taken_up)| {
                let weight = (-now.since(*at).as_secs_f64() / Self::HALF_LIFE).exp2();
                (good + if *taken_up { weight } else { 0.0 }, all + weight)
            })
        };
        let (good, all) = sums(&|_| true);
        let pooled = (2.0 + good) / (20.0 + all);
        let (good, all) = sums(&|of| of == segment);
        (20.0 * pooled + good) / (20.0 + all)
    }

    /// Whoever has something due, in the order of when, then of who: first what nobody answered, then the moment.
    fn goes_on(&mut self, now: Micros, made: &mut std::vec::IntoIter<&Decision>, said: &[&Say]) {
        let due = |slow: &Self, who: usize| {
            let messages = slow.open.iter().filter(|message| message.1 == who).map(|message| message.0);
            messages.chain([slow.rearm[who]]).min().filter(|due| *due <= now)
        };
        while let Some((_, who)) = (0..self.rearm.len()).filter_map(|who| Some((due(self, who)?, who))).min()
        {
            let (over, open) = std::mem::take(&mut self.open)
                .into_iter()
                .partition(|message: &(Micros, usize, _, _, _)| message.1 == who && message.0 <= now);
            self.open = open;
            let over: Vec<_> = over;
            self.outcomes
                .extend(over.into_iter().map(|(_, _, _, action, segment)| (now, action, segment, false)));
            if self.rearm[who] > now {
                continue;
            }
            self.decides(who, now, made.next().expect("a decision"), said);
        }
    }

    fn decides(&mut self, who: usize, now: Micros, made: &Decision, said: &[&Say]) {
        assert_eq!(made.subscriber.0, format!("p{who:03}"));
        let segment = if who.is_multiple_of(2) { "basic abroad" } else { "rich abroad" };
        for candidate in &made.candidates {
            let found = candidate.score.unwrap().propensity;
            let expected = self.propensity(&candidate.action, segment, now);
            assert!((found - expected).abs() < 1e-9, "{found} is not {expected} of {}", candidate.action);
        }
        self.rearm[who] = now.after(std::time::Duration::from_hours(24));
        if let Some(say) = said.iter().find(|say| say.decision == made.id) {
            let until = now.after(std::time::Duration::from_mins(30));
            self.open.push((until, who, say.decision.clone(), say.action.clone(), segment.to_owned()));
        }
    }
}

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Answers in time, late and never, of many people whose moments come round at all hours; the engine written out and read
    /// back in between.
    #[test]
    fn what_is_learnt_is_what_a_slow_obvious_chooser_learns(
        steps in proptest::collection::vec((1_i64..80, 0_u8..5, any::<prop::sample::Index>()), 1..220),
    ) {
        const COUNT: usize = 8;
        let choose = "{learn: {say: [2, 18], half_life: 2d, credit: 30m, styles: [plain, price]}, explore: 0.4}";
        let policy = Policy::parse("policy.yaml", &says_policy(choose)).unwrap();
        let mut profiles = PROFILES.split("subscribers:").next().unwrap().to_owned() + "subscribers:\n";
        for who in 0..COUNT {
            let plan = if who.is_multiple_of(2) { "basic" } else { "rich" };
            writeln!(profiles, "  - {{id: p{who:03}, keys: [\"imsi:{who}\"], plan: {plan}, consent: {{advice: true}}}}").unwrap();
        }
        let mut engine = Engine::new(policy, &Directory::parse("profiles.yaml", &profiles).unwrap()).unwrap();
        let mut slow = Slow { open: Vec::new(), rearm: vec![Micros::new(i64::MAX); COUNT], outcomes: Vec::new() };
        let mut sent: Vec<(DecisionId, Micros)> = Vec::new();
        let mut now = 0;
        let mut closed: Vec<usize> = (0..COUNT).collect();
        for (minutes, what, which) in steps {
            now += minutes * 60;
            let at = s(now);
            let opens = (!closed.is_empty() && what == 0).then(|| closed.remove(0));
            let (input, taken_up) = match (what, sent.is_empty()) {
                (0, _) if opens.is_some() => {
                    let who = opens.unwrap();
                    let sessions = vec![session(&format!("p{who:03}"), true, "26201")];
                    let (start, end) = (s(now - 1), at);
                    let observed =
                        Observed { agent: "gw".into(), start, end, sessions, usage: Vec::new(), named: Vec::new(), apps: Vec::new() };
                    (Input::Observed(observed), None)
                }
                (1, false) => {
                    let (decision, _) = which.get(&sent).clone();
                    (Input::Tapped(decision.clone()), Some((decision, true)))
                }
                (2, false) => {
                    let (decision, _) = which.get(&sent).clone();
                    (Input::Declined(decision.clone()), Some((decision, false)))
                }
                (3, _) => {
                    let mut file = Vec::new();
                    engine.snapshot(0).write(&mut file).unwrap();
                    engine = Engine::from_snapshot(&file[..]).unwrap().0;
                    (Input::Tick, None)
                }
                _ => (Input::Tick, None),
            };
            // Answered while the link is good: the first answer counts, as good only within the time for credit.
            if let Some((decision, is_yes)) = taken_up
                && let Some(place) = slow.open.iter().position(|message| message.2 == decision)
                && sent.iter().any(|(id, expires)| *id == decision && *expires > at)
            {
                let (until, _, _, action, segment) = slow.open.remove(place);
                slow.outcomes.push((at, action, segment, is_yes && at < until));
            }
            let effects = engine.step(at, input);
            let said = says(&effects);
            sent.extend(said.iter().map(|say| (say.decision.clone(), say.expires)));
            let mut made = decisions(&effects).into_iter();
            if let Some(who) = opens {
                slow.decides(who, at, made.next().expect("a decision"), &said);
            }
            slow.goes_on(at, &mut made, &said);
            prop_assert_eq!(made.next(), None);
        }
    }
}
