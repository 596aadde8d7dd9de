"""What is counted of a rank's stages is what its arrays are, to the byte: weights, gradients, optimizer, activations, what comes and goes, what is scored."""

from __future__ import annotations

import math

import pytest

from mpidml.nn import room
from mpidml.nn.parts import NetParts
from mpidml.runtime import rank_memory, stage_plan
from mpidml.runtime.profiling import counted as profiled
from mpidml.runtime.rank_memory import Stages, hosts_of
from tests.changed import changed
from tests.held import held_nbytes
from tests.runtime.test_rank_memory import built, refused

WAYS = [
    {"schedule": "one_f_one_b"}, {"schedule": "gpipe", "microbatches": 4}, {"schedule": "naive", "microbatches": 3}, {"schedule": "zero_bubble", "microbatches": 5},
    {"schedule": "looped_bfs", "optimizer": "sgd", "microbatches": 4, "batch": 24}, {"schedule": "interleaved:2", "optimizer": "adam"},
    {"schedule": "pipedream", "microbatches": 0, "batch": 100}, {"schedule": "two_bw", "microbatches": 0, "optimizer": "adam"},
    {"schedule": "gpipe", "microbatches": 4, "recompute": True}, {"microbatches": 1}, {"schedule": "gpipe", "transport": "mpi"},
    {"loss": "squared_error", "dropout": 0.1, "dtype": "float32", "schedule": "gpipe"},
]  # fmt: skip
NET = {"hidden": (80, 64, 48, 40, 56, 72, 40, 64, 48, 20), "steps": 12}
"""Steps for more microbatches than a stage keeps; under a schedule without a flush an epoch has as many."""
IN_TURN = {"schedule": "gpipe", "microbatches": 6, "collective": "ring"}
"""Summed in place: other collectives may have a gradient in memory of theirs."""
TURNS = {1: "1", 2: "1,1", 3: "2,1", 5: "3,2"}


def both(comm, hosts=1, **way):
    """Return what is counted for this rank, and what it holds."""
    with built(comm, hosts, **{**NET, **way}) as strategy:
        hosts = hosts_of(strategy.comm)
        return Stages(strategy, strategy.plan.stages, hosts, weights=strategy.part_weights).needs()[strategy.at["pipe"]], held_nbytes(strategy)


@pytest.mark.mpi
@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_is_counted_is_what_a_rank_holds(comm, way, hosts):
    counted, held = both(comm, hosts, **way)
    assert counted == held


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["auto", "mpi"])
def test_of_ranks_that_take_turns_each_has_slots_for_all_that_it_meets(comm, transport):
    counted, held = both(comm, transport=transport, **IN_TURN, replicas=TURNS[comm.size])
    assert counted == held


@pytest.mark.mpi
@pytest.mark.parametrize("way", [{"strategy": "tensor"}, {"strategy": "tensor", "microbatches": 1}, {"strategy": "hybrid", "grid": "data=0", "mix": "1=tensor"}], ids=str)
def test_of_parts_of_layers_the_fullest_has_what_is_counted(comm, way):
    counted, held = both(comm, deterministic=True, **way)
    most = max(comm.allgather(held))
    assert most <= counted < 1.01 * most


PARTS = {"strategy": "tensor", "hidden": (200, 200, 200), "batch": 60}
"""Most of what a rank has is its parts of weights."""


@pytest.fixture
def slow(monkeypatch):
    """Let rank 0 count as four times slower than the others, whatever is measured."""
    monkeypatch.setattr(stage_plan, "of_all", lambda comm, net, m, *_: (profiled(net, m), [0.25] + [1.0] * (comm.size - 1)))


def limited(comm, limit=""):
    """Return of a run under a limit what is counted for the fullest of its parts and of equal ones, what it holds, and whether its parts are unequal."""
    with built(comm, memory_per_rank=str(limit), **PARTS) as strategy:
        own, equal = (
            math.ceil(max(Stages(strategy, strategy.plan.stages, hosts_of(strategy.comm), weights=of).needs())) for of in (strategy.part_weights, ())
        )
        return own, equal, max(comm.allgather(held_nbytes(strategy))), len(set(strategy.part_weights)) > 1


@pytest.mark.mpi(min_size=2)
def test_unequal_parts_are_counted_as_they_are_and_equal_ones_are_taken_where_they_do_not_fit(comm, slow):
    own, equal, held, uneven = limited(comm)
    assert uneven and held <= own < 1.01 * held and own > 1.05 * equal
    for limit, stays in ((own, True), (own - 1, False), (equal, False)):
        _, _, held, uneven = limited(comm, limit)
        assert held <= limit and uneven == stays
    assert f": rank {comm.size - 1} (" in refused(comm, memory_per_rank=str(equal - 1), **PARTS)


@pytest.mark.mpi(min_size=2)
def test_the_limit_catches_parts_that_are_counted_as_equal(comm, slow, monkeypatch):
    _, equal, _, _ = limited(comm)
    monkeypatch.setattr(rank_memory, "NetParts", lambda net, *_: NetParts(net))
    _, _, held, uneven = limited(comm, equal)
    assert uneven and held > 1.05 * equal


BROKEN = {
    "no slot for what is on its way": ("kept[s + 1] + 1, *", "kept[s + 1], *"),
    "nothing for what is scored": (" + block * part.scored", ""),
    "no gradient of a microbatch": ("(n_items > 1)", "0"),
    "one rank takes all turns": ("(lcm(turns[s], turns[s + 1]) // turns[end])", "1"),
}


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("broken", BROKEN)
def test_the_comparison_catches_that(comm, monkeypatch, broken):
    monkeypatch.setattr(rank_memory, "stages_nbytes", changed(room, [BROKEN[broken]]).stages_nbytes)
    counted, held = both(comm, **IN_TURN, replicas=TURNS[comm.size])
    assert any(comm.allgather(counted < held))
