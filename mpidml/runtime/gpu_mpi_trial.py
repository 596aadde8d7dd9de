"""Send device memory to and fro through MPI, as a program of its own (`gpu_mpi`) that may die of it: DEVICE SECONDS.

It says `giving` before MPI is given the first device pointer, and `right` or `wrong` of what came back. Persistent messages of a rank to itself, a short
one and one that is long enough to go another way; what MPI does between hosts is not tried. Imports CuPy: nothing is chosen here.
"""

from __future__ import annotations

import resource
import signal
import sys

SIZES_NBYTES = (64, 1 << 20)


def main(index: int, seconds: int) -> None:
    """Try it on a device; the alarm ends this where nobody waits any more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(seconds)
    import cupy
    import numpy as np
    from mpi4py import MPI

    cupy.cuda.Device(index).use()
    given = [(np.arange(nbytes) * 31 % 251).astype(np.uint8) for nbytes in SIZES_NBYTES]
    sent, taken = [cupy.asarray(values) for values in given], [cupy.zeros(values.size, np.uint8) for values in given]
    cupy.cuda.get_current_stream().synchronize()
    print("giving", flush=True)
    requests = [MPI.COMM_SELF.Recv_init([array, MPI.BYTE], 0) for array in taken] + [MPI.COMM_SELF.Send_init([array, MPI.BYTE], 0) for array in sent]
    MPI.Prequest.Startall(requests)
    MPI.Request.Waitall(requests)
    same = all(np.array_equal(array.get(), values) for array, values in zip(taken, given, strict=True))
    print("right" if same else "wrong", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
