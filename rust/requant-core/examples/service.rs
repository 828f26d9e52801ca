//! A service: one layer, packed once, answers requests on many threads.
//!
//! Each request brings its own rows of uint8 activations; what leaves is uint8 again, with bias and ReLU inside the
//! product. The weights are shared without a lock, and nothing is allocated for a request but its answer.
#![allow(
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "an example, with made-up data"
)]

use std::{error::Error, thread, time::Instant};

use requant_core::{
    QuantType,
    arrays::{Bytes, Matrix},
    gemm::{Output, PackedWeights, matmul},
    requantize::{Requantizer, Rounding, Scales},
};

const INPUTS: usize = 768;
const OUTPUTS: usize = 1024;
const CLIENTS: usize = 4;
const REQUESTS: usize = 200;

/// `y = relu(x w + bias)`, everything quantized.
struct Layer {
    weights: PackedWeights,
    requantizer: Requantizer,
    x_zero_point: i32,
}

impl Layer {
    fn new(weights: &[i8], weight_scale: &[f32], bias: Vec<i32>) -> requant_core::Result<Self> {
        let (x_scale, y_scale, y_zero_point) = (0.02, 0.5, 0);
        let scales = Scales {
            a: x_scale,
            b: weight_scale,
            y: y_scale,
        };
        let relu = (y_zero_point, QuantType::U8.max());
        Ok(Self {
            weights: PackedWeights::new(Matrix::new(Bytes::I8(weights), INPUTS, OUTPUTS)?, &[0])?,
            requantizer: Requantizer::new(Rounding::HalfEvenFloat, scales, QuantType::U8, y_zero_point)?
                .with_bias(bias)
                .with_clamp(relu.0, relu.1)?,
            x_zero_point: 128,
        })
    }

    /// `x [rows, INPUTS]` to `y [rows, OUTPUTS]`, on the thread that asks.
    fn answer(&self, x: &[u8], y: &mut [u8]) -> requant_core::Result<()> {
        let x = Matrix::new(Bytes::U8(x), x.len() / INPUTS, INPUTS)?;
        matmul(
            x,
            &[self.x_zero_point],
            &self.weights,
            Output::U8(y, &self.requantizer),
            1,
        )
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // Refuse a mistyped REQUANT_ISA at the start, rather than serve on another kernel.
    requant_core::kernels::active()?;
    let weights: Vec<i8> = (0..INPUTS * OUTPUTS).map(|i| ((i % 251) as u8).cast_signed()).collect();
    let scale: Vec<f32> = (0..OUTPUTS).map(|j| 0.01 + 1e-5 * j as f32).collect();
    let layer = Layer::new(&weights, &scale, vec![100; OUTPUTS])?;
    println!("{:?}", layer.weights);

    let start = Instant::now();
    let served = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let layer = &layer;
                scope.spawn(move || -> requant_core::Result<usize> {
                    let mut rows = 0;
                    for request in 0..REQUESTS {
                        let batch = 1 + (client + request) % 8;
                        let x: Vec<u8> = (0..batch * INPUTS).map(|i| (i + request) as u8).collect();
                        let mut y = vec![0; batch * OUTPUTS];
                        layer.answer(&x, &mut y)?;
                        rows += batch;
                    }
                    Ok(rows)
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client does not panic"))
            .sum::<Result<usize, _>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{served} rows in {seconds:.3} s: {:.0} rows/s", served as f64 / seconds);
    Ok(())
}
