"""Every import stays within the floors, pure folders stay pure, and no file speaks of the machine it was written on."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks import ROOT

FLOORS = {
    "mpidml_kernels": 0,
    "core": 1,
    **dict.fromkeys(("sync", "schedules", "schedulers"), 2),
    **dict.fromkeys(("optim", "rates", "compression", "collectives", "nn", "data"), 3),
    **dict.fromkeys(("ps", "dataflow", "graph"), 4),
    **dict.fromkeys(("sim", "runtime"), 5),
    "strategies": 6,
    **dict.fromkeys(("ml", "interop", "planner", "compare", "evaluate", "predict", "schedule", "virtual_training", "fitting"), 7),
    **dict.fromkeys(("simulate", "plan"), 7.5),
    "scaling": 7.6,
    "scale": 7.7,
    **dict.fromkeys(("cli", "__init__"), 8),
    "__main__": 9,
}
PURE = {"core", "sync", "schedules", "schedulers", "optim", "rates", "compression", "nn", "ps", "dataflow", "sim", "planner"}
IMPURE_MODULES = {"time", "os", "random", "datetime", "subprocess", "socket", "threading", "multiprocessing", "secrets", "uuid", "asyncio"}
SEEDED = {"Generator", "Philox", "SeedSequence", "BitGenerator"}
MAX_LINES = 300
PLUGINS = {"mpidml.sync", "mpidml.nn.losses", "mpidml.data.formats"}


def modules() -> list[Path]:
    return sorted([*(ROOT / "mpidml").rglob("*.py"), *(ROOT / "kernels/mpidml_kernels").rglob("*.py")])


def dotted(path: Path) -> str:
    """Return a file's module name, with `__init__` kept: mpidml.sync.ssp, mpidml.sync.__init__."""
    base = ROOT / "kernels" if "kernels" in path.relative_to(ROOT).parts[:1] else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts)


def member(module: str) -> str:
    """Return the folder (or top file) of the floor table that a module belongs to."""
    top, *rest = module.split(".")
    return top if top != "mpidml" else (rest or ["__init__"])[0]


def imports(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Give (line, imported dotted name) of every import, also inside functions; relative ones are resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def faults(source: str, module: str, plugins: set[str]) -> list[str]:
    """List what `module` imports or draws against the rules; `plugins` are the dotted names of the folders that hold a base.py."""
    here, found = member(module), []
    package, _, own = module.rpartition(".")
    if here not in FLOORS:
        return [f"{module}: '{here}' is not in the floor table"]
    for line, name in imports(source, module):
        top = name.split(".")[0]
        if top == "mpi4py" and here != "runtime":
            found.append(f"{module}:{line}: only runtime imports mpi4py")
        if top in IMPURE_MODULES and here in PURE:
            found.append(f"{module}:{line}: '{here}' is pure, it may not import {top}")
        if top not in ("mpidml", "mpidml_kernels"):
            continue
        there = member(name)
        if there == "__version__" or name == "mpidml":
            continue
        if there not in FLOORS or (there != here and FLOORS[there] >= FLOORS[here]):
            found.append(f"{module}:{line}: '{here}' imports {name}, which is not on a floor below")
        is_plugin = package in plugins and own not in ("base", "__init__")
        if is_plugin and f"{name}.".startswith(f"{package}.") and not f"{name}.".startswith(f"{package}.base."):
            found.append(f"{module}:{line}: a plug-in imports only base of its own folder, not {name}")
    if here in PURE | {"data", "strategies", "mpidml_kernels"}:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("np.random.", "numpy.random.")) and node.attr not in SEEDED:
                found.append(f"{module}:{node.lineno}: {ast.unparse(node)} is not drawn from a named stream")
    return found


def plugin_folders() -> set[str]:
    return {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mpidml").rglob("base.py")}


def test_every_import_stays_within_its_floor():
    found = [fault for path in modules() for fault in faults(path.read_text(), dotted(path), plugin_folders())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mpidml.core.clocks", "from mpidml.ps import table"),
        ("mpidml.nn.layers", "def f():\n    import mpidml.optim.sgd"),
        ("mpidml.sim.clock", "from mpidml.runtime import drive"),
        ("mpidml.sync.ssp", "from mpidml.sync.bsp import Bsp"),
        ("mpidml.sync.ssp", "from . import bsp"),
        ("mpidml.nn.losses.hinge", "from mpidml.nn.losses.huber import Huber"),
        ("mpidml.sync.ssp", "import time"),
        ("mpidml.ps.shard", "from os import path"),
        ("mpidml.strategies.pipeline", "from mpi4py import MPI"),
        ("mpidml.nn.layers", "import numpy as np\nx = np.random.default_rng()"),
        ("mpidml_kernels.conv", "from mpidml.core import rng"),
        ("mpidml.helpers.text", "import json"),
        ("mpidml.data.formats.npz", "from mpidml.data.formats import csv"),
        ("mpidml.data.formats.npz", "from mpidml.data.formats.csv import Csv"),
    ],
)
def test_the_check_catches_each_kind_of_fault(module, source):
    assert faults(source, module, PLUGINS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mpidml.sync.ssp", "from mpidml.sync.base import SyncPolicy\nfrom mpidml.core.clocks import View"),
        ("mpidml.data.formats.npz", "from mpidml.data.formats.base import Format\nfrom mpidml.data.arrays import Arrays"),
        ("mpidml.runtime.drive", "from mpi4py import MPI\nimport time\nfrom . import wire"),
        ("mpidml.nn.losses.hinge", "from mpidml.nn.losses.base import Loss\nfrom mpidml.nn.step import Step"),
        ("mpidml.strategies.pipeline", "from mpidml.runtime import drive\nfrom mpidml.sim import network"),
        ("mpidml.nn.layers", "import mpidml_kernels.conv\nimport numpy as np\ng = np.random.Generator(np.random.Philox(key=1))"),
    ],
)
def test_the_check_allows_what_the_floors_allow(module, source):
    assert not faults(source, module, PLUGINS)


def opening(source: str) -> str:
    """Return the first sentence of a module's docstring."""
    return re.split(r"(?<=[.!?:;])\s", ast.get_docstring(ast.parse(source)) or "", maxsplit=1)[0]


def excess(source: str) -> bool:
    return len(source.splitlines()) > MAX_LINES and "because" not in opening(source)


def test_a_long_module_says_why_in_its_first_sentence():
    assert not [dotted(path) for path in modules() if excess(path.read_text())]
    assert excess('"""Do it."""\n' + "x = 1\n" * MAX_LINES)
    assert not excess('"""Do it in one file, because the steps share every buffer."""\n' + "x = 1\n" * MAX_LINES)


def test_every_module_opens_with_a_docstring():
    assert not [dotted(path) for path in modules() if path.read_text().strip() and not opening(path.read_text())]


# Joined here, so that this file does not hold them itself.
WORDS = ["/wo" + "rk/", "/ro" + "ot/", r"\.{2}/sha" + "red", r"\bde" + r"ck\b", "py" + r"pi\.org", "python" + "hosted"]
WORDS += ["clau" + "de", "anth" + "ropic"]
FORBIDDEN = re.compile("|".join(WORDS), re.IGNORECASE)


def project_files() -> list[Path]:
    """List what is, or would be, tracked; without git, everything outside hidden and generated folders."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]
    files = (path for path in ROOT.rglob("*") if path.is_file())
    return [path for path in files if not any(part.startswith((".", "__pycache__")) for part in path.relative_to(ROOT).parts)]


def mentions(text: str) -> list[str]:
    return [match.group() for match in FORBIDDEN.finditer(text)]


def test_no_file_names_a_machine_path_or_its_makers():
    found = []
    for path in project_files():
        data = path.read_bytes()
        if len(data) < 1_000_000 and b"\0" not in data:
            found += [f"{path.relative_to(ROOT)}: {word}" for word in mentions(data.decode(errors="replace"))]
    assert not found, "\n".join(found)
    assert mentions("see /wo" + "rk/main") and not mentions("a decked network's framework")
