//! Billing cycles: from one billing day to the next, at local midnight.

use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

use super::window::Calendar;

/// The cycles of everybody: those who share a billing day and a time zone share one.
#[derive(Debug, Default)]
pub(super) struct Cycles {
    /// The last one asked for, micros.
    known: BTreeMap<(u32, u8), (i64, i64)>,
}

/// One subscriber's cycles.
pub(super) struct Cycle<'c> {
    pub(super) cycles: &'c mut Cycles,
    /// Number and name of the time zone; nothing is UTC.
    pub(super) zone: (u32, Option<&'c str>),
    pub(super) bill_day: u8,
}

impl Cycle<'_> {
    /// The cycle a time is in, `[start, end)`, micros.
    pub(super) fn at(&mut self, time: i64) -> (i64, i64) {
        let key = (self.zone.0, self.bill_day);
        if let Some((start, end)) = self.cycles.known.get(&key)
            && (*start..*end).contains(&time)
        {
            return (*start, *end);
        }
        let zone = self.zone.1.and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC);
        let cycle = cycle(time, self.bill_day, &zone);
        self.cycles.known.insert(key, cycle);
        cycle
    }

    /// Share of the cycle that is left.
    #[expect(clippy::cast_precision_loss, reason = "a month in micros is far below 2^53")]
    pub(super) fn left(&mut self, time: i64) -> f64 {
        let (start, end) = self.at(time);
        (end - time) as f64 / (end - start).max(1) as f64
    }
}

impl Calendar for Cycle<'_> {
    fn cycle_start(&mut self, time: i64) -> i64 {
        self.at(time).0
    }
}

fn cycle(time: i64, bill_day: u8, zone: &TimeZone) -> (i64, i64) {
    let local = zone.to_datetime(Timestamp::from_microsecond(time).unwrap_or(Timestamp::UNIX_EPOCH)).date();
    let day = i8::try_from(bill_day.clamp(1, 28)).unwrap_or(1);
    let this = Date::new(local.year(), local.month(), day).unwrap_or(local);
    let (start, end) = if this <= local {
        (this, this.saturating_add(1.month()))
    } else {
        (this.saturating_sub(1.month()), this)
    };
    let midnight = |date: Date| {
        let zoned = date.to_zoned(zone.clone());
        zoned.map_or(time, |zoned| zoned.timestamp().as_microsecond())
    };
    (midnight(start), midnight(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    #[test]
    fn a_cycle_runs_from_local_midnight_to_local_midnight_over_changes_of_the_clocks() {
        let mut cycles = Cycles::default();
        let mut at = |text: &str, zone: Option<&str>, bill_day| {
            let number = u32::from(zone.is_some());
            Cycle { cycles: &mut cycles, zone: (number, zone), bill_day }.at(micros(text))
        };
        let berlin = Some("Europe/Berlin");
        // Clocks went forward on the 29th of March 2026.
        let expected = (micros("2026-03-14T23:00:00Z"), micros("2026-04-14T22:00:00Z"));
        assert_eq!(at("2026-03-14T23:00:00Z", berlin, 15), expected);
        assert_eq!(at("2026-04-14T21:59:59Z", berlin, 15), expected);
        assert_eq!(at("2026-04-14T22:00:00Z", berlin, 15).0, expected.1);
        assert_eq!(at("2026-01-05T00:00:00Z", None, 28).0, micros("2025-12-28T00:00:00Z"));
        assert_eq!(
            at("2024-03-01T00:00:00Z", None, 1),
            (micros("2024-03-01T00:00:00Z"), micros("2024-04-01T00:00:00Z"))
        );
    }

    #[test]
    fn what_is_left_of_a_cycle_falls_from_one_to_zero() {
        let mut cycles = Cycles::default();
        let mut cycle = Cycle { cycles: &mut cycles, zone: (0, None), bill_day: 1 };
        assert!((cycle.left(micros("2026-04-01T00:00:00Z")) - 1.0).abs() < 1e-12);
        assert!((cycle.left(micros("2026-04-16T00:00:00Z")) - 0.5).abs() < 1e-12);
    }
}
