"""Find where a thread stands in the user's code: the innermost frame that belongs neither to this package nor to a library."""

from __future__ import annotations

import os
import sysconfig
from types import FrameType
from typing import Any

import mpidml_kernels

import mpidml

OWN = tuple(os.path.dirname(str(package.__file__)) + os.sep for package in (mpidml, mpidml_kernels))
LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})
PASSED_ON = tuple(os.path.join(OWN[0], *name.split("/")) for name in ("runtime/watched.py", "runtime/comm.py", "core/current_wait.py"))
"""They only pass a call on."""


def site(frame: FrameType | None) -> str:
    """Return "file:line (function)" of the user's code, or of this package where none of the user's is under way."""
    own = ""
    while frame is not None:
        code = frame.f_code
        file = code.co_filename
        is_own = file.startswith(OWN)
        if not is_own and not file.startswith((*LIBRARIES, "<")):
            return _told(frame)
        if is_own and not own and file not in PASSED_ON:
            own = _told(frame)
        frame = frame.f_back
    return own or "an unknown place"


def caller(frame: FrameType | None) -> str:
    """Return the module of this package that makes a call; "" where it is the user's."""
    while frame is not None and frame.f_code.co_filename in PASSED_ON:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")) if frame is not None and frame.f_code.co_filename.startswith(OWN) else ""


def _told(frame: FrameType) -> str:
    code: Any = frame.f_code
    file = code.co_filename
    try:
        here = os.getcwd() + os.sep
    except OSError:  # somebody has removed the folder
        here = ""
    return f"{file.removeprefix(here)}:{frame.f_lineno} ({code.co_name})"
