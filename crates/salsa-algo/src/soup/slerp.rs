//! Spherical interpolation: along the arc between two models instead of the chord.

use super::gram::PairProducts;
use super::{lerp, same_lengths};

/// Above this |cosine| the arc is practically straight, and dividing by its sine loses digits.
const NEARLY_PARALLEL: f64 = 0.9995;

/// A tensor of at most this length has no direction.
const NO_DIRECTION: f64 = 1e-8;

/// Computes a point on the arc between two tensors, seen from zero.
///
/// ```text
/// W = angle between a and b
/// out[j] = sin((1 - t) W) / sin W * a[j] + sin(t W) / sin W * b[j]
/// ```
///
/// If `|cos W| > .9995` this is [`lerp`]. A zero tensor (a length up to 1e-8) has no direction and counts as being at a
/// right angle, as in mergekit: if `b` is zero, the result is `sin((1 - t) pi/2) a` and not `(1 - t) a`. `t` 0 and 1
/// give `a` and `b` bit for bit. The angle is that of the whole slices: pass one whole tensor at a time, or use
/// [`SlerpStream`]. Full weights of two fine-tunes are nearly parallel, so for them this is a lerp; [`slerp_from`]
/// differs from it. Source: Shoemake 1985; mergekit's `slerp`.
///
/// ```
/// let mut out = [0.0; 2];
/// salsa_algo::soup::slerp(&[1.0, 0.0], &[0.0, 1.0], 0.5, &mut out); // a quarter circle, halved
/// assert!((out[0] - 0.5f32.sqrt()).abs() < 1e-7 && out[0] == out[1]);
/// ```
///
/// # Panics
/// If lengths differ.
pub fn slerp(a: &[f32], b: &[f32], t: f64, out: &mut [f32]) {
    let mut stream = SlerpStream::new(t, Origin::Zero);
    stream.look(&[], a, b);
    stream.apply(&[], a, b, out);
}

/// Computes a point on the arc between two models, seen from the base they were fine-tuned from.
///
/// ```text
/// da = a - base, db = b - base, W = angle between da and db
/// out[j] = base[j] + (sin((1 - t) W) / sin W * da[j] + sin(t W) / sin W * db[j])
/// ```
///
/// The task vector keeps its length along the arc, where a lerp's shrinks by `cos(W / 2)` at the middle. The straight
/// line, the exact ends and the whole-tensor angle are those of [`slerp`]. A zero task vector (a tensor that one of the
/// two did not train) has no direction: then this is [`lerp`], as a right angle would carry the other one too far. For
/// more than two models, WARP iterates. Source: Ramé et al. 2024 (2406.16768), equation 3.
///
/// ```
/// let mut out = [0.0; 2];
/// salsa_algo::soup::slerp_from(&[1.0, 1.0], &[2.0, 1.0], &[1.0, 2.0], 0.5, &mut out);
/// assert!((out[0] - 1.0 - 0.5f32.sqrt()).abs() < 1e-6 && out[0] == out[1]);
/// ```
///
/// # Panics
/// If lengths differ.
pub fn slerp_from(base: &[f32], a: &[f32], b: &[f32], t: f64, out: &mut [f32]) {
    let mut stream = SlerpStream::new(t, Origin::Base);
    stream.look(base, a, b);
    stream.apply(base, a, b, out);
}

/// The origin of the arc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Zero: [`slerp`]. Bases are ignored and may be empty.
    Zero,
    /// The base: [`slerp_from`].
    Base,
}

/// A point on the arc between two tensors, without holding whole tensors in memory.
///
/// ```text
/// new → look at all pieces, in order → apply to all pieces
/// ```
///
/// The result is that of [`slerp`] or [`slerp_from`] on the whole tensors, bit for bit, if the length of all pieces
/// passed to `look`, except the last, is a multiple of [`SlerpStream::STEP`].
///
/// ```
/// use salsa_algo::soup::{Origin, SlerpStream};
/// let mut stream = SlerpStream::new(0.5, Origin::Zero);
/// stream.look(&[], &[1.0, 0.0], &[0.0, 1.0]);
/// let mut out = [0.0; 1];
/// stream.apply(&[], &[1.0], &[0.0], &mut out);
/// assert!((out[0] - 0.5f32.sqrt()).abs() < 1e-7);
/// ```
#[derive(Clone, Debug)]
pub struct SlerpStream {
    t: f64,
    origin: Origin,
    products: PairProducts,
    zeros: Vec<f32>,
}

impl SlerpStream {
    /// Lengths of pieces must be a multiple of this.
    pub const STEP: usize = PairProducts::STEP;

    /// Begins one tensor; `t` is the place on the arc.
    pub fn new(t: f64, origin: Origin) -> SlerpStream {
        SlerpStream { t, origin, products: PairProducts::default(), zeros: Vec::new() }
    }

    /// Adds the next piece to the angle.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn look(&mut self, base: &[f32], a: &[f32], b: &[f32]) {
        match self.origin {
            Origin::Base => self.products.add(base, a, b),
            Origin::Zero => {
                self.zeros.resize(a.len(), 0.0);
                self.products.add(&self.zeros, a, b);
            }
        }
    }

    /// Computes one piece of the result.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn apply(&self, base: &[f32], a: &[f32], b: &[f32], out: &mut [f32]) {
        same_lengths(out, &[a, b]);
        let straight = self.t == 0.0 || self.t == 1.0;
        match (self.arc_weights(), self.origin) {
            (Some([wa, wb]), Origin::Zero) if !straight => {
                let (wa, wb) = (wa as f32, wb as f32);
                for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                    *out = wa * a + wb * b;
                }
            }
            (Some([wa, wb]), Origin::Base) if !straight => {
                same_lengths(out, &[base]);
                let (wa, wb) = (wa as f32, wb as f32);
                for (((out, base), a), b) in out.iter_mut().zip(base).zip(a).zip(b) {
                    *out = base + (wa * (a - base) + wb * (b - base));
                }
            }
            _ => lerp(a, b, self.t, out),
        }
    }

    /// Returns the weights of the two ends, or none if the arc is practically straight.
    fn arc_weights(&self) -> Option<[f64; 2]> {
        let cosine = self.cosine().filter(|c| c.abs() <= NEARLY_PARALLEL)?;
        let (t, angle) = (self.t, cosine.acos());
        Some([((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()])
    }

    /// Returns the cosine of the angle; none between task vectors if one is zero.
    fn cosine(&self) -> Option<f64> {
        let gram = self.products.gram();
        match self.origin {
            Origin::Base => gram.cosine(0, 1),
            Origin::Zero => {
                let length = |i| Some(gram.norm(i)).filter(|norm| *norm > NO_DIRECTION).unwrap_or(1.0);
                Some((gram.product(0, 1) / (length(0) * length(1))).clamp(-1.0, 1.0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Gram;
    use super::*;
    use crate::random::uniform;

    fn tensor(stream: u64) -> Vec<f32> {
        (0..1000).map(|i| (uniform(3, stream, i) * 2.0 - 1.0) as f32).collect()
    }

    fn run(a: &[f32], b: &[f32], t: f64) -> Vec<f32> {
        let mut out = vec![f32::NAN; a.len()];
        slerp(a, b, t, &mut out);
        out
    }

    fn run_from(base: &[f32], a: &[f32], b: &[f32], t: f64) -> Vec<f32> {
        let mut out = vec![f32::NAN; a.len()];
        slerp_from(base, a, b, t, &mut out);
        out
    }

    #[test]
    fn a_quarter_circle_by_hand() {
        // t = 1/3 is 30 degrees: (cos 30, sin 30)
        let out = run(&[1.0, 0.0], &[0.0, 1.0], 1.0 / 3.0);
        assert!((out[0] - 0.75f32.sqrt()).abs() < 1e-7 && (out[1] - 0.5).abs() < 1e-7, "{out:?}");
        // seen from (10, 10) the same arc, moved
        let out = run_from(&[10.0, 10.0], &[11.0, 10.0], &[10.0, 11.0], 1.0 / 3.0);
        assert!((out[0] - 10.0 - 0.75f32.sqrt()).abs() < 1e-6 && (out[1] - 10.5).abs() < 1e-6, "{out:?}");
    }

    #[test]
    fn lengths_differ_and_are_not_normalised() {
        // 90 degrees, t = .5: weights sin 45 each, on the tensors themselves
        let out = run(&[2.0, 0.0], &[0.0, 6.0], 0.5);
        assert!((out[0] - 2.0 * 0.5f32.sqrt()).abs() < 1e-6 && (out[1] - 6.0 * 0.5f32.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn ends_are_exact() {
        let (base, a, b) = (tensor(0), tensor(1), tensor(2));
        for (t, expected) in [(0.0, &a), (1.0, &b)] {
            assert_eq!(&run(&a, &b, t), expected);
            assert_eq!(&run_from(&base, &a, &b, t), expected);
        }
    }

    #[test]
    fn the_length_of_the_task_vector_is_kept_where_a_lerp_shortens_it() {
        let base = tensor(3);
        let (a, b): (Vec<f32>, Vec<f32>) =
            base.iter().zip(tensor(4)).zip(tensor(5)).map(|((x, a), b)| (x + a, x + b)).unzip();
        let arc = run_from(&base, &a, &b, 0.5);
        let mut chord = vec![0.0; 1000];
        lerp(&a, &b, 0.5, &mut chord);
        let mut gram = Gram::new(4);
        gram.add(&base, &[&a, &b, &arc, &chord]);
        let half = (gram.cosine(0, 1).expect("not zero").acos() / 2.0).cos();
        let mean = (gram.norm(0) + gram.norm(1)) / 2.0;
        assert!((gram.norm(2) / mean - 1.0).abs() < 0.01);
        assert!((gram.norm(3) / mean - half).abs() < 0.01);
    }

    #[test]
    fn nearly_parallel_falls_back_to_lerp() {
        let a = tensor(6);
        let close: Vec<f32> = a.iter().zip(tensor(7)).map(|(a, n)| a + 0.01 * n).collect();
        let opposite: Vec<f32> = a.iter().map(|a| -a).collect();
        let zero = vec![0.0; 1000];
        for (a, b) in [(&a, &close), (&a, &opposite), (&a, &a)] {
            let mut expected = vec![0.0; 1000];
            lerp(a, b, 0.3, &mut expected);
            assert_eq!(run(a, b, 0.3), expected);
            assert_eq!(run_from(&zero, a, b, 0.3), expected);
        }
    }

    #[test]
    fn a_tensor_of_zeros_stands_at_a_right_angle_and_a_task_vector_of_zeros_is_passed_on_a_line() {
        // sin(0.7 * 90 degrees) = 0.891007, sin(0.3 * 90 degrees) = 0.453990
        let (a, zero, tiny) = ([1.0, -2.0], [0.0, 0.0], [1e-9, 0.0]);
        for none in [&zero, &tiny] {
            let (first, second) = (run(&a, none, 0.3), run(none, &a, 0.3));
            for (j, x) in a.iter().enumerate() {
                assert!(
                    (first[j] - 0.891_007 * x).abs() < 1e-5 && (second[j] - 0.453_990 * x).abs() < 1e-5,
                    "{first:?}"
                );
            }
        }
        assert_eq!(run(&zero, &zero, 0.3), zero);
        assert_eq!((run(&a, &zero, 0.0), run(&a, &zero, 1.0)), (a.to_vec(), zero.to_vec()));
        assert_eq!(run_from(&[1.0, 1.0], &[3.0, 5.0], &[1.0, 1.0], 0.5), [2.0, 3.0]);
    }

    #[test]
    fn both_sides_of_the_threshold() {
        // two unit vectors at a cosine of .9994 (arc) and .9996 (line), which differ at t = .5
        for (cosine, arc) in [(0.9994f64, true), (0.9996, false)] {
            let b = [cosine as f32, (1.0 - cosine * cosine).sqrt() as f32];
            let out = run(&[1.0, 0.0], &b, 0.5);
            let length = f64::from(out[0]).hypot(f64::from(out[1]));
            let expected = if arc { 1.0 } else { ((1.0 + cosine) / 2.0).sqrt() };
            assert!((length - expected).abs() < 2e-7, "{cosine}: {length}");
        }
    }

    #[test]
    fn pieces_give_the_bits_of_the_whole() {
        let (base, a, b) = (tensor(8), tensor(9), tensor(10));
        for t in [0.0, 0.3, 1.0, 1.4] {
            for (origin, expected) in [(Origin::Zero, run(&a, &b, t)), (Origin::Base, run_from(&base, &a, &b, t))] {
                let mut stream = SlerpStream::new(t, origin);
                let (mut start, mut out) = (0, vec![f32::NAN; 1000]);
                for size in [8, 80, 600, 8, 304] {
                    let range = start..start + size;
                    stream.look(&base[range.clone()], &a[range.clone()], &b[range]);
                    start += size;
                }
                assert_eq!(start, 1000);
                for start in (0..1000).step_by(77) {
                    let range = start..(start + 77).min(1000);
                    stream.apply(&base[range.clone()], &a[range.clone()], &b[range.clone()], &mut out[range]);
                }
                assert_eq!(out, expected, "{origin:?} {t}");
            }
        }
    }
}
