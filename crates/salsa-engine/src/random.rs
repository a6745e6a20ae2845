//! Counter-based random numbers: a number is a pure function of a key and a counter.
//!
//! So a sample depends only on its identity (seed, prompt, sample, position), not on when or with what it was drawn,
//! and a resumed run needs no saved generator. The function is Philox4x32-10 (Salmon et al., "Parallel random numbers:
//! as easy as 1, 2, 3", SC 2011).

use crate::pool;

/// One keyed stream of Philox4x32-10.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The stream of `seed` and `stream`: streams of different pairs are unrelated.
    pub fn new(seed: u64, stream: u64) -> Philox {
        let key = mix(mix(seed) ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Philox { key: [key as u32, (key >> 32) as u32] }
    }

    /// Four random words at the counter `(hi, lo)`.
    pub fn at(&self, hi: u64, lo: u64) -> [u32; 4] {
        philox4x32_10([lo as u32, (lo >> 32) as u32, hi as u32, (hi >> 32) as u32], self.key)
    }

    /// A number in `[0, 1)` with 24 random bits at the counter `(hi, lo)`.
    pub fn uniform_at(&self, hi: u64, lo: u64) -> f32 {
        (self.at(hi, lo)[0] >> 8) as f32 * (1.0 / 16_777_216.0)
    }
}

fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xd251_1f53;
        let b = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// A mixing bijection of 64-bit words (the finaliser of SplitMix64).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A sequence of random numbers from one stream, for shuffles and synthetic data.
#[derive(Clone, Debug)]
pub struct Random {
    philox: Philox,
    drawn: u64,
}

impl Random {
    /// The sequence of `seed` and `stream`.
    pub fn new(seed: u64, stream: u64) -> Random {
        Random { philox: Philox::new(seed, stream), drawn: 0 }
    }

    /// 32 random bits.
    pub fn u32(&mut self) -> u32 {
        let word = self.philox.at(0, self.drawn / 4)[(self.drawn % 4) as usize];
        self.drawn += 1;
        word
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        unit(self.u32(), self.u32())
    }

    /// An index below `n`, each equally likely to within 2^-53.
    ///
    /// # Panics
    ///
    /// If `n` is zero.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "nothing lies below zero");
        ((self.uniform() * n as f64) as usize).min(n - 1)
    }

    /// A standard normal number (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        box_muller(self.uniform(), self.uniform())
    }

    /// Fills `out` with successive values of [`Random::normal`] times `deviation`, on all threads.
    pub fn normals(&mut self, deviation: f64, out: &mut [f32]) {
        if !self.drawn.is_multiple_of(4) {
            return out.iter_mut().for_each(|x| *x = (deviation * self.normal()) as f32);
        }
        // A normal number takes the four words of one counter.
        let (philox, first) = (self.philox, self.drawn / 4);
        self.drawn += 4 * out.len() as u64;
        pool::each(out.chunks_mut(PART), |part, out| {
            for (i, x) in out.iter_mut().enumerate() {
                let [a, b, c, d] = philox.at(0, first + (part * PART + i) as u64);
                *x = (deviation * box_muller(unit(a, b), unit(c, d))) as f32;
            }
        });
    }

    /// Shuffles the items (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// Numbers drawn by one task.
const PART: usize = 1 << 14;

/// A number in `[0, 1)` from the 53 highest of 64 bits.
fn unit(high: u32, low: u32) -> f64 {
    ((u64::from(high) << 32 | u64::from(low)) >> 11) as f64 / (1u64 << 53) as f64
}

/// A standard normal number from two of `[0, 1)`.
fn box_muller(radius: f64, angle: f64) -> f64 {
    (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_test_vectors() {
        // Random123's known answers for philox4x32, ten rounds.
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut random = Random::new(7, 3);
        let n = 20_000;
        let mean = (0..n).map(|_| random.uniform()).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        let normal: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        let variance = normal.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        assert!((variance - 1.0).abs() < 0.04, "{variance}");
        let mut count = [0; 7];
        (0..7000).for_each(|_| count[random.below(7)] += 1);
        assert!(count.iter().all(|&c| (800..1200).contains(&c)), "{count:?}");
    }

    #[test]
    fn streams_differ_and_repeat() {
        let draw = |seed, stream| Random::new(seed, stream).u32();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert!(draw(1, 2) != draw(2, 1) && draw(1, 2) != draw(1, 3));
        let mut items: Vec<u32> = (0..50).collect();
        Random::new(1, 1).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn many_normal_numbers_are_those_drawn_one_by_one() {
        for words_before in [0, 1, 4] {
            let mut one_by_one = Random::new(5, 6);
            for _ in 0..words_before {
                one_by_one.u32();
            }
            let mut at_once = one_by_one.clone();
            let mut found = vec![0.0; PART + 3];
            at_once.normals(0.5, &mut found);
            assert!(found.iter().all(|&x| x == (0.5 * one_by_one.normal()) as f32));
            assert_eq!(at_once.u32(), one_by_one.u32());
        }
    }
}
