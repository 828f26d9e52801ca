//! The limit of the AVX2 kernels: a loop of nothing but multiply-adds and additions in registers.

/// Steps of the loop that [`run`] takes.
const STEPS: u64 = 1 << 20;

/// Multiplications and additions of 16-bit integers that one [`run`] does; a GOPS counts 1e9 of them a second.
pub(crate) const OPERATIONS: u64 = STEPS * 12 * 32;

/// Runs the loop; false where the CPU has no AVX2.
pub(crate) fn run() -> bool {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was detected.
        unsafe { x86_64() };
        return true;
    }
    false
}

/// Twelve sums as in the kernel's tile, in assembly since a compiler would see that the products are all the same.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn x86_64() {
    // SAFETY: touches only the registers that it names.
    unsafe {
        std::arch::asm!(
            "2:",
            "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm0, ymm0, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm1, ymm1, ymm15",
            "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm2, ymm2, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm3, ymm3, ymm15",
            "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm4, ymm4, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm5, ymm5, ymm15",
            "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm6, ymm6, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm7, ymm7, ymm15",
            "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm8, ymm8, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm9, ymm9, ymm15",
            "vpmaddwd ymm14, ymm12, ymm13", "vpaddd ymm10, ymm10, ymm14", "vpmaddwd ymm15, ymm12, ymm13", "vpaddd ymm11, ymm11, ymm15",
            "dec {steps}",
            "jnz 2b",
            steps = inout(reg) STEPS => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nomem, nostack),
        );
    }
}
