//! Low-bit weights: their search, the feedback of their errors, and GGUF's blocks.

use requant_core::{
    gguf::BlockType,
    kernels::{
        feedback::{self, FeedbackKernel, LANES, PANEL},
        gguf,
        low_bit::{self, LowBitKernel},
    },
    weights::{ALGORITHMS, BlockScheme, Layout, Rows, quantize_with},
};

use crate::{bits, compare, reals};

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
