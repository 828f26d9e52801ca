//! The convolution by its definition, NCHW: i64, one tap at a time, zero points subtracted first.

/// `[images, channels, height, width]` of integers.
pub(crate) struct Tensor {
    pub(crate) shape: [usize; 4],
    pub(crate) values: Vec<i64>,
}

impl Tensor {
    pub(crate) fn at(&self, [a, b, c, d]: [usize; 4]) -> i64 {
        self.values[((a * self.shape[1] + b) * self.shape[2] + c) * self.shape[3] + d]
    }

    /// None outside.
    pub(crate) fn inside(&self, n: usize, c: usize, y: i64, x: i64) -> Option<i64> {
        let (y, x) = (usize::try_from(y).ok()?, usize::try_from(x).ok()?);
        (y < self.shape[2] && x < self.shape[3]).then(|| self.at([n, c, y, x]))
    }
}

/// The attributes of ONNX Conv.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) strides: [usize; 2],
    pub(crate) dilations: [usize; 2],
    pub(crate) pads: [usize; 4],
    pub(crate) groups: usize,
}

pub(crate) fn length(input: usize, axis: usize, kernel: usize, a: &Attributes) -> usize {
    let padded = input + a.pads[axis] + a.pads[axis + 2];
    let reach = a.dilations[axis] * (kernel - 1) + 1;
    if padded < reach {
        0
    } else {
        (padded - reach) / a.strides[axis] + 1
    }
}

pub(crate) fn conv(x: &Tensor, x_zero_point: i64, w: &Tensor, w_zero_point: &[i32], a: &Attributes) -> Tensor {
    let [count, _, height, width] = x.shape;
    let [filters, channels, rows, columns] = w.shape;
    let shape = [count, filters, length(height, 0, rows, a), length(width, 1, columns, a)];
    let mut values = Vec::new();
    for n in 0..count {
        for m in 0..filters {
            let zero_point = i64::from(*w_zero_point.get(m).unwrap_or(&w_zero_point[0]));
            for oy in 0..shape[2] {
                for ox in 0..shape[3] {
                    let mut sum = 0;
                    for c in 0..channels {
                        for i in 0..rows {
                            for j in 0..columns {
                                let y = (oy * a.strides[0] + i * a.dilations[0]) as i64 - a.pads[0] as i64;
                                let x_ = (ox * a.strides[1] + j * a.dilations[1]) as i64 - a.pads[1] as i64;
                                let channel = m / (filters / a.groups) * channels + c;
                                if let Some(v) = x.inside(n, channel, y, x_) {
                                    sum += (v - x_zero_point) * (w.at([m, c, i, j]) - zero_point);
                                }
                            }
                        }
                    }
                    values.push(sum);
                }
            }
        }
    }
    Tensor { shape, values }
}
