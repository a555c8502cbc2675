use super::*;
use crate::engine::io::Stopped;

const DAY: Duration = Duration::from_hours(24);
const NOW: Micros = Micros::new(1_795_258_800_000_000);

fn question() -> Question {
    Question { policy: None, credit: DAY, now: NOW }
}

fn stopped(gate: Gate) -> Stopped {
    Stopped { gate, why: String::new() }
}

/// Of actions `a` (gain 7) and `b` (gain 2): `a` or `b` is picked, or nothing, two days ago.
fn choice(picked: Option<&str>, probability: f64) -> Choice {
    let candidate = |action: &str, value| Candidate {
        action: action.to_owned(),
        stopped_by: (picked != Some(action)).then(|| stopped(Gate::Outscored)),
        score: Some(Score { propensity: 0.2, relevance: 1.0, value, cost: 3.0, total: 0.2 * (value - 3.0) }),
    };
    Choice {
        at: NOW.before(2 * DAY),
        policy: "7f3a".to_owned(),
        mode: Mode::Live,
        candidates: vec![candidate("a", 10.0), candidate("b", 5.0)],
        chosen: picked.map(str::to_owned),
        probability: Some(probability),
        style: None,
        message: picked.map(|_| Said { sent: true, ..Said::default() }),
    }
}

fn tapped(mut choice: Choice, after: Duration) -> Choice {
    choice.message = Some(Said { sent: true, tapped: Some(choice.at.after(after)), declined: None });
    choice
}

fn kept(mut choice: Choice, gate: Gate) -> Choice {
    let picked = choice.chosen.take();
    choice.message = None;
    let candidate = choice.candidates.iter_mut().find(|it| Some(&it.action) == picked.as_ref());
    candidate.unwrap().stopped_by = Some(stopped(gate));
    choice
}

/// So many said, so many of them accepted.
fn said(reader: &mut Reader, action: &str, probability: f64, (said, accepted): (u32, u32)) {
    for number in 0..said {
        let choice = choice(Some(action), probability);
        reader.read(&if number < accepted { tapped(choice, DAY / 2) } else { choice });
    }
}

fn close(figure: Figure, mean: f64, half: f64) {
    let Figure { mean: found, low, high } = figure;
    assert!((found - mean).abs() < 1e-9, "{found} is not {mean}");
    assert!((high - found - half).abs() < 2e-5, "{} is not {half}", high - found);
    assert!((found - low - half).abs() < 2e-5);
}

/// Half the time any of the two is tried. At the first 500 decisions `a` is best (0.75 against 0.25), at the other 250 nothing is
/// (0.5, and 0.25 each). Of 625 picks 125 are withheld. Worked out by hand.
fn known() -> Reader {
    let mut reader = Reader::new(question());
    said(&mut reader, "a", 0.75, (300, 60));
    said(&mut reader, "b", 0.25, (100, 40));
    for (action, probability, count) in [("a", 0.75, 75), ("b", 0.25, 25), ("a", 0.25, 13), ("b", 0.25, 12)] {
        for number in 0..count {
            let gate = if number % 5 == 0 { Gate::Canary } else { Gate::Holdout };
            reader.read(&kept(choice(Some(action), probability), gate));
        }
    }
    said(&mut reader, "a", 0.25, (50, 30));
    said(&mut reader, "b", 0.25, (50, 25));
    for _ in 0..125 {
        reader.read(&choice(None, 0.5));
    }
    reader
}

#[test]
fn a_ledger_of_known_decisions_gives_the_figures_worked_out_by_hand() {
    let report = known().report(false, &Learned::default());
    let [a, b] = &report.actions[..] else { panic!("{report:#?}") };
    assert_eq!(
        (a.action.as_str(), a.brought.sent, a.brought.accepted, a.brought.ignored),
        ("a", 350, 90, 260)
    );
    assert_eq!((a.brought.held_out, a.brought.unsaid, a.chances), (70, 18, 750));
    assert_eq!((b.brought.sent, b.brought.accepted, b.chances), (150, 65, 750));
    // 90 of 350; sqrt(p (1 - p) / 349) = 0.023395.
    close(a.brought.acceptance.unwrap(), 90.0 / 350.0, 0.045_854);
    close(a.brought.gain.unwrap(), 7.0 * 90.0 / 350.0, 7.0 * 0.045_854);
    // Weights 4/3 of 300 and 4 of 50: (60 * 4/3 + 30 * 4) / (300 * 4/3 + 50 * 4), though only 90 of 350 were accepted.
    let always = a.always.unwrap();
    close(always.acceptance_snips, 1.0 / 3.0, 0.060_601);
    close(always.gain_snips, 7.0 / 3.0, 7.0 * 0.060_601);
    // Divided by the 0.8 that were not withheld, and by 750; sqrt(833.333 / 749 / 750) = 0.038516.
    close(always.acceptance_ipw, 1.0 / 3.0, 0.075_489);
    close(always.gain_ipw, 7.0 / 3.0, 7.0 * 0.075_489);
    // 600^2 / (300 * 16/9 + 50 * 16).
    assert!((always.effective_messages - 270.0).abs() < 1e-9);
    assert!((b.always.unwrap().acceptance_ipw.mean - 65.0 / 150.0).abs() < 1e-9);
    assert!((b.always.unwrap().acceptance_snips.mean - 65.0 / 150.0).abs() < 1e-9);
    let all = &report.all;
    assert_eq!((all.sent, all.accepted, all.held_out, all.unsaid), (500, 155, 99, 26));
    assert!((report.all.acceptance.unwrap().mean - 0.31).abs() < 1e-9);
    assert!((report.all.gain.unwrap().mean - (90.0 * 7.0 + 65.0 * 2.0) / 500.0).abs() < 1e-9);
}

#[test]
fn each_style_is_a_line_of_its_own_over_all_chances_of_its_action() {
    let mut reader = Reader::new(question());
    for (style, share, accepted) in [("plain", 0.5, 20), ("price", 0.5, 60)] {
        for number in 0..200 {
            let mut one = choice(Some("a"), share);
            if number < accepted {
                one = tapped(one, DAY / 2);
            }
            one.style = Some(style.to_owned());
            reader.read(&one);
        }
    }
    let report = reader.report(false, &Learned::default());
    let [plain, price] = &report.actions[..] else { panic!("{report:#?}") };
    assert_eq!((plain.style.as_deref(), plain.chances), (Some("plain"), 400));
    assert!((plain.always.unwrap().acceptance_ipw.mean - 0.1).abs() < 1e-9);
    assert!((price.always.unwrap().acceptance_ipw.mean - 0.3).abs() < 1e-9);
}

#[test]
fn what_cannot_be_told_is_counted_and_left_out() {
    let mut reader = Reader::new(Question { policy: Some("7f3a".to_owned()), ..question() });
    let one = || choice(Some("a"), 0.9);
    reader.read(&Choice { policy: "older".to_owned(), ..one() });
    reader.read(&Choice { mode: Mode::Plan, ..one() });
    reader.read(&Choice { probability: None, ..one() });
    reader.read(&Choice { probability: Some(0.0), ..one() });
    let mut regulated = one();
    regulated.candidates[0].score = None;
    reader.read(&regulated);
    // Too young to tell, though it was tapped already.
    reader.read(&tapped(Choice { at: NOW.before(DAY / 2), ..one() }, DAY / 4));
    // Tapped too late, declined, not sent, its partner had none, taken back.
    reader.read(&tapped(one(), DAY));
    let declined = Said { sent: true, tapped: None, declined: Some(NOW.before(DAY)) };
    reader.read(&Choice { message: Some(declined), ..one() });
    reader.read(&Choice { message: Some(Said::default()), ..one() });
    reader.read(&kept(one(), Gate::Partner));
    reader.read(&kept(one(), Gate::Guard));
    // No chance was at work: nothing but what was picked could have been.
    reader.read(&choice(None, 1.0));
    let report = reader.report(true, &Learned::default());
    let left_out = LeftOut { other_policy: 1, not_live: 1, regulated: 1, without_probability: 2 };
    assert_eq!(report.left_out, left_out);
    assert_eq!(report.policies, BTreeMap::from([("7f3a".to_owned(), 11), ("older".to_owned(), 1)]));
    let [a] = &report.actions[..] else { panic!("{report:#?}") };
    let told = "2 settled messages, 100 needed";
    let expected = Brought {
        sent: 3,
        declined: 1,
        ignored: 1,
        open: 1,
        unsaid: 3,
        too_few: Some(told.to_owned()),
        ..Brought::default()
    };
    assert_eq!((&a.brought, a.chances, a.always), (&expected, 5, None));
    assert!(report.cut_short);
}

#[test]
fn too_few_samples_give_no_figure_and_say_what_is_missing() {
    for (counts, expected) in [
        ((99, 50), Some("99 settled messages, 100 needed")),
        ((100, 4), Some("4 accepted, 5 needed")),
        ((100, 96), Some("4 not accepted, 5 needed")),
        ((100, 5), None),
    ] {
        let mut reader = Reader::new(question());
        said(&mut reader, "a", 0.9, counts);
        let report = reader.report(false, &Learned::default());
        for brought in [&report.actions[0].brought, &report.all] {
            assert_eq!(brought.too_few.as_deref(), expected, "{counts:?}");
            assert_eq!(brought.acceptance.is_some(), expected.is_none());
        }
        assert_eq!(report.actions[0].always.is_some(), expected.is_none());
    }
    // A hundred of one in a hundred, and as many of nearly one: the few outweigh the many.
    let mut reader = Reader::new(question());
    said(&mut reader, "a", 1.0, (200, 100));
    said(&mut reader, "a", 0.01, (10, 5));
    let report = reader.report(false, &Learned::default());
    let a = &report.actions[0];
    assert!(a.brought.acceptance.is_some() && a.always.is_none());
    let told = a.brought.too_few.as_deref();
    assert_eq!(told, Some("a few weigh most: worth 14 messages of equal weight, 50 needed"));
}

#[test]
fn an_old_record_says_nothing_of_its_chance() {
    let old = r#"{"id": "x", "subscriber": "s", "moment": "m", "episode": 1, "at": 7, "policy": "p", "mode": "live",
        "facts": {}, "candidates": [], "chosen": null}"#;
    let choice: Choice = serde_json::from_str(old).unwrap();
    assert_eq!((choice.at, choice.probability, choice.message), (Micros::new(7), None, None));
}

#[test]
fn a_reconfiguration_is_no_message_and_helps_whom_the_engine_has_seen_it_help() {
    let set = || Choice { message: None, ..choice(Some("a"), 1.0) };
    let read = |learned: &str| {
        let mut reader = Reader::new(question());
        for one in [set(), set(), set(), kept(set(), Gate::Holdout), kept(set(), Gate::Pushes)] {
            reader.read(&one);
        }
        let report = reader.report(false, &serde_json::from_str(learned).unwrap());
        assert_eq!((report.actions.len(), report.all.sent), (0, 0));
        report.settings
    };
    let learned = |good: f64, all: f64| {
        format!(
            r#"{{"actions": {{"a": {{"all": {{"good": {good}, "all": {all}, "at": 0}}, "segments": {{}}}}}}, "controls": {{}}}}"#
        )
    };
    let done = |judged, helped| {
        let action = "a".to_owned();
        vec![Done { action, done: 3, held_out: 1, withheld: 1, judged, helped }]
    };
    assert_eq!(read(&learned(10.0, 40.0)), done(40.0, Some(0.25)));
    assert_eq!(read(&learned(10.0, 19.0)), done(19.0, None), "too few");
    assert_eq!(read(&learned(-1.0, 40.0)), done(40.0, Some(0.0)), "worse than nothing is no help");
    assert_eq!(read(r#"{"actions": {}, "controls": {}}"#), done(0.0, None));
}
