// Keys and values of sequences being decoded, [slot][kv_head][capacity][HEAD_DIM] each, and attention of new tokens to them.

#define CACHE_NAMED2(base, size) base##_##size
#define CACHE_NAMED1(base, size) CACHE_NAMED2(base, size)
#define CACHE_NAMED(base) CACHE_NAMED1(base, HEAD_DIM)

constexpr int DIM = HEAD_DIM;
constexpr float LOG2E = 1.4426950408889634f;
// Lanes that hold a key together, eight numbers each, and keys that a warp looks at together.
constexpr int LANES = DIM <= 64 ? 8 : DIM <= 128 ? 16 : 32;
constexpr int KEYS = 32 / LANES;
// Warps of a block.
constexpr int WARPS = 4;
// Tokens that a block attends to: the result does not depend on how many blocks a sequence has.
constexpr int SPLIT = 256;
// Query heads that a warp works on at once, where several share a key.
constexpr int SOME = DIM <= 128 ? 4 : 2;

/// Stores the keys and values of `rows[e]` as token `positions[e]` of sequence `slots[e]`; a block for each entry.
template <typename T>
static __device__ void cache_store(T *keys, T *values, const T *fused, const unsigned *rows, const unsigned *slots,
                                   const unsigned *positions, int heads, int kv_heads, int capacity) {
    const T *from = fused + (long long)rows[blockIdx.x] * (heads + 2 * kv_heads) * DIM + (long long)heads * DIM;
    for (int i = threadIdx.x * 8; i < kv_heads * DIM; i += blockDim.x * 8) {
        const long long head = (long long)slots[blockIdx.x] * kv_heads + i / DIM;
        const long long to = (head * capacity + positions[blockIdx.x]) * DIM + i % DIM;
        float x[8];
        load8(from + i, x);
        store8(keys + to, x);
        load8(from + (long long)kv_heads * DIM + i, x);
        store8(values + to, x);
    }
}

/// Attention of entry e's new token to the tokens of its sequence, the part [blockIdx.z * SPLIT, ...) of them, for the
/// query heads of one kv head. Writes sums over values that are not divided yet, [entry][head][splits][DIM], and
/// (largest score, sum) beside them; with one split, the result itself.
///
/// Blocks are (entry, kv_head * parts + part of its query heads, split); a warp takes every WARPS-th group of keys.
template <typename T, int HEADS>
static __device__ void cached_attention(T *out, float *partial, float *marks, const T *keys, const T *values,
                                        const T *fused, const unsigned *slots, const unsigned *positions, int heads,
                                        int kv_heads, int capacity, int window, float scale) {
    __shared__ float sums[WARPS][HEADS][DIM], tops[WARPS][HEADS], totals[WARPS][HEADS];
    const int entry = blockIdx.x, group = heads / kv_heads, parts = (group + HEADS - 1) / HEADS;
    const int kv = blockIdx.y / parts, first_head = kv * group + blockIdx.y % parts * HEADS;
    const int count = min(HEADS, (kv + 1) * group - first_head);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, place = lane / LANES, column = lane % LANES * 8;
    const int length = (int)positions[entry] + 1, seen = window > 0 ? max(0, length - window) : 0;
    const int from = max(seen, (int)blockIdx.z * SPLIT), to = min(length, ((int)blockIdx.z + 1) * SPLIT);
    const bool mine = column < DIM;
    const long long at = ((long long)slots[entry] * kv_heads + kv) * capacity;
    const T *row = fused + (long long)entry * (heads + 2 * kv_heads) * DIM;
    float query[HEADS][8], sum[HEADS][8], top[HEADS], total[HEADS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        top[h] = -INFINITE;
        total[h] = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) query[h][i] = sum[h][i] = 0.0f;
        if (h < count && mine) load8(row + (long long)(first_head + h) * DIM + column, query[h]);
#pragma unroll
        for (int i = 0; i < 8; i++) query[h][i] *= scale * LOG2E;
    }
    // Two groups of keys at a time: more loads under way.
    constexpr int STEP = WARPS * KEYS;
    for (int k = from + warp * KEYS + place; k - place < to; k += 2 * STEP) {
        float key[2][8], value[2][8];
#pragma unroll
        for (int u = 0; u < 2; u++) {
            const int token = k + u * STEP;
#pragma unroll
            for (int i = 0; i < 8; i++) key[u][i] = value[u][i] = 0.0f;
            if (token < to && mine) {
                load8(keys + (at + token) * DIM + column, key[u]);
                load8(values + (at + token) * DIM + column, value[u]);
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            if (h >= count) break;
            float score[2];
#pragma unroll
            for (int u = 0; u < 2; u++) {
                float x = 0.0f;
#pragma unroll
                for (int i = 0; i < 8; i++) x += query[h][i] * key[u][i];
#pragma unroll
                for (int by = LANES / 2; by > 0; by /= 2) x += __shfl_xor_sync(ALL_LANES, x, by);
                score[u] = k + u * STEP < to ? x : -INFINITE;
            }
            const float high = fmaxf(top[h], fmaxf(score[0], score[1]));
            const float off = high == -INFINITE ? 0.0f : high, shrink = exp2f(top[h] - off);
            const float p = exp2f(score[0] - off), q = exp2f(score[1] - off);
            top[h] = high;
            total[h] = total[h] * shrink + p + q;
#pragma unroll
            for (int i = 0; i < 8; i++) sum[h][i] = sum[h][i] * shrink + p * value[0][i] + q * value[1][i];
        }
    }
    // The lanes of a warp that hold other keys, then the warps, in order.
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        if (h >= count) break;
#pragma unroll
        for (int by = LANES; by < 32; by *= 2) {
            const float other_top = __shfl_xor_sync(ALL_LANES, top[h], by), other = __shfl_xor_sync(ALL_LANES, total[h], by);
            const float high = fmaxf(top[h], other_top), off = high == -INFINITE ? 0.0f : high;
            const float p = exp2f(top[h] - off), q = exp2f(other_top - off);
            total[h] = total[h] * p + other * q;
#pragma unroll
            for (int i = 0; i < 8; i++) sum[h][i] = sum[h][i] * p + __shfl_xor_sync(ALL_LANES, sum[h][i], by) * q;
            top[h] = high;
        }
        if (place == 0 && mine) {
#pragma unroll
            for (int i = 0; i < 8; i++) sums[warp][h][column + i] = sum[h][i];
        }
        if (lane == 0) tops[warp][h] = top[h], totals[warp][h] = total[h];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * DIM; i += blockDim.x) {
        const int h = i / DIM, c = i % DIM;
        float high = tops[0][h];
        for (int w = 1; w < WARPS; w++) high = fmaxf(high, tops[w][h]);
        const float off = high == -INFINITE ? 0.0f : high;
        float all = 0.0f, whole = 0.0f;
        for (int w = 0; w < WARPS; w++) {
            const float p = exp2f(tops[w][h] - off);
            all += sums[w][h][c] * p;
            whole += totals[w][h] * p;
        }
        const long long head = (long long)entry * heads + first_head + h;
        if (gridDim.z == 1) {
            put(out + head * DIM + c, all / whole);
        } else {
            const long long split = head * gridDim.z + blockIdx.z;
            partial[split * DIM + c] = all;
            if (c == 0) marks[2 * split] = high, marks[2 * split + 1] = whole;
        }
    }
}

/// Puts the parts of a sequence together, in order; a block for each entry and head.
template <typename T>
static __device__ void combine_splits(T *out, const float *partial, const float *marks, int splits) {
    const long long first = (long long)blockIdx.x * splits;
    float high = -INFINITE;
    for (int s = 0; s < splits; s++) high = fmaxf(high, marks[2 * (first + s)]);
    for (int c = threadIdx.x; c < DIM; c += blockDim.x) {
        float all = 0.0f, whole = 0.0f;
        for (int s = 0; s < splits; s++) {
            const float p = exp2f(marks[2 * (first + s)] - high);
            all += partial[(first + s) * DIM + c] * p;
            whole += marks[2 * (first + s) + 1] * p;
        }
        put(out + (long long)blockIdx.x * DIM + c, all / whole);
    }
}

#define CACHE(T, t)                                                                                                     \
    extern "C" __global__ void CACHE_NAMED(cache_store_##t)(T *keys, T *values, const T *fused, const unsigned *rows,   \
                                                            const unsigned *slots, const unsigned *positions, int heads, \
                                                            int kv_heads, int capacity) {                               \
        cache_store(keys, values, fused, rows, slots, positions, heads, kv_heads, capacity);                            \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) CACHE_NAMED(cached_attention_##t)(                         \
        T *out, float *partial, float *marks, const T *keys, const T *values, const T *fused, const unsigned *slots,    \
        const unsigned *positions, int heads, int kv_heads, int capacity, int window, float scale) {                    \
        cached_attention<T, 1>(out, partial, marks, keys, values, fused, slots, positions, heads, kv_heads, capacity,   \
                               window, scale);                                                                          \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) CACHE_NAMED(cached_attention_grouped_##t)(                 \
        T *out, float *partial, float *marks, const T *keys, const T *values, const T *fused, const unsigned *slots,    \
        const unsigned *positions, int heads, int kv_heads, int capacity, int window, float scale) {                    \
        cached_attention<T, SOME>(out, partial, marks, keys, values, fused, slots, positions, heads, kv_heads, capacity, \
                                  window, scale);                                                                       \
    }                                                                                                                   \
    extern "C" __global__ void CACHE_NAMED(combine_splits_##t)(T *out, const float *partial, const float *marks,        \
                                                               int splits) {                                            \
        combine_splits(out, partial, marks, splits);                                                                    \
    }
CACHE(float, f32)
CACHE(bf16, bf16)
