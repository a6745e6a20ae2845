// The optimizer's arithmetic: the norm of the gradient and one AdamW step, each one pass over memory.

/// Numbers that a block squares and sums.
#define BLOCK 16384

/// `partial[b] = sum of squares of block b`.
extern "C" __global__ void squares(const float *x, double *partial, long long len) {
    __shared__ double room[32];
    long long first = (long long)blockIdx.x * BLOCK, end = first + BLOCK < len ? first + BLOCK : len;
    double sum = 0.0;
    for (long long i = first + threadIdx.x; i < end; i += blockDim.x) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

/// `out = sum of partial`; one block.
extern "C" __global__ void finish_squares(const double *partial, double *out, long long len) {
    __shared__ double room[32];
    double sum = 0.0;
    for (long long i = threadIdx.x; i < len; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *out = sum;
}

/// ```text
/// m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2,   g = gradient * scale
/// w = w * keep - rate * m / (sqrt(v) * root + eps),   gradient = 0
/// ```
/// The new weight goes to `copy` too, unless that is null.
extern "C" __global__ void adamw(float *w, float *gradients, float *m, float *v, bf16 *copy, long long len, float keep,
                                 float rate, float root, float beta1, float beta2, float eps, float scale) {
    long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < len; i += stride) {
        float g = gradients[i] * scale;
        gradients[i] = 0.0f;
        float first = beta1 * m[i] + (1.0f - beta1) * g;
        float second = beta2 * v[i] + (1.0f - beta2) * g * g;
        m[i] = first;
        v[i] = second;
        float next = w[i] * keep - rate * first / (sqrtf(second) * root + eps);
        w[i] = next;
        if (copy) copy[i] = narrow(next);
    }
}
