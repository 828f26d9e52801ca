//! The integer GEMM by its definition: i64, one element at a time, zero points subtracted first.

/// An 8-bit matrix in any type, as integers.
#[derive(Debug, Clone)]
pub(crate) struct Ints {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Vec<i64>,
}

impl Ints {
    pub(crate) fn at(&self, row: usize, column: usize) -> i64 {
        self.values[row * self.columns + column]
    }
}

fn pick(values: &[i32], index: usize) -> i64 {
    i64::from(*values.get(index).unwrap_or(&values[0]))
}

pub(crate) fn matmul(a: &Ints, a_zero_point: &[i32], b: &Ints, b_zero_point: &[i32]) -> Vec<i64> {
    let mut c = Vec::new();
    for i in 0..a.rows {
        for j in 0..b.columns {
            let terms =
                (0..a.columns).map(|k| (a.at(i, k) - pick(a_zero_point, i)) * (b.at(k, j) - pick(b_zero_point, j)));
            c.push(terms.sum());
        }
    }
    c
}
