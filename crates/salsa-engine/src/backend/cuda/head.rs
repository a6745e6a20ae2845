//! The log-prob head and drawing tokens. Logits exist for a block of rows at a time.

use super::buffer::{Buffer, Words};
use super::card::Card;
use super::kind::Kind;
use super::products::{self, Matrix};
use super::rows::{for_parts, kernel, start};
use crate::backend::cpu::rank as rank_row;
use crate::backend::{Choice, LogprobQuery, Ranking, TokenStats};
use std::ops::Range;
use std::sync::Arc;

/// Threads of a block that reduces a row of logits.
const STATS_THREADS: usize = 512;
/// Threads of a block that draws; the limit of the kernel's shared memory.
const DRAW_THREADS: usize = 1024;

/// Returns, for each row of `logits[rows, vocabulary]` (f32, before the temperature), the log-prob of its target, the
/// entropy and the log-sum, `[rows]` each.
fn logit_stats(card: &Arc<Card>, logits: &Buffer, vocabulary: usize, targets: &Words, temperature: f32) -> [Buffer; 3] {
    let rows = targets.len();
    let mut stats = [0; 3].map(|_| card.room(rows, Kind::F32));
    let [logprobs, entropies, log_sums] = stats.each_mut().map(Buffer::pointer_mut);
    start(
        card,
        "logit_stats",
        [rows, 1],
        STATS_THREADS,
        &[
            &logits.pointer(),
            &targets.pointer(),
            &logprobs,
            &entropies,
            &log_sums,
            &(vocabulary as i32),
            &(1.0 / temperature),
        ],
    );
    stats
}

/// The gradient with respect to the logits, as numbers of `kind`: `d_logprob / temperature * ((v == target) - p(v))`, for
/// the `width` entries of the vocabulary from `first` on, which `logits[rows, width]` holds. Addresses are those of the
/// first row's target, `d_logprob` and log-sum.
fn logit_gradient(
    card: &Arc<Card>,
    logits: &Buffer,
    (width, first): (usize, usize),
    [targets, d_logprobs, log_sums]: [u64; 3],
    temperature: f32,
    kind: Kind,
) -> Buffer {
    let rows = logits.len() / width;
    let mut out = card.room(rows * width, kind);
    let (blocks, threads) = for_parts(rows, width);
    start(
        card,
        kernel!("logit_gradient", kind),
        blocks,
        threads,
        &[
            &logits.pointer(),
            &targets,
            &d_logprobs,
            &log_sums,
            &out.pointer_mut(),
            &(width as i32),
            &(first as i32),
            &(1.0 / temperature),
        ],
    );
    out
}

/// Draws a token from each row of `logits[rows, vocabulary]` (f32, before the temperature) at its `uniform` number in
/// `0 .. 1`. Returns the tokens (words, in a buffer's memory), and their log-probs under the whole softmax.
fn draw_rows(
    card: &Arc<Card>,
    logits: &Buffer,
    vocabulary: usize,
    uniform: &Buffer,
    choice: &Choice,
) -> (Buffer, Buffer) {
    let rows = logits.len() / vocabulary;
    let temperature = if choice.temperature == 0.0 { 1.0 } else { choice.temperature };
    let (mut tokens, mut logprobs) = (card.room(rows, Kind::F32), card.room(rows, Kind::F32));
    start(
        card,
        "draw",
        [rows, 1],
        DRAW_THREADS,
        &[
            &logits.pointer(),
            &uniform.pointer(),
            &tokens.pointer_mut(),
            &logprobs.pointer_mut(),
            &(vocabulary as i32),
            &(1.0 / temperature),
            &i32::from(choice.temperature == 0.0),
            &(choice.top_k.min(vocabulary) as i32),
            &choice.top_p,
        ],
    );
    (tokens, logprobs)
}

/// Bytes of logits in memory at once.
const LOGITS: usize = 512 << 20;

/// Blocks of rows whose logits fit.
fn blocks(rows: usize, vocabulary: usize) -> impl Iterator<Item = Range<usize>> {
    let block = (LOGITS / Kind::F32.bytes() / vocabulary).max(1);
    (0..rows).step_by(block).map(move |first| first..rows.min(first + block))
}

/// `sum_i mix[i] * hidden[i][rows] W[i]^T`, f32.
fn mixed_logits(card: &Arc<Card>, heads: &[(&Buffer, &Matrix, f32)], rows: Range<usize>) -> Buffer {
    let mut logits = card.room(rows.len() * heads[0].1.out, Kind::F32);
    for (i, (hidden, weight, mix)) in heads.iter().enumerate() {
        let keep = if i == 0 { 0.0 } else { 1.0 };
        products::some_rows(hidden, rows.clone(), weight, *mix, keep, &mut logits);
    }
    logits
}

/// See [`crate::backend::Backend::token_stats`]. Waits for the GPU.
pub(super) fn token_stats(card: &Arc<Card>, heads: &[(&Buffer, &Matrix, f32)], query: LogprobQuery<'_>) -> TokenStats {
    let vocabulary = heads[0].1.out;
    let mut stats = TokenStats::default();
    for rows in blocks(query.targets.len(), vocabulary) {
        let targets = card.upload_words(&query.targets[rows.clone()]);
        let logits = mixed_logits(card, heads, rows);
        let [logprobs, entropies, log_sums] = logit_stats(card, &logits, vocabulary, &targets, query.temperature);
        stats.logprobs.extend(card.download(&logprobs));
        stats.entropies.extend(card.download(&entropies));
        stats.log_sums.extend(card.download(&log_sums));
    }
    stats
}

/// See [`crate::backend::Backend::token_stats_backward`]; `d_weight` is an address of f32.
pub(super) fn token_stats_backward(
    card: &Arc<Card>,
    d_logprobs: &[f32],
    hidden: &Buffer,
    head: &Matrix,
    query: LogprobQuery<'_>,
    log_sums: &[f32],
    d_weight: Option<u64>,
) -> Buffer {
    let targets = card.upload_words(query.targets);
    let (d_logprobs, log_sums) = (card.upload_f32(d_logprobs), card.upload_f32(log_sums));
    let mut d_hidden = card.room(hidden.len(), head.kind());
    for rows in blocks(query.targets.len(), head.out) {
        let logits = mixed_logits(card, &[(hidden, head, 1.0)], rows.clone());
        let first = |address: u64| address + (rows.start * Kind::F32.bytes()) as u64;
        let of_rows = [targets.pointer(), d_logprobs.pointer(), log_sums.pointer()].map(first);
        let d_logits = logit_gradient(card, &logits, (head.out, 0), of_rows, query.temperature, head.kind());
        drop(logits);
        products::some_rows_backward_input(&d_logits, head, &mut d_hidden, rows.clone());
        if let Some(d_weight) = d_weight {
            products::some_rows_backward_weight(&d_logits, hidden, rows, head, d_weight);
        }
    }
    d_hidden
}

/// See [`crate::backend::Backend::draw`]. Waits for the GPU.
pub(super) fn draw(
    card: &Arc<Card>,
    hidden: &Buffer,
    head: &Matrix,
    choice: &Choice,
    uniforms: &[f32],
) -> Vec<(u32, f32)> {
    let mut drawn = Vec::with_capacity(uniforms.len());
    for rows in blocks(uniforms.len(), head.out) {
        let uniform = card.upload_f32(&uniforms[rows.clone()]);
        let logits = mixed_logits(card, &[(hidden, head, 1.0)], rows);
        let (tokens, logprobs) = draw_rows(card, &logits, head.out, &uniform, choice);
        let (tokens, logprobs) = (card.download(&tokens), card.download(&logprobs));
        drawn.extend(tokens.into_iter().map(f32::to_bits).zip(logprobs));
    }
    drawn
}

/// See [`crate::backend::Backend::rank`]. The logits are copied to the CPU, which ranks them: a few rows at a time are
/// enough for interactive use.
pub(super) fn rank(card: &Arc<Card>, hidden: &Buffer, head: &Matrix, targets: &[u32], count: usize) -> Vec<Ranking> {
    let mut ranked = Vec::with_capacity(targets.len());
    for rows in blocks(targets.len(), head.out) {
        let logits = card.download(&mixed_logits(card, &[(hidden, head, 1.0)], rows.clone()));
        ranked.extend(logits.chunks(head.out).zip(&targets[rows]).map(|(row, &target)| rank_row(row, target, count)));
    }
    ranked
}
