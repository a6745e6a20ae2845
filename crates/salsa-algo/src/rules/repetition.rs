//! Repeated n-grams.

use std::collections::HashSet;

/// The penalty of repeated n-grams of token ids: `(1 - different / all) * max_penalty`; 0 for fewer than `ngram`
/// tokens.
///
/// `max_penalty` is the (negative) limit that a response of one repeated n-gram approaches. Source: appendix C.2 of Yeo
/// et al. 2025 (2502.03373); TRL's `get_repetition_penalty_reward(ngram_size, max_penalty)`.
///
/// ```
/// use salsa_algo::rules::repetition::repetition_penalty;
/// assert_eq!(repetition_penalty(&[1, 2, 3, 4], 2, -1.0), 0.0);
/// assert_eq!(repetition_penalty(&[5, 5, 5, 5, 5], 2, -1.0), -0.75); // four pairs, one different
/// ```
///
/// # Panics
/// If `ngram` is 0, or `max_penalty` above 0.
pub fn repetition_penalty(tokens: &[u32], ngram: usize, max_penalty: f64) -> f64 {
    assert!(ngram > 0, "n-grams of at least one token");
    assert!(max_penalty <= 0.0, "a penalty of at most 0");
    // Only the number of different n-grams counts, never their order in the set.
    let different = tokens.windows(ngram).collect::<HashSet<_>>().len();
    let all = (tokens.len() + 1).saturating_sub(ngram);
    if different == all { 0.0 } else { (1.0 - different as f64 / all as f64) * max_penalty }
}
