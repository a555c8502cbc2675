//! Partner offers: asked for before they are made.

use std::time::Duration;

use super::*;
use crate::engine::io::{AskPartner, LiveOffer};

const POLICY: &str = r#"version: 1
moments:
  abroad: {when: "sub.roaming", rearm: 1d}
actions:
  swap: {at: [abroad], say: "Swap it for {partner}?", tap: {addon_swap: "{partner}"}, value: 9.0, cost: 2.0}
policy:
  contact: {budget: 1/1d, quiet: "21:00-08:00", expire: 1h}
  backoff: {ignored: 1s}
guard: {mode: live}
"#;

fn engine() -> Engine {
    let profiles = PROFILES
        .replace("time_zone: Europe/Berlin}", "time_zone: Europe/Berlin, offer: {partner: streamco}}");
    let directory = Directory::parse("profiles.yaml", &profiles).unwrap_or_else(|errors| panic!("{errors}"));
    Engine::new(Policy::parse("policy.yaml", POLICY).unwrap(), &directory).unwrap()
}

/// An engine that has just asked.
fn asked() -> (Engine, AskPartner) {
    let mut engine = engine();
    let effects = open(&mut engine, 0, "a", "26201");
    let asks: Vec<_> = effects
        .iter()
        .filter_map(|effect| if let Effect::Ask(ask) = effect { Some(ask) } else { None })
        .collect();
    assert_eq!(
        (decisions(&effects).len(), asks.len()),
        (0, 1),
        "what is not decided yet is not told: {effects:?}"
    );
    let ask = asks[0].clone();
    assert_eq!((ask.partner.as_str(), ask.action.as_str()), ("streamco", "swap"));
    (engine, ask)
}

fn answer(ask: &AskPartner, in_stock: bool, price: f64) -> Input {
    Input::Answered { decision: ask.decision.clone(), offer: Ok(LiveOffer { in_stock, price }) }
}

fn stopped(effects: &[Effect]) -> (Gate, String) {
    let made = decisions(effects);
    assert_eq!((made.len(), made[0].chosen.as_deref(), says(effects).len()), (1, None, 0), "{effects:?}");
    let stopped = made[0].candidates[0].stopped_by.clone().unwrap();
    (stopped.gate, stopped.why)
}

#[test]
fn an_offer_is_made_once_the_partner_has_it_at_no_more_than_the_price() {
    let (mut engine, ask) = asked();
    let effects = engine.step(s(2), answer(&ask, true, 2.0));
    assert_eq!(decisions(&effects)[0].chosen.as_deref(), Some("swap"));
    assert_eq!(
        (&says(&effects)[0].decision, says(&effects)[0].text.as_str()),
        (&ask.decision, "Swap it for streamco?")
    );
    assert_eq!(engine.step(s(3), answer(&ask, true, 2.0)), [], "an answer counts once");
    assert_eq!(engine.tap_state(&ask.decision, s(4)), TapState::Open);
}

#[test]
fn without_a_good_answer_in_time_there_is_no_offer_and_the_reason_is_kept() {
    let (mut engine, ask) = asked();
    assert_eq!(
        stopped(&engine.step(s(2), answer(&ask, false, 0.0))),
        (Gate::Partner, "the partner has none".into())
    );
    let (mut engine, ask) = asked();
    let dearer = stopped(&engine.step(s(2), answer(&ask, true, 2.5)));
    assert_eq!(dearer, (Gate::Partner, "it costs 2.50 now, more than 2.00".into()));
    let (mut engine, ask) = asked();
    let refused =
        Input::Answered { decision: ask.decision.clone(), offer: Err("the partner hung up".into()) };
    assert_eq!(stopped(&engine.step(s(2), refused)), (Gate::Partner, "the partner hung up".into()));
    let (mut engine, ask) = asked();
    assert_eq!(engine.next_due(), Some(ask.until));
    let late = stopped(&engine.step(ask.until, Input::Tick));
    assert_eq!(late, (Gate::Partner, "the partner did not answer within 5 s".into()));
    assert_eq!(engine.step(ask.until.after(Duration::from_secs(1)), answer(&ask, true, 0.0)), []);
}

#[test]
fn what_was_said_meanwhile_counts_and_a_question_survives_a_restart_by_either_way() {
    let (mut engine, ask) = asked();
    let rows = engine.take_dirty();
    let mut file = Vec::new();
    engine.snapshot(0).write(&mut file).unwrap();
    let withdrawn = Input::Consent { subscriber: id("a"), advice: false };
    engine.step(s(2), withdrawn);
    assert_eq!(stopped(&engine.step(s(3), answer(&ask, true, 0.0))).0, Gate::Consent);
    let (mut again, _) = Engine::from_snapshot(&file[..]).unwrap();
    assert_eq!(says(&again.step(s(3), answer(&ask, true, 0.0))).len(), 1);
    let mut anew = self::engine();
    for (id, state) in rows {
        anew.restore(id, state.unwrap());
    }
    assert_eq!(says(&anew.step(s(3), answer(&ask, true, 0.0))).len(), 1);
}
