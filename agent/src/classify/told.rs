//! What was told about a flow, and what may still be learnt of it.

use std::sync::Arc;

use usher_models::Class;
use usher_models::units::Micros;

use super::knowledge::Scene;
use super::looks::{Kind, Looks};
use super::media::Media;
use super::signature::{Signature, Whose};
use super::verdict::{Observation, Strength, Verdict, Via};

/// Samples after a verdict from addresses alone through which the bytes may still prove more. With the first bytes and the
/// looks they stay within what a probe hands out of a flow.
const LATE: u8 = 8;
/// Apps to talk by: what streams in them are files. In other apps of people it is video.
const MESSENGERS: [&str; 22] = [
    "discord",
    "facetime",
    "google-meet",
    "imessage",
    "kakao",
    "line",
    "messenger",
    "microsoft-teams",
    "qq",
    "signal",
    "skype",
    "slack",
    "teams",
    "telegram",
    "threema",
    "viber",
    "webex",
    "wechat",
    "whatsapp",
    "wire",
    "zalo",
    "zoom",
];

/// A flow that has been told about.
#[derive(Debug)]
pub(crate) struct Told {
    /// Whose it is.
    pub(crate) slot: u32,
    pub(crate) class: Class,
    pub(crate) app: Option<Arc<str>>,
    pub(crate) strength: Strength,
    /// The protocol that its bytes proved, whoever's it is.
    pub(crate) signature: Option<Signature>,
    /// A DNS conversation that goes on.
    pub(crate) sampling: bool,
    /// Samples through which its bytes may still prove more.
    pub(crate) late: u8,
    pub(crate) first_packet: Micros,
    pub(crate) at: Micros,
    /// Where the client's stream began: a handshake with another number is a new connection on the same ports.
    pub(crate) start: Option<u32>,
    pub(crate) media: Option<Box<Media>>,
    pub(crate) watch: Option<Box<Watch>>,
    /// Whether its packets gave it its class.
    pub(crate) by_packets: bool,
}

/// A flow whose class its packets may change.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) looks: Looks,
    /// What was told.
    pub(crate) verdict: Verdict,
}

impl Told {
    /// A flow of which nothing more is to be learnt.
    pub(crate) fn new(scene: Scene<'_>, class: Class, strength: Strength, start: Option<u32>) -> Self {
        Self {
            slot: scene.slot,
            class,
            app: None,
            strength,
            signature: None,
            sampling: false,
            late: 0,
            first_packet: scene.first_packet,
            at: scene.now,
            start,
            media: None,
            watch: None,
            by_packets: false,
        }
    }

    /// More may be learnt from its next packets: its bytes did not prove whose it is.
    pub(crate) fn stays_open(&mut self) {
        self.late = LATE;
    }

    /// Whether the next packets are of use.
    pub(crate) fn wants_more(&self) -> bool {
        self.sampling || self.late > 0 || self.watch.as_ref().is_some_and(|watch| watch.looks.is_open())
    }

    /// That what was told still holds.
    pub(crate) fn again(&self) -> Observation {
        Observation::Again { class: self.class, sampling: self.wants_more() }
    }

    /// The verdict that the flow's packets changed, if they do now.
    pub(crate) fn judge_packets(&mut self) -> Option<Verdict> {
        let watch = self.watch.as_ref()?;
        let class = watch.looks.class();
        if class.is_none() && (watch.looks.is_open() || watch.looks.next().is_some()) {
            return None;
        }
        // Nothing more is looked at, whatever was found.
        let watch = self.watch.take()?;
        let class = class.filter(|class| *class != self.class)?;
        (self.class, self.by_packets) = (class, true);
        let confidence = watch.verdict.confidence.min(super::INFERRED);
        Some(Verdict {
            class,
            via: Via::Packets,
            confidence,
            keeps_sampling: self.wants_more(),
            ..watch.verdict
        })
    }
}

/// Whether a flow's packets may show another class than its verdict gives it, and as whose they are judged.
pub(crate) fn watched_as(verdict: &Verdict, signature: Option<Signature>) -> Option<Kind> {
    if signature.is_some_and(|signature| signature.whose == Whose::Many && signature.class == Class::Call) {
        return Some(Kind::CallProtocol);
    }
    let app = verdict.app.as_deref()?;
    match verdict.class {
        // A protocol of calls alone needs no look.
        Class::Call if signature.is_some() => None,
        Class::Call => Some(Kind::Messenger),
        Class::Social if MESSENGERS.binary_search(&app).is_ok() => Some(Kind::Messenger),
        Class::Social => Some(Kind::Network),
        Class::Other | Class::Video | Class::Game | Class::Web | Class::Bulk | Class::System => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn messengers_are_in_order() {
        assert!(super::MESSENGERS.is_sorted());
    }
}
