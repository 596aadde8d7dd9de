"""Give a program that a test starts a host with GPUs: `driver.cpp` as its driver, the double as its CuPy, and what is wrong with them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from tests.ranks import need
from tests.shim.compiled import COMMON, HERE, _compile


def environment(**answers: str) -> dict[str, str]:
    """Return the variables: `gpus`, `driver`, `init` as driver.cpp takes them, `fault`, `cuda` as as_cupy does; NVIDIA's own driver is not found."""
    need(shutil.which("g++"), "a C++ compiler (g++)")
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(_built()), os.environ.get("LD_LIBRARY_PATH")])),
        "PYTHONPATH": str(HERE / "as_cupy"),
        **{f"DOUBLE_{name.upper()}": value for name, value in answers.items()},
    }


def no_driver(folder: Path) -> dict[str, str]:
    """Return the variables of a host whose driver cannot be loaded, whatever this machine has."""
    (folder / "libcuda.so.1").write_text("no library")
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))}


def _built() -> Path:
    """Return the folder of the library; it is built once for its text."""
    source = HERE / "driver.cpp"
    key = hashlib.sha256(source.read_bytes()).hexdigest()[:24]
    folder = Path(os.environ.get("MPIDML_SHIM_CACHE") or Path(tempfile.gettempdir()) / f"mpidml-shim-{os.getuid()}") / f"driver-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "libcuda.so.1"
    if not wanted.exists():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            _compile([*COMMON, "-fvisibility=default", "-O1", "-shared", str(source), "-o", f"{own}/unit.so"])
            os.replace(f"{own}/unit.so", wanted)  # several tests may build at once
    return folder
