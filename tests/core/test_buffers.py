"""A buffer is given out again exactly when every reader has ended its lease."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.buffers import LEAST_NBYTES, Buffer, Buffers

STEPS = st.lists(st.tuples(st.sampled_from(["allocate", "keep", "lend", "back"]), st.integers(0, 3000), st.integers(0, 7)), max_size=60)
REUSE_WHILE_READ = [("allocate", 100, 0), ("lend", 0, 0), ("allocate", 100, 0)]
REUSE_BEFORE_LENT = [("allocate", 100, 0), ("allocate", 100, 0)]


def check_no_reader_loses_its_values(cls, steps):
    """Fill each buffer with a mark of its own and look, at every step, whether each reader still sees its mark."""
    pool, readers, filled = cls(), [], []
    for mark, (what, nbytes, which) in enumerate(steps, 1):
        if what in ("allocate", "keep"):
            buffer = pool.allocate(nbytes, keep=what == "keep")
            assert buffer.memory.nbytes >= nbytes
            assert all(buffer is not other for other, *_ in filled), "given out twice before it was lent"
            assert buffer.keep == (what == "keep") and not buffer.busy()
            array = buffer.array(np.uint16, nbytes // 2)
            array[:] = mark
            filled.append((buffer, array, mark))
        elif what == "lend" and filled:
            buffer, array, value = filled[which % len(filled)]
            readers.append((buffer.lease(array).lend(), value))
            filled = [f for f in filled if f[0] is not buffer or buffer.keep]
        elif what == "back" and readers:
            readers.pop(which % len(readers))[0].release()
        assert all((lease.array == value).all() for lease, value in readers)
    for lease, _ in readers:
        lease.release()
    assert not any(b.busy() for given in pool.given.values() for b in given)


@given(STEPS)
def test_no_reader_loses_its_values(steps):
    check_no_reader_loses_its_values(Buffers, steps)


def careless(ignore):
    class Careless(Buffers):
        def allocate(self, nbytes, keep=False):
            for buffer in self.given.get(LEAST_NBYTES, ()):
                if ignore == "readers" or not buffer.busy():
                    return buffer
            return super().allocate(nbytes, keep)

    return Careless


@pytest.mark.parametrize(("ignore", "steps"), [("readers", REUSE_WHILE_READ), ("filling", REUSE_BEFORE_LENT)])
def test_the_check_catches_a_pool_that_gives_out_what_is_in_use(ignore, steps):
    with pytest.raises(AssertionError):
        check_no_reader_loses_its_values(careless(ignore), [*steps, ("back", 0, 0)])


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=6), st.integers(1, 3))
def test_a_steady_state_allocates_nothing(sizes, n_readers):
    made = []

    class Counted(Buffers):
        def make(self, nbytes):
            made.append(nbytes)
            return super().make(nbytes)

    pool = Counted()
    for _ in range(4):
        leases = [(b := pool.allocate(n)).lease(b.array(np.uint8, n)) for n in sizes]
        for reader in [lease.lend() for lease in leases for _ in range(n_readers)]:
            reader.release()
    assert len(made) == len(sizes)
    assert all(n >= LEAST_NBYTES and n & (n - 1) == 0 for n in made)


def test_a_buffer_that_its_owner_keeps_is_not_given_to_others():
    pool = Buffers()
    mine = pool.allocate(100, keep=True)
    mine.lease(mine.array(np.uint8)).lend().release()
    assert not mine.busy() and pool.allocate(100) is not mine


def test_a_lease_knows_where_its_part_lies():
    buffer = Buffer(np.zeros(100, np.uint8))
    assert buffer.array(np.float64).size == 12, "only whole elements"
    lease = buffer.lease(buffer.array(np.float32)[4:20]).part(3, 7)
    assert lease.buffer is buffer and lease.offset == (4 + 3) * 4
    lease.array[:] = 1
    assert np.flatnonzero(buffer.array(np.float32)).tolist() == [7, 8, 9, 10]
