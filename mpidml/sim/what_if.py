"""Say what other policies would have done with the computes that a run has recorded: the same seconds of work, on virtual clocks.

It speaks of clocks in equal time alone. What a clock teaches under another staleness is another question, which only a run answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpidml.core.cost import CostModel
from mpidml.core.errors import WaitTimeout
from mpidml.core.job import Job
from mpidml.sim.parameter_server import Plan, simulate
from mpidml.sync.base import make_policy

OTHERS = ("bsp", "ssp:1", "ssp:3", "ssp:10", "asp", "adaptive", "quorum")
MOST_STEPS = 3000  # of all workers together: half a second for all policies
MOST_WORKERS, LEAST_STEPS = 256, 10


BUDGETED = "what other policies would have done is not simulated: under --budget sending takes the time, of which the seconds of computes tell nothing"


def tells(step_seconds: Sequence[Sequence[float]]) -> bool:
    """Say whether a run with these computes is long enough, and has few enough workers, to say something."""
    return 2 <= len(step_seconds) <= MOST_WORKERS and min(map(len, step_seconds)) >= LEAST_STEPS and min(map(sum, step_seconds)) > 0


def what_if(sync: str, step_seconds: Sequence[Sequence[float]], latency: float = 50e-6) -> list[tuple[str, float]]:
    """Return (policy, its clocks in the time of the run over those of the run's own policy), the own one first; nothing for too short a run.

    `step_seconds`: for each worker the seconds of its computes, in their order.
    """
    if not tells(step_seconds):
        return []
    n, steps = len(step_seconds), [list(of) for of in step_seconds]
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


def told(job: Job, step_seconds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return what the summary of a run holds of it; under a budget only why it is nothing."""
    if job.strategy != Job.strategy or not tells(step_seconds):
        return {"what_if": {}, "what_if_sentence": ""}
    if job.budget:
        return {"what_if": {}, "what_if_sentence": BUDGETED}
    others = what_if(job.policy(), step_seconds)
    return {"what_if": dict(others), "what_if_sentence": sentence(others) if others else ""}


def sentence(found: Sequence[tuple[str, float]]) -> str:
    """Say it in one line."""
    others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found[1:])
    return f"with the same computes in the same time, other policies would have done these times the clocks (simulated): {others}"
