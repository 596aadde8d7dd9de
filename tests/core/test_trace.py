"""Hold traces to what a viewer needs: nothing lost, nothing overlapping on one line, and no memory kept per event beyond the record."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.trace import KINDS, OF_ACTIONS, Trace, shares, to_chrome

events_of_one_rank = st.lists(st.tuples(st.sampled_from(KINDS), st.floats(0, 100), st.floats(0, 10), st.integers(-1, 99)), max_size=60)


def trace_of(events: list[tuple[str, float, float, int]]) -> Trace:
    trace = Trace(capacity=2)
    for kind, start, seconds, clock in events:
        trace.add(kind, start, seconds, clock)
    return trace


def complete(chrome: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in chrome["traceEvents"] if event["ph"] == "X"]


def collisions(chrome: dict[str, Any]) -> int:
    """Count events of one line that begin before the one before them has ended (in whole nanoseconds)."""
    lines: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in complete(chrome):
        start = round(event["ts"] * 1000)
        lines.setdefault((event["pid"], event["tid"]), []).append((start, start + round(event["dur"] * 1000)))
    return sum(b[0] < a[1] for line in lines.values() for a, b in zip(sorted(line), sorted(line)[1:], strict=False))


def test_columns_hold_each_event_as_it_was_added_and_grow_past_the_capacity() -> None:
    trace = Trace(capacity=1)
    for i in range(5):
        trace.add(i, i * 0.5, 0.25, i, 10 * i, 4 - i, i + 1, i + 2, i + 3)
    columns = trace.columns()
    assert len(trace) == 5
    assert columns["kind"].tolist() == [0, 1, 2, 3, 4] and columns["start"].tolist() == [0, 0.5, 1, 1.5, 2]
    assert columns["seconds"].tolist() == [0.25] * 5 and columns["clock"].tolist() == [0, 1, 2, 3, 4]
    assert columns["nbytes"].tolist() == [0, 10, 20, 30, 40] and columns["peer"].tolist() == [4, 3, 2, 1, 0]
    assert [columns[name].tolist() for name in OF_ACTIONS] == [[i + k for i in range(5)] for k in (1, 2, 3)]
    trace.add("apply", 9.0, 1.0)  # columns are copies: the trace may go on
    assert len(columns["kind"]) == 5 and trace.columns()["kind"][5] == KINDS.index("apply")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        Trace().add("thinking", 0.0, 1.0)


def test_an_event_keeps_no_object_alive() -> None:
    trace = Trace(capacity=5000)
    trace.add("pull", 0.0, 0.5)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(4000):
        trace.add("pull", i * 1.5, 0.5, i + 1000, i + 1000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 4000, f"{grown} bytes for 4000 events: less than one byte each was due"


def test_the_chrome_trace_is_json_with_all_kinds_and_names_of_ranks_and_roles() -> None:
    trace = Trace()
    for code, kind in enumerate(KINDS):
        trace.add(kind, float(code), 0.5, clock=code, nbytes=100 * code, peer=3)
    chrome = json.loads(json.dumps(to_chrome([(2, ["server 0", "worker 1"], trace.columns())])))
    assert {event["name"] for event in complete(chrome)} == set(KINDS)
    pull = next(event for event in complete(chrome) if event["name"] == "pull")
    assert (pull["pid"], pull["ts"], pull["dur"]) == (2, 2e6, 5e5)
    assert pull["args"] == {"clock": 2, "bytes": 200, "peer": 3}
    of_stage = Trace()
    of_stage.add("forward", 0.0, 1.0, clock=0, stage=0, item=5, version=0)
    assert complete(to_chrome([(0, [], of_stage.columns())]))[0]["args"] == {"clock": 0, "stage": 0, "microbatch": 5, "version": 0}
    names = {(event["name"], event["args"]["name"]) for event in chrome["traceEvents"] if event["name"].endswith("_name")}
    assert ("process_name", "rank 2: server 0, worker 1") in names and ("thread_name", "compute") in names


@given(st.lists(events_of_one_rank, max_size=3))
def test_events_of_one_line_never_overlap_and_none_is_lost(ranks: list[list[tuple[str, float, float, int]]]) -> None:
    chrome = to_chrome([(rank, [f"worker {rank}"], trace_of(events).columns()) for rank, events in enumerate(ranks)])
    assert collisions(chrome) == 0
    assert len(complete(chrome)) == sum(len(events) for events in ranks)
    for rank, events in enumerate(ranks):
        assert sorted(event["name"] for event in complete(chrome) if event["pid"] == rank) == sorted(kind for kind, *_ in events)


def test_one_line_for_all_pulls_is_caught() -> None:
    chrome = to_chrome([(0, [], trace_of([("pull", 0.0, 2.0, 0), ("pull", 1.0, 2.0, 1)]).columns())])
    assert len({event["tid"] for event in complete(chrome)}) == 2
    broken = {"traceEvents": [{**event, "tid": 0} for event in chrome["traceEvents"]]}
    assert collisions(chrome) == 0 and collisions(broken) == 1


def test_shares_count_overlapping_events_once() -> None:
    trace = trace_of([("compute", 0.0, 2.0, 0), ("compute", 6.0, 1.0, 1), ("pull", 1.0, 4.0, 0), ("pull", 2.0, 1.0, 0), ("pull", 4.0, 3.0, 0)])
    part = shares(trace.columns(), 10.0)
    assert part["compute"] == pytest.approx(0.3) and part["pull"] == pytest.approx(0.6) and part["wait"] == 0
    assert set(part) == set(KINDS)
    assert shares(Trace().columns(), 0.0)["compute"] == 0


@given(events_of_one_rank)
def test_shares_are_those_of_a_dense_ruler(events: list[tuple[str, float, float, int]]) -> None:
    grid = [(kind, float(round(start)), float(round(seconds)), clock) for kind, start, seconds, clock in events]
    part = shares(trace_of(grid).columns(), 120.0)
    for kind in KINDS:
        ruler = np.zeros(120, dtype=bool)
        for name, start, seconds, _ in grid:
            if name == kind:
                ruler[int(start) : int(start + seconds)] = True
        assert part[kind] == pytest.approx(ruler.mean())
