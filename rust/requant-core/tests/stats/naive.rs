//! The statistics, from all values at once, in f64.

/// What a tensor's statistics must say.
#[derive(Debug, PartialEq)]
pub(crate) struct Naive {
    pub(crate) count: u64,
    pub(crate) zeros: u64,
    pub(crate) nan: u64,
    pub(crate) inf: u64,
    pub(crate) min: f32,
    pub(crate) max: f32,
    pub(crate) mean: f64,
    pub(crate) std: f64,
    pub(crate) edges: Vec<f64>,
    pub(crate) counts: Vec<u64>,
}

pub(crate) fn observe(x: &[f32]) -> Naive {
    let finite: Vec<f64> = x.iter().filter(|v| v.is_finite()).map(|v| f64::from(*v)).collect();
    let n = finite.len() as f64;
    let mean = finite.iter().sum::<f64>() / n;
    let min = finite.iter().copied().fold(f64::INFINITY, f64::min);
    let max = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // The smallest exponent at which the bins number at most 4096.
    let bins = |extent: f64, e: i32| {
        if extent > 0.0 {
            (extent / 2f64.powi(e)).floor() + 1.0
        } else {
            0.0
        }
    };
    let exponent = (-126..=127)
        .find(|e| bins(max, *e) + bins(-min, *e) <= 4096.0)
        .expect("2^127 is wide enough");
    let (first, last) = (bin(min.min(0.0), exponent), bin(max.max(0.0), exponent));
    let mut counts = vec![0; (last - first + 1) as usize];
    for v in &finite {
        counts[(bin(*v, exponent) - first) as usize] += 1;
    }
    Naive {
        count: finite.len() as u64,
        zeros: finite.iter().filter(|v| **v == 0.0).count() as u64,
        nan: x.iter().filter(|v| v.is_nan()).count() as u64,
        inf: x.iter().filter(|v| v.is_infinite()).count() as u64,
        min: if finite.is_empty() { f32::NAN } else { min as f32 },
        max: if finite.is_empty() { f32::NAN } else { max as f32 },
        mean,
        std: (finite.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt(),
        edges: (first..=last + 1).map(|i| i as f64 * 2f64.powi(exponent)).collect(),
        counts,
    }
}

fn bin(v: f64, exponent: i32) -> i64 {
    let magnitude = (v.abs() / 2f64.powi(exponent)).floor() as i64;
    if v < 0.0 { -1 - magnitude } else { magnitude }
}
