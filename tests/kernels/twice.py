"""A kernel for tests of how kernels are declared."""

from mpidml_kernels.jit import kernel


@kernel("void(R1, T[::1])")
def twice(a, out):
    for i in range(a.size):
        out[i] = 2 * a[i]
