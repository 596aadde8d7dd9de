"""Write a run's folder so that nothing in it is ever half written; used by rank 0 alone.

    prepare (before training: refuses, writes nothing) -> create -> config.toml, metrics.jsonl ... -> model.safetensors, summary.json

Whole files appear by one rename; metrics.jsonl grows by whole lines.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.runtime.events import Events

Array = np.ndarray[Any, Any]
_MARKS = ("summary.json", "compare.json", "config.toml", "metrics.jsonl", "model.safetensors")
CHECKPOINTS = "checkpoints"


def default_out(now: datetime, root: str | Path = "runs") -> Path:
    """Return root/<YYYYmmdd-HHMMSS> for the time `now`, with -2, -3, ... where that is taken; creates nothing."""
    name = now.strftime("%Y%m%d-%H%M%S")
    path, number = Path(root) / name, 1
    while os.path.lexists(path):
        number += 1
        path = Path(root) / f"{name}-{number}"
    return path


class FolderTaken(UserError):
    """Another run claimed the folder after it was checked, or goes on in it."""


class RunFolder:
    """Write the files of one run below `path`. Get one from `prepare`; call `create` before the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics: TextIO | None = None
        self._lock: TextIO | None = None
        self.events: Events | None = None

    @classmethod
    def prepare(cls, path: str | Path) -> RunFolder:
        """Check that a run can be written at `path`, without creating anything.

        UserError where the folder holds a run already that came to its first row or checkpoint or goes on, is no folder, or cannot be created or written.
        """
        path = Path(path)
        try:
            ancestor = path
            while not os.path.lexists(ancestor):
                ancestor = ancestor.parent
            if not ancestor.is_dir():
                raise UserError(f"--out {path}: {ancestor} is not a folder; choose another --out")
            with suppress(FileNotFoundError):
                os.lstat(path)  # finds names that no file can have
            held = cls(path)._held()
            if held and not cls(path)._only_began():
                raise UserError(f"--out {path}: the folder holds another run ({', '.join(held)}); choose another --out or remove it")
            if os.statvfs(ancestor).f_flag & os.ST_RDONLY:
                raise UserError(f"--out {path}: {ancestor} lies on a read-only file system; choose another --out")
            if not os.access(ancestor, os.W_OK | os.X_OK):
                raise UserError(f"--out {path}: no permission to write to {ancestor}; choose another --out")
        except (OSError, ValueError) as error:  # a file as a parent, a name too long, a NUL in the name
            raise UserError(f"--out {path}: cannot be used ({_reason(error)}); choose another --out") from None
        return cls(path)

    def create(self) -> None:
        """Create the folder with its parents; UserError where the system refuses."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be created ({_reason(error)}); choose another --out") from None

    def claim(self, config: str) -> None:
        """Create the folder and write `config` as its config.toml, which only one of several runs can do; FolderTaken on the others."""
        self.create()
        if self._only_began() and not self.lock() and self._held() == ["config.toml"]:  # still, now that nobody else is here
            (self.path / "config.toml").unlink()
        try:
            with (self.path / "config.toml").open("x", encoding="utf-8") as file:
                file.write(config)
        except FileExistsError:
            self.leave()
            raise FolderTaken(f"--out {self.path}: another run took this folder at the same moment; choose another --out") from None

    def _held(self) -> list[str]:
        """Name what a run has left here; of checkpoints those that are whole count."""
        return [name for name in _MARKS if (self.path / name).exists()] + [CHECKPOINTS] * any((self.path / CHECKPOINTS).glob("[0-9]*"))

    def _only_began(self) -> bool:
        """Whether all that is here is the claim of a run that ended before its first row, as one whose GPU had no room; FolderTaken where one goes on.

        Not where the file system has no locks: then nothing tells the two apart.
        """
        if self._held() != ["config.toml"] or not (self.path / ".lock").exists() or not self._holds_job():
            return False
        probe = RunFolder(self.path)
        told = probe.lock()
        probe.leave()
        return not told

    def clear(self) -> None:
        """Remove what a run has left here that ended before it had saved anything; leave alone what one has brought to its end, and what is no run's.

        A run that was ended leaves its lock file, free to be taken; UserError where one goes on.
        """
        if any((self.path / name).exists() for name in _MARKS[:2]) or not (self.path / ".lock").exists() or not self._holds_job():
            return
        self.lock()
        for name in _MARKS[2:]:
            (self.path / name).unlink(missing_ok=True)
        self.close()

    def _holds_job(self) -> bool:
        try:
            Job().with_values(tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8")), "config.toml")
        except (OSError, ValueError, UserError):
            return False
        return True

    def lock(self) -> str:
        """Keep other runs from going on in this folder, until `close` or the end of this process; FolderTaken where one does.

        Return a line where the file system has no locks, else "". A second call changes nothing.
        """
        if self._lock is not None:
            return ""
        file, told = (self.path / ".lock").open("w"), ""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise FolderTaken(f"--out {self.path}: another run is going on in this folder; wait for its end, or choose another --out") from None
        except OSError as error:  # Lustre without -o flock: ENOSYS
            told = f"--out {self.path}: nothing keeps another run from this folder, whose file system has no locks ({_reason(error)})\n"
        self._lock = file
        return told

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file, or leave the old one untouched."""
        with self._replacing(name) as part:
            part.write_bytes(data)

    def write_text(self, name: str, text: str) -> None:
        """Write a whole UTF-8 text file, or leave the old one untouched."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as indented JSON; NaN and infinity, which JSON does not have, become null."""
        self.write_text(name, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl and hand it to the system at once; an event of it to `events`, if there are any."""
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a", buffering=1, encoding="utf-8")
        self._metrics.write(json.dumps(plain(row), allow_nan=False) + "\n")
        if self.events is not None:
            self.events.add(row)

    def write_model(self, params: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
        """Write named arrays and metadata to model.safetensors; equal arrays and metadata give equal bytes."""
        from safetensors.numpy import save_file

        with self._replacing("model.safetensors") as part:
            save_file({name: np.asarray(array, order="C") for name, array in params.items()}, part, metadata=dict(metadata))
            _sort_header(part)
            os.umask(mask := os.umask(0))
            part.chmod(0o666 & ~mask)  # the library writes for the owner alone

    def leave(self) -> None:
        """Leave the folder to others, as the end of this process would: the lock file stays and can be taken."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def close(self) -> None:
        """Close metrics.jsonl and the events, and leave the folder to others."""
        if self._lock is not None:
            (self.path / ".lock").unlink(missing_ok=True)
        self.leave()
        if self.events is not None:
            self.events.close()
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        """Give a path to write to; once it is written and on the disk it takes the place of `name`, and after an error it is gone."""
        part = self.path / f".{name}.part"
        try:
            yield part
            sync(part)
            os.replace(part, self.path / name)
        finally:
            part.unlink(missing_ok=True)
        sync(self.path)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: NumPy scalars and arrays as numbers and lists, keys as text, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_toml(mapping: Mapping[str, Any]) -> str:
    """Return a flat mapping (text, whole and real numbers, booleans, lists of these) as TOML that reads back to the same values; None is left out."""
    lines = []
    for key, value in mapping.items():
        if value is not None:
            name = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)
            lines.append(f"{name} = {_toml_value(value)}\n")
    return "".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        # JSON's escapes are TOML's; TOML alone also wants DEL escaped
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise TypeError(f"TOML: {value!r} is {type(value).__name__}; give text, numbers, booleans or lists")


def _reason(error: OSError | ValueError) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _sort_header(path: Path) -> None:
    """Put the header of a safetensors file in sorted order, in place: the library writes its metadata in an order drawn by chance.

    The file is 8 bytes of header length, the header (JSON, padded with blanks), the arrays.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        text = json.dumps(json.loads(file.read(size)), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the same content takes the same room
            file.seek(8)
            file.write(text.ljust(size))


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
