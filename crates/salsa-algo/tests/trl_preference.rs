//! The crate against TRL's DPO, KTO, ORPO and CPO: losses, gradients and metrics of TRL's own code.

// Numbers stand side by side.
#[rustfmt::skip]
#[path = "golden/trl_preference.rs"]
mod golden;

use golden::{CPO, DPO, INPUTS, KTO, LABELS, LENGTHS, ORPO};
use salsa_algo::preference::{PairLoss, cpo, dpo, kto, negative_log_likelihood, orpo};

const TOLERANCE: f64 = 1e-12;

#[track_caller]
fn assert_close(what: &str, computed: &[f64], expected: &[f64]) {
    assert_eq!(computed.len(), expected.len(), "{what}");
    for (i, (c, e)) in computed.iter().zip(expected).enumerate() {
        assert!((c - e).abs() <= TOLERANCE * e.abs().max(1.0), "{what}[{i}]: {c}, TRL has {e}");
    }
}

/// One log-prob per response: the sum over its tokens, or their mean.
fn responses(tokens: &[f64], is_per_token: bool) -> Vec<f64> {
    let mut rest = tokens;
    let mut of = |length: usize| {
        let (own, others) = rest.split_at(length);
        rest = others;
        own.iter().sum::<f64>() / if is_per_token { length as f64 } else { 1.0 }
    };
    LENGTHS.map(&mut of).to_vec()
}

/// The derivative by a token of each response.
fn by_token(loss: &PairLoss, is_per_token: bool) -> Vec<f64> {
    let all = loss.d_chosen.iter().chain(&loss.d_rejected).zip(LENGTHS);
    all.map(|(d, length)| if is_per_token { d / length as f64 } else { *d }).collect()
}

fn rewards(loss: &PairLoss) -> [f64; 4] {
    let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / 3.0;
    [mean(&loss.rewards_chosen), mean(&loss.rewards_rejected), loss.accuracy, loss.reward_margin]
}

fn dpo_loss(name: &str) -> dpo::LossType {
    use dpo::LossType as L;
    match name {
        "sigmoid" => L::Sigmoid,
        "hinge" => L::Hinge,
        "ipo" => L::Ipo,
        "exo_pair" => L::ExoPair,
        "nca_pair" => L::NcaPair,
        "robust" => L::Robust,
        "bco_pair" => L::BcoPair,
        "sppo_hard" => L::SppoHard,
        "apo_zero" => L::ApoZero,
        "apo_down" => L::ApoDown,
        "discopop" => L::Discopop,
        "sigmoid_norm" => L::SigmoidNorm,
        other => panic!("{other}"),
    }
}

#[test]
fn dpo_is_trl_s() {
    assert_eq!(DPO.len(), 3 * 12 * 2);
    for &(name, case, parameters, expected, gradient, metrics) in DPO {
        let loss_type = dpo_loss(name);
        // TRL's sigmoid knows no label smoothing.
        let label_smoothing = if name == "sigmoid" { 0.0 } else { parameters[1] };
        let objective = dpo::Objective { label_smoothing, ..dpo::Objective::new(loss_type, parameters[0]) };
        let [policy, reference, ..] = INPUTS[case].map(|tokens| responses(tokens, loss_type.is_per_token()));
        let batch = dpo::Batch {
            chosen: &policy[..3],
            rejected: &policy[3..],
            ref_chosen: &reference[..3],
            ref_rejected: &reference[3..],
        };
        let found = dpo::loss(&batch, &objective, 3);
        let what = format!("{name} {parameters:?} of case {case}");
        assert_close(&what, &[found.loss], &[expected]);
        assert_close(&what, &by_token(&found, loss_type.is_per_token()), gradient);
        // TRL's rewards are of sums where its loss is of means.
        if !loss_type.is_per_token() {
            assert_close(&what, &rewards(&found), metrics);
        }
    }
}

#[test]
fn kto_is_trl_s() {
    assert_eq!(KTO.len(), 3 * 2 * 2);
    let mut clamped = 0;
    for &(name, case, weights, expected, gradient, metrics) in KTO {
        let [logprobs, ref_logprobs, other, ref_other] = INPUTS[case].map(|tokens| responses(tokens, false));
        let kl = if name == "kto" { kto::kl(&other, &ref_other) } else { 0.0 };
        clamped += usize::from(name == "kto" && kl == 0.0);
        let [desirable_weight, undesirable_weight] = [weights[0], weights[1]];
        let objective = kto::Objective { beta: 0.3, desirable_weight, undesirable_weight };
        let batch = kto::Batch { logprobs: &logprobs, ref_logprobs: &ref_logprobs, desirable: &LABELS, kl };
        let found = kto::loss(&batch, &objective, 6);
        let what = format!("{name} {weights:?} of case {case}");
        assert_close(&what, &[found.loss], &[expected]);
        assert_close(&what, &found.d_logprobs, gradient);
        let mean = |wanted| {
            let rewards = found.rewards.iter().zip(LABELS).filter(|(_, label)| *label == wanted);
            rewards.map(|(reward, _)| reward).sum::<f64>() / 3.0
        };
        assert_close(&what, &[mean(true), mean(false), mean(true) - mean(false), kl], metrics);
    }
    assert!(clamped > 0 && clamped < 6, "a KL below 0 and one above: {clamped}");
}

#[test]
fn orpo_is_trl_s() {
    assert_eq!(ORPO.len(), 3 * 2);
    for &(name, case, parameters, expected, gradient, metrics) in ORPO {
        let [means, ..] = INPUTS[case].map(|tokens| responses(tokens, true));
        let [sums, ..] = INPUTS[case].map(|tokens| responses(tokens, false));
        let odds = orpo::loss(&means[..3], &means[3..], parameters[0], 3);
        // One more token of each chosen prompt, of log-prob -0.7.
        let tokens = LENGTHS[..3].iter().map(|length| length + 1).sum::<usize>() as f64;
        let (nll, d_nll) = negative_log_likelihood(sums[..3].iter().sum::<f64>() - 3.0 * 0.7, tokens);
        let what = format!("{name} {parameters:?} of case {case}");
        assert_close(&what, &[nll + odds.pairs.loss], &[expected]);
        assert_close(&what, &with_likelihood(by_token(&odds.pairs, true), d_nll, d_nll), gradient);
        let more = [nll, odds.log_odds_ratio, odds.log_odds_chosen];
        assert_close(&what, &[&rewards(&odds.pairs)[..], &more].concat(), metrics);
    }
}

#[test]
fn cpo_and_simpo_are_trl_s() {
    assert_eq!(CPO.len(), 3 * 4 * 2);
    for &(name, case, parameters, expected, gradient, metrics) in CPO {
        let loss_type = match name {
            "sigmoid" => cpo::LossType::Sigmoid,
            "hinge" => cpo::LossType::Hinge,
            "ipo" => cpo::LossType::Ipo,
            "simpo" => cpo::LossType::Simpo,
            other => panic!("{other}"),
        };
        let &[beta, label_smoothing, simpo_gamma, alpha] = parameters else { panic!("{parameters:?}") };
        let objective = cpo::Objective { loss_type, beta, label_smoothing, simpo_gamma };
        let [policy, ..] = INPUTS[case].map(|tokens| responses(tokens, loss_type.is_per_token()));
        let [sums, ..] = INPUTS[case].map(|tokens| responses(tokens, false));
        let found = cpo::loss(&policy[..3], &policy[3..], &objective, 3);
        let (nll, d_nll) = negative_log_likelihood(sums[..3].iter().sum(), LENGTHS[..3].iter().sum::<usize>() as f64);
        let what = format!("{name} {parameters:?} of case {case}");
        assert_close(&what, &[found.loss + alpha * nll], &[expected]);
        let gradients = with_likelihood(by_token(&found, loss_type.is_per_token()), alpha * d_nll, 0.0);
        assert_close(&what, &gradients, gradient);
        // TRL logs 0 where the likelihood has no weight.
        let logged = if alpha == 0.0 { 0.0 } else { nll };
        assert_close(&what, &[&rewards(&found)[..], &[logged]].concat(), metrics);
    }
}

/// Adds the derivative of the likelihood to those of the chosen responses, and that of a token of their prompts.
fn with_likelihood(mut gradient: Vec<f64>, response: f64, prompt: f64) -> Vec<f64> {
    gradient[..3].iter_mut().for_each(|d| *d += response);
    gradient.push(prompt);
    gradient
}
