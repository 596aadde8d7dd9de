"""Losses with their gradient in place, and scores that leave the outputs alone. Sizes: (m, n) outputs."""

from mpidml_kernels.kernel import Kernel, law

# An exponential counts as eight operations.
LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("softmax_xent", lambda m, n: 13 * m * n, lambda m, n: 2 * m * n),
        law("squared_error", lambda m, n: 4 * m * n, lambda m, n: 3 * m * n),
        law("score_xent", lambda m, n: 12 * m * n, lambda m, n: m * n),
        law("score_squared", lambda m, n: 4 * m * n, lambda m, n: 2 * m * n),
    )
}
