"""Put an evaluation into words: the figures, who was taken for whom, and a line for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_SHOWN = 20
NAME_WIDTH = 16
FEW = 10


def report(found: Mapping[str, Any]) -> str:
    """Return the report of what evaluation.json holds."""
    if found["task"] != "heads":
        return "\n".join([headline(found), *_thing(found)])
    lines = [headline(found), f"loss {found['loss']:.6g}, the sum of weight x loss"]
    for name, of in found["heads"].items():
        lines += ["", f"head {name}, weight {of['weight']:g}", *_thing(of | {"rows": found["rows"]})]
    return "\n".join(lines)


def _thing(found: Mapping[str, Any]) -> list[str]:
    """Tell of one thing that was learnt."""
    if found["task"] == "regress":
        r2 = "" if found["r2"] is None else f"   R2 {found['r2']:.4f}"
        return [f"loss {found['loss']:.6g}   RMSE {found['rmse']:.6g}   MAE {found['mae']:.6g}{r2}", *_targets(found.get("each", ()))]
    auc = "" if found["roc_auc"] is None else f"   ROC AUC {found['roc_auc']:.4f}"
    auc += " (mean of one class against the others)" if auc and len(found["classes"]) > 2 else ""
    lines = [f"loss {found['loss']:.6g}   accuracy {found['accuracy']:.2%} ({found['right']:,} right){auc}"]
    names = [short(of["name"]) for of in found["classes"]]
    lines += ["", *(_table(found["confusion"], names) if len(names) <= MOST_SHOWN else _pairs(found["most_confused"]))]
    return [*lines, "", *_classes(found)]


def headline(found: Mapping[str, Any]) -> str:
    """Say which run was evaluated on what."""
    return f"{found['run']} on {'its ' * found['own_test_rows']}{found['rows']:,} {'test ' * found['own_test_rows']}rows of {found['data']}"


def told(heads: Mapping[str, Mapping[str, Any]]) -> str:
    """Say how good each head is."""
    words = []
    for name, of in heads.items():
        if of.get("test_accuracy") is not None:
            words.append(f"{name}: accuracy {of['test_accuracy']:.2%}")
        elif of.get("test_rmse") is not None:
            words.append(f"{name}: RMSE {of['test_rmse']:.4g}" + ("" if of.get("test_r2") is None else f", R2 {of['test_r2']:.4f}"))
    return "; ".join(words) or "not measured"


def figures(summary: Mapping[str, Any]) -> list[str]:
    """Return how good a run's model is, for the head of its picture."""
    if "heads" in summary:
        return [told(summary["heads"])]
    found = []
    if summary.get("test_accuracy") is not None:
        found.append(f"test accuracy {summary['test_accuracy']:.1%}")
    if summary.get("test_rmse") is not None:
        found.append(f"test RMSE {summary['test_rmse']:.4g}" + ("" if summary["test_r2"] is None else f", R2 {summary['test_r2']:.3f}"))
    return found


def short(name: str, width: int = NAME_WIDTH) -> str:
    """Return a name that fits a column."""
    return name if len(name) <= width else name[: width - 1] + "…"


def _targets(each: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the targets of a regression that has several."""
    if not each:
        return []
    left = max(len("target"), *(len(short(of["target"])) for of in each))
    lines = ["", f"{'target':{left}}         RMSE          MAE       R2"]
    for of in each:
        r2 = "       -" if of["r2"] is None else f"{of['r2']:8.4f}"
        lines.append(f"{short(of['target']):{left}} {of['rmse']:12.6g} {of['mae']:12.6g} {r2}")
    return lines


def _table(counts: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    """Draw the confusion: a row for each class, a column for what it was called."""
    left = max(len("class"), *map(len, names))
    widths = [max(len(name), *(len(f"{row[j]:,}") for row in counts)) for j, name in enumerate(names)]
    lines = [f"{'class':{left}} | called " + "  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))]
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        cells = (f"{count:,}" if count or i == j else "." for j, count in enumerate(row))
        lines.append(f"{name:{left}} |        " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return lines


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the commonest mistakes, where the table would be too wide."""
    if not pairs:
        return ["no row was taken for another class"]
    lines = [f"{pair['rows']:>8,} times {short(pair['class'])} was called {short(pair['called'])}" for pair in pairs[:FEW]]
    return ["the commonest mistakes", *lines]


def _classes(found: Mapping[str, Any]) -> list[str]:
    """List the classes: all of them, or of many those with the lowest F1; then the means."""
    classes = found["classes"]
    worst = classes if len(classes) <= MOST_SHOWN else sorted((of for of in classes if of["support"]), key=lambda of: of["f1"])[:FEW]
    left = max(len("weighted mean"), *(len(short(of["name"])) for of in worst), 0)
    title = "class" if len(worst) == len(classes) else f"{len(worst)} worst"
    lines = [f"{title:{left}}  precision  recall      F1  support  ROC AUC"]
    for of in worst:
        auc = "      -" if of["roc_auc"] is None else f"{of['roc_auc']:7.4f}"
        lines.append(f"{short(of['name']):{left}}  {of['precision']:9.4f}  {of['recall']:6.4f}  {of['f1']:6.4f}  {of['support']:7,}  {auc}")
    for name in ("macro", "weighted"):
        mean = found[name]
        lines.append(f"{name + ' mean':{left}}  {mean['precision']:9.4f}  {mean['recall']:6.4f}  {mean['f1']:6.4f}  {found['rows']:7,}")
    return lines
