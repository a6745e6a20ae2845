//! The number type of matrix products.

/// The type of the operands of matrix products. Products accumulate in f32 either way, and everything else (norms,
/// softmax, residual stream, master weights, optimizer) is f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// f32.
    #[default]
    F32,
    /// bfloat16: half the memory of packed weights, and at least twice the speed where the CPU multiplies it natively.
    Bf16,
}

impl Dtype {
    /// Terms of a sum in a word of 32 bits.
    pub(crate) fn terms(self) -> usize {
        match self {
            Dtype::F32 => 1,
            Dtype::Bf16 => 2,
        }
    }

    /// The name on the command line: `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
        }
    }

    /// Returns bfloat16 where this machine multiplies it faster than f32, else f32.
    pub fn fastest() -> Dtype {
        if super::isa::isa().fast_bf16() { Dtype::Bf16 } else { Dtype::F32 }
    }
}
