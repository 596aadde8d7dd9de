"""Rows of a table by index: gather, scatter and scatter-add, and embeddings of columns of codes. Sizes: (m, n), m indices of rows of n values."""

from mpidml_kernels.kernel import Kernel, law

LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("take", lambda m, n: 0, lambda m, n: 2 * m * n),
        law("put_rows", lambda m, n: 0, lambda m, n: 2 * m * n),
        law("embed", lambda m, n: 0, lambda m, n: 2 * m * n),
        law("embed_backward", lambda m, n: m * n, lambda m, n: 3 * m * n),
        law("add_rows", lambda m, n: m * n, lambda m, n: 3 * m * n),
    )
}
