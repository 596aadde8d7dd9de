// What the kernel files share. Each file is compiled twice, for REAL float and double. Compiles with NVRTC (no standard header), nvcc and, for tests, g++.
#pragma once
#ifndef MPIDML_CPU_SHIM
#define MPIDML_DYNAMIC_SHARED(TYPE, name)                                \
    extern __shared__ __align__(16) unsigned char mpidml_dynamic_shared[]; \
    TYPE* name = reinterpret_cast<TYPE*>(mpidml_dynamic_shared)
#endif

typedef REAL real;  // a macro for the option alone: its name must not meet one in the compiler's own headers
typedef long long Index;  // products of sizes pass 2^31
#define FOR_EACH(i, n) for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x, i##_step = (Index)gridDim.x * blockDim.x; i < (n); i += i##_step)
// Elements (i, j) of m rows of n: blocks of 32 columns and 8 rows, so that a warp reads one piece of a row.
#define FOR_EACH_OF_ROWS(i, j, m, n)                                                  \
    if (const Index j = (Index)blockIdx.x * 32 + threadIdx.x; j < (n))                 \
        for (Index i = (Index)blockIdx.y * 8 + threadIdx.y; i < (m); i += (Index)gridDim.y * 8)
#define EVERY_LANE 0xffffffffu

// Sums over a block whose size is a multiple of 32, in an order that its size alone decides; every thread gets them. `scratch` has 32 values.
template <class V> __device__ __forceinline__ V warp_sum(V v)
{
    for (int by = 16; by > 0; by >>= 1) v += __shfl_xor_sync(EVERY_LANE, v, by);
    return v;
}
template <class V> __device__ __forceinline__ V block_sum(V v, V* scratch)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    v = warp_sum(v);
    __syncthreads();  // the scratch's last use is over
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    return warp_sum(lane < n_warps ? scratch[lane] : (V)0);
}

// The largest of a block, NaN if there is one; every thread gets it.
template <class V> __device__ __forceinline__ V larger(V a, V b) { return a > b || a != a ? a : b; }
template <class V> __device__ __forceinline__ V warp_max(V v)
{
    for (int by = 16; by > 0; by >>= 1) v = larger(v, __shfl_xor_sync(EVERY_LANE, v, by));
    return v;
}
template <class V> __device__ __forceinline__ V block_max(V v, V* scratch)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    return warp_max(scratch[lane < n_warps ? lane : 0]);
}

// The sum of what the 8 rows of a block of 32 columns have, for each column; the threads of the first row get it. `scratch` has 256 values.
template <class V> __device__ __forceinline__ V column_sum(V v, V* scratch)
{
    __syncthreads();
    scratch[threadIdx.y * 32 + threadIdx.x] = v;
    __syncthreads();
    if (threadIdx.y == 0)
        for (int row = 1; row < 8; ++row) v += scratch[row * 32 + threadIdx.x];
    return v;
}

// Scrambles 32 bits, one to one ("lowbias32", C. Wellons, Prospecting for Hash Functions, 2018).
__device__ __forceinline__ unsigned scrambled(unsigned x)
{
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}
// Of the sample `id`, what is scrambled with a column's number to decide whether it is kept.
__device__ __forceinline__ unsigned counter_of_row(unsigned long long key, long long id)
{
    const unsigned row = scrambled((unsigned)id + (unsigned)key);
    return scrambled((row ^ (unsigned)(id >> 32)) + (unsigned)(key >> 32));
}

// The elements j of a row of n that a block takes together.
#define FOR_EACH_IN_ROW(j, n) for (Index j = threadIdx.x; j < (n); j += blockDim.x)

// The first place from lo to hi of sorted values that holds none below `key`; hi if all are.
__device__ __forceinline__ Index first_not_below(const long long* values, Index lo, Index hi, long long key)
{
    while (lo < hi) {
        const Index middle = (lo + hi) / 2;
        if (values[middle] < key) lo = middle + 1;
        else hi = middle;
    }
    return lo;
}

// Of n sorted keys, a row's number above `bits` bits: where the run of keys of one row ends that holds `last`; few steps for a short run.
__device__ __forceinline__ Index end_of_run(const long long* keys, Index last, Index n, int bits)
{
    const long long row = keys[last] >> bits;
    Index step = 1;
    for (; last + step < n && keys[last + step] >> bits == row; step *= 2) last += step;
    while (step /= 2)
        if (last + step < n && keys[last + step] >> bits == row) last += step;
    return last + 1;
}

// What codes are made with. What one side subtracts must be what another adds, to the bit: so a product is rounded by itself, never fused with a sum.
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ bool not_finite(real v) { return !(v - v == 0); }
// The unit of which `steps` make a norm, and what values are multiplied by to count in it; both 0 where one would be no normal number.
struct Scale { real unit, inverse; };
__device__ __forceinline__ Scale scale_of(real norm, real steps)
{
    if (norm < (real)(sizeof(real) == 4 ? 0x1p-119 : 0x1p-1015)) return {0, 0};
    return {norm / steps, steps / norm};
}
