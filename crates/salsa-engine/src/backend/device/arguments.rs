//! Arguments and results of operations, for the device and for either backend.
use super::{Angles, Buffer, Cache, Flat, Matrix};
use crate::backend::cpu;
use crate::backend::cuda;
use crate::backend::{
    AdamWStep, AttentionShape, Choice, Columns, Decay, LogprobQuery, LowRank, Moments, Part, Ranking, RotaryTable,
    TokenStats,
};
use crate::error::ModelError;
use crate::spec::{Activation, ModelSpec, NormWeight};
use crate::weights::Numbers;
use std::borrow::Cow;
use std::ops::Range;

/// An argument of an operation, convertible to either backend's type.
pub(super) trait Argument {
    type Cpu;
    type Cuda;
    fn on_cpu(self) -> Self::Cpu;
    fn on_cuda(self) -> Self::Cuda;
}

/// Arguments that are the same for both.
macro_rules! plain {
    ($($kind:ty),* $(,)?) => {$(
        impl Argument for $kind {
            type Cpu = Self;
            type Cuda = Self;
            fn on_cpu(self) -> Self {
                self
            }
            fn on_cuda(self) -> Self {
                self
            }
        }
    )*};
}

plain!(
    usize,
    f32,
    &[f32],
    &[u32],
    &[usize],
    &[(usize, usize)],
    &[(usize, usize, usize)],
    Vec<f32>,
    Range<usize>,
    Numbers<'_>,
    Columns,
    NormWeight,
    Activation,
    RotaryTable,
    LogprobQuery<'_>,
    Decay,
    &AdamWStep,
    &AttentionShape,
    &Choice,
    &ModelSpec,
);

/// Values of either backend: passed to operations by reference, and returned by them.
macro_rules! lent {
    ($($kind:ident: $cpu:ty, $cuda:ty);* $(;)?) => {$(
        impl<'a> Argument for &'a $kind {
            type Cpu = &'a $cpu;
            type Cuda = &'a $cuda;
            fn on_cpu(self) -> &'a $cpu {
                self.cpu()
            }
            fn on_cuda(self) -> &'a $cuda {
                self.cuda()
            }
        }

        impl<'a> Argument for &'a mut $kind {
            type Cpu = &'a mut $cpu;
            type Cuda = &'a mut $cuda;
            fn on_cpu(self) -> &'a mut $cpu {
                self.cpu_mut()
            }
            fn on_cuda(self) -> &'a mut $cuda {
                self.cuda_mut()
            }
        }

        impl Returned<$kind> for $cpu {
            fn returned(self) -> $kind {
                $kind::Cpu(self)
            }
        }

        impl Returned<$kind> for $cuda {
            fn returned(self) -> $kind {
                $kind::Cuda(self)
            }
        }
    )*};
}

lent!(
    Buffer: cpu::Buffer, cuda::Buffer;
    Matrix: cpu::Packed, cuda::Matrix;
    Cache: cpu::Cache, cuda::Cache;
    Flat: Vec<f32>, cuda::Flat;
    Angles: RotaryTable, cuda::Angles;
);

impl<T: Argument> Argument for Option<T> {
    type Cpu = Option<T::Cpu>;
    type Cuda = Option<T::Cuda>;
    fn on_cpu(self) -> Self::Cpu {
        self.map(T::on_cpu)
    }
    fn on_cuda(self) -> Self::Cuda {
        self.map(T::on_cuda)
    }
}

impl<A: Argument, B: Argument> Argument for (A, B) {
    type Cpu = (A::Cpu, B::Cpu);
    type Cuda = (A::Cuda, B::Cuda);
    fn on_cpu(self) -> Self::Cpu {
        (self.0.on_cpu(), self.1.on_cpu())
    }
    fn on_cuda(self) -> Self::Cuda {
        (self.0.on_cuda(), self.1.on_cuda())
    }
}

impl<'a> Argument for Part<'a, Flat> {
    type Cpu = Part<'a, Vec<f32>>;
    type Cuda = Part<'a, cuda::Flat>;
    fn on_cpu(self) -> Self::Cpu {
        Part { flat: self.flat.cpu_mut(), range: self.range }
    }
    fn on_cuda(self) -> Self::Cuda {
        Part { flat: self.flat.cuda_mut(), range: self.range }
    }
}

impl<'a> Argument for Moments<'a, Flat> {
    type Cpu = Moments<'a, Vec<f32>>;
    type Cuda = Moments<'a, cuda::Flat>;
    fn on_cpu(self) -> Self::Cpu {
        let Moments { weights, gradients, m, v } = self;
        Moments { weights: weights.cpu_mut(), gradients: gradients.cpu_mut(), m: m.cpu_mut(), v: v.cpu_mut() }
    }
    fn on_cuda(self) -> Self::Cuda {
        let Moments { weights, gradients, m, v } = self;
        Moments { weights: weights.cuda_mut(), gradients: gradients.cuda_mut(), m: m.cuda_mut(), v: v.cuda_mut() }
    }
}

impl<'a> Argument for LowRank<'a, Matrix> {
    type Cpu = LowRank<'a, cpu::Packed>;
    type Cuda = LowRank<'a, cuda::Matrix>;
    fn on_cpu(self) -> Self::Cpu {
        self.of(Matrix::cpu)
    }
    fn on_cuda(self) -> Self::Cuda {
        self.of(Matrix::cuda)
    }
}

impl<'a> LowRank<'a, Matrix> {
    /// As this factor, with the matrix of one backend.
    pub(super) fn of<M>(&self, matrix: impl FnOnce(&'a Matrix) -> &'a M) -> LowRank<'a, M> {
        LowRank { weight: matrix(self.weight), inner: self.inner, outer: self.outer }
    }
}

/// A result of an operation, converted to the device's type.
pub(super) trait Returned<T> {
    fn returned(self) -> T;
}

/// Results that have the same type in both backends.
macro_rules! same {
    ($($kind:ty),* $(,)?) => {$(
        impl Returned<$kind> for $kind {
            fn returned(self) -> $kind {
                self
            }
        }
    )*};
}

same!(
    (),
    bool,
    f64,
    usize,
    Vec<f32>,
    Vec<(u32, f32)>,
    Vec<Ranking>,
    TokenStats,
    Result<(), ModelError>,
);

impl<'a> Returned<Cow<'a, [f32]>> for Cow<'a, [f32]> {
    fn returned(self) -> Cow<'a, [f32]> {
        self
    }
}

impl<A, B, C: Returned<A>, D: Returned<B>> Returned<(A, B)> for (C, D) {
    fn returned(self) -> (A, B) {
        (self.0.returned(), self.1.returned())
    }
}
