//! The quotient that kernels compute without dividing, where it is hardest to get right.

/// What the AVX2 kernel does in place of `x / s`.
fn quotient(x: f32, s: f32) -> f32 {
    let y = 1.0 / s;
    let q = x * y;
    (-q).mul_add(s, x).mul_add(y, q)
}

/// The inverse of an odd number modulo 2^32: each step doubles the bits that are right.
fn inverse(odd: u32) -> u32 {
    (0..5).fold(odd, |y, _| y.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(y))))
}

/// Every divisor `s` in [1, 2), with every dividend in [1, 2) whose quotient lies so close to the middle `m` of two
/// floats that one instruction's rounding could move it across.
///
/// With `s = S * 2^-23`, `x = X * 2^-23` and an odd `M` of 25 bits, the middle is `M * 2^-25` below 1 and `M * 2^-24`
/// above, and `x - ms` is `j = X * 2^25 - MS` (or 2^24) of the smallest units: near means a small `j`, so `M` is
/// `-j / S` modulo 2^25 (or 2^24). Rounding errors move `j` by 3 or less.
#[test]
fn equals_the_division_beside_every_middle() {
    const STEP: usize = if cfg!(miri) {
        100_003
    } else if cfg!(debug_assertions) {
        7
    } else {
        1
    };
    let mut tried = 0_u64;
    for significand in (1_u32 << 23..1 << 24).step_by(STEP) {
        let s = significand as f32; // a power of two too large, like x: the quotient is the same
        let twos = significand.trailing_zeros();
        for j in (1_i64..=8).flat_map(|j| [j, -j]) {
            // M is odd, so both sides have as many factors of two.
            if j.trailing_zeros() != twos {
                continue;
            }
            let (odd, j_odd) = (significand >> twos, (j >> twos) as u32);
            for bits in [25, 24] {
                // M modulo 2^(bits - twos), then all of it.
                let residue = inverse(odd).wrapping_mul(j_odd.wrapping_neg()) & ((1 << (bits - twos)) - 1);
                for high in 0..1_u32 << twos {
                    let m = u64::from(residue | high << (bits - twos));
                    let m = if bits == 24 { m + (1 << 24) } else { m };
                    let product = (m * u64::from(significand)).cast_signed() + j;
                    let x = product >> bits;
                    if product != x << bits || !(1 << 23..1 << 24).contains(&x) || !(1 << 24..1 << 25).contains(&m) {
                        continue;
                    }
                    let x = x as f32;
                    assert_eq!(quotient(x, s).to_bits(), (x / s).to_bits(), "{x} / {s}, {j} beside {m}");
                    tried += 1;
                }
            }
        }
    }
    assert!(
        tried as usize > (1 << 23) / STEP,
        "only {tried} quotients are that close"
    );
}

/// Quotients of which the remainder leaves the normal numbers are rounded to 0, whatever it is.
#[test]
fn rounds_like_the_division_at_the_ends_of_the_ordinary_scales() {
    for s in [
        2f32.powi(-100),
        2f32.powi(-100) * 1.999_999_9,
        2f32.powi(100),
        1.333_333_4,
    ] {
        for k in -2000..2000 {
            let tie = k as f32 * 0.25 * s;
            for x in [tie.next_down(), tie, tie.next_up()] {
                let (got, want) = (quotient(x, s), x / s);
                assert_eq!(
                    got.round_ties_even(),
                    want.round_ties_even(),
                    "{x:e} / {s:e} = {want}, not {got}"
                );
            }
        }
    }
}
