"""Describe what a simulation needs besides its job: how many workers, for how long, and what their parts cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mpidml.core.cost import CostModel
from mpidml.core.errors import UserError
from mpidml.core.job import flag
from mpidml.core.parsing import parsed

LEARNING_WORKERS = 64
CLOCKS = 100


@dataclass(frozen=True)
class Simulation:
    """The flags of `simulate` that `train` has not. Where no cost is given, it is fitted to a short run on the ranks at hand."""

    workers: int = flag(4, "how many workers to simulate")
    clocks: int = flag(0, f"clocks of each worker, under --assign dynamic on average (0: {CLOCKS}, or no limit where --seconds is given)")
    learn: bool = flag(False, f"run the real arithmetic on virtual clocks, too (up to {LEARNING_WORKERS} workers)")
    fit: bool = flag(False, "fit the costs to a short run on the ranks at hand, even if some are given (these win)")
    cost: str = flag("", "cost.json of an earlier simulation, in place of a fit")
    compute: float = flag(0.0, "seconds of a worker's compute on its share of a batch, in place of a fit")
    jitter: float = flag(0.0, "share of a compute that is exponentially distributed, 0 to 1")
    latency: float = flag(50e-6, "seconds that a message travels")
    bandwidth: float = flag(0.0, "bytes per second of a rank's link, each way (0: payloads take no time, as in a shared window)")
    apply: float = flag(0.0, "seconds that the servers together take for one worker's gradient")
    message: float = flag(0.0, "seconds that a rank takes for each message besides")

    def with_values(self, values: Mapping[str, Any], where: str) -> Simulation:
        """Return a simulation with `values` in their types; UserError names what cannot be."""
        default = Simulation()
        for name, value in values.items():
            if isinstance(value, str) and "," in value and not isinstance(getattr(default, name), str):
                raise UserError(f"{where}: {name}: '{value}' is a list, and one value is taken here; simulate each by itself")
        found = replace(self, **{name: parsed(value, getattr(default, name), f"{where}: {name}") for name, value in values.items()})
        for name, least in (("workers", 1), ("clocks", 0)):
            if getattr(found, name) < least:
                raise UserError(f"--{name} {getattr(found, name)}: is below {least}; give a whole number from {least} up")
        for name in ("compute", "latency", "bandwidth", "apply", "message"):
            value = getattr(found, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"--{name} {value}: is not a number from 0 up; give one")
        if not 0 <= found.jitter <= 1:
            raise UserError(f"--jitter {found.jitter}: is not a share; give a number from 0 to 1")
        if found.learn and found.workers > LEARNING_WORKERS:
            raise UserError(f"--workers {found.workers}: --learn runs the arithmetic of at most {LEARNING_WORKERS}; leave --learn out, or simulate fewer")
        if found.cost and (found.fit or found.compute):
            raise UserError(f"--cost {found.cost}: does nothing beside --fit or --compute; leave one of them out")
        return found

    @property
    def fits(self) -> bool:
        """Whether costs are to be measured."""
        return self.fit or not (self.cost or self.compute)

    def over(self, cost: CostModel, given: Collection[str]) -> CostModel:
        """Return `cost` with what the flags named in `given` say, be it their default."""
        names = {"latency": "latency", "bandwidth": "bytes_per_second", "apply": "apply", "message": "message", "jitter": "jitter"}
        changed: dict[str, Any] = {of: getattr(self, name) for name, of in names.items() if name in given}
        if self.compute:
            changed |= {"compute": (self.compute,), "slowness": ()}
        return replace(cost, **changed)


NAMES = tuple(f.name for f in fields(Simulation))
