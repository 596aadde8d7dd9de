"""What is packed is read back, and a body's pieces are its bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.role import KINDS, Lease, Message
from mpidml.runtime.wire import CHUNK_NBYTES, HEADER, HEADER_NBYTES, pack, pieces, unpack

NUMBER = st.integers(-(2**63), 2**63 - 1)
MESSAGES = st.builds(
    Message,
    st.sampled_from(range(len(KINDS))),
    *[NUMBER] * 6,
    rows=st.none() | st.integers(0, 9).map(lambda n: np.arange(n, dtype=np.int64)),
    data=st.none() | st.tuples(st.integers(0, 9), st.sampled_from([np.float32, np.float64, np.int64])).map(lambda a: Lease(np.zeros(*a))),
    ends=st.booleans(),
    batch=NUMBER,
)


def check_round_trip(pack, message, *where):
    header = bytearray(b"\xff" * HEADER_NBYTES)
    pack(header, message, *where)
    envelope = unpack(header)
    assert envelope.message == message._replace(rows=None, data=None)
    assert envelope[1:3] + envelope[5:] == where
    assert envelope.n_rows == (-1 if message.rows is None else len(message.rows))
    assert envelope.nbytes == (-1 if message.data is None else message.data.array.nbytes)


@given(MESSAGES, NUMBER, NUMBER, NUMBER, NUMBER)
def test_a_header_tells_all_of_a_message_but_its_buffers(message, source, target, base, offset):
    check_round_trip(pack, message, source, target, base, offset)


@pytest.mark.parametrize("swapped", range(6))
def test_the_round_trip_catches_two_fields_that_are_swapped(swapped):
    def broken(header, message, *where):
        pack(header, message, *where)
        words = list(HEADER.unpack(header))
        words[swapped : swapped + 2] = words[swapped : swapped + 2][::-1]
        HEADER.pack_into(header, 0, *words)

    with pytest.raises(AssertionError):
        check_round_trip(broken, Message(*range(7)), 10, 11, 12, 13)


def test_a_header_is_16_words_and_the_data_travel_with_it_unless_told_otherwise():
    header = bytearray(HEADER_NBYTES)
    pack(header, Message(0), 1, 2)
    assert HEADER_NBYTES == 16 * 8 and unpack(header).base == -1


def check_pieces(pieces, buffer, limit):
    found = pieces(buffer, limit)
    assert b"".join(p.tobytes() for p in found) == buffer.tobytes(), "the pieces are the buffer's bytes in order"
    assert all(0 < p.nbytes <= limit for p in found) and len(found) == -(-buffer.nbytes // limit)
    assert all(np.shares_memory(p, buffer) for p in found), "a copy cannot be received into"


@given(st.integers(0, 300), st.sampled_from([np.uint8, np.float32, np.float64, np.int64]), st.integers(1, 700))
def test_pieces_tile_the_buffer_and_none_is_above_the_limit(n, dtype, limit):
    check_pieces(pieces, np.random.default_rng(n).integers(0, 255, n).astype(dtype), limit)


def test_a_piece_fits_into_mpis_counts():
    assert CHUNK_NBYTES < 2**31
    assert [p.nbytes for p in pieces(np.zeros(1), 3)] == [3, 3, 2]
    assert pieces(np.empty(0)) == []


@pytest.mark.parametrize(
    "broken",
    [
        lambda b, limit: [b.view("u1")[i : i + limit] for i in range(0, b.nbytes + 1, limit)],
        lambda b, limit: [b[i : i + limit] for i in range(0, b.size, limit)],
        lambda b, limit: [b.view("u1")[i : i + limit].copy() for i in range(0, b.nbytes, limit)],
    ],
    ids=["an empty piece", "elements for bytes", "copies"],
)
def test_the_check_catches(broken):
    with pytest.raises(AssertionError):
        check_pieces(broken, np.arange(8.0), 16)
