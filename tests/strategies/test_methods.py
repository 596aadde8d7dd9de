"""One table of all methods: the same small job, seed and samples under each, and of each what it cost and how stale it read; no cell is empty."""

import math

import pytest

from mpidml.compression.base import Compressor
from tests.strategies.test_identities import SMALL
from tests.training import trained

JOB = SMALL.with_values({"wait_limit": 20.0, "steps": 12, "batch": 60, "transport": "mpi"}, "test")
PUSHED = [{"sync": sync} for sync in ("bsp", "ssp:2", "asp", "dssp:1:3", "warmup:4:2", "adaptive:1:4", "quorum")]
SUMMED = [{"collective": name} for name in ("mpi", "ring", "recursive_doubling", "rabenseifner", "tree", "ordered")]
CODES = {  # the rate of each, and the loss that it has to reach
    **dict.fromkeys(("fp16", "bf16", "int8", "ternary", "qsgd"), (0.05, 1.85)), "two_bit": (0.05, 2.0), "low_rank": (0.05, 2.05), "one_bit": (0.05, 2.1),
    "top_k:0.1": (0.05, 2.2), "random_k:0.1": (0.1, 2.3), "sign_majority": (0.01, 1.5),
}  # fmt: skip
AVERAGED = [{"collective": "mpi"}, {"collective": "gossip"}, {"averaging": "elastic"}, {"averaging": "elastic_async"}]
METHODS = [
    *({"strategy": "parameter_server"} | how for how in PUSHED),
    *({"strategy": "data_parallel"} | how for how in SUMMED),
    *({"strategy": "data_parallel", "compress": code, "lr": rate} for code, (rate, _) in CODES.items()),
    *({"strategy": "averaging", "average_every": 3, "transport": "auto"} | way for way in AVERAGED),
    *({"strategy": strategy} for strategy in ("pipeline", "tensor")),
    *({"strategy": "pipeline", "schedule": schedule} for schedule in ("gpipe", "pipedream", "two_bw")),
]


def row(summary):
    """Return a method's cells: final loss, bytes sent by all ranks, messages, and the mean staleness of what was read."""
    stale = {int(s): n for s, n in summary["staleness_histogram"].items()}
    n = sum(stale.values())
    return summary["final_loss"], sum(summary["bytes_sent"]), sum(summary["sends"]), sum(s * k for s, k in stale.items()) / n if n else math.nan


def empty(cells, size):
    """Name what is missing: a number, or on several ranks what was sent."""
    loss, nbytes, n_sends, staleness = cells
    found = [name for name, value in (("loss", loss), ("staleness", staleness)) if value is None or not math.isfinite(value)]
    return found + [name for name, value in (("bytes", nbytes), ("messages", n_sends)) if size > 1 and not value]


@pytest.mark.mpi
@pytest.mark.parametrize("how", METHODS, ids=str)
def test_no_cell_is_empty(comm, how):
    alone = how.get("averaging") != "elastic_async"  # whose centre lies in memory that all share
    summary, _ = trained(comm, JOB, int(alone), **how)  # each rank a host, so that what is told is sent
    cells = row(summary)
    assert empty(cells, comm.size) == [], cells
    assert cells[0] < (CODES[how["compress"]][1] if "compress" in how else math.log(10)), "it has learnt"


@pytest.mark.mpi
@pytest.mark.parametrize("code", ["two_bit", "sign_majority"])
def test_the_losses_catch_codes_of_which_nothing_arrives(comm, code, monkeypatch):
    for name in ("decode", "decode_add"):
        monkeypatch.setattr(Compressor, name, lambda self, code, lo, hi, out: out.fill(0))
    found = row(trained(comm, JOB, 1, strategy="data_parallel", compress=code, lr=CODES[code][0])[0])
    assert found[0] > max(bound for _, bound in CODES.values())


def test_the_check_catches_empty_cells():
    assert empty((None, 0, 0, math.nan), 2) == ["loss", "staleness", "bytes", "messages"] and empty((1.0, 0, 0, 0.0), 1) == []
