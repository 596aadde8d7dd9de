"""Load a job's data once per host into memory that its ranks share, split it, and scale it with the same bits at any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mpidml.collectives.base import FOLDER
from mpidml.core import plugins
from mpidml.core.csr import Csr
from mpidml.core.errors import UserError, nearest
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.core.shares import EVERY
from mpidml.core.target import parse_target
from mpidml.data import learnt
from mpidml.data.readers import HEADS, Reading, given, read, read_pair
from mpidml.data.scaling import BLOCK, Scaler
from mpidml.data.split import hold_out
from mpidml.data.stored import Stored
from mpidml.data.targets import Targets
from mpidml.runtime import dense_rows, out_of_core, scoring
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm, shared_memory_nbytes
from mpidml.runtime.crew import Crew
from mpidml.runtime.info import memory_nbytes
from mpidml.runtime.net import labels
from mpidml.runtime.reads import Reads
from mpidml.runtime.scratch import Scratch
from mpidml.runtime.sparse_rows import as_csr, refuse_on_disk, share, stay_sparse

ARRAYS = "arrays"
"""In place of a file's name: the data were handed in by a program."""


class Dataset(NamedTuple):
    """Scaled rows x (n, features) in the job's dtype, dense or `Csr`, labels y int64 (n,); test and validation parts may be empty. Shared by all ranks of a host.

    In a regression (`targets` is not None) y are the scaled targets (n, k) in the job's dtype, and n_outputs is k, else the number of classes.
    Where several `heads` learn y, it is float64 (n, columns), see `learnt`, and n_outputs is the sum of theirs.
    `coding`: how the rows were coded, known to the first rank of each host alone. Where rows live on the disk, x are `DiskRows`, read by `reads`.
    """

    name: str
    x: Any
    y: Array
    test_x: Any
    test_y: Array
    val_x: Any
    val_y: Array
    n_outputs: int
    scaler: Scaler
    targets: Targets | None = None
    notes: tuple[str, ...] = ()
    coding: Any = None
    heads: tuple[learnt.Learnt, ...] = ()
    reads: Reads | None = None

    @property
    def task(self) -> str:
        """What is learnt: "heads", "classify" or "regress"."""
        return HEADS if self.heads else "classify" if self.targets is None else "regress"

    @property
    def is_sparse(self) -> bool:
        """Whether the rows are sparse ones (`Csr`)."""
        return isinstance(self.x, Csr)

    @property
    def disk_nbytes(self) -> int:
        """The bytes of rows that live on the disk."""
        return sum(getattr(x, "disk_nbytes", 0) for x in (self.x, self.test_x, self.val_x))

    def close(self) -> None:
        """End the thread that reads ahead."""
        if self.reads is not None:
            self.reads.close()

    def rows(self, of: str) -> tuple[Any, Array]:
        """Return x and y of the "test" or the "val" rows."""
        return (self.val_x, self.val_y) if of == "val" else (self.test_x, self.test_y)

    def judged(self, scores: Sequence[Mapping[str, scoring.Scores]]) -> dict[str, float | None]:
        """Say how good a model is from every worker's scores of "test" or "val" rows: the losses and their `quality`."""
        found: dict[str, float | None] = {}
        for of in scores[0]:
            loss, score, rows = scoring.total(own[of] for own in scores)
            mean = loss / rows if rows else None
            found |= {f"{of}_loss": mean} | self.quality(score, rows, mean, of, *scoring.of_heads(own[of] for own in scores))
        return found

    def quality(self, score: float, rows: float, loss: float | None, of: str = "test", *of_heads: float) -> dict[str, float | None]:
        """Say how good a model is on `rows` rows: accuracy from the number of correct ones, or RMSE and R2 from their squared errors (R2 of test rows alone).

        All None where nothing was measured or the loss is no number: outputs that are no numbers have a largest one by chance only.
        `of_heads`: loss and score of each head, whose measures have its name after a point; those of the only one of its kind also stand without.
        """
        if self.heads:
            each = [head.measured(s, rows, of_loss, of) for head, (of_loss, s) in zip(self.heads, scoring.pairs(of_heads), strict=True)]
            alone = {name: value for one in each for name, value in one.items() if sum(name in other for other in each) == 1}
            return alone | {f"{name}.{head.name}": value for head, one in zip(self.heads, each, strict=True) for name, value in one.items()}
        measured = bool(rows) and loss is not None and math.isfinite(loss)
        if self.targets is None:
            return {f"{of}_accuracy": score / rows if measured else None}
        found: dict[str, float | None] = self.targets.quality(score, rows) if measured else {"test_rmse": None, "test_r2": None}
        return found if of == "test" else {f"{of}_rmse": found["test_rmse"]}


def check_target(job: Job, data: Dataset) -> None:
    """Refuse a target that these data cannot show, and what a run on so many rows never comes to."""
    if job.check_replicas > (n := job.n_clocks(-(-len(data.x) // job.batch))):
        raise UserError(f"--check-replicas {job.check_replicas}: does nothing in a run of {n} clocks, compared at its end anyway; give at most {n}, or leave it out")
    if job.shares == "measured" and n <= EVERY:
        raise UserError(f"--shares measured: does nothing in a run of {n} clocks, which are learnt after {EVERY}; give at least {EVERY + 1}, or leave it out")
    if job.averaging.startswith("elastic") and job.average_every > n:
        why = f"in a run of {n} clocks the centre of --averaging {job.averaging}, which is what is saved, would stay as it began"
        raise UserError(f"--average-every {job.average_every}: {why}; give at most {n}")
    if job.strategy == "averaging" and job.average_every > n and not plugins.make(FOLDER, job.collective).exact:
        why = f"in a run of {n} clocks replicas would never mix by --collective {job.collective}"
        raise UserError(f"--average-every {job.average_every}: {why}; give at most {n}, or leave --collective out, and their mean is taken at the end alone")
    target = parse_target(job.target, job.looks_at)
    if target is not None and not len(data.rows(job.looks_at)[0]):
        raise UserError(f"--target {job.target}: there are no test rows to measure it on; give --test-data or --hold-out 0.2")
    if target is None:
        return
    names = {head.name: head.is_labels for head in data.heads}
    if target.head and target.head not in names:
        raise UserError(f"--target {job.target}: " + (nearest(target.head, names) if names else f"the net has no heads; leave .{target.head} out"))
    if target.kind == "accuracy" and (data.targets is not None or (target.head and not names[target.head])):
        raise UserError(f"--target {job.target}: a regression has no accuracy; give a loss, as loss:0.1")
    if target.kind == "accuracy" and names and not target.head and sum(names.values()) != 1:
        example = next((name for name, is_labels in names.items() if is_labels), None)
        remedy = f"name one, as accuracy.{example}:0.97" if example else "give a loss, as loss:0.1"
        raise UserError(f"--target {job.target}: {sum(names.values())} of the heads have an accuracy; {remedy}")


def on_arrays(job: Job) -> Job:
    """Return a job whose data are arrays that a program hands in; UserError for what says how files are read."""
    for name in ("test_data", "labels", "test_labels", "label", "categories", "unseen", "missing", "view"):
        if getattr(job, name) != getattr(Job, name):
            raise UserError(f"--{name.replace('_', '-')} {getattr(job, name)}: does nothing, the data are arrays; leave it out")
    if job.data not in (Job.data, ARRAYS):
        raise UserError(f"--data {job.data}: does nothing, the data are arrays; leave one of them out")
    return replace(job, data=ARRAYS)


def load(job: Job, comm: CountedComm, arrays: Sequence[Any] | None = None, start: Any = None) -> Dataset:
    """Read, split and scale (Collective on comm). The first rank of each host reads the file; each rank scales its share of the rows.

    Under a limit of memory all ranks of a host read, and rows that do not fit stay on the disk. `arrays`: x, y (and test_x, test_y) in place of a
    file; those of the first rank of each host are taken.
    `start`: a `Start`, whose number of classes counts, and whose model scales rows and targets as it did before.
    """
    leads = comm.host.rank == 0
    before = start.kept.model.scaler if start is not None and start.kept is not None else None
    crew = Crew(comm, Scratch(job.scratch, comm) if job.memory else None) if arrays is None else None
    about = agree(
        comm, lambda: crew.run(lambda: _about(job, _split(job, None, None, crew), crew)) if crew else _about(job, _split(job, arrays, start)) if leads else None
    )
    parts = None if about is None else about[0]
    name, sizes, n_features, n_outputs, dtypes, targets, notes, heads, sparse, disk = comm.host.bcast(about and about[1:], 0)
    width, kind = (1, np.dtype(np.int64)) if targets is None else (n_outputs, np.dtype(job.dtype))
    if heads:
        width, kind = sum(len(head.columns) for head in heads), np.dtype(np.float64)
    answers = [comm.shared(size * width, kind) for size in sizes]
    if parts is not None:
        for part, y in zip(parts.rows, answers, strict=True):
            y[:] = learnt.scaled(part.y, heads).ravel() if heads else part.y if targets is None else targets.scaled(part.y).ravel()
    scaled: list[Any]
    reads = None
    if sparse:
        matrices = None if parts is None else [as_csr(part.x, part.rows) for part in parts.rows]
        scaled, scaler = share(name, job, comm, matrices, n_features, before)
    elif crew is not None and disk is not None:
        numbers = [None] * 3 if parts is None else [part.rows for part in parts.rows]
        scaled, scaler, reads = out_of_core.load(name, job, comm, disk, crew, numbers, sizes, before)
    else:
        scaled, scaler = dense_rows.load(name, job, comm, sizes, n_features, dtypes, None if parts is None else parts.rows, before)
    if targets is not None or heads:
        answers = [y.reshape(-1, width) for y in answers]
    (x, test_x, val_x), (y, test_y, val_y) = scaled, answers
    coding = None if parts is None else parts.coding
    return Dataset(name, x, y, test_x, test_y, val_x, val_y, n_outputs, scaler, targets, notes, coding, heads, reads)


class Part:
    """Rows of x, dense or sparse, in memory or on the disk, that are copied once, to where they are shared; y of those rows."""

    def __init__(self, x: Any, y: Array, rows: Array | None = None) -> None:
        self.x, self.y, self.rows = x, y if rows is None else y[rows], rows
        self.n = len(self.y)
        self.is_sparse = hasattr(x, "indptr")
        # Counts and the like take half the room, and not a bit changes.
        with np.errstate(over="ignore"):
            halves = self.is_sparse and (x.data.astype(np.float32) == x.data).all()
        self.dtype = np.dtype(np.float32) if halves else x.dtype

    def write(self, out: Array) -> None:
        """Copy the rows to `out` (n, features), a block at a time."""
        for lo in range(0, self.n, BLOCK):
            block = self.x[lo : lo + BLOCK] if self.rows is None else self.x[self.rows[lo : lo + BLOCK]]
            out[lo : lo + BLOCK] = block.toarray() if self.is_sparse else block


class _Parts(NamedTuple):
    name: str
    rows: tuple[Part, Part, Part]  # training, test, validation
    n_outputs: int
    targets: Targets | None
    notes: tuple[str, ...]
    coding: Any
    heads: tuple[learnt.Learnt, ...] = ()
    sparse: bool = False


def _split(job: Job, arrays: Sequence[Any] | None, start: Any = None, crew: Crew | None = None) -> _Parts:
    """Read the files, hold test rows out where the files, or the arrays in their place, have none, and keep validation rows apart."""
    how: dict[str, Any] = {name: getattr(job, name) for name in Reading._fields if name in job.mapping()}
    label, task, asked = labels(job)
    how |= {"label": label, "labels": job.labels or None, "task": task, "train_rows": partial(_trained, job), "crew": crew}
    if crew is not None:
        refuse_on_disk(job)
    if arrays is not None:
        raw = given(job.data, arrays, task, label, start.n_classes if start is not None else 0)
    elif job.test_data:
        raw = read_pair(job.data, job.test_data, test_labels=job.test_labels or None, **how)
    else:
        raw = read(job.data, **how)
    kept, held, apart = _cut(job, len(raw.y), raw.test_x is None)
    if raw.test_x is not None and raw.test_y is not None:
        if not job.test_data and job.hold_out != Job.hold_out:
            raise UserError(f"--hold-out {job.hold_out}: does nothing, {job.data} has test rows of its own (x_test, y_test); leave it out")
        train, test = Part(raw.x, raw.y, kept if job.validate else None), Part(raw.test_x, raw.test_y)
    else:
        if len(kept) == 0:
            raise UserError(f"{job.data}: all of its {len(raw.y)} row(s) would be held out for testing; give more rows or a smaller --hold-out")
        train, test = Part(raw.x, raw.y, kept), Part(raw.x, raw.y, held)
    if job.validate and not len(apart):
        raise UserError(f"--validate {job.validate}: there is one training row, and none to keep apart; give more rows, or leave it out")
    rows = (train, test, Part(raw.x, raw.y, apart))
    sparse = stay_sparse(job.scale, raw.x)
    if not sparse:
        check_room(job.data, job.dtype, *rows, remedy=", or --scale maxabs, under which they stay sparse")
    if asked:
        words = getattr(raw.coding, "classes", None) or ()
        heads = learnt.fit(raw.name, asked, words, raw.y, train.y, test.y)
        learnt.check(test.y, heads, job.test_data or raw.name)
        return _Parts(raw.name, rows, sum(head.n_outputs for head in heads), None, raw.notes, raw.coding, heads, sparse)
    if raw.y.dtype.kind == "f":
        before = start.kept.model.targets if start is not None and start.kept is not None else None
        return _Parts(raw.name, rows, raw.y.shape[1], before or Targets.fit(raw.name, train.y, test.y), raw.notes, raw.coding, (), sparse)
    n_classes = max(int(raw.y.max()) + 1, start.n_classes if start is not None else 0)
    return _Parts(raw.name, rows, n_classes, None, raw.notes, raw.coding, (), sparse)


def _trained(job: Job, n: int) -> Array:
    """Return which of a table's rows are trained on: other files may have test rows of their own."""
    return _cut(job, n, not job.test_data)[0]


def _cut(job: Job, n: int, tests: bool) -> tuple[Array, Array, Array]:
    """Part n rows into those that are trained on, those held out where `tests` are to be, and those kept apart for validation."""
    kept, held = hold_out(n, job.hold_out if tests else 0.0, job.seed)
    trained, apart = hold_out(len(kept), job.validate, job.seed, "validate")
    return kept[trained], held, kept[apart]


def _about(job: Job, parts: _Parts, crew: Crew | None = None) -> tuple[Any, ...]:
    """Return the parts, and what every rank has to know of them before they are shared."""
    sizes, dtypes = [part.n for part in parts.rows], [part.dtype.str for part in parts.rows]
    disk, notes = None, list(parts.notes)
    if crew is not None and all(isinstance(part.x, Stored) for part in parts.rows):
        each = 8 if parts.targets is None else parts.n_outputs * np.dtype(job.dtype).itemsize
        each = 8 * sum(len(head.columns) for head in parts.heads) or each
        disk = out_of_core.decide(job, parts.rows, sum(sizes) * each, crew)
        notes += disk.notes
    elif job.memory:
        notes.append(f"--memory {job.memory}: does nothing, the data are arrays of a program, in memory already")
    width = parts.rows[0].x.shape[1]
    return parts, parts.name, sizes, width, parts.n_outputs, dtypes, parts.targets, tuple(notes), parts.heads, parts.sparse, disk


def check_room(source: str, dtype: str, *parts: Part, remedy: str = "") -> None:
    """Refuse sparse rows that have no room as dense ones, which training needs."""
    if not any(part.is_sparse for part in parts):
        return
    width = parts[0].x.shape[1]
    wanted = sum(part.n * width * (part.dtype.itemsize + np.dtype(dtype).itemsize) for part in parts)
    room = min((free for free in (memory_nbytes(), shared_memory_nbytes()) if free is not None), default=None)
    if room is not None and wanted > 0.9 * room:
        n = sum(part.n for part in parts)
        raise UserError(
            f"{source}: {n} sparse rows x {width} features take {wanted / 1e9:.3g} GB as dense rows, {room / 1e9:.3g} GB are free; "
            f"give fewer features or rows{remedy}"
        )
