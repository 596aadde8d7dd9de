"""Say where the ranks of a grid lie on hosts with so many cores, and what a message between them and a sum over a line of them cost.

    4 ranks on 2 hosts, data=2,pipe=2     host 0: rank 0 -> rank 1        the last axis varies fastest: parts of a layer are neighbours, then the
                                                    |         |           stages of a replica, then the replicas
                                          host 1: rank 2 -> rank 3
"""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import NamedTuple

import numpy as np

from mpidml.core.rounds import priced
from mpidml.planner.candidate import Candidate
from mpidml.sim.data_parallel import CHOSEN, sizes_of


class Link(NamedTuple):
    """What lies between two ranks: a message is under way for `latency` seconds and its bytes over `bytes_per_second` (0: they take no time)."""

    latency: float = 0.0
    bytes_per_second: float = 0.0

    def seconds(self, nbytes: float) -> float:
        """Return how long a message is under way."""
        return self.latency + (nbytes / self.bytes_per_second if self.bytes_per_second else 0.0)


class Machine(NamedTuple):
    """`n_ranks` over `n_hosts` alike, the first ones on the first; `n_cores` of each host; what is between ranks of one host, and of two.

    `wake`: seconds until a rank that waits has a core again, for each message between stages and each half of a sum, where ranks share cores.
    `per_host`: how many ranks fill a host (0: as few as `n_hosts` hold all); the last host has the rest.
    """

    n_ranks: int
    n_hosts: int = 1
    n_cores: int = 1
    inside: Link = Link()
    between: Link = Link()
    wake: float = 0.0
    per_host: int = 0

    @property
    def full(self) -> int:
        """Count the ranks of a full host."""
        return self.per_host or -(-self.n_ranks // self.n_hosts)

    def waking(self, of: Candidate) -> float:
        """Return `wake` for a candidate with more ranks on a host than it has cores, else 0."""
        return self.wake if min(of.n_ranks, self.full) > self.n_cores else 0.0

    def link(self, crosses: bool) -> Link:
        """Return what is between two ranks."""
        return self.between if crosses else self.inside


class Places(NamedTuple):
    """Where a grid lies. `tensor`, `data`: whether a line on that axis has ranks of two hosts, `hops[p]`: whether any rank at p of the pipe is
    on another host than the one at p + 1, the last one than the first.

    `on_host[h, p]`: how many ranks of host h are at p. Those at one p compute at the same time: `crowd` of them, or 1, share a core.
    """

    tensor: bool
    data: bool
    hops: tuple[bool, ...]
    on_host: tuple[tuple[int, ...], ...]
    crowd: float


def places(of: Candidate, machine: Machine) -> Places:
    """Return where a candidate lies; costs O(ranks)."""
    return _places(of[:3], machine)


@cache
def _places(grid: tuple[int, int, int], machine: Machine) -> Places:
    n = grid[0] * grid[1] * grid[2]
    hosts = (np.arange(n) // machine.full).reshape(grid)
    ahead = np.roll(hosts, -1, axis=1)
    at = hosts * grid[1] + np.arange(grid[1])[None, :, None]
    on_host = np.bincount(at.reshape(-1), minlength=(int(hosts.max()) + 1) * grid[1]).reshape(-1, grid[1])
    return Places(
        bool((hosts[:, :, :1] != hosts).any()),
        bool((hosts[:1] != hosts).any()),
        tuple(bool(each) for each in (hosts != ahead).any(axis=(0, 2))),
        tuple({tuple(int(n) for n in row) for row in on_host}),
        max(1.0, float(on_host.max()) / machine.n_cores),
    )


class SumCost(NamedTuple):
    """What a sum over a line costs, by one collective: (rounds, share of the buffer that they take) of ranks that differ; `sent`: the largest
    share of the buffer that a rank sends; `owned`: the largest that one owns between the halves of the sum."""

    name: str
    ranks: tuple[tuple[float, float], ...]
    sent: float
    owned: float

    def seconds(self, nbytes: float, link: Link) -> float:
        """Return the seconds of the rank that has the most to do."""
        per_byte = 1 / link.bytes_per_second if link.bytes_per_second else 0.0
        return max(n_rounds * link.latency + share * nbytes * per_byte for n_rounds, share in self.ranks)


ALONE = SumCost("", ((0.0, 0.0),), 0.0, 1.0)


@cache
def sum_costs(name: str, n_ranks: int) -> tuple[SumCost, ...]:
    """Return what a sum over so many ranks costs by a collective, or for `auto` by each of those it stands for.

    They are those of `sim.data_parallel`, of a buffer that is cut evenly; of another one they are off by a few bytes. Nothing is sent by one rank.
    """
    if n_ranks == 1:
        return (ALONE,)
    n = n_ranks << (n_ranks.bit_length() + 6)
    found = []
    for each in CHOSEN if name == "auto" else (name,):
        parts = list(islice(sizes_of(each, n_ranks, n), 1 if each == "ring" else None))  # all ranks of a ring are alike, and it has many rounds
        ranks = {(priced(of, 1, 1.0, float("inf")), priced(of, 1, 0.0, n)) for of in parts}
        found.append(SumCost(each, tuple(sorted(ranks)), max(int(of.sent.sum()) for of in parts) / n, max(of.owned for of in parts) / n))
    return tuple(found)


def cheapest(name: str, n_ranks: int, nbytes: float, link: Link) -> SumCost:
    """Return the collective that sums so many bytes soonest, the first of equals."""
    return min(sum_costs(name, n_ranks), key=lambda cost: cost.seconds(nbytes, link))
