"""Products with sparse rows, compressed by row. Sizes: (k, n), k stored values against rows of n values of a table; `csr_take`: (k,)."""

from mpidml_kernels.kernel import Kernel, law

LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("csr_take", lambda k: 0, lambda k: 2 * k),
        law("csr_matmul", lambda k, n: 2 * k * n, lambda k, n: k + k * n),
        law("csr_matmul_backward", lambda k, n: 2 * k * n, lambda k, n: k + 2 * k * n),
    )
}
