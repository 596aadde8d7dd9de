"""Values in fewer bits by rounding, with or without what rounding leaves: bf16, fp16 and int8 by blocks. Sizes: (n,); codes, n to 2n bytes, come on top."""

from mpidml_kernels.kernel import Kernel, law

LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("bf16_round", lambda n: n, lambda n: n),
        law("bf16_encode", lambda n: 2 * n, lambda n: 3 * n),
        law("bf16_decode_add", lambda n: n, lambda n: 2 * n),
        law("fp16_round", lambda n: n, lambda n: n),
        law("fp16_encode", lambda n: 2 * n, lambda n: 3 * n),
        law("fp16_decode_add", lambda n: n, lambda n: 2 * n),
        law("int8_round", lambda n: 4 * n, lambda n: n),
        law("int8_encode", lambda n: 6 * n, lambda n: 3 * n),
        law("int8_decode_add", lambda n: 2 * n, lambda n: 2 * n),
    )
}
