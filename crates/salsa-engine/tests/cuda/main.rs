//! The GPU against the CPU as the reference: each operation separately, then whole models of every kind.
//!
//! Without a GPU the tests print a line and pass.

mod models;
mod operations;

use salsa_engine::backend::Backend;
use salsa_engine::backend::cuda::Cuda;
use salsa_engine::random::Random;
use salsa_engine::{Cpu, Dtype};

const CPU: Cpu = Cpu { dtype: Dtype::F32 };

/// The first GPU; without one prints a line and returns None.
fn cuda(dtype: Dtype) -> Option<Cuda> {
    match Cuda::open(0, dtype) {
        Ok(cuda) => Some(cuda),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Both number types of the GPU, with the allowed error of one operation, relative to the norm of its result: f32
/// rounds in another order than the CPU, bfloat16 keeps eight bits.
fn cards() -> Vec<(Cuda, f64)> {
    [(Dtype::F32, 2e-5), (Dtype::Bf16, 1e-2)]
        .into_iter()
        .filter_map(|(dtype, tolerance)| Some((cuda(dtype)?, tolerance)))
        .collect()
}

fn normal(len: usize, stream: u64) -> Vec<f32> {
    let mut random = Random::new(21, stream);
    // Exact in bfloat16, so that both sides get the same numbers.
    (0..len).map(|_| f32::from_bits((random.normal() as f32).to_bits() & 0xffff_0000)).collect()
}

/// `|a - b| / |b|`; infinite where a number is NaN.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    let distance = (difference / size.max(1e-30)).sqrt();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

/// A backend under test: arrays that feed products are in the type of products.
trait Side: Backend {
    fn activations(&self, data: &[f32]) -> Self::Buffer;
}

impl Side for Cpu {
    fn activations(&self, data: &[f32]) -> Self::Buffer {
        self.upload(data)
    }
}

impl Side for Cuda {
    fn activations(&self, data: &[f32]) -> Self::Buffer {
        self.upload_for_products(data)
    }
}

/// A named result.
type Named = (&'static str, Vec<f32>);

/// Collects the differences over all cases of a test, so that one run shows all of them.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn compare(&mut self, what: &str, cuda: &[Named], cpu: &[Named], tolerance: f64) {
        for ((name, a), (_, b)) in cuda.iter().zip(cpu) {
            let distance = distance(a, b);
            if distance > tolerance {
                self.0.push(format!("{what}: {name} is off by {distance:.2e}, allowed {tolerance:.0e}"));
            }
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.is_empty(), "\n{}", self.0.join("\n"));
        }
    }
}
