//! The crate against TRL's online DPO: pairs, losses, gradients and metrics of TRL's own code.

// Numbers stand side by side.
#[rustfmt::skip]
#[path = "golden/trl_online_dpo.rs"]
mod golden;

use golden::{ENDED, INPUTS, LENGTHS, STEPS};
use salsa_algo::{
    preference::{
        dpo::{Batch, LossType, Objective, loss},
        online::{Pairing, pairs},
    },
    reward::{Ending, MissingEos, ScoreRule},
};

const TOLERANCE: f64 = 1e-12;

#[track_caller]
fn assert_close(what: &str, computed: &[f64], expected: &[f64]) {
    assert_eq!(computed.len(), expected.len(), "{what}");
    for (i, (c, e)) in computed.iter().zip(expected).enumerate() {
        assert!((c - e).abs() <= TOLERANCE * e.abs().max(1.0), "{what}[{i}]: {c}, TRL has {e}");
    }
}

/// The sum of the log-probs of each response's tokens.
fn responses(mut tokens: &[f64]) -> Vec<f64> {
    let sum = |length: &usize| {
        let (own, rest) = tokens.split_at(*length);
        tokens = rest;
        own.iter().sum()
    };
    LENGTHS.iter().map(sum).collect()
}

#[test]
fn pairs_losses_and_gradients_are_trl_s() {
    assert_eq!(STEPS.len(), 3 * 2 * 2);
    let mut ties = 0;
    for &(name, case, beta, penalty, expected, gradient, metrics) in STEPS {
        let [policy, reference, scores] = INPUTS[case];
        let (policy, reference) = (responses(policy), responses(reference));
        let missing_eos = penalty.map_or(MissingEos::Keep, MissingEos::Subtract);
        let rule = ScoreRule { clip: f64::INFINITY, missing_eos };
        let ending = |ended: bool| if ended { Ending::Eos } else { Ending::Cut };
        let rewards: Vec<f64> = scores.iter().zip(ENDED).map(|(&s, ended)| rule.apply(s, ending(ended))).collect();
        let pairs = pairs(&rewards, 2, Pairing::BestWorst);
        ties += pairs.iter().filter(|pair| pair.is_tie).count();
        let of = |numbers: &[f64]| -> [Vec<f64>; 2] {
            [
                pairs.iter().map(|pair| numbers[pair.chosen]).collect(),
                pairs.iter().map(|pair| numbers[pair.rejected]).collect(),
            ]
        };
        let ([chosen, rejected], [ref_chosen, ref_rejected]) = (of(&policy), of(&reference));
        let loss_type = if name == "ipo" { LossType::Ipo } else { LossType::Sigmoid };
        let batch =
            Batch { chosen: &chosen, rejected: &rejected, ref_chosen: &ref_chosen, ref_rejected: &ref_rejected };
        let found = loss(&batch, &Objective::new(loss_type, beta), pairs.len());
        let what = format!("{name}, beta {beta}, penalty {penalty:?}, case {case}");
        assert_close(&what, &[found.loss], &[expected]);
        let mut by_response = [0.0; LENGTHS.len()];
        for (at, pair) in pairs.iter().enumerate() {
            by_response[pair.chosen] = found.d_chosen[at];
            by_response[pair.rejected] = found.d_rejected[at];
        }
        assert_close(&what, &by_response, gradient);
        let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len() as f64;
        let [high, low] = of(&rewards);
        let computed = [
            mean(&rewards),
            mean(&high) - mean(&low),
            mean(&chosen),
            mean(&rejected),
            mean(&found.rewards_chosen),
            mean(&found.rewards_rejected),
            found.accuracy,
            found.reward_margin,
        ];
        assert_close(&what, &computed, metrics);
    }
    assert_eq!(ties, STEPS.len(), "of two equal rewards the first response is the chosen one");
}
