"""Say what a scaling study found: a table for each kind, then what was left out, and what is assumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpidml.runtime.report import nbytes

HEADS = (
    ("", "ranks"), ("", "ms/step"), ("", "samples/s"), ("", "speed-up"), ("", "efficiency"), ("", "busy"), ("", "waiting"), ("", "moving"),
    ("bytes a", "rank, step"), ("simulated", "ms/step"), ("simulated", "speed-up"), ("simulated", "/measured"),
)  # fmt: skip
TITLES = {"strong": "strong scaling: the batch stays", "weak": "weak scaling: a rank's share of the batch stays, at the same --lr (so this is speed, not learning)"}
MARK = "*"
"""Stands beside ranks that shared cores."""


def table(study: Mapping[str, Any]) -> str:
    """Return the tables of a study as lines of plain text; "-" is what was not measured, or not simulated."""
    lines = []
    for kind, title in TITLES.items():
        if rows := [row for row in study["rows"] if row["kind"] == kind]:
            lines += [f"\n{title}{_relative(rows)}", *_lines(rows), *left_out(rows)]
    shared = sorted({(row["ranks_per_host"], row["cores"]) for row in study["rows"] if is_shared(row)})
    lines += [f"{MARK} {ranks} ranks of a host on {cores} core(s): shared" for ranks, cores in shared]
    return "\n".join([*lines, study["assumed"]])


def is_shared(row: Mapping[str, Any]) -> bool:
    """Tell whether the ranks of a measured point shared cores."""
    return bool(row.get("shares_cores")) and "seconds_per_step" in row


def left_out(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which numbers of ranks were not measured or not simulated, and why; those with the same words in one line."""
    found = []
    for key, words in (("skipped", "not measured"), ("not_simulated", "not simulated")):
        why: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            if reason := row.get(key):
                plain = " ".join("N" if word.strip(":;,.()x=").isdecimal() else word for word in reason.split())
                why.setdefault(plain, []).append(row)
        for those in why.values():
            found.append(f"{', '.join(str(row['ranks']) for row in those)} rank(s): {words}: {those[0][key]}")
    return found


def _relative(rows: Sequence[Mapping[str, Any]]) -> str:
    fewest, simulated = int(rows[0]["relative_to"]), int(rows[0]["simulated_relative_to"])
    measured = f"; relative to {fewest} ranks, the fewest" if fewest > 1 else ""
    return measured + f"; simulated speed-up: relative to {simulated} ranks" * (simulated != fewest)


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [list(column) for column in zip(*(_cells(row) for row in rows if "seconds_per_step" in row or "simulated_seconds_per_step" in row), strict=True)]
    if not cells:
        return []
    widths = [max(map(len, (*head, *column))) for head, column in zip(HEADS, cells, strict=True)]
    lines = zip(*((*head, *column) for head, column in zip(HEADS, cells, strict=True)), strict=True)
    return ["  ".join(map(str.rjust, line, widths)).rstrip() for line in lines]


def _cells(row: Mapping[str, Any]) -> list[str]:
    def cell(key: str, show: Callable[[float], str]) -> str:
        return "-" if row.get(key) is None else show(row[key])

    def share(value: float) -> str:
        return f"{value:.0%}"

    return [
        f"{row['ranks']:,}{MARK * is_shared(row)}",
        cell("seconds_per_step", _milliseconds),
        cell("samples_per_second", lambda value: f"{value:,.0f}"),
        cell("speed_up", times),
        cell("efficiency", share),
        cell("compute_share", share),
        cell("wait_share", share),
        cell("comm_share", share),
        cell("nbytes_per_rank_and_step", nbytes),
        cell("simulated_seconds_per_step", _milliseconds),
        cell("simulated_speed_up", times),
        cell("ratio", lambda value: f"{value:.2f}"),
    ]


def times(value: float) -> str:
    """Write a speed-up with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"
