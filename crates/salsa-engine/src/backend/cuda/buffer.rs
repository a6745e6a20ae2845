//! Arrays on the GPU.

use super::card::{Card, Launch};
use super::error::must;
use super::kind::Kind;
use crate::weights::Numbers;
use std::sync::{Arc, OnceLock};

/// A block of the GPU's memory; dropping it makes it free.
pub(super) struct Memory {
    card: Arc<Card>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Takes a block of at least `bytes`, with unspecified content.
    pub(super) fn new(card: &Arc<Card>, bytes: usize) -> Memory {
        card.bind();
        let (address, bytes) = must(card.arena().take(bytes, || card.finish()));
        Memory { card: Arc::clone(card), address, bytes }
    }

    pub(super) fn card(&self) -> &Arc<Card> {
        &self.card
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.card.arena().put(self.address, self.bytes);
    }
}

/// An array on the GPU. Clones share memory until one is written (copy on write).
#[derive(Clone)]
pub struct Buffer {
    memory: Arc<Memory>,
    len: usize,
    kind: Kind,
    /// The same numbers as bfloat16, once requested.
    rounded: Arc<OnceLock<Buffer>>,
}

impl Buffer {
    /// An array with unspecified content in this memory, which is large enough.
    pub(super) fn new(memory: Memory, len: usize, kind: Kind) -> Buffer {
        debug_assert!(memory.bytes() >= len * kind.bytes());
        Buffer { memory: Arc::new(memory), len, kind, rounded: Arc::default() }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the array is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number type.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * self.kind.bytes()
    }

    /// The GPU that holds the array.
    pub fn card(&self) -> &Arc<Card> {
        self.memory.card()
    }

    /// The address, for reading.
    pub(super) fn pointer(&self) -> u64 {
        self.memory.address()
    }

    /// The address, for writing: afterwards the memory is not shared, and a rounded copy is dropped.
    pub(super) fn pointer_mut(&mut self) -> u64 {
        if Arc::get_mut(&mut self.memory).is_none() {
            let copy = Memory::new(self.card(), self.bytes());
            self.card().copy(self.pointer(), copy.address(), self.bytes());
            self.memory = Arc::new(copy);
        }
        self.forget_rounded();
        self.memory.address()
    }

    /// The address, for overwriting all numbers: as [`Buffer::pointer_mut`], but the content is not kept.
    pub(super) fn pointer_new(&mut self) -> u64 {
        if Arc::get_mut(&mut self.memory).is_none() {
            self.memory = Arc::new(Memory::new(self.card(), self.bytes()));
        }
        self.forget_rounded();
        self.memory.address()
    }

    fn forget_rounded(&mut self) {
        match Arc::get_mut(&mut self.rounded) {
            Some(rounded) => drop(rounded.take()),
            None => self.rounded = Arc::default(),
        }
    }

    /// The numbers as bfloat16: the array itself if they are, else a copy that is cached until the array is written.
    pub(super) fn rounded(&self) -> Buffer {
        if self.kind == Kind::Bf16 {
            return self.clone();
        }
        self.rounded.get_or_init(|| self.converted(Kind::Bf16)).clone()
    }

    /// Caches a rounded copy that was computed together with the numbers.
    pub(super) fn remember_rounded(&mut self, copy: Buffer) {
        self.forget_rounded();
        let _ = self.rounded.set(copy);
    }

    /// The numbers as `kind`; a rounded copy is cached.
    pub(super) fn as_kind(&self, kind: Kind) -> Buffer {
        match kind {
            Kind::F32 => self.converted(Kind::F32),
            Kind::Bf16 => self.rounded(),
        }
    }

    /// A copy in another type; a clone where the type is the same.
    pub(super) fn converted(&self, kind: Kind) -> Buffer {
        if self.kind == kind {
            return self.clone();
        }
        let mut copy = self.card().room(self.len, kind);
        let to = copy.pointer_mut();
        self.card().convert(self.pointer(), self.kind, to, self.len);
        copy
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} {:?} at {:#x})", self.len, self.kind, self.pointer())
    }
}

/// Words of 32 bits on the GPU: indices.
#[derive(Clone)]
pub(super) struct Words {
    memory: Arc<Memory>,
    len: usize,
}

impl Words {
    pub(super) fn new(memory: Memory, len: usize) -> Words {
        Words { memory: Arc::new(memory), len }
    }

    /// The address.
    pub(super) fn pointer(&self) -> u64 {
        self.memory.address()
    }

    /// The number of words.
    #[allow(clippy::len_without_is_empty, reason = "nobody asks")]
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Card {
    /// An array with unspecified content.
    pub(super) fn room(self: &Arc<Self>, len: usize, kind: Kind) -> Buffer {
        Buffer::new(Memory::new(self, len * kind.bytes()), len, kind)
    }

    /// An array of zeros.
    pub(super) fn zeros(self: &Arc<Self>, len: usize, kind: Kind) -> Buffer {
        let mut buffer = self.room(len, kind);
        let to = buffer.pointer_mut();
        self.clear(to, len * kind.bytes());
        buffer
    }

    /// Converts `len` numbers from one type to the other.
    pub(super) fn convert(&self, from: u64, kind: Kind, to: u64, len: usize) {
        if len == 0 {
            return;
        }
        let kernel = match kind {
            Kind::F32 => "narrow_f32",
            Kind::Bf16 => "widen_bf16",
        };
        self.launch(kernel, spread(self, len), &[&to, &from, &(len as i64)]);
    }

    /// Copies numbers to the GPU. `data` may be changed when this returns, though the copy may still be running.
    pub(super) fn upload_f32(self: &Arc<Self>, data: &[f32]) -> Buffer {
        let mut buffer = self.room(data.len(), Kind::F32);
        let to = buffer.pointer_mut();
        self.upload(to, bytes_of(data));
        buffer
    }

    /// Copies indices to the GPU, as [`Card::upload_f32`].
    pub(super) fn upload_words(self: &Arc<Self>, data: &[u32]) -> Words {
        let memory = Memory::new(self, data.len() * 4);
        self.upload(memory.address(), bytes_of(data));
        Words::new(memory, data.len())
    }

    /// Writes numbers into an array of either type, starting at `at`.
    pub(super) fn store(self: &Arc<Self>, buffer: &mut Buffer, at: usize, numbers: Numbers<'_>) {
        assert!(at + numbers.len() <= buffer.len(), "{} numbers at {at} of {}", numbers.len(), buffer.len());
        let kind = buffer.kind();
        let to = buffer.pointer_mut() + (at * kind.bytes()) as u64;
        let (data, from) = match numbers {
            Numbers::F32(numbers) => (bytes_of(numbers), Kind::F32),
            Numbers::Bf16(numbers) => (numbers.as_flattened(), Kind::Bf16),
        };
        if from == kind {
            return self.upload(to, data);
        }
        // In pieces, so that the temporary array of unconverted numbers stays small.
        const PIECE: usize = 32 << 20;
        let room = Memory::new(self, data.len().min(PIECE));
        let mut to = to;
        for piece in data.chunks(PIECE) {
            let len = piece.len() / from.bytes();
            self.upload(room.address(), piece);
            self.convert(room.address(), from, to, len);
            to += (len * kind.bytes()) as u64;
        }
    }

    /// Returns the numbers of an array as f32. Waits for them.
    pub(super) fn download(&self, buffer: &Buffer) -> Vec<f32> {
        let mut numbers = vec![0.0; buffer.len()];
        self.download_to(buffer, 0, &mut numbers);
        numbers
    }

    /// Fills `numbers` with numbers of an array as f32, starting at `at`. Waits for them.
    pub(super) fn download_to(&self, buffer: &Buffer, at: usize, numbers: &mut [f32]) {
        assert!(at + numbers.len() <= buffer.len(), "{} numbers at {at} of {}", numbers.len(), buffer.len());
        let from = buffer.pointer() + (at * buffer.kind().bytes()) as u64;
        match buffer.kind() {
            Kind::F32 => self.fetch(from, bytes_of_mut(numbers)),
            Kind::Bf16 => {
                let mut words = vec![0_u16; numbers.len()];
                self.fetch(from, bytes_of_mut(&mut words));
                let wide = words.iter().map(|&word| f32::from_bits(u32::from(word) << 16));
                numbers.iter_mut().zip(wide).for_each(|(to, wide)| *to = wide);
            }
        }
    }

    /// Returns the words of an array of indices. Waits for them.
    #[cfg(test)]
    pub(super) fn download_words(&self, words: &Words) -> Vec<u32> {
        let mut numbers = vec![0; words.len()];
        self.fetch(words.pointer(), bytes_of_mut(&mut numbers));
        numbers
    }
}

/// Blocks and threads for a kernel whose threads walk over `len` places with the stride of the grid.
pub(super) fn spread(card: &Card, len: usize) -> Launch {
    let blocks = len.div_ceil(256 * 4).clamp(1, card.multiprocessors() * 16);
    Launch { blocks: [blocks as u32, 1, 1], threads: 256, shared: 0 }
}

fn bytes_of<T: Plain>(data: &[T]) -> &[u8] {
    // SAFETY: `Plain` types have no padding, and every byte is valid as `u8`.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), std::mem::size_of_val(data)) }
}

fn bytes_of_mut<T: Plain>(data: &mut [T]) -> &mut [u8] {
    // SAFETY: `Plain` types have no padding and are valid for all bytes.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), std::mem::size_of_val(data)) }
}

/// Numbers without padding that are valid for all bytes.
trait Plain {}
impl Plain for f32 {}
impl Plain for u32 {}
impl Plain for u16 {}
