// Run CUDA C kernels on the CPU: the language for g++. What is not listed here does not compile, on purpose.
//
// A kernel file is compiled unchanged behind this header. Each CUDA thread of a block is a fiber on one thread of the process, and a block ends before
// the next one begins (runtime.cpp). In a checked build the kernel is compiled with -fsanitize=thread, but linked with the runtime's own __tsan_* hooks
// in place of libtsan, so every load and store is looked at: bounds, races, shared memory that nobody wrote.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define MPIDML_CPU_SHIM 1
#define SHIM_OWN __attribute__((no_sanitize("thread")))  // the shim's code is not looked at
#define SHIM_CALL SHIM_OWN __attribute__((noinline))
#define SHIM_PC __builtin_return_address(0)

// ---- words of the language
#define __global__ inline  // so one that is not exported is not compiled
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("shim_shared")))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(16) double2 { double x, y; };
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static const int warpSize = 32;

// ---- what the runtime does
namespace shim {
struct Buffer { void* start; uint64_t nbytes; uint32_t itemsize, writable; const char* name; };
struct Launch {
    uint32_t grid[3], block[3], dynamic_shared;
    int32_t order;
    uint64_t seed;
    int32_t flush_subnormals, n_buffers;
    const Buffer* buffers;
    char* error;
    int32_t error_size;
    uint64_t error_pc, nbytes_read, nbytes_written, n_barriers, n_warp_operations, shared_nbytes;
};
enum { ANY = 1, ALL, COUNT };
enum { DOWN = 1, UP, XOR, FROM, BALLOT, SYNC };

char* dynamic_shared();
int run(Launch* launch, void (*entry)(void*), void* arguments);
int sync_block(int line, int operation, int predicate);
uint64_t shuffle(unsigned mask, uint64_t bits, int kind, int by, int width, const void* pc);
unsigned ballot(unsigned mask, int predicate, const void* pc);
void sync_warp(unsigned mask, const void* pc);
void touch_atomic(const void* where, unsigned size, const void* pc);

template <class V> SHIM_OWN inline V shuffled(unsigned mask, V value, int kind, int by, int width, const void* pc)
{
    static_assert(sizeof(V) == 4 || sizeof(V) == 8, "a shuffle moves 4 or 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = shuffle(mask, bits, kind, by, width, pc);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
template <size_t... I> struct Places {};
template <class... A> struct Call {
    void (*kernel)(A...);
    void** arguments;
    template <size_t... I> SHIM_OWN void with(Places<I...>) { kernel(*(A*)arguments[I]...); }
    SHIM_OWN static void go(void* self) { ((Call*)self)->with(Places<__integer_pack(sizeof...(A))...>{}); }
};
template <class... A> SHIM_OWN int launch(void (*kernel)(A...), Launch* how, void** arguments)
{
    Call<A...> call{kernel, arguments};
    return run(how, &Call<A...>::go, &call);
}
}  // namespace shim

#define SHIM_EXPORT(K) \
    extern "C" SHIM_OWN __attribute__((visibility("default"))) int shim_launch_##K(shim::Launch* how, void** a) { return shim::launch(&K, how, a); }
// `extern __shared__` is no macro: kernels write MPIDML_DYNAMIC_SHARED(T, name), which device.cuh defines for real compilers.
#define MPIDML_DYNAMIC_SHARED(TYPE, name) TYPE* name = reinterpret_cast<TYPE*>(shim::dynamic_shared())

// ---- barriers, warps, atomics
#define __syncthreads() ((void)shim::sync_block(__LINE__, 0, 0))
#define __syncthreads_or(p) shim::sync_block(__LINE__, shim::ANY, (p))
#define __syncthreads_and(p) shim::sync_block(__LINE__, shim::ALL, (p))
#define __syncthreads_count(p) shim::sync_block(__LINE__, shim::COUNT, (p))
SHIM_CALL inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::sync_warp(mask, SHIM_PC); }
#define SHIM_SHUFFLE(NAME, KIND) \
    template <class V> SHIM_CALL V NAME(unsigned mask, V value, int by, int width = 32) { return shim::shuffled(mask, value, KIND, by, width, SHIM_PC); }
SHIM_SHUFFLE(__shfl_down_sync, shim::DOWN)
SHIM_SHUFFLE(__shfl_up_sync, shim::UP)
SHIM_SHUFFLE(__shfl_xor_sync, shim::XOR)
SHIM_SHUFFLE(__shfl_sync, shim::FROM)
SHIM_CALL inline unsigned __ballot_sync(unsigned mask, int p) { return shim::ballot(mask, p, SHIM_PC); }
SHIM_CALL inline int __any_sync(unsigned mask, int p) { return shim::ballot(mask, p, SHIM_PC) != 0; }
SHIM_CALL inline int __all_sync(unsigned mask, int p) { return shim::ballot(mask, p, SHIM_PC) == mask; }

#define SHIM_ATOMIC(NAME, V, NEW) \
    SHIM_CALL inline V NAME(V* at, V v) \
    { \
        shim::touch_atomic(at, sizeof(V), SHIM_PC); \
        V old = *at; \
        *at = (NEW); \
        return old; \
    }
#define SHIM_ATOMICS(V) \
    SHIM_ATOMIC(atomicAdd, V, old + v) \
    SHIM_ATOMIC(atomicMin, V, old < v ? old : v) \
    SHIM_ATOMIC(atomicMax, V, old > v ? old : v) \
    SHIM_ATOMIC(atomicExch, V, v) \
    SHIM_ATOMIC(atomicOr, V, old | v) \
    SHIM_ATOMIC(atomicAnd, V, old & v)
SHIM_ATOMICS(int)
SHIM_ATOMICS(unsigned)
SHIM_ATOMICS(unsigned long long)
SHIM_ATOMIC(atomicAdd, float, old + v)
SHIM_ATOMIC(atomicAdd, double, old + v)
#define SHIM_CAS(V) \
    SHIM_CALL inline V atomicCAS(V* at, V expected, V v) \
    { \
        shim::touch_atomic(at, sizeof(V), SHIM_PC); \
        V old = *at; \
        if (old == expected) *at = v; \
        return old; \
    }
SHIM_CAS(int)
SHIM_CAS(unsigned)
SHIM_CAS(unsigned long long)

// ---- functions of real numbers; <math.h> is not included, since to read C++'s takes longer than to compile most kernels
#define SHIM_REAL_FUNCTION(NAME) \
    extern "C" double NAME(double) noexcept; \
    static inline float NAME(float a) { return __builtin_##NAME##f(a); }
SHIM_REAL_FUNCTION(exp)
SHIM_REAL_FUNCTION(expm1)
SHIM_REAL_FUNCTION(fabs)
SHIM_REAL_FUNCTION(floor)
SHIM_REAL_FUNCTION(log)
SHIM_REAL_FUNCTION(log1p)
SHIM_REAL_FUNCTION(rint)
SHIM_REAL_FUNCTION(sqrt)
SHIM_REAL_FUNCTION(tanh)

// ---- bits and arithmetic
template <class To, class From> SHIM_OWN inline To shim_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "bits of another size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
static inline int __float_as_int(float f) { return shim_bits<int>(f); }
static inline unsigned __float_as_uint(float f) { return shim_bits<unsigned>(f); }
static inline float __int_as_float(int i) { return shim_bits<float>(i); }
static inline float __uint_as_float(unsigned i) { return shim_bits<float>(i); }
static inline long long __double_as_longlong(double d) { return shim_bits<long long>(d); }
static inline double __longlong_as_double(long long i) { return shim_bits<double>(i); }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
static inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline double __dsqrt_rn(double a) { return __builtin_sqrt(a); }
static inline float __double2float_rn(double a) { return (float)a; }
template <class V> static inline V __ldg(const V* at) { return *at; }
#define SHIM_MINMAX(V) \
    static inline V min(V a, V b) { return a < b ? a : b; } \
    static inline V max(V a, V b) { return a > b ? a : b; }
SHIM_MINMAX(int)
SHIM_MINMAX(unsigned)
SHIM_MINMAX(long long)
SHIM_MINMAX(unsigned long long)
static inline float min(float a, float b) { return __builtin_fminf(a, b); }
static inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
static inline double min(double a, double b) { return __builtin_fmin(a, b); }
static inline double max(double a, double b) { return __builtin_fmax(a, b); }
