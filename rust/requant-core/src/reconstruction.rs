//! Weights rounded so that their layer's output errs least, instead of each to its nearest integer.
//!
//! A row `w` of a layer's weights meets inputs `x` whose errors matter only through the sum `w x`. With integers `q` of
//! scale `s` and the inputs' second moments `H = E[(x - E x) (x - E x)^T]` (their mean is the bias's affair) the output
//! errs by
//!
//! ```text
//! error(q) = (s q - w)^T H (s q - w)
//! ```
//!
//! Every integer may be either neighbour of `w / s`, the choice of AdaRound (Nagel et al. 2020, arXiv:2004.10568). It
//! is made by coordinate descent: from the nearest integers, one at a time moves to its other neighbour where that
//! lowers the error, until none does. With `e = q - w / s` and `g = H e` a move by `d` changes the error by
//! `2 d g_j + H_jj` (in steps), and `g` by a column of `H`. So no row ends worse than it began.
//!
//! A channel with few large weights may want a smaller scale, which clips them: scales are tried first, with `H` cut
//! to its diagonal; again the scale that came in is kept where none is better.
//!
//! Everything is summed in one order: any number of threads gives the same integers.

use crate::{Error, Result, error::check_length, threads};

/// The integers that weights may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The largest magnitude; 127 is the most there is.
    pub magnitude: u8,
    /// The largest magnitude of the sum of two neighbours of one sign, at `2i` and `2i + 1`; none where any will do.
    pub pair: Option<u8>,
}

/// Second moments of what the rows are multiplied with, for groups of as many rows each.
#[derive(Debug, Clone, Copy)]
pub struct Moments<'a> {
    data: &'a [f32],
    groups: usize,
    k: usize,
}

impl<'a> Moments<'a> {
    /// `data` is `[groups, k, k]`, symmetric and positive semidefinite.
    ///
    /// # Errors
    /// Another length; a value that is not finite; a negative one on a diagonal.
    pub fn new(data: &'a [f32], groups: usize, k: usize) -> Result<Self> {
        let expected = groups.saturating_mul(k).saturating_mul(k);
        check_length("moments", expected, data.len())?;
        for (place, row) in data.chunks_exact(k.max(1)).enumerate() {
            let i = place % k;
            let wrong = row.iter().position(|v| !v.is_finite());
            if let Some(j) = wrong.or((row[i] < 0.0).then_some(i)) {
                return Err(Error::SecondMoment {
                    what: "moments",
                    value: row[j].into(),
                    index: vec![place / k, i, j],
                });
            }
        }
        Ok(Self { data, groups, k })
    }

    fn group(&self, group: usize) -> &'a [f32] {
        let size = self.k * self.k;
        &self.data[group * size..(group + 1) * size]
    }
}

/// The power of the error of a layer's outputs, summed over its rows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Gain {
    /// With each weight rounded to nearest, at the scales that came in.
    pub nearest: f64,
    /// With the integers that were chosen.
    pub chosen: f64,
}

/// Shares of a scale that are tried; smaller ones clip more than they gain, with 8 bits.
const SHARES: [f64; 11] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];
/// Rounds over the weights of a row; most rows settle in three.
const ROUNDS: usize = 8;

/// Chooses the integers of `weights [n, k]`, into `out`, and where `search` is set smaller scales, into `scales [n]`.
///
/// ```
/// use requant_core::reconstruction::{Bounds, Moments, reconstruct};
/// let moments = Moments::new(&[1.0, 0.99, 0.99, 1.0], 1, 2)?; // both inputs go up and down together
/// let bounds = Bounds { magnitude: 127, pair: None };
/// let (mut scales, mut q) = ([1.0], [0; 2]);
/// let gain = reconstruct(&[3.4, 5.4], moments, &mut scales, bounds, false, 1, &mut q)?;
/// assert_eq!(q, [4, 5]); // the sum is what matters: 8.8
/// assert!(gain.chosen < gain.nearest);
/// # Ok::<(), requant_core::Error>(())
/// ```
///
/// # Errors
/// Lengths that do not fit, rows that the groups do not divide, a weight that is not finite, a scale that is not finite
/// and positive.
pub fn reconstruct(
    weights: &[f32],
    moments: Moments<'_>,
    scales: &mut [f32],
    bounds: Bounds,
    search: bool,
    threads: usize,
    out: &mut [i8],
) -> Result<Gain> {
    let (n, k) = (scales.len(), moments.k);
    check(weights, moments, scales, out)?;
    if n == 0 || k == 0 {
        return Ok(Gain::default());
    }
    let mut gains = vec![Gain::default(); n];
    let rows = weights.chunks_exact(k).zip(out.chunks_exact_mut(k));
    let items = rows.zip(scales.iter_mut()).zip(&mut gains).enumerate().collect();
    threads::for_each(threads, items, |(index, (((row, out), scale), gain))| {
        let moments = moments.group(index / (n / moments.groups));
        let mut solver = Row::new(row, moments, bounds, *scale);
        let mut slope = solver.slope();
        gain.nearest = solver.power(&slope);
        if search {
            solver.search_scale();
            if solver.scale.to_bits() != scale.to_bits() {
                slope = solver.slope();
            }
        }
        solver.descend(slope);
        gain.chosen = solver.power(&solver.slope());
        if gain.chosen >= gain.nearest {
            solver = Row::new(row, moments, bounds, *scale);
            gain.chosen = gain.nearest;
        }
        *scale = solver.scale;
        out.copy_from_slice(&solver.q);
    });
    Ok(gains.iter().fold(Gain::default(), |sum, row| Gain {
        nearest: sum.nearest + row.nearest,
        chosen: sum.chosen + row.chosen,
    }))
}

fn check(weights: &[f32], moments: Moments<'_>, scales: &[f32], out: &[i8]) -> Result<()> {
    let (n, k) = (scales.len(), moments.k);
    for (what, got) in [("weights", weights.len()), ("out", out.len())] {
        check_length(what, n.saturating_mul(k), got)?;
    }
    if n > 0 && (moments.groups == 0 || !n.is_multiple_of(moments.groups)) {
        return Err(Error::Shape {
            what: "moments",
            expected: format!("groups that divide {n} rows"),
            got: vec![moments.groups, k, k],
        });
    }
    if let Some(place) = weights.iter().position(|w| !w.is_finite()) {
        return Err(Error::NonFinite {
            value: weights[place],
            index: vec![place / k, place % k],
        });
    }
    match scales.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
        Some(index) => Err(Error::Scale {
            value: scales[index],
            index,
        }),
        None => Ok(()),
    }
}

/// `e = q - w / s`, in steps, and `H e`.
struct Slope {
    errors: Vec<f64>,
    gradient: Vec<f64>,
}

/// One row on its way to its integers.
struct Row<'a> {
    weights: &'a [f32],
    moments: &'a [f32],
    bounds: Bounds,
    scale: f32,
    q: Vec<i8>,
}

impl<'a> Row<'a> {
    fn new(weights: &'a [f32], moments: &'a [f32], bounds: Bounds, scale: f32) -> Self {
        let k = weights.len();
        let mut row = Self {
            weights,
            moments,
            bounds,
            scale,
            q: vec![0; k],
        };
        row.round();
        row
    }

    /// To the nearest integers within the bounds.
    fn round(&mut self) {
        for (j, &w) in self.weights.iter().enumerate() {
            self.q[j] = self.nearest(w, self.scale);
        }
        for pair in 0..self.q.len() / 2 {
            self.shrink(2 * pair);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "clamped to the bounds before")]
    fn nearest(&self, w: f32, scale: f32) -> i8 {
        let limit = f64::from(self.magnitude());
        (f64::from(w) / f64::from(scale)).round_ties_even().clamp(-limit, limit) as i8
    }

    /// Brings two integers of one sign down to the largest sum, so that their errors cost least.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "at most the excess, which is at most 254"
    )]
    fn shrink(&mut self, j: usize) {
        let (Some(limit), a, b) = (self.pair(), self.q[j], self.q[j + 1]) else {
            return;
        };
        let excess = (i16::from(a) + i16::from(b)).abs() - limit;
        if i16::from(a.signum()) * i16::from(b.signum()) <= 0 || excess <= 0 {
            return;
        }
        let (ha, hb) = (self.diagonal(j), self.diagonal(j + 1));
        let share = if ha + hb > 0.0 { hb / (ha + hb) } else { 0.5 };
        let most = excess.min(i16::from(a).abs());
        let from_a = ((f64::from(excess) * share).round() as i16).clamp(excess - i16::from(b).abs().min(excess), most);
        let sign = i16::from(a.signum());
        self.q[j] = (i16::from(a) - sign * from_a) as i8;
        self.q[j + 1] = (i16::from(b) - sign * (excess - from_a)) as i8;
    }

    fn magnitude(&self) -> i16 {
        i16::from(self.bounds.magnitude).min(i16::from(i8::MAX))
    }

    fn pair(&self) -> Option<i16> {
        self.bounds.pair.map(i16::from)
    }

    fn diagonal(&self, j: usize) -> f64 {
        f64::from(self.moments[j * (self.weights.len() + 1)])
    }

    /// `q - w / s`, in steps.
    fn errors(&self) -> Vec<f64> {
        let scale = f64::from(self.scale);
        let pairs = self.q.iter().zip(self.weights);
        pairs.map(|(&q, &w)| f64::from(q) - f64::from(w) / scale).collect()
    }

    fn slope(&self) -> Slope {
        let errors = self.errors();
        let mut gradient = vec![0.0; errors.len()];
        // The columns of a symmetric matrix lie in rows, and a sum of rows needs no sum across a vector.
        for (row, &e) in self.moments.chunks_exact(errors.len()).zip(&errors) {
            for (g, &h) in gradient.iter_mut().zip(row) {
                *g += f64::from(h) * e;
            }
        }
        Slope { errors, gradient }
    }

    /// What the row adds to the power of the output's error.
    fn power(&self, slope: &Slope) -> f64 {
        let power: f64 = slope.gradient.iter().zip(&slope.errors).map(|(g, e)| g * e).sum();
        power.max(0.0) * f64::from(self.scale) * f64::from(self.scale)
    }

    /// Takes the scale with the least error by the diagonal alone, and rounds anew.
    #[expect(clippy::cast_possible_truncation, reason = "a share of a float32")]
    fn search_scale(&mut self) {
        let whole = self.scale;
        let mut best = (f64::INFINITY, whole);
        for share in SHARES {
            let scale = (f64::from(whole) * share) as f32;
            if !scale.is_normal() {
                break;
            }
            self.scale = scale;
            self.round();
            let errors = self.errors();
            let costs = errors.iter().enumerate().map(|(j, e)| self.diagonal(j) * e * e);
            let error = costs.sum::<f64>() * f64::from(scale) * f64::from(scale);
            if error < best.0 {
                best = (error, scale);
            }
        }
        self.scale = best.1;
        self.round();
    }

    /// Moves integers to their other neighbours for as long as that lowers the error.
    fn descend(&mut self, slope: Slope) {
        let k = self.q.len();
        let Slope {
            mut errors,
            mut gradient,
        } = slope;
        for _ in 0..ROUNDS {
            let mut moved = false;
            for j in 0..k {
                // Against the error, so that the integer stays a neighbour of its real.
                let step: i8 = if errors[j] > 0.0 { -1 } else { 1 };
                let d = f64::from(step);
                let change = 2.0 * d * gradient[j] + self.diagonal(j);
                let settled = change >= -1e-9 * self.diagonal(j);
                if settled || (errors[j] + d).abs() >= 1.0 || !self.allows(j, step) {
                    continue;
                }
                self.q[j] += step;
                errors[j] += d;
                for (g, &h) in gradient.iter_mut().zip(&self.moments[j * k..(j + 1) * k]) {
                    *g += d * f64::from(h);
                }
                moved = true;
            }
            if !moved {
                break;
            }
        }
    }

    /// Whether integer `j` may move by `step`.
    fn allows(&self, j: usize, step: i8) -> bool {
        let q = i16::from(self.q[j]) + i16::from(step);
        let other = self.q.get(j ^ 1).map_or(0, |&q| i16::from(q));
        let one_sign = q.signum() * other.signum() > 0;
        let fits = self.pair().is_none_or(|limit| !one_sign || (q + other).abs() <= limit);
        q.abs() <= self.magnitude() && fits
    }
}
