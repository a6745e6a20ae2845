//! Merging task vectors: task arithmetic, TIES and DARE are one procedure with different options.

use super::sparsify::Sparsifier;
use super::{Normalize, SoupError, Sparsify, same_lengths};

/// How the task vectors' entries are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consensus {
    /// Their weighted sum.
    #[default]
    Sum,
    /// The weighted sum of those that have the sign of the sum of all; a sum of zero counts as positive.
    Sign,
}

/// A way to merge task vectors.
///
/// ```text
/// d[i]  = sparsify(ingredient[i] - base)              in f32, as everything below
/// total = sum_i w[i] * d[i]                           Sum:  over all i
///                                                     Sign: over the i where w[i] * d[i] has the sign of the sum over all
/// part  = sum_i w[i]                                  over the same i
/// out   = base + scale * total                        Keep
/// out   = base + scale * total / part                 Divide; where |part| < 1e-8, by 1
/// ```
///
/// | method | sparsify | consensus | normalize | source |
/// |---|---|---|---|---|
/// | [`TaskMerge::task_arithmetic`] | none | sum | keep | Ilharco et al. 2022 (2212.04089) |
/// | [`TaskMerge::ties`] | magnitude | sign | divide | Yadav et al. 2023 (2306.01708) |
/// | [`TaskMerge::dare_linear`] | random | sum | keep | Yu et al. 2023 (2311.03099) |
/// | [`TaskMerge::dare_ties`] | random | sign | keep | the same, with the signs of TIES |
///
/// The methods below change single options. With two models, weights `1 - t` and `t` and neither sparsity nor signs,
/// this is [`super::lerp`] up to rounding, and so not a separate arm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskMerge {
    sparsify: Sparsify,
    consensus: Consensus,
    normalize: Normalize,
    scale: f64,
}

impl TaskMerge {
    /// Any combination, with scale 1.
    ///
    /// # Errors
    /// If a density is not in `(0, 1]`.
    pub fn new(sparsify: Sparsify, consensus: Consensus, normalize: Normalize) -> Result<TaskMerge, SoupError> {
        Ok(TaskMerge { sparsify: sparsify.checked()?, consensus, normalize, scale: 1.0 })
    }

    /// Task arithmetic: the weighted sum of the task vectors, added to the base.
    pub fn task_arithmetic() -> TaskMerge {
        TaskMerge { sparsify: Sparsify::None, consensus: Consensus::Sum, normalize: Normalize::Keep, scale: 1.0 }
    }

    /// TIES: trim by magnitude, elect signs, mean of those that agree.
    ///
    /// # Errors
    /// If the density is not in `(0, 1]`.
    pub fn ties(density: f64) -> Result<TaskMerge, SoupError> {
        TaskMerge::new(Sparsify::Magnitude { density }, Consensus::Sign, Normalize::Divide)
    }

    /// DARE: drop at random and rescale, then task arithmetic.
    ///
    /// # Errors
    /// If the density is not in `(0, 1]`.
    pub fn dare_linear(density: f64, seed: u64) -> Result<TaskMerge, SoupError> {
        TaskMerge::new(Sparsify::Random { density, seed }, Consensus::Sum, Normalize::Keep)
    }

    /// DARE, then the sign election of TIES.
    ///
    /// # Errors
    /// If the density is not in `(0, 1]`.
    pub fn dare_ties(density: f64, seed: u64) -> Result<TaskMerge, SoupError> {
        TaskMerge::new(Sparsify::Random { density, seed }, Consensus::Sign, Normalize::Keep)
    }

    /// Replaces the normalisation.
    pub fn with_normalize(self, normalize: Normalize) -> TaskMerge {
        TaskMerge { normalize, ..self }
    }

    /// Sets the factor of the merged task vector (lambda in the papers).
    pub fn with_scale(self, scale: f64) -> TaskMerge {
        TaskMerge { scale, ..self }
    }

    /// Merges one tensor of each ingredient into the base's; the formula is at [`TaskMerge`].
    ///
    /// Pass whole tensors: a magnitude threshold depends on all of one, and random drops count entries from its start.
    /// [`TaskMerge::stream`] does the same piece by piece.
    ///
    /// ```
    /// use salsa_algo::soup::TaskMerge;
    /// let (base, a, b) = ([1.0, 1.0, 1.0], [3.0, 1.0, 5.0], [2.0, 0.0, 0.0]); // task vectors (2 0 4), (1 -1 -1)
    /// let mut out = [0.0; 3];
    /// TaskMerge::task_arithmetic().apply(&base, &[&a, &b], &[1.0, 1.0], &mut out);
    /// assert_eq!(out, [4.0, 0.0, 4.0]); // (3 -1 3)
    /// TaskMerge::ties(1.0).unwrap().apply(&base, &[&a, &b], &[1.0, 1.0], &mut out);
    /// assert_eq!(out, [2.5, 0.0, 5.0]); // mean of 2 and 1, of -1 alone, of 4 alone
    /// ```
    ///
    /// # Panics
    /// If the number of weights differs from the number of ingredients, or lengths differ.
    pub fn apply(&self, base: &[f32], ingredients: &[&[f32]], weights: &[f64], out: &mut [f32]) {
        let mut stream = self.stream(out.len(), weights);
        while stream.needs_scan() {
            stream.look(base, ingredients);
            stream.looked();
        }
        stream.apply(base, ingredients, out);
    }

    /// Begins one tensor of `numbers` numbers, given in pieces.
    pub fn stream(&self, numbers: usize, weights: &[f64]) -> TaskStream {
        let sparsify: Vec<Sparsify> = vec![self.sparsify; weights.len()];
        TaskStream::new(*self, numbers, weights, &sparsify)
    }

    /// As [`TaskMerge::stream`], with a density for each ingredient in place of the common one. A density of 0 keeps
    /// nothing. Without effect for a method without sparsity.
    ///
    /// # Errors
    /// If a density is not in `[0, 1]`.
    ///
    /// # Panics
    /// If the number of densities differs from the number of weights.
    pub fn stream_with_densities(
        &self,
        numbers: usize,
        weights: &[f64],
        densities: &[f64],
    ) -> Result<TaskStream, SoupError> {
        assert_eq!(densities.len(), weights.len(), "one density per ingredient");
        let sparsify = densities.iter().map(|&density| self.sparsify.with_density(density));
        let sparsify: Vec<Sparsify> = sparsify.collect::<Result<_, _>>()?;
        Ok(TaskStream::new(*self, numbers, weights, &sparsify))
    }
}

/// A [`TaskMerge`] in progress on one tensor, piece by piece.
///
/// ```text
/// stream → look at all pieces, then `looked`, as long as it `needs_scan` → apply to all pieces, in order
/// ```
///
/// The result is that of [`TaskMerge::apply`] on the whole tensors, bit for bit, however they are split. Memory holds
/// counts of magnitudes, half a megabyte for each trimmed ingredient, and nothing of the tensor's size.
///
/// ```
/// use salsa_algo::soup::TaskMerge;
/// let mut stream = TaskMerge::ties(0.5).unwrap().stream(2, &[1.0]);
/// while stream.needs_scan() {
///     stream.look(&[0.0], &[&[3.0]]);
///     stream.look(&[0.0], &[&[-4.0]]);
///     stream.looked();
/// }
/// let mut out = [0.0; 2];
/// stream.apply(&[0.0], &[&[3.0]], &mut out[..1]);
/// stream.apply(&[0.0], &[&[-4.0]], &mut out[1..]);
/// assert_eq!(out, [0.0, -4.0]);
/// ```
#[derive(Clone, Debug)]
pub struct TaskStream {
    merge: TaskMerge,
    weights: Vec<f32>,
    vectors: Vec<Sparsifier>,
    weighted: Vec<f32>,
}

/// Entries processed at a time, so that they stay in the nearest cache.
const CHUNK: usize = 1024;

impl TaskStream {
    fn new(merge: TaskMerge, numbers: usize, weights: &[f64], sparsify: &[Sparsify]) -> TaskStream {
        let vector = |(i, sparsify): (usize, &Sparsify)| Sparsifier::new(*sparsify, i, numbers);
        TaskStream {
            merge,
            weights: weights.iter().map(|&w| w as f32).collect(),
            vectors: sparsify.iter().enumerate().map(vector).collect(),
            weighted: Vec::new(),
        }
    }

    /// Whether all pieces must be passed to `look` (again) before merging.
    pub fn needs_scan(&self) -> bool {
        self.vectors.iter().any(Sparsifier::needs_scan)
    }

    /// Processes a piece of the current pass.
    ///
    /// # Panics
    /// If the number of tensors differs from the number of weights, or lengths differ.
    pub fn look(&mut self, base: &[f32], ingredients: &[&[f32]]) {
        assert_eq!(ingredients.len(), self.weights.len(), "one weight per ingredient");
        same_lengths(base, ingredients);
        self.vectors.iter_mut().zip(ingredients).for_each(|(vector, tensor)| vector.look(base, tensor));
    }

    /// Ends a pass, after all pieces.
    pub fn looked(&mut self) {
        self.vectors.iter_mut().for_each(Sparsifier::looked);
    }

    /// Merges the next piece.
    ///
    /// # Panics
    /// If the number of tensors differs from the number of weights, lengths differ, or a pass is missing.
    pub fn apply(&mut self, base: &[f32], ingredients: &[&[f32]], out: &mut [f32]) {
        assert_eq!(ingredients.len(), self.weights.len(), "one weight per ingredient");
        same_lengths(out, ingredients);
        same_lengths(out, &[base]);
        self.weighted.resize(ingredients.len() * CHUNK, 0.0);
        for start in (0..out.len()).step_by(CHUNK) {
            let range = start..(start + CHUNK).min(out.len());
            let base = &base[range.clone()];
            for (i, vector) in self.vectors.iter_mut().enumerate() {
                let entries = &mut self.weighted[i * CHUNK..][..base.len()];
                vector.thin(base, &ingredients[i][range.clone()], entries);
                entries.iter_mut().for_each(|entry| *entry *= self.weights[i]);
            }
            self.combine(base, &mut out[range]);
        }
    }

    /// Computes one chunk of the result from the weighted entries. Sums are in the order of the ingredients.
    fn combine(&self, base: &[f32], out: &mut [f32]) {
        let (mut all, mut total, mut part) = ([0f32; CHUNK], [0f32; CHUNK], [0f32; CHUNK]);
        let (all, total, part) = (&mut all[..out.len()], &mut total[..out.len()], &mut part[..out.len()]);
        let vectors = || self.weighted.chunks(CHUNK).zip(&self.weights);
        for (entries, _) in vectors() {
            all.iter_mut().zip(entries).for_each(|(all, entry)| *all += entry);
        }
        for (entries, &w) in vectors() {
            for (((total, part), all), &entry) in total.iter_mut().zip(part.iter_mut()).zip(&*all).zip(entries) {
                let counts = match self.merge.consensus {
                    Consensus::Sum => true,
                    Consensus::Sign => entry != 0.0 && (entry > 0.0) == (*all >= 0.0),
                };
                *total += if counts { entry } else { 0.0 };
                *part += if counts { w } else { 0.0 };
            }
        }
        let scale = self.merge.scale as f32;
        for (((out, base), total), part) in out.iter_mut().zip(base).zip(&*total).zip(&*part) {
            let divides = self.merge.normalize == Normalize::Divide && part.abs() >= 1e-8;
            *out = base + scale * if divides { total / part } else { *total };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;
    use crate::soup::lerp;

    fn merge(method: TaskMerge, base: &[f32], ingredients: &[&[f32]], weights: &[f64]) -> Vec<f32> {
        let mut out = vec![f32::NAN; base.len()];
        method.apply(base, ingredients, weights, &mut out);
        out
    }

    fn tensor(stream: u64, n: u64) -> Vec<f32> {
        (0..n).map(|i| (uniform(8, stream, i) * 2.0 - 1.0) as f32).collect()
    }

    #[test]
    fn the_example_of_the_ties_paper() {
        // task vectors (5, 1, -4, 0), (3, -2, -1, 3), (-1, 4, 2, -3), density 1/2 keeps
        //              (5, 0, -4, 0), (3, 0, 0, 3),   (0, 4, 0, -3);      signs of sums + + - + (0 counts as +)
        let (a, b, c) = ([5.0, 1.0, -4.0, 0.0], [3.0, -2.0, -1.0, 3.0], [-1.0, 4.0, 2.0, -3.0]);
        let ties = TaskMerge::ties(0.5).expect("fine");
        let base = [10.0; 4];
        let (a, b, c) = (a.map(|x| x + 10.0), b.map(|x| x + 10.0), c.map(|x| x + 10.0));
        assert_eq!(merge(ties, &base, &[&a, &b, &c], &[1.0; 3]), [14.0, 14.0, 6.0, 13.0]);
        // weights 2, 1, 1: (10 + 3) / 3, 4 / 1, -8 / 2, 3 / 1
        assert_eq!(merge(ties, &base, &[&a, &b, &c], &[2.0, 1.0, 1.0]), [10.0 + 13.0 / 3.0, 14.0, 6.0, 13.0]);
        let kept = ties.with_normalize(Normalize::Keep).with_scale(0.5);
        assert_eq!(merge(kept, &base, &[&a, &b, &c], &[1.0; 3]), [14.0, 12.0, 8.0, 11.5]);
    }

    #[test]
    fn task_arithmetic_by_hand() {
        let merged = |method: TaskMerge, w: &[f64]| merge(method, &[1.0, 2.0], &[&[3.0, 2.0], &[1.0, 6.0]], w);
        let sum = TaskMerge::task_arithmetic();
        assert_eq!(merged(sum, &[1.0, 0.5]), [3.0, 4.0]);
        assert_eq!(merged(sum.with_scale(-1.0), &[1.0, 0.5]), [-1.0, 0.0]);
        assert_eq!(merged(sum.with_normalize(Normalize::Divide), &[2.0, 2.0]), [2.0, 4.0]);
        assert_eq!(merged(sum.with_normalize(Normalize::Divide), &[1.0, -1.0]), [3.0, -2.0]); // part 0: by 1
        assert_eq!(merged(sum.with_normalize(Normalize::Divide), &[-2.0, 1.0]), [5.0, -2.0]); // (-4, 4) by -1
        assert_eq!(merged(sum, &[0.0, 0.0]), [1.0, 2.0]);
    }

    #[test]
    fn two_task_vectors_are_a_lerp_up_to_rounding() {
        let (base, a, b) = (tensor(0, 500), tensor(1, 500), tensor(2, 500));
        let mut line = vec![0.0; 500];
        lerp(&a, &b, 0.3, &mut line);
        let merged = merge(TaskMerge::task_arithmetic(), &base, &[&a, &b], &[0.7, 0.3]);
        assert!(line.iter().zip(&merged).all(|(x, y)| (x - y).abs() < 1e-6));
    }

    #[test]
    fn dare_with_full_density_drops_nothing() {
        let (base, a, b) = (tensor(3, 500), tensor(4, 500), tensor(5, 500));
        let dare = TaskMerge::dare_linear(1.0, 7).expect("fine");
        let plain = TaskMerge::task_arithmetic();
        assert_eq!(merge(dare, &base, &[&a, &b], &[0.5, 0.5]), merge(plain, &base, &[&a, &b], &[0.5, 0.5]));
        let (dare, ties) = (TaskMerge::dare_ties(1.0, 7).expect("fine"), TaskMerge::ties(1.0).expect("fine"));
        let ties = ties.with_normalize(Normalize::Keep);
        assert_eq!(merge(dare, &base, &[&a, &b], &[0.5, 0.5]), merge(ties, &base, &[&a, &b], &[0.5, 0.5]));
    }

    #[test]
    fn dare_keeps_the_expectation() {
        let (base, a) = (vec![0.0; 20_000], vec![1.0; 20_000]);
        let merged = merge(TaskMerge::dare_linear(0.2, 3).expect("fine"), &base, &[&a], &[1.0]);
        let mean = merged.iter().sum::<f32>() / 20_000.0;
        assert!((mean - 1.0).abs() < 0.06, "{mean}"); // standard error .014
        assert!(merged.contains(&0.0) && merged.contains(&5.0));
    }

    #[test]
    fn signs_do_not_depend_on_size_and_zeros_have_none() {
        let ties = TaskMerge::ties(1.0).expect("fine");
        assert_eq!(merge(ties, &[0.0], &[&[0.25], &[0.5], &[-0.125]], &[1.0; 3]), [0.375]);
        assert_eq!(merge(ties, &[0.0], &[&[-0.25], &[-0.5], &[0.125]], &[1.0; 3]), [-0.375]);
        assert_eq!(merge(ties, &[0.0], &[&[-0.25], &[0.0], &[0.0]], &[1.0; 3]), [-0.25]);
        assert_eq!(merge(ties, &[0.0], &[&[0.25], &[0.0], &[0.0]], &[1.0; 3]), [0.25]);
    }

    #[test]
    fn a_negative_weight_turns_the_sign() {
        // 1 * 2 and -1 * 2: they cancel, zero counts as positive, so only the first agrees
        let ties = TaskMerge::ties(1.0).expect("fine").with_normalize(Normalize::Keep);
        assert_eq!(merge(ties, &[0.0], &[&[2.0], &[2.0]], &[1.0, -1.0]), [2.0]);
        assert_eq!(merge(ties, &[0.0], &[&[2.0], &[3.0]], &[1.0, -1.0]), [-3.0]);
    }

    /// The definition, entry by entry, on whole tensors.
    fn by_definition(method: TaskMerge, base: &[f32], ingredients: &[&[f32]], weights: &[f64]) -> Vec<f32> {
        let vector = |(i, tensor): (usize, &&[f32])| {
            let mut thinning = Sparsifier::new(method.sparsify, i, base.len());
            while thinning.needs_scan() {
                thinning.look(base, tensor);
                thinning.looked();
            }
            let mut entries = vec![0.0; base.len()];
            thinning.thin(base, tensor, &mut entries);
            entries
        };
        let vectors: Vec<Vec<f32>> = ingredients.iter().enumerate().map(vector).collect();
        let entry = |j: usize| {
            let weighted: Vec<f32> = vectors.iter().zip(weights).map(|(v, &w)| v[j] * w as f32).collect();
            let all: f32 = weighted.iter().sum();
            let agrees = |e: f32| match method.consensus {
                Consensus::Sum => true,
                Consensus::Sign => e != 0.0 && (e > 0.0) == (all >= 0.0),
            };
            let (mut total, mut part) = (0.0, 0.0);
            for (e, &w) in weighted.iter().zip(weights).filter(|(e, _)| agrees(**e)) {
                total += e;
                part += w as f32;
            }
            let divided = method.normalize == Normalize::Divide && part.abs() >= 1e-8;
            base[j] + method.scale as f32 * if divided { total / part } else { total }
        };
        (0..base.len()).map(entry).collect()
    }

    #[test]
    fn pieces_give_the_bits_of_the_definition() {
        let n = 3 * CHUNK as u64 + 41;
        let (base, a, b, c) = (tensor(10, n), tensor(11, n), tensor(12, n), tensor(13, n));
        let ingredients: [&[f32]; 3] = [&a, &b, &c];
        let weights = [0.7, 0.5, -0.1];
        for method in [
            TaskMerge::task_arithmetic(),
            TaskMerge::ties(0.3).expect("fine"),
            TaskMerge::ties(0.8).expect("fine").with_normalize(Normalize::Keep).with_scale(0.7),
            TaskMerge::dare_linear(0.4, 5).expect("fine").with_normalize(Normalize::Divide),
            TaskMerge::dare_ties(0.4, 6).expect("fine").with_scale(1.3),
        ] {
            let expected = by_definition(method, &base, &ingredients, &weights);
            assert_eq!(merge(method, &base, &ingredients, &weights), expected);
            for size in [1, 100, CHUNK, 2 * CHUNK + 1] {
                let mut stream = method.stream(n as usize, &weights);
                let (mut out, n) = (vec![f32::NAN; n as usize], n as usize);
                let pieces = || (0..n).step_by(size).map(|start| start..(start + size).min(n));
                let cut = |range: std::ops::Range<usize>| ingredients.map(|tensor| &tensor[range.clone()]);
                while stream.needs_scan() {
                    pieces().for_each(|range| stream.look(&base[range.clone()], &cut(range)));
                    stream.looked();
                }
                pieces().for_each(|r| stream.apply(&base[r.clone()], &cut(r.clone()), &mut out[r]));
                assert_eq!(out, expected, "{method:?} {size}");
            }
        }
    }

    #[test]
    fn each_ingredient_may_have_its_own_density() {
        let (base, a, b) = ([0.0; 4], [1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]);
        let thin = |densities: &[f64]| {
            let ties = TaskMerge::ties(1.0).expect("fine").with_normalize(Normalize::Keep);
            let mut stream = ties.stream_with_densities(4, &[1.0, 1.0], densities).expect("in range");
            let mut out = [f32::NAN; 4];
            while stream.needs_scan() {
                stream.look(&base, &[&a, &b]);
                stream.looked();
            }
            stream.apply(&base, &[&a, &b], &mut out);
            out
        };
        assert_eq!(thin(&[0.5, 0.25]), [40.0, 0.0, 3.0, 4.0]);
        assert_eq!(thin(&[1.0, 0.0]), a);
        assert_eq!(thin(&[0.25, 1.0]), [40.0, 30.0, 20.0, 14.0]);
        let refused = |density| TaskMerge::ties(1.0).expect("fine").stream_with_densities(4, &[1.0], &[density]);
        assert!(refused(1.5).is_err() && refused(-0.5).is_err() && refused(f64::NAN).is_err());
        let sum = TaskMerge::task_arithmetic().stream_with_densities(4, &[1.0], &[0.5]).expect("nothing to change");
        assert!(!sum.needs_scan());
    }

    #[test]
    fn densities_are_checked() {
        assert!(TaskMerge::ties(0.0).is_err());
        assert!(TaskMerge::dare_linear(1.5, 0).is_err());
        assert!(TaskMerge::dare_ties(f64::NAN, 0).is_err());
    }

    #[test]
    #[should_panic(expected = "one weight per ingredient")]
    fn one_weight_per_ingredient() {
        merge(TaskMerge::task_arithmetic(), &[0.0], &[&[1.0]], &[]);
    }
}
