"""Hold the optimizer that ranks share out: each part of it has one owner, and the weights are those of ranks that hold all of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from mpidml.collectives.base import Collective
from mpidml.collectives.hierarchical import Hierarchical
from mpidml.core.job import Job
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.own_links import OwnLinks
from mpidml.strategies import data_parallel
from tests.strategies.test_data_parallel import prepared, run

pytestmark = pytest.mark.shows_from(3)


class Owned(NamedTuple):
    """How many values of optimizer state each rank holds, of how many in all; the most that each may hold where they are shared out evenly; the heading."""

    held: list[int]
    all: int
    even: list[int]
    words: str


def owned(comm, name, per_host=0, optimizer="adam", **changes):
    """Train a little and count. `hierarchical` shares out evenly over the hosts, and inside each over its ranks."""
    counted = CountedComm(comm, per_host)
    strategy, whole = prepared(counted, collective=name, optimizer=optimizer, **changes)
    assert len(strategy.driver.buckets) > 2
    own = sum(array.size for store in strategy.stores.values() for array in store.optimizer.values())
    n, n_hosts = strategy.net.n_params, len(set(comm.allgather(counted.leader)))
    even = n / (n_hosts * counted.host.size) + len(strategy.driver.buckets)
    found = Owned(comm.allgather(own), 2 * n, [2 * most for most in comm.allgather(even)], strategy.words())  # m and v
    whole.drive()
    whole.end(None)
    counted.free()
    return found


OWNING = [
    ("shared", 0), ("ring", 0), ("rabenseifner", 0), ("tree", 0), ("hierarchical", 0), ("hierarchical", 2), ("hierarchical:ring", 2), ("hierarchical:tree", 2),
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["adam", "clamp:1+clip:0.1+adam"])
@pytest.mark.parametrize(("name", "per_host"), OWNING)
def test_each_part_of_the_optimizer_has_one_owner(comm, name, per_host, optimizer):
    found = owned(comm, name, per_host, optimizer)
    owners = [rank for rank, size in enumerate(found.held) if size]
    assert sum(found.held) == found.all
    assert ("; each owns a part of weights and optimizer" in found.words) == (len(owners) == comm.size > 1)
    assert ("; rank 0 alone owns weights and optimizer" in found.words) == (owners == [0] and comm.size > 1)
    assert name != "tree" or owners == [0], "a tree leaves the sum on one rank"
    assert name != "hierarchical:tree" or owners == list(range(min(2, comm.size))), "or on the ranks of one host"
    halved = {"rabenseifner": comm.size, "hierarchical": -(-comm.size // (per_host or comm.size))}.get(name, 1)
    if "tree" not in name and not halved & (halved - 1):  # of three rabenseifner leaves one without
        assert all(size <= most for size, most in zip(found.held, found.even, strict=True))


WHOLE = [
    {"collective": "mpi"}, {"collective": "recursive_doubling"}, {"collective": "hierarchical:recursive_doubling"}, {"collective": "ring", "optimizer": "lars:0.1"},
    {"collective": "ordered", "bucket": Job.bucket, "optimizer": "clip:0.1+adam"}, {"compress": "bf16", "transport": "mpi"},
]  # fmt: skip


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("way", WHOLE, ids=str)
def test_where_each_rank_holds_all_of_the_optimizer_the_heading_says_so(comm, way):
    counted = CountedComm(comm, ranks_per_host=1)
    strategy, whole = prepared(counted, **way)
    own = sum(array.size for store in strategy.stores.values() for array in store.optimizer.values())
    assert set(comm.allgather(own)) == {own} and not own % strategy.net.n_params and own
    assert "; each changes all weights and holds all of the optimizer" in strategy.words()
    whole.drive()
    whole.end(None)
    counted.free()


def hold_all(monkeypatch):
    """Let each rank change all weights, as where no part of a sum is one's own."""
    monkeypatch.setattr(data_parallel, "needs_whole", lambda links: links is not None)
    for name in ("halves", "weights"):
        monkeypatch.setattr(Hierarchical, name, getattr(Collective, name))


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("name", "per_host", "optimizer"), [("hierarchical", 2, "adam"), ("ring", 0, "clip:0.1+adam"), ("shared", 0, "clip:0.1+adam")])
def test_the_count_catches_an_optimizer_that_is_whole_on_every_rank(comm, name, per_host, optimizer, monkeypatch):
    hold_all(monkeypatch)
    found = owned(comm, name, per_host, optimizer)
    assert found.held == [found.all] * comm.size and "; each owns" not in found.words


PARTS = [
    ("hierarchical", 2, "adam"), ("hierarchical:ring", 2, "clamp:0.01+adagrad"), ("hierarchical", 2, "clamp:0.01+clip:0.01+momentum"), ("ring", 2, "clip:0.01+momentum"),
    ("rabenseifner", 0, "clip:0.01+momentum"), ("shared", 0, "clip:0.01+clip:0.005+adam"), ("tree", 0, "clip:0.01+adam"),
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize(("name", "per_host", "optimizer"), PARTS)
def test_who_changes_parts_finds_the_weights_of_who_changes_all(comm, name, per_host, optimizer, monkeypatch):
    """To the same bits, but where a norm is measured: its squares are added in another order."""
    options = {"ranks_per_host": per_host, "collective": name, "optimizer": optimizer, "lr": 0.01}
    parts = run(comm, **options)[1]
    if "clip" in optimizer and comm.size > 1 and name != "tree":  # whose owner has all
        monkeypatch.setattr(OwnLinks, "_summed", lambda self, own: own)
        with pytest.raises(AssertionError):  # each by the norm of its own part
            np.testing.assert_allclose(run(comm, **options)[1], parts, rtol=1e-9, atol=1e-12)
        monkeypatch.undo()
    hold_all(monkeypatch)
    whole = run(comm, **options)[1]
    np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=1e-12)
    assert "clip" in optimizer or np.array_equal(parts, whole)
