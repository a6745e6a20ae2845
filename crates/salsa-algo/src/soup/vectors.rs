//! The vectors of a tensor, and results computed from the angles between their versions.

use super::gram::{Gram, Products};

/// Which numbers of a tensor form a vector, for norms and angles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vectors {
    /// All of them.
    Whole,
    /// Each row of a matrix, of this many numbers: the filters of a linear layer, one per output.
    Rows(usize),
    /// Each column of a matrix with this many columns: one per input.
    Columns(usize),
}

/// Takes a tensor in pieces of any length, and keeps one result for each of its vectors.
#[derive(Clone, Debug)]
pub(super) struct Angles<T> {
    vectors: Vectors,
    /// Products of the vector, or the columns, in which the last piece ended.
    products: Vec<Products>,
    seen: usize,
    found: Vec<T>,
}

impl<T> Angles<T> {
    /// Begins one tensor of `members` models.
    ///
    /// # Panics
    /// If rows are empty, or there are no columns.
    pub(super) fn new(vectors: Vectors, members: usize) -> Angles<T> {
        let at_once = match vectors {
            Vectors::Whole => 1,
            Vectors::Rows(width) => {
                assert!(width > 0, "a row has numbers");
                1
            }
            Vectors::Columns(count) => {
                assert!(count > 0, "a matrix has columns");
                count
            }
        };
        Angles { vectors, products: vec![Products::new(members); at_once], seen: 0, found: Vec::new() }
    }

    /// Adds the next piece; `result` computes a vector's result from its inner products.
    pub(super) fn look(&mut self, base: Option<&[f32]>, members: &[&[f32]], result: impl Fn(&Gram) -> T) {
        let mut from = 0;
        let len = members.first().map_or(0, |member| member.len());
        while from < len {
            let (products, to) = match self.vectors {
                Vectors::Whole => (0, len),
                Vectors::Rows(width) => (0, len.min(from + width - self.seen % width)),
                Vectors::Columns(count) => (self.seen % count, from + 1),
            };
            let part: Vec<&[f32]> = members.iter().map(|member| &member[from..to]).collect();
            self.products[products].add(base.map(|base| &base[from..to]), &part);
            self.seen += to - from;
            from = to;
            if matches!(self.vectors, Vectors::Rows(width) if self.seen.is_multiple_of(width)) {
                self.found.push(result(&self.products[0].gram()));
                self.products[0].clear();
            }
        }
    }

    /// Ends the pass, after all pieces.
    ///
    /// # Panics
    /// If the last row is incomplete.
    pub(super) fn looked(&mut self, result: impl Fn(&Gram) -> T) {
        match self.vectors {
            Vectors::Rows(width) => assert!(self.seen.is_multiple_of(width), "the last row is not whole"),
            _ => self.found = self.products.iter().map(|products| result(&products.gram())).collect(),
        }
    }

    /// Returns the result of the vector that contains number `at` of the tensor, and how many numbers from there on
    /// belong to the same vector.
    ///
    /// # Panics
    /// If `look` did not get all pieces.
    pub(super) fn of(&self, at: usize) -> (&T, usize) {
        let (vector, rest) = match self.vectors {
            Vectors::Whole => (0, usize::MAX),
            Vectors::Rows(width) => (at / width, width - at % width),
            Vectors::Columns(count) => (at % count, 1),
        };
        (self.found.get(vector).expect("all pieces were looked at before the first is merged"), rest)
    }
}
