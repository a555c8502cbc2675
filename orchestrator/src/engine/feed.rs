//! What an agent told, into windows: one report for each source of each line, whatever its sessions and directions.
//!
//! A report goes no further ahead of the last boundary than windows have room for; what lies beyond waits here, the bound
//! of which moves event time on without the agent that is behind.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;

use foldhash::quality::FixedState;
use usher_models::Class;
use usher_models::units::Micros;

use super::Engine;
use super::clock::Verdict;
use super::io::{AppUsageSeen, DirectionName, Effect, Line, NamedSeen, Observed, UsageSeen};
use super::layout::{HEADER, Layout};
use super::pages::Page;
use super::trips::price_of_a_byte;
use super::window::{Area, Report, Spread};
use crate::policy::{Measure, Source};

/// Records that may wait.
const WAITING_MAX: usize = 1 << 22;
/// Sources of a line: every class, all of them together, and what of that is abroad.
const SOURCES: usize = Class::ALL.len() + 2;
const ALL: usize = Class::ALL.len();
const ROAMING: usize = ALL + 1;
/// Hashes of apps' names are the same in every process: they are kept in snapshots.
const APPS: FixedState = FixedState::with_seed(0x7573_6865_7261_7070);

/// Batches that are ahead, by the time from which they are still to be applied.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Waiting {
    batches: BTreeMap<(i64, u64), Batch>,
    records: usize,
    next: u64,
}

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Batch {
    start: i64,
    end: i64,
    usage: Vec<UsageSeen>,
    apps: Vec<AppUsageSeen>,
    abroad: Abroad,
}

impl Batch {
    fn records(&self) -> usize {
        self.usage.len() + self.apps.len()
    }
}

/// Who was abroad when a batch came, by line, and what a byte cost there.
type Abroad = Vec<(Line, Option<f64>)>;

impl Waiting {
    /// From when on something waits.
    pub(super) fn first(&self) -> Option<i64> {
        self.batches.first_key_value().map(|((from, _), _)| *from)
    }
}

impl Engine {
    pub(super) fn observe(&mut self, observed: Observed, effects: &mut Vec<Effect>) {
        for session in &observed.sessions {
            self.session(&observed.agent, observed.start, session, effects);
        }
        let verdict = self.clock.observe(&observed.agent, observed.start, observed.end, self.now);
        if verdict == Verdict::Good && self.world.keeps_trips {
            self.count_abroad(&observed.usage);
        }
        match verdict {
            Verdict::Good if self.world.layout.facts.is_empty() => {}
            Verdict::Good => {
                let (start, end) = (observed.start.get(), observed.end.get());
                let mut usage = observed.usage;
                if !usage.is_sorted_by_key(|seen| seen.line) {
                    usage.sort_by_key(|seen| seen.line);
                }
                for named in &observed.named {
                    self.name(named);
                }
                let reach = self.reach();
                let batch = Batch { start, end, abroad: self.abroad(&usage), usage, apps: observed.apps };
                self.apply(&batch, (start, reach), true);
                if reach < end {
                    self.wait(reach.max(start), batch);
                }
            }
            // A batch of sessions alone may have an empty interval; nothing is lost with it.
            Verdict::Empty if observed.usage.is_empty() && observed.apps.is_empty() => {}
            Verdict::Empty | Verdict::Ahead => self.counters.misdated += 1,
        }
    }

    fn abroad(&self, usage: &[UsageSeen]) -> Abroad {
        if self.world.layout.of_roaming.is_empty() {
            return Abroad::new();
        }
        let lines = usage.chunk_by(|a, b| a.line == b.line).map(|of_line| of_line[0].line);
        let seats = lines.filter_map(|line| Some((line, self.pages.get(line).filter(|seat| seat.roaming)?)));
        let priced = seats.map(|(line, seat)| {
            let state = self.state(line);
            let plan = self.world.plans.get(self.cards.plan(seat.card));
            (line, price_of_a_byte(&self.world, &state, plan))
        });
        priced.collect()
    }

    /// How far windows have room: everything up to the next boundary, and what may come with it. While a boundary is being
    /// crossed, windows are closed for some up to the one before it.
    fn reach(&self) -> i64 {
        let layout = &self.world.layout;
        let closed = self.crossing.as_ref().map(|crossing| crossing.from).or(self.boundary);
        closed.map_or(i64::MAX, |boundary| {
            layout.boundary_after(boundary).unwrap_or(boundary).saturating_add(layout.reach)
        })
    }

    fn wait(&mut self, from: i64, batch: Batch) {
        self.waiting.records += batch.records();
        self.waiting.next += 1;
        self.waiting.batches.insert((from, self.waiting.next), batch);
        // Whether that is enough shows when the boundaries are crossed: if not, the next batch moves it on again.
        if self.waiting.records > WAITING_MAX
            && let Some(((from, _), _)) = self.waiting.batches.first_key_value()
        {
            self.counters.overtaken += 1;
            self.clock.overtake(Micros::new(*from));
        }
    }

    /// Applies what waited for the boundary that was just crossed.
    pub(super) fn let_in(&mut self) {
        let reach = self.reach();
        while let Some(entry) = self.waiting.batches.first_entry()
            && entry.key().0 < reach
        {
            let ((from, number), batch) = entry.remove_entry();
            self.apply(&batch, (from, reach), false);
            if reach < batch.end {
                self.waiting.batches.insert((reach, number), batch);
            } else {
                self.waiting.records -= batch.records();
            }
        }
    }

    /// Applies what of a batch lies in `[from, to)`.
    fn apply(&mut self, batch: &Batch, (from, to): (i64, i64), fresh: bool) {
        let (usage, apps, abroad) = (&batch.usage, &batch.apps, &batch.abroad);
        let batch = (batch.start, batch.end);
        let layout = &self.world.layout;
        let closed = self.boundary.unwrap_or(i64::MIN);
        let to = to.min(batch.1);
        let mut late = false;
        let spreads: Vec<Spread> = layout
            .grids
            .iter()
            .map(|grid| {
                let (spread, whole) = Spread::of(batch, (from, to), grid.step, closed);
                late |= !whole;
                spread
            })
            .collect();
        if late && fresh {
            self.counters.late += lines(usage);
        }
        if spreads.iter().all(|spread| spread.parts.is_empty()) {
            return;
        }
        let last_use = u32::try_from((to + 999_999) / 1_000_000).unwrap_or(u32::MAX);
        let needs_rates = layout
            .facts
            .iter()
            .any(|placed| matches!(placed.fact.measure, Measure::UpUtil | Measure::DownUtil));
        let mut reports = [Report::default(); SOURCES];
        for of_line in usage.chunk_by(|a, b| a.line == b.line) {
            let line = of_line[0].line;
            let Some(seat) = self.pages.get(line) else {
                self.counters.strangers += u64::from(fresh);
                continue;
            };
            let mut used = 1_u16 << ALL;
            reports[ALL] = Report::default();
            if needs_rates && let Some(plan) = self.world.plans.get(self.cards.plan(seat.card)) {
                reports[ALL].up_bps = plan.numbers.get("up_bps").copied().filter(|bps| *bps > 0.0);
                reports[ALL].down_bps = plan.numbers.get("down_bps").copied().filter(|bps| *bps > 0.0);
            }
            for seen in of_line {
                let class = seen.class.index();
                if used & 1 << class == 0 {
                    used |= 1 << class;
                    reports[class] = Report::default();
                }
                reports[class].take(seen);
                reports[ALL].take(seen);
            }
            let mut grids = 0;
            if let Ok(at) = abroad.binary_search_by_key(&line, |(line, _)| *line) {
                used |= 1 << ROAMING;
                reports[ROAMING] = reports[ALL];
                reports[ROAMING].spend = abroad[at].1.map(|price| price * reports[ALL].bytes);
            }
            let (page, seat) = self.pages.page_mut(line);
            for (source, report) in reports.iter().enumerate() {
                if used & 1 << source == 0 {
                    continue;
                }
                let groups = match source {
                    ALL => &layout.of_all,
                    ROAMING => &layout.of_roaming,
                    class => &layout.of_class[class],
                };
                for group in groups {
                    add(layout, page, seat, *group, report, &spreads, last_use);
                    grids |= layout.groups[*group].grids;
                }
            }
            self.listed.insert(line, grids);
        }
        for AppUsageSeen { line, app, bytes } in apps {
            let groups = layout.of_app.get(app.as_str());
            let Some(groups) = groups.filter(|_| self.pages.get(*line).is_some()) else { continue };
            let report = Report { bytes: amount(bytes.0), ..Report::default() };
            let (page, seat) = self.pages.page_mut(*line);
            for group in groups {
                add(layout, page, seat, *group, &report, &spreads, last_use);
                self.listed.insert(*line, layout.groups[*group].grids);
            }
        }
    }

    /// An app that was recognised.
    fn name(&mut self, named: &NamedSeen) {
        let layout = &self.world.layout;
        if self.pages.get(named.line).is_none() {
            self.counters.strangers += 1;
            return;
        }
        let closed = self.boundary.unwrap_or(i64::MIN);
        if named.at.get() < closed {
            self.counters.late += 1;
            return;
        }
        // A verdict is told of at once: what is ahead of everything is so by the clocks' difference.
        let at = named.at.get().min(self.reach() - 1);
        let hash = APPS.hash_one(named.app.as_str());
        let (page, seat) = self.pages.page_mut(named.line);
        let mut grids = 0;
        let groups = layout.of_all.iter().chain(&layout.of_class[named.class.index()]);
        for group in groups.chain(layout.of_app.get(&named.app).into_iter().flatten()) {
            let block = page.block_or_new(layout, *group, seat);
            let mut touched = false;
            for index in &layout.groups[*group].facts {
                let placed = &layout.facts[*index];
                let is_told = placed.fact.measure == Measure::Flows;
                if is_told || matches!(placed.fact.source, Source::App(_)) && !named.counted {
                    let words = &mut block[placed.offset..placed.offset + placed.words()];
                    let number = u32::try_from(at.div_euclid(placed.step)).unwrap_or_default();
                    let mut area = Area { placed, words };
                    if is_told {
                        area.add_app(number, hash);
                    } else {
                        area.lose(number);
                    }
                    touched = true;
                }
            }
            if touched {
                let last_use = u32::try_from((at + 999_999) / 1_000_000).unwrap_or(u32::MAX);
                block[HEADER - 1] = block[HEADER - 1].max(last_use);
                grids |= layout.groups[*group].grids;
            }
        }
        self.listed.insert(named.line, grids);
    }
}

/// Adds a report to the facts of a group.
fn add(
    layout: &Layout,
    page: &mut Page,
    seat: usize,
    group: usize,
    report: &Report,
    spreads: &[Spread],
    last_use: u32,
) {
    let block = page.block_or_new(layout, group, seat);
    block[HEADER - 1] = block[HEADER - 1].max(last_use);
    let mut sampled = false;
    for index in &layout.groups[group].facts {
        let placed = &layout.facts[*index];
        if placed.pane_words == 0 {
            sampled = true;
            continue;
        }
        let words = &mut block[placed.offset..placed.offset + placed.words()];
        Area { placed, words }.add(report, &spreads[placed.grid]);
    }
    if sampled {
        for index in &layout.groups[group].facts {
            let placed = &layout.facts[*index];
            let key = (u8::try_from(seat).unwrap_or_default(), u8::try_from(*index).unwrap_or_default());
            if placed.pane_words == 0
                && let Some((pane, code)) = report.sample(placed.fact.measure, &spreads[placed.grid])
            {
                super::sketch::add(page.samples.entry(key).or_default(), pane, code);
            }
        }
    }
}

impl Report {
    fn take(&mut self, seen: &UsageSeen) {
        let bytes = amount(seen.bytes.0);
        self.bytes += bytes;
        if seen.direction == DirectionName::Up {
            self.up_bytes += bytes;
        }
        self.packets += amount(seen.packets);
        self.drops += amount(seen.dropped_packets);
        self.at_cap = self.at_cap.max(f64::from(seen.at_cap.unwrap_or(0.0).clamp(0.0, 1.0)));
        for (sum, value) in [(&mut self.rtt, seen.quality.rtt_ms), (&mut self.loss, seen.quality.loss)] {
            if let Some(value) = value {
                (sum.0, sum.1) = (sum.0 + f64::from(value), sum.1 + 1.0);
            }
        }
        if let Some(qoo) = seen.quality.qoo.map(f64::from) {
            self.qoo = Some(self.qoo.map_or(qoo, |least| least.min(qoo)));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a second's traffic is far below 2^53")]
const fn amount(count: u64) -> f64 {
    count as f64
}

/// How many lines the records are of.
fn lines(usage: &[UsageSeen]) -> u64 {
    usage.chunk_by(|a, b| a.line == b.line).count() as u64
}
