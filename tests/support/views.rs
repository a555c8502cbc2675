//! What the operator's CLI shows, read as a script would read it.

use anyhow::{Context as _, Result, anyhow};
use jiff::Timestamp;
use serde_json::Value;

use crate::site::Site;

/// Why settings changed, as listings name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The plan's own.
    Plan,
    /// A decision.
    Decision,
    /// A tap.
    Tap,
    /// The time of a setting was up.
    Expiry,
}

impl Cause {
    const fn word(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Decision => "decision",
            Self::Tap => "tap",
            Self::Expiry => "expiry",
        }
    }

    fn is(self, cause: &Value) -> bool {
        cause.as_str() == Some(self.word()) || cause.get(self.word()).is_some()
    }
}

/// One push with its elements' parts.
#[derive(Debug, Clone)]
pub struct Push(pub Value);

impl Push {
    /// Its id.
    pub fn id(&self) -> &str {
        text(&self.0, "/id")
    }

    /// How far it is.
    pub fn state(&self) -> &str {
        text(&self.0, "/state")
    }

    /// The value it brings of one setting.
    pub fn setting(&self, name: &str) -> &str {
        text(&self.0, &format!("/settings/{name}/value"))
    }

    /// Revision of the settings.
    pub fn revision(&self) -> u64 {
        self.0["revision"].as_u64().unwrap_or_default()
    }

    /// The elements that took part, as `name: state`.
    pub fn parts(&self) -> Vec<(String, String)> {
        self.elements()
            .map(|part| (text(part, "/element").to_owned(), text(part, "/state").to_owned()))
            .collect()
    }

    /// From the wish to the setting in force on the first element of a kind, milliseconds.
    pub fn enforced_ms(&self, kind: &str) -> Option<u64> {
        let desired = time(&self.0, "/desired")?;
        let part = self.elements().find(|part| text(part, "/element").starts_with(kind))?;
        let enforced = time(part, "/enforced")?;
        u64::try_from(enforced.as_millisecond() - desired.as_millisecond()).ok()
    }

    fn elements(&self) -> impl Iterator<Item = &Value> {
        self.0["elements"].as_array().into_iter().flatten()
    }
}

/// What was counted of one subscriber (`None`: of nobody known), class and direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Whose.
    pub subscriber: Option<String>,
    /// Kind of use.
    pub class: String,
    /// `up` or `down`.
    pub direction: String,
    /// Innermost IP bytes let through.
    pub bytes: u64,
    /// Packets let through.
    pub packets: u64,
    /// Innermost IP bytes held back.
    pub dropped_bytes: u64,
    /// Packets held back.
    pub dropped_packets: u64,
}

impl Site {
    /// All pushes of a subscriber, oldest first, without their parts.
    pub fn pushes(&self, subscriber: &str) -> Result<Vec<Push>> {
        let listed = self.ask(&["push", "list", "--subscriber", subscriber])?;
        let mut pushes: Vec<_> = items(&listed)?.iter().cloned().map(Push).collect();
        pushes.sort_by_key(Push::revision);
        Ok(pushes)
    }

    /// The newest push of a subscriber for a cause, with its parts.
    pub fn push(&self, subscriber: &str, cause: Cause) -> Result<Option<Push>> {
        let pushes = self.pushes(subscriber)?;
        let Some(push) = pushes.iter().rev().find(|push| cause.is(&push.0["cause"])) else { return Ok(None) };
        Ok(Some(Push(self.ask(&["push", "show", push.id()])?)))
    }

    /// All totals.
    pub fn usage(&self) -> Result<Vec<Usage>> {
        let listed = self.ask(&["get", "usage"])?;
        items(&listed)?
            .iter()
            .map(|item| {
                let number =
                    |name: &str| item[name].as_u64().with_context(|| format!("a usage row has no {name}"));
                Ok(Usage {
                    subscriber: item["subscriber"].as_str().map(str::to_owned),
                    class: text(item, "/class").to_owned(),
                    direction: text(item, "/direction").to_owned(),
                    bytes: number("bytes")?,
                    packets: number("packets")?,
                    dropped_bytes: number("dropped_bytes")?,
                    dropped_packets: number("dropped_packets")?,
                })
            })
            .collect()
    }

    /// Bytes of frames the data plane saw and put into no usage: no IP, or no whole IP packet.
    pub fn outside_usage(&self) -> Result<u64> {
        self.outside("usher_agent_packets_bytes_total", &[])
    }

    /// The same up and down, and how many frames.
    pub fn outside_usage_by_direction(&self) -> Result<[(u64, u64); 2]> {
        let way = |direction: &str| {
            let direction = format!("direction=\"{direction}\"");
            let bytes = self.outside("usher_agent_packets_bytes_total", &[&direction])?;
            Ok::<_, anyhow::Error>((bytes, self.outside("usher_agent_packets_total", &[&direction])?))
        };
        Ok([way("up")?, way("down")?])
    }

    fn outside(&self, metric: &str, labels: &[&str]) -> Result<u64> {
        let metrics = self.agent_metrics()?;
        // ARP is always among it: where the metric is missing altogether, nothing was read yet.
        let all: Vec<_> = usher_models::wire::Reason::ALL
            .into_iter()
            .filter(|reason| reason.outside_usage())
            .filter_map(|reason| {
                let label = format!("reason=\"{}\"", reason.name());
                let labels: Vec<_> = labels.iter().copied().chain([label.as_str()]).collect();
                metrics.sum(metric, &labels).ok()
            })
            .collect();
        // A count well below 2^53: a double holds it exactly.
        let count = all.iter().fold(0.0, |sum, count| sum + count);
        format!("{count}").parse().with_context(|| format!("{count} is no count"))
    }

    /// Decisions about a subscriber.
    pub fn decisions(&self, subscriber: &str) -> Result<Vec<Value>> {
        let described = self.ask(&["describe", "subscriber", subscriber])?;
        Ok(described["decisions"].as_array().cloned().unwrap_or_default())
    }

    /// Apps a subscriber was seen to use.
    pub fn apps(&self, subscriber: &str) -> Result<Vec<Value>> {
        let described = self.ask(&["describe", "subscriber", subscriber])?;
        Ok(described["apps"].as_array().cloned().unwrap_or_default())
    }
}

/// The rows of a listing.
fn items(listed: &Value) -> Result<&Vec<Value>> {
    listed
        .as_array()
        .or_else(|| listed["items"].as_array())
        .ok_or_else(|| anyhow!("expected a listing, got {listed}"))
}

/// A text within a value; empty where there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn time(value: &Value, pointer: &str) -> Option<Timestamp> {
    text(value, pointer).parse().ok()
}
