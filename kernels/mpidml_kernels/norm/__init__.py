"""Normalisation of each row (Ba, Kiros, Hinton, 2016). Sizes: (m, n)."""

from mpidml_kernels.kernel import Kernel, law

LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("layer_norm", lambda m, n: 8 * m * n, lambda m, n: 2 * m * n + 2 * m + 2 * n),
        law("layer_norm_backward", lambda m, n: 14 * m * n, lambda m, n: 3 * m * n + 2 * m + 3 * n),
    )
}
