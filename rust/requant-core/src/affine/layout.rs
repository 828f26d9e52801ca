//! Which slice each element of a flat, row-major array belongs to, in the order of memory.

use std::{borrow::Cow, ops::Range};

use super::tiling::{Rule, Tiling};

/// Elements that are worked on at once: 16 KiB of f32, half of a first-level cache.
pub(super) const TILE: usize = 4096;

/// Elements that a cycle of parameters is repeated to, so that one call takes that many: 5 arrays of 4 KiB, which the
/// first-level cache holds beside the data.
const CYCLE: usize = 1024;

/// Runs shorter than this cost more than giving each element a slice of its own.
const SHORT: usize = 16;

#[derive(Debug, Clone, Copy)]
pub(super) enum Layout {
    /// Element `p` belongs to slice `p / run`.
    Runs { run: usize },
    /// Element `p` belongs to slice `p / run` modulo their number.
    Cycle { run: usize, slices: usize },
    /// Rows are cut into runs, the last one of each being shorter.
    Ragged { row: usize, run: usize },
    /// Each element of a row has its own slice; `height` rows, or those left of `rows`, share them.
    Rows { row: usize, rows: usize, height: usize },
}

/// Neighbours in memory and in their slices.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) elements: Range<usize>,
    /// How many elements share a slice.
    pub(super) run: usize,
    /// The slices of its elements.
    pub(super) slices: Range<usize>,
    /// Slices that are worth preparing together: those of the segment and of its neighbours.
    pub(super) window: Range<usize>,
}

impl Layout {
    pub(super) fn new(tiling: &Tiling) -> Self {
        let Tiling {
            outer,
            axis,
            inner,
            rule,
        } = *tiling;
        match rule {
            _ if tiling.elements() == 0 => Self::Runs { run: 1 },
            Rule::Whole => Self::Runs { run: inner },
            Rule::Channels if outer == 1 => Self::Runs { run: inner },
            Rule::Channels => Self::Cycle {
                run: inner,
                slices: axis,
            },
            Rule::Blocks { size } if inner == 1 && axis.is_multiple_of(size) => Self::Runs { run: size },
            Rule::Blocks { size } if inner == 1 => Self::Ragged { row: axis, run: size },
            Rule::Blocks { size } => Self::Rows {
                row: inner,
                rows: axis,
                height: size,
            },
        }
    }

    /// The same layout with longer runs or cycles where they are short, and what it does to the parameters. A cycle of
    /// 3 channels becomes one of 1023 with its parameters repeated.
    pub(super) fn widened(self) -> (Self, Repeat) {
        let none = Repeat { each: 1, times: 1 };
        let Self::Cycle { run, slices } = self else {
            return (self, none);
        };
        let period = run * slices;
        if period > CYCLE {
            return (self, none);
        }
        let each = if run < SHORT { run } else { 1 };
        let times = CYCLE / period;
        let widened = Self::Cycle {
            run: run / each,
            slices: slices * each * times,
        };
        (widened, Repeat { each, times })
    }

    /// Calls `f` for segments that together cover `range` in order.
    pub(super) fn for_each_segment(&self, range: Range<usize>, mut f: impl FnMut(Segment)) {
        match *self {
            Self::Runs { run } => {
                let window = range.start / run..range.end.div_ceil(run);
                in_runs(range, run, window.start, &window, &mut f);
            }
            Self::Cycle { run, slices } => {
                for_each_row(range, run * slices, |_, at, elements| {
                    in_runs_from(at, elements, run, at / run, &(0..slices), &mut f);
                });
            }
            Self::Ragged { row, run } => {
                let blocks = row.div_ceil(run);
                let slice = |p: usize| p / row * blocks + p % row / run;
                let window = slice(range.start)..slice(range.end - 1) + 1;
                for_each_row(range, row, |r, at, elements| {
                    in_runs_from(at, elements, run, r * blocks + at / run, &window, &mut f);
                });
            }
            Self::Rows { row, rows, height } => {
                let blocks = rows.div_ceil(height);
                for_each_row(range, row, |r, at, elements| {
                    let first = (r / rows * blocks + r % rows / height) * row;
                    f(Segment {
                        run: 1,
                        slices: first + at..first + at + elements.len(),
                        elements,
                        window: first..first + row,
                    });
                });
            }
        }
    }
}

/// How parameters are repeated: each one `each` times, and all that `times` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Repeat {
    each: usize,
    times: usize,
}

impl Repeat {
    pub(super) fn apply<'a, T: Copy>(&self, values: &'a [T]) -> Cow<'a, [T]> {
        if self.each == 1 && self.times == 1 {
            return Cow::Borrowed(values);
        }
        let once: Vec<T> = values.iter().flat_map(|v| std::iter::repeat_n(*v, self.each)).collect();
        Cow::Owned(once.repeat(self.times))
    }
}

/// Cuts `range` at the multiples of `row`: calls `f(index of the row, position in it, elements)`.
fn for_each_row(range: Range<usize>, row: usize, mut f: impl FnMut(usize, usize, Range<usize>)) {
    let mut start = range.start;
    while start < range.end {
        let (index, at) = (start / row, start % row);
        let end = range.end.min(start + row - at);
        f(index, at, start..end);
        start = end;
    }
}

fn in_runs(range: Range<usize>, run: usize, slice: usize, window: &Range<usize>, f: &mut impl FnMut(Segment)) {
    in_runs_from(range.start, range, run, slice, window, f);
}

/// Elements that begin `at` from the beginning of a run: what is left of that run, then whole ones.
fn in_runs_from(
    at: usize,
    elements: Range<usize>,
    run: usize,
    slice: usize,
    window: &Range<usize>,
    f: &mut impl FnMut(Segment),
) {
    let into = at % run;
    let head = if into == 0 {
        elements.start
    } else {
        elements.end.min(elements.start + run - into)
    };
    let mut segment = |elements: Range<usize>, slice| {
        if !elements.is_empty() {
            f(Segment {
                run,
                slices: slice..slice + elements.len().div_ceil(run),
                elements,
                window: window.clone(),
            });
        }
    };
    segment(elements.start..head, slice);
    segment(head..elements.end, slice + usize::from(into != 0));
}
