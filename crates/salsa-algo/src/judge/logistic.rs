//! Logistic regression: the exact optimum, the optimiser of Arena-Hard v2, and the sparse fit of AlpacaEval.
//!
//! ```text
//! loss(b) = sum_i weight_i * (log(1 + exp(z_i)) - outcome_i * z_i) + penalty,      z_i = x_i . b
//! ```
//!
//! Outcomes are numbers in `[0, 1]`: ½ is a tie, which is the same as one win and one loss of half the weight.

/// The rows of a regression, as sparse features.
#[derive(Clone, Debug, Default)]
pub struct Design {
    parameters: usize,
    starts: Vec<usize>,
    entries: Vec<(usize, f64)>,
    outcomes: Vec<f64>,
}

impl Design {
    /// Returns a regression without rows.
    pub fn new(parameters: usize) -> Design {
        Design { parameters, starts: vec![0], entries: Vec::new(), outcomes: Vec::new() }
    }

    /// Adds a row: its nonzero features, and its outcome in `[0, 1]`.
    ///
    /// # Panics
    /// If a feature has no parameter.
    pub fn push(&mut self, features: &[(usize, f64)], outcome: f64) {
        assert!(features.iter().all(|(parameter, _)| *parameter < self.parameters), "a parameter for each feature");
        self.entries.extend(features);
        self.starts.push(self.entries.len());
        self.outcomes.push(outcome);
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.outcomes.len()
    }

    /// Returns the number of parameters.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    fn row(&self, i: usize) -> &[(usize, f64)] {
        &self.entries[self.starts[i]..self.starts[i + 1]]
    }

    /// Returns `x_i . b` of a row.
    pub fn logit(&self, i: usize, b: &[f64]) -> f64 {
        self.row(i).iter().map(|&(parameter, x)| x * b[parameter]).sum()
    }

    fn loss(&self, weights: &[f64], b: &[f64]) -> f64 {
        let of_row = |i: usize| {
            let z = self.logit(i, b);
            weights[i] * (softplus(z) - self.outcomes[i] * z)
        };
        (0..self.rows()).filter(|&i| weights[i] != 0.0).map(of_row).sum()
    }

    /// Gradient, and the Hessian row by row.
    fn derivatives(&self, weights: &[f64], b: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let d = self.parameters;
        let (mut gradient, mut hessian) = (vec![0.0; d], vec![0.0; d * d]);
        for i in (0..self.rows()).filter(|&i| weights[i] != 0.0) {
            let p = sigmoid(self.logit(i, b));
            let (slope, curvature) = (weights[i] * (p - self.outcomes[i]), weights[i] * p * (1.0 - p));
            for &(j, x) in self.row(i) {
                gradient[j] += slope * x;
                for &(k, y) in self.row(i) {
                    hessian[j * d + k] += curvature * x * y;
                }
            }
        }
        (gradient, hessian)
    }
}

/// Returns `1 / (1 + exp(-z))`.
///
/// ```
/// assert_eq!(salsa_algo::judge::logistic::sigmoid(0.0), 0.5);
/// ```
pub fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// Returns the coefficients at the optimum with the penalty `ridge / 2 * |b|^2`, by Newton's method from 0.
///
/// `ridge` 0 is no penalty, 1 is scikit-learn's default (`C=1`). If the likelihood has no maximum (a model that won
/// every game), the coefficient is a large finite number, at which the probability is 0 or 1 to about ten digits.
///
/// ```
/// use salsa_algo::judge::logistic::{Design, exact, sigmoid};
/// // Three wins and one loss: the probability of winning is 3/4.
/// let mut design = Design::new(1);
/// [1.0, 1.0, 1.0, 0.0].iter().for_each(|&outcome| design.push(&[(0, 1.0)], outcome));
/// let b = exact(&design, &[1.0; 4], 0.0);
/// assert!((sigmoid(b[0]) - 0.75).abs() < 1e-12);
/// ```
///
/// # Panics
/// If the number of weights differs from the number of rows.
pub fn exact(design: &Design, weights: &[f64], ridge: f64) -> Vec<f64> {
    assert_eq!(weights.len(), design.rows(), "a weight for each row");
    let d = design.parameters;
    let penalised = |b: &[f64]| design.loss(weights, b) + 0.5 * ridge * b.iter().map(|b| b * b).sum::<f64>();
    let mut b = vec![0.0; d];
    let mut loss = penalised(&b);
    for _ in 0..MOST_STEPS {
        let (mut gradient, mut hessian) = design.derivatives(weights, &b);
        for j in 0..d {
            gradient[j] += ridge * b[j];
            // A small regularisation: the Hessian may be singular where a parameter has no effect.
            hessian[j * d + j] += ridge + SINGULAR;
        }
        let step = solve(&mut hessian, &gradient);
        let largest = step.iter().fold(0.0, |most: f64, step| most.max(step.abs()));
        let Some((next, lower)) = descend(&b, &step, loss, &penalised) else { break };
        (b, loss) = (next, lower);
        if largest < CONVERGED {
            break;
        }
    }
    b
}

/// Newton's method converges in about ten steps; without an optimum each step adds about 1 to a logit.
const MOST_STEPS: usize = 30;
const CONVERGED: f64 = 1e-11;
const SINGULAR: f64 = 1e-12;

/// Returns the first of b - step, b - step / 2, … that does not raise the loss, with its loss; none if all do.
fn descend(b: &[f64], step: &[f64], loss: f64, of: &dyn Fn(&[f64]) -> f64) -> Option<(Vec<f64>, f64)> {
    (0..40).find_map(|halvings| {
        let share = 0.5f64.powi(halvings);
        let next: Vec<f64> = b.iter().zip(step).map(|(b, step)| b - share * step).collect();
        let lower = of(&next);
        (lower <= loss).then_some((next, lower))
    })
}

/// Solves `matrix * x = right` for a symmetric positive matrix, by Cholesky decomposition.
fn solve(matrix: &mut [f64], right: &[f64]) -> Vec<f64> {
    let d = right.len();
    for j in 0..d {
        for k in 0..j {
            let factor = matrix[j * d + k];
            for i in j..d {
                matrix[i * d + j] -= matrix[i * d + k] * factor;
            }
        }
        let pivot = matrix[j * d + j].max(f64::MIN_POSITIVE).sqrt();
        (j..d).for_each(|i| matrix[i * d + j] /= pivot);
    }
    let mut x = right.to_vec();
    for i in 0..d {
        let sum: f64 = (0..i).map(|k| matrix[i * d + k] * x[k]).sum();
        x[i] = (x[i] - sum) / matrix[i * d + i];
    }
    for i in (0..d).rev() {
        let sum: f64 = (i + 1..d).map(|k| matrix[k * d + i] * x[k]).sum();
        x[i] = (x[i] - sum) / matrix[i * d + i];
    }
    x
}

/// Returns the coefficients where the optimiser of Arena-Hard v2 stops, which is not the optimum.
///
/// ```text
/// L-BFGS without line search in f32: start .5 each, first step .1 * min(1, 1 / |g|_1), then .1; 50 steps,
/// 62 evaluations, history 100, tolerances 1e-9                               (torch.optim.LBFGS, lr = .1)
/// ```
///
/// Fifty steps of a tenth do not reach the optimum: scores stay nearer to 50 %, by up to .3 points.
///
/// ```
/// use salsa_algo::judge::logistic::{Design, as_arena_hard, sigmoid};
/// let mut design = Design::new(1);
/// [1.0, 1.0, 1.0, 0.0].iter().for_each(|&outcome| design.push(&[(0, 1.0)], outcome));
/// let p = sigmoid(as_arena_hard(&design, &[1.0; 4])[0]);
/// assert!((0.74..0.75).contains(&p), "{p}");
/// ```
///
/// # Panics
/// If the number of weights differs from the number of rows.
pub fn as_arena_hard(design: &Design, weights: &[f64]) -> Vec<f64> {
    assert_eq!(weights.len(), design.rows(), "a weight for each row");
    const RATE: f32 = 0.1;
    const TOLERANCE: f32 = 1e-9;
    let evaluate = |b: &[f32]| {
        let b: Vec<f64> = b.iter().copied().map(f64::from).collect();
        let gradient = design.derivatives_only_first(weights, &b);
        (design.loss(weights, &b) as f32, gradient)
    };
    let mut b = vec![0.5f32; design.parameters];
    let (mut loss, mut gradient) = evaluate(&b);
    if largest(&gradient) <= TOLERANCE {
        return b.into_iter().map(f64::from).collect();
    }
    let mut history = History { pairs: Vec::new(), scale: 1.0 };
    let (mut before, mut step): (Option<(Vec<f32>, f32)>, Vec<f32>) = (None, Vec::new());
    let mut evaluations = 1;
    for iteration in 1..=50 {
        let rate = match &before {
            None => {
                step = gradient.iter().map(|g| -g).collect();
                RATE * (1.0f32).min(1.0 / gradient.iter().map(|g| g.abs()).sum::<f32>())
            }
            Some((old, old_rate)) => {
                let change = gradient.iter().zip(old).map(|(g, old)| g - old).collect();
                history.learn(change, step.iter().map(|d| d * old_rate).collect());
                step = history.direction(&gradient);
                RATE
            }
        };
        if dot(&gradient, &step) > -TOLERANCE {
            break;
        }
        b.iter_mut().zip(&step).for_each(|(b, d)| *b += rate * d);
        before = Some((gradient.clone(), rate));
        if iteration == 50 {
            break;
        }
        let last = loss;
        (loss, gradient) = evaluate(&b);
        evaluations += 1;
        let moved = step.iter().fold(0.0, |most: f32, d| most.max((d * rate).abs()));
        let done = largest(&gradient) <= TOLERANCE || moved <= TOLERANCE || (loss - last).abs() < TOLERANCE;
        if done || evaluations >= 62 {
            break;
        }
    }
    b.into_iter().map(f64::from).collect()
}

/// The history of L-BFGS: changes of the gradient and the corresponding steps.
struct History {
    pairs: Vec<(Vec<f32>, Vec<f32>, f32)>,
    scale: f32,
}

impl History {
    fn learn(&mut self, change: Vec<f32>, moved: Vec<f32>) {
        let curvature = dot(&change, &moved);
        if curvature > 1e-10 {
            self.scale = curvature / dot(&change, &change);
            self.pairs.push((change, moved, 1.0 / curvature));
            if self.pairs.len() > 100 {
                self.pairs.remove(0);
            }
        }
    }

    fn direction(&self, gradient: &[f32]) -> Vec<f32> {
        let mut d: Vec<f32> = gradient.iter().map(|g| -g).collect();
        let mut alphas = Vec::with_capacity(self.pairs.len());
        for (change, moved, rho) in self.pairs.iter().rev() {
            let alpha = dot(moved, &d) * rho;
            d.iter_mut().zip(change).for_each(|(d, y)| *d -= alpha * y);
            alphas.push(alpha);
        }
        d.iter_mut().for_each(|d| *d *= self.scale);
        for ((change, moved, rho), alpha) in self.pairs.iter().zip(alphas.into_iter().rev()) {
            let beta = dot(change, &d) * rho;
            d.iter_mut().zip(moved).for_each(|(d, s)| *d += s * (alpha - beta));
        }
        d
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, value| most.max(value.abs()))
}

/// Returns the coefficients at the optimum of `|b|_1 + c * loss(b)`, as scikit-learn's `penalty="l1"`.
///
/// Newton steps whose quadratic model, with the penalty, is minimised one coordinate at a time.
///
/// ```
/// use salsa_algo::judge::logistic::{Design, lasso};
/// let mut design = Design::new(1);
/// [1.0, 1.0, 1.0, 0.0].iter().for_each(|&outcome| design.push(&[(0, 1.0)], outcome));
/// // At 0 the slope is c * (4 * 1/2 - 3) = -c: below the penalty's slope of 1 nothing moves.
/// assert_eq!(lasso(&design, &[1.0; 4], 0.9), [0.0]);
/// // At the optimum 4 p - 3 = -1 / c: for c = 2, p = 5/8.
/// assert!((lasso(&design, &[1.0; 4], 2.0)[0] - (5.0f64 / 3.0).ln()).abs() < 1e-9);
/// ```
///
/// # Panics
/// If the number of weights differs from the number of rows.
pub fn lasso(design: &Design, weights: &[f64], c: f64) -> Vec<f64> {
    assert_eq!(weights.len(), design.rows(), "a weight for each row");
    let d = design.parameters;
    let penalised = |b: &[f64]| c * design.loss(weights, b) + b.iter().map(|b| b.abs()).sum::<f64>();
    let mut b = vec![0.0; d];
    let mut loss = penalised(&b);
    for _ in 0..100 {
        let (gradient, hessian) = design.derivatives(weights, &b);
        let mut target = b.clone();
        for _ in 0..1000 {
            let mut moved: f64 = 0.0;
            for j in 0..d {
                let curvature = c * hessian[j * d + j] + SINGULAR;
                let slope = c * gradient[j] + (0..d).map(|k| c * hessian[j * d + k] * (target[k] - b[k])).sum::<f64>();
                let free = target[j] - slope / curvature;
                let next = free.signum() * (free.abs() - 1.0 / curvature).max(0.0);
                moved = moved.max((next - target[j]).abs());
                target[j] = next;
            }
            if moved < 1e-13 {
                break;
            }
        }
        let step: Vec<f64> = b.iter().zip(&target).map(|(b, target)| b - target).collect();
        let Some((next, lower)) = descend(&b, &step, loss, &penalised) else { break };
        (b, loss) = (next, lower);
        if step.iter().all(|step| step.abs() < CONVERGED) {
            break;
        }
    }
    b
}

impl Design {
    fn derivatives_only_first(&self, weights: &[f64], b: &[f64]) -> Vec<f32> {
        let mut gradient = vec![0.0; self.parameters];
        for i in (0..self.rows()).filter(|&i| weights[i] != 0.0) {
            let slope = weights[i] * (sigmoid(self.logit(i, b)) - self.outcomes[i]);
            self.row(i).iter().for_each(|&(j, x)| gradient[j] += slope * x);
        }
        gradient.into_iter().map(|g: f64| g as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{judge::arena, random::uniform};

    /// A star of battles against one baseline (parameter 0): the maximum of the likelihood is each model's own win rate.
    #[test]
    fn in_a_star_the_fit_is_the_win_rate() {
        let (mut design, mut games) = (Design::new(4), vec![Vec::new(); 4]);
        for (model, wins, ties, losses) in [(1, 30, 4, 70), (2, 9, 0, 2), (3, 50, 50, 50)] {
            for (points, count) in [(1.0, wins), (0.5, ties), (0.0, losses)] {
                for _ in 0..count {
                    design.push(&[(model, 1.0), (0, -1.0)], points);
                    games[model].push(arena::Game { points, copies: 1 });
                }
            }
        }
        let b = exact(&design, &vec![1.0; design.rows()], 0.0);
        for (model, games) in games.iter().enumerate().skip(1) {
            let rate = arena::win_rate(games).expect("it has games");
            assert!((sigmoid(b[model] - b[0]) - rate).abs() < 1e-9, "{model}: {b:?} {rate}");
        }
    }

    fn random_design(rows: u64) -> Design {
        let mut design = Design::new(4);
        for i in 0..rows {
            let x = |k: u64| uniform(5, k, i) * 2.0 - 1.0;
            let z = 0.8 * x(1) - 1.2 * x(2) + 0.3;
            design
                .push(&[(0, 1.0), (1, x(1)), (2, x(2)), (3, x(3))], f64::from(u8::from(uniform(6, 0, i) < sigmoid(z))));
        }
        design
    }

    #[test]
    fn the_gradient_vanishes_at_the_optimum() {
        let design = random_design(400);
        let weights: Vec<f64> = (0..400).map(|i| uniform(8, 1, i)).collect();
        for ridge in [0.0, 1.0] {
            let b = exact(&design, &weights, ridge);
            let (gradient, _) = design.derivatives(&weights, &b);
            for (g, b) in gradient.iter().zip(&b) {
                assert!((g + ridge * b).abs() < 1e-8, "{gradient:?}");
            }
        }
    }

    #[test]
    fn a_penalty_shrinks_and_a_weight_is_a_repetition() {
        let design = random_design(100);
        let size = |b: Vec<f64>| b.iter().map(|b| b * b).sum::<f64>();
        let ones = vec![1.0; 100];
        assert!(size(exact(&design, &ones, 1.0)) < size(exact(&design, &ones, 0.0)));
        let mut twice = Design::new(4);
        for _ in 0..2 {
            (0..100).for_each(|i| twice.push(design.row(i), design.outcomes[i]));
        }
        let (a, b) = (exact(&design, &[2.0; 100], 1.0), exact(&twice, &[1.0; 200], 1.0));
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-9));
    }

    #[test]
    fn what_has_no_optimum_ends_at_certainty() {
        let mut design = Design::new(2);
        (0..20).for_each(|_| design.push(&[(0, 1.0)], 1.0));
        (0..20).for_each(|i| design.push(&[(1, 1.0)], f64::from(i % 2)));
        let b = exact(&design, &[1.0; 40], 0.0);
        assert!(sigmoid(b[0]) > 1.0 - 1e-9 && b[1].abs() < 1e-9, "{b:?}");
    }

    /// In a simulation of 12 models the tool's scores are nearer to 50 % than the true ones, by tenths of a point.
    #[test]
    fn the_tool_stops_short_of_the_optimum() {
        let rates = [0.81, 0.14, 0.06, 0.5];
        let mut design = Design::new(5);
        for (model, rate) in rates.iter().enumerate() {
            for i in 0..1000 {
                design.push(&[(model + 1, 1.0), (0, -1.0)], f64::from(u8::from(f64::from(i) < rate * 1000.0)));
            }
        }
        let weights = vec![1.0; design.rows()];
        let (tool, best) = (as_arena_hard(&design, &weights), exact(&design, &weights, 0.0));
        for (model, rate) in rates.iter().enumerate() {
            let of = |b: &[f64]| sigmoid(b[model + 1] - b[0]);
            assert!((of(&best) - rate).abs() < 1e-9);
            let short = (of(&best) - 0.5).abs() - (of(&tool) - 0.5).abs();
            assert!((-0.001..0.005).contains(&short), "{model}: {} {}", of(&tool), of(&best));
        }
        let far = (sigmoid(tool[3] - tool[0]) - 0.06).abs();
        assert!(far > 1e-4, "it should not arrive: {far}");
    }

    #[test]
    fn the_sparse_fit_meets_its_conditions() {
        let design = random_design(300);
        let weights = vec![0.7; 300];
        for c in [0.01, 0.05, 1.0, 1e4] {
            let b = lasso(&design, &weights, c);
            let (gradient, _) = design.derivatives(&weights, &b);
            for (g, b) in gradient.iter().zip(&b) {
                let slope = c * g;
                let fine =
                    if *b == 0.0 { slope.abs() <= 1.0 + 1e-7 } else { (slope + b.signum()).abs() < 1e-6 * c.max(1.0) };
                assert!(fine, "{c}: {slope} {b}");
            }
        }
        assert_eq!(lasso(&design, &weights, 1e-4), [0.0; 4]);
    }
}
