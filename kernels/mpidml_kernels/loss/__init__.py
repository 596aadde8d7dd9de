"""Losses with their gradient in place, and counts of right outputs, which leave them alone. Sizes: (m, n) outputs."""

from mpidml_kernels.kernel import Kernel, law

# An exponential counts as eight operations.
LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("softmax_xent", lambda m, n: 13 * m * n, lambda m, n: 2 * m * n),
        law("squared_error", lambda m, n: 4 * m * n, lambda m, n: 3 * m * n),
        law("weighted_xent", lambda m, n: 17 * m * n, lambda m, n: 2 * m * n + n),
        law("huber", lambda m, n: 7 * m * n, lambda m, n: 3 * m * n),
        law("hinge", lambda m, n: 5 * m * n, lambda m, n: 2 * m * n + n),
        law("binary_xent", lambda m, n: 24 * m * n, lambda m, n: 3 * m * n),
        law("count_largest", lambda m, n: m * n, lambda m, n: m * n),
        law("count_signs", lambda m, n: 2 * m * n, lambda m, n: 2 * m * n),
    )
}
