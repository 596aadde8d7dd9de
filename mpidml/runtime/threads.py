"""Keep the arithmetic of several ranks on one host from fighting over its cores: one BLAS thread a rank, unless told otherwise."""

from __future__ import annotations

import os

from mpidml.runtime.launch import THREAD_VARIABLES


def limit_threads() -> None:
    """Give BLAS one thread in this process, unless the environment names a number of threads.

    `python -m mpidml` sets the environment before NumPy is loaded; a script may have loaded NumPy already, and its ranks would then run
    as many threads as the host has cores, each (on two cores with three ranks: 50 times slower). SciPy has a BLAS of its own, which is loaded when
    a kernel first asks for it, and reads the environment then.
    """
    if any(name in os.environ for name in THREAD_VARIABLES):
        return
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, "blas")
    os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
