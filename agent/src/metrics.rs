//! What the agent counts. Labels are reasons, classes and outcomes: never a subscriber, a session or an address.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use usher_models::Class;

use crate::dataplane::ReasonCount;
use crate::probe::{Followed, Shaped};

/// Where the histogram of decisions is cut, in seconds. 5 ms is a bound of its own: what a flow's first megabyte can wait.
const DECISION_SECONDS: [f64; 15] = [
    0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0,
];

/// Label of what is split by one word of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// The word.
    pub reason: &'static str,
}

/// Labels of verdicts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VerdictLabels {
    /// The class of the flow.
    pub class: &'static str,
    /// What the verdict rests on.
    pub via: &'static str,
}

/// Labels of what the data plane did less with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PacketLabels {
    /// Why.
    pub reason: &'static str,
    /// `up`, `down`, or `any` where that is not told apart.
    pub direction: &'static str,
}

/// Label of classes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ClassLabel {
    /// The class.
    pub class: &'static str,
}

/// Label of directions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabel {
    /// `up` or `down`.
    pub direction: &'static str,
}

/// Label of results.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// How it ended.
    pub result: &'static str,
}

/// All of them. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Drains by result: told, spool_full, failed.
    pub drains: Family<Outcome, Counter>,
    /// Encoded bytes of batches spooled.
    pub batch_bytes: Counter,
    /// Counters found below their baseline.
    pub counters_backwards: Counter,
    /// Bytes of batches that wait for their acknowledgement.
    pub spool_bytes: Gauge,
    /// What the spool may hold.
    pub spool_limit_bytes: Gauge,
    /// First bytes looked at.
    pub samples: Counter,
    /// Flows named.
    pub verdicts: Family<VerdictLabels, Counter>,
    /// Flows that will never be named.
    pub no_verdict: Counter,
    /// From a flow's first packet to its verdict.
    pub verdict_seconds: Histogram,
    /// From the packet that decided a verdict to the class in the flow's entry.
    pub decision_seconds: Histogram,
    /// Verdicts not told, for too many came in one second.
    pub flows_untold: Counter,
    /// Verdicts about flows that the data plane did not know any more.
    pub flows_gone: Counter,
    /// Verdicts that could not be written to the data plane.
    pub naming_failures: Counter,
    /// Verdicts about flows whose bytes are not counted for their app, for there is no room for another.
    pub apps_full: Counter,
    /// What the classifier refused or gave up, by reason.
    pub classifier: Family<Reason, Counter>,
    /// Packets the data plane did less with.
    pub packets: Family<PacketLabels, Counter>,
    /// Their bytes, where they are told.
    pub packet_bytes: Family<PacketLabels, Counter>,
    /// Flows the data plane remembers.
    pub flows: Gauge,
    /// Flows there is room for in the part of the probe's table that is in use.
    pub flows_room: Gauge,
    /// Apps of sessions that are counted.
    pub apps: Gauge,
    /// Share of a class's flows that are measured at one time.
    pub measured_share: Family<ClassLabel, Gauge<f64, AtomicU64>>,
    /// Whether all enforcement is off.
    pub bypass: Gauge,
    /// Classes that shape packets, on each interface by which those leave.
    pub shaping_classes: Family<DirectionLabel, Gauge>,
    /// Slots whose rates should be shaped and are policed.
    pub shaping_policed: Family<DirectionLabel, Gauge>,
    /// Interfaces that carry the probe.
    pub interfaces: Gauge,
    /// Interfaces configured or meant by a pattern that do not: gone, on top of another one, or refused.
    pub interfaces_without: Gauge,
    /// Interfaces on which what subscribers send is met in the driver.
    pub interfaces_in_driver: Gauge,
    /// Interfaces that came and went.
    pub interface_changes: Family<Outcome, Counter>,
    /// Interfaces that could not be attached to, and looks at them that failed.
    pub interface_failures: Counter,
    /// Push steps by result: running, prepared, confirmed, cancelled, refused.
    pub push_steps: Family<Outcome, Counter>,
    /// Push steps that came faster than they could be done.
    pub pushes_dropped: Counter,
    /// Answers to push steps that found no way up.
    pub reports_dropped: Counter,
    /// Visitors of the metrics page that waited because all places were taken.
    pub page_waited: Counter,
    /// Enforcement that could not be set or read.
    pub enforcement_failures: Counter,
    /// Whether the uplink is up.
    pub uplink_connected: Gauge,
    /// Connections tried after the first.
    pub uplink_reconnects: Counter,
    /// Connections that failed or ended, by reason.
    pub uplink_failures: Family<Reason, Counter>,
    /// Batches sent, again included.
    pub batches_sent: Counter,
    /// Batches acknowledged.
    pub batches_acknowledged: Counter,
    /// Open sessions.
    pub sessions: Gauge,
    /// Sessions for which no slot is left.
    pub sessions_without_slot: Gauge,
    /// Prefixes for which there is no place left.
    pub prefixes_without_place: Gauge,
    /// Rules of the catalogue in force.
    pub catalogue_rules: Gauge,
    /// Sessions and catalogue files that could not be used.
    pub reload_failures: Counter,
}

impl Metrics {
    /// All at zero, registered.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("usher_agent");
        let mut metrics = Self {
            registry: Arc::default(),
            drains: Family::default(),
            batch_bytes: Counter::default(),
            counters_backwards: Counter::default(),
            spool_bytes: Gauge::default(),
            spool_limit_bytes: Gauge::default(),
            samples: Counter::default(),
            verdicts: Family::default(),
            no_verdict: Counter::default(),
            verdict_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            decision_seconds: Histogram::new(DECISION_SECONDS),
            flows_untold: Counter::default(),
            flows_gone: Counter::default(),
            naming_failures: Counter::default(),
            apps_full: Counter::default(),
            classifier: Family::default(),
            packets: Family::default(),
            packet_bytes: Family::default(),
            flows: Gauge::default(),
            flows_room: Gauge::default(),
            apps: Gauge::default(),
            measured_share: Family::default(),
            bypass: Gauge::default(),
            shaping_classes: Family::default(),
            shaping_policed: Family::default(),
            interfaces: Gauge::default(),
            interfaces_without: Gauge::default(),
            interfaces_in_driver: Gauge::default(),
            interface_changes: Family::default(),
            interface_failures: Counter::default(),
            push_steps: Family::default(),
            pushes_dropped: Counter::default(),
            reports_dropped: Counter::default(),
            page_waited: Counter::default(),
            enforcement_failures: Counter::default(),
            uplink_connected: Gauge::default(),
            uplink_reconnects: Counter::default(),
            uplink_failures: Family::default(),
            batches_sent: Counter::default(),
            batches_acknowledged: Counter::default(),
            sessions: Gauge::default(),
            sessions_without_slot: Gauge::default(),
            prefixes_without_place: Gauge::default(),
            catalogue_rules: Gauge::default(),
            reload_failures: Counter::default(),
        };
        metrics.register(&mut registry);
        metrics.registry = Arc::new(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let counters: [(&str, &str, &Counter); 17] = [
            ("counters_backwards", "Counters found below what was told of them", &self.counters_backwards),
            ("samples", "First bytes looked at", &self.samples),
            ("no_verdict", "Flows that will never be named", &self.no_verdict),
            ("flows_untold", "Verdicts not told, too many in one second", &self.flows_untold),
            ("flows_gone", "Verdicts about flows that are not known any more", &self.flows_gone),
            ("naming_failures", "Verdicts that could not be written", &self.naming_failures),
            ("apps_full", "Verdicts whose app found no room to be counted", &self.apps_full),
            ("pushes_dropped", "Push steps that came faster than they could be done", &self.pushes_dropped),
            ("reports_dropped", "Answers to push steps that found no way up", &self.reports_dropped),
            ("page_waited", "Visitors of the metrics page that waited for a place", &self.page_waited),
            ("enforcement_failures", "Enforcement that could not be set", &self.enforcement_failures),
            ("interface_failures", "Interfaces the probe could not be put on", &self.interface_failures),
            ("uplink_reconnects", "Connections tried after the first", &self.uplink_reconnects),
            ("batches_sent", "Batches sent, again included", &self.batches_sent),
            ("batches_acknowledged", "Batches acknowledged", &self.batches_acknowledged),
            ("reload_failures", "Sessions and catalogue files that could not be used", &self.reload_failures),
            ("batch_bytes", "Encoded bytes of batches spooled", &self.batch_bytes),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let gauges: [(&str, &str, &Gauge); 14] = [
            ("flows", "Flows the data plane remembers", &self.flows),
            ("flows_room", "Flows there is room for so far", &self.flows_room),
            ("apps", "Apps of sessions that are counted", &self.apps),
            ("interfaces", "Interfaces that carry the probe", &self.interfaces),
            ("interfaces_without", "Interfaces that should and do not", &self.interfaces_without),
            ("interfaces_in_driver", "Interfaces with the probe in the driver", &self.interfaces_in_driver),
            ("bypass", "1: all enforcement is off", &self.bypass),
            ("uplink_connected", "1: the uplink is up", &self.uplink_connected),
            ("catalogue_rules", "Rules of the catalogue in force", &self.catalogue_rules),
            ("sessions", "Open sessions", &self.sessions),
            ("sessions_without_slot", "Sessions for which no slot is left", &self.sessions_without_slot),
            ("prefixes_without_place", "Prefixes for which no place is left", &self.prefixes_without_place),
            ("spool_bytes", "Bytes that wait for their acknowledgement", &self.spool_bytes),
            ("spool_limit_bytes", "What the spool may hold", &self.spool_limit_bytes),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        registry.register("drains", "Drains by result", self.drains.clone());
        registry.register("verdicts", "Flows named", self.verdicts.clone());
        registry.register_with_unit(
            "verdict",
            "From a flow's first packet to its verdict",
            Unit::Seconds,
            self.verdict_seconds.clone(),
        );
        registry.register_with_unit(
            "decision",
            "From the packet that decided a verdict to the class in the flow's entry",
            Unit::Seconds,
            self.decision_seconds.clone(),
        );
        registry.register("classifier_refusals", "What the classifier gave up", self.classifier.clone());
        registry.register("packets", "Packets the data plane did less with", self.packets.clone());
        registry.register("packets_bytes", "Their bytes, where told", self.packet_bytes.clone());
        registry.register(
            "measured_share",
            "Share of a class's flows that are measured at one time",
            self.measured_share.clone(),
        );
        registry.register("shaping_classes", "Classes that shape packets", self.shaping_classes.clone());
        registry.register(
            "shaping_policed",
            "Slots that should be shaped and are policed",
            self.shaping_policed.clone(),
        );
        registry.register(
            "interface_changes",
            "Interfaces that came and went",
            self.interface_changes.clone(),
        );
        registry.register("push_steps", "Push steps by result", self.push_steps.clone());
        registry.register(
            "uplink_failures",
            "Connections that failed or ended",
            self.uplink_failures.clone(),
        );
    }

    /// A flow was named, so long after its first packet.
    pub fn named(&self, class: Class, via: &'static str, after: Duration) {
        self.upgraded(class, via);
        self.verdict_seconds.observe(after.as_secs_f64());
    }

    /// A flow has another verdict than before.
    pub fn upgraded(&self, class: Class, via: &'static str) {
        self.verdicts.get_or_create(&VerdictLabels { class: class.name(), via }).inc();
    }

    /// A verdict is where packets are counted, so long after the packet that decided it.
    pub fn decided(&self, after: Duration) {
        self.decision_seconds.observe(after.as_secs_f64());
    }

    /// A drain ended.
    pub fn drained(&self, result: &'static str) {
        self.drains.get_or_create(&Outcome { result }).inc();
    }

    /// A push step was answered.
    pub fn stepped(&self, result: &'static str) {
        self.push_steps.get_or_create(&Outcome { result }).inc();
    }

    /// The spool holds this much.
    pub fn spooled(&self, bytes: u64) {
        self.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The probe has followed the interfaces.
    pub fn followed(&self, followed: &Followed) {
        self.interfaces.set(i64::try_from(followed.on).unwrap_or(i64::MAX));
        self.interfaces_without.set(i64::try_from(followed.without).unwrap_or(i64::MAX));
        self.interfaces_in_driver.set(i64::try_from(followed.in_driver).unwrap_or(i64::MAX));
        self.interface_failures.inc_by(followed.failed.len() as u64);
        for (result, count) in [("came", followed.came), ("went", followed.went)] {
            self.interface_changes.get_or_create(&Outcome { result }).inc_by(count as u64);
        }
    }

    /// So much is shaped.
    pub fn shaped(&self, shaped: &Shaped) {
        for direction in usher_models::Direction::BOTH {
            let label = DirectionLabel { direction: direction.name() };
            let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
            self.shaping_classes.get_or_create(&label).set(gauge(shaped.classes[direction.index()]));
            self.shaping_policed.get_or_create(&label).set(gauge(shaped.policed[direction.index()]));
        }
    }

    /// Takes over cumulative counts of the data plane.
    pub fn packets(&self, counts: &[ReasonCount]) {
        for count in counts {
            let direction = count.direction.map_or("any", usher_models::Direction::name);
            let labels = PacketLabels { reason: count.reason, direction };
            self.packets.get_or_create(&labels).inner().store(count.packets, Ordering::Relaxed);
            if let Some(bytes) = count.bytes {
                self.packet_bytes.get_or_create(&labels).inner().store(bytes, Ordering::Relaxed);
            }
        }
    }

    /// Which flows are measured, by the masks of [`usher_models::wire::Turn`].
    pub fn measured(&self, masks: &[u16; Class::COUNT]) {
        for (class, mask) in Class::ALL.into_iter().zip(masks) {
            let share = 1.0 / (f64::from(*mask) + 1.0);
            self.measured_share.get_or_create(&ClassLabel { class: class.name() }).set(share);
        }
    }

    /// Takes over cumulative counts of the classifier.
    pub fn classifier(&self, counts: &[(&'static str, u64)]) {
        for (reason, count) in counts {
            self.classifier.get_or_create(&Reason { reason }).inner().store(*count, Ordering::Relaxed);
        }
    }

    /// As Prometheus reads it (OpenMetrics text).
    pub fn text(&self) -> String {
        let mut page = String::new();
        if text::encode(&mut page, &self.registry).is_err() {
            // Writing to a string does not fail; what was written before is still true.
            let _ = writeln!(page, "# EOF");
        }
        page
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::classify::{Catalogue, Classifier};
    use crate::probe::Leaf;

    const DOCUMENT: &str = include_str!("../../docs/metrics.md");

    /// First cells, in backticks, of the document's tables about the agent: metrics, and reasons.
    fn documented() -> (BTreeSet<String>, BTreeSet<String>) {
        let (agents, _) = DOCUMENT.split_once("## The orchestrator").expect("two parts");
        let cells = agents.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        cells.map(str::to_owned).partition(|cell| cell.starts_with("usher_agent_"))
    }

    /// What is registered, by the names on the page but for `_total`. The page shows nothing of a family before it has counted, and a
    /// registry says what it holds in its debugging output alone.
    fn registered(registry: &Registry) -> BTreeSet<String> {
        let shown = format!("{registry:?}");
        let name = |descriptor: &str| {
            let (name, rest) = descriptor.split_once('"')?;
            let (_, unit) = rest.split_once("unit: ")?;
            let unit = if unit.starts_with("Some(Seconds)") { "_seconds" } else { "" };
            Some(format!("usher_agent_{name}{unit}"))
        };
        shown.split("Descriptor { name: \"").skip(1).filter_map(name).collect()
    }

    #[test]
    fn every_metric_is_in_the_document_and_no_other() {
        let (documented, _) = documented();
        let documented = documented.iter().map(|name| name.strip_suffix("_total").unwrap_or(name).to_owned());
        assert_eq!(documented.collect::<BTreeSet<_>>(), registered(&Metrics::new().registry));
    }

    #[test]
    fn every_reason_is_in_the_document_and_no_other() {
        let (_, documented) = documented();
        let classifier = Classifier::new(Catalogue::built_in()).counters();
        let probe = usher_models::wire::Reason::ALL.map(usher_models::wire::Reason::name);
        let all = probe.into_iter().chain(classifier.into_iter().map(|(reason, _)| reason));
        assert_eq!(documented, all.map(str::to_owned).collect());
    }

    #[test]
    fn every_metric_is_on_the_page_with_its_prefix_and_no_subscriber() {
        let metrics = Metrics::new();
        metrics.named(Class::Video, "sni", Duration::from_millis(3));
        metrics.decided(Duration::from_millis(3));
        metrics.drained("told");
        metrics.measured(&[0, 1, 3, 0, 0, 0, 63, 0]);
        let counts = [ReasonCount { reason: "not_ip", direction: None, packets: 7, bytes: Some(420) }];
        metrics.packets(&counts);
        metrics.shaped(&Shaped { leaf: Leaf::Pfifo, classes: [0, 9], policed: [0, 2] });
        let page = metrics.text();
        for line in [
            "usher_agent_verdicts_total{class=\"video\",via=\"sni\"} 1",
            "usher_agent_drains_total{result=\"told\"} 1",
            "usher_agent_packets_total{reason=\"not_ip\",direction=\"any\"} 7",
            "usher_agent_packets_bytes_total{reason=\"not_ip\",direction=\"any\"} 420",
            "usher_agent_verdict_seconds_count 1",
            "usher_agent_decision_seconds_bucket{le=\"0.005\"} 1",
            "usher_agent_shaping_classes{direction=\"down\"} 9",
            "usher_agent_shaping_policed{direction=\"down\"} 2",
            "usher_agent_uplink_connected 0",
            "usher_agent_measured_share{class=\"video\"} 0.5",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
        assert!(!page.contains("subscriber") && !page.contains("session="));
    }
}
