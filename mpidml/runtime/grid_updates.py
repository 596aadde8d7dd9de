"""Change the weights of stages: gradients summed over replicas, links that measure more than a rank has, then each rank's own step.

    sums over replicas  ->  clip: norm over all stages and parts  ->  lars: norms of tensors, over the parts of each  ->  step
"""

from __future__ import annotations

from typing import Any

from mpidml.core.action import Action
from mpidml.core.role import Array
from mpidml.runtime.channel import Waiting
from mpidml.runtime.held import Held
from mpidml.sync.base import Tuning


class Norms:
    """The arithmetic `backend`, but for sums of squares: that of the whole gradient is `total`, that of a tensor one over the parts of a stage.

    Given to one link and the stage that is `held`, of whose flat gradient and weights a tensor's are views; the tensors in `shared` every part has whole.
    """

    def __init__(self, backend: Any, held: Held, line: Any, shared: list[slice], total: float | None, waiting: Waiting) -> None:
        self.backend, self.held, self.line, self.shared, self.total, self.waiting = backend, held, line, shared, total, waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def sum_of_squares(self, a: Array) -> float:
        """Return the sum over all that `a` is this rank's part of (Collective on the line, where it is a part)."""
        if self.total is not None:
            return self.total
        own = float(self.backend.sum_of_squares(a)) if a.size else 0.0
        if self.line.size == 1 or (a.size and any(self._begins(a) == part.start for part in self.shared)):  # a view without elements begins anywhere
            return own
        return float(sum(self.waiting.gather(self.line, own, "the norm of a tensor")))

    def _begins(self, a: Array) -> int:
        """Return where a tensor begins in the flat array that it is a view of."""
        address = self.backend.address
        at: int = address(a)
        for flat in (self.held.gradient, self.held.weights()):
            first: int = address(flat)
            if first <= at < first + flat.nbytes:
                return (at - first) // int(flat.itemsize)
        raise AssertionError("norm of an array that is no part of gradient or weights")


class Updates:
    """Change the weights of this rank's stages (Collective on the ranks that hold the same, and where a norm is measured on all of a replica)."""

    def __init__(self, strategy: Any) -> None:
        self.strategy, self.clock = strategy, 0
        self.summed: set[int] = set()
        self.shared = {s: held.stage.shared() for s, held in strategy.held.items()}
        self.links: list[Any] = list(zip(*(strategy.links[s].named() for s in strategy.held), strict=True)) if strategy.links else []
        self.measures_all = any(link.scope == "global" for of in self.links for link, _ in of)

    def version(self, held: Held, action: Action) -> Any:
        """Return the weights of a version, counted from the program's first."""
        versions = held.store.versions
        return versions[(held.store.latest - held.n_updated + action.version) % len(versions)]

    def told(self, held: Held, item: int) -> int:
        """Return which version a microbatch reads, counted as there, by where its weights lie; -1 where it was told of none."""
        versions = held.store.versions
        place = next((i for i, each in enumerate(versions) if each is held.reads.get(item)), -1)
        return -1 if place < 0 else int(held.n_updated - (held.store.latest - place) % len(versions))

    def start(self, held: Held) -> None:
        """Begin the sum over replicas."""
        self.strategy.step.number = self.clock + (held.n_summed - 1) // self.strategy.n_items
        self.strategy.sums[held.number].start()

    def finish(self, held: Held, item: int) -> None:
        """End the sum and change the weights after microbatch `item`."""
        clock = self.clock + item // self.strategy.n_items
        self._prepare(held, clock)
        rates = self.strategy.rates
        held.store.step(held.gradient, Tuning() if rates is None else Tuning(rates(clock), 1.0))

    def _prepare(self, held: Held, clock: int) -> None:
        """End the sum and run the links that need more than elements: where a norm is over all stages, those of all."""
        strategy = self.strategy
        if held.number not in self.summed:
            due = list(strategy.held.values()) if self.measures_all else [held]
            for each in due:
                if (total := strategy.sums.get(each.number)) is not None:
                    strategy.waiting.seconds += total.wait(strategy.job.wait_limit)[0]
                self.summed.add(each.number)
            self._transform(due, clock + 1)
        self.summed.discard(held.number)

    def _transform(self, due: list[Held], step: int) -> None:
        """Run the links that need more than elements, one after the other over all the stages that are due."""
        strategy = self.strategy
        at = list(strategy.held)
        for of in self.links:
            total = self._squares() if of[0][0].scope == "global" else None
            for held in due:
                link, keys = of[at.index(held.number)]
                state = {name: strategy.link_states[held.number][key] for name, key in keys}
                norms = Norms(held.kernels, held, strategy.line, self.shared[held.number], total, strategy.waiting)
                link.transform(norms, held.gradient, state, held.weights(), step)

    def _squares(self) -> float:
        """Return the sum of squares of the whole gradient (Collective on the ranks of a replica): what several parts have counts once."""
        strategy, own = self.strategy, 0.0
        for number, held in strategy.held.items() if not strategy.turn[0] else ():  # who takes another turn has the same
            own += float(held.kernels.sum_of_squares(held.gradient)) if held.gradient.size else 0.0
            if strategy.line.rank:
                own -= sum(float(held.kernels.sum_of_squares(held.gradient[part])) for part in self.shared[number])
        return float(sum(strategy.waiting.gather(strategy.pipeline, own, "the norm of the gradient")))

    def meet(self) -> None:
        """Wait for all ranks of the replica."""
        self.strategy.waiting.meet(self.strategy.pipeline, "the end of a phase")
