"""Load the compiled arithmetic on every rank, once compiled for each host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpidml_kernels import backend, cache, is_compiled

from mpidml.runtime.comm import CountedComm
from mpidml.runtime.summary import say


def compiled(name: str, comm: CountedComm, quiet: bool, more: Sequence[Any] = ()) -> Any:
    """Load the arithmetic, and `more` families of kernels; the first rank of each host compiles it while the others sleep, then load its cache (Collective on comm)."""
    if comm.host.rank == 0:
        if comm.rank == 0 and name == "numba" and not quiet and not is_compiled():
            say("compiling kernels, once for this machine: about 20 seconds ...")
        arithmetic = backend(name)
        arithmetic.load(*more)
    comm.host_nap()
    backend(name).load(*more)
    if name == "numba" and not more and any(told := comm.gather(cache.refused) or []) and not quiet:
        chosen = next(filter(None, told))
        say(f"NUMBA_CACHE_DIR {chosen}: cannot be written on {sum(map(bool, told))} rank(s), which keep their kernels elsewhere; name a folder that can, or unset it")
    return backend(name)
