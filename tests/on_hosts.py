"""Do on all ranks what a file asks for, and leave beside it what came of it: `mpirun ... python -m tests.on_hosts FOLDER [RANKS_PER_HOST ...]`.

    FOLDER/request.json    {"base": a job, "jobs": {name: changes}, "sums": [collectives], "n": elements, "times": sums of each}
    FOLDER/facts.json      what `info` says; who shares memory with rank 0; of each collective what crossed between hosts, counted and on the wire
    FOLDER/R.npz           the parameters that each job ends with, where so many ranks are taken for a host (0: those that are one)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mpidml.collectives.base import make_collective
from mpidml.core.job import Job
from mpidml.runtime import abort
from mpidml.runtime.comm import CountedComm, Sending, world
from mpidml.runtime.info import info
from tests.training import trained

TX_BYTES = Path("/sys/class/net/eth0/statistics/tx_bytes")


class Crossings:
    """Count the bytes that this rank sends to ranks of other hosts by requests that are made once, from the time when this is made."""

    def __init__(self) -> None:
        self.nbytes = 0
        far = set[Sending]()
        make, start = CountedComm.Send_init, Sending.Start

        def made(comm: CountedComm, buffer: Any, dest: int, tag: int = 0) -> Sending:
            sending = make(comm, buffer, dest, tag)
            if comm.host_rank_of[dest] < 0:
                far.add(sending)
            return sending

        def started(sending: Sending) -> None:
            self.nbytes += sending.nbytes * (sending in far)
            start(sending)

        CountedComm.Send_init, Sending.Start = made, started  # type: ignore[method-assign]


def measured(comm: CountedComm, name: str, n: int, times: int, crossings: Crossings) -> list[tuple[int, int]]:
    """Sum n values so many times; return of each host what its ranks have sent to others, and what left through its eth0 (Collective on comm)."""
    collective = make_collective(name, comm)
    buffer = collective.allocate(n, np.float64)
    total = collective.plan(buffer)

    def now() -> tuple[int, int]:
        comm.Barrier()
        found = crossings.nbytes, int(TX_BYTES.read_text()) if comm.rank == comm.leader else 0
        comm.Barrier()  # before that nobody sends anew
        return found

    before = now()
    for _ in range(times):
        buffer[:] = comm.rank + 1.0
        total.start()
        total.wait(60)
        assert (buffer == comm.size * (comm.size + 1) / 2).all()
    found = comm.allgather((comm.leader, *(b - a for a, b in zip(before, now(), strict=True))))
    total.free()
    collective.free()
    leaders = sorted({leader for leader, *_ in found})
    return [(sum(counted for of, counted, _ in found if of == leader), sum(wire for of, _, wire in found if of == leader)) for leader in leaders]


def main(folder: Path, layouts: list[int]) -> None:
    """Do what is asked for on every rank."""
    ranks = world()
    abort.install(ranks)
    request = json.loads((folder / "request.json").read_text())
    crossings, comm = Crossings(), CountedComm(ranks)
    sums = {name: measured(comm, name, request["n"], request["times"], crossings) for name in request["sums"]}
    facts = {"info": info(ranks), "host_rank_of": comm.host_rank_of, "sums": sums}
    comm.free()
    for ranks_per_host in layouts:
        base = Job().with_values(request["base"], "request")
        found = {name: trained(ranks, base, ranks_per_host, **changes)[1] for name, changes in request["jobs"].items()}
        if ranks.rank == 0:
            np.savez(folder / f"{ranks_per_host}.npz", **found)
    if ranks.rank == 0:
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
