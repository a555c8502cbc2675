//! What a condition can say at all: every value it reads taken as a range, and the ranges narrowed by what is compared.
//!
//! Errs on one side: what is said to be impossible is, what is said to be possible may not be. Refuses whatever is no tree of
//! comparisons ([`Native`]); that is taken as possible.

use std::collections::BTreeSet;

use super::native::{Comparison, Native, Operation};

/// Most cases (`||`) kept apart; beyond that a condition is taken as possible.
const CASES_MAX: usize = 256;

/// Values that something read can have.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Range {
    /// From one to the other, both included.
    Numbers(f64, f64),
    /// Whether it can be false, and whether it can be true.
    Truth(bool, bool),
    /// One of these; `None`: any word.
    Words(Option<BTreeSet<String>>),
    /// Anything.
    Anything,
    /// It is never known.
    Never,
}

type Case = Vec<Range>;

/// Whether a condition can be true where what it reads is in these ranges.
pub(super) fn can_hold(condition: &Native, reads: Vec<Range>) -> bool {
    !reads.contains(&Range::Never)
        && narrow(condition, true, vec![reads]).is_none_or(|cases| !cases.is_empty())
}

/// The least and the most an amount can be.
pub(super) fn bounds(amount: &Native, reads: &[Range]) -> (f64, f64) {
    interval(amount, reads).unwrap_or((f64::NEG_INFINITY, f64::INFINITY))
}

/// The cases in which a condition is as wanted; `None`: too many to tell.
fn narrow(condition: &Native, wanted: bool, cases: Vec<Case>) -> Option<Vec<Case>> {
    if cases.len() > CASES_MAX {
        return None;
    }
    let either = |a: &Native, a_wanted, b: &Native, b_wanted, cases: Vec<Case>| {
        let mut all = narrow(a, a_wanted, cases.clone())?;
        all.extend(narrow(b, b_wanted, cases)?);
        Some(all)
    };
    match (condition, wanted) {
        (Native::Truth(truth), _) => Some(if *truth == wanted { cases } else { Vec::new() }),
        (Native::Not(inner), _) => narrow(inner, !wanted, cases),
        (Native::And(a, b), true) | (Native::Or(a, b), false) => narrow(b, wanted, narrow(a, wanted, cases)?),
        (Native::Or(a, b), true) | (Native::And(a, b), false) => either(a, wanted, b, wanted, cases),
        (Native::If(parts), _) => {
            let (condition, yes, no) = &**parts;
            let mut all = narrow(yes, wanted, narrow(condition, true, cases.clone())?)?;
            all.extend(narrow(no, wanted, narrow(condition, false, cases)?)?);
            Some(all)
        }
        (Native::Read(index), _) => Some(
            cases
                .into_iter()
                .filter_map(|mut case| {
                    if let Some(Range::Truth(can_be_false, can_be_true)) = case.get(*index).cloned() {
                        if !(if wanted { can_be_true } else { can_be_false }) {
                            return None;
                        }
                        case[*index] = Range::Truth(!wanted, wanted);
                    }
                    Some(case)
                })
                .collect(),
        ),
        (Native::Compare(comparison, a, b), _) => {
            let comparison = if wanted { *comparison } else { negated(*comparison) };
            Some(cases.into_iter().filter_map(|case| compare(comparison, a, b, case)).collect())
        }
        _ => Some(cases),
    }
}

/// The case with both sides compared so; `None`: they cannot.
fn compare(comparison: Comparison, a: &Native, b: &Native, mut case: Case) -> Option<Case> {
    if let Some(possible) = compare_words(comparison, a, b, &mut case) {
        return possible.then_some(case);
    }
    let (Some(left), Some(right)) = (interval(a, &case), interval(b, &case)) else { return Some(case) };
    let (new_left, new_right) = match comparison {
        Comparison::Less => {
            ((left.0, left.1.min(right.1.next_down())), (right.0.max(left.0.next_up()), right.1))
        }
        Comparison::LessOrEqual => ((left.0, left.1.min(right.1)), (right.0.max(left.0), right.1)),
        Comparison::Greater => {
            ((left.0.max(right.0.next_up()), left.1), (right.0, right.1.min(left.1.next_down())))
        }
        Comparison::GreaterOrEqual => ((left.0.max(right.0), left.1), (right.0, right.1.min(left.1))),
        Comparison::Equal => {
            let both = (left.0.max(right.0), left.1.min(right.1));
            (both, both)
        }
        Comparison::Unequal if is_one(left) && is_one(right) && left == right => return None,
        Comparison::Unequal => (left, right),
    };
    for (side, (least, most)) in [(a, new_left), (b, new_right)] {
        if least > most {
            return None;
        }
        if let Native::Read(index) = side
            && let Some(range) = case.get_mut(*index)
        {
            *range = Range::Numbers(least, most);
        }
    }
    Some(case)
}

#[expect(clippy::float_cmp, reason = "one value, or more than one")]
fn is_one((least, most): (f64, f64)) -> bool {
    least == most
}

/// A word read against one that is written; `None`: it is something else.
fn compare_words(comparison: Comparison, a: &Native, b: &Native, case: &mut Case) -> Option<bool> {
    let (index, word) = match (a, b) {
        (Native::Read(index), Native::Word(word)) | (Native::Word(word), Native::Read(index)) => {
            (*index, word)
        }
        _ => return None,
    };
    let Some(Range::Words(words)) = case.get_mut(index) else { return None };
    match comparison {
        Comparison::Equal => {
            let possible = words.as_ref().is_none_or(|words| words.contains(word));
            *words = Some(BTreeSet::from([word.clone()]));
            Some(possible)
        }
        Comparison::Unequal => Some(words.as_mut().is_none_or(|words| {
            words.remove(word);
            !words.is_empty()
        })),
        _ => Some(true),
    }
}

fn negated(comparison: Comparison) -> Comparison {
    match comparison {
        Comparison::Equal => Comparison::Unequal,
        Comparison::Unequal => Comparison::Equal,
        Comparison::Less => Comparison::GreaterOrEqual,
        Comparison::LessOrEqual => Comparison::Greater,
        Comparison::Greater => Comparison::LessOrEqual,
        Comparison::GreaterOrEqual => Comparison::Less,
    }
}

/// The least and the most of a number; `None`: it is none.
fn interval(expr: &Native, case: &[Range]) -> Option<(f64, f64)> {
    match expr {
        Native::Number(number) => Some((*number, *number)),
        Native::Read(index) => match case.get(*index)? {
            Range::Numbers(least, most) => Some((*least, *most)),
            _ => None,
        },
        Native::Negate(inner) => interval(inner, case).map(|(least, most)| (-most, -least)),
        Native::If(parts) => {
            let (yes, no) = (interval(&parts.1, case)?, interval(&parts.2, case)?);
            Some((yes.0.min(no.0), yes.1.max(no.1)))
        }
        Native::Compute(operation, a, b) => {
            let (a, b) = (interval(a, case)?, interval(b, case)?);
            let compute = |x: f64, y: f64| match operation {
                Operation::Add => x + y,
                Operation::Subtract => x - y,
                Operation::Multiply => x * y,
                Operation::Divide => x / y,
            };
            let corners = [compute(a.0, b.0), compute(a.0, b.1), compute(a.1, b.0), compute(a.1, b.1)];
            let unbounded = *operation == Operation::Divide && b.0 <= 0.0 && b.1 >= 0.0;
            if unbounded || corners.iter().any(|corner| corner.is_nan()) {
                return Some((f64::NEG_INFINITY, f64::INFINITY));
            }
            Some((
                corners.into_iter().fold(f64::INFINITY, f64::min),
                corners.into_iter().fold(f64::NEG_INFINITY, f64::max),
            ))
        }
        _ => None,
    }
}
