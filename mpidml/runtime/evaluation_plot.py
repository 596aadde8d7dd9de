"""Draw an evaluation: who was taken for whom and how well the scores put rows in order, or predicted over true amounts.

Each panel's title states its finding; style and colours are those of `report`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mpidml.core.quality import roc
from mpidml.runtime.evaluation_text import headline, short
from mpidml.runtime.judging import Thing, drawn
from mpidml.runtime.plot_style import BLUE, FAINT, GREEN, INK, ORANGE, QUIET, RED, SKY, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
MOST_NUMBERS = 20
MOST_NAMES = 40
MOST_DOTS = 20_000
MOST_TARGETS = 4
COLOURS = (BLUE, ORANGE, GREEN, RED, SKY)


def draw(found: Mapping[str, Any], thing: Thing) -> bytes:
    """Return a PNG of what was found of one thing that was learnt."""
    if thing.targets is not None:
        return of_amounts(found, thing.targets.unscaled(thing.y), thing.targets.unscaled(thing.outputs), thing.name)
    margins = thing.loss.margins(thing.outputs)
    return of_classes(found, {c: roc(thing.y == c, margins[:, c]) for c in drawn(dict(found))}, thing.name)


def of_classes(found: Mapping[str, Any], curves: Mapping[int, tuple[Array, Array]], name: str = "") -> bytes:
    """Return a PNG of the confusion (where evaluation.json has it) and the ROC `curves` of some classes."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        auc = "" if found["roc_auc"] is None else f"   |   ROC AUC {found['roc_auc']:.4f}"
        figure, (left, right) = _page(found, f"{_of(name)}accuracy {found['accuracy']:.2%}   |   loss {found['loss']:.4g}{auc}", (1.15, 1))
        if found["confusion"] is not None:
            _confusion(left, np.array(found["confusion"]), [of["name"] for of in found["classes"]], found["most_confused"])
        else:
            _mistakes(left, found["most_confused"])
        _roc(right, found["classes"], curves)
        return _png(figure)


def of_amounts(found: Mapping[str, Any], true: Array, predicted: Array, name: str = "") -> bytes:
    """Return a PNG of predicted over true amounts, (n, k) each, and of how far off they are; of many targets the first four."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        r2 = "" if found["r2"] is None else f"   |   R2 {found['r2']:.4f}"
        n = min(true.shape[1], MOST_TARGETS)
        figure, panels = _page(found, f"{_of(name)}RMSE {found['rmse']:.4g}   |   MAE {found['mae']:.4g}{r2}", (1,) * max(n, 2))
        step = max(1, len(true) // MOST_DOTS)
        for j in range(n):
            _amounts(panels[j], true[::step, j], predicted[::step, j], "" if true.shape[1] == 1 else f"Predictions of {short(found['each'][j]['target'])}")
        if n == 1:
            _errors(panels[1], predicted[:, 0] - true[:, 0])
        return _png(figure)


def _of(name: str) -> str:
    return f"head {name}   |   " if name else ""


def _page(found: Mapping[str, Any], details: str, widths: tuple[float, ...]) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(12, 5.5 * len(widths)), 6.2), dpi=140, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.12, h_pad=0.1, wspace=0.06, rect=(0, 0, 1, 0.87))
    figure.text(0.012, 0.96, headline(found), fontsize=14, fontweight="bold", va="center")
    figure.text(0.012, 0.905, details, fontsize=9.5, color=QUIET, va="center")
    return figure, figure.subplots(1, len(widths), width_ratios=widths)


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def _confusion(axes: Axes, counts: Array, names: list[str], worst: list[Mapping[str, Any]]) -> None:
    """Shade each cell by its share of the class's rows; right ones blue, wrong ones red on a scale of their own, so that few mistakes show."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = shares * (1 - np.eye(len(counts)))
    colours = np.ones((*counts.shape, 3))
    for part, colour, most in ((shares * np.eye(len(counts)), BLUE, 1.0), (wrong, RED, max(wrong.max(), 1e-9))):
        ink = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        strength = 0.85 * (part / most)[..., None] if colour == BLUE else (0.12 + 0.73 * (part / most)[..., None]) * (part > 0)[..., None]
        colours = colours * (1 - strength) + ink * strength
    axes.imshow(colours, interpolation="nearest", aspect="equal")
    axes.grid(False)
    k = len(counts)
    axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    axes.tick_params(which="both", length=0)
    if k <= MOST_NAMES:
        axes.grid(True, which="minor", color="white", linewidth=1.5 if k <= MOST_NUMBERS else 0.5)
    shown = np.arange(k) if k <= MOST_NAMES else np.arange(0, k, -(-k // 20))
    tall = max(len(short(names[i], 12)) for i in shown) > 3 and k > 4
    axes.set_xticks(shown, [short(names[i], 12) for i in shown], rotation=45 if tall else 0, ha="right" if tall else "center", rotation_mode="anchor" if tall else None)
    axes.set_yticks(shown, [short(names[i], 12) for i in shown])
    axes.tick_params(labelsize=9 if k <= 12 else 7 if k <= 24 else 5.5)
    if k <= MOST_NUMBERS:
        strong = 1 - colours.mean(axis=2) > 0.42
        for i, j in np.argwhere(counts).tolist():
            text = f"{counts[i, j]:,}" + (f"\n{shares[i, j]:.0%} of {short(names[i], 12)}" if k <= 4 else "")
            axes.text(j, i, text, ha="center", va="center", fontsize=12 if k <= 4 else 9 if k <= 12 else 7, color="white" if strong[i, j] else INK)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("called")
    axes.set_ylabel("class")
    axes.set_title(f"Most often {short(worst[0]['class'])} was called {short(worst[0]['called'])}: {worst[0]['rows']:,} times" if worst else "No row was wrong")


def _mistakes(axes: Axes, worst: list[Mapping[str, Any]]) -> None:
    """Draw the commonest mistakes as bars, where the table has too many classes."""
    worst = worst[:15]
    axes.barh(range(len(worst)), [pair["rows"] for pair in worst], color=RED)
    axes.set_yticks(range(len(worst)), [f"{short(pair['class'])} called {short(pair['called'])}" for pair in worst])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlabel("rows")
    axes.set_title("The commonest mistakes" if worst else "No row was wrong")


def _roc(axes: Axes, classes: list[Mapping[str, Any]], curves: Mapping[int, tuple[Array, Array]]) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle="--")
    for (c, (falls, hits)), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(falls, hits, color=colour, linewidth=2, label=f"{short(classes[c]['name'])}   AUC {classes[c]['roc_auc']:.4f}", clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.005)
    axes.set_aspect("equal")
    axes.set_xlabel("share of other rows that score as high")
    axes.set_ylabel("share of the class's rows that score as high")
    if not curves:
        axes.set_title("No ROC curve: all rows are of one class")
        return
    axes.legend(loc="lower right", title=None if len(classes) == 2 else "against all others; the lowest" if len(curves) < len(classes) else "against all others")
    lowest = min(curves, key=lambda c: classes[c]["roc_auc"])
    name, auc = short(classes[lowest]["name"]), classes[lowest]["roc_auc"]
    axes.set_title(f"AUC {auc:.4f} for class {name}" if len(classes) == 2 else f"Hardest to tell is class {name}, AUC {auc:.4f}")
    if min(float(np.interp(0.2, falls, hits)) for falls, hits in curves.values()) > 0.9:
        _closer(axes, curves)


def _closer(axes: Axes, curves: Mapping[int, tuple[Array, Array]]) -> None:
    """Show the upper left corner, where good curves would all be one line."""
    inset = axes.inset_axes((0.38, 0.36, 0.58, 0.42))
    for (falls, hits), colour in zip(curves.values(), COLOURS, strict=False):
        inset.plot(falls, hits, color=colour, linewidth=1.6)
    inset.set_xlim(-0.002, 0.1)
    inset.set_ylim(min(0.9, *(float(hits[falls <= 0.01].max(initial=0)) for falls, hits in curves.values())) - 0.005, 1.003)
    inset.tick_params(labelsize=7.5)
    inset.set_title("the upper left corner", fontsize=8, fontweight="normal", color=QUIET, pad=4)
    axes.indicate_inset_zoom(inset, edgecolor="#999999")


def _amounts(axes: Axes, true: Array, predicted: Array, name: str) -> None:
    lo, hi = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    room = 0.03 * (hi - lo or 1.0)
    axes.plot([lo - room, hi + room], [lo - room, hi + room], color=QUIET, linewidth=1, linestyle="--", zorder=3)
    alpha = float(np.clip(60 / np.sqrt(len(true)) / 3, 0.08, 0.7))
    axes.scatter(true, predicted, s=14, color=BLUE, alpha=alpha, edgecolors="none", rasterized=True)
    axes.set_xlim(lo - room, hi + room)
    axes.set_ylim(lo - room, hi + room)
    axes.set_aspect("equal")
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    bias = float((predicted - true).mean())
    rmse = float(np.sqrt(np.square(predicted - true).mean()))
    how = f"{abs(bias):.3g} too {'high' if bias > 0 else 'low'}" if abs(bias) > 0.1 * rmse else "neither too high nor too low"
    axes.set_title(f"{name or 'Predictions'} are {how} on average")


def _errors(axes: Axes, off: Array) -> None:
    """Draw how often predictions are how far off."""
    axes.hist(off, bins=min(60, max(10, int(np.sqrt(len(off))))), color=BLUE, alpha=0.85)
    axes.axvline(0, color=QUIET, linewidth=1, linestyle="--")
    axes.grid(False, axis="x")
    axes.set_xlabel("predicted minus true")
    axes.set_ylabel("rows")
    axes.set_title(f"Half of the rows are less than {np.median(np.abs(off)):.3g} off")
