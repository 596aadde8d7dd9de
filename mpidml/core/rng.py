"""Draw everything random by (seed, purpose, global index), never by rank, so that N ranks draw what one rank draws."""

from __future__ import annotations

import hashlib

import numpy as np


def key(seed: int, purpose: str, *index: int) -> int:
    """Return 64 bits that name one stream: equal arguments give equal bits on every machine."""
    text = ":".join([str(int(seed)), purpose, *(str(int(i)) for i in index)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Return the generator of one stream (Philox, counter-based: Salmon et al., SC 2011)."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *index)))
