"""Sums and optimizer steps on flat vectors. Sizes: (n,)."""

from mpidml_kernels.kernel import Kernel, law

LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("add", lambda n: n, lambda n: 3 * n),
        law("add3", lambda n: 2 * n, lambda n: 4 * n),
        law("scale", lambda n: n, lambda n: 2 * n),
        law("descend", lambda n: 2 * n, lambda n: 3 * n),
        law("descend_in_place", lambda n: 2 * n, lambda n: 3 * n),
        law("momentum", lambda n: 4 * n, lambda n: 5 * n),
        law("momentum_in_place", lambda n: 4 * n, lambda n: 5 * n),
        law("momentum_transform", lambda n: 2 * n, lambda n: 4 * n),
        law("nesterov", lambda n: 6 * n, lambda n: 5 * n),
        law("nesterov_in_place", lambda n: 6 * n, lambda n: 5 * n),
        law("nesterov_transform", lambda n: 4 * n, lambda n: 4 * n),
        law("decay_transform", lambda n: 2 * n, lambda n: 3 * n),
        law("l1_transform", lambda n: 3 * n, lambda n: 3 * n),
        law("clip_transform", lambda n: 2 * n, lambda n: 2 * n),
        law("sum_of_squares", lambda n: 2 * n, lambda n: n),
    )
}
