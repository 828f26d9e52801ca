//! Products with block-quantized weights by their definition: one element at a time, whole dot products in i64.

use requant_core::gemm::blocked::Activations;

/// Reals times 4-bit integers, with everything a definition needs.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) block_size: usize,
    /// `[M, K]`
    pub(crate) a: Vec<f32>,
    /// `[K, N]`
    pub(crate) q: Vec<i32>,
    /// `[blocks, N]`
    pub(crate) scales: Vec<f32>,
    /// `[blocks, N]`, or one.
    pub(crate) zero_points: Vec<i32>,
    /// `[N]`, or none.
    pub(crate) bias: Vec<f32>,
}

impl Case {
    fn zero_point(&self, block: usize, j: usize) -> i32 {
        match self.zero_points[..] {
            [only] => only,
            _ => self.zero_points[block * self.n + j],
        }
    }

    fn centred(&self, k: usize, j: usize) -> i32 {
        self.q[k * self.n + j] - self.zero_point(k / self.block_size, j)
    }

    fn scale(&self, k: usize, j: usize) -> f32 {
        self.scales[k / self.block_size * self.n + j]
    }

    /// The reals that weights stand for.
    pub(crate) fn weight(&self, k: usize, j: usize) -> f32 {
        self.centred(k, j) as f32 * self.scale(k, j)
    }

    fn blocks(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let (k, size) = (self.k, self.block_size);
        (0..k).step_by(size).map(move |first| first..k.min(first + size))
    }

    /// The scale of row `i` of A in a block.
    pub(crate) fn a_scale(&self, i: usize, block: std::ops::Range<usize>, activations: Activations) -> f32 {
        let row = &self.a[i * self.k..(i + 1) * self.k];
        let values = if activations == Activations::Int8PerRow {
            row
        } else {
            &row[block]
        };
        if values.iter().any(|v| !v.is_finite()) {
            return f32::NAN;
        }
        values.iter().fold(0.0f32, |largest, v| largest.max(v.abs())) / 127.0
    }

    /// The result to the last bit.
    pub(crate) fn defined(&self, activations: Activations) -> Vec<f32> {
        let mut out = Vec::new();
        for i in 0..self.m {
            for j in 0..self.n {
                let mut sum = 0.0f32;
                for block in self.blocks() {
                    if activations == Activations::Float {
                        for k in block {
                            sum = self.a[i * self.k + k].mul_add(self.weight(k, j), sum);
                        }
                        continue;
                    }
                    let a_scale = self.a_scale(i, block.clone(), activations);
                    let quantized = |k: usize| {
                        let v = self.a[i * self.k + k] / a_scale;
                        if a_scale > 0.0 {
                            v.round_ties_even().clamp(-127.0, 127.0) as i64
                        } else {
                            0
                        }
                    };
                    let dot: i64 = block
                        .clone()
                        .map(|k| quantized(k) * i64::from(self.centred(k, j)))
                        .sum();
                    sum = (dot as f32 * a_scale).mul_add(self.scale(block.start, j), sum);
                }
                out.push(if self.bias.is_empty() { sum } else { sum + self.bias[j] });
            }
        }
        out
    }

    /// The product of the reals in f64, and how far a result may be from it.
    pub(crate) fn exact(&self, activations: Activations) -> Vec<(f64, f64)> {
        let mut out = Vec::new();
        for i in 0..self.m {
            for j in 0..self.n {
                let (mut sum, mut rounding, mut step) = (0.0, 0.0, 0.0);
                for block in self.blocks() {
                    let a_scale = f64::from(self.a_scale(i, block.clone(), activations));
                    for k in block {
                        let weight = f64::from(self.centred(k, j)) * f64::from(self.scale(k, j));
                        let term = f64::from(self.a[i * self.k + k]) * weight;
                        sum += term;
                        rounding += term.abs();
                        step += a_scale / 2.0 * weight.abs();
                    }
                }
                let bias = f64::from(*self.bias.get(j).unwrap_or(&0.0));
                let rounding = (rounding + bias.abs() + step) * f64::from(f32::EPSILON) * (self.k + 4) as f64;
                let step = if activations == Activations::Float { 0.0 } else { step };
                out.push((sum + bias, rounding + step));
            }
        }
        out
    }
}
