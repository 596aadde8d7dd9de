"""Record what a rank did when, cheaply enough to leave on, and write it in the form that Perfetto opens.

    rank 2: worker 1   compute | ####  ####    ####
                       wait    |     ..    ....
                       pull    |  ----  ----
                       pull 2  |    ------            a second pull in flight at the same time takes a lane of its own
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
KINDS = ("compute", "wait", "pull", "push", "apply", "evaluate", "sum", "forward", "backward", "weight_gradient", "receive", "send", "update")
"""The kinds of events; an event stores the position of its kind here."""
_CODES = {kind: code for code, kind in enumerate(KINDS)}
_LANES = dict.fromkeys(("evaluate", "forward", "backward", "weight_gradient", "update"), "compute")
# the lane of a kind, where it is not its own: a rank never does two of these at once, but stages that compute while rows are scored
_SHOWN = {"nbytes": "bytes", "item": "microbatch"}
OF_ACTIONS = ("stage", "item", "version")
"""What an event tells besides where it is an action of a pipeline's program (`core.action`): its microbatch, and the version of the weights that this reads."""
_WHOLE = ("clock", "nbytes", "peer", *OF_ACTIONS)
_DTYPE = np.dtype([("kind", "<i8"), ("start", "<f8"), ("seconds", "<f8"), *((name, "<i8") for name in _WHOLE)])
_NBYTES = _DTYPE.itemsize
_pack = struct.Struct("<qddqqqqqq").pack_into  # one record of _DTYPE


class Trace:
    """Collect the events of one rank in one growing buffer: 72 bytes an event, no object kept, amortised O(1)."""

    def __init__(self, capacity: int = 1024) -> None:
        self._buffer = bytearray(max(1, capacity) * _NBYTES)
        self._end = 0

    def __len__(self) -> int:
        return self._end // _NBYTES

    def add(
        self, kind: int | str, start_seconds: float, seconds: float, clock: int = -1, nbytes: int = 0, peer: int = -1, stage: int = -1, item: int = -1, version: int = -1
    ) -> None:
        """Record one event; `start_seconds` counts from the start of the run, -1 stands for no clock, no peer, no stage, no microbatch `item` and no version.

        `kind` is a name out of KINDS or its position there (faster). KeyError for an unknown name.
        """
        at = self._end
        if at == len(self._buffer):
            self._buffer.extend(bytes(at))
        _pack(self._buffer, at, _CODES[kind] if isinstance(kind, str) else kind, start_seconds, seconds, clock, nbytes, peer, stage, item, version)
        self._end = at + _NBYTES

    def columns(self) -> dict[str, Array]:
        """Return the events as arrays of equal length: kind, clock, nbytes, peer, stage, item, version (int64), start, seconds (float64).

        They are copies, fit to be gathered by MPI; the trace may go on.
        """
        events = np.frombuffer(bytes(self._buffer[: self._end]), dtype=_DTYPE)
        return {name: np.ascontiguousarray(events[name]) for name in _DTYPE.names or ()}


def shares(columns: dict[str, Array], total_seconds: float) -> dict[str, float]:
    """Return for each kind the share of `total_seconds` (0 to 1) in which at least one event of it ran; overlapping events count once."""
    return {kind: _covered_seconds(columns, code) / total_seconds if total_seconds > 0 else 0.0 for code, kind in enumerate(KINDS)}


def to_chrome(traces: Iterable[tuple[int, Sequence[str], dict[str, Array]]], about: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the traces (rank, names of its roles, columns) as a Chrome trace: complete events, microseconds, pid = rank, one tid a lane.

    `about`: what is to be known of all of them, which Perfetto shows with the trace's metadata.
    Events of one tid never overlap. Starts are taken as they are: give all ranks one common origin. Costs O(n log n) an n-event rank.
    Source: the Trace Event Format, "X" and "M" events.
    """
    events: list[dict[str, Any]] = []
    for rank, roles, columns in traces:
        events.append(_named("process_name", rank, 0, f"rank {rank}: {', '.join(roles)}" if roles else f"rank {rank}"))
        events.append({"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "args": {"sort_index": rank}})
        # whole nanoseconds, so that rounding makes no overlap
        starts = np.rint(columns["start"] * 1e9).astype(np.int64)
        ends = np.rint((columns["start"] + columns["seconds"]) * 1e9).astype(np.int64)
        tid = 0
        for group in dict.fromkeys(_LANES.get(kind, kind) for kind in KINDS):
            codes = [code for kind, code in _CODES.items() if _LANES.get(kind, kind) == group]
            for number, lane in enumerate(_lanes(starts, ends, np.flatnonzero(np.isin(columns["kind"], codes))), 1):
                events.append(_named("thread_name", rank, tid, group if number == 1 else f"{group} {number}"))
                events.extend(_complete(columns, lane, starts, ends, rank, tid))
                tid += 1
    return {"traceEvents": events, "displayTimeUnit": "ms"} | ({"otherData": about} if about else {})


def _lanes(starts: Array, ends: Array, chosen: Array) -> list[list[int]]:
    """Put the chosen events on lanes so that no two of a lane overlap: by start, each on the first lane that is free."""
    lanes: list[list[int]] = []
    free_at: list[int] = []
    by_start = chosen[np.lexsort((ends[chosen], starts[chosen]))]
    for i, start, end in zip(by_start.tolist(), starts[by_start].tolist(), ends[by_start].tolist(), strict=True):
        lane = next((k for k, free in enumerate(free_at) if free <= start), len(lanes))
        if lane == len(lanes):
            lanes.append([])
            free_at.append(end)
        lanes[lane].append(i)
        free_at[lane] = end
    return lanes


def _complete(columns: dict[str, Array], lane: list[int], starts: Array, ends: Array, rank: int, tid: int) -> Iterator[dict[str, Any]]:
    """Yield the events of one lane; what an event has not (a clock, a peer, bytes) is left out of its arguments."""
    fields = [columns[name][lane].tolist() for name in _WHOLE]
    kinds = columns["kind"][lane].tolist()
    for kind, start, end, *given in zip(kinds, starts[lane].tolist(), ends[lane].tolist(), *fields, strict=True):
        args = {_SHOWN.get(name, name): value for name, value in zip(_WHOLE, given, strict=True) if value != (0 if name == "nbytes" else -1)}
        name = KINDS[kind]
        yield {"ph": "X", "name": name, "cat": name, "pid": rank, "tid": tid, "ts": start / 1000, "dur": (end - start) / 1000, "args": args}


def _named(what: str, rank: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": rank, "tid": tid, "args": {"name": name}}


def _covered_seconds(columns: dict[str, Array], code: int) -> float:
    of_kind = columns["kind"] == code
    order = np.argsort(columns["start"][of_kind], kind="stable")
    starts = columns["start"][of_kind][order]
    ends = np.maximum.accumulate(starts + columns["seconds"][of_kind][order])
    begins = starts.copy()
    begins[1:] = np.maximum(starts[1:], ends[:-1])
    return float(np.maximum(ends - begins, 0).sum())
