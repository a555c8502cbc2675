//! The engine driven by hand-made time.

use usher_models::Class;
use usher_models::units::Bytes;

use super::io::{
    AppUsageSeen, Candidate, Decision, Desire, DirectionName, Gate, Mode, NamedSeen, Observed, Quality, Say,
    UsageSeen,
};
use super::*;

mod choosing;
mod contact;
mod days;
mod feed;
mod guard;
mod journeys;
mod partner;
mod reference;
mod shipped;
mod snapshots;

const POLICY: &str = r#"version: 1
facts:
  lateness: 2s
  capped: {of: video.at_cap, stat: mean, over: 10s, every: 1s}
  moved: {of: all.bytes, stat: sum, over: 10s, every: 5s}
moments:
  starved: {when: "capped > 0.8 && plan.video == 'sd'", hold: 5s, rearm: 60s}
  roam_bare: {when: "sub.roaming && !sub.roam_pass", rearm: 1h}
  heavy: {when: "moved > 1000000.0", rearm: 1h}
actions:
  evening: {at: [starved], set: {video: hd, for: 30s}, value: 2.0, cost: 0.0}
  roam_pass:
    at: [roam_bare]
    say: "You're in {country}. A day pass is {price}; without it today costs about {expected}."
    tap: {roam_pass: day, for: 100s}
    value: "sub.roam_expected"
    cost: "sub.roam_price"
  hint: {at: [heavy], say: "You are busy.", value: 9.0, cost: 0.0}
  hint_too: {at: [heavy], say: "You are very busy.", value: 8.0, cost: 0.0}
policy:
  eligible: "sub.active && !sub.complaint_open"
  suitable: "value > cost"
  consent: {set: service, say: advice}
  contact: {budget: 1/1d, same_action: 1/30d, quiet: "21:00-08:00", expire: 10m}
  backoff: {ignored: 2d}
choose:
  relevance: {default: 1.0, roam_bare: 1.5}
  floor: 0.4
  learn: {say: [2, 18], set: [8, 2]}
guard: {mode: live}
"#;

const PROFILES: &str = r#"plans:
  basic: {settings: {video: sd, roam_pass: none}}
  rich: {settings: {video: hd, roam_pass: none}}
countries:
  "262": {name: Testland, pass_price: 3.0, expected_per_day: 12.0, currency: EUR}
subscribers:
  - {id: a, keys: ["imsi:1"], plan: basic, consent: {service: true, advice: true}, time_zone: Europe/Berlin}
  - {id: b, keys: ["imsi:2"], plan: basic, consent: {service: true, advice: true}}
  - {id: c, keys: ["imsi:3"], plan: basic}
"#;

/// Seconds after a Saturday noon in Berlin, 11:00 UTC.
const NOON: i64 = 1_795_258_800;

fn s(seconds: i64) -> Micros {
    Micros::new((NOON + seconds) * 1_000_000)
}

fn id(name: &str) -> SubscriberId {
    SubscriberId(name.to_owned())
}

fn engine_with(policy: &str) -> Engine {
    let policy = Policy::parse("policy.yaml", policy).unwrap_or_else(|errors| panic!("{errors}"));
    let directory = Directory::parse("profiles.yaml", PROFILES).unwrap_or_else(|errors| panic!("{errors}"));
    Engine::new(policy, &directory).unwrap_or_else(|errors| panic!("{errors}"))
}

fn engine() -> Engine {
    engine_with(POLICY)
}

fn session(subscriber: &str, open: bool, plmn: &str) -> SessionSeen {
    SessionSeen {
        subscriber: id(subscriber),
        session: format!("s-{subscriber}"),
        open,
        serving_plmn: plmn.to_owned(),
        roaming: plmn != "00101",
        time_zone: String::new(),
        rat: String::new(),
    }
}

/// Profiles are given their lines in their order.
fn line(subscriber: &str) -> Line {
    Line(
        ["a", "b", "c"]
            .iter()
            .position(|name| *name == subscriber)
            .map_or(99, |at| u32::try_from(at).unwrap()),
    )
}

fn video(subscriber: &str, at_cap: Option<f32>, bytes: u64) -> UsageSeen {
    UsageSeen {
        line: line(subscriber),
        class: Class::Video,
        direction: DirectionName::Down,
        bytes: Bytes(bytes),
        packets: 10,
        dropped_packets: 1,
        at_cap,
        quality: Quality::default(),
    }
}

/// One second of one agent, told half a second later.
fn second(
    engine: &mut Engine,
    second: i64,
    sessions: Vec<SessionSeen>,
    usage: Vec<UsageSeen>,
) -> Vec<Effect> {
    let observed = Observed {
        agent: "gw".to_owned(),
        start: s(second),
        end: s(second + 1),
        sessions,
        usage,
        named: Vec::new(),
        apps: Vec::new(),
    };
    engine.step(s(second + 1).after(std::time::Duration::from_millis(500)), Input::Observed(observed))
}

fn open(engine: &mut Engine, at: i64, subscriber: &str, plmn: &str) -> Vec<Effect> {
    second(engine, at, vec![session(subscriber, true, plmn)], Vec::new())
}

/// Capped video from one second up to another.
fn capped(engine: &mut Engine, subscriber: &str, from: i64, to: i64) -> Vec<Effect> {
    (from..to)
        .flat_map(|at| second(engine, at, Vec::new(), vec![video(subscriber, Some(1.0), 1_000)]))
        .collect()
}

fn decisions(effects: &[Effect]) -> Vec<&Decision> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Decided(it) = effect { Some(it) } else { None })
        .collect()
}

fn desires(effects: &[Effect]) -> Vec<&Desire> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Desire(it) = effect { Some(it) } else { None })
        .collect()
}

fn says(effects: &[Effect]) -> Vec<&Say> {
    effects.iter().filter_map(|effect| if let Effect::Say(it) = effect { Some(it) } else { None }).collect()
}

fn gate(candidate: &Candidate) -> Option<Gate> {
    candidate.stopped_by.as_ref().map(|stopped| stopped.gate)
}

#[test]
fn a_session_that_opens_is_brought_to_the_plan() {
    let mut engine = engine();
    let effects = open(&mut engine, 0, "a", "00101");
    let [Effect::Desire(desire)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((desire.settings.revision, &desire.cause), (1, &Cause::Plan));
    assert_eq!(desire.settings.values["video"], usher_models::setting::Setting::of_plan("sd"));
    // Told again, as by an agent that started anew: nothing new.
    assert_eq!(open(&mut engine, 1, "a", "00101"), []);
    // A second session has to be brought there as well.
    let mut other = session("a", true, "00101");
    other.session = "another".into();
    let effects = second(&mut engine, 2, vec![other], Vec::new());
    assert_eq!(desires(&effects)[0].settings.revision, 2);
}

#[test]
fn capped_video_fires_after_window_and_hold_and_is_set_for_a_time() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "00101");
    // The window is whole at 10 s (mean 0.9), held for 5 s, and told of 2 s later: the lateness.
    let early = capped(&mut engine, "a", 1, 16);
    assert_eq!(early, []);
    assert_eq!(engine.facts_of(&id("a"), s(16))["capped"], Some(1.0));
    let effects = capped(&mut engine, "a", 16, 17);
    let [Effect::Decided(decision), Effect::Desire(desire)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(decision.moment, "starved");
    assert_eq!((decision.episode, decision.mode), (1, Mode::Live));
    assert_eq!(decision.chosen.as_deref(), Some("evening"));
    assert_eq!(decision.facts["capped"], Some(1.0));
    assert_eq!(decision.words["plan.video"], "sd");
    assert_eq!(decision.id.0.len(), 32);
    let score = decision.candidates[0].score.unwrap();
    assert!((score.total - 1.6).abs() < 1e-9);
    assert_eq!(desire.cause, Cause::Decision(decision.id.clone()));
    assert_eq!(desire.settings.revision, 2);
    let video = &desire.settings.values["video"];
    let now = s(17).after(std::time::Duration::from_millis(500));
    let until = now.after(std::time::Duration::from_secs(30));
    assert_eq!((video.value.as_str(), video.until, video.otherwise.as_str()), ("hd", Some(until), "sd"));

    // It ends by itself, on a tick or on anything else that comes.
    assert_eq!(engine.next_due(), Some(until));
    let effects = engine.step(until, Input::Tick);
    let [Effect::Desire(back)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((&back.cause, back.settings.revision), (&Cause::Expiry, 3));
    assert_eq!(back.settings.values["video"], usher_models::setting::Setting::of_plan("sd"));
    assert_eq!(engine.next_due(), None);
}

#[test]
fn a_moment_is_silent_until_it_is_rearmed_and_then_is_a_new_episode() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "00101");
    let effects = capped(&mut engine, "a", 1, 85);
    let made = decisions(&effects);
    let episodes: Vec<u64> = made.iter().map(|decision| decision.episode).collect();
    // First at 15 s of event time, silent for 60 s, then held for 5 s again: 80 s of event time, told of at 82 s.
    assert_eq!(episodes, [1, 2]);
    assert_ne!(made[0].id, made[1].id);
    assert_eq!(made[1].at, s(82).after(std::time::Duration::from_millis(500)));
}

#[test]
fn an_interruption_starts_the_hold_anew() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "00101");
    // True from 10 s on; then three seconds of free video bring the mean down to 0.8 at 13 s.
    assert_eq!(capped(&mut engine, "a", 1, 11), []);
    for at in 11..14 {
        assert_eq!(second(&mut engine, at, Vec::new(), vec![video("a", Some(0.0), 1)]), []);
    }
    // The mean is above 0.8 again from 23 s on; held until 28 s, told of at 30 s.
    assert_eq!(capped(&mut engine, "a", 14, 29), []);
    assert_eq!(decisions(&capped(&mut engine, "a", 29, 30)).len(), 1);
}

#[test]
fn a_fact_is_unknown_until_its_window_was_seen_and_after_a_hole() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "00101");
    capped(&mut engine, "a", 1, 11);
    assert_eq!(engine.facts_of(&id("a"), s(11))["capped"], None);
    capped(&mut engine, "a", 11, 12);
    assert_eq!(engine.facts_of(&id("a"), s(12))["capped"], Some(0.9));
    // Five seconds nobody told of.
    capped(&mut engine, "a", 18, 26);
    assert_eq!(engine.facts_of(&id("a"), s(26))["capped"], None);
    capped(&mut engine, "a", 26, 31);
    assert_eq!(engine.facts_of(&id("a"), s(31))["capped"], Some(1.0));
    // What is old says nothing of now.
    assert_eq!(engine.facts_of(&id("a"), s(90))["capped"], None);
    assert_eq!(engine.facts_of(&id("nobody"), s(31)), BTreeMap::new());
}

#[test]
fn late_usage_is_counted_and_never_applied() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "00101");
    for at in 1..20 {
        second(&mut engine, at, Vec::new(), Vec::new());
    }
    assert_eq!(engine.counters().late, 0);
    for at in 8..16 {
        let seen = vec![video("a", Some(1.0), 1_000_000)];
        let observed = Observed {
            agent: "gw".into(),
            start: s(at),
            end: s(at + 1),
            sessions: Vec::new(),
            usage: seen,
            named: Vec::new(),
            apps: Vec::new(),
        };
        assert_eq!(engine.step(s(20), Input::Observed(observed)), []);
    }
    assert_eq!(engine.counters().late, 8);
    second(&mut engine, 20, Vec::new(), Vec::new());
    assert_eq!(engine.facts_of(&id("a"), s(21))["capped"], Some(0.0));
}

#[test]
fn a_jump_of_event_time_costs_no_more_than_a_bound_and_starts_holds_anew() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "00101");
    // Held since 10 s, to fire at 15 s.
    assert_eq!(capped(&mut engine, "a", 1, 14), []);
    let a_year = 366 * 86_400;
    assert_eq!(second(&mut engine, a_year, Vec::new(), Vec::new()), []);
    assert!(engine.counters().boundaries_skipped > 30_000_000);
    assert_eq!(engine.facts_of(&id("a"), s(a_year))["capped"], None);
}

#[test]
fn usage_from_the_future_is_not_believed() {
    let mut engine = engine();
    let observed = Observed {
        agent: "gw".into(),
        start: s(0),
        end: s(1_000),
        sessions: Vec::new(),
        usage: Vec::new(),
        named: Vec::new(),
        apps: Vec::new(),
    };
    engine.step(s(1), Input::Observed(observed));
    assert_eq!(engine.counters().misdated, 1);
    assert!(engine.clock.advance(s(1), std::time::Duration::ZERO).is_none());
}

#[test]
fn a_roamer_without_a_pass_gets_one_message_whose_tap_works_once() {
    let mut engine = engine();
    let effects = open(&mut engine, 0, "a", "26201");
    let [Effect::Desire(_), Effect::Decided(decision), Effect::Say(say)] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(
        say.text,
        "You're in Testland. A day pass is 3.00 EUR; without it today costs about 12.00 EUR."
    );
    assert_eq!((say.decision.clone(), say.tap_seconds), (decision.id.clone(), 100));
    assert_eq!(say.tap, BTreeMap::from([("roam_pass".to_owned(), "day".to_owned())]));
    let link = decision.id.clone();
    assert_eq!(engine.tap_state(&link, s(10)), TapState::Open);
    assert_eq!(engine.tap_state(&link, say.expires), TapState::Expired);
    assert_eq!(engine.tap_state(&DecisionId("0".repeat(32)), s(10)), TapState::Unknown);

    let effects = engine.step(s(10), Input::Tapped(link.clone()));
    let [Effect::Desire(desire)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(desire.cause, Cause::Tap(link.clone()));
    assert_eq!(desire.settings.values["roam_pass"].value, "day");
    assert_eq!(desire.settings.values["roam_pass"].until, Some(s(110)));
    assert_eq!(engine.tap_state(&link, s(11)), TapState::Used);
    assert_eq!(engine.step(s(11), Input::Tapped(link)), []);
    assert_eq!(engine.step(s(12), Input::Tapped(DecisionId("0".repeat(32)))), []);
    assert_eq!(engine.facts_of(&id("a"), s(12))["sub.roam_pass"], Some(1.0));
}

#[test]
fn an_expired_link_sets_nothing() {
    let mut engine = engine();
    let effects = open(&mut engine, 0, "a", "26201");
    let say = says(&effects)[0].clone();
    assert_eq!(engine.step(say.expires, Input::Tapped(say.decision.clone())), []);
    assert_eq!(engine.tap_state(&say.decision, say.expires), TapState::Expired);
}

#[test]
fn nobody_is_touched_without_consent_and_the_trace_says_why() {
    let mut engine = engine();
    open(&mut engine, 0, "c", "00101");
    let effects = capped(&mut engine, "c", 1, 20);
    let [Effect::Decided(decision)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(decision.chosen, None);
    assert_eq!(gate(&decision.candidates[0]), Some(Gate::Consent));
    assert!(decision.candidates[0].score.is_some(), "the score is told all the same");
    let effects = open(&mut engine, 20, "c", "26201");
    assert_eq!(gate(&decisions(&effects)[0].candidates[0]), Some(Gate::Consent));
    assert_eq!(says(&effects).len(), 0);
}

#[test]
fn the_budget_counts_when_a_message_is_said() {
    let mut engine = engine();
    assert_eq!(says(&open(&mut engine, 0, "a", "26201")).len(), 1);
    let busy: Vec<Effect> =
        (1..20).flat_map(|at| second(&mut engine, at, Vec::new(), vec![video("a", None, 200_000)])).collect();
    let made = decisions(&busy);
    assert_eq!(made.len(), 1);
    assert_eq!(
        made[0].candidates.iter().map(gate).collect::<Vec<_>>(),
        [Some(Gate::Budget), Some(Gate::Budget)]
    );
    assert_eq!(says(&busy).len(), 0);
}

#[test]
fn the_best_wins_and_the_rest_are_outscored_or_below_the_floor() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "00101");
    let busy: Vec<Effect> =
        (1..20).flat_map(|at| second(&mut engine, at, Vec::new(), vec![video("a", None, 200_000)])).collect();
    let made = decisions(&busy);
    assert_eq!(made[0].chosen.as_deref(), Some("hint"));
    assert_eq!(gate(&made[0].candidates[1]), Some(Gate::Outscored));
    assert_eq!(says(&busy)[0].text, "You are busy.");

    let mut engine = engine_with(&POLICY.replace("floor: 0.4", "floor: 2.0"));
    assert_eq!(gate(&decisions(&open(&mut engine, 0, "a", "26201"))[0].candidates[0]), Some(Gate::Floor));
    let mut engine =
        engine_with(&POLICY.replace("suitable: \"value > cost\"", "suitable: \"value > 5.0 * cost\""));
    let effects = open(&mut engine, 0, "a", "26201");
    assert_eq!(gate(&decisions(&effects)[0].candidates[0]), Some(Gate::Suitable));
}

#[test]
fn quiet_hours_are_where_the_person_is() {
    let cases = [
        ("", 1),
        ("Asia/Tokyo", 1),
        ("Pacific/Auckland", 0),
        ("Nowhere/Land", 1),
        ("America/Los_Angeles", 0),
    ];
    for (zone, said) in cases {
        let mut engine = engine();
        // Noon in Berlin is 20:00 in Tokyo, midnight in Auckland, 3:00 in Los Angeles.
        let mut seen = session("a", true, "26201");
        seen.time_zone = zone.to_owned();
        let effects = second(&mut engine, 0, vec![seen], Vec::new());
        assert_eq!(says(&effects).len(), said, "{zone}");
        if said == 0 {
            assert_eq!(gate(&decisions(&effects)[0].candidates[0]), Some(Gate::Quiet), "{zone}");
        }
    }
}

#[test]
fn an_ignored_message_is_not_repeated_until_the_back_off_is_over() {
    let policy = POLICY
        .replace("budget: 1/1d, same_action: 1/30d", "budget: 9/1d")
        .replace("ignored: 2d", "ignored: 90m");
    let mut engine = engine_with(&policy);
    assert_eq!(says(&open(&mut engine, 0, "a", "26201")).len(), 1);
    // Fires again every hour; the link ran out after ten minutes; the back-off lasts until 100 minutes.
    let effects = engine.step(s(3_700), Input::Tick);
    assert_eq!(gate(&decisions(&effects)[0].candidates[0]), Some(Gate::Backoff));
    assert_eq!(says(&engine.step(s(7_400), Input::Tick)).len(), 1);
}

#[test]
fn the_same_action_has_a_quota_of_its_own() {
    let policy = POLICY.replace("budget: 1/1d", "budget: 3/1d").replace("  backoff: {ignored: 2d}\n", "");
    let mut engine = engine_with(&policy);
    assert_eq!(says(&open(&mut engine, 0, "a", "26201")).len(), 1);
    let effects = engine.step(s(3_700), Input::Tick);
    assert_eq!(gate(&decisions(&effects)[0].candidates[0]), Some(Gate::SameAction));
}

#[test]
fn the_kill_switch_works_at_once_and_lets_what_was_set_end() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "00101");
    assert_eq!(desires(&capped(&mut engine, "a", 1, 18)).len(), 1);
    assert_eq!(engine.step(s(19), Input::Stop(true)), []);
    assert_eq!(engine.mode(), Mode::Stop);
    let effects = open(&mut engine, 19, "b", "26201");
    let [Effect::Desire(_), Effect::Decided(decision)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((decision.mode, gate(&decision.candidates[0])), (Mode::Stop, Some(Gate::Guard)));
    assert_eq!(desires(&engine.step(s(60), Input::Tick))[0].cause, Cause::Expiry);
    assert_eq!(engine.step(s(61), Input::Stop(false)), []);
    assert_eq!(engine.mode(), Mode::Live);
}

#[test]
fn in_plan_mode_decisions_are_recorded_and_nothing_is_carried_out() {
    let mut engine = engine_with(&POLICY.replace("mode: live", "mode: plan"));
    let effects = open(&mut engine, 0, "a", "26201");
    let [Effect::Desire(_), Effect::Decided(decision)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((decision.mode, decision.chosen.as_deref()), (Mode::Plan, Some("roam_pass")));
    assert_eq!(engine.tap_state(&decision.id, s(1)), TapState::Unknown);
    let effects = capped(&mut engine, "a", 1, 20);
    assert!(matches!(effects[..], [Effect::Decided(_)]), "{effects:?}");
}

#[test]
fn a_session_that_closes_ends_what_was_known_of_it() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "26201");
    assert_eq!(engine.facts_of(&id("a"), s(1))["sub.roaming"], Some(1.0));
    second(&mut engine, 1, vec![session("a", false, "26201")], Vec::new());
    assert_eq!(engine.facts_of(&id("a"), s(2))["sub.roaming"], None);
    assert_eq!(engine.facts_of(&id("a"), s(2))["sub.roam_expected"], None);
    assert!(engine.state_of(&id("a")).unwrap().sessions.is_empty());
}

#[test]
fn a_profile_that_changes_changes_what_is_desired() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "00101");
    let mut profile = engine.profile(&id("a")).unwrap();
    profile.plan = "rich".into();
    let effects = engine.step(s(5), Input::Profile(profile.clone()));
    assert_eq!(desires(&effects)[0].settings.values["video"].value, "hd");
    assert_eq!(engine.step(s(6), Input::Profile(profile)), []);
    assert_eq!(engine.step(s(7), Input::ProfileGone(id("a"))), []);
    assert_eq!(open(&mut engine, 8, "a", "26201"), []);
    assert_eq!(engine.counters().strangers, 1);
    // Somebody never seen is nobody's push.
    let stranger = engine.profile(&id("b")).unwrap();
    assert_eq!(engine.step(s(9), Input::Profile(stranger)), []);
}

#[test]
fn what_ended_while_the_engine_was_down_is_put_right_at_the_first_step() {
    let mut first = engine();
    open(&mut first, 0, "a", "00101");
    capped(&mut first, "a", 1, 18);
    let rows = first.take_dirty();
    let row = serde_json::to_string(rows[0].1.as_ref().unwrap()).unwrap();
    let mut second = engine();
    second.restore(id("a"), serde_json::from_str(&row).unwrap());
    let effects = second.step(s(100), Input::Tick);
    assert_eq!((&desires(&effects)[0].cause, desires(&effects)[0].settings.revision), (&Cause::Expiry, 3));
    // Sessions are remembered; windows are not.
    assert_eq!(second.facts_of(&id("a"), s(100))["sub.roaming"], Some(0.0));
    assert_eq!(second.facts_of(&id("a"), s(100))["capped"], None);
}

#[test]
fn somebody_who_is_gone_gets_back_what_was_set_and_is_forgotten() {
    let mut engine = engine();
    open(&mut engine, 0, "a", "26201");
    assert_eq!(engine.by_decision.len(), 1, "a message was sent");
    capped(&mut engine, "a", 1, 18);
    assert_eq!(engine.settings_of(&id("a")).unwrap().values["video"].value, "hd");
    engine.take_dirty();
    let effects = engine.step(s(20), Input::ProfileGone(id("a")));
    let [Effect::Desire(back)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((&back.cause, back.settings.revision), (&Cause::Gone, 3));
    assert_eq!(back.settings.values["video"], usher_models::setting::Setting::of_plan("sd"));
    assert_eq!(engine.take_dirty(), [(id("a"), None)]);
    assert!(engine.by_decision.is_empty() && engine.agenda.is_empty());
    assert_eq!(engine.step(s(100), Input::Tick), []);
    assert_eq!(engine.take_dirty(), [], "forgotten once");
    // Of somebody at the plan's settings nothing has to be taken back.
    open(&mut engine, 101, "b", "00101");
    assert_eq!(engine.step(s(103), Input::ProfileGone(id("b"))), []);
    assert_eq!(engine.take_dirty(), [(id("b"), None)]);
}

#[test]
fn somebody_who_went_while_the_engine_was_down_gets_back_what_was_set_at_the_first_step() {
    let mut first = engine();
    open(&mut first, 0, "a", "00101");
    capped(&mut first, "a", 1, 18);
    let state = first.take_dirty().remove(0).1.unwrap();
    let policy = Policy::parse("policy.yaml", POLICY).unwrap();
    // The plan has gone with its last subscriber.
    let profiles =
        "plans: {rich: {settings: {video: hd, roam_pass: none}}}\ncountries: {}\nsubscribers: []\n";
    let mut second = Engine::new(policy, &Directory::parse("profiles.yaml", profiles).unwrap()).unwrap();
    second.restore(id("a"), state);
    let effects = second.step(s(20), Input::Tick);
    assert_eq!(desires(&effects)[0].settings.values["video"], usher_models::setting::Setting::of_plan("sd"));
    assert_eq!(second.take_dirty(), [(id("a"), None)]);
}

#[test]
fn sessions_of_one_subscriber_are_bounded() {
    let mut engine = engine();
    let sessions = (0..=MAX_SESSIONS)
        .map(|number| SessionSeen { session: number.to_string(), ..session("a", true, "00101") });
    second(&mut engine, 0, sessions.collect(), Vec::new());
    assert_eq!(engine.counters().sessions_refused, 1);
    assert_eq!(engine.state_of(&id("a")).unwrap().open_sessions().count(), MAX_SESSIONS);
}

#[test]
fn nobody_runs_a_policy_that_the_law_refuses_or_that_does_not_fit_the_plans() {
    let directory = Directory::parse("profiles.yaml", PROFILES).unwrap();
    let refused = |policy: &str| {
        let policy = Policy::parse("policy.yaml", policy).unwrap_or_else(|errors| panic!("{errors}"));
        Engine::new(policy, &directory).unwrap_err().to_string()
    };
    let unlawful =
        POLICY.replace("version: 1", "version: 1\njurisdiction: us").replace("quiet: \"21:00-08:00\", ", "");
    assert!(refused(&unlawful).contains("47 CFR 64.1200(c)(1)"));
    assert!(refused(&POLICY.replace("plan.video", "plan.vidoe")).contains("no plan has `vidoe`"));
    assert!(
        refused(&POLICY.replace("set: {video: hd", "set: {sound: hd"))
            .contains("gives no `sound` to return to")
    );
}
