// Keys and values of sequences being decoded, and attention of new tokens to them, against f64, for heads of HEAD_DIM
// numbers.
#include "check.h"
#include "cache.cu"

using check::Array;
using Numbers = std::vector<double>;

#define CACHE_OF(T, kernel) check::pick<T>(CACHE_NAMED(kernel##_f32), CACHE_NAMED(kernel##_bf16))

constexpr int SLOTS = 3, CAPACITY = 530;

/// A new token: the sequence it belongs to, and its place.
struct Entry {
    unsigned slot, position;
};
// One token; full splits, and one more; three splits.
const std::vector<Entry> ENTRIES = {{2, 3}, {0, 0}, {1, SPLIT - 1}, {2, SPLIT}, {1, CAPACITY - 3}};

struct Shape {
    int heads, kv_heads, window;
    int fused() const { return (heads + 2 * kv_heads) * DIM; }
    int group() const { return heads / kv_heads; }
};

template <typename T> struct Cache {
    Array<T> tokens, keys, values;
};

/// Stores tokens up to the longest of each slot, the rows of `tokens` backwards; what is behind stays NaN.
template <typename T> static Cache<T> filled(const Shape &shape) {
    const int heads = shape.heads, kv_heads = shape.kv_heads, dim = DIM;
    std::vector<unsigned> rows, slots, positions;
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        unsigned last = 0;
        for (const Entry &entry : ENTRIES) last = std::max(last, entry.slot == slot ? entry.position : 0);
        for (unsigned position = 0; position <= last; position++) {
            rows.push_back((slot + 1) * CAPACITY - 1 - position);
            slots.push_back(slot);
            positions.push_back(position);
        }
    }
    const size_t len = (size_t)SLOTS * kv_heads * CAPACITY * DIM;
    Cache<T> cache = {Array<T>::normal((size_t)SLOTS * CAPACITY * shape.fused()), Array<T>(len), Array<T>(len)};
    const int threads = std::min(256, (kv_heads * DIM / 8 + 31) / 32 * 32);
    LAUNCH(CACHE_OF(T, cache_store), rows.size(), threads, 0, cache.keys.at(), cache.values.at(), cache.tokens.at(),
           rows.data(), slots.data(), positions.data(), heads, kv_heads, CAPACITY);
    Array<T> keys(len), values(len);
    for (size_t i = 0; i < rows.size(); i++)
        for (int c = 0; c < kv_heads * dim; c++) {
            const size_t from = (size_t)rows[i] * shape.fused() + heads * dim + c;
            const size_t to = (((size_t)slots[i] * kv_heads + c / dim) * CAPACITY + positions[i]) * dim + c % dim;
            keys.at()[to] = cache.tokens.at()[from];
            values.at()[to] = cache.tokens.at()[from + kv_heads * dim];
        }
    auto same = [&](const Array<T> &a, const Array<T> &b) { return memcmp(a.at(), b.at(), len * sizeof(T)) == 0; };
    check::expect(same(keys, cache.keys) && same(values, cache.values),
                  "cache_store: other numbers" + check::type_name<T>());
    check::expect(cache.keys.whole() && cache.values.whole(), "cache_store: wrote outside of its array");
    return cache;
}

/// Attention of the first `count` entries, the longest of which has `longest` tokens.
template <typename T>
static Array<T> attention(const Shape &shape, const Cache<T> &cache, const Array<T> &fused, int count, int longest) {
    const int heads = shape.heads, group = shape.group(), splits = (longest + SPLIT - 1) / SPLIT;
    const int at_once = group == 1 ? 1 : SOME;
    std::vector<unsigned> slots, positions;
    for (int e = 0; e < count; e++) slots.push_back(ENTRIES[e].slot), positions.push_back(ENTRIES[e].position);
    Array<T> out((size_t)count * heads * DIM);
    const size_t parts = splits > 1 ? (size_t)count * heads * splits : 0;
    Array<float> partial(parts * DIM), marks(2 * parts);
    const dim3 blocks(count, shape.kv_heads * ((group + at_once - 1) / at_once), splits);
    const auto kernel = at_once == 1 ? CACHE_OF(T, cached_attention) : CACHE_OF(T, cached_attention_grouped);
    LAUNCH(kernel, blocks, 32 * WARPS, 0, out.at(), partial.at(), marks.at(), cache.keys.at(), cache.values.at(),
           fused.at(), slots.data(), positions.data(), heads, shape.kv_heads, CAPACITY, shape.window,
           1.0f / sqrtf((float)DIM));
    if (splits > 1)
        LAUNCH(CACHE_OF(T, combine_splits), count * heads, (DIM + 31) / 32 * 32, 0, out.at(), partial.at(), marks.at(),
               splits);
    check::expect(partial.whole() && marks.whole(), "cached_attention: parts outside of their array");
    return out;
}

template <typename T> static Numbers reference(const Shape &shape, const Cache<T> &cache, const Array<T> &fused) {
    const int heads = shape.heads, dim = DIM;
    Numbers out(ENTRIES.size() * heads * dim);
    for (size_t e = 0; e < ENTRIES.size(); e++)
        for (int h = 0; h < heads; h++) {
            const int length = ENTRIES[e].position + 1;
            const int first = shape.window > 0 ? std::max(0, length - shape.window) : 0;
            auto at = [&](int k) {
                const size_t head = (size_t)ENTRIES[e].slot * shape.kv_heads + h / shape.group();
                return (head * CAPACITY + k) * dim;
            };
            Numbers p(length);
            double top = -INFINITY, total = 0.0;
            for (int k = first; k < length; k++) {
                for (int c = 0; c < dim; c++) p[k] += fused[e * shape.fused() + h * dim + c] * cache.keys[at(k) + c];
                top = std::max(top, p[k] /= sqrt((double)dim));
            }
            for (int k = first; k < length; k++) total += p[k] = exp(p[k] - top);
            for (int k = first; k < length; k++)
                for (int c = 0; c < dim; c++) out[(e * heads + h) * dim + c] += p[k] / total * cache.values[at(k) + c];
        }
    return out;
}

template <typename T> static void decode(const Shape &shape) {
    const Cache<T> cache = filled<T>(shape);
    const auto fused = Array<T>::normal(ENTRIES.size() * shape.fused());
    const Array<T> out = attention(shape, cache, fused, ENTRIES.size(), CAPACITY - 2);
    check::compare(shape.group() == 1 ? "cached_attention" : "cached_attention_grouped", out,
                   reference(shape, cache, fused), check::rounding<T>(2e-6));
    // Company, and how many splits others need, change nothing.
    const Array<T> alone = attention(shape, cache, fused, 1, ENTRIES[0].position + 1);
    check::expect(memcmp(alone.at(), out.at(), alone.size() * sizeof(T)) == 0,
                  "cached_attention: other bits alone than in company," + check::type_name<T>());
}

int main() {
    // Heads that share no keys; as many as a warp takes at once; one more.
    const Shape own = {2, 2, 0}, shared = {2 * SOME, 2, 0}, more = {SOME + 1, 1, 0};
    auto windows = [](Shape shape, std::vector<int> windows) {
        for (int window : windows) {
            shape.window = window;
            decode<bf16>(shape);
            if (window == 0 || window == 30) decode<float>(shape);
        }
    };
    windows(own, {0, 30});
    windows(shared, {0, 1, 300});
    windows(more, {30});
    return check::finish();
}
