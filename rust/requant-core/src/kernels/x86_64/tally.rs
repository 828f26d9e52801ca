//! Counting values into bins, with vectors of any width.
//!
//! The additions in memory are what takes the time: 0.24 ns each on Zen 5, which stores once a cycle, 0.36 on Zen 3. So zeros,
//! which are half of the values after ReLU, are left out of them: the bins of the other values are packed side by side.
//! While those of one piece are packed, those of the piece before are counted, a few at a time, so that neither waits for
//! the other. They take 16 bits and are read four at once: what is stored across two lines of the cache, and what is
//! loaded, takes time from the additions.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use crate::kernels::{BINS, Counters, LANES, WAYS};

/// Values that are packed before any of them is counted: what was just stored whole cannot be loaded in parts at once.
const PIECE: usize = 512;

/// Values that are packed at a time.
pub(super) const GROUP: usize = 2 * LANES;

/// Slots that are read at once.
const FOUR: usize = 4;

/// The last bin: any number of 16 bits becomes a slot by an AND with it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a few thousand"
)]
pub(super) const LAST: i16 = BINS as i16 - 1;

/// Bytes by which reading is ahead: the CPU by itself is not far enough, as additions come between two vectors.
const AHEAD: usize = 8192;

/// Adds `step` to the counters of the values' bins, and returns how many of the values are 0.
///
/// `pack` puts the slots of the values of a group that are not 0 where it is told, and returns how many they are.
///
/// # Safety
///
/// What `pack` puts are numbers of 16 bits that are less than [`BINS`].
#[inline(always)]
pub(super) unsafe fn tally(
    groups: &[[f32; GROUP]],
    step: u32,
    counters: &mut Counters,
    mut pack: impl FnMut(&[f32; GROUP], &mut Slots, usize) -> usize,
) -> u32 {
    if groups.len() * GROUP >= BINS * WAYS {
        // Where other tensors were counted since, counters lie beyond the first cache, from which they come faster in order.
        counters.as_flattened().chunks(LANES).for_each(|line| fetch(line, 0));
    }
    let mut nonzero = 0;
    let (mut packed, mut packing) = (&mut Slots::new(), &mut Slots::new());
    for piece in groups.chunks(PIECE / GROUP) {
        // The same for all groups of a piece, so that the loop that counts them is foreseen.
        let fours = packed.len / (PIECE / GROUP * FOUR);
        let mut waiting = packed.fours();
        let mut len = 0;
        for group in piece {
            group.chunks(LANES).for_each(|line| fetch(line, AHEAD));
            len += pack(group, packing, len);
            let now;
            (now, waiting) = waiting.split_at(fours);
            // SAFETY: they are from `pack`.
            unsafe { count(now, step, counters) }
        }
        // SAFETY: as above.
        unsafe { count(waiting, step, counters) }
        packed.count_odd(step, counters);
        nonzero += len;
        packing.len = len;
        if len == piece.len() * GROUP && is_constant(piece) {
            // Each addition would wait for the one before it.
            let counter = &mut counters[0][packing.slot(0)];
            *counter = counter.wrapping_add(step.wrapping_mul(to_u32(len)));
            packing.len = 0;
        }
        (packed, packing) = (packing, packed);
    }
    // SAFETY: as above.
    unsafe { count(packed.fours(), step, counters) }
    packed.count_odd(step, counters);
    let zeros = to_u32(groups.len() * GROUP - nonzero);
    counters[0][0] = counters[0][0].wrapping_add(step.wrapping_mul(zeros));
    zeros
}

/// Has the cache fetch what begins `ahead` bytes beyond the beginning of a line.
#[inline(always)]
fn fetch<T>(line: &[T], ahead: usize) {
    // SAFETY: a hint, for which any address will do.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_byte_add(ahead).cast()) }
}

#[inline(always)]
fn is_constant(piece: &[[f32; GROUP]]) -> bool {
    let first = piece[0][0];
    let is_equal = |group: &[f32; GROUP]| group.iter().fold(true, |all, v| all & (*v == first));
    piece.iter().all(is_equal)
}

/// # Safety
///
/// All slots are less than [`BINS`].
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "16 bits at a time")]
unsafe fn count(fours: &[[u8; 2 * FOUR]], step: u32, counters: &mut Counters) {
    for four in fours {
        let four = u64::from_le_bytes(*four);
        for i in 0..FOUR {
            let slot = (four >> (16 * i)) as u16;
            // SAFETY: it is less than `BINS`, says the caller; to make sure takes 4 % more time.
            let counter = unsafe { counters[i % WAYS].get_unchecked_mut(usize::from(slot)) };
            *counter = counter.wrapping_add(step);
        }
    }
}

/// The slots of values that are not 0, side by side.
#[repr(align(64))]
pub(super) struct Slots {
    /// 16 bits each.
    bytes: [u8; 2 * (PIECE + LANES)],
    len: usize,
}

impl Slots {
    fn new() -> Self {
        Self {
            bytes: [0; 2 * (PIECE + LANES)],
            len: 0,
        }
    }

    /// Where slots are put, from number `at` on.
    #[inline(always)]
    pub(super) fn room<const BYTES: usize>(&mut self, at: usize) -> &mut [u8; BYTES] {
        self.bytes[2 * at..]
            .first_chunk_mut()
            .expect("a vector beyond the last")
    }

    #[inline(always)]
    fn fours(&self) -> &[[u8; 2 * FOUR]] {
        self.bytes[..2 * self.len].as_chunks().0
    }

    fn slot(&self, i: usize) -> usize {
        usize::from(u16::from_le_bytes([self.bytes[2 * i], self.bytes[2 * i + 1]]))
    }

    /// Counts the last ones, of which there are no four.
    fn count_odd(&self, step: u32, counters: &mut Counters) {
        for i in self.len / FOUR * FOUR..self.len {
            let counter = &mut counters[0][self.slot(i)];
            *counter = counter.wrapping_add(step);
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "at most the length of a slice that is counted in u32"
)]
const fn to_u32(len: usize) -> u32 {
    len as u32
}
