//! GGUF's blocks on AVX2: the definition, compiled for it.

use crate::{
    gguf::{self, BlockType},
    kernels::gguf::BlockKernel,
};

/// Proof that AVX2 was detected: only [`probe`] makes one.
struct Avx2(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn BlockKernel> {
    static AVX2: Avx2 = Avx2(());
    is_x86_feature_detected!("avx2").then_some(&AVX2 as &dyn BlockKernel)
}

impl BlockKernel for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn encode(&self, dtype: BlockType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> bool {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { encode(dtype, x, importance, out) }
    }

    fn decode(&self, dtype: BlockType, data: &[u8], out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { decode(dtype, data, out) }
    }
}

#[target_feature(enable = "avx2")]
fn encode(dtype: BlockType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> bool {
    gguf::encode(dtype, x, importance, out)
}

#[target_feature(enable = "avx2")]
fn decode(dtype: BlockType, data: &[u8], out: &mut [f32]) {
    gguf::decode(dtype, data, out);
}
