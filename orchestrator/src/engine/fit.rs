//! Which plan suits a line: one that costs less for what was used over the last whole billing cycles, and takes nothing away.
//!
//! Plans say what they cost by numbers of agreed names: `price` a month, `quota` bytes a cycle (left out: no limit) and
//! `over_price` for each started 10^9 bytes beyond. A plan suits if no cycle would have gone beyond its quota, if it gives every setting as
//! the present one does, and no other number of the present one's less.

use std::collections::BTreeMap;

use crate::identity::Plan;

/// Fewest whole billing cycles that advice on a plan rests on.
pub(super) const CYCLES_MIN: usize = 2;
/// Numbers of a plan that are what it costs, not what it gives.
const COSTS: [&str; 3] = ["over_price", "price", "quota"];

/// The plan that suits best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fit<'p> {
    /// Its name; `None`: the present one suits.
    pub(super) plan: Option<&'p str>,
    /// Less to pay a month.
    pub(super) saves: f64,
}

/// The best of all plans for what was used in each cycle, bytes; `None`: unknown.
pub(super) fn fit<'p>(plans: &'p BTreeMap<String, Plan>, present: &str, cycles: &[f64]) -> Option<Fit<'p>> {
    if cycles.len() < CYCLES_MIN {
        return None;
    }
    let now = plans.get(present)?;
    let pays = cost(now, cycles)?;
    let mut best = Fit { plan: None, saves: 0.0 };
    for (name, plan) in plans.iter().filter(|(name, plan)| *name != present && suits(plan, now, cycles)) {
        let Some(saves) = cost(plan, cycles).map(|cost| pays - cost) else { continue };
        if saves > best.saves {
            best = Fit { plan: Some(name), saves };
        }
    }
    Some(best)
}

/// What a month costs, on the mean.
fn cost(plan: &Plan, cycles: &[f64]) -> Option<f64> {
    let quota = plan.numbers.get("quota").copied().unwrap_or(f64::INFINITY);
    let over = plan.numbers.get("over_price").copied().unwrap_or(0.0);
    let beyond = cycles.iter().map(|used| ((used - quota).max(0.0) / 1e9).ceil()).sum::<f64>();
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    Some(plan.numbers.get("price")? + over * beyond / cycles.len() as f64)
}

fn suits(plan: &Plan, now: &Plan, cycles: &[f64]) -> bool {
    let enough = plan.numbers.get("quota").is_none_or(|quota| cycles.iter().all(|used| used <= quota));
    let same = now.settings.iter().all(|(name, value)| plan.settings.get(name) == Some(value));
    let gives = |(name, least): (&String, &f64)| {
        COSTS.contains(&name.as_str()) || plan.numbers.get(name).is_some_and(|number| number >= least)
    };
    enough && same && now.numbers.iter().all(gives)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: f64 = 1e9;

    fn plan(video: &str, numbers: &[(&str, f64)]) -> Plan {
        let numbers = numbers.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
        Plan {
            settings: BTreeMap::from([("video".to_owned(), video.to_owned())]),
            numbers,
            ..Plan::default()
        }
    }

    fn plans() -> BTreeMap<String, Plan> {
        let plans = [
            (
                "small",
                plan("sd", &[("price", 10.0), ("quota", 5.0 * GB), ("over_price", 4.0), ("down_bps", 1e8)]),
            ),
            ("middle", plan("sd", &[("price", 18.0), ("quota", 20.0 * GB), ("down_bps", 1e8)])),
            ("large", plan("sd", &[("price", 30.0), ("down_bps", 1e8)])),
            ("slow", plan("sd", &[("price", 5.0), ("down_bps", 1e7)])),
            ("other", plan("hd", &[("price", 1.0), ("down_bps", 1e9)])),
            ("unpriced", plan("sd", &[("down_bps", 1e9)])),
        ];
        plans.into_iter().map(|(name, plan)| (name.to_owned(), plan)).collect()
    }

    #[test]
    fn the_cheapest_plan_that_would_have_held_every_cycle_and_takes_nothing_away() {
        let plans = plans();
        let best = |present: &str, cycles: &[f64]| {
            let fit = fit(&plans, present, cycles)?;
            Some((fit.plan.map(str::to_owned), fit.saves))
        };
        let some = |plan: &str, saves| Some((Some(plan.to_owned()), saves));
        assert_eq!(best("large", &[4.0 * GB, 4.9 * GB]), some("small", 20.0));
        // One cycle beyond the small one's quota: it does not suit, however rarely.
        assert_eq!(best("large", &[4.0 * GB, 4.0 * GB, 6.0 * GB]), some("middle", 12.0));
        // Three and four started gigabytes beyond cost 14 a month on the mean.
        assert_eq!(best("small", &[8.0 * GB, 8.5 * GB]), some("middle", 6.0));
        assert_eq!(best("small", &[4.0 * GB, 4.0 * GB]), Some((None, 0.0)), "it suits already");
        assert_eq!(best("large", &[4.0 * GB]), None, "one cycle is no habit");
        assert_eq!(best("unpriced", &[1.0, 1.0]), None);
        assert_eq!(best("gone", &[1.0, 1.0]), None);
    }
}
