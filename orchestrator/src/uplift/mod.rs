//! What a way of choosing would have brought, from what another way brought: off-policy estimation, sans-I/O.
//!
//! Owns the uplift [`report`] and its arithmetic. A [`Trial`] is a choice that was made with a known probability, and what came
//! of it; the estimators weigh each by how likely the way in question would have made the same choice. They say how sure
//! they are, and refuse what cannot be weighed: a choice logged with no chance at all. Refuses to learn or to decide.
//!
//! D. G. Horvitz, D. J. Thompson, "A Generalization of Sampling Without Replacement from a Finite Universe", JASA 47, 1952;
//! for the normalised form A. Swaminathan, T. Joachims, "The Self-Normalized Estimator for Counterfactual Learning", 2015.

pub mod report;

/// One choice that was made, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// What came of it: 1 for an accepted offer, 0 for one that was not, or any other finite number.
    pub reward: f64,
    /// The probability with which it was chosen, above 0 and at most 1, as logged at the time.
    pub logged: f64,
    /// The probability with which the way in question would have chosen the same, 0 to 1.
    pub asked: f64,
}

/// A trial that cannot be weighed.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("trial {index} has {what} {value}, expected {expected}")]
pub struct BadTrial {
    /// Which, from 0.
    pub index: usize,
    /// What of it.
    pub what: &'static str,
    /// Its value.
    pub value: f64,
    /// What it must be.
    pub expected: &'static str,
}

/// A mean reward a trial, and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean reward a trial.
    pub mean: f64,
    /// Its standard error; not a number below two trials.
    pub standard_error: f64,
    /// How many trials of equal weight would say as much (Kish): far below `trials`, the estimate hangs on a few.
    pub effective_trials: f64,
    /// Trials weighed.
    pub trials: usize,
}

impl Estimate {
    /// The bounds within which the true mean lies in 95 of 100 cases, by the normal approximation.
    pub fn interval_95(&self) -> (f64, f64) {
        let half = 1.959_964 * self.standard_error;
        (self.mean - half, self.mean + half)
    }
}

/// The mean reward that was: of the way that made the choices. `None` without a trial.
pub fn logged(trials: &[Trial]) -> Result<Option<Estimate>, BadTrial> {
    check(trials)?;
    let mean = mean(trials.iter().map(|trial| trial.reward));
    Ok(estimate(trials, mean, |_| 1.0, |trial| trial.reward - mean))
}

/// Inverse probability weighting: unbiased, and noisy where the two ways differ much. `None` without a trial.
pub fn weighted(trials: &[Trial]) -> Result<Option<Estimate>, BadTrial> {
    check(trials)?;
    let mean = mean(trials.iter().map(|trial| weight(trial) * trial.reward));
    Ok(estimate(trials, mean, weight, |trial| weight(trial) * trial.reward - mean))
}

/// The same, divided by the mean weight: a little biased on few trials, much less noisy, and never outside what was seen.
/// `None` without a trial, or where the way in question would have made none of these choices.
pub fn self_normalised(trials: &[Trial]) -> Result<Option<Estimate>, BadTrial> {
    check(trials)?;
    let mean_weight = mean(trials.iter().map(weight));
    if mean_weight <= 0.0 {
        return Ok(None);
    }
    let mean = mean(trials.iter().map(|trial| weight(trial) * trial.reward)) / mean_weight;
    Ok(estimate(trials, mean, weight, |trial| weight(trial) * (trial.reward - mean) / mean_weight))
}

/// How many times as likely the way in question was to make this choice.
fn weight(trial: &Trial) -> f64 {
    trial.asked / trial.logged
}

/// `off`: what a trial contributes to the mean's error.
fn estimate(
    trials: &[Trial],
    mean: f64,
    weight: impl Fn(&Trial) -> f64,
    off: impl Fn(&Trial) -> f64,
) -> Option<Estimate> {
    if trials.is_empty() {
        return None;
    }
    let count = as_number(trials.len());
    let variance = trials.iter().map(|trial| off(trial).powi(2)).sum::<f64>() / (count - 1.0);
    let sum: f64 = trials.iter().map(&weight).sum();
    let sum_of_squares: f64 = trials.iter().map(|trial| weight(trial).powi(2)).sum();
    let effective_trials = if sum_of_squares > 0.0 { sum * sum / sum_of_squares } else { 0.0 };
    let standard_error = (variance / count).sqrt();
    Some(Estimate { mean, standard_error, effective_trials, trials: trials.len() })
}

fn check(trials: &[Trial]) -> Result<(), BadTrial> {
    for (index, trial) in trials.iter().enumerate() {
        let bad = |what, value, expected| Err(BadTrial { index, what, value, expected });
        if !(trial.logged > 0.0 && trial.logged <= 1.0) {
            return bad("a logged probability of", trial.logged, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&trial.asked) {
            return bad("a probability in question of", trial.asked, "0 to 1");
        }
        if !trial.reward.is_finite() {
            return bad("a reward of", trial.reward, "a finite number");
        }
    }
    Ok(())
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = as_number(values.len());
    values.sum::<f64>() / count
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53 trials")]
fn as_number(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
