// Operations on rows: embedding, norms, rotary positions, gates, sums. T, D, X stand for f32 or bfloat16.

/// Eight numbers of a row from column `at` on, zeros behind its end.
template <typename T> __device__ __forceinline__ void get(const T *row, int at, int width, float (&x)[8]) {
    if (at + 8 <= width && reinterpret_cast<unsigned long long>(row + at) % 16 == 0) {
        load8(row + at, x);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = at + i < width ? widen(row[at + i]) : 0.0f;
    }
}
/// Stores what [`get`] reads.
template <typename T> __device__ __forceinline__ void set(T *row, int at, int width, const float (&x)[8]) {
    if (at + 8 <= width && reinterpret_cast<unsigned long long>(row + at) % 16 == 0) {
        store8(row + at, x);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (at + i < width) put(row + at + i, x[i]);
    }
}

/// `out[i] = scale * x[rows[i]]`; a block for each row.
template <typename T, typename O>
__device__ void take_rows(const T *x, const unsigned *rows, O *out, int width, float scale) {
    const T *from = x + (long long)rows[blockIdx.x] * width;
    O *to = out + (long long)blockIdx.x * width;
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8) {
        float v[8];
        get(from, c, width, v);
        for (int i = 0; i < 8; i++) v[i] *= scale;
        set(to, c, width, v);
    }
}

/// `x[targets[s]] += scale * y[order[i]]` for `i` in `starts[s] .. starts[s + 1]`, in order; a block for each `s`.
template <typename T, typename Y>
__device__ void add_rows(T *x, const Y *y, const unsigned *targets, const unsigned *starts, const unsigned *order,
                         int width, float scale) {
    unsigned first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    T *to = x + (long long)targets[blockIdx.x] * width;
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8) {
        float sum[8], v[8];
        get(to, c, width, sum);
        for (unsigned i = first; i < end; i++) {
            get(y + (long long)order[i] * width, c, width, v);
            for (int j = 0; j < 8; j++) sum[j] += scale * v[j];
        }
        set(to, c, width, sum);
    }
}

/// `out = x * inverse * (weight + offset)`, `inverse = 1 / sqrt(mean(x^2) + eps)`; a block for each row.
template <typename O>
__device__ void rms_norm(const float *x, const float *weight, O *out, float *inverse, int width, float offset,
                         float eps) {
    __shared__ float room[32];
    const float *row = x + (long long)blockIdx.x * width;
    O *to = out + (long long)blockIdx.x * width;
    float held[8], v[8], w[8], sum = 0.0f;
    get(row, threadIdx.x * 8, width, held);
    for (int i = 0; i < 8; i++) sum += held[i] * held[i];
    for (int c = (threadIdx.x + blockDim.x) * 8; c < width; c += blockDim.x * 8) {
        get(row, c, width, v);
        for (int i = 0; i < 8; i++) sum += v[i] * v[i];
    }
    sum = block_sum(sum, room);
    float scale = 1.0f / sqrtf(sum / (float)width + eps);
    if (threadIdx.x == 0) inverse[blockIdx.x] = scale;
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8) {
        if (c >= (int)blockDim.x * 8) get(row, c, width, held);
        get(weight, c, width, w);
        for (int i = 0; i < 8; i++) v[i] = held[i] * scale * (w[i] + offset);
        set(to, c, width, v);
    }
}

/// `d_x += inverse * (g - x * inverse^2 * mean(g x))` with `g = d_out * (weight + offset)`; a block for each row.
/// The sum goes to `copy` too, unless that is null.
template <typename D>
__device__ void rms_norm_backward(const D *d_out, const float *x, const float *inverse, const float *weight,
                                  float *d_x, bf16 *copy, int width, float offset) {
    __shared__ float room[32];
    long long at = (long long)blockIdx.x * width;
    float g[8], v[8], w[8], along = 0.0f;
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8) {
        get(d_out + at, c, width, g);
        get(x + at, c, width, v);
        get(weight, c, width, w);
        for (int i = 0; i < 8; i++) along += g[i] * (w[i] + offset) * v[i];
    }
    along = block_sum(along, room);
    float scale = inverse[blockIdx.x], shrink = along / (float)width * scale * scale;
    bool once = width <= (int)blockDim.x * 8;
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8) {
        if (!once) {
            get(d_out + at, c, width, g);
            get(x + at, c, width, v);
            get(weight, c, width, w);
        }
        float sum[8];
        get(d_x + at, c, width, sum);
        for (int i = 0; i < 8; i++) sum[i] += scale * (g[i] * (w[i] + offset) - v[i] * shrink);
        set(d_x + at, c, width, sum);
        if (copy) set(copy + at, c, width, sum);
    }
}

/// Rows that one block sums.
#define GROUP 64

/// `partial[group, c] = sum over rows r of the group of d[r, c] * x[r, c] * scale[r]`, each factor 1 where null.
/// Row `r` is head `r % heads` of line `r / heads`: it begins at `(r / heads) * stride + offset + (r % heads) * width`.
template <typename D, typename X>
__device__ void sum_columns(const D *d, const X *x, const float *scale, float *partial, long long rows, int width,
                            int heads, int stride, int offset) {
    int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= width) return;
    long long first = (long long)blockIdx.x * GROUP;
    long long end = first + GROUP < rows ? first + GROUP : rows;
    float sum = 0.0f;
#pragma unroll 4
    for (long long r = first; r < end; r++) {
        long long at = (r / heads) * stride + offset + (r % heads) * width + c;
        float v = d ? widen(d[at]) : 1.0f;
        if (x) v *= widen(x[at]);
        if (scale) v *= scale[r];
        sum += v;
    }
    partial[(long long)blockIdx.x * width + c] = sum;
}

/// `out[c] += sum_g partial[g, c]`, in order.
extern "C" __global__ void finish_columns(const float *partial, float *out, int groups, int width) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= width) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int g = 0; g < groups; g++) sum += partial[(long long)g * width + c];
    out[c] += sum;
}

/// `x[r] += bias`; blocks are (row, part of the columns).
template <typename T> __device__ void add_bias(T *x, const float *bias, int width) {
    int c = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (c >= width) return;
    T *row = x + (long long)blockIdx.x * width;
    float v[8], b[8];
    get(row, c, width, v);
    get(bias, c, width, b);
    for (int i = 0; i < 8; i++) v[i] += b[i];
    set(row, c, width, v);
}

/// RMSNorm of `count` heads of each fused row from head `first` on, in place; a warp for each.
template <typename T>
__device__ void head_norm(T *fused, const float *weight, float *inverse, long long total, int count, int first,
                          int dim, int stride, float eps) {
    long long at = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (at >= total) return;
    T *head = fused + (at / count) * stride + (first + at % count) * dim;
    int lane = threadIdx.x % 32;
    float sum = 0.0f;
    for (int c = lane; c < dim; c += 32) {
        float v = widen(head[c]);
        sum += v * v;
    }
    float scale = 1.0f / sqrtf(warp_sum(sum) / (float)dim + eps);
    if (lane == 0) inverse[at] = scale;
    for (int c = lane; c < dim; c += 32) put(head + c, widen(head[c]) * scale * weight[c]);
}

/// The gradient with respect to normed heads to that with respect to raw ones, in place; a warp for each.
template <typename T>
__device__ void head_norm_backward(T *d_fused, const T *raw, const float *inverse, const float *weight,
                                   long long total, int count, int first, int dim, int stride) {
    long long at = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (at >= total) return;
    long long place = (at / count) * stride + (first + at % count) * dim;
    T *d = d_fused + place;
    const T *x = raw + place;
    int lane = threadIdx.x % 32;
    float along = 0.0f;
    for (int c = lane; c < dim; c += 32) along += widen(d[c]) * weight[c] * widen(x[c]);
    float scale = inverse[at], shrink = warp_sum(along) / (float)dim * scale * scale;
    for (int c = lane; c < dim; c += 32) put(d + c, scale * (widen(d[c]) * weight[c] - widen(x[c]) * shrink));
}

/// Rotates the first `heads` heads of each fused row by `direction * angle`; blocks are (row, part of the heads).
template <typename T>
__device__ void rotary(T *fused, const unsigned *positions, const float *cosines, const float *sines, int heads,
                       int half, int stride, float direction) {
    int each = (half + 7) / 8, i = blockIdx.y * blockDim.x + threadIdx.x, c = i % each * 8;
    if (i >= heads * each) return;
    T *low = fused + (long long)blockIdx.x * stride + (i / each) * 2 * half;
    long long at = (long long)positions[blockIdx.x] * half;
    float x[8], y[8], cosine[8], sine[8], turned[8];
    get(low, c, half, x);
    get(low + half, c, half, y);
    get(cosines + at, c, half, cosine);
    get(sines + at, c, half, sine);
    for (int k = 0; k < 8; k++) turned[k] = x[k] * cosine[k] - y[k] * (sine[k] * direction);
    set(low, c, half, turned);
    for (int k = 0; k < 8; k++) turned[k] = y[k] * cosine[k] + x[k] * (sine[k] * direction);
    set(low + half, c, half, turned);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
#define GELU_ROOT 0.7978846f
#define GELU_CUBE 0.044715f

/// `out = activation(gate) * up`, SiLU or GELU (tanh form); blocks are (row, part of the columns).
template <typename T> __device__ void gated(const T *x, T *out, int width, int gelu) {
    int c = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (c >= width) return;
    const T *row = x + (long long)blockIdx.x * 2 * width;
    float g[8], u[8];
    get(row, c, width, g);
    get(row + width, c, width, u);
    for (int i = 0; i < 8; i++) {
        float a = gelu ? 0.5f * g[i] * (1.0f + tanhf(GELU_ROOT * (g[i] + GELU_CUBE * g[i] * g[i] * g[i])))
                       : g[i] * sigmoid(g[i]);
        g[i] = a * u[i];
    }
    set(out + (long long)blockIdx.x * width, c, width, g);
}

/// The gradient with respect to `[gate, up]`.
template <typename T> __device__ void gated_backward(const T *d_out, const T *x, T *d_x, int width, int gelu) {
    int c = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (c >= width) return;
    long long at = (long long)blockIdx.x * 2 * width;
    float d[8], g[8], u[8], d_gate[8], d_up[8];
    get(d_out + (long long)blockIdx.x * width, c, width, d);
    get(x + at, c, width, g);
    get(x + at + width, c, width, u);
    for (int i = 0; i < 8; i++) {
        float value, slope;
        if (gelu) {
            float t = tanhf(GELU_ROOT * (g[i] + GELU_CUBE * g[i] * g[i] * g[i]));
            float inner = GELU_ROOT * (1.0f + 3.0f * GELU_CUBE * g[i] * g[i]);
            value = 0.5f * g[i] * (1.0f + t);
            slope = 0.5f * (1.0f + t + g[i] * (1.0f - t * t) * inner);
        } else {
            float s = sigmoid(g[i]);
            value = g[i] * s;
            slope = s + g[i] * s * (1.0f - s);
        }
        d_gate[i] = d[i] * u[i] * slope;
        d_up[i] = d[i] * value;
    }
    set(d_x + at, c, width, d_gate);
    set(d_x + at + width, c, width, d_up);
}

/// `x *= factor`; a thread for each eight numbers.
template <typename T> __device__ void scale(T *x, long long len, float factor) {
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= len) return;
    int rest = len - at < 8 ? (int)(len - at) : 8;
    float v[8];
    get(x + at, 0, rest, v);
    for (int i = 0; i < 8; i++) v[i] *= factor;
    set(x + at, 0, rest, v);
}

/// `values[r] = x[r] . weight`; a block for each row.
template <typename T> __device__ void scalar_head(const T *x, const float *weight, float *values, int width) {
    __shared__ float room[32];
    const T *row = x + (long long)blockIdx.x * width;
    float v[8], w[8], sum = 0.0f;
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8) {
        get(row, c, width, v);
        get(weight, c, width, w);
        for (int i = 0; i < 8; i++) sum += v[i] * w[i];
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) values[blockIdx.x] = sum;
}

/// `d_x[r] = d_values[r] * weight`; a block for each row.
template <typename T>
__device__ void scalar_head_backward(const float *d_values, const float *weight, T *d_x, int width) {
    float d = d_values[blockIdx.x], w[8];
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8) {
        get(weight, c, width, w);
        for (int i = 0; i < 8; i++) w[i] *= d;
        set(d_x + (long long)blockIdx.x * width, c, width, w);
    }
}

#define KINDS2(A, a, B, b)                                                                                            \
    extern "C" __global__ void take_rows_##a##_##b(const A *x, const unsigned *rows, B *out, int width, float scale) {\
        take_rows(x, rows, out, width, scale);                                                                        \
    }                                                                                                                 \
    extern "C" __global__ void add_rows_##a##_##b(A *x, const B *y, const unsigned *targets, const unsigned *starts,  \
                                                  const unsigned *order, int width, float scale) {                    \
        add_rows(x, y, targets, starts, order, width, scale);                                                         \
    }                                                                                                                 \
    extern "C" __global__ void sum_columns_##a##_##b(const A *d, const B *x, const float *scale, float *partial,      \
                                                     long long rows, int width, int heads, int stride, int offset) {  \
        sum_columns(d, x, scale, partial, rows, width, heads, stride, offset);                                        \
    }
KINDS2(float, f32, float, f32)
KINDS2(float, f32, bf16, bf16)
KINDS2(bf16, bf16, float, f32)
KINDS2(bf16, bf16, bf16, bf16)

#define KINDS(T, t)                                                                                                   \
    extern "C" __global__ void rms_norm_##t(const float *x, const float *weight, T *out, float *inverse, int width,   \
                                            float offset, float eps) {                                                \
        rms_norm(x, weight, out, inverse, width, offset, eps);                                                        \
    }                                                                                                                 \
    extern "C" __global__ void rms_norm_backward_##t(const T *d_out, const float *x, const float *inverse,            \
                                                     const float *weight, float *d_x, bf16 *copy, int width,          \
                                                     float offset) {                                                  \
        rms_norm_backward(d_out, x, inverse, weight, d_x, copy, width, offset);                                       \
    }                                                                                                                 \
    extern "C" __global__ void scale_##t(T *x, long long len, float factor) { scale(x, len, factor); }                    \
    extern "C" __global__ void add_bias_##t(T *x, const float *bias, int width) { add_bias(x, bias, width); }         \
    extern "C" __global__ void head_norm_##t(T *fused, const float *weight, float *inverse, long long total,          \
                                             int count, int first, int dim, int stride, float eps) {                  \
        head_norm(fused, weight, inverse, total, count, first, dim, stride, eps);                                     \
    }                                                                                                                 \
    extern "C" __global__ void head_norm_backward_##t(T *d_fused, const T *raw, const float *inverse,                 \
                                                      const float *weight, long long total, int count, int first,     \
                                                      int dim, int stride) {                                          \
        head_norm_backward(d_fused, raw, inverse, weight, total, count, first, dim, stride);                          \
    }                                                                                                                 \
    extern "C" __global__ void rotary_##t(T *fused, const unsigned *positions, const float *cosines,                  \
                                          const float *sines, int heads, int half, int stride, float direction) {     \
        rotary(fused, positions, cosines, sines, heads, half, stride, direction);                                     \
    }                                                                                                                 \
    extern "C" __global__ void gated_##t(const T *x, T *out, int width, int gelu) { gated(x, out, width, gelu); }     \
    extern "C" __global__ void gated_backward_##t(const T *d_out, const T *x, T *d_x, int width, int gelu) {          \
        gated_backward(d_out, x, d_x, width, gelu);                                                                   \
    }                                                                                                                 \
    extern "C" __global__ void scalar_head_##t(const T *x, const float *weight, float *values, int width) {           \
        scalar_head(x, weight, values, width);                                                                        \
    }                                                                                                                 \
    extern "C" __global__ void scalar_head_backward_##t(const float *d_values, const float *weight, T *d_x,           \
                                                        int width) {                                                  \
        scalar_head_backward(d_values, weight, d_x, width);                                                           \
    }
KINDS(float, f32)
KINDS(bf16, bf16)
