"""A save drains the pipeline of a schedule that does not drain by itself: a run that is resumed there has the bits of one that went on, and says so."""

from __future__ import annotations

import numpy as np
import pytest

from mpidml.runtime.comm import CountedComm
from mpidml.runtime.resume import resumed
from mpidml.strategies.base import train
from tests.strategies.test_identities import SMALL

pytestmark = [pytest.mark.mpi, pytest.mark.openmpi]
JOB = SMALL.with_values({"strategy": "pipeline", "deterministic": True, "microbatches": 0, "wait_limit": 30.0}, "test")


def run(comm, job, **changes):
    """Train, and return the weights."""
    counted, kept = CountedComm(comm), {}
    train(job.with_values(changes, "test"), counted, keep=kept)
    counted.free()
    comm.Barrier()
    return kept["values"]


@pytest.mark.parametrize("schedule", ["pipedream", "pipedream:vertical=true", "two_bw:5", "one_f_one_b"])
def test_a_run_that_is_resumed_where_it_was_saved_has_the_bits_of_one_that_saved_there(comm, schedule, mpi_tmp_path, capsys):
    job = JOB.with_values({"schedule": schedule}, "test")
    never, saving, stopped = (str(mpi_tmp_path / name) for name in ("never", "saving", "stopped"))
    expected = run(comm, job, out=saving, steps=12, checkpoint_every=4)
    run(comm, job, out=stopped, steps=8, checkpoint_every=4)
    capsys.readouterr()
    assert np.array_equal(run(comm, resumed(stopped, {"steps": 12})), expected)
    drained = schedule != "one_f_one_b" and (comm.size > 1 or schedule == "two_bw:5")
    if comm.rank == 0:
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resumed: 8 clocks")]
        assert line.endswith(f"; --schedule {schedule} begins there with a drained pipeline, as only a run that saves at the same clocks does") == drained
    assert np.array_equal(run(comm, job, out=never, steps=12), expected) != drained  # which reads older weights there
