//! The table of stages: one line each.
use serde_json::Value;

use super::{
    StageContext,
    eval::{evaluate, landscape, winrate},
    kind::{Kind, Product, Stage},
    kitchen,
    lines::{generate, logprobs, score},
    rl::ppo,
    soup,
    supervised::{dpo, pretrain, reward, sft},
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
    use std::{fs, path::Path};

    use super::*;

    /// The fields with a bare path, among the types that are part of a configuration, in the sources under `dir`.
    fn bare_paths(dir: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                bare_paths(&path, found);
            } else {
                found.extend(bare_paths_of(&fs::read_to_string(&path).unwrap()));
            }
        }
    }

    fn bare_paths_of(source: &str) -> Vec<String> {
        let has_schema = |item: &&str| item.lines().next().is_some_and(|derived| derived.contains("JsonSchema"));
        let of_types = source.split("\n#[derive(").skip(1).filter(has_schema);
        let lines = of_types.flat_map(|item| item.split("\n}").next().unwrap_or_default().lines().skip(1));
        lines.filter(|line| line.contains("PathBuf")).map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn no_input_of_a_configuration_is_a_bare_path() {
        let mut found = Vec::new();
        bare_paths(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/stage"), &mut found);
        let places = ["pub output_dir: PathBuf,", "pub output: PathBuf,"];
        found.retain(|line| !places.contains(&line.as_str()));
        assert!(found.is_empty(), "use ModelPath or DataPath, so that a change of it is noticed: {found:?}");
        let judge =
            "\n#[derive(Clone, JsonSchema)]\nstruct C {\n    pub judge: Option<PathBuf>,\n}\nfn f(_: PathBuf) {}";
        assert_eq!(bare_paths_of(judge), ["pub judge: Option<PathBuf>,"]);
    }

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
