//! Responses of the policy, concatenated: the data of one PPO update.
use std::sync::Arc;

use salsa_algo::reward::Ending;
use salsa_engine::{
    Batch, Finish, Model, Output, Query, Response,
    comm::{Comm, CommError, Solo},
};

use super::ranks;

/// The responses of one update. Per-token numbers are concatenated, response after response.
#[derive(Clone, Debug)]
pub(crate) struct Rollouts {
    /// Prompt and response tokens of each.
    pub sequences: Vec<Vec<u32>>,
    /// Prompt lengths in tokens.
    pub contexts: Vec<usize>,
    /// How each ended.
    pub endings: Vec<Ending>,
    /// Log-prob of every response token at sampling.
    pub logprobs: Vec<f64>,
    /// The sampling temperature, used for every log-prob.
    pub temperature: f32,
    /// The processes that have the same responses: forward passes are dealt to them.
    ranks: Arc<dyn Comm>,
}

/// Tokens per forward pass over frozen models; affects speed and memory only.
pub(in crate::stage) const PASS: usize = 8192;

impl Rollouts {
    /// Concatenates prompts and responses.
    pub(crate) fn new(prompts: &[&[u32]], responses: Vec<Response>, temperature: f32) -> Rollouts {
        let mut rollouts = Rollouts {
            sequences: Vec::with_capacity(prompts.len()),
            contexts: prompts.iter().map(|prompt| prompt.len()).collect(),
            endings: Vec::with_capacity(prompts.len()),
            logprobs: Vec::new(),
            temperature,
            ranks: Arc::new(Solo),
        };
        for (prompt, response) in prompts.iter().zip(responses) {
            rollouts.sequences.push([prompt, &response.tokens[..]].concat());
            rollouts.endings.push(ending(response.finish));
            rollouts.logprobs.extend(response.logprobs.iter().map(|&logprob| f64::from(logprob)));
        }
        rollouts
    }

    /// The same responses, known to all of these processes.
    pub(crate) fn on(self, ranks: &Arc<dyn Comm>) -> Rollouts {
        Rollouts { ranks: ranks.clone(), ..self }
    }

    /// The responses with these indices, in their order.
    pub(crate) fn select(&self, indices: &[usize]) -> Rollouts {
        let logprobs = split(&self.logprobs, &self.lengths());
        Rollouts {
            sequences: indices.iter().map(|&i| self.sequences[i].clone()).collect(),
            contexts: indices.iter().map(|&i| self.contexts[i]).collect(),
            endings: indices.iter().map(|&i| self.endings[i]).collect(),
            logprobs: indices.iter().flat_map(|&i| logprobs[i]).copied().collect(),
            temperature: self.temperature,
            ranks: self.ranks.clone(),
        }
    }

    /// Appends responses of the same temperature.
    pub(crate) fn append(&mut self, other: Rollouts) {
        self.sequences.extend(other.sequences);
        self.contexts.extend(other.contexts);
        self.endings.extend(other.endings);
        self.logprobs.extend(other.logprobs);
    }

    /// The number of responses.
    pub(crate) fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Response lengths in tokens.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.sequences.iter().zip(&self.contexts).map(|(sequence, context)| sequence.len() - context).collect()
    }

    /// The tokens of one response.
    pub(crate) fn response(&self, index: usize) -> &[u32] {
        &self.sequences[index][self.contexts[index]..]
    }

    /// Replaces the log-probs of sampling by those of training where decoding is not bitwise equal to training, as in
    /// TRL, so that the ratio of new to old is 1 before the first optimizer step.
    ///
    /// # Errors
    /// As [`Rollouts::logprobs_of`].
    pub(crate) fn with_training_logprobs(mut self, policy: &Model) -> Result<Rollouts, CommError> {
        if !(policy.backend().decodes_as_trained() && policy.spec().has_fixed_angles()) {
            self.recompute_logprobs(policy)?;
        }
        Ok(self)
    }

    /// Replaces the log-probs of sampling by those of a forward pass.
    ///
    /// # Errors
    /// As [`Rollouts::logprobs_of`].
    pub(super) fn recompute_logprobs(&mut self, policy: &Model) -> Result<(), CommError> {
        self.logprobs = self.logprobs_of(policy)?;
        Ok(())
    }

    /// Log-probs of all response tokens under a model.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    pub(crate) fn logprobs_of(&self, model: &Model) -> Result<Vec<f64>, CommError> {
        self.logprobs_by(|batch, query| model.forward(batch, query))
    }

    /// Log-probs of all response tokens from the given forward pass.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    pub(crate) fn logprobs_by(&self, forward: impl Fn(&Batch, &Query) -> Output) -> Result<Vec<f64>, CommError> {
        self.passes(|index, rows, query| self.query_logprobs(index, rows, query), |output| output.logprobs, forward)
    }

    /// The values of all slots: `slots[i]` for response i, the first one at the last prompt token.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    pub(crate) fn values_of(&self, model: &Model, slots: &[usize]) -> Result<Vec<f64>, CommError> {
        let ask = |index: usize, rows, query: &mut Query| self.query_values(index, slots[index], rows, query);
        self.passes(ask, |output| output.values, |batch, query| model.forward(batch, query))
    }

    /// The scalar head's output at the last token of each: the score of a reward model.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    pub(crate) fn last_values_of(&self, model: &Model) -> Result<Vec<f64>, CommError> {
        let ask = |_, rows: std::ops::Range<usize>, query: &mut Query| query.value_rows.push(rows.end as u32 - 1);
        self.passes(ask, |output| output.values, |batch, query| model.forward(batch, query))
    }

    /// Adds the log-probs of the response at `rows` to the query.
    pub(crate) fn query_logprobs(&self, index: usize, rows: std::ops::Range<usize>, query: &mut Query) {
        query.push_logprobs(rows, &self.sequences[index], self.contexts[index]);
    }

    /// Adds the values of the response at `rows` to the query: slot t is read before token t.
    pub(crate) fn query_values(&self, index: usize, slots: usize, rows: std::ops::Range<usize>, query: &mut Query) {
        let first = rows.start + self.contexts[index] - 1;
        query.value_rows.extend((first..first + slots).map(|row| row as u32));
    }

    /// Runs all sequences through `forward` in passes of bounded size and collects one kind of output. Each process runs
    /// those of its part, with about as many tokens as the others.
    fn passes(
        &self,
        ask: impl Fn(usize, std::ops::Range<usize>, &mut Query),
        pick: impl Fn(Output) -> Vec<f32>,
        forward: impl Fn(&Batch, &Query) -> Output,
    ) -> Result<Vec<f64>, CommError> {
        let lengths: Vec<usize> = self.sequences.iter().map(Vec::len).collect();
        let own = ranks::parts_by_length(&lengths, self.ranks.size())[self.ranks.rank()].clone();
        let mut collected = Vec::new();
        let mut next = own.start;
        while next < own.end {
            let mut batch = Batch::sharing_prefixes();
            let mut query = Query { temperature: self.temperature, ..Query::default() };
            while next < own.end && (batch.rows() == 0 || batch.rows() + self.sequences[next].len() <= PASS) {
                let rows = batch.push(&self.sequences[next]);
                ask(next, rows, &mut query);
                next += 1;
            }
            collected.extend(pick(forward(&batch, &query)).into_iter().map(f64::from));
        }
        ranks::concat(&*self.ranks, collected)
    }
}

/// Converts the engine's finish reason.
pub(crate) fn ending(finish: Finish) -> Ending {
    match finish {
        Finish::Stop => Ending::Eos,
        Finish::Length => Ending::Cut,
    }
}

/// Splits concatenated numbers into parts of the given lengths.
pub(crate) fn split<'a>(mut numbers: &'a [f64], lengths: &[usize]) -> Vec<&'a [f64]> {
    let mut parts = Vec::with_capacity(lengths.len());
    for &length in lengths {
        let (part, rest) = numbers.split_at(length);
        parts.push(part);
        numbers = rest;
    }
    parts
}
