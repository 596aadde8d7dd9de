"""Describe what `schedule` is given: which schedule, how many stages and microbatches, and what they cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mpidml.core.action import Action
from mpidml.core.errors import UserError
from mpidml.core.job import flag
from mpidml.core.parsing import parsed
from mpidml.core.replay import Seconds
from mpidml.core.turns import parse_replicas

MOST, MOST_STAGES = 200_000, 1000  # forwards, stages: beyond, a drawing takes minutes and is not read
MOST_TIMES = 1e6  # as long as the shortest: beyond, a drawing has more columns than anybody looks at


@dataclass(frozen=True)
class ScheduleRequest:
    """The arguments of `schedule`; the first is its only word without dashes."""

    name: str = flag("", "the schedule, as one_f_one_b, interleaved:2 or ./mine.py (default: list those that there are)")
    stages: int = flag(4, "how many stages the model is cut into; where a schedule has several a rank, a multiple of them")
    microbatches: int = flag(8, "how many microbatches a batch is cut into, or, where the weights change under way, how many there are in all")
    replicas: str = flag("", "ranks of each stage, which take its microbatches by turns, as 2,1 (default: one each); they say how many stages there are")
    costs: str = flag("", "units that a forward and a backward take, as 1,2; of each stage, as 1:2,1:2,2:4,1:2 (default: 1,2; forwards alone: 1)")
    travel: float = flag(0.0, "units that what a stage sends to another rank is under way")
    out: str = flag("", "file of the picture, .png (default: below runs/, by date and time)")

    def with_values(self, values: Mapping[str, Any], where: str) -> ScheduleRequest:
        """Return a request with `values` in their types; UserError names what cannot be, or would do nothing."""
        found = replace(self, **{name: parsed(value, getattr(self, name), f"{where}: {name}") for name, value in values.items()})
        if not found.name:
            for name in (f.name for f in fields(found) if getattr(found, f.name) != f.default):
                raise UserError(f"--{name} {values[name]}: does nothing without the name of a schedule; give one, as one_f_one_b, or leave it out")
        if found.replicas:
            if "stages" in values and found.stages != len(found.turns):
                raise UserError(f"--stages {found.stages}: --replicas {found.replicas} are of {len(found.turns)}; leave one of them out")
            found = replace(found, stages=len(found.turns))
        for name in ("stages", "microbatches"):
            if getattr(found, name) < 1:
                raise UserError(f"--{name} {getattr(found, name)}: is below 1; give a whole number from 1 up")
        if found.stages > MOST_STAGES:
            raise UserError(f"--stages {found.stages}: are too many to draw; give at most {MOST_STAGES:d}")
        if found.stages * found.microbatches > MOST:
            most = max(1, MOST // found.stages)
            raise UserError(f"--microbatches {found.microbatches}: times {found.stages} stages are too many to draw; give at most {most}, or fewer stages")
        if found.microbatches < (most := max(found.turns, default=1)):
            raise UserError(f"--microbatches {found.microbatches}: are fewer than the {most} ranks that take turns; give {most} or more")
        if not (math.isfinite(found.travel) and found.travel >= 0):
            raise UserError(f"--travel {found.travel}: is not a number from 0 up; give one")
        if found.out and not found.out.endswith(".png"):
            raise UserError(f"--out {found.out}: is of no known ending; give one that ends in .png, as schedule.png")
        return found

    @property
    def turns(self) -> tuple[int, ...]:
        """Return how many ranks each stage is on, nothing where none take turns."""
        return parse_replicas(self.replicas) if self.replicas else ()

    def pairs(self, trains: bool) -> list[tuple[float, float]]:
        """Return of each stage what its forward and its backward cost; UserError where `costs` cannot be read, or is for another number of stages."""
        wanted = f"give forward and backward, as 1,2, or a pair for each of {self.stages} stages, as 1:2,1:2,..."
        if not trains:
            wanted = f"there are forwards alone: give one number, or one for each of {self.stages} stages, as 1,2,..."
        words = self.costs.split(",") if self.costs else ["1", "2"] if trains else ["1"]
        if trains and ":" not in self.costs and len(words) == 2:
            words = [",".join(words)]
        found = []
        for word in words:
            numbers = [_positive(part) for part in re.split("[,:]", word)]
            if None in numbers or len(numbers) != 1 + trains:
                raise UserError(f"--costs {self.costs}: '{word}' is not {'two positive numbers' if trains else 'a positive number'}; {wanted}")
            found.append((numbers[0] or 0.0, (numbers[-1] or 0.0) if trains else 0.0))
        given = [number for pair in found for number in pair if number]
        if max(given) > MOST_TIMES * min(given):
            raise UserError(f"--costs {self.costs}: the largest is more than {MOST_TIMES:,.0f} times the smallest, which nobody could see; give costs that are nearer")
        if len(found) not in (1, self.stages):
            raise UserError(f"--costs {self.costs}: holds {len(found)} costs, there are {self.stages} stages; {wanted}")
        return found * (self.stages // len(found))

    def seconds(self, trains: bool) -> Seconds:
        """Return what actions take: each half of a backward takes half of it."""
        cost = self.pairs(trains)

        def of(action: Action) -> float:
            forward, backward = cost[action.stage]
            return {"F": forward, "B": backward, "I": backward / 2, "W": backward / 2}.get(action.op, 0.0)

        return Seconds(of, lambda stage, forward: self.travel)

    def is_equal(self, trains: bool) -> bool:
        """Tell whether costs are those that formulas are for: equal stages, a backward of two forwards, nothing on the way."""
        first, *rest = self.pairs(trains)
        return self.travel == 0 and all(pair == first for pair in rest) and (not trains or math.isclose(first[1], 2 * first[0]))


def _positive(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None
