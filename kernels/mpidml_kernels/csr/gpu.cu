// Products with sparse rows, and the choice of some; their meaning is in reference.py.
#include "device.cuh"

extern "C" __global__ void csr_matmul(const long long* __restrict__ starts, const int* __restrict__ columns, const real* __restrict__ values,
                                      const real* __restrict__ table, real* __restrict__ out, long long m, long long n)
{
    FOR_EACH_OF_ROWS(i, c, m, n)
    {
        const Index end = starts[i + 1];
        real total = 0;
#pragma unroll 4  // the loads of four values are under way at once
        for (Index j = starts[i]; j < end; ++j) total += values[j] * table[columns[j] * n + c];
        out[i * n + c] = total;
    }
}

// Of each of k stored values its row, and a key: its column << bits + its place. What is not of the m rows is sorted behind all.
extern "C" __global__ void value_keys(const long long* __restrict__ starts, const int* __restrict__ columns, long long* __restrict__ rows,
                                      long long* __restrict__ keys, int bits, long long n_columns, long long m, long long k)
{
    FOR_EACH(j, k)
    {
        const Index i = first_not_below(starts, 0, m + 1, j + 1) - 1;  // the last row that does not begin behind j: it is not empty
        rows[j] = i;
        keys[j] = ((i >= 0 && i < m ? (Index)columns[j] : n_columns) << bits) + j;
    }
}

// The threads at the first of a column's sorted keys add for all of them, in the order of their places.
extern "C" __global__ void csr_matmul_backward(const long long* __restrict__ keys, const long long* __restrict__ rows, const real* __restrict__ values,
                                               const real* __restrict__ d, real* __restrict__ g, int bits, long long n_columns, long long k, long long n)
{
    FOR_EACH_OF_ROWS(e, c, k, n)
    {
        const Index column = keys[e] >> bits;
        if (column >= n_columns || (e && keys[e - 1] >> bits == column)) continue;
        const Index end = end_of_run(keys, e, k, bits);
        real total = g[column * n + c];
#pragma unroll 4
        for (Index at = e; at < end; ++at) {
            const Index j = keys[at] & ((1LL << bits) - 1);
            total += values[j] * d[rows[j] * n + c];
        }
        g[column * n + c] = total;
    }
}

// ---- csr_take. The columns are numbered by the places of the values where they first occur, so the order of threads does not show.
__device__ __forceinline__ Index warp_scan(Index v)
{
    for (int by = 1; by < 32; by *= 2) {
        const Index below = __shfl_up_sync(EVERY_LANE, v, by);
        if ((threadIdx.x & 31) >= by) v += below;
    }
    return v;
}
// The sum over the threads of a block up to this one, and `total` over all; `scratch` has 32 values.
__device__ __forceinline__ Index block_scan(Index v, Index* scratch, Index& total)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n_warps = blockDim.x >> 5;
    v = warp_scan(v);
    __syncthreads();  // the scratch's last use is over
    if (lane == 31) scratch[warp] = v;
    __syncthreads();
    const Index sums = warp_scan(lane < n_warps ? scratch[lane] : 0), before = __shfl_sync(EVERY_LANE, sums, warp ? warp - 1 : 0);
    total = __shfl_sync(EVERY_LANE, sums, 31);
    return warp ? before + v : v;
}

// One block: each of n values becomes the sum of those up to it.
extern "C" __global__ void scan(long long* __restrict__ values, long long n)
{
    __shared__ Index scratch[32];
    Index before = 0, total;
    for (Index first = 0; first < n; first += blockDim.x) {
        const Index i = first + threadIdx.x, sum = block_scan(i < n ? values[i] : 0, scratch, total);
        if (i < n) values[i] = before + sum;
        before += total;
    }
}

// lengths[0] = 0, and behind it how many values each of m listed rows has: `scan` makes starts of them.
extern "C" __global__ void lengths_of_rows(const long long* __restrict__ starts, const long long* __restrict__ rows, long long* __restrict__ lengths,
                                           long long m)
{
    FOR_EACH(i, m + 1) lengths[i] = i ? starts[rows[i - 1] + 1] - starts[rows[i - 1]] : 0;
}

// A warp copies a row. number[column]: the least place where the column occurs; as unsigned, -1 is above all.
extern "C" __global__ void copy_rows(const long long* __restrict__ starts, const int* __restrict__ columns, const real* __restrict__ values,
                                     const long long* __restrict__ rows, const long long* __restrict__ out_starts, int* __restrict__ out_columns,
                                     real* __restrict__ out_values, int* __restrict__ number, long long m)
{
    for (Index i = (Index)blockIdx.x * 8 + threadIdx.y; i < m; i += (Index)gridDim.x * 8) {
        const Index from = starts[rows[i]] - out_starts[i];
        for (Index at = out_starts[i] + threadIdx.x; at < out_starts[i + 1]; at += 32) {
            const int column = columns[from + at];
            out_columns[at] = column;
            out_values[at] = values[from + at];
            atomicMin((unsigned*)number + column, (unsigned)at);
        }
    }
}

// The places of the out_starts[m] values are cut into as many pieces as there are blocks, by the most that there may be.
#define PIECE(lo, hi)                                                                           \
    const Index piece = ((Index)most + gridDim.x - 1) / gridDim.x, lo = blockIdx.x * piece, \
                hi = lo + piece < out_starts[m] ? lo + piece : out_starts[m];

// firsts[at]: the place where the column of place `at` first occurs; counts: how many columns first occur in a block's piece.
extern "C" __global__ void find_firsts(const int* __restrict__ number, const long long* __restrict__ out_starts, const int* __restrict__ out_columns,
                                       int* __restrict__ firsts, long long* __restrict__ counts, long long m, int most)
{
    __shared__ int scratch[32];
    PIECE(lo, hi)
    int count = 0;
    for (Index at = lo + threadIdx.x; at < hi; at += blockDim.x) {
        firsts[at] = number[out_columns[at]];
        count += firsts[at] == at;
    }
    count = block_sum(count, scratch);
    if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

// counts: of the pieces up to each. Where a column first occurs, it is written to `ids`, its number to `found`, and -1 to number[column] again.
extern "C" __global__ void number_columns(const long long* __restrict__ out_starts, const int* __restrict__ out_columns, const int* __restrict__ firsts,
                                          const long long* __restrict__ counts, long long* __restrict__ ids, int* __restrict__ found,
                                          int* __restrict__ number, long long m, int most)
{
    __shared__ Index scratch[32];
    PIECE(lo, hi)
    Index before = blockIdx.x ? counts[blockIdx.x - 1] : 0, total;
    for (Index begin = lo; begin < hi; begin += blockDim.x) {
        const Index at = begin + threadIdx.x;
        const bool is_first = at < hi && firsts[at] == at;
        const Index k = before + block_scan(is_first, scratch, total) - 1;
        if (is_first) {
            ids[k] = out_columns[at];
            found[at] = (int)k;
            number[out_columns[at]] = -1;
        }
        before += total;
    }
}

extern "C" __global__ void renumber(const long long* __restrict__ out_starts, const int* __restrict__ firsts, const int* __restrict__ found,
                                    int* __restrict__ out_columns, long long m)
{
    FOR_EACH(at, out_starts[m]) out_columns[at] = found[firsts[at]];
}
