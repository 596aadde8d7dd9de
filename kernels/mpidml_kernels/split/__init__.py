"""Kernels of layers that are cut over ranks: what one rank does with its own columns or rows. Sizes: (m, n), n of them its own."""

from mpidml_kernels.kernel import Kernel, law

# An exponential counts as eight operations. Sums in float64 count as two values.
LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("dropout_part", lambda m, n: m * n, lambda m, n: 2 * m * n),
        law("embed_part", lambda m, n: 0, lambda m, n: 2 * m * n),
        law("embed_part_backward", lambda m, n: m * n, lambda m, n: 3 * m * n),
        law("largest_of_rows", lambda m, n: m * n, lambda m, n: m * n + m),
        law("xent_part_sums", lambda m, n: 10 * m * n, lambda m, n: 2 * m * n + 5 * m),
        law("xent_part", lambda m, n: 3 * m * n, lambda m, n: 2 * m * n + 4 * m + n),
    )
}
