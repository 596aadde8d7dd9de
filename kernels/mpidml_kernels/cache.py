"""Keep compiled kernels in a folder of their own per source text: a cache that watches one file at a time would load stale code.

Numba's cache compares the time stamp of the file that defines a kernel, not of the files whose code was inlined into it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path


def key() -> str:
    """Return 16 hex digits over all sources of this package, Numba's version and the name of the CPU."""
    from llvmlite import binding

    root = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    digest.update(f"{importlib.metadata.version('numba')}\0{binding.get_host_cpu_name()}".encode())
    return digest.hexdigest()


def folder() -> Path:
    """Return a folder for compiled kernels that this user owns, made if needed.

    The first that works of the user's cache folder, the machine's folder for temporary files, and a new temporary folder. What lies in it is
    executed, hence the test of the owner.
    """
    name = f"kernels-{key()}"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for base in (Path(home) / "mpidml", Path(tempfile.gettempdir()) / f"mpidml-{os.getuid()}"):
        try:
            (base / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if all(path.stat().st_uid == os.getuid() for path in (base, base / name)) and os.access(base / name, os.W_OK | os.X_OK):
            return base / name
    return Path(tempfile.mkdtemp(prefix="mpidml-kernels-"))


refused = ""
"""The folder that the user has named and that cannot be written."""


def prepare() -> None:
    """Point Numba at `folder()`, unless the user has set NUMBA_CACHE_DIR to a folder that can be written: else Numba would silently go beside the sources."""
    global refused
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        there = next(path for path in (Path(chosen), *Path(chosen).absolute().parents) if path.exists())
        if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
            return
        refused = chosen
    os.environ["NUMBA_CACHE_DIR"] = str(folder())
    if "numba" in sys.modules:  # imported before us: it read its environment without this line
        sys.modules["numba"].config.reload_config()
