"""Find out after a run what a better cut would have brought: layers cost what was measured, scaled by what each stage really took."""

from __future__ import annotations

from collections.abc import Sequence

from mpidml.core.balance import Plan, Profile, Stage, balanced, priced

WORTH = 1.05
"""A cut that is no more than so many times as fast is not worth a word."""


def scaled(profiles: Sequence[Profile], stages: Sequence[Stage], seconds: Sequence[float], speeds: Sequence[float]) -> list[Profile]:
    """Return the profiles by which each stage takes, at the speed of its rank, the seconds per microbatch that it took.

    Layers keep their proportions within a stage; those that cost nothing in it all share alike.
    """
    found = []
    for (lo, hi, _), took, speed in zip(stages, seconds, speeds, strict=True):
        expected = sum(p.forward_seconds + p.backward_seconds for p in profiles[lo:hi])
        factor = took * speed / expected if expected else 0.0
        for p in profiles[lo:hi]:
            each = (p.forward_seconds * factor, p.backward_seconds * factor) if expected else (took * speed / (hi - lo), 0.0)
            found.append(Profile(*each, p.activation_nbytes, p.parameter_nbytes))
    return found


def better(profiles: Sequence[Profile], stages: Sequence[Stage], seconds: Sequence[float], speeds: Sequence[float], n_ranks: int = 0) -> tuple[int, Plan] | None:
    """Return the number of the slowest stage and the best cut; None where that is worth no word.

    `n_ranks`: where these are fewer than stages, stage s is on rank s % n_ranks, and a cut has to be worth a word to the slowest rank, too.
    """
    real = scaled(profiles, stages, seconds, speeds)
    now, best = priced(real, stages, 0.0, speeds), balanced(real, len(stages), 0.0, speeds=speeds)
    if 0 < n_ranks < len(stages):
        each = [sum(p.forward_seconds + p.backward_seconds for p in real[lo:hi]) / speed for (lo, hi, _), speed in zip(best.stages, speeds, strict=True)]
        before, after = (max(sum(took[rank::n_ranks]) for rank in range(n_ranks)) for took in (seconds, each))
        if before <= WORTH * after:
            return None
    return (now.number, best) if now.seconds > WORTH * best.seconds > 0 else None


def sentence(profiles: Sequence[Profile], stages: Sequence[Stage], seconds: Sequence[float], speeds: Sequence[float], n_ranks: int = 0) -> str:
    """Name the slowest stage and the cut that would be faster, if one is worth a word; "" where there is none and all stages take about as long."""
    found = better(profiles, stages, seconds, speeds, n_ranks)
    *_, second, slowest = sorted(range(len(stages)), key=seconds.__getitem__)
    faster = "no other cut would be much faster"
    if found is None and seconds[slowest] <= WORTH * seconds[second]:
        return ""
    if found is not None:
        slowest, best = found
        counts = ",".join(str(stage.hi - stage.lo) for stage in best.stages)
        faster = f"--partition {counts} would bring it to {milliseconds(best.seconds)} ms ({seconds[slowest] / best.seconds:.2g} times as fast)"
    return f"stage {slowest} ({layer_words(stages[slowest])}) is the slowest: {milliseconds(seconds[slowest])} ms per microbatch; {faster}"


def layer_words(stage: Stage) -> str:
    """Say which layers a stage has, from 1 on."""
    lo, hi = stage.lo + 1, stage.hi
    return f"layer {hi}" if hi == lo else f"layers {lo} to {hi}" if hi > lo else "no layers"


def milliseconds(seconds: float) -> str:
    """Return the seconds as milliseconds to three digits, whole ones from a second on."""
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
