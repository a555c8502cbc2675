//! What is known besides a flow's own bytes, and what a proof found in them makes of it: the catalogue, the names that DNS
//! answers gave to addresses, and the ports that calls come from.
//!
//! Owns the way from a proof to a verdict, with its strength and confidence. Refuses to know flows.

use std::sync::Arc;
use std::time::Duration;

use usher_models::Class;
use usher_models::units::Micros;
use usher_models::wire::FlowKey;

use super::answers::{Answers, Asker};
use super::catalogue::Catalogue;
use super::shares::Shares;
use super::signature::{Signature, Whose};
use super::verdict::{GUESSED, INFERRED, SIGNED, SURE, Strength, UNOWNED, Verdict, Via};
use super::{Limits, name, packet};

/// A port makes calls of one app for this long after it was seen to: a device gives its ports anew.
const CALLER_AGE: Duration = Duration::from_mins(2);
/// Names that operators publish for the outer hello of an encrypted one (RFC 9849), and for nothing else: known without a
/// DNS answer that says so.
const OUTER_NAMES: [&str; 1] = ["cloudflare-ech.com"];
/// An outer name is one for this long after a subscriber's DNS answer said so.
const OUTER_AGE: Duration = Duration::from_hours(1);
/// Ports whose unknown names are [`Class::Web`].
const WEB_PORTS: [u16; 4] = [80, 443, 8080, 8443];

/// What a flow's own bytes proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Nothing: its addresses must do.
    Nothing,
    /// A name, or an authority, and how it was said.
    Name(Box<str>, Via),
    /// A protocol.
    Protocol(Signature),
}

/// A verdict and the strength of its app's proof.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Proven {
    pub(crate) verdict: Verdict,
    pub(crate) strength: Strength,
}

/// Who talks with whom, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene<'a> {
    pub(crate) flow: &'a FlowKey,
    pub(crate) slot: u32,
    pub(crate) first_packet: Micros,
    pub(crate) now: Micros,
}

/// Everything that is known besides the flows.
#[derive(Debug)]
pub(crate) struct Knowledge {
    pub(crate) catalogue: Catalogue,
    pub(crate) answers: Answers,
    /// Apps that a subscriber's address and UDP port were seen to make calls by, and when.
    pub(crate) callers: Shares<([u8; 16], u16), (&'static str, Micros)>,
    /// Names under which the asker's hellos may hide others, and when that was heard. Nobody else's: an answer that makes a
    /// name an outer one hides nothing from others.
    pub(crate) outer_names: Shares<Box<str>, Micros>,
}

impl Knowledge {
    pub(crate) fn new(catalogue: Catalogue, limits: &Limits) -> Self {
        Self {
            catalogue,
            answers: Answers::new(limits.answers, limits.questions),
            callers: Shares::new(limits.callers),
            outer_names: Shares::new(limits.outer_names),
        }
    }

    /// Forgets what `asker`'s packets told: the session is over.
    pub(crate) fn forget(&mut self, asker: Asker) {
        self.answers.forget(asker);
        self.callers.forget(asker);
        self.outer_names.forget(asker);
    }

    /// Forgets what has passed.
    pub(crate) fn expire(&mut self, now: Micros) {
        self.answers.expire(now);
        self.callers.expire(|(_, at)| now.since(*at) >= CALLER_AGE);
        self.outer_names.expire(|at| now.since(*at) >= OUTER_AGE);
    }

    /// What a proof makes of a flow; `None` where there is none and its addresses are of nobody.
    pub(crate) fn judge(&mut self, proof: Proof, scene: Scene<'_>) -> Option<Proven> {
        match proof {
            Proof::Protocol(signature) if signature.whose == Whose::Anybody => {
                Some(self.by_address(scene).unwrap_or_else(|| Self::by_carrier(signature)))
            }
            Proof::Protocol(signature) => Some(self.by_protocol(signature, scene)),
            // A hello in a hello: the outer one names the server's operator, and DNS what was asked for.
            Proof::Name(outer, Via::Sni) if self.is_outer(&outer, scene) => {
                Some(self.by_dns(scene).unwrap_or_else(|| self.by_name(outer, Via::Sni, scene)))
            }
            Proof::Name(name, via) if name::host(&name).is_some() => Some(self.by_name(name, via, scene)),
            // A request to an address: DNS may know what is behind it.
            Proof::Name(address, via) => Some(match self.by_address(scene) {
                Some(proven) => {
                    Proven { verdict: Verdict { name: Some(address), ..proven.verdict }, ..proven }
                }
                None => self.by_name(address, via, scene),
            }),
            Proof::Nothing => self.by_address(scene),
        }
    }

    /// A DNS answer to `asker` told that hellos to some name go under `outer`.
    pub(crate) fn hear_outer(&mut self, asker: Asker, outer: &str, now: Micros) {
        self.outer_names.insert(asker, outer.into(), now);
    }

    fn is_outer(&self, name: &str, scene: Scene<'_>) -> bool {
        let heard = || self.outer_names.get(Asker::of(scene.slot, scene.flow), name);
        OUTER_NAMES.contains(&name)
            || self.outer_names.len() > 0 && heard().is_some_and(|at| scene.now.since(*at) < OUTER_AGE)
    }

    fn by_carrier(signature: Signature) -> Proven {
        let verdict = Verdict {
            app: Some(signature.app.into()),
            class: signature.class,
            via: Via::Signature,
            confidence: UNOWNED,
            name: None,
            keeps_sampling: false,
        };
        Proven { verdict, strength: Strength::Carrier }
    }

    /// What the other end's address says, as DNS called it or else by its prefix.
    fn by_address(&self, scene: Scene<'_>) -> Option<Proven> {
        self.by_dns(scene).or_else(|| self.by_prefix(scene.flow))
    }

    fn by_dns(&self, scene: Scene<'_>) -> Option<Proven> {
        let name = self.learnt(scene)?.into();
        Some(self.by_name(name, Via::Dns, scene))
    }

    /// The name by which the subscriber learnt the other end's address.
    fn learnt(&self, scene: Scene<'_>) -> Option<&str> {
        self.answers.name(Asker::of(scene.slot, scene.flow), &scene.flow.remote, scene.now)
    }

    fn by_prefix(&self, flow: &FlowKey) -> Option<Proven> {
        let entry = self.catalogue.look_up_address(packet::address(flow.remote))?;
        let verdict = Verdict {
            app: Some(Arc::clone(&entry.app)),
            class: entry.class,
            via: Via::Prefix,
            confidence: GUESSED,
            name: None,
            keeps_sampling: false,
        };
        Some(Proven { verdict, strength: Strength::Prefix })
    }

    fn by_name(&self, name: Box<str>, via: Via, scene: Scene<'_>) -> Proven {
        let entry = name::host(&name).and_then(|host| self.catalogue.look_up(host));
        let carried = via != Via::Dns;
        let unknown =
            if carried || WEB_PORTS.contains(&scene.flow.remote_port) { Class::Web } else { Class::Other };
        let verdict = Verdict {
            app: entry.map(|entry| Arc::clone(&entry.app)),
            class: entry.map_or(unknown, |entry| entry.class),
            via,
            confidence: if carried { SURE } else { INFERRED },
            name: Some(name),
            keeps_sampling: false,
        };
        Proven { verdict, strength: if carried { Strength::Name } else { Strength::Dns } }
    }

    /// Which of the apps that share a protocol a flow is of, its other end's name may tell; or that a packet from the same
    /// port gave an app away, as a call's do that reach a relay first and the other party then; or its other end's prefix.
    fn by_protocol(&mut self, signature: Signature, scene: Scene<'_>) -> Proven {
        let flow = scene.flow;
        let (asker, port) = (Asker::of(scene.slot, flow), (flow.subscriber, flow.subscriber_port));
        let verdict = |app, confidence, name| Verdict {
            app: Some(app),
            class: signature.class,
            via: Via::Signature,
            confidence,
            name,
            keeps_sampling: false,
        };
        if signature.whose == Whose::Its {
            if signature.class == Class::Call && flow.protocol == packet::UDP {
                self.callers.insert(asker, port, (signature.app, scene.now));
            }
            let verdict = verdict(signature.app.into(), SIGNED, None);
            return Proven { verdict, strength: Strength::Protocol };
        }
        let name: Option<Box<str>> = self.learnt(scene).map(Into::into);
        if let Some(entry) = name.as_deref().and_then(|name| self.catalogue.look_up(name)) {
            let verdict = verdict(Arc::clone(&entry.app), INFERRED, name);
            return Proven { verdict, strength: Strength::ProtocolOfApp };
        }
        if let Some((app, at)) = self.callers.get(asker, &port)
            && scene.now.since(*at) < CALLER_AGE
        {
            let verdict = verdict(Arc::from(*app), INFERRED, name);
            return Proven { verdict, strength: Strength::ProtocolOfApp };
        }
        match self.catalogue.look_up_address(packet::address(flow.remote)) {
            Some(entry) if name.is_none() => {
                let verdict = verdict(Arc::clone(&entry.app), GUESSED, None);
                Proven { verdict, strength: Strength::SharedProtocol }
            }
            _ => {
                let verdict = verdict(signature.app.into(), UNOWNED, name);
                Proven { verdict, strength: Strength::SharedProtocol }
            }
        }
    }
}
