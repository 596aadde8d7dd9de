"""Open the folder of a run that has ended: its job, its network with the weights, and what codes and scales rows as the training rows were.

    config.toml net.toml coding.json model.safetensors  ->  Saved  ->  rows of a file, coded, checked, scaled, shared by the ranks of a host
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI
from mpidml_kernels import backend as kernels

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.role import Array
from mpidml.data.coding import Known, read_later
from mpidml.data.learnt import Learnt, scaled
from mpidml.data.scaling import Scaler
from mpidml.data.targets import Targets
from mpidml.nn import models
from mpidml.nn.layers.dense import Dense
from mpidml.nn.network import Network
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import ARRAYS, Part, check_room, load
from mpidml.runtime.dense_rows import scaled_rows
from mpidml.runtime.model import Model
from mpidml.runtime.net import NET_FILE, net_text
from mpidml.runtime.run_files import CODING_FILE
from mpidml.runtime.sparse_rows import as_csr, share, stay_sparse

MODEL = "model.safetensors"


class Rows(NamedTuple):
    """Scaled rows x (n, features), dense or `Csr`, and y as `Dataset` has it, None where no labels were wanted.

    `targets` and `heads` know the spread of these rows' targets.
    """

    name: str
    x: Any
    y: Array | None
    targets: Targets | None
    heads: tuple[Learnt, ...] = ()


class Saved(NamedTuple):
    """A run as it was saved; `w` (n_params,) is shared by the ranks of a host."""

    path: Path
    job: Job
    known: Known
    net: Network
    w: Array
    scaler: Scaler
    targets: Targets | None

    def own_rows(self, comm: CountedComm) -> Rows:
        """Return the rows that the run held out or was tested on (Collective on comm); UserError where there are none, or the data have changed."""
        if self.job.data == ARRAYS:
            raise UserError(f"{self.path}: the run learnt from arrays that a program handed in, and kept none; give rows by --data")
        data = load(self.job, comm)
        if not len(data.test_x):
            raise UserError(f"{self.path}: the run has no test rows of its own (--hold-out {self.job.hold_out:g}); give rows by --data")
        kept = (self.scaler.offset, self.scaler.factor)
        if data.n_outputs != self.known.n_outputs or not all(map(np.array_equal, (data.scaler.offset, data.scaler.factor), kept)):
            raise UserError(f"{self.job.data}: is not what the run in {self.path} learnt from, it has changed since; restore it, or give rows by --data")
        return Rows(data.name, data.test_x, data.test_y, data.targets, data.heads)

    def rows(self, source: str, labels: str, unseen: str, wants_labels: bool, comm: CountedComm) -> Rows:
        """Read, code and scale other rows as the training rows were (Collective on comm); UserError where they do not fit the run."""
        leads = comm.host.rank == 0
        found = agree(comm, lambda: self._read(source, labels, unseen, wants_labels) if leads else None)
        about = None if found is None else (found[0].n, found[0].dtype.str, found[1] is not None and found[2], found[3], self._stay_sparse(found[0].x))
        n, dtype, targets, heads, sparse = comm.host.bcast(about, 0)
        width, kind = (self.net.n_outputs, np.dtype(self.job.dtype)) if self.targets is not None else (1, np.dtype(np.int64))
        if heads:
            width, kind = sum(len(of.columns) for of in heads), np.dtype(np.float64)
        y = comm.shared(n * width if wants_labels else 0, kind)
        if found is not None and found[1] is not None:
            y[:] = found[1].ravel()
        x: Any
        if sparse:
            (x,), _ = share(source, self.job, comm, None if found is None else [as_csr(found[0].x, None)], self.known.n_features, self.scaler)
        else:
            taken = comm.shared(n * self.known.n_features, dtype)
            if found is not None:
                found[0].write(taken.reshape(n, -1))
            comm.Barrier()
            x = scaled_rows(source, self.job.dtype, taken, n, self.known.n_features, self.scaler, comm)
        shaped = y.reshape(n, width) if (self.targets is not None or heads) and wants_labels else y
        return Rows(source, x, shaped if wants_labels else None, targets or self.targets, heads)

    def _stay_sparse(self, x: Any) -> bool:
        return stay_sparse(self.job.scale, x) and isinstance(self.net.layers[0], Dense)

    def _read(self, source: str, labels: str, unseen: str, wants_labels: bool) -> tuple[Part, Array | None, Targets | None, tuple[Learnt, ...]]:
        x, y = read_later(source, labels or None, self.known, wants_labels, unseen)
        part = Part(x, np.zeros(x.shape[0]))
        if not self._stay_sparse(x):
            check_room(source, self.job.dtype, part)
        for column, most in self.known.largest.items():
            self._check_codes(source, x, column, most)
        heads = self.known.heads
        if y is not None and heads:
            return part, scaled(y, heads), None, tuple(of._replace(targets=of.targets and of.targets.seen(y[:, list(of.columns)])) for of in heads)
        if self.targets is None or y is None:
            return part, y, None, heads
        return part, self.targets.scaled(y), self.targets.seen(y), ()

    def _check_codes(self, source: str, x: Any, column: int, most: float) -> None:
        codes = np.asarray(x[:, [column]].todense() if hasattr(x, "indptr") else x[:, column]).ravel()
        bad = (codes < 0) | (codes != np.floor(codes)) | (codes > most)
        if bad.any():
            row = int(bad.argmax())
            raise UserError(f"{source}: column {column} holds {codes[row]:g} in row {row}, the run learnt codes from 0 to {most:g}; give such codes")


def open_run(folder: str, comm: CountedComm, backend: Any) -> Saved:
    """Open a run's folder (Collective on comm). The first rank of each host reads the weights; `backend(job)` gives the arithmetic.

    UserError where it is no folder of a run, the run has not ended, or a file is damaged.
    """
    path = Path(folder)
    leads = comm.host.rank == 0
    job = agree(comm, lambda: _job(path))
    known = agree(comm, lambda: _known(path))
    numbers = backend(job)
    net = agree(comm, lambda: _net(job, known, numbers))
    tensors = agree(comm, lambda: _tensors(path, net) if leads else None)
    scaling = None if tensors is None else {name: array for name, array in tensors.items() if name not in net.params.shapes}
    scaling = comm.host.bcast(scaling, 0)
    w = comm.shared(net.n_params, net.dtype)
    if tensors is not None:
        for name, view in net.params.views(w).items():
            view[...] = tensors[name]
    comm.Barrier()
    scaler = Scaler.from_state({"offset": scaling["scaler.offset"], "factor": scaling["scaler.factor"]})
    targets = _targets(scaling, "targets") if known.task == "regress" else None
    known = known._replace(heads=tuple(of if of.classes else of._replace(targets=_targets(scaling, f"targets.{of.name}")) for of in known.heads))
    return Saved(path, job, known, net, w, scaler, targets)


def _targets(scaling: Any, name: str) -> Targets:
    """Return how targets were scaled, of what lies beside the weights."""
    return Targets(scaling[f"{name}.offset"], float(scaling[f"{name}.scale"][0]), 0.0)


def open_model(folder: str) -> Model:
    """Open a run's folder in this process alone, for programs that take its model elsewhere; UserError as `open_run`."""
    alone = CountedComm(MPI.COMM_SELF)
    saved = open_run(folder, alone, lambda job: kernels(job.backend))
    model = Model(saved.net, saved.w.copy(), saved.scaler, saved.targets, saved.known.heads)
    alone.free()
    return model


def _job(path: Path) -> Job:
    """Return the job of a run that has ended."""
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; give that of a run, as runs/20260131-120000")
    if (path / "compare.json").exists():
        inside = sorted(of.parent.name for of in path.glob(f"*/{MODEL}"))
        raise UserError(f"{path}: is the folder of a comparison; give that of one of its runs ({', '.join(inside) or 'none has ended'})")
    try:
        values = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: holds no run (no config.toml); give the folder of a run, as runs/20260131-120000") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: config.toml cannot be read ({error}); give the folder of a run") from None
    if not (path / MODEL).exists():
        if any((path / "checkpoints").glob("[0-9]*")):
            raise UserError(f"{path}: the run has not ended, it has checkpoints; go on with it: python -m mpidml train --resume {path}")
        raise UserError(f"{path}: holds no model ({MODEL}), the run has not ended; wait for its end, or train anew")
    if (path / NET_FILE).exists():  # also where the folder has been moved
        values["model"] = str(path / NET_FILE)
    return Job().with_values(values, f"{path}/config.toml")


def _known(path: Path) -> Known:
    try:
        return Known.from_mapping(json.loads((path / CODING_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: holds no {CODING_FILE}, which says how rows are coded; restore it, or train anew") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: {CODING_FILE} cannot be read ({' '.join(str(error).split())}); restore it, or train anew") from None


def _net(job: Job, known: Known, backend: Any) -> Network:
    codes = np.zeros((1, known.n_features))
    for column, most in known.largest.items():
        codes[0, column] = most
    return models.rebuilt(job, models.layers_of(job, net_text(job)), known, codes, backend)


def _tensors(path: Path, net: Network) -> dict[str, Array]:
    """Read the model, and hold it to the network and to the sum that was written with it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / MODEL, framework="numpy") as file:
            found, said = {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get("model_sha256")  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: {MODEL} cannot be read ({' '.join(str(error).split())}); restore it, or train anew") from None
    for name, shape in net.params.shapes.items():
        if name not in found or found[name].shape != shape:
            has = f"shape {found[name].shape}" if name in found else "no such tensor"
            raise UserError(f"{path}: {MODEL} does not fit the run: {name} has {has}, not {shape}; restore it, or train anew")
    digest = hashlib.sha256()
    for name in net.params.shapes:
        digest.update(np.ascontiguousarray(found[name]).data)
    if said != digest.hexdigest():
        raise UserError(f"{path}: {MODEL} is damaged (its sum is not that which was written with it); restore it, or train anew")
    if not all(np.isfinite(found[name]).all() for name in net.params.shapes):
        raise UserError(f"{path}: the model holds values that are no numbers, the run diverged; train with a lower --lr ({Path(path, 'config.toml')})")
    return found
