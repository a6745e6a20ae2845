//! Losses of a policy on pairs: the objective of `dpo`, `orpo` and `cpo`.
use salsa_algo::preference::{PairLoss, cpo, dpo, negative_log_likelihood, orpo};
use salsa_engine::{Batch, Model, Output, Query};

use super::{
    policy::{Objectives, Opened},
    tally::Tally,
    trainer::{Divisors, Lengths, Loss, Objective, Pass, Sequences},
};
use crate::stage::{
    StageContext,
    text::{
        encoder::TruncationMode,
        pairs::{Pair, Pairs, Side},
        source::DataSource,
    },
};

/// A loss on pairs.
#[derive(Clone, Copy)]
pub(super) enum Preference {
    /// DPO and its relatives, against a reference.
    Dpo(dpo::Objective),
    /// ORPO: the likelihood of prompt and chosen response per token, and the odds ratio with weight `beta`.
    Orpo {
        /// Weight of the odds ratio.
        beta: f64,
    },
    /// CPO: a loss on log-probs, and the likelihood of the chosen response per token with weight `alpha`.
    Cpo {
        /// The loss on log-probs.
        objective: cpo::Objective,
        /// Weight of the likelihood.
        alpha: f64,
    },
}

/// Pairs to train on, and held-out ones.
pub(super) struct PairSets {
    training: Vec<Pair>,
    evaluation: Option<Vec<Pair>>,
    /// The number of pairs to train on that are too long.
    pub left_out: usize,
}

impl PairSets {
    /// Reads and tokenises the pairs.
    ///
    /// # Errors
    /// As [`Pairs::load`].
    pub(super) fn load(
        models: &Opened,
        training: &DataSource,
        evaluation: Option<&DataSource>,
        max_length: usize,
        mode: TruncationMode,
        context: &StageContext,
    ) -> anyhow::Result<PairSets> {
        let load = |source| Pairs::load(source, &models.start.encoder, max_length, mode, context);
        let training = load(training)?;
        let evaluation = evaluation.map(load).transpose()?;
        Ok(PairSets {
            left_out: training.too_long,
            training: training.pairs,
            evaluation: evaluation.map(|set| set.pairs),
        })
    }

    /// Lengths of the pairs.
    pub(super) fn lengths(&self) -> Lengths {
        let lengths = |pairs: &Vec<Pair>| pairs.iter().map(Pair::length).collect::<Vec<_>>();
        Lengths {
            training: lengths(&self.training),
            evaluation: self.evaluation.as_ref().map(lengths).unwrap_or_default(),
            sequences: Sequences::Pairs,
        }
    }

    /// The pairs with a loss.
    pub(super) fn objectives(self, loss: Preference, reference: Option<&Model>) -> Objectives<'_> {
        let of = |pairs| Box::new(Pairwise { pairs, loss, reference }) as Box<dyn Objective + '_>;
        Objectives { training: of(self.training), evaluation: self.evaluation.map(of) }
    }
}

/// Pairs with a loss on the log-probs of their responses.
///
/// ```text
/// logp: over the response's tokens, its end token included: their sum or, where the loss says so, their mean
/// ```
struct Pairwise<'a> {
    pairs: Vec<Pair>,
    loss: Preference,
    /// The frozen reference of [`Preference::Dpo`].
    reference: Option<&'a Model>,
}

/// One number per response of each pair.
struct Responses {
    chosen: Vec<f64>,
    rejected: Vec<f64>,
}

/// A likelihood term, to be added to a [`PairLoss`].
struct Likelihood {
    /// Share of the mean negative log-likelihood per token.
    loss: f64,
    /// Its derivative by the log-prob of each token.
    slope: f64,
    /// Its weight in the loss.
    weight: f64,
    /// The log-prob of the tokens of this pass.
    logprob: f64,
    /// The number of these tokens.
    tokens: f64,
}

impl Objective for Pairwise<'_> {
    fn examples(&self) -> usize {
        self.pairs.len()
    }

    fn length(&self, example: usize) -> usize {
        self.pairs[example].length()
    }

    fn weight(&self, _example: usize) -> f64 {
        1.0
    }

    fn tokens(&self, example: usize) -> f64 {
        let chosen = &self.pairs[example].chosen;
        (self.unqueried(chosen)..chosen.tokens.len()).len() as f64
    }

    fn assemble(&self, examples: &[usize]) -> Pass {
        let (mut batch, mut query) = (Batch::sharing_prefixes(), Query::default());
        for pair in examples.iter().map(|&example| &self.pairs[example]) {
            for (side, from) in [(&pair.chosen, self.unqueried(&pair.chosen)), (&pair.rejected, pair.rejected.prompt)] {
                let rows = batch.push(&side.tokens);
                query.push_logprobs(rows, &side.tokens, from);
            }
        }
        Pass { examples: examples.to_vec(), batch, query, beside: None }
    }

    fn loss(&self, pass: &Pass, output: &Output, step: Divisors) -> Loss {
        let policy = self.responses(pass, &output.logprobs);
        let (mut tally, count, pairs) = (Tally::new(), pass.examples.len() as f64, step.weight as usize);
        let (loss, likelihood) = match self.loss {
            Preference::Dpo(objective) => (self.dpo(pass, &policy, &objective, pairs), None),
            Preference::Orpo { beta } => {
                let odds = orpo::loss(&policy.chosen, &policy.rejected, beta, pairs);
                tally.mean("log_odds_ratio", odds.log_odds_ratio * step.weight, count);
                tally.mean("log_odds_chosen", odds.log_odds_chosen * step.weight, count);
                (odds.pairs, Some(self.likelihood(pass, output, step, 1.0)))
            }
            Preference::Cpo { objective, alpha } => {
                let loss = cpo::loss(&policy.chosen, &policy.rejected, &objective, pairs);
                (loss, Some(self.likelihood(pass, output, step, alpha)))
            }
        };
        let added = likelihood.as_ref().map_or(0.0, |likelihood| likelihood.weight * likelihood.loss);
        let mut logged = Tally::new();
        logged.mean("loss", (loss.loss + added) * step.weight, count);
        logged.mean("rewards/chosen", loss.rewards_chosen.iter().sum(), count);
        logged.mean("rewards/rejected", loss.rewards_rejected.iter().sum(), count);
        logged.mean("rewards/accuracies", loss.accuracy * step.weight, count);
        logged.mean("rewards/margins", loss.reward_margin * step.weight, count);
        logged.mean("logps/chosen", policy.chosen.iter().sum(), count);
        logged.mean("logps/rejected", policy.rejected.iter().sum(), count);
        if let Some(Likelihood { logprob, tokens, .. }) = likelihood {
            logged.mean("nll_loss", -logprob, tokens);
        }
        logged.absorb(&tally);
        let slope = likelihood.map_or(0.0, |likelihood| likelihood.weight * likelihood.slope);
        Loss { d_logprobs: self.by_token(pass, &loss, slope), d_values: Vec::new(), tally: logged }
    }
}

impl Pairwise<'_> {
    fn dpo(&self, pass: &Pass, policy: &Responses, objective: &dpo::Objective, pairs: usize) -> PairLoss {
        let reference = self.reference.expect("the stages of losses against a reference load one");
        let frozen = self.responses(pass, &reference.forward(&pass.batch, &pass.query).logprobs);
        let batch = dpo::Batch {
            chosen: &policy.chosen,
            rejected: &policy.rejected,
            ref_chosen: &frozen.chosen,
            ref_rejected: &frozen.rejected,
        };
        dpo::loss(&batch, objective, pairs)
    }

    /// The likelihood of all queried tokens of the chosen sides.
    fn likelihood(&self, pass: &Pass, output: &Output, step: Divisors, weight: f64) -> Likelihood {
        let (mut rest, mut logprob, mut tokens) = (&output.logprobs[..], 0.0, 0.0);
        for (index, side) in self.sides(pass).enumerate() {
            let (own, others) = rest.split_at(self.queried(index, side));
            rest = others;
            if index.is_multiple_of(2) {
                logprob += own.iter().map(|&logprob| f64::from(logprob)).sum::<f64>();
                tokens += own.len() as f64;
            }
        }
        let (loss, slope) = negative_log_likelihood(logprob, step.tokens);
        Likelihood { loss, slope, weight, logprob, tokens }
    }

    /// The chosen and rejected sides of a pass, alternately, in batch order.
    fn sides<'s>(&'s self, pass: &'s Pass) -> impl Iterator<Item = &'s Side> {
        pass.examples.iter().map(|&example| &self.pairs[example]).flat_map(|pair| [&pair.chosen, &pair.rejected])
    }

    /// The first token of a chosen side whose log-prob is needed: ORPO learns the prompt too.
    fn unqueried(&self, chosen: &Side) -> usize {
        if matches!(self.loss, Preference::Orpo { .. }) { 1 } else { chosen.prompt }
    }

    /// The number of log-probs of the side with this index in [`Pairwise::sides`].
    fn queried(&self, index: usize, side: &Side) -> usize {
        if index.is_multiple_of(2) { side.tokens.len() - self.unqueried(side) } else { side.response_length() }
    }

    /// Weight of a token's log-probability in that of its response: 1, or its share of a mean.
    fn per_token(&self, side: &Side) -> f64 {
        let is_mean = match self.loss {
            Preference::Dpo(objective) => objective.loss_type.is_per_token(),
            Preference::Orpo { .. } => true,
            Preference::Cpo { objective, .. } => objective.loss_type.is_per_token(),
        };
        if is_mean { 1.0 / side.response_length() as f64 } else { 1.0 }
    }

    /// Reduces log-probabilities of tokens to log-probabilities of responses.
    fn responses(&self, pass: &Pass, logprobs: &[f32]) -> Responses {
        let (mut rest, mut responses) = (logprobs, Responses { chosen: Vec::new(), rejected: Vec::new() });
        for (index, side) in self.sides(pass).enumerate() {
            let (own, others) = rest.split_at(self.queried(index, side));
            rest = others;
            let own = &own[own.len() - side.response_length()..];
            let total = own.iter().map(|&logprob| f64::from(logprob)).sum::<f64>() * self.per_token(side);
            if index.is_multiple_of(2) { responses.chosen.push(total) } else { responses.rejected.push(total) }
        }
        responses
    }

    /// The derivative by every queried log-prob; `likelihood` is that of the likelihood by those of the chosen sides.
    fn by_token(&self, pass: &Pass, loss: &PairLoss, likelihood: f64) -> Vec<f32> {
        let per_response =
            loss.d_chosen.iter().zip(&loss.d_rejected).flat_map(|(&chosen, &rejected)| [chosen, rejected]);
        let mut all = Vec::new();
        for (index, (side, gradient)) in self.sides(pass).zip(per_response).enumerate() {
            let likelihood = if index.is_multiple_of(2) { likelihood } else { 0.0 };
            let response = gradient * self.per_token(side) + likelihood;
            let prompt = self.queried(index, side) - side.response_length();
            all.extend(std::iter::repeat_n(likelihood as f32, prompt));
            all.extend(std::iter::repeat_n(response as f32, side.response_length()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use salsa_engine::Head;

    use super::*;
    use crate::stage::fixture;

    fn pairs() -> Vec<Pair> {
        let side =
            |prompt: &[u32], response: &[u32]| Side { tokens: [prompt, response].concat(), prompt: prompt.len() };
        let pair = |prompt: &[u32], chosen: &[u32], rejected: &[u32]| Pair {
            chosen: side(prompt, chosen),
            rejected: side(prompt, rejected),
            margin: 0.0,
            longer_wins: 0.5,
        };
        vec![pair(&[1, 2, 3], &[4, 5], &[6]), pair(&[7], &[8], &[9, 10, 11]), pair(&[2, 4], &[1], &[3, 5])]
    }

    /// Derivatives of the loss that is logged, by every log-prob, where two of three pairs of a step are in the pass.
    #[test]
    fn gradients_are_those_of_the_loss() {
        let (policy, reference) =
            (fixture::trainable(16, Head::LanguageModel), fixture::trainable(16, Head::LanguageModel));
        let cpo = |loss_type| cpo::Objective { loss_type, beta: 0.7, label_smoothing: 0.1, simpo_gamma: 0.4 };
        for loss in [
            Preference::Dpo(dpo::Objective::new(dpo::LossType::Sigmoid, 0.4)),
            Preference::Dpo(dpo::Objective::new(dpo::LossType::SigmoidNorm, 0.4)),
            Preference::Dpo(dpo::Objective::new(dpo::LossType::NcaPair, 0.4)),
            Preference::Orpo { beta: 0.8 },
            Preference::Cpo { objective: cpo(cpo::LossType::Simpo), alpha: 0.0 },
            Preference::Cpo { objective: cpo(cpo::LossType::Sigmoid), alpha: 0.6 },
        ] {
            let data = Pairwise { pairs: pairs(), loss, reference: Some(&reference) };
            let tokens = (0..3).map(|example| data.tokens(example)).sum();
            let (pass, step) = (data.assemble(&[0, 1]), Divisors { weight: 3.0, tokens });
            let mut output = policy.forward(&pass.batch, &pass.query);
            let found = data.loss(&pass, &output, step);
            let is_orpo = matches!(loss, Preference::Orpo { .. });
            assert_eq!((tokens, found.d_logprobs.len()), if is_orpo { (7.0, 9) } else { (4.0, 7) });
            for at in 0..found.d_logprobs.len() {
                let mut moved = |by: f32| {
                    output.logprobs[at] += by;
                    data.loss(&pass, &output, step).tally.get("loss").unwrap()
                };
                let (up, down) = (moved(0.01), moved(-0.02));
                moved(0.01);
                // The tally has the mean over the two pairs of the pass.
                let slope = (up - down) / 0.02 * 2.0 / 3.0;
                assert!((slope - f64::from(found.d_logprobs[at])).abs() < 1e-4, "{at}: {slope} {:?}", found.d_logprobs);
            }
        }
    }
}
