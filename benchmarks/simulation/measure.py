"""Simulate ssp:3 once: `python measure.py ours|plain WORKERS CLOCKS`; prints one JSON line: virtual seconds, CPU seconds, peak memory, messages.

The plain simulator is the limit: a queue, a heap and lists, that know this one policy, one server and no payloads, no records, no reports.
"""

from __future__ import annotations

import heapq
import json
import resource
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))

from benchmarks.machine import Watch
from mpidml.core.cost import CostModel
from mpidml.sim.parameter_server import Plan, simulate
from mpidml.sync.ssp import Ssp

STALENESS, LATENCY = 3, 50e-6
COST = CostModel((0.01,), 0.5, LATENCY)


def plain(n_workers: int, n_clocks: int, seconds_of: Callable[[int, int], float]) -> float:
    """Return the virtual seconds until all workers have done their clocks. Reads of the first two are asked for by themselves, others ride on a push."""
    queue: deque[tuple[float, int, int]] = deque((LATENCY, w, 0) for w in range(n_workers))  # when, from which worker (or ~worker: to it), read of which clock
    ends: list[tuple[float, int]] = []
    step, n_answered, computing = [-1] * n_workers, [0] * n_workers, [False] * n_workers
    completed, behind, reached = [0] * n_workers, {0: n_workers}, 0
    parked: dict[int, list[tuple[int, int]]] = {}
    now = 0.0

    def begin(w: int) -> None:
        step[w] += 1
        computing[w] = True
        if step[w] == 0 and n_clocks > 1:
            queue.append((now + LATENCY, w, 1))
        heapq.heappush(ends, (now + seconds_of(w, step[w]), w))

    while queue or ends:
        if queue and (not ends or queue[0][0] <= ends[0][0]):
            now, w, clock = queue.popleft()
            if w < 0:
                n_answered[~w] += 1
                if not computing[~w] and n_answered[~w] == step[~w] + 2:
                    begin(~w)
                continue
            if clock > 1 or clock < 0:  # a push, which ends a clock
                done = completed[w]
                completed[w] = done + 1
                behind[done] -= 1
                behind[done + 1] = behind.get(done + 1, 0) + 1
                while reached < n_clocks and not behind.get(reached):
                    reached += 1
                    queue.extend((now + LATENCY, ~who, asked) for who, asked in parked.pop(reached, ()))
            if clock >= 0:
                if clock - STALENESS <= reached:
                    queue.append((now + LATENCY, ~w, clock))
                else:
                    parked.setdefault(clock - STALENESS, []).append((w, clock))
        else:
            now, w = heapq.heappop(ends)
            computing[w] = False
            queue.append((now + LATENCY, w, step[w] + 2 if step[w] + 2 < n_clocks else -1))
            if step[w] + 1 < n_clocks and n_answered[w] == step[w] + 2:
                begin(w)
            elif step[w] + 1 == n_clocks:
                last = now
    return last


def main() -> None:
    """Measure."""
    which, n_workers, n_clocks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with Watch() as watch:
        if which == "ours":
            found = simulate(Plan(Ssp(STALENESS), n_workers, n_clocks, COST))
            virtual, n_messages = found.seconds, found.n_messages
        else:
            virtual, n_messages = plain(n_workers, n_clocks, COST.seconds(0, n_workers).of), 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"virtual": virtual, "seconds": watch.cpu_seconds, "others": watch.others(), "mb": peak, "messages": n_messages}))


if __name__ == "__main__":
    main()
