"""Name every way to run a job on so many ranks: each factorisation of their number once, with each schedule and number of microbatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt
from typing import NamedTuple

from mpidml.core.grid import AXES, ProcessGrid

Grid = tuple[int, int, int]
MOST = 1 << 15
"""Microbatches times ranks of a pipe that are looked at: more of them are no better filled, and take long to time."""


class Candidate(NamedTuple):
    """Ranks along three axes, and how they go through a batch. `schedule` "": there are no stages. `recompute`: a stage keeps its inputs alone.

    Without stages and parts of layers `microbatches` are the parts in which a rank computes its share (--accumulate). `mix`: which layers are cut over replicas.
    """

    data: int = 1
    pipe: int = 1
    tensor: int = 1
    schedule: str = ""
    microbatches: int = 1
    recompute: bool = False
    mix: str = ""

    @property
    def n_ranks(self) -> int:
        """Count the ranks."""
        return self.data * self.pipe * self.tensor

    @property
    def is_plain(self) -> bool:
        """Whether every rank has the whole network."""
        return self.pipe == self.tensor == 1 and not self.mix

    @property
    def strategy(self) -> str:
        """Name what runs it."""
        return "data_parallel" if self.is_plain else "hybrid"

    @property
    def grid(self) -> str:
        """Write the axes as --grid does."""
        return str(ProcessGrid(dict(zip(AXES, self[:3], strict=True))))


def divisors(n: int) -> list[int]:
    """List the divisors of n from 1 up, in O(sqrt n)."""
    low = [k for k in range(1, isqrt(n) + 1) if n % k == 0]
    return low + [n // k for k in reversed(low) if k * k != n]


def factorisations(n_ranks: int) -> Iterator[Grid]:
    """Yield each (data, pipe, tensor) whose product is `n_ranks`, once."""
    for pipe in divisors(n_ranks):
        for tensor in divisors(n_ranks // pipe):
            yield n_ranks // pipe // tensor, pipe, tensor


def numbers(share: int) -> list[int]:
    """List how many microbatches a share of so many samples may be cut into: its divisors, and the powers of two up to it."""
    return sorted({*divisors(share), *(1 << k for k in range(share.bit_length()))}) if share else []


def candidates(grids: Sequence[Grid], batch: int, schedules: Sequence[str], microbatches: int = 0, mixes: Sequence[str] = ("",)) -> Iterator[Candidate]:
    """Yield what a batch can be run by on each of `grids`, with `schedules` where there are stages; `microbatches`: this many alone (0: all).

    `mixes` are looked at where there are replicas alone, "" being none of them; what has stages or parts of every layer is looked at where it is listed.

    None of a grid whose replicas are more than the samples. What computes activations again, or a rank's share in parts, is not listed: it is slower,
    and looked at where memory asks for it.
    """
    for data, pipe, tensor in grids:
        most = batch // data
        given = [microbatches] if 0 < microbatches <= most else []
        found = given if microbatches else [n for n in numbers(most) if n * pipe <= MOST]
        for mix in mixes if pipe == tensor == 1 < data else [""] * ("" in mixes):
            for schedule in schedules if pipe > 1 else [""]:
                for number in found[:1] if pipe == tensor == 1 and not mix else found:
                    yield Candidate(data, pipe, tensor, schedule, number, mix=mix)
