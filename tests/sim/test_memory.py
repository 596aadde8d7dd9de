"""What a simulation takes of memory is estimated within a factor of 1.5, and what does not fit is one line that names the flag."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mpidml.core.cost import CostModel
from mpidml.core.errors import UserError
from mpidml.sim import memory
from mpidml.sim.parameter_server import Plan
from mpidml.sync.ssp import Ssp

PEAK = """
import importlib, json, pathlib, sys
commands = importlib.import_module("mpidml.simulate")
told = []
check = commands.memory.check
commands.memory.check = lambda plans, room: (told.append(max(plan.memory_nbytes for plan in plans)), check(plans, room))
commands.simulate(json.loads(sys.argv[1]), quiet=True, write=True)
status = pathlib.Path("/proc/self/status").read_text()  # not rusage, which begins with what the parent had
print(int(status.partition("VmHWM:")[2].split()[0]) * 1024, *told)
"""
BIG = {"learn": True, "hidden": "1024,1024", "batch": 32, "clocks": 5, "jitter": 0.5}
SIZES = {
    "learn in place": BIG | {"workers": 16, "sync": "ssp:3"},
    "learn by messages": BIG | {"workers": 8, "sync": "bsp", "transport": "mpi"},
    "learn, few": BIG | {"workers": 2, "hidden": "8"},
    "learn, compiled": BIG | {"workers": 8, "sync": "asp", "backend": "numba"},
    "servers": {"servers": "400000", "clocks": 5},
    "sums": {"strategy": "data_parallel", "workers": 10_000, "clocks": 20, "jitter": 0.5, "bandwidth": 1e9},
    "sums, many": {"strategy": "data_parallel", "workers": 300_000, "clocks": 3, "jitter": 0.5, "bandwidth": 1e9},
}


@pytest.mark.parametrize("name", SIZES)
def test_the_peak_is_what_was_told(tmp_path, name):
    values = {"compute": 0.01, "backend": "numpy", "out": str(tmp_path / "run")} | SIZES[name]
    found = subprocess.run([sys.executable, "-c", PEAK, json.dumps(values)], capture_output=True, text=True, timeout=200, check=True)
    peak, first, *more = map(int, found.stdout.split())
    told = [first, *more][-1]
    assert told / 1.5 < peak < told * 1.5, (peak, told)
    if name in ("learn in place", "learn by messages"):
        assert peak > 1.5 * first, "the broken variant: without the parameters the estimate is too low"


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan(Ssp(3), 4, 9, CostModel(), 3_000_000), "--servers 3000000: would take about 1.5 GB of memory, 1.0 GB are free; simulate fewer"),
        (Plan(Ssp(3), 1_000_000, 9, CostModel()), "--workers 1000000: would take about 5.1 GB of memory, 1.0 GB are free; simulate at most about 144,000"),
        (Plan(Ssp(3), 64, 9, CostModel(), kept=2_000_000_000), "--workers 64: --learn would take about 2.1 GB of memory, 1.0 GB are free; simulate fewer workers or"),
    ],
)
def test_what_does_not_fit_is_one_line(plan, says):
    memory.check([plan], None)
    memory.check([plan], 10**11)
    with pytest.raises(UserError) as error:
        memory.check([plan], 10**9)
    assert str(error.value).startswith(says) and "\n" not in str(error.value)
