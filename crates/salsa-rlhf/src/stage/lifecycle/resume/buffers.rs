//! The named buffers of a checkpoint: where their numbers are, the file, and its digest.
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::bail;
use blake3::{Hash, Hasher};
use safetensors::{Dtype, SafeTensors};
use salsa_engine::{Moment, Trainable, comm::Comm};
use serde_json::{Map, json};

/// Where the numbers of a buffer are.
pub(super) enum Source<'a> {
    /// All of them here.
    Here(Cow<'a, [f32]>),
    /// Moments of a model, of which each process may have a part.
    Moment(&'a Trainable, Moment),
}

impl Source<'_> {
    /// The number of all numbers.
    pub(super) fn len(&self) -> usize {
        match self {
            Source::Here(values) => values.len(),
            Source::Moment(model, _) => model.tensors().iter().map(|tensor| tensor.range.end).max().unwrap_or(0),
        }
    }

    /// Calls `each` on the first process with all numbers in order; all processes call this together.
    pub(super) fn each(
        &self,
        ranks: &dyn Comm,
        mut each: impl FnMut(&[f32]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match self {
            Source::Here(values) if ranks.is_first() => each(values),
            Source::Here(_) => Ok(()),
            Source::Moment(model, moment) => model.each_moment(*moment, each),
        }
    }
}

/// Writes the buffers of a snapshot, in the order of their names, and returns their digest.
///
/// # Errors
/// If the file cannot be written, or a number is not finite: `unsound` is then the name of the buffer.
pub(super) fn write(
    buffers: &BTreeMap<String, Source<'_>>,
    path: &Path,
    ranks: &dyn Comm,
    unsound: &mut Option<String>,
) -> anyhow::Result<Hash> {
    let mut out = BufWriter::with_capacity(8 * 4 * CHUNK, File::create(path)?);
    let (mut header, mut at) = (Map::new(), 0);
    for (name, source) in buffers {
        let end = at + 4 * source.len();
        header.insert(name.clone(), json!({"dtype": "F32", "shape": [source.len()], "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut hasher = Hasher::new();
    for (name, source) in buffers {
        name_buffer(&mut hasher, name, source.len());
        source.each(ranks, |values| {
            if !add_numbers(&mut hasher, values, &mut out)? {
                *unsound = Some(name.clone());
                bail!("{name} is not finite");
            }
            Ok(())
        })?;
    }
    out.flush()?;
    Ok(hasher.finalize())
}

/// Adds name and length of a buffer to a digest.
fn name_buffer(hasher: &mut Hasher, name: &str, len: usize) {
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
    hasher.update(&(len as u64).to_le_bytes());
}

/// Adds the little-endian bytes of numbers to a digest and to `out`. Returns whether all numbers are finite.
fn add_numbers(hasher: &mut Hasher, values: &[f32], out: &mut dyn Write) -> std::io::Result<bool> {
    let (mut bytes, mut finite) = (vec![0; 4 * CHUNK], true);
    for values in values.chunks(CHUNK) {
        let bytes = &mut bytes[..4 * values.len()];
        to_bytes(values, bytes);
        hasher.update(bytes);
        out.write_all(bytes)?;
        finite &= values.iter().fold(true, |finite, value| finite & value.is_finite());
    }
    Ok(finite)
}

fn to_bytes(values: &[f32], bytes: &mut [u8]) {
    for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

/// Numbers checked and hashed at a time: they stay in the cache between the two.
pub(super) const CHUNK: usize = 16 << 10;

/// The digest of the buffers in a file, as [`write()`] returns it.
pub(super) fn digest(file: &[u8]) -> anyhow::Result<Hash> {
    let tensors = SafeTensors::deserialize(file)?; // checks that the file is as long as it says
    let buffers: BTreeMap<&str, _> = tensors.iter().collect();
    let mut hasher = Hasher::new();
    for (name, tensor) in buffers {
        let data = tensor.data();
        if tensor.dtype() != Dtype::F32 || !data.len().is_multiple_of(4) {
            bail!("buffer {name:?} is not f32");
        }
        name_buffer(&mut hasher, name, data.len() / 4);
        hasher.update(data);
    }
    Ok(hasher.finalize())
}
