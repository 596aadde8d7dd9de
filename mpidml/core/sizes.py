"""Read and write numbers of bytes as people do: 512M, 2G, 1.5G."""

from __future__ import annotations

import math
import re

from mpidml.core.errors import UserError

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str, where: str) -> int:
    """Return the bytes that a text means, units of 1024; UserError, opened by `where`, for what means none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or not (nbytes := math.floor(float(found[1]) * UNITS[found[2].upper()])):
        raise UserError(f"{where} {text}: is not a number of bytes; give one as 512M or 2G")
    return nbytes


def size_words(nbytes: int) -> str:
    """Return a size that `parse_size` reads as no less."""
    unit = next(u for u in reversed(UNITS) if nbytes >= UNITS[u] or not u)
    return f"{math.ceil(nbytes / UNITS[unit] * 10) / 10:g}{unit}"
