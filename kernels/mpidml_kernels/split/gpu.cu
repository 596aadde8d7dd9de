// Layers that are cut over ranks: dropout and cross entropy of a rank's own columns; their meaning is in reference.py. A block takes a row of n outputs.
#include "device.cuh"

extern "C" __global__ void dropout_part(real* __restrict__ x, const long long* __restrict__ ids, const unsigned long long* __restrict__ key, double rate,
                                        long long first, long long m, long long n)
{
    const unsigned limit = (unsigned)(rate * 4294967296.0);
    const real scale = (real)(1 / (1 - rate));
    FOR_EACH_OF_ROWS(i, j, m, n)
    {
        const bool kept = scrambled(counter_of_row(key[0], ids[i]) + (unsigned)(first + j) * 0x9E3779B9u) >= limit;
        x[i * n + j] = kept ? x[i * n + j] * scale : (real)0;
    }
}

extern "C" __global__ void largest_of_rows(const real* __restrict__ z, real* __restrict__ largest, long long n)
{
    __shared__ real scratch[32];
    const real* row = z + blockIdx.x * n;
    real most = (real)__int_as_float(0xff800000);  // -inf
    FOR_EACH_IN_ROW(j, n) most = row[j] > most ? row[j] : most;  // NaN is not
    most = block_max(most, scratch);
    if (threadIdx.x == 0) largest[blockIdx.x] = most;
}

// sums: n_sums rows of m.
extern "C" __global__ void xent_part_sums(real* __restrict__ z, const long long* __restrict__ y, long long first, const real* __restrict__ largest,
                                          const real* __restrict__ weights, double* __restrict__ sums, int n_sums, long long m, long long n)
{
    __shared__ real scratch[32];
    const Index i = blockIdx.x, label = y[i] - first;
    real* row = z + i * n;
    const real most = largest[i];
    real total = 0, below = 0;
    FOR_EACH_IN_ROW(j, n)
    {
        const real away = row[j] - most, e = exp(away);
        if (j == label) sums[m + i] = (double)away;
        if (n_sums > 2) below += weights[first + j] * away;
        row[j] = e;
        total += e;
    }
    total = block_sum(total, scratch);
    below = block_sum(below, scratch);
    if (threadIdx.x) return;
    sums[i] = (double)total;
    if (label < 0 || label >= n) sums[m + i] = 0;
    if (n_sums > 2) sums[2 * m + i] = (double)below;
}

// One block: total[0] = the sum of the weights of all classes.
extern "C" __global__ void sum_weights(const real* __restrict__ weights, double* __restrict__ total, long long n)
{
    __shared__ double scratch[32];
    double own = 0;
    FOR_EACH_IN_ROW(j, n) own += (double)weights[j];
    own = block_sum(own, scratch);
    if (threadIdx.x == 0) total[0] = own;
}

// Every number that goes into losses[i] is the same on all ranks, and so are its bits: it is no sum over the own columns.
extern "C" __global__ void xent_part(real* __restrict__ z, const long long* __restrict__ y, long long first, const double* __restrict__ sums, int n_sums,
                                     const real* __restrict__ weights, const double* __restrict__ total_weight, double smoothing, double spread,
                                     double scale, double* __restrict__ losses, long long m, long long n)
{
    const Index i = blockIdx.x, label = y[i] - first;
    const double own = (1 - smoothing) * (double)weights[y[i]], mass = own + spread * total_weight[0];
    const real factor = (real)(scale * mass / sums[i]), share = (real)(scale * spread), at_label = (real)(scale * own);
    real* row = z + i * n;
    FOR_EACH_IN_ROW(j, n) row[j] = row[j] * factor - share * weights[first + j] - (j == label ? at_label : (real)0);
    if (threadIdx.x == 0) losses[i] = mass * log(sums[i]) - own * sums[m + i] - (n_sums > 2 ? spread * sums[2 * m + i] : 0);
}
