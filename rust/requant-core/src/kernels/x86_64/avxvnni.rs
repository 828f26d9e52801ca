//! AVX-VNNI, which has no 512-bit registers: Alder Lake and later.

use super::avx2;
use crate::kernels::{Kernels, generic};

/// Proof that AVX2 and AVX-VNNI were detected: only [`probe`] makes one.
struct AvxVnni(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn Kernels> {
    static SET: AvxVnni = AvxVnni(());
    detected().then_some(&SET as &dyn Kernels)
}

pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni")
}

impl Kernels for AvxVnni {
    fn name(&self) -> &'static str {
        "avxvnni"
    }

    fn base(&self) -> &'static dyn Kernels {
        avx2::probe().unwrap_or(&generic::Generic)
    }
}
