// Causal grouped-query attention inside sequences, forward and backward, for heads of HEAD_DIM numbers.
//
// A fused row is [queries, keys, values]: (heads + 2 kv_heads) * HEAD_DIM numbers. With base-2 scores
// x = (scale log2 e) q . k, a forward pass leaves lse = log2 sum 2^x for each head and row, [heads][rows], from which
// the backward passes compute probabilities p = 2^(x - lse) again:
//
//   delta = d_out . out,  d_v = p^T d_out,  d_s = p (d_out v^T - delta) scale,  d_q = d_s k,  d_k = d_s^T q
//
// Work is cut into tiles of 64 rows of one sequence, four words each: row where the sequence starts, its length, the
// tile's first place in it, 0. A block is one tile and one head. window = 0: none.
//
// attention_*_bf16 multiply on tensor cores; plain_*_{f32,bf16} are for f32 and for odd sizes: a warp per row.

#define NAMED2(base, size) base##_##size
#define NAMED1(base, size) NAMED2(base, size)
#define NAMED(base) NAMED1(base, HEAD_DIM)

constexpr int DIM = HEAD_DIM;
// Rows of a tile.
constexpr int TILE = 64;
constexpr float LOG2E = 1.4426950408889634f;

struct Shape {
    int heads, kv_heads, window;
    long long rows;
    float scale;
    __device__ int group() const { return heads / kv_heads; }
    __device__ long long fused() const { return (long long)(heads + 2 * kv_heads) * DIM; }
    __device__ long long output() const { return (long long)heads * DIM; }
};

// Part of a sequence.
struct Tile {
    long long start;
    int length, first;
    __device__ Tile(const unsigned *tiles, int index)
        : start(tiles[4 * (long long)index]), length((int)tiles[4 * (long long)index + 1]), first((int)tiles[4 * (long long)index + 2]) {}
};

static __device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
static __device__ __forceinline__ int most(int a, int b) { return a > b ? a : b; }

// ---- A warp per row.

constexpr int PER_LANE = (DIM + 31) / 32;

template <typename T> static __device__ __forceinline__ void take(float (&x)[PER_LANE], const T *from) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) x[i] = lane + 32 * i < DIM ? widen(from[lane + 32 * i]) : 0.0f;
}

template <typename T> static __device__ __forceinline__ void give(T *to, const float (&x)[PER_LANE], float factor) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (lane + 32 * i < DIM) put(to + lane + 32 * i, x[i] * factor);
}

static __device__ __forceinline__ float dot(const float (&x)[PER_LANE], const float (&y)[PER_LANE]) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) sum += x[i] * y[i];
    return warp_sum(sum);
}

static __device__ __forceinline__ void add(float (&sum)[PER_LANE], float factor, const float (&x)[PER_LANE]) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) sum[i] += factor * x[i];
}

// The first key that the query at `place` sees.
static __device__ __forceinline__ int first_key(int place, int window) { return window > 0 ? most(0, place + 1 - window) : 0; }

template <typename T>
static __device__ void plain_forward(T *out, float *lse, const T *fused, const unsigned *tiles, Shape shape) {
    const int head = blockIdx.x % shape.heads, kv = head / shape.group();
    const Tile tile(tiles, blockIdx.x / shape.heads);
    const long long stride = shape.fused();
    const T *keys = fused + tile.start * stride + (long long)(shape.heads + kv) * DIM;
    const T *values = keys + (long long)shape.kv_heads * DIM;
    const int end = least(tile.length, tile.first + TILE);
    for (int place = tile.first + threadIdx.x / 32; place < end; place += blockDim.x / 32) {
        const long long row = tile.start + place;
        float query[PER_LANE], key[PER_LANE], value[PER_LANE], sum[PER_LANE] = {};
        take(query, fused + row * stride + (long long)head * DIM);
        float top = -INFINITE, total = 0.0f;
        for (int k = first_key(place, shape.window); k <= place; k++) {
            take(key, keys + k * stride);
            take(value, values + k * stride);
            const float x = dot(query, key) * (shape.scale * LOG2E);
            const float new_top = fmaxf(top, x), factor = exp2f(top - new_top), p = exp2f(x - new_top);
            total = total * factor + p;
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) sum[i] = sum[i] * factor + p * value[i];
            top = new_top;
        }
        give(out + row * shape.output() + (long long)head * DIM, sum, 1.0f / total);
        if ((threadIdx.x & 31) == 0) lse[head * shape.rows + row] = top + log2f(total);
    }
}

// delta[head][row] = d_out . out: a warp per row and head.
template <typename T> static __device__ void delta_rows(float *delta, const T *d_out, const T *out, int heads, long long rows) {
    const long long index = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= rows * heads) return;
    float x[PER_LANE], y[PER_LANE];
    take(x, d_out + index * DIM);
    take(y, out + index * DIM);
    const float sum = dot(x, y);
    if ((threadIdx.x & 31) == 0) delta[index % heads * rows + index / heads] = sum;
}

template <typename T>
static __device__ void plain_queries(T *d_fused, const T *d_out, const T *fused, const float *lse, const float *delta,
                                     const unsigned *tiles, Shape shape) {
    const int head = blockIdx.x % shape.heads, kv = head / shape.group();
    const Tile tile(tiles, blockIdx.x / shape.heads);
    const long long stride = shape.fused();
    const T *keys = fused + tile.start * stride + (long long)(shape.heads + kv) * DIM;
    const T *values = keys + (long long)shape.kv_heads * DIM;
    const int end = least(tile.length, tile.first + TILE);
    for (int place = tile.first + threadIdx.x / 32; place < end; place += blockDim.x / 32) {
        const long long row = tile.start + place;
        float query[PER_LANE], d[PER_LANE], key[PER_LANE], value[PER_LANE], sum[PER_LANE] = {};
        take(query, fused + row * stride + (long long)head * DIM);
        take(d, d_out + row * shape.output() + (long long)head * DIM);
        const float row_lse = lse[head * shape.rows + row], row_delta = delta[head * shape.rows + row];
        for (int k = first_key(place, shape.window); k <= place; k++) {
            take(key, keys + k * stride);
            take(value, values + k * stride);
            const float p = exp2f(dot(query, key) * (shape.scale * LOG2E) - row_lse);
            add(sum, p * (dot(d, value) - row_delta), key);
        }
        give(d_fused + row * stride + (long long)head * DIM, sum, shape.scale);
    }
}

template <typename T>
static __device__ void plain_keys(T *d_fused, const T *d_out, const T *fused, const float *lse, const float *delta,
                                  const unsigned *tiles, Shape shape) {
    const int kv = blockIdx.x % shape.kv_heads, group = shape.group();
    const Tile tile(tiles, blockIdx.x / shape.kv_heads);
    const long long stride = shape.fused(), at_key = (long long)(shape.heads + kv) * DIM;
    const long long at_value = at_key + (long long)shape.kv_heads * DIM;
    const int end = least(tile.length, tile.first + TILE);
    for (int place = tile.first + threadIdx.x / 32; place < end; place += blockDim.x / 32) {
        const long long row = tile.start + place;
        float query[PER_LANE], d[PER_LANE], key[PER_LANE], value[PER_LANE], d_key[PER_LANE] = {}, d_value[PER_LANE] = {};
        take(key, fused + row * stride + at_key);
        take(value, fused + row * stride + at_value);
        const int last = shape.window > 0 ? least(tile.length - place, shape.window) : tile.length - place;
        for (int head = kv * group; head < (kv + 1) * group; head++) {
            for (long long q = row; q < row + last; q++) {
                take(query, fused + q * stride + (long long)head * DIM);
                take(d, d_out + q * shape.output() + (long long)head * DIM);
                const float p = exp2f(dot(query, key) * (shape.scale * LOG2E) - lse[head * shape.rows + q]);
                add(d_value, p, d);
                add(d_key, p * (dot(d, value) - delta[head * shape.rows + q]), query);
            }
        }
        give(d_fused + row * stride + at_key, d_key, shape.scale);
        give(d_fused + row * stride + at_value, d_value, 1.0f);
    }
}

#define SHAPE Shape{heads, kv_heads, window, rows, scale}
#define PLAIN(T)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(256) NAMED(plain_forward_##T)(                                         \
        TYPE_##T *out, float *lse, const TYPE_##T *fused, const unsigned *tiles, int heads, int kv_heads, int window,   \
        long long rows, float scale) {                                                                                  \
        plain_forward(out, lse, fused, tiles, SHAPE);                                                                   \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) NAMED(attention_delta_##T)(                                       \
        float *delta, const TYPE_##T *d_out, const TYPE_##T *out, int heads, long long rows) {                          \
        delta_rows(delta, d_out, out, heads, rows);                                                                     \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) NAMED(plain_queries_##T)(                                         \
        TYPE_##T *d_fused, const TYPE_##T *d_out, const TYPE_##T *fused, const float *lse, const float *delta,          \
        const unsigned *tiles, int heads, int kv_heads, int window, long long rows, float scale) {                      \
        plain_queries(d_fused, d_out, fused, lse, delta, tiles, SHAPE);                                                 \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) NAMED(plain_keys_##T)(                                            \
        TYPE_##T *d_fused, const TYPE_##T *d_out, const TYPE_##T *fused, const float *lse, const float *delta,          \
        const unsigned *tiles, int heads, int kv_heads, int window, long long rows, float scale) {                      \
        plain_keys(d_fused, d_out, fused, lse, delta, tiles, SHAPE);                                                    \
    }
#define TYPE_f32 float
#define TYPE_bf16 bf16
PLAIN(f32)
PLAIN(bf16)

#if HEAD_DIM % 16 == 0 && (HEAD_DIM <= 128 || HEAD_DIM % 32 == 0)
// ---- Tensor cores. A warp works on 16 rows; products are m16n8k16 with f32 sums.

// Numbers from row to row in shared memory: eight rows at the same place lie in different banks.
constexpr int PITCH = DIM + 8;
// Keys that a block of queries takes at once, and queries that a block of keys does.
constexpr int KEYS = DIM <= 128 ? 64 : 32;
constexpr int QUERIES = DIM <= 64 ? 64 : 32;
// Warps that share 16 rows of d_k and d_v by columns.
constexpr int PARTS = DIM <= 128 ? 1 : 2;

static __device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    mma(c, a, b);
}
static __device__ __forceinline__ float power2(float x) {
#ifdef EMULATED
    return exp2f(x);
#else
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#endif
}

// Rows first .. first + ROWS of a matrix to shared memory, zeros from row `limit` on.
template <int ROWS, int THREADS>
static __device__ __forceinline__ void stage(bf16 *to, const bf16 *from, long long stride, int first, int limit) {
    constexpr int CHUNKS = DIM / 8;
#pragma unroll
    for (int i = 0; i < (ROWS * CHUNKS + THREADS - 1) / THREADS; i++) {
        const int index = threadIdx.x + i * THREADS, row = index / CHUNKS, chunk = index % CHUNKS;
        if (ROWS * CHUNKS % THREADS != 0 && index >= ROWS * CHUNKS) break;
        const bool there = first + row < limit;
        copy16(to + row * PITCH + chunk * 8, from + (there ? (first + row) * stride : 0) + chunk * 8, there);
    }
}

// Addresses of this lane for fragments: of the left factor, of the right factor stored by columns, and by rows.
static __device__ __forceinline__ int left_at(int lane) { return (lane & 15) * PITCH + (lane >> 4) * 8; }
static __device__ __forceinline__ int right_at(int lane) { return ((lane & 7) + (lane >> 4) * 8) * PITCH + (lane >> 3 & 1) * 8; }

// scores[16][8 N] = left[16][DIM] right[8 N][DIM]^T, both in shared memory, from this lane's addresses on.
template <int N> static __device__ __forceinline__ void scores_of(float (&scores)[N][4], const bf16 *left, const bf16 *right) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) scores[n][i] = 0.0f;
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        unsigned a[4];
        ldmatrix4(a, left + k * 16);
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            unsigned b[4];
            ldmatrix4(b, right + n * 16 * PITCH + k * 16);
            multiply(scores[2 * n], a, b[0], b[1]);
            multiply(scores[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// sums[16][8 C] += weights[16][8 N] right[8 N][8 C], right by rows in shared memory, from this lane's address on.
template <int N, int C>
static __device__ __forceinline__ void add_product(float (&sums)[C][4], const float (&weights)[N][4], const bf16 *right) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        const unsigned a[4] = {narrow2(weights[2 * k][0], weights[2 * k][1]), narrow2(weights[2 * k][2], weights[2 * k][3]),
                               narrow2(weights[2 * k + 1][0], weights[2 * k + 1][1]), narrow2(weights[2 * k + 1][2], weights[2 * k + 1][3])};
#pragma unroll
        for (int c = 0; c < C / 2; c++) {
            unsigned b[4];
            ldmatrix4_transposed(b, right + k * 16 * PITCH + c * 16);
            multiply(sums[2 * c], a, b[0], b[1]);
            multiply(sums[2 * c + 1], a, b[2], b[3]);
        }
    }
}

// Writes 16 rows of sums times their factors, those below `limit`; `to` is at row `first`, this lane's column.
template <int C>
static __device__ __forceinline__ void write_rows(bf16 *to, long long stride, const float (&sums)[C][4], const float (&factor)[2],
                                                  int first, int limit) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (first + 8 * half >= limit) continue;
#pragma unroll
        for (int c = 0; c < C; c++)
            *(unsigned *)(to + 8 * half * stride + c * 8) = narrow2(sums[c][2 * half] * factor[half], sums[c][2 * half + 1] * factor[half]);
    }
}

static __device__ __forceinline__ bool hidden(int query, int key, int window) {
    return key > query || (window > 0 && query - key >= window);
}

extern "C" __global__ void __launch_bounds__(128, 2) NAMED(attention_forward_bf16)(
    bf16 *out, float *lse, const bf16 *fused, const unsigned *tiles, int heads, int kv_heads, int window, long long rows, float scale) {
    const Shape shape = SHAPE;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *queries = shared, *stages = shared + TILE * PITCH;
    const int head = blockIdx.x % heads, kv = head / shape.group();
    const Tile tile(tiles, blockIdx.x / heads);
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const long long stride = shape.fused();
    const bf16 *base = fused + tile.start * stride;
    const bf16 *keys = base + (long long)(heads + kv) * DIM, *values = keys + (long long)kv_heads * DIM;
    const int last = least(tile.length, tile.first + TILE) - 1, from = first_key(tile.first, window) / KEYS, to = last / KEYS;
    stage<TILE, 128>(queries, base + (long long)head * DIM, stride, tile.first, tile.length);
    stage<KEYS, 128>(stages, keys, stride, from * KEYS, tile.length);
    stage<KEYS, 128>(stages + KEYS * PITCH, values, stride, from * KEYS, tile.length);
    copy_commit();
    const int place = tile.first + warp * 16 + lane / 4;
    const float factor = scale * LOG2E;
    float sums[DIM / 8][4] = {}, top[2] = {-INFINITE, -INFINITE}, total[2] = {};
    for (int t = from; t <= to; t++) {
        bf16 *now = stages + ((t - from) & 1) * 2 * KEYS * PITCH, *next = stages + ((t - from + 1) & 1) * 2 * KEYS * PITCH;
        copy_wait<0>();
        __syncthreads();
        if (t < to) {
            stage<KEYS, 128>(next, keys, stride, (t + 1) * KEYS, tile.length);
            stage<KEYS, 128>(next + KEYS * PITCH, values, stride, (t + 1) * KEYS, tile.length);
            copy_commit();
        }
        float scores[KEYS / 8][4];
        scores_of(scores, queries + warp * 16 * PITCH + left_at(lane), now + right_at(lane));
        if ((t + 1) * KEYS - 1 > tile.first || (window > 0 && tile.first + TILE - 1 - t * KEYS >= window)) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (hidden(place + (i >> 1) * 8, t * KEYS + n * 8 + (lane & 3) * 2 + (i & 1), window)) scores[n][i] = -INFINITE;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float high = top[half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) high = fmaxf(high, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 1));
            high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 2));
            // A row that has seen no key yet keeps zeros.
            const float off = high == -INFINITE ? 0.0f : high * factor, shrink = power2(top[half] * factor - off);
            top[half] = high;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    scores[n][i] = power2(scores[n][i] * factor - off);
                    sum += scores[n][i];
                }
            total[half] = total[half] * shrink + sum;
#pragma unroll
            for (int c = 0; c < DIM / 8; c++) sums[c][2 * half] *= shrink, sums[c][2 * half + 1] *= shrink;
        }
        add_product(sums, scores, now + KEYS * PITCH + left_at(lane));
    }
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = total[half];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        inverse[half] = 1.0f / sum;
        const int at = place + 8 * half;
        if ((lane & 3) == 0 && at < tile.length) lse[head * rows + tile.start + at] = top[half] * factor + log2f(sum);
    }
    write_rows(out + (tile.start + place) * shape.output() + (long long)head * DIM + (lane & 3) * 2, shape.output(), sums, inverse, place, tile.length);
}

// d_q of a tile of queries.
extern "C" __global__ void __launch_bounds__(128, DIM <= 128 ? 2 : 1) NAMED(attention_queries_bf16)(
    bf16 *d_fused, const bf16 *d_out, const bf16 *fused, const float *lse, const float *delta, const unsigned *tiles, int heads,
    int kv_heads, int window, long long rows, float scale) {
    const Shape shape = SHAPE;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *queries = shared, *d_rows = shared + TILE * PITCH, *stages = shared + 2 * TILE * PITCH;
    const int head = blockIdx.x % heads, kv = head / shape.group();
    const Tile tile(tiles, blockIdx.x / heads);
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const long long stride = shape.fused();
    const bf16 *base = fused + tile.start * stride;
    const bf16 *keys = base + (long long)(heads + kv) * DIM, *values = keys + (long long)kv_heads * DIM;
    const int last = least(tile.length, tile.first + TILE) - 1, from = first_key(tile.first, window) / KEYS, to = last / KEYS;
    stage<TILE, 128>(queries, base + (long long)head * DIM, stride, tile.first, tile.length);
    stage<TILE, 128>(d_rows, d_out + tile.start * shape.output() + (long long)head * DIM, shape.output(), tile.first, tile.length);
    stage<KEYS, 128>(stages, keys, stride, from * KEYS, tile.length);
    stage<KEYS, 128>(stages + KEYS * PITCH, values, stride, from * KEYS, tile.length);
    copy_commit();
    const int place = tile.first + warp * 16 + lane / 4;
    float row_lse[2] = {}, row_delta[2] = {};
#pragma unroll
    for (int half = 0; half < 2; half++)
        if (place + 8 * half < tile.length) {
            row_lse[half] = lse[head * rows + tile.start + place + 8 * half];
            row_delta[half] = delta[head * rows + tile.start + place + 8 * half];
        }
    const float factor = scale * LOG2E;
    float sums[DIM / 8][4] = {};
    for (int t = from; t <= to; t++) {
        bf16 *now = stages + ((t - from) & 1) * 2 * KEYS * PITCH, *next = stages + ((t - from + 1) & 1) * 2 * KEYS * PITCH;
        copy_wait<0>();
        __syncthreads();
        if (t < to) {
            stage<KEYS, 128>(next, keys, stride, (t + 1) * KEYS, tile.length);
            stage<KEYS, 128>(next + KEYS * PITCH, values, stride, (t + 1) * KEYS, tile.length);
            copy_commit();
        }
        float scores[KEYS / 8][4], d_scores[KEYS / 8][4];
        scores_of(scores, queries + warp * 16 * PITCH + left_at(lane), now + right_at(lane));
        scores_of(d_scores, d_rows + warp * 16 * PITCH + left_at(lane), now + KEYS * PITCH + right_at(lane));
        const bool some_hidden = (t + 1) * KEYS - 1 > tile.first || (window > 0 && tile.first + TILE - 1 - t * KEYS >= window);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int half = i >> 1;
                float p = power2(scores[n][i] * factor - row_lse[half]);
                if (some_hidden && hidden(place + half * 8, t * KEYS + n * 8 + (lane & 3) * 2 + (i & 1), window)) p = 0.0f;
                scores[n][i] = p * (d_scores[n][i] - row_delta[half]);
            }
        add_product(sums, scores, now + left_at(lane));
    }
    const float scales[2] = {scale, scale};
    write_rows(d_fused + (tile.start + place) * stride + (long long)head * DIM + (lane & 3) * 2, stride, sums, scales, place, tile.length);
}

// d_k and d_v of a tile of keys: over the query heads of the group, and the tiles of queries that see it, in order. With
// `partial` a block has one query head, and what it finds goes to [row][head][d_k, d_v] there, f32.
extern "C" __global__ void __launch_bounds__(128 * PARTS, DIM <= 128 ? 2 : 1) NAMED(attention_keys_bf16)(
    bf16 *d_fused, const bf16 *d_out, const bf16 *fused, const float *lse, const float *delta, const unsigned *tiles, int heads,
    int kv_heads, int window, long long rows, float scale, float *partial) {
    const Shape shape = SHAPE;
    constexpr int THREADS = 128 * PARTS, STAGE = 2 * QUERIES * PITCH, COLUMNS = DIM / PARTS;
    DYNAMIC_SHARED(bf16, shared);
    bf16 *keys = shared, *values = shared + TILE * PITCH, *stages = shared + 2 * TILE * PITCH;
    // Of both stages: lse and delta of its queries.
    float *numbers = (float *)(stages + 2 * STAGE);
    const int group = shape.group(), columns = partial ? heads : kv_heads, which = blockIdx.x % columns;
    const int kv = partial ? which / group : which, first_head = partial ? which : kv * group;
    const Tile tile(tiles, blockIdx.x / columns);
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 % 4, part = threadIdx.x / 128;
    const long long stride = shape.fused(), at_key = (long long)(heads + kv) * DIM, at_value = at_key + (long long)kv_heads * DIM;
    const bf16 *base = fused + tile.start * stride, *d_base = d_out + tile.start * shape.output();
    const int reach = window > 0 ? least(tile.length - tile.first, TILE - 1 + window) : tile.length - tile.first;
    const int steps = (reach + QUERIES - 1) / QUERIES, count = (partial ? 1 : group) * steps;
    auto fill = [&](int index) {
        const int head = first_head + index / steps, first = tile.first + index % steps * QUERIES;
        bf16 *to = stages + (index & 1) * STAGE;
        stage<QUERIES, THREADS>(to, base + (long long)head * DIM, stride, first, tile.length);
        stage<QUERIES, THREADS>(to + QUERIES * PITCH, d_base + (long long)head * DIM, shape.output(), first, tile.length);
        if (threadIdx.x < 2 * QUERIES) {
            const int i = threadIdx.x % QUERIES;
            const bool there = first + i < tile.length;
            const float *of = threadIdx.x < QUERIES ? lse : delta;
            numbers[(index & 1) * 2 * QUERIES + threadIdx.x] = there ? of[head * rows + tile.start + first + i] : 0.0f;
        }
        copy_commit();
    };
    stage<TILE, THREADS>(keys, base + at_key, stride, tile.first, tile.length);
    stage<TILE, THREADS>(values, base + at_value, stride, tile.first, tile.length);
    fill(0);
    const int place = tile.first + warp * 16 + lane / 4;
    const float factor = scale * LOG2E;
    float d_key[COLUMNS / 8][4] = {}, d_value[COLUMNS / 8][4] = {};
    for (int index = 0; index < count; index++) {
        copy_wait<0>();
        __syncthreads();
        if (index + 1 < count) fill(index + 1);
        const int first = tile.first + index % steps * QUERIES;
        const bf16 *queries = stages + (index & 1) * STAGE, *d_rows = queries + QUERIES * PITCH;
        const float *of_row = numbers + (index & 1) * 2 * QUERIES + (lane & 3) * 2;
        float scores[QUERIES / 8][4], d_scores[QUERIES / 8][4];
        scores_of(scores, keys + warp * 16 * PITCH + left_at(lane), queries + right_at(lane));
        const bool some_hidden = first < tile.first + TILE - 1 || (window > 0 && first + QUERIES - 1 - tile.first >= window);
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float p = power2(scores[n][i] * factor - of_row[n * 8 + (i & 1)]);
                if (some_hidden && hidden(first + n * 8 + (lane & 3) * 2 + (i & 1), place + (i >> 1) * 8, window)) p = 0.0f;
                scores[n][i] = p;
            }
        add_product(d_value, scores, d_rows + part * COLUMNS + left_at(lane));
        scores_of(d_scores, values + warp * 16 * PITCH + left_at(lane), d_rows + right_at(lane));
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] *= d_scores[n][i] - of_row[QUERIES + n * 8 + (i & 1)];
        add_product(d_key, scores, queries + part * COLUMNS + left_at(lane));
    }
    if (partial) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (place + 8 * half >= tile.length) continue;
            float *to = partial + ((tile.start + place + 8 * half) * heads + which) * 2 * DIM + part * COLUMNS + (lane & 3) * 2;
#pragma unroll
            for (int c = 0; c < COLUMNS / 8; c++) {
                *(float2 *)(to + c * 8) = make_float2(d_key[c][2 * half] * scale, d_key[c][2 * half + 1] * scale);
                *(float2 *)(to + DIM + c * 8) = make_float2(d_value[c][2 * half], d_value[c][2 * half + 1]);
            }
        }
        return;
    }
    const float scales[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
    bf16 *to = d_fused + (tile.start + place) * stride + part * COLUMNS + (lane & 3) * 2;
    write_rows(to + at_key, stride, d_key, scales, place, tile.length);
    write_rows(to + at_value, stride, d_value, ones, place, tile.length);
}

// d_k and d_v from those of the query heads of each group, in order; a block for each row.
extern "C" __global__ void __launch_bounds__(256) NAMED(attention_sum_keys_bf16)(bf16 *d_fused, const float *partial, int heads,
                                                                                 int kv_heads) {
    const int group = heads / kv_heads;
    const long long row = blockIdx.x;
    bf16 *to = d_fused + row * (heads + 2 * kv_heads) * DIM + (long long)heads * DIM;
    for (int i = threadIdx.x; i < kv_heads * 2 * DIM; i += blockDim.x) {
        const int kv = i / (2 * DIM), c = i % (2 * DIM);
        const float *from = partial + (row * heads + kv * group) * 2 * DIM + c;
        float sum = 0.0f;
        for (int g = 0; g < group; g++) sum += from[(long long)g * 2 * DIM];
        to[(c < DIM ? kv * DIM + c : (kv_heads + kv) * DIM + c - DIM)] = narrow(sum);
    }
}
#endif
