//! What clipping costs at least: ends that cannot win are ruled out by it.

use crate::kernels::{Bins, Kernels};

/// Bins that are looked at together.
const BLOCK: usize = 16;

/// What clipping costs at least, by the bin that the end lies in, for all steps up to a width.
///
/// `Q`'s density in the last cell is at most that of its fullest bin, `q`. So an end that clips `t`, with `m` in its
/// part of a bin, costs at least
///
/// ```text
/// (m + t) ln(m + t) - m ln m - t ln q - c t,        c the share of the most that can be clipped there
/// ```
///
/// which is convex in `t`, least where `m + t = q e^(c - 1)`, and rises with `m`, of which there is at least half a
/// bin. The cells cost at least nothing, by the log-sum inequality.
pub(super) struct Bound {
    least: Vec<f64>,
    /// The least of each few bins, and of not clipping.
    blocks: Vec<f64>,
    /// The least of each of these and all beyond it, or of not clipping.
    beyond: Vec<f64>,
    /// No end that lies in an earlier bin can win.
    innermost: usize,
}

impl Bound {
    pub(super) fn new(bins: &Bins<'_>, width: usize, kernels: &dyn Kernels) -> Self {
        let mut least = vec![0.0; bins.fewest.len()];
        kernels.clip(bins, width, &mut least);
        // Beyond the last bin, nothing is clipped.
        let mut blocks: Vec<f64> = least
            .chunks(BLOCK)
            .map(|of| of.iter().copied().fold(f64::INFINITY, lesser))
            .collect();
        blocks.push(0.0);
        let mut beyond = blocks.clone();
        for i in (1..beyond.len()).rev() {
            beyond[i - 1] = lesser(beyond[i - 1], beyond[i]);
        }
        Self {
            least,
            blocks,
            beyond,
            innermost: 0,
        }
    }

    /// Begins with a search: nothing is ruled out.
    pub(super) fn start(&mut self) {
        self.innermost = 0;
    }

    /// What an end in any of these bins costs at least.
    pub(super) fn least_within(&self, first: usize, last: usize) -> f64 {
        let clips = self.blocks.len() - 1;
        let last = if last < self.least.len() { last / BLOCK } else { clips };
        let within = &self.blocks[(first / BLOCK).min(last)..=last];
        within.iter().copied().fold(f64::INFINITY, lesser)
    }

    /// What an end that is not ruled out costs at least.
    pub(super) fn least(&self) -> f64 {
        self.beyond[self.innermost / BLOCK]
    }

    /// What an end in a bin costs at least.
    pub(super) fn least_in(&self, bin: usize) -> f64 {
        self.least.get(bin).copied().unwrap_or(0.0)
    }

    /// Rules out the ends whose clipping alone costs more than `budget`; budgets only shrink.
    pub(super) fn rule_out(&mut self, budget: f64) {
        let is_worse = |cost: &&f64| **cost > budget;
        let block = self.innermost / BLOCK;
        let blocks = self.blocks[block..].iter().take_while(is_worse).count();
        self.innermost = self.innermost.max((block + blocks) * BLOCK).min(self.least.len());
        self.innermost += self.least[self.innermost..].iter().take_while(is_worse).count();
    }

    /// The first bin that is not ruled out.
    pub(super) fn innermost(&self) -> usize {
        self.innermost
    }
}

/// Neither is NaN.
fn lesser(a: f64, b: f64) -> f64 {
    if b < a { b } else { a }
}
