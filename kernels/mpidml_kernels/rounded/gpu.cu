// Rounding to fewer bits; the meaning is in reference.py, and the codes have the same bits. Each raises the flag if a value is not finite.
//
// CuPy has subnormal float32 flushed: what arithmetic is given, or yields, below the normal numbers counts as 0, and is sent as that. Float64 is not flushed, so
// what lies between it and a subnormal bfloat16 is done by bits and in float64.
#include "device.cuh"

// The bits of the float32 nearest v; a subnormal one is counted in its own unit.
__device__ __forceinline__ unsigned float32_bits(real v)
{
    if (sizeof(real) == 4) return __float_as_uint((float)v);
    const double size = fabs((double)v);
    const unsigned sign = (unsigned)(__double_as_longlong((double)v) >> 32) & 0x80000000u;
    return sign | (size < 0x1p-126 ? (unsigned)rint(times(size, 0x1p149)) : __float_as_uint((float)size));
}

// The same of v within a limit, which is given by its bits: whole numbers are ordered as the magnitudes whose bits they are.
__device__ __forceinline__ unsigned clipped(real v, unsigned limit)
{
    const unsigned bits = float32_bits(v), sign = bits & 0x80000000u;
    return min(bits ^ sign, limit) | sign;
}

__device__ __forceinline__ unsigned bf16_of(real v)
{
    const unsigned bits = clipped(v, 0x7f7f0000u);  // 0x1.fep127
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
__device__ __forceinline__ real from_bf16(unsigned code)
{
    if (sizeof(real) == 4) return __uint_as_float(code << 16);
    const double size = times(__longlong_as_double((long long)(code & 0x7fffu) << 45), 0x1p896);  // exponents count from 1023 there, from 127 here
    return (real)(code & 0x8000u ? -size : size);
}

__device__ __forceinline__ unsigned fp16_of(real v)
{
    const unsigned bits = clipped(v, 0x477fe000u), low = bits & 0x7fffffffu;  // 65504
    const unsigned normal = ((low + 0xfffu + (low >> 13 & 1u)) >> 13) - 0x1c000u;
    const unsigned subnormal = __float_as_uint(__uint_as_float(low) + 0.5f) - 0x3f000000u;  // the sum rounds where a subnormal half does
    return (low < 0x38800000u ? subnormal : normal) | (bits >> 16 & 0x8000u);
}
// Shifted into place, infinity and NaN further up; a subnormal half, which is a normal float32, by a subtraction that leaves its leading zeros behind.
__device__ __forceinline__ real from_fp16(unsigned code)
{
    const unsigned low = (code & 0x7fffu) << 13;
    const unsigned up = low < 0x0f800000u ? 0x38000000u : 0x70000000u;
    const float size = low < 0x00800000u ? __uint_as_float(low + 0x38800000u) - 0x1p-14f : __uint_as_float(low + up);
    return code & 0x8000u ? -size : size;
}

#define ROUND(form)                                  \
    bool bad = false;                                \
    FOR_EACH(i, n)                                   \
    {                                                \
        codes[i] = (unsigned short)form##_of(x[i]);  \
        bad |= not_finite(x[i]);                     \
    }                                                \
    if (bad) atomicOr(flag, 1);
#define ENCODE(form)                                 \
    bool bad = false;                                \
    FOR_EACH(i, n)                                   \
    {                                                \
        const real v = r[i] + x[i];                  \
        const unsigned code = form##_of(v);          \
        codes[i] = (unsigned short)code;             \
        r[i] = v - from_##form(code);                \
        bad |= not_finite(v);                        \
    }                                                \
    if (bad) atomicOr(flag, 1);

extern "C" __global__ void bf16_round(const real* __restrict__ x, unsigned short* __restrict__ codes, long long n, int* __restrict__ flag)
{
    ROUND(bf16)
}
extern "C" __global__ void bf16_encode(const real* __restrict__ x, real* __restrict__ r, unsigned short* __restrict__ codes, long long n, int* __restrict__ flag)
{
    ENCODE(bf16)
}
extern "C" __global__ void bf16_decode_add(const unsigned short* __restrict__ codes, real* __restrict__ out, long long n)
{
    FOR_EACH(i, n) out[i] += from_bf16(codes[i]);
}
extern "C" __global__ void fp16_round(const real* __restrict__ x, unsigned short* __restrict__ codes, long long n, int* __restrict__ flag)
{
    ROUND(fp16)
}
extern "C" __global__ void fp16_encode(const real* __restrict__ x, real* __restrict__ r, unsigned short* __restrict__ codes, long long n, int* __restrict__ flag)
{
    ENCODE(fp16)
}
extern "C" __global__ void fp16_decode_add(const unsigned short* __restrict__ codes, real* __restrict__ out, long long n)
{
    FOR_EACH(i, n) out[i] += from_fp16(codes[i]);
}

// Values that share a unit are one row of blocks of threads, blockIdx.x; a thread meets the same ones in every pass, so what it left in r is its own.
#define FOR_EACH_OF_UNIT(i)                                                                                                                      \
    for (Index begin = blockIdx.x * block, end = begin + min(block, n - begin), i = begin + (Index)blockIdx.y * blockDim.x + threadIdx.x; i < end; \
         i += (Index)gridDim.y * blockDim.x)

extern "C" __global__ void int8_round(const real* __restrict__ x, long long block, real* __restrict__ units, signed char* __restrict__ codes, long long n,
                                      int* __restrict__ flag)
{
    __shared__ real scratch[32];
    real largest = 0;
    FOR_EACH_OF_UNIT(i) largest = larger(fabs(x[i]), largest);
    largest = block_max(largest, scratch);
    const Scale scale = scale_of(largest, 127);
    FOR_EACH_OF_UNIT(i) codes[i] = (signed char)(int)rint(times(x[i], scale.inverse));
    if (threadIdx.x == 0) {
        units[blockIdx.x] = scale.unit;
        if (not_finite(largest)) atomicOr(flag, 1);
    }
}

extern "C" __global__ void int8_encode(const real* __restrict__ x, real* __restrict__ r, long long block, real* __restrict__ units,
                                       signed char* __restrict__ codes, long long n, int* __restrict__ flag)
{
    __shared__ real scratch[32];
    real largest = 0;
    FOR_EACH_OF_UNIT(i)
    {
        const real v = r[i] + x[i];
        r[i] = v;
        largest = larger(fabs(v), largest);
    }
    largest = block_max(largest, scratch);
    const Scale scale = scale_of(largest, 127);
    FOR_EACH_OF_UNIT(i)
    {
        const real v = r[i], c = rint(times(v, scale.inverse));
        codes[i] = (signed char)(int)c;
        r[i] = v - times(c, scale.unit);
    }
    if (threadIdx.x == 0) {
        units[blockIdx.x] = scale.unit;
        if (not_finite(largest)) atomicOr(flag, 1);
    }
}

extern "C" __global__ void int8_decode_add(const signed char* __restrict__ codes, const real* __restrict__ units, long long block, real* __restrict__ out,
                                           long long n)
{
    const real unit = units[blockIdx.x];
    FOR_EACH_OF_UNIT(i) out[i] += times((real)codes[i], unit);
}
