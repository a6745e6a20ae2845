//! ORPO: fine-tuning on the chosen response, with the odds against the rejected one as a penalty; no reference.

use super::{PairLoss, sigmoid, softplus};

/// One micro-batch's share of the odds-ratio loss and its statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct OddsLoss {
    /// Loss, derivatives and rewards.
    pub pairs: PairLoss,
    /// Share of the mean of `log sigmoid(log odds ratio)`.
    pub log_odds_ratio: f64,
    /// Share of the mean log odds ratio of chosen to rejected.
    pub log_odds_chosen: f64,
}

/// Returns one micro-batch's share of the odds-ratio loss, with its derivatives; ORPO adds the likelihood of the chosen
/// sequence ([`super::negative_log_likelihood`]).
///
/// ```text
/// odds(p)    = p / (1 - p)                          p = exp(log-prob per token)
/// log_odds   = ln odds(chosen) - ln odds(rejected)
/// loss       = sum -beta * ln sigmoid(log_odds) / pairs
/// d_chosen   = -beta * sigmoid(-log_odds) / (1 - exp(chosen)) / pairs
/// d_rejected = +beta * sigmoid(-log_odds) / (1 - exp(rejected)) / pairs
/// ```
///
/// `chosen` and `rejected` are **means** over the tokens of the response; divide the derivatives by the lengths. Means
/// above `-2^-52` count as that: the odds of what is certain are infinite. Source: Hong et al. 2024 (2403.07691),
/// equations 4, 6 and 7; `beta` is the paper's lambda.
///
/// ```
/// use salsa_algo::preference::orpo::loss;
/// let ln = |p: f64| p.ln();
/// let even = loss(&[ln(0.5)], &[ln(0.5)], 1.0, 1);
/// assert_eq!((even.pairs.loss, even.pairs.d_chosen[0]), (2f64.ln(), -1.0)); // 1/2 / (1 - 1/2)
/// let won = loss(&[ln(0.75)], &[ln(0.5)], 1.0, 1); // odds 3 to 1: sigmoid(ln 3) = 3/4
/// assert!((won.pairs.loss - (4.0f64 / 3.0).ln()).abs() < 1e-15);
/// assert!((won.log_odds_chosen - 3f64.ln()).abs() < 1e-15);
/// ```
///
/// # Panics
/// If the lengths differ or exceed `pairs`.
pub fn loss(chosen: &[f64], rejected: &[f64], beta: f64, pairs: usize) -> OddsLoss {
    let at = |c: f64, r: f64| {
        let x = log_odds(c, r);
        let pull = beta * sigmoid(-x);
        (beta * softplus(-x), -pull / improbable(c), pull / improbable(r))
    };
    let weight = super::weight(chosen.len(), pairs);
    let mean =
        |f: &dyn Fn(f64) -> f64| chosen.iter().zip(rejected).map(|(&c, &r)| f(log_odds(c, r))).sum::<f64>() * weight;
    OddsLoss {
        log_odds_ratio: mean(&|x| -softplus(-x)),
        log_odds_chosen: mean(&|x| x),
        pairs: PairLoss::sum(chosen, rejected, beta, pairs, at),
    }
}

/// `1 - exp(logprob)`, above 0.
fn improbable(logprob: f64) -> f64 {
    -logprob.min(-f64::EPSILON).exp_m1()
}

fn log_odds(chosen: f64, rejected: f64) -> f64 {
    (chosen - rejected) - (improbable(chosen).ln() - improbable(rejected).ln())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, gradient};

    #[test]
    fn derivatives() {
        let x = [-0.1, -3.0, -2.0, -0.5, -2.5, -0.2];
        let at = |x: &[f64]| loss(&x[..3], &x[3..], 0.3, 4).pairs;
        let expected = gradient(|x| at(x).loss, &x);
        assert_close(&at(&x).d_chosen, &expected[..3], 1e-8);
        assert_close(&at(&x).d_rejected, &expected[3..], 1e-8);
    }

    #[test]
    fn a_certain_response_has_a_finite_loss() {
        for (chosen, rejected) in [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0)] {
            let result = loss(&[chosen], &[rejected], 0.1, 1).pairs;
            let numbers = [result.loss, result.d_chosen[0], result.d_rejected[0]];
            assert!(numbers.iter().all(|x| x.is_finite()), "{chosen} {rejected}: {numbers:?}");
        }
    }

    #[test]
    fn micro_batches_add_up() {
        let (c, r) = ([-0.3, -1.0, -2.0], [-0.1, -1.5, -1.0]);
        let part = |range: std::ops::Range<usize>| loss(&c[range.clone()], &r[range], 0.2, 3);
        let (whole, first, rest) = (part(0..3), part(0..1), part(1..3));
        assert_close(&[first.pairs.loss + rest.pairs.loss], &[whole.pairs.loss], 1e-15);
        assert_close(&[first.log_odds_chosen + rest.log_odds_chosen], &[whole.log_odds_chosen], 1e-15);
    }
}
