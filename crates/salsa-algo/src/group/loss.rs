//! The loss of group methods: a clipped policy gradient and a KL penalty.

use crate::kl::{KlEstimator, kl, kl_gradient, ratio};

/// How the losses of tokens become one number; TRL's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum LossType {
    /// The mean over responses of the mean over tokens: a token of a long response counts less.
    Grpo,
    /// The mean over the tokens of the minibatch.
    Bnpo,
    /// The sum over tokens, divided by the number of responses and by their maximum length (Dr. GRPO).
    DrGrpo,
    /// The mean over the tokens of the whole batch, of which the minibatch is a part (DAPO).
    #[default]
    Dapo,
}

/// What a probability ratio is taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ImportanceLevel {
    /// Each token has its ratio.
    #[default]
    Token,
    /// A response has one ratio, the geometric mean of those of its tokens (GSPO).
    Sequence,
    /// A response has one ratio, the product of those of its tokens: that of its probabilities (RLOO).
    Product,
}

/// A KL penalty in the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlPenalty {
    /// Its coefficient.
    pub beta: f64,
    /// The estimator, whose derivative is taken: of k3 and k2 it points to the reference; that of k1 is 1 for every
    /// token, so its expectation is 0.
    pub estimator: KlEstimator,
}

/// The constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How the losses of tokens become one number.
    pub loss_type: LossType,
    /// What a ratio is taken over.
    pub level: ImportanceLevel,
    /// How far a ratio may fall below 1 before the gain is clipped (`epsilon`; .2).
    pub clip_low: f64,
    /// How far a ratio may rise above 1 before the gain is clipped (`epsilon_high`; DAPO: .28).
    pub clip_high: f64,
    /// Upper limit of the ratio where the advantage is negative (`delta`); infinity for none.
    pub ratio_limit: f64,
    /// The KL penalty; none where the KL is in the rewards, or there is no reference.
    pub penalty: Option<KlPenalty>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            loss_type: LossType::default(),
            level: ImportanceLevel::default(),
            clip_low: 0.2,
            clip_high: 0.2,
            ratio_limit: f64::INFINITY,
            penalty: None,
        }
    }
}

/// The denominators of a minibatch's means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Denominators {
    /// Responses of the minibatch, those that do not count included.
    pub responses: usize,
    /// Counted tokens: for [`LossType::Dapo`] those of the whole batch, times the minibatch's share of its responses;
    /// otherwise those of the minibatch.
    pub tokens: f64,
    /// Maximum length of a response.
    pub longest: usize,
}

/// The inputs of one micro-batch. Per-token numbers are concatenated, response after response.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Log-prob of each token under the policy being trained.
    pub logprobs: &'a [f64],
    /// Log-prob of each token when it was sampled.
    pub old_logprobs: &'a [f64],
    /// The models of the reference, each with its weight in the penalty and the log-prob of each token; read only with a
    /// penalty.
    pub references: &'a [(f64, &'a [f64])],
    /// Tokens of each response.
    pub lengths: &'a [usize],
    /// Advantage of each token. Most methods give all tokens of a response the same.
    pub advantages: &'a [f64],
    /// Whether each response counts; one that does not has loss 0 (a truncated response may be excluded).
    pub counted: &'a [bool],
}

/// The loss of one micro-batch, with its derivative.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// This micro-batch's share of the minibatch's loss.
    pub loss: f64,
    /// Derivative of `loss` by each log-prob.
    pub d_logprobs: Vec<f64>,
    /// Share of the loss without the penalty.
    pub policy_loss: f64,
    /// Statistics, as shares of means over the minibatch's counted tokens.
    pub stats: ClipStats,
}

/// How far the policy has moved; each field is a share of a mean over [`Denominators::tokens`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClipStats {
    /// Tokens with a negative advantage whose gain was clipped (`clip_ratio/low_mean`).
    pub clipped_low: f64,
    /// Tokens with a positive advantage whose gain was clipped (`clip_ratio/high_mean`).
    pub clipped_high: f64,
    /// Mean of the ratios.
    pub ratio: f64,
    /// Mean of `(logprob - old_logprob)^2 / 2`.
    pub approx_kl: f64,
    /// Mean of the penalty's KL estimate; 0 without a penalty.
    pub kl: f64,
}

impl ClipStats {
    /// Adds the shares of another micro-batch of the same minibatch.
    pub fn add(&mut self, other: &ClipStats) {
        self.clipped_low += other.clipped_low;
        self.clipped_high += other.clipped_high;
        self.ratio += other.ratio;
        self.approx_kl += other.approx_kl;
        self.kl += other.kl;
    }
}

/// Returns one micro-batch's share of the loss, with its derivative.
///
/// ```text
/// x_t      = logprob - old_logprob
/// ratio    = exp(x_t); at level Sequence exp(mean of x_t over the response), at level Product exp(sum of x_t)
/// KL_t     = sum over the references of weight * KL of the token
/// gain_t   = min(min(ratio, ratio_limit) * A_t, clip(ratio, 1 - clip_low, 1 + clip_high) * A_t)
/// loss     = sum w * (-gain_t + beta * KL_t)
///
/// w        Grpo    1 / (responses * tokens of the response)
///          Bnpo    1 / tokens
///          DrGrpo  1 / (responses * longest)
///          Dapo    1 / tokens
/// ```
///
/// Log-ratios are capped at 20 before `exp`. Source: Shao et al. 2024 (2402.03300), Liu et al. 2025 (2503.20783, Dr.
/// GRPO), Yu et al. 2025 (2503.14476, DAPO), Zheng et al. 2025 (2507.18071, GSPO); arithmetic as in TRL's
/// `GRPOTrainer` and (level Product with type Grpo) `RLOOTrainer`. TRL's `bnpo` is the mean over the tokens of one pass
/// of a device, here over those of the minibatch.
///
/// ```
/// use salsa_algo::group::{Batch, Denominators, LossType, Settings, loss};
/// let batch = Batch {
///     logprobs: &[-1.0, -1.0, -2.0], old_logprobs: &[-1.0, -1.0, -2.0], references: &[],
///     lengths: &[2, 1], advantages: &[1.0, 1.0, -1.0], counted: &[true, true],
/// };
/// let denominators = Denominators { responses: 2, tokens: 3.0, longest: 4 };
/// let grpo = loss(&batch, &Settings { loss_type: LossType::Grpo, ..Settings::default() }, denominators);
/// assert_eq!(grpo.d_logprobs, [-0.25, -0.25, 0.5]); // ratio 1: -A / (2 * tokens)
/// let dr = loss(&batch, &Settings { loss_type: LossType::DrGrpo, ..Settings::default() }, denominators);
/// assert_eq!(dr.d_logprobs, [-0.125, -0.125, 0.125]); // -A / (2 * 4)
/// ```
///
/// # Panics
/// If lengths differ.
pub fn loss(batch: &Batch, settings: &Settings, denominators: Denominators) -> Loss {
    let tokens: usize = batch.lengths.iter().sum();
    assert_eq!(batch.logprobs.len(), tokens, "as many log-probs as tokens");
    assert_eq!(batch.old_logprobs.len(), tokens, "one old log-prob per log-prob");
    assert_eq!(batch.advantages.len(), tokens, "one advantage per token");
    assert_eq!(batch.counted.len(), batch.lengths.len(), "one mark per response");
    for (_, logprobs) in batch.references {
        assert_eq!(logprobs.len(), tokens, "one reference log-prob per log-prob");
    }
    let mut all =
        Loss { loss: 0.0, d_logprobs: Vec::with_capacity(tokens), policy_loss: 0.0, stats: ClipStats::default() };
    let mut start = 0;
    for (&length, &counted) in batch.lengths.iter().zip(batch.counted) {
        let range = start..start + length;
        start += length;
        if !counted {
            all.d_logprobs.extend(range.map(|_| 0.0));
            continue;
        }
        let response = Response {
            logprobs: &batch.logprobs[range.clone()],
            old_logprobs: &batch.old_logprobs[range.clone()],
            references: batch.references,
            first: range.start,
            advantages: &batch.advantages[range],
        };
        response.add_to(&mut all, settings, denominators);
    }
    all.loss += all.policy_loss;
    all
}

struct Response<'a> {
    logprobs: &'a [f64],
    old_logprobs: &'a [f64],
    references: &'a [(f64, &'a [f64])],
    /// Index of its first token in the references.
    first: usize,
    advantages: &'a [f64],
}

impl Response<'_> {
    /// Adds this response; `all.loss` gets the penalty alone.
    fn add_to(&self, all: &mut Loss, settings: &Settings, denominators: Denominators) {
        let length = self.logprobs.len();
        let responses = denominators.responses.max(1) as f64;
        let per_token = 1.0 / denominators.tokens.max(1.0);
        let weight = match settings.loss_type {
            LossType::Grpo => 1.0 / (responses * length.max(1) as f64),
            LossType::Bnpo | LossType::Dapo => per_token,
            LossType::DrGrpo => 1.0 / (responses * denominators.longest.max(1) as f64),
        };
        let moved = || self.logprobs.iter().zip(self.old_logprobs).map(|(new, old)| new - old);
        let sum = moved().sum::<f64>();
        // `share`: how the logarithm of the ratio that all tokens have grows with the log-prob of one.
        let of_response = match settings.level {
            ImportanceLevel::Token => None,
            ImportanceLevel::Sequence => Some((ratio(sum / length.max(1) as f64), 1.0 / length.max(1) as f64)),
            ImportanceLevel::Product => Some((ratio(sum), 1.0)),
        };
        // Every token moves the common ratio, and by it the gains of all.
        let of_all = of_response.map(|(ratio, share)| {
            share * self.advantages.iter().map(|&advantage| gain(ratio, advantage, settings).1).sum::<f64>()
        });
        for (t, moved) in moved().enumerate() {
            let (ratio, advantage) = (of_response.map_or_else(|| ratio(moved), |(ratio, _)| ratio), self.advantages[t]);
            let (gain, derivative) = gain(ratio, advantage, settings);
            all.policy_loss -= weight * gain;
            let mut d_logprob = -weight * of_all.unwrap_or(derivative);
            let stats = &mut all.stats;
            if let Some(KlPenalty { beta, estimator }) = settings.penalty {
                for (share, logprobs) in self.references {
                    let (own, reference) = (self.logprobs[t], logprobs[self.first + t]);
                    let kl = share * kl(estimator, own, reference);
                    all.loss += weight * beta * kl;
                    d_logprob += weight * beta * share * kl_gradient(estimator, own, reference);
                    stats.kl += per_token * kl;
                }
            }
            all.d_logprobs.push(d_logprob);
            let low = ratio < 1.0 - settings.clip_low && advantage < 0.0;
            let high = ratio > 1.0 + settings.clip_high && advantage > 0.0;
            stats.clipped_low += per_token * f64::from(u8::from(low));
            stats.clipped_high += per_token * f64::from(u8::from(high));
            stats.ratio += per_token * ratio;
            stats.approx_kl += per_token * 0.5 * moved * moved;
        }
    }
}

/// The gain of a token, and its derivative by the logarithm of the ratio.
fn gain(ratio: f64, advantage: f64, settings: &Settings) -> (f64, f64) {
    let limited = if ratio > settings.ratio_limit { settings.ratio_limit } else { ratio } * advantage;
    let clipped = ratio.max(1.0 - settings.clip_low).min(1.0 + settings.clip_high) * advantage;
    if clipped < limited { (clipped, 0.0) } else { (limited, if ratio > settings.ratio_limit { 0.0 } else { limited }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, gradient};
    use crate::random::uniform;

    const TYPES: [LossType; 4] = [LossType::Grpo, LossType::Bnpo, LossType::DrGrpo, LossType::Dapo];
    const LEVELS: [ImportanceLevel; 3] = [ImportanceLevel::Token, ImportanceLevel::Sequence, ImportanceLevel::Product];
    const LENGTHS: [usize; 4] = [3, 1, 5, 2];

    fn noise(stream: u64, n: u64) -> Vec<f64> {
        (0..n).map(|i| uniform(5, stream, i) * 2.0 - 1.0).collect()
    }

    /// Old, new and reference log-probs, and advantages, of the tokens of four responses.
    fn case(seed: u64) -> [Vec<f64>; 4] {
        let old: Vec<f64> = noise(seed, 11).iter().map(|x| x - 1.5).collect();
        let new = old.iter().zip(noise(seed + 1, 11)).map(|(old, x)| old + 0.5 * x).collect();
        let reference = old.iter().zip(noise(seed + 2, 11)).map(|(old, x)| old + 0.5 * x).collect();
        [old, new, reference, noise(seed + 3, 11)]
    }

    fn settings(loss_type: LossType, level: ImportanceLevel) -> Settings {
        let penalty = Some(KlPenalty { beta: 0.3, estimator: KlEstimator::K3 });
        Settings { loss_type, level, clip_low: 0.1, clip_high: 0.2, ratio_limit: 1.4, penalty }
    }

    const WHOLE: Denominators = Denominators { responses: 5, tokens: 13.0, longest: 7 };

    #[test]
    fn derivatives_of_every_kind() {
        for seed in 0..8 {
            let [old, new, reference, advantages] = case(10 * seed);
            for loss_type in TYPES {
                for level in LEVELS {
                    for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
                        let settings = Settings {
                            penalty: Some(KlPenalty { beta: 0.3, estimator }),
                            ..settings(loss_type, level)
                        };
                        let at = |x: &[f64]| {
                            let counted = &[true, true, true, seed % 2 == 0];
                            let batch = Batch {
                                logprobs: x,
                                old_logprobs: &old,
                                references: &[(0.75, &reference), (0.25, &old)],
                                lengths: &LENGTHS,
                                advantages: &advantages,
                                counted,
                            };
                            loss(&batch, &settings, WHOLE)
                        };
                        let expected = gradient(|x| at(x).loss, &new);
                        assert_close(&at(&new).d_logprobs, &expected, 1e-8);
                    }
                }
            }
        }
    }

    #[test]
    fn micro_batches_add_up_to_the_minibatch() {
        let [old, new, reference, advantages] = case(3);
        for loss_type in TYPES {
            for level in LEVELS {
                let part = |responses: std::ops::Range<usize>| {
                    let start: usize = LENGTHS[..responses.start].iter().sum();
                    let tokens = start..start + LENGTHS[responses.clone()].iter().sum::<usize>();
                    let batch = Batch {
                        logprobs: &new[tokens.clone()],
                        old_logprobs: &old[tokens.clone()],
                        references: &[(0.75, &reference[tokens.clone()]), (0.25, &old[tokens.clone()])],
                        lengths: &LENGTHS[responses.clone()],
                        advantages: &advantages[tokens],
                        counted: &[true; 4][responses],
                    };
                    loss(&batch, &settings(loss_type, level), WHOLE)
                };
                let (whole, a, b) = (part(0..4), part(0..1), part(1..4));
                assert_close(
                    &[a.loss + b.loss, a.policy_loss + b.policy_loss],
                    &[whole.loss, whole.policy_loss],
                    1e-14,
                );
                assert_close(&[a.d_logprobs, b.d_logprobs].concat(), &whole.d_logprobs, 0.0);
                let (mut sum, whole) = (a.stats, whole.stats);
                sum.add(&b.stats);
                assert_close(&[sum.ratio, sum.kl, sum.approx_kl], &[whole.ratio, whole.kl, whole.approx_kl], 1e-14);
            }
        }
    }

    /// Ratio 2 and 1/2 with advantages of both signs.
    #[test]
    fn clipping_by_hand() {
        let ln2 = std::f64::consts::LN_2;
        let table = [
            // moved, advantage, loss, derivative, clipped low, clipped high
            (ln2, 1.0, -1.3, 0.0, 0.0, 1.0),   // gain beyond the upper clip: cut off
            (ln2, -1.0, 2.0, 2.0, 0.0, 0.0),   // loss: kept
            (-ln2, 1.0, -0.5, -0.5, 0.0, 0.0), // loss: kept
            (-ln2, -1.0, 0.8, 0.0, 1.0, 0.0),  // gain beyond the lower clip: cut off
        ];
        for (moved, advantage, expected, derivative, low, high) in table {
            let batch = Batch {
                logprobs: &[moved],
                old_logprobs: &[0.0],
                references: &[],
                lengths: &[1],
                advantages: &[advantage],
                counted: &[true],
            };
            let settings = Settings { clip_high: 0.3, ..Settings::default() };
            let one = Denominators { responses: 1, tokens: 1.0, longest: 1 };
            let found = loss(&batch, &settings, one);
            let stats = found.stats;
            assert_close(&[found.loss, found.d_logprobs[0]], &[expected, derivative], 1e-15);
            assert_close(&[stats.clipped_low, stats.clipped_high], &[low, high], 0.0);
            let limited = loss(&batch, &Settings { ratio_limit: 1.5, ..settings }, one);
            let expected = if moved > 0.0 && advantage < 0.0 { (1.5, 0.0) } else { (found.loss, found.d_logprobs[0]) };
            assert_eq!((limited.loss, limited.d_logprobs[0]), expected, "a limit on both sides");
        }
    }

    #[test]
    fn the_ratio_of_a_sequence_is_the_geometric_mean() {
        let batch = Batch {
            logprobs: &[-0.9, -1.9],
            old_logprobs: &[-1.0, -2.2],
            references: &[],
            lengths: &[2],
            advantages: &[-2.0, -2.0],
            counted: &[true],
        };
        let settings = Settings { loss_type: LossType::Grpo, level: ImportanceLevel::Sequence, ..Settings::default() };
        let found = loss(&batch, &settings, Denominators { responses: 1, tokens: 2.0, longest: 2 });
        let ratio = 0.2f64.exp(); // mean of .1 and .3
        assert_close(&[found.loss, found.stats.ratio], &[2.0 * ratio, ratio], 1e-15);
        assert_close(&found.d_logprobs, &[ratio, ratio], 1e-15);
    }

    #[test]
    fn what_does_not_count_has_no_loss_and_no_gradient() {
        let [old, new, reference, advantages] = case(7);
        let references: [(f64, &[f64]); 2] = [(0.75, &reference), (0.25, &old)];
        let batch = |counted| Batch {
            logprobs: &new,
            old_logprobs: &old,
            references: &references,
            lengths: &LENGTHS,
            advantages: &advantages,
            counted,
        };
        let none = loss(&batch(&[false; 4]), &settings(LossType::Grpo, ImportanceLevel::Token), WHOLE);
        assert_eq!((none.loss, none.d_logprobs, none.stats), (0.0, vec![0.0; 11], ClipStats::default()));
        let some = loss(&batch(&[true, false, true, true]), &settings(LossType::Dapo, ImportanceLevel::Token), WHOLE);
        assert!(some.d_logprobs[3] == 0.0 && some.d_logprobs[4] != 0.0);
    }

    #[test]
    fn a_runaway_token_stays_finite_and_nan_stays_nan() {
        let batch = |new| Batch {
            logprobs: new,
            old_logprobs: &[0.0],
            references: &[],
            lengths: &[1],
            advantages: &[-1.0],
            counted: &[true],
        };
        let one = Denominators { responses: 1, tokens: 1.0, longest: 1 };
        for level in LEVELS {
            let settings = Settings { level, ..Settings::default() };
            assert_eq!(loss(&batch(&[800.0]), &settings, one).loss, 20f64.exp());
            assert!(loss(&batch(&[f64::NAN]), &settings, one).loss.is_nan());
        }
    }

    #[test]
    #[should_panic(expected = "one advantage per token")]
    fn lengths_must_agree() {
        let batch = Batch {
            logprobs: &[0.0],
            old_logprobs: &[0.0],
            references: &[],
            lengths: &[1],
            advantages: &[],
            counted: &[true],
        };
        loss(&batch, &Settings::default(), WHOLE);
    }
}
