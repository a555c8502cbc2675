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

use crate::classify::{Catalogue, Classifier, Concluded, Confidence, Observation, Verdict, Via};
use crate::dataplane::{DataPlaneError, Flows, ForApp, Sample};
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
    pub confidence: Confidence,
    /// Whether its bytes are counted for the app from here on.
    pub counted: bool,
    /// When the flow's first packet was seen.
    pub first_packet: Micros,
    /// When it was named.
    pub at: Micros,
}

/// What a verdict is told about.
#[derive(Debug, Clone, Copy)]
struct Subject {
    slot: u32,
    first_packet: Micros,
    /// The flow's bytes are counted for its app.
    counted: bool,
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
        let counted = self.instruct(&sample.flow, sample.slot, &observation);
        let subject = Subject { slot: sample.slot, first_packet: sample.first_packet, counted };
        if let Observation::Named(_) = observation {
            let now = clock();
            self.metrics.decided(now.since(sample.seen));
            // A capture read fast is ahead of the clock.
            self.tell(subject, observation, now.max(sample.seen));
        } else {
            self.tell(subject, observation, sample.seen);
        }
    }

    fn conclude(&mut self, concluded: Vec<Concluded>, now: Micros) {
        for Concluded { flow, slot, first_packet, observation } in concluded {
            let counted = self.instruct(&flow, slot, &observation);
            self.tell(Subject { slot, first_packet, counted }, observation, now);
        }
    }

    /// First of all the class is written to where the next packet is counted, and the app. Whether the flow's bytes are counted for one
    /// from here on.
    fn instruct(&mut self, flow: &FlowKey, slot: u32, observation: &Observation) -> bool {
        let Some((class, sampling)) = observation.instruction() else { return false };
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
        let app = match observation {
            Observation::Named(verdict) | Observation::Upgraded(verdict) => verdict.app.clone(),
            Observation::Again { .. } => self.classifier.app_told(flow),
            Observation::NeedMore | Observation::GiveUp { .. } => None,
        };
        let for_app = self.flows.count_for_app(flow, slot, app.as_deref());
        self.metrics.apps_full.inc_by(u64::from(for_app == ForApp::Full));
        for_app == ForApp::Counted
    }

    fn tell(&mut self, subject: Subject, observation: Observation, now: Micros) {
        match observation {
            Observation::Named(verdict) => self.named(subject, verdict, now),
            Observation::Upgraded(verdict) => self.upgraded(subject, verdict, now),
            Observation::GiveUp { .. } => {
                self.metrics.no_verdict.inc();
            }
            Observation::NeedMore | Observation::Again { .. } => {}
        }
    }

    fn named(&mut self, subject: Subject, verdict: Verdict, at: Micros) {
        let took = at.since(subject.first_packet);
        self.metrics.named(verdict.class, verdict.via.name(), took);
        self.send(subject, verdict, at);
    }

    /// Told once more, for packets to come; how long the first verdict took was told with it.
    fn upgraded(&mut self, subject: Subject, verdict: Verdict, at: Micros) {
        self.metrics.upgraded(verdict.class, verdict.via.name());
        self.send(subject, verdict, at);
    }

    fn send(&mut self, Subject { slot, first_packet, counted }: Subject, verdict: Verdict, at: Micros) {
        let Verdict { app, class, via, confidence, .. } = verdict;
        let age_ms = at.since(first_packet).as_millis();
        tracing::debug!(app = app.as_deref(), %class, %via, age_ms, "flow named");
        let named = Named { slot, app, class, via, confidence, counted, first_packet, at };
        if self.named.try_send(named).is_err() {
            self.metrics.flows_untold.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::capture::{Capture, Pace, Source};

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: cdn.streams.example\r\n\r\n";
    /// The beginning of a ClientHello of 512 bytes (RFC 8446, 4.1.2).
    const HALF_A_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and the rest is lost";

    /// The verdicts over a capture of flows from 10.0.0.2, each with these first bytes and in slot 3, at a wall clock.
    fn over(first_bytes: &[&[u8]], queue: usize) -> (Capture, Verdicts, Receiver<Named>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flows.pcap");
        let dead = pcap::Capture::dead(pcap::Linktype::ETHERNET).unwrap();
        let mut file = dead.savefile(&path).unwrap();
        for (number, bytes) in (0_u16..).zip(first_bytes) {
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 2], [192, 0, 2, 9], 64);
            builder.tcp(40_000 + number, 443, 1, 1_000).ack(1).write(&mut frame, bytes).unwrap();
            let length = u32::try_from(frame.len()).unwrap();
            let ts = libc::timeval { tv_sec: 1_700_000_000, tv_usec: 0 };
            let header = pcap::PacketHeader { ts, caplen: length, len: length };
            file.write(&pcap::Packet { header: &header, data: &frame });
        }
        drop(file);
        let (mut capture, flows) = Capture::open(&Source::File { path, pace: Pace::Fast }).unwrap();
        capture.bind("10.0.0.2/32".parse().unwrap(), 3).unwrap();
        let mut catalogue = Catalogue::built_in();
        catalogue.extend("own.yaml", "prefixes: [{prefix: 192.0.2.0/24, app: mine, class: bulk}]").unwrap();
        let (sender, named) = channel(queue);
        let flows = Flows::Capture(Box::new(flows));
        (capture, Verdicts::new(flows, Classifier::new(catalogue), sender, Metrics::new()), named)
    }

    async fn all(verdicts: &mut Verdicts) {
        while verdicts.next(Micros::now).await {}
        verdicts.finish(Micros::now());
    }

    #[tokio::test]
    async fn a_flow_concluded_late_is_told_like_one_named_at_once() {
        let (_capture, mut verdicts, mut named) = over(&[REQUEST, HALF_A_HELLO], 8);
        all(&mut verdicts).await;
        let (at_once, late) = (named.try_recv().unwrap(), named.try_recv().unwrap());
        assert_eq!((at_once.slot, at_once.app.as_deref(), at_once.via), (3, Some("streams"), Via::Http));
        assert_eq!((late.slot, late.app.as_deref(), late.via), (3, Some("mine"), Via::Prefix));
        assert!(late.at >= late.first_packet);
        assert!(named.try_recv().is_err(), "each is told once");
    }

    #[tokio::test]
    async fn a_verdict_about_a_flow_that_is_forgotten_is_told_and_counted() {
        let (mut capture, mut verdicts, mut named) = over(&[REQUEST], 8);
        let sample = verdicts.flows.next_sample().await.unwrap();
        assert_eq!(capture.sweep(sample.seen.after(std::time::Duration::from_hours(1))), 1);
        verdicts.observe(&sample, &Micros::now);
        assert_eq!(named.try_recv().unwrap().app.as_deref(), Some("streams"));
        assert_eq!(verdicts.metrics.flows_gone.get(), 1);
    }

    #[tokio::test]
    async fn verdicts_that_nobody_takes_are_counted_and_hold_nothing_up() {
        let (capture, mut verdicts, _named) = over(&[REQUEST, REQUEST, REQUEST], 1);
        all(&mut verdicts).await;
        assert_eq!(verdicts.metrics.flows_untold.get(), 2);
        assert_eq!(capture.flows(), 3);
    }
}
