"""Make what a rank holds of its stages: weights, optimizer, gradient and its sum over replicas, on the host, or where passes run on a device on that.

    host      weights, optimizer                            restored, saved, compared
                 | up  ^ down                               at the begin of steps, and where they pause or end
    device    weights, optimizer    gradient of all microbatches -> sum over replicas -> update        nothing of it comes to the host but what is summed there

Replicas that push to servers have their versions on the host, and read and gradient on the device (`read_there`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mpidml.collectives.base import Done, make_collective
from mpidml.nn.stage import Stage
from mpidml.ps.store import Store
from mpidml.runtime.coded_parts import codes_of
from mpidml.runtime.compressed_sum import Compressed
from mpidml.runtime.held import Held
from mpidml.runtime.mirror import Mirror
from mpidml.runtime.summed_there import Chosen, choose


class Holding:
    """Hold stages for a `strategy` that is cut (`runtime.staged`), whose sums, codes and links it fills in; `mirror`: what of them lies on a device."""

    def __init__(self, strategy: Any) -> None:
        """Choose what sums on a device (Collective on the replicas of this rank's stages)."""
        self.strategy = strategy
        self.kernels = strategy.net.device.kernels
        self.mirror = Mirror(self.kernels) if self.kernels is not None and not strategy.pushes else None
        self.chosen: Chosen | None = None
        if self.mirror is not None and strategy.replicas.size > 1 and not strategy.coded:
            longest = max(stage.n_summed for stage in strategy.all_stages[strategy.at["pipe"] :: strategy.n_pipe])
            on = partial(make_collective, strategy.summing)
            self.chosen = choose(strategy.job, self.kernels, strategy.between, on, longest * strategy.net.dtype.itemsize)

    def hold(self, stage: Stage, s: int, channels: list[tuple[Any, Any]]) -> Held:
        """Make this rank's stage number s, with its weights and their sums (Collective on its replicas)."""
        strategy = self.strategy
        net, job, follows = strategy.net, strategy.job, s < strategy.n_stages - 1
        initial = stage.init(job.seed)
        before, after = strategy._chains()
        after.see(stage.params)
        versions = [initial, *(initial.copy() for _ in range(strategy.n_versions(s) - 1))]
        here = store = Store(versions, stage.start, 1, net.backend, after, net.device.kernels if self.mirror is None else None)
        if self.mirror is not None:
            store = self.mirror.store(here, [self.mirror.array("a stage's weights", version) for version in versions])
        if before is not None:
            before.see(stage.params)
            state = before.init(stage.n_params, net.dtype)
            own = {name: self.kernels.here(array) for name, array in state.items()} if strategy.pushes and self.kernels is not None else state
            strategy.links[s], strategy.link_states[s] = before, own if self.mirror is None else self.mirror.state(state)
            if not strategy.pushes:  # all replicas have the same, so it is saved with what the store has
                here.add_state(state)
        gradient = self._gradient(stage, s)
        if s in strategy.sums:
            strategy.sums[s].ranks = strategy.replicas.ranks
        own = (channels[s - 1][0] if s else None, channels[s][0] if follows else None, channels[s][1] if follows else None, channels[s - 1][1] if s else None)
        return Held(stage, s, (store, here), gradient, strategy.n_items, strategy.programs.activations[s], strategy.m, job.recompute, own, strategy.turn)

    def _gradient(self, stage: Stage, s: int) -> Any:
        """Return room for the gradient of a stage, and plan its sum, if it is summed."""
        strategy, dtype = self.strategy, self.strategy.net.dtype
        sums: Any = strategy.between.pick(stage.n_summed * dtype.itemsize)
        if self.kernels is None:
            gradient = sums.allocate(max(strategy.replicas.allgather(stage.n_params)), dtype)[: stage.n_params]
        else:
            sums = None if self.chosen is None else self.chosen.sums
            with self.kernels.naming("a stage's gradient"):
                gradient = self.kernels.zeros(stage.n_params, dtype)
        if strategy.coded:
            backend = strategy.net.backend if self.kernels is None else self.kernels
            coded = strategy.codes[s] = codes_of(strategy, stage, backend)
            coded.step = strategy.step
            coded.open(strategy.replicas)
            strategy.sums[s] = coded.plan(coded.look_at(gradient)[: stage.n_summed])
        elif strategy.sums_up and not strategy.pushes:
            strategy.sums[s] = sums.plan(gradient[: stage.n_summed]) if stage.n_summed and strategy.replicas.size > 1 else Done()
        return gradient

    def words(self) -> str:
        """Say what stays on a device, and how gradients go then, for a run's heading."""
        if self.mirror is None:
            return ""
        way = self.chosen.sums.way if self.chosen is not None else Compressed.way if self.strategy.coded else ""
        return "; weights and optimizer stay on the device" + f", {way}" * bool(way)

    def free(self) -> None:
        """Let go of what sums on a device; its sums are freed (Collective on the replicas)."""
        if self.chosen is not None:
            self.chosen.sums.free()
