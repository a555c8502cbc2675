//! The small notations of a policy: `60s`, `2/7d`, `60/min`, `1%`, `21:00-08:00`.

use std::time::Duration;

use super::types::{Quiet, Quota};
use crate::document::{Issue, Node, text};

/// Longest duration read: ten years. Far beyond sense, and far from any overflow.
const MAX_SECONDS: u64 = 10 * 366 * 86_400;

/// A duration: a whole number and a unit.
pub(super) fn duration(node: &Node, what: &str, issues: &mut Vec<Issue>) -> Option<Duration> {
    let found = text(node, what, issues)?;
    let read = read_duration(found);
    if read.is_none() {
        let message = format!(
            "`{found}` is no duration: expected {what} as a whole number and a unit (ms, s, m, h, d), as `90s` or `6h`"
        );
        issues.push(Issue::new(node.span, message));
    }
    read
}

/// A duration above zero.
pub(super) fn positive(node: &Node, what: &str, issues: &mut Vec<Issue>) -> Option<Duration> {
    let read = duration(node, what, issues)?;
    if read.is_zero() {
        issues.push(Issue::new(node.span, format!("expected {what} above zero")));
        return None;
    }
    Some(read)
}

fn read_duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().ok()?;
    let millis = number.checked_mul(match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    })?;
    (millis <= MAX_SECONDS * 1_000).then(|| Duration::from_millis(millis))
}

/// A quota: a count and a time, as `2/7d`.
pub(super) fn quota(node: &Node, what: &str, issues: &mut Vec<Issue>) -> Option<Quota> {
    let found = text(node, what, issues)?;
    let read = found.split_once('/').and_then(|(count, per)| {
        let per = read_duration(per.trim()).filter(|per| !per.is_zero())?;
        Some(Quota { count: count.trim().parse().ok()?, per })
    });
    if read.is_none() {
        let message = format!("`{found}` is no quota: expected {what} as a count in a time, as `2/7d`");
        issues.push(Issue::new(node.span, message));
    }
    read
}

/// A rate: a count per unit, as `60/min`.
pub(super) fn rate(node: &Node, what: &str, issues: &mut Vec<Issue>) -> Option<Quota> {
    let found = text(node, what, issues)?;
    let read = found.split_once('/').and_then(|(count, unit)| {
        let seconds = match unit.trim() {
            "s" => 1,
            "min" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        Some(Quota { count: count.trim().parse().ok()?, per: Duration::from_secs(seconds) })
    });
    if read.is_none() {
        let message =
            format!("`{found}` is no rate: expected {what} as a count per s, min, h or d, as `60/min`");
        issues.push(Issue::new(node.span, message));
    }
    read
}

/// A share of the whole, as `10%`; 0 to 1.
pub(super) fn percent(node: &Node, what: &str, issues: &mut Vec<Issue>) -> Option<f64> {
    let found = text(node, what, issues)?;
    let read = found.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    match read {
        Some(percent) if (0.0..=100.0).contains(&percent) => Some(percent / 100.0),
        _ => {
            let message = format!("`{found}` is no share: expected {what} as 0% to 100%");
            issues.push(Issue::new(node.span, message));
            None
        }
    }
}

/// A ratio, 0 to 1.
pub(super) fn ratio(node: &Node, what: &str, issues: &mut Vec<Issue>) -> Option<f64> {
    let value = crate::document::number(node, what, issues)?;
    if (0.0..=1.0).contains(&value) {
        return Some(value);
    }
    issues.push(Issue::new(node.span, format!("`{value}` is no ratio: expected {what} between 0 and 1")));
    None
}

/// Local hours, as `21:00-08:00`.
pub(super) fn quiet(node: &Node, issues: &mut Vec<Issue>) -> Option<Quiet> {
    let found = text(node, "quiet hours", issues)?;
    let read = found
        .split_once('-')
        .and_then(|(from, to)| Some(Quiet { from: minute(from.trim())?, to: minute(to.trim())? }))
        .filter(|quiet| quiet.from != quiet.to);
    if read.is_none() {
        let message =
            format!("`{found}` are no quiet hours: expected two different times, as `\"21:00-08:00\"`");
        issues.push(Issue::new(node.span, message));
    }
    read
}

fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    if hour.len() != 2
        || minute.len() != 2
        || !(hour.bytes().chain(minute.bytes())).all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    (hour < 24 && minute < 60).then_some(hour * 60 + minute)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(read_duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(read_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(read_duration("365d"), Some(Duration::from_hours(365 * 24)));
        for wrong in ["", "90", "s", "1.5h", "-1s", "1h30m", "99999999999999999999d", "999999999d", "1 s"] {
            assert_eq!(read_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_of_day_are_four_digits() {
        assert_eq!(minute("21:05"), Some(21 * 60 + 5));
        for wrong in ["24:00", "9:00", "09:60", "+9:00", "0900", ""] {
            assert_eq!(minute(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn quiet_hours_reach_over_midnight() {
        let night = Quiet { from: 21 * 60, to: 8 * 60 };
        assert!(night.covers(23 * 60) && night.covers(0) && night.covers(8 * 60 - 1));
        assert!(!night.covers(8 * 60) && !night.covers(21 * 60 - 1));
        let noon = Quiet { from: 12 * 60, to: 13 * 60 };
        assert!(noon.covers(12 * 60) && !noon.covers(13 * 60) && !noon.covers(0));
    }
}
