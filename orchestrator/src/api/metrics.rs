//! What the API counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counters of the API. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Requests answered, by status code.
    pub requests: Family<RequestLabels, Counter>,
    /// Requests from afar without the right token.
    pub refused: Counter,
}

/// Labels of [`Metrics::requests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// HTTP status code.
    pub code: u16,
}

impl Metrics {
    /// Makes the counters and puts them into `registry`, whose prefix is the daemon's.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "api_requests",
            "Requests to the operator API, by status code",
            metrics.requests.clone(),
        );
        registry.register(
            "api_refused",
            "Requests to the operator API from afar without the right token",
            metrics.refused.clone(),
        );
        registry.register(
            "http_waited",
            "Connections to any HTTP door that waited because all its places were taken",
            super::listen::WAITED.clone(),
        );
        metrics
    }
}
