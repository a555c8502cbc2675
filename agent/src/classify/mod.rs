//! Sans-I/O: bytes in, verdicts out.
//!
//! Owns what a flow is: the name the client asks for in a ClientHello of TLS or QUIC or in an HTTP request first, then the
//! protocol its first bytes show, then the name by which the subscriber's DNS answers called the other end's address,
//! its address last ([`Via`]). What its packets are like later may change its class, and a stronger proof its app. The
//! [`Catalogue`] says which app and class a name belongs to. Refuses clocks, files and
//! sockets: packets come in as [`Sample`]s, time comes with them, and everything held is bounded ([`Limits`]), each bound
//! with a counter that rises when it bites.
//!
//! ```text
//! Sample -> packet -> port 53 .., unless its bytes say otherwise -> dns: question -> system; answers: remembered
//!                  -> told before, nothing to learn -> Again
//!                  -> udp  -> quic (Initial)      -> tls: server name \
//!                  -> tcp  -> stream (reassembly) -> opening: tls, http, after proxies' prefixes \
//!                  -> else -> signature: a protocol's first bytes; media: several packets of RTP --> a proof
//!
//! proof, or none -> knowledge: catalogue, DNS answers, callers, prefixes -> Named | GiveUp,  later Upgraded
//! told, watched  -> looks: sizes and times of a few later packets        -> Upgraded: call, video, bulk
//! ```

pub(crate) mod aged;
mod answers;
mod beginnings;
pub mod catalogue;
mod conversations;
pub mod dns;
mod dns_stream;
mod ech;
mod handshakes;
mod held;
mod http;
mod in_progress;
mod knowledge;
mod looks;
mod media;
pub mod name;
mod naming;
mod opening;
pub mod packet;
mod quic;
mod shares;
mod signature;
mod stream;
mod tls;
mod told;
mod verdict;
mod waiting;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use usher_models::units::Micros;
use usher_models::wire::FlowKey;

use self::answers::Asker;
use self::beginnings::Beginnings;
pub use self::catalogue::{Catalogue, CatalogueError};
use self::handshakes::{Handshake, Handshakes};
use self::held::Held;
use self::in_progress::InProgress;
use self::knowledge::{Knowledge, Proof, Scene};
use self::looks::Glimpse;
use self::packet::{Packet, Payload, Segment};
pub use self::shares::ShareLimits;
use self::signature::Signature;
use self::told::Told;
use self::verdict::Strength;
pub use self::verdict::{
    Concluded, Confidence, GUESSED, INFERRED, Observation, SIGNED, SURE, UNOWNED, Verdict, Via,
};
use self::waiting::Waiting;
use crate::dataplane::Sample;

/// A flow without a verdict that is seen to begin again this long after it was given up gets another chance. Not at once:
/// the kernel's clock and the wall clock do not agree to the microsecond.
const RETRY_AFTER: Duration = Duration::from_secs(1);
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
    /// Of them, those whose later packets are looked at.
    pub watched: usize,
    /// Clues that flows told about wait for, and upgrades that wait to be told.
    pub waiting: usize,
    /// Ports that calls come from.
    pub callers: ShareLimits,
    /// Names under which hellos may hide others.
    pub outer_names: ShareLimits,
    /// DNS answers.
    pub answers: ShareLimits,
    /// DNS questions that wait for their answer.
    pub questions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 16_384,
            stream_bytes: 16 * 1024 * 1024,
            stream_age: Duration::from_secs(10),
            told: 65_536,
            watched: 16_384,
            waiting: 8_192,
            callers: ShareLimits { askers: 16_384, each: 64, total: 16_384 },
            outer_names: ShareLimits { askers: 16_384, each: 16, total: 16_384 },
            answers: ShareLimits { askers: 200_000, each: 512, total: 400_000 },
            questions: 65_536,
        }
    }
}

/// Flows in, verdicts out.
#[derive(Debug)]
pub struct Classifier {
    limits: Limits,
    knowledge: Knowledge,
    handshakes: Handshakes,
    beginnings: Beginnings,
    told: Held<FlowKey, Told>,
    /// How many of them are watched, and when each is looked at next: a queue for each look, in the order of time.
    watched: usize,
    looks: [VecDeque<(Micros, FlowKey)>; looks::AFTER.len()],
    waiting: Waiting,
    /// Upgrades that another flow's packet led to.
    due: Vec<Concluded>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    malformed_packets: u64,
    malformed_dns: u64,
    /// Not a loss by itself: a later sample of the flow, if one comes, is classified anew.
    verdicts_forgotten: u64,
    /// Flows whose class by name stays, whatever their packets are like.
    unwatched: u64,
    upgrades_untold: u64,
}

impl Classifier {
    /// A classifier by `catalogue`, with the default bounds.
    pub fn new(catalogue: Catalogue) -> Self {
        Self::with_limits(catalogue, Limits::default())
    }

    /// A classifier with bounds of its own.
    pub fn with_limits(catalogue: Catalogue, limits: Limits) -> Self {
        Self {
            limits,
            knowledge: Knowledge::new(catalogue, &limits),
            handshakes: Handshakes::new(),
            beginnings: Beginnings::new(&limits),
            told: Held::new(limits.told),
            watched: 0,
            looks: Default::default(),
            waiting: Waiting::new(limits.waiting),
            due: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Uses another catalogue from now on; what has been told stays.
    pub fn replace_catalogue(&mut self, catalogue: Catalogue) {
        self.knowledge.catalogue = catalogue;
    }

    /// Forgets what a slot's packets told: its session is over.
    pub fn forget(&mut self, slot: u32) {
        self.knowledge.forget(Asker::Slot(slot));
    }

    /// Looks at one packet of a flow.
    pub fn observe(&mut self, sample: &Sample<'_>) -> Observation {
        let Ok(packet) = Packet::parse(&sample.packet) else {
            self.counters.malformed_packets += 1;
            return Observation::NeedMore;
        };
        match packet.payload {
            Payload::Udp(datagram) if is_dns(&sample.flow) => self.observe_dns(sample, datagram),
            Payload::Tcp(segment) if self.is_dns_stream(&sample.flow, &segment) => {
                self.observe_dns_stream(sample, &segment)
            }
            Payload::Udp(datagram) => self.observe_udp(sample, datagram),
            Payload::Tcp(segment) => self.observe_tcp(sample, &segment),
            Payload::Other(_) => self.observe_other(sample, packet.protocol),
            Payload::Hidden => self.told_before(sample, None).unwrap_or(Observation::NeedMore),
        }
    }

    /// Tells what time brings, and what a packet told about other flows than its own: flows whose first bytes have taken
    /// too long are concluded, those to be looked at again are asked for, what has passed is forgotten. Meant for every
    /// second or so.
    pub fn expire(&mut self, now: Micros) -> Vec<Concluded> {
        let mut concluded = std::mem::take(&mut self.due);
        while let Some((flow, stream)) = self.beginnings.pop_expired(now) {
            concluded.extend(self.conclude_stream(flow, &stream));
        }
        self.begin_looks(now, &mut concluded);
        self.knowledge.expire(now);
        concluded
    }

    /// Concludes all flows in progress: no more samples will come.
    pub fn finish(&mut self) -> Vec<Concluded> {
        let mut concluded = std::mem::take(&mut self.due);
        while let Some((flow, stream)) = self.beginnings.pop_oldest() {
            concluded.extend(self.conclude_stream(flow, &stream));
        }
        concluded
    }

    /// How often each bound and refusal took effect, by reason.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let answers = &self.knowledge.answers;
        vec![
            ("malformed_packet", self.counters.malformed_packets),
            ("malformed_dns", self.counters.malformed_dns),
            ("stream_evicted", self.beginnings.evicted),
            ("stream_expired", self.beginnings.expired),
            ("stream_too_long", self.beginnings.too_long),
            ("answer_evicted", answers.evicted()),
            ("answer_unasked", answers.unasked),
            ("question_evicted", answers.questions_evicted),
            ("caller_evicted", self.knowledge.callers.evicted),
            ("outer_name_evicted", self.knowledge.outer_names.evicted),
            ("verdict_forgotten", self.counters.verdicts_forgotten),
            ("flow_unwatched", self.counters.unwatched),
            ("clue_evicted", self.waiting.evicted),
            ("upgrade_untold", self.counters.upgrades_untold),
        ]
    }

    /// How much is held now, by kind: flows in progress, their bytes, DNS answers, flows told about and those watched.
    pub fn held(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("streams", self.beginnings.len()),
            ("stream_bytes", self.beginnings.bytes()),
            ("answers", self.knowledge.answers.len()),
            ("told", self.told.len()),
            ("watched", self.watched),
        ]
    }

    /// A packet of neither TCP nor UDP.
    fn observe_other(&mut self, sample: &Sample<'_>, protocol: u8) -> Observation {
        if let Some(again) = self.told_before(sample, None) {
            return again;
        }
        let proof = signature::ip(protocol).map_or(Proof::Nothing, Proof::Protocol);
        self.name(scene(sample), proof, None, false)
    }

    fn observe_udp(&mut self, sample: &Sample<'_>, datagram: &[u8]) -> Observation {
        if let Some(again) = self.told_before(sample, None) {
            let glimpse = || Glimpse::of_datagram(sample, datagram);
            return self.learn(sample, again, glimpse, |this| match this.prove_datagram(sample, datagram) {
                Some(Proof::Nothing) => this.hear_media(sample, datagram).map(Proof::Protocol),
                proof => proof,
            });
        }
        let Some(proof) = self.prove_datagram(sample, datagram) else { return Observation::NeedMore };
        if proof == Proof::Nothing && dns::is_certain_question(datagram) {
            return self.observe_dns(sample, datagram);
        }
        let observation = self.name(scene(sample), proof, None, true);
        // The first of the packets that may prove together what one cannot.
        self.hear_media(sample, datagram);
        observation
    }

    /// What the datagrams of a flow that was told about prove together, if they are of RTP.
    fn hear_media(&mut self, sample: &Sample<'_>, datagram: &[u8]) -> Option<Signature> {
        let told = self.told.get_mut(&sample.flow)?;
        if told.media.is_none() && !(told.wants_more() && media::may_be(datagram)) {
            return None;
        }
        told.media.get_or_insert_default().push(sample.direction, datagram)
    }

    /// What a datagram proves, together with those before it; `None` where more must come.
    fn prove_datagram(&mut self, sample: &Sample<'_>, datagram: &[u8]) -> Option<Proof> {
        if !self.beginnings.holds(&sample.flow) {
            if !quic::may_begin(datagram) {
                let ports = [sample.flow.subscriber_port, sample.flow.remote_port];
                return Some(signature::udp(ports, datagram).map_or(Proof::Nothing, Proof::Protocol));
            }
            self.beginnings.put(sample.flow, InProgress::quic(sample));
        }
        let taken =
            self.beginnings.advance(sample, false, |stream| stream.datagram(sample.direction, datagram));
        taken.map(|(proof, _)| proof)
    }

    fn observe_tcp(&mut self, sample: &Sample<'_>, segment: &Segment<'_>) -> Observation {
        let opening = segment.opening(sample.direction);
        if let Some(again) = self.told_before(sample, opening.map(|opening| opening.start)) {
            let glimpse = || Glimpse::of_segment(sample, segment);
            return self.learn(sample, again, glimpse, |this| this.prove_more(sample, segment));
        }
        let silent = segment.bytes.is_empty() || in_progress::is_junk(segment.bytes);
        if !self.has_begun(sample, opening) {
            match (silent, segment.flags.end()) {
                (true, false) => return Observation::NeedMore,
                (true, true) => return self.end_of_silence(sample),
                (false, _) => self.begin(sample),
            }
        }
        match self
            .beginnings
            .advance(sample, segment.flags.end(), |stream| stream.segment(sample.direction, segment))
        {
            Some((proof, start)) => self.name(scene(sample), proof, start, !segment.flags.end()),
            None => Observation::NeedMore,
        }
    }

    /// Whether a byte of the connection was seen before. What a handshake shows is noted for the first.
    fn has_begun(&mut self, sample: &Sample<'_>, opening: Option<Handshake>) -> bool {
        if let Some(handshake) = opening {
            self.handshakes.note(&sample.flow, handshake);
            self.beginnings.drop_other_than(&sample.flow, handshake.start);
        }
        self.beginnings.holds(&sample.flow)
    }

    /// The first byte of a connection, whichever side says it.
    fn begin(&mut self, sample: &Sample<'_>) {
        let Some(handshake) = self.handshakes.take(&sample.flow) else {
            self.beginnings.put(sample.flow, InProgress::unopened(sample));
            return;
        };
        self.beginnings.put(sample.flow, InProgress::opened(sample, handshake));
        if handshake.answered {
            // Nobody who scans or floods gets an answer from a server that exists.
            self.beginnings.settle(&sample.flow);
        }
    }

    /// A connection that ends before either side said anything.
    fn end_of_silence(&mut self, sample: &Sample<'_>) -> Observation {
        let start = self.handshakes.take(&sample.flow).map(|handshake| handshake.start);
        self.name(scene(sample), Proof::Nothing, start, false)
    }

    /// What a segment of a connection proves whose first bytes proved nothing: a hello or request may still come.
    fn prove_more(&mut self, sample: &Sample<'_>, segment: &Segment<'_>) -> Option<Proof> {
        if !self.beginnings.holds(&sample.flow) {
            if !opening::may_begin(segment.bytes) {
                return Some(Proof::Nothing);
            }
            self.beginnings.put(sample.flow, InProgress::unopened(sample));
        }
        let taken = self
            .beginnings
            .advance(sample, segment.flags.end(), |stream| stream.segment(sample.direction, segment));
        taken.map(|(proof, _)| proof)
    }

    /// The app that a flow was told to be of.
    pub fn app_told(&self, flow: &FlowKey) -> Option<Arc<str>> {
        self.told.get(flow)?.app.clone()
    }

    /// What was told about a flow, unless this sample shows that it is another flow by now.
    fn told_before(&mut self, sample: &Sample<'_>, start: Option<u32>) -> Option<Observation> {
        let told = self.told.get(&sample.flow)?;
        let reopened = start.is_some() && told.start != start;
        let retried = told.strength == Strength::None && sample.first_packet > told.at.after(RETRY_AFTER);
        if reopened || retried {
            self.forget_told(&sample.flow);
            self.beginnings.drop(&sample.flow);
            return None;
        }
        let again = told.again();
        self.told.settle(&sample.flow);
        Some(again)
    }
}

fn scene<'a>(sample: &'a Sample<'_>) -> Scene<'a> {
    let Sample { flow, slot, first_packet, seen, .. } = sample;
    Scene { flow, slot: *slot, first_packet: *first_packet, now: *seen }
}

fn is_dns(flow: &FlowKey) -> bool {
    [flow.subscriber_port, flow.remote_port]
        .into_iter()
        .any(|port| matches!(port, dns::PORT | dns::MULTICAST_PORT | dns::LINK_LOCAL_PORT))
}

#[cfg(test)]
mod tests;
