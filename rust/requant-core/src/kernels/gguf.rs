//! Encoding and decoding of GGUF's blocks, once for each instruction set.
//!
//! [`crate::gguf`] holds the one definition, written in vectors; a set of kernels has it compiled for its instructions,
//! with its own way of adding up integers where compilers find none, and is a file and a line in the registry, under
//! the name of the set in [`crate::kernels`] that it belongs to.

use crate::gguf::{self, BlockType, integers::Plain};

/// Whole blocks of a row at a time.
pub trait BlockKernel: Send + Sync {
    /// The name of the set that it belongs to, as `REQUANT_ISA` takes it.
    fn name(&self) -> &'static str;

    /// Writes the blocks of a row of finite values; `importance`, where given, has a positive weight for each. `false`
    /// where a float16 of the blocks is not finite.
    fn encode(&self, dtype: BlockType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> bool;

    /// Writes the values of blocks.
    fn decode(&self, dtype: BlockType, data: &[u8], out: &mut [f32]);
}

struct Generic;

impl BlockKernel for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn encode(&self, dtype: BlockType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> bool {
        gguf::encode::<8>(&Plain, dtype, x, importance, out)
    }

    fn decode(&self, dtype: BlockType, data: &[u8], out: &mut [f32]) {
        gguf::decode(dtype, data, out);
    }
}

registry_of_inner_loops! { BlockKernel,
    #[cfg(target_arch = "x86_64")]
    super::x86_64::avx512vnni_gguf::probe,
    #[cfg(target_arch = "x86_64")]
    super::x86_64::avx2_gguf::probe,
    || Some(&Generic),
}
