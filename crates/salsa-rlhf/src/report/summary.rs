//! `summary.json`: the numbers of a run, one entry per arm and evaluation split.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::versus::Versus;

/// The contents of `summary.json`. A non-finite number is written as `null` and read back as NaN; unmeasured numbers
/// have no key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Version of the program that wrote it.
    pub version: String,
    /// The seed from which all random numbers are derived.
    pub seed: u64,
    /// Instruction set of the kernels (`"avx512"`, …).
    pub isa: String,
    /// The device: `"cpu"`, or the name of the GPU; empty in summaries of versions without GPU support.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// The prompts behind the numbers of each split; empty in summaries of earlier versions.
    #[serde(default, skip_serializing_if = "Ordered::is_empty")]
    pub prompts: Ordered<PromptCount>,
    /// Arm key (`"sft_a"`, `"salsa"`, …), then split key (`"test"`, `"ood"`, …), in the order of presentation.
    pub arms: Ordered<Ordered<SplitSummary>>,
    /// Reward along the line SFT A – SFT B, split by split.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub landscape: Vec<LandscapePoint>,
    /// Direct comparisons of two arms on the same prompts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<Comparison>,
    /// Wall-clock seconds per stage, in execution order.
    #[serde(default, skip_serializing_if = "Ordered::is_empty")]
    pub seconds: Ordered<f64>,
}

/// Number of prompts of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptCount {
    /// Prompts that every arm answered.
    pub answered: usize,
    /// Prompts not used because they are too long.
    pub left_out: usize,
}

impl fmt::Display for PromptCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} prompt{}", self.answered, if self.answered == 1 { "" } else { "s" })?;
        match self.left_out {
            0 => Ok(()),
            long => write!(f, "; {long} longer left out"),
        }
    }
}

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The point estimate.
    #[serde(deserialize_with = "null_as_nan")]
    pub mean: f64,
    /// Lower and upper end of the 95 % confidence interval.
    #[serde(deserialize_with = "nulls_as_nan")]
    pub ci95: [f64; 2],
}

/// One arm on one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitSummary {
    /// Gold reward in [0, 1]; absent if the data has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold_reward: Option<Estimate>,
    /// Reward-model score.
    pub proxy_score: Estimate,
    /// Measurements against other models.
    #[serde(flatten)]
    pub versus: Versus,
    /// Mean response length, tokens.
    #[serde(deserialize_with = "null_as_nan")]
    pub length_mean: f64,
    /// 95 % interval of `length_mean`.
    #[serde(default, deserialize_with = "perhaps_nulls_as_nan", skip_serializing_if = "Option::is_none")]
    pub length_ci95: Option<[f64; 2]>,
    /// Share of empty responses, in [0, 1].
    #[serde(deserialize_with = "null_as_nan")]
    pub empty_rate: f64,
    /// 95 % interval of `empty_rate`.
    #[serde(default, deserialize_with = "perhaps_nulls_as_nan", skip_serializing_if = "Option::is_none")]
    pub empty_rate_ci95: Option<[f64; 2]>,
}

/// The reward of one model on the line `(1 - alpha) * A + alpha * B` between two models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LandscapePoint {
    /// Key of the split of the prompts.
    #[serde(default)]
    pub split: String,
    /// Weight of the second model.
    pub alpha: f64,
    /// Gold reward; absent if the data has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold_reward: Option<Estimate>,
    /// Reward-model score.
    pub proxy_score: Estimate,
    /// For a point between the ends: gold reward (if absent, proxy score) minus that of the better end, prompt by
    /// prompt. The better end is chosen on the same prompts, which can only make the difference smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_better_end: Option<Estimate>,
}

/// Comparison of two arms on the same prompts, which cancels the difficulty of the prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Key of the arm in question.
    pub arm: String,
    /// Key of the arm it is compared with.
    pub versus: String,
    /// Key of the split.
    pub split: String,
    /// The compared quantity.
    pub metric: Contrast,
    /// The win rate, or the mean difference `arm - versus`.
    pub estimate: Estimate,
}

/// The metric of a [`Comparison`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contrast {
    /// Win rate in [0, 1]; one half is a draw.
    WinRate,
    /// Difference of gold rewards; zero is a draw.
    GoldDifference,
    /// Difference of reward-model scores; zero is a draw.
    ProxyDifference,
}

impl Contrast {
    /// The value at which neither arm is better.
    pub fn draw(self) -> f64 {
        match self {
            Contrast::WinRate => 0.5,
            Contrast::GoldDifference | Contrast::ProxyDifference => 0.0,
        }
    }
}

impl Summary {
    /// The arm that win rates are measured against; none if there are no win rates.
    pub fn baseline(&self) -> Option<&str> {
        self.versus().find_map(|versus| versus.win_rates.first()).map(|(name, _)| name.as_str())
    }

    /// The model that KL is measured to: the baseline, or else the first one with a KL.
    pub fn anchor(&self) -> Option<&str> {
        let measured = |name: &&str| self.versus().any(|versus| versus.kls.get(name).is_some());
        let first = || self.versus().find_map(|versus| versus.kls.first()).map(|(name, _)| name.as_str());
        self.baseline().filter(measured).or_else(first)
    }

    /// Whether some arm has a gold reward on some split.
    pub fn has_gold(&self) -> bool {
        self.arms.iter().flat_map(|(_, splits)| splits.iter()).any(|(_, numbers)| numbers.gold_reward.is_some())
    }

    fn versus(&self) -> impl Iterator<Item = &Versus> {
        self.arms.iter().flat_map(|(_, splits)| splits.iter().map(|(_, numbers)| &numbers.versus))
    }
}

impl Estimate {
    /// Builds an estimate from its three numbers.
    pub fn new(mean: f64, low: f64, high: f64) -> Estimate {
        Estimate { mean, ci95: [low, high] }
    }

    /// Whether there is an interval; a single prompt gives none.
    pub fn has_interval(&self) -> bool {
        self.ci95.iter().all(|end| end.is_finite())
    }

    /// Whether the whole interval is above `value`; always false for NaN.
    pub fn is_above(&self, value: f64) -> bool {
        self.ci95[0] > value
    }

    /// Whether the whole interval is below `value`; always false for NaN.
    pub fn is_below(&self, value: f64) -> bool {
        self.ci95[1] < value
    }
}

/// A JSON object that keeps the order of its keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordered<T>(pub Vec<(String, T)>);

impl<T> Ordered<T> {
    /// An empty object.
    pub fn new() -> Ordered<T> {
        Ordered(Vec::new())
    }

    /// Sets the entry of `key`, appending it if the key is new.
    pub fn insert(&mut self, key: impl Into<String>, value: T) {
        let key = key.into();
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    /// The entry of `key`.
    pub fn get(&self, key: &str) -> Option<&T> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> Default for Ordered<T> {
    fn default() -> Ordered<T> {
        Ordered::new()
    }
}

impl<T> Deref for Ordered<T> {
    type Target = Vec<(String, T)>;
    fn deref(&self) -> &Vec<(String, T)> {
        &self.0
    }
}

impl<T> DerefMut for Ordered<T> {
    fn deref_mut(&mut self) -> &mut Vec<(String, T)> {
        &mut self.0
    }
}

impl<K: Into<String>, T> FromIterator<(K, T)> for Ordered<T> {
    fn from_iter<I: IntoIterator<Item = (K, T)>>(entries: I) -> Ordered<T> {
        let mut ordered = Ordered::new();
        for (key, value) in entries {
            ordered.insert(key, value);
        }
        ordered
    }
}

impl<T: Serialize> Serialize for Ordered<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ordered<T>, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Ordered<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered<T>, A::Error> {
                let mut ordered = Ordered::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    ordered.insert(key, value);
                }
                Ok(ordered)
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn perhaps_nulls_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[f64; 2]>, D::Error> {
    nulls_as_nan(deserializer).map(Some)
}

fn nulls_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[f64; 2], D::Error> {
    Ok(<[Option<f64>; 2]>::deserialize(deserializer)?.map(|end| end.unwrap_or(f64::NAN)))
}
