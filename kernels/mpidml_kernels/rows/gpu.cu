// Rows of a table by index; their meaning is in reference.py. Blocks of 8 rows and 32 columns.
//
// Rows are added in the order of the entries that name them. So each entry becomes a key, its row << bits + its place, the keys are sorted, and the
// threads at the first of a row's keys add for all of them: no other writes that row, and the order is that of the places.
#include "device.cuh"

extern "C" __global__ void take(const real* __restrict__ table, const long long* __restrict__ ids, real* __restrict__ out, long long m, long long n)
{
    FOR_EACH_OF_ROWS(i, j, m, n) out[i * n + j] = table[ids[i] * n + j];
}

extern "C" __global__ void put_rows(real* __restrict__ table, const long long* __restrict__ ids, const real* __restrict__ rows, long long m, long long n)
{
    FOR_EACH_OF_ROWS(i, j, m, n) table[ids[i] * n + j] = rows[i * n + j];
}

#define ROW_OF(i, c) (starts[c] + (Index)x[(i) * n_features + columns[c]] - first)

// `table` has rows first to first + n_rows of the whole; the rows of others give 0.
extern "C" __global__ void embed(const real* __restrict__ x, const long long* __restrict__ passed, const long long* __restrict__ columns,
                                 const long long* __restrict__ starts, long long first, const real* __restrict__ table, real* __restrict__ out, long long m,
                                 long long n_features, long long n_passed, long long n_rows, long long n, long long width)
{
    const Index within = (Index)blockIdx.x * 32 + threadIdx.x - n_passed, c = within < 0 ? 0 : within / n;
    FOR_EACH_OF_ROWS(i, j, m, width)
    {
        if (within < 0) {
            out[i * width + j] = x[i * n_features + passed[j]];
        } else {
            const Index row = ROW_OF(i, c);
            out[i * width + j] = row >= 0 && row < n_rows ? table[row * n + within - c * n] : (real)0;
        }
    }
}

// Entry (i, c) has the place i << low + c; one that names a row of others is sorted behind all.
extern "C" __global__ void embed_keys(const real* __restrict__ x, const long long* __restrict__ columns, const long long* __restrict__ starts,
                                      long long first, long long* __restrict__ keys, int bits, int low, long long m, long long n_features,
                                      long long n_columns, long long n_rows)
{
    FOR_EACH(e, m * n_columns)
    {
        const Index i = e / n_columns, c = e - i * n_columns, row = ROW_OF(i, c);
        keys[e] = ((row >= 0 && row < n_rows ? row : n_rows) << bits) + (i << low) + c;
    }
}

extern "C" __global__ void row_keys(const long long* __restrict__ ids, long long* __restrict__ keys, int bits, long long n)
{
    FOR_EACH(i, n) keys[i] = (ids[i] << bits) + i;
}

// Where key i of two neighbouring runs of `run` sorted keys, all different, is when they are one: as many come before it as in its own run, and as are
// below it in the other, which the end of the n keys may cut. run: a power of two.
__device__ __forceinline__ Index merged_place(const long long* keys, Index i, Index run, Index n)
{
    const Index other = (i ^ run) & ~(run - 1), end = other + run < n ? other + run : n;
    return (i & ~run) + first_not_below(keys, other, end, keys[i]) - other;
}

// A block sorts 256 keys.
extern "C" __global__ void sort_tiles(long long* __restrict__ keys, long long n)
{
    __shared__ long long tile[256];
    const Index first = (Index)blockIdx.x * 256, n_here = n - first < 256 ? n - first : 256;
    const int i = threadIdx.x;
    if (i < n_here) tile[i] = keys[first + i];
    __syncthreads();
    for (int run = 1; run < n_here; run *= 2) {
        const long long key = i < n_here ? tile[i] : 0;
        const Index place = i < n_here ? merged_place(tile, i, run, n_here) : 0;
        __syncthreads();  // all have found their places
        if (i < n_here) tile[place] = key;
        __syncthreads();
    }
    if (i < n_here) keys[first + i] = tile[i];
}

extern "C" __global__ void merge_runs(const long long* __restrict__ keys, long long* __restrict__ merged, long long run, long long n)
{
    FOR_EACH(i, n) merged[merged_place(keys, i, run, n)] = keys[i];
}

// Add to each of n_rows rows the pieces of `source` whose sorted keys name it: place p << low + c begins `before` + c n into row p of `width` values.
extern "C" __global__ void add_runs(real* __restrict__ table, const long long* __restrict__ keys, const real* __restrict__ source, int bits, int low,
                                    long long width, long long before, long long n_rows, long long n_keys, long long n)
{
    const long long places = (1LL << bits) - 1, columns = (1LL << low) - 1;
    FOR_EACH_OF_ROWS(e, j, n_keys, n)
    {
        const Index row = keys[e] >> bits;
        if (row >= n_rows || (e && keys[e - 1] >> bits == row)) continue;
        const Index end = end_of_run(keys, e, n_keys, bits);
        real total = table[row * n + j];
#pragma unroll 4  // the loads of four entries are under way at once
        for (Index k = e; k < end; ++k) {
            const Index place = keys[k] & places;
            total += source[(place >> low) * width + before + (place & columns) * n + j];
        }
        table[row * n + j] = total;
    }
}
