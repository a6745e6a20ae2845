//! Learning-rate schedules, as `transformers` defines them.

use std::f64::consts::PI;

/// Shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[cfg_attr(feature = "serde", schemars(extend("x-aliases" = ["constant_with_warmup"])))]
pub enum Decay {
    /// Stays at `learning_rate`.
    #[cfg_attr(feature = "serde", serde(alias = "constant_with_warmup"))]
    Constant,
    /// Falls in a straight line to 0 at the last step.
    #[default]
    Linear,
    /// Falls along half a cosine to 0 at the last step.
    Cosine,
}

/// How long the learning rate rises from 0 at the start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// This many optimizer steps.
    Steps(usize),
    /// This share of all optimizer steps, rounded up.
    Ratio(f64),
}

impl Default for Warmup {
    fn default() -> Self {
        Warmup::Steps(0)
    }
}

impl Warmup {
    /// Returns the number of warm-up steps among `total` optimizer steps.
    ///
    /// ```text
    /// Steps(n): n          Ratio(r): ceil(total * r)
    /// ```
    ///
    /// A ratio that is negative or NaN counts as 0.
    ///
    /// ```
    /// use salsa_algo::schedule::Warmup;
    /// assert_eq!(Warmup::Ratio(0.1).steps(25), 3);
    /// ```
    pub fn steps(&self, total: usize) -> usize {
        match *self {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => (total as f64 * ratio).ceil() as usize, // `as` takes NaN and below 0 to 0
        }
    }
}

/// A learning-rate schedule: warm-up, then decay.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Schedule {
    /// The warm-up.
    pub warmup: Warmup,
    /// The decay.
    pub decay: Decay,
}

impl Schedule {
    /// Returns the factor of the peak learning rate at optimizer step `step` (from 0) of `total`.
    ///
    /// ```text
    /// w = warm-up steps
    /// step < w    step / w
    /// else        Constant 1      Linear 1 - p      Cosine (1 + cos(pi p)) / 2          p = (step - w) / (total - w)
    /// ```
    ///
    /// With a warm-up the first step has factor 0, as in `transformers`. After `total` the factor stays at its
    /// value at `total`: 0, or 1 if constant. Source: `transformers.optimization`, `get_*_schedule_with_warmup`.
    ///
    /// ```
    /// use salsa_algo::schedule::{Decay, Schedule, Warmup};
    /// let schedule = Schedule { warmup: Warmup::Steps(2), decay: Decay::Linear };
    /// let factors: Vec<f64> = (0..=6).map(|step| schedule.factor(step, 6)).collect();
    /// assert_eq!(factors, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]);
    /// ```
    pub fn factor(&self, step: usize, total: usize) -> f64 {
        let warmup = self.warmup.steps(total);
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let progress = ((step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64).min(1.0);
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - progress,
            Decay::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(warmup: Warmup, decay: Decay, total: usize, last: usize) -> Vec<f64> {
        (0..=last).map(|step| Schedule { warmup, decay }.factor(step, total)).collect()
    }

    #[track_caller]
    fn assert_curve(curve: Vec<f64>, expected: &[f64]) {
        crate::finite_difference::assert_close(&curve, expected, 1e-15);
    }

    #[test]
    fn curves_by_hand() {
        let half_root = 0.5f64.sqrt();
        assert_curve(curve(Warmup::Steps(0), Decay::Constant, 3, 5), &[1.0; 6]);
        assert_curve(curve(Warmup::Steps(4), Decay::Constant, 3, 5), &[0.0, 0.25, 0.5, 0.75, 1.0, 1.0]);
        assert_curve(curve(Warmup::Steps(0), Decay::Linear, 4, 6), &[1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]);
        let cosine = [0.0, 0.5, 1.0, (1.0 + half_root) / 2.0, 0.5, (1.0 - half_root) / 2.0, 0.0, 0.0];
        assert_curve(curve(Warmup::Steps(2), Decay::Cosine, 6, 7), &cosine);
    }

    #[test]
    fn ratios_round_up_like_transformers() {
        for (ratio, total, expected) in [(0.1, 100, 10), (0.1, 101, 11), (0.03, 10, 1), (0.0, 10, 0), (1.0, 7, 7)] {
            assert_eq!(Warmup::Ratio(ratio).steps(total), expected);
        }
        assert_eq!([Warmup::Ratio(-1.0).steps(9), Warmup::Ratio(f64::NAN).steps(9)], [0, 0]);
        assert_curve(curve(Warmup::Ratio(0.5), Decay::Linear, 4, 4), &[0.0, 0.5, 1.0, 0.5, 0.0]);
    }

    #[test]
    fn odd_lengths_do_no_harm() {
        // a warm-up as long as the run, or longer, or a run of no steps
        assert_curve(curve(Warmup::Steps(2), Decay::Linear, 2, 3), &[0.0, 0.5, 1.0, 0.0]);
        assert_curve(curve(Warmup::Steps(4), Decay::Cosine, 2, 2), &[0.0, 0.25, 0.5]);
        assert_curve(curve(Warmup::Steps(0), Decay::Linear, 0, 1), &[1.0, 0.0]);
    }
}
