"""Draw what a seed of the campaign does: a job on some ranks, and one harm to it: which, on which rank, when.

    seeds 0 to 35       every fault under every strategy once
    seeds 36 to 71      once more, with other flags, ranks and moments; and so on
"""

from __future__ import annotations

import random
from typing import NamedTuple

from mpidml.core.placement import Placement, place

FAULTS = ("exception", "kill", "stop", "slow", "delay", "lost")
"""What is done to a rank: it raises; SIGKILL; SIGSTOP; it sleeps again and again; what it sends to another comes late, or never."""
GO_ON = ("slow", "delay")
"""Faults that a job has to live with."""
OF_MESSAGES = ("delay", "lost")
MOMENTS = ("start", "epoch", "evaluation", "checkpoint", "end")
WAIT_LIMIT = 3.0
SECONDS = 1.0
"""Of the first sleep of a slow rank, and by which messages are late: below the limit on waits."""
BASE = ("--hidden", "8,8,8,8", "--backend", "numpy", "--epochs", "4", "--wait-limit", f"{WAIT_LIMIT:g}")


class Line(NamedTuple):
    """A job's flags, and on how many ranks they can be.

    `sends`: every rank sends messages all along. `meets`: somebody soon waits for any message that is lost. `even`: every rank comes to its place once a clock.
    """

    words: str
    ranks: tuple[int, ...]
    sends: bool = True
    meets: bool = True
    even: bool = True


LINES = {
    "parameter_server": (
        Line("--sync bsp --deterministic", (2, 3, 4)),
        Line("--sync ssp:2", (2, 3, 5)),
        Line("--sync ssp:2 --servers 1 --deterministic", (2, 3)),
        Line("--sync asp", (2, 3), meets=False),
        Line("--sync asp --servers 1 --transport mpi", (3,), meets=False),
        Line("--sync dssp:1:4 --servers 2", (4, 5)),
        Line("--sync adaptive:1:4 --assign dynamic", (2, 3), meets=False, even=False),
        Line("--sync quorum:2", (3,), meets=False, even=False),
        Line("--sync warmup:10:2 --transport mpi --deterministic", (2, 3)),
        Line("--sync bsp --transport mpi --compress two_bit", (3,)),
        Line("--sync ssp:1 --reads cached", (3,)),
        Line("--sync ssp:1 --reads eager --transport mpi --servers 1", (3,)),
        Line("--sync bsp --servers 1 --group 2 --deterministic", (5,), sends=False),
        Line("--sync ssp:2 --group 2", (4,), sends=False),
        Line("--sync bsp --optimize workers", (3,)),
    ),
    "data_parallel": (
        Line("--deterministic", (2, 3), sends=False),
        Line("--collective ring --deterministic", (2, 3, 5)),
        Line("--collective rabenseifner", (3, 4)),
        Line("--collective recursive_doubling", (3,)),
        Line("--collective tree --deterministic", (3, 4)),
        Line("--collective shared --deterministic", (2, 3), sends=False),
        Line("--collective hierarchical", (3,), sends=False),
        Line("--collective mpi", (2, 3), sends=False),
        Line("", (3,), sends=False),
        Line("--transport mpi --compress two_bit --deterministic", (3,)),
        Line("--collective ring --shares measured", (3,)),
    ),
    "averaging": (
        Line("--average-every 4 --collective ring --deterministic", (2, 3)),
        Line("--average-every 4 --collective shared", (3,), sends=False),
        Line("--average-every 2 --collective gossip --deterministic", (3, 4)),
        Line("--average-every 4 --collective gossip:exponential", (4,)),
        Line("--average-every 4 --averaging elastic --collective ring", (3,)),
        Line("--average-every 4 --averaging elastic_async", (2, 3), sends=False),
    ),
    "pipeline": (
        Line("--schedule one_f_one_b --deterministic", (2, 3, 5)),
        Line("--schedule gpipe --microbatches 4", (3,)),
        Line("--schedule zero_bubble --transport mpi", (3,)),
        Line("--schedule interleaved:2 --partition 1,1,1,2", (2,)),
        Line("--schedule pipedream", (2,), even=False),
        Line("--schedule two_bw", (3,), even=False),
    ),
    "tensor": (
        Line("", (2, 3), sends=False),
        Line("--deterministic", (2, 3), sends=False),
        Line("--transport mpi --collective ring --deterministic", (2, 3)),
    ),
    "hybrid": (
        Line("--grid data=2,pipe=2", (4,)),
        Line("--grid data=2,pipe=2 --deterministic --schedule gpipe", (4,)),
        Line("--grid pipe=2,tensor=2", (4,)),
        Line("--grid data=2,tensor=2 --collective ring --transport mpi", (4,)),
        Line("--grid data=2,pipe=2 --sync ssp:1 --microbatches 4", (4,)),
    ),
}
STRATEGIES = tuple(LINES)


class Trial(NamedTuple):
    """What a seed does.

    `harm` names a place in the program (see `harm.PLACES`) which rank `rank` comes to for the `at`-th time. `once`: one message is lost, else all that follow
    it to the same rank. `same`: the job promises the same bits however slow a rank is.
    """

    seed: int
    strategy: str
    words: tuple[str, ...]
    n: int
    fault: str
    rank: int
    moment: str
    place: str
    at: int
    once: bool
    same: bool

    @property
    def placement(self) -> Placement:
        """Return where the roles of a parameter server are."""
        if self.strategy != "parameter_server":
            return Placement(self.n, (), tuple(range(self.n)))
        given = dict(zip(self.words, self.words[1:], strict=False))
        return place(self.n, given.get("--servers", "colocated"), int(given.get("--group", 1)))

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.fault} on rank {self.rank} of {self.n}, {self.moment} ({self.place}, time {self.at}), {' '.join(self.words)}"


def draw(seed: int) -> Trial:
    """Return what `seed` does, a function of the seed alone."""
    random_ = random.Random(seed)
    fault, strategy = FAULTS[seed % len(FAULTS)], STRATEGIES[seed // len(FAULTS) % len(STRATEGIES)]
    line = random_.choice([each for each in LINES[strategy] if each.sends or fault not in OF_MESSAGES])
    n = random_.choice(line.ranks)
    moment = "epoch" if fault in OF_MESSAGES else random_.choice(MOMENTS)
    words = ("--strategy", strategy, *line.words.split(), *BASE)
    if moment == "checkpoint" or random_.random() < 0.5:
        words += ("--checkpoint-every", str(random_.choice((10, 20))))
    if moment != "end" or random_.random() < 0.7:
        words += ("--no-report",)
    trial = Trial(seed, strategy, words, n, fault, 0, moment, "", 0, fault == "lost" and strategy == "parameter_server" and line.meets, "--deterministic" in words)
    rank = random_.choice([rank for rank in range(n) if moment != "evaluation" or computes(trial.placement, rank)])
    place, at = _place(random_, trial._replace(rank=rank), line.even)
    return trial._replace(rank=rank, place=place, at=at)


def computes(placement: Placement, rank: int) -> bool:
    """Tell whether a rank is a worker, or a member of one."""
    return rank in placement.worker_ranks or any(rank in group for group in placement.groups)


def _place(random_: random.Random, trial: Trial, even: bool) -> tuple[str, int]:
    """Return where in the program `trial.rank` meets its harm, and for the how manieth time: it comes there more often."""
    if trial.moment == "start":
        return random_.choice(("data", "network")), 1
    if trial.moment == "evaluation":
        return "score", random_.randint(1, 2)
    if trial.moment == "checkpoint":
        return ("commit", random_.randint(1, 8)) if trial.rank == 0 else ("pieces", random_.randint(1, 3))
    if trial.moment == "end":
        return ("model" if trial.rank == 0 else "gathered"), 1
    at = random_.randint(2, 60 if even else 8)
    if trial.strategy in ("pipeline", "tensor", "hybrid"):
        return "program", at
    placement = trial.placement
    if not computes(placement, trial.rank):
        return "served", at
    return ("gradient" if trial.rank in placement.worker_ranks else "member"), at
