//! The limit of the GEMM kernels: a loop of nothing but multiply-adds in registers, of the instructions that the
//! kernels in use are made of.

use requant_core::kernels::{self, Kernels};

/// Steps of the loop that [`run`] takes.
const STEPS: u64 = 1 << 20;

/// Runs the loop; returns how many multiplications and additions it did, 0 where the set in use has no such loop.
pub(crate) fn run() -> u64 {
    let isa = kernels::active().map_or("generic", Kernels::name);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: each set is in use only where its instructions were detected.
    unsafe {
        match isa {
            "avx512vnni" => return x86_64::avx512vnni(STEPS),
            "avx512" => return x86_64::avx512(STEPS),
            "avxvnni" => return x86_64::avxvnni(STEPS),
            "avx2" => return x86_64::avx2(STEPS),
            _ => {}
        }
    }
    let _ = isa;
    0
}

/// In assembly, since a compiler would see that the products are all the same.
#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;

    /// Twelve sums as in the kernel's tile, each of 8 pairs of products.
    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(steps: u64) -> u64 {
        // SAFETY: touches only the registers that it names.
        unsafe {
            asm!(
                "2:",
                "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm0, ymm0, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm1, ymm1, ymm15",
                "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm2, ymm2, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm3, ymm3, ymm15",
                "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm4, ymm4, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm5, ymm5, ymm15",
                "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm6, ymm6, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm7, ymm7, ymm15",
                "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm8, ymm8, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm9, ymm9, ymm15",
                "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm10, ymm10, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm11, ymm11, ymm15",
                "dec {steps}",
                "jnz 2b",
                steps = inout(reg) steps => _,
                out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
                out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                options(nomem, nostack),
            );
        }
        steps * 12 * 32
    }

    /// Twelve sums, each of 16 pairs of products.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn avx512(steps: u64) -> u64 {
        // SAFETY: touches only the registers that it names.
        unsafe {
            asm!(
                "2:",
                "vpmaddwd zmm14, zmm12, zmm13", "vpaddd zmm0, zmm0, zmm14", "vpmaddwd zmm15, zmm12, zmm13", "vpaddd zmm1, zmm1, zmm15",
                "vpmaddwd zmm14, zmm12, zmm13", "vpaddd zmm2, zmm2, zmm14", "vpmaddwd zmm15, zmm12, zmm13", "vpaddd zmm3, zmm3, zmm15",
                "vpmaddwd zmm14, zmm12, zmm13", "vpaddd zmm4, zmm4, zmm14", "vpmaddwd zmm15, zmm12, zmm13", "vpaddd zmm5, zmm5, zmm15",
                "vpmaddwd zmm14, zmm12, zmm13", "vpaddd zmm6, zmm6, zmm14", "vpmaddwd zmm15, zmm12, zmm13", "vpaddd zmm7, zmm7, zmm15",
                "vpmaddwd zmm14, zmm12, zmm13", "vpaddd zmm8, zmm8, zmm14", "vpmaddwd zmm15, zmm12, zmm13", "vpaddd zmm9, zmm9, zmm15",
                "vpmaddwd zmm14, zmm12, zmm13", "vpaddd zmm10, zmm10, zmm14", "vpmaddwd zmm15, zmm12, zmm13", "vpaddd zmm11, zmm11, zmm15",
                "dec {steps}",
                "jnz 2b",
                steps = inout(reg) steps => _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
                options(nomem, nostack),
            );
        }
        steps * 12 * 64
    }

    /// Twelve sums, each of 8 quads of products: a sum waits five cycles for the one before, in which two units start
    /// ten.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn avxvnni(steps: u64) -> u64 {
        // SAFETY: touches only the registers that it names.
        unsafe {
            asm!(
                "2:",
                "{{vex}} vpdpbusd ymm0, ymm12, ymm13", "{{vex}} vpdpbusd ymm1, ymm12, ymm13", "{{vex}} vpdpbusd ymm2, ymm12, ymm13",
                "{{vex}} vpdpbusd ymm3, ymm12, ymm13", "{{vex}} vpdpbusd ymm4, ymm12, ymm13", "{{vex}} vpdpbusd ymm5, ymm12, ymm13",
                "{{vex}} vpdpbusd ymm6, ymm12, ymm13", "{{vex}} vpdpbusd ymm7, ymm12, ymm13", "{{vex}} vpdpbusd ymm8, ymm12, ymm13",
                "{{vex}} vpdpbusd ymm9, ymm12, ymm13", "{{vex}} vpdpbusd ymm10, ymm12, ymm13", "{{vex}} vpdpbusd ymm11, ymm12, ymm13",
                "dec {steps}",
                "jnz 2b",
                steps = inout(reg) steps => _,
                out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
                out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _,
                options(nomem, nostack),
            );
        }
        steps * 12 * 64
    }

    /// Twelve sums, each of 16 quads of products.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn avx512vnni(steps: u64) -> u64 {
        // SAFETY: touches only the registers that it names.
        unsafe {
            asm!(
                "2:",
                "vpdpbusd zmm0, zmm12, zmm13", "vpdpbusd zmm1, zmm12, zmm13", "vpdpbusd zmm2, zmm12, zmm13", "vpdpbusd zmm3, zmm12, zmm13",
                "vpdpbusd zmm4, zmm12, zmm13", "vpdpbusd zmm5, zmm12, zmm13", "vpdpbusd zmm6, zmm12, zmm13", "vpdpbusd zmm7, zmm12, zmm13",
                "vpdpbusd zmm8, zmm12, zmm13", "vpdpbusd zmm9, zmm12, zmm13", "vpdpbusd zmm10, zmm12, zmm13", "vpdpbusd zmm11, zmm12, zmm13",
                "dec {steps}",
                "jnz 2b",
                steps = inout(reg) steps => _,
                out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
                out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _,
                options(nomem, nostack),
            );
        }
        steps * 12 * 128
    }
}
