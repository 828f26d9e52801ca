//! Shapes that meet every tail of every tile.

/// `(m, k, n)`: each of M and N around the tiles' sizes, each of K around the widths of groups and vectors, and empty
/// ones.
pub(crate) fn odd() -> impl Iterator<Item = (usize, usize, usize)> {
    let tails = (0..=13).flat_map(|m| [0, 1, 7, 8, 15, 16, 17, 24, 31, 33].map(move |n| (m, 35, n)));
    let depths = (0..=67).flat_map(|k| [(1, k, 17), (6, k, 16), (7, k, 9), (12, k, 33)]);
    tails.chain(depths)
}
