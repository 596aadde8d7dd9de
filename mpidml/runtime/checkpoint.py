"""Save a run's named arrays so that a file is either whole or not there, and read any part of them back at any number of ranks.

    checkpoints/.000000000400.part/          every rank writes its pieces, on the disk, then rank 0 the manifest
    checkpoints/000000000400/                one rename makes it valid: a run that is killed leaves the one before
        rank-0.safetensors rank-1.safetensors ...
        manifest.json                        facts of the run; of each array where its pieces lie; of each file its size and SHA-256

An array is logical: 1-D, named, cut into pieces wherever its owners' borders were. Who reads asks for a range, whoever wrote it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.role import Array
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.outputs import CHECKPOINTS, sync

FOLDER, MANIFEST, FORMAT = CHECKPOINTS, "manifest.json", 3


class Piece(NamedTuple):
    """Elements [lo, lo + len(array)) of the logical array `name` of `size` elements."""

    name: str
    lo: int
    size: int
    array: Array


class Damaged(Exception):
    """A checkpoint that is not as its manifest says."""


def write(comm: CountedComm, run: Path, clock: int, pieces: Sequence[Piece], facts: dict[str, Any], keep: int) -> None:
    """Write the checkpoint of `clock` of the run in folder `run` and leave the newest `keep` (Collective on comm; `facts` are rank 0's).

    Every rank writes the pieces it has, and waits until they are on the disk. UserError where the system refuses; the older ones stay valid.
    """
    part, final = run / FOLDER / f".{clock:012d}.part", run / FOLDER / f"{clock:012d}"
    leads = comm.rank == 0
    agree(comm, lambda: _told(lambda: _emptied(part)) if leads else None)
    entry = agree(comm, lambda: _told(lambda: _write_pieces(part, f"rank-{comm.rank}.safetensors", pieces)))
    entries = comm.gather(entry)
    agree(comm, lambda: _told(lambda: _commit(part, final, entries, facts, keep)) if leads else None)


def newest(comm: CountedComm, run: Path) -> tuple[Checkpoint, str]:
    """Open the newest checkpoint below `run` whose files are whole (Collective on comm); also return what is to be said of newer ones.

    Each rank reads and sums up its share of the files. UserError where there is none.
    """
    names = agree(comm, lambda: _list(run) if comm.rank == 0 else None)
    names = comm.bcast(names)
    told: list[str] = []
    for name in names:
        path = run / FOLDER / name
        try:
            found = Checkpoint.open(path)
            wrong = found.wrong(comm.rank, comm.size)
        except Damaged as error:
            wrong = str(error)
        wrongs = [w for w in comm.allgather(wrong) if w]
        if not wrongs:
            return found, "".join(f"checkpoint {what}: the one before is taken\n" for what in told)
        told.append(f"{path} is damaged ({wrongs[0]})")
    raise UserError(f"--resume {run}: no checkpoint is whole: {', '.join(told) or 'there is none'}; start the run anew")


def last(run: Path) -> int | None:
    """Return the clock of the newest checkpoint below `run`, None where there is none; whether it is whole is not looked at."""
    return next(map(int, _list(run)), None)


def drop_newer(found: Checkpoint) -> None:
    """Remove the damaged ones that are newer than the one with which a run goes on: it will come by their clocks again."""
    run = found.path.parent.parent
    for name in _list(run):
        if name > found.path.name:
            _remove(run / FOLDER / name)


class Checkpoint:
    """A checkpoint on the disk: its `facts`, and arrays by name. Reading costs the bytes that are asked for."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.facts = path, manifest["facts"]
        self.files: dict[str, dict[str, Any]] = manifest["files"]
        self.arrays: dict[str, dict[str, Any]] = manifest["arrays"]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the manifest; Damaged where there is none or it is not one."""
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                raise Damaged(f"{MANIFEST} is of format {manifest['format']}, this program reads {FORMAT}")
            return cls(path, manifest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{MANIFEST} cannot be read ({' '.join(str(error).split())})") from None

    def wrong(self, rank: int, size: int) -> str:
        """Say what is wrong with the files that are this rank's to check, or return ""."""
        for i, (name, entry) in enumerate(sorted(self.files.items())):
            if i % size != rank:
                continue
            try:
                nbytes = (self.path / name).stat().st_size
                if nbytes != entry["nbytes"]:
                    return f"{name} has {nbytes} bytes, {entry['nbytes']} were written"
                if _sha256(self.path / name) != entry["sha256"]:
                    return f"{name} does not sum up to its SHA-256"
            except OSError as error:
                return f"{name} cannot be read ({error.strerror})"
        return ""

    def read(self, name: str, lo: int, out: Array) -> bool:
        """Fill `out` (1-D) with elements [lo, lo + len(out)) of an array, as far as they were saved; return whether all were."""
        from safetensors import safe_open

        hi, filled = lo + out.size, 0
        for file, first, n in self.arrays.get(name, {"pieces": []})["pieces"]:
            a, b = max(lo, first), min(hi, first + n)
            if a < b:
                with safe_open(self.path / file, "numpy") as opened:
                    out[a - lo : b - lo] = opened.get_slice(_key(name, first))[a - first : b - first]
                filled += b - a
        return bool(filled == out.size)


def _key(name: str, lo: int) -> str:
    return f"{name}@{lo}"


def _emptied(part: Path) -> None:
    """Make an empty folder, and remove what a run that was killed left half written."""
    for left in part.parent.glob(".*.part"):
        shutil.rmtree(left)
    part.mkdir(parents=True)


def _write_pieces(part: Path, file: str, pieces: Sequence[Piece]) -> dict[str, Any] | None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if not pieces:
        return None
    path = part / file
    try:
        save_file({_key(p.name, p.lo): np.ascontiguousarray(p.array) for p in pieces}, path)
    except SafetensorError as error:  # the system's word on it, in the library's wrapping
        raise OSError(f"{path}: {error}") from None
    sync(path)
    entry = {"file": file, "nbytes": path.stat().st_size, "sha256": _sha256(path)}
    return entry | {"pieces": [(p.name, p.lo, p.array.size, p.size, p.array.dtype.str) for p in pieces]}


def _commit(part: Path, final: Path, entries: list[dict[str, Any] | None], facts: dict[str, Any], keep: int) -> None:
    files, arrays = {}, dict[str, Any]()
    for entry in filter(None, entries):
        files[entry["file"]] = {"nbytes": entry["nbytes"], "sha256": entry["sha256"]}
        for name, lo, n, size, dtype in entry["pieces"]:
            arrays.setdefault(name, {"size": size, "dtype": dtype, "pieces": []})["pieces"].append((entry["file"], lo, n))
    text = json.dumps({"format": FORMAT, "facts": facts, "arrays": arrays, "files": files}, indent=1)
    (part / MANIFEST).write_text(text + "\n")
    sync(part / MANIFEST)
    sync(part)
    if final.exists():  # nothing has been done since: what is there is whole, so it stays
        shutil.rmtree(part)
        return
    os.rename(part, final)
    sync(final.parent)
    for old in _list(final.parent.parent)[keep:]:
        _remove(final.parent / old)


def _remove(path: Path) -> None:
    """Remove a checkpoint so that it is there whole or not at all, at any instant."""
    part = path.with_name(f".{path.name}.old.part")
    os.rename(path, part)
    shutil.rmtree(part)


def _list(run: Path) -> list[str]:
    """Return the names of the checkpoints below a run's folder, newest first."""
    folder = run / FOLDER
    return sorted((p.name for p in folder.iterdir() if p.name.isdecimal()), reverse=True) if folder.is_dir() else []


def _told(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except OSError as error:
        raise UserError(f"checkpoint: cannot be written ({' '.join(str(error).split())}); make room, then go on from the one before with --resume") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
