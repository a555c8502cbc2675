//! Reports of several agents in the same windows.

use super::*;

const LAST: &str = r#"version: 1
facts:
  lateness: 2s
  recent: {of: video.bytes, stat: last, over: 4s, every: 2s}
moments:
  busy: {when: "recent > 1000.0", rearm: 1h}
actions:
  hint: {at: [busy], say: "You are busy.", value: 9.0, cost: 0.0}
policy: {contact: {budget: 1/1d}}
guard: {mode: plan}
"#;

fn told(engine: &mut Engine, agent: &str, from: i64, to: i64, usage: Vec<UsageSeen>) {
    let (start, end, sessions) = (s(from), s(to), Vec::new());
    let observed = Observed {
        agent: agent.to_owned(),
        start,
        end,
        sessions,
        usage,
        named: Vec::new(),
        apps: Vec::new(),
    };
    engine.step(s(20), Input::Observed(observed));
}

/// The long report waits from where windows have no more room, the short one from its start: they are let in together,
/// the long one first, whichever came first.
#[test]
fn which_of_two_reports_that_end_together_is_the_last_depends_neither_on_waiting_nor_on_who_came_first() {
    for long_is_first in [true, false] {
        let mut engine = engine_with(LAST);
        open(&mut engine, 0, "a", "00101");
        let mut reports = [("gw", 3, 8_000), ("gw-2", 10, 0)];
        if !long_is_first {
            reports.reverse();
        }
        for (agent, from, bytes) in reports {
            told(&mut engine, agent, from, 11, vec![video("a", None, bytes)]);
        }
        for agent in ["gw", "gw-2"] {
            told(&mut engine, agent, 11, 14, Vec::new());
        }
        assert_eq!(engine.facts_of(&id("a"), s(14))["recent"], Some(1_000.0), "{long_is_first}");
    }
}

/// Event time jumps by more boundaries than are walked: what was told of the time between has no room any more.
#[test]
fn a_sum_that_lost_a_part_of_a_long_report_is_unknown_and_never_low() {
    const HOUR: i64 = 3_600;
    let mut engine =
        engine_with(&LAST.replace("every: 2s}", "every: 2s}\n  used: {of: all.bytes, stat: sum, over: 12h}"));
    open(&mut engine, 0, "a", "00101");
    let mut tells = |from: i64, to: i64| {
        let bytes = u64::try_from(to - from).unwrap() * 1_000;
        let (start, end, usage) = (s(from), s(to), vec![video("a", None, bytes)]);
        let observed = Observed {
            agent: "gw".into(),
            start,
            end,
            sessions: Vec::new(),
            usage,
            named: Vec::new(),
            apps: Vec::new(),
        };
        engine.step(end, Input::Observed(observed));
        engine.facts_of(&id("a"), end)["used"]
    };
    // To noon, UTC, when the window begins, and an hour on.
    let mut known = None;
    for minute in (0..120).step_by(10) {
        known = tells(minute * 60, (minute + 10) * 60);
    }
    // All that is closed, by a lateness of 2 s.
    assert_eq!(known, Some(3_600_000.0 - 60_000.0));
    assert_eq!(tells(2 * HOUR, 8 * HOUR), None);
    // The next window knows again.
    let mut known = None;
    for minute in (8 * 60..14 * 60).step_by(10) {
        known = tells(minute * 60, (minute + 10) * 60);
    }
    assert_eq!(known, Some(3_600_000.0 - 60_000.0));
}

/// The first report reaches back into a step that is closed with it; the next one needs that step's room.
#[test]
fn a_mean_that_fades_keeps_what_was_told_before_the_first_boundary() {
    let mut engine = engine_with(
        &LAST.replace("every: 2s}", "every: 1s}\n  faded: {of: all.bytes, stat: ewma, half_life: 20s}"),
    );
    let sessions = vec![session("a", true, "00101")];
    let (agent, usage, named) = ("gw".to_owned(), Vec::new(), Vec::new());
    engine.step(
        s(0),
        Input::Observed(Observed {
            agent,
            start: s(-1),
            end: s(-1),
            sessions,
            usage,
            named,
            apps: Vec::new(),
        }),
    );
    told(&mut engine, "gw", -1, 7, vec![video("a", None, 8_000)]);
    told(&mut engine, "gw", 7, 13, vec![video("a", None, 0)]);
    told(&mut engine, "gw", 13, 22, Vec::new());
    // Steps of 100, 700 and 0 bytes a second.
    let stays = (-0.5_f64).exp2();
    let expected = (100.0 * stays + 700.0 * (1.0 - stays)) * stays;
    let faded = engine.facts_of(&id("a"), s(22))["faded"].unwrap();
    assert!((faded - expected).abs() < 1e-3, "{faded} {expected}");
}
