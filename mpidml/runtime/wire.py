"""Write a message as a fixed header and raw buffers: no pickle, no copy.

header   int64[16]: kind clock ticket counted version lo hi | source target | n_rows nbytes | base offset | ends batch -
rows     int64[n_rows], by MPI, if n_rows > 0             (n_rows -1: all rows of the shard or [lo, hi))
data     nbytes raw, by MPI in pieces of at most `limit` bytes, or left in the window: base >= 0
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from mpidml.core.role import Array, Message

HEADER = struct.Struct("=16q")
HEADER_NBYTES = HEADER.size
HEADER_TAG, BODY_TAG = 1, 2
CHUNK_NBYTES = 1 << 30


class Envelope(NamedTuple):
    """A header read back: the message without its buffers, and where these are."""

    message: Message
    source: int
    target: int
    n_rows: int
    nbytes: int
    base: int
    offset: int


def pack(header: bytearray, message: Message, source: int, target: int, base: int = -1, offset: int = 0) -> None:
    """Write the header of `message`; base >= 0 says that the data stay in the sender's window buffer at `base`."""
    rows, data = message.rows, message.data
    HEADER.pack_into(
        header, 0, *message[:7], source, target, -1 if rows is None else rows.size, -1 if data is None else data.array.nbytes, base, offset, message.ends, message.batch, 0
    )


def unpack(header: bytearray) -> Envelope:
    """Read a header."""
    kind, clock, ticket, count, version, lo, hi, source, target, n_rows, nbytes, base, offset, ends, batch, _ = HEADER.unpack_from(header)
    return Envelope(Message(kind, clock, ticket, count, version, lo, hi, None, None, bool(ends), batch), source, target, n_rows, nbytes, base, offset)


def pieces(buffer: Array, limit: int = CHUNK_NBYTES) -> list[Array]:
    """Cut the bytes of a contiguous 1-D array into pieces below MPI's 2^31 limit; nothing for an empty array."""
    raw = buffer.view("u1")
    return [raw[i : i + limit] for i in range(0, raw.size, limit)]
