//! KTO: training on single responses that are desirable or not, against a frozen reference.
use std::path::PathBuf;

use anyhow::{Context, ensure};
use salsa_algo::preference::kto::{self, LossType};
use salsa_engine::{Batch, Model, Output, Query, comm::Comm};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    arguments::TrainingArguments,
    policy::{self, Objectives, Setup},
    tally::Tally,
    trainer::{Beside, Divisors, Lengths, Loss, Objective, Pass, Sequences},
};
use crate::{
    config::paths::ModelPath,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::{ComputeType, check_range},
        kind::{Produces, Product, Stage},
        lifecycle::fingerprint::fingerprint,
        models::{lora::LoraArguments, model_source::ModelSource},
        ranks::gradient_units,
        reads::{ExampleUse, Reads},
        text::{
            encoder::TruncationMode,
            labelled::{Labelled, LabelledSet},
            source::DataSource,
        },
    },
};

/// Configuration of `salsa kto`, in addition to [`TrainingArguments`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct KtoConfig {
    /// Checkpoint to start from, usually an SFT model.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub model_name_or_path: ModelPath,
    /// The frozen reference: a checkpoint, or a soup made in memory (`{models: [A, B], weights: [0.5, 0.5]}`). None:
    /// the starting checkpoint itself, as in TRL.
    pub ref_model_name_or_path: Option<ModelSource>,
    /// Responses with a label (prompt, completion, label), or preference pairs, which are two of them each. TRL:
    /// `dataset_name`.
    pub dataset: DataSource,
    /// Held-out responses for the evaluation. None: no evaluation.
    pub eval_dataset: Option<DataSource>,
    /// Directory of the trained model, its metrics and its checkpoints.
    pub output_dir: PathBuf,
    /// The loss on the log-ratio of policy to reference. TRL: kto.
    #[schemars(extend("x-heading" = "Training"))]
    pub loss_type: LossType,
    /// Strength of the pull towards the reference, above 0. TRL: 0.1.
    pub beta: f64,
    /// Weight of the losses of desirable responses, at least 0. TRL: 1.
    pub desirable_weight: f64,
    /// Weight of the losses of undesirable responses, at least 0. TRL: 1.
    pub undesirable_weight: f64,
    /// Highest learning rate, at least 0. TRL: 1e-6.
    pub learning_rate: f64,
    /// Passes over the responses if `max_steps` is -1; fractions are allowed. TRL: 3.
    pub num_train_epochs: f64,
    /// Maximum length of prompt and response, in tokens; capped at the model's context. TRL: 1024.
    pub max_length: usize,
    /// What happens to longer ones. TRL: keep_start.
    pub truncation_mode: TruncationMode,
    /// The keys of adapters.
    #[serde(flatten)]
    pub lora: LoraArguments,
    /// The keys that all training stages share.
    #[serde(flatten)]
    pub training: TrainingArguments,
}

impl Default for KtoConfig {
    fn default() -> KtoConfig {
        KtoConfig {
            model_name_or_path: ModelPath::new(),
            ref_model_name_or_path: None,
            dataset: DataSource::default(),
            eval_dataset: None,
            output_dir: PathBuf::new(),
            loss_type: LossType::Kto,
            beta: 0.1,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            learning_rate: 1e-6,
            num_train_epochs: 1.0,
            max_length: 1024,
            truncation_mode: TruncationMode::Drop,
            lora: LoraArguments::default(),
            training: TrainingArguments::default(),
        }
    }
}

impl Stage for KtoConfig {
    const NAME: &'static str = "kto";
    const ABOUT: &'static str = "KTO: preferences from single answers with labels.";
    const EXAMPLE: &'static str = "--model sft-a --dataset labelled.jsonl --output_dir kto --beta 0.1";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::LanguageModel;
    const NEXT: &'static [(&'static str, &'static str)] = policy::NEXT;

    fn check(&self) -> anyhow::Result<()> {
        check_range("beta", self.beta, f64::MIN_POSITIVE..=f64::MAX)?;
        check_range("desirable_weight", self.desirable_weight, 0.0..=f64::MAX)?;
        check_range("undesirable_weight", self.undesirable_weight, 0.0..=f64::MAX)?;
        let training = &self.training;
        let evaluated = self.eval_dataset.as_ref().map(|_| training.per_device_eval_batch_size);
        for (key, size) in [
            ("per_device_train_batch_size", Some(training.per_device_train_batch_size)),
            ("per_device_eval_batch_size", evaluated),
        ] {
            ensure!(
                self.loss_type != LossType::Kto || size.is_none_or(|size| size > 1),
                "{key} is 1; KTO needs at least 2: each prompt is put together with the response to another one"
            );
        }
        self.ref_model_name_or_path.as_ref().map_or(Ok(()), ModelSource::check).context("ref_model_name_or_path")?;
        self.lora.validate()?;
        training.validate(self.learning_rate, self.num_train_epochs)
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(Some(&self.model_name_or_path), &self.training.chat)
            .template(&self.training.chat_template)
            .examples("dataset", &self.dataset, ExampleUse::Labelled)
            .examples_if_any("eval_dataset", self.eval_dataset.as_ref(), ExampleUse::Labelled)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some((self.training.device, self.training.dtype))
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

impl KtoConfig {
    /// Checks that a gradient unit has the two responses that the estimate of the KL needs.
    ///
    /// # Errors
    /// If it has not, or the processes cannot share the units.
    fn check_units(&self, ranks: &dyn Comm) -> anyhow::Result<()> {
        let units = gradient_units(self.training.optimizer.gradient_units, None, ranks)?;
        let step = self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps;
        ensure!(
            self.loss_type != LossType::Kto || units == 1 || step >= 2 * units,
            "a step has {step} responses (per_device_train_batch_size times gradient_accumulation_steps) for {units} \
             gradient units; KTO needs at least 2 in each"
        );
        Ok(())
    }
}

/// Trains against the configured reference.
///
/// # Errors
/// If the data or a model cannot be used, or training fails or is interrupted.
pub(crate) fn run(config: &KtoConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    config.check_units(&*context.ranks)?;
    let start = ModelSource::Path(config.model_name_or_path.clone());
    let reference = config.ref_model_name_or_path.as_ref().unwrap_or(&start);
    let setup = Setup {
        title: "kto",
        model: &config.model_name_or_path,
        reference: Some(reference),
        output_dir: &config.output_dir,
        learning_rate: config.learning_rate,
        num_train_epochs: config.num_train_epochs,
        lora: &config.lora,
        training: &config.training,
        context,
    };
    let models = setup.open()?;
    let max_length = models.max_length(config.max_length, context);
    let config = &KtoConfig { max_length, ..config.clone() };
    let load = |source| LabelledSet::load(source, &models.start.encoder, max_length, config.truncation_mode, context);
    let data = load(&config.dataset)?;
    let evaluation = config.eval_dataset.as_ref().map(load).transpose()?;
    say_unbalanced(&data, config, context);
    let lengths =
        |set: &LabelledSet| -> Vec<usize> { set.responses.iter().map(|response| response.side.tokens.len()).collect() };
    let lengths = Lengths {
        training: lengths(&data),
        evaluation: evaluation.as_ref().map(lengths).unwrap_or_default(),
        sequences: match config.loss_type {
            LossType::Kto => Sequences::Together,
            LossType::ApoZeroUnpaired => Sequences::Apart,
        },
    };
    let left_out = data.too_long;
    let KtoConfig { loss_type, beta, desirable_weight, undesirable_weight, .. } = *config;
    let objective = kto::Objective { beta, desirable_weight, undesirable_weight };
    let outcome = setup.train(models, fingerprint("kto", config)?, &lengths, move |reference| {
        let reference = reference.expect("the set-up names a reference");
        let of = |LabelledSet { responses, .. }| -> Box<dyn Objective + '_> {
            Box::new(SingleResponses { responses, reference, loss_type, objective, max_length })
        };
        Objectives { training: of(data), evaluation: evaluation.map(of) }
    })?;
    Ok(json!({"training": outcome.to_json(), "left_out": left_out}))
}

/// Says which weight balances the labels where the ratio of weights times numbers is not from 1 to 4/3, as the paper
/// recommends.
fn say_unbalanced(data: &LabelledSet, config: &KtoConfig, context: &StageContext) {
    let (desirable, undesirable) = data.counts();
    let (desirable, undesirable) = (desirable.max(1) as f64, undesirable.max(1) as f64);
    let ratio = config.desirable_weight * desirable / (config.undesirable_weight * undesirable);
    if ratio.is_finite() && !(0.99..=1.34).contains(&ratio) {
        let least = undesirable * config.undesirable_weight / desirable;
        context.say(&format!(
            "desirable responses weigh {ratio:.2} times the undesirable ones in all, KTO's paper has 1 to 1.33: \
             desirable_weight from {least:.2} to {:.2}",
            least * 4.0 / 3.0
        ));
    }
}

/// Single responses with KTO's loss.
///
/// ```text
/// logp: sum over the response's tokens, its end token included
/// KL:   from the prompts of a pass with the responses to others, each moved on by one
/// ```
struct SingleResponses<'a> {
    responses: Vec<Labelled>,
    reference: &'a Model,
    loss_type: LossType,
    objective: kto::Objective,
    /// Of mismatched sequences.
    max_length: usize,
}

impl SingleResponses<'_> {
    /// Each prompt of a pass with the response of the example before it, the first with that of the last; longer ones
    /// lose their end, as in TRL.
    fn mismatched(&self, examples: &[usize]) -> Beside {
        let mut beside = Beside { batch: Batch::new(), query: Query::default(), logprobs: Vec::new() };
        for (tokens, prompt) in self.mismatched_sequences(examples) {
            let rows = beside.batch.push(&tokens);
            beside.query.push_logprobs(rows, &tokens, prompt);
        }
        beside
    }

    /// The mismatched sequences, each with the number of its prompt tokens.
    fn mismatched_sequences<'s>(&'s self, examples: &'s [usize]) -> impl Iterator<Item = (Vec<u32>, usize)> + 's {
        let side = |index: usize| &self.responses[examples[index]].side;
        (0..examples.len()).map(move |index| {
            let (own, other) = (side(index), side(index.checked_sub(1).unwrap_or(examples.len() - 1)));
            let mut tokens = [&own.tokens[..own.prompt], &other.tokens[other.prompt..]].concat();
            tokens.truncate(self.max_length);
            (tokens, own.prompt)
        })
    }

    /// The estimate of the KL, and 0 for a loss without one.
    fn kl(&self, pass: &Pass) -> f64 {
        let Some(beside) = &pass.beside else { return 0.0 };
        let reference = self.reference.forward(&beside.batch, &beside.query);
        let lengths = || self.mismatched_sequences(&pass.examples).map(|(tokens, prompt)| tokens.len() - prompt);
        kto::kl(&sums(&beside.logprobs, lengths()), &sums(&reference.logprobs, lengths()))
    }
}

/// Sums of consecutive log-probs.
fn sums(logprobs: &[f32], lengths: impl Iterator<Item = usize>) -> Vec<f64> {
    let mut rest = logprobs;
    let sum = |length: usize| {
        let (own, others) = rest.split_at(length);
        rest = others;
        own.iter().map(|&logprob| f64::from(logprob)).sum()
    };
    lengths.map(sum).collect()
}

impl Objective for SingleResponses<'_> {
    fn examples(&self) -> usize {
        self.responses.len()
    }

    fn length(&self, example: usize) -> usize {
        self.responses[example].side.tokens.len()
    }

    fn weight(&self, _example: usize) -> f64 {
        1.0
    }

    fn assemble(&self, examples: &[usize]) -> Pass {
        let (mut batch, mut query) = (Batch::new(), Query::default());
        for Labelled { side, .. } in examples.iter().map(|&example| &self.responses[example]) {
            let rows = batch.push(&side.tokens);
            query.push_logprobs(rows, &side.tokens, side.prompt);
        }
        let beside = (self.loss_type == LossType::Kto).then(|| self.mismatched(examples));
        Pass { examples: examples.to_vec(), batch, query, beside }
    }

    fn loss(&self, pass: &Pass, output: &Output, step: Divisors) -> Loss {
        let responses = || pass.examples.iter().map(|&example| &self.responses[example]);
        let lengths = || responses().map(|response| response.side.response_length());
        let reference = self.reference.forward(&pass.batch, &pass.query);
        let logprobs = sums(&output.logprobs, lengths());
        let desirable: Vec<bool> = responses().map(|response| response.desirable).collect();
        let batch = kto::Batch {
            logprobs: &logprobs,
            ref_logprobs: &sums(&reference.logprobs, lengths()),
            desirable: &desirable,
            kl: self.kl(pass),
        };
        let loss = kto::loss(&batch, &self.objective, step.weight as usize);

        let (mut tally, count) = (Tally::new(), desirable.len() as f64);
        tally.mean("loss", loss.loss * step.weight, count);
        let of = |values: &[f64], wanted: bool| {
            let own = || values.iter().zip(&desirable).filter(|(_, label)| **label == wanted);
            (own().map(|(value, _)| value).sum::<f64>(), own().count() as f64)
        };
        for (name, values) in [("rewards", &loss.rewards), ("logps", &logprobs)] {
            for (side, wanted) in [("chosen", true), ("rejected", false)] {
                let (sum, count) = of(values, wanted);
                tally.mean(&format!("{name}/{side}"), sum, count);
            }
        }
        tally.difference("rewards/margins", of(&loss.rewards, true), of(&loss.rewards, false));
        if self.loss_type == LossType::Kto {
            tally.mean("kl", batch.kl * count, count);
        }
        let spread = |(&d, length)| std::iter::repeat_n(d as f32, length);
        let d_logprobs = loss.d_logprobs.iter().zip(lengths()).flat_map(spread).collect();
        Loss { d_logprobs, d_values: Vec::new(), tally }
    }
}

#[cfg(test)]
mod tests {
    use salsa_engine::Head;

    use super::*;
    use crate::stage::{fixture, text::pairs::Side};

    fn labelled(prompt: &[u32], response: &[u32], desirable: bool) -> Labelled {
        Labelled { side: Side { tokens: [prompt, response].concat(), prompt: prompt.len() }, desirable }
    }

    fn single(reference: &Model, max_length: usize) -> SingleResponses<'_> {
        let responses =
            vec![labelled(&[1, 2], &[3, 4, 5], true), labelled(&[6], &[7], false), labelled(&[8, 9], &[10, 11], true)];
        let objective = kto::Objective { beta: 0.5, desirable_weight: 1.0, undesirable_weight: 2.0 };
        SingleResponses { responses, reference, loss_type: LossType::Kto, objective, max_length }
    }

    /// TRL 1.16: `[completions[-1]] + completions[:-1]`, then `ids[:max_length]`.
    #[test]
    fn each_prompt_of_a_pass_gets_the_response_before_it() {
        let model = fixture::trainable(16, Head::LanguageModel);
        let sequences = |max_length, examples: &[usize]| -> Vec<(Vec<u32>, usize)> {
            single(&model, max_length).mismatched_sequences(examples).collect()
        };
        assert_eq!(sequences(9, &[0, 1, 2]), [(vec![1, 2, 10, 11], 2), (vec![6, 3, 4, 5], 1), (vec![8, 9, 7], 2)]);
        assert_eq!(sequences(3, &[0, 2]), [(vec![1, 2, 10], 2), (vec![8, 9, 3], 2)], "longer ones lose their end");
        assert_eq!(sequences(9, &[2]), [(vec![8, 9, 10, 11], 2)], "one example is put together with itself");
    }

    #[test]
    fn the_kl_is_that_of_mismatched_responses_and_has_no_gradient() {
        let (policy, reference) =
            (fixture::trainable(16, Head::LanguageModel), fixture::trainable(16, Head::LanguageModel));
        let data = single(&reference, 9);
        let mut pass = data.assemble(&[0, 1, 2]);
        let output = policy.forward(&pass.batch, &pass.query);
        let step = Divisors { weight: 3.0, tokens: 0.0 };
        let beside = pass.beside.as_mut().unwrap();
        beside.logprobs = policy.forward(&beside.batch, &beside.query).logprobs;
        let same = data.loss(&pass, &output, step);
        assert_eq!((same.tally.get("kl"), same.tally.get("loss")), (Some(0.0), Some((0.5 + 1.0 + 0.5) / 3.0)));
        assert_eq!(same.d_logprobs.len(), 3 + 1 + 2, "matched tokens alone have a gradient");
        // 6 mismatched tokens, each 0.3 more likely than under the reference: 0.3 * 6 / 3 for a response.
        pass.beside.as_mut().unwrap().logprobs.iter_mut().for_each(|logprob| *logprob += 0.3);
        let moved = data.loss(&pass, &output, step);
        assert!((moved.tally.get("kl").unwrap() - 0.6).abs() < 1e-5, "{:?}", moved.tally);
    }
}
