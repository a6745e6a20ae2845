//! Arrays on the GPU.

use super::card::{Card, Launch};
use super::memory::Memory;
use std::sync::{Arc, OnceLock};

/// The number type of an array.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// f32.
    F32,
    /// bfloat16.
    Bf16,
}

impl Kind {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16 => 2,
        }
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

/// Blocks and threads for a kernel whose threads walk over `len` places with the stride of the grid.
pub(super) fn spread(card: &Card, len: usize) -> Launch {
    let blocks = len.div_ceil(256 * 4).clamp(1, card.multiprocessors() * 16);
    Launch { blocks: [blocks as u32, 1, 1], threads: 256, shared: 0 }
}
