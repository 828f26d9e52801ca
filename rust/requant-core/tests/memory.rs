//! Each kernel of each set on arrays that end where its slices do, in calls so few and small that Miri can interpret them: it
//! sees what a right result hides, like reads past an end. `make miri` runs this file, `make asan` all of them.
//!
//! Results are compared with the generic ones, so that every byte that was written is read.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    reason = "test data"
)]

use requant_core::{
    QuantType,
    affine::{Integers, IntegersMut, Reals, RealsMut, Rounding},
    conv::{Filters, Geometry, Images, PackedConv, conv2d},
    gemm::{
        Bytes, Dequantize, Matrix, Output, PackedWeights,
        blocked::{self, Activations, PackedBlocks},
        matmul,
    },
    gguf::BlockType,
    kernels::{
        self, BINS, Corners, Counters, Kernels, Piece, Tail, Terms, WAYS,
        blocked_gemm::{self, BlockedKernel},
        depthwise::{self, DepthwiseKernel},
        elementwise::{self, Divisors, ElementwiseKernel, Slices},
        feedback::{self, FeedbackKernel, LANES, PANEL},
        gemm::{self, GemmKernel},
        gguf,
        low_bit::{self, LowBitKernel},
    },
    requantize::{Requantizer, Rounding as Requantization, Scales},
    weights::{ALGORITHMS, BlockScheme, Layout, Rows, quantize_with},
};

/// Bytes without a pattern.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|i| (i.wrapping_add(1).wrapping_mul(2_654_435_761) >> 23) as u8)
        .collect()
}

fn signed(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|byte| byte.cast_signed()).collect()
}

/// In -4..4.
fn reals(length: usize) -> Vec<f32> {
    signed(&noise(length)).iter().map(|v| f32::from(*v) / 32.0).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Fails where a set makes something else of `f` than the last of the registry, which is the generic one.
fn compare<K: Copy, T: PartialEq + std::fmt::Debug>(all: impl Iterator<Item = K>, f: impl Fn(K) -> T) {
    let results: Vec<T> = all.map(f).collect();
    for (set, result) in results.iter().enumerate() {
        assert_eq!(Some(result), results.last(), "set {set} of {}", results.len());
    }
}

#[test]
fn statistics() {
    for length in [0, 7, 33, 131] {
        for odd in [0.0, f32::NAN] {
            let mut x = reals(length);
            x.iter_mut().take(1).for_each(|v| *v += odd);
            compare(kernels::available(), |k: &dyn Kernels| {
                let mut counters: Box<Counters> = Box::new([[0; BINS]; WAYS]);
                let summary = k.tally(&x, 8.0, 1, &mut counters);
                let counted: u32 = counters.as_flattened().iter().sum();
                let (mut lo, mut hi) = (vec![0.0; length], vec![1.0; length]);
                let widened = k.widen(&x, &mut lo, &mut hi);
                (summary, counted, k.extrema(&x), widened, bits(&lo), bits(&hi))
            });
        }
        let bytes = noise(length);
        let table = std::array::from_fn(|i| i as u8 ^ 0x5a);
        for signed in [false, true] {
            let (a, b, constant) = (0.7, -0.3, 20.0);
            let (min, max) = if signed { (-128, 127) } else { (0, 255) };
            let terms = Terms {
                a,
                b,
                constant,
                min,
                max,
                signed,
            };
            compare(kernels::available(), |k: &dyn Kernels| {
                let (mut sum, mut mapped) = (vec![0; length], vec![0; length]);
                k.add(&bytes, &bytes, &terms, &mut sum);
                k.look_up(&table, &bytes, &mut mapped);
                (sum, mapped)
            });
        }
    }
}

#[test]
fn densities() {
    let tails: Vec<Tail> = (0..=20u32)
        .map(|i| Tail {
            mass: f64::from((20 - i).pow(2)),
            bins: f64::from(20 - i),
        })
        .collect();
    let piece = |i: u32| f64::from(20 - i);
    let pieces: Vec<Piece> = (0..20)
        .map(|i| Piece {
            density: 1.0,
            beyond: piece(i),
            excess: piece(i).powi(2),
            excess_sq: piece(i).powi(3),
        })
        .collect();
    let corners: Vec<Corners> = (0..40)
        .map(|i| Corners([1.0, 2.0, 3.0, 4.0].map(|v| v * i as f32)))
        .collect();
    let sums: Vec<f64> = (0..40).rev().map(f64::from).collect();
    for count in [0, 1, 4, 9, 19] {
        compare(kernels::available(), |k: &dyn Kernels| {
            let (mut edges, mut spreads) = (vec![tails[0]; count + 1], vec![0.0; count]);
            k.cut(&tails, 1.3, 1, &mut edges, &mut spreads);
            let (mut lost, mut cells) = (vec![0.0; count], vec![0.0; count]);
            k.lose(
                [&sums[..count + 2], &sums[..count + 2], &sums[..count + 2]],
                2,
                &mut lost,
            );
            k.interpolate(&corners, 1, 1.3, 1, &mut cells);
            let excess = k.excess(&pieces, 19.5, 1.3, 0, count);
            (edges, spreads, bits(&lost), bits(&cells), excess.to_bits())
        });
    }
}

/// Every type, and each kind of run with one formula; whole blocks, eights and tails.
#[test]
fn elementwise() {
    let runs = [(3_usize, 1), (41, 1), (50, 16), (67, 32), (69, 69), (45, 20)];
    for ((length, run), rounding) in runs.into_iter().zip(Rounding::ALL.into_iter().cycle()) {
        let slices = length.div_ceil(run);
        let scale: Vec<f32> = (0..slices).map(|i| 0.02 + i as f32 * 0.01).collect();
        let zero_point = vec![5; slices];
        let mut x = reals(length);
        for doubtful in [0.0, f32::NAN] {
            x[length / 2] += doubtful;
            compare(elementwise::available(), |k| {
                let run = Run {
                    k,
                    run,
                    scale: &scale,
                    zero_point: &zero_point,
                    rounding,
                };
                run.all(&x)
            });
        }
    }
}

#[derive(Clone, Copy)]
struct Run<'a> {
    k: &'static dyn ElementwiseKernel,
    run: usize,
    scale: &'a [f32],
    zero_point: &'a [i32],
    rounding: Rounding,
}

/// Integers, their reals, what fake quantization makes, and what was in range.
type Made = (Vec<i32>, Vec<u32>, Vec<u32>, Vec<bool>);

impl Run<'_> {
    fn all(self, x: &[f32]) -> [Made; 4] {
        let n = x.len();
        let (mut i8s, mut u8s, mut i16s, mut u16s) = (vec![0i8; n], vec![0u8; n], vec![0i16; n], vec![0u16; n]);
        [
            self.made(QuantType::I8, x, IntegersMut::I8(&mut i8s)),
            self.made(QuantType::U8, x, IntegersMut::U8(&mut u8s)),
            self.made(QuantType::I16, x, IntegersMut::I16(&mut i16s)),
            self.made(QuantType::U16, x, IntegersMut::U16(&mut u16s)),
        ]
    }

    fn made(self, dtype: QuantType, x: &[f32], mut q: IntegersMut<'_>) -> Made {
        let Self {
            k,
            run,
            scale,
            zero_point,
            rounding,
        } = self;
        let slices = Slices {
            run,
            scale,
            zero_point,
            limits: (dtype.min(), dtype.max()),
        };
        let [mut inverse, mut min, mut max] = [(); 3].map(|()| vec![0.0; scale.len()]);
        let ordinary = k.prepare(slices, &mut inverse, &mut min, &mut max);
        let divisors = Divisors {
            slices,
            inverse: &inverse,
            min: &min,
            max: &max,
            ordinary,
        };
        let (mut fake, mut inside) = (vec![0.0; x.len()], vec![false; x.len()]);
        k.fake_quantize(x, divisors, rounding, &mut fake);
        k.in_range(x, divisors, rounding, &mut inside);
        let mut back = [vec![0.0; x.len()], vec![0.0; x.len()]];
        let mut dequantize = |q: Integers<'_>| {
            k.dequantize(q, slices, false, &mut back[0]);
            k.dequantize(q, slices, true, &mut back[1]);
        };
        let widened: Vec<i32> = match &mut q {
            IntegersMut::I8(q) => {
                k.quantize(x, divisors, rounding, IntegersMut::I8(q));
                dequantize(Integers::I8(q));
                q.iter().map(|q| i32::from(*q)).collect()
            }
            IntegersMut::U8(q) => {
                k.quantize(x, divisors, rounding, IntegersMut::U8(q));
                dequantize(Integers::U8(q));
                q.iter().map(|q| i32::from(*q)).collect()
            }
            IntegersMut::I16(q) => {
                k.quantize(x, divisors, rounding, IntegersMut::I16(q));
                dequantize(Integers::I16(q));
                q.iter().map(|q| i32::from(*q)).collect()
            }
            IntegersMut::U16(q) => {
                k.quantize(x, divisors, rounding, IntegersMut::U16(q));
                dequantize(Integers::U16(q));
                q.iter().map(|q| i32::from(*q)).collect()
            }
        };
        assert_eq!(bits(&back[0]), bits(&back[1]), "{}, past the caches", k.name());
        (widened, bits(&back[0]), bits(&fake), inside)
    }
}

#[test]
fn packing_and_halves() {
    for length in [0_usize, 1, 63, 64, 131] {
        let nibbles: Vec<u8> = noise(length).iter().map(|byte| byte & 3).collect();
        // No NaN, whose bits Miri draws at random.
        let halves: Vec<u16> = (0..length as u16).map(|i| i.wrapping_mul(0x1357) & 0xbfff).collect();
        compare(elementwise::available(), |k: &dyn ElementwiseKernel| {
            let packed = [2, 4].map(|per_byte| {
                let (mut out, mut back) = (vec![0; length.div_ceil(per_byte)], vec![0i8; length]);
                let fits = k.pack(Integers::U8(&nibbles), per_byte, &mut out);
                k.unpack(&out, per_byte, IntegersMut::I8(&mut back));
                (fits, out, back)
            });
            let (mut wide, mut narrow) = (vec![0.0; length], vec![0; length]);
            k.widen(Reals::F16(&halves), &mut wide);
            // Miri does not know the instruction of AVX2.
            if !cfg!(miri) {
                k.narrow(&wide, RealsMut::F16(&mut narrow));
            }
            (packed, bits(&wide), narrow)
        });
    }
}

/// Each number of rows that a tile can have, with a tail of K and of N.
#[test]
fn products() {
    let (k, n) = (17, 9);
    let b = noise(k * n);
    let b = Matrix::new(Bytes::U8(&b), k, n).unwrap();
    for m in 1..=if cfg!(miri) { 7 } else { 14 } {
        let (unsigned, signed) = (noise(m * k), signed(&noise(m * k)));
        for a in [Bytes::U8(&unsigned), Bytes::I8(&signed)] {
            compare(gemm::available(), |kernel: &'static dyn GemmKernel| {
                let b = PackedWeights::with_kernel(kernel, b, &[7]).unwrap();
                let mut sums = vec![0; m * n];
                matmul(Matrix::new(a, m, k).unwrap(), &[3], &b, Output::I32(&mut sums), 1).unwrap();
                sums
            });
        }
    }
}

#[test]
fn results_of_products() {
    let (m, k, n) = (2, 5, 19);
    let (a, b) = (noise(m * k), noise(k * n));
    let (a, b) = (
        Matrix::new(Bytes::U8(&a), m, k).unwrap(),
        Matrix::new(Bytes::U8(&b), k, n).unwrap(),
    );
    let columns: Vec<f32> = (0..n).map(|j| 1e-3 * (1 + j) as f32).collect();
    let scales = Scales {
        a: 0.3,
        b: &columns,
        y: 1.7,
    };
    let new = |dtype, zero_point| Requantizer::new(Requantization::HalfEvenFloat, scales, dtype, zero_point).unwrap();
    let (to_u8, to_i8) = (new(QuantType::U8, 9), new(QuantType::I8, -9));
    compare(gemm::available(), |kernel: &'static dyn GemmKernel| {
        let b = PackedWeights::with_kernel(kernel, b, &[7]).unwrap();
        let (mut reals, mut u8s, mut i8s) = (vec![0.0; m * n], vec![0; m * n], vec![0; m * n]);
        let dequantize = Dequantize {
            a: &[0.5],
            b: &columns,
            bias: &columns,
        };
        matmul(a, &[3], &b, Output::F32(&mut reals, dequantize), 1).unwrap();
        matmul(a, &[3], &b, Output::U8(&mut u8s, &to_u8), 1).unwrap();
        matmul(a, &[3], &b, Output::I8(&mut i8s, &to_i8), 1).unwrap();
        (bits(&reals), u8s, i8s)
    });
}

/// Threads write to parts of one array.
#[test]
fn threads() {
    let (a, b) = (noise(40 * 5), noise(5 * 33));
    let (a, b) = (
        Matrix::new(Bytes::U8(&a), 40, 5).unwrap(),
        Matrix::new(Bytes::U8(&b), 5, 33).unwrap(),
    );
    compare([3, 1].into_iter(), |threads| {
        let mut out = vec![0; 40 * 33];
        matmul(
            a,
            &[0],
            &PackedWeights::new(b, &[0]).unwrap(),
            Output::I32(&mut out),
            threads,
        )
        .unwrap();
        out
    });
}

/// Channels and widths that fill no vector, in both kinds of kernels.
#[test]
fn convolutions() {
    let product = gemm::by_name("generic").unwrap();
    for (width, channels, dtype) in [(1, 19, QuantType::U8), (4, 3, QuantType::U8), (7, 16, QuantType::I8)] {
        let (shape, filters) = ([1, 1, width, channels], [channels, 1, 3, 3]);
        let (unsigned, w) = (noise(width * channels), signed(&noise(channels * 9)));
        let signed = signed(&unsigned);
        let x = if dtype.signed() {
            Bytes::I8(&signed)
        } else {
            Bytes::U8(&unsigned)
        };
        let columns = vec![1e-3; channels];
        let scales = Scales {
            a: 0.3,
            b: &columns,
            y: 1.7,
        };
        let requantizer = Requantizer::new(Requantization::HalfEvenFloat, scales, QuantType::U8, 90).unwrap();
        compare(depthwise::available(), |kernel: &'static dyn DepthwiseKernel| {
            let filters = Filters {
                data: Bytes::I8(&w),
                shape: filters,
                zero_point: &[1],
            };
            let geometry = Geometry {
                strides: [1; 2],
                dilations: [1; 2],
                pads: [1; 4],
                groups: channels,
            };
            let conv = PackedConv::with_kernels(product, kernel, filters, geometry).unwrap();
            let images = Images::new(x, shape, 2).unwrap();
            let size = conv.output_shape(shape).unwrap().iter().product();
            let (mut sums, mut bytes) = (vec![0; size], vec![0; size]);
            conv2d(images, &conv, Output::I32(&mut sums), 1).unwrap();
            conv2d(images, &conv, Output::U8(&mut bytes, &requantizer), 1).unwrap();
            (sums, bytes)
        });
    }
}

#[test]
fn products_with_blocks() {
    // Blocks of 32 have a loop of their own; 56 are cut into four octets, two and one.
    for (block_size, k) in [(16, 21), (32, 35), (64, 56)] {
        let n = 17;
        let nibbles: Vec<u8> = noise(k * n).iter().map(|byte| byte & 15).collect();
        let blocks = k.div_ceil(block_size) * n;
        let each: Vec<i32> = (0..blocks as i32).map(|i| i % 16).collect();
        for m in [1, 2, 3, 6] {
            let a = reals(m * k);
            for zero_points in [&[8][..], &each] {
                compare(blocked_gemm::available(), |kernel: &'static dyn BlockedKernel| {
                    let b = Matrix::new(Bytes::U8(&nibbles), k, n).unwrap();
                    let scales = reals(blocks);
                    let b = PackedBlocks::with_kernel(kernel, b, block_size, &scales, zero_points).unwrap();
                    Activations::ALL.map(|activations| {
                        let mut out = vec![0.0; m * n];
                        blocked::matmul(&a, m, &b, activations, &[], &mut out, 1).unwrap();
                        bits(&out)
                    })
                });
            }
        }
    }
}

#[test]
fn low_bit_weights() {
    for (rows, columns) in [(9, 11), (17, 8)] {
        let values = reals(rows * columns);
        let from = low_bit::Columns {
            values: &values,
            pitch: columns,
            rows,
            columns,
        };
        compare(low_bit::available(), |k: &dyn LowBitKernel| {
            let mut turned = vec![0.0; rows * columns];
            k.turn(from, rows, &mut turned);
            bits(&turned)
        });
    }
    let (n, k) = (2, 45);
    let values = reals(n * k);
    for b in BlockScheme::BITS {
        for algorithm in ALGORITHMS {
            compare(low_bit::available(), |kernel| {
                let rows = Rows::new(&values, (n, k), Layout::Rows).unwrap();
                let scheme = BlockScheme::new(b, 16, false).unwrap();
                let found = quantize_with(kernel, rows, scheme, *algorithm, None, 1).unwrap();
                (found.data().to_vec(), bits(found.scales()))
            });
        }
    }
}

#[test]
fn feedback_of_errors() {
    let k = 5;
    let wide = |length| reals(length).iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let panel = |length| wide(length * PANEL).as_chunks::<PANEL>().0.to_vec();
    let lanes = |length| reals(length * LANES).as_chunks::<LANES>().0.to_vec();
    let mut triangle = wide(k * k);
    (0..k).for_each(|j| triangle[j * k + j] = 2.0);
    let values = reals(k * k);
    let factors = feedback::Factors {
        values: &values,
        stride: k,
    };
    let grid = feedback::LaneGrids {
        scale: [0.5; LANES],
        inverse: [2.0; LANES],
        zero_point: [7.0; LANES],
    };
    compare(feedback::available(), |kernel: &dyn FeedbackKernel| {
        let (mut out, mut x) = ([[1.0; PANEL]; PANEL], panel(k));
        kernel.subtract(&panel(k), &panel(k), &mut out);
        kernel.solve(&triangle, &mut x);
        let (mut weights, mut carried, mut codes) = (lanes(k), lanes(k), vec![[0; LANES]; k]);
        let columns = feedback::Columns {
            weights: &mut weights,
            carried: &mut carried,
            factors,
            codes: &mut codes,
        };
        kernel.quantize(columns, &[grid], &vec![0; k], (0.0, 15.0));
        let mut relaxed = lanes(k);
        kernel.relax(&mut relaxed, factors);
        let reals = [weights, carried, relaxed].map(|x| bits(x.as_flattened()));
        (
            out.map(|row| row.map(f64::to_bits)),
            x.as_flattened().iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            codes,
            reals,
        )
    });
}

/// One block of each type; encoding searches long and is safe code, so Miri looks at the short ones.
#[test]
fn blocks_of_gguf() {
    for dtype in BlockType::all().filter(|dtype| !cfg!(miri) || dtype.block_size() < 256) {
        let x = reals(dtype.block_size());
        compare(gguf::available(), |kernel: &dyn gguf::BlockKernel| {
            let (mut data, mut back) = (vec![0; dtype.bytes()], vec![0.0; x.len()]);
            let fits = kernel.encode(dtype, &x, None, &mut data);
            kernel.decode(dtype, &data, &mut back);
            (fits, data, bits(&back))
        });
    }
}
