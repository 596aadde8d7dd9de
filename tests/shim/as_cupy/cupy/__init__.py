"""Be `import cupy` in a program that a test starts with this folder's parent on PYTHONPATH: the double, and what can be wrong with an installation.

DOUBLE_FAULT names what is: missing, broken, nvrtc, context, volta, kepler, memory, room (room:N, for no array of more than N bytes), launch, wrong, cublas,
nccl, dies:N (in the piece of work of that number); or it is a list, a fault for each rank, the last one for all others.
DOUBLE_CUDA: the version of CUDA that this is made for. `driver.cpp` stands in for the driver.
"""

import os

from tests.shim import cupy_double as _double
from tests.shim.cupy_double import *  # noqa: F403
from tests.shim.cupy_double import __version__ as __version__


def _raise(error):
    def fail(*given, **named):
        raise error

    return fail


_rank = int(os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or 0)
_faults = os.environ.get("DOUBLE_FAULT", "").split(",")
_fault, _, _number = _faults[min(_rank, len(_faults) - 1)].partition(":")
_double._how["devices"] = 64
cuda = _double.cuda
cuda.Device.pci_bus_id = property(lambda self: f"0000:{self.id:02X}:00.0")  # of processes that see the same GPUs
cuda.runtime.runtimeGetVersion = lambda: int(os.environ.get("DOUBLE_CUDA", "13010"))

match _fault:
    case "":
        pass
    case "missing":
        raise ModuleNotFoundError("No module named 'cupy'", name="cupy")
    case "broken":
        raise ImportError("libcublas.so.13: cannot open shared object file: No such file or directory")
    case "nvrtc":
        cuda.nvrtc.getVersion = _raise(RuntimeError("CuPy failed to load libnvrtc.so.13: OSError: libnvrtc.so.13: cannot open shared object file"))
    case "context":
        cuda.Device.use = _raise(RuntimeError("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable"))
    case "volta":
        cuda.Device.compute_capability = "70"
    case "kepler":
        cuda.Device.compute_capability = "37"
    case "memory":
        _double._how["free"] = 1000
    case "room":
        _double._how["free"] = int(_number or 1 << 14)  # enough for a trial
    case "dies":
        _double.dies_in(int(_number))
    case "nccl":
        cuda.nccl.available = False
    case "launch":
        _double.RawKernel.__call__ = _raise(RuntimeError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"))
    case "wrong":
        _double.RawKernel.__call__ = lambda *given, **named: None  # what it was to write is what was there
    case "cublas":
        _without, _by_itself = _raise(RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED")), _double.matmul

        def matmul(a, b, /, out):
            """Multiply one row by one column, which CuPy does by a sum of its own; any other product is cuBLAS's."""
            return (_by_itself if out.size == 1 else _without)(a, b, out)

        _double.matmul = matmul
    case _:
        raise ValueError(f"DOUBLE_FAULT={_fault}: there is no such fault")
