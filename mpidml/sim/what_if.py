"""Say what other policies would have done with the computes that a run has recorded: the same seconds of work, on virtual clocks.

It speaks of clocks in equal time alone. What a clock teaches under another staleness is another question, which only a run answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpidml.core.cost import CostModel
from mpidml.core.errors import WaitTimeout
from mpidml.sim.parameter_server import Plan, simulate
from mpidml.sync.base import make_policy

OTHERS = ("bsp", "ssp:1", "ssp:3", "ssp:10", "asp", "adaptive", "quorum")
MOST_STEPS = 3000  # of all workers together: half a second for all policies
MOST_WORKERS, LEAST_STEPS = 256, 10


def what_if(sync: str, step_seconds: Sequence[Sequence[float]], latency: float = 50e-6) -> list[tuple[str, float]]:
    """Return (policy, its clocks in the time of the run over those of the run's own policy), the own one first; nothing for too short a run.

    `step_seconds`: for each worker the seconds of its computes, in their order.
    """
    n = len(step_seconds)
    steps = [list(of) for of in step_seconds]
    if not 2 <= n <= MOST_WORKERS or min(map(len, steps)) < LEAST_STEPS or min(map(sum, steps)) <= 0:
        return []
    n_steps = max(min(max(map(len, steps)), MOST_STEPS // n), LEAST_STEPS)
    cost = CostModel((1.0,), latency=latency)
    own = simulate(Plan(make_policy(sync), n, n_steps, cost, measured=steps)).seconds
    found: list[tuple[str, float]] = []
    for text in (sync, *(other for other in OTHERS if other != sync)):
        try:
            done = simulate(Plan(make_policy(text), n, 1 << 40, cost, seconds=own, measured=steps)).n_done
        except WaitTimeout:
            continue  # a policy of the user's that does not end by time
        found.append((text, done / found[0][1] if found else float(done)))
    return [(sync, 1.0), *found[1:]] if found and found[0][1] else []


def sentence(found: Sequence[tuple[str, float]]) -> str:
    """Say it in one line."""
    others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found[1:])
    return f"with the same computes in the same time, other policies would have done these times the clocks (simulated): {others}"
