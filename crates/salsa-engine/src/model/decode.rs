//! Generation: continuous batching over a cache of keys and values.

use super::Transformer;
use super::rotation::Place;
use crate::backend::{Backend, Choice, Ranking};
use crate::batch::Batch;
use crate::random::Philox;
use std::collections::VecDeque;
use std::sync::Arc;

/// A prompt to be continued. `id` and `sample` select the random stream: a response depends only on the weights, the
/// prompt's tokens and `(seed, id, sample)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The tokens; at least one.
    pub tokens: Vec<u32>,
    /// Identifies the prompt.
    pub id: u64,
    /// Number of the sample of this prompt.
    pub sample: u32,
}

/// How tokens are sampled and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the most likely token.
    pub temperature: f32,
    /// Samples only from this many most likely tokens; 0 for all.
    pub top_k: usize,
    /// Samples only from the most likely tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Key of the random numbers.
    pub seed: u64,
    /// The longest response, in tokens.
    pub max_new_tokens: usize,
    /// A response ends with the first of these.
    pub stop_tokens: Vec<u32>,
    /// Sequences decoded at once. Affects speed and memory, never the result.
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
    /// The new tokens, including the stop token if there was one.
    pub tokens: Vec<u32>,
    /// Log-prob of each token under the full softmax at the sampling temperature (at temperature 1 when greedy).
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// With a stop token.
    Stop,
    /// At the maximum length, or at the end of the model's context.
    Length,
}

/// Identifies a request to [`Decoding`], in the order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// A new token of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The request.
    pub ticket: Ticket,
    /// The token.
    pub token: u32,
    /// Its log-prob, as in [`Response`].
    pub logprob: f32,
    /// Why the response ends with this token; `None` if it continues.
    pub finish: Option<Finish>,
    /// Its log-prob at temperature 1 and the most likely tokens, if requested.
    pub ranking: Option<Ranking>,
}

/// A request without a slot.
struct Waiting {
    ticket: Ticket,
    prompt: Prompt,
    sampling: Arc<Sampling>,
    /// How many of the most likely tokens to return with each token; `None` for no ranking.
    ranked: Option<usize>,
}

/// A sequence being decoded.
struct Active {
    request: Waiting,
    slot: usize,
    /// The tokens drawn so far.
    drawn: Vec<u32>,
}

impl Active {
    /// The position of the token drawn last.
    fn position(&self) -> usize {
        self.request.prompt.tokens.len() + self.drawn.len() - 1
    }

    /// The prompt and what was drawn.
    fn tokens(&self) -> Vec<u32> {
        [&self.request.prompt.tokens[..], &self.drawn].concat()
    }

    fn choice(&self) -> Choice {
        let Sampling { temperature, top_k, top_p, .. } = *self.request.sampling;
        Choice { temperature, top_k, top_p }
    }

    /// The uniform number for the next token.
    fn uniform(&self) -> f32 {
        let Prompt { id, sample, .. } = self.request.prompt;
        Philox::new(self.request.sampling.seed, id).uniform_at(u64::from(sample), self.drawn.len() as u64)
    }
}

/// Decoding step by step: requests may be added and cancelled while others are being continued.
///
/// A response depends only on the weights, its prompt and its sampling settings, not on concurrent requests: the tokens
/// of [`Decoding::step`] are those of [`Transformer::generate`].
///
/// ```
/// use salsa_engine::*;
/// let model = Trainable::new(tiny(), tiny().init(1), Device::default(), Recompute::KeepActivations)?;
/// let sampling = Sampling { max_new_tokens: 3, ..Sampling::default() };
/// let prompt = Prompt { tokens: vec![1, 2], id: 0, sample: 0 };
/// let mut decoding = model.decoding(4, 16);
/// let ticket = decoding.submit(prompt.clone(), &sampling.clone().into());
/// let mut tokens = Vec::new();
/// while !decoding.is_idle() {
///     tokens.extend(decoding.step().into_iter().filter(|event| event.ticket == ticket).map(|event| event.token));
/// }
/// assert_eq!(tokens, model.generate(&[prompt], &sampling, &mut |_| ())[0].tokens);
/// # Ok::<(), ModelError>(())
/// ```
pub struct Decoding<'a, B: Backend> {
    model: &'a Transformer<B>,
    capacity: usize,
    caches: Vec<B::Cache>,
    waiting: VecDeque<Waiting>,
    free: Vec<usize>,
    active: Vec<Active>,
    submitted: u64,
}

impl<B: Backend> Transformer<B> {
    /// Continues every prompt; responses are in the order of the prompts. `progress` is called with the number of
    /// finished responses.
    ///
    /// Adjacent equal prompts share one prefill.
    ///
    /// ```
    /// use salsa_engine::*;
    /// let model = Model::new(tiny(), &tiny().init(1), Device::default())?;
    /// let prompts = [0, 1].map(|id| Prompt { tokens: vec![1, 2, 3], id, sample: 0 });
    /// let sampling = Sampling { max_new_tokens: 4, seed: 7, ..Sampling::default() };
    /// let responses = model.generate(&prompts, &sampling, &mut |_| ());
    /// assert_eq!(responses[0].tokens.len(), 4);                       // no stop token: as long as it may be
    /// assert_eq!(responses[1..], model.generate(&prompts[1..], &sampling, &mut |_| ())); // whatever is beside it
    /// # Ok::<(), ModelError>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If a prompt is empty or leaves no room in the model's context, a token is outside the vocabulary, the model has
    /// no language-model head, or `slots` is zero.
    pub fn generate(&self, prompts: &[Prompt], sampling: &Sampling, progress: &mut dyn FnMut(usize)) -> Vec<Response> {
        assert!(sampling.slots > 0, "decoding needs at least one slot");
        assert!(self.head().is_some(), "this model has no language-model head");
        let mut responses: Vec<Response> = Vec::with_capacity(prompts.len());
        responses.resize_with(prompts.len(), Response::empty);
        if prompts.is_empty() || sampling.max_new_tokens == 0 {
            return responses;
        }
        let longest = prompts.iter().map(|p| p.tokens.len()).max().unwrap_or(0);
        assert!(
            longest < self.spec.max_positions,
            "a prompt of {longest} tokens leaves no room in the context of {}",
            self.spec.max_positions
        );
        let capacity = longest.saturating_add(sampling.max_new_tokens).min(self.spec.max_positions);
        let mut decoding = self.decoding(sampling.slots.min(prompts.len()), capacity);
        let sampling = Arc::new(sampling.clone());
        for prompt in prompts {
            decoding.submit(prompt.clone(), &sampling);
        }
        let mut finished = 0;
        while !decoding.is_idle() {
            for Event { ticket, token, logprob, finish, .. } in decoding.step() {
                let response = &mut responses[ticket.0 as usize];
                response.tokens.push(token);
                response.logprobs.push(logprob);
                if let Some(finish) = finish {
                    response.finish = finish;
                    finished += 1;
                }
            }
            progress(finished);
        }
        responses
    }

    /// A decoder for up to `slots` sequences at once, each of at most `capacity` tokens including its prompt (limited
    /// by the model's context).
    ///
    /// # Panics
    ///
    /// If the model has no language-model head, or `slots` is zero.
    pub fn decoding(&self, slots: usize, capacity: usize) -> Decoding<'_, B> {
        assert!(slots > 0, "decoding needs at least one slot");
        assert!(self.head().is_some(), "this model has no language-model head");
        let capacity = capacity.min(self.spec.max_positions);
        let cache = |layer| self.base.backend.cache(slots, capacity, &self.spec.attention_shape(layer));
        Decoding {
            model: self,
            capacity,
            caches: (0..self.spec.layers).map(cache).collect(),
            waiting: VecDeque::new(),
            free: (0..slots).rev().collect(),
            active: Vec::with_capacity(slots),
            submitted: 0,
        }
    }
}

impl Response {
    fn empty() -> Response {
        Response { tokens: Vec::new(), logprobs: Vec::new(), finish: Finish::Length }
    }
}

impl<B: Backend> Decoding<'_, B> {
    /// Queues a request, which begins as soon as a slot is free. `sampling.slots` is ignored.
    ///
    /// # Panics
    ///
    /// If the prompt is empty or leaves no room within the capacity, or nothing is to be generated.
    pub fn submit(&mut self, prompt: Prompt, sampling: &Arc<Sampling>) -> Ticket {
        self.queue(prompt, sampling, None)
    }

    /// As [`Decoding::submit`]; each event also has the token's log-prob at temperature 1 and the `count` most likely
    /// tokens. The tokens drawn are the same.
    ///
    /// # Panics
    ///
    /// As [`Decoding::submit`].
    pub fn submit_ranked(&mut self, prompt: Prompt, sampling: &Arc<Sampling>, count: usize) -> Ticket {
        self.queue(prompt, sampling, Some(count))
    }

    fn queue(&mut self, prompt: Prompt, sampling: &Arc<Sampling>, ranked: Option<usize>) -> Ticket {
        let length = prompt.tokens.len();
        assert!(length > 0, "a prompt has at least one token");
        assert!(length < self.capacity, "a prompt of {length} tokens leaves no room in {}", self.capacity);
        assert!(sampling.max_new_tokens > 0, "a response has at least one token");
        let ticket = Ticket(self.submitted);
        self.submitted += 1;
        self.waiting.push_back(Waiting { ticket, prompt, sampling: sampling.clone(), ranked });
        ticket
    }

    /// Prefills waiting prompts into free slots, and draws the next token of every sequence that has a slot. New
    /// sequences get two tokens.
    pub fn step(&mut self) -> Vec<Event> {
        let mut events = Vec::with_capacity(self.active.len());
        self.admit(&mut events);
        self.advance(&mut events);
        events
    }

    /// Cancels a request and frees its slot. Has no effect on finished requests.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.waiting.retain(|waiting| waiting.ticket != ticket);
        if let Some(place) = self.active.iter().position(|active| active.request.ticket == ticket) {
            let active = self.active.remove(place);
            self.free.push(active.slot);
        }
    }

    /// Whether no request is waiting or being continued.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// Prefills waiting prompts into free slots and draws their first tokens.
    fn admit(&mut self, events: &mut Vec<Event>) {
        let mut batch = Batch::new();
        // One entry for each run of equal prompts: its rows, and the sequences that begin with it.
        let mut groups: Vec<(std::ops::Range<usize>, Vec<Active>)> = Vec::new();
        while !self.free.is_empty() && !self.waiting.is_empty() {
            let (Some(slot), Some(request)) = (self.free.pop(), self.waiting.pop_front()) else { break };
            let active = Active { request, slot, drawn: Vec::new() };
            let tokens = &active.request.prompt.tokens;
            match groups.last_mut() {
                Some((_, group)) if group[0].request.prompt.tokens == *tokens => group.push(active),
                _ => groups.push((batch.push(tokens), vec![active])),
            }
        }
        if groups.is_empty() {
            return;
        }
        let x = self.prefill(&batch, &groups);
        let first = self.active.len();
        self.active.extend(groups.into_iter().flat_map(|(_, group)| group));
        self.draw(&x, first, events);
    }

    /// Runs sequences through the model, filling the cache. Returns the residual stream of the last row of each.
    fn prefill(&mut self, batch: &Batch, groups: &[(std::ops::Range<usize>, Vec<Active>)]) -> B::Buffer {
        let model = self.model;
        let backend = &model.base.backend;
        let rotation = model.rotation(&model.places(batch));
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
                model.attention(layer, fused, batch)
            };
            x = model.block(layer, x, &rotation, attend).0;
        }
        let last = |(rows, group): &(std::ops::Range<usize>, Vec<Active>)| vec![rows.end as u32 - 1; group.len()];
        let last: Vec<u32> = groups.iter().flat_map(last).collect();
        backend.gather(&x, model.spec.hidden_size, &last)
    }

    /// Draws one more token for every active sequence. One whose earlier tokens turn otherwise at its new length is
    /// read again as a whole.
    fn advance(&mut self, events: &mut Vec<Event>) {
        let turned = |active: &Active| self.model.turns_anew(active.position() + 1);
        let (anew, going): (Vec<Active>, Vec<Active>) = self.active.drain(..).partition(turned);
        self.active = going;
        self.continue_all(events);
        if anew.is_empty() {
            return;
        }
        let mut batch = Batch::new();
        let groups: Vec<_> = anew.into_iter().map(|active| (batch.push(&active.tokens()), vec![active])).collect();
        let x = self.prefill(&batch, &groups);
        let first = self.active.len();
        self.active.extend(groups.into_iter().flat_map(|(_, group)| group));
        self.draw(&x, first, events);
    }

    /// Draws one more token for every active sequence from the cache.
    fn continue_all(&mut self, events: &mut Vec<Event>) {
        if self.active.is_empty() {
            return;
        }
        let model = self.model;
        let backend = &model.base.backend;
        let entries: Vec<(usize, usize)> = self.active.iter().map(|a| (a.slot, a.position())).collect();
        let stores: Vec<_> = entries.iter().enumerate().map(|(row, &(slot, at))| (row, slot, at)).collect();
        let place = |&(_, at): &(usize, usize)| Place { position: at as u32, length: at as u32 + 1 };
        let rotation = model.rotation(&entries.iter().map(place).collect::<Vec<_>>());
        let last = |active: &Active| *active.drawn.last().expect("an active sequence has drawn a token");
        let tokens: Vec<u32> = self.active.iter().map(last).collect();
        let mut x = model.embed(&tokens);
        for (layer, cache) in self.caches.iter_mut().enumerate() {
            let attend = |fused: &B::Buffer| {
                backend.cache_store(cache, fused, &stores);
                (backend.cached_attention(cache, fused, &entries), backend.zeros(0))
            };
            x = model.block(layer, x, &rotation, attend).0;
        }
        self.draw(&x, 0, events);
    }

    /// Draws the next token of `self.active[first..]` from the residual stream of their last tokens, and retires those
    /// that are finished.
    fn draw(&mut self, x: &B::Buffer, first: usize, events: &mut Vec<Event>) {
        let (mut hidden, _) = self.model.norm(x, &self.model.base.parameters.norm);
        self.model.for_head(&mut hidden);
        let drawn = self.choose(&hidden, &self.active[first..]);
        let active = self.active.split_off(first);
        let rankings = self.rankings(&hidden, &active, &drawn);
        for ((mut active, (token, logprob)), ranking) in active.into_iter().zip(drawn).zip(rankings) {
            active.drawn.push(token);
            let drawn = active.drawn.len();
            let Waiting { ticket, prompt, sampling, .. } = &active.request;
            let stopped = sampling.stop_tokens.contains(&token);
            let full = drawn == sampling.max_new_tokens || prompt.tokens.len() + drawn >= self.capacity;
            let finish = match (stopped, full) {
                (true, _) => Some(Finish::Stop),
                (false, true) => Some(Finish::Length),
                (false, false) => None,
            };
            events.push(Event { ticket: *ticket, token, logprob, finish, ranking });
            match finish {
                Some(_) => self.free.push(active.slot),
                None => self.active.push(active),
            }
        }
    }

    /// The rankings to return with the drawn tokens, where requested.
    fn rankings(&self, hidden: &B::Buffer, active: &[Active], drawn: &[(u32, f32)]) -> Vec<Option<Ranking>> {
        let mut all: Vec<Option<Ranking>> = vec![None; active.len()];
        let asked = || active.iter().enumerate().filter_map(|(row, active)| Some((row, active.request.ranked?)));
        let (rows, counts): (Vec<u32>, Vec<usize>) = asked().map(|(row, count)| (row as u32, count)).unzip();
        if rows.is_empty() {
            return all;
        }
        let targets: Vec<u32> = rows.iter().map(|&row| drawn[row as usize].0).collect();
        let most = counts.iter().max().copied().unwrap_or(0);
        let ranked = self.model.rank_rows(hidden, &rows, &targets, most);
        for ((&row, count), mut ranking) in rows.iter().zip(counts).zip(ranked) {
            ranking.top.truncate(count);
            all[row as usize] = Some(ranking);
        }
        all
    }

    /// Draws a token for each sequence, in one pass over the head for all with the same sampling settings.
    fn choose(&self, hidden: &B::Buffer, active: &[Active]) -> Vec<(u32, f32)> {
        let model = self.model;
        let backend = &model.base.backend;
        let head = model.head().expect("`decoding` checked that there is one");
        let softcap = model.spec.options.logit_softcap;
        let mut ways: Vec<(Choice, Vec<u32>)> = Vec::new();
        for (row, active) in active.iter().enumerate() {
            match ways.iter_mut().find(|(choice, _)| *choice == active.choice()) {
                Some((_, rows)) => rows.push(row as u32),
                None => ways.push((active.choice(), vec![row as u32])),
            }
        }
        let uniforms = |rows: &[u32]| rows.iter().map(|&row| active[row as usize].uniform()).collect::<Vec<f32>>();
        if let [(choice, rows)] = &ways[..] {
            return backend.draw(hidden, head, softcap, choice, &uniforms(rows));
        }
        let mut all = vec![(0, 0.0); active.len()];
        for (choice, rows) in &ways {
            let hidden = backend.gather(hidden, model.spec.hidden_size, rows);
            let drawn = backend.draw(&hidden, head, softcap, choice, &uniforms(rows));
            rows.iter().zip(drawn).for_each(|(&row, drawn)| all[row as usize] = drawn);
        }
        all
    }
}
