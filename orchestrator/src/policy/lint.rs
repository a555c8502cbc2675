//! What is written correctly and still most likely a mistake: moments that never fire, actions that never win, facts that
//! nobody reads. Warnings: a policy with some runs.

use std::collections::{BTreeMap, BTreeSet};

use super::ranges::{Range, bounds, can_hold};
use super::types::{Action, ActionKind, Amount, Fact, Measure, Stat};
use super::{Expression, Policy, Read};
use crate::document::{self, Issue, Kind, Node, Span};
use crate::identity::Plan;

/// Where the names of a policy stand.
pub(super) struct Places(Option<Node>);

impl Places {
    pub(super) fn of(text: &str) -> Self {
        Self(document::parse(text).ok())
    }

    /// The place of a key; where it is left out, of the nearest one above it.
    pub(super) fn key(&self, path: &[&str]) -> Span {
        let mut place = Span { line: 1, column: 1, offset: 0, length: 0 };
        let mut node = self.0.as_ref();
        for key in path {
            let Some(Kind::Map(entries)) = node.map(|node| &node.kind) else { break };
            let Some((_, span, value)) = entries.iter().find(|(name, ..)| name == key) else { break };
            (place, node) = (*span, Some(value));
        }
        place
    }
}

/// Every warning about a policy, with the plans it is to work with, where they are known.
pub(super) fn warnings(policy: &Policy, plans: Option<&BTreeMap<String, Plan>>) -> Vec<Issue> {
    let places = Places::of(&policy.text);
    let lint = Lint { policy, plans };
    let mut issues = Vec::new();
    lint.unused(&places, &mut issues);
    for (name, moment) in &policy.moments {
        if let Some(why) = lint.never_fires(&moment.when) {
            let issue =
                Issue::new(moment.when.compiled().place.span, format!("`{name}` can never fire: {why}"));
            issues.push(
                issue.with_help("what it reads can never be as it asks; see docs/policy.md for ranges"),
            );
        }
    }
    for (name, action) in policy.actions.iter().filter(|(_, action)| !action.regulated) {
        issues.extend(lint.never_wins(name, action, places.key(&["actions", name])));
    }
    issues.sort();
    issues
}

struct Lint<'l> {
    policy: &'l Policy,
    plans: Option<&'l BTreeMap<String, Plan>>,
}

impl Lint<'_> {
    fn unused(&self, places: &Places, issues: &mut Vec<Issue>) {
        let read: BTreeSet<&str> = self
            .policy
            .expressions()
            .flat_map(Expression::reads)
            .filter_map(|read| if let Read::Fact(name) = read { Some(name.as_str()) } else { None })
            .collect();
        for name in self.policy.facts.keys().filter(|name| !read.contains(name.as_str())) {
            let issue = Issue::new(places.key(&["facts", name]), format!("nothing reads the fact `{name}`"));
            issues.push(issue.with_help("drop it: it costs every subscriber memory"));
        }
        for name in self.policy.moments.keys() {
            if !self.policy.actions.values().any(|action| action.at.contains(name)) {
                let issue = Issue::new(
                    places.key(&["moments", name]),
                    format!("no action is at the moment `{name}`"),
                );
                issues.push(issue.with_help("drop it, or name it in an action's `at`"));
            }
        }
    }

    fn never_fires(&self, when: &Expression) -> Option<String> {
        let reads: Vec<Range> = when.reads().map(|read| self.range(read)).collect();
        if let Some(never) =
            when.reads().zip(&reads).find_map(|(read, range)| (*range == Range::Never).then_some(read))
        {
            return Some(format!("`{never}` is never known, no plan has the number it needs"));
        }
        let possible = when.native().is_none_or(|native| can_hold(native, reads));
        (!possible).then(|| format!("`{}` contradicts itself, or what can be", when.source()))
    }

    fn never_wins(&self, name: &str, action: &Action, place: Span) -> Option<Issue> {
        let (choose, rules) = (&self.policy.choose, &self.policy.rules);
        let (value, cost) = (self.amount(&action.value), self.amount(&action.cost));
        let suits = rules.suitable.native().is_none_or(|native| {
            let range = |read: &Read| match read {
                Read::Value => Range::Numbers(value.0, value.1),
                Read::Cost => Range::Numbers(cost.0, cost.1),
                _ => self.range(read),
            };
            can_hold(native, rules.suitable.reads().map(range).collect())
        });
        if !suits {
            let message = format!("`{name}` can never win: `{}` never holds for it", rules.suitable.source());
            return Some(Issue::new(place, message).with_help("raise its `value`, or lower its `cost`"));
        }
        let propensity = match action.kind {
            ActionKind::Set(_) => choose.prior_set.mean(),
            ActionKind::Say { .. } => choose.prior_say.mean(),
        };
        // What is tried whatever its score may come to win.
        let is_tried = choose.explore > 0.0 && matches!(action.kind, ActionKind::Say { .. });
        let weight = |at: &String| choose.relevance.get(at).copied().unwrap_or(choose.relevance_default);
        let relevance = action.at.iter().map(weight).fold(0.0, f64::max);
        let gain = value.1 - cost.0;
        let best = if gain.is_infinite() { gain } else { propensity * relevance * gain };
        if best >= choose.floor || best.is_nan() || is_tried {
            return None;
        }
        let message = format!(
            "`{name}` can never win: at best it scores {propensity:.3} * {relevance:.3} * {gain:.3} = {best:.3}, below the floor {}",
            choose.floor
        );
        let needed = choose.floor / (propensity * relevance);
        let help = if needed.is_finite() {
            format!("a value of {needed:.2} above its cost would do, or a lower `choose.floor`")
        } else {
            "its moments have no relevance".to_owned()
        };
        Some(Issue::new(place, message).with_help(help))
    }

    fn amount(&self, amount: &Amount) -> (f64, f64) {
        match amount {
            Amount::Fixed(number) => (*number, *number),
            Amount::Computed(expression) => {
                let reads: Vec<Range> = expression.reads().map(|read| self.range(read)).collect();
                expression
                    .native()
                    .map_or((f64::NEG_INFINITY, f64::INFINITY), |native| bounds(native, &reads))
            }
        }
    }

    /// What a read can be.
    fn range(&self, read: &Read) -> Range {
        let positive = Range::Numbers(0.0, f64::INFINITY);
        match read {
            Read::Fact(name) => {
                self.policy.facts.get(name).map_or(Range::Anything, |fact| self.of_fact(fact))
            }
            Read::Plan(field) => self.of_plans(field),
            Read::Setting(name) => self.of_setting(name),
            Read::Org(_) => Range::Numbers(0.0, 1.0),
            Read::Sub(field) => match *field {
                "active" | "complaint_open" | "moved" | "roam_pass" | "roaming" | "trip_ahead" => {
                    Range::Truth(true, true)
                }
                "cycle_left" | "partner_fit" => Range::Numbers(0.0, 1.0),
                "roam_expected" | "roam_price" | "trips" | "trip_share" => positive,
                "fit_saves" => Range::Numbers(f64::NEG_INFINITY, f64::INFINITY),
                "country" | "plmn" | "rat" | "time_zone" => Range::Words(None),
                _ => Range::Anything,
            },
            Read::Value | Read::Cost | Read::Outcome(_) => Range::Anything,
        }
    }

    fn of_fact(&self, fact: &Fact) -> Range {
        let needs = match fact.measure {
            Measure::UpUtil => Some("up_bps"),
            Measure::DownUtil => Some("down_bps"),
            _ => None,
        };
        if let (Some(number), Some(plans)) = (needs, self.plans)
            && !plans.values().any(|plan| plan.numbers.contains_key(number))
        {
            return Range::Never;
        }
        let most = match (fact.measure, fact.stat) {
            (_, Stat::Sum | Stat::Count | Stat::Distinct) => f64::INFINITY,
            (Measure::AtCap | Measure::Loss, _) => 1.0,
            (Measure::Qoo, _) => 100.0,
            _ => f64::INFINITY,
        };
        Range::Numbers(0.0, most)
    }

    fn of_plans(&self, field: &str) -> Range {
        let Some(plans) = self.plans else { return Range::Anything };
        let numbers: Vec<f64> = plans.values().filter_map(|plan| plan.numbers.get(field).copied()).collect();
        let words: BTreeSet<String> =
            plans.values().filter_map(|plan| plan.settings.get(field).cloned()).collect();
        match (numbers.is_empty(), words.is_empty()) {
            (false, true) => {
                let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
                Range::Numbers(least, numbers.into_iter().fold(f64::NEG_INFINITY, f64::max))
            }
            (true, false) => Range::Words(Some(words)),
            _ => Range::Anything,
        }
    }

    fn of_setting(&self, name: &str) -> Range {
        let Some(plans) = self.plans else { return Range::Words(None) };
        let mut words: BTreeSet<String> =
            plans.values().filter_map(|plan| plan.settings.get(name).cloned()).collect();
        for action in self.policy.actions.values() {
            let change = match &action.kind {
                ActionKind::Set(change) => Some(change),
                ActionKind::Say { tap, .. } => tap.as_ref(),
            };
            match change.and_then(|change| change.values.get(name)) {
                Some(value) if value.contains('{') => return Range::Words(None),
                Some(value) => drop(words.insert(value.clone())),
                None => {}
            }
        }
        Range::Words(Some(words))
    }
}
