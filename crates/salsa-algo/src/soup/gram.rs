//! Norms of task vectors and angles between them.

/// Inner products of task vectors, collected tensor by tensor.
///
/// ```text
/// d[i] = ingredient[i] - base          gram[i][j] = d[i] . d[j]
/// ```
///
/// Differences and sums are in `f64`, in a fixed order. RL task vectors are at about 90 degrees to each other, SFT task
/// vectors at 40 to 80 (Ramé et al. 2024, 2406.16768): the angles show whether there is anything to average.
///
/// ```
/// let mut gram = salsa_algo::soup::Gram::new(2);
/// gram.add(&[1.0, 1.0], &[&[4.0, 5.0], &[1.0, 2.0]]); // task vectors (3, 4) and (0, 1)
/// assert_eq!(gram.norm(0), 5.0);
/// assert_eq!(gram.cosine(0, 1), Some(0.8));
/// assert_eq!(gram.distance(0, 1), 18f64.sqrt());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    ingredients: usize,
    products: Vec<f64>,
}

impl Gram {
    /// Returns an empty sum for this many ingredients.
    pub fn new(ingredients: usize) -> Gram {
        Gram { ingredients, products: vec![0.0; ingredients * ingredients] }
    }

    /// Adds one tensor: the base's and each ingredient's.
    ///
    /// # Panics
    /// If there are not as many tensors as ingredients, or lengths differ.
    pub fn add(&mut self, base: &[f32], ingredients: &[&[f32]]) {
        assert_eq!(ingredients.len(), self.ingredients, "one tensor per ingredient");
        super::same_lengths(base, ingredients);
        for i in 0..self.ingredients {
            for j in i..self.ingredients {
                let product = dot(base, ingredients[i], ingredients[j]);
                self.products[i * self.ingredients + j] += product;
                if i != j {
                    self.products[j * self.ingredients + i] += product;
                }
            }
        }
    }

    /// Adds the sums of another part of the same ingredients: other tensors, or other pieces of one.
    ///
    /// # Panics
    /// If the numbers of ingredients differ.
    pub fn merge(&mut self, other: &Gram) {
        assert_eq!(other.ingredients, self.ingredients, "the same ingredients");
        self.products.iter_mut().zip(&other.products).for_each(|(sum, product)| *sum += product);
    }

    /// Returns the length of a task vector.
    ///
    /// # Panics
    /// If there is no such ingredient.
    pub fn norm(&self, i: usize) -> f64 {
        self.product(i, i).sqrt()
    }

    /// Returns the cosine of the angle between two task vectors, in `[-1, 1]`; none if one of them has length zero.
    ///
    /// # Panics
    /// If there is no such ingredient.
    pub fn cosine(&self, i: usize, j: usize) -> Option<f64> {
        let lengths = self.norm(i) * self.norm(j);
        (lengths > 0.0).then(|| (self.product(i, j) / lengths).clamp(-1.0, 1.0))
    }

    /// Returns the distance between two ingredients.
    ///
    /// ```text
    /// sqrt(max(0, |d[i]|^2 + |d[j]|^2 - 2 d[i] . d[j]))
    /// ```
    ///
    /// # Panics
    /// If there is no such ingredient.
    pub fn distance(&self, i: usize, j: usize) -> f64 {
        (self.product(i, i) + self.product(j, j) - 2.0 * self.product(i, j)).max(0.0).sqrt()
    }

    /// Returns the number of ingredients.
    pub fn count(&self) -> usize {
        self.ingredients
    }

    /// Returns the inner product of two task vectors.
    ///
    /// # Panics
    /// If there is no such ingredient.
    pub fn product(&self, i: usize, j: usize) -> f64 {
        assert!(i < self.ingredients && j < self.ingredients, "there are {} ingredients", self.ingredients);
        self.products[i * self.ingredients + j]
    }
}

/// The inner products of two tensors' differences from a base, added in consecutive pieces.
///
/// The numbers equal those of [`Gram::add`] for the whole tensors, bit for bit, if the length of every piece but the
/// last is a multiple of [`PairProducts::STEP`].
#[derive(Clone, Debug, Default)]
pub(super) struct PairProducts {
    own: [Lanes; 2],
    mixed: Lanes,
}

impl PairProducts {
    /// Lengths of pieces must be a multiple of this.
    pub(super) const STEP: usize = LANES;

    /// Adds the next piece.
    pub(super) fn add(&mut self, base: &[f32], a: &[f32], b: &[f32]) {
        super::same_lengths(base, &[a, b]);
        let [own_a, own_b] = &mut self.own;
        accumulate(own_a, base, a, a);
        accumulate(&mut self.mixed, base, a, b);
        accumulate(own_b, base, b, b);
    }

    /// Returns the products of all pieces.
    pub(super) fn gram(&self) -> Gram {
        let [aa, bb] = self.own.each_ref().map(|lanes| lanes.iter().sum());
        let ab = self.mixed.iter().sum();
        Gram { ingredients: 2, products: vec![aa, ab, ab, bb] }
    }
}

/// The inner products of any number of vectors, or of their differences from a base, in pieces of any length.
///
/// Number `j` of a vector is added in lane `j` modulo [`LANES`], so that sums do not depend on the pieces.
#[derive(Clone, Debug)]
pub(super) struct Products {
    members: usize,
    /// One sum for each pair `i <= j`.
    sums: Vec<Lanes>,
    seen: usize,
}

impl Products {
    /// Empty sums for this many vectors.
    pub(super) fn new(members: usize) -> Products {
        Products { members, sums: vec![Lanes::default(); members * (members + 1) / 2], seen: 0 }
    }

    /// Resets the sums.
    pub(super) fn clear(&mut self) {
        self.sums.fill(Lanes::default());
        self.seen = 0;
    }

    /// Adds the next piece.
    pub(super) fn add(&mut self, base: Option<&[f32]>, members: &[&[f32]]) {
        assert_eq!(members.len(), self.members, "one tensor per ingredient");
        let len = members[0].len();
        super::same_lengths(base.unwrap_or(members[0]), members);
        let mut from = 0;
        while from < len {
            // Up to the next multiple of the lanes, then in chunks as long as the zeros.
            let torn = self.seen % LANES;
            let to = len.min(from + if torn == 0 { ZEROS.len() } else { LANES - torn });
            let base = base.map_or(&ZEROS[..to - from], |base| &base[from..to]);
            let mut sums = self.sums.iter_mut();
            for i in 0..self.members {
                for j in i..self.members {
                    let sums = sums.next().expect("there is one for each pair");
                    accumulate_from(torn, sums, base, &members[i][from..to], &members[j][from..to]);
                }
            }
            self.seen += to - from;
            from = to;
        }
    }

    /// Returns the products of all pieces.
    pub(super) fn gram(&self) -> Gram {
        let mut gram = Gram::new(self.members);
        let mut sums = self.sums.iter();
        for i in 0..self.members {
            for j in i..self.members {
                let sum = sums.next().expect("there is one for each pair").iter().sum();
                gram.products[i * self.members + j] = sum;
                gram.products[j * self.members + i] = sum;
            }
        }
        gram
    }
}

/// Used if there is no base.
static ZEROS: [f32; 1024] = [0.0; 1024];

/// As [`accumulate`], from lane `first` on; unless that is lane 0, all numbers fit the remaining lanes.
fn accumulate_from(first: usize, lanes: &mut Lanes, base: &[f32], a: &[f32], b: &[f32]) {
    if first == 0 {
        return accumulate(lanes, base, a, b);
    }
    for (((lane, base), a), b) in lanes[first..].iter_mut().zip(base).zip(a).zip(b) {
        *lane += (f64::from(*a) - f64::from(*base)) * (f64::from(*b) - f64::from(*base));
    }
}

/// Sums in parallel lanes, so that the CPU need not wait for each addition; the order is still fixed.
const LANES: usize = 8;
type Lanes = [f64; LANES];

fn dot(base: &[f32], a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    accumulate(&mut lanes, base, a, b);
    lanes.iter().sum()
}

fn accumulate(lanes: &mut Lanes, base: &[f32], a: &[f32], b: &[f32]) {
    let chunks = base.chunks(LANES).zip(a.chunks(LANES)).zip(b.chunks(LANES));
    for ((base, a), b) in chunks {
        for (((lane, base), a), b) in lanes.iter_mut().zip(base).zip(a).zip(b) {
            *lane += (f64::from(*a) - f64::from(*base)) * (f64::from(*b) - f64::from(*base));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;

    #[test]
    fn the_products_of_whole_numbers_are_exact_and_tensors_add_up() {
        // d0 = 1..=20, d1 = 2 * d0, d2 = 1: products 2870 and multiples, sum 210
        let base: Vec<f32> = (0..20).map(|i| (i * 7 % 5) as f32).collect();
        let ingredient =
            |f: fn(f32) -> f32| -> Vec<f32> { base.iter().zip(1..).map(|(b, i)| b + f(i as f32)).collect() };
        let (a, b, c) = (ingredient(|x| x), ingredient(|x| 2.0 * x), ingredient(|_| 1.0));
        let mut gram = Gram::new(3);
        gram.add(&base[..9], &[&a[..9], &b[..9], &c[..9]]);
        gram.add(&base[9..], &[&a[9..], &b[9..], &c[9..]]);
        assert_eq!([gram.norm(0), gram.norm(1), gram.norm(2)], [2870f64.sqrt(), 11480f64.sqrt(), 20f64.sqrt()]);
        assert_eq!(gram.distance(0, 1), 2870f64.sqrt());
        assert_eq!(gram.distance(1, 1), 0.0);
        let cosine = 210.0 / (2870f64.sqrt() * 20f64.sqrt());
        assert_eq!((gram.cosine(0, 2), gram.cosine(2, 0)), (Some(cosine), Some(cosine)));
        assert!((gram.cosine(0, 1).expect("not zero") - 1.0).abs() < 1e-15);
    }

    #[test]
    fn pieces_collected_apart_add_up() {
        let (mut whole, mut first, mut second) = (Gram::new(2), Gram::new(2), Gram::new(2));
        whole.add(&[0.0; 3], &[&[1.0, 2.0, 3.0], &[4.0, 5.0, -6.0]]);
        first.add(&[0.0], &[&[1.0], &[4.0]]);
        second.add(&[0.0; 2], &[&[2.0, 3.0], &[5.0, -6.0]]);
        first.merge(&second);
        assert_eq!((first.clone(), first.norm(0)), (whole, 14f64.sqrt()));
    }

    #[test]
    fn a_pair_in_pieces_gives_the_bits_of_the_whole() {
        let noise = |s: u64| -> Vec<f32> { (0..1003).map(|i| (uniform(6, s, i) - 0.5) as f32).collect() };
        let (base, a, b) = (noise(0), noise(1), noise(2));
        let mut whole = Gram::new(2);
        whole.add(&base, &[&a, &b]);
        for size in [PairProducts::STEP, 40, 1000, 1003] {
            let mut pair = PairProducts::default();
            for ((base, a), b) in base.chunks(size).zip(a.chunks(size)).zip(b.chunks(size)) {
                pair.add(base, a, b);
            }
            assert_eq!(pair.gram(), whole, "{size}");
        }
    }

    #[test]
    fn independent_directions_are_nearly_orthogonal() {
        let noise = |s: u64| -> Vec<f32> { (0..10_000).map(|i| (uniform(5, s, i) - 0.5) as f32).collect() };
        let mut gram = Gram::new(2);
        gram.add(&vec![0.0; 10_000], &[&noise(0), &noise(1)]);
        assert!(gram.cosine(0, 1).expect("not zero").abs() < 0.05);
    }

    #[test]
    fn no_angle_with_a_zero_vector() {
        let mut gram = Gram::new(2);
        gram.add(&[1.0], &[&[1.0], &[2.0]]);
        assert_eq!((gram.cosine(0, 1), gram.cosine(0, 0), gram.cosine(1, 1)), (None, None, Some(1.0)));
    }

    #[test]
    #[should_panic(expected = "there are 2 ingredients")]
    fn unknown_ingredient() {
        Gram::new(2).cosine(0, 2);
    }
}
