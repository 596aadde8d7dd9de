"""Products of a few rows: make them orthonormal, add their product. Sizes: (m, n, k), k rows for a table of m x n."""

from mpidml_kernels.kernel import Kernel, law

LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("orthonormalise", lambda m, n, k: 8 * m * k * k, lambda m, n, k: 2 * m * k),
        law("add_product", lambda m, n, k: 2 * m * n * k, lambda m, n, k: 2 * m * n + (m + n) * k),
    )
}
