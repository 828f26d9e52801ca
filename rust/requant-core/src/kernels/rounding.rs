//! How a real becomes an integer, framework by framework.

use std::str::FromStr;

use crate::{Error, Result};

/// The formula of quantization, named after whom it belongs to. `inverse` is `1 / scale` in f32, and every operation is
/// rounded to f32; `rint` rounds to nearest, ties to even; the result is clamped, and NaN gives the zero point.
///
/// | name | formula |
/// |---|---|
/// | `onnx` | `rint(x / scale) + zero_point` |
/// | `torch_quantize_per_tensor` | `rint(fma(x, inverse, zero_point))` |
/// | `torch_quantize_per_channel` | `rint(x * inverse + zero_point)` |
/// | `torch_fake_quantize` | `rint(x * inverse) + zero_point` |
///
/// They differ where a quotient lies on a tie or one bit beside it. Each can be used with every granularity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// ONNX `QuantizeLinear`, and onnxruntime's.
    #[default]
    Onnx,
    /// `torch.quantize_per_tensor`.
    TorchPerTensor,
    /// `torch.quantize_per_channel`.
    TorchPerChannel,
    /// `torch.fake_quantize_per_tensor_affine` and `torch.fake_quantize_per_channel_affine`.
    TorchFakeQuantize,
}

impl Rounding {
    /// Every formula, the default first.
    pub const ALL: [Self; 4] = [
        Self::Onnx,
        Self::TorchPerTensor,
        Self::TorchPerChannel,
        Self::TorchFakeQuantize,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Onnx => "onnx",
            Self::TorchPerTensor => "torch_quantize_per_tensor",
            Self::TorchPerChannel => "torch_quantize_per_channel",
            Self::TorchFakeQuantize => "torch_fake_quantize",
        }
    }
}

impl FromStr for Rounding {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|rounding| rounding.name() == name)
            .ok_or_else(|| Error::UnknownName {
                what: "rounding",
                name: name.to_owned(),
                known: Self::ALL.map(Self::name).join(", "),
            })
    }
}
