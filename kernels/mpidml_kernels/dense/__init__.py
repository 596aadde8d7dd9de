"""Fully connected layers: products, activations and dropout. Sizes: (m, k, n) for `matmul` and `matmul_add`, (m, n) for the rest."""

from mpidml_kernels.kernel import Kernel, law

# An activation counts as one operation per value for relu and as eight for an exponential or its rational stand-in.
LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("matmul", lambda m, k, n: 2 * m * k * n, lambda m, k, n: m * k + k * n + m * n),
        law("matmul_add", lambda m, k, n: 2 * m * k * n, lambda m, k, n: m * k + k * n + 2 * m * n),
        law("bias_linear", lambda m, n: m * n, lambda m, n: 2 * m * n + n),
        law("bias_relu", lambda m, n: 2 * m * n, lambda m, n: 2 * m * n + n),
        law("bias_tanh", lambda m, n: 9 * m * n, lambda m, n: 2 * m * n + n),
        law("bias_sigmoid", lambda m, n: 9 * m * n, lambda m, n: 2 * m * n + n),
        law("linear_backward", lambda m, n: m * n, lambda m, n: m * n + n),
        law("relu_backward", lambda m, n: 2 * m * n, lambda m, n: 3 * m * n + n),
        law("tanh_backward", lambda m, n: 4 * m * n, lambda m, n: 3 * m * n + n),
        law("sigmoid_backward", lambda m, n: 4 * m * n, lambda m, n: 3 * m * n + n),
        law("bias_leaky_relu", lambda m, n: 3 * m * n, lambda m, n: 2 * m * n + n),
        law("bias_softplus", lambda m, n: 18 * m * n, lambda m, n: 2 * m * n + n),
        law("bias_gelu", lambda m, n: 15 * m * n, lambda m, n: 3 * m * n + n),
        law("leaky_relu_backward", lambda m, n: 3 * m * n, lambda m, n: 3 * m * n + n),
        law("softplus_backward", lambda m, n: 10 * m * n, lambda m, n: 3 * m * n + n),
        law("gelu_backward", lambda m, n: 22 * m * n, lambda m, n: 3 * m * n + n),
        law("dropout", lambda m, n: m * n, lambda m, n: 2 * m * n),
        law("dropout_in_place", lambda m, n: m * n, lambda m, n: 2 * m * n),
    )
}

ACTIVATIONS = tuple(name.removeprefix("bias_") for name in LAWS if name.startswith("bias_"))
FROM_INPUT = ("gelu",)
"""Activations that are undone from their input: `bias_<name>(z, b, a)` leaves it in z and the output in a; the others work in place."""
