//! Generation: continuous batching over a cache of keys and values.

use super::Transformer;
use crate::backend::{Backend, Choice};
use crate::batch::Batch;
use crate::random::Philox;
use std::collections::VecDeque;

/// A prompt to be continued. `id` and `sample` name the random stream: a response depends on the weights, the prompt's
/// tokens and `(seed, id, sample)` alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens; at least one.
    pub tokens: Vec<u32>,
    /// Which prompt this is.
    pub id: u64,
    /// Which of its samples.
    pub sample: u32,
}

/// How tokens are chosen and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the most likely token.
    pub temperature: f32,
    /// Only this many most likely tokens are drawn from; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability are drawn from; 1 for all.
    pub top_p: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// The longest response, in tokens.
    pub max_new_tokens: usize,
    /// A response ends with the first of these.
    pub stop_tokens: Vec<u32>,
    /// Sequences decoded at once; changes speed and memory, never the result.
    pub slots: usize,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
            max_new_tokens: 128,
            stop_tokens: Vec::new(),
            slots: 64,
        }
    }
}

/// A continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The new tokens, with the stop token if there was one.
    pub tokens: Vec<u32>,
    /// Log-prob of each under the full softmax at the sampling temperature (at temperature 1 when greedy).
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// With a stop token.
    Stop,
    /// At the longest length allowed, or at the end of the model's context.
    Length,
}

/// A sequence being decoded.
struct Active {
    prompt: usize,
    slot: usize,
    response: Response,
}

/// The sequences being decoded, those waiting, and the memory they use.
struct Decoder<'a, B: Backend> {
    model: &'a Transformer<B>,
    prompts: &'a [Prompt],
    sampling: &'a Sampling,
    caches: Vec<B::Cache>,
    waiting: VecDeque<usize>,
    free: Vec<usize>,
    active: Vec<Active>,
    done: Vec<Option<Response>>,
    finished: usize,
}

impl<B: Backend> Transformer<B> {
    /// Continues every prompt; responses come in the order of the prompts. `progress` is told how many are finished.
    ///
    /// Equal prompts that wait beside each other are read once.
    ///
    /// # Panics
    ///
    /// If a prompt is empty or leaves no room in the model's context, a token is outside the vocabulary, the model has
    /// no language-model head, or `slots` is zero.
    pub fn generate(&self, prompts: &[Prompt], sampling: &Sampling, progress: &mut dyn FnMut(usize)) -> Vec<Response> {
        assert!(sampling.slots > 0, "decoding needs at least one slot");
        assert!(self.head().is_some(), "this model has no language-model head");
        if prompts.is_empty() || sampling.max_new_tokens == 0 {
            let empty = Response { tokens: Vec::new(), logprobs: Vec::new(), finish: Finish::Length };
            return vec![empty; prompts.len()];
        }
        let longest = prompts.iter().map(|p| p.tokens.len()).max().unwrap_or(0);
        assert!(
            longest < self.spec.max_positions,
            "a prompt of {longest} tokens leaves no room in the context of {}",
            self.spec.max_positions
        );
        let slots = sampling.slots.min(prompts.len());
        let capacity = (longest + sampling.max_new_tokens).min(self.spec.max_positions);
        let cache = |_| self.base.backend.cache(slots, capacity, &self.spec.attention_shape());
        let mut decoder = Decoder {
            model: self,
            prompts,
            sampling,
            caches: (0..self.spec.layers).map(cache).collect(),
            waiting: (0..prompts.len()).collect(),
            free: (0..slots).rev().collect(),
            active: Vec::with_capacity(slots),
            done: vec![None; prompts.len()],
            finished: 0,
        };
        while decoder.finished < prompts.len() {
            decoder.admit();
            decoder.step();
            progress(decoder.finished);
        }
        decoder.done.into_iter().map(|response| response.expect("the loop ends when all are done")).collect()
    }
}

impl<B: Backend> Decoder<'_, B> {
    /// Reads waiting prompts into free slots and draws their first tokens.
    fn admit(&mut self) {
        let prompts = self.prompts;
        let mut batch = Batch::new();
        // One entry for each distinct prompt: its rows, and the sequences that begin with it.
        let mut groups: Vec<(std::ops::Range<usize>, Vec<Active>)> = Vec::new();
        while let (Some(&slot), Some(&prompt)) = (self.free.last(), self.waiting.front()) {
            self.free.pop();
            self.waiting.pop_front();
            let response = Response { tokens: Vec::new(), logprobs: Vec::new(), finish: Finish::Length };
            let active = Active { prompt, slot, response };
            let tokens = &prompts[prompt].tokens;
            match groups.last_mut() {
                Some((_, group)) if prompts[group[0].prompt].tokens == *tokens => group.push(active),
                _ => groups.push((batch.push(tokens), vec![active])),
            }
        }
        if groups.is_empty() {
            return;
        }
        let x = self.prefill(&batch, &groups);
        let first = self.active.len();
        self.active.extend(groups.into_iter().flat_map(|(_, group)| group));
        self.draw(&x, first);
    }

    /// Runs the prompts through the model, filling the cache. Returns the residual stream of the prompt's last row for
    /// each sequence.
    fn prefill(&mut self, batch: &Batch, groups: &[(std::ops::Range<usize>, Vec<Active>)]) -> B::Buffer {
        let model = self.model;
        let backend = &model.base.backend;
        let rotation = model.rotation(batch.positions());
        let entry = |(rows, group): &(std::ops::Range<usize>, Vec<Active>)| {
            let (start, slot) = (rows.start, group[0].slot);
            rows.clone().map(move |row| (row, slot, row - start)).collect::<Vec<_>>()
        };
        let entries: Vec<_> = groups.iter().flat_map(entry).collect();
        let mut x = model.embed(batch.tokens());
        for (layer, cache) in self.caches.iter_mut().enumerate() {
            let attend = |fused: &B::Buffer| {
                backend.cache_store(cache, fused, &entries);
                for (rows, group) in groups {
                    for other in &group[1..] {
                        backend.cache_copy(cache, group[0].slot, other.slot, rows.len());
                    }
                }
                model.attention(fused, batch)
            };
            x = model.block(layer, x, &rotation, attend).0;
        }
        let last = |(rows, group): &(std::ops::Range<usize>, Vec<Active>)| vec![rows.end as u32 - 1; group.len()];
        let last: Vec<u32> = groups.iter().flat_map(last).collect();
        backend.gather(&x, model.spec.hidden_size, &last)
    }

    /// One more token for every active sequence.
    fn step(&mut self) {
        if self.active.is_empty() {
            return;
        }
        let model = self.model;
        let backend = &model.base.backend;
        let position = |a: &Active| self.prompts[a.prompt].tokens.len() + a.response.tokens.len() - 1;
        let entries: Vec<(usize, usize)> = self.active.iter().map(|a| (a.slot, position(a))).collect();
        let stores: Vec<_> = entries.iter().enumerate().map(|(row, &(slot, at))| (row, slot, at)).collect();
        let rotation = model.rotation(entries.iter().map(|e| e.1 as u32).collect());
        let last = |a: &Active| *a.response.tokens.last().expect("an active sequence has drawn a token");
        let tokens: Vec<u32> = self.active.iter().map(last).collect();
        let mut x = model.embed(&tokens);
        for (layer, cache) in self.caches.iter_mut().enumerate() {
            let attend = |fused: &B::Buffer| {
                backend.cache_store(cache, fused, &stores);
                (backend.cached_attention(cache, fused, &entries), backend.zeros(0))
            };
            x = model.block(layer, x, &rotation, attend).0;
        }
        self.draw(&x, 0);
    }

    /// Draws the next token of `self.active[first..]` from the residual stream of their last tokens, and retires those
    /// that are finished.
    fn draw(&mut self, x: &B::Buffer, first: usize) {
        let (model, sampling, prompts) = (self.model, self.sampling, self.prompts);
        let (hidden, _) = model.norm(x, &model.base.parameters.norm);
        let head = model.head().expect("`generate` checked that there is one");
        let Sampling { temperature, top_k, top_p, .. } = *sampling;
        let uniform = |Active { prompt, response, .. }: &Active| {
            let Prompt { id, sample, .. } = prompts[*prompt];
            Philox::new(sampling.seed, id).uniform_at(u64::from(sample), response.tokens.len() as u64)
        };
        let uniforms: Vec<f32> = self.active[first..].iter().map(uniform).collect();
        let drawn = model.base.backend.draw(&hidden, head, &Choice { temperature, top_k, top_p }, &uniforms);
        for (active, (token, logprob)) in self.active[first..].iter_mut().zip(drawn) {
            active.response.tokens.push(token);
            active.response.logprobs.push(logprob);
        }
        self.retire();
    }

    /// Moves finished sequences out and frees their slots.
    fn retire(&mut self) {
        let (sampling, prompts, context) = (self.sampling, self.prompts, self.model.spec.max_positions);
        let mut kept = Vec::with_capacity(self.active.len());
        for mut active in self.active.drain(..) {
            let response = &mut active.response;
            let stopped = response.tokens.last().is_some_and(|token| sampling.stop_tokens.contains(token));
            let length = response.tokens.len();
            let full = length == sampling.max_new_tokens || prompts[active.prompt].tokens.len() + length >= context;
            if stopped || full {
                response.finish = if stopped { Finish::Stop } else { Finish::Length };
                self.done[active.prompt] = Some(active.response);
                self.free.push(active.slot);
                self.finished += 1;
            } else {
                kept.push(active);
            }
        }
        self.active = kept;
    }
}
