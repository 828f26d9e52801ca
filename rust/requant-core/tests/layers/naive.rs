//! Pooling and addition by their definitions, one value at a time, in f64 where it holds what f32 would round once.

/// `x[n][y][x][c]`, channels last; none outside.
pub(crate) fn at(x: &[i32], [_, h, w, c]: [usize; 4], [n, y, xx, channel]: [i64; 4]) -> Option<i32> {
    let inside = (0..h as i64).contains(&y) && (0..w as i64).contains(&xx);
    inside.then(|| x[(((n * h as i64 + y) * w as i64 + xx) * c as i64 + channel) as usize])
}

/// The values under each window, row by row: for each output pixel and channel those inside.
pub(crate) fn windows(
    x: &[i32],
    shape: [usize; 4],
    [kh, kw]: [usize; 2],
    [sh, sw]: [usize; 2],
    [dh, dw]: [usize; 2],
    [top, left, bottom, right]: [usize; 4],
) -> Vec<Vec<i32>> {
    let [n, h, w, c] = shape;
    let places = |length, pads, reach: usize, stride| {
        let padded: usize = length + pads;
        if padded < reach {
            0
        } else {
            (padded - reach) / stride + 1
        }
    };
    let mut all = Vec::new();
    for image in 0..n {
        for oy in 0..places(h, top + bottom, dh * (kh - 1) + 1, sh) {
            for ox in 0..places(w, left + right, dw * (kw - 1) + 1, sw) {
                for channel in 0..c {
                    let mut values = Vec::new();
                    for i in 0..kh {
                        for j in 0..kw {
                            let y = (oy * sh + i * dh) as i64 - top as i64;
                            let xx = (ox * sw + j * dw) as i64 - left as i64;
                            values.extend(at(x, shape, [image as i64, y, xx, channel as i64]));
                        }
                    }
                    all.push(values);
                }
            }
        }
    }
    all
}

/// `x * y + z`, rounded once to f32: the product of a short integer with an f32 fits f64, and so does the sum unless
/// the terms are more than 2^20 apart.
pub(crate) fn fused(x: f64, y: f32, z: f32) -> f32 {
    (x * f64::from(y) + f64::from(z)) as f32
}
