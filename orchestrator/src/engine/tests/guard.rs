//! The guard: canary steps, push budgets, the way back.

use super::choosing::{all_open, engine_of};
use super::*;
use crate::engine::io::{Elements, Group, GuardState};

const COUNT: usize = 300;
const DAY: i64 = 86_400;

fn policy(guard: &str) -> String {
    format!(
        "version: 1
moments:
  abroad: {{when: \"sub.roaming\", rearm: 1d}}
  bare: {{when: \"sub.roaming && !sub.roam_pass\", rearm: 90d}}
actions:
  hd: {{at: [abroad], set: {{video: hd, for: 30d}}, value: 9.0, cost: 0.0}}
  pass: {{at: [bare], say: \"A pass?\", tap: {{roam_pass: day, for: 30d}}, value: 9.0, cost: 0.0}}
policy:
  contact: {{budget: 9/1d, expire: 10d}}
guard: {guard}
"
    )
}

fn of_moment<'e>(effects: &'e [Effect], moment: &str) -> Vec<&'e Decision> {
    decisions(effects).into_iter().filter(|made| made.moment == moment).collect()
}

fn treated(effects: &[Effect]) -> Vec<&str> {
    let made = of_moment(effects, "abroad").into_iter().filter(|made| made.chosen.is_some());
    made.map(|made| made.subscriber.0.as_str()).collect()
}

fn guarded(effects: &[Effect]) -> Vec<&GuardState> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Guarded(it) = effect { Some(it) } else { None })
        .collect()
}

#[test]
fn a_canary_goes_on_after_its_time_with_enough_samples_and_not_before() {
    let text = "{mode: canary, canary: {steps: [10%, 50%, 100%], bake: 10m, min_samples: 20}, rollback: \"push_error > 0.1\"}";
    let mut engine = engine_of(&policy(text), COUNT);
    let effects = second(&mut engine, 0, all_open(COUNT, "26201"), Vec::new());
    let first: Vec<String> = treated(&effects).into_iter().map(str::to_owned).collect();
    assert!((15..50).contains(&first.len()), "{}", first.len());
    let withheld = of_moment(&effects, "abroad").into_iter().filter(|made| made.chosen.is_none());
    for made in withheld {
        assert_eq!(gate(&made.candidates[0]), Some(Gate::Canary));
        assert!(made.candidates[0].stopped_by.as_ref().unwrap().why.contains("10 % of step 1"));
    }
    let pushed = |engine: &mut Engine, at, ok| {
        engine.step(s(at), Input::Pushed { decision: DecisionId("d".into()), ok })
    };
    for at in 0..19 {
        assert_eq!(pushed(&mut engine, 2 + at, true), []);
    }
    assert_eq!(engine.next_due(), Some(s(1).after(std::time::Duration::from_millis(600_500))));
    assert_eq!(engine.step(s(700), Input::Tick), [], "too few samples is hold, never fine");
    let effects = pushed(&mut engine, 800, true);
    assert_eq!(guarded(&effects)[0].step, 1);
    assert_eq!(engine.guard_share(), (0.5, 3));
    // Who was among the few is among the many.
    let effects = engine.step(s(DAY + 10), Input::Tick);
    let half = treated(&effects);
    assert!((110..190).contains(&half.len()), "{}", half.len());
    assert!(first.iter().all(|who| half.contains(&who.as_str())));
    assert_eq!(
        usize::try_from(engine.guard().treated.decisions).unwrap(),
        decisions(&effects).iter().filter(|made| made.chosen.is_some()).count()
    );
}

#[test]
fn a_roll_back_takes_back_what_was_set_leaves_what_was_tapped_for_and_lasts_until_an_operator_goes_on() {
    let text = "{mode: live, canary: {steps: [100%], bake: 10m, min_samples: 20}, rollback: \"push_error > 0.1 || qoe_delta < -5.0\"}";
    let mut engine = engine_of(&policy(text), COUNT);
    let effects = second(&mut engine, 0, all_open(COUNT, "26201"), Vec::new());
    assert_eq!(treated(&effects).len(), COUNT);
    let message = says(&effects)[0];
    let (tapper, tap) = (message.subscriber.clone(), message.decision.clone());
    engine.step(s(5), Input::Tapped(tap));
    for at in 0..19 {
        let effects = engine.step(s(10 + at), Input::Pushed { decision: DecisionId("d".into()), ok: at > 4 });
        assert_eq!(guarded(&effects), Vec::<&GuardState>::new());
    }
    let effects = engine.step(s(50), Input::Pushed { decision: DecisionId("d".into()), ok: true });
    let state = guarded(&effects)[0];
    let (_, why) = state.rolled_back.clone().unwrap();
    assert!(why.contains("push_error = 0.2500"), "{why}");
    let back = desires(&effects);
    assert_eq!(back.len(), COUNT);
    for desire in back {
        assert_eq!(desire.cause, Cause::RolledBack);
        assert_eq!(desire.settings.values["video"].value, "sd");
        let pass = &desire.settings.values["roam_pass"].value;
        assert_eq!(pass == "day", desire.subscriber == tapper, "{desire:?}");
    }
    // Over a restart by either way.
    let mut file = Vec::new();
    engine.snapshot(0).write(&mut file).unwrap();
    let (again, _) = Engine::from_snapshot(&file[..]).unwrap();
    assert_eq!(again.guard(), engine.guard());
    let mut anew = engine_of(&policy(text), COUNT);
    anew.guard_from(state.clone());
    assert_eq!(anew.mode(), Mode::Plan);
    let effects = engine.step(s(DAY + 10), Input::Tick);
    for made in of_moment(&effects, "abroad") {
        assert_eq!((made.mode, gate(&made.candidates[0])), (Mode::Plan, Some(Gate::Guard)));
    }
    assert_eq!(desires(&effects).len(), 0);
    let effects = engine.step(s(DAY + 20), Input::Resume);
    assert_eq!(guarded(&effects)[0].rolled_back, None);
    assert_eq!(treated(&engine.step(s(2 * DAY + 30), Input::Tick)).len(), COUNT);
    assert_eq!(engine.step(s(2 * DAY + 31), Input::Resume), [], "nothing to go on from");
}

#[test]
fn budgets_bound_what_decisions_push_and_not_what_people_tap_for() {
    let text = "{mode: live, pushes: {element: 50/min, subscriber: 1/h, all: 40/min}}";
    let mut engine = engine_of(
        &policy(text).replace("rearm: 1d", "rearm: 1m").replace(
            "for: 30d}, value: 9.0, cost: 0.0}\n  pass",
            "for: 50s}, value: 9.0, cost: 0.0}\n  pass",
        ),
        COUNT,
    );
    let effects = second(&mut engine, 0, all_open(COUNT, "26201"), Vec::new());
    let first: Vec<String> = treated(&effects).into_iter().map(str::to_owned).collect();
    assert_eq!(first.len(), 40);
    let why = |made: &Decision| made.candidates[0].stopped_by.clone().unwrap();
    let stopped: Vec<_> =
        of_moment(&effects, "abroad").into_iter().filter(|made| made.chosen.is_none()).collect();
    assert!(stopped.iter().all(|made| why(made).gate == Gate::Pushes && why(made).why.starts_with("all")));
    let tap = says(&effects)[0].decision.clone();
    assert_eq!(desires(&engine.step(s(5), Input::Tapped(tap))).len(), 1);
    // A minute later others have their turn; those of before have had theirs for the hour.
    let effects = engine.step(s(62), Input::Tick);
    let next = treated(&effects);
    assert_eq!(next.len(), 40);
    assert!(next.iter().all(|who| !first.iter().any(|other| other == who)));
    let of_subscriber = of_moment(&effects, "abroad").into_iter().filter(|made| made.chosen.is_none());
    assert!(of_subscriber.filter(|made| why(made).why.starts_with("this subscriber")).count() >= 40);
    let text = "{mode: live, pushes: {element: 50/min}}";
    let mut engine = engine_of(&policy(text), COUNT);
    let effects = second(&mut engine, 0, all_open(COUNT, "26201"), Vec::new());
    assert_eq!(treated(&effects).len(), 50);
    assert!(
        of_moment(&effects, "abroad")
            .iter()
            .any(|made| made.chosen.is_none() && why(made).why.starts_with("gateway:gw"))
    );
}

/// Half of the people on each of two gateways, and a device behind both.
fn on_two_gateways(elements: Elements, text: &str) -> Vec<Decision> {
    let mut engine = engine_of(&policy(text), COUNT);
    engine.step(s(0), Input::Elements(elements));
    // What was told is kept over a restart, and over a change of policy.
    let mut file = Vec::new();
    engine.snapshot(0).write(&mut file).unwrap();
    let (again, _) = Engine::from_snapshot(&file[..]).unwrap();
    let other = Policy::parse("policy.yaml", &policy(text).replace("9.0", "8.0")).unwrap();
    let mut engine = again.tried_under(other).unwrap();
    let sessions = all_open(COUNT, "26201");
    let mut made = Vec::new();
    for (agent, sessions) in ["gw-1", "gw-2"].into_iter().zip(sessions.chunks(COUNT / 2)) {
        let observed = Observed {
            agent: agent.into(),
            start: s(0),
            end: s(1),
            sessions: sessions.to_vec(),
            usage: Vec::new(),
            named: Vec::new(),
            apps: Vec::new(),
        };
        let effects = engine.step(s(1), Input::Observed(observed));
        made.extend(of_moment(&effects, "abroad").into_iter().cloned());
    }
    made
}

#[test]
fn every_element_that_takes_what_is_set_has_its_own_budget() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let elements = |gateways: Option<&[&str]>, others: &[(&str, &[&str])]| Elements {
        gateways: gateways.map(names),
        others: others.iter().map(|(name, of)| ((*name).to_owned(), names(of))).collect(),
    };
    let text = "{mode: live, pushes: {element: 30/min}}";
    let why = |made: &Decision| made.candidates[0].stopped_by.as_ref().map(|stopped| stopped.why.clone());
    for (elements, done, first_full) in [
        (Elements::default(), 60, "gateway:gw-1"),
        (elements(None, &[("netconf:bng-1", &["video"])]), 30, "gateway:gw-1"),
        (elements(Some(&["roam_pass"]), &[("netconf:bng-1", &["video"])]), 30, "netconf:bng-1"),
        // A device that takes none of what is set is not in the way, and neither are gateways.
        (elements(None, &[("netconf:bng-1", &["roam_pass"])]), 60, "gateway:gw-1"),
        (elements(Some(&["roam_pass"]), &[]), 300, ""),
    ] {
        let made = on_two_gateways(elements.clone(), text);
        let treated = made.iter().filter(|made| made.chosen.is_some()).count();
        assert_eq!(treated, done, "{elements:?}");
        let full = made.iter().find_map(why).unwrap_or_default();
        assert!(full.starts_with(first_full), "{full} for {elements:?}");
    }
}

#[test]
fn complaints_of_the_treated_beside_those_of_the_control_roll_back() {
    let text = "{mode: canary, canary: {steps: [50%, 100%], bake: 10m, min_samples: 20}, rollback: \"complaint_delta > 0.05\"}";
    let mut engine = engine_of(&policy(text), COUNT);
    let effects = second(&mut engine, 0, all_open(COUNT, "26201"), Vec::new());
    let made = of_moment(&effects, "abroad");
    let (for_some, for_others): (Vec<&Decision>, Vec<&Decision>) =
        made.into_iter().partition(|made| made.chosen.is_some());
    let mut at = 10;
    let mut complain = |engine: &mut Engine, who: &SubscriberId| {
        at += 1;
        engine.step(s(at), Input::Complaint(who.clone()))
    };
    // As many on either side: nothing follows from that.
    for (one, other) in for_some.iter().zip(&for_others).take(12) {
        assert_eq!(complain(&mut engine, &one.subscriber), []);
        assert_eq!(complain(&mut engine, &other.subscriber), []);
    }
    let more = for_some.iter().skip(12).take(30);
    let rolled_back = more.into_iter().any(|made| {
        guarded(&complain(&mut engine, &made.subscriber)).iter().any(|state| state.rolled_back.is_some())
    });
    assert!(rolled_back, "{:?}", engine.guard());
}

#[test]
fn quality_is_compared_by_how_much_it_rose() {
    let state = GuardState {
        treated: Group { gauged: 30, rises: 60.0, ..Group::default() },
        control: Group { gauged: 25, rises: 250.0, ..Group::default() },
        ..GuardState::default()
    };
    let mut text = policy(
        "{mode: live, canary: {steps: [100%], bake: 10m, min_samples: 25}, rollback: \"qoe_delta < -5.0 || push_error > 0.02\"}",
    );
    let says = |text: &str| {
        let policy = Policy::parse("policy.yaml", text).unwrap();
        let guard = policy.guard();
        state.judge(guard.rollback.as_ref().unwrap(), guard.canary.samples_min)
    };
    assert_eq!(says(&text), Some(true), "two points against ten, whatever the pushes did");
    text = text.replace("< -5.0", "< -9.0");
    assert_eq!(says(&text), None, "of pushes too few are known");
    text = text.replace(" || push_error > 0.02", "");
    assert_eq!(says(&text), Some(false));
    assert_eq!(says(&text.replace("min_samples: 25", "min_samples: 26")), None);
}
