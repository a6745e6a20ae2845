//! The arrays that passes of different sizes leave beside each other.
use std::collections::BTreeSet;

/// The sizes of passes, in tokens, for which the engine has arrays.
///
/// It keeps the arrays of a pass for those to come. A later one takes them if they are large enough and not more than
/// half as large again; else it makes its own, and the old ones stay.
#[derive(Clone, Debug, Default)]
pub struct Arrays {
    sizes: BTreeSet<u64>,
}

impl Arrays {
    /// Those of passes over so many tokens, one after the other.
    pub fn of(passes: impl IntoIterator<Item = u64>) -> Arrays {
        let mut arrays = Arrays::default();
        passes.into_iter().for_each(|tokens| arrays.pass(tokens));
        arrays
    }

    /// One more pass.
    pub fn pass(&mut self, tokens: u64) {
        let size = size_class(tokens);
        if self.sizes.range(size..=size + size / 2).next().is_none() {
            self.sizes.insert(size);
        }
    }

    /// The passes of others after these.
    pub fn extend(&mut self, others: &Arrays) {
        others.sizes.iter().for_each(|size| self.pass(*size));
    }

    /// What these have beside those of passes before them.
    pub fn beside(&self, before: &Arrays) -> Arrays {
        let mut all = before.clone();
        all.extend(self);
        Arrays { sizes: all.sizes.difference(&before.sizes).copied().collect() }
    }

    /// Tokens of all of them together, and a sixteenth more: arrays of different widths are not rounded alike.
    pub fn tokens(&self) -> u64 {
        let rounded = self.rounded();
        rounded + rounded.div_ceil(16)
    }

    /// Tokens of all of them together, as their sizes are rounded here.
    pub(super) fn rounded(&self) -> u64 {
        self.sizes.iter().sum()
    }
}

/// Sizes come in eight steps to each power of two.
fn size_class(tokens: u64) -> u64 {
    tokens.next_multiple_of((tokens.next_power_of_two() / 16).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_uses_arrays_up_to_half_as_large_again() {
        let tokens = |passes: &[u64]| Arrays::of(passes.iter().copied()).rounded();
        assert_eq!(tokens(&[]), 0);
        assert_eq!(tokens(&[96, 96, 64]), 96, "64 and half of it are 96");
        assert_eq!(tokens(&[96, 60]), 96 + 60, "60 and half of it are 90");
        assert_eq!(tokens(&[64, 96]), 64 + 96, "the smaller ones stay");
        // Steps of 8 between 64 and 128: 97 takes 104.
        assert_eq!(tokens(&[97]), 104);
        assert_eq!(tokens(&[97, 104, 100]), 104);
    }

    #[test]
    fn arrays_of_earlier_passes_serve_later_ones() {
        let (before, after) = (Arrays::of([96]), Arrays::of([64, 128, 30]));
        assert_eq!(after.rounded(), 64 + 128 + 30);
        assert_eq!(after.beside(&before).rounded(), 128 + 30);
        assert_eq!(before.tokens(), 96 + 6);
    }
}
