//! Expressions, checked before they are believed: that they compile, that they read what exists, and that every part of
//! them gives a value of the right kind. CEL has no static types, so each part is evaluated by itself on a typed
//! sample; that way nothing hides behind the short circuit of `&&`.

use std::collections::{BTreeMap, BTreeSet};

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue};
use cel::{Program, Value};

use super::expr::{Compiled, Expression, Known, Place, Read, Wants, context};
use crate::document::{Issue, Kind, Node, Span, nearest};

/// Longest expression read, characters.
pub(super) const MAX_LENGTH: usize = 1_000;
/// Most operators, dots and brackets read: the CEL parser goes down the stack with a chain of them.
pub(super) const MAX_OPERATORS: usize = 64;
/// Deepest nesting read: CEL goes down the stack with each level, when it parses and when it evaluates.
const MAX_DEPTH: usize = 32;
/// Most plan fields in one expression: each may be a word or a number, and all combinations are tried.
const MAX_PLAN_FIELDS: usize = 6;

/// A field that expressions may read.
pub(super) struct Field {
    name: &'static str,
    sample: fn() -> Known,
}

const fn field(name: &'static str, sample: fn() -> Known) -> Field {
    Field { name, sample }
}

/// `sub.*`
const SUB: [Field; 18] = [
    field("active", truth),
    field("addons", words),
    field("complaint_open", truth),
    field("country", a_word),
    field("cycle_left", one),
    field("fit_saves", one),
    field("moved", truth),
    field("partner_fit", one),
    field("plmn", a_word),
    field("rat", a_word),
    field("roam_expected", one),
    field("roam_pass", truth),
    field("roam_price", one),
    field("roaming", truth),
    field("time_zone", a_word),
    field("trip_ahead", truth),
    field("trip_share", one),
    field("trips", one),
];
/// `org.*`
const ORG: [Field; 1] = [field("moved", one)];
/// What a push did.
const OUTCOME: [Field; 3] =
    [field("complaint_delta", one), field("push_error", one), field("qoe_delta", one)];

/// Every field that conditions may read of a subscriber and of an organisation.
#[cfg(test)]
pub(super) fn field_names() -> impl Iterator<Item = String> {
    let sub = SUB.iter().map(|field| format!("sub.{}", field.name));
    sub.chain(ORG.iter().map(|field| format!("org.{}", field.name)))
}

fn one() -> Known {
    Known::Number(1.0)
}

fn truth() -> Known {
    Known::Truth(true)
}

fn a_word() -> Known {
    Known::Word("word".to_owned())
}

fn words() -> Known {
    Known::Words(std::iter::once("word".to_owned()).collect())
}

/// Which names an expression may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Facts, the plan, the subscriber, the organisation.
    Person,
    /// The same, and `value` and `cost` of the action.
    Bargain,
    /// What a push did.
    Outcome,
}

/// What stands behind the check of each expression of a file.
pub(super) struct Checker<'c> {
    /// Facts of the file, also those with mistakes.
    pub(super) facts: &'c BTreeSet<String>,
    pub(super) text: &'c str,
    pub(super) issues: &'c mut Vec<Issue>,
}

impl Checker<'_> {
    /// Compiles and checks; what is wrong goes to the issues.
    pub(super) fn expression(&mut self, node: &Node, wants: Wants, scope: Scope) -> Option<Expression> {
        let Kind::Scalar { text: source, .. } = &node.kind else {
            let message = format!("expected an expression, found {}", node.describe());
            self.issues.push(Issue::new(node.span, message));
            return None;
        };
        if source.trim().is_empty() || source.chars().count() > MAX_LENGTH {
            let message = format!("expected an expression of 1 to {MAX_LENGTH} characters");
            self.issues.push(Issue::new(node.span, message));
            return None;
        }
        if operators(source) > MAX_OPERATORS {
            let message = format!("an expression of more than {MAX_OPERATORS} operators: make several of it");
            self.issues.push(Issue::new(node.span, message));
            return None;
        }
        if nesting(source) > MAX_DEPTH {
            self.too_deep(node.span);
            return None;
        }
        let place = Place { span: node.span, inside: inside(self.text, node.span, source) };
        let program = match Program::compile(source) {
            Ok(program) => program,
            Err(errors) => {
                for error in errors.errors {
                    let column = usize::try_from(error.pos.1).unwrap_or(1).saturating_sub(1);
                    let span = place.part(source, column, 1);
                    self.issues.push(Issue::new(span, format!("not CEL: {}", in_short(&error.msg))));
                }
                return None;
            }
        };
        if depth(program.expression()) > MAX_DEPTH {
            self.too_deep(node.span);
            return None;
        }
        let mut walk = Walk {
            checker: self,
            scope,
            place,
            source,
            program: &program,
            reads: BTreeMap::new(),
            wrong: false,
        };
        walk.names(program.expression(), &mut Vec::new());
        let Walk { reads, wrong, .. } = walk;
        if wrong {
            return None;
        }
        let reads: Vec<(Read, Span)> = reads.into_iter().collect();
        let names: Vec<Read> = reads.iter().map(|(read, _)| read.clone()).collect();
        let native = super::Native::compile(program.expression(), &names);
        let compiled = Compiled { source: source.clone(), place, program, reads, wants, native };
        let mistakes = self.types(&compiled)?;
        if !mistakes.is_empty() {
            self.issues.extend(mistakes);
            return None;
        }
        Some(Expression::new(compiled))
    }

    fn too_deep(&mut self, span: Span) {
        let message = format!("an expression nested deeper than {MAX_DEPTH} levels: make several of it");
        self.issues.push(Issue::new(span, message));
    }

    /// Mistakes of kind under the best reading of the plan's fields; `None` where there are too many to try.
    fn types(&mut self, compiled: &Compiled) -> Option<Vec<Issue>> {
        let fields: Vec<&Read> = compiled
            .reads
            .iter()
            .map(|(read, _)| read)
            .filter(|read| matches!(read, Read::Plan(_)))
            .collect();
        if fields.len() > MAX_PLAN_FIELDS {
            let message = format!("reads more than {MAX_PLAN_FIELDS} fields of the plan");
            self.issues.push(Issue::new(compiled.place.span, message));
            return None;
        }
        let mut best: Option<Vec<Issue>> = None;
        for choice in 0..(1_u32 << fields.len()) {
            let kinds = |read: &Read| {
                let index = fields.iter().position(|field| *field == read)?;
                Some(if choice >> index & 1 == 0 {
                    Known::Word("word".to_owned())
                } else {
                    Known::Number(1.0)
                })
            };
            let mistakes = mistakes(compiled, kinds);
            if mistakes.is_empty() {
                return Some(mistakes);
            }
            if best.as_ref().is_none_or(|best| mistakes.len() < best.len()) {
                best = Some(mistakes);
            }
        }
        best
    }
}

/// Mistakes of kind of an expression, the kinds of plan fields given.
pub(super) fn mistakes(compiled: &Compiled, plan: impl Fn(&Read) -> Option<Known>) -> Vec<Issue> {
    let samples: Vec<(&Read, Known)> = compiled
        .reads
        .iter()
        .map(|(read, _)| {
            let known = match read {
                Read::Plan(_) => plan(read).unwrap_or_else(|| Known::Word("word".to_owned())),
                Read::Setting(_) => a_word(),
                Read::Sub(name) => sample(&SUB, name),
                Read::Org(name) => sample(&ORG, name),
                Read::Outcome(name) => sample(&OUTCOME, name),
                Read::Fact(_) | Read::Value | Read::Cost => one(),
            };
            (read, known)
        })
        .collect();
    let context = context(samples.iter().map(|(read, known)| (*read, known)));
    let mut found = Vec::new();
    let kind = Kinds { compiled, context: &context }.check(compiled.program.expression(), &mut found);
    let wanted = match compiled.wants {
        Wants::Truth => BOOL,
        Wants::Number => DOUBLE,
    };
    match kind {
        Some(kind) if kind != wanted && found.is_empty() => {
            let issue = Issue::new(compiled.place.span, format!("gives {kind}, expected {wanted}"));
            found.push(if compiled.wants == Wants::Number && is_number(kind) {
                issue.with_help("every number is a double: write `2.0`, not `2`")
            } else {
                issue
            });
        }
        _ => {}
    }
    found
}

fn sample(fields: &[Field], name: &str) -> Known {
    fields.iter().find(|field| field.name == name).map_or_else(one, |field| (field.sample)())
}

/// Bytes between the start of a scalar and its text, where the text stands in the file letter by letter.
fn inside(text: &str, span: Span, source: &str) -> Option<usize> {
    let raw = text.get(span.offset..span.offset + span.length)?;
    let quote = usize::from(raw.starts_with(['"', '\'']));
    raw.get(quote..).is_some_and(|raw| raw.starts_with(source)).then_some(quote)
}

/// How deep the brackets go, or how many `?` there are, whichever is more; brackets in strings count as well.
fn nesting(source: &str) -> usize {
    let mut depth = 0_usize;
    let mut deepest = 0;
    for letter in source.chars() {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest.max(source.matches('?').count())
}

/// How many runs of signs there are, brackets one by one; those in strings count as well.
fn operators(source: &str) -> usize {
    let mut count = 0;
    let mut before = ' ';
    for letter in source.chars() {
        let sign =
            !letter.is_alphanumeric() && !letter.is_whitespace() && !matches!(letter, '_' | '\'' | '"');
        if sign && (letter != before || matches!(letter, '(' | '[' | '{')) {
            count += 1;
        }
        before = letter;
    }
    count
}

/// Levels of a parsed expression, without going down the stack.
fn depth(expr: &IdedExpr) -> usize {
    let mut deepest = 0;
    let mut open = vec![(expr, 1)];
    while let Some((expr, depth)) = open.pop() {
        deepest = deepest.max(depth);
        let mut down = |part| open.push((part, depth + 1));
        match &expr.expr {
            Expr::Select(select) => down(&select.operand),
            Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).for_each(down),
            Expr::List(list) => list.elements.iter().for_each(down),
            Expr::Comprehension(over) => {
                [&over.iter_range, &over.accu_init, &over.loop_cond, &over.loop_step, &over.result]
                    .into_iter()
                    .for_each(down);
            }
            // Refused by name, or without parts.
            Expr::Map(_) | Expr::Struct(_) | Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
        }
    }
    deepest
}

/// The message without the list of every token the grammar could go on with.
fn in_short(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    line.split_once(" expecting ").map_or(line, |(short, _)| short)
}

/// Finds what an expression reads.
struct Walk<'w, 'c> {
    checker: &'w mut Checker<'c>,
    scope: Scope,
    place: Place,
    source: &'w str,
    program: &'w Program,
    reads: BTreeMap<Read, Span>,
    wrong: bool,
}

impl Walk<'_, '_> {
    fn names(&mut self, expr: &IdedExpr, bound: &mut Vec<String>) {
        match &expr.expr {
            Expr::Ident(name) => self.name(expr, name, bound),
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(root)
                    if !bound.contains(root)
                        && matches!(root.as_str(), "plan" | "setting" | "sub" | "org") =>
                {
                    self.field(expr, root, &select.field);
                }
                _ => self.names(&select.operand, bound),
            },
            Expr::Call(call) => {
                for part in call.target.as_deref().into_iter().chain(&call.args) {
                    self.names(part, bound);
                }
            }
            Expr::Comprehension(over) => {
                self.names(&over.iter_range, bound);
                let before = bound.len();
                bound.push(over.iter_var.clone());
                bound.push(over.accu_var.clone());
                bound.extend(over.iter_var2.clone());
                for part in [&over.accu_init, &over.loop_cond, &over.loop_step, &over.result] {
                    self.names(part, bound);
                }
                bound.truncate(before);
            }
            Expr::List(list) => list.elements.iter().for_each(|part| self.names(part, bound)),
            Expr::Map(_) | Expr::Struct(_) => {
                let span = self.span(expr);
                self.wrong(Issue::new(span, "maps and messages are not read here"));
            }
            Expr::Literal(_) | Expr::Unspecified => {}
        }
    }

    fn name(&mut self, expr: &IdedExpr, name: &str, bound: &[String]) {
        if name.starts_with('@') || bound.iter().any(|bound| bound == name) {
            return;
        }
        let span = self.span(expr);
        match (self.scope, name) {
            (Scope::Bargain, "value") => drop(self.reads.insert(Read::Value, span)),
            (Scope::Bargain, "cost") => drop(self.reads.insert(Read::Cost, span)),
            (Scope::Person | Scope::Bargain, "plan" | "setting" | "sub" | "org") => {
                let message = format!("`{name}` by itself says nothing");
                self.wrong(
                    Issue::new(span, message).with_help(format!("read a field of it, as `{name}.name`")),
                );
            }
            (Scope::Person | Scope::Bargain, _) if self.checker.facts.contains(name) => {
                self.reads.insert(Read::Fact(name.to_owned()), span);
            }
            (Scope::Person | Scope::Bargain, _) => self.unknown(span, name),
            (Scope::Outcome, _) => match OUTCOME.iter().find(|field| field.name == name) {
                Some(field) => drop(self.reads.insert(Read::Outcome(field.name), span)),
                None => self.unknown(span, name),
            },
        }
    }

    fn field(&mut self, expr: &IdedExpr, root: &str, name: &str) {
        let span = self.span(expr);
        if self.scope == Scope::Outcome {
            self.unknown(span, root);
            return;
        }
        let fields: &[Field] = match root {
            "plan" => {
                self.reads.insert(Read::Plan(name.to_owned()), span);
                return;
            }
            "setting" => {
                self.reads.insert(Read::Setting(name.to_owned()), span);
                return;
            }
            "sub" => &SUB,
            _ => &ORG,
        };
        let Some(field) = fields.iter().find(|field| field.name == name) else {
            let known = || fields.iter().map(|field| field.name);
            let issue = Issue::new(span, format!("unknown field `{root}.{name}`"));
            self.wrong(issue.with_help(match nearest(name, known()) {
                Some(right) => format!("did you mean `{root}.{right}`?"),
                None => format!("fields: {}", known().collect::<Vec<_>>().join(", ")),
            }));
            return;
        };
        let read = if root == "sub" { Read::Sub(field.name) } else { Read::Org(field.name) };
        self.reads.insert(read, span);
    }

    fn unknown(&mut self, span: Span, name: &str) {
        let mut known: Vec<&str> = match self.scope {
            Scope::Outcome => OUTCOME.iter().map(|field| field.name).collect(),
            _ => self
                .checker
                .facts
                .iter()
                .map(String::as_str)
                .chain(["plan", "setting", "sub", "org"])
                .collect(),
        };
        if self.scope == Scope::Bargain {
            known.extend(["value", "cost"]);
        }
        let help = match nearest(name, known.iter().copied()) {
            Some(right) => format!("did you mean `{right}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        let what = if self.scope == Scope::Outcome { "unknown name" } else { "unknown fact" };
        self.wrong(Issue::new(span, format!("{what} `{name}`")).with_help(help));
    }

    fn wrong(&mut self, issue: Issue) {
        self.wrong = true;
        self.checker.issues.push(issue);
    }

    fn span(&self, expr: &IdedExpr) -> Span {
        span_of(self.program, self.place, self.source, expr)
    }
}

/// Where a part of an expression stands: from its first letter to its last.
fn span_of(program: &Program, place: Place, source: &str, expr: &IdedExpr) -> Span {
    fn widen(program: &Program, expr: &IdedExpr, range: &mut Option<(u32, u32)>) {
        if let Some((start, stop)) = program.source_info().offset_for(expr.id) {
            // A call stands at its bracket; its name is before it.
            let start = match &expr.expr {
                Expr::Call(call) if call.func_name.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                    start.saturating_sub(u32::try_from(call.func_name.len()).unwrap_or_default())
                }
                _ => start,
            };
            let (first, last) = range.unwrap_or((start, stop));
            *range = Some((first.min(start), last.max(stop)));
        }
        match &expr.expr {
            Expr::Select(select) => widen(program, &select.operand, range),
            Expr::Call(call) => {
                for part in call.target.as_deref().into_iter().chain(&call.args) {
                    widen(program, part, range);
                }
            }
            _ => {}
        }
    }
    let mut range = None;
    widen(program, expr, &mut range);
    let Some((start, stop)) = range else { return place.span };
    let mut length = (stop + 1).saturating_sub(start) as usize;
    if let Expr::Select(select) = &expr.expr {
        // The range ends at the dot; the field's name follows it.
        length = length.max(1) + if source[..].is_ascii() { select.field.len() } else { 0 };
    }
    place.part(source, start as usize, length)
}

/// Evaluates every part of an expression by itself on the sample.
struct Kinds<'k> {
    compiled: &'k Compiled,
    context: &'k cel::Context<'static, 'static>,
}

impl Kinds<'_> {
    /// The kind of this part; `None` where it, or a part of it, is wrong.
    fn check(&self, expr: &IdedExpr, found: &mut Vec<Issue>) -> Option<&'static str> {
        let Expr::Call(call) = &expr.expr else { return self.evaluate(expr, found) };
        let before = found.len();
        let parts: Vec<Option<&'static str>> = call
            .target
            .as_deref()
            .into_iter()
            .chain(&call.args)
            .map(|part| self.check(part, found))
            .collect();
        if found.len() > before {
            return None;
        }
        if let ("_==_" | "_!=_", [Some(left), Some(right)]) = (call.func_name.as_str(), parts.as_slice())
            && left != right
            && !(is_number(left) && is_number(right))
        {
            let message = format!("compares {left} with {right}: that is never equal");
            found.push(Issue::new(self.span(expr), message));
            return None;
        }
        // What is decided by one operand would hide a wrong kind of the other.
        let conditions = match call.func_name.as_str() {
            "_&&_" | "_||_" | "!_" => parts.as_slice(),
            "_?_:_" => parts.get(..1).unwrap_or_default(),
            _ => &[],
        };
        if let Some(kind) = conditions.iter().flatten().find(|kind| **kind != BOOL) {
            let operator = name_of_operator(&call.func_name);
            found.push(Issue::new(self.span(expr), format!("`{operator}` wants bools, found {kind}")));
            return None;
        }
        if let ("_?_:_", [_, Some(left), Some(right)]) = (call.func_name.as_str(), parts.as_slice())
            && left != right
        {
            found.push(Issue::new(
                self.span(expr),
                format!("`?:` gives {left} or {right}: expected one kind"),
            ));
            return None;
        }
        match Value::resolve(expr, self.context) {
            Ok(value) => Some(name_of(&value)),
            Err(error) => {
                let kinds: Vec<&str> = parts.into_iter().flatten().collect();
                found.push(explain(self.span(expr), call, &kinds, &error));
                None
            }
        }
    }

    fn evaluate(&self, expr: &IdedExpr, found: &mut Vec<Issue>) -> Option<&'static str> {
        match Value::resolve(expr, self.context) {
            Ok(value) => Some(name_of(&value)),
            Err(error) => {
                found.push(Issue::new(self.span(expr), format!("cannot be computed: {error}")));
                None
            }
        }
    }

    fn span(&self, expr: &IdedExpr) -> Span {
        span_of(&self.compiled.program, self.compiled.place, &self.compiled.source, expr)
    }
}

fn explain(span: Span, call: &CallExpr, kinds: &[&str], error: &cel::ExecutionError) -> Issue {
    let function = call.func_name.as_str();
    let operator = name_of_operator(function);
    let is_operator = function.starts_with(['_', '!', '-', '@']);
    let message = match (is_operator, kinds) {
        (true, [one]) => format!("`{operator}` does not apply to {one}"),
        (true, [left, right]) => format!("`{operator}` does not apply to {left} and {right}"),
        _ => format!("cannot be computed: {error}"),
    };
    let issue = Issue::new(span, message);
    if kinds.contains(&DOUBLE) && kinds.iter().any(|kind| *kind != DOUBLE && is_number(kind)) {
        let int = call.args.iter().find_map(|part| match &part.expr {
            Expr::Literal(LiteralValue::Int(int)) => Some(*int.inner()),
            _ => None,
        });
        let int = int.unwrap_or(2);
        return issue.with_help(format!("every number is a double: write `{int}.0`, not `{int}`"));
    }
    issue
}

/// `_&&_` as it is written.
fn name_of_operator(function: &str) -> String {
    function.chars().filter(|c| !matches!(c, '_' | '@')).collect()
}

const BOOL: &str = "a bool";
const DOUBLE: &str = "a double";
const INT: &str = "an int";
const UNSIGNED: &str = "an unsigned int";

fn is_number(kind: &str) -> bool {
    matches!(kind, DOUBLE | INT | UNSIGNED)
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Int(_) => INT,
        Value::UInt(_) => UNSIGNED,
        Value::Float(_) => DOUBLE,
        Value::String(_) => "a string",
        Value::Bool(_) => BOOL,
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
        Value::Null => "null",
        Value::Bytes(_) => "bytes",
        _ => "something else",
    }
}
