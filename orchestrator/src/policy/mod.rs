//! The operator's YAML of six words: facts, moments, actions, policy, choose, guard.
//!
//! Owns reading a policy file into types the engine can trust, and every message about what is wrong with it, with line
//! and column. Refuses to open files and to know subscribers.

mod check;
mod expr;
mod law;
mod lint;
mod native;
mod parse;
mod ranges;
mod rules;
mod sections;
#[cfg(test)]
mod tests;
mod types;
mod values;

use std::collections::BTreeMap;
use std::time::Duration;

pub use expr::{Expression, Known, Read, Unknown};
pub use law::Jurisdiction;
pub(crate) use native::Native;
pub use types::{
    Action, ActionKind, Amount, Backoff, Canary, Change, Choose, Contact, Fact, Guard, Lasts, Learning,
    Measure, Moment, ORDERS, Prior, Purpose, PushBudgets, Quiet, Quota, Rearm, Rules, Source, Stat, Window,
};

use crate::document::{Issue, Issues, Span, nearest};
use crate::identity::Plan;

/// Everything wrong with a policy file, with positions.
pub type PolicyErrors = Issues;

/// A policy file, read and checked.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(super) file: String,
    pub(super) text: String,
    pub(super) revision: String,
    pub(super) jurisdiction: Jurisdiction,
    pub(super) lateness: Duration,
    pub(super) facts: BTreeMap<String, Fact>,
    pub(super) moments: BTreeMap<String, Moment>,
    pub(super) actions: BTreeMap<String, Action>,
    pub(super) rules: Rules,
    pub(super) choose: Choose,
    pub(super) guard: Guard,
}

impl Policy {
    /// Reads a policy file; `file_name` is for the messages. All mistakes at once.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, PolicyErrors> {
        parse::policy(file_name, text).map_err(|issues| Issues::new(file_name, text, issues))
    }

    /// Names what the file says: two files that say the same have the same, whatever their comments and layout.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The file's name, as the reader knows it.
    pub fn file_name(&self) -> &str {
        &self.file
    }

    /// What stands in the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What is wrong with the file beside these plans: fields no plan has, settings no plan can return to.
    pub fn check_plans(&self, plans: &BTreeMap<String, Plan>) -> Vec<Issue> {
        let mut issues = Vec::new();
        for expression in self.expressions() {
            check_plan_fields(expression, plans, &mut issues);
        }
        for action in self.actions.values() {
            let change = match &action.kind {
                ActionKind::Set(change) => Some(change),
                ActionKind::Say { tap, .. } => tap.as_ref(),
            };
            for ((setting, value), place) in
                change.into_iter().flat_map(|change| change.values.iter().zip(&change.places))
            {
                if ORDERS.contains(&setting.as_str()) {
                    if setting == "plan" && !value.contains('{') && !plans.contains_key(value) {
                        issues.push(Issue::new(*place, format!("no plan is called `{value}`")));
                    }
                    continue;
                }
                for (plan, _) in plans.iter().filter(|(_, plan)| !plan.settings.contains_key(setting)) {
                    let message = format!("plan `{plan}` gives no `{setting}` to return to");
                    let help = format!("give it one: `{plan}: {{settings: {{{setting}: ...}}}}`");
                    issues.push(Issue::new(*place, message).with_help(help));
                }
            }
        }
        issues.sort();
        issues.dedup();
        issues
    }

    /// What its jurisdiction refuses, each with the law by name and the remedy. Nobody may run a policy that has any.
    pub fn breaches(&self) -> Vec<Issue> {
        law::breaches(self, &lint::Places::of(&self.text))
    }

    /// What is most likely a mistake, though it can be run: moments that never fire, actions that never win, what nobody reads.
    pub fn warnings(&self, plans: Option<&BTreeMap<String, Plan>>) -> Vec<Issue> {
        lint::warnings(self, plans)
    }

    /// All that keeps this policy from being run with these plans: mistakes, and what the law refuses.
    pub fn check(&self, plans: &BTreeMap<String, Plan>) -> Result<(), PolicyErrors> {
        let mut issues = self.check_plans(plans);
        issues.extend(self.breaches());
        if issues.is_empty() { Ok(()) } else { Err(Issues::new(&self.file, &self.text, issues)) }
    }

    /// Later than this behind the newest: counted, never applied.
    pub fn lateness(&self) -> Duration {
        self.lateness
    }

    /// Whose law it is written under.
    pub fn jurisdiction(&self) -> Jurisdiction {
        self.jurisdiction
    }

    /// By name.
    pub fn facts(&self) -> &BTreeMap<String, Fact> {
        &self.facts
    }

    /// By name.
    pub fn moments(&self) -> &BTreeMap<String, Moment> {
        &self.moments
    }

    /// By name.
    pub fn actions(&self) -> &BTreeMap<String, Action> {
        &self.actions
    }

    /// What every action must pass.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// How the best action is found.
    pub fn choose(&self) -> &Choose {
        &self.choose
    }

    /// What is allowed at all.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Whether it asks for the plan that suits.
    pub(crate) fn asks_for_fit(&self) -> bool {
        let asks = |text: &str| text.contains("{fit_plan}") || text.contains("{saving}");
        self.expressions().any(|it| it.reads().any(|read| *read == Read::Sub("fit_saves")))
            || self.actions.values().any(|action| match &action.kind {
                ActionKind::Set(_) => false,
                ActionKind::Say { template, styles, tap } => {
                    std::iter::once(template).chain(styles.values()).any(|text| asks(text))
                        || tap.iter().any(|tap| tap.values.values().any(|value| asks(value)))
                }
            })
    }

    /// Whether anything it says is about trips.
    pub(crate) fn asks_for_trips(&self) -> bool {
        let about = |read: &Read| matches!(read, Read::Sub("trips" | "trip_share" | "trip_ahead"));
        self.expressions().any(|it| it.reads().any(about))
            || self.moments.values().any(|moment| moment.rearm == Rearm::Trip)
    }

    fn expressions(&self) -> impl Iterator<Item = &Expression> {
        fn computed(amount: &Amount) -> Option<&Expression> {
            match amount {
                Amount::Computed(expression) => Some(expression),
                Amount::Fixed(_) => None,
            }
        }
        let of_actions = self
            .actions
            .values()
            .flat_map(move |action| {
                [action.only_if.as_ref(), computed(&action.value), computed(&action.cost)]
            })
            .flatten();
        self.moments
            .values()
            .map(|moment| &moment.when)
            .chain(of_actions)
            .chain(&self.rules.eligible)
            .chain([&self.rules.suitable])
    }
}

fn check_plan_fields(expression: &Expression, plans: &BTreeMap<String, Plan>, issues: &mut Vec<Issue>) {
    let compiled = expression.compiled();
    let kinds = |read: &Read| {
        let field = match read {
            Read::Plan(field) => field,
            Read::Setting(_) => return Some(Known::Word("word".to_owned())),
            _ => return None,
        };
        plans.values().find_map(|plan| {
            let word = plan.settings.get(field).map(|word| Known::Word(word.clone()));
            word.or_else(|| plan.numbers.get(field).map(|number| Known::Number(*number)))
        })
    };
    let mut unknown = false;
    for (read, span) in &compiled.reads {
        if let Read::Setting(name) = read {
            if !plans.values().any(|plan| plan.settings.contains_key(name)) {
                unknown = true;
                issues.push(unknown_setting(name, *span, plans));
            }
            continue;
        }
        let Read::Plan(field) = read else { continue };
        if kinds(read).is_some() {
            continue;
        }
        unknown = true;
        issues.push(unknown_field(field, *span, plans));
    }
    if !unknown {
        issues.extend(check::mistakes(compiled, kinds));
    }
}

fn unknown_setting(name: &str, span: Span, plans: &BTreeMap<String, Plan>) -> Issue {
    let known: std::collections::BTreeSet<&str> =
        plans.values().flat_map(|plan| plan.settings.keys()).map(String::as_str).collect();
    let issue = Issue::new(span, format!("no plan gives a setting `{name}`"));
    issue.with_help(match nearest(name, known.iter().copied()) {
        Some(right) => format!("did you mean `setting.{right}`?"),
        None => format!("plans give {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    })
}

fn unknown_field(field: &str, span: Span, plans: &BTreeMap<String, Plan>) -> Issue {
    let mut known: Vec<&str> = plans
        .values()
        .flat_map(|plan| plan.settings.keys().chain(plan.numbers.keys()))
        .map(String::as_str)
        .collect();
    known.sort_unstable();
    known.dedup();
    let issue = Issue::new(span, format!("no plan has `{field}`"));
    issue.with_help(match nearest(field, known.iter().copied()) {
        Some(right) => format!("did you mean `plan.{right}`?"),
        None if known.is_empty() => "the plans have no settings and no numbers".to_owned(),
        None => format!("plans have {}", known.join(", ")),
    })
}
