// The log-prob head after its product, and drawing tokens. Logits are f32 rows, multiplied here by `1 / temperature`.

/// A reduction of part of a row: the largest logit, `sum e`, `sum e * (logit - top)`, where `e = exp(logit - top)`.
struct Softmax {
    float top, sum, weighted;
};

__device__ __forceinline__ Softmax merge(Softmax a, Softmax b) {
    if (b.top == -INFINITE) return a;
    if (a.top == -INFINITE) return b;
    float top = fmaxf(a.top, b.top), p = expf(a.top - top), q = expf(b.top - top);
    return {top, a.sum * p + b.sum * q, p * (a.weighted + a.sum * (a.top - top)) + q * (b.weighted + b.sum * (b.top - top))};
}

/// Up to eight logits of a row from `at` on, negative infinity behind its end.
__device__ __forceinline__ void eight(const float *row, int at, int vocabulary, float factor, float (&x)[8]) {
    if (at + 8 <= vocabulary && reinterpret_cast<unsigned long long>(row + at) % 16 == 0) {
        load8(row + at, x);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = at + i < vocabulary ? row[at + i] : -INFINITE;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] *= factor;
}

/// The reduction of a whole row, in every thread of the block.
__device__ Softmax softmax_of(const float *row, int vocabulary, float factor) {
    __shared__ Softmax parts[32], whole;
    Softmax mine = {-INFINITE, 0.0f, 0.0f};
    for (int c = threadIdx.x * 8; c < vocabulary; c += blockDim.x * 8) {
        float x[8];
        eight(row, c, vocabulary, factor, x);
        Softmax part = {x[0], 0.0f, 0.0f};
        for (int i = 1; i < 8; i++) part.top = fmaxf(part.top, x[i]);
        for (int i = 0; i < 8; i++) {
            float e = expf(x[i] - part.top);
            part.sum += e;
            if (e > 0.0f) part.weighted += e * (x[i] - part.top);
        }
        mine = merge(mine, part);
    }
    for (int by = 16; by > 0; by /= 2) {
        Softmax other;
        other.top = __shfl_down_sync(ALL_LANES, mine.top, by);
        other.sum = __shfl_down_sync(ALL_LANES, mine.sum, by);
        other.weighted = __shfl_down_sync(ALL_LANES, mine.weighted, by);
        mine = merge(mine, other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < (int)blockDim.x / 32; w++) mine = merge(mine, parts[w]);
        whole = mine;
    }
    __syncthreads();
    return whole;
}

/// Log-prob of the target, entropy and log-sum of each row; a block for each.
extern "C" __global__ void logit_stats(const float *logits, const unsigned *targets, float *logprobs, float *entropies,
                                       float *log_sums, int vocabulary, float factor) {
    const float *row = logits + (long long)blockIdx.x * vocabulary;
    Softmax all = softmax_of(row, vocabulary, factor);
    if (threadIdx.x == 0) {
        float rest = logf(all.sum), log_sum = all.top + rest;
        logprobs[blockIdx.x] = row[targets[blockIdx.x]] * factor - log_sum;
        entropies[blockIdx.x] = rest - all.weighted / all.sum;
        log_sums[blockIdx.x] = log_sum;
    }
}

/// `out[r, v] = d_logprobs[r] * factor * ((v == target) - p(v))` for the `width` entries from `first` on, which
/// `logits` holds; blocks are (row, part of the columns).
template <typename T>
__device__ void logit_gradient(const float *logits, const unsigned *targets, const float *d_logprobs,
                               const float *log_sums, T *out, int width, int first, float factor) {
    int c = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (c >= width) return;
    long long at = (long long)blockIdx.x * width;
    float d = d_logprobs[blockIdx.x] * factor, log_sum = log_sums[blockIdx.x], x[8];
    int target = (int)targets[blockIdx.x] - first - c;
    eight(logits + at, c, width, factor, x);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = -d * expf(x[i] - log_sum) + (i == target ? d : 0.0f);
    T *to = out + at + c;
    if (c + 8 <= width && reinterpret_cast<unsigned long long>(to) % 16 == 0) {
        store8(to, x);
    } else {
        for (int i = 0; i < 8; i++)
            if (c + i < width) put(to + i, x[i]);
    }
}
extern "C" __global__ void logit_gradient_f32(const float *logits, const unsigned *targets, const float *d_logprobs,
                                              const float *log_sums, float *out, int width, int first, float factor) {
    logit_gradient(logits, targets, d_logprobs, log_sums, out, width, first, factor);
}
extern "C" __global__ void logit_gradient_bf16(const float *logits, const unsigned *targets, const float *d_logprobs,
                                               const float *log_sums, bf16 *out, int width, int first, float factor) {
    logit_gradient(logits, targets, d_logprobs, log_sums, out, width, first, factor);
}

/// Numbers in the order of their floats.
__device__ __forceinline__ unsigned ordered(float x) {
    unsigned bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// How many logits of the row have a key of at least `key`.
__device__ int count_from(const float *row, int vocabulary, float factor, unsigned key, int *room) {
    int count = 0;
    for (int c = threadIdx.x * 8; c < vocabulary; c += blockDim.x * 8) {
        float x[8];
        eight(row, c, vocabulary, factor, x);
        for (int i = 0; i < 8; i++) count += c + i < vocabulary && ordered(x[i]) >= key;
    }
    return block_sum(count, room);
}

/// The probability of the logits whose key is above `key`. Never grows with `key`.
__device__ double mass_above(const float *row, int vocabulary, float factor, float log_sum, unsigned key,
                             double *room) {
    double sum = 0.0;
    for (int c = threadIdx.x * 8; c < vocabulary; c += blockDim.x * 8) {
        float x[8];
        eight(row, c, vocabulary, factor, x);
        for (int i = 0; i < 8; i++)
            if (ordered(x[i]) > key) sum += (double)expf(x[i] - log_sum);
    }
    return block_sum(sum, room);
}

/// Running sums over the threads of the block, each thread's own included; they never fall from thread to thread.
template <typename T> __device__ T running_sum(T mine, T *sums, T *bases) {
    __syncthreads();
    sums[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        for (int i = 1; i < 32; i++) sums[threadIdx.x + i] += sums[threadIdx.x + i - 1];
    __syncthreads();
    if (threadIdx.x == 0) {
        T base = 0;
        for (int w = 0; w < (int)blockDim.x / 32; w++) {
            bases[w] = base;
            base += sums[w * 32 + 31];
        }
    }
    __syncthreads();
    sums[threadIdx.x] += bases[threadIdx.x / 32];
    __syncthreads();
    return sums[threadIdx.x];
}

/// Draws a token from each row, and gives its log-prob under the whole softmax; a block of 1024 threads for each row.
/// `greedy` takes the first of the largest. Else the distribution of the `top_k` most likely (0: all), cut where the sum of
/// the more likely ones reaches `top_p` of theirs, is inverted at `uniform[row]` in the order of the vocabulary.
extern "C" __global__ void __launch_bounds__(1024)
    draw(const float *logits, const float *uniform, unsigned *tokens, float *logprobs, int vocabulary, float factor,
         int greedy, int top_k, float top_p) {
    __shared__ double sums[1024], bases[32], room[32];
    __shared__ int tie_sums[1024], tie_bases[32], counts[32];
    __shared__ int chosen;
    const float *row = logits + (long long)blockIdx.x * vocabulary;
    Softmax all = softmax_of(row, vocabulary, factor);
    float log_sum = all.top + logf(all.sum);

    // Kept are keys above `cut`, and the first `ties` of those equal to it.
    unsigned cut = 0;
    int ties = vocabulary;
    if (!greedy && top_k > 0 && top_k < vocabulary) {
        // The largest key that at least `top_k` reach.
        for (int bit = 31; bit >= 0; bit--) {
            unsigned next = cut | 1u << bit;
            if (count_from(row, vocabulary, factor, next, counts) >= top_k) cut = next;
        }
        ties = top_k - (cut == 0xffffffffu ? 0 : count_from(row, vocabulary, factor, cut + 1, counts));
    }
    if (!greedy && top_p < 1.0f) {
        float at_cut = __uint_as_float(cut & 0x80000000u ? cut & 0x7fffffffu : ~cut);
        double whole = mass_above(row, vocabulary, factor, log_sum, cut, room);
        if (cut != 0) whole += (double)ties * (double)expf(at_cut - log_sum);
        double wanted = (double)top_p * whole;
        // The smallest key, not below the cut, above which there is less than is wanted.
        unsigned low = cut, high = ordered(all.top);
        while (low < high) {
            unsigned middle = low + (high - low) / 2;
            if (mass_above(row, vocabulary, factor, log_sum, middle, room) < wanted) high = middle;
            else low = middle + 1;
        }
        int available = low == cut && cut != 0 ? ties : vocabulary;
        double above = mass_above(row, vocabulary, factor, log_sum, low, room);
        double each = (double)expf(__uint_as_float(low & 0x80000000u ? low & 0x7fffffffu : ~low) - log_sum);
        cut = low;
        // As many as it takes: the j-th is kept while above + (j - 1) * each < wanted.
        double count = each > 0.0 ? ceil((wanted - above) / each) : 1.0;
        ties = count >= (double)available ? available : (int)count;
        if (ties < 1) ties = 1;
    }

    // Each thread has a run of the vocabulary.
    int run = (vocabulary + blockDim.x * 8 - 1) / (blockDim.x * 8) * 8;
    int first = threadIdx.x * run, end = min(first + run, vocabulary);
    if (threadIdx.x == 0) chosen = vocabulary;
    int skipped = 0;
    if (cut != 0) {
        int equal = 0;
        for (int c = first; c < end; c++) equal += ordered(row[c] * factor) == cut;
        skipped = running_sum(equal, tie_sums, tie_bases) - equal;
    }
    if (!greedy) {
        double mine = 0.0;
        int seen = skipped;
        for (int c = first; c < end; c++) {
            float x = row[c] * factor;
            unsigned key = ordered(x);
            if (key > cut || (key == cut && seen++ < ties)) mine += (double)expf(x - log_sum);
        }
        double upto = running_sum(mine, sums, bases);
        double before = threadIdx.x == 0 ? 0.0 : sums[threadIdx.x - 1];
        // Of a distribution that is not cut the probabilities are as they are.
        double total = cut == 0 ? 1.0 : sums[blockDim.x - 1];
        double u = (double)uniform[blockIdx.x] * total;
        if (before <= u && u < upto) {
            double left = u - before;
            int last = -1;
            seen = skipped;
            for (int c = first; c < end; c++) {
                float x = row[c] * factor;
                unsigned key = ordered(x);
                if (key > cut || (key == cut && seen++ < ties)) {
                    double p = (double)expf(x - log_sum);
                    if (p > 0.0) last = c;
                    left -= p;
                    if (left < 0.0) break;
                }
            }
            chosen = last;
        }
    }
    __syncthreads();
    if (chosen == vocabulary) {
        // The first of the largest: asked for, or as good as any when u is beyond the sum.
        int best = vocabulary;
        for (int c = end - 1; c >= first; c--)
            if (row[c] * factor == all.top) best = c;
        for (int by = 16; by > 0; by /= 2) best = min(best, __shfl_xor_sync(ALL_LANES, best, by));
        if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = best;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int w = 1; w < (int)blockDim.x / 32; w++) best = min(best, counts[w]);
            chosen = best < vocabulary ? best : 0;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        tokens[blockIdx.x] = (unsigned)chosen;
        logprobs[blockIdx.x] = row[chosen] * factor - log_sum;
    }
}
