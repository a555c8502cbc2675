use proptest::prelude::*;

use super::*;

const ITEMS: usize = 80;
const POSITIONS: usize = 3;
/// Points at which densities are tabulated: rates of clicks lie far below 0.1.
const GRID: usize = 4_000;
const HIGHEST_RATE: f64 = 0.2;

/// Impressions of the uniform policy: item, position from 0, how often shown, how often clicked.
fn open_bandit() -> Vec<(usize, usize, usize, usize)> {
    let mut reader = csv_lines(include_str!("open_bandit/random_all.csv"), "item,position,shown,clicked");
    let parse = |field: &str| field.parse::<usize>().unwrap();
    std::iter::from_fn(|| reader.next())
        .map(|line| (parse(line[0]), parse(line[1]) - 1, parse(line[2]), parse(line[3])))
        .collect()
}

fn csv_lines<'t>(text: &'t str, header: &str) -> impl Iterator<Item = Vec<&'t str>> {
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(header));
    lines.map(|line| line.split(',').collect())
}

/// How likely Bernoulli Thompson sampling shows each item at each position: the chance that its draw is the highest, the
/// second, the third of all items' draws. By integration over the draw, where the published figure was simulated.
fn thompson() -> Vec<[f64; POSITIONS]> {
    let priors: Vec<(f64, f64)> = csv_lines(include_str!("open_bandit/prior_all.csv"), "item,alpha,beta")
        .map(|line| (line[1].parse().unwrap(), line[2].parse().unwrap()))
        .collect();
    assert_eq!(priors.len(), ITEMS);
    let rate = |point: usize| HIGHEST_RATE * (as_number(point) + 0.5) / as_number(GRID);
    // Each item's chance to draw a point, and to draw below it (half of the point itself with it).
    let draws: Vec<(Vec<f64>, Vec<f64>)> = priors
        .iter()
        .map(|(alpha, beta)| {
            let log_density = |rate: f64| (alpha - 1.0) * rate.ln() + (beta - 1.0) * (-rate).ln_1p();
            let mode = (0..GRID).map(rate).map(log_density).fold(f64::NEG_INFINITY, f64::max);
            let mass: Vec<f64> = (0..GRID).map(|point| (log_density(rate(point)) - mode).exp()).collect();
            let all: f64 = mass.iter().sum();
            let mut below = 0.0;
            let below = mass
                .iter()
                .map(|mass| {
                    below += mass / all;
                    below - mass / all / 2.0
                })
                .collect();
            (mass.iter().map(|mass| mass / all).collect(), below)
        })
        .collect();
    let mut shown = vec![[0.0; POSITIONS]; ITEMS];
    for point in 0..GRID {
        for (item, shown) in shown.iter_mut().enumerate() {
            let at = draws[item].0[point];
            if at < 1e-12 {
                continue;
            }
            // How likely none, one, two of the others draw higher.
            let mut higher = [1.0, 0.0, 0.0];
            for (_, (_, below)) in draws.iter().enumerate().filter(|(other, _)| *other != item) {
                let below = below[point];
                for rank in (0..POSITIONS).rev() {
                    let fewer = if rank == 0 { 0.0 } else { higher[rank - 1] };
                    higher[rank] = higher[rank] * below + fewer * (1.0 - below);
                }
            }
            for (shown, higher) in shown.iter_mut().zip(higher) {
                *shown += at * higher;
            }
        }
    }
    shown
}

fn open_bandit_trials() -> Vec<Trial> {
    let thompson = thompson();
    let mut trials = Vec::new();
    for (item, position, shown, clicked) in open_bandit() {
        let asked = thompson[item][position];
        for impression in 0..shown {
            let reward = f64::from(u8::from(impression < clicked));
            trials.push(Trial { reward, logged: 1.0 / as_number(ITEMS), asked });
        }
    }
    trials
}

#[test]
fn the_published_figure_of_the_open_bandit_sample_is_reproduced() {
    let trials = open_bandit_trials();
    assert_eq!(trials.len(), 10_000);
    let was = logged(&trials).unwrap().unwrap();
    assert!((was.mean - 0.0038).abs() < 1e-12, "{was:?}");
    // 1.198126 is what 100,000 simulated draws gave; they scatter by about 0.003 around what integration gives.
    let relative = weighted(&trials).unwrap().unwrap().mean / was.mean;
    assert!((relative - 1.198_126).abs() < 0.01, "{relative}");
    // The same draws, normalised by their mean weight.
    let relative = self_normalised(&trials).unwrap().unwrap().mean / was.mean;
    assert!((relative - 1.256_798).abs() < 0.01, "{relative}");
}

#[test]
fn thirty_eight_clicks_prove_no_policy() {
    let trials = open_bandit_trials();
    let asked = weighted(&trials).unwrap().unwrap();
    let (low, high) = asked.interval_95();
    let was = logged(&trials).unwrap().unwrap().mean;
    assert!(low < was && was < high, "{low} {was} {high}");
    assert!(asked.effective_trials < 4_000.0, "{asked:?}");
}

#[test]
fn a_choice_without_a_chance_is_refused_by_its_number() {
    let good = Trial { reward: 1.0, logged: 0.5, asked: 0.5 };
    for (bad, expected) in [
        (
            Trial { logged: 0.0, ..good },
            "trial 1 has a logged probability of 0, expected above 0 and at most 1",
        ),
        (Trial { asked: 1.5, ..good }, "trial 1 has a probability in question of 1.5, expected 0 to 1"),
        (Trial { reward: f64::NAN, ..good }, "trial 1 has a reward of NaN, expected a finite number"),
    ] {
        for estimator in [logged, weighted, self_normalised] {
            assert_eq!(estimator(&[good, bad]).unwrap_err().to_string(), expected);
        }
    }
}

#[test]
fn nothing_seen_is_nothing_known() {
    assert_eq!(weighted(&[]), Ok(None));
    assert_eq!(self_normalised(&[Trial { reward: 1.0, logged: 0.5, asked: 0.0 }]), Ok(None));
}

proptest! {
    #[test]
    fn asked_about_the_way_that_chose_all_estimators_give_what_was(
        trials in proptest::collection::vec((0.0..=1.0_f64, 0.01..=1.0_f64), 2..60),
    ) {
        let trials: Vec<Trial> =
            trials.into_iter().map(|(reward, chance)| Trial { reward, logged: chance, asked: chance }).collect();
        let was = logged(&trials).unwrap().unwrap();
        for estimator in [weighted, self_normalised] {
            let asked = estimator(&trials).unwrap().unwrap();
            prop_assert!((asked.mean - was.mean).abs() < 1e-9);
            prop_assert!((asked.standard_error - was.standard_error).abs() < 1e-9);
            prop_assert!((asked.effective_trials - as_number(trials.len())).abs() < 1e-6);
        }
    }

    #[test]
    fn normalised_it_never_leaves_what_was_seen(
        trials in proptest::collection::vec((0.0..=1.0_f64, 0.01..=1.0_f64, 0.0..=1.0_f64), 1..60),
    ) {
        let trials: Vec<Trial> =
            trials.into_iter().map(|(reward, logged, asked)| Trial { reward, logged, asked }).collect();
        if let Some(estimate) = self_normalised(&trials).unwrap() {
            prop_assert!((-1e-9..=1.0 + 1e-9).contains(&estimate.mean));
        }
    }
}
