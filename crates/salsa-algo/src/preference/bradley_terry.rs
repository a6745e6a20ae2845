//! The reward model's loss: the chosen response should score higher than the rejected one.

use super::{sigmoid, softplus, weight};

/// The margin by which the chosen response should win.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Margins<'a> {
    /// No margin.
    #[default]
    None,
    /// One margin per pair, as graded by annotators.
    Each(&'a [f64]),
}

/// One micro-batch's share of the loss and its statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Share of the mean loss.
    pub loss: f64,
    /// Derivative of `loss` by each chosen score.
    pub d_chosen: Vec<f64>,
    /// Derivative of `loss` by each rejected score.
    pub d_rejected: Vec<f64>,
    /// Share of the pairs in which chosen scores strictly higher (margins are ignored).
    pub accuracy: f64,
    /// Share of the mean of `chosen - rejected`.
    pub score_gap: f64,
}

/// Returns one micro-batch's share of the Bradley–Terry loss, with its derivatives.
///
/// ```text
/// gap        = chosen - rejected - margin
/// loss       = sum [ softplus(-gap) + centering * (chosen + rejected)^2 ] / pairs         softplus(-x) = -ln sigmoid(x)
/// d_chosen   = [ -sigmoid(-gap) + 2 * centering * (chosen + rejected) ] / pairs
/// d_rejected = [ +sigmoid(-gap) + 2 * centering * (chosen + rejected) ] / pairs
/// ```
///
/// Slices have one score per pair; `pairs` counts the whole batch. `centering` 0 disables the second term, TRL
/// recommends .01. Sources: Bradley and Terry 1952; Ouyang et al. 2022 (2203.02155), equation 1; the margin: Touvron et
/// al. 2023 (2307.09288), equation 2; centering: Eisenstein et al. 2023 (2312.09244).
///
/// ```
/// use salsa_algo::preference::bradley_terry::{Margins, loss};
/// let undecided = loss(&[1.0], &[1.0], Margins::None, 0.0, 1);
/// assert_eq!(undecided.loss, 2f64.ln());
/// assert_eq!((undecided.d_chosen[0], undecided.d_rejected[0], undecided.accuracy), (-0.5, 0.5, 0.0));
/// ```
///
/// # Panics
/// If the lengths differ or exceed `pairs`.
pub fn loss(chosen: &[f64], rejected: &[f64], margins: Margins, centering: f64, pairs: usize) -> Loss {
    assert_eq!(chosen.len(), rejected.len(), "one rejected score per chosen score");
    if let Margins::Each(margins) = margins {
        assert_eq!(chosen.len(), margins.len(), "one margin per pair");
    }
    let weight = weight(chosen.len(), pairs);
    let (mut sum, mut right, mut gaps) = (0.0, 0.0, 0.0);
    let (mut d_chosen, mut d_rejected) = (Vec::with_capacity(chosen.len()), Vec::with_capacity(chosen.len()));
    for (i, (c, r)) in chosen.iter().zip(rejected).enumerate() {
        let margin = match margins {
            Margins::None => 0.0,
            Margins::Each(margins) => margins[i],
        };
        let gap = c - r - margin;
        let pull = sigmoid(-gap);
        let center = 2.0 * centering * (c + r);
        sum += softplus(-gap) + centering * (c + r).powi(2);
        d_chosen.push((center - pull) * weight);
        d_rejected.push((center + pull) * weight);
        right += f64::from(u8::from(c > r));
        gaps += c - r;
    }
    Loss { loss: sum * weight, d_chosen, d_rejected, accuracy: right * weight, score_gap: gaps * weight }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, gradient};

    #[test]
    fn pencil_table() {
        // gap ln 3: sigmoid = 3/4, loss = ln(4/3), pull 1/4
        let ln3 = 3f64.ln();
        for (chosen, rejected, margins, centering, loss_is, d_chosen, d_rejected) in [
            (ln3, 0.0, Margins::None, 0.0, (4.0f64 / 3.0).ln(), -0.25, 0.25),
            (0.0, ln3, Margins::None, 0.0, 4f64.ln(), -0.75, 0.75),
            (ln3 + 2.0, 0.0, Margins::Each(&[2.0]), 0.0, (4.0f64 / 3.0).ln(), -0.25, 0.25),
            (1.0, 1.0, Margins::None, 0.1, 2f64.ln() + 0.4, -0.1, 0.9), // .1 * 2^2, 2 * .1 * 2
        ] {
            let result = loss(&[chosen], &[rejected], margins, centering, 1);
            let got = [result.loss, result.d_chosen[0], result.d_rejected[0]];
            assert_close(&got, &[loss_is, d_chosen, d_rejected], 1e-15);
        }
    }

    #[test]
    fn derivatives() {
        let x = [0.5, -1.0, 2.0, 0.1, 1.5, -0.3];
        let at = |x: &[f64]| loss(&x[..3], &x[3..], Margins::Each(&[0.0, 1.0, 0.5]), 0.05, 5);
        let expected = gradient(|x| at(x).loss, &x);
        assert_close(&at(&x).d_chosen, &expected[..3], 1e-9);
        assert_close(&at(&x).d_rejected, &expected[3..], 1e-9);
    }

    #[test]
    fn statistics_ignore_the_margin_and_a_tie_is_not_a_success() {
        let result = loss(&[1.0, 2.0, 0.0, 3.0], &[0.5, 1.0, 0.0, 4.0], Margins::Each(&[9.0; 4]), 0.0, 8);
        assert_eq!((result.accuracy, result.score_gap), (2.0 / 8.0, 0.5 / 8.0));
    }

    #[test]
    fn without_centering_a_common_offset_changes_nothing() {
        let (a, b) = (loss(&[1.0], &[0.25], Margins::None, 0.0, 1), loss(&[9.0], &[8.25], Margins::None, 0.0, 1));
        assert_eq!(a, b);
        let far = loss(&[-1e4], &[1e4], Margins::None, 0.0, 1);
        assert_eq!((far.loss, far.d_chosen[0]), (2e4, -1.0));
    }

    #[test]
    fn micro_batches_add_up() {
        let (c, r) = ([0.3, 1.0, -2.0], [0.1, 1.5, -1.0]);
        let whole = loss(&c, &r, Margins::None, 0.01, 3);
        let parts =
            loss(&c[..1], &r[..1], Margins::None, 0.01, 3).loss + loss(&c[1..], &r[1..], Margins::None, 0.01, 3).loss;
        assert!((whole.loss - parts).abs() < 1e-15);
        assert_eq!(loss(&[], &[], Margins::None, 0.0, 0).loss, 0.0);
    }

    #[test]
    #[should_panic(expected = "one margin per pair")]
    fn margins_must_fit() {
        loss(&[0.0], &[0.0], Margins::Each(&[]), 0.0, 1);
    }

    #[test]
    #[should_panic(expected = "fewer pairs (1)")]
    fn the_denominator_counts_the_whole_batch() {
        loss(&[0.0; 2], &[0.0; 2], Margins::None, 0.0, 1);
    }
}
