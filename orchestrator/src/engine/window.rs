//! A sliding window: a ring of panes, each one step of the fact long.

use std::collections::VecDeque;

use usher_models::units::Micros;

use crate::policy::{Fact, Measure, Stat};

/// Panes kept beyond the window: what is not closed yet.
const OPEN_PANES: i64 = 1_024;
/// Share of a window that may be without a report before `min` is zero: batches do not meet to the microsecond.
const MIN_COVER: f64 = 0.95;

/// What one batch says of one class, or of all, of one subscriber.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Report {
    pub(super) start: Micros,
    pub(super) end: Micros,
    pub(super) bytes: f64,
    pub(super) packets: f64,
    pub(super) drops: f64,
    pub(super) at_cap: f64,
}

/// The panes of one fact of one subscriber; only those with reports, in order.
#[derive(Debug, Default)]
pub(super) struct Window {
    panes: VecDeque<Pane>,
}

#[derive(Debug)]
struct Pane {
    index: i64,
    /// Amount; for shares seconds at the full share.
    sum: f64,
    /// Seconds reported on.
    seconds: f64,
    min: f64,
    max: f64,
    last: f64,
    last_end: Micros,
    count: f64,
}

impl Window {
    /// Adds a report, shared out over the panes it reaches into. False: some of it was in closed panes and is dropped.
    pub(super) fn add(&mut self, fact: &Fact, report: &Report, closed: Option<Micros>) -> bool {
        let every = step(fact);
        let (start, end) = (report.start.get(), report.end.get());
        let total = seconds(end - start);
        let (amount, level) = match fact.measure {
            Measure::AtCap => (report.at_cap * total, report.at_cap),
            Measure::Bytes => (report.bytes, report.bytes / total),
            Measure::Packets => (report.packets, report.packets / total),
            Measure::Drops => (report.drops, report.drops / total),
        };
        let last = (end - 1).div_euclid(every);
        let first_open = closed.map_or(i64::MIN, |closed| closed.get().div_euclid(every));
        let first = start.div_euclid(every).max(first_open);
        let first_kept = first.max(last.saturating_sub(panes(fact) + OPEN_PANES));
        for index in first_kept..=last {
            let from = start.max(index * every);
            let part = seconds(end.min((index + 1) * every) - from);
            let pane = self.pane(index);
            pane.sum += amount * (part / total);
            pane.seconds += part;
            pane.min = pane.min.min(level);
            pane.max = pane.max.max(level);
            if report.end >= pane.last_end {
                pane.last = level;
                pane.last_end = report.end;
            }
            if index == last && (report.packets > 0.0 || report.drops > 0.0 || report.bytes > 0.0) {
                pane.count += 1.0;
            }
        }
        start.div_euclid(every) >= first_open
    }

    fn pane(&mut self, index: i64) -> &mut Pane {
        let at = self.panes.partition_point(|pane| pane.index < index);
        if self.panes.get(at).is_none_or(|pane| pane.index != index) {
            let pane = Pane {
                index,
                sum: 0.0,
                seconds: 0.0,
                min: f64::INFINITY,
                max: 0.0,
                last: 0.0,
                last_end: Micros::new(i64::MIN),
                count: 0.0,
            };
            self.panes.insert(at, pane);
        }
        &mut self.panes[at]
    }

    /// The fact at a boundary, a multiple of its step, the whole window having been told of. Forgets what no later
    /// boundary looks at.
    pub(super) fn close(&mut self, fact: &Fact, boundary: Micros) -> f64 {
        let every = step(fact);
        let end = boundary.get().div_euclid(every);
        let first = end - panes(fact);
        while self.panes.front().is_some_and(|pane| pane.index < first) {
            self.panes.pop_front();
        }
        let inside = || self.panes.iter().take_while(|pane| pane.index < end);
        let (length, every_seconds) = (fact.over.as_secs_f64(), fact.every.as_secs_f64());
        match fact.stat {
            // Two sessions at their caps in the same second are one second at the cap.
            Stat::Mean if fact.measure == Measure::AtCap => {
                inside().map(|pane| pane.sum.min(every_seconds)).sum::<f64>() / length
            }
            Stat::Mean => inside().map(|pane| pane.sum).sum::<f64>() / length,
            Stat::Sum if fact.measure == Measure::AtCap => {
                inside().map(|pane| pane.sum.min(every_seconds)).sum::<f64>()
            }
            Stat::Sum => inside().map(|pane| pane.sum).sum::<f64>(),
            Stat::Max => inside().map(|pane| pane.max).fold(0.0, f64::max),
            Stat::Min => {
                let told: f64 = inside().map(|pane| pane.seconds).sum();
                if told < length * MIN_COVER {
                    return 0.0;
                }
                inside().map(|pane| pane.min).fold(f64::INFINITY, f64::min)
            }
            Stat::Last => {
                let last = inside().last();
                last.filter(|pane| boundary.since(pane.last_end) < fact.every).map_or(0.0, |pane| pane.last)
            }
            Stat::Count => inside().map(|pane| pane.count).sum(),
        }
    }
}

fn step(fact: &Fact) -> i64 {
    i64::try_from(fact.every.as_micros()).unwrap_or(i64::MAX).max(1)
}

fn panes(fact: &Fact) -> i64 {
    i64::try_from(fact.over.as_micros()).unwrap_or(i64::MAX) / step(fact)
}

#[expect(clippy::cast_precision_loss, reason = "an interval of microseconds is far below 2^53")]
fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn fact(measure: Measure, stat: Stat, over: u64, every: u64) -> Fact {
        Fact {
            class: None,
            measure,
            stat,
            over: Duration::from_secs(over),
            every: Duration::from_secs(every),
        }
    }

    fn s(seconds: i64) -> Micros {
        Micros::new(seconds * 1_000_000)
    }

    fn report(start: Micros, end: Micros, bytes: f64, at_cap: f64) -> Report {
        Report { start, end, bytes, packets: 1.0, drops: 0.0, at_cap }
    }

    fn close(fact: &Fact, reports: &[Report], boundary: Micros) -> f64 {
        let mut window = Window::default();
        for report in reports {
            assert!(window.add(fact, report, None));
        }
        window.close(fact, boundary)
    }

    #[test]
    fn each_statistic_is_what_it_says() {
        let reports =
            [report(s(0), s(1), 100.0, 1.0), report(s(1), s(2), 300.0, 0.0), report(s(2), s(4), 200.0, 0.5)];
        let of = |measure, stat| close(&fact(measure, stat, 4, 2), &reports, s(4));
        assert!((of(Measure::Bytes, Stat::Sum) - 600.0).abs() < 1e-9);
        assert!((of(Measure::Bytes, Stat::Mean) - 150.0).abs() < 1e-9);
        assert!((of(Measure::Bytes, Stat::Min) - 100.0).abs() < 1e-9);
        assert!((of(Measure::Bytes, Stat::Max) - 300.0).abs() < 1e-9);
        assert!((of(Measure::Bytes, Stat::Last) - 100.0).abs() < 1e-9);
        assert!((of(Measure::Bytes, Stat::Count) - 3.0).abs() < 1e-9);
        assert!((of(Measure::AtCap, Stat::Mean) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn time_without_use_counts_as_none() {
        let reports = [report(s(0), s(1), 100.0, 1.0)];
        let of = |measure, stat| close(&fact(measure, stat, 10, 1), &reports, s(10));
        assert!((of(Measure::AtCap, Stat::Mean) - 0.1).abs() < 1e-9);
        assert!(of(Measure::Bytes, Stat::Min).abs() < 1e-9);
        assert!(of(Measure::Bytes, Stat::Last).abs() < 1e-9);
    }

    #[test]
    fn two_sessions_at_their_caps_are_at_the_cap_once() {
        let reports =
            [report(s(0), s(1), 1.0, 1.0), report(s(0), s(1), 1.0, 1.0), report(s(1), s(2), 1.0, 0.5)];
        assert!((close(&fact(Measure::AtCap, Stat::Mean, 2, 1), &reports, s(2)) - 0.75).abs() < 1e-9);
        assert!((close(&fact(Measure::AtCap, Stat::Sum, 2, 1), &reports, s(2)) - 1.5).abs() < 1e-9);
    }

    #[test]
    fn a_window_slides_and_forgets() {
        let fact = fact(Measure::Bytes, Stat::Sum, 2, 1);
        let mut window = Window::default();
        for second in 0..5 {
            window.add(&fact, &report(s(second), s(second + 1), 1.0, 0.0), None);
        }
        assert!((window.close(&fact, s(2)) - 2.0).abs() < 1e-9);
        assert!((window.close(&fact, s(5)) - 2.0).abs() < 1e-9);
        assert!(window.close(&fact, s(7)).abs() < 1e-9);
        assert!(window.panes.is_empty());
    }

    #[test]
    fn what_is_late_is_not_applied() {
        let fact = fact(Measure::Bytes, Stat::Sum, 4, 1);
        let mut window = Window::default();
        assert!(!window.add(&fact, &report(s(0), s(1), 50.0, 0.0), Some(s(2))));
        // Half of it is late: the other half counts.
        assert!(!window.add(&fact, &report(s(1), s(3), 50.0, 0.0), Some(s(2))));
        assert!(window.add(&fact, &report(s(2), s(3), 1.0, 0.0), Some(s(2))));
        assert!((window.close(&fact, s(4)) - 26.0).abs() < 1e-9);
    }

    #[test]
    fn an_absurdly_long_report_costs_no_more_than_a_window() {
        let fact = fact(Measure::Bytes, Stat::Sum, 2, 1);
        let mut window = Window::default();
        window.add(&fact, &report(Micros::new(-i64::MAX / 4), s(10), 1.0, 0.0), None);
        assert!(window.panes.len() < 2_000);
    }

    proptest! {
        /// Beside a slow, obvious reference: every report spread evenly over its microseconds.
        #[test]
        fn a_sum_is_what_overlaps_the_window(
            reports in proptest::collection::vec((0_i64..40, 1_i64..6, 0_u32..1000), 0..30),
        ) {
            let fact = fact(Measure::Bytes, Stat::Sum, 10, 2);
            let reports: Vec<Report> = reports.into_iter()
                .map(|(start, length, bytes)| report(s(start), s(start + length), f64::from(bytes), 0.0))
                .collect();
            let expected: f64 = reports.iter().map(|report| {
                let overlap = report.end.min(s(30)).since(report.start.max(s(20))).as_secs_f64();
                report.bytes * overlap / report.end.since(report.start).as_secs_f64()
            }).sum();
            prop_assert!((close(&fact, &reports, s(30)) - expected).abs() < 1e-6);
        }
    }
}
