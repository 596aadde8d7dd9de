"""Write the rows of a run's metrics as events that TensorBoard shows, beside metrics.jsonl; used by rank 0 alone.

    row {"clock": 7, "loss": 0.31, "test_accuracy": 0.95}   ->   at step 7: loss 0.31, test_accuracy 0.95
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpidml.core.errors import UserError
from mpidml.core.job import Job


def check(job: Job, writes: bool = True) -> None:
    """Refuse --tensorboard where it cannot be or would do nothing."""
    if job.tensorboard and not writes:
        raise UserError("--tensorboard: does nothing in a run that writes no folder; leave it out")
    if job.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise UserError("--tensorboard: needs tensorboardX, which is not installed; pip install 'mpidml[tensorboard]'")


class Events:
    """The event file of one run; open it before the clock runs, for that takes a second.

    `first`: events of this step and later ones, of a run that is gone on with, count no more.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self._writer: Any = None

    def open(self, folder: Path) -> None:
        """Make the file in a run's folder."""
        from tensorboardX import SummaryWriter

        # A file is named by the second in which it begins; one that goes on within it needs a name of its own, that comes later.
        suffix = "" if self.first is None else f".{len(list(folder.glob('events.out.*'))):06d}"
        self._writer = SummaryWriter(str(folder), purge_step=self.first, filename_suffix=suffix)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write each number of a row under its name; what is no finite number is left out."""
        for name, value in row.items():
            if name != "clock" and math.isfinite(value):
                self._writer.add_scalar(name, value, row["clock"])

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
