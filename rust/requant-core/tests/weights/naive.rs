//! Quantization by definition, in f64 where rounding is not part of it, sharing no code with the crate.

use requant_core::weights::BlockScheme;

/// `(q, scale, zero_point)` of a block by round to nearest, operation by operation as onnxruntime has it.
pub(crate) fn round_to_nearest(x: &[f32], bits: u32, symmetric: bool) -> (Vec<u8>, f32, u8) {
    let levels = (1u32 << bits) - 1;
    let (mut lo, mut hi) = (f32::MAX, -f32::MAX);
    for v in x {
        if *v < lo {
            lo = *v;
        }
        if *v > hi {
            hi = *v;
        }
    }
    let half = (1u32 << (bits - 1)) as f32;
    let centre = if bits == 3 { 8.0 } else { half };
    let (scale, zero_point, least, most) = if symmetric {
        let m = if hi.abs() > lo.abs() { hi } else { lo };
        (-m / half, centre, centre - half, centre + half - 1.0)
    } else {
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        let scale = (hi - lo) / levels as f32;
        let zero_point = if scale == 0.0 { 0.0 } else { (0.0 - lo / scale).round() };
        (scale, zero_point.clamp(0.0, levels as f32), 0.0, levels as f32)
    };
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let q = x
        .iter()
        .map(|v| (v * inverse + zero_point).round().clamp(least, most) as u8);
    (q.collect(), scale, zero_point as u8)
}

/// The sum of `w * (x - real)^2`.
pub(crate) fn squared_error(x: &[f32], reals: &[f32], weights: Option<&[f32]>) -> f64 {
    let each = x.iter().zip(reals).enumerate();
    each.map(|(i, (x, r))| weights.map_or(1.0, |w| f64::from(w[i])) * (f64::from(*x) - f64::from(*r)).powi(2))
        .sum()
}

/// GPTQ as its paper has it: with the upper Cholesky factor of the inverse, and weights that are updated in place.
/// Grids are given; the integers of one row.
pub(crate) struct Paper<'a> {
    pub(crate) hessian: &'a [f64],
    pub(crate) damping: f64,
    pub(crate) order: &'a [usize],
    /// Scale and zero point of each column.
    pub(crate) grids: &'a [(f32, u8)],
    pub(crate) limits: (u8, u8),
}

impl Paper<'_> {
    pub(crate) fn quantize(&self, row: &[f32]) -> Vec<u8> {
        let k = row.len();
        let mean = (0..k).map(|i| self.hessian[i * k + i]).sum::<f64>() / k as f64;
        let at = |i: usize, j: usize| {
            let (i, j) = (self.order[i], self.order[j]);
            self.hessian[i * k + j] + if i == j { self.damping * mean } else { 0.0 }
        };
        let inverse = inverse(k, &(0..k * k).map(|e| at(e / k, e % k)).collect::<Vec<_>>());
        let lower = cholesky(k, &inverse);
        let upper = |i: usize, j: usize| lower[j * k + i];
        let mut w: Vec<f64> = self.order.iter().map(|c| f64::from(row[*c])).collect();
        let mut q = vec![0; k];
        for i in 0..k {
            let (scale, zero_point) = self.grids[self.order[i]];
            let (scale, zero_point) = (f64::from(scale), f64::from(zero_point));
            let level = if scale == 0.0 {
                zero_point
            } else {
                w[i] / scale + zero_point
            };
            let code = level.round().clamp(self.limits.0.into(), self.limits.1.into());
            q[self.order[i]] = code as u8;
            let error = (w[i] - (code - zero_point) * scale) / upper(i, i);
            for (j, w) in w.iter_mut().enumerate().skip(i + 1) {
                *w -= error * upper(i, j);
            }
        }
        q
    }
}

/// By Gauss and Jordan.
fn inverse(k: usize, a: &[f64]) -> Vec<f64> {
    let (mut a, mut b) = (a.to_vec(), vec![0.0; k * k]);
    for i in 0..k {
        b[i * k + i] = 1.0;
    }
    for p in 0..k {
        let pivot = a[p * k + p];
        for j in 0..k {
            a[p * k + j] /= pivot;
            b[p * k + j] /= pivot;
        }
        for i in (0..k).filter(|i| *i != p) {
            let factor = a[i * k + p];
            for j in 0..k {
                a[i * k + j] -= factor * a[p * k + j];
                b[i * k + j] -= factor * b[p * k + j];
            }
        }
    }
    b
}

fn cholesky(k: usize, a: &[f64]) -> Vec<f64> {
    let mut l = vec![0.0; k * k];
    for i in 0..k {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|m| l[i * k + m] * l[j * k + m]).sum();
            l[i * k + j] = if i == j {
                (a[i * k + i] - dot).sqrt()
            } else {
                (a[i * k + j] - dot) / l[j * k + j]
            };
        }
    }
    l
}

/// The stored integers of one row, read bit by bit.
pub(crate) fn unpack(scheme: BlockScheme, bytes: &[u8], count: usize) -> Vec<u8> {
    let bits = if scheme.bits() == 3 { 4 } else { scheme.bits() as usize };
    (0..count)
        .map(|i| {
            (0..bits)
                .map(|b| (bytes[(i * bits + b) / 8] >> ((i * bits + b) % 8) & 1) << b)
                .sum()
        })
        .collect()
}
