"""Name the rank that the others wait for, from what workers have added up of their waits.

A straggler is a rank for which at least STRAGGLER_SHARE of all waiting was, where waiting was at least WORTH_SHARE of the workers' time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpidml.ps.waits import OUTSIDE, Waited

STRAGGLER_SHARE, OF_TWO, WORTH_SHARE = 0.6, 0.85, 0.05  # of two workers each waits for the other alone, so chance gives half
NO_GAIN = 1.05
ALL_ALONG = 0.15  # of the run, at its begin and at its end: where most waits reach into both, a twentieth of them at each end apart, they are not transient


def pairs(waiting: str, rank: int, waited: Mapping[int, Waited], names: Sequence[str], rank_of: Sequence[int], started: float) -> list[dict[str, Any]]:
    """Return for one worker one row for each role of another rank that it waited for; the shards of a server count as one."""
    found: dict[tuple[str, int], Waited] = {}
    for role, waits in waited.items():
        if rank_of[role] == rank:
            continue
        found.setdefault((names[role], rank_of[role]), Waited()).merge(waits)
    return [_row(rank, waiting, for_rank, name, waits, started) for (name, for_rank), waits in found.items() if waits.seconds > 0]


def totals(waited: Mapping[int, Waited], names: Sequence[str], rank_of: Sequence[int], travel_seconds: float = 0.0) -> list[dict[str, Any]]:
    """Return one row for each role that was waited for, where all workers have added to one record; who waited (rank -1) is then unknown.

    `travel_seconds`: what question and answer take of each wait, whoever is slow; what is left counts. So the last of many equal workers, which all
    wait for at the same time, is no straggler, and a slow one's waits for its own answers are none.
    """
    rows = [_row(-1, "", rank_of[role], names[role], waits, 0.0) for role, waits in waited.items() if role < len(names) and waits.seconds > 0]
    left = [(row, row["seconds"] - travel_seconds * row["times"]) for row in rows]
    return [row | {"seconds": seconds} for row, seconds in left if seconds > 1e-6 * row["seconds"]]


def _row(rank: int, waiting: str, for_rank: int, name: str, waits: Waited, started: float) -> dict[str, Any]:
    begin, end = waits.middle()
    return {
        "rank": rank,
        "role": waiting,
        "for_rank": for_rank,
        "for_role": name,
        "seconds": waits.seconds,
        "times": waits.times,
        "longest_seconds": waits.longest_seconds,
        "longest_clock": waits.longest_clock,
        "first_seconds": begin - started,
        "last_seconds": end - started,
    }


def find(rows: Sequence[Mapping[str, Any]], run_seconds: float, n_workers: int) -> dict[str, Any] | None:
    """Return the rank that was waited for most, None where nobody waited: who waited how long for it, when, and whether it `is_straggler`.

    When: from `first_seconds` to `last_seconds`, without what was little. `rows` are those of all workers (`pairs`) of a run of `run_seconds`.
    """
    by_rank: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_rank.setdefault(row["for_rank"], []).append(row)
    total = sum(row["seconds"] for row in rows)
    if total <= 0:
        return None
    rank, mine = max(by_rank.items(), key=lambda item: sum(row["seconds"] for row in item[1]))
    seconds = sum(row["seconds"] for row in mine)
    longest = max(mine, key=lambda row: row["longest_seconds"])
    first, last = _beyond(mine, "first_seconds", 1), _beyond(mine, "last_seconds", -1)
    who: dict[int, float] = {}
    for row in mine:
        who[row["rank"]] = who.get(row["rank"], 0.0) + row["seconds"]
    return {
        "rank": rank,
        "roles": sorted({row["for_role"] for row in mine}),
        "seconds": seconds,
        "share": seconds / total,
        "is_straggler": seconds >= (STRAGGLER_SHARE if n_workers > 2 else OF_TWO) * total and total >= WORTH_SHARE * run_seconds * n_workers,
        "all_along": first <= ALL_ALONG * run_seconds and last >= (1 - ALL_ALONG) * run_seconds,
        "first_seconds": first,
        "last_seconds": last,
        "longest_seconds": longest["longest_seconds"],
        "longest_clock": longest["longest_clock"],
        "waiting": [{"rank": r, "seconds": s} for r, s in sorted(who.items(), key=lambda item: -item[1])],
    }


def _beyond(rows: Sequence[Mapping[str, Any]], name: str, sign: int) -> float:
    """Return the least `name` of the rows (`sign` -1: the greatest), but for those that hold less than a share OUTSIDE of all seconds together."""
    ordered = sorted(rows, key=lambda row: sign * row[name])
    left = OUTSIDE * sum(row["seconds"] for row in rows)
    for row in ordered:
        left -= row["seconds"]
        if left <= 0:
            break
    return float(row[name])


def sentence(found: Mapping[str, Any], bound: int | None, others: Mapping[str, float] | None = None) -> str:
    """Say what `find` found in one line; `bound` is that of the policy, `others` what other policies would have done in the same time.

    `bound` is None, too, where less work would change nothing.
    """
    who = f"rank {found['rank']} ({', '.join(found['roles'])})"
    if not found["is_straggler"]:
        return f"no straggler: of all waiting the most, {found['share']:.0%}, was for {who}"
    waiting = ", ".join(f"rank {w['rank']} {w['seconds']:.2f} s" for w in found["waiting"][:3])
    more = f" and {len(found['waiting']) - 3} more" if len(found["waiting"]) > 3 else ""
    detail = f" ({waiting}{more})" if found["waiting"][0]["rank"] >= 0 else ""
    text = f"straggler: {who} made others wait {found['seconds']:.2f} s, {found['share']:.0%} of all waiting{detail}"
    text += f", from {found['first_seconds']:.2f} s to {found['last_seconds']:.2f} s; the longest {found['longest_seconds']:.3f} s before clock {found['longest_clock']}"
    hidden = max((others or {}).get(name, 1.0) for name in ("ssp:3", "ssp:10"))  # what staleness would have gained
    if found["all_along"] and bound is not None and hidden <= NO_GAIN:
        text += "\nit was slow all along: no bounded staleness gains anything against that; give it less work, or see what slows it"
    return text
