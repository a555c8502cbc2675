//! Sans-I/O: bytes in, verdicts out.
//!
//! Owns what a flow is: the name the client asks for in a ClientHello of TLS or QUIC or in an HTTP request first, then the
//! protocol its first bytes show, then the name by which the subscriber's DNS answers called the other end's address,
//! its address last. The [`Catalogue`] says which app and class a name belongs to. Refuses clocks, files and
//! sockets: packets come in as [`Sample`]s, time comes with them, and everything held is bounded ([`Limits`]), each bound
//! with a counter that rises when it bites.
//!
//! ```text
//! Sample -> packet -> port 53 .. -> dns: question, answers remembered -> system
//!                  -> udp       -> quic (Initial)      -> tls: server name -> catalogue -> Named
//!                  -> tcp       -> stream (reassembly) -> opening: tls, http, after proxies' prefixes -> catalogue -> Named
//!                  -> else      -> signature: a protocol's first bytes -> its app, or the name's -> Named
//!                  -> else      ------------------------> dns answers seen -> catalogue -> Named | GiveUp
//! ```

pub(crate) mod aged;
pub mod catalogue;
pub mod dns;
mod dns_stream;
mod http;
mod in_progress;
pub mod name;
mod opening;
pub mod packet;
mod quic;
mod signature;
mod stream;
mod tls;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use usher_models::Class;
use usher_models::units::Micros;
use usher_models::wire::{Direction, FlowKey};

use self::aged::Aged;
pub use self::catalogue::{Catalogue, CatalogueError};
use self::dns::{AnswerLimits, Answers, Asker};
use self::in_progress::{InProgress, Step};
use self::packet::{Packet, Payload, Segment};
use self::signature::Signature;
pub use self::verdict::{Concluded, GUESSED, INFERRED, Observation, SIGNED, SURE, Verdict, Via};
use crate::dataplane::Sample;

/// A flow without a verdict that is seen to begin again this long after it was given up gets another chance. Not at once:
/// the kernel's clock and the wall clock do not agree to the microsecond.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A port makes calls of one app for this long after it was seen to: a device gives its ports anew.
const CALLER_AGE: Duration = Duration::from_mins(2);
/// The app of DNS itself.
pub const DNS_APP: &str = "dns";

/// Bounds of what a [`Classifier`] holds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Flows whose first bytes are being put together.
    pub streams: usize,
    /// Their bytes, all together.
    pub stream_bytes: usize,
    /// How long a flow's first bytes may take.
    pub stream_age: Duration,
    /// Flows told about that are remembered, so that none is told about twice.
    pub told: usize,
    /// Ports that calls come from.
    pub callers: usize,
    /// DNS answers.
    pub answers: AnswerLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 16_384,
            stream_bytes: 16 * 1024 * 1024,
            stream_age: Duration::from_secs(10),
            told: 65_536,
            callers: 16_384,
            answers: AnswerLimits::default(),
        }
    }
}

/// Flows in, verdicts out.
#[derive(Debug)]
pub struct Classifier {
    catalogue: Catalogue,
    limits: Limits,
    streams: Aged<FlowKey, InProgress>,
    stream_bytes: usize,
    told: Aged<FlowKey, Told>,
    answers: Answers,
    /// Apps that a subscriber's address and UDP port were seen to make calls by, and when.
    callers: Aged<([u8; 16], u16), (&'static str, Micros)>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    malformed_packets: u64,
    malformed_dns: u64,
    streams_evicted: u64,
    streams_expired: u64,
    streams_too_long: u64,
    /// Not a loss by itself: a later sample of the flow, if one comes, is classified anew.
    verdicts_forgotten: u64,
}

#[derive(Debug)]
struct Told {
    class: Class,
    sampling: bool,
    named: bool,
    at: Micros,
    /// Where the client's stream began: a handshake with another number is a new connection on the same ports.
    start: Option<u32>,
}

impl Classifier {
    /// A classifier by `catalogue`, with the default bounds.
    pub fn new(catalogue: Catalogue) -> Self {
        Self::with_limits(catalogue, Limits::default())
    }

    /// A classifier with bounds of its own.
    pub fn with_limits(catalogue: Catalogue, limits: Limits) -> Self {
        Self {
            catalogue,
            limits,
            streams: Aged::new(limits.streams),
            stream_bytes: 0,
            told: Aged::new(limits.told),
            answers: Answers::new(limits.answers),
            callers: Aged::new(limits.callers),
            counters: Counters::default(),
        }
    }

    /// Uses another catalogue from now on; what has been told stays.
    pub fn replace_catalogue(&mut self, catalogue: Catalogue) {
        self.catalogue = catalogue;
    }

    /// Forgets the DNS answers of a slot: its session is over.
    pub fn forget(&mut self, slot: u32) {
        self.answers.forget(Asker::Slot(slot));
    }

    /// Looks at one packet of a flow.
    pub fn observe(&mut self, sample: &Sample<'_>) -> Observation {
        let Ok(packet) = Packet::parse(&sample.packet) else {
            self.counters.malformed_packets += 1;
            return Observation::NeedMore;
        };
        match packet.payload {
            Payload::Udp(datagram) if is_dns(&sample.flow) => self.observe_dns(sample, datagram),
            Payload::Tcp(segment) if is_dns(&sample.flow) => self.observe_dns_stream(sample, &segment),
            Payload::Udp(datagram) => self.observe_udp(sample, datagram),
            Payload::Tcp(segment) => self.observe_tcp(sample, &segment),
            Payload::Other(_) => self.observe_opaque(sample),
            Payload::Hidden => self.told_before(sample, None).unwrap_or(Observation::NeedMore),
        }
    }

    /// Concludes flows whose first bytes have taken too long, and forgets what has passed.
    pub fn expire(&mut self, now: Micros) -> Vec<Concluded> {
        let mut concluded = Vec::new();
        while let Some((flow, stream)) =
            self.streams.oldest().filter(|(_, stream)| now.since(stream.since) > self.limits.stream_age)
        {
            let is_told = self.told.get(flow).is_some();
            self.counters.streams_expired += u64::from(!is_told);
            if is_told || stream.is_silent() {
                // A connection opened in advance: its first bytes may still come, and will show that they are the first.
                let flow = *flow;
                self.take_stream(&flow);
            } else {
                concluded.extend(self.conclude_oldest());
            }
        }
        self.answers.expire(now);
        concluded
    }

    /// Concludes all flows in progress: no more samples will come.
    pub fn finish(&mut self) -> Vec<Concluded> {
        std::iter::from_fn(|| self.conclude_oldest()).collect()
    }

    /// How often each bound and refusal took effect, by reason.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("malformed_packet", self.counters.malformed_packets),
            ("malformed_dns", self.counters.malformed_dns),
            ("stream_evicted", self.counters.streams_evicted),
            ("stream_expired", self.counters.streams_expired),
            ("stream_too_long", self.counters.streams_too_long),
            ("answer_evicted", self.answers.evicted),
            ("answer_unasked", self.answers.unasked),
            ("question_evicted", self.answers.questions_evicted),
            ("verdict_forgotten", self.counters.verdicts_forgotten),
        ]
    }

    /// How much is held now, by kind: flows in progress, their bytes, DNS answers.
    pub fn held(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("streams", self.streams.len()),
            ("stream_bytes", self.stream_bytes),
            ("answers", self.answers.len()),
        ]
    }

    fn observe_dns(&mut self, sample: &Sample<'_>, datagram: &[u8]) -> Observation {
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
            self.take_stream(&sample.flow);
            return self.name_dns(sample, message, None, true);
        }
        if self.streams.get(&sample.flow).is_none() {
            self.put_stream(sample, InProgress::dns(sample, None));
        }
        self.advance(sample, false, |stream| stream.datagram(sample.direction, datagram))
    }

    fn observe_dns_stream(&mut self, sample: &Sample<'_>, segment: &Segment<'_>) -> Observation {
        let opening = segment.opening(sample.direction).map(|(_, start)| start);
        let told = self.told_before(sample, opening);
        let is_told = told.is_some();
        if let Some(again @ Observation::Again { sampling: false, .. }) = told {
            return again;
        }
        let known = self.streams.get(&sample.flow).map(InProgress::start);
        if !is_told && known.is_none_or(|start| opening.is_some() && start != opening) {
            self.put_stream(sample, InProgress::dns(sample, opening));
        }
        let (mut messages, mut more, mut start) = (Vec::new(), false, opening);
        if let Some(stream) = self.streams.get_mut(&sample.flow) {
            let held = stream.held();
            (messages, more) = stream.messages(sample.direction, segment);
            start = stream.start();
            self.stream_bytes = self.stream_bytes - held + stream.held();
            more &= !segment.ends;
        }
        for message in &messages {
            self.hear(sample, message);
        }
        if more {
            self.keep_within_bounds();
        } else {
            self.take_stream(&sample.flow);
        }
        match (is_told, messages.into_iter().next()) {
            (false, Some(message)) => self.name_dns(sample, message, start, more),
            (false, None) if more => Observation::NeedMore,
            (false, None) => self.conclude(sample.flow, sample.slot, None, start, sample.seen),
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
            (Direction::Up, false) => self.answers.ask(&sample.flow, message),
            (Direction::Down, true) => {
                let asker = Asker::of(sample.slot, &sample.flow);
                self.answers.hear(asker, &sample.flow, message, sample.seen);
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
        let told = Told { class: Class::System, sampling, named: true, at: sample.seen, start };
        self.tell(sample.flow, told);
        Observation::Named(Verdict {
            app: Some(DNS_APP.into()),
            class: Class::System,
            via: Via::Dns,
            confidence: SURE,
            name: message.asked,
            keeps_sampling: sampling,
        })
    }

    /// A packet of a flow that only the address can name.
    fn observe_opaque(&mut self, sample: &Sample<'_>) -> Observation {
        match self.told_before(sample, None) {
            Some(again) => again,
            None => self.conclude(sample.flow, sample.slot, None, None, sample.seen),
        }
    }

    fn observe_udp(&mut self, sample: &Sample<'_>, datagram: &[u8]) -> Observation {
        if let Some(again) = self.told_before(sample, None) {
            return again;
        }
        if self.streams.get(&sample.flow).is_none() {
            if !quic::may_begin(datagram) {
                let ports = [sample.flow.subscriber_port, sample.flow.remote_port];
                return match signature::udp(ports, datagram) {
                    Some(signature) => self.conclude_protocol(sample, signature, None),
                    None if dns::is_certain_question(datagram) => self.observe_dns(sample, datagram),
                    None => self.observe_opaque(sample),
                };
            }
            self.put_stream(sample, InProgress::quic(sample));
        }
        self.advance(sample, false, |stream| stream.datagram(sample.direction, datagram))
    }

    fn observe_tcp(&mut self, sample: &Sample<'_>, segment: &Segment<'_>) -> Observation {
        let opening = segment.opening(sample.direction);
        if let Some(again) = self.told_before(sample, opening.map(|(_, start)| start)) {
            return again;
        }
        if let Some((client, start)) = opening {
            let same = self.streams.get(&sample.flow).is_some_and(|stream| stream.start() == Some(start));
            if !same {
                self.put_stream(sample, InProgress::opened(sample, client, start));
            }
        } else if segment.bytes.is_empty() && !segment.ends {
            return Observation::NeedMore;
        } else if self.streams.get(&sample.flow).is_none() {
            self.put_stream(sample, InProgress::unopened(sample));
        }
        if !segment.bytes.is_empty() {
            self.restart_if_silent(sample);
        }
        self.advance(sample, segment.ends, |stream| stream.segment(sample.direction, segment))
    }

    /// Takes a packet into the flow's first bytes, and concludes the flow if that was enough, too much or the last.
    fn advance(
        &mut self,
        sample: &Sample<'_>,
        ends: bool,
        take: impl FnOnce(&mut InProgress) -> Step,
    ) -> Observation {
        let Some(stream) = self.streams.get_mut(&sample.flow) else { return Observation::NeedMore };
        let held = stream.held();
        let mut step = take(stream);
        self.stream_bytes = self.stream_bytes - held + stream.held();
        let overdue = sample.seen.since(stream.since) > self.limits.stream_age;
        match step {
            Step::More if overdue => self.counters.streams_expired += 1,
            Step::More if ends => {}
            Step::More => {
                self.keep_within_bounds();
                return Observation::NeedMore;
            }
            Step::TooMuch => self.counters.streams_too_long += 1,
            Step::Name(..) | Step::Protocol(_) | Step::Nothing => {}
        }
        let start = stream.start();
        let name =
            if let Step::Name(name, via) = &mut step { Some((std::mem::take(name), *via)) } else { None };
        self.take_stream(&sample.flow);
        match step {
            Step::Protocol(signature) => self.conclude_protocol(sample, signature, start),
            _ => self.conclude(sample.flow, sample.slot, name, start, sample.seen),
        }
    }

    /// The time a stream's first bytes may take begins with the first of them, however long the connection was open before.
    fn restart_if_silent(&mut self, sample: &Sample<'_>) {
        let waited = |stream: &InProgress| stream.is_silent() && stream.since != sample.seen;
        if self.streams.get(&sample.flow).is_some_and(waited)
            && let Some(mut stream) = self.take_stream(&sample.flow)
        {
            stream.since = sample.seen;
            self.put_stream(sample, stream);
        }
    }

    /// What was told about a flow, unless this sample shows that it is another flow by now.
    fn told_before(&mut self, sample: &Sample<'_>, start: Option<u32>) -> Option<Observation> {
        let told = self.told.get(&sample.flow)?;
        let reopened = start.is_some() && told.start != start;
        let retried = !told.named && sample.first_packet > told.at.after(RETRY_AFTER);
        if reopened || retried {
            self.told.remove(&sample.flow);
            return None;
        }
        Some(Observation::Again { class: told.class, sampling: told.sampling })
    }

    /// The flow's verdict by the name it carries, else by the name its other end was called, else none.
    fn conclude(
        &mut self,
        flow: FlowKey,
        slot: u32,
        name: Option<(Box<str>, Via)>,
        start: Option<u32>,
        now: Micros,
    ) -> Observation {
        let learnt = || self.answers.name(Asker::of(slot, &flow), &flow.remote, now);
        let verdict = match name {
            // A hello in a hello: the outer one names the server's operator, and DNS what was asked for.
            Some((outer, Via::Sni)) if OUTER_NAMES.contains(&&*outer) && learnt().is_some() => {
                learnt().map(|name| self.verdict(name.into(), Via::Dns, &flow))
            }
            Some((name, via)) if name::host(&name).is_some() => Some(self.verdict(name, via, &flow)),
            // A request to an address: DNS may know what is behind it.
            Some((address, via)) => Some(match learnt() {
                Some(learnt) => {
                    Verdict { name: Some(address), ..self.verdict(learnt.into(), Via::Dns, &flow) }
                }
                None => match self.of_prefix(&flow) {
                    Some(guess) => Verdict { name: Some(address), ..guess },
                    None => self.verdict(address, via, &flow),
                },
            }),
            None => learnt()
                .map(|name| self.verdict(name.into(), Via::Dns, &flow))
                .or_else(|| self.of_prefix(&flow)),
        };
        let class = verdict.as_ref().map_or(Class::Other, |verdict| verdict.class);
        let told = Told { class, sampling: false, named: verdict.is_some(), at: now, start };
        self.tell(flow, told);
        verdict.map_or(Observation::GiveUp, Observation::Named)
    }

    /// The flow is of this protocol. Which of the apps that share one it is of, its other end's name may tell; or that a
    /// packet from the same port gave an app away, as a call's do that reach a relay first and the other party then.
    fn conclude_protocol(
        &mut self,
        sample: &Sample<'_>,
        signature: Signature,
        start: Option<u32>,
    ) -> Observation {
        let flow = &sample.flow;
        let port = (flow.subscriber, flow.subscriber_port);
        let (mut app, mut name, mut confidence) = (Arc::from(signature.app), None, SIGNED);
        if !signature.shared {
            if signature.class == Class::Call && flow.protocol == packet::UDP {
                self.callers.insert(port, (signature.app, sample.seen));
            }
        } else if let Some(learnt) =
            self.answers.name(Asker::of(sample.slot, flow), &flow.remote, sample.seen)
        {
            if let Some(entry) = self.catalogue.look_up(learnt) {
                (app, confidence) = (Arc::clone(&entry.app), INFERRED);
            }
            name = Some(learnt.into());
        } else if let Some((known, at)) = self.callers.get(&port)
            && sample.seen.since(*at) < CALLER_AGE
        {
            (app, confidence) = (Arc::from(*known), INFERRED);
        }
        self.tell(
            *flow,
            Told { class: signature.class, sampling: false, named: true, at: sample.seen, start },
        );
        Observation::Named(Verdict {
            app: Some(app),
            class: signature.class,
            via: Via::Signature,
            confidence,
            name,
            keeps_sampling: false,
        })
    }

    fn tell(&mut self, flow: FlowKey, told: Told) {
        let forgotten = self.told.insert(flow, told);
        self.counters.verdicts_forgotten += u64::from(forgotten.is_some());
    }

    /// What the other end's address alone says.
    fn of_prefix(&self, flow: &FlowKey) -> Option<Verdict> {
        let entry = self.catalogue.look_up_address(packet::address(flow.remote))?;
        Some(Verdict {
            app: Some(Arc::clone(&entry.app)),
            class: entry.class,
            via: Via::Prefix,
            confidence: GUESSED,
            name: None,
            keeps_sampling: false,
        })
    }

    fn verdict(&self, name: Box<str>, via: Via, flow: &FlowKey) -> Verdict {
        let entry = name::host(&name).and_then(|host| self.catalogue.look_up(host));
        let carried = via != Via::Dns;
        let unknown =
            if carried || WEB_PORTS.contains(&flow.remote_port) { Class::Web } else { Class::Other };
        Verdict {
            app: entry.map(|entry| Arc::clone(&entry.app)),
            class: entry.map_or(unknown, |entry| entry.class),
            via,
            confidence: if carried { SURE } else { INFERRED },
            name: Some(name),
            keeps_sampling: false,
        }
    }

    /// By what was known when it began; of those that were not told about yet.
    fn conclude_oldest(&mut self) -> Option<Concluded> {
        loop {
            let flow = *self.streams.oldest()?.0;
            let stream = self.take_stream(&flow)?;
            if self.told.get(&flow).is_none() {
                let InProgress { slot, first_packet, .. } = stream;
                let observation = self.conclude(flow, slot, None, stream.start(), stream.since);
                return Some(Concluded { flow, slot, first_packet, observation });
            }
        }
    }

    fn put_stream(&mut self, sample: &Sample<'_>, stream: InProgress) {
        self.take_stream(&sample.flow);
        if let Some((_, evicted)) = self.streams.insert(sample.flow, stream) {
            self.stream_bytes -= evicted.held();
            self.counters.streams_evicted += 1;
        }
    }

    fn take_stream(&mut self, flow: &FlowKey) -> Option<InProgress> {
        let stream = self.streams.remove(flow)?;
        self.stream_bytes -= stream.held();
        Some(stream)
    }

    fn keep_within_bounds(&mut self) {
        while self.stream_bytes > self.limits.stream_bytes {
            let Some((_, evicted)) = self.streams.pop_oldest() else { break };
            self.stream_bytes -= evicted.held();
            self.counters.streams_evicted += 1;
        }
    }
}

/// Names that operators publish for the outer hello of an encrypted one (RFC 9849), and for nothing else. A client that only
/// pretends to encrypt (GREASE) shows the true name there, and cannot be told apart by anything else.
const OUTER_NAMES: [&str; 1] = ["cloudflare-ech.com"];
/// Ports whose unknown names are [`Class::Web`].
const WEB_PORTS: [u16; 4] = [80, 443, 8080, 8443];

fn is_dns(flow: &FlowKey) -> bool {
    [flow.subscriber_port, flow.remote_port]
        .into_iter()
        .any(|port| matches!(port, dns::PORT | dns::MULTICAST_PORT | dns::LINK_LOCAL_PORT))
}

#[cfg(test)]
mod tests;
