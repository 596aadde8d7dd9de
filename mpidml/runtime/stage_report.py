"""Tell of the stages of a run: what each took, how busy its ranks were, and what another cut of the layers would bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpidml.core.pace import stage_speeds
from mpidml.core.recut import milliseconds, sentence

HEADS = ("stage", "layers", "ranks", "parameters", "ms/microbatch", "busy", "waiting")
MOST_RANKS = 4
"""Ranks that a line of the table names."""


def cut_words(batch: int, n_replicas: int, n_items: int, counts: Sequence[int], per: str) -> str:
    """Say how samples become microbatches, and layers stages: what does not divide, and stages without layers, are said."""
    least, most = batch // n_replicas // n_items, -(-batch // (n_replicas * n_items))
    rows = f"{least} row{'s' * (least != 1)}" if least == most else f"{least} to {most} rows"
    empty = ", those of 0 hand on" if 0 in counts else ""
    return f"{n_items} microbatch{'es' * (n_items != 1)} of {rows} a {per}; {len(counts)} stage(s) of {','.join(map(str, counts))} layers{empty}"


def told(strategy: Any) -> dict[str, Any]:
    """Return what the summary says of the stages: on rank 0, nothing on others (Collective on comm).

    A stage's seconds are those of the slowest of its ranks, its shares the means over them, of the time until the end of the run.
    """
    driver, executor = strategy.driver, strategy.driver.executor
    whole = max(driver.run_seconds, 1e-12)
    shares = ((driver.compute_seconds + driver.serve_seconds) / whole, driver.wait_seconds / whole)
    took = {s: executor.compute_seconds[s] / n for s, n in executor.n_computed.items() if n}
    every = strategy.comm.gather((took, shares))
    if every is None:
        return {}
    grid, found = strategy.grid, []
    for s, (cut, stage) in enumerate(zip(strategy.plan.stages, strategy.all_stages, strict=True)):
        ranks = grid.ranks(s % strategy.n_pipe)
        found.append(
            {
                "stage": s,
                "layers": list(range(cut.lo + 1, cut.hi + 1)),
                "ranks": ranks,
                "parameters": stage.stop - stage.start,
                "seconds": max((every[rank][0][s] for rank in ranks if s in every[rank][0]), default=None),
                "busy_share": sum(every[rank][1][0] for rank in ranks) / len(ranks),
                "wait_share": sum(every[rank][1][1] for rank in ranks) / len(ranks),
            }
        )
    seconds = [of["seconds"] and of["seconds"] / grid.turn(of["ranks"][0])[1] for of in found]
    words = ""
    if len(found) > 1 and None not in seconds:
        speeds = stage_speeds(grid, strategy.speeds, strategy.part_weights, len(found))
        words = sentence(strategy.profiles, strategy.plan.stages, seconds, speeds, strategy.n_pipe)
    return {"stages": found, "stages_sentence": words, "rank_speeds": strategy.speeds, "part_weights": list(strategy.part_weights)}


def closing(summary: Mapping[str, Any]) -> str:
    """Say it after the run: a line for each stage, and the sentence; "" of a run without stages."""
    rows = [_row(of) for of in summary.get("stages", ())]
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]
    lines = ["  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in (HEADS, *rows)]
    return "\n" + "\n".join([*lines, *filter(None, [summary["stages_sentence"]])])


def _row(of: Mapping[str, Any]) -> Sequence[str]:
    layers, ranks = of["layers"], [str(rank) for rank in of["ranks"]]
    which = f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0]) if layers else "none"
    named = ", ".join(ranks) if len(ranks) <= MOST_RANKS else f"{ranks[0]}, {ranks[1]} .. {ranks[-1]}"
    took = "-" if of["seconds"] is None else milliseconds(of["seconds"])
    return str(of["stage"]), which, named, f"{of['parameters']:,}", took, f"{of['busy_share']:.0%}", f"{of['wait_share']:.0%}"
