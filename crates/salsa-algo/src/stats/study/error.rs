//! Errors in the numbers of a study.

use std::fmt;

/// Why the statistics of a study cannot be computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StudyError {
    /// There is no seed.
    NoSeeds,
    /// There is no setting to select from.
    NoSettings,
    /// There is no run to average.
    NoRuns {
        /// The seed.
        seed: u64,
    },
    /// A seed has no values.
    NoValues {
        /// The seed.
        seed: u64,
    },
    /// A seed occurs twice in one arm.
    RepeatedSeed {
        /// The seed.
        seed: u64,
    },
    /// A seed is in only one of two arms, or of two settings.
    Unpaired {
        /// The seed.
        seed: u64,
    },
    /// Two samples compared prompt by prompt have different numbers of prompts.
    PromptCounts {
        /// The seed.
        seed: u64,
        /// Number of values of the first.
        first: usize,
        /// Number of values of the second.
        second: usize,
    },
    /// A value is NaN, infinite or beyond 1e100.
    NotFinite {
        /// The seed.
        seed: u64,
        /// Index of the value in the seed.
        position: usize,
        /// The value.
        value: f64,
    },
    /// A curve has no points.
    NoPoints,
    /// A point of a curve is NaN, infinite or beyond 1e100.
    PointNotFinite {
        /// Its KL.
        kl: f64,
        /// Its reward.
        reward: f64,
    },
    /// A KL at which curves are read is NaN or infinite.
    KlNotFinite {
        /// The KL.
        kl: f64,
    },
    /// Compared curves have different axes.
    Axes,
    /// The numbers of settings on test and validation differ.
    SettingCounts {
        /// Settings selected from.
        validation: usize,
        /// Settings reported on.
        test: usize,
    },
    /// A level is not between 0 and 1, or (for the power of a test) above 0.999.
    Level {
        /// Its value.
        level: f64,
    },
    /// A power is not between 0 and 1.
    Power {
        /// Its value.
        power: f64,
    },
    /// A bootstrap without resamples.
    NoResamples,
    /// A p-value is not in `[0, 1]`.
    PValue {
        /// Its index.
        position: usize,
        /// Its value.
        value: f64,
    },
    /// An effect is NaN or infinite, or 0 where one is needed.
    Effect {
        /// Its value.
        effect: f64,
    },
    /// A standard deviation is negative, NaN or infinite.
    Deviation {
        /// Its value.
        deviation: f64,
    },
    /// A test over fewer than two seeds, or more than [`MOST_SEEDS`](super::MOST_SEEDS).
    SeedCount {
        /// The number of seeds.
        seeds: usize,
    },
    /// A margin below which a difference does not matter is negative, NaN or infinite.
    Margin {
        /// Its value.
        margin: f64,
    },
}

impl fmt::Display for StudyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            StudyError::NoSeeds => write!(f, "there is no seed; give the values of at least one"),
            StudyError::NoSettings => write!(f, "there is no setting to select from; give at least one"),
            StudyError::NoRuns { seed } => write!(f, "seed {seed} has no run; leave it out or finish its runs"),
            StudyError::NoValues { seed } => write!(f, "seed {seed} has no values; leave it out or finish its run"),
            StudyError::RepeatedSeed { seed } => {
                write!(f, "seed {seed} stands twice in one arm; average its runs prompt by prompt first")
            }
            StudyError::Unpaired { seed } => {
                write!(f, "seed {seed} is on one side of the comparison only; run it on both or leave it out of both")
            }
            StudyError::PromptCounts { seed, first, second } => {
                write!(f, "seed {seed} has {first} values on one side and {second} on the other; give one per prompt")
            }
            StudyError::NotFinite { seed, position, value } => {
                write!(f, "value {} of seed {seed} is {value}; find out why its run diverged", position + 1)
            }
            StudyError::NoPoints => write!(f, "a curve has no points; give one (KL, reward) per setting"),
            StudyError::PointNotFinite { kl, reward } => {
                write!(f, "a curve has the point (KL {kl}, reward {reward}); give finite numbers")
            }
            StudyError::KlNotFinite { kl } => write!(f, "curves cannot be read at KL {kl}; give a finite number"),
            StudyError::Axes => write!(f, "the curves interpolate along different axes; give all the same KlAxis"),
            StudyError::SettingCounts { validation, test } => {
                write!(f, "{validation} settings have validation scores and {test} have test scores; give both of each")
            }
            StudyError::Level { level } => {
                write!(f, "level {level} cannot be used; give a share such as 0.95 (at most 0.999 for a power)")
            }
            StudyError::Power { power } => write!(f, "power {power} is not between 0 and 1; 0.8 is usual"),
            StudyError::NoResamples => write!(f, "a bootstrap of 0 resamples; give at least 1, better 10000"),
            StudyError::PValue { position, value } => {
                write!(f, "p-value {} is {value}; it must be between 0 and 1", position + 1)
            }
            StudyError::Effect { effect } => write!(f, "effect {effect} cannot be used; give a finite number, not 0"),
            StudyError::Deviation { deviation } => {
                write!(f, "standard deviation {deviation} cannot be used; give a finite number of at least 0")
            }
            StudyError::SeedCount { seeds } => {
                write!(f, "a t test over {seeds} seeds; give from 2 to {}", super::MOST_SEEDS)
            }
            StudyError::Margin { margin } => {
                write!(f, "margin {margin} cannot be used; give a finite number of at least 0")
            }
        }
    }
}

impl std::error::Error for StudyError {}
