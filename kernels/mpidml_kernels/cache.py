"""Keep compiled kernels in a folder of their own per source text: a cache that watches one file at a time would load stale code.

Numba's cache compares the stamp of the file that defines a kernel, not of the files whose code was inlined into it. What is in the folder:

    kernels-<key>/   dense.compiled    this family is whole: load it
                     dense.lock        held by the one process that compiles it, of however many jobs; the others sleep, and load what it has left
                     dense_.../*.nbc   Numba's own
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

VARIABLE = "NUMBA_CACHE_DIR"
NAP_SECONDS, PATIENCE_SECONDS = 0.02, 600.0
"""Between two looks at whether another process is done, and after how long a process that does not come to its end is no longer waited for."""
_used: set[str] = set()


def key() -> str:
    """Return 16 hex digits over all sources of this package, Numba's version and the name of the CPU (or NUMBA_CPU_NAME, for which Numba then compiles)."""
    from llvmlite import binding

    root = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    digest.update(f"{importlib.metadata.version('numba')}\0{os.environ.get('NUMBA_CPU_NAME') or binding.get_host_cpu_name()}".encode())
    return digest.hexdigest()


def folder() -> tuple[Path, str]:
    """Return a folder for compiled kernels that can be written, made if needed, and "" or one line that says why it is not the one that was wished for.

    The first that works of NUMBA_CACHE_DIR, the user's cache folder, the machine's folder for temporary files, and a new temporary folder; of the middle
    two only if this user owns them: what lies there is executed. What was compiled into a NUMBA_CACHE_DIR that can only be read is copied.
    """
    name, chosen = f"kernels-{key()}", os.environ.get(VARIABLE)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    bases = [Path(home) / "mpidml", Path(tempfile.gettempdir()) / f"mpidml-{os.getuid()}"]
    wished = bases[0] / name
    if chosen:
        wished = Path(chosen) if Path(chosen).name == name else Path(chosen) / name  # a child process is given its parent's
        if _made(wished, 0o777):  # others may be meant to read it
            return wished, ""
    for base in bases:
        if not (base / name).exists():
            _copy(wished, base / name)
        if _made(base / name) and all(path.stat().st_uid == os.getuid() for path in (base, base / name)):
            return base / name, _instead(wished, base / name)
    return (last := Path(tempfile.mkdtemp(prefix="mpidml-kernels-"))), _instead(wished, last)


def _made(path: Path, mode: int = 0o700) -> bool:
    with contextlib.suppress(OSError):
        path.mkdir(mode, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # as Numba does: permissions do not tell of a file system that can only be read
        return True
    return False


def _instead(wished: Path, path: Path) -> str:
    return f"kernels: {wished} cannot be written, so they are kept in {path}; set {VARIABLE} to a folder that can be written" if path != wished else ""


def _copy(source: Path, path: Path) -> None:
    """Bring compiled kernels over as a whole or not at all."""
    if path == source or not any(source.glob("*.compiled")):
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix="part-", dir=path.parent))
        try:
            shutil.copytree(source, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.lock"))
            part.chmod(0o700)
            part.rename(path)  # refused where another process has been faster
        except (OSError, shutil.Error):
            shutil.rmtree(part, ignore_errors=True)


def prepare() -> str:
    """Point Numba at `folder()`, unless it is already; return what that says."""
    if os.environ.get(VARIABLE) in _used:
        return ""
    path, said = folder()
    use(str(path))
    return said


def use(path: str) -> None:
    """Point Numba at a folder that `folder` of this host has returned."""
    _used.add(path)
    os.environ[VARIABLE] = path
    if "numba" in sys.modules:  # imported before us: it read its environment without this line
        sys.modules["numba"].config.CACHE_DIR = path  # alone: threads that it has started may not be another number any more


def is_compiled(*families: str) -> bool:
    """Tell whether all of these are in the folder that Numba is pointed at."""
    return all(_exists(_stamp(family)) for family in families)


def once(family: str, fill: Callable[[], object]) -> None:
    """Call `fill()`, which compiles what the folder lacks, unless it is whole: in one process at a time. Whatever a lock cannot do costs time only."""
    if is_compiled(family):
        return
    with _alone(_stamp(family).with_suffix(".lock")):
        fill()
        with contextlib.suppress(OSError):
            _stamp(family).touch()


def _stamp(family: str) -> Path:
    return Path(os.environ[VARIABLE]) / f"{family}.compiled"


def _exists(path: Path) -> bool:
    """Open it: on a file system over the network a look at the name alone may be answered from memory."""
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which a process that dies lets go of; without it where there are no locks, or its holder does not end."""
    until = time.monotonic() + PATIENCE_SECONDS
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        yield
        return
    try:
        while time.monotonic() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(NAP_SECONDS)
            except OSError:
                break
        yield
    finally:
        os.close(file)
