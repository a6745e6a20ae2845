// The optimizer's kernels against f64.
#include "check.h"
#include "adamw.cu"

using check::Array;

// The norm of the gradient: blocks that are full, one short, one number long.
static void norm(long long len) {
    auto x = Array<float>::normal(len);
    const unsigned blocks = (len + BLOCK - 1) / BLOCK;
    std::vector<double> partial(blocks, NAN);
    double out = NAN, sum = 0.0;
    for (double v : x.values()) sum += v * v;
    LAUNCH(squares, blocks, 256, 0, x.at(), partial.data(), len);
    LAUNCH(finish_squares, 1, 1024, 0, partial.data(), &out, (long long)blocks);
    check::note("squares", fabs(out - sum) / sum, 1e-12);
}

static void step(long long len, float eps, bool copied) {
    auto w = Array<float>::normal(len), gradient = Array<float>::normal(len), m = Array<float>::normal(len);
    auto v = Array<float>::normal(len);
    for (long long i = 0; i < len; i++) {
        // Moments of a weight that has hardly been used yet: eps counts.
        v.at()[i] = i % 2 ? fabsf(v.at()[i]) : 0.0f;
        if (i % 4 == 0) gradient.at()[i] *= 1e-3f;
    }
    Array<bf16> copy(len);
    const float keep = 0.99f, rate = 0.1f, root = 1.5f, beta1 = 0.9f, beta2 = 0.99f, scale = 0.5f;
    std::vector<double> next_w(len), next_m(len), next_v(len);
    for (long long i = 0; i < len; i++) {
        const double g = gradient[i] * scale;
        next_m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        next_v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
        next_w[i] = w[i] * keep - rate * next_m[i] / (sqrt(next_v[i]) * root + eps);
    }
    // Fewer threads than numbers: they take a second turn.
    LAUNCH(adamw, 3, 256, 0, w.at(), gradient.at(), m.at(), v.at(), copied ? copy.at() : nullptr, len, keep, rate, root,
           beta1, beta2, eps, scale);
    check::compare("adamw: m", m, next_m, 1e-6);
    check::compare("adamw: v", v, next_v, 1e-6);
    check::compare("adamw: w", w, next_w, 4e-6);
    if (copied) check::compare("adamw: copy", copy, next_w, check::rounding<bf16>() + 4e-6);
    check::compare("adamw: gradient", gradient, std::vector<double>(len), 0.0);
}

int main() {
    for (long long len : {7, BLOCK, 2 * BLOCK + 1}) norm(len);
    for (float eps : {1e-8f, 1e-2f})
        for (bool copied : {false, true}) step(1003, eps, copied);
    return check::finish();
}
