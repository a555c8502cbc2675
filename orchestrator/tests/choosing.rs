//! A made-up people whose tastes are known, written to for two months: choosing by what is learnt beats every fixed choice,
//! and no message ever breaks a rule of contact, which are counted here a second time, by the history of each person. What the uplift
//! report makes of the decisions is what the people's tastes are.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use jiff::tz::TimeZone;
use usher_models::units::{Micros, SubscriberId};
use usher_orchestrator::engine::io::{Effect, Gate, Input, Observed, Say, SessionSeen};
use usher_orchestrator::engine::{Engine, Learned};
use usher_orchestrator::identity::Directory;
use usher_orchestrator::policy::Policy;
use usher_orchestrator::uplift::report::{Choice, Figure, Question, Reader, Said};

const PEOPLE: usize = 300;
const DAYS: i64 = 60;
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// A Saturday, 11:00 UTC.
const START: i64 = 1_795_258_800_000_000;
const STYLES: [&str; 3] = ["plain", "points", "price"];
const ZONES: [&str; 4] = ["Europe/Berlin", "America/New_York", "Asia/Tokyo", "UTC"];
const ACTIONS: [&str; 3] = ["data_pass", "day_pass", "week_pass"];

fn policy(actions: &[&str], choose: &str) -> Policy {
    let mut text = String::from(
        "version: 1\nmoments:\n  abroad: {when: \"sub.roaming && !sub.roam_pass\", rearm: 20h}\nactions:\n",
    );
    for action in actions {
        writeln!(
            text,
            "  {action}:\n    at: [abroad]\n    say: {{plain: \"{action} plain\", price: \"{action} price\", points: \"{action} points\"}}\n    \
             tap: {{roam_pass: day, for: 1h}}\n    value: 10.0\n    cost: 3.0",
        )
        .unwrap();
    }
    text.push_str(
        "policy:\n  contact: {budget: 2/7d, same_action: 1/3d, quiet: \"21:00-08:00\", expire: 2h}\n  \
         backoff: {declined: 20d, complaint: 40d}\n",
    );
    writeln!(text, "choose: {choose}\nguard: {{mode: live}}").unwrap();
    Policy::parse("policy.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn directory() -> Directory {
    let mut text = String::from(
        "plans:\n  basic: {settings: {roam_pass: none}}\n  rich: {settings: {roam_pass: none}}\n\
         countries:\n  \"262\": {name: Testland, pass_price: 3.0, expected_per_day: 12.0}\nsubscribers:\n",
    );
    for who in 0..PEOPLE {
        let plan = if who % 2 == 0 { "basic" } else { "rich" };
        let advice = who % 10 != 9;
        writeln!(
            text,
            "  - {{id: p{who:04}, keys: [\"imsi:{who}\"], plan: {plan}, consent: {{service: true, advice: {advice}}}}}"
        )
        .unwrap();
    }
    Directory::parse("profiles.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// An even number in [0, 1) for a name: the people's own luck.
fn luck(name: &str) -> f64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    f64::from((mixed >> 32) as u32) / f64::from(u32::MAX)
}

/// The truth: who takes up what, by plan and taste.
fn takes_up(who: usize, action: &str, style: &str) -> f64 {
    let base = match (who % 2, action) {
        (0, "day_pass") | (1, "week_pass") => 0.36,
        (_, "data_pass") => 0.12,
        _ => 0.04,
    };
    base * if STYLES[who / 2 % 3] == style { 1.6 } else { 0.7 }
}

/// What a person has lived through.
#[derive(Default)]
struct Person {
    says: Vec<(Micros, String)>,
    declined: Vec<(Micros, String)>,
    complained: Option<Micros>,
    stopped: bool,
}

struct Run {
    /// Value to people, less its cost.
    gained: f64,
    said: usize,
    accepted: usize,
    people_written_to: usize,
    held_out: usize,
    /// Every decision and whom it was about, as it was logged.
    choices: BTreeMap<String, (usize, Choice)>,
}

fn check(say: &Say, at: Micros, who: usize, person: &Person) {
    let action = &say.action;
    assert!(who % 10 != 9 && !person.stopped, "p{who} gave no consent, or withdrew it");
    let within = |times: &[(Micros, String)], per: Duration, only: Option<&str>| {
        let counts =
            |it: &&(Micros, String)| it.0 > at.before(per) && only.is_none_or(|action| it.1 == action);
        times.iter().filter(counts).count()
    };
    assert!(within(&person.says, 7 * DAY, None) < 2, "the budget of p{who} is used up");
    assert!(within(&person.says, 3 * DAY, Some(action)) < 1, "p{who} heard of {action} lately");
    assert!(within(&person.declined, 20 * DAY, Some(action)) < 1, "p{who} declined {action}");
    assert!(person.complained.is_none_or(|then| then <= at.before(40 * DAY)), "p{who} complained");
    let zone = TimeZone::get(ZONES[who % 4]).unwrap();
    let hour = zone.to_datetime(jiff::Timestamp::from_microsecond(at.get()).unwrap()).hour();
    assert!((8..21).contains(&hour), "p{who} sleeps at {hour}");
}

fn live(policy: Policy) -> Run {
    let mut engine = Engine::new(policy, &directory()).unwrap_or_else(|errors| panic!("{errors}"));
    let mut people: Vec<Person> = (0..PEOPLE).map(|_| Person::default()).collect();
    let mut run = Run {
        gained: 0.0,
        said: 0,
        accepted: 0,
        people_written_to: 0,
        held_out: 0,
        choices: BTreeMap::new(),
    };
    let mut held_out = BTreeSet::new();
    let sessions = (0..PEOPLE).map(|who| SessionSeen {
        subscriber: SubscriberId(format!("p{who:04}")),
        session: format!("s{who}"),
        open: true,
        serving_plmn: "26201".into(),
        roaming: true,
        time_zone: ZONES[who % 4].into(),
        rat: String::new(),
    });
    let start = Micros::new(START);
    let observed = Observed {
        agent: "gw".into(),
        start,
        end: start.after(Duration::from_secs(1)),
        sessions: sessions.collect(),
        usage: Vec::new(),
        named: Vec::new(),
        apps: Vec::new(),
    };
    let mut effects = engine.step(start, Input::Observed(observed));
    // Every three hours, so that everybody's mornings come by.
    for step in 1..=DAYS * 8 {
        let at = start.after(3 * HOUR * u32::try_from(step).unwrap());
        let mut answers: BTreeMap<usize, Vec<Input>> = BTreeMap::new();
        for effect in &effects {
            match effect {
                Effect::Say(say) => {
                    let who: usize = say.subscriber.0[1..].parse().unwrap();
                    let said_at = at.before(3 * HOUR);
                    check(say, said_at, who, &people[who]);
                    let person = &mut people[who];
                    run.said += 1;
                    run.people_written_to += usize::from(person.says.is_empty());
                    person.says.push((said_at, say.action.clone()));
                    let (action, style) = say.text.split_once(' ').unwrap();
                    let draw = luck(&format!("{who} {action} {style} {}", said_at.get()));
                    let wanted = takes_up(who, action, style);
                    let soon = said_at.after(HOUR);
                    let message =
                        Said { sent: true, tapped: (draw < wanted).then_some(soon), declined: None };
                    let (_, choice) = run.choices.get_mut(&say.decision.0).expect("it was decided before");
                    choice.message = Some(message);
                    let id = SubscriberId(format!("p{who:04}"));
                    if draw < wanted {
                        run.accepted += 1;
                        run.gained += 7.0;
                        answers.entry(who).or_default().push(Input::Tapped(say.decision.clone()));
                    } else if draw > 0.97 {
                        person.declined.push((soon, action.to_owned()));
                        answers.entry(who).or_default().push(Input::Declined(say.decision.clone()));
                    } else if draw > 0.965 {
                        person.complained = Some(soon);
                        answers.entry(who).or_default().push(Input::Complaint(id));
                    } else if draw > 0.96 {
                        person.stopped = true;
                        answers
                            .entry(who)
                            .or_default()
                            .push(Input::Consent { subscriber: id, advice: false });
                    }
                }
                Effect::Decided(decision) => {
                    assert!(decision.probability > 0.0 && decision.probability <= 1.0);
                    let logged = serde_json::from_value(serde_json::to_value(decision).unwrap()).unwrap();
                    let who = decision.subscriber.0[1..].parse().unwrap();
                    run.choices.insert(decision.id.0.clone(), (who, logged));
                    let gates = decision.candidates.iter().filter_map(|it| it.stopped_by.as_ref());
                    if gates.into_iter().any(|stopped| stopped.gate == Gate::Holdout) {
                        held_out.insert(decision.subscriber.clone());
                    }
                }
                _ => {}
            }
        }
        // An hour after, people answer; what answers lead to is nothing said.
        for input in answers.into_values().flatten() {
            let led_to = engine.step(at.before(2 * HOUR), input);
            assert!(!led_to.iter().any(|effect| matches!(effect, Effect::Say(_))));
        }
        effects = engine.step(at, Input::Tick);
    }
    run.held_out = held_out.len();
    for id in held_out {
        let who: usize = id.0[1..].parse().unwrap();
        // A quarter begins within the two months: who was held out in one may have been written to in the other.
        assert!(people[who].says.len() < 17);
    }
    run
}

#[test]
fn what_is_learnt_beats_the_best_fixed_action_and_no_rule_of_contact_is_ever_broken() {
    let unmoved = "{learn: {say: [2, 8], styles: [plain, points, price]}, floor: 1.0}";
    let fixed: Vec<Run> = ACTIONS.iter().map(|action| live(policy(&[action], unmoved))).collect();
    let best = fixed.iter().map(|run| run.gained).fold(0.0, f64::max);
    let learning = "{learn: {say: [2, 8], half_life: 60d, credit: 2h, styles: [plain, points, price]}, \
                    floor: 1.0, explore: 0.03, holdout: 0.05}";
    let learnt = live(policy(&ACTIONS, learning));
    for (action, run) in ACTIONS.iter().zip(&fixed) {
        println!("always {action}: {} of {} taken up, worth {:.0}", run.accepted, run.said, run.gained);
    }
    println!(
        "learning: {} of {} taken up, worth {:.0}, {} held out",
        learnt.accepted, learnt.said, learnt.gained, learnt.held_out
    );
    // More in all, though one in twenty gets nothing, and more of each message.
    let each = |run: &Run| run.gained / f64::from(u32::try_from(run.said).unwrap());
    assert!(learnt.gained > 1.2 * best, "{} against {best}", learnt.gained);
    let best_each = fixed.iter().map(each).fold(0.0, f64::max);
    assert!(each(&learnt) > 1.3 * best_each, "{} against {best_each} a message", each(&learnt));
    // Consent is had of nine in ten; one in twenty is held out in each quarter.
    assert!((12..=60).contains(&learnt.held_out), "{}", learnt.held_out);
    assert!(learnt.people_written_to > PEOPLE * 8 / 10);
}

#[test]
fn the_uplift_report_tells_what_each_message_would_have_brought_though_it_was_said_to_whom_it_suited() {
    let learning = "{learn: {say: [2, 8], half_life: 60d, credit: 2h, styles: [plain, points, price]}, \
                    floor: 1.0, explore: 0.5, holdout: 0.05}";
    let run = live(policy(&ACTIONS, learning));
    let now = Micros::new(START).after(DAY * 61);
    let mut reader = Reader::new(Question { policy: None, credit: 2 * HOUR, now });
    run.choices.values().for_each(|(_, choice)| reader.read(choice));
    let report = reader.report(false, &Learned::default());
    let accepted = usize::try_from(report.all.accepted).unwrap();
    assert_eq!((usize::try_from(report.all.sent).unwrap(), accepted), (run.said, run.accepted));
    // What people would have said, had each been asked whenever it could have been.
    let truth = |action: &str, style: &str| {
        let could = |choice: &Choice| {
            let mut candidates = choice.candidates.iter();
            candidates.any(|it| {
                let gate = it.stopped_by.as_ref().map(|stopped| stopped.gate);
                let open = [None, Some(Gate::Outscored), Some(Gate::Floor), Some(Gate::Holdout)];
                it.action == action && open.contains(&gate)
            })
        };
        let asked: Vec<usize> =
            run.choices.values().filter(|(_, choice)| could(choice)).map(|(who, _)| *who).collect();
        let count = f64::from(u32::try_from(asked.len()).unwrap());
        asked.iter().map(|who| takes_up(*who, action, style)).sum::<f64>() / count
    };
    let holds = |figure: Figure, truth: f64| figure.low <= truth && truth <= figure.high;
    let (mut ipw, mut snips, mut as_said) = ((0, 0.0), (0, 0.0), (0, 0.0));
    for line in &report.actions {
        let style = line.style.as_deref().unwrap();
        let truth = truth(&line.action, style);
        let always = line.always.unwrap_or_else(|| panic!("too few of {line:?}"));
        println!("{} {style}: {truth:.3}, {:.3} by IPW", line.action, always.acceptance_ipw.mean);
        for (tally, figure) in [
            (&mut ipw, always.acceptance_ipw),
            (&mut snips, always.acceptance_snips),
            (&mut as_said, line.brought.acceptance.unwrap()),
        ] {
            *tally = (tally.0 + u32::from(holds(figure, truth)), tally.1 + (figure.mean - truth).abs());
        }
    }
    println!(
        "of 9, bounds that hold the truth, and errors: {ipw:?} IPW, {snips:?} SNIPS, {as_said:?} as said"
    );
    // Bounds of 95 %, nine times; what was said is of whom it suited best.
    assert_eq!(report.actions.len(), 9);
    assert!(ipw.0 >= 8 && snips.0 >= 8 && as_said.0 <= 5);
    assert!(as_said.1 > 2.5 * ipw.1.max(snips.1), "{as_said:?} {ipw:?} {snips:?}");
}
