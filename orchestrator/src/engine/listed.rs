//! Whom to look at: lines listed for the next boundary of a grid, and those of a boundary that are still to be looked at.
//!
//! A boundary at which a million lines are due is *crossed* in parts, a part a step, so that what comes meanwhile need
//! not wait for all of them. Lines with a moment under way come first: nobody else's can fire but one without `hold`.

use fixedbitset::FixedBitSet;

use super::bits;
use super::io::Line;

/// Lines, by number.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(from = "Vec<usize>", into = "Vec<usize>")]
pub(super) struct Lines(FixedBitSet);

/// From words of bits, whatever they are: the set's own reader panics on what it did not write.
impl From<Vec<usize>> for Lines {
    fn from(words: Vec<usize>) -> Self {
        let bits = words.len() * usize::BITS as usize;
        Self(FixedBitSet::with_capacity_and_blocks(bits, words))
    }
}

impl From<Lines> for Vec<usize> {
    fn from(lines: Lines) -> Self {
        lines.0.as_slice().to_vec()
    }
}

impl Lines {
    pub(super) fn insert(&mut self, line: Line) {
        self.0.grow_and_insert(line.0 as usize);
    }

    pub(super) fn set(&mut self, line: Line, is_in: bool) {
        if is_in {
            self.insert(line);
        } else if self.0.contains(line.0 as usize) {
            self.0.remove(line.0 as usize);
        }
    }

    /// In their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Line> + '_ {
        self.0.ones().map(|line| Line(u32::try_from(line).unwrap_or(u32::MAX)))
    }

    /// Takes out the first so many.
    fn take(&mut self, most: usize) -> Vec<Line> {
        let lines: Vec<Line> = self.iter().take(most).collect();
        for line in &lines {
            self.0.remove(line.0 as usize);
        }
        lines
    }

    fn are_of(&self, lines: usize) -> bool {
        self.0.maximum().is_none_or(|last| last < lines)
    }
}

/// Lines to be looked at on the next boundary, by grid.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Listed {
    by_grid: Vec<Lines>,
}

impl Listed {
    pub(super) fn new(grids: usize) -> Self {
        Self { by_grid: vec![Lines::default(); grids] }
    }

    /// Lists a line on some grids, as bits.
    pub(super) fn insert(&mut self, line: Line, grids: u8) {
        for grid in bits(grids.into()) {
            self.by_grid[grid].insert(line);
        }
    }

    pub(super) fn on(&self, grid: usize) -> &Lines {
        &self.by_grid[grid]
    }

    /// Takes out everybody listed on some grids.
    pub(super) fn take(&mut self, grids: u8) -> Lines {
        let mut all = Lines::default();
        for grid in bits(grids.into()) {
            all.0.union_with(&std::mem::take(&mut self.by_grid[grid]).0);
        }
        all
    }

    /// Whether these are lists of so many grids and lines.
    pub(super) fn fits(&self, grids: usize, lines: usize) -> bool {
        self.by_grid.len() == grids && self.by_grid.iter().all(|of_grid| of_grid.are_of(lines))
    }
}

/// A boundary that not everybody listed there was looked at on yet.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Crossing {
    /// The boundary before it: as far as the windows of those still to come are closed.
    pub(super) from: i64,
    /// The boundary.
    pub(super) to: i64,
    /// Those with a moment under way.
    first: Lines,
    rest: Lines,
}

impl Crossing {
    pub(super) fn new((from, to): (i64, i64), mut lines: Lines, holding: &Lines) -> Self {
        let mut first = lines.clone();
        first.0.intersect_with(&holding.0);
        lines.0.difference_with(&holding.0);
        Self { from, to, first, rest: lines }
    }

    /// Takes out the next so many, those with a moment under way before others.
    pub(super) fn next(&mut self, most: usize) -> Vec<Line> {
        let mut lines = self.first.take(most);
        lines.append(&mut self.rest.take(most - lines.len()));
        lines
    }

    pub(super) fn is_over(&self) -> bool {
        self.first.0.is_clear() && self.rest.0.is_clear()
    }

    /// Whether it is of so many lines.
    pub(super) fn fits(&self, lines: usize) -> bool {
        self.first.are_of(lines) && self.rest.are_of(lines)
    }
}
