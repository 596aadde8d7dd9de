// Products of a few rows; their meaning is in reference.py. p: k rows of m, q: k rows of n, v: m rows of n.
#include "device.cuh"

// What the blocks of the kernel before found, added up; every thread of a warp gets it.
__device__ __forceinline__ real found_by_blocks(const real* sums, int n_blocks)
{
    real total = 0;
    for (int b = threadIdx.x & 31; b < n_blocks; b += 32) total += sums[b];
    return warp_sum(total);
}

// sums[j * n_blocks + b]: what block b finds of the product of row i with row j, for itself and the rows before it.
__device__ __forceinline__ void leave_products(const real* p, real* sums, int i, Index m, real* scratch)
{
    for (int j = 0; j <= i; ++j) {
        real total = 0;
        FOR_EACH(c, m) total += p[i * m + c] * p[j * m + c];
        total = block_sum(total, scratch);
        if (threadIdx.x == 0) sums[(Index)j * gridDim.x + blockIdx.x] = total;
    }
}
extern "C" __global__ void products_of_row(const real* __restrict__ p, real* __restrict__ sums, int i, long long m)
{
    __shared__ real scratch[32];
    leave_products(p, sums, i, m, scratch);
}

// Takes from row i its part along each row before it, by the products in `before`, and leaves the products of what remains.
//
// All parts are taken from the same row, not one after the other (Gram and Schmidt's way as it was first written): done twice, its rows are orthogonal
// to rounding as well (Giraud et al., 2005), and a row takes four launches however many are before it. A thread keeps to its columns.
extern "C" __global__ void take_parts(real* __restrict__ p, const real* __restrict__ before, real* __restrict__ sums, int i, long long m)
{
    __shared__ real parts[32], scratch[32];
    for (int first = 0; first < i; first += 32) {
        const int n = min(32, i - first);
        __syncthreads();  // the parts' last use is over
        for (int j = threadIdx.x >> 5; j < n; j += blockDim.x >> 5) {
            const real part = found_by_blocks(before + (Index)(first + j) * gridDim.x, gridDim.x);
            if ((threadIdx.x & 31) == 0) parts[j] = part;
        }
        __syncthreads();
        FOR_EACH(c, m)
        {
            real x = p[i * m + c];
            for (int j = 0; j < n; ++j) x -= parts[j] * p[(first + j) * m + c];
            p[i * m + c] = x;
        }
    }
    leave_products(p, sums, i, m, scratch);
}

// Makes row i one long, or 0 where next to nothing of it is left: before and after are squares, found by n blocks.
extern "C" __global__ void make_unit(real* __restrict__ p, const real* __restrict__ before, const real* __restrict__ after, real rounding, int n_blocks, int i,
                                     long long m)
{
    const real was = sqrt(found_by_blocks(before, n_blocks)), norm = sqrt(found_by_blocks(after, n_blocks));
    FOR_EACH(c, m) p[i * m + c] = norm > rounding * was ? p[i * m + c] / norm : (real)0;  // in this form NaN becomes 0
}

// One pass over v; k is so small that p and q are found in the cache.
extern "C" __global__ void add_product(const real* __restrict__ p, const real* __restrict__ q, real sign, real* __restrict__ v, int k, long long m, long long n)
{
    FOR_EACH_OF_ROWS(i, j, m, n)
    {
        real total = 0;
        for (int l = 0; l < k; ++l) total += p[l * m + i] * q[l * n + j];
        v[i * n + j] += sign * total;
    }
}
