"""A program: what each rank of a pipeline does, in order. It is plain data: printed, checked, drawn, timed on virtual clocks, and run on MPI.

    rank 0   0F0 0SF0 0F1 0SF1 0RB0 0B0 0RB1 0B1 0U        stage s lives on rank s % n_ranks; with more stages than ranks a rank has several,
    rank 1   1RF0 1F0 1B0 1SB0 1RF1 1F1 1B1 1SB1 1U        its chunks
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mpidml.core.action import Action, parse
from mpidml.core.balance import route


class Program(NamedTuple):
    """`lists[r]`: the actions of rank r. `trains`: whether every microbatch has a backward pass.

    `edges`: where ranks take the microbatches of a stage by turns (`core.turns`), the first rank of each stage, and the number of ranks.
    """

    lists: tuple[tuple[Action, ...], ...]
    n_stages: int
    n_items: int
    trains: bool = True
    edges: tuple[int, ...] = ()

    @property
    def n_ranks(self) -> int:
        """Count the ranks."""
        return len(self.lists)

    @property
    def n_chunks(self) -> int:
        """Count the stages of a rank."""
        return max(1, self.n_stages // self.n_ranks)

    @property
    def splits(self) -> bool:
        """Tell whether a backward of any rank comes in halves, the gradient of the weights by itself."""
        return any(action.op == "W" for actions in self.lists for action in actions)

    def rank_of(self, stage: int, item: int = 0) -> int:
        """Return where a stage lives, or that of its ranks whose turn a microbatch is."""
        if not self.edges:
            return stage % len(self.lists)
        return self.edges[stage] + route(item, self.edges[stage + 1] - self.edges[stage])

    def ranks_of(self, stage: int) -> range:
        """Return all ranks of a stage."""
        return range(first := stage % len(self.lists), first + 1) if not self.edges else range(self.edges[stage], self.edges[stage + 1])

    def is_last(self, stage: int) -> bool:
        """Tell whether the loss is computed there."""
        return stage == self.n_stages - 1

    def text(self, marked: tuple[int, int] | None = None, at: Sequence[int] = (), around: int = 8) -> str:
        """Print the lists, a line for each rank: all that they hold, which `read` reads.

        `marked` = (rank, position): that action stands in angle brackets, and of long lists no more than `around` actions are shown to each side of it, of
        the other ranks to each side of `at`, of the ranks the nearest.
        """
        if marked is None:
            return "\n".join(f"rank {rank}: {' '.join(map(str, actions))}" for rank, actions in enumerate(self.lists))
        low, high = max(0, marked[0] - around), min(self.n_ranks, marked[0] + around + 1)
        lines = [f"... {low} ranks"] * (low > 0)
        for rank in range(low, high):
            actions = self.lists[rank]
            middle = marked[1] if rank == marked[0] else at[rank] if rank < len(at) else marked[1]
            middle = min(middle, len(actions))
            first, end = max(0, middle - around), middle + around + 1
            words = [str(action) for action in actions[first:end]]
            if rank == marked[0]:
                words[middle - first : middle - first + 1] = [f">>{actions[middle] if middle < len(actions) else 'end'}<<"]
            lines.append(f"rank {rank}: {'... ' * (first > 0)}{' '.join(words)}{' ...' * (end < len(actions))}")
        return "\n".join([*lines, *([f"... {self.n_ranks - high} ranks"] * (high < self.n_ranks))])


def program(lists: Iterable[Iterable[Action]], n_stages: int, n_items: int, trains: bool = True, edges: Sequence[int] = ()) -> Program:
    """Make a program of any iterables."""
    return Program(tuple(tuple(actions) for actions in lists), n_stages, n_items, trains, tuple(edges))


def read(text: str, n_stages: int, n_items: int, trains: bool = True, edges: Sequence[int] = ()) -> Program:
    """Return the program that `Program.text` printed."""
    lines: Sequence[str] = [line.partition(":")[2] for line in text.strip().splitlines()]
    return program(([parse(word) for word in line.split()] for line in lines), n_stages, n_items, trains, edges)
