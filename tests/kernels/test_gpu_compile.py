"""Compile every CUDA file as CuPy will, for real GPUs and without one: NVRTC, which knows no standard header, and ptxas, which tells registers and spills."""

import functools
import importlib.util
import re
from importlib.resources import files

import numpy as np
import pytest
from mpidml_kernels import adaptive
from mpidml_kernels.launch import SPELT
from mpidml_kernels.signatures import kernels

from tests.ranks import need

FOLDER = files("mpidml_kernels")
FILES = sorted(folder.name for folder in FOLDER.iterdir() if (folder / "gpu.cu").is_file())
ARCHITECTURES = ["75", "80", "90"]
MOST_REGISTERS = 40
"""Of a thread: six blocks of 256 threads then fit a multiprocessor. A kernel that takes more is listed below."""
MORE_REGISTERS = {"binary_xent": 48, "weighted_xent": 48, "huber": 48}  # float64 and its logarithms
MORE_REGISTERS |= {
    "layer_norm_backward": 48,
    "put_rows": 48,
    "embed": 48,
    "add_runs": 48,
    "csr_matmul_backward": 48,
    "copy_rows": 48,
}  # several loads at once, 64-bit places
MORE_REGISTERS |= {"int8_encode": 48, "fp16_round": 48, "bf16_round": 48}  # float64, four values at once
MORE_REGISTERS |= dict.fromkeys(adaptive.LAWS, 52)  # float64, its roots and divisions
UNROLLED = ("find_disorder", "place_chosen", "settle_digit", "add_product", "make_unit", "products_of_row", "take_parts")
MORE_REGISTERS |= dict.fromkeys(UNROLLED, 64)
MORE_REGISTERS |= {"strata_add": 44}  # divisions of 64-bit integers
MORE_REGISTERS |= {"product": 80}  # sixteen steps of a tile at once: three blocks fit
MOST_SHARED_NBYTES = 2048
MORE_SHARED_NBYTES = {"count_digits": 8192, "product": 9216}  # a count for each of 2048 digits; two tiles


@functools.cache
def compiled(code, real, architecture):
    """Return the machine code, the PTX it was made of and the compiler's log; with the options that CuPy adds by itself."""
    need(importlib.util.find_spec("cupy"), "CuPy and NVRTC (pip install '.[test]')")
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(code, "gpu.cu", (), ())
    options = (
        f"-arch=sm_{architecture}",
        "--std=c++17",
        f"-I{FOLDER}",
        f"-DREAL={SPELT[real]}",
        "-ftz=true",
        "--device-as-default-execution-space",
        "--ptxas-options=-v",
    )
    try:
        nvrtc.compileProgram(program, options)
        return nvrtc.getCUBIN(program), nvrtc.getPTX(program).decode(), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program), pytrace=False)
    finally:
        nvrtc.destroyProgram(program)


def used(log):
    """Return of each kernel what ptxas says: registers, bytes of shared memory, bytes spilt."""
    found = {}
    for text in log.split("Compiling entry function '")[1:]:
        shared = re.search(r"(\d+) bytes smem", text)
        spilt = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        found[text.split("'")[0]] = int(re.search(r"Used (\d+) registers", text)[1]), int(shared[1]) if shared else 0, sum(map(int, spilt.groups()))
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("real", SPELT)
@pytest.mark.parametrize("family", FILES)
def test_every_file_compiles_within_its_budget(family, real, architecture):
    code = (FOLDER / family / "gpu.cu").read_text()
    cubin, _, log = compiled(code, real, architecture)
    assert cubin[:4] == b"\x7fELF"
    found = used(log)
    assert set(found) == set(kernels(code, real))
    for name, (registers, shared, spilt) in found.items():
        budget = MORE_REGISTERS.get(name, MOST_REGISTERS), MORE_SHARED_NBYTES.get(name, MOST_SHARED_NBYTES)
        assert registers <= budget[0] and shared <= budget[1] and spilt == 0, (name, registers, shared, spilt)


@pytest.mark.parametrize("family", FILES)
def test_declared_types_are_those_of_the_compiler(family):
    """A launch is held to what a regular expression reads; the compiler's own list of parameters tells whether it reads well."""
    code = (FOLDER / family / "gpu.cu").read_text()
    for real in SPELT:
        text = compiled(code, real, "80")[1]
        for name, parameters in kernels(code, real).items():
            declared = re.search(rf"\.entry {name}\((.*?)\)", text, re.DOTALL)[1]
            sizes = [int(bits) // 8 for bits in re.findall(r"\.param \.(?:align \d+ \.)?[busf](\d+)", declared)]
            assert sizes == [8 if p.is_array else p.dtype.itemsize for p in parameters], name


def test_the_check_catches_what_only_another_compiler_takes():
    code = 'extern "C" __global__ void k(float* x) { x[0] = INFINITY; }'
    with pytest.raises(pytest.fail.Exception, match="INFINITY"):
        compiled(code, "f4", "80")


def test_the_check_catches_spills():
    body = (
        "".join(f"float v{i} = x[{i}];" for i in range(200))
        + "__syncthreads();"
        + "x[0] = "
        + " + ".join(f"v{i} * v{199 - i}" for i in range(200))
        + ";"
    )
    code = f'extern "C" __global__ void __launch_bounds__(1024) k(float* __restrict__ x) {{ {body} }}'
    assert used(compiled(code, "f4", "80")[2])["k"][2] > 0


def test_an_unknown_type_is_named():
    with pytest.raises(TypeError, match="k: the type of 'half x' is none of real,"):
        kernels('extern "C" __global__ void k(half* x, half x) {}'.replace("half* x, ", ""), np.float32)
