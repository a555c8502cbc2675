//! The verdicts' thread: the one owner of the classifier and of the flows, from a sample to the class in the flow's entry.
//!
//! Apart from the gateway task because a verdict is only worth something while the flow is young: nothing here waits for a
//! disk, a drain or a push. What the gateway task wants of it are [`Order`]s, done between two samples; what it tells
//! are [`Named`] flows, in a queue that is bounded. Time is an argument; what to wait for is the business of
//! [`crate::run`].

use std::sync::Arc;

use tokio::sync::mpsc::Sender;
use usher_models::Class;
use usher_models::units::Micros;
use usher_models::wire::FlowKey;

use crate::classify::{Catalogue, Classifier, Concluded, Observation, Verdict, Via};
use crate::dataplane::{DataPlaneError, Flows, Sample};
use crate::metrics::Metrics;

/// Most samples looked at before orders and the clock have their turn.
const AT_ONCE: usize = 256;

/// What the gateway task asks for.
#[derive(Debug)]
pub enum Order {
    /// Classify by another catalogue from now on.
    Catalogue(Box<Catalogue>),
    /// These slots' sessions are over: nothing that was learnt for them is another's.
    Forget(Vec<u32>),
}

/// A flow that has its verdict. Without its server's name, which stays in the classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// The subscriber slot the flow is counted for.
    pub slot: u32,
    /// The app's id, where the catalogue knows one.
    pub app: Option<Arc<str>>,
    /// Its class.
    pub class: Class,
    /// What that rests on.
    pub via: Via,
    /// How sure it is, 0 to 1.
    pub confidence: f64,
    /// When the flow's first packet was seen.
    pub first_packet: Micros,
    /// When it was named.
    pub at: Micros,
}

/// The state of the verdicts' thread.
#[derive(Debug)]
pub struct Verdicts {
    flows: Flows,
    classifier: Classifier,
    named: Sender<Named>,
    metrics: Metrics,
}

impl Verdicts {
    /// Names `flows` by `classifier`, and tells of them through `named`.
    pub fn new(flows: Flows, classifier: Classifier, named: Sender<Named>, metrics: Metrics) -> Self {
        Self { flows, classifier, named, metrics }
    }

    /// Waits for a sample, and looks at it and at those that are there already. False: there are no more, ever.
    ///
    /// Loses nothing when cancelled.
    pub async fn next(&mut self, clock: impl Fn() -> Micros) -> bool {
        let Some(sample) = self.flows.next_sample().await else { return false };
        self.observe(&sample, &clock);
        for _ in 1..AT_ONCE {
            let Some(sample) = self.flows.try_next_sample() else { break };
            self.observe(&sample, &clock);
        }
        true
    }

    /// Why there are no more samples, if not because a file is at its end.
    pub fn broken(&self) -> Option<DataPlaneError> {
        self.flows.broken()
    }

    /// Does what the gateway task asks for.
    pub fn obey(&mut self, order: Order) {
        match order {
            Order::Catalogue(catalogue) => self.classifier.replace_catalogue(*catalogue),
            Order::Forget(slots) => slots.into_iter().for_each(|slot| self.classifier.forget(slot)),
        }
    }

    /// Concludes the flows whose first bytes take too long.
    pub fn expire(&mut self, now: Micros) {
        let concluded = self.classifier.expire(now);
        self.conclude(concluded, now);
        self.metrics.classifier(&self.classifier.counters());
    }

    /// Concludes all flows: no more samples will come.
    pub fn finish(&mut self, now: Micros) {
        let concluded = self.classifier.finish();
        self.conclude(concluded, now);
        self.metrics.classifier(&self.classifier.counters());
    }

    /// A flow's first bytes.
    fn observe(&mut self, sample: &Sample<'_>, clock: &impl Fn() -> Micros) {
        self.metrics.samples.inc();
        let observation = self.classifier.observe(sample);
        // Not the observation itself: a host name does not leave the classifier, not even for a log.
        tracing::trace!(instruction = ?observation.instruction(), "sample");
        self.instruct(&sample.flow, &observation);
        if let Observation::Named(_) = observation {
            let now = clock();
            self.metrics.decided(now.since(sample.seen));
            // A capture read fast is ahead of the clock.
            self.tell(sample.slot, sample.first_packet, observation, now.max(sample.seen));
        } else {
            self.tell(sample.slot, sample.first_packet, observation, sample.seen);
        }
    }

    fn conclude(&mut self, concluded: Vec<Concluded>, now: Micros) {
        for Concluded { flow, slot, first_packet, observation } in concluded {
            self.instruct(&flow, &observation);
            self.tell(slot, first_packet, observation, now);
        }
    }

    /// First of all the class is written to where the next packet is counted.
    fn instruct(&mut self, flow: &FlowKey, observation: &Observation) {
        let Some((class, sampling)) = observation.instruction() else { return };
        match self.flows.name_flow(flow, class, sampling) {
            Ok(true) => {}
            // Swept since, or its table was full: if a packet of it comes again, its sample brings the class again.
            Ok(false) => {
                self.metrics.flows_gone.inc();
            }
            Err(error) => {
                self.metrics.naming_failures.inc();
                tracing::warn!("a verdict could not be told to the data plane: {error}");
            }
        }
    }

    fn tell(&mut self, slot: u32, first_packet: Micros, observation: Observation, now: Micros) {
        match observation {
            Observation::Named(verdict) => self.named(slot, first_packet, verdict, now),
            Observation::Upgraded(verdict) => self.upgraded(slot, first_packet, verdict, now),
            Observation::GiveUp { .. } => {
                self.metrics.no_verdict.inc();
            }
            Observation::NeedMore | Observation::Again { .. } => {}
        }
    }

    fn named(&mut self, slot: u32, first_packet: Micros, verdict: Verdict, at: Micros) {
        let took = at.since(first_packet);
        self.metrics.named(verdict.class, verdict.via.name(), took);
        self.send(slot, first_packet, verdict, at);
    }

    /// Told once more, for packets to come; how long the first verdict took was told with it.
    fn upgraded(&mut self, slot: u32, first_packet: Micros, verdict: Verdict, at: Micros) {
        self.metrics.upgraded(verdict.class, verdict.via.name());
        self.send(slot, first_packet, verdict, at);
    }

    fn send(&mut self, slot: u32, first_packet: Micros, verdict: Verdict, at: Micros) {
        let Verdict { app, class, via, confidence, .. } = verdict;
        let age_ms = at.since(first_packet).as_millis();
        tracing::debug!(app = app.as_deref(), %class, %via, age_ms, "flow named");
        let named = Named { slot, app, class, via, confidence, first_packet, at };
        if self.named.try_send(named).is_err() {
            self.metrics.flows_untold.inc();
        }
    }
}
