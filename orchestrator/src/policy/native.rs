//! Conditions compiled to a small tree that is evaluated in nanoseconds, beside CEL itself, which takes microseconds.
//!
//! What the tree can say, it says as CEL does on values of the kinds the expression was checked with: doubles, bools, words.
//! An expression with anything else in it (methods, comprehensions, ints) has no tree and is left to CEL. Types were
//! checked when the policy was read; a value of another kind makes the evaluation give nothing.

use cel::common::ast::{Expr, IdedExpr, LiteralValue};

use super::expr::{Known, Read};

/// A compiled expression; leaves name what is read by its place in [`super::Expression::reads`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Native {
    Number(f64),
    Truth(bool),
    Word(String),
    Read(usize),
    Not(Box<Self>),
    Negate(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    If(Box<(Self, Self, Self)>),
    Compare(Comparison, Box<Self>, Box<Self>),
    Compute(Operation, Box<Self>, Box<Self>),
    /// A word in a list of words.
    In(Box<Self>, Box<Self>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
}

/// A value on the way through the tree.
enum Value<'v> {
    Number(f64),
    Truth(bool),
    Word(std::borrow::Cow<'v, str>),
    Words(std::collections::BTreeSet<String>),
}

impl From<Known> for Value<'_> {
    fn from(known: Known) -> Self {
        match known {
            Known::Number(number) => Self::Number(number),
            Known::Truth(truth) => Self::Truth(truth),
            Known::Word(word) => Self::Word(word.into()),
            Known::Words(words) => Self::Words(words),
        }
    }
}

impl Native {
    /// The tree of an expression that reads `reads`; `None` where it says more than a tree can.
    pub(super) fn compile(expr: &IdedExpr, reads: &[Read]) -> Option<Self> {
        let boxed = |expr: &IdedExpr| Self::compile(expr, reads).map(Box::new);
        let place = |wanted: &str| reads.iter().position(|read| read.to_string() == wanted);
        Some(match &expr.expr {
            Expr::Literal(LiteralValue::Double(number)) => Self::Number(*number.inner()),
            Expr::Literal(LiteralValue::Boolean(truth)) => Self::Truth(*truth.inner()),
            Expr::Literal(LiteralValue::String(word)) => Self::Word(word.inner().to_owned()),
            Expr::Ident(name) => Self::Read(place(name)?),
            Expr::Select(select) if !select.test => match &select.operand.expr {
                Expr::Ident(root) => Self::Read(place(&format!("{root}.{}", select.field))?),
                _ => return None,
            },
            Expr::Call(call) if call.target.is_none() => {
                match (call.func_name.as_str(), call.args.as_slice()) {
                    ("!_", [a]) => Self::Not(boxed(a)?),
                    ("-_", [a]) => Self::Negate(boxed(a)?),
                    ("_&&_", [a, b]) => Self::And(boxed(a)?, boxed(b)?),
                    ("_||_", [a, b]) => Self::Or(boxed(a)?, boxed(b)?),
                    ("_?_:_", [a, b, c]) => Self::If(Box::new((
                        Self::compile(a, reads)?,
                        Self::compile(b, reads)?,
                        Self::compile(c, reads)?,
                    ))),
                    ("@in", [a, b]) => Self::In(boxed(a)?, boxed(b)?),
                    (name, [a, b]) => match (comparison(name), operation(name)) {
                        (Some(comparison), _) => Self::Compare(comparison, boxed(a)?, boxed(b)?),
                        (None, Some(operation)) => Self::Compute(operation, boxed(a)?, boxed(b)?),
                        (None, None) => return None,
                    },
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    /// A condition's answer. `None`: something it needed is unknown or of another kind. What `&&`, `||` and `?:` do not need
    /// is not looked up, so the answer is CEL's own only where everything it reads is known.
    pub(crate) fn truth(&self, lookup: &mut impl FnMut(usize) -> Option<Known>) -> Option<bool> {
        match self.value(lookup)? {
            Value::Truth(truth) => Some(truth),
            _ => None,
        }
    }

    fn value(&self, lookup: &mut impl FnMut(usize) -> Option<Known>) -> Option<Value<'_>> {
        Some(match self {
            Self::Number(number) => Value::Number(*number),
            Self::Truth(truth) => Value::Truth(*truth),
            Self::Word(word) => Value::Word(word.as_str().into()),
            Self::Read(place) => lookup(*place)?.into(),
            Self::Not(a) => Value::Truth(!a.truth(lookup)?),
            Self::Negate(a) => Value::Number(-a.number(lookup)?),
            // What cannot be said of one side does not matter where the other decides.
            Self::And(a, b) => match a.truth(lookup) {
                Some(false) => Value::Truth(false),
                Some(true) => Value::Truth(b.truth(lookup)?),
                None => (b.truth(lookup) == Some(false)).then_some(Value::Truth(false))?,
            },
            Self::Or(a, b) => match a.truth(lookup) {
                Some(true) => Value::Truth(true),
                Some(false) => Value::Truth(b.truth(lookup)?),
                None => (b.truth(lookup) == Some(true)).then_some(Value::Truth(true))?,
            },
            Self::If(parts) => {
                let (condition, yes, no) = &**parts;
                return if condition.truth(lookup)? { yes.value(lookup) } else { no.value(lookup) };
            }
            Self::Compare(comparison, a, b) => {
                Value::Truth(comparison.holds(&a.value(lookup)?, &b.value(lookup)?)?)
            }
            Self::Compute(operation, a, b) => {
                Value::Number(operation.compute(a.number(lookup)?, b.number(lookup)?))
            }
            Self::In(a, b) => match (a.value(lookup)?, b.value(lookup)?) {
                (Value::Word(word), Value::Words(words)) => Value::Truth(words.contains(word.as_ref())),
                _ => return None,
            },
        })
    }

    fn number(&self, lookup: &mut impl FnMut(usize) -> Option<Known>) -> Option<f64> {
        match self.value(lookup)? {
            Value::Number(number) => Some(number),
            _ => None,
        }
    }

    /// Whether it may be true where these reads have these values and nothing is known of the others.
    pub(crate) fn may_hold(&self, known: &dyn Fn(usize) -> Option<Known>) -> bool {
        match self {
            Self::And(a, b) => a.may_hold(known) && b.may_hold(known),
            Self::Or(a, b) => a.may_hold(known) || b.may_hold(known),
            _ => self.truth(&mut |place| known(place)) != Some(false),
        }
    }
}

impl Comparison {
    #[expect(clippy::float_cmp, reason = "CEL compares doubles exactly")]
    fn holds(self, a: &Value<'_>, b: &Value<'_>) -> Option<bool> {
        let order = match (a, b) {
            (Value::Number(a), Value::Number(b)) => match self {
                Self::Equal => return Some(a == b),
                Self::Unequal => return Some(a != b),
                _ => a.partial_cmp(b)?,
            },
            (Value::Word(a), Value::Word(b)) => a.cmp(b),
            (Value::Truth(a), Value::Truth(b)) => a.cmp(b),
            _ => return None,
        };
        Some(match self {
            Self::Equal => order.is_eq(),
            Self::Unequal => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        })
    }
}

impl Operation {
    fn compute(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Divide => a / b,
        }
    }
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "_==_" => Comparison::Equal,
        "_!=_" => Comparison::Unequal,
        "_<_" => Comparison::Less,
        "_<=_" => Comparison::LessOrEqual,
        "_>_" => Comparison::Greater,
        "_>=_" => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

fn operation(name: &str) -> Option<Operation> {
    Some(match name {
        "_+_" => Operation::Add,
        "_-_" => Operation::Subtract,
        "_*_" => Operation::Multiply,
        "_/_" => Operation::Divide,
        _ => return None,
    })
}
