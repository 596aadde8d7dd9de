"""Let several ranks be one worker of the servers, as in MXNET-MPI (Mamidala et al. 2018, arXiv:1801.03855): a collective inside, the servers outside.

    leader     wait for the read | word | own part | sum | push, clock        what servers are asked, told and sent is a leader's alone: with groups of
    members                        word | own part | sum                      N ranks an N-th of the messages and bytes, at the same global batch

Servers and policies see a worker, whose share of a batch is cut once more: a part for each member, every sample once, the leader's never the smallest.
Parameters: where the servers' lie in a window of the host, members read them there; else the leader reads them into memory that its group shares, where
the group is inside one host, and otherwise sends them to each member. The members take part in scoring as in computing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mpidml.collectives.base import FOLDER, Collective, Done, Sum, make_collective
from mpidml.core import plugins
from mpidml.core.current_wait import MAIN, Wait
from mpidml.core.errors import UserError, WaitTimeout
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.driver import NAP_SECONDS, SPIN_SECONDS
from mpidml.runtime.summed_there import choose
from mpidml.runtime.training_there import stays
from mpidml.runtime.wire import pieces

TURN, SCORE, STOP = 1, 2, 3
PARTS = ("test", "val")
LEADER_FIRST_SECONDS = 2.0
"""A leader that waits for servers, and servers for others, say so first."""


class Word(NamedTuple):
    """What a leader tells its members: compute their part of a block, score theirs of PARTS[of], or stop here.

    `slot`: which copy of the parameters; with `follows` its values are sent behind the word. `scale`: what the gradient of one sample counts.
    """

    kind: int
    block: int = 0
    scale: float = 0.0
    slot: int = 0
    of: int = 0
    follows: bool = False


def collective_name(job: Job, one_host: bool) -> str:
    """Name what sums inside a group: what was asked for, else what needs no message inside a host, and the fewest bytes between hosts."""
    if job.collective != Job.collective:
        return job.collective
    return "shared" if one_host and job.transport == "auto" else "rabenseifner"


def check_groups(job: Job, comm: Any, groups: Sequence[Sequence[int]]) -> None:
    """Refuse what cannot sum gradients inside the groups."""
    if job.collective == Job.collective:
        return
    name, collective = job.collective.partition(":")[0], plugins.make(FOLDER, job.collective)
    if not collective.exact or hasattr(collective, "blocks"):
        raise UserError(f"--collective {job.collective}: sums no gradient inside a group; use one of ring, rabenseifner, tree, shared, hierarchical, mpi")
    if job.deterministic and collective.by_timing:
        raise UserError(f"--deterministic: --collective {job.collective} chooses by timing; leave it out, or name one, as ring")
    if job.transport == "mpi" and (name in ("shared", "hierarchical") or getattr(collective, "memory", False)):
        raise UserError(f"--transport mpi: uses no shared memory, --collective {name} does; leave one of them out")
    if name == "shared" and not all(_one_host(comm, ranks) for ranks in groups if comm.rank in ranks):
        raise UserError("--collective shared: a group has ranks of several hosts, which share no memory; use hierarchical, or a --group that fits a host")


def _one_host(comm: Any, ranks: Sequence[int]) -> bool:
    return all(comm.host_rank_of[rank] >= 0 for rank in ranks)


def make_group(strategy: Any) -> Group | None:
    """Return this rank's group; None where it is in none (Collective on all ranks)."""
    groups = strategy.placement.groups
    worker = next((w for w, ranks in enumerate(groups) if strategy.comm.rank in ranks), -1)
    part = strategy.comm.split(worker)
    return None if part is None else Group(strategy, worker, part)


def bytes_in_groups(comm: CountedComm, group: Group | None) -> dict[str, Any]:
    """Return on rank 0 how many of the bytes that each rank has sent went to ranks of its own group (Collective on comm)."""
    return {"bytes_in_groups": comm.gather(0 if group is None else group.nbytes_sent)}


class Group:
    """The ranks that are worker `worker`, on a communicator of their own: rank 0 of it leads. `listening`: members wait for the leader's word."""

    def __init__(self, strategy: Any, worker: int, comm: CountedComm) -> None:
        """Open what sums (Collective on the group)."""
        job = strategy.job
        self.worker, self.comm, self.ranks, self.limit = worker, comm, strategy.placement.groups[worker], job.wait_limit
        self.name = f"[rank {strategy.comm.rank}/{strategy.comm.size}]"
        self.one_host = _one_host(strategy.comm, self.ranks)
        self.shares = self.one_host and job.transport == "auto"
        self.sends = not strategy.in_place and not self.shares
        name = collective_name(job, self.one_host)
        self.collective: Collective = make_collective(name, comm)
        self.there: Any = None
        self.gpu_mpi = False, ""
        if stays(strategy):
            net = strategy.net
            on, nbytes = partial(make_collective, name), net.n_params * net.dtype.itemsize
            self.there, _, self.gpu_mpi = choose(job, net.device.kernels, self.collective, on, nbytes, lands=self.leads)
        self.tag, self.score_tag = comm.new_tag(), comm.new_tag()
        self.word = np.zeros(len(Word._fields))
        self.sending: list[Any] = []
        self.sums: list[Sum] = []  # of who computes here, freed with the rest
        self.listening, self.waited_seconds = False, 0.0
        self.sent_before = comm.nbytes_sent

    @property
    def leads(self) -> bool:
        """Whether this rank leads."""
        return bool(self.comm.rank == 0)

    @property
    def nbytes_sent(self) -> int:
        """How many bytes this rank has sent inside the group since it was made."""
        return self.comm.nbytes_sent - self.sent_before

    def flats(self, n: int, dtype: Any) -> list[Array]:
        """Return two arrays for the parameters, one for the whole group where it shares memory (Collective on the group)."""
        return [self.comm.shared(n, dtype) if self.shares else np.zeros(n, dtype) for _ in range(2)]

    def plan(self, gradient: Any) -> Sum:
        """Prepare the sum of a gradient, for the leader (Collective on the group)."""
        if self.there is not None and self.comm.size == 1:
            return Done()  # it is where it is needed
        sums: Collective = self.collective if self.there is None else self.there
        return sums.plan(gradient)

    def part(self, n: int) -> tuple[int, int]:
        """Return which of n samples are computed here."""
        rank, size = self.comm.rank, self.comm.size
        return -(-n * rank // size), -(-n * (rank + 1) // size)

    def say(self, word: Word, values: Array | None = None) -> None:
        """Tell all members, and send `values` behind the word; they have taken the last word, since they have done what it said."""
        with self.comm.blocked("the last word to members"):
            for request in self.sending:
                request.Wait()
        self.word[:] = word
        what = [self.word, *([] if values is None else pieces(values))]
        self.sending = [self.comm.Isend(piece, member, self.tag) for piece in what for member in range(1, self.comm.size)]

    def hear(self, idle: Callable[[], None]) -> Word:
        """Wait for the leader's word."""
        self._take(self.word, idle)
        kind, block, scale, slot, of, follows = self.word.tolist()
        self.comm.fence()
        return Word(int(kind), int(block), scale, int(slot), int(of), bool(follows))

    def take(self, values: Array, idle: Callable[[], None]) -> None:
        """Wait for the values behind a word."""
        for piece in pieces(values):
            self._take(piece, idle)

    def _take(self, buffer: Array, idle: Callable[[], None]) -> None:
        request = self.comm.Irecv(buffer, 0, self.tag)
        own = f"member {self.comm.rank} of worker {self.worker}"
        self.until(request.Test, lambda: f"{own} waits for its leader, rank {self.ranks[0]},", idle, self.limit + LEADER_FIRST_SECONDS)

    def until(self, ready: Callable[[], bool], who: Callable[[], str], idle: Callable[[], None], limit: float = 0.0) -> None:
        """Wait until `ready()`, and do what `idle` does meanwhile; WaitTimeout names `who` waits for whom. `waited_seconds` adds up what was slept."""
        began = time.perf_counter()
        with MAIN.on(Wait(lambda: f"its group: {who()}", began)):
            while not ready():
                idle()
                now = time.perf_counter()
                if now - began > (limit or self.limit):
                    raise WaitTimeout(f"{self.name} {who()} since {now - began:.1f} s; the limit is {self.limit:g} s (--wait-limit)")
                if now - began > SPIN_SECONDS:
                    time.sleep(min(NAP_SECONDS, max(2e-5, (now - began) / 8)))
                    self.waited_seconds += time.perf_counter() - now

    def late(self, found: Iterable[int]) -> str:
        """Name ranks of the group that are waited for: those that are known, else all others."""
        ranks = [self.ranks[r] for r in found] or [rank for r, rank in enumerate(self.ranks) if r != self.comm.rank]
        own = f"worker {self.worker}" if self.leads else f"member {self.comm.rank} of worker {self.worker}"
        return f"{own} waits for the gradient of rank {', '.join(map(str, ranks))} of its group,"

    def free(self) -> None:
        """Let communicator and windows go (Collective on the group)."""
        with self.comm.blocked("the last word to members"):
            for request in self.sending:
                request.Wait()
        for total in self.sums:
            total.free()
        if self.there is not None:
            self.there.free()
        self.collective.free()
        self.comm.free()
