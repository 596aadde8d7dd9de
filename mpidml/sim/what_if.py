"""Say what other policies would have done with the computes that a run has recorded: the same seconds of work, on virtual clocks.

It speaks of clocks in equal time alone. What a clock teaches under another staleness is another question, which only a run answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpidml.core.cost import CostModel
from mpidml.core.errors import WaitTimeout
from mpidml.core.job import Job
from mpidml.sim.parameter_server import Plan, simulate
from mpidml.sync.base import make_policy

OTHERS = ("bsp", "ssp:1", "ssp:3", "ssp:10", "asp", "adaptive", "quorum")
MOST_STEPS = 3000  # of all workers together: half a second for all policies
MOST_WORKERS, LEAST_STEPS = 256, 10
STRETCHES, GOLDEN = 15, 0.618  # of a longer run; where in its part of the run each begins, so that none of the run's own periods is met
ALL = 0.99  # of the clocks: at the end of a run some workers may have done one more than others
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
    n, steps = len(step_seconds), stretches(step_seconds)
    n_steps = max(map(len, steps))
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


def stretches(step_seconds: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the computes that are simulated: all, or of a long run stretches spread evenly over it, the same for each worker.

    They are the same in clocks; where workers did unlike many, in seconds of computes.
    """
    n, longest = len(step_seconds), max(map(len, step_seconds))
    most = max(MOST_STEPS // n, LEAST_STEPS)
    if longest <= most:
        return [list(of) for of in step_seconds]
    length = max(most // STRETCHES, LEAST_STEPS)
    parts = max(most // length, 1)
    # Each lies within its part of the run, as shares of the whole.
    width = length / longest
    begins = [(k + (0.5 + GOLDEN * k) % 1 * (1 - width * parts)) / parts for k in range(parts)]
    alike = longest - min(map(len, step_seconds)) < LEAST_STEPS
    found: list[list[float]] = []
    for of in step_seconds:
        at = np.arange(longest) if alike else np.concatenate([[0.0], np.cumsum(of)[:-1]])
        whole = longest if alike else sum(of)
        bounds = np.searchsorted(at, [[round(b * longest), round(b * longest) + length] if alike else [b * whole, (b + width) * whole] for b in begins])
        found.append([s for lo, hi in bounds.tolist() for s in of[lo:hi]])
    return found if all(sum(of) > 0 for of in found) else [list(of[-most:]) for of in step_seconds]


def told(job: Job, step_seconds: Sequence[Sequence[float]], n_clocks: int) -> dict[str, Any]:
    """Return what the summary of a run of `n_clocks`, whose computes may be those of a part, holds of it; under a budget only why it is nothing."""
    if job.strategy != Job.strategy or not tells(step_seconds):
        return {"what_if": {}, "what_if_sentence": ""}
    if job.budget:
        return {"what_if": {}, "what_if_sentence": BUDGETED}
    others, share = what_if(job.policy(), step_seconds), sum(map(len, stretches(step_seconds))) / max(n_clocks * len(step_seconds), 1)
    return {"what_if": dict(others), "what_if_sentence": sentence(others, share) if others else ""}


def sentence(found: Sequence[tuple[str, float]], share: float = 1.0) -> str:
    """Say it in one line, with the `share` of the clocks that it is from."""
    others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in found[1:])
    part = f" from {share:.1%} of them, in stretches spread evenly" if share < ALL else ""
    return f"with the same computes in the same time, other policies would have done these times the clocks (simulated{part}): {others}"
