// Runs the GPU's kernels on a processor, so that their text can be tested where there is no GPU.
//
// A C++ compiler reads the same files as the GPU's compiler; `common.cuh` has, under EMULATED, a twin of each
// instruction of the tensor cores and of the copies to shared memory. Blocks run one after the other. Threads of a
// block are fibers on one thread of the processor: each runs until a barrier, then the next one does, forwards in one
// block and backwards in the following, so that a missing barrier is likely to show as a wrong number.
//
// - A barrier counts who arrived, and opens when every thread of the block (or of the warp) that has not left did.
// - Threads of a warp do not run in step. What they exchange (shuffles, votes, matrices) goes through memory between
//   two barriers of the warp. A lane that left before is an error, as are threads that wait for each other for ever.
// - Dynamic shared memory is filled with NaN before each block; static shared memory keeps what the block before left.
//
// What this cannot show: time; a missing wait for a copy to shared memory (copies are done at once); bank conflicts;
// too many registers or too much shared memory; races whose result does not depend on the two orders above; the
// rounding of the GPU's fast instructions.
#pragma once
#define EMULATED 1

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace emulate {

constexpr unsigned MOST_THREADS = 1024, WARP = 32, MOST_WARPS = MOST_THREADS / WARP;
constexpr size_t STACK = 128 << 10;

struct Barrier {
    unsigned arrived = 0, generation = 0;
};

struct Fiber {
    ucontext_t start;
    jmp_buf state;
    std::vector<char> stack;
    uint3 thread;
    unsigned index;
    bool started, done;
};

inline std::vector<Fiber> fibers(MOST_THREADS);
inline Fiber *current;
inline jmp_buf scheduler;
// What each thread runs, and what that captured.
inline void (*body)(const void *);
inline const void *captured;
inline uint3 block_index;
inline dim3 block_size, grid_size;

inline Barrier block_barrier, warp_barriers[MOST_WARPS];
// Threads that have not left.
inline unsigned live, warp_live[MOST_WARPS];
// Arrivals and departures: while there are any, threads do not wait for each other.
inline unsigned long long progress;
// Blocks so far.
inline unsigned long long blocks_run;

// What each thread shows to the others of its warp.
alignas(128) inline unsigned char exchange[MOST_THREADS][64];
inline std::vector<unsigned char> dynamic_store;
inline unsigned char *dynamic;

[[noreturn]] inline void fail(const char *why) {
    fprintf(stderr, "block (%u, %u, %u): %s\n", block_index.x, block_index.y, block_index.z, why);
    // Not exit: it would free the stack that this runs on.
    fflush(stdout);
    _Exit(1);
}

// Back to the scheduler until this fiber's next turn. Jumps, because changing contexts would ask the kernel for the
// mask of signals each time.
__attribute__((noinline)) inline void yield() {
    if (_setjmp(current->state) == 0) _longjmp(scheduler, 1);
}

// Lets a fiber run until it yields.
__attribute__((noinline)) inline void resume(Fiber &fiber) {
    current = &fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.state, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

inline void wait(Barrier &barrier, const unsigned &members) {
    unsigned generation = barrier.generation;
    barrier.arrived++;
    progress++;
    while (barrier.generation == generation) {
        // Members may have left since.
        if (barrier.arrived >= members) {
            barrier.arrived = 0;
            barrier.generation++;
            break;
        }
        yield();
    }
}

inline unsigned warp() { return current->index / WARP; }
inline unsigned lane() { return current->index % WARP; }
inline void warp_wait() {
    if (warp_live[warp()] != WARP) fail("an exchange in a warp that lanes have left");
    wait(warp_barriers[warp()], warp_live[warp()]);
}

// A value of another lane of the warp.
template <typename T> T from_lane(T value, unsigned source) {
    static_assert(sizeof(T) <= sizeof exchange[0]);
    memcpy(exchange[current->index], &value, sizeof(T));
    warp_wait();
    T out;
    memcpy(&out, exchange[warp() * WARP + source % WARP], sizeof(T));
    warp_wait();
    return out;
}

inline void entry() {
    body(captured);
    current->done = true;
    live--;
    warp_live[warp()]--;
    progress++;
    yield();
}

inline void prepare(Fiber &fiber, unsigned index) {
    if (fiber.stack.empty()) fiber.stack.resize(STACK);
    fiber.thread = {index % block_size.x, index / block_size.x % block_size.y, index / (block_size.x * block_size.y)};
    fiber.index = index;
    fiber.started = fiber.done = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.data();
    fiber.start.uc_stack.ss_size = fiber.stack.size();
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, entry, 0);
}

inline void run_block(unsigned threads, size_t shared) {
    memset(dynamic, 0xff, shared);
    block_barrier = {};
    live = threads;
    for (unsigned i = 0; i < threads; i++) prepare(fibers[i], i);
    for (unsigned w = 0; w * WARP < threads; w++) {
        warp_barriers[w] = {};
        warp_live[w] = std::min(WARP, threads - w * WARP);
    }
    const bool backwards = blocks_run++ % 2 == 1;
    while (live > 0) {
        const unsigned long long before = progress;
        for (unsigned i = 0; i < threads; i++) {
            Fiber &fiber = fibers[backwards ? threads - 1 - i : i];
            if (!fiber.done) resume(fiber);
        }
        if (progress == before) fail("threads wait for each other");
    }
}

template <typename Kernel> void launch(dim3 blocks, dim3 threads, size_t shared, const Kernel &kernel) {
    body = [](const void *captured) { (*static_cast<const Kernel *>(captured))(); };
    captured = &kernel;
    grid_size = blocks;
    block_size = threads;
    const unsigned count = threads.x * threads.y * threads.z;
    if (count == 0 || count > MOST_THREADS) fail("no number of threads that a block can have");
    dynamic_store.assign(shared + 128, 0xff);
    dynamic = (unsigned char *)(((uintptr_t)dynamic_store.data() + 127) & ~(uintptr_t)127);
    for (unsigned z = 0; z < blocks.z; z++)
        for (unsigned y = 0; y < blocks.y; y++)
            for (unsigned x = 0; x < blocks.x; x++) {
                block_index = {x, y, z};
                run_block(count, shared);
            }
}

}  // namespace emulate

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define threadIdx (emulate::current->thread)
#define blockIdx (emulate::block_index)
#define blockDim (emulate::block_size)
#define gridDim (emulate::grid_size)
#define DYNAMIC_SHARED(type, name) type *name = (type *)emulate::dynamic

/// Runs a kernel: blocks, threads of each, bytes of dynamic shared memory, arguments.
#define LAUNCH(kernel, blocks, threads, shared, ...) \
    emulate::launch(blocks, threads, shared, [&] { (kernel)(__VA_ARGS__); })

inline void __syncthreads() { emulate::wait(emulate::block_barrier, emulate::live); }
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulate::from_lane(value, emulate::lane() ^ mask);
}
template <typename T> T __shfl_down_sync(unsigned, T value, unsigned by) {
    const unsigned lane = emulate::lane();
    return emulate::from_lane(value, lane + by < emulate::WARP ? lane + by : lane);
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
template <typename T> T min(T a, T b) { return a < b ? a : b; }
template <typename T> T max(T a, T b) { return a > b ? a : b; }
