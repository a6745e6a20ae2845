// Numbers of one type written as those of the other. Threads walk over the places with the stride of the grid.

// out[i] = in[i] as f32.
extern "C" __global__ void widen_bf16(float *out, const unsigned short *in, long long n) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        out[i] = __uint_as_float((unsigned)in[i] << 16);
    }
}

// The bits of the bfloat16 nearest to x, ties to even; NaN stays NaN.
static __device__ unsigned short nearest_bf16(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (unsigned short)((bits >> 16) | 0x40u);
    }
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// out[i] = in[i] as bfloat16.
extern "C" __global__ void narrow_f32(unsigned short *out, const float *in, long long n) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        out[i] = nearest_bf16(in[i]);
    }
}

// out[i] = value.
extern "C" __global__ void fill_f32(float *out, float value, long long n) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        out[i] = value;
    }
}
