//! A counter-based random generator: a number is a function of (seed, stream, index), without state.
//!
//! So a draw does not depend on earlier draws, on threads, or on how the work was split. Not for cryptography.

/// Returns 64 well-mixed bits for (seed, stream, index).
///
/// ```text
/// bits = mix(mix(mix(seed + g) ^ stream) + g + index * g)     g = 2^64 / golden ratio, odd; arithmetic modulo 2^64
/// ```
///
/// `mix` is the finaliser of SplitMix64 (Steele, Lea and Flood 2014; Stafford's variant 13), a bijection: within one
/// (seed, stream) no two indices share a value.
///
/// ```
/// use salsa_algo::random::bits;
/// assert_eq!(bits(1, 2, 3), bits(1, 2, 3));
/// assert_ne!(bits(1, 2, 3), bits(1, 3, 2));
/// ```
pub fn bits(seed: u64, stream: u64, index: u64) -> u64 {
    let key = mix(mix(seed.wrapping_add(GOLDEN)) ^ stream).wrapping_add(GOLDEN);
    mix(key.wrapping_add(index.wrapping_mul(GOLDEN)))
}

/// Returns a number in `[0, 1)`: the top 53 of [`bits`], divided by 2^53.
///
/// ```
/// let u = salsa_algo::random::uniform(0, 0, 7);
/// assert!((0.0..1.0).contains(&u));
/// ```
pub fn uniform(seed: u64, stream: u64, index: u64) -> f64 {
    (bits(seed, stream, index) >> 11) as f64 / (1u64 << 53) as f64
}

/// Returns a whole number in `0..n`; 0 when `n` is 0.
///
/// ```text
/// floor(bits * n / 2^64)
/// ```
///
/// The bias towards some values is below `n / 2^64`.
///
/// ```
/// assert!(salsa_algo::random::below(0, 0, 7, 10) < 10);
/// assert_eq!(salsa_algo::random::below(0, 0, 7, 1), 0);
/// ```
pub fn below(seed: u64, stream: u64, index: u64, n: usize) -> usize {
    ((u128::from(bits(seed, stream, index)) * n as u128) >> 64) as usize
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_is_the_finaliser_of_splitmix64() {
        // The first outputs of SplitMix64 from seed 1234567, as published with the reference implementation.
        let expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        let outputs: Vec<u64> = (1..=4u64).map(|i| mix(1234567u64.wrapping_add(i.wrapping_mul(GOLDEN)))).collect();
        assert_eq!(outputs, expected);
    }

    #[test]
    fn the_numbers_are_pinned() {
        // Users' bootstrap intervals and DARE masks depend on them: a change must be deliberate.
        assert_eq!([bits(0, 0, 0), bits(1, 2, 3), bits(u64::MAX, 7, u64::MAX)], PINNED);
    }
    // Computed once with a few lines of Python from the formula above.
    const PINNED: [u64; 3] = [6235967106033911276, 16950036955605757068, 6162607027021544439];

    #[test]
    fn uniform_has_the_moments_of_the_uniform_distribution() {
        for (seed, stream) in [(0, 0), (0, 1), (1, 0), (99, 12345)] {
            let u: Vec<f64> = (0..100_000).map(|i| uniform(seed, stream, i)).collect();
            let mean = u.iter().sum::<f64>() / 1e5;
            let square = u.iter().map(|x| x * x).sum::<f64>() / 1e5;
            // standard errors: sqrt(1/12/1e5) = .0009 and sqrt(4/45/1e5) = .00094
            assert!((mean - 0.5).abs() < 0.004, "{mean}");
            assert!((square - 1.0 / 3.0).abs() < 0.004, "{square}");
        }
    }

    #[test]
    fn below_is_even_and_in_range() {
        let mut counts = [0usize; 7];
        (0..70_000).for_each(|i| counts[below(3, 4, i, 7)] += 1);
        // 10000 each, standard deviation 93
        assert!(counts.iter().all(|&c| (9_600..10_400).contains(&c)), "{counts:?}");
        assert_eq!(below(3, 4, 5, 0), 0);
    }

    #[test]
    fn neighbouring_streams_and_seeds_are_unrelated() {
        for other in [(5, 1), (6, 0)] {
            let same = (0..10_000).filter(|&i| bits(5, 0, i) >> 63 == bits(other.0, other.1, i) >> 63).count();
            assert!((4_750..5_250).contains(&same), "{same}"); // 5000 expected, standard deviation 50
        }
    }
}
