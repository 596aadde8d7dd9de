// Bias, activations and dropout of fully connected layers; their meaning is in reference.py. m rows of n, blocks of 8 rows and 32 columns.
#include "device.cuh"

__device__ __forceinline__ real sigmoid(real v) { return (real)0.5 * tanh((real)0.5 * v) + (real)0.5; }  // in this form nothing overflows
__device__ __forceinline__ real bounded(real z) { return z < (real)-10 ? (real)-10 : z > (real)10 ? (real)10 : z; }
__device__ __forceinline__ real gate(real z)
{
    return (real)1 / ((real)1 + exp(z * ((real)-1.5957691216057308 - (real)0.07135481627260025 * z * z)));  // 2 sqrt(2 / pi), and 0.044715 times that
}

#define ACTIVATE(activated)              \
    FOR_EACH_OF_ROWS(i, j, m, n)         \
    {                                    \
        const real v = z[i * n + j] + b[j]; \
        z[i * n + j] = activated;        \
    }
extern "C" __global__ void bias_linear(real* __restrict__ z, const real* __restrict__ b, long long m, long long n)
{
    ACTIVATE(v)
}
extern "C" __global__ void bias_relu(real* __restrict__ z, const real* __restrict__ b, long long m, long long n)
{
    ACTIVATE(v < 0 ? (real)0 : v)  // in this form NaN passes
}
extern "C" __global__ void bias_tanh(real* __restrict__ z, const real* __restrict__ b, long long m, long long n)
{
    ACTIVATE(tanh(v))
}
extern "C" __global__ void bias_sigmoid(real* __restrict__ z, const real* __restrict__ b, long long m, long long n)
{
    ACTIVATE(sigmoid(v))
}
extern "C" __global__ void bias_leaky_relu(real* __restrict__ z, const real* __restrict__ b, long long m, long long n)
{
    ACTIVATE(v > 0 ? v : (real)0.01 * v)
}
extern "C" __global__ void bias_softplus(real* __restrict__ z, const real* __restrict__ b, long long m, long long n)
{
    ACTIVATE((v < 0 ? (real)0 : v) + log1p(exp(-fabs(v))))
}

extern "C" __global__ void bias_gelu(real* __restrict__ z, const real* __restrict__ b, real* __restrict__ a, long long m, long long n)
{
    FOR_EACH_OF_ROWS(i, j, m, n)
    {
        const real v = z[i * n + j] + b[j];
        z[i * n + j] = v;
        a[i * n + j] = v * gate(bounded(v));
    }
}

// sums[k, j]: what the k-th row of blocks finds in column j; `add_up_columns` makes gb of them.
#define SUM_COLUMNS(value)                                                                 \
    __shared__ real scratch[256];                                                          \
    const Index column = (Index)blockIdx.x * 32 + threadIdx.x;                             \
    real total = 0;                                                                        \
    FOR_EACH_OF_ROWS(i, j, m, n) total += value;                                           \
    total = column_sum(total, scratch);                                                    \
    if (threadIdx.y == 0 && column < n) sums[blockIdx.y * n + column] = total;
#define UNDO(slope) (d[i * n + j] = undone_##slope(d[i * n + j], a[i * n + j]))

extern "C" __global__ void linear_backward(const real* __restrict__ d, real* __restrict__ sums, long long m, long long n)
{
    SUM_COLUMNS(d[i * n + j])
}

__device__ __forceinline__ real undone_relu(real v, real known) { return known <= 0 ? (real)0 : v; }
extern "C" __global__ void relu_backward(real* __restrict__ d, const real* __restrict__ a, real* __restrict__ sums, long long m, long long n)
{
    SUM_COLUMNS(UNDO(relu))
}

__device__ __forceinline__ real undone_tanh(real v, real known) { return v * ((real)1 - known * known); }
extern "C" __global__ void tanh_backward(real* __restrict__ d, const real* __restrict__ a, real* __restrict__ sums, long long m, long long n)
{
    SUM_COLUMNS(UNDO(tanh))
}

__device__ __forceinline__ real undone_sigmoid(real v, real known) { return v * (known * ((real)1 - known)); }
extern "C" __global__ void sigmoid_backward(real* __restrict__ d, const real* __restrict__ a, real* __restrict__ sums, long long m, long long n)
{
    SUM_COLUMNS(UNDO(sigmoid))
}

__device__ __forceinline__ real undone_leaky_relu(real v, real known) { return known <= 0 ? (real)0.01 * v : v; }
extern "C" __global__ void leaky_relu_backward(real* __restrict__ d, const real* __restrict__ a, real* __restrict__ sums, long long m, long long n)
{
    SUM_COLUMNS(UNDO(leaky_relu))
}

__device__ __forceinline__ real undone_softplus(real v, real known) { return v * -expm1(-known); }
extern "C" __global__ void softplus_backward(real* __restrict__ d, const real* __restrict__ a, real* __restrict__ sums, long long m, long long n)
{
    SUM_COLUMNS(UNDO(softplus))
}

__device__ __forceinline__ real undone_gelu(real v, real known)
{
    const real w = bounded(known), g = gate(w);
    return v * (g + w * g * ((real)1 - g) * ((real)1.5957691216057308 + (real)(3 * 0.07135481627260025) * w * w));
}
extern "C" __global__ void gelu_backward(real* __restrict__ d, const real* __restrict__ a, real* __restrict__ sums, long long m, long long n)
{
    SUM_COLUMNS(UNDO(gelu))
}

// out[j] = the sum of k rows of sums, in their order.
extern "C" __global__ void add_up_columns(const real* __restrict__ sums, real* __restrict__ out, long long k, long long n)
{
    FOR_EACH(j, n)
    {
        real total = 0;
        for (Index i = 0; i < k; ++i) total += sums[i * n + j];
        out[j] = total;
    }
}

extern "C" __global__ void dropout(const real* __restrict__ x, const long long* __restrict__ ids, const unsigned long long* __restrict__ key,
                                   double rate, real* __restrict__ out, long long m, long long n)
{
    const unsigned limit = (unsigned)(rate * 4294967296.0);
    const real scale = (real)(1 / (1 - rate));
    FOR_EACH_OF_ROWS(i, j, m, n)
    {
        const bool kept = scrambled(counter_of_row(key[0], ids[i]) + (unsigned)j * 0x9E3779B9u) >= limit;
        out[i * n + j] = kept ? x[i * n + j] * scale : (real)0;
    }
}

extern "C" __global__ void dropout_in_place(real* __restrict__ x, const long long* __restrict__ ids, const unsigned long long* __restrict__ key,
                                            double rate, long long m, long long n)
{
    const unsigned limit = (unsigned)(rate * 4294967296.0);
    const real scale = (real)(1 / (1 - rate));
    FOR_EACH_OF_ROWS(i, j, m, n)
    {
        const bool kept = scrambled(counter_of_row(key[0], ids[i]) + (unsigned)j * 0x9E3779B9u) >= limit;
        x[i * n + j] = kept ? x[i * n + j] * scale : (real)0;
    }
}

// The tile of 16 by 32 that begins at (l0, r0) of what has `depth` along the sum and `n` across; `along`: neighbours in memory are along the sum.
__device__ __forceinline__ void take_tile(real (*tile)[36], const real* __restrict__ source, Index l0, Index r0, Index depth, Index n, int along)
{
    for (int e = threadIdx.y * 32 + threadIdx.x; e < 16 * 32; e += 256) {
        const int l = along ? e % 16 : e / 32, r = along ? e / 16 : e % 32;
        const bool within = l0 + l < depth && r0 + r < n;
        tile[l][r] = within ? source[along ? (r0 + r) * depth + l0 + l : (l0 + l) * n + r0 + r] : (real)0;
    }
}

// out (m, n) = a b, or += with `adds`: a (m, k), or (k, m) where it is turned; b (k, n), or (n, k). A block makes 32 by 32 of it, a thread four of a column.
// Rows of blocks share the sum: the y-th leaves its part of it in out[y], the first with what is there `before`; `add_up_columns` makes the whole of them.
// (`before` is only read, and not const, since it may be `out`.)
extern "C" __global__ void product(const real* __restrict__ a, const real* __restrict__ b, real* before, real* out, long long m, long long k,
                                   long long n, int a_turned, int b_turned, int adds)
{
    __shared__ __align__(16) real left[16][36], right[16][36];  // whole vectors of four
    const Index across = (n + 31) / 32, i0 = blockIdx.x / across * 32, j0 = blockIdx.x % across * 32;
    const Index span = ((k + gridDim.y - 1) / gridDim.y + 15) / 16 * 16, first = blockIdx.y * span, last = first + span < k ? first + span : k;
    real sums[4] = {0, 0, 0, 0};
    for (Index l0 = first; l0 < last; l0 += 16) {
        take_tile(left, a, l0, i0, k, m, !a_turned);
        take_tile(right, b, l0, j0, k, n, b_turned);
        __syncthreads();
        for (int l = 0; l < 16; ++l)
            for (int r = 0; r < 4; ++r) sums[r] += left[l][4 * threadIdx.y + r] * right[l][threadIdx.x];
        __syncthreads();  // before the next tiles come
    }
    const Index j = j0 + threadIdx.x;
    for (int r = 0; r < 4; ++r)
        if (const Index i = i0 + 4 * threadIdx.y + r; i < m && j < n)
            out[(blockIdx.y * m + i) * n + j] = adds && blockIdx.y == 0 ? before[i * n + j] + sums[r] : sums[r];
}
