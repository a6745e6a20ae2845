// What every kernel file begins with: the two kinds of numbers, 16-byte access, reductions in a fixed order, and the
// instructions of the tensor cores. With EMULATED the same text runs on a CPU.

#ifndef EMULATED
#define DYNAMIC_SHARED(type, name)                                     \
    extern __shared__ __align__(128) unsigned char dynamic_shared[];   \
    type *name = reinterpret_cast<type *>(dynamic_shared)
#endif

#define ALL_LANES 0xffffffffu
#define INFINITE __uint_as_float(0x7f800000u)

/// A bfloat16: the upper half of an f32.
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

/// Rounds to the nearest bfloat16, ties to even.
__device__ __forceinline__ bf16 narrow(float x) {
    bf16 out;
#ifdef EMULATED
    unsigned u = __float_as_uint(x);
    out.bits = x != x ? 0x7fff : (unsigned short)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#endif
    return out;
}

/// Two bfloat16 in a word, `low` in the lower half.
__device__ __forceinline__ unsigned narrow2(float low, float high) {
#ifdef EMULATED
    return (unsigned)narrow(low).bits | (unsigned)narrow(high).bits << 16;
#else
    unsigned out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
#endif
}

__device__ __forceinline__ void put(float *to, float x) { *to = x; }
__device__ __forceinline__ void put(bf16 *to, float x) { *to = narrow(x); }

/// Eight neighbouring numbers, at an address that is a multiple of 16 bytes.
__device__ __forceinline__ void load8(const float *from, float (&x)[8]) {
    float4 a = reinterpret_cast<const float4 *>(from)[0], b = reinterpret_cast<const float4 *>(from)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ __forceinline__ void load8(const bf16 *from, float (&x)[8]) {
    uint4 v = *reinterpret_cast<const uint4 *>(from);
    unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(words[i] << 16);
        x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void store8(float *to, const float (&x)[8]) {
    reinterpret_cast<float4 *>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4 *>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
__device__ __forceinline__ void store8(bf16 *to, const float (&x)[8]) {
    *reinterpret_cast<uint4 *>(to) =
        make_uint4(narrow2(x[0], x[1]), narrow2(x[2], x[3]), narrow2(x[4], x[5]), narrow2(x[6], x[7]));
}

/// Sum (or largest) over the warp, in every lane, by halves: always in the same order.
template <typename T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(ALL_LANES, x, by);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, by));
    return x;
}

/// Sum over the block, in every thread; `room` is shared, one place for each warp. Whole warps only.
template <typename T> __device__ __forceinline__ T block_sum(T x, T *room) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    if (warps == 1) return x;
    __syncthreads();
    if (lane == 0) room[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? room[lane] : T(0));
}
__device__ __forceinline__ float block_max(float x, float *room) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_max(x);
    if (warps == 1) return x;
    __syncthreads();
    if (lane == 0) room[warp] = x;
    __syncthreads();
    return warp_max(lane < warps ? room[lane] : -INFINITE);
}

/// `d[16, 8] += a[16, 16] * b[16, 8]`, bfloat16 in, f32 out. With group g = lane / 4 and t = lane % 4:
/// a[0] = A[g, 2t..], a[1] = A[g + 8, 2t..], a[2] = A[g, 2t + 8..], a[3] = A[g + 8, 2t + 8..] (two neighbours a word),
/// b[0] = B[2t.., g], b[1] = B[2t + 8.., g], d = D[g, 2t], D[g, 2t + 1], D[g + 8, 2t], D[g + 8, 2t + 1].
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef EMULATED
    struct Words { unsigned w[6]; } mine = {{a[0], a[1], a[2], a[3], b[0], b[1]}};
    unsigned base = emulate::warp() * 32, lane = emulate::lane(), g = lane / 4, t = lane % 4;
    memcpy(emulate::exchange[base + lane], &mine, sizeof mine);
    emulate::warp_wait();
    auto half = [](unsigned word, unsigned k) { return __uint_as_float(k % 2 ? word & 0xffff0000u : word << 16); };
    auto word = [&](unsigned l, int i) { unsigned w; memcpy(&w, emulate::exchange[base + l] + 4 * i, 4); return w; };
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = g + 8 * (i / 2), column = 2 * t + i % 2;
        double sum = 0;
        for (unsigned k = 0; k < 16; k++) {
            unsigned of = (row % 8) * 4 + (k % 8) / 2;
            float x = half(word(of, row / 8 + 2 * (k / 8)), k);
            float y = half(word(column * 4 + (k % 8) / 2, 4 + k / 8), k);
            sum += (double)x * y;
        }
        d[i] += (float)sum;
    }
    emulate::warp_wait();
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#ifdef EMULATED
inline void emulated_ldmatrix(unsigned (&r)[4], const void *row, bool transposed) {
    unsigned base = emulate::warp() * 32, lane = emulate::lane();
    memcpy(emulate::exchange[base + lane], &row, sizeof row);
    emulate::warp_wait();
    auto at = [&](unsigned matrix, unsigned i, unsigned j) {
        const unsigned short *p;
        memcpy(&p, emulate::exchange[base + matrix * 8 + i], sizeof p);
        if ((uintptr_t)p % 16) { fprintf(stderr, "ldmatrix: unaligned row\n"); abort(); }
        return (unsigned)p[j];
    };
    for (unsigned m = 0; m < 4; m++) {
        unsigned g = lane / 4, t = lane % 4;
        r[m] = transposed ? at(m, 2 * t, g) | at(m, 2 * t + 1, g) << 16 : at(m, g, 2 * t) | at(m, g, 2 * t + 1) << 16;
    }
    emulate::warp_wait();
}
#else
__device__ __forceinline__ unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
#endif

/// Four 8 x 8 matrices of bfloat16 from shared memory. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
/// aligned); r[i] = M_i[lane / 4, 2 (lane % 4)..].
__device__ __forceinline__ void ldmatrix4(unsigned (&r)[4], const void *row) {
#ifdef EMULATED
    emulated_ldmatrix(r, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}
/// The same, each matrix transposed: r[i] = M_i[2 (lane % 4).., lane / 4].
__device__ __forceinline__ void ldmatrix4_transposed(unsigned (&r)[4], const void *row) {
#ifdef EMULATED
    emulated_ldmatrix(r, row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

/// Starts to copy 16 bytes to shared memory; zeros instead of what is behind `from` unless `valid`.
__device__ __forceinline__ void copy16(void *shared, const void *from, bool valid = true) {
#ifdef EMULATED
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)from % 16)) { fprintf(stderr, "copy16: unaligned\n"); abort(); }
    if (valid) memcpy(shared, from, 16);
    else memset(shared, 0, 16);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(shared)), "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
                 : "memory");
#endif
}
/// Closes a group of copies.
__device__ __forceinline__ void copy_commit() {
#ifndef EMULATED
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits until at most `pending` groups are under way. Other threads' copies need a barrier besides.
template <int pending> __device__ __forceinline__ void copy_wait() {
#ifndef EMULATED
    asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory");
#endif
}
