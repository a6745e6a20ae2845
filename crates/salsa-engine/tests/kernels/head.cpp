// The log-prob head and drawing tokens. Statistics and gradients are held against f64; a drawn token has to be the one
// that a slow and plain way of drawing finds.
#include "check.h"
#include "head.cu"

#include <numeric>

using check::Array;

constexpr int ROWS = 2;

struct Logits {
    Array<float> values;
    int vocabulary;
    float factor;
    double at(int row, int v) const { return values[(size_t)row * vocabulary + v] * factor; }
};

/// log of the sum of exp.
static double log_sum(const Logits &logits, int row) {
    double top = -INFINITY, sum = 0.0;
    for (int v = 0; v < logits.vocabulary; v++) top = std::max(top, logits.at(row, v));
    for (int v = 0; v < logits.vocabulary; v++) sum += exp(logits.at(row, v) - top);
    return top + log(sum);
}

/// Returns the log-sums that the kernel found.
static Array<float> stats_and_gradients(const Logits &logits) {
    const int vocabulary = logits.vocabulary;
    std::vector<unsigned> targets = {0, (unsigned)vocabulary - 1};
    Array<float> logprobs(ROWS), entropies(ROWS), log_sums(ROWS);
    LAUNCH(logit_stats, ROWS, 512, 0, logits.values.at(), targets.data(), logprobs.at(), entropies.at(), log_sums.at(),
           vocabulary, logits.factor);
    std::vector<double> known_logprobs(ROWS), known_entropies(ROWS), known_log_sums(ROWS);
    for (int r = 0; r < ROWS; r++) {
        const double sum = known_log_sums[r] = log_sum(logits, r);
        known_logprobs[r] = logits.at(r, targets[r]) - sum;
        for (int v = 0; v < vocabulary; v++)
            known_entropies[r] -= exp(logits.at(r, v) - sum) * (logits.at(r, v) - sum);
    }
    check::compare("logit_stats: log-probs", logprobs, known_logprobs, 2e-6);
    check::compare("logit_stats: entropies", entropies, known_entropies, 2e-6);
    check::compare("logit_stats: log-sums", log_sums, known_log_sums, 1e-6);

    auto d = Array<float>::normal(ROWS);
    for (int first : {0, vocabulary / 3}) {
        // The entries from `first` on, as if they were the whole rows.
        const int width = vocabulary - first;
        Array<float> part(ROWS * width), out(ROWS * width);
        Array<bf16> narrow_out(ROWS * width);
        std::vector<double> known(ROWS * width);
        for (int i = 0; i < ROWS * width; i++) {
            const int r = i / width, v = first + i % width;
            part.at()[i] = logits.values.at()[(size_t)r * vocabulary + v];
            known[i] = d[r] * logits.factor * ((v == (int)targets[r]) - exp(logits.at(r, v) - known_log_sums[r]));
        }
        const int threads = std::min(256, ((width + 7) / 8 + 31) / 32 * 32);
        const dim3 blocks(ROWS, (width + 8 * threads - 1) / (8 * threads));
        LAUNCH(logit_gradient_f32, blocks, threads, 0, part.at(), targets.data(), d.at(), log_sums.at(), out.at(),
               width, first, logits.factor);
        LAUNCH(logit_gradient_bf16, blocks, threads, 0, part.at(), targets.data(), d.at(), log_sums.at(),
               narrow_out.at(), width, first, logits.factor);
        check::compare("logit_gradient", out, known, 1e-6);
        check::compare("logit_gradient", narrow_out, known, check::rounding<bf16>() + 1e-6);
    }
    return log_sums;
}

struct Choice {
    bool greedy;
    int top_k;
    float top_p;
};

/// A distribution that tokens are drawn from, found by sorting.
struct Distribution {
    /// In the order of the vocabulary, 0 where a token is cut.
    std::vector<double> probabilities;
    double total;
    int most_likely;
    /// Where the sum of probabilities passes `u` of the whole; the length of the vocabulary where it never does.
    int inverse(double u) const {
        double left = u * total;
        for (size_t v = 0; v < probabilities.size(); v++)
            if (probabilities[v] > 0.0 && (left -= probabilities[v]) < 0.0) return v;
        return probabilities.size();
    }
    /// Whether `token` may be drawn at `u`. Close to where one token ends and the next begins both may: a log-sum near
    /// 20 in f32 has steps of 2e-6, and so do the probabilities of all tokens.
    bool fits(int token, double u) const {
        const int from = inverse(u * (1.0 - 4e-6)), to = inverse(u * (1.0 + 4e-6));
        if (to == (int)probabilities.size() && token == most_likely) return true;
        return from <= token && token <= to && probabilities[token] > 0.0;
    }
};

static Distribution distribution(const Logits &logits, int row, float log_sum, const Choice &choice) {
    const int vocabulary = logits.vocabulary;
    std::vector<double> all(vocabulary);
    std::vector<float> x(vocabulary);
    for (int v = 0; v < vocabulary; v++) {
        x[v] = (float)logits.at(row, v);
        all[v] = expf(x[v] - log_sum);
    }
    // From the most likely on, of equals the first of the vocabulary.
    std::vector<int> order(vocabulary);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[a] > x[b]; });
    const bool some = choice.top_k > 0 && choice.top_k < vocabulary;
    if (!choice.greedy && !some && choice.top_p >= 1.0f) return {all, 1.0, order[0]};
    if (choice.greedy) order.resize(1);
    if (some) order.resize(choice.top_k);
    double whole = 0.0, above = 0.0;
    for (int v : order) whole += all[v];
    Distribution cut = {std::vector<double>(vocabulary), 0.0, order[0]};
    for (int v : order) {
        if (v != order[0] && above >= (double)choice.top_p * whole) break;
        cut.probabilities[v] = all[v];
        above += all[v];
    }
    cut.total = above;
    return cut;
}

static void draws(const Logits &logits, const Array<float> &log_sums, const Choice &choice, float end) {
    Array<float> uniforms(ROWS), logprobs(ROWS);
    for (int r = 0; r < ROWS; r++) uniforms.at()[r] = r == 0 ? check::uniform() : end;
    std::vector<unsigned> tokens(ROWS, ~0u);
    LAUNCH(draw, ROWS, 1024, 0, logits.values.at(), uniforms.at(), tokens.data(), logprobs.at(), logits.vocabulary,
           logits.factor, choice.greedy, choice.top_k, choice.top_p);
    for (int r = 0; r < ROWS; r++) {
        const Distribution from = distribution(logits, r, log_sums.at()[r], choice);
        const unsigned token = tokens[r];
        if (token < (unsigned)logits.vocabulary && from.fits(token, uniforms[r])) {
            check::note("draw: log-probs", fabs(logprobs[r] - (logits.at(r, token) - log_sum(logits, r))), 4e-6);
        } else {
            char what[160];
            snprintf(what, sizeof what, "draw: token %u for %d, of %d, greedy %d, top_k %d, top_p %g, at %.9g", token,
                     from.inverse(uniforms[r]), logits.vocabulary, choice.greedy, choice.top_k, choice.top_p,
                     uniforms[r]);
            check::expect(false, what);
        }
    }
    check::expect(logprobs.whole(), "draw: wrote outside of its array");
}

int main() {
    // Vocabularies: smaller than eight, no multiple of eight, whole numbers for logits (so that many are equal), and
    // more than a block of threads takes at once.
    for (int vocabulary : {5, 33, 1000, 8203}) {
        Logits logits = {Array<float>::normal((size_t)ROWS * vocabulary), vocabulary, 1.0f / 0.7f};
        for (size_t i = 0; i < logits.values.size(); i++) {
            float &x = logits.values.at()[i];
            x = vocabulary == 1000 ? roundf(3.0f * x) : 3.0f * x;
        }
        // Of equals the first counts, among those that one thread looks at too.
        if (vocabulary == 1000)
            for (float *row = logits.values.at(); row < logits.values.at() + logits.values.size(); row += vocabulary)
                row[1] = row[3] = *std::max_element(row, row + vocabulary);
        const Array<float> log_sums = stats_and_gradients(logits);
        std::vector<Choice> choices = {{true, 0, 1.0f}, {false, 0, 1.0f}};
        // A draw takes the same time from few tokens as from many.
        if (vocabulary == 33) choices.push_back({false, 3, 0.5f});
        if (vocabulary >= 1000) choices.insert(choices.end(), {{false, 0, 0.9f}, {false, 40, 0.8f}});
        if (vocabulary == 1000) choices.insert(choices.end(), {{false, 1, 1.0f}, {false, 7, 1.0f}, {false, 0, 0.0f}});
        float end = 0.0f;
        for (const Choice &choice : choices) {
            draws(logits, log_sums, choice, end);
            end = end == 0.0f ? 1.0f - 0x1p-24f : 0.0f;
        }
    }
    return check::finish();
}
