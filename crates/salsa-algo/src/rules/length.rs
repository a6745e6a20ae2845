//! Rewards of the length of a response, in tokens.

/// The penalty of a response that comes near the limit, or beyond it.
///
/// ```text
/// 0                                 length <= limit - cache
/// (limit - cache - length) / cache  limit - cache < length <= limit
/// -1                                limit < length
/// ```
///
/// Source: eq. 13 of DAPO (Yu et al. 2025, 2503.14476); TRL's `get_soft_overlong_punishment(max_completion_len,
/// soft_punish_cache)`. With a cache of 0 only what is beyond the limit is penalised.
///
/// ```
/// use salsa_algo::rules::length::soft_overlong_punishment;
/// let punishment = |length| soft_overlong_punishment(length, 100, 20);
/// assert_eq!([80, 90, 100, 101].map(punishment), [0.0, -0.5, -1.0, -1.0]);
/// ```
pub fn soft_overlong_punishment(length: usize, limit: usize, cache: usize) -> f64 {
    // In f64, so that a cache above the limit is a start below 0, as in TRL.
    let (length, limit, cache) = (length as f64, limit as f64, cache as f64);
    if length <= limit - cache {
        0.0
    } else if length <= limit {
        (limit - cache - length) / cache
    } else {
        -1.0
    }
}

/// The distance to a wanted length: `-|length - target| / target`, at least -1.
///
/// ```
/// use salsa_algo::rules::length::target_length;
/// assert_eq!([200, 150, 300, 900].map(|length| target_length(length, 200)), [0.0, -0.25, -0.5, -1.0]);
/// ```
///
/// # Panics
/// If the target is 0.
pub fn target_length(length: usize, target: usize) -> f64 {
    assert!(target > 0, "a target of at least one token");
    match length.abs_diff(target) {
        0 => 0.0,
        distance => (-(distance as f64) / target as f64).max(-1.0),
    }
}

/// A reward for correctness that the length scales along half a cosine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CosineScaled {
    /// The length, in tokens, from which on the reward stays what it is.
    pub max_length: usize,
    /// Of a wrong response without any token.
    pub min_wrong: f64,
    /// Of a wrong response of the greatest length.
    pub max_wrong: f64,
    /// Of a correct response of the greatest length.
    pub min_correct: f64,
    /// Of a correct response without any token.
    pub max_correct: f64,
}

impl CosineScaled {
    /// TRL's defaults: -1 to -0.5 for wrong responses, 1 to 0.5 for correct ones.
    pub const fn new(max_length: usize) -> CosineScaled {
        CosineScaled { max_length, min_wrong: -1.0, max_wrong: -0.5, min_correct: 0.5, max_correct: 1.0 }
    }

    /// Returns the reward of a correct response: the shorter, the higher.
    ///
    /// ```text
    /// low + (high - low) / 2 * (1 + cos(pi * min(length / max_length, 1)))
    /// ```
    ///
    /// with `min_correct` and `max_correct`. Source: appendix C.1 of Yeo et al. 2025 (2502.03373); TRL's
    /// `get_cosine_scaled_reward`.
    ///
    /// ```
    /// use salsa_algo::rules::length::CosineScaled;
    /// let scaled = CosineScaled::new(100);
    /// assert_eq!([0, 50, 100, 500].map(|length| scaled.correct(length)), [1.0, 0.75, 0.5, 0.5]);
    /// assert_eq!([0, 50, 100, 500].map(|length| scaled.wrong(length)), [-1.0, -0.75, -0.5, -0.5]);
    /// ```
    ///
    /// # Panics
    /// If `max_length` is 0.
    pub fn correct(&self, length: usize) -> f64 {
        self.between(self.min_correct, self.max_correct, length)
    }

    /// Returns the reward of a wrong response: the longer, the higher. As [`CosineScaled::correct`], with `max_wrong`
    /// as the low end and `min_wrong` as the high one.
    ///
    /// # Panics
    /// If `max_length` is 0.
    pub fn wrong(&self, length: usize) -> f64 {
        self.between(self.max_wrong, self.min_wrong, length)
    }

    fn between(&self, low: f64, high: f64, length: usize) -> f64 {
        assert!(self.max_length > 0, "a length of at least one token");
        let progress = (length as f64 / self.max_length as f64).min(1.0);
        low + 0.5 * (high - low) * (1.0 + (progress * std::f64::consts::PI).cos())
    }
}
