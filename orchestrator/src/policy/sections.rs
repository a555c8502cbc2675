//! The first three words: facts, moments, actions.

use std::collections::BTreeMap;
use std::time::Duration;

use usher_models::Class;

use super::check::Scope;
use super::expr::Wants;
use super::parse::Reading;
use super::types::{
    Action, ActionKind, Amount, Change, EWMA_STEP, Fact, Lasts, Measure, Moment, ORDERS, Rearm, Source, Stat,
    Window,
};
use super::values::{duration, positive};
use crate::document::{Fields, Issue, Kind, Node, Span, boolean, items, nearest, text, word};

/// Most names under one of facts, moments, actions. Each costs every subscriber memory or time, each moment is one more
/// reason to trouble somebody, and whoever signs off a policy has to have all of it in mind: what needs more is two policies.
pub(crate) const MAX_NAMES: usize = 32;
/// Most different steps of windows.
pub(super) const MAX_STEPS: usize = 8;
/// Most panes in a window.
pub(super) const MAX_PANES: u128 = 1_000;
/// Longest window: two of the longest months.
pub(super) const MAX_WINDOW: Duration = Duration::from_hours(62 * 24);
/// Finest step of a window: agents report once a second.
const MIN_STEP: Duration = Duration::from_secs(1);
/// Most lateness: what is not yet closed is kept in memory.
pub(super) const MAX_LATENESS: Duration = Duration::from_mins(10);
/// Longest message: two concatenated SMS in the GSM alphabet.
pub(super) const MAX_MESSAGE: usize = 306;

/// What a message, or what a tap sets, may leave open.
pub(crate) const PLACEHOLDERS: [&str; 8] =
    ["country", "expected", "fit_plan", "limit", "partner", "per_mb", "price", "saving"];

impl Reading<'_> {
    pub(super) fn facts(&mut self, node: Option<&Node>) -> (Duration, BTreeMap<String, Fact>) {
        let mut lateness = Duration::from_secs(5);
        let mut facts = BTreeMap::new();
        let Some(mut fields) = node.and_then(|node| Fields::of(node, "facts", &mut self.issues)) else {
            return (lateness, facts);
        };
        if let Some(node) = fields.take("lateness")
            && let Some(read) = duration(node, "a lateness", &mut self.issues)
        {
            if read > MAX_LATENESS {
                self.issues
                    .push(Issue::new(node.span, "a lateness above 10m keeps too much open: expected less"));
            }
            lateness = read;
        }
        self.check_count(fields.others().count(), "facts", fields.span());
        for (name, span, node) in fields.others() {
            self.check_name(name, "a fact", span);
            let fact = self.fact(node);
            self.facts.insert(name.to_owned());
            facts.extend(fact.map(|fact| (name.to_owned(), fact)));
        }
        let mut steps: Vec<Duration> = facts.values().map(|fact: &Fact| fact.window.every()).collect();
        steps.sort_unstable();
        steps.dedup();
        if steps.len() > MAX_STEPS {
            let message = format!("{} different steps of windows: expected at most {MAX_STEPS}", steps.len());
            self.issues.push(Issue::new(fields.span(), message));
        }
        (lateness, facts)
    }

    fn fact(&mut self, node: &Node) -> Option<Fact> {
        // `ewma` is completed by its half-life.
        const STATS: [(&str, Stat); 12] = [
            ("mean", Stat::Mean),
            ("sum", Stat::Sum),
            ("min", Stat::Min),
            ("max", Stat::Max),
            ("last", Stat::Last),
            ("count", Stat::Count),
            ("ewma", Stat::Ewma { half_life: Duration::ZERO }),
            ("p50", Stat::Percentile(50)),
            ("p90", Stat::Percentile(90)),
            ("p95", Stat::Percentile(95)),
            ("p99", Stat::Percentile(99)),
            ("distinct", Stat::Distinct),
        ];
        let mut fields = Fields::of(node, "a fact", &mut self.issues)?;
        let of_node = fields.require("of", &mut self.issues);
        let of = of_node.and_then(|node| self.source(node));
        let stat = fields.require("stat", &mut self.issues);
        let stat = stat.and_then(|node| Some((node, word(node, "statistic", &STATS, &mut self.issues)?)));
        let (over, every, half_life) = (fields.take("over"), fields.take("every"), fields.take("half_life"));
        let span = fields.span();
        fields.finish(&mut self.issues);

        let (stat_node, stat) = stat?;
        if let Stat::Ewma { .. } = stat {
            let Some(half_life) = half_life else {
                self.issues.push(Issue::new(span, "a fact of `stat: ewma` lacks `half_life`"));
                return None;
            };
            for node in [over, every].into_iter().flatten() {
                self.issues
                    .push(Issue::new(node.span, "a fact of `stat: ewma` has a `half_life` and no window"));
            }
            let read = positive(half_life, "a half-life", &mut self.issues)?;
            if !(EWMA_STEP..=MAX_WINDOW).contains(&read) {
                self.issues.push(Issue::new(half_life.span, "expected a half-life of 10s to 62d"));
                return None;
            }
            let (source, measure) = self.fits(of?, stat, stat_node)?;
            let window = Window::Endless { every: EWMA_STEP };
            return Some(Fact { source, measure, stat: Stat::Ewma { half_life: read }, window });
        }
        if let Some(half_life) = half_life {
            self.issues.push(Issue::new(half_life.span, "`half_life` belongs to `stat: ewma` alone"));
        }
        let window = self.window(over, every, span)?;
        let (source, measure) = self.fits(of?, stat, stat_node)?;
        Some(Fact { source, measure, stat, window })
    }

    /// Flows are counted, and told apart; nothing else is.
    fn fits(
        &mut self,
        (source, measure): (Source, Measure),
        stat: Stat,
        node: &Node,
    ) -> Option<(Source, Measure)> {
        let message = match (measure, stat) {
            (Measure::Bytes, stat)
                if matches!(source, Source::App(_)) && !matches!(stat, Stat::Sum | Stat::Mean) =>
            {
                "of an app's bytes there is a `sum` and a `mean`, nothing else"
            }
            (Measure::Flows, Stat::Count | Stat::Distinct) | (Measure::Spend, Stat::Sum) => {
                return Some((source, measure));
            }
            (Measure::Spend, _) => "of what use abroad costs there is a `sum`, nothing else",
            (Measure::Flows, _) => {
                "of flows there is a `count` and how many apps are `distinct`, nothing else"
            }
            (_, Stat::Distinct) => "`distinct` counts different apps: expected it of `flows`",
            _ => return Some((source, measure)),
        };
        self.issues.push(Issue::new(node.span, message));
        None
    }

    /// `video.at_cap`: whose traffic and what of it.
    fn source(&mut self, node: &Node) -> Option<(Source, Measure)> {
        const MEASURES: [(&str, Measure); 11] = [
            ("at_cap", Measure::AtCap),
            ("bytes", Measure::Bytes),
            ("packets", Measure::Packets),
            ("drops", Measure::Drops),
            ("qoo", Measure::Qoo),
            ("rtt_ms", Measure::RttMs),
            ("loss", Measure::Loss),
            ("up_util", Measure::UpUtil),
            ("down_util", Measure::DownUtil),
            ("flows", Measure::Flows),
            ("spend", Measure::Spend),
        ];
        let found = text(node, "a source and a measure, as `video.at_cap`", &mut self.issues)?;
        let Some((source, measure)) = found.split_once('.') else {
            let message =
                format!("`{found}` is no source: expected a class and a measure, as `video.at_cap`");
            self.issues.push(Issue::new(node.span, message));
            return None;
        };
        let Some((_, of)) = MEASURES.iter().find(|(name, _)| *name == measure) else {
            let names = || MEASURES.iter().map(|(name, _)| *name);
            let issue = Issue::new(node.span, format!("unknown measure `{measure}` in `{found}`"));
            self.issues.push(issue.with_help(match nearest(measure, names()) {
                Some(right) => format!("did you mean `{source}.{right}`?"),
                None => format!("expected one of {}", names().collect::<Vec<_>>().join(", ")),
            }));
            return None;
        };
        self.check_letters(source, "a source", node.span);
        let whose = match (source, source.parse::<Class>()) {
            ("all" | "access", _) => Source::All,
            ("roaming", _) => Source::Roaming,
            (_, Ok(class)) => Source::Class(class),
            (_, Err(_)) => self.app(node, found, source, measure)?,
        };
        let message = match (&whose, of) {
            (Source::All, Measure::AtCap) => "has no meaning: each class has a rate of its own",
            (Source::Class(_) | Source::App(_) | Source::Roaming, Measure::UpUtil | Measure::DownUtil) => {
                "has no meaning: only the line has a rate, as `access.up_util`"
            }
            (Source::All | Source::Class(_) | Source::App(_), Measure::Spend) => {
                "has no meaning: only use abroad has a price by amount, as `roaming.spend`"
            }
            (
                Source::Roaming,
                Measure::AtCap | Measure::Loss | Measure::RttMs | Measure::Qoo | Measure::Flows,
            ) => "has no meaning: of use abroad there is `bytes`, `packets`, `drops` and `spend`",
            (
                Source::App(_),
                Measure::AtCap
                | Measure::Loss
                | Measure::RttMs
                | Measure::Qoo
                | Measure::Packets
                | Measure::Drops,
            ) => {
                "has no meaning: agents tell that of classes, as `video.rtt_ms`; of apps, `bytes` and `flows`"
            }
            _ => return Some((whose, *of)),
        };
        self.issues.push(Issue::new(node.span, format!("`{found}` {message}")));
        None
    }

    /// An app, or a class misspelt.
    fn app(&mut self, node: &Node, found: &str, source: &str, measure: &str) -> Option<Source> {
        let known = Class::ALL.into_iter().map(Class::name).chain(["all", "access", "roaming"]);
        let Some(right) = nearest(source, known) else { return Some(Source::App(source.to_owned())) };
        let issue = Issue::new(node.span, format!("unknown class `{source}` in `{found}`"));
        self.issues.push(issue.with_help(format!("did you mean `{right}.{measure}`?")));
        None
    }

    fn window(&mut self, over: Option<&Node>, every: Option<&Node>, fact: Span) -> Option<Window> {
        let Some(over_node) = over else {
            self.issues.push(Issue::new(fact, "a fact lacks `over`, the length of its window"));
            return None;
        };
        if is_bill_cycle(over_node) {
            if let Some(every) = every {
                self.issues.push(Issue::new(
                    every.span,
                    "a window over the billing cycle does not slide: drop `every`",
                ));
            }
            return Some(Window::BillCycle);
        }
        let over = positive(over_node, "the length of a window", &mut self.issues);
        let every = match every {
            Some(node) => Some((node, positive(node, "the step of a window", &mut self.issues)?)),
            None => None,
        };
        let over = over?;
        if over > MAX_WINDOW {
            self.issues.push(Issue::new(over_node.span, "a window above 62d: expected a shorter one"));
            return None;
        }
        let Some((every_node, every)) = every else {
            if over < MIN_STEP || over.subsec_nanos() != 0 {
                let message = "expected a window of whole seconds: agents report once a second";
                self.issues.push(Issue::new(over_node.span, message));
                return None;
            }
            return Some(Window::Tumbling { over });
        };
        if every > over || over.as_micros() % every.as_micros() != 0 {
            let message =
                format!("`over` must be a whole multiple of `every`: {over:?} is none of {every:?}");
            self.issues.push(Issue::new(over_node.span, message));
            return None;
        }
        if over.as_micros() / every.as_micros() > MAX_PANES {
            let message = format!("`over` is more than {MAX_PANES} times `every`: expected a longer step");
            self.issues.push(Issue::new(every_node.span, message));
            return None;
        }
        if every < MIN_STEP {
            self.issues.push(Issue::new(every_node.span, "`every` is below 1s: agents report once a second"));
            return None;
        }
        Some(Window::Sliding { over, every })
    }

    pub(super) fn moments(&mut self, node: &Node) -> BTreeMap<String, Moment> {
        let mut moments = BTreeMap::new();
        let Some(fields) = Fields::of(node, "moments", &mut self.issues) else { return moments };
        self.check_count(fields.others().count(), "moments", fields.span());
        for (name, span, node) in fields.others() {
            self.check_name(name, "a moment", span);
            self.moments.insert(name.to_owned());
            let Some(mut fields) = Fields::of(node, "a moment", &mut self.issues) else { continue };
            let when = fields.require("when", &mut self.issues);
            let when = when.and_then(|node| self.expression(node, Wants::Truth, Scope::Person));
            let hold = match fields.take("hold") {
                Some(node) => duration(node, "a hold", &mut self.issues),
                None => Some(Duration::ZERO),
            };
            let rearm = fields.require("rearm", &mut self.issues).and_then(|node| {
                match &node.kind {
                    _ if is_bill_cycle(node) => return Some(Rearm::BillCycle),
                    Kind::Scalar { text, .. } if text == "trip" => return Some(Rearm::Trip),
                    _ => {}
                }
                positive(node, "a rearm", &mut self.issues).map(Rearm::After)
            });
            fields.finish(&mut self.issues);
            if let (Some(when), Some(hold), Some(rearm)) = (when, hold, rearm) {
                moments.insert(name.to_owned(), Moment { when, hold, rearm });
            }
        }
        moments
    }

    pub(super) fn actions(&mut self, node: &Node) -> BTreeMap<String, Action> {
        let mut actions = BTreeMap::new();
        let Some(fields) = Fields::of(node, "actions", &mut self.issues) else { return actions };
        self.check_count(fields.others().count(), "actions", fields.span());
        for (name, span, node) in fields.others() {
            self.check_name(name, "an action", span);
            let action = self.action(name, node);
            self.check_alone(name, action.as_ref(), &actions, span);
            actions.extend(action.map(|action| (name.to_owned(), action)));
        }
        actions
    }

    /// What the law asks for is not weighed against anything: it has its moment to itself.
    fn check_alone(
        &mut self,
        name: &str,
        action: Option<&Action>,
        others: &BTreeMap<String, Action>,
        span: Span,
    ) {
        let Some(action) = action else { return };
        let shares = |other: &Action| action.at.iter().find(|at| other.at.contains(at)).cloned();
        for (other_name, other) in others.iter().filter(|(_, other)| other.regulated || action.regulated) {
            if let Some(moment) = shares(other) {
                let message = format!(
                    "`{name}` and `{other_name}` are both at `{moment}`, and what is regulated is not weighed"
                );
                let help = "give one of them a moment of its own, with the same `when`";
                self.issues.push(Issue::new(span, message).with_help(help));
            }
        }
    }

    fn action(&mut self, name: &str, node: &Node) -> Option<Action> {
        let mut fields = Fields::of(node, format!("action `{name}`"), &mut self.issues)?;
        let at = fields.require("at", &mut self.issues).map(|node| self.at(node));
        let (set, say, tap) = (fields.take("set"), fields.take("say"), fields.take("tap"));
        let regulated = fields.take("regulated");
        let regulated =
            regulated.is_some_and(|node| boolean(node, "`regulated`", &mut self.issues) == Some(true));
        let only_if = fields.take("if").map(|node| self.expression(node, Wants::Truth, Scope::Person));
        let mut amount = |reading: &mut Self, key, what| {
            if !regulated {
                return fields.require(key, &mut reading.issues).and_then(|node| reading.amount(node, what));
            }
            if let Some(node) = fields.take(key) {
                let message = format!("what is regulated is not weighed: drop `{key}`");
                reading.issues.push(Issue::new(node.span, message));
            }
            Some(Amount::Fixed(0.0))
        };
        let value = amount(self, "value", "a value");
        let cost = amount(self, "cost", "a cost");
        let span = fields.span();
        fields.finish(&mut self.issues);
        let kind = match (set, say, tap) {
            (Some(set), None, None) => {
                let change = self.change(set, "`set`", false);
                change.map(ActionKind::Set)
            }
            (None, Some(say), tap) => {
                if !regulated {
                    self.says = self.says.or(Some(say.span));
                }
                let texts = self.texts(say);
                let tap = tap.map(|tap| self.change(tap, "`tap`", true));
                match (texts, tap) {
                    (Some((template, styles)), None) => Some(ActionKind::Say { template, styles, tap: None }),
                    (Some((template, styles)), Some(Some(tap))) => {
                        Some(ActionKind::Say { template, styles, tap: Some(tap) })
                    }
                    _ => None,
                }
            }
            (Some(_), Some(say), _) => {
                self.issues.push(Issue::new(say.span, "an action sets or says, not both: make two of it"));
                None
            }
            (_, None, Some(tap)) => {
                self.issues
                    .push(Issue::new(tap.span, "`tap` belongs to `say`: what is set unasked needs no tap"));
                None
            }
            (None, None, None) => {
                self.issues.push(Issue::new(span, format!("action `{name}` lacks `set` or `say`")));
                None
            }
        };
        // An `if` that is wrong takes the action with it: without it the action would reach further than written.
        let only_if = match only_if {
            Some(None) => return None,
            Some(only_if) => only_if,
            None => None,
        };
        Some(Action { at: at?, kind: kind?, regulated, only_if, value: value?, cost: cost? })
    }

    fn at(&mut self, node: &Node) -> Vec<String> {
        let mut at = Vec::new();
        let nodes = items(node, "moments", &mut self.issues).unwrap_or_default();
        if nodes.is_empty() && matches!(node.kind, Kind::List(_)) {
            self.issues
                .push(Issue::new(node.span, "an action at no moment never happens: expected at least one"));
        }
        for node in nodes {
            let Some(name) = text(node, "a moment's name", &mut self.issues) else { continue };
            if at.iter().any(|other| other == name) {
                self.issues.push(Issue::new(node.span, format!("moment `{name}` stands here twice")));
            } else if self.moments.contains(name) {
                at.push(name.to_owned());
            } else {
                let known = || self.moments.iter().map(String::as_str);
                let issue = Issue::new(node.span, format!("unknown moment `{name}`"));
                let issue = issue.with_help(match nearest(name, known()) {
                    Some(right) => format!("did you mean `{right}`?"),
                    None => format!("moments of this file: {}", known().collect::<Vec<_>>().join(", ")),
                });
                self.issues.push(issue);
            }
        }
        at
    }

    /// Settings and `for`. What a tap sets may be orders, which stay, and may have placeholders.
    fn change(&mut self, node: &Node, what: &str, is_tap: bool) -> Option<Change> {
        let mut fields = Fields::of(node, what, &mut self.issues)?;
        let end = fields.take("for");
        let lasts = match end {
            Some(node) if is_bill_cycle(node) => Some(Some(Lasts::BillCycle)),
            Some(node) => Some(positive(node, "how long it holds", &mut self.issues).map(Lasts::For)),
            None => None,
        };
        let mut entries: Vec<_> = fields.others().collect();
        entries.sort_by_key(|(name, ..)| *name);
        let span = fields.span();
        let mut values = BTreeMap::new();
        let mut places = Vec::new();
        let orders = entries.iter().filter(|(name, ..)| ORDERS.contains(name)).count();
        for (name, span, node) in &entries {
            self.check_letters(name, "a setting", *span);
            let Some(value) = text(node, "a setting's value", &mut self.issues) else { continue };
            if value.contains(['{', '}']) {
                self.placeholders(value, node.span);
                if !is_tap {
                    let message = "a placeholder in what is set unasked: expected it in a `tap`";
                    self.issues.push(Issue::new(node.span, message));
                }
            }
            if ORDERS.contains(name) && (end.is_some() || !is_tap || orders < entries.len()) {
                let message =
                    format!("`{name}` is an order: expected it in a `tap` without `for` and settings");
                self.issues.push(Issue::new(*span, message));
                return None;
            }
            values.insert((*name).to_owned(), value.to_owned());
            places.push(*span);
        }
        if values.is_empty() {
            self.issues.push(Issue::new(
                span,
                format!("{what} changes nothing: expected a setting, as `video: hd`"),
            ));
            return None;
        }
        match lasts {
            Some(lasts) => Some(Change { values, places, lasts: lasts? }),
            None if orders > 0 => Some(Change { values, places, lasts: Lasts::Stays }),
            None => {
                let message = format!("{what} lacks `for`: what is set always ends, as `for: 3h`");
                self.issues.push(Issue::new(span, message));
                None
            }
        }
    }

    /// One text, or one for each of some styles, of which the first serves where none is drawn.
    fn texts(&mut self, node: &Node) -> Option<(String, BTreeMap<String, String>)> {
        if !matches!(node.kind, Kind::Map(_)) {
            return Some((self.template(node)?, BTreeMap::new()));
        }
        let fields = Fields::of(node, "`say`", &mut self.issues)?;
        let mut entries: Vec<_> = fields.others().collect();
        entries.sort_by_key(|(_, span, _)| span.offset);
        let (mut first, mut styles) = (None, BTreeMap::new());
        for (style, span, node) in entries {
            let template = self.template(node)?;
            self.styles.push((style.to_owned(), span));
            first = first.or_else(|| Some(template.clone()));
            styles.insert(style.to_owned(), template);
        }
        if first.is_none() {
            self.issues.push(Issue::new(node.span, "`say` without a text"));
        }
        Some((first?, styles))
    }

    fn template(&mut self, node: &Node) -> Option<String> {
        let template = text(node, "a message", &mut self.issues)?;
        if template.chars().count() > MAX_MESSAGE {
            let message = format!("a message of more than {MAX_MESSAGE} characters: expected a short one");
            self.issues.push(Issue::new(node.span, message));
        }
        self.placeholders(template, node.span);
        Some(template.to_owned())
    }

    /// Reports what between braces is no placeholder.
    fn placeholders(&mut self, template: &str, span: Span) {
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            let Some(inner) = rest[at..].strip_prefix('{').and_then(|rest| rest.split_once('}')) else {
                self.issues.push(Issue::new(span, "a brace without its other half: expected `{name}`"));
                break;
            };
            if !PLACEHOLDERS.contains(&inner.0) {
                let issue = Issue::new(span, format!("unknown placeholder `{{{}}}`", inner.0));
                self.issues.push(issue.with_help(match nearest(inner.0, PLACEHOLDERS) {
                    Some(right) => format!("did you mean `{{{right}}}`?"),
                    None => format!("known: {}", PLACEHOLDERS.join(", ")),
                }));
            }
            rest = inner.1;
        }
    }

    fn amount(&mut self, node: &Node, what: &str) -> Option<Amount> {
        let found = text(node, what, &mut self.issues)?;
        match found.parse::<f64>() {
            Ok(number) if number.is_finite() => Some(Amount::Fixed(number)),
            Ok(_) => {
                let message = format!("expected {what} as a finite number or an expression, found `{found}`");
                self.issues.push(Issue::new(node.span, message));
                None
            }
            Err(_) => self.expression(node, Wants::Number, Scope::Person).map(Amount::Computed),
        }
    }

    fn check_count(&mut self, count: usize, what: &str, span: Span) {
        if count > MAX_NAMES {
            self.issues.push(
                Issue::new(span, format!("{count} {what}: expected at most {MAX_NAMES}"))
                    .with_help("keep those that were of use: `usher get decisions` shows which"),
            );
        }
    }
}

fn is_bill_cycle(node: &Node) -> bool {
    matches!(&node.kind, Kind::Scalar { text, .. } if text == "bill_cycle")
}
