//! Style control of Arena-Hard: removes the effect of an answer's length and markdown.
//!
//! The difference of style between the two answers of a battle becomes further features of the Bradley–Terry model. The
//! features are standardised over the battles of *all* models in the table, so a score means "at the average difference
//! of all models here", and adding a model changes every score.

use super::logistic::{self, Design, sigmoid};
use crate::{
    random::below,
    stats::{Interval, Resampling, quantiles},
};

/// The style counts of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Style {
    /// Tokens.
    pub tokens: f64,
    /// Markdown headers.
    pub headers: f64,
    /// Items of lists.
    pub lists: f64,
    /// Bold passages.
    pub bold: f64,
}

/// Number of features.
pub const FEATURES: usize = 4;

/// Length, headers, lists, bold.
pub type Features = [f64; FEATURES];

impl Style {
    /// Returns the features of a battle in v0.1.
    ///
    /// ```text
    /// (baseline - model) / (baseline + model + 1)        of tokens, headers, lists, bold
    /// ```
    ///
    /// ```
    /// use salsa_algo::judge::style::Style;
    /// let (model, baseline) = (Style { tokens: 1.0, ..Style::default() }, Style { tokens: 6.0, bold: 1.0, ..Style::default() });
    /// assert_eq!(model.features_v01(&baseline), [0.625, 0.0, 0.0, 0.5]);
    /// ```
    pub fn features_v01(&self, baseline: &Style) -> Features {
        let ratio = |a: f64, b: f64| (a - b) / (a + b + 1.0);
        [
            ratio(baseline.tokens, self.tokens),
            ratio(baseline.headers, self.headers),
            ratio(baseline.lists, self.lists),
            ratio(baseline.bold, self.bold),
        ]
    }

    /// Returns the features of a battle in v2.
    ///
    /// ```text
    /// length:    (model - baseline) / (model + baseline)          0 where both are empty
    /// the rest:  (dm - db) / (dm + db + 1),   d = count / (tokens + 1)
    /// ```
    ///
    /// ```
    /// use salsa_algo::judge::style::Style;
    /// let model = Style { tokens: 3.0, bold: 4.0, ..Style::default() };
    /// let baseline = Style { tokens: 1.0, ..Style::default() };
    /// assert_eq!(model.features_v2(&baseline), [0.5, 0.0, 0.0, 0.5]);
    /// ```
    pub fn features_v2(&self, baseline: &Style) -> Features {
        let length = (self.tokens - baseline.tokens) / (self.tokens + baseline.tokens);
        let density = |count: f64, of: &Style| count / (of.tokens + 1.0);
        let ratio = |m: f64, b: f64| {
            let (m, b) = (density(m, self), density(b, baseline));
            (m - b) / (m + b + 1.0)
        };
        let length = if length.is_nan() { 0.0 } else { length };
        let (headers, lists) = (ratio(self.headers, baseline.headers), ratio(self.lists, baseline.lists));
        [length, headers, lists, ratio(self.bold, baseline.bold)]
    }
}

/// A battle of a model against the baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Battle {
    /// Index of the model.
    pub model: usize,
    /// Index of the prompt.
    pub prompt: usize,
    /// The points of the model: 1, ½ or 0.
    pub points: f64,
    /// Weight of the battle.
    pub copies: usize,
    /// The features of v0.1 or v2.
    pub features: Features,
}

/// Mean and deviation for standardising features.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Mean of each feature.
    pub mean: Features,
    /// Standard deviation of each feature.
    pub deviation: Features,
}

/// The divisor of a standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// n, as in numpy: v0.1.
    Population,
    /// n − 1, as in torch: v2.
    Sample,
}

impl Scale {
    /// Returns the scale of battles, weighted by their copies.
    ///
    /// ```
    /// use salsa_algo::judge::style::{Battle, Deviation, Scale};
    /// let battle = |x, copies| Battle { model: 0, prompt: 0, points: 1.0, copies, features: [x, 0.0, 0.0, 0.0] };
    /// let scale = Scale::of(&[battle(0.0, 3), battle(4.0, 1)], Deviation::Population);
    /// assert_eq!((scale.mean[0], scale.deviation[0]), (1.0, 3f64.sqrt()));
    /// ```
    pub fn of(battles: &[Battle], deviation: Deviation) -> Scale {
        let n: f64 = battles.iter().map(|battle| battle.copies as f64).sum();
        let (mut mean, mut spread) = ([0.0; FEATURES], [0.0; FEATURES]);
        for (k, mean) in mean.iter_mut().enumerate() {
            *mean = battles.iter().map(|battle| battle.copies as f64 * battle.features[k]).sum::<f64>() / n;
            let square = |battle: &Battle| battle.copies as f64 * (battle.features[k] - *mean).powi(2);
            let divisor = if deviation == Deviation::Population { n } else { n - 1.0 };
            spread[k] = (battles.iter().map(square).sum::<f64>() / divisor).sqrt();
        }
        Scale { mean, deviation: spread }
    }

    /// Standardises features; a constant one has no effect and becomes 0.
    fn apply(&self, features: &Features) -> Features {
        std::array::from_fn(|k| match self.deviation[k] > 0.0 {
            true => (features[k] - self.mean[k]) / self.deviation[k],
            false => 0.0,
        })
    }
}

/// The regression method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// v0.1: features times ln 10 and ±1, scikit-learn's default penalty (C = 1) on all coefficients, to the optimum.
    V01,
    /// v2 as the tool computes it: no penalty, and an optimiser that stops before the optimum.
    Compat,
    /// v2's model at its optimum.
    Exact,
}

/// Style-controlled scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Controlled {
    /// Each model's win rate against the baseline at the average difference of style.
    pub win_rates: Vec<f64>,
    /// The win rates if both answers have the same style.
    pub without_difference: Vec<f64>,
    /// Coefficients of the standardised features.
    pub coefficients: Features,
}

/// A regression with style features.
pub struct Regression {
    design: Design,
    fit: Fit,
    scale: Scale,
    models: usize,
    copies: Vec<f64>,
    prompts: Vec<usize>,
}

impl Regression {
    /// Returns the regression of battles of `models` models.
    ///
    /// `controlled` selects the features. The scale is that of these battles, or a fixed one, with which scores do not
    /// change when a model is added.
    ///
    /// # Panics
    /// If the model of a battle is not below `models`.
    pub fn new(battles: &[Battle], models: usize, controlled: [bool; FEATURES], scale: Scale, fit: Fit) -> Regression {
        let mut design = Design::new(1 + models + FEATURES);
        for battle in battles {
            assert!(battle.model < models, "a model for each battle");
            let z = scale.apply(&battle.features);
            // v0.1 predicts that the baseline wins; its features are the baseline's minus the model's.
            let (one, outcome) = match fit {
                Fit::V01 => (-std::f64::consts::LN_10, 1.0 - battle.points),
                Fit::Compat | Fit::Exact => (1.0, battle.points),
            };
            let mut row = vec![(1 + battle.model, one), (0, -one)];
            row.extend((0..FEATURES).filter(|k| controlled[*k]).map(|k| (1 + models + k, z[k])));
            design.push(&row, outcome);
        }
        // v0.1 writes every battle twice, which matters with a penalty.
        let doubled = if fit == Fit::V01 { 2.0 } else { 1.0 };
        let copies = battles.iter().map(|battle| doubled * battle.copies as f64).collect();
        let prompts = battles.iter().map(|battle| battle.prompt).collect();
        Regression { design, fit, scale, models, copies, prompts }
    }

    /// Returns the scores of all battles.
    ///
    /// ```
    /// use salsa_algo::judge::style::*;
    /// // No style differs, so the controlled win rate is the win rate.
    /// let battle = |points| Battle { model: 0, prompt: 0, points, copies: 1, features: [0.0; 4] };
    /// let battles = [battle(1.0), battle(0.0), battle(1.0), battle(0.5)];
    /// let scale = Scale::of(&battles, Deviation::Sample);
    /// let found = Regression::new(&battles, 1, [true; 4], scale, Fit::Exact).scores();
    /// assert!((found.win_rates[0] - 0.625).abs() < 1e-9);
    /// ```
    pub fn scores(&self) -> Controlled {
        self.weighted(&self.copies)
    }

    fn weighted(&self, weights: &[f64]) -> Controlled {
        let b = match self.fit {
            Fit::V01 => logistic::exact(&self.design, weights, 1.0),
            Fit::Exact => logistic::exact(&self.design, weights, 0.0),
            Fit::Compat => logistic::as_arena_hard(&self.design, weights),
        };
        let coefficients: Features = std::array::from_fn(|k| b[1 + self.models + k]);
        // Features of v0.1 favour the baseline.
        let (unit, sign) = if self.fit == Fit::V01 { (std::f64::consts::LN_10, -1.0) } else { (1.0, 1.0) };
        let equal: Features = self.scale.apply(&[0.0; FEATURES]);
        let shift: f64 = sign * coefficients.iter().zip(&equal).map(|(b, z)| b * z).sum::<f64>();
        let logit = |model: usize| unit * (b[1 + model] - b[0]);
        Controlled {
            win_rates: (0..self.models).map(|model| sigmoid(logit(model))).collect(),
            without_difference: (0..self.models).map(|model| sigmoid(logit(model) + shift)).collect(),
            coefficients,
        }
    }

    /// Returns the win rates of each model in resamples of individual battles, as in the tool.
    pub fn resampled_battles(&self, rounds: usize, seed: u64) -> Vec<Vec<f64>> {
        let unit = if self.fit == Fit::V01 { 2.0 } else { 1.0 };
        let single: Vec<usize> = (0..self.design.rows())
            .flat_map(|row| std::iter::repeat_n(row, (self.copies[row] / unit) as usize))
            .collect();
        let draw = |round: u64| {
            let mut weights = vec![0.0; self.design.rows()];
            (0..single.len() as u64).for_each(|i| weights[single[below(seed, round, i, single.len())]] += unit);
            self.weighted(&weights).win_rates
        };
        transposed((0..rounds as u64).map(draw), self.models)
    }

    /// Returns the interval of each model over prompts, which are resampled with all their battles.
    pub fn intervals_over_prompts(&self, how: &Resampling) -> Vec<Option<Interval>> {
        let count = self.prompts.iter().max().map_or(0, |last| last + 1);
        let draw = |round: u64| {
            let mut times = vec![0.0; count];
            (0..count as u64).for_each(|i| times[below(how.seed, round, i, count)] += 1.0);
            let weights: Vec<f64> =
                self.copies.iter().zip(&self.prompts).map(|(w, prompt)| w * times[*prompt]).collect();
            self.weighted(&weights).win_rates
        };
        let shares = [(1.0 - how.level) / 2.0, (1.0 + how.level) / 2.0];
        let rates = transposed((0..how.resamples as u64).map(draw), self.models);
        rates.iter().map(|rates| quantiles(rates, &shares).map(|q| Interval { low: q[0], high: q[1] })).collect()
    }
}

fn transposed(rounds: impl Iterator<Item = Vec<f64>>, models: usize) -> Vec<Vec<f64>> {
    let mut columns = vec![Vec::new(); models];
    rounds.for_each(|rates| columns.iter_mut().zip(rates).for_each(|(column, rate)| column.push(rate)));
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;

    /// Model 0 wins only by length: at equal length it is no better than the baseline. Model 1 always has equal length.
    fn battles() -> Vec<Battle> {
        let mut battles = Vec::new();
        for prompt in 0..400usize {
            let i = prompt as u64;
            let x = uniform(3, 0, i) * 2.0 - 0.5;
            let wins = |logit: f64, stream| f64::from(u8::from(uniform(3, stream, i) < sigmoid(logit)));
            battles.push(Battle {
                model: 0,
                prompt,
                points: wins(3.0 * x, 1),
                copies: 1,
                features: [x, 0.0, 0.0, 0.0],
            });
            battles.push(Battle { model: 1, prompt, points: wins(1.0, 2), copies: 1, features: [0.0; 4] });
        }
        battles
    }

    fn regression(fit: Fit, controlled: [bool; 4]) -> Regression {
        let battles = battles();
        Regression::new(&battles, 2, controlled, Scale::of(&battles, Deviation::Sample), fit)
    }

    #[test]
    fn length_explains_what_it_explains() {
        let plain = regression(Fit::Exact, [false; 4]).scores();
        let controlled = regression(Fit::Exact, [true; 4]).scores();
        assert!(plain.win_rates[0] > 0.68, "{plain:?}");
        assert!((controlled.without_difference[0] - 0.5).abs() < 0.08, "{controlled:?}");
        assert!((controlled.without_difference[1] - plain.win_rates[1]).abs() < 0.01, "{controlled:?}");
        assert!(controlled.coefficients[0] > 1.0 && controlled.coefficients[3] == 0.0);
    }

    #[test]
    fn the_tool_and_the_optimum_agree_within_a_point() {
        let (tool, best) = (regression(Fit::Compat, [true; 4]).scores(), regression(Fit::Exact, [true; 4]).scores());
        for (tool, best) in tool.win_rates.iter().zip(&best.win_rates) {
            assert!((tool - best).abs() < 0.01, "{tool} {best}");
        }
    }

    /// v0.1's features have the opposite sign and its penalty shrinks scores: the same order, nearer to one half.
    #[test]
    fn v01_is_the_same_model_with_a_penalty() {
        let mut mirrored = battles();
        mirrored.iter_mut().for_each(|battle| battle.features[0] = -battle.features[0]);
        let scale = Scale::of(&mirrored, Deviation::Population);
        let found = Regression::new(&mirrored, 2, [true; 4], scale, Fit::V01).scores();
        let best = regression(Fit::Exact, [true; 4]).scores();
        for (found, best) in found.win_rates.iter().zip(&best.win_rates) {
            assert!((found - best).abs() < 0.01 && (found - 0.5).abs() < (best - 0.5).abs(), "{found} {best}");
        }
    }

    #[test]
    fn draws_surround_the_score() {
        let regression = regression(Fit::Exact, [true; 4]);
        let scores = regression.scores();
        let how = Resampling { resamples: 60, ..Resampling::default() };
        for (interval, rate) in regression.intervals_over_prompts(&how).iter().zip(&scores.win_rates) {
            let interval = interval.expect("it was drawn");
            assert!(interval.low < *rate && *rate < interval.high, "{interval:?} {rate}");
        }
        let drawn = regression.resampled_battles(20, 1);
        assert_eq!((drawn.len(), drawn[0].len()), (2, 20));
        let median = quantiles(&drawn[0], &[0.5]).expect("20 draws")[0];
        assert!((median - scores.win_rates[0]).abs() < 0.03, "{median} {scores:?}");
    }
}
