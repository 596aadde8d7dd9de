"""Compare runs of one job under several variants: what each took to a target, what it moved, how long it waited, how good it was.

The first variant is the same job in one process, and each other one is held against it: where ranks gain nothing, the words say so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mpidml.core.clocks import NO_CLOCK
from mpidml.core.target import Target
from mpidml.runtime.report import nbytes

Row = Mapping[str, Any]
MEASURED: dict[str, Callable[..., Any]] = {"test_accuracy": max, "test_loss": min, "val_accuracy": max, "val_loss": min}
SAME = 1.01  # a ratio below this is no difference


def reached(row: Row, target: Target) -> bool:
    """Return whether a row reaches the target, be it by the score of its clock or by that of the final parameters."""
    return any(target.reached({target.key: score}) for score in scores(row, target.key))


def scores(row: Row, key: str) -> list[float]:
    """Return what a row measured of `key`: its clock's score, then that of the final parameters; none of what is missing, None or not finite."""
    return [float(value) for value in (row.get(key), row.get(f"final_{key}")) if value is not None and math.isfinite(value)]


def with_ending(summary: Row, metrics: Sequence[Row]) -> list[Row]:
    """Return the rows of a run and its summary's final score as one more: metrics.jsonl may end without it, yet it is told, so it counts."""
    ending = {key: summary.get(key) for key in ("seconds", "samples")}
    return [*metrics, ending | {f"final_{key}": summary.get(key) for key in MEASURED}]


def entry(name: str, summary: Row, metrics: Sequence[Row], target: Target | None) -> dict[str, Any]:
    """Return a variant's row of compare.json: all of its summary, and what the comparison needs besides; None for what was not measured."""
    rows = with_ending(summary, metrics)
    first: Row = next((row for row in rows if reached(row, target)), {}) if target else {}
    reads = {int(staleness): int(n) for staleness, n in (summary.get("staleness_histogram") or {}).items()}
    busy, waiting, moving = (_sum(summary, f"{what}_seconds") for what in ("compute", "wait", "comm"))
    whole, n_reads = busy + waiting + moving, sum(reads.values())
    return {
        "variant": name,
        **summary,
        "seconds_to_target": first.get("seconds"),
        "samples_to_target": first.get("samples"),
        **{f"best_{key}": pick((s for row in rows for s in scores(row, key)), default=None) for key, pick in MEASURED.items() if key in summary},
        "staleness_mean": sum(staleness * n for staleness, n in reads.items()) / n_reads if n_reads else None,
        "waiting_share": waiting / whole if whole > 0 else None,
        "bytes_moved": _sum(summary, "bytes_sent") + _sum(summary, "bytes_window"),
        "dropped_samples": summary.get("dropped_samples") or 0,
    }


def table(entries: Sequence[Row], target: Target | None) -> str:
    """Return the variants as aligned lines of plain text; "-" is what was not measured, and a note says what never reached the target."""
    columns = [("", "variant", [str(each["variant"]) for each in entries])]

    def add(top: str, bottom: str, values: list[float | None], show: Callable[[float], str]) -> None:
        columns.append((top, bottom, ["-" if value is None else show(value) for value in values]))

    def of(key: str) -> list[float | None]:
        return [number(each, key) for each in entries]

    if target is not None:
        seconds = of("seconds_to_target")
        least = min((value for value in seconds if value), default=1.0)
        decimals = min(max(2 - math.floor(math.log10(least)), 1), 4)  # three digits of the smallest, so that the points line up
        add("seconds", "to target", seconds, lambda value: f"{value:,.{decimals}f}")
        add("samples", "to target", of("samples_to_target"), lambda value: f"{value:,.0f}")
    add("", "samples/s", of("samples_per_second"), per_second)
    add("staleness", "mean", of("staleness_mean"), lambda value: f"{value:.2f}")
    counted = [number(each, "staleness_mean") is not None for each in entries]  # where no read was, a summary says 0 at most
    add("staleness", "max", [most if some else None for most, some in zip(of("staleness_max"), counted, strict=True)], lambda value: f"{value:g}")
    add("", "moved", of("bytes_moved"), nbytes)
    add("", "waiting", of("waiting_share"), lambda value: f"{value:.0%}")
    has_test, has_loss = (any(value is not None for key in keys for value in of(key)) for keys in (("test_accuracy", "test_loss"), ("final_loss",)))
    if has_test or not has_loss:
        add("test", "accuracy", of("test_accuracy"), lambda value: f"{value:.4f}")
        add("test", "loss", of("test_loss"), _loss)
    else:
        add("training", "loss", of("final_loss"), _loss)
    widths = [max(map(len, (top, bottom, *cells))) for top, bottom, cells in columns]
    lines = zip(*((top, bottom, *cells) for top, bottom, cells in columns), strict=True)
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    if target is not None:
        text.append(f"target: {target}")
        text += [f"{each['variant']}: never, {best(each, target)}" for each in entries if number(each, "seconds_to_target") is None]
    return "\n".join(text)


def verdict(entries: Sequence[Row], target: Target | None) -> list[str]:
    """Say in plain sentences which variant was the fastest, how one process compares, and what did not go well."""
    key = basis(entries, target)
    ahead, said = ranking(entries, key), []
    missed = [each for each in entries if target is not None and number(each, "seconds_to_target") is None]
    if key == "seconds_to_target":
        said.append(f"fastest to {target}: {in_seconds(ahead[0][key])} and {ahead[0]['samples_to_target']:,.0f} samples ({ahead[0]['variant']})")
    if target is not None and missed:
        who = "no variant" if len(missed) == len(entries) > 1 else "never"
        said.append(f"{who} reached {target}: " + "; ".join(f"{each['variant']} ({best(each, target)})" for each in missed))
    if key == "samples_per_second":
        said += [f"most samples/s: {per_second(ahead[0][key])} ({ahead[0]['variant']})"] if ahead else []
        said += _finest(entries)
    said += _against_one(entries[0], entries[1:], key)
    if idle := [str(each["variant"]) for each in entries if each.get("samples") == 0]:
        said.append(f"{', '.join(idle)}: {NO_CLOCK}")
    for each in entries:
        name = each["variant"]
        if each.get("diverged_at_clock") is not None:
            said.append(f"{name} diverged: its loss is not a number from clock {each['diverged_at_clock']} on")
        if each.get("dropped_samples"):
            said.append(f"{name} dropped {each['dropped_samples']:,} samples")
    return said


def basis(entries: Sequence[Row], target: Target | None) -> Literal["seconds_to_target", "samples_per_second"]:
    """Return the measure by which variants are ranked: seconds to the target where anyone reached it, else samples/s."""
    some = target is not None and any(number(each, "seconds_to_target") is not None for each in entries)
    return "seconds_to_target" if some else "samples_per_second"


def ranking(entries: Sequence[Row], key: str) -> list[Row]:
    """Return the variants that have the measure `key`, the fastest first."""
    return sorted((each for each in entries if number(each, key) is not None), key=lambda each: -speed(each, key))


def speed(each: Row, key: str) -> float:
    """Return a number that is twice as large for a variant twice as fast by the measure `key`."""
    return float(each[key]) if key == "samples_per_second" else 1 / max(each[key], 1e-12)


def best(each: Row, target: Target) -> str:
    """Say what a variant that missed the target had at best, with digits enough to differ from the target."""
    value = number(each, f"best_{target.key}")
    if value is None:
        return "nothing was measured"
    texts = (f"{value:.{digits}g}" for digits in range(3, 18))
    return f"best {next((text for text in texts if not reached({target.key: float(text)}, target)), f'{value:g}')}"


def number(each: Row, key: str) -> float | None:
    """Return a value of a row, None where it is missing or not finite."""
    return value if (value := each.get(key)) is not None and math.isfinite(value) else None


def in_seconds(seconds: float) -> str:
    """Write seconds with three digits and always in seconds, since they are read beside others."""
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"


def per_second(rate: float) -> str:
    """Write samples/s, without the unit."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def times(ratio: float) -> str:
    """Write a ratio with digits enough to tell 1.02 from 1."""
    return f"{ratio:.2f}" if ratio < 1.995 else f"{ratio:.1f}" if ratio < 99.95 else f"{ratio:,.0f}"


def _finest(entries: Sequence[Row]) -> list[str]:
    """Say who was best at the end, by test accuracy or else by loss; all of them where several were."""
    for key, words in (("test_accuracy", "highest test accuracy"), ("test_loss", "lowest test loss"), ("final_loss", "lowest training loss")):
        values = {str(each["variant"]): value for each in entries if (value := number(each, key)) is not None}
        if values:
            top = f"{(max if key == 'test_accuracy' else min)(values.values()):.4g}"
            return [f"{words} at the end: {top} ({'; '.join(name for name, value in values.items() if f'{value:.4g}' == top)})"]
    return []


def _against_one(one: Row, others: Sequence[Row], key: str) -> list[str]:
    """Say than which variants one process is faster, than which slower, and by what ratio."""
    rivals = ranking(others, key)
    if number(one, key) is None or not others:
        return []
    if not rivals:
        return [f"{one['variant']} alone reached the target"] if key == "seconds_to_target" else []
    show, unit = (in_seconds, " to the target") if key == "seconds_to_target" else (per_second, " samples/s")
    groups: dict[str, list[tuple[Row, float]]] = {"faster than": [], "as fast (within 1%) as": [], "slower than": []}
    for each in rivals:
        ratio = max(speed(one, key), 1e-12) / max(speed(each, key), 1e-12)
        words = "faster than" if ratio >= SAME else "slower than" if ratio <= 1 / SAME else "as fast (within 1%) as"
        groups[words].append((each, max(ratio, 1 / ratio)))
    said = []
    for words, group in groups.items():
        if not group:
            continue
        whole = len(rivals if words == "faster than" else others)  # who never got there is slower too, but never faster
        if len(group) == whole and len(others) > 1:
            whom = "all of them"
        else:
            whom = f"{len(group)} of them" if len(group) > 1 else str(group[0][0]["variant"])
        against = [f"{show(each[key])} ({each['variant']})" for each, _ in group]
        if "than" in words:
            first, *more = (f"{times(ratio)} times" for _, ratio in group)
            ratios = [f"{'which is ' * (words == 'slower than')}{first} as fast", *more]
            against = list(map(", ".join, zip(against, ratios, strict=True)))
        said.append(f"{one['variant']} is {words} {whom}: {show(one[key])}{unit} against {'; '.join(against)}")
    return said


def _sum(summary: Row, key: str) -> Any:
    return sum(value or 0 for value in summary.get(key) or [])


def _loss(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1000 else f"{value:.3g}"


def tell(folder: Any, entries: list[dict[str, Any]], curves: list[list[dict[str, Any]]], target: Any, speak: Callable[[str], None]) -> None:
    """Draw and say the comparison: compare.png, the table and the verdict."""
    if folder is not None:
        from mpidml.runtime.comparison_plot import draw

        draw(folder.path / "compare.png", entries, curves, target)
    speak("\n" + table(entries, target))
    speak("\n".join(verdict(entries, target)))
    if folder is not None:
        speak(f"written: {folder.path}/ (compare.png, compare.json, a folder for each run)")


def folder_name(name: str, taken: dict[str, int]) -> str:
    """Return a variant's name as that of a folder: `ssp:3, servers 2` is `ssp-3-servers-2`; a number is added where `taken` holds it already."""
    found = re.sub(r"[^A-Za-z0-9._+]+", "-", Path(name).name if "/" in name else name).strip("-")
    taken[found] = taken.get(found, 0) + 1
    return found if taken[found] == 1 else f"{found}-{taken[found]}"
