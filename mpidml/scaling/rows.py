"""Turn samples a second on so many ranks into the rows of a scaling study: speed-up, efficiency, and what was simulated over what was measured.

    speed-up = samples/s on N ranks over those on one        efficiency = speed-up / N

    strong    the batch stays                  speed-up is     seconds_1 / seconds_N
    weak      it is N times, if all compute    efficiency is   seconds_1 / seconds_N

Where one rank was not measured, the fewest ranks M stand in its place, and N / M in that of N: the rows say relative to which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]


class Gain(NamedTuple):
    """How many times as fast as the fewest ranks, and which share that is of what their number promises."""

    speed_up: float
    efficiency: float


def gain(n_ranks: int, rate: float, fewest: int, rate_of_fewest: float) -> Gain:
    """Return what `n_ranks` gain over the `fewest`, both by their samples a second."""
    ratio, times = rate / rate_of_fewest, n_ranks / fewest
    return Gain(ratio, ratio / times)


def rows(kind: str, points: Mapping[int, Mapping[str, Any]], simulated: Mapping[int, Mapping[str, Any]]) -> list[Row]:
    """Return a row for each number of ranks: of what was measured (`points`, by ranks) and `simulated`.

    Either holds `skipped` and why, or what `measured` returns of it. What is simulated is held against the simulation of the same fewest ranks, else of its fewest.
    """
    done, made = _whole(points), _whole(simulated)
    fewest = min(done or made, default=0)
    base_made = fewest if fewest in made else min(made, default=fewest)
    found = []
    for n in sorted({*points, *simulated}):
        row: Row = {"kind": kind, "ranks": n, "relative_to": fewest, "simulated_relative_to": base_made}
        row |= {"skipped": points.get(n, {}).get("skipped"), "not_simulated": simulated.get(n, {}).get("skipped")}
        for prefix, of, base in (("", done, fewest), ("simulated_", made, base_made)):
            if n in of:
                speed_up, efficiency = gain(n, of[n]["samples_per_second"], base, of[base]["samples_per_second"])
                row |= {f"{prefix}{name}": value for name, value in of[n].items()} | {f"{prefix}speed_up": speed_up, f"{prefix}efficiency": efficiency}
        if n in done and n in made:
            row["ratio"] = made[n]["seconds_per_step"] / done[n]["seconds_per_step"]
        found.append(row)
    return found


def measured(runs: Sequence[Mapping[str, Any]], batch: int) -> Row:
    """Return what a point's runs say: the one with the median of seconds a step, beside the least and the most."""
    ordered = sorted(runs, key=lambda run: run["seconds_per_step"])
    return {**ordered[(len(ordered) - 1) // 2], "batch": batch, "least_seconds": ordered[0]["seconds_per_step"], "most_seconds": ordered[-1]["seconds_per_step"]}


def of_run(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], warm_up: int, batch: int) -> Row:
    """Return the numbers of a run without its first `warm_up` steps; shares and bytes are those of the whole run.

    A step counts as a whole batch, also where the last one of an epoch is smaller.
    """
    start = max((row for row in metrics if row["clock"] < warm_up), key=lambda row: row["clock"], default={"seconds": 0.0, "samples": 0})
    rate = (metrics[-1]["samples"] - start["samples"]) / (metrics[-1]["seconds"] - start["seconds"])
    return numbers(summary, batch / rate, batch)


def numbers(summary: Mapping[str, Any], seconds_per_step: float, batch: int) -> Row:
    """Return the numbers of a run, or of a simulation, from its summary."""
    compute, wait, comm = (sum(value or 0.0 for value in summary[f"{name}_seconds"]) for name in ("compute", "wait", "comm"))
    compute = max(compute - summary["ranks"] * summary.get("evaluation_seconds", 0.0), 0.0)  # a look at the test rows is no step
    whole = max(compute + wait + comm, 1e-12)
    nbytes = sum(value or 0 for name in ("bytes_sent", "bytes_window") for value in summary[name])
    return {
        "batch": batch,
        "seconds_per_step": seconds_per_step,
        "samples_per_second": batch / seconds_per_step,
        "compute_share": compute / whole,
        "wait_share": wait / whole,
        "comm_share": comm / whole,
        "nbytes_per_rank_and_step": nbytes / summary["ranks"] / max(summary["clocks"], 1),
    }


def _whole(points: Mapping[int, Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {n: point for n, point in points.items() if not point.get("skipped")}
