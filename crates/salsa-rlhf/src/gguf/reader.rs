//! The header of a GGUF file. No size in it is believed: every count is checked against the bytes that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::block::BlockType;
use super::value::{Kind, Metadata, Value};
use crate::checkpoint::positioned;
use crate::input;

/// Maximum bytes before the numbers. Vocabularies of 260,000 tokens with their merges take some 20 MB.
const LONGEST_HEADER: u64 = 128 << 20;
/// Maximum bytes of a tensor's name, as in llama.cpp.
const LONGEST_NAME: u64 = 63;
/// Maximum bytes of a key, as the format says.
const LONGEST_KEY: u64 = 65_535;
const DEFAULT_ALIGNMENT: u64 = 32;
/// The least bytes of a key with its value, and of the description of a tensor.
const LEAST_PAIR: u64 = 8 + 1 + 4 + 1;
const LEAST_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A tensor and the place of its blocks in the file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// The shape in the order of Hugging Face: rows first. GGUF's is the reverse.
    pub(super) shape: Vec<usize>,
    pub(super) kind: BlockType,
    pub(super) at: u64,
    pub(super) bytes: u64,
}

/// One file: its metadata, its tensors, and the open file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<Tensor>,
    file: File,
}

impl Part {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// When anything in it is damaged, contradicts the size of the file, or is not supported.
    pub(super) fn open(path: &Path) -> Result<Part> {
        let file = input::open(path)?;
        Part::read_header(path, file).with_context(|| path.display().to_string())
    }

    fn read_header(path: &Path, file: File) -> Result<Part> {
        let length = file.metadata()?.len();
        let mut header = Header { at: 0, end: length.min(LONGEST_HEADER), length, inner: BufReader::new(&file) };
        header.check_magic()?;
        let (tensors, pairs) = (header.u64("the number of tensors")?, header.u64("the number of keys")?);
        header.check_count(pairs, LEAST_PAIR, "keys")?;
        let metadata = header.metadata(pairs)?;
        header.check_count(tensors, LEAST_TENSOR, "tensors")?;
        let mut tensors = (0..tensors).map(|_| header.tensor()).collect::<Result<Vec<Tensor>>>()?;
        let data = header.at.next_multiple_of(alignment(&metadata)?);
        place(&mut tensors, data, length, alignment(&metadata)?)?;
        Ok(Part { path: path.to_owned(), metadata, tensors, file })
    }

    /// Reads `bytes` of a tensor from byte `start` on.
    pub(super) fn read(&self, tensor: &Tensor, start: u64, bytes: &mut [u8]) -> Result<()> {
        assert!(start + bytes.len() as u64 <= tensor.bytes, "the tensor has not so many bytes");
        positioned::read(&self.file, bytes, tensor.at + start).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                anyhow!("{} has become shorter since it was opened: something else is writing it", self.path.display())
            }
            _ => anyhow!("cannot read {}: {error}", self.path.display()),
        })
    }
}

/// The value of `general.alignment`: tensors begin at its multiples.
fn alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.size("general.alignment")?.map_or(DEFAULT_ALIGNMENT, |size| size as u64);
    ensure!(
        alignment.is_power_of_two() && alignment <= LONGEST_HEADER,
        "general.alignment is {alignment}: expected a power of two, at most {LONGEST_HEADER}"
    );
    Ok(alignment)
}

/// Turns offsets behind the header into places in the file, and checks that they lie in it and do not overlap.
fn place(tensors: &mut [Tensor], data: u64, length: u64, alignment: u64) -> Result<()> {
    for tensor in tensors.iter_mut() {
        let Tensor { name, at, bytes, .. } = tensor;
        ensure!(at.is_multiple_of(alignment), "the tensor {name} begins at byte {at}, no multiple of {alignment}");
        let end = data.checked_add(*at).and_then(|at| at.checked_add(*bytes));
        ensure!(
            end.is_some_and(|end| end <= length),
            "the tensor {name} ends behind the end of the file: the file is cut off or damaged, fetch it again"
        );
        *at += data;
    }
    let mut order: Vec<&Tensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.at);
    for pair in order.windows(2) {
        ensure!(
            pair[0].at + pair[0].bytes <= pair[1].at,
            "the tensors {} and {} overlap: the file is damaged",
            pair[0].name,
            pair[1].name
        );
    }
    Ok(())
}

/// A reader that knows how many bytes are left.
struct Header<'a> {
    inner: BufReader<&'a File>,
    at: u64,
    /// The end of the file, or of the longest header.
    end: u64,
    length: u64,
}

impl Header<'_> {
    fn left(&self) -> u64 {
        self.end - self.at
    }

    /// The next `count` bytes, after checking that the file has them.
    fn bytes(&mut self, count: u64, what: &str) -> Result<Vec<u8>> {
        if count > self.left() {
            ensure!(self.end == self.length, "it has more than {} MiB before its tensors", LONGEST_HEADER >> 20);
            bail!("it ends in the middle of {what}: the file is cut off or damaged, fetch it again");
        }
        let mut bytes = vec![0; count as usize];
        self.inner.read_exact(&mut bytes).context("it cannot be read")?;
        self.at += count;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        let bytes = self.bytes(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four were read")))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        let bytes = self.bytes(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight were read")))
    }

    /// A text of at most `longest` bytes.
    fn text(&mut self, longest: u64, what: &str) -> Result<String> {
        let count = self.u64(what)?;
        ensure!(count <= longest.min(self.left()), "{what} has {count} bytes: the file is cut off or damaged");
        String::from_utf8(self.bytes(count, what)?).map_err(|_| anyhow!("{what} is no UTF-8"))
    }

    fn check_count(&self, count: u64, least: u64, what: &str) -> Result<()> {
        let most = self.left() / least;
        ensure!(count <= most, "it states {count} {what}, and is too short for them: the file is cut off or damaged");
        Ok(())
    }

    fn check_magic(&mut self) -> Result<()> {
        let magic = self.bytes(4, "its first bytes").unwrap_or_default();
        ensure!(magic == b"GGUF", "it is no GGUF file: it does not begin with GGUF");
        match self.u32("its version")? {
            2 | 3 => Ok(()),
            1 => bail!("it has version 1 of GGUF; convert the model again with a llama.cpp later than August 2023"),
            version if matches!(version.swap_bytes(), 1..=3) => {
                bail!("its numbers are big-endian; convert it with gguf_convert_endian.py of llama.cpp")
            }
            version => bail!("it has version {version} of GGUF; versions 2 and 3 are supported"),
        }
    }

    fn metadata(&mut self, pairs: u64) -> Result<Metadata> {
        let mut metadata = BTreeMap::new();
        for number in 0..pairs {
            let key = self.text(LONGEST_KEY, &format!("the name of key {number}"))?;
            ensure!(!key.is_empty(), "key {number} has no name");
            let kind = self.kind(&key)?;
            let value = match kind {
                Kind::Text => Value::Text(self.text(u64::MAX, &shown(&key))?),
                Kind::List => self.list(&key)?,
                _ => Value::number(kind, &self.bytes(kind.size() as u64, &shown(&key))?),
            };
            ensure!(metadata.insert(key.clone(), value).is_none(), "the key {} is there twice", shown(&key));
        }
        Ok(Metadata(metadata))
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let id = self.u32(&shown(key))?;
        Kind::of_id(id).with_context(|| format!("{} has the unknown type {id}", shown(key)))
    }

    fn list(&mut self, key: &str) -> Result<Value> {
        let (kind, count) = (self.kind(key)?, self.u64(&shown(key))?);
        self.check_count(count, kind.size() as u64, &format!("values of {}", shown(key)))?;
        match kind {
            Kind::List => bail!("{} is a list of lists, which is not supported", shown(key)),
            Kind::Text => {
                let item = |number| self.text(u64::MAX, &format!("item {number} of {}", shown(key)));
                Ok(Value::Texts((0..count).map(item).collect::<Result<_>>()?))
            }
            _ => Ok(Value::Numbers(kind, self.bytes(count * kind.size() as u64, &shown(key))?)),
        }
    }

    /// A tensor whose place is still relative to the end of the header.
    fn tensor(&mut self) -> Result<Tensor> {
        let name = self.text(LONGEST_NAME, "the name of a tensor")?;
        ensure!(!name.is_empty() && !name.chars().any(char::is_control), "a tensor has the name {name:?}");
        let what = format!("the description of the tensor {name}");
        let count = self.u32(&what)?;
        ensure!((1..=4).contains(&count), "the tensor {name} has {count} dimensions: expected 1 to 4");
        let mut shape = (0..count).map(|_| self.u64(&what)).collect::<Result<Vec<u64>>>()?;
        let id = self.u32(&what)?;
        let kind = BlockType::of_id(id).map_err(|id| {
            anyhow!(
                "the tensor {name} has the number type {id}, which is not supported; take a file with {}",
                BlockType::names()
            )
        })?;
        let at = self.u64(&what)?;
        let size = shape.iter().try_fold(1u64, |size, side| size.checked_mul(*side)).filter(|size| *size > 0);
        let size = size.filter(|size| *size <= isize::MAX as u64 / 8);
        let size = size.with_context(|| format!("the tensor {name} has the impossible shape {shape:?}"))?;
        ensure!(
            shape[0].is_multiple_of(kind.len() as u64),
            "the tensor {name} has rows of {} numbers, and {kind} needs a multiple of {}",
            shape[0],
            kind.len()
        );
        shape.reverse();
        let shape = shape.into_iter().map(|side| side as usize).collect();
        Ok(Tensor { name, shape, kind, at, bytes: kind.bytes_of(size as usize) as u64 })
    }
}

/// A key for messages: short, and on one line.
fn shown(key: &str) -> String {
    let short: String = key.chars().take(80).collect();
    if short.chars().all(|c| c.is_ascii_graphic()) { short } else { format!("{short:?}") }
}

/// A whole model: one file, or all parts of a divided one, whose first part has the metadata.
#[derive(Debug)]
pub(super) struct Gguf {
    pub(super) parts: Vec<Part>,
    /// Part and tensor by name.
    places: BTreeMap<String, (usize, usize)>,
}

impl Gguf {
    /// Opens a file; of a divided model (`NAME-00001-of-00003.gguf`), all parts, whichever is given.
    ///
    /// # Errors
    /// When a part is missing or damaged, or a tensor is there twice.
    pub(super) fn open(path: &Path) -> Result<Gguf> {
        let first = Part::open(path)?;
        let split = |part: &Part, key: &str| part.metadata.size(key).with_context(|| path.display().to_string());
        let parts = match split(&first, "split.count")?.unwrap_or(1) {
            0 | 1 => vec![first],
            count => {
                let parts = all_parts(path, count)?;
                let (stated, tensors) = (split(&parts[0], "split.tensors.count")?, tensors_of(&parts));
                ensure!(
                    stated.is_none_or(|stated| stated == tensors),
                    "{}: its parts have {tensors} tensors, and it states {}: they do not belong together",
                    parts[0].path.display(),
                    stated.unwrap_or_default()
                );
                parts
            }
        };
        let mut places = BTreeMap::new();
        for (number, part) in parts.iter().enumerate() {
            for (at, tensor) in part.tensors.iter().enumerate() {
                let twice = places.insert(tensor.name.clone(), (number, at)).is_some();
                ensure!(!twice, "{}: the tensor {} is there twice", part.path.display(), tensor.name);
            }
        }
        Ok(Gguf { parts, places })
    }

    /// The file that was opened, or the first part.
    pub(super) fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// The metadata of the first part.
    pub(super) fn metadata(&self) -> &Metadata {
        &self.parts[0].metadata
    }

    /// A tensor by its name.
    pub(super) fn tensor(&self, name: &str) -> Option<(&Part, &Tensor)> {
        let (part, at) = self.places.get(name)?;
        Some((&self.parts[*part], &self.parts[*part].tensors[*at]))
    }

    /// The names of all tensors.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.places.keys().map(String::as_str).collect()
    }
}

fn tensors_of(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.tensors.len()).sum()
}

/// Opens the parts `NAME-00001-of-0000N.gguf` beside `path`, which is one of them.
fn all_parts(path: &Path, count: usize) -> Result<Vec<Part>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = |number: usize| format!("-{number:05}-of-{count:05}.gguf");
    let stem = (1..=count.min(99_999)).find_map(|number| name.strip_suffix(&ending(number)));
    let stem = stem.with_context(|| {
        format!("{} is one of {count} parts of a model, so its name must end in {}", path.display(), ending(1))
    })?;
    let mut parts = Vec::new();
    for number in 1..=count {
        let path = path.with_file_name(format!("{stem}{}", ending(number)));
        ensure!(
            path.exists(),
            "{} is missing: the model has {count} parts, which belong into one folder",
            path.display()
        );
        let part = Part::open(&path)?;
        let own = part.metadata.size("split.no").with_context(|| path.display().to_string())?;
        ensure!(own == Some(number - 1), "{}: its split.no is not {}", path.display(), number - 1);
        parts.push(part);
    }
    Ok(parts)
}
