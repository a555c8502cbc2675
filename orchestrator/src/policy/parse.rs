//! A policy file as a whole: the six words, in the order in which later ones build on earlier ones.

use std::collections::{BTreeMap, BTreeSet};

use super::Policy;
use super::check::{Checker, Scope};
use super::expr::{Expression, Wants};
use super::law::Jurisdiction;
use super::types::{Choose, Contact, Guard, Rules};
use crate::document::{self, Fields, Issue, Node, Span, text, word};

/// What has been understood so far, and what was wrong.
pub(super) struct Reading<'t> {
    pub(super) text: &'t str,
    pub(super) issues: Vec<Issue>,
    /// Names of facts.
    pub(super) facts: BTreeSet<String>,
    /// Names of moments.
    pub(super) moments: BTreeSet<String>,
    /// Where the first action stands that says something.
    pub(super) says: Option<Span>,
    /// Styles that messages are written in, and where.
    pub(super) styles: Vec<(String, Span)>,
    pub(super) jurisdiction: Jurisdiction,
}

/// Stack for reading a policy: the CEL parser goes down it with every sign of an expression, far in a debug build.
const STACK_BYTES: usize = 64 << 20;

/// Reads a policy, on a stack that no expression within bounds gets to the end of.
pub(super) fn policy(file: &str, yaml: &str) -> Result<Policy, Vec<Issue>> {
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new().stack_size(STACK_BYTES);
        let reading = reader.spawn_scoped(scope, || read(file, yaml));
        let read = reading.map(std::thread::ScopedJoinHandle::join);
        match read {
            Ok(Ok(read)) => read,
            // A panic goes on where it would have without the thread.
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => {
                let start = Span { line: 1, column: 1, offset: 0, length: 0 };
                Err(vec![Issue::new(start, format!("no thread to read the policy with: {error}"))])
            }
        }
    })
}

fn read(file: &str, yaml: &str) -> Result<Policy, Vec<Issue>> {
    let root = document::parse(yaml)?;
    let mut reading = Reading {
        text: yaml,
        issues: Vec::new(),
        facts: BTreeSet::new(),
        moments: BTreeSet::new(),
        says: None,
        styles: Vec::new(),
        jurisdiction: Jurisdiction::None,
    };
    let policy = reading.policy(&root);
    let Reading { mut issues, jurisdiction, .. } = reading;
    let Some((lateness, facts, moments, actions, (rules, choose, guard))) = policy else {
        return Err(issues);
    };
    if !issues.is_empty() {
        issues.sort();
        return Err(issues);
    }
    let revision = blake3::hash(root.canonical().as_bytes()).to_hex()[..16].to_owned();
    Ok(Policy {
        file: file.to_owned(),
        text: yaml.to_owned(),
        revision,
        jurisdiction,
        lateness,
        facts,
        moments,
        actions,
        rules,
        choose,
        guard,
    })
}

type Whole = (
    std::time::Duration,
    BTreeMap<String, super::Fact>,
    BTreeMap<String, super::Moment>,
    BTreeMap<String, super::Action>,
    (Rules, Choose, Guard),
);

impl Reading<'_> {
    fn policy(&mut self, root: &Node) -> Option<Whole> {
        let mut fields = Fields::of(root, "a policy", &mut self.issues)?;
        if let Some(node) = fields.require("version", &mut self.issues)
            && text(node, "a version", &mut self.issues).is_some_and(|version| version != "1")
        {
            let message = format!("version {} is not known: expected 1", node.describe());
            self.issues.push(Issue::new(node.span, message));
        }
        if let Some(node) = fields.take("jurisdiction")
            && let Some(found) = word(node, "jurisdiction", &Jurisdiction::NAMES, &mut self.issues)
        {
            self.jurisdiction = found;
        }
        let facts = fields.take("facts");
        let moments = fields.require("moments", &mut self.issues);
        let actions = fields.require("actions", &mut self.issues);
        let rules = fields.take("policy");
        let choose = fields.take("choose");
        let guard = fields.require("guard", &mut self.issues);
        fields.finish(&mut self.issues);

        let (lateness, facts) = self.facts(facts);
        let moments = moments.map(|node| self.moments(node)).unwrap_or_default();
        let actions = actions.map(|node| self.actions(node)).unwrap_or_default();
        let rules = self.rules(rules);
        let choose = self.choose(choose);
        let guard = guard.and_then(|node| self.guard(node));
        Some((lateness, facts, moments, actions, (rules?, choose, guard?)))
    }

    pub(super) fn expression(&mut self, node: &Node, wants: Wants, scope: Scope) -> Option<Expression> {
        let mut checker = Checker { facts: &self.facts, text: self.text, issues: &mut self.issues };
        checker.expression(node, wants, scope)
    }

    /// A name of the operator's own, that CEL can spell and no other meaning is attached to.
    pub(super) fn check_name(&mut self, name: &str, what: &str, span: Span) {
        const RESERVED: [&str; 15] = [
            "plan", "setting", "sub", "org", "value", "cost", "true", "false", "null", "in", "for",
            "default", "lateness", "as", "if",
        ];
        if RESERVED.contains(&name) {
            self.issues.push(Issue::new(span, format!("`{name}` cannot name {what}: the word is taken")));
        }
        self.check_letters(name, what, span);
    }

    /// A name that a metric can carry.
    pub(super) fn check_letters(&mut self, name: &str, what: &str, span: Span) {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !name.starts_with(|c: char| c.is_ascii_lowercase())
            || !name.chars().all(letters)
            || name.len() > 64
        {
            let message = format!(
                "`{name}` cannot name {what}: expected lower-case letters, digits and `_`, starting with a letter"
            );
            self.issues.push(Issue::new(span, message));
        }
    }
}

impl Default for Contact {
    fn default() -> Self {
        Self { budget: None, same_action: None, quiet: None, expire: std::time::Duration::from_hours(2) }
    }
}
