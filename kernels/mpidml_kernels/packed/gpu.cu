// Codes of 1, 2 or 4 bits; their meaning is in reference.py. A thread makes or reads one byte: as neighbouring bytes hold neighbouring values, the values that a
// warp touches lie side by side, and so do its bytes.
//
// CuPy has subnormal float32 flushed: a value below the normal numbers counts as 0, of which the sign is positive and the vote a coin's.
#include "device.cuh"

// A byte has 1 << shift values. Values that share a unit are whole groups (or all there are), so their bytes are theirs alone: those of a row of blocks, blockIdx.x.
#define N_BYTES(n, shift) (((n) + (1 << (shift)) - 1) >> (shift))
#define FOR_EACH_BYTE_OF_UNIT(b, shift)                                                                                                          \
    for (Index width = N_BYTES(block, shift), end = min((blockIdx.x + 1) * width, N_BYTES(n, shift)),                                           \
               b = blockIdx.x * width + (Index)blockIdx.y * blockDim.x + threadIdx.x; b < end; b += (Index)gridDim.y * blockDim.x)
// The values i of byte b, and their places k in it. Only the last group has fewer lanes than 64.
#define FOR_EACH_VALUE(i, k, b, shift)                                                                                                           \
    for (Index k = 0, group = ((b) >> 6) << (6 + (shift)), stop = min(group + (64 << (shift)), n), lanes = N_BYTES(stop - group, shift),           \
               i = group + ((b) & 63); k < 1 << (shift) && i < stop; ++k, i += lanes)

__device__ __forceinline__ unsigned draw(unsigned long long key, Index i)
{
    return scrambled(scrambled((unsigned)i + (unsigned)key) ^ (unsigned)(key >> 32));
}
// Codes of 2 bits in two's complement: 1 above a bound, -1 below it.
__device__ __forceinline__ unsigned ternary(bool above, bool below, Index k) { return (above ? 1u : below ? 3u : 0u) << 2 * k; }

extern "C" __global__ void one_bit_encode(const real* __restrict__ x, real* __restrict__ r, long long block, real* __restrict__ units,
                                          unsigned char* __restrict__ codes, long long n, int* __restrict__ flag)
{
    __shared__ real scratch[32];
    real total = 0;
    FOR_EACH_BYTE_OF_UNIT(b, 3)
        FOR_EACH_VALUE(i, k, b, 3)
        {
            const real v = r[i] + x[i];
            r[i] = v;
            total += fabs(v);
        }
    const real unit = block_sum(total, scratch) / (real)min(block, n - blockIdx.x * block);
    FOR_EACH_BYTE_OF_UNIT(b, 3)
    {
        unsigned byte = 0;
        FOR_EACH_VALUE(i, k, b, 3)
        {
            const real v = r[i];
            const bool up = v >= 0;
            byte |= (unsigned)up << k;
            r[i] = v - (up ? unit : -unit);
        }
        codes[b] = (unsigned char)byte;
    }
    if (threadIdx.x == 0) {
        units[blockIdx.x] = unit;
        if (not_finite(unit)) atomicOr(flag, 1);
    }
}

extern "C" __global__ void vote_encode(const real* __restrict__ x, unsigned long long key, unsigned char* __restrict__ codes, long long n, int* __restrict__ flag)
{
    bool bad = false;
    FOR_EACH(b, N_BYTES(n, 3))
    {
        unsigned byte = 0;
        FOR_EACH_VALUE(i, k, b, 3)
        {
            const real v = x[i];
            byte |= (v == 0 ? draw(key, i) >> 31 : (unsigned)(v > 0)) << k;
            bad |= not_finite(v);
        }
        codes[b] = (unsigned char)byte;
    }
    if (bad) atomicOr(flag, 1);
}

extern "C" __global__ void bits_decode_add(const unsigned char* __restrict__ codes, const real* __restrict__ units, long long block, real* __restrict__ out,
                                           long long n)
{
    const real unit = units[blockIdx.x];
    FOR_EACH_BYTE_OF_UNIT(b, 3)
    {
        const unsigned byte = codes[b];
        FOR_EACH_VALUE(i, k, b, 3) out[i] += byte >> k & 1 ? unit : -unit;
    }
}

// sums[j]: what the j-th block of threads finds of v^2.
extern "C" __global__ void two_bit_encode(const real* __restrict__ x, real* __restrict__ r, real threshold, unsigned char* __restrict__ codes,
                                          double* __restrict__ sums, long long n)
{
    __shared__ double scratch[32];
    double total = 0;
    FOR_EACH(b, N_BYTES(n, 2))
    {
        unsigned byte = 0;
        FOR_EACH_VALUE(i, k, b, 2)
        {
            const real v = r[i] + x[i];
            const bool above = v >= threshold, below = v <= -threshold;
            total += (double)v * (double)v;
            byte |= ternary(above, below, k);
            r[i] = v - (above ? threshold : below ? -threshold : (real)0);
        }
        codes[b] = (unsigned char)byte;
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

extern "C" __global__ void adaptive_encode(const real* __restrict__ x, real* __restrict__ r, long long block, real* __restrict__ units,
                                           unsigned char* __restrict__ codes, long long n, int* __restrict__ flag)
{
    __shared__ double scratch[32];
    __shared__ Index counts[32];
    double total = 0;
    FOR_EACH_BYTE_OF_UNIT(b, 2)
        FOR_EACH_VALUE(i, k, b, 2)
        {
            const real v = r[i] + x[i];
            r[i] = v;
            total += (double)fabs(v);
        }
    const real t = (real)(0.7 * block_sum(total, scratch) / (double)min(block, n - blockIdx.x * block));
    Index n_above = 0;
    total = 0;
    FOR_EACH_BYTE_OF_UNIT(b, 2)
    {
        unsigned byte = 0;
        FOR_EACH_VALUE(i, k, b, 2)
        {
            const real v = r[i];
            const bool sent = fabs(v) > t;
            byte |= ternary(v > t, v < -t, k);
            n_above += sent;
            if (sent) total += (double)fabs(v);
        }
        codes[b] = (unsigned char)byte;
    }
    total = block_sum(total, scratch);
    n_above = block_sum(n_above, counts);
    const real unit = (real)(total / (double)max(n_above, 1LL)) + (t - t);  // NaN if a value is not finite
    FOR_EACH_BYTE_OF_UNIT(b, 2)
        FOR_EACH_VALUE(i, k, b, 2)
        {
            const real v = r[i];
            r[i] = v - (v > t ? unit : v < -t ? -unit : (real)0);
        }
    if (threadIdx.x == 0) {
        units[blockIdx.x] = unit;
        if (not_finite(unit)) atomicOr(flag, 1);
    }
}

extern "C" __global__ void stochastic_encode(const real* __restrict__ x, unsigned long long key, long long block, int bits, int euclidean,
                                             real* __restrict__ units, unsigned char* __restrict__ codes, long long n, int* __restrict__ flag)
{
    __shared__ double scratch[32];
    __shared__ real largest_of_warps[32];
    const int shift = bits == 2 ? 2 : 1;
    const real levels = (real)((1 << (bits - 1)) - 1);
    double total = 0;
    real norm = 0;
    FOR_EACH_BYTE_OF_UNIT(b, shift)
        FOR_EACH_VALUE(i, k, b, shift)
        {
            const real v = x[i];
            if (euclidean) total += (double)v * (double)v;
            norm = larger(fabs(v), norm);
        }
    norm = euclidean ? (real)sqrt(block_sum(total, scratch)) : block_max(norm, largest_of_warps);
    const Scale scale = scale_of(norm, levels);
    FOR_EACH_BYTE_OF_UNIT(b, shift)
    {
        unsigned byte = 0;
        FOR_EACH_VALUE(i, k, b, shift)
        {
            const real v = x[i], noise = times((real)(int)(draw(key, i) >> 8), (real)0x1p-24);
            const real level = floor(times(fabs(v), scale.inverse) + noise);
            const int c = (int)(level > levels ? levels : level);
            byte |= ((unsigned)(v < 0 ? -c : c) & ((1u << bits) - 1)) << bits * k;
        }
        codes[b] = (unsigned char)byte;
    }
    if (threadIdx.x == 0) {
        units[blockIdx.x] = scale.unit;
        if (not_finite(scale.unit)) atomicOr(flag, 1);
    }
}

extern "C" __global__ void codes_decode_add(const unsigned char* __restrict__ codes, const real* __restrict__ units, long long block, int bits,
                                            real* __restrict__ out, long long n)
{
    const int shift = bits == 2 ? 2 : 1;
    const real unit = units[blockIdx.x];
    FOR_EACH_BYTE_OF_UNIT(b, shift)
    {
        const unsigned byte = codes[b];
        FOR_EACH_VALUE(i, k, b, shift)
        {
            const int c = (int)(byte << (32 - bits * (k + 1))) >> (32 - bits);  // the sign comes along
            out[i] += times((real)c, unit);
        }
    }
}
