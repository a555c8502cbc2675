//! Quantities as types, so that a rate is never added to a time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A point in event time: microseconds since the Unix epoch (UTC).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Micros(i64);

impl Micros {
    /// From microseconds since the Unix epoch.
    pub const fn new(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Later by `duration`; saturates at the end of time.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Earlier by `duration`; saturates at the beginning of time.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Time since `earlier`; zero where that is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The wall clock. For the shells only: what is sans-I/O takes time as an argument.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_microsecond())
    }
}

/// RFC 3339, to the millisecond.
impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(timestamp) => write!(f, "{timestamp:.3}"),
            Err(_) => write!(f, "{} us", self.0),
        }
    }
}

/// An amount of traffic: innermost IP bytes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&scaled(self.0, "B"))
    }
}

/// A rate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitsPerSecond(pub u64);

impl BitsPerSecond {
    /// The rate at which `bytes` moved in `duration`; zero for an empty duration.
    pub fn of(bytes: Bytes, duration: Duration) -> Self {
        let micros = duration.as_micros();
        if micros == 0 {
            return Self(0);
        }
        Self(u64::try_from(u128::from(bytes.0) * 8_000_000 / micros).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for BitsPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&scaled(self.0, "bit/s"))
    }
}

/// A text that is no rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a rate: expected a number and a unit, as in `1.5 Mbit/s` (bit/s, kbit/s, Mbit/s, Gbit/s)"
)]
pub struct NotARate(pub String);

impl FromStr for BitsPerSecond {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || NotARate(text.to_owned());
        let trimmed = text.trim();
        let unit_at = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let (number, unit) = trimmed.split_at(unit_at);
        let scale: u64 = match unit.trim() {
            "bit/s" => 1,
            "kbit/s" => 1_000,
            "Mbit/s" => 1_000_000,
            "Gbit/s" => 1_000_000_000,
            _ => return Err(error()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.len() > 9 || (number.contains('.') && fraction.is_empty()) {
            return Err(error());
        }
        let mut rate = whole.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or_else(error)?;
        if !fraction.is_empty() {
            let denominator = 10_u64.pow(u32::try_from(fraction.len()).map_err(|_| error())?);
            let part = fraction.parse::<u64>().map_err(|_| error())?;
            let part = u128::from(part) * u128::from(scale) / u128::from(denominator);
            rate = u64::try_from(part).ok().and_then(|part| rate.checked_add(part)).ok_or_else(error)?;
        }
        Ok(Self(rate))
    }
}

impl serde::Serialize for BitsPerSecond {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for BitsPerSecond {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One customer line, stable across its keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SubscriberId(pub String);

impl fmt::Display for SubscriberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// `value` with the largest decimal prefix that loses nothing to three decimals.
fn scaled(value: u64, unit: &str) -> String {
    for (scale, prefix) in [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")] {
        if value >= scale {
            let thousandths = value / (scale / 1_000);
            let text = format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000);
            return format!("{} {prefix}{unit}", text.trim_end_matches('0').trim_end_matches('.'));
        }
    }
    format!("{value} {unit}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_read_with_their_unit() {
        assert_eq!("1.5 Mbit/s".parse(), Ok(BitsPerSecond(1_500_000)));
        assert_eq!("64kbit/s".parse(), Ok(BitsPerSecond(64_000)));
        assert_eq!("100 Gbit/s".parse(), Ok(BitsPerSecond(100_000_000_000)));
        for wrong in
            ["", "15", "1.5", "fast", "1.5 MB/s", "1. Mbit/s", "-1 bit/s", "99999999999999999999 bit/s"]
        {
            assert!(wrong.parse::<BitsPerSecond>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rate_is_bytes_over_time() {
        assert_eq!(BitsPerSecond::of(Bytes(125_000), Duration::from_secs(1)), BitsPerSecond(1_000_000));
        assert_eq!(BitsPerSecond::of(Bytes(1), Duration::ZERO), BitsPerSecond(0));
    }

    proptest! {
        #[test]
        fn reading_a_rate_never_panics(text in ".*") {
            let _ = text.parse::<BitsPerSecond>();
        }

        #[test]
        fn a_rate_of_up_to_three_decimals_survives_printing(thousandths in 0_u64..1_000_000_000) {
            let rate = BitsPerSecond(thousandths * 1_000_000);
            prop_assume!(rate.0 < 1_000_000_000 || thousandths % 1_000 == rate.0 / 1_000_000 % 1_000);
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }
    }
}
