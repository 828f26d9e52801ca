//! Encoding and decoding of GGUF's blocks, once for each instruction set.
//!
//! [`crate::gguf`] holds the one definition, written in vectors; a set of kernels only has it compiled for its instructions, and is a
//! file and a line in `REGISTRY`, under the name of the set in [`crate::kernels`] that it belongs to.

use crate::{
    Error, Result,
    gguf::{self, BlockType},
    kernels,
};

/// Whole blocks of a row at a time.
pub trait BlockKernel: Send + Sync {
    /// The name of the set that it belongs to, as `REQUANT_ISA` takes it.
    fn name(&self) -> &'static str;

    /// Writes the blocks of a row of finite values; `importance`, where given, has a positive weight for each. `false` where a
    /// float16 of the blocks is not finite.
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
        gguf::encode(dtype, x, importance, out)
    }

    fn decode(&self, dtype: BlockType, data: &[u8], out: &mut [f32]) {
        gguf::decode(dtype, data, out);
    }
}

type Probe = fn() -> Option<&'static dyn BlockKernel>;

/// One for each set that has its own; generic is always present.
const REGISTRY: &[Probe] = &[
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avx2_gguf::probe,
    || Some(&Generic),
];

/// The kernels that this CPU can run, best first.
pub fn available() -> impl Iterator<Item = &'static dyn BlockKernel> {
    REGISTRY.iter().filter_map(|probe| probe())
}

/// The available kernel of that name.
///
/// # Errors
/// No available kernel has it.
pub fn by_name(name: &str) -> Result<&'static dyn BlockKernel> {
    available().find(|k| k.name() == name).ok_or_else(|| Error::Isa {
        name: name.to_owned(),
        available: available().map(BlockKernel::name).collect::<Vec<_>>().join(", "),
    })
}

/// The kernel of the set in use, or of the best set below it that has one.
pub(crate) fn current() -> &'static dyn BlockKernel {
    let in_use = kernels::current().name();
    kernels::available()
        .skip_while(|set| set.name() != in_use)
        .find_map(|set| by_name(set.name()).ok())
        .unwrap_or(&Generic)
}
