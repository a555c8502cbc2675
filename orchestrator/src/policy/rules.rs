//! The last three words: policy, choose, guard.

use std::time::Duration;

use super::check::Scope;
use super::expr::{Expression, Wants};
use super::parse::Reading;
use super::types::{Backoff, Canary, Choose, Contact, Guard, Learning, Prior, Purpose, PushBudgets, Rules};
use super::values::{percent, positive, quiet, quota, rate, ratio};
use crate::document::{Fields, Issue, Kind, Node, Span, items, nearest, number, text, word};
use crate::engine::MAX_CONTACTS;
use crate::engine::contact::REMEMBERED;
use crate::engine::io::Mode;

/// How long an outcome is a decision's, where the policy does not say.
const CREDIT: Duration = Duration::from_hours(24);
/// Most pushes a budget counts: each is remembered for the budget's time.
const PUSHES_MAX: u32 = 100_000;
/// The bargain, where the policy does not say.
const SUITABLE: &str = "value > cost";

impl Reading<'_> {
    pub(super) fn rules(&mut self, node: Option<&Node>) -> Option<Rules> {
        let fields = match node {
            Some(node) => Some(Fields::of(node, "policy", &mut self.issues)?),
            None => None,
        };
        let Some(mut fields) = fields else {
            self.need_budget(&Contact::default(), None);
            return Some(Rules {
                eligible: None,
                suitable: self.suitable(None)?,
                consent_to_set: Purpose::Service,
                consent_to_say: Purpose::Advice,
                contact: Contact::default(),
                backoff: Backoff::default(),
            });
        };
        let eligible = fields.take("eligible").map(|node| self.expression(node, Wants::Truth, Scope::Person));
        let suitable = fields.take("suitable");
        let suitable = self.suitable(suitable);
        let consent = fields.take("consent");
        let (consent_to_set, consent_to_say) = self.consent(consent);
        let contact_node = fields.take("contact");
        let contact = contact_node.map_or_else(Contact::default, |node| self.contact(node));
        let backoff = fields.take("backoff");
        let backoff = backoff.map_or_else(Backoff::default, |node| self.backoff(node));
        let span = fields.span();
        fields.finish(&mut self.issues);
        if let Some(node) = contact_node {
            self.check_memory(&contact, backoff, node.span);
        }
        self.need_budget(&contact, Some(contact_node.map_or(span, |node| node.span)));
        let eligible = match eligible {
            Some(None) => return None,
            Some(eligible) => eligible,
            None => None,
        };
        Some(Rules { eligible, suitable: suitable?, consent_to_set, consent_to_say, contact, backoff })
    }

    fn suitable(&mut self, node: Option<&Node>) -> Option<Expression> {
        let default = Node {
            span: Span { line: 1, column: 1, offset: 0, length: 0 },
            kind: Kind::Scalar { text: SUITABLE.to_owned(), quoted: true },
        };
        self.expression(node.unwrap_or(&default), Wants::Truth, Scope::Bargain)
    }

    /// Nobody is written to without a bound on how often.
    fn need_budget(&mut self, contact: &Contact, place: Option<Span>) {
        if let Some(says) = self.says
            && contact.budget.is_none()
        {
            let issue = Issue::new(place.unwrap_or(says), "messages need a `policy.contact.budget`");
            self.issues.push(issue.with_help("as `contact: {budget: 2/7d}`"));
        }
    }

    fn consent(&mut self, node: Option<&Node>) -> (Purpose, Purpose) {
        const PURPOSES: [(&str, Purpose); 2] = [("service", Purpose::Service), ("advice", Purpose::Advice)];
        let (mut set, mut say) = (Purpose::Service, Purpose::Advice);
        if let Some(mut fields) = node.and_then(|node| Fields::of(node, "consent", &mut self.issues)) {
            for (key, purpose) in [("set", &mut set), ("say", &mut say)] {
                if let Some(node) = fields.take(key)
                    && let Some(found) = word(node, "purpose", &PURPOSES, &mut self.issues)
                {
                    *purpose = found;
                }
            }
            fields.finish(&mut self.issues);
        }
        (set, say)
    }

    fn contact(&mut self, node: &Node) -> Contact {
        let mut contact = Contact::default();
        let Some(mut fields) = Fields::of(node, "contact", &mut self.issues) else { return contact };
        let issues = &mut self.issues;
        contact.budget = fields.take("budget").and_then(|node| quota(node, "a budget", issues));
        contact.same_action =
            fields.take("same_action").and_then(|node| quota(node, "a budget per action", issues));
        contact.quiet = fields.take("quiet").and_then(|node| quiet(node, issues));
        if let Some(expire) = fields.take("expire").and_then(|node| positive(node, "a link's life", issues)) {
            contact.expire = expire;
        }
        fields.finish(issues);
        contact
    }

    /// The quotas look back over the messages that are remembered, and of those there is a bound.
    fn check_memory(&mut self, contact: &Contact, backoff: Backoff, place: Span) {
        let Some(budget) = contact.budget else { return };
        let per_action = contact.same_action.map_or(Duration::ZERO, |quota| quota.per);
        let after_link = REMEMBERED.max(backoff.ignored.unwrap_or_default());
        let after_no = backoff.declined.unwrap_or_default();
        let look_back = per_action.max(contact.expire + after_link.max(after_no));
        let spans = look_back.as_millis() / budget.per.as_millis() + 1;
        if u128::from(budget.count) * spans > MAX_CONTACTS as u128 {
            let message = format!(
                "{} messages in {:?} over a look-back of {look_back:?} are more than the {MAX_CONTACTS} remembered",
                budget.count, budget.per
            );
            self.issues.push(Issue::new(place, message).with_help("expected a smaller budget"));
        }
    }

    fn backoff(&mut self, node: &Node) -> Backoff {
        let mut backoff = Backoff::default();
        let Some(mut fields) = Fields::of(node, "backoff", &mut self.issues) else { return backoff };
        for (key, silence) in [
            ("ignored", &mut backoff.ignored),
            ("declined", &mut backoff.declined),
            ("complaint", &mut backoff.complaint),
        ] {
            *silence = fields.take(key).and_then(|node| positive(node, "a back-off", &mut self.issues));
        }
        fields.finish(&mut self.issues);
        backoff
    }

    pub(super) fn choose(&mut self, node: Option<&Node>) -> Choose {
        let mut choose = Choose::default();
        let Some(mut fields) = node.and_then(|node| Fields::of(node, "choose", &mut self.issues)) else {
            self.check_styles(&choose);
            return choose;
        };
        if let Some(node) = fields.take("relevance") {
            self.relevance(node, &mut choose);
        }
        if let Some(floor) = fields.take("floor").and_then(|node| number(node, "a floor", &mut self.issues)) {
            choose.floor = floor;
        }
        if let Some(node) = fields.take("learn") {
            self.learn(node, &mut choose);
        }
        for (key, share) in [("explore", &mut choose.explore), ("holdout", &mut choose.holdout)] {
            let found = fields.take(key).and_then(|node| ratio(node, &format!("`{key}`"), &mut self.issues));
            *share = found.unwrap_or(0.0);
        }
        if let Some(salt) = fields.take("salt").and_then(|node| text(node, "a salt", &mut self.issues)) {
            salt.clone_into(&mut choose.salt);
        }
        fields.finish(&mut self.issues);
        self.check_styles(&choose);
        choose
    }

    fn relevance(&mut self, node: &Node, choose: &mut Choose) {
        let Some(mut fields) = Fields::of(node, "relevance", &mut self.issues) else { return };
        if let Some(weight) = fields.take("default").and_then(|node| self.weight(node)) {
            choose.relevance_default = weight;
        }
        for (moment, span, node) in fields.others() {
            if !self.moments.contains(moment) {
                let issue = Issue::new(span, format!("unknown moment `{moment}`"));
                let known = || self.moments.iter().map(String::as_str);
                let issue = issue.with_help(match nearest(moment, known()) {
                    Some(right) => format!("did you mean `{right}`?"),
                    None => format!("moments of this file: {}", known().collect::<Vec<_>>().join(", ")),
                });
                self.issues.push(issue);
            }
            let weight = self.weight(node);
            choose.relevance.extend(weight.map(|weight| (moment.to_owned(), weight)));
        }
    }

    fn weight(&mut self, node: &Node) -> Option<f64> {
        let weight = number(node, "a weight", &mut self.issues)?;
        if weight < 0.0 {
            self.issues
                .push(Issue::new(node.span, format!("expected a weight of zero or more, found {weight}")));
        }
        Some(weight)
    }

    fn learn(&mut self, node: &Node, choose: &mut Choose) {
        let Some(mut fields) = Fields::of(node, "learn", &mut self.issues) else { return };
        for (key, belief) in [("say", &mut choose.prior_say), ("set", &mut choose.prior_set)] {
            let Some(node) = fields.take(key) else { continue };
            let Some(prior) = items(node, "a prior [a, b]", &mut self.issues) else { continue };
            let numbers: Vec<f64> =
                prior.iter().filter_map(|node| number(node, "a part of a prior", &mut self.issues)).collect();
            match numbers[..] {
                [good, bad] if good > 0.0 && bad > 0.0 => *belief = Prior { good, bad },
                _ if numbers.len() < prior.len() => {}
                _ => {
                    let message = "expected a prior of two numbers above zero, as [2, 18] for 2 of 20";
                    self.issues.push(Issue::new(node.span, message));
                }
            }
        }
        let half_life = fields.take("half_life");
        let credit = fields.take("credit");
        let mut time = |node: Option<&Node>, what| positive(node?, what, &mut self.issues);
        let fades = time(half_life, "a half-life");
        let lasts = time(credit, "a time for credit");
        choose.learning = fades.map(|half_life| Learning { half_life, credit: lasts.unwrap_or(CREDIT) });
        if let Some(node) = credit.filter(|_| half_life.is_none()) {
            let issue = Issue::new(node.span, "`credit` without `half_life`: nothing is learnt without it");
            self.issues.push(issue.with_help("as `half_life: 30d`"));
        }
        if let Some(node) = fields.take("styles") {
            for style in items(node, "styles", &mut self.issues).unwrap_or_default() {
                let Some(name) = text(style, "a style's name", &mut self.issues) else { continue };
                if choose.styles.iter().any(|other| other == name) {
                    self.issues.push(Issue::new(style.span, format!("style `{name}` stands here twice")));
                } else {
                    choose.styles.push(name.to_owned());
                }
            }
        }
        fields.finish(&mut self.issues);
    }

    /// The styles that messages are written in are those that are learnt of.
    fn check_styles(&mut self, choose: &Choose) {
        for (style, span) in std::mem::take(&mut self.styles) {
            if choose.styles.contains(&style) {
                continue;
            }
            let known = || choose.styles.iter().map(String::as_str);
            let issue = Issue::new(span, format!("unknown style `{style}`"));
            self.issues.push(issue.with_help(match nearest(&style, known()) {
                Some(right) => format!("did you mean `{right}`?"),
                None => "expected one of `choose.learn.styles`".to_owned(),
            }));
        }
    }

    pub(super) fn guard(&mut self, node: &Node) -> Option<Guard> {
        const MODES: [(&str, Mode); 4] =
            [("stop", Mode::Stop), ("plan", Mode::Plan), ("canary", Mode::Canary), ("live", Mode::Live)];
        let mut fields = Fields::of(node, "guard", &mut self.issues)?;
        let mode = fields.require("mode", &mut self.issues);
        let mode_span = mode.map(|node| node.span);
        let mode = mode.and_then(|node| word(node, "mode", &MODES, &mut self.issues));
        let mut budgets = PushBudgets::default();
        if let Some(node) = fields.take("pushes")
            && let Some(mut pushes) = Fields::of(node, "pushes", &mut self.issues)
        {
            for (key, budget) in [
                ("element", &mut budgets.element),
                ("subscriber", &mut budgets.subscriber),
                ("all", &mut budgets.all),
            ] {
                let Some(node) = pushes.take(key) else { continue };
                *budget = rate(node, "a bound on pushes", &mut self.issues);
                if budget.is_some_and(|budget| budget.count > PUSHES_MAX) {
                    let message =
                        format!("a bound of more than {PUSHES_MAX} pushes: expected a shorter time");
                    self.issues.push(Issue::new(node.span, message));
                }
            }
            pushes.finish(&mut self.issues);
        }
        let canary = fields.take("canary");
        if let Some(span) = mode_span.filter(|_| mode == Some(Mode::Canary) && canary.is_none()) {
            let issue = Issue::new(span, "`mode: canary` needs `guard.canary`");
            self.issues
                .push(issue.with_help("as `canary: {steps: [1%, 10%, 100%], bake: 10m, min_samples: 200}`"));
        }
        let canary = canary.and_then(|node| self.canary(node)).unwrap_or_default();
        let rollback =
            fields.take("rollback").map(|node| self.expression(node, Wants::Truth, Scope::Outcome));
        fields.finish(&mut self.issues);
        let rollback = match rollback {
            Some(None) => return None,
            Some(rollback) => rollback,
            None => None,
        };
        Some(Guard { mode: mode?, pushes: budgets, canary, rollback })
    }

    fn canary(&mut self, node: &Node) -> Option<Canary> {
        let mut fields = Fields::of(node, "canary", &mut self.issues)?;
        let mut shares = Vec::new();
        if let Some(node) = fields.require("steps", &mut self.issues) {
            let steps = items(node, "steps", &mut self.issues).unwrap_or_default();
            shares.extend(steps.iter().filter_map(|node| percent(node, "a step", &mut self.issues)));
            if steps.is_empty() || shares.windows(2).any(|pair| pair[0] >= pair[1]) {
                self.issues.push(Issue::new(node.span, "expected steps that rise"));
            }
        }
        let bake = fields
            .require("bake", &mut self.issues)
            .and_then(|node| positive(node, "how long a step bakes", &mut self.issues));
        let samples = fields.require("min_samples", &mut self.issues).and_then(|node| {
            let samples = number(node, "a number of samples", &mut self.issues)?;
            if samples < 1.0 || samples.fract() != 0.0 || samples > 1e9 {
                self.issues.push(Issue::new(node.span, "expected a whole number of samples, one or more"));
                return None;
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and in range")]
            Some(samples as u64)
        });
        fields.finish(&mut self.issues);
        Some(Canary { steps: shares, bake: bake?, samples_min: samples? })
    }
}
