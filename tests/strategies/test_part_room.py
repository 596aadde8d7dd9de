"""From the first moment of a run to the last, a rank with parts of layers has a small multiple of its own part: while layers are measured and laid out, and saved."""

import tracemalloc

import numpy as np
import pytest

from mpidml.nn import stage as stages
from mpidml.runtime import bands, stage_plan
from mpidml.runtime.profiling import of_all
from mpidml.runtime.staged import Staged
from tests.nn.test_part_room import peak, places_in_the_whole
from tests.runtime.test_rank_memory import built

WIDE = {"hidden": (1000, 1000), "microbatches": 1, "optimizer": "sgd", "batch": 20, "steps": 1}
WAYS = [{"strategy": "tensor"}, {"strategy": "hybrid", "grid": "data=0", "mix": "2=tensor"}]


def built_in(comm, monkeypatch, **way):
    """Return how many bytes a rank has at most while it is made ready, and those of its weights."""
    build, found = Staged.build, []

    def watched(self, *rest):
        tracemalloc.start()
        try:
            return build(self, *rest)
        finally:
            found.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    with monkeypatch.context() as patch:
        patch.setattr(Staged, "build", watched)
        with built(comm, **WIDE, **way) as strategy:
            (held,) = strategy.held.values()
            return found[0], held.stage.params.size * strategy.net.dtype.itemsize


def keeps(comm, monkeypatch, way):
    nbytes, own = built_in(comm, monkeypatch, **way)
    return all(comm.allgather(nbytes < 4 * own))


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_rank_is_made_ready_in_room_for_its_own_part(comm, monkeypatch, way):
    assert keeps(comm, monkeypatch, way), "weights, gradient, and of each a place and a mark"


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("broken", ["all places", "whole layers are measured"])
def test_the_check_catches_what_makes_a_whole_layer(comm, monkeypatch, broken):
    if broken == "all places":
        monkeypatch.setattr(stages, "fill_places", places_in_the_whole)
    else:
        monkeypatch.setattr(stage_plan, "of_all", lambda *given: of_all(*given[:4]))
    assert not keeps(comm, monkeypatch, WAYS[0])


# ---- when it is saved, and comes back


def saved_in(comm, monkeypatch, way, at_once):
    """Tell whether no rank has more than one and a half times its part besides, while parts become ranges and ranges parts, so many elements at a time."""
    monkeypatch.setattr(bands, "AT_ONCE", at_once)  # which is read when a run is made ready
    with built(comm, **WIDE, **way) as strategy:
        (held,), (store,) = strategy.held.values(), strategy.stores.values()
        weights, line = held.here.at(held.here.latest).ravel(), strategy.line
        most, band = peak(lambda: store.at(store.latest))
        whole = np.full(strategy.net.n_params, np.nan)
        for places, values in line.allgather((store.elements[0], weights)):
            whole[places] = values
        assert np.array_equal(np.concatenate(line.allgather(band.ravel())), whole)
        before = weights.copy()
        most_back, _ = peak(lambda: store.put(2 * band))
        assert np.array_equal(held.here.at(held.here.latest).ravel(), 2 * before)
        return all(comm.allgather(max(most, most_back) < 1.5 * weights.nbytes))


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_rank_is_saved_in_room_for_its_own_part(comm, monkeypatch, way):
    assert saved_in(comm, monkeypatch, way, 1 << 14)
    assert not saved_in(comm, monkeypatch, way, 1 << 40), "what the check would see"
