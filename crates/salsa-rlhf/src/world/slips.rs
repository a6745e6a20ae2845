//! The mistakes of the noisy cook and their probabilities.

use salsa_engine::random::Random;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slip {
    /// A wanted ingredient is forgotten.
    Forget,
    /// A forbidden ingredient is used.
    Avoided,
    /// One step too many or too few.
    StepCount,
    /// Two adjacent steps are swapped.
    Order,
    /// A tone other than the requested one.
    Tone,
    /// A step overwrites the next one.
    Repeat,
    /// No closing sentence.
    NoClosing,
    /// All wishes are forgotten.
    Wish,
    /// Another family's dish is made.
    Method,
    /// Four unwanted ingredients.
    Spam,
    /// A number is repeated or left out.
    Numbering,
    /// A verb that does not suit the ingredient.
    Misfit,
}

/// The mistakes in one answer.
#[derive(Clone, Debug)]
pub(super) struct Slips(Vec<Slip>);

/// Share of good days.
const GOOD_DAYS: f64 = 0.16;

impl Slip {
    /// Mistake, probability on a good day, probability on any other day.
    ///
    /// Good and bad days spread the quality of the answers: perfect ones are frequent enough to be learned, and the
    /// average one is far from perfect. The cook usually (more often than not, over all days) forgets the closing and
    /// the wishes, so that even the most likely answer can be improved.
    pub(super) const HABITS: [(Slip, f64, f64); 12] = [
        (Slip::Forget, 0.10, 0.48),
        (Slip::Avoided, 0.10, 0.58),
        (Slip::StepCount, 0.10, 0.58),
        (Slip::Order, 0.05, 0.45),
        (Slip::Tone, 0.10, 0.62),
        (Slip::Repeat, 0.05, 0.28),
        (Slip::NoClosing, 0.15, 0.75),
        (Slip::Wish, 0.25, 0.80),
        (Slip::Method, 0.05, 0.38),
        (Slip::Spam, 0.04, 0.18),
        (Slip::Numbering, 0.05, 0.25),
        (Slip::Misfit, 0.05, 0.28),
    ];
}

impl Slips {
    /// No mistakes.
    pub(super) fn none() -> Slips {
        Slips(Vec::new())
    }

    /// Exactly this mistake.
    #[cfg(test)]
    pub(super) fn only(slip: Slip) -> Slips {
        Slips(vec![slip])
    }

    /// Draws the mistakes of a day.
    pub(super) fn draw(rng: &mut Random) -> Slips {
        let good = rng.uniform() < GOOD_DAYS;
        let mut made = Vec::new();
        for (slip, on_good_days, on_bad_days) in Slip::HABITS {
            if rng.uniform() < if good { on_good_days } else { on_bad_days } {
                made.push(slip);
            }
        }
        Slips(made)
    }

    /// Whether this mistake is among them.
    pub(super) fn has(&self, slip: Slip) -> bool {
        self.0.contains(&slip)
    }
}
