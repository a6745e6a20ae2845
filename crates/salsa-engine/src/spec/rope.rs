//! Rotary positions: frequencies and their scaling.

/// Rotary positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies: `theta^(-2i / dim)`.
    pub theta: f64,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

/// Scaling of rotary frequencies for contexts longer than in pretraining, as transformers computes it.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All divided by `factor`.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, those between interpolated.
    Llama3 {
        /// Scaling of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are short.
        high_freq_factor: f64,
        /// The context before scaling.
        original_max_positions: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): as Llama 3.1, between pairs that turn `beta_fast` and `beta_slow`
    /// times in the original context; queries and keys are also multiplied by `attention_factor`.
    Yarn {
        /// Scaling of the slow pairs.
        factor: f64,
        /// Pairs that turn more often are kept.
        beta_fast: f64,
        /// Pairs that turn less often are scaled.
        beta_slow: f64,
        /// The factor of rotated queries and keys.
        attention_factor: f64,
        /// The context before scaling.
        original_max_positions: usize,
        /// Whether the ends of the interpolation are whole pairs.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024, arXiv 2402.13753): each pair divided by a factor of its own, another one in
    /// sequences longer than the original context; queries and keys are multiplied by `attention_factor`.
    LongRope {
        /// The divisors up to the original context, one for each pair.
        short: Vec<f64>,
        /// The divisors in longer sequences.
        long: Vec<f64>,
        /// The factor of rotated queries and keys.
        attention_factor: f64,
        /// The context before scaling.
        original_max_positions: usize,
    },
    /// Dynamic NTK: in sequences longer than the original context, `theta` grows with the length.
    Dynamic {
        /// How fast.
        factor: f64,
        /// The context before scaling.
        original_max_positions: usize,
    },
}

impl Rope {
    /// The first violated relation, for heads of which `dim` numbers are rotated.
    pub(super) fn validate(&self, dim: usize) -> Result<(), String> {
        if !(self.theta.is_finite() && self.theta > 0.0) {
            return Err(format!("rope_theta {} is not a positive number", self.theta));
        }
        match &self.scaling {
            RopeScaling::LongRope { short, long, .. } => {
                for (name, factors) in [("short_factor", short), ("long_factor", long)] {
                    if factors.len() != dim / 2 {
                        return Err(format!("{name} has {} numbers, but {} pairs turn", factors.len(), dim / 2));
                    }
                }
                Ok(())
            }
            RopeScaling::Dynamic { .. } if dim < 4 => Err("dynamic scaling needs two pairs that turn".into()),
            RopeScaling::Yarn { .. } if self.theta == 1.0 => Err("yarn needs a rope_theta above 1".into()),
            _ => Ok(()),
        }
    }

    /// Which frequencies a sequence of `length` tokens has: sequences of one regime have the same.
    pub(crate) fn regime(&self, length: usize) -> usize {
        match self.scaling {
            RopeScaling::LongRope { original_max_positions, .. } => usize::from(length > original_max_positions),
            RopeScaling::Dynamic { original_max_positions, .. } if length > original_max_positions => length,
            _ => 0,
        }
    }

    /// Whether all sequences have the same frequencies.
    pub(crate) fn is_fixed(&self) -> bool {
        !matches!(self.scaling, RopeScaling::LongRope { .. } | RopeScaling::Dynamic { .. })
    }

    /// Rotated queries and keys are multiplied by this.
    pub(crate) fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }

    /// The angle per position of each pair in a [`Rope::regime`], in f32 as transformers computes them.
    pub(crate) fn frequencies(&self, dim: usize, regime: usize) -> Vec<f32> {
        let powers = |theta: f64| (0..dim / 2).map(move |i| (theta as f32).powf(2.0 * i as f32 / dim as f32));
        let base = |theta: f64| powers(theta).map(|power| 1.0 / power);
        match &self.scaling {
            RopeScaling::None => base(self.theta).collect(),
            RopeScaling::Linear { factor } => base(self.theta).map(|f| f / *factor as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let context = *original_max_positions as f64;
                let stretch = |frequency: f32| {
                    let frequency = f64::from(frequency);
                    let wavelength = std::f64::consts::TAU / frequency;
                    let stretched = if wavelength < context / high_freq_factor {
                        frequency
                    } else if wavelength > context / low_freq_factor {
                        frequency / factor
                    } else {
                        let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    };
                    stretched as f32
                };
                base(self.theta).map(stretch).collect()
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, truncate, .. } => {
                let ends = [*beta_fast, *beta_slow].map(|turns| self.pair(turns, dim, *original_max_positions));
                let [low, high] = if *truncate { [ends[0].floor(), ends[1].ceil()] } else { ends };
                let [low, high] = [low.max(0.0), high.min(dim as f64 - 1.0)];
                let high = if low == high { high + 0.001 } else { high };
                let blend = |(i, power): (usize, f32)| {
                    let kept = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                    1.0 / (*factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
                };
                powers(self.theta).enumerate().map(blend).collect()
            }
            RopeScaling::LongRope { short, long, .. } => {
                let divisors = if regime == 0 { short } else { long };
                powers(self.theta).zip(divisors).map(|(power, divisor)| 1.0 / (*divisor as f32 * power)).collect()
            }
            RopeScaling::Dynamic { .. } if regime == 0 => base(self.theta).collect(),
            RopeScaling::Dynamic { factor, original_max_positions } => {
                let grown = factor * regime as f64 / *original_max_positions as f64 - (factor - 1.0);
                base(self.theta * grown.powf(dim as f64 / (dim as f64 - 2.0))).collect()
            }
        }
    }

    /// The (fractional) pair that turns `turns` times in `context` positions.
    fn pair(&self, turns: f64, dim: usize, context: usize) -> f64 {
        dim as f64 * (context as f64 / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THETA: f64 = 10_000.0;

    #[test]
    fn llama3_scaling_keeps_short_waves_and_stretches_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 64,
        };
        let plain = Rope { theta: THETA, scaling: RopeScaling::None }.frequencies(64, 0);
        let scaled = Rope { theta: THETA, scaling }.frequencies(64, 0);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[31], plain[31] / 8.0);
        assert!(scaled.iter().zip(&plain).all(|(s, p)| s <= p && *s >= p / 8.0));
        assert_eq!(plain[16], 0.01);
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_scales_slow_ones() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.25,
            original_max_positions: 4096,
            truncate: true,
        };
        let plain = Rope { theta: THETA, scaling: RopeScaling::None }.frequencies(128, 0);
        let yarn = Rope { theta: THETA, scaling };
        let scaled = yarn.frequencies(128, 0);
        // 4096 positions: pair 20.9 turns 32 times, pair 45.03 once; the ends of the interpolation are 20 and 46.
        assert!(scaled[..=20] == plain[..=20] && scaled[21] < plain[21]);
        assert!((46..64).all(|i| (scaled[i] * 4.0 / plain[i] - 1.0).abs() < 1e-6) && scaled[45] * 4.0 > plain[45]);
        assert!((scaled[33] / plain[33] - 0.625).abs() < 1e-6, "half way between 1 and 1/4");
        assert_eq!(yarn.attention_factor(), 1.25);
    }

    #[test]
    fn regimes_follow_the_length() {
        let long = RopeScaling::LongRope {
            short: vec![1.0, 2.0],
            long: vec![4.0, 8.0],
            attention_factor: 1.5,
            original_max_positions: 10,
        };
        let long = Rope { theta: THETA, scaling: long };
        assert_eq!([1, 10, 11, 500].map(|length| long.regime(length)), [0, 0, 1, 1]);
        assert_eq!(long.frequencies(4, 0), [1.0, 0.005]);
        assert_eq!(long.frequencies(4, 1), [0.25, 0.00125]);
        let dynamic = Rope { theta: 100.0, scaling: RopeScaling::Dynamic { factor: 2.0, original_max_positions: 10 } };
        assert_eq!([1, 10, 11, 500].map(|length| dynamic.regime(length)), [0, 0, 11, 500]);
        // theta * (2 * 20 / 10 - 1)^(4 / 2) = 900, and its root 30.
        assert_eq!(dynamic.frequencies(4, 0), [1.0, 0.1]);
        assert!((dynamic.frequencies(4, 20)[1] * 30.0 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn wrong_numbers_of_factors_are_named() {
        let scaling = |short: usize, long: usize| RopeScaling::LongRope {
            short: vec![1.0; short],
            long: vec![1.0; long],
            attention_factor: 1.0,
            original_max_positions: 10,
        };
        let error = |short, long| Rope { theta: THETA, scaling: scaling(short, long) }.validate(4).unwrap_err();
        assert!(error(1, 2).contains("short_factor has 1") && error(2, 3).contains("long_factor has 3"));
    }
}
