// What the tests of kernels share: arrays with guards, random numbers, and comparison with references in f64.
#pragma once
#include <map>
#include <string>
#include <type_traits>

#include "emulate.h"
// After what it needs.
#include "common.cuh"

namespace check {

/// 32 random bits, the same in every run: SplitMix64.
inline unsigned random() {
    static uint64_t state = 1;
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (z ^ z >> 31) >> 32;
}
/// A whole number in `0 .. n`.
inline unsigned below(unsigned n) { return random() % n; }
/// A number in `0 .. 1`, a multiple of 2^-24.
inline float uniform() { return (random() >> 8) * 0x1p-24f; }
/// A number of the normal distribution.
inline float normal() {
    const double angle = 2.0 * M_PI * uniform(), length = sqrt(-2.0 * log(1.0 - uniform()));
    return (float)(length * cos(angle));
}

/// The version of a kernel for a type.
template <typename T, typename A, typename B> auto pick(A f32, B bf16) {
    if constexpr (std::is_same_v<T, float>) return f32;
    else return bf16;
}
#define OF(T, kernel) check::pick<T>(kernel##_f32, kernel##_bf16)
#define OF2(A, B, kernel)                                               \
    check::pick<A>(check::pick<B>(kernel##_f32_f32, kernel##_f32_bf16), \
                   check::pick<B>(kernel##_bf16_f32, kernel##_bf16_bf16))

template <typename T> std::string type_name() { return std::is_same_v<T, float> ? " f32" : " bf16"; }
/// The error allowed where numbers of a type are rounded once: half a step of bfloat16, or what f32 allows.
template <typename T> constexpr double rounding(double f32 = 1e-6) { return std::is_same_v<T, float> ? f32 : 0x1p-8; }

/// An array aligned as on the card, between guards. Guards and room are NaN.
template <typename T> class Array {
    struct alignas(16) Chunk {
        unsigned char bytes[16];
    };
    static constexpr size_t GUARD = 4;
    std::vector<Chunk> chunks;
    size_t len;

public:
    explicit Array(size_t len) : chunks(2 * GUARD + (len * sizeof(T) + 15) / 16), len(len) { poison(); }
    static Array normal(size_t len) {
        Array array(len);
        for (size_t i = 0; i < len; i++) put(array.at() + i, check::normal());
        return array;
    }
    T *at() { return reinterpret_cast<T *>(chunks.data() + GUARD); }
    const T *at() const { return reinterpret_cast<const T *>(chunks.data() + GUARD); }
    size_t size() const { return len; }
    double operator[](size_t i) const { return widen(at()[i]); }
    void poison() { memset((void *)chunks.data(), 0xff, chunks.size() * sizeof(Chunk)); }
    /// Whether nobody wrote outside.
    bool whole() const {
        auto intact = [](const unsigned char *from, const unsigned char *to) {
            return std::all_of(from, to, [](unsigned char byte) { return byte == 0xff; });
        };
        auto bytes = [](const void *p) { return static_cast<const unsigned char *>(p); };
        return intact(bytes(chunks.data()), bytes(at())) &&
               intact(bytes(at() + len), bytes(chunks.data() + chunks.size()));
    }
    std::vector<double> values() const {
        std::vector<double> values(len);
        for (size_t i = 0; i < len; i++) values[i] = (*this)[i];
        return values;
    }
};

struct Worst {
    double error = 0.0, allowed = 0.0;
};
inline std::map<std::string, Worst> worst;
inline std::vector<std::string> wrong;

/// Notes an error of `name`, and what is allowed there.
inline void note(const std::string &name, double error, double allowed) {
    Worst &entry = worst[name];
    // NaN is the worst.
    if (!(error <= entry.error)) entry.error = error == error ? error : INFINITY;
    entry.allowed = std::max(entry.allowed, allowed);
}
/// Notes what must hold.
inline void expect(bool holds, const std::string &what) {
    if (!holds && wrong.size() < 20) wrong.push_back(what);
}
/// Holds an array against its reference: |x - y| / (1 + |y|), and guards.
template <typename T>
void compare(const std::string &name, const Array<T> &array, const std::vector<double> &reference, double allowed) {
    const std::string full = name + type_name<T>();
    expect(array.size() == reference.size(), full + ": not as long as its reference");
    expect(array.whole(), full + ": wrote outside of its array");
    for (size_t i = 0; i < reference.size(); i++)
        note(full, fabs(array[i] - reference[i]) / (1.0 + fabs(reference[i])), allowed);
}

/// Prints the worst errors; the exit code of the program.
inline int finish() {
    int status = 0;
    for (const auto &[name, entry] : worst) {
        const bool good = entry.error <= entry.allowed;
        printf("%-32s %.1e of %.1e%s\n", name.c_str(), entry.error, entry.allowed, good ? "" : "  WRONG");
        if (!good) status = 1;
    }
    for (const std::string &what : wrong) printf("WRONG: %s\n", what.c_str()), status = 1;
    return status;
}

}  // namespace check
