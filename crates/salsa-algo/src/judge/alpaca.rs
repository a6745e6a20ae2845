//! AlpacaEval 2: a preference for each instruction, the win rate, and the win rate at equal length.
//!
//! A preference is a number from 1 (the baseline's output is better) to 2 (the model's is).

use super::logistic::{Design, lasso, sigmoid};

/// Returns the preference from the log-probs of the two tokens a judge may answer with: `m` if the first output shown
/// is better, `M` if the second is. A token missing from the judge's list has probability 0; none if both are missing.
///
/// ```text
/// 2 - p(m) / (p(m) + p(M))          the baseline's output was shown first
/// ```
///
/// ```
/// use salsa_algo::judge::alpaca::preference;
/// assert_eq!(preference(Some(0.25f64.ln()), Some(0.75f64.ln())), Some(1.75));
/// assert_eq!(preference(None, Some(-3.0)), Some(2.0));
/// assert_eq!(preference(None, None), None);
/// ```
pub fn preference(first: Option<f64>, second: Option<f64>) -> Option<f64> {
    let p = |logprob: Option<f64>| logprob.map_or(0.0, f64::exp);
    match (first, second) {
        (None, None) => None,
        (Some(first), Some(second)) if first.max(second) < -700.0 => Some(2.0 - sigmoid(first - second)),
        _ => Some(2.0 - p(first) / (p(first) + p(second))),
    }
}

/// A model's win rate, as AlpacaEval counts it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WinRate {
    /// Mean preference, in percent.
    pub win_rate: f64,
    /// Its standard error, in percent; none for one instruction.
    pub standard_error: Option<f64>,
    /// The win rate with each preference rounded, in percent.
    pub discrete_win_rate: f64,
    /// Instructions on which the model is preferred.
    pub wins: usize,
    /// Instructions on which the baseline is preferred.
    pub wins_baseline: usize,
    /// Instructions without a preferred output.
    pub draws: usize,
    /// Instructions counted.
    pub total: usize,
    /// Instructions without a preference.
    pub dropped: usize,
}

/// Returns the win rate of preferences; none without any.
///
/// ```text
/// win_rate          = 100 * mean(preference - 1)
/// standard_error    = 100 * sd / sqrt(n)                     sd with n - 1
/// discrete_win_rate = 100 * mean of 1, 0, or ½ where the preference is exactly 1.5
/// ```
///
/// ```
/// use salsa_algo::judge::alpaca::win_rate;
/// let found = win_rate(&[Some(2.0), Some(1.5), Some(1.25), None]).unwrap();
/// assert_eq!((found.win_rate, found.discrete_win_rate), (175.0 / 3.0, 50.0));
/// assert_eq!((found.wins, found.draws, found.wins_baseline, found.total, found.dropped), (1, 1, 1, 3, 1));
/// ```
pub fn win_rate(preferences: &[Option<f64>]) -> Option<WinRate> {
    let given: Vec<f64> = preferences.iter().flatten().map(|preference| preference - 1.0).collect();
    let (total, count) = (given.len(), |of: &dyn Fn(f64) -> bool| given.iter().filter(|p| of(**p)).count());
    let (wins, wins_baseline) = (count(&|p| p > 0.5), count(&|p| p < 0.5));
    let draws = total - wins - wins_baseline;
    let mean = mean(&given)?;
    Some(WinRate {
        win_rate: 100.0 * mean,
        standard_error: standard_error(&given).map(|error| 100.0 * error),
        discrete_win_rate: 100.0 * (wins as f64 + 0.5 * draws as f64) / total as f64,
        wins,
        wins_baseline,
        draws,
        total,
        dropped: preferences.len() - total,
    })
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn standard_error(values: &[f64]) -> Option<f64> {
    Some(deviation(values)? / (values.len() as f64).sqrt())
}

fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// The inputs of the length-controlled win rate for one instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Instruction {
    /// The preference, if there is one.
    pub preference: Option<f64>,
    /// Characters of the model's output.
    pub length: usize,
    /// Characters of the baseline's output.
    pub baseline_length: usize,
    /// The difficulty of the instruction; 0 if unknown.
    pub difficulty: f64,
}

/// A judged answer of the baseline prompted to be short or long: these rows regularise the coefficients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gamed {
    /// How strongly it was preferred to the baseline, from 0 to 1.
    pub preference: f64,
    /// The standardised difference of lengths.
    pub std_delta_len: f64,
    /// The difficulty of the instruction.
    pub difficulty: f64,
}

/// The form of the regression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form<'a> {
    /// `length_controlled_v1`, with the rows of the gamed baseline.
    V1(&'a [Gamed]),
    /// `length_controlled_noreg`: without those rows.
    NoReg,
    /// `length_controlled_minimal`: without those rows and without difficulties.
    Minimal,
}

/// A win rate at equal length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthControlled {
    /// Percent.
    pub win_rate: f64,
    /// Percent; none for one instruction.
    pub standard_error: Option<f64>,
    /// Coefficient of the constant (`not_gamed_baseline`), of the length and of the difficulty.
    pub coefficients: [f64; 3],
}

/// Returns the length-controlled win rate; none without a preference or if all differences of lengths are equal.
///
/// ```text
/// logit P(model preferred) = b0 * not_gamed + b1 * tanh(delta / sd(delta)) + b2 * difficulty
/// delta    = baseline_length - length          in characters; sd with n - 1
/// fit      = |b|_1 + c * sum of weighted log-losses; c of 10^-4 … 10^4 (ten steps) with the lowest loss in five folds
/// win_rate = 100 * mean over instructions of P at delta = 0
/// ```
///
/// Weights: 1 for the model's rows, .1 for each of the gamed ones. The tool's solver (liblinear) stops before this
/// optimum, in a random order: up to .1 points away on published annotations. Source: Dubois et al. 2024;
/// `metrics/glm_winrate.py`.
pub fn length_controlled(instructions: &[Instruction], form: Form<'_>) -> Option<LengthControlled> {
    let deltas: Vec<f64> = instructions.iter().map(|i| i.baseline_length as f64 - i.length as f64).collect();
    let spread = deviation(&deltas).filter(|spread| *spread > 0.0)?;
    let has_difficulty = !matches!(form, Form::Minimal);
    let difficulty = |of: f64| if has_difficulty { of } else { 0.0 };
    let mut rows: Vec<Observation> = Vec::new();
    if let Form::V1(gamed) = form {
        rows.extend(gamed.iter().map(|row| Observation {
            features: [0.0, row.std_delta_len.tanh(), row.difficulty],
            preference: row.preference,
            weight: 0.1,
        }));
    }
    rows.extend(instructions.iter().zip(&deltas).filter_map(|(instruction, delta)| {
        Some(Observation {
            features: [1.0, (delta / spread).tanh(), difficulty(instruction.difficulty)],
            preference: instruction.preference? - 1.0,
            weight: 1.0,
        })
    }));
    let coefficients = fitted(&rows)?;
    let of_difficulty = instructions.iter().map(|instruction| difficulty(instruction.difficulty));
    let (win_rate, standard_error) = predicted(coefficients[0], coefficients[2], of_difficulty)?;
    Some(LengthControlled { win_rate, standard_error, coefficients })
}

/// Returns the length-controlled win rate in percent, with its standard error, from coefficients.
///
/// ```text
/// 100 * mean_i sigmoid(constant + slope * difficulty_i)
/// ```
///
/// ```
/// let (win_rate, error) = salsa_algo::judge::alpaca::predicted(0.0, 1.0, [2.0, -2.0]).unwrap();
/// assert!((win_rate - 50.0).abs() < 1e-12 && error.is_some());
/// ```
pub fn predicted(constant: f64, slope: f64, difficulties: impl IntoIterator<Item = f64>) -> Option<(f64, Option<f64>)> {
    let p: Vec<f64> = difficulties.into_iter().map(|difficulty| sigmoid(constant + slope * difficulty)).collect();
    Some((100.0 * mean(&p)?, standard_error(&p).map(|error| 100.0 * error)))
}

#[derive(Clone, Copy)]
struct Observation {
    features: [f64; 3],
    preference: f64,
    weight: f64,
}

const FOLDS: usize = 5;

/// Returns the coefficients at the penalty with the lowest loss in five folds; none for fewer rows than folds.
fn fitted(rows: &[Observation]) -> Option<[f64; 3]> {
    if rows.len() < FOLDS {
        return None;
    }
    let mut design = Design::new(3);
    rows.iter().for_each(|row| design.push(&[0, 1, 2].map(|k| (k, row.features[k])), row.preference));
    let in_fold = |i: usize| (rows.len() - 1 - i) % FOLDS;
    let log_loss = |b: &[f64], i: usize| {
        let (y, p) = (rows[i].preference, sigmoid(design.logit(i, b)).clamp(1e-15, 1.0 - 1e-15));
        -rows[i].weight * (y * p.ln() + (1.0 - y) * (1.0 - p).ln())
    };
    let held_out = |c: f64| -> f64 {
        let of_fold = |fold: usize| {
            let weight = |i: usize| if in_fold(i) == fold { 0.0 } else { rows[i].weight };
            let b = lasso(&design, &(0..rows.len()).map(weight).collect::<Vec<_>>(), c);
            let losses: Vec<f64> = (0..rows.len()).filter(|i| in_fold(*i) == fold).map(|i| log_loss(&b, i)).collect();
            mean(&losses).unwrap_or_default()
        };
        (0..FOLDS).map(of_fold).sum()
    };
    let penalties = (0..10).map(|i| 10f64.powf(-4.0 + 8.0 * f64::from(i) / 9.0));
    let losses: Vec<(f64, f64)> = penalties.map(|c| (held_out(c), c)).collect();
    // The first of equal ones, as in numpy's argmax.
    let best = losses.iter().fold(losses[0], |best, next| if next.0 < best.0 { *next } else { best });
    let weights: Vec<f64> = rows.iter().map(|row| row.weight).collect();
    let b = lasso(&design, &weights, best.1);
    Some([b[0], b[1], b[2]])
}

/// Whether a length-controlled win rate is so far from the raw one (both in percent) that the fit may have failed: by
/// more than 10 points and more than a quarter of the possible change.
///
/// ```
/// use salsa_algo::judge::alpaca::is_extreme;
/// assert!(is_extreme(20.0, 9.0) && is_extreme(50.0, 63.0));
/// assert!(!is_extreme(20.0, 12.0) && !is_extreme(50.0, 62.0));
/// ```
pub fn is_extreme(raw: f64, controlled: f64) -> bool {
    controlled < (raw - raw / 4.0).min(raw - 10.0) || controlled > (raw + (100.0 - raw) / 4.0).max(raw + 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;

    /// A model that is preferred only for its length.
    fn instructions(bias: f64, by_length: f64) -> Vec<Instruction> {
        let of = |i: u64| {
            let length = 200 + (uniform(1, 0, i) * 800.0) as usize;
            let baseline_length = 500usize;
            let delta = (baseline_length as f64 - length as f64) / 231.0;
            let difficulty = uniform(1, 1, i) * 4.0 - 2.0;
            let p = sigmoid(bias + by_length * delta.tanh() + 0.4 * difficulty);
            Instruction { preference: Some(1.0 + p), length, baseline_length, difficulty }
        };
        (0..805).map(of).collect()
    }

    #[test]
    fn the_length_is_taken_out() {
        let rows = instructions(0.0, -1.5);
        let raw = win_rate(&rows.iter().map(|row| row.preference).collect::<Vec<_>>()).expect("805 rows");
        assert!(raw.win_rate > 54.0, "{raw:?}");
        for form in [Form::NoReg, Form::Minimal] {
            let found = length_controlled(&rows, form).expect("805 rows");
            assert!((found.win_rate - 50.0).abs() < 1.0, "{form:?}: {found:?}");
        }
        let found = length_controlled(&rows, Form::NoReg).expect("805 rows");
        assert!((found.coefficients[1] + 1.5).abs() < 0.05 && (found.coefficients[2] - 0.4).abs() < 0.02, "{found:?}");
        assert_eq!(length_controlled(&rows, Form::Minimal).map(|found| found.coefficients[2]), Some(0.0));
    }

    /// The gamed rows show that length determines the preference; the model's own rows contain no information on it.
    #[test]
    fn gamed_rows_hold_the_length_coefficient() {
        let rows = instructions(0.5, 0.0);
        let gamed: Vec<Gamed> = (0..1610u64)
            .map(|i| {
                let std_delta_len = if i % 2 == 0 { 1.0 } else { -1.0 };
                let preference = sigmoid(-3.0 * f64::tanh(std_delta_len));
                Gamed { preference, std_delta_len, difficulty: 0.0 }
            })
            .collect();
        let slope = |form| length_controlled(&rows, form).expect("805 rows").coefficients[1];
        assert!(slope(Form::NoReg).abs() < 0.02);
        assert!(slope(Form::V1(&gamed)) < -0.3, "{}", slope(Form::V1(&gamed)));
    }

    #[test]
    fn what_cannot_be_fitted_has_no_rate() {
        let alike = [Instruction { preference: Some(2.0), length: 5, baseline_length: 7, difficulty: 0.0 }; 9];
        assert_eq!(length_controlled(&alike, Form::Minimal), None);
        assert_eq!(length_controlled(&[], Form::Minimal), None);
        assert_eq!(win_rate(&[None]), None);
        assert_eq!(win_rate(&[Some(1.25)]).and_then(|found| found.standard_error), None);
    }

    #[test]
    fn standard_error_by_hand() {
        // 0, 1: mean ½, sd sqrt(½), standard error ½
        let found = win_rate(&[Some(1.0), Some(2.0)]).expect("two rows");
        assert_eq!((found.win_rate, found.standard_error), (50.0, Some(50.0)));
    }

    #[test]
    fn tiny_probabilities_keep_their_ratio() {
        let found = preference(Some(-800.0), Some(-800.0 + 3f64.ln())).expect("both are there");
        assert!((found - 1.75).abs() < 1e-12, "{found}");
    }
}
