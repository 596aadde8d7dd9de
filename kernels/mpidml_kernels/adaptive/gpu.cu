// Steps whose size each element sets by itself; their meaning is in reference.py. One pass over memory each, a thread takes every so many-th element.
//
// A rule is one function, which keeps its state and returns the direction u (of FTRL: the new weight); its three kernels differ in what they do with it.
// So all three round alike. Constants such as 1 - beta come from the host, where they are computed in float64.
#include "device.cuh"

__device__ __forceinline__ real sign(real x) { return x > 0 ? (real)1 : x < 0 ? (real)-1 : x; }  // in this form NaN passes

__device__ __forceinline__ real adagrad_direction(real& s, real g, real eps, real count)
{
    s += count * (g * g);
    return g / (sqrt(s) + eps);
}
extern "C" __global__ void adagrad(const real* __restrict__ w, real* __restrict__ out, real* __restrict__ s, const real* __restrict__ g, real rate,
                                   real eps, real count, long long n)
{
    FOR_EACH(i, n) out[i] = w[i] - rate * adagrad_direction(s[i], g[i], eps, count);
}
extern "C" __global__ void adagrad_in_place(real* __restrict__ w, real* __restrict__ s, const real* __restrict__ g, real rate, real eps, real count,
                                            long long n)
{
    FOR_EACH(i, n) w[i] -= rate * adagrad_direction(s[i], g[i], eps, count);
}
extern "C" __global__ void adagrad_transform(real* __restrict__ s, real* __restrict__ g, real eps, real count, long long n)
{
    FOR_EACH(i, n) g[i] = adagrad_direction(s[i], g[i], eps, count);
}

__device__ __forceinline__ real rmsprop_direction(real& v, real g, real alpha, real rest, real eps)
{
    v = alpha * v + rest * (g * g);
    return g / (sqrt(v) + eps);
}
extern "C" __global__ void rmsprop(const real* __restrict__ w, real* __restrict__ out, real* __restrict__ v, const real* __restrict__ g, real rate,
                                   real alpha, real rest, real eps, long long n)
{
    FOR_EACH(i, n) out[i] = w[i] - rate * rmsprop_direction(v[i], g[i], alpha, rest, eps);
}
extern "C" __global__ void rmsprop_in_place(real* __restrict__ w, real* __restrict__ v, const real* __restrict__ g, real rate, real alpha, real rest,
                                            real eps, long long n)
{
    FOR_EACH(i, n) w[i] -= rate * rmsprop_direction(v[i], g[i], alpha, rest, eps);
}
extern "C" __global__ void rmsprop_transform(real* __restrict__ v, real* __restrict__ g, real alpha, real rest, real eps, long long n)
{
    FOR_EACH(i, n) g[i] = rmsprop_direction(v[i], g[i], alpha, rest, eps);
}

__device__ __forceinline__ real adadelta_direction(real& v, real& d, real g, real rho, real rest, real eps)
{
    v = rho * v + rest * (g * g);
    const real u = sqrt(d + eps) / sqrt(v + eps) * g;
    d = rho * d + rest * (u * u);
    return u;
}
extern "C" __global__ void adadelta(const real* __restrict__ w, real* __restrict__ out, real* __restrict__ v, real* __restrict__ d,
                                    const real* __restrict__ g, real rate, real rho, real rest, real eps, long long n)
{
    FOR_EACH(i, n) out[i] = w[i] - rate * adadelta_direction(v[i], d[i], g[i], rho, rest, eps);
}
extern "C" __global__ void adadelta_in_place(real* __restrict__ w, real* __restrict__ v, real* __restrict__ d, const real* __restrict__ g, real rate,
                                             real rho, real rest, real eps, long long n)
{
    FOR_EACH(i, n) w[i] -= rate * adadelta_direction(v[i], d[i], g[i], rho, rest, eps);
}
extern "C" __global__ void adadelta_transform(real* __restrict__ v, real* __restrict__ d, real* __restrict__ g, real rho, real rest, real eps, long long n)
{
    FOR_EACH(i, n) g[i] = adadelta_direction(v[i], d[i], g[i], rho, rest, eps);
}

// grow1 and grow2: one over the biases of m and v.
__device__ __forceinline__ real adam_direction(real w, real& m, real& v, real g, real beta1, real rest1, real beta2, real rest2, real eps, real grow1,
                                               real grow2, real decay)
{
    m = beta1 * m + rest1 * g;
    v = beta2 * v + rest2 * (g * g);
    return m * grow1 / (sqrt(v * grow2) + eps) + decay * w;
}
extern "C" __global__ void adam(const real* __restrict__ w, real* __restrict__ out, real* __restrict__ m, real* __restrict__ v, const real* __restrict__ g,
                                real rate, real beta1, real rest1, real beta2, real rest2, real eps, real grow1, real grow2, real decay, long long n)
{
    FOR_EACH(i, n) out[i] = w[i] - rate * adam_direction(w[i], m[i], v[i], g[i], beta1, rest1, beta2, rest2, eps, grow1, grow2, decay);
}
extern "C" __global__ void adam_in_place(real* __restrict__ w, real* __restrict__ m, real* __restrict__ v, const real* __restrict__ g, real rate,
                                         real beta1, real rest1, real beta2, real rest2, real eps, real grow1, real grow2, real decay, long long n)
{
    FOR_EACH(i, n) w[i] -= rate * adam_direction(w[i], m[i], v[i], g[i], beta1, rest1, beta2, rest2, eps, grow1, grow2, decay);
}
extern "C" __global__ void adam_transform(const real* __restrict__ w, real* __restrict__ m, real* __restrict__ v, real* __restrict__ g, real beta1,
                                          real rest1, real beta2, real rest2, real eps, real grow1, real grow2, real decay, long long n)
{
    FOR_EACH(i, n) g[i] = adam_direction(w[i], m[i], v[i], g[i], beta1, rest1, beta2, rest2, eps, grow1, grow2, decay);
}

__device__ __forceinline__ real lion_direction(real w, real& m, real g, real beta1, real rest1, real beta2, real rest2, real decay)
{
    const real u = sign(beta1 * m + rest1 * g) + decay * w;
    m = beta2 * m + rest2 * g;
    return u;
}
extern "C" __global__ void lion(const real* __restrict__ w, real* __restrict__ out, real* __restrict__ m, const real* __restrict__ g, real rate, real beta1,
                                real rest1, real beta2, real rest2, real decay, long long n)
{
    FOR_EACH(i, n) out[i] = w[i] - rate * lion_direction(w[i], m[i], g[i], beta1, rest1, beta2, rest2, decay);
}
extern "C" __global__ void lion_in_place(real* __restrict__ w, real* __restrict__ m, const real* __restrict__ g, real rate, real beta1, real rest1,
                                         real beta2, real rest2, real decay, long long n)
{
    FOR_EACH(i, n) w[i] -= rate * lion_direction(w[i], m[i], g[i], beta1, rest1, beta2, rest2, decay);
}
extern "C" __global__ void lion_transform(const real* __restrict__ w, real* __restrict__ m, real* __restrict__ g, real beta1, real rest1, real beta2,
                                          real rest2, real decay, long long n)
{
    FOR_EACH(i, n) g[i] = lion_direction(w[i], m[i], g[i], beta1, rest1, beta2, rest2, decay);
}

// per_rate: one over the rate.
__device__ __forceinline__ real ftrl_weight(real w, real& z, real& squares, real& q, real g, real per_rate, real l1, real l2, real beta, real count)
{
    squares += count * (g * g);
    const real now = (beta + sqrt(squares)) * per_rate;
    z += g - (now - q) * w;
    q = now;
    return fabs(z) <= l1 ? (real)0 : (l1 * sign(z) - z) / (now + l2);
}
extern "C" __global__ void ftrl(const real* __restrict__ w, real* __restrict__ out, real* __restrict__ z, real* __restrict__ squares, real* __restrict__ q,
                                const real* __restrict__ g, real per_rate, real l1, real l2, real beta, real count, long long n)
{
    FOR_EACH(i, n) out[i] = ftrl_weight(w[i], z[i], squares[i], q[i], g[i], per_rate, l1, l2, beta, count);
}
extern "C" __global__ void ftrl_in_place(real* __restrict__ w, real* __restrict__ z, real* __restrict__ squares, real* __restrict__ q,
                                         const real* __restrict__ g, real per_rate, real l1, real l2, real beta, real count, long long n)
{
    FOR_EACH(i, n) w[i] = ftrl_weight(w[i], z[i], squares[i], q[i], g[i], per_rate, l1, l2, beta, count);
}
extern "C" __global__ void ftrl_delta(const real* __restrict__ w, real* __restrict__ z, real* __restrict__ squares, real* __restrict__ q,
                                      real* __restrict__ g, real per_rate, real l1, real l2, real beta, real count, long long n)
{
    FOR_EACH(i, n) g[i] = ftrl_weight(w[i], z[i], squares[i], q[i], g[i], per_rate, l1, l2, beta, count) - w[i];
}
