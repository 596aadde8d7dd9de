// A few values out of many; their meaning is in reference.py. v = x + r; of float32, numbers below the normal ones are 0 here (-ftz=true), and so are sums.
#include "device.cuh"

typedef unsigned long long Bits;
#define TOP (8 * (int)sizeof(real) - 1)  // bits of a magnitude
#define N_DIGITS 2048

// The bits of |v|: ordered like |v|, infinity above all numbers and NaN above infinity.
__device__ __forceinline__ Bits magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }
__device__ __forceinline__ Bits magnitude(double v) { return (Bits)__double_as_longlong(v) & 0x7fffffffffffffffull; }
__device__ __forceinline__ void take_bits(float* to, Bits bits) { *to = __uint_as_float((unsigned)bits); }
__device__ __forceinline__ void take_bits(double* to, Bits bits) { *to = __longlong_as_double((long long)bits); }

// The sum of what the threads before this one of its block have; `scratch` has 32 values.
template <class V> __device__ __forceinline__ V sum_before(V v, V* scratch)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    V upto = v;
    for (int by = 1; by < 32; by <<= 1) {
        const V below = __shfl_up_sync(EVERY_LANE, upto, by);
        if (lane >= by) upto += below;
    }
    __syncthreads();  // the scratch's last use is over
    if (lane == 31) scratch[warp] = upto;
    __syncthreads();
    V before = upto - v;
    for (int w = 0; w < warp; ++w) before += scratch[w];
    return before;
}

// ---- The k-th magnitude: `width` bits of it a pass, those below bit `high`, from the top. state: the bits that are settled, and how many of the values
// that share them are still to be found.

// Counts the digits of the values that share what is settled.
extern "C" __global__ void count_digits(const real* __restrict__ x, const real* __restrict__ r, const unsigned long long* __restrict__ state,
                                        long long* __restrict__ counts, int high, int width, long long n)
{
    __shared__ unsigned own[N_DIGITS];
    const Bits settled = high < TOP ? state[0] : 0;
    for (int d = threadIdx.x; d < N_DIGITS; d += blockDim.x) own[d] = 0;
    __syncthreads();
    FOR_EACH(i, n)
    {
        const Bits bits = magnitude(x[i] + r[i]);
        if (bits >> high == settled) atomicAdd(&own[(bits >> (high - width)) & ((1u << width) - 1)], 1u);
    }
    __syncthreads();
    for (int d = threadIdx.x; d < N_DIGITS; d += blockDim.x)
        if (own[d]) atomicAdd((unsigned long long*)&counts[d], (unsigned long long)own[d]);
}

// One block of 1024: finds the digit from the counts, of which each thread has two, the larger digits first, and clears them. After the last bit `found`
// is the k-th magnitude, and counts[0] how many of the k are equal to it.
extern "C" __global__ void settle_digit(long long* __restrict__ counts, unsigned long long* __restrict__ state, real* __restrict__ found, long long k, int high,
                                        int width)
{
    __shared__ long long scratch[32];
    const Index left = high < TOP ? (Index)state[1] : k;
    const Bits settled = high < TOP ? state[0] : 0;
    const int digit = N_DIGITS - 1 - 2 * (int)threadIdx.x;
    const Index upper = counts[digit], lower = counts[digit - 1];
    const Index above = sum_before(upper + lower, scratch);
    counts[digit] = counts[digit - 1] = 0;
    __syncthreads();
    if (above >= left || left > above + upper + lower) return;
    const bool is_upper = left <= above + upper;
    const Bits bits = settled << width | (Bits)(is_upper ? digit : digit - 1);
    const Index rest = left - above - (is_upper ? 0 : upper);
    state[0] = bits;
    state[1] = (Bits)rest;
    if (high == width) {
        take_bits(found, bits);
        counts[0] = rest;
    }
}

// ---- Selection: each warp has a stretch of `length` values, 32 at a time. What it finds is counted, then placed behind what the warps before it found.
#define STRETCH_OF_WARP                                                                           \
    const int lane = threadIdx.x & 31;                                                            \
    const Index warp = ((Index)blockIdx.x * blockDim.x + threadIdx.x) >> 5, start = warp * length, end = min(n, start + length);

// Adds x to r. sums: of each warp how many magnitudes are above the threshold, and how many equal to it; nothing: 0, or NaN if a value is not finite.
extern "C" __global__ void count_chosen(const real* __restrict__ x, real* __restrict__ r, real threshold, long long* __restrict__ sums,
                                        real* __restrict__ nothing, long long length, long long n)
{
    STRETCH_OF_WARP
    int above = 0, equal = 0;
    real zero = 0;
    for (Index i = start + lane; i < end; i += 32) {
        const real v = r[i] + x[i];
        r[i] = v;
        above += fabs(v) > threshold;
        equal += fabs(v) == threshold;
        zero += v - v;
    }
    above = warp_sum(above);
    equal = warp_sum(equal);
    zero = warp_sum(zero);
    if (lane == 0) {
        sums[2 * warp] = above;
        sums[2 * warp + 1] = equal;
        nothing[warp] = zero;
    }
}

// One block of 1024: makes of what each of n warps found what those before it did. found: how many values are moved, and whether all were finite.
extern "C" __global__ void place_chosen(long long* __restrict__ sums, const real* __restrict__ nothing, long long* __restrict__ found, long long n_equal,
                                        long long room, int n)
{
    __shared__ long long scratch[32];
    const int each = (n + blockDim.x - 1) / blockDim.x, start = threadIdx.x * each, end = min(n, start + each);
    Index above = 0, equal = 0;
    int finite = 1;
    for (int warp = start; warp < end; ++warp) {
        above += sums[2 * warp];
        equal += sums[2 * warp + 1];
        finite &= nothing[warp] == 0;
    }
    above = sum_before(above, scratch);
    equal = sum_before(equal, scratch);
    for (int warp = start; warp < end; ++warp) {
        const Index own_above = sums[2 * warp], own_equal = sums[2 * warp + 1];
        sums[2 * warp] = above;
        sums[2 * warp + 1] = equal;
        above += own_above;
        equal += own_equal;
    }
    finite = __syncthreads_and(finite);
    if (threadIdx.x == blockDim.x - 1) {  // before whom all lie
        found[0] = min(room, above + min(n_equal, equal));
        found[1] = finite;
    }
}

// Moves what is above the threshold, and the first n_equal of what is equal to it, as far as there is room; what is left of the room becomes 0.
extern "C" __global__ void move_chosen(real* __restrict__ r, const long long* __restrict__ sums, const long long* __restrict__ found, real threshold,
                                       long long n_equal, real* __restrict__ values, unsigned* __restrict__ ids, long long room, long long length, long long n)
{
    STRETCH_OF_WARP
    const unsigned earlier = (1u << lane) - 1;
    Index above = sums[2 * warp], equal = sums[2 * warp + 1];
    for (Index first = start; first < end; first += 32) {
        const Index i = first + lane;
        const real v = i < end ? r[i] : (real)0;
        const bool is_above = i < end && fabs(v) > threshold, is_equal = i < end && fabs(v) == threshold;
        const unsigned all_above = __ballot_sync(EVERY_LANE, is_above), all_equal = __ballot_sync(EVERY_LANE, is_equal);
        const Index equal_before = equal + __popc(all_equal & earlier);
        const Index place = above + __popc(all_above & earlier) + min(n_equal, equal_before);
        if ((is_above || (is_equal && equal_before < n_equal)) && place < room) {
            values[place] = v;
            ids[place] = (unsigned)i;
            r[i] = 0;
        }
        above += __popc(all_above);
        equal += __popc(all_equal);
    }
    const Index n_moved = found[0];
    FOR_EACH(i, room - n_moved)
    {
        values[n_moved + i] = 0;
        ids[n_moved + i] = 0;
    }
}

// ---- Addition at places. `select` leaves them ascending, then zeros for place 0: so no two threads meet. Else each warp sees to some of the places.
__device__ __forceinline__ bool is_rest(const real* values, const unsigned* ids, Index i) { return ids[i] == 0 && values[i] == 0; }

// disorder: of each block whether a place is not above the one before it, or comes after the rest.
extern "C" __global__ void find_disorder(const real* __restrict__ values, const unsigned* __restrict__ ids, int* __restrict__ disorder, long long n)
{
    int found = 0;
    FOR_EACH(i, n)
        if (i > 0 && !is_rest(values, ids, i)) found |= ids[i] <= ids[i - 1] || (i > 1 && is_rest(values, ids, i - 1));
    found = __syncthreads_or(found);
    if (threadIdx.x == 0) disorder[blockIdx.x] = found;
}

extern "C" __global__ void scatter_add(const real* __restrict__ values, const unsigned* __restrict__ ids, real* __restrict__ out,
                                       const int* __restrict__ disorder, long long n)
{
    int found = 0;
    for (int b = threadIdx.x; b < gridDim.x; b += blockDim.x) found |= disorder[b];
    if (!__syncthreads_or(found)) {
        FOR_EACH(i, n)
            if (values[i] != 0) out[ids[i]] += values[i];
        return;
    }
    const unsigned lane = threadIdx.x & 31, warp = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, n_warps = gridDim.x * blockDim.x >> 5;
    for (Index first = 0; first < n; first += 32) {
        const Index i = first + lane;
        unsigned own = __ballot_sync(EVERY_LANE, i < n && ids[i] % n_warps == warp);
        for (; own; own &= own - 1) {  // in the order in which they are given
            if (lane == __ffs(own) - 1) out[ids[i]] += values[i];
            __syncwarp();
        }
    }
}

// sums[b]: how many values of block b are NaN or infinite.
extern "C" __global__ void count_infinite(const real* __restrict__ x, double* __restrict__ sums, long long n)
{
    __shared__ double scratch[32];
    double total = 0;
    FOR_EACH(i, n) total += !(x[i] - x[i] == 0);
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// ---- Strata: n values in k stretches, a thread for each.
// Returns the place drawn from stretch i, and the stretch's length.
__device__ __forceinline__ Index drawn(Bits n, Bits k, Bits i, Bits key, Index* length)
{
    const Bits start = i * n / k;
    *length = (Index)((i + 1) * n / k - start);
    return (Index)(start + (scrambled(scrambled((unsigned)i + (unsigned)key) ^ (unsigned)(key >> 32)) * (Bits)*length >> 32));
}

extern "C" __global__ void strata_move(real* __restrict__ r, unsigned long long key, real* __restrict__ values, long long n, long long k)
{
    Index length;
    FOR_EACH(i, k)
    {
        const Index at = drawn(n, k, i, key, &length);
        values[i] = r[at];
        r[at] = 0;
    }
}

extern "C" __global__ void strata_take(const real* __restrict__ x, unsigned long long key, real* __restrict__ values, long long n, long long k)
{
    Index length;
    FOR_EACH(i, k)
    {
        const Index at = drawn(n, k, i, key, &length);
        values[i] = x[at] * (real)length;
    }
}

extern "C" __global__ void strata_add(const real* __restrict__ values, unsigned long long key, real* __restrict__ out, long long n, long long k)
{
    Index length;
    FOR_EACH(i, k) out[drawn(n, k, i, key, &length)] += values[i];
}
