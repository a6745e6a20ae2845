//! The table of stages: one line each.
use super::{
    arithmetic,
    eval::{evaluate, judge, landscape, winrate},
    kind::Kind,
    kitchen,
    lines::{generate, logprobs, score},
    rl::{grpo, online_dpo, ppo},
    soup,
    supervised::{cpo, dpo, kto, orpo, pretrain, reward, sft},
};

/// Every kind of stage, in the order of `salsa --help`.
pub const STAGES: &[Kind] = &[
    Kind::of::<pretrain::PretrainConfig>(),
    Kind::of::<sft::SftConfig>(),
    Kind::of::<soup::SoupConfig>(),
    Kind::of::<reward::RewardConfig>(),
    Kind::of::<ppo::PpoConfig>(),
    Kind::of::<grpo::GrpoConfig>(),
    Kind::of::<online_dpo::OnlineDpoConfig>(),
    Kind::of::<dpo::DpoConfig>(),
    Kind::of::<kto::KtoConfig>(),
    Kind::of::<orpo::OrpoConfig>(),
    Kind::of::<cpo::CpoConfig>(),
    Kind::of::<evaluate::EvaluateConfig>(),
    Kind::of::<landscape::LandscapeConfig>(),
    Kind::of::<generate::GenerateConfig>(),
    Kind::of::<score::ScoreConfig>(),
    Kind::of::<logprobs::LogprobsConfig>(),
    Kind::of::<winrate::WinrateConfig>(),
    Kind::of::<judge::JudgeConfig>(),
    Kind::of::<kitchen::KitchenConfig>(),
    Kind::of::<arithmetic::ArithmeticConfig>(),
    #[cfg(test)]
    Kind::of::<tests::Census>(),
];

/// Finds a kind by name.
pub(crate) fn find(name: &str) -> Option<&'static Kind> {
    STAGES.iter().find(|kind| kind.name == name)
}

#[cfg(test)]
mod tests;
