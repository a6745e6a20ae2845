// Attention inside sequences, forward and backward, against f64, for heads of HEAD_DIM numbers.
#include "check.h"
#include "attention.cu"

using check::Array;
using Numbers = std::vector<double>;

#define ATTENTION_OF(T, kernel) check::pick<T>(NAMED(kernel##_f32), NAMED(kernel##_bf16))

struct Case {
    std::vector<int> lengths;
    int heads, kv_heads, window;
    long long rows() const {
        long long rows = 0;
        for (int length : lengths) rows += length;
        return rows;
    }
    int fused() const { return (heads + 2 * kv_heads) * DIM; }
    int output() const { return heads * DIM; }
    // As the backend cuts sequences into tiles, but in their order.
    std::vector<unsigned> tiles() const {
        std::vector<unsigned> tiles;
        unsigned start = 0;
        for (int length : lengths) {
            for (int first = 0; first < length; first += TILE)
                tiles.insert(tiles.end(), {start, (unsigned)length, (unsigned)first, 0u});
            start += length;
        }
        return tiles;
    }
};

struct Reference {
    Numbers out, log_sums, d_fused;
};

/// The reference of one head of one query at place `q` of a sequence that starts at row `start`.
static void add_query(Reference &to, const Case &shape, const Numbers &fused, const Numbers &d_out, int start, int q,
                      int head) {
    const int kv = head / (shape.heads / shape.kv_heads), F = shape.fused(), row = start + q;
    const int at_query = row * F + head * DIM, at_out = row * shape.output() + head * DIM;
    auto at_key = [&](int k) { return (start + k) * F + (shape.heads + kv) * DIM; };
    auto at_value = [&](int k) { return at_key(k) + shape.kv_heads * DIM; };
    auto dot = [](const double *x, const double *y) {
        double sum = 0.0;
        for (int c = 0; c < DIM; c++) sum += x[c] * y[c];
        return sum;
    };
    const int first = shape.window > 0 ? std::max(0, q + 1 - shape.window) : 0;
    const double scale = 1.0 / sqrt((double)DIM);
    Numbers p(q + 1);
    double top = -INFINITY, total = 0.0, delta = 0.0;
    for (int k = first; k <= q; k++) top = std::max(top, p[k] = scale * dot(&fused[at_query], &fused[at_key(k)]));
    for (int k = first; k <= q; k++) total += p[k] = exp(p[k] - top);
    to.log_sums[head * shape.rows() + row] = (top + log(total)) / log(2.0);
    for (int k = first; k <= q; k++) {
        p[k] /= total;
        for (int c = 0; c < DIM; c++) to.out[at_out + c] += p[k] * fused[at_value(k) + c];
    }
    for (int c = 0; c < DIM; c++) delta += to.out[at_out + c] * d_out[at_out + c];
    for (int k = first; k <= q; k++) {
        const double d_score = p[k] * (dot(&d_out[at_out], &fused[at_value(k)]) - delta) * scale;
        for (int c = 0; c < DIM; c++) {
            to.d_fused[at_query + c] += d_score * fused[at_key(k) + c];
            to.d_fused[at_key(k) + c] += d_score * fused[at_query + c];
            to.d_fused[at_value(k) + c] += p[k] * d_out[at_out + c];
        }
    }
}

static Reference reference(const Case &shape, const Numbers &fused, const Numbers &d_out) {
    Reference to = {Numbers(d_out.size()), Numbers(shape.heads * shape.rows()), Numbers(fused.size())};
    int start = 0;
    for (int length : shape.lengths) {
        for (int head = 0; head < shape.heads; head++)
            for (int q = 0; q < length; q++) add_query(to, shape, fused, d_out, start, q, head);
        start += length;
    }
    return to;
}

/// Both passes, by rows or on tensor cores, and again with a block of keys for each query head.
template <typename T> static void both_ways(const Case &shape, bool on_tensor_cores) {
    const int heads = shape.heads, kv_heads = shape.kv_heads, window = shape.window;
    const long long rows = shape.rows();
    const float scale = 1.0f / sqrtf((float)DIM);
    const auto fused = Array<T>::normal(rows * shape.fused()), d_out = Array<T>::normal(rows * shape.output());
    const Reference known = reference(shape, fused.values(), d_out.values());
    const std::vector<unsigned> words = shape.tiles();
    const unsigned *tiles = words.data(), count = words.size() / 4;
    Array<T> out(d_out.size()), d_fused(fused.size());
    Array<float> log_sums(rows * heads), delta(rows * heads);
    constexpr bool NARROW = std::is_same_v<T, bf16>;
    const std::string name = on_tensor_cores ? "attention" : "plain";
    auto delta_rows = [&] {
        LAUNCH(ATTENTION_OF(T, attention_delta), (unsigned)((rows * heads + 7) / 8), 256, 0, delta.at(), d_out.at(),
               out.at(), heads, rows);
    };
    auto compare_gradient = [&](const std::string &what) {
        check::compare(what, d_fused, known.d_fused, NARROW ? 2e-2 : 5e-6);
        check::expect(delta.whole(), what + ": deltas outside of their array");
    };
    if (!on_tensor_cores) {
        LAUNCH(ATTENTION_OF(T, plain_forward), count * heads, 256, 0, out.at(), log_sums.at(), fused.at(), tiles, heads,
               kv_heads, window, rows, scale);
        delta_rows();
        LAUNCH(ATTENTION_OF(T, plain_queries), count * heads, 256, 0, d_fused.at(), d_out.at(), fused.at(),
               log_sums.at(), delta.at(), tiles, heads, kv_heads, window, rows, scale);
        LAUNCH(ATTENTION_OF(T, plain_keys), count * kv_heads, 256, 0, d_fused.at(), d_out.at(), fused.at(),
               log_sums.at(), delta.at(), tiles, heads, kv_heads, window, rows, scale);
    }
#if HEAD_DIM % 16 == 0 && (HEAD_DIM <= 128 || HEAD_DIM % 32 == 0)
    if constexpr (NARROW) {
        if (on_tensor_cores) {
            const size_t pitch = PITCH * sizeof(bf16);
            const size_t of_keys = (2 * TILE + 4 * QUERIES) * pitch + 4 * QUERIES * sizeof(float);
            LAUNCH(NAMED(attention_forward_bf16), count * heads, 128, (TILE + 4 * KEYS) * pitch, out.at(),
                   log_sums.at(), fused.at(), tiles, heads, kv_heads, window, rows, scale);
            delta_rows();
            LAUNCH(NAMED(attention_queries_bf16), count * heads, 128, (2 * TILE + 4 * KEYS) * pitch, d_fused.at(),
                   d_out.at(), fused.at(), log_sums.at(), delta.at(), tiles, heads, kv_heads, window, rows, scale);
            const Array<T> of_queries = d_fused;
            LAUNCH(NAMED(attention_keys_bf16), count * kv_heads, 128 * PARTS, of_keys, d_fused.at(), d_out.at(),
                   fused.at(), log_sums.at(), delta.at(), tiles, heads, kv_heads, window, rows, scale, nullptr);
            compare_gradient(name + ": gradient");
            if (heads > kv_heads) {
                d_fused = of_queries;
                Array<float> partial(rows * heads * 2 * DIM);
                LAUNCH(NAMED(attention_keys_bf16), count * heads, 128 * PARTS, of_keys, d_fused.at(), d_out.at(),
                       fused.at(), log_sums.at(), delta.at(), tiles, heads, kv_heads, window, rows, scale,
                       partial.at());
                LAUNCH(NAMED(attention_sum_keys_bf16), (unsigned)rows, 256, 0, d_fused.at(), partial.at(), heads,
                       kv_heads);
                check::expect(partial.whole(), name + ": parts of a gradient outside of their array");
                compare_gradient(name + ": gradient in parts");
            }
        }
    }
#endif
    if (!on_tensor_cores) compare_gradient(name + ": gradient");
    check::compare(name + ": out", out, known.out, NARROW ? 6e-3 : 2e-6);
    check::compare(name + ": log-sums of" + check::type_name<T>(), log_sums, known.log_sums, 2e-6);
}

int main() {
#if HEAD_DIM <= 128
    const Case small[] = {{{1, 9, 66}, 2, 1, 0}, {{20, 5}, 2, 2, 7}, {{70}, 4, 1, 1}};
#else
    const Case small[] = {{{1, 30}, 2, 1, 7}};
#endif
    for (const Case &shape : small) {
        both_ways<float>(shape, false);
        both_ways<bf16>(shape, false);
    }
#if HEAD_DIM % 16 == 0 && (HEAD_DIM <= 128 || HEAD_DIM % 32 == 0)
#if HEAD_DIM <= 128
    // Tiles that are full, one longer, one shorter; windows of one, inside a tile, across tiles; groups of heads.
    const Case tiled[] = {
        {{1, 65}, 1, 1, 0}, {{64, 63}, 2, 1, 1}, {{65}, 4, 1, 40}, {{31, 130}, 4, 2, 0}, {{140}, 1, 1, 70}};
#else
    const Case tiled[] = {{{1, 65}, 2, 1, 0}, {{64, 33}, 1, 1, 40}, {{100}, 1, 1, 1}};
#endif
    for (const Case &shape : tiled) both_ways<bf16>(shape, true);
#endif
    return check::finish();
}
