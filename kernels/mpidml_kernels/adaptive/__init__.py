"""Optimizer steps whose size each element sets by its own past gradients. Sizes: (n,)."""

from mpidml_kernels.kernel import Kernel, law

LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("adagrad", lambda n: 8 * n, lambda n: 5 * n),
        law("adagrad_in_place", lambda n: 8 * n, lambda n: 5 * n),
        law("adagrad_transform", lambda n: 6 * n, lambda n: 4 * n),
        law("rmsprop", lambda n: 9 * n, lambda n: 5 * n),
        law("rmsprop_in_place", lambda n: 9 * n, lambda n: 5 * n),
        law("rmsprop_transform", lambda n: 7 * n, lambda n: 4 * n),
        law("adadelta", lambda n: 16 * n, lambda n: 7 * n),
        law("adadelta_in_place", lambda n: 16 * n, lambda n: 7 * n),
        law("adadelta_transform", lambda n: 14 * n, lambda n: 6 * n),
        law("adam", lambda n: 16 * n, lambda n: 7 * n),
        law("adam_in_place", lambda n: 16 * n, lambda n: 7 * n),
        law("adam_transform", lambda n: 14 * n, lambda n: 7 * n),
        law("lion", lambda n: 11 * n, lambda n: 5 * n),
        law("lion_in_place", lambda n: 11 * n, lambda n: 5 * n),
        law("lion_transform", lambda n: 9 * n, lambda n: 5 * n),
        law("ftrl", lambda n: 14 * n, lambda n: 9 * n),
        law("ftrl_in_place", lambda n: 14 * n, lambda n: 9 * n),
        law("ftrl_delta", lambda n: 15 * n, lambda n: 9 * n),
    )
}
