//! Models with random weights, built without a file.
use std::{ops::Range, sync::Arc};

use rayon::prelude::*;
use salsa_engine::{
    Base, Device, Head, LoraSpec, Model, ModelError, ModelSpec, NormWeight, Numbers, Recompute, Room, TensorView,
    Trainable, Weights,
};

/// Random bfloat16 weights, generated in parallel on each read; for models that keep no other copy.
struct Drawn<'a> {
    spec: &'a ModelSpec,
    tensors: Vec<TensorView>,
    seed: u64,
}

impl Weights for Drawn<'_> {
    fn count(&self) -> usize {
        self.spec.parameters()
    }

    fn read<'a>(&'a self, range: Range<usize>, room: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError> {
        let mut stored = Vec::new();
        self.fill(range, &mut stored);
        room.clear();
        room.resize(stored.len(), 0.0);
        room.par_iter_mut().zip(&stored).for_each(|(number, &bytes)| {
            *number = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
        });
        Ok(room)
    }

    fn read_stored<'a>(&'a self, range: Range<usize>, room: &'a mut Room) -> Result<Numbers<'a>, ModelError> {
        self.fill(range, &mut room.bf16);
        Ok(Numbers::Bf16(&room.bf16))
    }
}

impl<'a> Drawn<'a> {
    fn new(spec: &'a ModelSpec, seed: u64) -> Drawn<'a> {
        Drawn { spec, tensors: spec.tensors(), seed }
    }

    fn fill(&self, range: Range<usize>, room: &mut Vec<[u8; 2]>) {
        room.clear();
        room.resize(range.len(), [0; 2]);
        for tensor in &self.tensors {
            let (from, to) = (range.start.max(tensor.range.start), range.end.min(tensor.range.end));
            if from < to {
                self.draw(tensor, from, &mut room[from - range.start..to - range.start]);
            }
        }
    }

    /// Fills `out` with uniform numbers of standard deviation 0.02; norms become the identity, biases 0.
    fn draw(&self, tensor: &TensorView, first: usize, out: &mut [[u8; 2]]) {
        if tensor.shape.len() == 1 {
            let neutral = self.spec.norm == NormWeight::Plain;
            out.fill(bf16(if neutral && !tensor.name.ends_with(".bias") { 1.0 } else { 0.0 }));
            return;
        }
        const WIDTH: f32 = 0.069_282;
        let key = mixed(self.seed);
        out.par_chunks_mut(1 << 15).enumerate().for_each(|(chunk, out)| {
            // Four numbers per 64-bit word.
            let first = (first + (chunk << 15)) as u64;
            let mut word = 0;
            for (i, number) in out.iter_mut().enumerate() {
                let at = first + i as u64;
                if i == 0 || at.is_multiple_of(4) {
                    word = mixed(key ^ (at / 4));
                }
                let bits = (word >> (16 * (at % 4))) as u16;
                *number = bf16((f32::from(bits) / 65536.0 - 0.5) * WIDTH);
            }
        });
    }
}

/// Converts to bfloat16, rounding towards zero.
fn bf16(x: f32) -> [u8; 2] {
    ((x.to_bits() >> 16) as u16).to_le_bytes()
}

/// The finaliser of SplitMix64: decorrelates consecutive counters.
fn mixed(counter: u64) -> u64 {
    let x = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// An adapter of this rank on all linear projections.
pub(super) fn adapter(rank: usize) -> LoraSpec {
    LoraSpec { rank, alpha: 2.0 * rank as f64, ..LoraSpec::default() }
}

/// Base weights for adapters.
pub(super) fn base(spec: &ModelSpec, device: &Device) -> anyhow::Result<Arc<Base<Device>>> {
    let drawn = Drawn::new(spec, 1);
    Ok(Arc::new(Base::new(spec.clone(), &drawn, device.clone())?))
}

/// Trainable weights.
pub(super) fn weights(spec: &ModelSpec, seed: u64) -> anyhow::Result<Vec<f32>> {
    let mut weights = Vec::new();
    Drawn::new(spec, seed).read(0..spec.parameters(), &mut weights)?;
    Ok(weights)
}

/// A frozen model.
pub(super) fn frozen(spec: &ModelSpec, device: &Device) -> anyhow::Result<Model> {
    Ok(Model::bare(base(spec, device)?))
}

/// A model with a trainable adapter.
pub(super) fn adapted(
    base: &Arc<Base<Device>>,
    head: Head,
    rank: usize,
    recompute: Recompute,
) -> anyhow::Result<Trainable> {
    let lora = adapter(rank);
    let weights = lora.init(&base.spec().with_head(head), 1);
    Ok(Trainable::on(base.clone(), head, &lora, weights, recompute)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_not_depend_on_how_they_are_read() {
        let spec = salsa_engine::tiny();
        let drawn = Drawn::new(&spec, 1);
        let (mut all, mut some) = (Vec::new(), Vec::new());
        let all = drawn.read(0..drawn.count(), &mut all).unwrap();
        assert_eq!(drawn.read(7..301, &mut some).unwrap(), &all[7..301]);
        assert!(all.contains(&1.0));
        let different: std::collections::BTreeSet<u32> = all[..40].iter().map(|x| x.to_bits()).collect();
        assert!(different.len() > 30, "{} different numbers of 40", different.len());
    }
}
