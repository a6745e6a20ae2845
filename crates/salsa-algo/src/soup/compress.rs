//! Compressing adapters: the nearest one of a smaller rank, by a singular value decomposition of the factors alone.

/// A compressed adapter and its error.
#[derive(Clone, Debug, PartialEq)]
pub struct Compressed {
    /// `[rank, in]`.
    pub a: Vec<f32>,
    /// `[out, rank]`.
    pub b: Vec<f32>,
    /// Squared Frobenius norm of the discarded part.
    pub lost: f64,
    /// Squared Frobenius norm of the original product.
    pub total: f64,
}

/// Returns the product of rank `rank` nearest to `b a` in the Frobenius norm (Eckart and Young 1936), where `a[full,
/// in]` and `b[out, full]`:
///
/// ```text
/// b = Q_b R_b,  a^T = Q_a R_a,  R_b R_a^T = U S V^T
/// b' = Q_b U_r sqrt(S_r),  a' = sqrt(S_r) V_r^T Q_a^T,  lost = sum_{i > r} S_i^2
/// ```
///
/// Arithmetic in f64. The product itself, `[out, in]`, is never formed. A rank above `full` gives rows of zeros.
///
/// ```
/// use salsa_algo::soup::compress;
/// // b a = diag(3, 2): the nearest matrix of rank 1 is diag(3, 0), and 2^2 of 3^2 + 2^2 is lost.
/// let small = compress(&[3.0, 0.0, 0.0, 2.0], &[1.0, 0.0, 0.0, 1.0], 2, [2, 2], 1);
/// assert!((small.lost - 4.0).abs() < 1e-12 && (small.total - 13.0).abs() < 1e-12);
/// assert!((small.b[0] * small.a[0] - 3.0).abs() < 1e-6 && small.b[1] * small.a[1] == 0.0);
/// ```
///
/// # Panics
/// If a factor has the wrong length.
pub fn compress(a: &[f32], b: &[f32], full: usize, [out, input]: [usize; 2], rank: usize) -> Compressed {
    assert_eq!(a.len(), full * input, "a has one row for each rank");
    assert_eq!(b.len(), out * full, "b has one column for each rank");
    let column = |k: usize| (0..out).map(|i| f64::from(b[i * full + k])).collect();
    let (q_b, r_b) = orthogonalise((0..full).map(column).collect());
    let row = |k: usize| a[k * input..(k + 1) * input].iter().map(|&x| f64::from(x)).collect();
    let (q_a, r_a) = orthogonalise((0..full).map(row).collect());
    let core = |j: usize| (0..full).map(|i| (0..full).map(|k| r_b[k][i] * r_a[k][j]).sum()).collect();
    let parts = singular_parts((0..full).map(core).collect());
    let squares = |parts: &[Part]| parts.iter().map(|part| part.value * part.value).sum();
    let kept = rank.min(full);
    let (mut small_a, mut small_b) = (vec![0f32; rank * input], vec![0f32; out * rank]);
    for (k, part) in parts[..kept].iter().enumerate() {
        let root = part.value.sqrt();
        for (i, x) in combine(&q_b, &part.left).into_iter().enumerate() {
            small_b[i * rank + k] = (root * x) as f32;
        }
        for (j, x) in combine(&q_a, &part.right).into_iter().enumerate() {
            small_a[k * input + j] = (root * x) as f32;
        }
    }
    Compressed { a: small_a, b: small_b, lost: squares(&parts[kept..]), total: squares(&parts) }
}

/// A singular value with its vectors.
struct Part {
    value: f64,
    left: Vec<f64>,
    right: Vec<f64>,
}

type Columns = Vec<Vec<f64>>;

/// Returns columns `q` and, for each given vector, its coordinates: `v_k = sum_i coordinates[k][i] q_i`. The `q` are
/// orthonormal, except for zeros in place of vectors that depend on earlier ones.
fn orthogonalise(mut vectors: Columns) -> (Columns, Columns) {
    let count = vectors.len();
    let mut coordinates = vec![vec![0.0; count]; count];
    for (k, shares) in coordinates.iter_mut().enumerate() {
        let (earlier, rest) = vectors.split_at_mut(k);
        let vector = &mut rest[0];
        let before = dot(vector, vector).sqrt();
        // Twice is enough (Giraud et al. 2005).
        for _ in 0..2 {
            for (i, q) in earlier.iter().enumerate() {
                let share = dot(q, vector);
                shares[i] += share;
                vector.iter_mut().zip(q).for_each(|(v, q)| *v -= share * q);
            }
        }
        let norm = dot(vector, vector).sqrt();
        let independent = norm > 1e-12 * before;
        shares[k] = if independent { norm } else { 0.0 };
        vector.iter_mut().for_each(|v| *v = if independent { *v / norm } else { 0.0 });
    }
    (vectors, coordinates)
}

/// One-sided Jacobi: columns are rotated in pairs until all are orthogonal; their norms are the singular values, largest
/// first.
fn singular_parts(mut columns: Columns) -> Vec<Part> {
    let count = columns.len();
    let unit = |k: usize| (0..count).map(|i| f64::from(u8::from(i == k))).collect();
    let mut turned: Columns = (0..count).map(unit).collect();
    for _ in 0..SWEEPS {
        let mut largest = 0f64;
        for p in 0..count {
            for q in p + 1..count {
                let (a, b, c) =
                    (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]), dot(&columns[p], &columns[q]));
                if c == 0.0 || c * c <= 1e-30 * a * b {
                    continue;
                }
                largest = largest.max(c.abs() / (a * b).sqrt());
                let tau = (b - a) / (2.0 * c);
                let tangent = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                for set in [&mut columns, &mut turned] {
                    rotate(set, p, q, cosine, cosine * tangent);
                }
            }
        }
        if largest < 1e-15 {
            break;
        }
    }
    let mut parts: Vec<Part> = columns
        .into_iter()
        .zip(turned)
        .map(|(column, right)| {
            let value = dot(&column, &column).sqrt();
            let left = column.iter().map(|x| if value > 0.0 { x / value } else { 0.0 }).collect();
            Part { value, left, right }
        })
        .collect();
    parts.sort_by(|a, b| b.value.total_cmp(&a.value));
    parts
}

/// Rotations converge quadratically; more sweeps have never been needed.
const SWEEPS: usize = 60;

fn rotate(columns: &mut Columns, p: usize, q: usize, cosine: f64, sine: f64) {
    let (head, tail) = columns.split_at_mut(q);
    for (x, y) in head[p].iter_mut().zip(&mut tail[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}

fn combine(columns: &Columns, shares: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; columns.first().map_or(0, Vec::len)];
    for (column, share) in columns.iter().zip(shares) {
        sum.iter_mut().zip(column).for_each(|(sum, x)| *sum += share * x);
    }
    sum
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, seed: u64) -> Vec<f32> {
        let random = |i: u64| crate::random::uniform(seed, 0, i);
        (0..len as u64).map(|i| (random(i) - 0.5) as f32).collect()
    }

    fn product(a: &[f32], b: &[f32], rank: usize, [out, input]: [usize; 2]) -> Vec<f64> {
        let at = |i: usize, j: usize| (0..rank).map(|k| f64::from(b[i * rank + k]) * f64::from(a[k * input + j])).sum();
        (0..out * input).map(|n| at(n / input, n % input)).collect()
    }

    fn distance2(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
    }

    #[test]
    fn what_is_said_to_be_lost_is_lost() {
        let shape = [9, 7];
        let (a, b) = (numbers(5 * 7, 1), numbers(9 * 5, 2));
        let whole = product(&a, &b, 5, shape);
        let mut before = f64::INFINITY;
        for rank in 1..=5 {
            let small = compress(&a, &b, 5, shape, rank);
            let lost = distance2(&whole, &product(&small.a, &small.b, rank, shape));
            assert!((lost - small.lost).abs() < 1e-6 * small.total, "rank {rank}: {lost} and {}", small.lost);
            assert!((small.total - distance2(&whole, &vec![0.0; 63])).abs() < 1e-12 * small.total);
            assert!(small.lost < before);
            before = small.lost;
        }
        assert!(before < 1e-20, "at full rank nothing is lost: {before}");
    }

    #[test]
    fn no_other_pair_of_factors_of_this_rank_is_nearer() {
        // Perturbing the best factors in any direction increases the distance.
        let shape = [6, 5];
        let (a, b) = (numbers(4 * 5, 3), numbers(6 * 4, 4));
        let whole = product(&a, &b, 4, shape);
        let best = compress(&a, &b, 4, shape, 2);
        for seed in 10..30 {
            let moved = |x: &[f32], seed| -> Vec<f32> {
                x.iter().zip(numbers(x.len(), seed)).map(|(x, n)| x + 0.02 * n).collect()
            };
            let other = product(&moved(&best.a, seed), &moved(&best.b, seed + 100), 2, shape);
            assert!(distance2(&whole, &other) > best.lost);
        }
    }

    #[test]
    fn a_rank_that_is_not_full_is_found_and_zeros_are_harmless() {
        // The same adapter twice: rank 2 of 4, nothing is lost at rank 2.
        let (a, b) = (numbers(2 * 5, 5), numbers(6 * 2, 6));
        let twice_a = [&a[..], &a].concat();
        let twice_b: Vec<f32> = b.chunks(2).flat_map(|row| [row, row].concat()).collect();
        let small = compress(&twice_a, &twice_b, 4, [6, 5], 2);
        assert!(small.lost < 1e-20 * small.total, "{}", small.lost);
        let nothing = compress(&[0.0; 10], &[0.0; 12], 2, [6, 5], 1);
        assert_eq!((nothing.lost, nothing.total), (0.0, 0.0));
        assert!(nothing.a.iter().chain(&nothing.b).all(|x| *x == 0.0));
        let larger = compress(&a, &b, 2, [6, 5], 3);
        assert_eq!((larger.a.len(), larger.b.len()), (15, 18));
        assert!(distance2(&product(&a, &b, 2, [6, 5]), &product(&larger.a, &larger.b, 3, [6, 5])) < 1e-12);
    }
}
