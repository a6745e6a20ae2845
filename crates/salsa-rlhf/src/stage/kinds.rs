//! The table of stages: one line each.
use serde_json::Value;

use super::{
    StageContext, dpo, evaluate, generate,
    kind::{Kind, Product, Stage},
    kitchen, landscape, logprobs, ppo, pretrain, reward, score, sft, soup, winrate,
};

/// `"name" => module::Config, what it leaves;` — the module's `run` does the work, the configuration's `validate` checks it.
macro_rules! kinds {
    ($($name:literal => $module:ident::$config:ident, $product:expr;)*) => {
        $(impl Stage for $module::$config {
            fn check(&self) -> anyhow::Result<()> {
                $module::$config::validate(self)
            }

            fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
                $module::run(self, context)
            }
        })*

        /// Every kind of stage.
        pub const KINDS: &[Kind] = &[$(Kind::new::<$module::$config>($name, $product)),*];
    };
}

kinds! {
    "pretrain" => pretrain::PretrainConfig, Product::Directory;
    "sft" => sft::SftConfig, Product::Directory;
    "soup" => soup::SoupConfig, Product::Directory;
    "reward" => reward::RewardConfig, Product::Directory;
    "ppo" => ppo::PpoConfig, Product::Directory;
    "dpo" => dpo::DpoConfig, Product::Directory;
    "evaluate" => evaluate::EvaluateConfig, Product::Directory;
    "landscape" => landscape::LandscapeConfig, Product::Directory;
    "kitchen" => kitchen::KitchenConfig, Product::Directory;
    "generate" => generate::GenerateConfig, Product::File("responses.jsonl");
    "score" => score::ScoreConfig, Product::File("scores.jsonl");
    "winrate" => winrate::WinrateConfig, Product::Results;
    "logprobs" => logprobs::LogprobsConfig, Product::File("logprobs.jsonl");
}

/// The kind of this name.
pub fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_key_for_its_product_and_keeps_its_defaults() {
        for kind in KINDS {
            let defaults = (kind.defaults)();
            if let Some(key) = kind.product.key() {
                assert_eq!(defaults.get(key), Some(&Value::String(String::new())), "{}", kind.name);
            }
            if let Some(planned) = (kind.load)(None, &[]).ok().map(|planned| planned.config) {
                assert_eq!(planned, Value::Object(defaults), "{}", kind.name);
            }
        }
    }
}
