"""Keep with a run how its rows were coded, so that rows that come later are coded alike without the training data.

    training rows -> Known -> coding.json                      later:  coding.json -> Known -> rows of another file, coded, checked
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.data import columns, sparse, table
from mpidml.data.arrays import Arrays
from mpidml.data.learnt import Learnt, picked
from mpidml.data.learnt import check as check_heads
from mpidml.data.raw import Array, Reading, check_part
from mpidml.data.readers import answers, load, same_kind

FORMAT = 2


class Known(NamedTuple):
    """What a run knows of its data: the source, the sizes after coding, how tables (`coding`) or sparse rows were coded, and the reading.

    `n_outputs`: classes, or in a regression targets. `largest`: of columns that hold codes the largest one. `class_weights`: those of the loss.
    `heads`: what each of several learns, where the task is "heads".
    """

    source: str
    task: str
    n_features: int
    n_outputs: int
    reading: Reading
    coding: table.Coding | sparse.Coding | None = None
    largest: Mapping[int, float] = {}
    class_weights: Array | None = None
    heads: tuple[Learnt, ...] = ()

    @property
    def classes(self) -> list[str]:
        """Return the classes' names: their words, or their numbers; in a regression none."""
        words = self.coding.classes[0] if isinstance(self.coding, table.Coding) else self.coding.classes if self.coding is not None else None
        return [] if self.task == "regress" else words or [str(i) for i in range(self.n_outputs)]

    @property
    def target_names(self) -> list[str]:
        """Return the names of a regression's targets: of several columns of a table theirs, else target, or target_0, target_1."""
        named = self.coding.labels if isinstance(self.coding, table.Coding) else ()
        return ["target"] if self.n_outputs == 1 else list(named) or [f"target_{j}" for j in range(self.n_outputs)]

    def mapping(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        found: dict[str, Any] = {
            "format": FORMAT,
            "source": self.source,
            "task": self.task,
            "n_features": self.n_features,
            "n_outputs": self.n_outputs,
            "reading": {name: getattr(self.reading, name) for name in Reading._fields if name != "train_rows"},
            "largest_codes": {str(column): value for column, value in self.largest.items()},
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
            "heads": [of.mapping() for of in self.heads],
        }
        if isinstance(self.coding, table.Coding):
            kept = self.coding
            columns = [{"name": c.name, "categories": c.categories, "missing": c.missing} for c in kept.columns]
            found["table"] = {"columns": columns, "classes": kept.classes, "names": kept.names, "labels": kept.labels, "at": kept.at}
        elif self.coding is not None:
            found["sparse"] = {"base": self.coding.base, "signs": self.coding.signs, "plus": self.coding.plus}
        return found

    @classmethod
    def from_mapping(cls, found: Mapping[str, Any]) -> Known:
        """Return what `mapping` describes; KeyError, TypeError or ValueError for anything else."""
        if found["format"] != FORMAT:
            raise ValueError(f"it is of format {found['format']}, this program reads {FORMAT}")
        reading, coding = Reading(**found["reading"]), None
        if isinstance(reading.label, list):
            reading = reading._replace(label=tuple(reading.label))
        if kept := found.get("table"):
            columns = tuple(table.Filling(c["name"], None if (of := c["categories"]) is None else tuple(of), c["missing"]) for c in kept["columns"])
            names, labels, at = (tuple(kept[name]) for name in ("names", "labels", "at"))
            coding = table.Coding(found["source"], columns, tuple(kept["classes"]), reading, names, labels, at)
        elif kept := found.get("sparse"):
            coding = sparse.Coding(kept["base"], found["n_features"], kept["signs"], found["source"], kept["plus"])  # type: ignore[assignment]
        weights = found["class_weights"]
        largest = {int(column): float(value) for column, value in found["largest_codes"].items()}
        weighed = None if weights is None else np.array(weights, np.float64)
        heads = tuple(map(Learnt.from_mapping, found["heads"]))
        return cls(found["source"], found["task"], found["n_features"], found["n_outputs"], reading, coding, largest, weighed, heads)


def read_later(source: str, labels: str | None, known: Known, wants_labels: bool, unseen: str = "") -> tuple[Any, Array | None]:
    """Read rows and code them as the run's were: x as read (n, features), and y (labels int64, targets float64) where `wants_labels`.

    UserError for other columns, words that the run never saw (unless `unseen` is "ignore"), labels that are none of its classes, no labels.
    """
    reading = known.reading._replace(unseen=unseen or known.reading.unseen)
    _refuse_unseen(known, unseen)
    n, k = known.n_features, known.n_outputs if known.task == "regress" else sum(len(of.columns) for of in known.heads) or 1
    of_table = known.coding.known if isinstance(known.coding, table.Coding) else columns.Known((), (), tuple(range(n, n + k)), n)
    own = Reading(reading.view if source == "digits" else Reading().view, task=reading.task, unseen=unseen or Reading().unseen)
    contents: Any = load(source, own, labels, of_table)
    has_labels = contents.y is not None if isinstance(contents, Arrays) else not isinstance(contents, table.Table) or bool(contents.at)
    if wants_labels and not has_labels:
        raise UserError(f"{source}: its rows have no labels to compare with; give them, or use predict, which needs none")
    coding = _coding(contents, known, reading)
    if isinstance(contents, table.Table):
        table.check_names(contents, coding)
        _refuse_missing(contents, coding)
        x = contents.features(coding)
    else:
        x = contents.rows(coding)[0]
    if x.shape[1:] != (known.n_features,):
        raise UserError(f"{source}: its rows have {x.shape[1]} features, those of {known.source} had {known.n_features}; give the same features")
    if not wants_labels:
        check_part(source, "x", x, "y", np.zeros(len(x) if isinstance(x, np.ndarray) else x.shape[0], np.int64))
        return x, None
    same_kind(coding.classes if isinstance(coding, table.Coding) else (None,), contents.classes, known.source, source)
    y = contents.answers(coding) if isinstance(contents, table.Table) else contents.rows(coding)[1]
    y, _ = answers(y if isinstance(contents, table.Table) else picked(y, known.reading.label, f"{source}: y"), known.task, f"{source}, y")
    check_part(source, "x", x, "y", y)
    if known.heads:
        check_heads(y, known.heads, source)
        return x, y
    if known.task == "regress" and y.shape[1] != known.n_outputs:
        raise UserError(f"{source}: its rows have {y.shape[1]} targets, those of {known.source} had {known.n_outputs}; give the same targets")
    if known.task != "regress" and (y >= known.n_outputs).any():
        row = int((y >= known.n_outputs).argmax())
        raise UserError(f"{source}: label {y[row]} in row {row} is unknown to the run, which has {known.n_outputs} classes; correct the labels")
    return x, y


def _coding(contents: Any, known: Known, reading: Reading) -> Any:
    """Return the run's coding for rows of its kind; for a table or sparse rows of a run on arrays, one in which all is numbers."""
    if isinstance(contents, table.Table):
        if isinstance(known.coding, table.Coding):
            return known.coding._replace(reading=reading)
        numbers = tuple(table.Filling(str(j), None, 0.0) for j in range(known.n_features))
        return table.Coding(known.source, numbers, (None,) * len(contents.at), reading)
    if isinstance(contents, sparse.SparseRows):
        own = contents.coding(reading)
        return known.coding if isinstance(known.coding, sparse.Coding) else own._replace(n_features=known.n_features, file=known.source)
    return None


def _refuse_unseen(known: Known, unseen: str) -> None:
    """Refuse --unseen where it would do nothing or cannot be."""
    has_words = isinstance(known.coding, table.Coding) and any(column.categories is not None for column in known.coding.columns)
    if unseen and not has_words:
        raise UserError(f"--unseen {unseen}: does nothing, the run learnt from no column of words; leave it out")
    if unseen == "ignore" and known.reading.categories == "codes":
        raise UserError("--unseen ignore: the run learnt codes, and there is none for a word that was never seen; train with --categories onehot")


def _refuse_missing(contents: table.Table, coding: table.Coding) -> None:
    """Refuse missing cells where the run learnt nothing that could stand in for them."""
    found = [(column.name, column.missing) for j, column in enumerate(contents.columns) if j not in contents.at and column.missing is not None]
    if coding.reading.missing == "refuse" and found:
        name, cell = found[0]
        raise UserError(
            f"{cell.file}: {cell.at()}, column {name} holds '{cell.text}', a missing value, which the run has no number for; fill it in, or train with --missing impute"
        )
