//! Causal attention inside sequences, forward and backward.

use super::buffer::{Buffer, Words};
use super::card::{Argument, Card, Launch};
use super::kind::Kind;
use super::rows::kernel;
use crate::backend::AttentionShape;
use std::sync::Arc;

/// Rows of a tile: `TILE` of the kernels.
const TILE: usize = 64;
/// Numbers by which a row in shared memory is longer than a head.
const PADDING: usize = 8;

/// Sequences cut into tiles of rows, those with the most work first.
pub(super) struct Tiles {
    /// For queries, which attend to earlier tokens: four words each, see the kernels.
    queries: Words,
    /// For keys, which later tokens attend to.
    keys: Words,
}

impl Tiles {
    pub(super) fn new(card: &Arc<Card>, cu_seqlens: &[usize]) -> Tiles {
        let mut tiles: Vec<[usize; 3]> = Vec::new();
        for ends in cu_seqlens.windows(2) {
            let length = ends[1] - ends[0];
            tiles.extend((0..length).step_by(TILE).map(|first| [ends[0], length, first]));
        }
        let words = |tiles: &[[usize; 3]]| {
            let words = tiles.iter().flat_map(|tile| [tile[0] as u32, tile[1] as u32, tile[2] as u32, 0]);
            card.upload_words(&words.collect::<Vec<_>>())
        };
        tiles.sort_by_key(|tile| std::cmp::Reverse(tile[2]));
        let queries = words(&tiles);
        tiles.sort_by_key(|tile| std::cmp::Reverse(tile[1] - tile[2]));
        Tiles { queries, keys: words(&tiles) }
    }

    fn count(&self) -> usize {
        self.queries.len() / 4
    }
}

/// Whether the tensor cores take heads of this size.
fn has_tiles(kind: Kind, head_dim: usize) -> bool {
    kind == Kind::Bf16 && head_dim.is_multiple_of(16) && (head_dim <= 128 || head_dim.is_multiple_of(32))
}

/// Starts a kernel with a block for each tile and head.
fn start(
    card: &Arc<Card>,
    shape: &AttentionShape,
    kernel: &'static str,
    (tiles, heads, threads): (usize, usize, usize),
    shared: usize,
    arguments: &[&dyn Argument],
) {
    let blocks = [(tiles * heads) as u32, 1, 1];
    let launch = Launch { blocks, threads: threads as u32, shared: shared as u32 };
    card.launch_for(shape.head_dim, kernel, launch, arguments);
}

/// The window in the kernels' form, 0 for none. Limited, as kernels add the rows of a tile to it.
pub(super) fn window(shape: &AttentionShape) -> i32 {
    shape.window.map_or(0, |window| window.min(1 << 30) as i32)
}

/// Returns the arguments that describe the shape: heads, key heads, window (0: none), scale of the scores.
fn described(shape: &AttentionShape) -> (i32, i32, i32, f32) {
    (shape.heads as i32, shape.kv_heads as i32, window(shape), shape.scale)
}

/// Returns the output, and the log-sum of each row's scores (base 2), `[heads, T]`.
pub(super) fn forward(card: &Arc<Card>, fused: &Buffer, tiles: &Tiles, shape: &AttentionShape) -> (Buffer, Buffer) {
    let (rows, kind) = (fused.len() / shape.fused(), fused.kind());
    let (mut out, mut log_sums) = (card.room(rows * shape.output(), kind), card.room(rows * shape.heads, Kind::F32));
    let (heads, kv_heads, window, scale) = described(shape);
    let arguments: [&dyn Argument; 9] = [
        &out.pointer_mut(),
        &log_sums.pointer_mut(),
        &fused.pointer(),
        &tiles.queries.pointer(),
        &heads,
        &kv_heads,
        &window,
        &(rows as i64),
        &scale,
    ];
    if has_tiles(kind, shape.head_dim) {
        let keys = if shape.head_dim <= 128 { 64 } else { 32 };
        let shared = (TILE + 4 * keys) * (shape.head_dim + PADDING) * Kind::Bf16.bytes();
        let grid = (tiles.count(), shape.heads, 128);
        start(card, shape, "attention_forward_bf16", grid, shared, &arguments);
    } else {
        start(card, shape, kernel!("plain_forward", kind), (tiles.count(), shape.heads, 256), 0, &arguments);
    }
    (out, log_sums)
}

/// Returns the gradient with respect to the fused rows.
pub(super) fn backward(
    card: &Arc<Card>,
    d_out: &Buffer,
    (out, log_sums): (&Buffer, &Buffer),
    fused: &Buffer,
    tiles: &Tiles,
    shape: &AttentionShape,
) -> Buffer {
    let (rows, kind) = (fused.len() / shape.fused(), fused.kind());
    let d_out = d_out.converted(kind);
    let (heads, kv_heads, window, scale) = described(shape);
    let mut delta = card.room(rows * shape.heads, Kind::F32);
    start(
        card,
        shape,
        kernel!("attention_delta", kind),
        ((rows * shape.heads).div_ceil(8), 1, 256),
        0,
        &[&delta.pointer_mut(), &d_out.pointer(), &out.pointer(), &heads, &(rows as i64)],
    );
    let mut d_fused = card.room(fused.len(), kind);
    let to = d_fused.pointer_mut();
    let pass =
        |tiles: &Words| (to, d_out.pointer(), fused.pointer(), log_sums.pointer(), delta.pointer(), tiles.pointer());
    let run = |kernel, pass: (u64, u64, u64, u64, u64, u64), heads_of: usize, threads, shared| {
        let (to, d_out, fused, log_sums, delta, of) = pass;
        let arguments: [&dyn Argument; 11] =
            [&to, &d_out, &fused, &log_sums, &delta, &of, &heads, &kv_heads, &window, &(rows as i64), &scale];
        start(card, shape, kernel, (tiles.count(), heads_of, threads), shared, &arguments);
    };
    let (queries, keys) = (pass(&tiles.queries), pass(&tiles.keys));
    if has_tiles(kind, shape.head_dim) {
        let pitch = (shape.head_dim + PADDING) * Kind::Bf16.bytes();
        let (wide, columns) = (shape.head_dim > 128, shape.head_dim);
        let key_step = if wide { 32 } else { 64 };
        let query_step = if columns <= 64 { 64 } else { 32 };
        let shared = (2 * TILE + 4 * key_step) * pitch;
        run("attention_queries_bf16", queries, shape.heads, 128, shared);
        let shared = (2 * TILE + 4 * query_step) * pitch + 4 * query_step * Kind::F32.bytes();
        let threads = if wide { 256 } else { 128 };
        // Too few heads of keys to fill the GPU: a block for each query head, then the sums over groups.
        let split = shape.heads > shape.kv_heads && tiles.count() * shape.kv_heads < 2 * card.multiprocessors();
        let len = if split { rows * shape.heads * 2 * shape.head_dim } else { 0 };
        let mut partial = card.room(len, Kind::F32);
        let partial_at = if split { partial.pointer_mut() } else { 0 };
        let (to, d_out, fused, log_sums, delta, of) = keys;
        let arguments: [&dyn Argument; 12] = [
            &to,
            &d_out,
            &fused,
            &log_sums,
            &delta,
            &of,
            &heads,
            &kv_heads,
            &window,
            &(rows as i64),
            &scale,
            &partial_at,
        ];
        let columns = if split { shape.heads } else { shape.kv_heads };
        start(card, shape, "attention_keys_bf16", (tiles.count(), columns, threads), shared, &arguments);
        if split {
            let arguments: [&dyn Argument; 4] = [&to, &partial_at, &heads, &kv_heads];
            start(card, shape, "attention_sum_keys_bf16", (rows, 1, 256), 0, &arguments);
        }
    } else {
        run(kernel!("plain_queries", kind), queries, shape.heads, 256, 0);
        run(kernel!("plain_keys", kind), keys, shape.kv_heads, 256, 0);
    }
    d_fused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_leaves_room_for_what_kernels_add_to_it() {
        let shape = |window| AttentionShape { window, ..AttentionShape::new(1, 1, 8) };
        assert_eq!([None, Some(7)].map(|size| window(&shape(size))), [0, 7]);
        for size in [1 << 30, i32::MAX as usize, usize::MAX] {
            assert!(window(&shape(Some(size))).checked_add(TILE as i32).is_some());
        }
    }
}
