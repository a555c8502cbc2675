//! What the tap page and the channels count. Nothing here names a person, a link or an address.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counters of advice. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Links opened (`GET`) and tapped (`POST`), by what came of it.
    pub links: Family<LinkLabels, Counter>,
    /// Messages handed to the outbox.
    pub outbox_delivered: Counter,
    /// Deliveries that found their message already there.
    pub outbox_repeated: Counter,
    /// Deliveries that failed and will be tried again.
    pub outbox_failed: Counter,
}

/// Labels of [`Metrics::links`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LinkLabels {
    /// What came of it.
    pub result: LinkResult,
}

/// What came of opening or tapping a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "label values are written as they stand here")]
pub enum LinkResult {
    /// The offer was shown.
    shown,
    /// Tapped, for the first time.
    accepted,
    /// Declined, or opened after it was.
    declined,
    /// The person wants no more messages.
    stopped,
    /// Tapped or opened after it was tapped.
    already,
    /// Its time was up.
    expired,
    /// Its signature did not match.
    forged,
    /// It was no token.
    malformed,
    /// It names a decision for which nothing was sent.
    unknown,
    /// The engine was stopped, too busy or gone.
    busy,
}

impl Metrics {
    /// Makes the counters and puts them into `registry`, whose prefix is the daemon's.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("advice_links", "Links opened and tapped, by result", metrics.links.clone());
        registry.register(
            "advice_outbox_delivered",
            "Messages handed to the outbox",
            metrics.outbox_delivered.clone(),
        );
        registry.register(
            "advice_outbox_repeated",
            "Deliveries that found their message already in the outbox",
            metrics.outbox_repeated.clone(),
        );
        registry.register(
            "advice_outbox_failed",
            "Deliveries to the outbox that failed and are tried again",
            metrics.outbox_failed.clone(),
        );
        metrics
    }

    /// Counts one link.
    pub(crate) fn link(&self, result: LinkResult) {
        self.links.get_or_create(&LinkLabels { result }).inc();
    }
}
