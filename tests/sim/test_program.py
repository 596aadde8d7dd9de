"""Hold the traces of a replayed program to its events: each once, of the kinds that a run on MPI leaves, on lines that do not overlap."""

import json

import numpy as np
import pytest

from mpidml.core import plugins
from mpidml.core.action import COMPUTE, MOVES, TRACED
from mpidml.core.lowering import lower
from mpidml.core.replay import Seconds, replay, units
from mpidml.core.trace import KINDS, to_chrome
from mpidml.sim.program import traces


def test_every_operation_but_the_reading_of_a_version_has_a_kind():
    assert set(TRACED) == {*COMPUTE, *MOVES, "U", "G", "X"} and set(TRACED.values()) < set(KINDS)


@pytest.mark.parametrize("name", plugins.names("mpidml.schedules"))
def test_each_event_is_traced_once_with_its_microbatch_and_its_peer(name):
    program = lower(plugins.make("mpidml.schedules", name), 3, 5, sums=True)
    run = replay(program, Seconds(units, lambda stage, forward: 0.5))
    columns = traces(program, run)
    for rank, of in enumerate(columns):
        events = [event for event in run.events if event.rank == rank and event.action.op != "V"]
        assert [KINDS[kind] for kind in of["kind"]] == [TRACED[event.action.op] for event in events]
        for column in ("stage", "item"):
            assert of[column].tolist() == [getattr(event.action, column) for event in events]
        assert set(of["clock"]) == {0}
        assert np.allclose(of["start"], [event.start for event in events]) and np.allclose(of["start"] + of["seconds"], [event.end for event in events])
        computed = np.isin(of["kind"], [KINDS.index(kind) for kind in ("forward", "backward", "weight_gradient")])
        assert of["seconds"][computed].sum() == pytest.approx(run.busy(rank))
    lines = [e for e in to_chrome([(rank, [], of) for rank, of in enumerate(columns)])["traceEvents"] if e.get("args", {}).get("name", "").startswith("compute")]
    assert [line["args"]["name"] for line in lines] == ["compute"] * 3, "a rank computes one thing at a time"


def test_what_one_rank_sends_the_other_receives():
    program = lower(plugins.make("mpidml.schedules", "interleaved"), 3, 4)
    sent, received = [], []
    for rank, of in enumerate(traces(program, replay(program))):
        for kind, clock, peer in zip(of["kind"].tolist(), of["item"].tolist(), of["peer"].tolist(), strict=True):
            if KINDS[kind] == "send":
                sent.append((rank, peer, clock))
            elif KINDS[kind] == "receive":
                received.append((peer, rank, clock))
            else:
                assert peer == -1
    assert sorted(sent) == sorted(received) and len(sent) == 2 * 5 * 4
    json.dumps(to_chrome([(0, ["stage 0"], traces(program, replay(program))[0])]))


@pytest.mark.parametrize(("name", "every", "old"), [("pipedream", 1, lambda k: 2 - k), ("pipedream:true", 1, lambda k: 2), ("two_bw", 3, lambda k: 1)])
def test_computes_tell_which_version_of_the_weights_they_read(name, every, old):
    """On stage k of three, where weights are so many updates old once the pipeline is full; without versions nothing is told."""
    program = lower(plugins.make("mpidml.schedules", name), 3, 12)
    for rank, of in enumerate(traces(program, replay(program), clock=4)):
        events = zip(of["kind"].tolist(), of["item"].tolist(), strict=True)
        assert of["version"].tolist() == [max(0, item // every - old(rank)) if KINDS[kind] in ("forward", "backward") else -1 for kind, item in events]
        assert set(of["clock"]) == {4}
    plain = lower(plugins.make("mpidml.schedules", "gpipe"), 3, 12)
    assert {version for of in traces(plain, replay(plain)) for version in of["version"].tolist()} == {-1}
