//! The order of the two outputs in AlpacaEval: drawn for each instruction from its text, by CPython's generator.
use sha2::{Digest, Sha512};

/// Whether the model's output is shown before the baseline's.
///
/// ```text
/// random.Random("is_switched_outputs" + instruction + "0").choices([False, True]): the first double is at least 1/2
/// ```
pub(super) fn is_switched(instruction: &str) -> bool {
    first_double(&format!("is_switched_outputs{instruction}0")) >= 0.5
}

/// The first `random()` of a CPython generator seeded with this text.
fn first_double(seed: &str) -> f64 {
    let bytes = [seed.as_bytes(), &Sha512::digest(seed.as_bytes())[..]].concat();
    // The seed as a big-endian integer, split into 32-bit words, least significant first, without leading zeros.
    let bytes: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
    let words: Vec<u32> =
        bytes.rchunks(4).map(|word| word.iter().fold(0, |w, byte| w << 8 | u32::from(*byte))).collect();
    let mut state = initialised(&words);
    twist(&mut state);
    let (high, low) = (tempered(state[0]) >> 5, tempered(state[1]) >> 6);
    (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
}

const N: usize = 624;

/// MT19937's `init_by_array` (Matsumoto and Nishimura 2002).
fn initialised(key: &[u32]) -> [u32; N] {
    let mut state = [19_650_218u32; N];
    for i in 1..N {
        state[i] = 1_812_433_253u32.wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30)).wrapping_add(i as u32);
    }
    let (mut i, mut j) = (1, 0);
    let mixed =
        |state: &[u32; N], i: usize, factor: u32| state[i] ^ (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(factor);
    for _ in 0..N.max(key.len()) {
        state[i] = mixed(&state, i, 1_664_525).wrapping_add(key[j]).wrapping_add(j as u32);
        (i, j) = (i + 1, (j + 1) % key.len());
        if i == N {
            state[0] = state[N - 1];
            i = 1;
        }
    }
    for _ in 1..N {
        state[i] = mixed(&state, i, 1_566_083_941).wrapping_sub(i as u32);
        i += 1;
        if i == N {
            state[0] = state[N - 1];
            i = 1;
        }
    }
    state[0] = 1 << 31;
    state
}

fn twist(state: &mut [u32; N]) {
    for i in 0..N {
        let y = (state[i] & 0x8000_0000) | (state[(i + 1) % N] & 0x7fff_ffff);
        state[i] = state[(i + 397) % N] ^ (y >> 1) ^ if y & 1 == 1 { 0x9908_b0df } else { 0 };
    }
}

fn tempered(mut y: u32) -> u32 {
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c_5680;
    y ^= (y << 15) & 0xefc6_0000;
    y ^ (y >> 18)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Python: `random.Random(text).random()`.
    #[test]
    fn doubles_are_pythons() {
        assert_eq!(first_double("is_switched_outputsHello0"), 0.404_329_942_193_976_55);
        assert!(!is_switched("Hello"));
    }

    #[test]
    fn long_and_foreign_texts_are_seeds_too() {
        let x = "x".repeat(1000);
        let cases = [
            ("a", 0.7190584986555104),
            ("", 0.14709790944563927),
            ("What are the names of some famous actors?", 0.13706142166065738),
            ("héllo wörld \u{2028} 日本", 0.03201753244953576),
            (&x, 0.18024122194743764),
        ];
        for (instruction, expected) in cases {
            assert_eq!(first_double(&format!("is_switched_outputs{instruction}0")), expected, "{instruction}");
        }
    }
}
