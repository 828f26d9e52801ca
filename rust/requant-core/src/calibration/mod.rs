//! Which range the integers are spread over, chosen from what was seen.
//!
//! A method is a file with a `NAME` and a `range`, and a line in [`METHODS`]. Each is a pure function of one
//! [`TensorStatistics`], so that one pass over the data serves all of them.
//!
//! Every range contains 0, because zero must be representable. A symmetric scheme gets `[-a, a]`, or `[0, a]` where
//! nothing negative was seen.

mod entropy;
mod error;
mod minmax;
mod model;
mod mse;
mod percentile;
mod sqnr;
mod window;

use std::cell::RefCell;

pub use error::{QuantError, error};
use model::Model;
use window::Window;

use crate::{Error, QuantScheme, QuantType, Range, Result, stats::TensorStatistics};

/// A rule that chooses a range.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Its name, in the words of the command line.
    pub name: &'static str,
    range: fn(&Request) -> Range,
    /// The method whose range this one's is, by mathematics.
    agrees_with: Option<&'static str>,
}

impl Method {
    const fn new(name: &'static str, range: fn(&Request) -> Range) -> Self {
        Self {
            name,
            range,
            agrees_with: None,
        }
    }
}

/// All methods, simplest first.
pub const METHODS: &[Method] = &[
    Method::new(minmax::NAME, minmax::range),
    Method::new(percentile::NAME, percentile::range),
    Method::new(entropy::NAME, entropy::range),
    Method::new(mse::NAME, mse::range),
    Method {
        agrees_with: Some(mse::NAME),
        ..Method::new(sqnr::NAME, mse::range)
    },
];

/// The share of values, in percent, that the percentile method keeps inside the range unless told otherwise.
pub const DEFAULT_PERCENTILE: f64 = 99.99;

/// What all methods look at.
struct Seen<'a> {
    stats: &'a TensorStatistics,
    model: Model,
    percentile: f64,
    /// What entropy's searches of both schemes look up, once one has begun.
    sides: RefCell<Option<entropy::Sides>>,
}

/// What a method may look at.
struct Request<'a> {
    seen: &'a Seen<'a>,
    stats: &'a TensorStatistics,
    model: &'a Model,
    scheme: QuantScheme,
}

/// The range that `method` chooses; `percentile` matters to that method alone.
///
/// ```
/// use requant_core::{QuantScheme, QuantType, calibration, stats::{Statistic, TensorStatistics}};
/// let mut seen = TensorStatistics::default();
/// seen.observe(&[0.0, 1.0, 2.5]);
/// let scheme = QuantScheme { dtype: QuantType::I8, symmetric: true, narrow: false };
/// let range = calibration::range(&seen, "minmax", scheme, calibration::DEFAULT_PERCENTILE)?;
/// assert_eq!((range.lo, range.hi), (0.0, 2.5));
/// # Ok::<(), requant_core::Error>(())
/// ```
///
/// # Errors
/// An unknown method, a percentile outside (0, 100], statistics without a finite value.
pub fn range(stats: &TensorStatistics, method: &str, scheme: QuantScheme, percentile: f64) -> Result<Range> {
    let method = METHODS
        .iter()
        .find(|m| m.name == method)
        .ok_or_else(|| Error::UnknownName {
            what: "calibration method",
            name: method.to_owned(),
            known: METHODS.iter().map(|m| m.name).collect::<Vec<_>>().join(", "),
        })?;
    let seen = Seen::new(stats, percentile)?;
    Ok((method.range)(&Request::new(&seen, scheme)))
}

/// What one method chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The method's name.
    pub method: &'static str,
    /// Whether the scheme was symmetric.
    pub symmetric: bool,
    /// The range.
    pub range: Range,
}

/// What every method chooses, for the asymmetric and then for the symmetric scheme; work that methods share is done
/// once.
///
/// # Errors
/// As [`range`].
pub fn ranges(stats: &TensorStatistics, dtype: QuantType, percentile: f64) -> Result<Vec<Choice>> {
    let seen = Seen::new(stats, percentile)?;
    let mut choices: Vec<Choice> = Vec::with_capacity(2 * METHODS.len());
    for symmetric in [false, true] {
        let scheme = QuantScheme {
            dtype,
            symmetric,
            narrow: false,
        };
        let request = Request::new(&seen, scheme);
        for method in METHODS {
            let known = choices.iter().find(|c| {
                let same_problem = c.symmetric == symmetric || stats.min() >= 0.0;
                same_problem && (c.method == method.name || Some(c.method) == method.agrees_with)
            });
            choices.push(Choice {
                method: method.name,
                symmetric,
                range: known.map_or_else(|| (method.range)(&request), |c| c.range),
            });
        }
    }
    Ok(choices)
}

impl<'a> Seen<'a> {
    fn new(stats: &'a TensorStatistics, percentile: f64) -> Result<Self> {
        if !(percentile > 0.0 && percentile <= 100.0) {
            return Err(Error::Percentile(percentile));
        }
        if stats.count() == 0 {
            return Err(Error::Empty);
        }
        Ok(Self {
            stats,
            model: Model::new(stats.histogram()),
            percentile,
            sides: RefCell::default(),
        })
    }
}

impl<'a> Request<'a> {
    fn new(seen: &'a Seen<'a>, scheme: QuantScheme) -> Self {
        let (stats, model) = (seen.stats, &seen.model);
        // Without negatives both schemes spread the same integers over `[0, a]`: one problem, and one answer. A narrow
        // scheme keeps its zero point at the centre.
        let symmetric = scheme.symmetric && (scheme.narrow || stats.min() < 0.0);
        Self {
            seen,
            stats,
            model,
            scheme: QuantScheme { symmetric, ..scheme },
        }
    }

    /// `[lo, hi]`, widened to 0 and, for a symmetric scheme, to both sides.
    fn widened(&self, lo: f32, hi: f32) -> Range {
        if self.scheme.symmetric {
            self.symmetric(hi.max(-lo))
        } else {
            Range {
                lo: lo.min(0.0),
                hi: hi.max(0.0),
            }
        }
    }

    fn symmetric(&self, a: f32) -> Range {
        Range {
            lo: if self.stats.min() < 0.0 { -a } else { 0.0 },
            hi: a,
        }
    }
}
