//! What was learnt of how actions fare: Beta posteriors, whose evidence fades with a half-life.
//!
//! ```text
//!   prior [a, b] of the policy
//!     -> action -> segment of it -> style within that -> the person's own answers to the style
//! ```
//!
//! Each level starts from the one above, with the weight of the prior (a + b), and moves from it as evidence of its own
//! comes: with little of it a level says what the pooled one says. A segment is a plan, at home or abroad.
//!
//! Of a `set` the evidence is whether quality rose, corrected by how often it rose for those for whom nothing was done at
//! the same moment (Abbott 1925): of a treated rise `1 - c` counts, of a treated fall `-c`, both out of `1 - c`, where `c` is
//! the share of risers in the control. An action that does nothing learns zero, not the share that gets better by itself.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use usher_models::units::Micros;

use crate::policy::{Choose, Prior};

/// Most segments of one action; what is learnt of further ones is pooled only, and counted.
const SEGMENTS_MAX: usize = 256;
/// Fewest of a control that anything is compared with, faded.
const CONTROL_MIN: f64 = 20.0;
/// Most weight that what others answered has against a person's own answers.
const OTHERS_MAX: f64 = 20.0;
/// Points at which the chances of styles are compared.
const GRID: usize = 96;

/// Evidence that fades: how much of it, and how much of it good.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Of the good. Corrected by a control it may be below zero.
    pub good: f64,
    /// Of all.
    pub all: f64,
    /// As of then.
    pub at: Micros,
}

impl Tally {
    /// The same at a later time.
    pub(super) fn faded(self, now: Micros, half_life: Duration) -> Self {
        let weight = (-now.since(self.at).as_secs_f64() / half_life.as_secs_f64()).exp2();
        Self { good: self.good * weight, all: self.all * weight, at: now }
    }

    pub(super) fn add(&mut self, good: f64, all: f64, now: Micros, half_life: Duration) {
        let faded = self.faded(now, half_life);
        *self = Self { good: faded.good + good, all: faded.all + all, at: now };
    }

    /// Where it leads from what is believed so far, that weighing `weight`.
    fn mean_from(self, mean: f64, weight: f64) -> f64 {
        (self.good + weight * mean) / (self.all + weight)
    }
}

/// All that was learnt, of all subscribers together.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learned {
    /// By action.
    actions: BTreeMap<String, OfAction>,
    /// Those for whom nothing was done, by moment: how often quality rose by itself.
    controls: BTreeMap<String, Tally>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct OfAction {
    all: Tally,
    segments: BTreeMap<String, OfSegment>,
}

#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct OfSegment {
    all: Tally,
    styles: BTreeMap<String, Tally>,
}

/// Of what something was learnt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of<'o> {
    pub(super) action: &'o str,
    pub(super) segment: &'o str,
    /// Empty: the action has but one text, or sets.
    pub(super) style: &'o str,
}

impl Learned {
    /// How an action fared, as of the last time something was learnt of it; `None`: nothing ever was.
    pub fn of_action(&self, name: &str) -> Option<Tally> {
        self.actions.get(name).map(|action| action.all)
    }

    /// Chance that an action helps, or is taken up.
    pub(super) fn propensity(&self, of: Of<'_>, prior: Prior, choose: &Choose, now: Micros) -> f64 {
        let Some(learning) = choose.learning else { return prior.mean() };
        let mut mean = prior.mean();
        if let Some(action) = self.actions.get(of.action) {
            let levels = [Some(action.all), action.segments.get(of.segment).map(|segment| segment.all)];
            for level in levels.into_iter().flatten() {
                mean = level.faded(now, learning.half_life).mean_from(mean, prior.weight());
            }
        }
        mean.clamp(0.0, 1.0)
    }

    /// The chance of each style to be the best of an action for one person, as far as is known: the chance it is drawn with.
    pub(super) fn style_chances(
        &self,
        (action, segment): (&str, &str),
        styles: &[&str],
        own: &BTreeMap<String, Tally>,
        choose: &Choose,
        now: Micros,
    ) -> Vec<f64> {
        let Some(learning) = choose.learning else { return even(styles.len()) };
        let weight = choose.prior_say.weight();
        let pooled = self.propensity(Of { action, segment, style: "" }, choose.prior_say, choose, now);
        let known = self.actions.get(action).and_then(|action| action.segments.get(segment));
        let beliefs: Vec<(f64, f64)> = styles
            .iter()
            .map(|style| {
                let faded =
                    |tally: Option<&Tally>| tally.copied().unwrap_or_default().faded(now, learning.half_life);
                let of_others = faded(known.and_then(|known| known.styles.get(*style)));
                let mean = of_others.mean_from(pooled, weight).clamp(0.001, 0.999);
                let trust = (of_others.all + weight).min(OTHERS_MAX);
                let mine = faded(own.get(*style));
                (mean * trust + mine.good, (1.0 - mean) * trust + (mine.all - mine.good))
            })
            .collect();
        chances_to_be_best(&beliefs)
    }

    /// An outcome; false: the segment has no room of its own.
    pub(super) fn learn(
        &mut self,
        of: Of<'_>,
        (good, all): (f64, f64),
        now: Micros,
        half_life: Duration,
    ) -> bool {
        let action = self.actions.entry(of.action.to_owned()).or_default();
        action.all.add(good, all, now, half_life);
        if action.segments.len() >= SEGMENTS_MAX && !action.segments.contains_key(of.segment) {
            return false;
        }
        let segment = action.segments.entry(of.segment.to_owned()).or_default();
        segment.all.add(good, all, now, half_life);
        if !of.style.is_empty() {
            segment.styles.entry(of.style.to_owned()).or_default().add(good, all, now, half_life);
        }
        true
    }

    /// Nothing was done for somebody at a moment, and quality rose or not.
    pub(super) fn learn_control(&mut self, moment: &str, rose: bool, now: Micros, credit: Duration) {
        let good = if rose { 1.0 } else { 0.0 };
        self.controls.entry(moment.to_owned()).or_default().add(good, 1.0, now, credit);
    }

    /// What a rise, or none, of somebody treated comes to beside the control of the last `credit` or so; `None`: there is no
    /// control to speak of, so nothing is learnt.
    pub(super) fn against_control(
        &self,
        moment: &str,
        rose: bool,
        now: Micros,
        credit: Duration,
    ) -> Option<(f64, f64)> {
        let control = self.controls.get(moment)?.faded(now, credit);
        if control.all < CONTROL_MIN {
            return None;
        }
        let by_itself = (control.good / control.all).clamp(0.0, 1.0);
        let good = if rose { 1.0 } else { 0.0 };
        (by_itself < 0.99).then_some((good - by_itself, 1.0 - by_itself))
    }

    /// Forgets what is of no action and no moment of these any more.
    pub(super) fn keep_only(&mut self, is_action: impl Fn(&str) -> bool, is_moment: impl Fn(&str) -> bool) {
        self.actions.retain(|action, _| is_action(action));
        self.controls.retain(|moment, _| is_moment(moment));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a handful of styles")]
fn even(count: usize) -> Vec<f64> {
    vec![1.0 / count.max(1) as f64; count]
}

/// The chance of each of these Beta distributions to give the largest number, within 1 %: what Thompson sampling draws with,
/// without drawing.
fn chances_to_be_best(beliefs: &[(f64, f64)]) -> Vec<f64> {
    /// ln x and ln (1 - x) in the middle of each step.
    static LOGARITHMS: LazyLock<[(f64, f64); GRID]> = LazyLock::new(|| {
        #[expect(clippy::cast_precision_loss, reason = "a hundred points")]
        std::array::from_fn(|at| {
            let x = (at as f64 + 0.5) / GRID as f64;
            (x.ln(), (1.0 - x).ln())
        })
    });
    if beliefs.len() < 2 {
        return even(beliefs.len());
    }
    let densities: Vec<[f64; GRID]> = beliefs
        .iter()
        .map(|(a, b)| {
            let mut density: [f64; GRID] = std::array::from_fn(|at| {
                (a.max(0.1) - 1.0) * LOGARITHMS[at].0 + (b.max(0.1) - 1.0) * LOGARITHMS[at].1
            });
            let most = density.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            for log in &mut density {
                *log = (*log - most).exp();
            }
            let sum: f64 = density.iter().sum();
            for part in &mut density {
                *part /= sum;
            }
            density
        })
        .collect();
    let mut chances = vec![0.0; beliefs.len()];
    let mut below = vec![0.0; beliefs.len()];
    for at in 0..GRID {
        for (index, chance) in chances.iter_mut().enumerate() {
            let others = densities.iter().zip(&below).enumerate().filter(|(other, _)| *other != index);
            // Of those in the same step half are taken to be below.
            let all_below: f64 = others.map(|(_, (density, below))| below + density[at] / 2.0).product();
            *chance += densities[index][at] * all_below;
        }
        for (below, density) in below.iter_mut().zip(&densities) {
            *below += density[at];
        }
    }
    let sum: f64 = chances.iter().sum();
    for chance in &mut chances {
        *chance /= sum;
    }
    chances
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Learning;

    const DAY: Duration = Duration::from_hours(24);

    fn choose() -> Choose {
        Choose {
            learning: Some(Learning { half_life: 30 * DAY, credit: DAY }),
            prior_say: Prior { good: 2.0, bad: 18.0 },
            ..Choose::default()
        }
    }

    fn day(days: u32) -> Micros {
        Micros::new(1_795_258_800_000_000).after(days * DAY)
    }

    #[test]
    fn evidence_fades_as_a_sum_of_all_outcomes_by_their_age() {
        let outcomes = [(0, 1.0), (0, 0.0), (3, 1.0), (10, 0.0), (45, 1.0), (46, -0.3)];
        let mut tally = Tally::default();
        for (at, good) in outcomes {
            tally.add(good, 1.0, day(at), 30 * DAY);
        }
        let found = tally.faded(day(60), 30 * DAY);
        let weight = |at: u32| (-f64::from(60 - at) / 30.0).exp2();
        let good: f64 = outcomes.iter().map(|(at, good)| good * weight(*at)).sum();
        let all: f64 = outcomes.iter().map(|(at, _)| weight(*at)).sum();
        assert!((found.good - good).abs() < 1e-9 && (found.all - all).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn a_segment_says_what_the_pooled_one_says_until_it_has_evidence_of_its_own() {
        let choose = choose();
        let mut learned = Learned::default();
        let at = |learned: &Learned, segment: &str| {
            let of = Of { action: "pass", segment, style: "" };
            learned.propensity(of, choose.prior_say, &choose, day(0))
        };
        assert!((at(&learned, "basic") - 0.1).abs() < 1e-12, "the prior");
        for outcome in 0..200 {
            let of = Of { action: "pass", segment: "rich", style: "" };
            learned.learn(of, (f64::from(u8::from(outcome % 2 == 0)), 1.0), day(0), 30 * DAY);
        }
        let pooled = (100.0 + 2.0) / 220.0;
        assert!((at(&learned, "basic") - pooled).abs() < 1e-9);
        assert!(at(&learned, "rich") > pooled);
        for _ in 0..200 {
            learned.learn(Of { action: "pass", segment: "basic", style: "" }, (0.0, 1.0), day(0), 30 * DAY);
        }
        assert!(at(&learned, "basic") < 0.05 && at(&learned, "rich") > 0.4);
    }

    #[test]
    fn a_set_that_does_nothing_learns_nothing_and_one_that_helps_learns_how_often() {
        for (of_treated, expected) in [(0.4, 0.0), (1.0, 1.0), (0.7, 0.5), (0.2, 0.0)] {
            let mut learned = Learned::default();
            assert_eq!(learned.against_control("starved", true, day(0), DAY), None, "nobody to compare with");
            let mut sum = (0.0, 0.0);
            for at in 0..1_000 {
                let share = f64::from(at % 10) / 10.0;
                learned.learn_control("starved", share < 0.4, day(0), DAY);
                if let Some((good, all)) = learned.against_control("starved", share < of_treated, day(0), DAY)
                {
                    sum = (sum.0 + good, sum.1 + all);
                }
            }
            let found: f64 = sum.0 / sum.1;
            assert!((found.max(0.0) - expected).abs() < 0.03, "{found} for {of_treated}");
        }
    }

    #[test]
    fn chances_to_be_best_are_those_of_many_draws() {
        let same = chances_to_be_best(&[(2.0, 18.0); 3]);
        assert!(same.iter().all(|chance| (chance - 1.0 / 3.0).abs() < 1e-9), "{same:?}");
        // P(Beta(1, 2) > Beta(2, 1)) = 1/6; P(Beta(1, 1) > Beta(2, 1)) = 1/3.
        for (beliefs, expected) in
            [([(1.0, 2.0), (2.0, 1.0)], 1.0 / 6.0), ([(1.0, 1.0), (2.0, 1.0)], 1.0 / 3.0)]
        {
            let chances = chances_to_be_best(&beliefs);
            assert!((chances[0] - expected).abs() < 0.01, "{chances:?}");
            assert!((chances.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
        assert!(chances_to_be_best(&[(60.0, 40.0), (20.0, 80.0)])[0] > 0.99);
    }

    #[test]
    fn a_person_moves_to_the_style_that_person_answers() {
        let (choose, learned) = (choose(), Learned::default());
        let mut own = BTreeMap::new();
        let styles = ["plain", "price", "points"];
        let chances = |own: &BTreeMap<String, Tally>| {
            learned.style_chances(("pass", "basic"), &styles, own, &choose, day(0))
        };
        assert!(chances(&own).iter().all(|chance| (chance - 1.0 / 3.0).abs() < 1e-9));
        own.insert("price".to_owned(), Tally { good: 5.0, all: 6.0, at: day(0) });
        assert!(chances(&own)[1] > 0.8, "{:?}", chances(&own));
    }

    #[test]
    fn segments_are_bounded_and_what_is_of_no_action_any_more_is_forgotten() {
        let mut learned = Learned::default();
        let mut refused = 0;
        for number in 0..SEGMENTS_MAX + 9 {
            let segment = number.to_string();
            let of = Of { action: "pass", segment: &segment, style: "" };
            refused += usize::from(!learned.learn(of, (1.0, 1.0), day(0), DAY));
        }
        assert_eq!(refused, 9);
        learned.keep_only(|_| false, |_| true);
        assert_eq!(learned, Learned::default());
    }
}
