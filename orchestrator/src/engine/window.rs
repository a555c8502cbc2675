//! One fact of one subscriber: reports into panes, panes into a number.
//!
//! A pane is one step of the fact, in numbers of 32 bits (24 of them significant: a sum of thousands of reports is right
//! to some 1e-5); totals over long windows are in 64. Panes that are not closed yet are kept beside those of the window,
//! so that a number at a boundary never depends on the order in which reports came.

use super::layout::{CYCLES, Keeps, Placed, Shape, TOTAL};
use super::sketch::{self, Sample, Scale};
use crate::policy::{Measure, Stat};

/// Share of a window that may be without a report before `min` is zero: batches do not meet to the microsecond.
const MIN_COVER: f64 = 0.95;
/// The bits of -0.0 in 32.
const NEGATIVE_ZERO: u32 = 1 << 31;

/// What one batch says of one source of one subscriber.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Report {
    pub(super) bytes: f64,
    pub(super) up_bytes: f64,
    pub(super) packets: f64,
    pub(super) drops: f64,
    pub(super) at_cap: f64,
    /// Sum of the round-trip times told, each counted once, and how many.
    pub(super) rtt: (f64, f64),
    pub(super) loss: (f64, f64),
    /// The least.
    pub(super) qoo: Option<f64>,
    /// What it adds to the bill.
    pub(super) spend: Option<f64>,
    /// Rates of the line, bits a second.
    pub(super) up_bps: Option<f64>,
    pub(super) down_bps: Option<f64>,
}

impl Report {
    /// The measure over `seconds`, as an amount and as a level; `None`: it is not told of.
    fn measure(&self, measure: Measure, seconds: f64) -> Option<(f64, f64)> {
        let amount = |amount: f64| Some((amount, amount / seconds));
        let level = |level: f64| Some((level * seconds, level));
        let mean = |(sum, count): (f64, f64)| if count > 0.0 { level(sum / count) } else { None };
        match measure {
            Measure::Bytes => amount(self.bytes),
            Measure::Packets => amount(self.packets),
            Measure::Drops => amount(self.drops),
            Measure::Spend => amount(self.spend?),
            Measure::AtCap => level(self.at_cap),
            Measure::RttMs => mean(self.rtt),
            Measure::Loss => mean(self.loss),
            Measure::Qoo => self.qoo.and_then(level),
            Measure::UpUtil => level(self.up_bytes * 8.0 / seconds / self.up_bps?),
            Measure::DownUtil => level((self.bytes - self.up_bytes) * 8.0 / seconds / self.down_bps?),
            Measure::Flows => None,
        }
    }

    /// The pane and code of a report that is a sample.
    pub(super) fn sample(&self, measure: Measure, spread: &Spread) -> Option<(u32, u8)> {
        let (pane, ..) = spread.parts.last().filter(|_| spread.is_last && self.has_use())?;
        let (_, level) = self.measure(measure, spread.seconds)?;
        Some((*pane, Scale::of(measure).code(level)))
    }

    fn has_use(&self) -> bool {
        self.packets > 0.0 || self.drops > 0.0 || self.bytes > 0.0
    }
}

/// A part of a batch's interval on one grid: the panes it reaches into, and how much of the whole lies in each.
#[derive(Debug, Clone, Default)]
pub(super) struct Spread {
    /// Pane, share of the interval, seconds of it.
    pub(super) parts: Vec<(u32, f64, f64)>,
    /// Seconds of the whole.
    seconds: f64,
    /// Where the whole ends, micros.
    end: i64,
    /// It has the end of the whole in it.
    is_last: bool,
}

impl Spread {
    /// The part `[from, to)` of `[start, end)` on a grid, what lies in closed panes left out. False: something was.
    pub(super) fn of(
        (start, end): (i64, i64),
        (from, to): (i64, i64),
        step: i64,
        closed: i64,
    ) -> (Self, bool) {
        let whole = seconds(end - start);
        let first = from.max(closed.div_euclid(step).saturating_mul(step));
        let mut spread = Self { parts: Vec::new(), seconds: whole, end, is_last: to >= end };
        if first < to {
            for pane in first.div_euclid(step)..=(to - 1).div_euclid(step) {
                let part = seconds(to.min((pane + 1) * step) - first.max(pane * step));
                spread.parts.push((u32::try_from(pane).unwrap_or_default(), part / whole, part));
            }
        }
        (spread, from >= first)
    }
}

/// The words of a fact in its block.
pub(super) struct Area<'w> {
    pub(super) placed: &'w Placed,
    pub(super) words: &'w mut [u32],
}

/// When a window of the subscriber that begins anew began: the start, micros, of the window a time is in.
pub(super) trait Calendar {
    fn cycle_start(&mut self, time: i64) -> i64;
}

impl Area<'_> {
    /// Adds a report.
    pub(super) fn add(&mut self, report: &Report, spread: &Spread) {
        let Some((amount, level)) = report.measure(self.placed.fact.measure, spread.seconds) else { return };
        let last = spread.parts.len().saturating_sub(1);
        for (index, (pane, share, part)) in spread.parts.iter().enumerate() {
            let keeps = self.placed.keeps;
            let Some(pane) = self.pane(*pane) else { continue };
            match keeps {
                Keeps::Sum => add(&mut pane[0], amount * share),
                Keeps::SumAndSeconds => {
                    add(&mut pane[0], amount * share);
                    add(&mut pane[1], *part);
                }
                Keeps::Min => {
                    let lowest = if get(pane[1]) > 0.0 { get(pane[0]).min(level) } else { level };
                    set(&mut pane[0], lowest);
                    add(&mut pane[1], *part);
                }
                Keeps::Max => {
                    if pane[0] == 0 || level > get(pane[0]) {
                        set(&mut pane[0], level);
                        // No bit set is no report: a zero is told from it by its sign.
                        pane[0] = if pane[0] == 0 { NEGATIVE_ZERO } else { pane[0] };
                    }
                }
                Keeps::Last => {
                    // Of reports that end together the highest: which came first is chance, and some had to wait.
                    let end = join(pane[1], pane[2]);
                    if spread.end > end || spread.end == end && level > get(pane[0]) {
                        set(&mut pane[0], level);
                        (pane[1], pane[2]) = split(spread.end);
                    }
                }
                Keeps::Count => {
                    if index == last && spread.is_last && report.has_use() {
                        add(&mut pane[0], 1.0);
                    }
                }
                Keeps::Bits | Keeps::Samples => {}
            }
        }
    }

    /// Adds an app that was recognised, by a hash of its name.
    pub(super) fn add_app(&mut self, pane: u32, hash: u64) {
        let keeps = self.placed.keeps;
        let Some(pane) = self.pane(pane) else { return };
        match keeps {
            Keeps::Bits => {
                let bit = 1_u64 << (hash % 64);
                let bits = u64::from(pane[0]) | u64::from(pane[1]) << 32 | bit;
                (pane[0], pane[1]) = halves(bits);
            }
            Keeps::Count => add(&mut pane[0], 1.0),
            _ => {}
        }
    }

    /// Notes that some of an amount was not told: the pane's is unknown.
    pub(super) fn lose(&mut self, pane: u32) {
        if self.placed.keeps == Keeps::Sum
            && let Some(pane) = self.pane(pane)
        {
            set(&mut pane[0], f64::NAN);
        }
    }

    /// The words of a pane; older ones make room for it. `None`: it is older than all there is room for.
    fn pane(&mut self, pane: u32) -> Option<&mut [u32]> {
        let (room, size) = (self.placed.room, self.placed.pane_words);
        let cells = 1 + self.placed.total_words;
        let oldest = self.words[0];
        let first = pane.saturating_sub(room - 1);
        if first > oldest {
            // Everything at once where nothing stays.
            let gone = (first - oldest).min(room);
            for passed in 0..gone {
                let at = cells + ((oldest.wrapping_add(passed)) % room) as usize * size;
                self.words[at..at + size].fill(0);
            }
            self.words[0] = first;
        } else if pane < oldest {
            return None;
        }
        let at = cells + (pane % room) as usize * size;
        Some(&mut self.words[at..at + size])
    }

    fn pane_if_there(&self, pane: u32) -> Option<&[u32]> {
        let (room, size) = (self.placed.room, self.placed.pane_words);
        let oldest = self.words[0];
        if pane < oldest || pane - oldest >= room {
            return None;
        }
        let at = 1 + self.placed.total_words + (pane % room) as usize * size;
        Some(&self.words[at..at + size])
    }

    /// The number at a boundary, all of the window having been told of. `None`: nothing in it says.
    pub(super) fn value(
        &mut self,
        boundary: i64,
        samples: Option<&mut Vec<Sample>>,
        calendar: &mut dyn Calendar,
    ) -> Option<f64> {
        let end = u32::try_from(boundary.div_euclid(self.placed.step)).unwrap_or_default();
        if let (Some(samples), Stat::Percentile(percent)) = (samples, self.placed.fact.stat) {
            let scale = Scale::of(self.placed.fact.measure);
            let first = self.first_pane(boundary, end, calendar);
            sketch::forget(samples, first);
            if !matches!(self.placed.shape, Shape::Ring { .. }) {
                sketch::merge(samples, first, end);
            }
            return sketch::percentile(samples, first, end, percent).map(|code| scale.value(code));
        }
        match self.placed.shape {
            Shape::Ring { panes } => {
                let mut total = Total::default();
                for pane in end.saturating_sub(panes).max(self.words[0])..end {
                    if let Some(words) = self.pane_if_there(pane) {
                        total.take(self.placed, words);
                    }
                }
                let length = seconds(i64::from(panes) * self.placed.step);
                total.value(self.placed, length, boundary)
            }
            Shape::Tumbling { .. } | Shape::Cycle => {
                let start = self.window_start(boundary - 1, calendar);
                self.fold(end, calendar);
                let total =
                    if join(self.words[1], 0) == start / 1_000_000 { self.total() } else { Total::default() };
                total.value(self.placed, seconds(boundary - start), boundary)
            }
            Shape::Ewma { half_life } => self.blend(end, half_life),
        }
    }

    fn first_pane(&self, boundary: i64, end: u32, calendar: &mut dyn Calendar) -> u32 {
        if let Shape::Ring { panes } = self.placed.shape {
            return end.saturating_sub(panes);
        }
        let start = self.window_start(boundary - 1, calendar);
        u32::try_from(start.div_euclid(self.placed.step)).unwrap_or_default()
    }

    /// Start of the tumbling window a time is in, micros.
    fn window_start(&self, time: i64, calendar: &mut dyn Calendar) -> i64 {
        match self.placed.shape {
            Shape::Tumbling { over } => time.div_euclid(over) * over,
            _ => calendar.cycle_start(time),
        }
    }

    /// Adds the panes before `end` to the total of the window they are in.
    fn fold(&mut self, end: u32, calendar: &mut dyn Calendar) {
        let (from, until) = (self.words[0], end.min(self.words[0].saturating_add(self.placed.room)));
        for pane in from..until {
            let Some(words) = self.pane_if_there(pane) else { continue };
            if words.iter().all(|word| *word == 0) {
                continue;
            }
            let mut one = Total::default();
            one.take(self.placed, words);
            let time = i64::from(pane) * self.placed.step;
            let window = u32::try_from(self.window_start(time, calendar) / 1_000_000).unwrap_or_default();
            if self.words[1] != window {
                self.remember(window, calendar);
                self.words[1..=TOTAL].fill(0);
                self.words[1] = window;
            }
            let mut total = self.total();
            total.join(&one);
            self.set_total(&total);
        }
        self.forget_before(end);
    }

    /// Totals of the last whole billing cycles at a boundary, the newest first; of a cycle without use it is zero.
    pub(super) fn cycles(&mut self, boundary: i64, calendar: &mut dyn Calendar) -> [f64; CYCLES] {
        let end = u32::try_from(boundary.div_euclid(self.placed.step)).unwrap_or_default();
        self.fold(end, calendar);
        let start = self.window_start(boundary - 1, calendar);
        self.cycles_before(u32::try_from(start / 1_000_000).unwrap_or_default(), calendar)
    }

    fn cycles_before(&self, window: u32, calendar: &mut dyn Calendar) -> [f64; CYCLES] {
        let known = self.words[1];
        let kept = self.words[1 + TOTAL..].iter().take(CYCLES).map(|word| get(*word));
        let mut totals = [0.0; CYCLES];
        if known == window {
            totals.iter_mut().zip(kept).for_each(|(total, kept)| *total = kept);
            return totals;
        }
        let mut start = i64::from(window) * 1_000_000;
        for age in 0..CYCLES {
            start = calendar.cycle_start(start - 1);
            if start / 1_000_000 <= i64::from(known) {
                let of_known = std::iter::once(self.total().sum);
                totals[age..].iter_mut().zip(of_known.chain(kept)).for_each(|(total, kept)| *total = kept);
                break;
            }
        }
        totals
    }

    /// A window over billing cycles moves on.
    fn remember(&mut self, window: u32, calendar: &mut dyn Calendar) {
        if self.placed.total_words <= TOTAL || self.words[1] == 0 {
            return;
        }
        let totals = self.cycles_before(window, calendar);
        for (word, total) in self.words[1 + TOTAL..].iter_mut().zip(totals) {
            set(word, total);
        }
    }

    /// Panes before `end` are done with.
    fn forget_before(&mut self, end: u32) {
        let (room, size) = (self.placed.room, self.placed.pane_words);
        let oldest = self.words[0];
        if end <= oldest {
            return;
        }
        for passed in 0..(end - oldest).min(room) {
            let at = 1 + self.placed.total_words + ((oldest + passed) % room) as usize * size;
            self.words[at..at + size].fill(0);
        }
        self.words[0] = end;
    }

    fn total(&self) -> Total {
        let (a, b) = (double(&self.words[2..4]), double(&self.words[4..6]));
        let mut total = Total::default();
        match self.placed.keeps {
            Keeps::Sum => total.sum = a,
            Keeps::SumAndSeconds => (total.sum, total.seconds) = (a, b),
            Keeps::Min => (total.min, total.seconds) = (if b > 0.0 { a } else { f64::INFINITY }, b),
            Keeps::Max => total.max = a,
            Keeps::Last => (total.last, total.last_end) = (a, join(self.words[4], self.words[5])),
            Keeps::Count => total.count = a,
            Keeps::Bits => total.bits = u64::from(self.words[2]) | u64::from(self.words[3]) << 32,
            Keeps::Samples => {}
        }
        total
    }

    fn set_total(&mut self, total: &Total) {
        let (a, b) = match self.placed.keeps {
            Keeps::Sum => (total.sum.to_bits(), 0),
            Keeps::SumAndSeconds => (total.sum.to_bits(), total.seconds.to_bits()),
            Keeps::Min => (total.min.to_bits(), total.seconds.to_bits()),
            Keeps::Max => (total.max.to_bits(), 0),
            Keeps::Last => (total.last.to_bits(), total.last_end.cast_unsigned()),
            Keeps::Count => (total.count.to_bits(), 0),
            Keeps::Bits => (total.bits, 0),
            Keeps::Samples => (0, 0),
        };
        (self.words[2], self.words[3]) = halves(a);
        (self.words[4], self.words[5]) = halves(b);
    }

    /// Blends the panes before `end` into the mean. Of amounts and shares a pane without use is zero; of qualities it says
    /// nothing.
    fn blend(&mut self, end: u32, half_life: i64) -> Option<f64> {
        let sampled = self.placed.fact.measure.is_sampled();
        let step = seconds(self.placed.step);
        #[expect(clippy::cast_precision_loss, reason = "a half-life in micros is far below 2^53")]
        let weight =
            |panes: u32| 1.0 - (-(f64::from(panes) * self.placed.step as f64) / half_life as f64).exp2();
        let (mut last, mut mean) = (self.words[1], double(&self.words[2..4]));
        let until = end.min(self.words[0].saturating_add(self.placed.room));
        for pane in self.words[0]..until {
            let Some(words) = self.pane_if_there(pane) else { continue };
            let (sum, told) = (get(words[0]), get(words[1]));
            if told <= 0.0 {
                continue;
            }
            let value = if sampled { sum / told } else { sum / step };
            if last == 0 {
                mean = value;
            } else if pane > last {
                if !sampled {
                    mean -= mean * weight(pane - last - 1);
                }
                mean += (value - mean) * weight(if sampled { pane - last } else { 1 });
            }
            last = pane;
        }
        self.words[1] = last;
        (self.words[2], self.words[3]) = halves(mean.to_bits());
        self.forget_before(end);
        if last == 0 {
            return (!sampled).then_some(0.0);
        }
        let idle = if sampled { 0 } else { end.saturating_sub(last + 1) };
        Some(mean - mean * weight(idle))
    }
}

/// What panes come to together.
#[derive(Debug, Clone, Copy)]
struct Total {
    sum: f64,
    seconds: f64,
    min: f64,
    max: f64,
    last: f64,
    last_end: i64,
    count: f64,
    bits: u64,
}

impl Default for Total {
    fn default() -> Self {
        Self {
            sum: 0.0,
            seconds: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            last: 0.0,
            last_end: 0,
            count: 0.0,
            bits: 0,
        }
    }
}

impl Total {
    fn take(&mut self, placed: &Placed, words: &[u32]) {
        match placed.keeps {
            // Two sessions at their caps in the same second are one second at the cap.
            Keeps::Sum if placed.fact.measure == Measure::AtCap => {
                self.sum += get(words[0]).min(seconds(placed.step));
            }
            Keeps::Sum => self.sum += get(words[0]),
            Keeps::SumAndSeconds => {
                self.sum += get(words[0]);
                self.seconds += get(words[1]);
            }
            Keeps::Min => {
                if get(words[1]) > 0.0 {
                    self.min = self.min.min(get(words[0]));
                    self.seconds += get(words[1]);
                }
            }
            Keeps::Max => {
                if words[0] != 0 {
                    self.max = self.max.max(get(words[0]).abs());
                }
            }
            Keeps::Last => {
                let end = join(words[1], words[2]);
                if end > 0 && end >= self.last_end {
                    (self.last, self.last_end) = (get(words[0]), end);
                }
            }
            Keeps::Count => self.count += get(words[0]),
            Keeps::Bits => self.bits |= u64::from(words[0]) | u64::from(words[1]) << 32,
            Keeps::Samples => {}
        }
    }

    fn join(&mut self, later: &Self) {
        self.sum += later.sum;
        self.seconds += later.seconds;
        self.min = self.min.min(later.min);
        self.max = self.max.max(later.max);
        if later.last_end >= self.last_end {
            (self.last, self.last_end) = (later.last, later.last_end);
        }
        self.count += later.count;
        self.bits |= later.bits;
    }

    /// The number of a window of `length` seconds that ends at `boundary`.
    fn value(&self, placed: &Placed, length: f64, boundary: i64) -> Option<f64> {
        let sampled = placed.fact.measure.is_sampled();
        match placed.fact.stat {
            Stat::Mean if sampled => (self.seconds > 0.0).then(|| self.sum / self.seconds),
            // Where some of it was not told, it is no number.
            Stat::Mean | Stat::Sum if self.sum.is_nan() => None,
            Stat::Mean => Some(self.sum / length),
            Stat::Sum => Some(self.sum),
            Stat::Min if sampled => self.min.is_finite().then_some(self.min),
            Stat::Min if self.seconds < length * MIN_COVER => Some(0.0),
            Stat::Min => Some(self.min),
            Stat::Max if self.max.is_finite() => Some(self.max),
            Stat::Max => (!sampled).then_some(0.0),
            Stat::Last => {
                let fresh = self.last_end > 0 && boundary - self.last_end < placed.step;
                if sampled {
                    (self.last_end > 0).then_some(self.last)
                } else {
                    Some(if fresh { self.last } else { 0.0 })
                }
            }
            Stat::Count => Some(self.count),
            Stat::Distinct => Some(sketch::distinct(self.bits)),
            Stat::Ewma { .. } | Stat::Percentile(_) => None,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "24 significant bits are what a pane keeps")]
fn set(word: &mut u32, number: f64) {
    *word = (number as f32).to_bits();
}

fn get(word: u32) -> f64 {
    f64::from(f32::from_bits(word))
}

fn add(word: &mut u32, number: f64) {
    set(word, get(*word) + number);
}

fn halves(bits: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    ((bits as u32), ((bits >> 32) as u32))
}

fn split(time: i64) -> (u32, u32) {
    halves(time.cast_unsigned())
}

fn join(low: u32, high: u32) -> i64 {
    (u64::from(low) | u64::from(high) << 32).cast_signed()
}

fn double(words: &[u32]) -> f64 {
    f64::from_bits(u64::from(words[0]) | u64::from(words[1]) << 32)
}

#[expect(clippy::cast_precision_loss, reason = "an interval of microseconds is far below 2^53")]
pub(super) fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}
