// Sums and optimizer steps on flat vectors; their meaning is in reference.py. One pass over memory each, a thread takes every so many-th element.
#include "device.cuh"

extern "C" __global__ void add(real* __restrict__ a, const real* __restrict__ b, long long n)
{
    FOR_EACH(i, n) a[i] += b[i];
}

extern "C" __global__ void add3(real* __restrict__ a, const real* __restrict__ b, const real* __restrict__ c, long long n)
{
    FOR_EACH(i, n) a[i] += b[i] + c[i];
}

extern "C" __global__ void scale(real* __restrict__ a, real s, long long n)
{
    FOR_EACH(i, n) a[i] *= s;
}

extern "C" __global__ void decay_transform(real* __restrict__ g, const real* __restrict__ w, real rate, long long n)
{
    FOR_EACH(i, n) g[i] += rate * w[i];
}

extern "C" __global__ void l1_transform(real* __restrict__ g, const real* __restrict__ w, real rate, long long n)
{
    FOR_EACH(i, n)
    {
        const real x = w[i];
        g[i] += rate * (x > 0 ? (real)1 : x < 0 ? (real)-1 : x);  // in this form NaN passes
    }
}

extern "C" __global__ void clip_transform(real* __restrict__ g, real limit, long long n)
{
    FOR_EACH(i, n)
    {
        const real x = g[i] > limit ? limit : g[i];
        g[i] = x < -limit ? -limit : x;
    }
}

extern "C" __global__ void descend(const real* __restrict__ w, real* __restrict__ out, const real* __restrict__ g, real rate, long long n)
{
    FOR_EACH(i, n) out[i] = w[i] - rate * g[i];
}

extern "C" __global__ void descend_in_place(real* __restrict__ w, const real* __restrict__ g, real rate, long long n)
{
    FOR_EACH(i, n) w[i] -= rate * g[i];
}

extern "C" __global__ void momentum(const real* __restrict__ w, real* __restrict__ out, real* __restrict__ v, const real* __restrict__ g, real rate, real mu, long long n)
{
    FOR_EACH(i, n)
    {
        const real x = mu * v[i] + g[i];
        v[i] = x;
        out[i] = w[i] - rate * x;
    }
}

extern "C" __global__ void momentum_in_place(real* __restrict__ w, real* __restrict__ v, const real* __restrict__ g, real rate, real mu, long long n)
{
    FOR_EACH(i, n)
    {
        const real x = mu * v[i] + g[i];
        v[i] = x;
        w[i] -= rate * x;
    }
}

extern "C" __global__ void momentum_transform(real* __restrict__ v, real* __restrict__ g, real mu, long long n)
{
    FOR_EACH(i, n)
    {
        const real x = mu * v[i] + g[i];
        v[i] = x;
        g[i] = x;
    }
}

extern "C" __global__ void nesterov(const real* __restrict__ w, real* __restrict__ out, real* __restrict__ v, const real* __restrict__ g, real rate, real mu, long long n)
{
    FOR_EACH(i, n)
    {
        const real slope = g[i], x = mu * v[i] + slope;
        v[i] = x;
        out[i] = w[i] - rate * (slope + mu * x);
    }
}

extern "C" __global__ void nesterov_in_place(real* __restrict__ w, real* __restrict__ v, const real* __restrict__ g, real rate, real mu, long long n)
{
    FOR_EACH(i, n)
    {
        const real slope = g[i], x = mu * v[i] + slope;
        v[i] = x;
        w[i] -= rate * (slope + mu * x);
    }
}

extern "C" __global__ void nesterov_transform(real* __restrict__ v, real* __restrict__ g, real mu, long long n)
{
    FOR_EACH(i, n)
    {
        const real slope = g[i], x = mu * v[i] + slope;
        v[i] = x;
        g[i] = slope + mu * x;
    }
}

// The sum of squares of each block's elements; `sum_up` makes one number of them.
extern "C" __global__ void squares_of_blocks(const real* __restrict__ g, double* __restrict__ sums, long long n)
{
    __shared__ double scratch[32];
    double total = 0;
    FOR_EACH(i, n) total += (double)g[i] * (double)g[i];
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// One block: out[0] = the sum of n values, in an order that n and the block's size decide.
extern "C" __global__ void sum_up(const double* __restrict__ values, double* __restrict__ out, int n)
{
    __shared__ double scratch[32];
    double total = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) total += values[i];
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) out[0] = total;
}
