//! Flows of DNS: named by the question, heard for the answers, which name other flows.

use std::sync::Arc;

use usher_models::Class;
use usher_models::wire::{Direction, FlowKey};

use super::answers::Asker;
use super::dns;
use super::in_progress::InProgress;
use super::knowledge::Proof;
use super::packet::Segment;
use super::told::Told;
use super::verdict::{Observation, SURE, Strength, Verdict, Via};
use super::{Classifier, DNS_APP, tls};
use crate::dataplane::Sample;

impl Classifier {
    pub(super) fn observe_dns(&mut self, sample: &Sample<'_>, datagram: &[u8]) -> Observation {
        let message = dns::Message::parse(datagram);
        if message.is_none() {
            self.counters.malformed_dns += 1;
        }
        if let Some(message) = &message {
            self.hear(sample, message);
        }
        if let Some(again) = self.told_before(sample, None) {
            return again;
        }
        if let Some(message) = message {
            self.beginnings.drop(&sample.flow);
            // Only where answers are heard is there anything to wait for.
            return self.name_dns(sample, message, None, sample.flow.remote_port == dns::PORT);
        }
        if !self.beginnings.holds(&sample.flow) {
            // A port of DNS is anybody's: tunnels and clients that would be taken for it show what they are.
            match self.prove_datagram(sample, datagram) {
                None => return Observation::NeedMore,
                Some(Proof::Nothing) => {}
                Some(proof) => return self.name(super::scene(sample), proof, None, false),
            }
            self.beginnings.put(sample.flow, InProgress::dns(sample, None));
        }
        let taken =
            self.beginnings.advance(sample, false, |stream| stream.datagram(sample.direction, datagram));
        match taken {
            Some((proof, start)) => self.name(super::scene(sample), proof, start, false),
            None => Observation::NeedMore,
        }
    }

    /// Whether a segment is one of a DNS conversation: a port of DNS is anybody's, and no conversation begins with a message
    /// as long as a hello's first byte would make it. Wherever a hello is cut, that one comes first.
    pub(super) fn is_dns_stream(&self, flow: &FlowKey, segment: &Segment<'_>) -> bool {
        super::is_dns(flow)
            && match (self.beginnings.get(flow), self.told.get(flow)) {
                (Some(stream), _) => stream.is_dns(),
                (None, Some(told)) => told.sampling,
                (None, None) => segment.bytes.first() != Some(&tls::HANDSHAKE),
            }
    }

    pub(super) fn observe_dns_stream(&mut self, sample: &Sample<'_>, segment: &Segment<'_>) -> Observation {
        let opening = segment.opening(sample.direction);
        let told = self.told_before(sample, opening.map(|opening| opening.start));
        let is_told = told.is_some();
        if let Some(again @ Observation::Again { sampling: false, .. }) = told {
            return again;
        }
        if !is_told && !self.has_begun(sample, opening) {
            match (segment.bytes.is_empty(), segment.flags.end()) {
                (true, false) => return Observation::NeedMore,
                (true, true) => return self.end_of_silence(sample),
                (false, _) => {
                    let start = self.handshakes.take(&sample.flow).map(|handshake| handshake.start);
                    self.beginnings.put(sample.flow, InProgress::dns(sample, start));
                }
            }
        }
        let taken = self
            .beginnings
            .change(&sample.flow, |stream| (stream.messages(sample.direction, segment), stream.start()));
        let ((messages, goes_on), start) = taken.unwrap_or(((Vec::new(), false), None));
        let more = goes_on && !segment.flags.end();
        for message in &messages {
            self.hear(sample, message);
        }
        if more {
            self.beginnings.keep_within_bounds();
        } else {
            self.beginnings.drop(&sample.flow);
        }
        match (is_told, messages.into_iter().next()) {
            (false, Some(message)) => self.name_dns(sample, message, start, more),
            (false, None) if more => Observation::NeedMore,
            (false, None) => self.name(super::scene(sample), Proof::Nothing, start, false),
            (true, _) => {
                if let Some(told) = self.told.get_mut(&sample.flow) {
                    told.sampling = more;
                }
                Observation::Again { class: Class::System, sampling: more }
            }
        }
    }

    /// Only a server's answer to the subscriber is remembered, never what is multicast by whoever likes.
    fn hear(&mut self, sample: &Sample<'_>, message: &dns::Message) {
        if sample.flow.remote_port != dns::PORT {
            return;
        }
        match (sample.direction, message.response) {
            (Direction::Up, false) => self.knowledge.answers.ask(&sample.flow, message),
            (Direction::Down, true) => {
                let asker = Asker::of(sample.slot, &sample.flow);
                let believed = self.knowledge.answers.hear(asker, &sample.flow, message, sample.seen);
                if !believed {
                    return;
                }
                if let Some(outer) = &message.outer {
                    self.knowledge.hear_outer(asker, outer, sample.seen);
                }
                self.answered(asker, message, sample.seen);
            }
            _ => {}
        }
    }

    fn name_dns(
        &mut self,
        sample: &Sample<'_>,
        message: dns::Message,
        start: Option<u32>,
        sampling: bool,
    ) -> Observation {
        let told = Told::new(super::scene(sample), Class::System, Strength::Name, start);
        let app: Option<Arc<str>> = Some(DNS_APP.into());
        self.tell(sample.flow, Told { sampling, app: app.clone(), ..told });
        Observation::Named(Verdict {
            app,
            class: Class::System,
            via: Via::Dns,
            confidence: SURE,
            name: message.asked,
            keeps_sampling: sampling,
        })
    }
}
