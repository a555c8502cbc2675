//! Whole made-up days: what must hold whatever happens in them.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// One thing of a made-up day.
#[derive(Debug, Clone)]
enum Happening {
    Second { skip: i64, at_cap: f32, bytes: u64, who: u8 },
    Roams(u8),
    Home(u8),
    Closes(u8),
    TapLast,
    Later(i64),
    Stop(bool),
    Consent(u8, bool),
    DeclineLast,
    StopAdvice(u8, bool),
    Complains(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => (0_i64..2, 0_u8..3, 0_u64..400_000, 0_u8..3)
            .prop_map(|(skip, cap, bytes, who)| Happening::Second { skip, at_cap: f32::from(cap) / 2.0, bytes, who }),
        1 => (0_u8..3).prop_map(Happening::Roams),
        1 => (0_u8..3).prop_map(Happening::Home),
        1 => (0_u8..3).prop_map(Happening::Closes),
        1 => Just(Happening::TapLast),
        1 => (1_i64..5_000).prop_map(Happening::Later),
        1 => any::<bool>().prop_map(Happening::Stop),
        1 => (0_u8..3, any::<bool>()).prop_map(|(who, consent)| Happening::Consent(who, consent)),
        1 => Just(Happening::DeclineLast),
        1 => (0_u8..3, any::<bool>()).prop_map(|(who, advice)| Happening::StopAdvice(who, advice)),
        1 => (0_u8..3).prop_map(Happening::Complains),
    ]
}

/// An engine that learns, tries and watches what comes of it.
fn engine() -> Engine {
    let learning = "learn: {say: [2, 18], set: [8, 2], half_life: 30d, credit: 20s}\n  explore: 0.2";
    let guard = "guard: {mode: live, pushes: {subscriber: 3/h, all: 9/h, element: 8/h}, rollback: \"complaint_delta > 0.5\"}";
    engine_with(
        &POLICY.replace("learn: {say: [2, 18], set: [8, 2]}", learning).replace("guard: {mode: live}", guard),
    )
}

/// A made-up day as inputs. Taps name the last message of a dry run, so that they hit.
fn inputs(day: &[Happening]) -> Vec<(Micros, Input)> {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let mut dry = engine();
    let mut now = 0;
    let mut last = DecisionId("none".into());
    let mut inputs = Vec::new();
    for happening in day {
        let observed = |start: i64, sessions, usage| {
            Input::Observed(Observed {
                agent: "gw".into(),
                start: s(start),
                end: s(start + 1),
                sessions,
                usage,
                named: Vec::new(),
                apps: Vec::new(),
            })
        };
        let input = match happening {
            Happening::Second { skip, at_cap, bytes, who } => {
                now += skip + 1;
                observed(now - 1, Vec::new(), vec![video(NAMES[usize::from(*who)], Some(*at_cap), *bytes)])
            }
            Happening::Roams(who) => {
                observed(now - 1, vec![session(NAMES[usize::from(*who)], true, "26201")], Vec::new())
            }
            Happening::Home(who) => {
                observed(now - 1, vec![session(NAMES[usize::from(*who)], true, "00101")], Vec::new())
            }
            Happening::Closes(who) => {
                observed(now - 1, vec![session(NAMES[usize::from(*who)], false, "")], Vec::new())
            }
            Happening::TapLast => Input::Tapped(last.clone()),
            Happening::DeclineLast => Input::Declined(last.clone()),
            Happening::StopAdvice(who, advice) => {
                Input::Consent { subscriber: id(NAMES[usize::from(*who)]), advice: *advice }
            }
            Happening::Complains(who) => Input::Complaint(id(NAMES[usize::from(*who)])),
            Happening::Later(seconds) => {
                now += seconds;
                Input::Tick
            }
            Happening::Stop(stop) => Input::Stop(*stop),
            Happening::Consent(who, advice) => {
                let mut profile = dry.profile(&id(NAMES[usize::from(*who)])).unwrap();
                profile.consent.advice = *advice;
                Input::Profile(profile)
            }
        };
        for effect in dry.step(s(now), input.clone()) {
            if let Effect::Say(say) = effect {
                last = say.decision;
            }
        }
        inputs.push((s(now), input));
    }
    inputs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_same_day_gives_the_same_effects_byte_for_byte(day in proptest::collection::vec(happening(), 0..120)) {
        let inputs = inputs(&day);
        let run = || -> String {
            let mut engine = engine();
            let effects: Vec<Vec<Effect>> =
                inputs.iter().map(|(at, input)| engine.step(*at, input.clone())).collect();
            format!("{}{:?}", serde_json::to_string(&effects).unwrap(), engine.take_dirty())
        };
        let recorded: Vec<(Micros, Input)> =
            serde_json::from_str(&serde_json::to_string(&inputs).unwrap()).unwrap();
        prop_assert_eq!(&recorded, &inputs, "a recorded day is the day");
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn whoever_is_looked_at_nothing_changes(day in proptest::collection::vec(happening(), 0..120)) {
        let (mut looked_at, mut left_alone) = (engine(), engine());
        let state = |engine: &mut Engine| {
            let mut file = Vec::new();
            engine.snapshot(0).write(&mut file).unwrap();
            (file, engine.take_dirty())
        };
        for (at, input) in inputs(&day) {
            prop_assert_eq!(looked_at.step(at, input.clone()), left_alone.step(at, input));
            for name in ["a", "b", "c"] {
                looked_at.seen(&id(name), at);
            }
            prop_assert!(state(&mut looked_at) == state(&mut left_alone), "a look at {at:?} left something behind");
        }
    }

    #[test]
    fn after_a_restart_no_decision_no_message_and_no_revision_comes_twice(
        day in proptest::collection::vec(happening(), 0..120),
        cuts in proptest::collection::btree_set(0_usize..120, 0..6),
    ) {
        let mut engine = engine();
        let mut rows: BTreeMap<SubscriberId, String> = BTreeMap::new();
        let mut made = BTreeSet::new();
        let mut said = BTreeSet::new();
        let mut revisions: BTreeMap<SubscriberId, u64> = BTreeMap::new();
        let mut profiles: BTreeMap<SubscriberId, Profile> = BTreeMap::new();
        for (index, (at, input)) in inputs(&day).into_iter().enumerate() {
            if cuts.contains(&index) {
                engine = self::engine();
                for profile in profiles.values() {
                    // Profiles are kept by the shell and told before anything else.
                    engine.admit(profile);
                }
                for (id, row) in &rows {
                    engine.restore(id.clone(), serde_json::from_str(row).unwrap());
                }
            }
            if let Input::Profile(profile) = &input {
                profiles.insert(profile.id.clone(), profile.clone());
            }
            for effect in engine.step(at, input) {
                match effect {
                    Effect::Decided(decision) => prop_assert!(made.insert(decision.id.clone()), "{decision:?}"),
                    Effect::Say(say) => prop_assert!(said.insert(say.decision.clone()), "{say:?}"),
                    Effect::Desire(desire) => {
                        let before = revisions.insert(desire.subscriber.clone(), desire.settings.revision);
                        prop_assert!(before.is_none_or(|before| before < desire.settings.revision), "{desire:?}");
                    }
                    Effect::Withdraw(_) | Effect::Guarded(_) | Effect::Ask(_) => {}
                }
            }
            for (id, state) in engine.take_dirty() {
                let state = state.expect("nobody's profile goes");
                prop_assert!(state.contacts.len() <= MAX_CONTACTS);
                rows.insert(id, serde_json::to_string(&state).unwrap());
            }
            // What is not dirty has not changed.
            for (id, row) in &rows {
                prop_assert_eq!(&serde_json::to_string(&engine.state_of(id).unwrap()).unwrap(), row);
            }
        }
    }
}
