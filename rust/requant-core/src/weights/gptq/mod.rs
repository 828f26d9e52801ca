//! GPTQ (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"):
//! columns are quantized one after another, and later ones make up for the errors of earlier ones.
//!
//! What is kept small is the squared error of the layer's outputs, `trace((W - Q) H (W - Q)^T)`, where `H` sums `x x^T`
//! over inputs. With `H = R R^T` for an upper triangular `R`, column j of `(W - Q) R` depends on the columns up to j
//! only: it is made as small as a grid allows when j is quantized, given the errors `e = w - q` before it.
//!
//! ```text
//! t[j] = w[j] + sum over i < j of e[i] * R[i][j] / R[j][j]        q[j] = nearest on the grid to t[j]
//! ```
//!
//! These are the paper's integers, whose update with the Cholesky factor of the inverse of `H` says the same of `t[j]`
//! (Chen et al. 2025, "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm"); here no inverse is
//! needed. `R` is the Cholesky factor of `H` with rows and columns in reverse, reversed again.
//!
//! Rows are independent of each other, so that they are spread over threads and lanes of vectors. Columns go by blocks:
//! first all errors before a block are multiplied with its part of `R`, then its columns feed each other.

mod factor;
mod hessian;
mod sweep;

use hessian::Hessian;
use sweep::Sweep;

use super::{Algorithm, BlockScheme, BlockWeights, Rows};
use crate::{Error, Result};

/// How GPTQ goes about it.
#[derive(Debug, Clone, Copy)]
pub struct Gptq {
    /// Chooses grids; errors weigh the diagonal of the Hessian.
    pub algorithm: Algorithm,
    /// What is added to the diagonal of the Hessian, as a share of its mean. It grows tenfold until the Hessian is
    /// positive definite.
    pub damping: f64,
    /// Whether columns go in descending order of the Hessian's diagonal, so that the most important ones are not
    /// burdened with the errors of others. Grids are those of the weights as they were then, as blocks lie along K.
    pub act_order: bool,
    /// Whether all grids are chosen from the weights as they were, or each when its block is reached, from what the
    /// columns before it made of it.
    pub static_groups: bool,
}

impl Gptq {
    /// Quantizes `rows` by the Hessian `[k, k]` of what they are multiplied with, a positive multiple of the sum of
    /// `x x^T`; its lower triangle is read. Also gives the damping that it took.
    ///
    /// Columns of the Hessian that are zero neither give nor take errors. All instruction sets and any number of
    /// threads (0: all cores) give the same bits.
    ///
    /// # Errors
    /// Weights or a Hessian that are not finite, a Hessian of another length or with a negative diagonal, a damping
    /// that is negative, `act_order` without `static_groups`.
    pub fn quantize(
        &self,
        rows: Rows<'_>,
        hessian: &[f64],
        scheme: BlockScheme,
        threads: usize,
    ) -> Result<(BlockWeights, f64)> {
        let k = rows.k();
        let hessian = Hessian::new(hessian, k)?;
        rows.check_finite()?;
        if !(self.damping >= 0.0 && self.damping.is_finite()) {
            return Err(Error::Damping { value: self.damping });
        }
        if self.act_order && !self.static_groups {
            return Err(Error::StaticGroups);
        }
        let order = hessian.order(self.act_order);
        let (factor, damping) = hessian.factor(&order, self.damping, threads)?;
        let sweep = Sweep::new(self, rows, scheme, order, hessian.importance());
        Ok((sweep.run(&factor, threads), damping))
    }
}
