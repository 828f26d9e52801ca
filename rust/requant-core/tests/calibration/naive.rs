//! What the methods minimise, bin by bin and cell by cell: no prefix sums, no pruning, std's logarithm.

use requant_core::stats::TensorStatistics;

/// Bins as (inner edge, outer edge, count): magnitudes in bins, one side of zero.
type Side = Vec<(f64, f64, f64)>;

pub(crate) struct Naive {
    pub(crate) negative: Side,
    pub(crate) positive: Side,
    pub(crate) total: f64,
    pub(crate) width: f64,
}

/// A quantizer: a step in bins, and the levels below and above zero.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) step: f64,
    pub(crate) below: usize,
    pub(crate) above: usize,
}

impl Naive {
    pub(crate) fn new(stats: &TensorStatistics) -> Self {
        let width = stats.histogram().width();
        let (edges, mut counts) = (stats.histogram().edges(), stats.histogram().counts());
        let zero = edges.iter().position(|edge| *edge == 0.0).expect("zero is an edge");
        counts[zero] -= stats.zeros();
        let side = |counts: Vec<u64>| -> Side {
            counts
                .iter()
                .enumerate()
                .map(|(i, n)| (i as f64, i as f64 + 1.0, *n as f64))
                .collect()
        };
        Self {
            negative: side(counts[..zero].iter().rev().copied().collect()),
            positive: if stats.max() > 0.0 {
                side(counts[zero..].to_vec())
            } else {
                Vec::new()
            },
            total: stats.count() as f64,
            width,
        }
    }

    /// Like `new`, with the last bin's mass between its inner edge and the exact extreme.
    pub(crate) fn with_exact_ends(stats: &TensorStatistics) -> Self {
        let mut naive = Self::new(stats);
        for (side, extreme) in [(&mut naive.negative, -stats.min()), (&mut naive.positive, stats.max())] {
            if let Some((inner, outer, _)) = side.last_mut() {
                *outer = (f64::from(extreme) / stats.histogram().width()).max(*inner + 1e-6);
            }
        }
        naive
    }

    pub(crate) fn extents(&self) -> (f64, f64) {
        let extent = |side: &Side| side.last().map_or(0.0, |bin| bin.1);
        (extent(&self.negative), extent(&self.positive))
    }

    /// Squared error of rounding, squared error of clipping, clipped values; lengths in bins.
    pub(crate) fn squared_error(&self, c: Candidate) -> (f64, f64, f64) {
        let (mut granular, mut overload, mut clipped) = (0.0, 0.0, 0.0);
        for (side, levels) in [(&self.negative, c.below), (&self.positive, c.above)] {
            for (inner, outer, count) in side.iter().copied().filter(|bin| bin.2 > 0.0) {
                // Pieces of the bin between the edges of cells.
                let mut from = inner;
                while from < outer {
                    let level = (from / c.step + 0.5).floor() as usize;
                    let mut to = ((level as f64 + 0.5) * c.step).min(outer);
                    if level > levels {
                        to = outer;
                    }
                    if to <= from {
                        to = (from + c.step * 1e-9).min(outer); // `from` is an edge, but for rounding
                    }
                    let near = level.min(levels) as f64 * c.step;
                    let mass = count * (to - from) / (outer - inner);
                    let (a, b) = (from - near, to - near);
                    let error = mass * (a * a + a * b + b * b) / 3.0; // the mean of y^2 over [a, b]
                    if level > levels {
                        overload += error;
                        clipped += mass;
                    } else {
                        granular += error;
                    }
                    from = to;
                }
            }
        }
        (granular, overload, clipped)
    }

    /// `N KL(P || Q)`, by the formula on the page of the method; infinite for what is no candidate.
    pub(crate) fn divergence(&self, c: Candidate) -> f64 {
        let sides = [(&self.negative, c.below), (&self.positive, c.above)];
        let (mut cost, mut all_clipped) = (0.0, 0.0);
        // The cell of zero takes from both sides.
        let centre: Vec<_> = sides
            .iter()
            .flat_map(|(side, _)| overlaps(side, 0.0, c.step / 2.0))
            .collect();
        cost += shape(&centre);
        for (side, levels) in sides {
            let end = (levels as f64 + 0.5) * c.step;
            let clipped: f64 = overlaps(side, end, f64::INFINITY)
                .iter()
                .map(|(length, n)| length * n)
                .sum();
            if clipped > self.total / 4.0 || (levels == 0 && clipped > 0.0) {
                return f64::INFINITY;
            }
            for level in 1..=levels {
                let mut cell = overlaps(side, (level as f64 - 0.5) * c.step, (level as f64 + 0.5) * c.step);
                if level == levels && clipped > 0.0 {
                    let (inner, _, n) = side[(end - 0.5) as usize];
                    let length = (end - inner).min(1.0);
                    if n == 0.0 {
                        cell.push((length, f64::MIN_POSITIVE)); // not empty in P
                    }
                    let (mass, bins) = mass_and_bins(&cell);
                    if mass < 1e-200 {
                        return f64::INFINITY;
                    }
                    let joined = n * length + clipped;
                    cost += joined * (joined / length).ln() - length * x_log_x(n) - clipped * (mass / bins).ln();
                }
                cost += shape(&cell);
            }
            all_clipped += clipped;
        }
        cost + self.total * (1.0 - all_clipped / self.total).ln()
    }
}

/// The parts of bins that are not empty within `from..to`, as (length, count of the whole bin).
fn overlaps(side: &Side, from: f64, to: f64) -> Vec<(f64, f64)> {
    side.iter()
        .filter(|(_, _, n)| *n > 0.0)
        .map(|(inner, outer, n)| (outer.min(to) - inner.max(from), *n))
        .filter(|(length, _)| *length > 0.0)
        .collect()
}

fn mass_and_bins(cell: &[(f64, f64)]) -> (f64, f64) {
    (
        cell.iter().map(|(length, n)| length * n).sum(),
        cell.iter().map(|(length, _)| length).sum(),
    )
}

/// `sum n ln n - M ln(M / s)`.
fn shape(cell: &[(f64, f64)]) -> f64 {
    let (mass, bins) = mass_and_bins(cell);
    if mass == 0.0 {
        return 0.0;
    }
    cell.iter().map(|(length, n)| length * x_log_x(*n)).sum::<f64>() - mass * (mass / bins).ln()
}

fn x_log_x(x: f64) -> f64 {
    if x > 0.0 { x * x.ln() } else { 0.0 }
}

/// `KL(P || Q)` of two lists of masses, each divided by its sum.
pub(crate) fn kullback_leibler(p: &[f64], q: &[f64]) -> f64 {
    let (p_sum, q_sum): (f64, f64) = (p.iter().sum(), q.iter().sum());
    p.iter()
        .zip(q)
        .filter(|(p, _)| **p > 0.0)
        .map(|(p, q)| p / p_sum * ((p / p_sum) / (q / q_sum)).ln())
        .sum()
}
