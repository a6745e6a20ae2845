//! Checks that the products of earlier stages fit the stages that read them, as far as their kinds determine this. Such
//! an error would otherwise show only after the earlier stages have run.
use std::path::Path;

use anyhow::bail;

use super::{ErrorList, Step};
use crate::{
    config::{
        names,
        paths::{PathKind, visit_strings},
    },
    stage::{kind::Produces, reads::ModelUse},
};

/// Checks every input that is the product of an earlier stage.
///
/// # Errors
/// Every input that cannot be used, with its stage and key.
pub(super) fn check(steps: &[Step]) -> Result<(), ErrorList> {
    let mut faults = ErrorList::default();
    for (i, step) in steps.iter().enumerate() {
        for (place, kind, path) in inputs(step) {
            let fits = fits(steps, i, (&place, kind, &path));
            faults
                .take(fits.map_err(|error| error.context(format!("stages.{}: {}", step.name, as_given(step, &place)))));
        }
    }
    faults.none_or(())
}

fn fits(steps: &[Step], reader: usize, (place, kind, path): (&str, PathKind, &str)) -> anyhow::Result<()> {
    let Some(writer) = writer(steps, reader, kind, path) else { return Ok(()) };
    let (name, kind_name) = (&steps[writer].name, steps[writer].kind.name);
    let Some(left) = leaves(steps, writer) else { return Ok(()) };
    let is = format!("{name} is a stage of kind {kind_name}, which leaves {}", left.in_words());
    let used = steps[reader].planned.reads.model_use(place);
    match (kind, left) {
        (PathKind::Data, Produces::Data) => Ok(()),
        (PathKind::Data, Produces::Results) => bail!("{is}; name the file, as in ${{stages.{name}}}/FILE.jsonl"),
        (PathKind::Data, _) => bail!("{is}; data is needed here"),
        (PathKind::Model, Produces::Data | Produces::Results) => bail!("{is}; {} is needed here", in_words(used)),
        (PathKind::Model, model) => match used {
            ModelUse::Language if model == Produces::RewardModel => bail!("{is}; {} is needed here", in_words(used)),
            ModelUse::Reward | ModelUse::RewardOfReader if model == Produces::LanguageModel => {
                bail!("{is}; {} is needed here", in_words(used))
            }
            ModelUse::Metrics if steps[writer].kind.leaves == Produces::SameModel => {
                bail!("{is} and no training curves; {} is needed here", in_words(used))
            }
            ModelUse::Any if place.starts_with("models[") => like_the_first(steps, reader, &is, model),
            _ => Ok(()),
        },
    }
}

/// Checks that the ingredients of a soup are models of one kind.
fn like_the_first(steps: &[Step], reader: usize, is: &str, model: Produces) -> anyhow::Result<()> {
    let first = inputs(&steps[reader]).into_iter().find(|(place, ..)| place == "models[0]");
    let first = first.and_then(|(_, kind, path)| leaves(steps, writer(steps, reader, kind, &path)?));
    match first {
        Some(first) if first != model => bail!("{is}, and the first of the models is {}", first.in_words()),
        _ => Ok(()),
    }
}

/// The earlier stage that produces this path.
fn writer(steps: &[Step], reader: usize, kind: PathKind, path: &str) -> Option<usize> {
    steps[..reader].iter().position(|step| match kind {
        PathKind::Model => step.dir == Path::new(path),
        PathKind::Data => step.kind.product.path(&step.dir) == Path::new(path),
    })
}

/// What a stage produces; none if that depends on a model from outside.
fn leaves(steps: &[Step], step: usize) -> Option<Produces> {
    match steps[step].kind.leaves {
        Produces::SameModel => inputs(&steps[step])
            .into_iter()
            .filter(|(place, ..)| place.starts_with("models["))
            .find_map(|(_, kind, path)| leaves(steps, writer(steps, step, kind, &path)?)),
        other => Some(other),
    }
}

/// Place, kind and path of every input.
fn inputs(step: &Step) -> Vec<(String, PathKind, String)> {
    let mut found = Vec::new();
    visit_strings(&mut step.planned.config.clone(), "", &mut |place, text| {
        let kind = step.planned.places.inputs.get(place);
        found.extend(kind.map(|kind| (place.to_owned(), *kind, text.to_owned())));
        Ok(None)
    })
    .expect("this visit cannot fail");
    found
}

/// A place, with the name of its key as used in the recipe.
fn as_given(step: &Step, place: &str) -> String {
    let (root, rest) = place.split_at(place.find(['.', '[']).unwrap_or(place.len()));
    let config = step.planned.config.as_object();
    let is_it = |given: &&String| config.is_some_and(|keys| names::resolve(given, keys).is_ok_and(|key| key == root));
    let key = step.given.iter().find(is_it).map_or(root, String::as_str);
    format!("{key}{rest}")
}

fn in_words(used: ModelUse) -> &'static str {
    match used {
        ModelUse::Language => "a language model",
        ModelUse::Reward | ModelUse::RewardOfReader => "a reward model",
        ModelUse::Any => "a model",
        ModelUse::Tokenizer => "a model with a tokenizer",
        ModelUse::Metrics => "a stage that trains",
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        recipe::{Changes, Recipe, Source},
        stage::table::STAGES,
    };
    use std::path::Path;

    const BEFORE: &str = "
  world: {kind: kitchen}
  base: {kind: pretrain, dataset: \"${stages.world}/pretrain.jsonl\"}
  sft: {kind: sft, model: base, dataset: \"${stages.world}/sft.jsonl\"}
  reward: {kind: reward, model: sft, dataset: \"${stages.world}/preferences.jsonl\"}
  soup: {kind: soup, models: [base, sft]}
  rewards: {kind: soup, models: [reward, reward]}
  answers: {kind: generate, model: soup, input: \"${stages.world}/prompts_test.jsonl\"}
  scores: {kind: score, model: rewards, input: answers}
";

    /// The errors of a recipe with one more stage.
    fn wrong(stage: &str) -> String {
        let text = format!("stages:{BEFORE}  x: {{{stage}}}\n");
        let source = Source { text: &text, path: Path::new("r.yaml"), base: Path::new("") };
        Recipe::new(source, Changes::default(), STAGES).err().map_or(String::new(), |error| format!("{error:#}"))
    }

    #[test]
    fn stages_that_leave_something_else_are_refused_by_the_key_that_names_them() {
        let ppo = "kind: ppo, dataset: \"${stages.world}/prompts_train.jsonl\", reference: {kind: sft, model: sft}";
        let evaluate = "kind: evaluate, datasets: [{name: t, dataset: answers}], baseline: a, reward_model: reward";
        for (stage, told) in [
            (format!("{ppo}, model: sft, reward_model: reward"), ""),
            (format!("{ppo}, model: soup, reward_model: rewards"), ""),
            (
                format!("{ppo}, model: sft, reward_model: sft"),
                "reward_model: sft is a stage of kind sft, which leaves a language model; a reward model is needed here",
            ),
            (
                format!("{ppo}, model: sft, reward-model-path: soup"),
                "reward-model-path: soup is a stage of kind soup, which leaves a language model; a reward model is needed here",
            ),
            (
                format!("{ppo}, model: rewards, reward_model: reward"),
                "model: rewards is a stage of kind soup, which leaves a reward model; a language model is needed here",
            ),
            (format!("{evaluate}, arms: {{a: sft, b: soup}}, runs: {{a: sft}}"), ""),
            (
                format!("{evaluate}, arms: {{a: sft, b: reward}}"),
                "arms.b: reward is a stage of kind reward, which leaves a reward model; a language model is needed here",
            ),
            (
                format!("{evaluate}, arms: {{a: sft}}, runs: {{a: soup}}"),
                "runs.a: soup is a stage of kind soup, which leaves a language model and no training curves; a stage that \
                 trains is needed here",
            ),
            (
                format!("{evaluate}, arms: {{a: sft, b: {{models: [sft, world]}}}}"),
                "arms.b.models[1]: world is a stage of kind kitchen, which leaves data; a language model is needed here",
            ),
            (
                "kind: soup, models: [sft, reward]".to_owned(),
                "models[1]: reward is a stage of kind reward, which leaves a reward model, and the first of the models is a \
                 language model",
            ),
            (
                "kind: sft, model: base, dataset: sft".to_owned(),
                "dataset: sft is a stage of kind sft, which leaves a language model; data is needed here",
            ),
            ("kind: reward, model: reward, dataset: world".to_owned(), ""),
        ] {
            let expected = if told.is_empty() { String::new() } else { format!("r.yaml: stages.x: {told}") };
            assert_eq!(wrong(&stage), expected);
        }
    }
}
