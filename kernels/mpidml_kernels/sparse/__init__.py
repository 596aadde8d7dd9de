"""A few values out of many, with their places: the largest, or one drawn from each stretch. Sizes: (n,); what is sent comes on top."""

from mpidml_kernels.kernel import Kernel, law

LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("kth_magnitude", lambda n: n, lambda n: 2 * n),
        law("select", lambda n: 2 * n, lambda n: 3 * n),
        law("scatter_add", lambda n: n, lambda n: 2 * n),
        law("is_finite", lambda n: n, lambda n: n),
        law("strata_move", lambda n: 0, lambda n: 2 * n),
        law("strata_take", lambda n: n, lambda n: n),
        law("strata_add", lambda n: n, lambda n: 2 * n),
    )
}
