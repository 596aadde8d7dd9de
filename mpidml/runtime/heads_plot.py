"""Draw the losses of several heads, as they were looked at, over seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]


def losses_of_heads(axes: Axes, seconds: Array, losses: Mapping[str, Array], words: str, colours: Sequence[str]) -> None:
    """Draw a line a head, of those that were measured; colours come again where heads are many. `words`: which rows were looked at."""
    for i, (name, loss) in enumerate(losses.items()):
        known = np.isfinite(loss)
        style = ("-", "--", ":")[i // len(colours) % 3]
        label = f"{words} loss of {name}"
        axes.plot(seconds[known], loss[known], style, marker="o", color=colours[i % len(colours)], markersize=4, linewidth=1, label=label)
