//! One CEL expression: compiled once, knows what it reads, evaluated on values it is given.
//!
//! Strict about what is not known: an expression that reads anything unknown is unknown as a whole, whatever the rest
//! of it says, so that a missing number never makes a condition true.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program, Value};

use crate::document::Span;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// What an expression reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Read {
    /// A fact by name.
    Fact(String),
    /// `plan.NAME`: a setting or number of the plan.
    Plan(String),
    /// `setting.NAME`: what is desired now.
    Setting(String),
    /// `sub.NAME`.
    Sub(&'static str),
    /// `org.NAME`.
    Org(&'static str),
    /// `value` of the action, in `policy.suitable`.
    Value,
    /// `cost` of the action, in `policy.suitable`.
    Cost,
    /// What a push did, in `guard.rollback`.
    Outcome(&'static str),
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fact(name) => f.write_str(name),
            Self::Plan(field) => write!(f, "plan.{field}"),
            Self::Setting(name) => write!(f, "setting.{name}"),
            Self::Sub(field) => write!(f, "sub.{field}"),
            Self::Org(field) => write!(f, "org.{field}"),
            Self::Value => f.write_str("value"),
            Self::Cost => f.write_str("cost"),
            Self::Outcome(name) => f.write_str(name),
        }
    }
}

/// A value as expressions see it. Every number is a double.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// A double.
    Number(f64),
    /// A bool.
    Truth(bool),
    /// A string.
    Word(String),
    /// A list of strings.
    Words(BTreeSet<String>),
}

impl Known {
    /// The number; truth is 1.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Truth(truth) => Some(f64::from(u8::from(*truth))),
            Self::Word(_) | Self::Words(_) => None,
        }
    }

    pub(super) fn to_cel(&self) -> Value {
        match self {
            Self::Number(number) => Value::Float(*number),
            Self::Truth(truth) => Value::Bool(*truth),
            Self::Word(word) => Value::from(word.as_str()),
            Self::Words(words) => {
                Value::List(Arc::new(words.iter().map(|word| Value::from(word.as_str())).collect()))
            }
        }
    }
}

/// What an expression must give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// A condition.
    Truth,
    /// An amount.
    Number,
}

/// Why an expression gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Something it reads is not known now.
    #[error("`{0}` is not known")]
    Missing(Read),
    /// It could not be computed on these values.
    #[error("`{expression}` fails: {why}")]
    Failed {
        /// Its text.
        expression: String,
        /// What CEL says.
        why: String,
    },
}

/// A compiled expression.
#[derive(Clone)]
pub struct Expression(Arc<Compiled>);

pub(super) struct Compiled {
    pub(super) source: String,
    pub(super) place: Place,
    pub(super) program: Program,
    /// Sorted, each once.
    pub(super) reads: Vec<(Read, Span)>,
    pub(super) wants: Wants,
    /// The same, where it can be said so.
    pub(super) native: Option<super::Native>,
}

/// Where an expression stands, and whether its text stands there letter by letter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) span: Span,
    /// Bytes before the text (a quote), where positions inside it can be told.
    pub(super) inside: Option<usize>,
}

impl Place {
    /// A part of the expression, in characters of its text.
    pub(super) fn part(self, source: &str, start: usize, length: usize) -> Span {
        match self.inside {
            Some(quote) if source.is_ascii() && !source.contains('\n') && start <= source.len() => Span {
                line: self.span.line,
                column: self.span.column + quote + start,
                offset: self.span.offset + quote + start,
                length: length.min(source.len() - start),
            },
            _ => self.span,
        }
    }
}

impl Expression {
    pub(super) fn new(compiled: Compiled) -> Self {
        Self(Arc::new(compiled))
    }

    pub(super) fn compiled(&self) -> &Compiled {
        &self.0
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// What it reads, sorted, each once.
    pub fn reads(&self) -> impl Iterator<Item = &Read> {
        self.0.reads.iter().map(|(read, _)| read)
    }

    /// Its fast form; `None`: it has none.
    pub(crate) fn native(&self) -> Option<&super::Native> {
        self.0.native.as_ref()
    }

    /// A condition's answer.
    pub fn truth(&self, lookup: impl FnMut(&Read) -> Option<Known>) -> Result<bool, Unknown> {
        match self.evaluate(lookup)? {
            Value::Bool(truth) => Ok(truth),
            other => Err(self.failed(format!("gives {other:?}, not a bool"))),
        }
    }

    /// An amount.
    pub fn number(&self, lookup: impl FnMut(&Read) -> Option<Known>) -> Result<f64, Unknown> {
        match self.evaluate(lookup)? {
            Value::Float(number) if number.is_finite() => Ok(number),
            other => Err(self.failed(format!("gives {other:?}, not a finite double"))),
        }
    }

    fn evaluate(&self, mut lookup: impl FnMut(&Read) -> Option<Known>) -> Result<Value, Unknown> {
        let mut values = Vec::with_capacity(self.0.reads.len());
        for (read, _) in &self.0.reads {
            let known = lookup(read).ok_or_else(|| Unknown::Missing(read.clone()))?;
            values.push((read, known));
        }
        let context = context(values.iter().map(|(read, known)| (*read, known)));
        self.0.program.execute(&context).map_err(|error| self.failed(error.to_string()))
    }

    fn failed(&self, why: String) -> Unknown {
        Unknown::Failed { expression: self.0.source.clone(), why }
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.0.source).finish()
    }
}

/// The variables of an evaluation; `plan`, `setting`, `sub` and `org` are maps of the fields that are read.
pub(super) fn context<'k>(values: impl Iterator<Item = (&'k Read, &'k Known)>) -> Context<'static, 'static> {
    let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
    let mut groups: HashMap<&str, HashMap<String, Value>> = HashMap::new();
    for (read, known) in values {
        let value = known.to_cel();
        match read {
            Read::Fact(name) => context.add_variable_from_value(name.as_str(), value),
            Read::Outcome(name) => context.add_variable_from_value(*name, value),
            Read::Value => context.add_variable_from_value("value", value),
            Read::Cost => context.add_variable_from_value("cost", value),
            Read::Plan(field) => drop(groups.entry("plan").or_default().insert(field.clone(), value)),
            Read::Setting(name) => drop(groups.entry("setting").or_default().insert(name.clone(), value)),
            Read::Sub(field) => drop(groups.entry("sub").or_default().insert((*field).to_owned(), value)),
            Read::Org(field) => drop(groups.entry("org").or_default().insert((*field).to_owned(), value)),
        }
    }
    for (name, fields) in groups {
        context.add_variable_from_value(name, Value::Map(fields.into()));
    }
    context
}
