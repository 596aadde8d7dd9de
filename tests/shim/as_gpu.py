"""Take the double of CuPy for a GPU, as a plugin of pytest (`-p tests.shim.as_gpu`): so what runs on a GPU alone is tried as far as it can be without one.

No test run of its own is meant by it: what it finds says nothing of a GPU, and a record made with it says that none was used.
"""

import sys

import pytest

from benchmarks import card
from tests.shim import cupy_double

sys.modules["cupy"] = cupy_double
card.lacking = lambda: ""  # type: ignore[assignment]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many kernels ran in place of a GPU's."""
    from tests.kernels.conftest import gpu

    terminalreporter.write_line(f"{gpu().n_calls} call(s) of kernels by the double in place of a GPU")
