// Layer normalisation; its meaning is in reference.py. A block takes a row of n values.
#include "device.cuh"

extern "C" __global__ void layer_norm(const real* __restrict__ x, const real* __restrict__ gain, const real* __restrict__ bias, double eps,
                                      real* __restrict__ stats, real* __restrict__ out, long long n)
{
    __shared__ real scratch[32];
    const Index i = blockIdx.x;
    const real* row = x + i * n;
    real total = 0, squares = 0;
    FOR_EACH_IN_ROW(j, n) total += row[j];
    const real mean = block_sum(total, scratch) / (real)n;
    FOR_EACH_IN_ROW(j, n)
    {
        const real away = row[j] - mean;
        squares += away * away;
    }
    const real inverse = (real)1 / sqrt(block_sum(squares, scratch) / (real)n + (real)eps);
    FOR_EACH_IN_ROW(j, n) out[i * n + j] = (row[j] - mean) * inverse * gain[j] + bias[j];
    if (threadIdx.x == 0) {
        stats[2 * i] = mean;
        stats[2 * i + 1] = inverse;
    }
}

// A block takes every so many-th of m rows, and leaves in its own row of dgain and dbias what these add up to; the sums of those are dense's.
extern "C" __global__ void layer_norm_backward(real* __restrict__ d, const real* __restrict__ x, const real* __restrict__ stats,
                                               const real* __restrict__ gain, real* __restrict__ dgain, real* __restrict__ dbias, long long m, long long n)
{
    __shared__ real scratch[32];
    real *own_gain = dgain + blockIdx.x * n, *own_bias = dbias + blockIdx.x * n;
    FOR_EACH_IN_ROW(j, n) own_gain[j] = own_bias[j] = 0;
    for (Index i = blockIdx.x; i < m; i += gridDim.x) {
        const real *row = x + i * n, mean = stats[2 * i], inverse = stats[2 * i + 1];
        real *slope = d + i * n, total = 0, along = 0;
        FOR_EACH_IN_ROW(j, n)
        {
            const real s = slope[j], normal = (row[j] - mean) * inverse, v = s * gain[j];
            own_gain[j] += s * normal;
            own_bias[j] += s;
            total += v;
            along += v * normal;
        }
        total = block_sum(total, scratch) / (real)n;
        along = block_sum(along, scratch) / (real)n;
        FOR_EACH_IN_ROW(j, n) slope[j] = (slope[j] * gain[j] - total - (row[j] - mean) * inverse * along) * inverse;
    }
}
