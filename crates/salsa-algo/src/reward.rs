//! Computes one reward per slot from one score per response and one KL per token.

/// Where in a response its score is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ScorePosition {
    /// On the last token.
    #[default]
    LastToken,
    /// One slot after the end token.
    AfterEos,
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its last token is the end-of-sequence token.
    Eos,
    /// It was cut off, for instance at the length limit.
    Cut,
}

/// Returns the number of slots of a response: its tokens, and one more if the score goes after EOS.
///
/// OpenRLHF, veRL, NeMo RL and TRL up to 0.11 add the score to the last token; TRL from 0.12 and torchtune one slot after
/// EOS. That slot has no token and no KL, but a value: the critic read at EOS. A response without EOS has no such slot and
/// takes the score on its last token. TRL pads a batch to its longest response; a response that fills that length takes
/// the score on its last token even if that is EOS. To repeat this, treat that response as [`Ending::Cut`].
///
/// Values, rewards, raw advantages and returns have this length; log-probs, KLs and the advantages of the policy loss
/// have the length `tokens`. The score is always added to the last slot.
///
/// ```
/// use salsa_algo::reward::{Ending, ScorePosition, slots};
/// assert_eq!(slots(ScorePosition::LastToken, 3, Ending::Eos), 3);
/// assert_eq!(slots(ScorePosition::AfterEos, 3, Ending::Eos), 4);
/// assert_eq!(slots(ScorePosition::AfterEos, 3, Ending::Cut), 3);
/// ```
pub fn slots(at: ScorePosition, tokens: usize, ending: Ending) -> usize {
    match (at, ending) {
        (ScorePosition::AfterEos, Ending::Eos) => tokens + 1,
        (ScorePosition::AfterEos, Ending::Cut) | (ScorePosition::LastToken, _) => tokens,
    }
}

/// Treatment of the score of a response that does not end with EOS.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum MissingEos {
    /// Unchanged.
    #[default]
    Keep,
    /// This much is subtracted (TRL's `missing_eos_penalty`, usually 1).
    Subtract(f64),
}

/// Processing of the reward model's score before it becomes a reward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreRule {
    /// Scores are clipped to `[-clip, clip]`; infinity (the default) disables clipping.
    pub clip: f64,
    /// The penalty for a missing EOS. Applied after clipping, so that clipping cannot hide it.
    pub missing_eos: MissingEos,
}

impl Default for ScoreRule {
    fn default() -> Self {
        ScoreRule { clip: f64::INFINITY, missing_eos: MissingEos::Keep }
    }
}

impl ScoreRule {
    /// Returns the processed score.
    ///
    /// ```text
    /// clipped = max(-clip, min(clip, score))
    /// Keep: clipped      Subtract(p): clipped - p without EOS
    /// ```
    ///
    /// ```
    /// use salsa_algo::reward::{Ending, MissingEos, ScoreRule};
    /// let rule = ScoreRule { clip: 5.0, missing_eos: MissingEos::Subtract(1.0) };
    /// assert_eq!(rule.apply(7.0, Ending::Eos), 5.0);
    /// assert_eq!(rule.apply(7.0, Ending::Cut), 4.0);
    /// ```
    pub fn apply(&self, score: f64, ending: Ending) -> f64 {
        let clipped = if score > self.clip {
            self.clip
        } else if score < -self.clip {
            -self.clip
        } else {
            score
        };
        match (ending, self.missing_eos) {
            (Ending::Eos, _) | (Ending::Cut, MissingEos::Keep) => clipped,
            (Ending::Cut, MissingEos::Subtract(penalty)) => clipped - penalty,
        }
    }
}

/// Returns the reward of every slot of a response: the KL penalty on each token, the score on the last slot.
///
/// ```text
/// reward[t] = -beta * kl[t]   (0 behind the last token)   + score if t is the last slot
/// ```
///
/// `kl` has one entry per token (see [`crate::kl::kls`]), `slots` comes from [`slots()`], the result has `slots`
/// entries. A response without slots has no rewards, and its score is dropped. To whiten rewards over a batch,
/// concatenate them and use [`crate::whiten::whiten`] with the mean kept.
/// Source: Ziegler et al. 2019 (1909.08593), equation 2, spread over the tokens as in Stiennon et al. 2020 (2009.01325).
///
/// ```
/// use salsa_algo::reward::rewards;
/// assert_eq!(rewards(0.5, &[0.5, -0.25], 2.0, 2), [-0.25, 2.125]); // last token
/// assert_eq!(rewards(0.5, &[0.5, -0.25], 2.0, 3), [-0.25, 0.125, 2.0]); // after EOS
/// ```
///
/// # Panics
/// If `slots` is neither the number of tokens nor one more.
pub fn rewards(beta: f64, kl: &[f64], score: f64, slots: usize) -> Vec<f64> {
    assert!(
        slots == kl.len() || slots == kl.len() + 1,
        "{slots} slots do not fit {} tokens: as many, or one more after EOS",
        kl.len()
    );
    let mut rewards: Vec<f64> = kl.iter().map(|kl| -beta * kl).collect();
    rewards.resize(slots, 0.0);
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    rewards
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_close;

    #[test]
    fn pencil_rewards() {
        assert_close(&rewards(0.05, &[0.2, -0.1, 0.1], 1.5, 4), &[-0.01, 0.005, -0.005, 1.5], 1e-15);
        assert_close(&rewards(0.05, &[0.2, -0.1, 0.1], 1.5, 3), &[-0.01, 0.005, 1.495], 1e-15);
    }

    #[test]
    fn the_undiscounted_return_is_score_minus_beta_kl_wherever_the_score_sits() {
        let kl = [0.3, -0.2, 0.7, 0.1];
        for slots in [4, 5] {
            let total: f64 = rewards(0.2, &kl, -1.25, slots).iter().sum();
            assert!((total - (-1.25 - 0.2 * 0.9)).abs() < 1e-15);
        }
    }

    #[test]
    fn empty_responses_are_harmless() {
        assert!(rewards(0.1, &[], 3.0, 0).is_empty());
        assert_eq!(rewards(0.1, &[], 3.0, 1), [3.0]);
        assert_eq!(slots(ScorePosition::LastToken, 0, Ending::Cut), 0);
    }

    #[test]
    #[should_panic(expected = "5 slots do not fit 3 tokens")]
    fn slots_must_fit() {
        rewards(0.1, &[0.0; 3], 0.0, 5);
    }

    #[test]
    #[should_panic(expected = "2 slots do not fit 3 tokens")]
    fn too_few_slots() {
        rewards(0.1, &[0.0; 3], 0.0, 2);
    }

    #[test]
    fn every_missing_eos_rule() {
        use Ending::*;
        use MissingEos::*;
        for (missing_eos, with, without) in [(Keep, 2.0, 2.0), (Subtract(0.5), 2.0, 1.5)] {
            let rule = ScoreRule { clip: 2.0, missing_eos };
            assert_eq!([rule.apply(9.0, Eos), rule.apply(9.0, Cut)], [with, without]);
        }
        let rule = ScoreRule { clip: 2.0, missing_eos: Subtract(1.0) };
        assert_eq!([rule.apply(-9.0, Eos), rule.apply(-9.0, Cut)], [-2.0, -3.0]);
        assert_eq!(rule.apply(-1.5, Eos), -1.5);
        assert!(rule.apply(f64::NAN, Eos).is_nan());
        assert_eq!(ScoreRule::default().apply(1e300, Cut), 1e300);
        assert_eq!(ScoreRule::default().apply(-1e300, Cut), -1e300);
    }
}
