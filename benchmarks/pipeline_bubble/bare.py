"""Do the same sleeps in the same order without a runtime: `python bare.py SCHEDULE MICROBATCHES SECONDS CLOCKS CHUNKS`; prints one JSON line as measure.py does.

A process a rank, that sleeps where the program computes, writes a few bytes to the pipe of who shall go on, and blocks in a read until its own bytes are there.
So this is the limit: what the machine takes to end a sleep and to wake who waits.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from above import told

from benchmarks.machine import Watch
from mpidml.core import plugins
from mpidml.core.action import COMPUTE
from mpidml.core.lowering import lower
from mpidml.core.program import Program

N_RANKS = 4
WORD = struct.Struct("<4i")
"""Which clock, what (a receive's place in OPS), of which stage or rank, which microbatch."""
OPS = ("RF", "RB", "X")
LIMIT_SECONDS = 120
"""After which nobody waits for a process that is gone."""
SLEEPS = {"F": 1, "B": 2, "I": 1, "W": 1}


def interpret(rank: int, program: Program, seconds: float, clocks: int, pipes: list[tuple[int, int]]) -> list[list[tuple[float, float]]]:
    """Do a rank's actions; return for each clock when each of its computes began, and its seconds."""
    here: set[tuple[int, int, int, int]] = set()
    found = []

    def tell(target: int, *word: int) -> None:
        os.write(pipes[target][1], WORD.pack(*word))

    def wait(*word: int) -> None:
        while word not in here:
            here.add(WORD.unpack(os.read(pipes[rank][0], WORD.size)))
        here.discard(word)

    for clock in range(clocks):
        times = []
        for stage, op, item, _ in program.lists[rank]:
            if op in COMPUTE:
                began = time.perf_counter()
                for _ in range(SLEEPS[op]):
                    time.sleep(seconds)
                times.append((began, time.perf_counter() - began))
            elif op in ("SF", "SB"):
                to = stage + 1 if op == "SF" else stage - 1
                tell(program.ranks_of(to)[0], clock, OPS.index("R" + op[1]), to, item)
            elif op in ("RF", "RB"):
                wait(clock, OPS.index(op), stage, item)
            elif op == "X":
                others = [r for r in range(program.n_ranks) if r != rank]
                for other in others:
                    tell(other, clock, OPS.index(op), rank, item)
                for other in others:
                    wait(clock, OPS.index(op), other, item)
        found.append(times)
    return found


def main() -> None:
    """Measure."""
    schedule, n_items, seconds, clocks, n_chunks = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    program = lower(plugins.make("mpidml.schedules", schedule), N_RANKS, n_items)
    pipes, results = [os.pipe() for _ in range(N_RANKS)], [os.pipe() for _ in range(N_RANKS)]
    with Watch() as watch:
        children = []
        for rank in range(N_RANKS):
            if (child := os.fork()) == 0:
                signal.alarm(LIMIT_SECONDS)
                found = interpret(rank, program, seconds / n_chunks, clocks, pipes)
                os.close(results[rank][0])
                with os.fdopen(results[rank][1], "w") as stream:
                    json.dump(found, stream)
                os._exit(0)
            os.close(results[rank][1])
            children.append(child)
        ranks = []
        for rank in range(N_RANKS):
            with os.fdopen(results[rank][0]) as stream:
                ranks.append(json.load(stream))
        cpu = sum(sum(os.wait4(child, 0)[2][:2]) for child in children)
    print(told(program, list(zip(*ranks, strict=True)), watch.others(watch.cpu_seconds + cpu)))


if __name__ == "__main__":
    main()
