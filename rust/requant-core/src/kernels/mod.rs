//! The inner loops, once for each instruction set.
//!
//! `generic` is the definition; every other set gives the same bits and is only faster. A set is a value that its
//! own probe alone can make, so holding one proves that the CPU has the instructions. A new set is a file that
//! overrides what it does better, and a line in the registry; tests and benches iterate over [`available`].

/// The kernels that implement a trait: a probe for each set that has its own, best first; generic last and always present.
macro_rules! registry {
    ($kernel:ident, $($probes:tt)+) => {
        const REGISTRY: &[fn() -> Option<&'static dyn $kernel>] = &[$($probes)+];

        /// The kernels that this CPU can run, best first.
        pub fn available() -> impl Iterator<Item = &'static dyn $kernel> {
            REGISTRY.iter().filter_map(|probe| probe())
        }

        /// The available kernel of that name.
        ///
        /// # Errors
        /// No available kernel has it.
        pub fn by_name(name: &str) -> $crate::Result<&'static dyn $kernel> {
            available().find(|k| k.name() == name).ok_or_else(|| $crate::Error::Isa {
                name: name.to_owned(),
                available: available().map(|k| k.name()).collect::<Vec<_>>().join(", "),
            })
        }
    };
}

/// [`registry`], and the choice among them.
macro_rules! registry_of_inner_loops {
    ($kernel:ident, $($probes:tt)+) => {
        registry! { $kernel, $($probes)+ }

        /// The kernel of the set in use, or of the best set below it that has one.
        pub(crate) fn current() -> &'static dyn $kernel {
            let in_use = $crate::kernels::current().name();
            $crate::kernels::available()
                .skip_while(|set| set.name() != in_use)
                .find_map(|set| by_name(set.name()).ok())
                .expect("every registry has generic")
        }
    };
}

pub(crate) mod bits;
pub mod blocked_activations;
pub mod blocked_gemm;
pub(crate) mod density;
pub mod depthwise;
pub mod elementwise;
pub mod feedback;
pub mod finish;
pub mod gemm;
pub(crate) mod generic;
mod generic_blocked_gemm;
mod generic_depthwise;
mod generic_elementwise;
mod generic_feedback;
mod generic_gemm;
mod generic_low_bit;
pub mod gguf;
pub(crate) mod halves;
pub mod low_bit;
pub mod rounding;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::sync::OnceLock;

pub use density::{Bins, Piece, STEPS, Tail, WINDOW};

use crate::Result;

/// Bins of a histogram, and slots of a counter table: bin `i` lives in slot `i mod BINS`.
pub const BINS: usize = 4096;

/// Tables that values are counted in by turns, so that equal neighbours do not wait for each other's store.
pub const WAYS: usize = 2;

/// How often each slot was hit, in all tables together.
pub type Counters = [[u32; BINS]; WAYS];

/// Partial sums of a slice: value `i` is added to lane `i mod LANES`, and the lanes are added by halves. Fixed here,
/// because the order of floating-point additions decides the last bit.
const LANES: usize = 16;

/// What one pass over a slice of finite values finds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Smallest value; +inf of an empty slice, never -0.
    pub min: f32,
    /// Largest value; -inf of an empty slice, never -0.
    pub max: f32,
    /// Sum of the values.
    pub sum: f64,
    /// Sum of their squares.
    pub sum_sq: f64,
    /// How many are 0 or -0.
    pub zeros: u32,
}

/// A set of kernels. Methods that a set does not override are those of [`Kernels::base`].
pub trait Kernels: Send + Sync {
    /// Its name, as `REQUANT_ISA` takes it.
    fn name(&self) -> &'static str;

    /// The set whose kernels serve where this one has none of its own.
    fn base(&self) -> &'static dyn Kernels {
        &generic::Generic
    }

    /// Summarizes `x`, and adds `step` to the counter of each value's bin: bin `trunc(v * inv_width)` for `v >= 0`, one
    /// less for `v < 0`, so that bins are of equal width and mirror each other in 0.
    ///
    /// `inv_width` is a power of two, which makes the product exact. Additions wrap. A value whose bin does not fit i32
    /// counts in some slot, the same in each call: repeating the call with the negated step takes it all back. That lets
    /// a caller count first and look at the summary afterwards, in one pass over memory.
    ///
    /// `None` where `x` holds a NaN or an infinity.
    fn tally(&self, x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) -> Option<Summary> {
        self.base().tally(x, inv_width, step, counters)
    }

    /// Smallest and largest value, never -0; +inf and -inf of an empty slice. `None` where `x` holds a NaN or an infinity.
    fn extrema(&self, x: &[f32]) -> Option<(f32, f32)> {
        self.base().extrema(x)
    }

    /// Lowers each `lo` to the value beside it where that is less, and raises each `hi`; all are of one length. `false` where `x`
    /// holds a NaN, which changes neither.
    fn widen(&self, x: &[f32], lo: &mut [f32], hi: &mut [f32]) -> bool {
        self.base().widen(x, lo, hi)
    }

    /// Raises each peak to the magnitude of the sum of the two values beside it where that is larger; all are finite and of one
    /// length. A sum of two f32 is exact in f64 but for values 2^29 times as large as each other.
    fn raise_to_sums(&self, a: &[f32], b: &[f32], peaks: &mut [f64]) {
        self.base().raise_to_sums(a, b, peaks);
    }

    /// The largest magnitude of a sum of two neighbours, `2i` and `2i + 1`; 0 where there are none. All are finite.
    fn largest_sum(&self, x: &[f32]) -> f64 {
        self.base().largest_sum(x)
    }

    /// Cuts a density into cells `(k - 1/2) step .. (k + 1/2) step`, for each `k` from `first` on. Writes the sums over what lies
    /// beyond the cells' edges, of which the first is given, and `M ln(M / s)` of each cell's mass and bins, 0 where the mass is.
    ///
    /// `tails` has an entry for each bin and a zero at the end, at least two entries; there is one edge more than `spreads`.
    fn cut(&self, tails: &[Tail], step: f64, first: usize, edges: &mut [Tail], spreads: &mut [f64]) {
        self.base().cut(tails, step, first, edges, spreads);
    }

    /// `n ln n` of each count, 0 for 0.
    fn n_log_n(&self, counts: &[f64], out: &mut [f64]) {
        self.base().n_log_n(counts, out);
    }

    /// What clipping costs at least, by the bin that the end lies in, for steps up to `width` bins: with `q` the fullest from `width + 2` bins
    /// before on, the least of `(m + t) ln(m + t) - m ln m - t ln q - c t`; see `calibration::entropy`.
    fn clip(&self, bins: &Bins<'_>, width: usize, least: &mut [f64]) {
        self.base().clip(bins, width, least);
    }

    /// What runs of `width` bins lose when they are made even: `sum n ln n - M ln(M / s)`, at least 0, for the run that begins with
    /// each bin.
    ///
    /// `sums` are mass `M`, bins `s` and `sum n ln n` of each bin and all beyond it, with `width` entries more than `lost`.
    fn lose(&self, sums: [&[f64]; 3], width: usize, lost: &mut [f32]) {
        self.base().lose(sums, width, lost);
    }

    /// For the cells `(k - 1/2) step .. (k + 1/2) step` of each step, what the corners of the bins that a cell's edges lie in say between
    /// them, linear in each edge: `sums[j]` is `from` and that of all `k` from `first >= 1` to `first + j`.
    ///
    /// `runs` are of one length, with the value of the run that begins with each bin, of widths from `w - 1` to `w + 2`; the last [`WINDOW`]
    /// entries are zeros. `w` is the whole part of all steps, which do not fall, and of which each and the next cut edges less than 1.9 bins apart.
    /// All edges must be exact: multiples of 2^-39 as the steps, and below 2^13.
    fn add_up(
        &self,
        runs: [&[f32]; 4],
        steps: &[f64; STEPS],
        first: usize,
        from: &[f32; STEPS],
        sums: &mut [[f32; STEPS]],
    ) {
        self.base().add_up(runs, steps, first, from, sums);
    }

    /// Sum of the excess over `(k + 1/2) step`, for `count` of `k` from `first` on; `pieces`, of which there is at least one, end
    /// at `end`, within the last.
    fn excess(&self, pieces: &[Piece], end: f64, step: f64, first: usize, count: usize) -> f64 {
        self.base().excess(pieces, end, step, first, count)
    }

    /// `out[i] = clamp(round_half_even(fma(a[i], terms.a, fma(b[i], terms.b, terms.constant))))`, on the bits of int8 or uint8;
    /// all of one length.
    fn add(&self, a: &[u8], b: &[u8], terms: &Terms, out: &mut [u8]) {
        self.base().add(a, b, terms, out);
    }

    /// `out[i] = table[x[i]]`, both of one length.
    fn look_up(&self, table: &[u8; 256], x: &[u8], out: &mut [u8]) {
        self.base().look_up(table, x, out);
    }
}

/// A weighted sum of two 8-bit integers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// Weight of the first.
    pub a: f32,
    /// Weight of the second.
    pub b: f32,
    /// What is added.
    pub constant: f32,
    /// Smallest result.
    pub min: i32,
    /// Largest result.
    pub max: i32,
    /// Whether all three are int8.
    pub signed: bool,
}

registry! { Kernels,
    #[cfg(target_arch = "x86_64")]
    x86_64::avx512vnni::probe,
    #[cfg(target_arch = "x86_64")]
    x86_64::avx512::probe,
    #[cfg(target_arch = "x86_64")]
    x86_64::avxvnni::probe,
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::probe,
    generic::probe,
}

/// The set in use, chosen once: the best, or the one that the environment variable `REQUANT_ISA` names.
///
/// # Errors
/// `REQUANT_ISA` names a set that does not exist or that this CPU cannot run. Call this when starting up: the functions
/// of this crate then take the best set instead, since the bits are the same.
pub fn active() -> Result<&'static dyn Kernels> {
    static ACTIVE: OnceLock<Result<&'static dyn Kernels>> = OnceLock::new();
    ACTIVE
        .get_or_init(|| match std::env::var_os("REQUANT_ISA") {
            None => Ok(best()),
            Some(name) => by_name(&name.to_string_lossy()),
        })
        .clone()
}

/// The set in use, or the best where the environment names none that exists.
pub(crate) fn current() -> &'static dyn Kernels {
    active().unwrap_or_else(|_| best())
}

fn best() -> &'static dyn Kernels {
    available().next().unwrap_or(&generic::Generic)
}
