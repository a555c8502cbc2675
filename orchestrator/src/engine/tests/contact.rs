//! Messages to one person: the rules of contact, and what the person answers.

use super::*;

const DAY: i64 = 86_400;

/// `say` at every occasion: somebody abroad without a pass, once a day.
fn policy(contact: &str, backoff: &str) -> String {
    POLICY
        .replace("rearm: 1h}\n  heavy", "rearm: 1d}\n  heavy")
        .replace("contact: {budget: 1/1d, same_action: 1/30d, quiet: \"21:00-08:00\", expire: 10m}", contact)
        .replace("backoff: {ignored: 2d}", backoff)
}

/// Days, from the first, on which `a` was written to, and the gates of the other days; `each` may answer.
fn days(
    engine: &mut Engine,
    days: i64,
    mut each: impl FnMut(&mut Engine, i64, &Say),
) -> (Vec<i64>, Vec<Gate>) {
    let mut effects = open(engine, 0, "a", "26201");
    let (mut said, mut gates) = (Vec::new(), Vec::new());
    for day in 0..days {
        if day > 0 {
            effects = engine.step(s(day * DAY + 2 + day), Input::Tick);
        }
        for say in says(&effects) {
            said.push(day);
            each(engine, day, say);
        }
        let stopped = decisions(&effects).into_iter().filter(|made| made.chosen.is_none());
        gates.extend(stopped.filter_map(|made| gate(&made.candidates[0])));
    }
    (said, gates)
}

#[test]
fn each_answer_has_its_own_silence_and_a_tap_has_none() {
    let contact = "contact: {budget: 9/1d, expire: 1h}";
    let backoff = "backoff: {ignored: 2d, declined: 5d, complaint: 9d}";
    let of = |answer: &dyn Fn(&Say) -> Option<Input>| {
        let mut engine = engine_with(&policy(contact, backoff));
        days(&mut engine, 12, |engine, day, say| {
            if let Some(input) = answer(say) {
                engine.step(s(day * DAY + 90), input);
            }
        })
    };
    assert_eq!(of(&|_| None).0, [0, 3, 6, 9]);
    let (declined, gates) = of(&|say| Some(Input::Declined(say.decision.clone())));
    assert_eq!(declined, [0, 6]);
    assert!(gates.iter().all(|gate| *gate == Gate::Backoff));
    assert_eq!(of(&|_| Some(Input::Complaint(id("a")))).0, [0, 10]);
    // The pass is over after 100 s.
    assert_eq!(of(&|say| Some(Input::Tapped(say.decision.clone()))).0, (0..12).collect::<Vec<_>>());
}

#[test]
fn a_declined_offer_is_closed_and_a_late_no_changes_nothing() {
    let mut engine = engine();
    let effects = open(&mut engine, 0, "a", "26201");
    let link = says(&effects)[0].decision.clone();
    assert_eq!(engine.step(s(5), Input::Declined(link.clone())), []);
    assert_eq!(engine.tap_state(&link, s(6)), TapState::Declined);
    assert_eq!(engine.step(s(6), Input::Tapped(link.clone())), [], "it is not set after a no");
    let before = engine.state_of(&id("a"));
    engine.step(s(3_600), Input::Declined(link));
    engine.step(s(3_600), Input::Declined(DecisionId("0".repeat(32))));
    assert_eq!(engine.state_of(&id("a")), before);
}

#[test]
fn a_stop_holds_at_once_over_restarts_and_over_what_the_profile_says_until_it_is_taken_back() {
    let contact = "contact: {budget: 9/1d, expire: 1h}";
    let mut engine = engine_with(&policy(contact, "backoff: {ignored: 2d}"));
    let stop = |advice| Input::Consent { subscriber: id("a"), advice };
    open(&mut engine, 0, "b", "00101");
    let effects = engine.step(s(1), stop(false));
    assert!(effects.contains(&Effect::Withdraw(id("a"))), "{effects:?}");
    let gates_of = |effects: &[Effect]| -> Vec<_> {
        decisions(effects).iter().map(|made| gate(&made.candidates[0])).collect()
    };
    assert_eq!(gates_of(&open(&mut engine, 2, "a", "26201")), [Some(Gate::Consent)]);
    // The back office still has the old consent.
    let profile = engine.profile(&id("a")).unwrap();
    engine.step(s(3), Input::Profile(profile));
    assert_eq!(gates_of(&engine.step(s(DAY + 10), Input::Tick)), [Some(Gate::Consent)]);
    // From the rows of the ledger, and from a snapshot.
    let rows = engine.take_dirty();
    let mut anew = engine_with(&policy(contact, "backoff: {ignored: 2d}"));
    for (id, state) in rows {
        anew.restore(id, state.unwrap());
    }
    assert_eq!(gates_of(&anew.step(s(2 * DAY + 20), Input::Tick)), [Some(Gate::Consent)]);
    let mut file = Vec::new();
    engine.snapshot(0).write(&mut file).unwrap();
    let (mut again, _) = Engine::from_snapshot(&file[..]).unwrap();
    assert_eq!(gates_of(&again.step(s(2 * DAY + 20), Input::Tick)), [Some(Gate::Consent)]);
    again.step(s(2 * DAY + 30), stop(true));
    assert_eq!(says(&again.step(s(3 * DAY + 30), Input::Tick)).len(), 1);
    assert_eq!(again.step(s(3 * DAY + 40), Input::Consent { subscriber: id("nobody"), advice: false }), []);
}

#[test]
fn the_budget_and_the_spacing_look_back_over_a_window_that_rolls() {
    let contact = "contact: {budget: 2/7d, same_action: 1/3d, expire: 1h}";
    let mut engine = engine_with(&policy(contact, "backoff: {}"));
    let (said, gates) = days(&mut engine, 16, |_, _, _| {});
    // Three days apart by the spacing; the third within a week waits until the first is a week old.
    assert_eq!(said, [0, 3, 7, 10, 14]);
    assert!(gates.contains(&Gate::Budget) && gates.contains(&Gate::SameAction));
}

#[test]
fn quiet_hours_travel_with_the_person() {
    // At noon in Berlin it is evening in Tokyo.
    let mut engine = engine();
    let mut tokyo = session("a", true, "26201");
    tokyo.time_zone = "Asia/Tokyo".into();
    // 23:00 there.
    let effects = second(&mut engine, 3 * 3_600, vec![tokyo.clone()], Vec::new());
    assert_eq!(gate(&decisions(&effects)[0].candidates[0]), Some(Gate::Quiet));
    assert!(decisions(&effects)[0].candidates[0].stopped_by.as_ref().unwrap().why.contains("Asia/Tokyo"));
    // Home again, where it is afternoon: the next occasion is used.
    tokyo.time_zone = "Europe/Berlin".into();
    second(&mut engine, 3 * 3_600 + 60, vec![tokyo], Vec::new());
    assert_eq!(says(&engine.step(s(4 * 3_600 + 60), Input::Tick)).len(), 1);
}
