// Losses with their gradient in place, and counts; their meaning is in reference.py. A block takes a row of n outputs, and leaves the row's loss in `sums`.
#include "device.cuh"

#define ROW_OF(z) (z + (Index)blockIdx.x * n)
#define FOR_EACH_OUTPUT(j) for (Index j = threadIdx.x; j < n; j += blockDim.x)

__device__ __forceinline__ real largest_of(const real* row, Index n, real* scratch)
{
    real most = row[0];
    FOR_EACH_OUTPUT(j) most = larger(row[j], most);
    return block_max(most, scratch);
}

extern "C" __global__ void softmax_xent(real* __restrict__ z, const long long* __restrict__ y, real scale, double* __restrict__ sums, long long n)
{
    __shared__ real scratch[32];
    real* row = ROW_OF(z);
    const Index label = y[blockIdx.x];
    const real largest = largest_of(row, n, scratch);
    real total = 0;
    const double at_label = (double)(row[label] - largest);
    __syncthreads();  // the label's output is read
    FOR_EACH_OUTPUT(j)
    {
        row[j] = exp(row[j] - largest);
        total += row[j];
    }
    total = block_sum(total, scratch);
    FOR_EACH_OUTPUT(j) row[j] = (row[j] / total - (j == label ? (real)1 : (real)0)) * scale;
    if (threadIdx.x == 0) sums[blockIdx.x] = log((double)total) - at_label;
}

extern "C" __global__ void weighted_xent(real* __restrict__ z, const long long* __restrict__ y, const real* __restrict__ weights, double smoothing,
                                         double scale, double* __restrict__ sums, long long n)
{
    __shared__ real scratch[32];
    __shared__ double wide[32];
    real* row = ROW_OF(z);
    const Index label = y[blockIdx.x];
    const real largest = largest_of(row, n, scratch);
    real total = 0;
    double mass = 0, along = 0;
    FOR_EACH_OUTPUT(j)
    {
        const real shifted = row[j] - largest;
        const double t = (double)weights[j] * (smoothing / (double)n + (j == label ? 1 - smoothing : 0));
        mass += t;
        if (t != 0) along += t * (double)shifted;  // what has no weight does not count, however far below it lies
        row[j] = exp(shifted);
        total += row[j];
    }
    total = block_sum(total, scratch);
    mass = block_sum(mass, wide);
    along = block_sum(along, wide);
    FOR_EACH_OUTPUT(j)
    {
        const double t = (double)weights[j] * (smoothing / (double)n + (j == label ? 1 - smoothing : 0));
        row[j] = (real)(((double)(row[j] / total) * mass - t) * scale);
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = mass * log((double)total) - along;
}

extern "C" __global__ void hinge(real* __restrict__ z, const long long* __restrict__ y, const real* __restrict__ weights, real margin, double scale,
                                 double* __restrict__ sums, long long n)
{
    __shared__ real scratch[32];
    __shared__ double wide[32];
    real* row = ROW_OF(z);
    const Index label = y[blockIdx.x];
    const double share = (double)weights[label] / (double)n;
    const real at_label = row[label], slope = (real)(share * scale);
    double over = 0;
    real back = 0;
    __syncthreads();  // the label's output is read
    FOR_EACH_OUTPUT(j)
    {
        const real e = j == label ? (real)0 : row[j] - at_label + margin;
        const bool inside = e <= 0;  // NaN is not
        if (!inside) over += (double)e;
        row[j] = inside ? (real)0 : slope;
        back += row[j];
    }
    back = block_sum(back, scratch);
    over = block_sum(over, wide);
    if (threadIdx.x == 0) {
        row[label] = -back;
        sums[blockIdx.x] = share * over;
    }
}

// Whether a row's largest output, the first of equals or the first NaN, is at the label.
extern "C" __global__ void count_largest(const real* __restrict__ z, const long long* __restrict__ y, double* __restrict__ sums, long long n)
{
    __shared__ real scratch[32];
    __shared__ int places[32];
    const real* row = ROW_OF(z);
    const real most = largest_of(row, n, scratch);
    int first = 0x7fffffff;
    for (Index j = threadIdx.x; j < n && first == 0x7fffffff; j += blockDim.x)
        if (row[j] == most || (most != most && row[j] != row[j])) first = (int)j;
    first = -block_max(-first, places);
    if (threadIdx.x == 0) sums[blockIdx.x] = first == (int)y[blockIdx.x] ? 1 : 0;
}

// Whether all of a row's outputs are above 0 where the target is 1, and nowhere else; NaN is never right.
extern "C" __global__ void count_signs(const real* __restrict__ z, const real* __restrict__ t, double* __restrict__ sums, long long n)
{
    const real *row = ROW_OF(z), *target = ROW_OF(t);
    int right = 1;
    FOR_EACH_OUTPUT(j) right &= (row[j] > 0) == (target[j] > (real)0.5) && row[j] == row[j];
    right = __syncthreads_and(right);
    if (threadIdx.x == 0) sums[blockIdx.x] = right;
}

// Losses of values: the sums of blocks of elements, wherever rows end.
extern "C" __global__ void squared_error(real* __restrict__ z, const real* __restrict__ t, real scale, double* __restrict__ sums, long long n)
{
    __shared__ double wide[32];
    double total = 0;
    FOR_EACH(i, n)
    {
        const real e = z[i] - t[i];
        total += 0.5 * (double)e * (double)e;
        z[i] = e * scale;
    }
    total = block_sum(total, wide);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

extern "C" __global__ void huber(real* __restrict__ z, const real* __restrict__ t, real delta, real scale, double* __restrict__ sums, long long n)
{
    __shared__ double wide[32];
    double total = 0;
    FOR_EACH(i, n)
    {
        const real e = z[i] - t[i], c = e < -delta ? -delta : e > delta ? delta : e;
        total += (double)c * ((double)e - 0.5 * (double)c);
        z[i] = c * scale;
    }
    total = block_sum(total, wide);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

extern "C" __global__ void binary_xent(real* __restrict__ z, const real* __restrict__ t, real scale, double* __restrict__ sums, long long n)
{
    __shared__ double wide[32];
    double total = 0;
    FOR_EACH(i, n)
    {
        const real v = z[i], target = t[i], e = exp(-fabs(v));
        total += (double)((v < 0 ? (real)0 : v) - v * target) + log1p((double)e);
        z[i] = ((v < 0 ? e : (real)1) / ((real)1 + e) - target) * scale;
    }
    total = block_sum(total, wide);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}
