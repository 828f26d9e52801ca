//! AVX-512 VNNI: Cascade Lake, Ice Lake, Zen 4 and later.

use super::avx512;
use crate::kernels::{Kernels, generic};

/// Proof that AVX-512 VNNI was detected: only [`probe`] makes one.
struct Avx512Vnni(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn Kernels> {
    static SET: Avx512Vnni = Avx512Vnni(());
    detected().then_some(&SET as &dyn Kernels)
}

pub(super) fn detected() -> bool {
    super::avx512::detected() && is_x86_feature_detected!("avx512vnni")
}

impl Kernels for Avx512Vnni {
    fn name(&self) -> &'static str {
        "avx512vnni"
    }

    fn base(&self) -> &'static dyn Kernels {
        avx512::probe().unwrap_or(&generic::Generic)
    }
}
