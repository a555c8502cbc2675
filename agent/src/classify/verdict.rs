//! What is told about a flow, what that rests on, and which proof gives way to which.

use std::fmt;
use std::sync::Arc;

use usher_models::Class;
use usher_models::units::Micros;
use usher_models::wire::FlowKey;

/// What a verdict rests on.
///
/// How often the app was right, on 299 public captures of which a hundred were never looked at, is the confidence that a
/// verdict tells, a little below it. Of flows that a widely used engine labelled with a brand by inspection; of `dns` and `prefix`,
/// what they would have said of flows that carry a name the catalogue knows, the class right in brackets:
///
/// | via | flows | right | confidence |
/// |---|---|---|---|
/// | `sni` | 213 | 0.995 | [`SURE`] |
/// | `http` | 35 | 0.83: six of one company's names that the label calls by another of its apps | [`SURE`] |
/// | `signature`, one app's | 204 | 1.00 | [`SIGNED`] |
/// | `signature`, the app by DNS, by port or by prefix | 7 | 1.00 | [`INFERRED`], by prefix [`GUESSED`] |
/// | `signature`, nobody's (`stun`, `tls`, ..) | 6 | none: they have a brand, and the verdict a protocol | [`UNOWNED`] |
/// | `dns` | 273 | 0.88 (0.95) | [`INFERRED`] |
/// | `prefix` | 180 | 0.62 (0.69) | [`GUESSED`] |
/// | `packets` | none labelled | | that of the app, at most [`INFERRED`] |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// The server name of a ClientHello, in TLS or QUIC.
    Sni,
    /// The target or Host field of an HTTP request.
    Http,
    /// The name given to a SOCKS proxy.
    Socks,
    /// The first bytes of a protocol that carries no name.
    Signature,
    /// The flow is DNS, or the other end's address was learnt by a DNS answer.
    Dns,
    /// The other end's address is in a prefix of one app's.
    Prefix,
    /// The sizes and times of its packets, which give it another class than its app has by name.
    Packets,
}

/// How strong the proof of a flow's app is, the weakest first. A verdict gives way to a stronger proof alone, so it changes
/// at most as often as there are strengths, and never back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Strength {
    /// No verdict.
    None,
    /// A protocol that carries anything.
    Carrier,
    /// A prefix of addresses.
    Prefix,
    /// A name that a DNS answer gave the address.
    Dns,
    /// A protocol that many apps speak.
    SharedProtocol,
    /// Such a protocol, and an app that its port or the name of its other end gave away.
    ProtocolOfApp,
    /// A protocol, or a part of one, that one app speaks.
    Protocol,
    /// A name that the flow itself carries.
    Name,
}

impl Via {
    /// As it stands in telemetry, output and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sni => "sni",
            Self::Http => "http",
            Self::Socks => "socks",
            Self::Signature => "signature",
            Self::Dns => "dns",
            Self::Prefix => "prefix",
            Self::Packets => "packets",
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a flow is.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The app's id; `None` where the catalogue does not know the name.
    pub app: Option<Arc<str>>,
    /// The class of its traffic. A name that the catalogue does not know is [`Class::Web`] if the client asked for it in
    /// this flow, or the flow goes to a port of the web, and [`Class::Other`] elsewhere.
    pub class: Class,
    /// What the verdict rests on.
    pub via: Via,
    /// How sure the app is; see [`Via`].
    pub confidence: Confidence,
    /// The host name, canonical; of HTTP, the authority as the request writes it, which may have a port and be an address.
    /// Stays on the gateway.
    pub name: Option<Box<str>>,
    /// Whether later packets of the flow are of use: DNS answers are, for other flows, and so is what may upgrade the verdict.
    pub keeps_sampling: bool,
}

/// How sure an app is, 0 to 1, in hundredths: nobody can tell finer, and a million flows hold one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Confidence(u8);

impl Confidence {
    /// The number, 0 to 1.
    pub fn get(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, part) if part % 10 == 0 => write!(f, "{whole}.{}", part / 10),
            (whole, part) => write!(f, "{whole}.{part:02}"),
        }
    }
}

/// Confidence in a name that the flow itself carries.
pub const SURE: Confidence = Confidence(98);
/// Confidence in a protocol, or a part of one, that one app speaks.
pub const SIGNED: Confidence = Confidence(97);
/// Confidence in a name by which a DNS answer called the address: addresses are shared by many names. And in an app that a
/// flow's port spoke to another address by.
pub const INFERRED: Confidence = Confidence(85);
/// Confidence in a prefix of addresses.
pub const GUESSED: Confidence = Confidence(60);
/// Confidence in a protocol that many apps speak, told as an app of its own: the class is right, whose it is is not known.
pub const UNOWNED: Confidence = Confidence(50);

/// What a sample told.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// Nothing yet: go on sampling.
    NeedMore,
    /// The flow has its verdict; told once in a flow's life.
    Named(Verdict),
    /// A stronger proof came for a flow that has been told about: this holds from now on, for packets to come. Told a few
    /// times in a flow's life at most, and never back.
    Upgraded(Verdict),
    /// The first bytes give no verdict: the flow is [`Class::Other`] and of no app. Told once in a flow's life.
    GiveUp {
        /// Whether later packets may still give one.
        keeps_sampling: bool,
    },
    /// A sample of a flow that has been told about: what was said then still holds.
    Again {
        /// The class told then.
        class: Class,
        /// Whether sampling goes on.
        sampling: bool,
    },
}

/// What was told about a flow without a further packet of it: its time was up, or no more packets come.
#[derive(Debug, Clone, PartialEq)]
pub struct Concluded {
    /// The flow.
    pub flow: FlowKey,
    /// The subscriber slot it is counted for.
    pub slot: u32,
    /// When its first packet was seen.
    pub first_packet: Micros,
    /// What was told: never that more is needed.
    pub observation: Observation,
}

impl Observation {
    /// What the data plane is to be told about the flow (`name_flow`): its class, and whether sampling goes on.
    pub fn instruction(&self) -> Option<(Class, bool)> {
        match self {
            Self::NeedMore => None,
            Self::Named(verdict) | Self::Upgraded(verdict) => Some((verdict.class, verdict.keeps_sampling)),
            Self::GiveUp { keeps_sampling } => Some((Class::Other, *keeps_sampling)),
            Self::Again { class, sampling } => Some((*class, *sampling)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confidence_is_written_as_the_number_it_is() {
        for hundredths in 0..=100 {
            let confidence = Confidence(hundredths);
            assert_eq!(confidence.to_string(), confidence.get().to_string());
        }
    }
}
