// Operations on rows, and conversions, against f64. Launches are those of the backend.
#include "check.h"
#include "convert.cu"
#include "rows.cu"

using check::Array;
using check::rounding;
using Numbers = std::vector<double>;

static int round_up(int x, int to) { return (x + to - 1) / to * to; }
/// Threads of a block that has a row to itself.
static int for_row(int width) { return std::min(1024, std::max(32, round_up((width + 7) / 8, 32))); }
/// Blocks and threads where the columns of a row are shared out.
static int part_threads(int width) { return std::min(256, for_row(width)); }
static dim3 parts(int rows, int width) {
    const int threads = part_threads(width);
    return dim3(rows, (width + 8 * threads - 1) / (8 * threads));
}

/// `to += sum over rows of d * x * scale`, held against `reference`, which lacks what is in `to`.
template <typename D, typename X>
static void column_sums(const char *name, const D *d, const X *x, const float *scale, int rows, int width, int heads,
                        int stride, int offset, Numbers reference) {
    const int threads = std::min(256, round_up(width, 32)), groups = (rows + GROUP - 1) / GROUP;
    Array<float> partial((size_t)groups * width);
    auto to = Array<float>::normal(width);
    for (int c = 0; c < width; c++) reference[c] += to[c];
    LAUNCH(OF2(D, X, sum_columns), dim3(groups, (width + threads - 1) / threads), threads, 0, d, x, scale, partial.at(),
           (long long)rows, width, heads, stride, offset);
    check::expect(partial.whole(), std::string(name) + ": partial sums outside of their array");
    LAUNCH(finish_columns, (width + threads - 1) / threads, threads, 0, partial.at(), to.at(), groups, width);
    check::compare(name, to, reference, 3e-5);
}

template <typename D, typename X> static void sums(int rows, int width) {
    auto d = Array<D>::normal(rows * width);
    auto x = Array<X>::normal(rows * width);
    auto scale = Array<float>::normal(rows);
    Numbers all(width), products(width), of_x(width);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < width; c++) {
            const double v = d[r * width + c] * x[r * width + c];
            products[c] += v;
            all[c] += v * scale[r];
            of_x[c] += x[r * width + c] * scale[r];
        }
    column_sums("sum_columns", d.at(), x.at(), scale.at(), rows, width, 1, width, 0, all);
    column_sums("sum_columns", d.at(), x.at(), nullptr, rows, width, 1, width, 0, products);
    column_sums("sum_columns", (const D *)nullptr, x.at(), scale.at(), rows, width, 1, width, 0, of_x);
}

template <typename T> static void norms(int rows, int width, float offset) {
    auto x = Array<float>::normal(rows * width), weight = Array<float>::normal(width);
    const float eps = 0.1f;
    Array<T> out(rows * width);
    Array<float> inverse(rows);
    Numbers normed(rows * width), inverses(rows);
    for (int r = 0; r < rows; r++) {
        double sum = 0.0;
        for (int c = 0; c < width; c++) sum += x[r * width + c] * x[r * width + c];
        inverses[r] = 1.0 / sqrt(sum / width + eps);
        for (int c = 0; c < width; c++) normed[r * width + c] = x[r * width + c] * inverses[r] * (weight[c] + offset);
    }
    LAUNCH(OF(T, rms_norm), rows, for_row(width), 0, x.at(), weight.at(), out.at(), inverse.at(), width, offset, eps);
    check::compare("rms_norm", out, normed, rounding<T>());
    check::compare("rms_norm: inverse", inverse, inverses, 1e-6);

    auto d = Array<T>::normal(rows * width);
    const auto before = Array<float>::normal(rows * width);
    Numbers d_x = before.values();
    for (int r = 0; r < rows; r++) {
        double along = 0.0;
        for (int c = 0; c < width; c++) along += d[r * width + c] * (weight[c] + offset) * x[r * width + c];
        for (int c = 0; c < width; c++) {
            const double shrink = x[r * width + c] * along / width * inverses[r] * inverses[r];
            d_x[r * width + c] += inverses[r] * (d[r * width + c] * (weight[c] + offset) - shrink);
        }
    }
    for (bool copied : {false, true}) {
        Array<float> to = before;
        Array<bf16> copy(rows * width);
        LAUNCH(OF(T, rms_norm_backward), rows, for_row(width), 0, d.at(), x.at(), inverse.at(), weight.at(), to.at(),
               copied ? copy.at() : nullptr, width, offset);
        check::compare("rms_norm_backward", to, d_x, 3e-6);
        if (copied) check::compare("rms_norm_backward: copy", copy, d_x, rounding<bf16>() + 3e-6);
    }
}

template <typename T> static void bias_and_values(int rows, int width) {
    const auto x = Array<T>::normal(rows * width);
    auto weight = Array<float>::normal(width);
    Numbers added(rows * width), dots(rows), d_x(rows * width);
    auto d_values = Array<float>::normal(rows);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < width; c++) {
            added[r * width + c] = x[r * width + c] + weight[c];
            dots[r] += x[r * width + c] * weight[c];
            d_x[r * width + c] = d_values[r] * weight[c];
        }
    Array<T> to = x, d(rows * width);
    Array<float> values(rows);
    LAUNCH(OF(T, add_bias), parts(rows, width), part_threads(width), 0, to.at(), weight.at(), width);
    check::compare("add_bias", to, added, rounding<T>());
    LAUNCH(OF(T, scalar_head), rows, for_row(width), 0, x.at(), weight.at(), values.at(), width);
    check::compare("scalar_head: values from" + check::type_name<T>(), values, dots, 2e-5);
    LAUNCH(OF(T, scalar_head_backward), rows, for_row(width), 0, d_values.at(), weight.at(), d.at(), width);
    check::compare("scalar_head_backward", d, d_x, rounding<T>());
}

static double activation(double x, int gelu) {
    return gelu ? 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x))) : x / (1.0 + exp(-x));
}

template <typename T> static void gates(int rows, int width, int gelu) {
    auto x = Array<T>::normal(rows * 2 * width), d = Array<T>::normal(rows * width);
    Array<T> out(rows * width), d_x(rows * 2 * width);
    Numbers gated_out(rows * width), gradient(rows * 2 * width);
    const double step = 1e-5;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < width; c++) {
            const int gate = r * 2 * width + c, up = gate + width, at = r * width + c;
            const double slope = activation(x[gate] + step, gelu) - activation(x[gate] - step, gelu);
            gated_out[at] = activation(x[gate], gelu) * x[up];
            gradient[gate] = d[at] * x[up] * slope / (2.0 * step);
            gradient[up] = d[at] * activation(x[gate], gelu);
        }
    const dim3 blocks = parts(rows, width);
    LAUNCH(OF(T, gated), blocks, part_threads(width), 0, x.at(), out.at(), width, gelu);
    check::compare("gated", out, gated_out, rounding<T>());
    LAUNCH(OF(T, gated_backward), blocks, part_threads(width), 0, d.at(), x.at(), d_x.at(), width, gelu);
    check::compare("gated_backward", d_x, gradient, rounding<T>(2e-6));
}

template <typename A, typename B> static void taken_and_added(int rows, int width) {
    const float factor = 2.5f;
    std::vector<unsigned> which(rows);
    for (unsigned &row : which) row = check::below(rows);
    auto table = Array<A>::normal(rows * width);
    Array<B> out(rows * width);
    Numbers taken(rows * width);
    for (int i = 0; i < rows * width; i++) taken[i] = factor * table[which[i / width] * width + i % width];
    LAUNCH(OF2(A, B, take_rows), rows, for_row(width), 0, table.at(), which.data(), out.at(), width, factor);
    check::compare("take_rows to", out, taken, rounding<B>());

    // Rows that go to the same target, one after the other.
    std::vector<unsigned> order(rows), targets, starts;
    for (int i = 0; i < rows; i++) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](unsigned a, unsigned b) { return which[a] < which[b]; });
    for (int i = 0; i < rows; i++)
        if (targets.empty() || targets.back() != which[order[i]]) {
            targets.push_back(which[order[i]]);
            starts.push_back(i);
        }
    starts.push_back(rows);
    auto to = Array<A>::normal(rows * width);
    auto y = Array<B>::normal(rows * width);
    Numbers sums = to.values();
    for (int i = 0; i < rows * width; i++) sums[which[i / width] * width + i % width] += factor * y[i];
    LAUNCH(OF2(A, B, add_rows), targets.size(), for_row(width), 0, to.at(), y.at(), targets.data(), starts.data(),
           order.data(), width, factor);
    check::compare("add_rows to", to, sums, rounding<A>(2e-6));
}

template <typename T> static void scaled(long long len) {
    auto x = Array<T>::normal(len);
    Numbers out = x.values();
    for (double &v : out) v *= 0.3f;
    LAUNCH(OF(T, scale), (len + 2047) / 2048, 256, 0, x.at(), len, 0.3f);
    check::compare("scale", x, out, rounding<T>());
}

/// Norms of queries' and of keys' heads inside fused rows, and their gradients.
template <typename T> static void head_norms(int rows, int heads, int kv_heads, int dim) {
    const int stride = (heads + 2 * kv_heads) * dim;
    const float eps = 0.1f;
    for (bool keys : {false, true}) {
        const int first = keys ? heads : 0, count = keys ? kv_heads : heads;
        const long long total = (long long)rows * count;
        const auto raw = Array<T>::normal(rows * stride);
        auto weight = Array<float>::normal(dim);
        auto d = Array<T>::normal(rows * stride);
        Array<T> fused = raw;
        Array<float> inverse(total);
        Numbers normed = raw.values(), inverses(total), d_weight(dim), d_raw = d.values();
        for (int i = 0; i < total; i++) {
            const int at = i / count * stride + (first + i % count) * dim;
            double sum = 0.0, along = 0.0;
            for (int c = at; c < at + dim; c++) sum += raw[c] * raw[c];
            const double s = inverses[i] = 1.0 / sqrt(sum / dim + eps);
            for (int c = 0; c < dim; c++) {
                normed[at + c] = raw[at + c] * s * weight[c];
                along += d[at + c] * weight[c] * raw[at + c];
                d_weight[c] += d[at + c] * raw[at + c] * s;
            }
            for (int c = 0; c < dim; c++)
                d_raw[at + c] = s * (d[at + c] * weight[c] - raw[at + c] * along / dim * s * s);
        }
        LAUNCH(OF(T, head_norm), (total + 7) / 8, 256, 0, fused.at(), weight.at(), inverse.at(), total, count, first,
               dim, stride, eps);
        check::compare("head_norm", fused, normed, rounding<T>());
        check::compare("head_norm: inverse", inverse, inverses, 1e-6);
        column_sums("head_norm_backward: weight", d.at(), raw.at(), inverse.at(), total, dim, count, stride,
                    first * dim, d_weight);
        LAUNCH(OF(T, head_norm_backward), (total + 7) / 8, 256, 0, d.at(), raw.at(), inverse.at(), weight.at(), total,
               count, first, dim, stride);
        check::compare("head_norm_backward", d, d_raw, rounding<T>(2e-6));
    }
}

template <typename T> static void rotations(int rows, int heads, int kv_heads, int dim, float direction) {
    const int stride = (heads + 2 * kv_heads) * dim, half = dim / 2, turned = heads + kv_heads, places = 50;
    auto fused = Array<T>::normal(rows * stride);
    std::vector<unsigned> positions(rows);
    auto cosines = Array<float>::normal(places * half), sines = Array<float>::normal(places * half);
    Numbers out = fused.values();
    for (int r = 0; r < rows; r++) {
        positions[r] = check::below(places);
        for (int i = 0; i < turned * half; i++) {
            const int low = r * stride + i / half * dim + i % half, angle = positions[r] * half + i % half;
            const double c = cosines[angle], s = direction * sines[angle];
            out[low] = fused[low] * c - fused[low + half] * s;
            out[low + half] = fused[low + half] * c + fused[low] * s;
        }
    }
    const int items = turned * ((half + 7) / 8), threads = std::min(256, round_up(items, 32));
    LAUNCH(OF(T, rotary), dim3(rows, (items + threads - 1) / threads), threads, 0, fused.at(), positions.data(),
           cosines.at(), sines.at(), turned, half, stride, direction);
    check::compare("rotary", fused, out, rounding<T>());
}

static void conversions() {
    // In the order: halfway to even, up and down; just beside; the largest; infinities; NaN; a subnormal number.
    const std::vector<std::pair<unsigned, unsigned>> known = {
        {0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81}, {0x3f817fff, 0x3f81}, {0x7f7fffff, 0x7f80},
        {0x7f800000, 0x7f80}, {0xff800000, 0xff80}, {0x7f800001, 0x7fc0}, {0x00018000, 0x0002}, {0x80000000, 0x8000}};
    const long long n = 1000;
    auto x = Array<float>::normal(n);
    for (size_t i = 0; i < known.size(); i++) x.at()[i] = __uint_as_float(known[i].first);
    Array<bf16> narrowed(n);
    Array<float> back(n), filled(n);
    auto *words = reinterpret_cast<unsigned short *>(narrowed.at());
    LAUNCH(narrow_f32, 2, 256, 0, words, x.at(), n);
    LAUNCH(widen_bf16, 2, 256, 0, back.at(), words, n);
    LAUNCH(fill_f32, 2, 256, 0, filled.at(), 1.5f, n);
    for (size_t i = 0; i < known.size(); i++) check::expect(words[i] == known[i].second, "narrow_f32: a known number");
    for (long long i = known.size(); i < n; i++) {
        check::note("narrow_f32, relative", fabs(narrowed[i] - x[i]) / fabs(x[i]), 0x1p-8);
        check::expect(back[i] == narrowed[i], "widen_bf16: another number");
    }
    check::expect(narrowed.whole() && back.whole(), "conversions: wrote outside of their arrays");
    check::compare("fill", filled, Numbers(n, 1.5), 0.0);
}

template <typename T> static void all(int rows, int width) {
    sums<T, float>(rows, width);
    sums<T, bf16>(rows, width);
    for (float offset : {0.0f, 1.0f}) norms<T>(rows, width, offset);
    bias_and_values<T>(rows, width);
    for (int gelu : {0, 1}) gates<T>(rows, width, gelu);
    taken_and_added<T, float>(rows, width);
    taken_and_added<T, bf16>(rows, width);
    scaled<T>((long long)rows * width + 3);
}

int main() {
    // Rows and columns: whole eights, more than a block of threads takes at once, odd, fewer than eight, groups of rows
    // that are full and not.
    const std::pair<int, int> shapes[] = {{5, 64}, {130, 100}, {2, 8200}, {7, 24}, {2, 2312}, {64, 8}, {65, 9}, {1, 7}};
    for (auto [rows, width] : shapes) {
        all<float>(rows, width);
        all<bf16>(rows, width);
    }
    head_norms<float>(9, 4, 2, 128);
    head_norms<bf16>(9, 4, 2, 128);
    head_norms<float>(70, 3, 1, 20);
    head_norms<bf16>(5, 2, 2, 256);
    for (float direction : {1.0f, -1.0f}) {
        rotations<float>(9, 4, 2, 128, direction);
        rotations<bf16>(9, 4, 2, 128, direction);
        rotations<float>(5, 3, 1, 20, direction);
        rotations<bf16>(5, 3, 1, 20, direction);
        rotations<bf16>(2, 40, 2, 128, direction);
    }
    conversions();
    return check::finish();
}
