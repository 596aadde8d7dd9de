"""MPI is given device pointers only where it says that it takes them, and where a process that tried it is still alive; it is asked in a fixed order."""

import ctypes
import os
import signal
import sys
import textwrap
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mpidml.core.errors import UserError
from tests.ranks import ROOT

CLAIM = (True, "forged")
# Device memory as a wrong MPI sees it: a pointer that the host cannot read.
NO_HOST_CAN_READ = """
    import ctypes, mmap
    import numpy as np

    libc = ctypes.CDLL(None)
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]

    class ndarray:
        def __init__(self, n):
            self.size = n
            pointer = libc.mmap(None, n, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
            self.__cuda_array_interface__ = {"shape": (n,), "typestr": "|u1", "data": (pointer, False), "version": 3}

    asarray, zeros = lambda a: ndarray(a.size), lambda n, dtype: ndarray(n)
"""
# Device memory as an MPI that takes it sees it: here the host's own.
ANY_CAN_READ = """
    import numpy as np

    class ndarray:
        def __init__(self, a):
            self.a, self.__cuda_array_interface__ = a, a.__array_interface__
        def get(self):
            return self.a{changed}

    asarray, zeros = lambda a: ndarray(a.copy()), lambda n, dtype: ndarray(np.zeros(n, dtype))
"""
CUDA = """
    from types import SimpleNamespace

    class Device:
        def __init__(self, index): assert index == 0
        def use(self): {use}

    cuda = SimpleNamespace(Device=Device, get_current_stream=lambda: SimpleNamespace(synchronize=lambda: None))
"""


@pytest.fixture
def cupy_is(tmp_path, monkeypatch):
    """Return what puts a cupy in the place of the one that a process started from here would import."""

    def put(text, use="pass"):
        (tmp_path / "cupy.py").write_text(textwrap.dedent(text) + textwrap.dedent(CUDA.format(use=use)))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "kernels")]))

    return put


def library(**functions):
    return SimpleNamespace(**functions)


def says(flag, code=0):
    def query(kind, pointer):
        assert kind == 0
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = flag
        return code

    return query


@pytest.mark.parametrize(
    ("functions", "takes", "reason"),
    [
        ({"MPIX_GPU_query_support": says(1), "MPIX_Query_cuda_support": lambda: 0}, True, "MPIX_GPU_query_support says yes"),
        ({"MPIX_GPU_query_support": says(0), "MPIX_Query_cuda_support": lambda: 1}, False, "MPIX_GPU_query_support says no"),
        ({"MPIX_GPU_query_support": says(1, code=13), "MPIX_Query_cuda_support": lambda: 0}, False, "MPIX_Query_cuda_support says no"),
        ({"MPIX_Query_cuda_support": lambda: 1}, True, "MPIX_Query_cuda_support says yes"),
        ({}, False, "the MPI library cannot be asked; set MPIDML_GPU_MPI=yes where it takes device pointers"),
    ],
)
def test_a_library_is_asked_in_the_words_that_it_knows(functions, takes, reason):
    from mpidml.runtime.gpu_mpi import queried

    assert queried(library(**functions)) == (takes, reason)


@pytest.mark.openmpi
def test_this_mpi_says_no_by_itself():
    from mpi4py import MPI

    from mpidml.runtime.gpu_mpi import claimed

    ours = "MPIX_GPU_query_support" if "MPICH" in MPI.Get_library_version() else "MPIX_Query_cuda_support"
    assert claimed({}) == (False, f"{ours} says no")


def test_what_the_user_says_goes_first_and_has_to_be_yes_or_no():
    from mpidml.runtime.gpu_mpi import claimed

    assert claimed({"MPIDML_GPU_MPI": "yes"}) == (True, "MPIDML_GPU_MPI=yes")
    assert claimed({"MPIDML_GPU_MPI": "no"}) == (False, "MPIDML_GPU_MPI=no")
    with pytest.raises(UserError, match=r"^MPIDML_GPU_MPI=1: says neither yes nor no; give one of them"):
        claimed({"MPIDML_GPU_MPI": "1"})


@pytest.mark.parametrize(("kinds", "takes"), [("mpi,system,cuda", True), ("system,mpi,cuda:device", True), ("mpi,system", False), (None, False)])
def test_kinds_of_memory_count_before_the_extensions(kinds, takes, monkeypatch):
    from mpidml.runtime import gpu_mpi

    told = SimpleNamespace(Get_info=lambda: SimpleNamespace(get=lambda key: kinds, Free=lambda: None))
    monkeypatch.setattr(gpu_mpi, "MPI", SimpleNamespace(COMM_WORLD=told, __file__=None, SUCCESS=0))
    assert gpu_mpi.claimed({}) == ((True, f"mpi_memory_alloc_kinds={kinds}") if takes else gpu_mpi.queried(ctypes.CDLL(None)))


@pytest.mark.openmpi
def test_a_claim_that_costs_the_trying_process_its_life_is_a_no(cupy_is):
    from mpidml.runtime.gpu_mpi import tried

    cupy_is(NO_HOST_CAN_READ)
    assert tried(CLAIM) == (False, "forged, but a process that gave MPI a device pointer died by SIGSEGV")


@pytest.mark.openmpi
def test_a_claim_that_is_true_is_a_yes_and_one_whose_bytes_are_wrong_a_no(cupy_is):
    from mpidml.runtime.gpu_mpi import tried

    cupy_is(ANY_CAN_READ.format(changed=""))
    assert tried(CLAIM) == (True, "forged, and a process that gave MPI a device pointer got back what it had sent")
    cupy_is(ANY_CAN_READ.format(changed=" + 1"))
    assert tried(CLAIM) == (False, "forged, but a process that gave MPI a device pointer got back something else")


def test_a_process_that_is_silent_or_cannot_try_is_a_no(cupy_is):
    from mpidml.runtime.gpu_mpi import tried

    cupy_is(ANY_CAN_READ.format(changed=""), use="import time; time.sleep(100)")
    began = time.monotonic()
    assert tried(CLAIM, limit_seconds=1) == (False, "forged, but a process that was to give MPI a device pointer had not ended after 1 s")
    assert time.monotonic() - began < 30
    cupy_is(ANY_CAN_READ.format(changed=""), use="raise RuntimeError('cudaErrorNoDevice: none')")
    assert tried(CLAIM) == (
        False,
        "forged, but the process that was to give MPI a device pointer did not come to that (RuntimeError: cudaErrorNoDevice: none)",
    )


def test_a_trial_ends_itself_where_nobody_waits_for_it(cupy_is):
    from tests.ranks import python

    cupy_is(ANY_CAN_READ.format(changed=""), use="import time; time.sleep(100)")
    assert python(["-m", "mpidml.runtime.gpu_mpi_trial", "0", "1"], env={"PYTHONPATH": os.environ["PYTHONPATH"]}).code == -signal.SIGALRM


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("per_host", [0, 2])
def test_all_ranks_agree_and_go_on_whatever_becomes_of_those_that_try(comm, per_host, monkeypatch):
    from mpidml.runtime import gpu_mpi
    from mpidml.runtime.comm import CountedComm

    ranks = CountedComm(comm, ranks_per_host=per_host)
    n_hosts = len(set(ranks.allgather(ranks.leader)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("MPIDML_GPU_MPI", "yes")
    takes, reason = gpu_mpi.takes_device_pointers(ranks)  # by the real CuPy, which has no device here, or no CuPy at all
    assert len(set(ranks.allgather((takes, reason)))) == 1
    assert takes or "MPIDML_GPU_MPI=yes, but the process that was to give MPI a device pointer did not come to that" in reason
    tries = []
    monkeypatch.setattr(gpu_mpi, "tried", lambda claims, index: tries.append(index) or (ranks.leader == 0, f"tried on {ranks.leader}"))
    takes, reason = gpu_mpi.takes_device_pointers(ranks, index=3)
    assert (takes, reason) == ((True, "tried on 0") if n_hosts == 1 else (False, "rank 2: tried on 2"))
    assert tries == [3] * (ranks.host.rank == 0)
    monkeypatch.setenv("MPIDML_GPU_MPI", "maybe" if ranks.rank == ranks.size - 1 else "no")
    with pytest.raises(UserError, match="MPIDML_GPU_MPI=maybe"):
        gpu_mpi.takes_device_pointers(ranks)
    np.testing.assert_array_equal(ranks.allgather(ranks.rank), range(ranks.size))  # the job's MPI is as it was
    ranks.free()
