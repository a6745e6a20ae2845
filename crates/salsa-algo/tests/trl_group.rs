//! The crate against TRL's GRPO and RLOO: losses, gradients and advantages of TRL's own code.

// Numbers stand side by side.
#[rustfmt::skip]
#[path = "golden/trl_group.rs"]
mod golden;

use golden::{ADVANTAGES, Golden, INPUTS, LENGTHS, LOSSES};
use salsa_algo::group::{
    Baseline, Batch, Denominators, ImportanceLevel, KlPenalty, LossType, ScaleRewards, Settings, advantages, loss,
    tokens_to_go,
};
use salsa_algo::kl::KlEstimator;

const TOLERANCE: f64 = 1e-12;

#[track_caller]
fn assert_close(what: &str, computed: &[f64], expected: &[f64]) {
    assert_eq!(computed.len(), expected.len(), "{what}");
    for (i, (c, e)) in computed.iter().zip(expected).enumerate() {
        assert!((c - e).abs() <= TOLERANCE, "{what}[{i}]: {c}, TRL has {e}");
    }
}

fn method(name: &str) -> (Baseline, LossType) {
    match name {
        "grpo" => (Baseline::Group, LossType::Grpo),
        "bnpo" => (Baseline::Group, LossType::Bnpo),
        "dr_grpo" => (Baseline::Group, LossType::DrGrpo),
        "dapo" => (Baseline::Group, LossType::Dapo),
        "rloo" => (Baseline::LeaveOneOut, LossType::Grpo),
        other => panic!("{other}"),
    }
}

#[test]
fn losses_and_gradients_are_trl_s() {
    assert_eq!(LOSSES.len(), 4 * (4 * 2 * 2 + 1));
    for &Golden { case, method: name, level, beta, limit, loss: expected, gradient } in LOSSES {
        let [old, new, reference, rewards] = INPUTS[case];
        let (baseline, loss_type) = method(name);
        let scale = if name == "rloo" { ScaleRewards::None } else { ScaleRewards::Group };
        let settings = Settings {
            loss_type,
            level: match level {
                "token" => ImportanceLevel::Token,
                "sequence" => ImportanceLevel::Sequence,
                _ => ImportanceLevel::Product,
            },
            clip_low: 0.1,
            clip_high: 0.2,
            ratio_limit: limit.unwrap_or(f64::INFINITY),
            penalty: (beta > 0.0).then_some(KlPenalty { beta, estimator: KlEstimator::K3 }),
        };
        let batch = Batch {
            logprobs: new,
            old_logprobs: old,
            references: &[(1.0, reference)],
            lengths: &LENGTHS,
            advantages: &tokens_to_go(&advantages(rewards, 4, baseline, scale), &LENGTHS, old, 0.0),
            counted: &[true; 4],
        };
        let found = loss(&batch, &settings, Denominators { responses: 4, tokens: 14.0, longest: 6 });
        let what = format!("{name} {level} {beta} {limit:?} of case {case}");
        assert_close(&what, &[found.loss], &[expected]);
        assert_close(&what, &found.d_logprobs, gradient);
    }
}

#[test]
fn advantages_are_trl_s() {
    for &(case, name, scale, expected) in ADVANTAGES {
        let scale = match scale {
            "group" => ScaleRewards::Group,
            "batch" => ScaleRewards::Batch,
            _ => ScaleRewards::None,
        };
        let found = advantages(INPUTS[case][3], 4, method(name).0, scale);
        assert_close(&format!("{name} {scale:?} of case {case}"), &found, expected);
    }
}
