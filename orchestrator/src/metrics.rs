//! What the daemon counts. Labels are reasons, classes of outcome and names from the operator's own files: never a
//! subscriber, a session or an address.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Label of counters split by one word of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// The word.
    pub reason: &'static str,
}

/// Labels of [`Metrics::decisions`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DecisionLabels {
    /// The moment that fired.
    pub moment: String,
    /// The action taken, or `gate:NAME` with what stopped the last candidate, or `none`.
    pub outcome: String,
}

/// Labels of [`Metrics::pushes`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PushLabels {
    /// The element's kind and name.
    pub element: String,
    /// How its part ended.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::anonymous_bytes`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Anonymous {
    /// As the gateway's operator named the prefix.
    pub name: String,
    /// Which way.
    pub direction: &'static str,
}

/// All of them. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Agents with an uplink at this moment.
    pub agents_connected: Gauge,
    /// Uplinks turned away, by reason.
    pub uplinks_refused: Family<Reason, Counter>,
    /// Connections of agents that waited because all places were taken.
    pub uplinks_waited: Counter,
    /// Batches applied.
    pub batches_applied: Counter,
    /// Batches that had been applied before; acknowledged again.
    pub batches_duplicate: Counter,
    /// Batches refused, by reason.
    pub batches_refused: Family<Reason, Counter>,
    /// Batches that a lost ledger had acknowledged: they can never come again.
    pub batches_missing: Counter,
    /// Records of applied batches that were left out or set right, by reason.
    pub records_ignored: Family<Reason, Counter>,
    /// Usage records applied.
    pub usage_records: Counter,
    /// Let through of no subscriber, by the name of the prefix, where that has one.
    pub anonymous_bytes: Family<Anonymous, Counter>,
    /// From the end of a batch's interval to its being applied.
    pub lateness_seconds: Histogram,
    /// From a flow's first packet to its verdict, as agents report it.
    pub verdict_seconds: Histogram,
    /// Reports of agents that nobody waited for.
    pub reports_unexpected: Counter,
    /// Asks refused because too many were under way.
    pub asks_refused: Counter,
    /// Decisions by moment and what came of it.
    pub decisions: Family<DecisionLabels, Counter>,
    /// Effects made durable, by kind.
    pub effects: Family<Reason, Counter>,
    /// Parts of pushes that ended, by element and outcome.
    pub pushes: Family<PushLabels, Counter>,
    /// Pushes that were done, or whose attempts failed, by how. One that failed and is done later counts under both.
    pub pushes_ended: Family<Reason, Counter>,
    /// Attempts at pushes that failed and will be made again.
    pub pushes_retried: Counter,
    /// Questions to partners, by what came of them.
    pub partner_answers: Family<Reason, Counter>,
    /// Outcomes of pushes that the guard was not told of, for the engine's queue was full.
    pub pushes_untold: Counter,
    /// Step of the canary, from 1.
    pub guard_step: Gauge,
    /// 1: the guard took everything back.
    pub guard_rolled_back: Gauge,
    /// Pushes that wait for their turn or for their next attempt.
    pub pushes_waiting: Gauge,
    /// Pushes whose attempts failed, and that are tried on.
    pub pushes_failing: Gauge,
    /// From desired to in force on every element.
    pub push_seconds: Histogram,
    /// Taps by result.
    pub taps: Family<Reason, Counter>,
    /// One durable transaction.
    pub ledger_seconds: Histogram,
    /// Inputs waiting for the engine.
    pub inputs_waiting: Gauge,
    /// Reloads of policy and profiles, by result.
    pub reloads: Family<Reason, Counter>,
    /// Messages waiting for their channel.
    pub messages_waiting: Gauge<u64, AtomicU64>,
    /// Inputs added to recorded days.
    pub record_inputs: Counter,
    /// Bytes of all recorded days.
    pub record_bytes: Gauge,
    /// Recorded days that were removed, by reason.
    pub record_days_removed: Family<Reason, Counter>,
    /// Times a recorded day could not be written and was given up.
    pub record_failures: Counter,
}

/// The registry with everything in it, ready to be shown.
#[derive(Debug, Clone)]
pub struct Shown {
    registry: Arc<Registry>,
}

impl Shown {
    /// Freezes the registry: nothing is registered after the start.
    pub fn new(registry: Registry) -> Self {
        Self { registry: Arc::new(registry) }
    }

    /// In the OpenMetrics text format.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The daemon's registry: every name begins with `usher_orchestrator_`.
pub fn registry() -> Registry {
    Registry::with_prefix("usher_orchestrator")
}

impl Metrics {
    /// Makes them and puts them into `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            agents_connected: Gauge::default(),
            uplinks_refused: Family::default(),
            uplinks_waited: Counter::default(),
            batches_applied: Counter::default(),
            batches_duplicate: Counter::default(),
            batches_refused: Family::default(),
            batches_missing: Counter::default(),
            records_ignored: Family::default(),
            usage_records: Counter::default(),
            anonymous_bytes: Family::default(),
            lateness_seconds: Histogram::new(exponential_buckets(0.05, 2.0, 16)),
            verdict_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            reports_unexpected: Counter::default(),
            asks_refused: Counter::default(),
            decisions: Family::default(),
            effects: Family::default(),
            pushes: Family::default(),
            pushes_ended: Family::default(),
            pushes_retried: Counter::default(),
            partner_answers: Family::default(),
            pushes_untold: Counter::default(),
            guard_step: Gauge::default(),
            guard_rolled_back: Gauge::default(),
            pushes_waiting: Gauge::default(),
            pushes_failing: Gauge::default(),
            push_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
            taps: Family::default(),
            ledger_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            inputs_waiting: Gauge::default(),
            reloads: Family::default(),
            messages_waiting: Gauge::default(),
            record_inputs: Counter::default(),
            record_bytes: Gauge::default(),
            record_days_removed: Family::default(),
            record_failures: Counter::default(),
        };
        metrics.register_uplinks(registry);
        metrics.register_decisions(registry);
        metrics.register_days(registry);
        metrics
    }

    fn register_uplinks(&self, registry: &mut Registry) {
        registry.register("agents_connected", "Agents with an uplink", self.agents_connected.clone());
        registry.register("uplinks_refused", "Uplinks turned away, by reason", self.uplinks_refused.clone());
        registry.register(
            "uplinks_waited",
            "Connections of agents that waited because all places were taken",
            self.uplinks_waited.clone(),
        );
        registry.register("batches_applied", "Batches applied", self.batches_applied.clone());
        registry.register(
            "batches_duplicate",
            "Batches applied before and acknowledged again",
            self.batches_duplicate.clone(),
        );
        registry.register("batches_refused", "Batches refused, by reason", self.batches_refused.clone());
        registry.register(
            "batches_missing",
            "Batches that a lost ledger had acknowledged",
            self.batches_missing.clone(),
        );
        registry.register(
            "records_ignored",
            "Records of applied batches left out or set right, by reason",
            self.records_ignored.clone(),
        );
        registry.register("usage_records", "Usage records applied", self.usage_records.clone());
        registry.register_with_unit(
            "anonymous",
            "Let through of no subscriber, by the name of the prefix",
            Unit::Bytes,
            self.anonymous_bytes.clone(),
        );
        registry.register_with_unit(
            "lateness",
            "From the end of a batch's interval to its being applied",
            Unit::Seconds,
            self.lateness_seconds.clone(),
        );
        registry.register_with_unit(
            "verdict",
            "From a flow's first packet to its verdict",
            Unit::Seconds,
            self.verdict_seconds.clone(),
        );
        registry.register(
            "reports_unexpected",
            "Reports of agents that nobody waited for",
            self.reports_unexpected.clone(),
        );
        registry.register("asks_refused", "Asks refused: too many under way", self.asks_refused.clone());
    }

    fn register_decisions(&self, registry: &mut Registry) {
        registry.register("decisions", "Decisions by moment and what came of it", self.decisions.clone());
        registry.register("effects", "Effects made durable, by kind", self.effects.clone());
        registry.register(
            "pushes",
            "Parts of pushes that ended, by element and outcome",
            self.pushes.clone(),
        );
        registry.register(
            "pushes_ended",
            "Pushes that were done, or whose attempts failed, by how",
            self.pushes_ended.clone(),
        );
        registry.register(
            "pushes_retried",
            "Attempts at pushes that failed and will be made again",
            self.pushes_retried.clone(),
        );
        registry.register(
            "partner_answers",
            "Questions to partners, by what came of them",
            self.partner_answers.clone(),
        );
        registry.register(
            "pushes_untold",
            "Outcomes of pushes that the guard was not told of, for the engine's queue was full",
            self.pushes_untold.clone(),
        );
        registry.register("guard_step", "Step of the canary, from 1", self.guard_step.clone());
        registry.register(
            "guard_rolled_back",
            "1: the guard took back what decisions had set, until an operator goes on",
            self.guard_rolled_back.clone(),
        );
        registry.register(
            "pushes_waiting",
            "Pushes that wait for their turn or for their next attempt",
            self.pushes_waiting.clone(),
        );
        registry.register(
            "pushes_failing",
            "Pushes whose attempts failed, and that are tried on at the longest pause",
            self.pushes_failing.clone(),
        );
        registry.register_with_unit(
            "push",
            "From desired to in force on every element",
            Unit::Seconds,
            self.push_seconds.clone(),
        );
        registry.register("taps", "Taps by result", self.taps.clone());
        registry.register_with_unit(
            "ledger_transaction",
            "One durable transaction",
            Unit::Seconds,
            self.ledger_seconds.clone(),
        );
        registry.register("inputs_waiting", "Inputs waiting for the engine", self.inputs_waiting.clone());
        registry.register("reloads", "Reloads of policy and profiles, by result", self.reloads.clone());
        registry.register(
            "messages_waiting",
            "Messages waiting for their channel",
            self.messages_waiting.clone(),
        );
    }
}

impl Metrics {
    fn register_days(&self, registry: &mut Registry) {
        registry.register("record_inputs", "Inputs added to recorded days", self.record_inputs.clone());
        registry.register("record_bytes", "Bytes of all recorded days", self.record_bytes.clone());
        registry.register(
            "record_days_removed",
            "Recorded days that were removed, by reason",
            self.record_days_removed.clone(),
        );
        registry.register(
            "record_failures",
            "Times a recorded day could not be written and was given up",
            self.record_failures.clone(),
        );
    }
}

/// Counts one more under `reason`.
pub fn count(family: &Family<Reason, Counter>, reason: &'static str) {
    family.get_or_create(&Reason { reason }).inc();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{advice, api};

    const DOCUMENT: &str = include_str!("../../docs/metrics.md");

    /// What is registered, by the names on the page but for `_total`. The page shows nothing of a family before it has counted, and a
    /// registry says what it holds in its debugging output alone.
    fn registered(registry: &Registry) -> BTreeSet<String> {
        let shown = format!("{registry:?}");
        let name = |descriptor: &str| {
            let (name, rest) = descriptor.split_once('"')?;
            let (_, unit) = rest.split_once("unit: ")?;
            let unit = match unit {
                unit if unit.starts_with("Some(Seconds)") => "_seconds",
                unit if unit.starts_with("Some(Bytes)") => "_bytes",
                _ => "",
            };
            Some(format!("usher_orchestrator_{name}{unit}"))
        };
        shown.split("Descriptor { name: \"").skip(1).filter_map(name).collect()
    }

    #[test]
    fn every_metric_is_in_the_document_and_no_other() {
        let mut registry = registry();
        Metrics::register(&mut registry);
        advice::Metrics::register(&mut registry);
        api::Metrics::register(&mut registry);
        let (_, documented) = DOCUMENT.split_once("## The orchestrator").expect("two parts");
        let names = documented.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let names = names.map(|name| name.strip_suffix("_total").unwrap_or(name).to_owned());
        assert_eq!(names.collect::<BTreeSet<_>>(), registered(&registry));
    }
}
