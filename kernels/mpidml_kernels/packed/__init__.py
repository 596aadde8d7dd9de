"""Codes of 1, 2 or 4 bits, packed into bytes, one pass over memory. Sizes: (n,); codes, n / 8 to n / 2 bytes, come on top.

A group is 64 bytes, and value i of it lies in byte i mod 64, so that neighbouring values are packed by neighbouring lanes:

    2 bits:  byte 0  [ v192 | v128 | v64 | v0 ]   byte 1  [ v193 | v129 | v65 | v1 ]   ...   byte 63  [ v255 | v191 | v127 | v63 ]

The last group has as few bytes as hold its values, and value i lies in byte i mod their number.
"""

from mpidml_kernels.kernel import Kernel, law

GROUP = 64
LAWS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        law("one_bit_encode", lambda n: 4 * n, lambda n: 3 * n),
        law("vote_encode", lambda n: n, lambda n: n),
        law("bits_decode_add", lambda n: n, lambda n: 2 * n),
        law("two_bit_encode", lambda n: 6 * n, lambda n: 3 * n),
        law("adaptive_encode", lambda n: 8 * n, lambda n: 3 * n),
        law("stochastic_encode", lambda n: 7 * n, lambda n: n),
        law("codes_decode_add", lambda n: 2 * n, lambda n: 2 * n),
    )
}
