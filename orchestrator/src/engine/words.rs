//! What a message and its tap leave open, filled in for one subscriber; and whether what they ask for can be done.

use std::collections::BTreeMap;

use super::choose::Case;
use crate::identity::Country;
use crate::policy::{Action, ActionKind, Change, Known, ORDERS, Read};

impl Case<'_> {
    /// Whether it can be done at all: a setting must have something to return to, an order must change something, a message
    /// needs all its words.
    pub(super) fn feasible(&self, action: &Action) -> Result<(), String> {
        let change = match &action.kind {
            ActionKind::Set(change) => Some(change),
            ActionKind::Say { tap, template, styles } => {
                for text in std::iter::once(template).chain(styles.values()) {
                    self.fill(text)?;
                }
                tap.as_ref()
            }
        };
        let plan = &self.profile.plan;
        let base = self.world.plans.get(plan).ok_or_else(|| format!("the plan `{plan}` is unknown"))?;
        for (name, value) in change.map(|change| self.fill_change(change)).transpose()?.into_iter().flatten()
        {
            match name.as_str() {
                "plan" if !self.world.plans.contains_key(&value) => {
                    return Err(format!("the plan `{value}` is unknown"));
                }
                "plan" if value == *plan => return Err(format!("`{value}` is the plan already")),
                _ if ORDERS.contains(&name.as_str()) => {
                    if let Some(order) = self.subscriber.state.orders.get(&name) {
                        return Err(format!("`{name}: {}` is on order already", order.value));
                    }
                }
                _ if base.settings.contains_key(&name) => {}
                _ => return Err(format!("the plan `{plan}` gives no `{name}` to return to")),
            }
        }
        Ok(())
    }

    /// What a tap sets or orders.
    pub(super) fn fill_change(&self, change: &Change) -> Result<BTreeMap<String, String>, String> {
        let filled = |(name, value): (&String, &String)| Ok((name.clone(), self.fill(value)?));
        change.values.iter().map(filled).collect()
    }

    /// A text with its placeholders filled in.
    pub(super) fn fill(&self, template: &str) -> Result<String, String> {
        let mut text = String::with_capacity(template.len());
        let mut rest = template;
        // Braces come in pairs: that was checked with the policy.
        while let Some((before, (name, after))) =
            rest.split_once('{').and_then(|(before, inner)| Some((before, inner.split_once('}')?)))
        {
            text += before;
            text += &self.word(name)?;
            rest = after;
        }
        Ok(text + rest)
    }

    fn word(&self, name: &str) -> Result<String, String> {
        let session = self.subscriber.state.whereabouts();
        let country = || {
            let country = session.and_then(|session| self.world.country(session));
            country.ok_or_else(|| "the country the message speaks of is not known".to_owned())
        };
        let plan = self.world.plans.get(&self.profile.plan);
        let of_plan = |amount: f64| money(amount, plan.map_or("", |plan| &plan.currency));
        let missing = || format!("`{{{name}}}` is not known");
        let offer = &self.profile.offer;
        match name {
            "country" => country().map(|country| country.name.clone()),
            "price" => country().map(|country| price(country.pass_price, country)),
            "expected" => country().map(|country| price(country.expected_per_day, country)),
            "per_mb" => {
                let country = country()?;
                country.price_per_mb.map(|amount| price(amount, country)).ok_or_else(missing)
            }
            "limit" => {
                let limit = plan.and_then(|plan| plan.numbers.get("roam_limit"));
                limit.map(|limit| of_plan(*limit)).ok_or_else(missing)
            }
            "partner" => offer.partner.clone().ok_or_else(missing),
            "fit_plan" => {
                let fit = self.subscriber.fit(self.world, self.profile);
                let computed = fit.and_then(|fit| fit.plan.map(str::to_owned));
                offer.fit_plan.clone().or(computed).ok_or_else(missing)
            }
            "saving" => {
                let saves = self.subscriber.read(self.world, self.profile, &Read::Sub("fit_saves"));
                saves.as_ref().and_then(Known::number).map(of_plan).ok_or_else(missing)
            }
            _ => Err(missing()),
        }
    }
}

fn price(amount: f64, country: &Country) -> String {
    money(amount, &country.currency)
}

fn money(amount: f64, currency: &str) -> String {
    if currency.is_empty() { format!("{amount:.2}") } else { format!("{amount:.2} {currency}") }
}
