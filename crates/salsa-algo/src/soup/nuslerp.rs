//! NuSLERP: interpolation along the arc between two tensors as a whole, row by row or column by column.

use super::gram::Gram;
use super::vectors::Angles;
use super::{Origin, Vectors, lerp, same_lengths};

/// Shorter vectors are divided by this instead of their length.
const SHORTEST: f64 = 1e-7;

/// Two vectors are colinear if the squared sine is at most this.
const COLINEAR: f64 = 1e-16;

/// For a smaller sum of weights the place is the middle.
const SMALLEST_SUM: f64 = 1e-6;

/// Computes the place on the arc from two weights.
///
/// ```text
/// t = w[1] / (w[0] + w[1])          1/2 where the sum is below 1e-6
/// ```
///
/// ```
/// assert_eq!(salsa_algo::soup::nuslerp_place([1.0, 3.0]), 0.75);
/// assert_eq!(salsa_algo::soup::nuslerp_place([1.0, -1.0]), 0.5);
/// ```
pub fn nuslerp_place(weights: [f64; 2]) -> f64 {
    let sum = weights[0] + weights[1];
    if sum.abs() < SMALLEST_SUM { 0.5 } else { weights[1] / sum }
}

/// A point on the arc between two tensors, for each vector of them, without holding whole tensors in memory.
///
/// ```text
/// W      = angle between a and b (Origin::Zero), or between a - base and b - base (Origin::Base), of one vector
/// out[j] = sin((1 - t) W) / sin W * a[j] + sin(t W) / sin W * b[j]             of the differences, the base added
///
/// new → look at all pieces, in order → looked → apply to all pieces, in order
/// ```
///
/// It differs from [`super::SlerpStream`] in three points: an angle may be that of a row or of a column, a base may be
/// given, and the straight line is used only if the sine is 0 (up to 1e-8), not from a cosine of .9995 on. A zero
/// vector is at a right angle to any other. `t` 0 and 1 give `a` and `b` bit for bit. The result does not depend on how
/// tensors are split. Memory holds two numbers for each row, or 24 for each column. Source: mergekit's `nuslerp`, with
/// Shoemake's formula (1985).
///
/// ```
/// use salsa_algo::soup::{NuSlerpStream, Origin, Vectors};
/// // The first rows are at a right angle, the second ones parallel.
/// let (a, b) = ([1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 4.0, 0.0]);
/// let mut stream = NuSlerpStream::new(0.5, Origin::Zero, Vectors::Rows(2));
/// stream.look(&[], &a, &b);
/// stream.looked();
/// let mut out = [0.0; 4];
/// stream.apply(&[], &a, &b, &mut out);
/// assert!((out[0] - 0.5f32.sqrt()).abs() < 1e-7 && out[0] == out[1]);
/// assert_eq!(out[2..], [3.0, 0.0]);
/// ```
#[derive(Clone, Debug)]
pub struct NuSlerpStream {
    t: f64,
    origin: Origin,
    /// The weights of the two ends; none if they are colinear.
    weights: Angles<Option<[f64; 2]>>,
    at: usize,
}

impl NuSlerpStream {
    /// Begins one tensor; `t` is the place on the arc.
    pub fn new(t: f64, origin: Origin, vectors: Vectors) -> NuSlerpStream {
        NuSlerpStream { t, origin, weights: Angles::new(vectors, 2), at: 0 }
    }

    /// Adds the next piece to the angles. With [`Origin::Zero`] the base is ignored and may be empty.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn look(&mut self, base: &[f32], a: &[f32], b: &[f32]) {
        let (t, base) = (self.t, (self.origin == Origin::Base).then_some(base));
        self.weights.look(base, &[a, b], |gram| arc_weights(gram, t));
    }

    /// Ends the first pass, after all pieces.
    pub fn looked(&mut self) {
        let t = self.t;
        self.weights.looked(|gram| arc_weights(gram, t));
    }

    /// Computes the next piece of the result.
    ///
    /// # Panics
    /// If lengths differ, or `look` did not get all pieces.
    pub fn apply(&mut self, base: &[f32], a: &[f32], b: &[f32], out: &mut [f32]) {
        same_lengths(out, &[a, b]);
        let straight = self.t == 0.0 || self.t == 1.0;
        let mut from = 0;
        while from < out.len() {
            let (weights, rest) = self.weights.of(self.at);
            let part = from..out.len().min(from.saturating_add(rest));
            self.at += part.len();
            from = part.end;
            match (weights.filter(|_| !straight), self.origin) {
                (None, _) => lerp(&a[part.clone()], &b[part.clone()], self.t, &mut out[part]),
                (Some([wa, wb]), Origin::Zero) => {
                    let (wa, wb) = (wa as f32, wb as f32);
                    part.for_each(|j| out[j] = wa * a[j] + wb * b[j]);
                }
                (Some([wa, wb]), Origin::Base) => {
                    let (wa, wb) = (wa as f32, wb as f32);
                    part.for_each(|j| out[j] = base[j] + (wa * (a[j] - base[j]) + wb * (b[j] - base[j])));
                }
            }
        }
    }
}

fn arc_weights(gram: &Gram, t: f64) -> Option<[f64; 2]> {
    let lengths = gram.norm(0).max(SHORTEST) * gram.norm(1).max(SHORTEST);
    let cosine = (gram.product(0, 1) / lengths).clamp(-1.0, 1.0);
    if 1.0 - cosine * cosine <= COLINEAR {
        return None;
    }
    let angle = cosine.acos();
    Some([((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;
    use crate::soup::slerp_from;

    fn tensor(stream: u64) -> Vec<f32> {
        (0..60).map(|i| (uniform(22, stream, i) * 2.0 - 1.0) as f32).collect()
    }

    fn cut(t: f64, origin: Origin, vectors: Vectors, [base, a, b]: [&[f32]; 3], size: usize) -> Vec<f32> {
        let mut stream = NuSlerpStream::new(t, origin, vectors);
        let pieces = || (0..a.len()).step_by(size).map(|from| from..(from + size).min(a.len()));
        pieces().for_each(|r| stream.look(&base[r.clone()], &a[r.clone()], &b[r]));
        stream.looked();
        let mut out = vec![f32::NAN; a.len()];
        pieces().for_each(|r| stream.apply(&base[r.clone()], &a[r.clone()], &b[r.clone()], &mut out[r]));
        out
    }

    #[test]
    fn pieces_give_the_same_as_the_whole() {
        let [base, a, b] = [0, 1, 2].map(tensor);
        for vectors in [Vectors::Whole, Vectors::Rows(12), Vectors::Columns(12)] {
            for origin in [Origin::Zero, Origin::Base] {
                let whole = cut(0.3, origin, vectors, [&base, &a, &b], 60);
                for size in [1, 7, 12, 25] {
                    assert_eq!(cut(0.3, origin, vectors, [&base, &a, &b], size), whole, "{vectors:?} {size}");
                }
            }
        }
    }

    #[test]
    fn rows_and_columns_are_arcs_of_their_own() {
        let [base, a, b] = [3, 4, 5].map(tensor);
        let near = |x: f32, y: f32| assert!((x - y).abs() < 1e-6, "{x} {y}");
        let mut expected = [0.0; 12];
        let rows = cut(0.3, Origin::Base, Vectors::Rows(12), [&base, &a, &b], 60);
        slerp_from(&base[12..24], &a[12..24], &b[12..24], 0.3, &mut expected);
        rows[12..24].iter().zip(expected).for_each(|(x, y)| near(*x, y));
        let column = |x: &[f32]| -> Vec<f32> { x.iter().skip(3).step_by(12).copied().collect() };
        let columns = cut(0.3, Origin::Base, Vectors::Columns(12), [&base, &a, &b], 60);
        let mut expected = [0.0; 5];
        slerp_from(&column(&base), &column(&a), &column(&b), 0.3, &mut expected);
        column(&columns).iter().zip(expected).for_each(|(x, y)| near(*x, y));
    }

    #[test]
    fn the_ends_are_exact_and_special_vectors_are_defined() {
        let [base, a, b] = [6, 7, 8].map(tensor);
        for origin in [Origin::Zero, Origin::Base] {
            assert_eq!(cut(0.0, origin, Vectors::Rows(12), [&base, &a, &b], 60), a);
            assert_eq!(cut(1.0, origin, Vectors::Whole, [&base, &a, &b], 60), b);
        }
        let of = |a: &[f32], b: &[f32], t| cut(t, Origin::Zero, Vectors::Whole, [&vec![0.0; a.len()], a, b], a.len());
        assert_eq!(of(&[1.0, 1.0], &[3.0, 3.0], 0.25), [1.5, 1.5]);
        assert_eq!(of(&[2.0], &[-2.0], 0.25), [1.0]);
        // sin(pi / 6)
        assert!((of(&[0.0, 0.0], &[2.0, 0.0], 1.0 / 3.0)[0] - 1.0).abs() < 1e-6);
        // A cosine of 1 - 5e-5 is straight for a slerp, but an arc here: its middle is longer than the chord's.
        let [a, b] = [[1.0f32, 0.0], [0.01f32.cos(), 0.01f32.sin()]];
        let middle = of(&a, &b, 0.5);
        assert!((middle[0].hypot(middle[1]) - 1.0).abs() < 2e-7 && (a[0] + b[0]).hypot(b[1]) / 2.0 < 1.0 - 1e-5);
    }
}
