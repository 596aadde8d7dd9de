"""Choose tanh and exp by type, so that loops over float32 vectorise: the library's functions are scalar calls."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# The types of a compiled function stand in its signature.

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

f32, i32 = np.float32, np.int32


def tanh(x):
    raise NotImplementedError("compiled code only")


@overload(tanh, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _tanh_for(x):
    """Choose tanh by type: for float32 a rational function that vectorises (np.tanh is a scalar call), for float64 np.tanh.

    x P(x^2) / Q(x^2) on |x| <= 7.905, where tanh rounds to 1; within 3e-7 of tanh. Coefficients: Eigen, generic_fast_tanh.
    """
    if x != types.float32:
        return lambda x: np.tanh(x)

    def rational(x):
        limit = f32(7.90531110763549805)
        x = limit if x > limit else x
        x = -limit if x < -limit else x
        q = f32(x * x)
        p = f32(-2.76076847742355e-16)
        p = f32(p * q + f32(2.00018790482477e-13))
        p = f32(p * q + f32(-8.60467152213735e-11))
        p = f32(p * q + f32(5.12229709037114e-08))
        p = f32(p * q + f32(1.48572235717979e-05))
        p = f32(p * q + f32(6.37261928875436e-04))
        p = f32(p * q + f32(4.89352455891786e-03))
        s = f32(1.19825839466702e-06)
        s = f32(s * q + f32(1.18534705686654e-04))
        s = f32(s * q + f32(2.26843463243900e-03))
        s = f32(s * q + f32(4.89352518554385e-03))
        return f32(f32(x * p) / s)

    return rational


def exp(x):
    raise NotImplementedError("compiled code only")


@overload(exp, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _exp_for(x):
    """Choose exp by type: for float32 a polynomial that vectorises (np.exp is a scalar call), for float64 np.exp.

    exp(x) = 2^n exp(r), n = round(x / ln 2), r by ln 2 in two parts, which no reassociation may join; then degree 6; relative error 1e-7 on
    [-87, 88], outside of which x is clamped. Coefficients: Cephes, expf.
    """
    if x != types.float32:
        return lambda x: np.exp(x)

    def polynomial(x):
        x = f32(-87) if x < f32(-87) else x
        x = f32(88) if x > f32(88) else x
        n = f32(np.rint(f32(x * f32(1.44269504))))
        r = f32(f32(x - n * f32(0.693359375)) + n * f32(2.12194440e-4))
        p = f32(1.9875691500e-4)
        p = f32(p * r + f32(1.3981999507e-3))
        p = f32(p * r + f32(8.3334519073e-3))
        p = f32(p * r + f32(4.1665795894e-2))
        p = f32(p * r + f32(1.6666665459e-1))
        p = f32(p * r + f32(5.0000001201e-1))
        p = f32(f32(p * r) * r + r + f32(1))
        return f32(p * i32(i32(i32(n) + i32(127)) << i32(23)).view(f32))

    return polynomial
