//! A slow, obvious engine beside the real one: every report is kept for ever, every fact is worked out from all of them,
//! everybody is looked at on every boundary, conditions are left to CEL.

#![expect(clippy::cast_precision_loss, reason = "times and amounts of a test are small")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::policy::{Fact, Measure, Read, Rearm, Source, Stat, Window};

const SECOND: i64 = 1_000_000;
const NAMES: [&str; 3] = ["a", "b", "c"];
const AGENTS: [&str; 3] = ["gw-1", "gw-2", "gw-3"];

/// Something an agent or time does.
#[derive(Debug, Clone)]
enum Event {
    /// Seconds back from the agent's own time, length, ahead of it; who used what.
    Tells {
        agent: usize,
        back: i64,
        length: i64,
        used: Vec<Used>,
        /// Whose flows of `hdtv` were recognised, how long before the end, quarters of a second, and whether their bytes are told.
        named: Vec<(usize, i64, bool)>,
        /// Who used how much of `hdtv`, or of another app, units of 1024 bytes.
        apps: Vec<(usize, bool, u64)>,
    },
    Opens {
        agent: usize,
        who: usize,
        abroad: bool,
    },
    Closes {
        agent: usize,
        who: usize,
    },
    /// Our clock goes on, or back.
    Passes(i64),
    /// The engine is written out, and read back.
    Restarts,
}

#[derive(Debug, Clone)]
struct Used {
    who: usize,
    video: bool,
    up: bool,
    /// Units of 1024 bytes: a pane's 24 bits are exact.
    kilobytes: u64,
    at_cap: Option<u8>,
    /// Dozens of milliseconds: means of up to four are exact.
    rtt: Option<u8>,
}

fn used() -> impl Strategy<Value = Used> {
    (
        0_usize..3,
        any::<bool>(),
        any::<bool>(),
        0_u64..64,
        proptest::option::of(0_u8..=4),
        proptest::option::of(1_u8..9),
    )
        .prop_map(|(who, video, up, kilobytes, at_cap, rtt)| Used {
            who,
            video,
            up,
            kilobytes,
            at_cap,
            rtt,
        })
}

fn event() -> impl Strategy<Value = Event> {
    let length = prop_oneof![8 => Just(1_i64), 2 => Just(2_i64), 1 => Just(8_i64)];
    let back = prop_oneof![12 => Just(0_i64), 2 => 1_i64..12, 1 => -20_i64..0];
    prop_oneof![
        20 => (
            0_usize..3, back, length, proptest::collection::vec(used(), 0..4),
            proptest::collection::vec((0_usize..3, 1_i64..=4, proptest::bool::weighted(0.8)), 0..2),
            proptest::collection::vec((0_usize..3, proptest::bool::weighted(0.8), 0_u64..64), 0..3),
        )
            .prop_map(|(agent, back, length, used, named, apps)| {
                Event::Tells { agent, back, length, used, named, apps }
            }),
        2 => (0_usize..3, 0_usize..3, any::<bool>())
            .prop_map(|(agent, who, abroad)| Event::Opens { agent, who, abroad }),
        1 => (0_usize..3, 0_usize..3).prop_map(|(agent, who)| Event::Closes { agent, who }),
        2 => (-5_i64..40).prop_map(Event::Passes),
        1 => Just(Event::Restarts),
    ]
}

/// Facts to choose from, and thresholds that divide their values.
const FACTS: [(&str, &str); 24] = [
    ("{of: video.at_cap, stat: mean, over: 8s, every: 2s}", "0.125"),
    ("{of: video.at_cap, stat: max, over: 4s, every: 4s}", "0.5"),
    ("{of: video.at_cap, stat: min, over: 2s, every: 1s}", "0.125"),
    ("{of: all.bytes, stat: sum, over: 16s, every: 4s}", "100000.0"),
    ("{of: all.bytes, stat: mean, over: 4s, every: 2s}", "20000.0"),
    ("{of: video.bytes, stat: max, over: 8s, every: 4s}", "30000.0"),
    ("{of: video.bytes, stat: last, over: 4s, every: 2s}", "10000.0"),
    ("{of: web.packets, stat: count, over: 16s, every: 8s}", "2.0"),
    ("{of: web.bytes, stat: sum, over: 16s}", "60000.0"),
    ("{of: all.bytes, stat: sum, over: bill_cycle}", "500000.0"),
    ("{of: video.rtt_ms, stat: mean, over: 8s, every: 2s}", "40.0"),
    ("{of: access.rtt_ms, stat: max, over: 8s, every: 4s}", "60.0"),
    ("{of: video.rtt_ms, stat: p90, over: 8s, every: 4s}", "50.0"),
    ("{of: video.rtt_ms, stat: last, over: 16s, every: 4s}", "30.0"),
    ("{of: web.rtt_ms, stat: min, over: 8s, every: 8s}", "20.0"),
    ("{of: access.up_util, stat: mean, over: 4s, every: 2s}", "0.25"),
    ("{of: all.bytes, stat: ewma, half_life: 20s}", "20000.0"),
    ("{of: video.rtt_ms, stat: ewma, half_life: 10s}", "40.0"),
    ("{of: hdtv.flows, stat: count, over: 16s, every: 4s}", "1.0"),
    ("{of: hdtv.bytes, stat: sum, over: 8s, every: 2s}", "0.0"),
    ("{of: hdtv.bytes, stat: mean, over: 8s, every: 4s}", "8000.0"),
    ("{of: hdtv.bytes, stat: sum, over: 16s}", "60000.0"),
    ("{of: roaming.bytes, stat: sum, over: 16s, every: 4s}", "60000.0"),
    ("{of: roaming.spend, stat: sum, over: bill_cycle}", "100.0"),
];

/// A policy of some of these facts: one moment for each, and some for two at once.
fn policy(chosen: &[(usize, bool, u8)]) -> String {
    let mut facts = String::new();
    let mut moments = String::new();
    let mut names = Vec::new();
    for (index, (fact, more, hold)) in chosen.iter().enumerate() {
        let (text, threshold) = FACTS[*fact];
        let than = if *more { ">" } else { "<=" };
        writeln!(facts, "  f{index}: {text}").unwrap();
        let both = if index > 0 && hold % 2 == 1 { format!(" || f0 > f{index}") } else { String::new() };
        let hold = hold / 2 * 2;
        writeln!(
            moments,
            "  m{index}: {{when: \"f{index} {than} {threshold}{both}\", hold: {hold}s, rearm: 12s}}"
        )
        .unwrap();
        names.push(format!("m{index}"));
    }
    format!(
        "version: 1\nfacts:\n  lateness: 3s\n{facts}moments:\n{moments}actions:\n  hint: {{at: [{}], say: \"Well.\", value: 9.0, \
         cost: 0.0}}\npolicy: {{contact: {{budget: 1/1d}}}}\nguard: {{mode: plan}}\n",
        names.join(", ")
    )
}

const PROFILES: &str = "plans: {basic: {numbers: {up_bps: 1048576.0}}}
countries: {'262': {name: T, pass_price: 1, expected_per_day: 1, price_per_mb: 976.5625}}
subscribers:
  - {id: a, keys: ['imsi:1'], plan: basic, time_zone: Asia/Tokyo, bill_day: 22}
  - {id: b, keys: ['imsi:2'], plan: basic}
  - {id: c, keys: ['imsi:3'], plan: basic, bill_day: 23}
";
/// Midnight in Tokyo on the 22nd, so that a billing cycle begins while we look.
const MIDNIGHT: i64 = 1_795_273_200;

/// A moment that fired: whose, which, how often by now, what it read.
type Fires = (String, String, u64, BTreeMap<String, Option<f64>>);
/// An agent: its first start, told to, heard at, holes.
type Heard = (i64, i64, i64, Vec<(i64, i64)>);

/// One report of one subscriber, as it was taken.
struct Taken {
    who: usize,
    start: i64,
    end: i64,
    usage: Vec<UsageSeen>,
    apps: Vec<AppUsageSeen>,
    /// What was closed when it came.
    closed: i64,
    /// The subscriber was abroad then.
    abroad: bool,
}

struct Reference {
    policy: Policy,
    taken: Vec<Taken>,
    /// Flows of `hdtv`: whose, when, and whether their bytes are told.
    named: Vec<(usize, i64, bool)>,
    /// Who has a session abroad, on which agent.
    abroad: BTreeSet<(usize, usize)>,
    agents: BTreeMap<usize, Heard>,
    /// Open sessions: by subscriber the agents, since when without a break, since when at all.
    open: [(Vec<usize>, Option<i64>, Option<i64>); 3],
    watermark: Option<i64>,
    boundary: Option<i64>,
    /// The boundary before, where the engine has not looked at everybody on this one yet.
    from: Option<i64>,
    now: i64,
    /// By subscriber and moment: holding since, or silent until; times fired.
    phases: BTreeMap<(usize, String), (Option<i64>, i64, u64)>,
}

impl Reference {
    fn new(policy: Policy) -> Self {
        Self {
            policy,
            taken: Vec::new(),
            named: Vec::new(),
            abroad: BTreeSet::new(),
            agents: BTreeMap::new(),
            open: Default::default(),
            watermark: None,
            boundary: None,
            from: None,
            now: i64::MIN,
            phases: BTreeMap::new(),
        }
    }

    fn tells(&mut self, agent: usize, told: &Observed) {
        let Observed { usage, named, apps, .. } = told;
        let (start, end) = (told.start.get(), told.end.get());
        if start < 0 || start >= end || end > self.now + 60 * SECOND {
            return;
        }
        let known = self.agents.entry(agent).or_insert((start, end, 0, Vec::new()));
        if start > known.1 + SECOND {
            known.3.push((known.1, start));
        }
        known.1 = known.1.max(end);
        known.2 = self.now;
        let closed = self.boundary.unwrap_or(i64::MIN);
        let reach = self.from.or(self.boundary).map_or(i64::MAX, |boundary| {
            let steps = self.policy.facts().values().map(step);
            steps.map(|step| (boundary.div_euclid(step) + 1) * step).min().unwrap() + 8 * SECOND
        });
        for named in named.iter().filter(|named| named.at.get() >= closed) {
            self.named.push((named.line.0 as usize, named.at.get().min(reach - 1), named.counted));
        }
        for who in 0..NAMES.len() {
            let usage: Vec<UsageSeen> =
                usage.iter().filter(|seen| seen.line.0 as usize == who).copied().collect();
            let apps: Vec<AppUsageSeen> =
                apps.iter().filter(|seen| seen.line.0 as usize == who).cloned().collect();
            if !usage.is_empty() || !apps.is_empty() {
                let abroad = self.abroad.iter().any(|(other, _)| *other == who);
                self.taken.push(Taken { who, start, end, usage, apps, closed, abroad });
            }
        }
    }

    /// Every boundary up to the watermark; what fires, in order.
    fn goes_on(&mut self) -> Vec<Fires> {
        let awake = self.agents.values().filter(|agent| self.now < agent.2 + 30 * SECOND);
        if let Some(least) = awake.map(|agent| agent.1).min() {
            let mark = least - 3 * SECOND;
            self.watermark = Some(self.watermark.map_or(mark, |before| before.max(mark)));
        }
        let Some(watermark) = self.watermark else { return Vec::new() };
        let Some(mut boundary) = self.boundary else {
            self.boundary = Some(watermark);
            return Vec::new();
        };
        let mut fired = Vec::new();
        loop {
            let steps: Vec<i64> = self.policy.facts().values().map(step).collect();
            let next = steps.iter().map(|step| (boundary.div_euclid(*step) + 1) * step).min();
            let Some(next) = next.filter(|next| *next <= watermark) else { return fired };
            boundary = next;
            self.boundary = Some(next);
            let is_under_way =
                |who: &usize| self.phases.iter().any(|((of, _), (since, ..))| of == who && since.is_some());
            let (first, rest): (Vec<usize>, Vec<usize>) = (0..NAMES.len()).partition(is_under_way);
            for who in first.into_iter().chain(rest) {
                self.look_at(who, next, &mut fired);
            }
        }
    }

    /// What an agent tells now cannot change what is known of anything before the boundary.
    fn has_told_up_to_the_boundary(&self, agent: usize) -> bool {
        self.agents.get(&agent).map(|(_, told_to, ..)| *told_to) >= self.boundary
    }

    fn look_at(&mut self, who: usize, at: i64, fired: &mut Vec<Fires>) {
        let facts = self.facts(who, at);
        for (name, moment) in self.policy.moments().clone() {
            let reads: Vec<&Fact> =
                moment.when.reads().map(|read| &self.policy.facts()[&read.to_string()]).collect();
            if !reads.iter().any(|fact| at % step(fact) == 0) {
                continue;
            }
            let phase = self.phases.entry((who, name.clone())).or_default();
            if phase.1 > at {
                continue;
            }
            let known = |read: &Read| facts[&read.to_string()].map(Known::Number);
            if moment.when.truth(known) != Ok(true) {
                phase.0 = None;
                continue;
            }
            let since = *phase.0.get_or_insert(at);
            let hold = i64::try_from(moment.hold.as_micros()).unwrap();
            if at - since >= hold {
                let Rearm::After(rearm) = moment.rearm else { unreachable!("none rearms with the cycle") };
                *phase = (None, at + i64::try_from(rearm.as_micros()).unwrap(), phase.2 + 1);
                let read =
                    moment.when.reads().map(|read| (read.to_string(), facts[&read.to_string()])).collect();
                fired.push((NAMES[who].to_owned(), name, phase.2, read));
            }
        }
    }

    fn facts(&self, who: usize, at: i64) -> BTreeMap<String, Option<f64>> {
        let facts = self.policy.facts().iter();
        facts
            .map(|(name, fact)| (name.clone(), self.fact(who, fact, at.div_euclid(step(fact)) * step(fact))))
            .collect()
    }

    fn fact(&self, who: usize, fact: &Fact, at: i64) -> Option<f64> {
        let step = step(fact);
        let from = match (fact.window, fact.stat) {
            (_, Stat::Ewma { half_life }) => at - i64::try_from(half_life.as_micros()).unwrap(),
            (Window::Sliding { over, .. }, _) => at - i64::try_from(over.as_micros()).unwrap(),
            (Window::Tumbling { over }, _) => {
                let over = i64::try_from(over.as_micros()).unwrap();
                (at - 1).div_euclid(over) * over
            }
            _ => cycle_start(who, at - 1),
        };
        let (agents, present, known) = &self.open[who];
        let since = if at - from > 3_600 * SECOND { *known } else { *present };
        let told = |agent: &usize| {
            let Some((first, to, _, holes)) = self.agents.get(agent) else { return false };
            let missing: i64 =
                holes.iter().map(|(start, end)| ((*end).min(at) - (*start).max(from)).max(0)).sum();
            *first <= from && at <= *to && missing * 100 <= at - from
        };
        if fact.measure == Measure::Spend && !agents.is_empty() {
            return self.number(who, fact, from, at, step);
        }
        if agents.is_empty() || since.is_none_or(|since| since > from) || !agents.iter().all(told) {
            return None;
        }
        if let Stat::Ewma { half_life } = fact.stat {
            return self.faded(who, fact, at, half_life);
        }
        self.number(who, fact, from, at, step)
    }

    /// What each report says of a fact: the report, its amount and its level.
    fn told(&self, who: usize, fact: &Fact) -> Vec<(&Taken, f64, f64, bool)> {
        let mut told = Vec::new();
        for taken in self.taken.iter().filter(|taken| taken.who == who) {
            let seconds = (taken.end - taken.start) as f64 / 1e6;
            if let Source::App(name) = &fact.source {
                let of_app: Vec<_> = taken.apps.iter().filter(|seen| seen.app == *name).collect();
                let bytes: f64 = of_app.iter().map(|seen| seen.bytes.0 as f64).sum();
                if !of_app.is_empty() {
                    told.push((taken, bytes, bytes / seconds, bytes > 0.0));
                }
                continue;
            }
            if taken.usage.is_empty() {
                continue;
            }
            let of = |seen: &&UsageSeen| match &fact.source {
                Source::All => true,
                Source::Roaming => taken.abroad,
                Source::Class(class) => seen.class == *class,
                Source::App(_) => false,
            };
            let usage: Vec<&UsageSeen> = taken.usage.iter().filter(of).collect();
            if usage.is_empty() && fact.source != Source::All {
                continue;
            }
            let bytes: f64 = usage.iter().map(|seen| seen.bytes.0 as f64).sum();
            let packets: f64 = usage.iter().map(|seen| seen.packets as f64).sum();
            let up = usage.iter().filter(|seen| seen.direction == DirectionName::Up);
            let up: f64 = up.map(|seen| seen.bytes.0 as f64).sum();
            let rtts: Vec<f64> = usage.iter().filter_map(|seen| seen.quality.rtt_ms).map(f64::from).collect();
            let (amount, level) = match fact.measure {
                Measure::Bytes => (bytes, bytes / seconds),
                Measure::Packets => (packets, packets / seconds),
                Measure::AtCap => {
                    let most = usage.iter().filter_map(|seen| seen.at_cap).fold(0.0, f32::max);
                    (f64::from(most) * seconds, f64::from(most))
                }
                Measure::Spend => (bytes / 1024.0, bytes / 1024.0 / seconds),
                Measure::RttMs if rtts.is_empty() => continue,
                Measure::RttMs => {
                    let mean = rtts.iter().sum::<f64>() / rtts.len() as f64;
                    (mean * seconds, mean)
                }
                Measure::UpUtil => {
                    let share = up * 8.0 / seconds / 1_048_576.0;
                    (share * seconds, share)
                }
                other => unreachable!("{other:?} is not chosen"),
            };
            told.push((taken, amount, level, bytes > 0.0 || packets > 0.0));
        }
        told
    }

    fn number(&self, who: usize, fact: &Fact, from: i64, at: i64, step: i64) -> Option<f64> {
        if let Source::App(_) = fact.source {
            let flows: Vec<_> = self
                .named
                .iter()
                .filter(|(other, time, _)| *other == who && from <= *time && *time < at)
                .collect();
            if fact.stat == Stat::Count {
                return Some(flows.len() as f64);
            }
            if flows.iter().any(|(_, _, counted)| !counted) {
                return None;
            }
        }
        let told = self.told(who, fact);
        let sampled = fact.measure.is_sampled();
        let length = (at - from) as f64 / 1e6;
        // The part of a report that counts and lies in the window.
        let inside = |taken: &Taken| {
            let first = taken.start.max(taken.closed.div_euclid(step).saturating_mul(step)).max(from);
            (taken.end.min(at) - first).max(0) as f64 / 1e6
        };
        let whole = |taken: &Taken| (taken.end - taken.start) as f64 / 1e6;
        let parts = || told.iter().filter(|(taken, ..)| inside(taken) > 0.0);
        // The last pane of a report decides where it counts.
        let counts = |taken: &Taken| {
            let last = (taken.end - 1).div_euclid(step) * step;
            taken.end > taken.closed.div_euclid(step).saturating_mul(step) && last >= from && last < at
        };
        let sum: f64 = if fact.measure == Measure::AtCap {
            let panes = (from..at).step_by(usize::try_from(step).unwrap());
            panes
                .map(|pane| {
                    let of_pane = told.iter().map(|(taken, _, level, _)| {
                        let first =
                            taken.start.max(taken.closed.div_euclid(step).saturating_mul(step)).max(pane);
                        level * ((taken.end.min(pane + step) - first).max(0) as f64 / 1e6)
                    });
                    of_pane.sum::<f64>().min(step as f64 / 1e6)
                })
                .sum()
        } else {
            parts().map(|(taken, amount, ..)| amount * (inside(taken) / whole(taken))).sum()
        };
        let seconds: f64 = parts().map(|(taken, ..)| inside(taken)).sum();
        match fact.stat {
            Stat::Sum => Some(sum),
            Stat::Mean if sampled => (seconds > 0.0).then(|| sum / seconds),
            Stat::Mean => Some(sum / length),
            Stat::Max => {
                let most = parts().map(|(_, _, level, _)| *level).fold(f64::NEG_INFINITY, f64::max);
                if most.is_finite() { Some(most) } else { (!sampled).then_some(0.0) }
            }
            Stat::Min => {
                let least = parts().map(|(_, _, level, _)| *level).fold(f64::INFINITY, f64::min);
                match sampled {
                    true => least.is_finite().then_some(least),
                    false if seconds < length * 0.95 => Some(0.0),
                    false => Some(least),
                }
            }
            Stat::Last => {
                let last =
                    parts().max_by(|(a, _, x, _), (b, _, y, _)| a.end.cmp(&b.end).then(x.total_cmp(y)));
                match (last, sampled) {
                    (Some((_, _, level, _)), true) => Some(*level),
                    (None, true) => None,
                    (Some((taken, _, level, _)), false) if at - taken.end < step => Some(*level),
                    (_, false) => Some(0.0),
                }
            }
            Stat::Count => {
                Some(told.iter().filter(|(taken, _, _, used)| *used && counts(taken)).count() as f64)
            }
            Stat::Percentile(percent) => {
                let scale = sketch::Scale::of(fact.measure);
                let with_use = told.iter().filter(|(taken, _, _, used)| *used && counts(taken));
                let mut codes: Vec<u8> = with_use.map(|(_, _, level, _)| scale.code(*level)).collect();
                codes.sort_unstable();
                let rank = (codes.len() * usize::from(percent)).div_ceil(100).max(1);
                codes.get(rank - 1).map(|code| scale.value(*code))
            }
            other => unreachable!("{other:?}"),
        }
    }

    /// A mean that fades, step by step from the first report on.
    fn faded(&self, who: usize, fact: &Fact, at: i64, half_life: Duration) -> Option<f64> {
        let step = step(fact);
        let told = self.told(who, fact);
        let sampled = fact.measure.is_sampled();
        let weight = |steps: i64| 1.0 - (-((steps * step) as f64) / half_life.as_micros() as f64).exp2();
        let first = told.iter().map(|(taken, ..)| taken.start).min();
        let mut mean: Option<(f64, i64)> = None;
        for pane in first.into_iter().flat_map(|first| first.div_euclid(step)..at.div_euclid(step)) {
            let (mut sum, mut seconds) = (0.0, 0.0);
            for (taken, amount, ..) in &told {
                let closed = taken.closed.div_euclid(step).saturating_mul(step);
                let part = taken.end.min((pane + 1) * step) - taken.start.max(closed).max(pane * step);
                if part > 0 {
                    sum += amount * (part as f64 / (taken.end - taken.start) as f64);
                    seconds += part as f64 / 1e6;
                }
            }
            if seconds <= 0.0 {
                continue;
            }
            let value = if sampled { sum / seconds } else { sum / (step as f64 / 1e6) };
            mean = Some(match mean {
                None => (value, pane),
                Some((mean, last)) => {
                    let faded = if sampled { mean } else { mean - mean * weight(pane - last - 1) };
                    (faded + (value - faded) * weight(if sampled { pane - last } else { 1 }), pane)
                }
            });
        }
        match mean {
            None => (!sampled).then_some(0.0),
            Some((mean, _)) if sampled => Some(mean),
            Some((mean, last)) => Some(mean - mean * weight(at.div_euclid(step) - last - 1)),
        }
    }
}

fn fires(effects: &[Effect]) -> Vec<Fires> {
    let decisions = decisions(effects).into_iter();
    decisions.map(|it| (it.subscriber.0.clone(), it.moment.clone(), it.episode, it.facts.clone())).collect()
}

/// Until nobody is still to be looked at.
fn to_the_end(engine: &mut Engine, now: i64) -> Vec<Fires> {
    let mut fired = Vec::new();
    while engine.crossing.is_some() {
        assert_eq!(engine.next_due(), Some(engine.now));
        fired.extend(fires(&engine.step(Micros::new(now), Input::Tick)));
    }
    fired
}

fn step(fact: &Fact) -> i64 {
    i64::try_from(fact.window.every().as_micros()).unwrap()
}

fn cycle_start(who: usize, time: i64) -> i64 {
    // Midnights of their billing days around the 22nd of November 2026, UTC seconds.
    let (this, last) = match who {
        0 => (MIDNIGHT, MIDNIGHT - 31 * 86_400),
        1 => (i64::MAX / SECOND, 1_793_491_200),
        _ => (1_795_392_000, 1_795_392_000 - 31 * 86_400),
    };
    if time >= this * SECOND { this * SECOND } else { last * SECOND }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    /// Random policies and streams: late, repeated, out of order, of several agents, clocks that jump; boundaries crossed
    /// in one step, or in several with other things between them.
    #[test]
    fn the_engine_does_what_a_slow_obvious_one_does(
        chosen in proptest::collection::vec((0..FACTS.len(), any::<bool>(), 0_u8..6), 1..6),
        events in proptest::collection::vec(event(), 1..160),
        most_looks in 1_usize..=4,
    ) {
        let policy = Policy::parse("policy.yaml", &policy(&chosen)).unwrap();
        let directory = Directory::parse("profiles.yaml", PROFILES).unwrap();
        let mut engine = Engine::new(policy.clone(), &directory).unwrap();
        engine.most_looks = most_looks;
        let mut reference = Reference::new(policy);
        let start = (MIDNIGHT - 60) * SECOND;
        let mut now = start;
        let mut times = [start; 3];
        // Everybody is there from the beginning, on one agent.
        let first: Vec<Event> = (0..3).map(|who| Event::Opens { agent: who % 2, who, abroad: false }).collect();
        let (mut fired, mut expected): (Vec<Fires>, Vec<Fires>) = (Vec::new(), Vec::new());
        for event in first.iter().chain(&events) {
            let may_wait = match event {
                Event::Tells { agent, .. } => reference.has_told_up_to_the_boundary(*agent),
                Event::Opens { .. } | Event::Closes { .. } => false,
                Event::Passes(_) | Event::Restarts => true,
            };
            if !may_wait {
                fired.extend(to_the_end(&mut engine, now));
            }
            reference.from = engine.crossing.as_ref().map(|crossing| crossing.from);
            let input = match event {
                Event::Tells { agent, back, length, used, named, apps } => {
                    let (from, to) = (times[*agent] - back * SECOND, times[*agent] + (length - back) * SECOND);
                    times[*agent] = times[*agent].max(to);
                    now = now.max(to + SECOND / 2);
                    let usage: Vec<UsageSeen> = used.iter().map(|used| UsageSeen {
                        line: Line(u32::try_from(used.who).unwrap()),
                        class: if used.video { Class::Video } else { Class::Web },
                        direction: if used.up { DirectionName::Up } else { DirectionName::Down },
                        bytes: Bytes(used.kilobytes * 1024),
                        packets: used.kilobytes,
                        dropped_packets: 0,
                        at_cap: used.at_cap.map(|quarters| f32::from(quarters) / 4.0),
                        quality: Quality { rtt_ms: used.rtt.map(|dozens| f32::from(dozens) * 12.0), ..Quality::default() },
                    }).collect();
                    reference.now = reference.now.max(now);
                    let named: Vec<NamedSeen> = named.iter().map(|(who, quarters, counted)| NamedSeen {
                        line: Line(u32::try_from(*who).unwrap()),
                        app: "hdtv".into(),
                        class: Class::Video,
                        at: Micros::new(to - quarters * SECOND / 4),
                        counted: *counted,
                    }).collect();
                    let apps = apps.iter().map(|(who, is_hdtv, kilobytes)| AppUsageSeen {
                        line: Line(u32::try_from(*who).unwrap()),
                        app: if *is_hdtv { "hdtv" } else { "chat" }.into(),
                        bytes: Bytes(kilobytes * 1024),
                    }).collect();
                    let told = Observed {
                        agent: AGENTS[*agent].into(),
                        start: Micros::new(from),
                        end: Micros::new(to),
                        sessions: Vec::new(),
                        usage,
                        named,
                        apps,
                    };
                    reference.tells(*agent, &told);
                    Input::Observed(told)
                }
                Event::Opens { agent, who, .. } | Event::Closes { agent, who } => {
                    let opens = matches!(event, Event::Opens { .. });
                    if matches!(event, Event::Opens { abroad: true, .. }) {
                        reference.abroad.insert((*who, *agent));
                    } else {
                        reference.abroad.remove(&(*who, *agent));
                    }
                    let at = times[*agent];
                    let (agents, present, known) = &mut reference.open[*who];
                    if opens {
                        if !agents.contains(agent) {
                            agents.push(*agent);
                            *present = Some(present.map_or(at, |since: i64| since.min(at)));
                            *known = Some(known.map_or(at, |since: i64| since.min(at)));
                        }
                    } else {
                        agents.retain(|open| open != agent);
                        if agents.is_empty() {
                            *present = None;
                        }
                    }
                    let abroad = matches!(event, Event::Opens { abroad: true, .. });
                    let plmn = if abroad { "26201" } else { "00101" };
                    let seen = SessionSeen { session: format!("s{who}"), ..session(NAMES[*who], opens, plmn) };
                    Input::Observed(Observed {
                        agent: AGENTS[*agent].into(),
                        start: Micros::new(at),
                        end: Micros::new(at),
                        sessions: vec![seen],
                        usage: Vec::new(),
                        named: Vec::new(), apps: Vec::new(),
                    })
                }
                Event::Restarts => {
                    let mut file = Vec::new();
                    engine.snapshot(0).write(&mut file).unwrap();
                    engine = Engine::from_snapshot(&file[..]).unwrap().0;
                    engine.most_looks = most_looks;
                    Input::Tick
                }
                Event::Passes(seconds) => {
                    now += seconds * SECOND;
                    Input::Tick
                }
            };
            reference.now = reference.now.max(now);
            fired.extend(fires(&engine.step(Micros::new(now), input)));
            expected.extend(reference.goes_on());
            prop_assert_eq!(&fired[..], &expected[..fired.len().min(expected.len())], "at {} after {:?}", now, event);
        }
        fired.extend(to_the_end(&mut engine, now));
        prop_assert_eq!(fired, expected);
        if let Some(boundary) = reference.boundary {
            for (who, name) in NAMES.iter().enumerate() {
                let mut found = engine.facts_of(&id(name), Micros::new(boundary));
                found.retain(|name, _| !name.starts_with("sub."));
                prop_assert_eq!(found, reference.facts(who, boundary), "{}", name);
            }
        }
    }
}
