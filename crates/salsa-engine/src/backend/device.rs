//! The device of a run, chosen at run time: the CPU or a GPU behind one type.
//!
//! Models are written against [`Backend`](super::Backend); the program uses this one, which dispatches each operation
//! to the backend that holds the arrays.

use super::RotaryTable;
use super::cpu::{self, Cpu, Dtype};
use super::cuda::{self, Cuda};

mod arguments;
mod dispatch;

/// The device that holds and computes a model.
#[derive(Clone, Debug)]
pub enum Device {
    /// The CPU.
    Cpu(Cpu),
    /// An NVIDIA GPU.
    Cuda(Cuda),
}

impl Default for Device {
    /// The CPU, in f32.
    fn default() -> Device {
        Device::Cpu(Cpu::default())
    }
}

impl From<Cpu> for Device {
    fn from(cpu: Cpu) -> Device {
        Device::Cpu(cpu)
    }
}

impl Device {
    /// The number type of products.
    pub fn dtype(&self) -> Dtype {
        match self {
            Device::Cpu(cpu) => cpu.dtype,
            Device::Cuda(cuda) => cuda.dtype(),
        }
    }

    /// The name in metrics and reports: the CPU's instruction set, or the GPU's name.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu(cpu) => cpu.isa().to_owned(),
            Device::Cuda(cuda) => cuda.name().to_owned(),
        }
    }

    /// Returns the GPU, if this is one.
    pub fn cuda(&self) -> Option<&Cuda> {
        match self {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(cuda),
        }
    }

    /// Whether a token's log-prob has the same bits in decoding and in a training pass. On a GPU the order of sums
    /// depends on how many rows are computed together.
    pub fn decodes_as_trained(&self) -> bool {
        matches!(self, Device::Cpu(_))
    }
}

/// A value of either backend.
macro_rules! either {
    ($(#[$doc:meta])* $name:ident, $cpu:ty, $cuda:ty, $($derive:ident),*) => {
        $(#[$doc])*
        #[derive($($derive),*)]
        pub enum $name {
            /// On the CPU.
            Cpu($cpu),
            /// On a GPU.
            Cuda($cuda),
        }

        impl $name {
            fn cpu(&self) -> &$cpu {
                let $name::Cpu(x) = self else { elsewhere() };
                x
            }
            fn cuda(&self) -> &$cuda {
                let $name::Cuda(x) = self else { elsewhere() };
                x
            }
            #[allow(dead_code, reason = "some kinds of value never change")]
            fn cpu_mut(&mut self) -> &mut $cpu {
                let $name::Cpu(x) = self else { elsewhere() };
                x
            }
            #[allow(dead_code, reason = "some kinds of value never change")]
            fn cuda_mut(&mut self) -> &mut $cuda {
                let $name::Cuda(x) = self else { elsewhere() };
                x
            }
        }
    };
}

/// Panics: an array of one backend was passed to the other.
fn elsewhere() -> ! {
    panic!("an array of one device in an operation of another")
}

either!(
    /// An array of f32.
    Buffer, cpu::Buffer, cuda::Buffer, Clone
);
either!(
    /// A weight matrix.
    Matrix, cpu::Packed, cuda::Matrix,
);
either!(
    /// Keys and values of one layer.
    Cache, cpu::Cache, cuda::Cache,
);
either!(
    /// Flat memory of the trained parameters.
    Flat, Vec<f32>, cuda::Flat,
);
either!(
    /// Cosines and sines of rotary angles.
    Angles, RotaryTable, cuda::Angles,
);
