"""A shard's values change as one update of the summed deltas, by hand: touched rows alone, version by version, leases ended once."""

from types import SimpleNamespace

import mpidml_kernels
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpidml.core.buffers import Buffers
from mpidml.core.role import PULL, PUSH, Lease, Message
from mpidml.optim.base import make_chain
from mpidml.ps.store import PLAIN, Store
from mpidml.sync.base import Tuning

LO, N, WIDTH = 12, 6, 3
RATE, DECAY, MU = 0.1, 0.01, 0.9
CHAIN = f"decay:{DECAY}+momentum:{MU}"
BACKENDS = {name: mpidml_kernels.backend(name) for name in mpidml_kernels.BACKENDS}
INSIDE = st.integers(LO, LO + N - 1)
WHOLE, BLOCK, REPEATS = (), (LO + 1, LO + 4), [LO + 2, LO + 5, LO + 2]
WHERE = st.just(WHOLE) | st.tuples(INSIDE, INSIDE).map(lambda ends: (min(ends), max(ends) + 1)) | st.lists(INSIDE, min_size=1, max_size=5)
UPDATES = st.lists(st.lists(WHERE, max_size=4), max_size=5)


def message(kind, where, data=None):
    if isinstance(where, list):
        return Message(kind, rows=np.array(where), data=data)
    return Message(kind, lo=where[0], hi=where[1], data=data) if where else Message(kind, data=data)


def rows_of(where):
    return np.array(where) - LO if isinstance(where, list) else np.arange(*where) - LO if where else np.arange(N)


def by_hand(w, v, chain, deltas, rate=RATE, mu=MU):
    """Return the next values; `v` changes in place. Only touched rows move."""
    g, touched = np.zeros((N, WIDTH)), np.zeros((N, 1), bool)
    for where, values in deltas:
        np.add.at(g, rows_of(where), values)
        touched[rows_of(where)] = True
    if chain is None:
        return w + g
    v[...] = np.where(touched, mu * v + g + DECAY * w, v)
    return np.where(touched, w - rate * v, w)


def check_updates(cls, updates, chain, n_versions, backend=BACKENDS["numpy"], as_bytes=False):
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((N, WIDTH)), np.zeros((N, WIDTH))
    versions = [w.ravel().copy(), *(np.full(N * WIDTH, np.nan) for _ in range(n_versions - 1))]
    store, history = cls(versions, LO, WIDTH, backend, chain and make_chain(chain, RATE)), [w]
    for n_done, update in enumerate(updates, 1):
        deltas = [(where, rng.standard_normal((rows_of(where).size, WIDTH))) for where in update]
        n_ended = np.zeros(len(deltas), int)
        leases = [values.ravel().copy() for _, values in deltas]
        leases = [Lease(a.view(np.uint8) if as_bytes else a, lambda i=i, n=n_ended: np.add.at(n, i, 1)) for i, a in enumerate(leases)]
        store.apply([message(PUSH, where, lease) for (where, _), lease in zip(deltas, leases, strict=True)])
        assert (n_ended == 1).all(), "each lease is ended once"
        history.append(by_hand(history[-1], v, chain, deltas))
        assert store.latest == n_done
        for version in range(max(0, n_done + 1 - n_versions), n_done + 1):
            np.testing.assert_allclose(store.at(version), history[version], rtol=0, atol=1e-12)
        for array in store.optimizer.values():
            np.testing.assert_allclose(array.reshape(N, WIDTH), v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=list(BACKENDS))
@pytest.mark.parametrize("chain", [None, CHAIN])
@pytest.mark.parametrize("n_versions", [1, 2, 3])
@settings(max_examples=20)
@given(updates=UPDATES, as_bytes=st.booleans())
@example(updates=[[WHOLE, WHOLE], [], [BLOCK], [REPEATS, REPEATS, BLOCK], [REPEATS, WHOLE, BLOCK]], as_bytes=False)
def test_an_update_is_the_chain_on_the_sum_of_the_deltas_for_the_rows_that_they_touch(backend, chain, n_versions, updates, as_bytes):
    check_updates(Store, updates, chain, n_versions, backend, as_bytes)


class OneByOne(Store):
    def apply(self, deltas, tuning=PLAIN):
        for delta in deltas:
            super().apply([delta], tuning)
        self.latest += 1 - len(deltas)


class NotLazy(Store):
    """Updates the rows that no delta touched, too."""

    def apply(self, deltas, tuning=PLAIN):
        super().apply([*deltas, message(PUSH, WHOLE, Lease(np.zeros(N * WIDTH)))], tuning)


class NeverEnds(Store):
    def apply(self, deltas, tuning=PLAIN):
        super().apply([d._replace(data=Lease(d.data.array)) for d in deltas], tuning)


class EndsTwice(Store):
    def apply(self, deltas, tuning=PLAIN):
        super().apply(deltas, tuning)
        deltas[0].data.release()


class OneVersion(Store):
    def at(self, version):
        return super().at(self.latest)


def overwrite(table, ids, delta):
    table[ids] += delta


LAST_REPEAT = SimpleNamespace(**{**vars(BACKENDS["numpy"]), "add_rows": overwrite})


@pytest.mark.parametrize(
    ("broken", "updates", "n_versions", "backend"),
    [
        (OneByOne, [[WHOLE, WHOLE]], 1, BACKENDS["numpy"]),
        (OneByOne, [[REPEATS, REPEATS]], 1, BACKENDS["numpy"]),
        (NotLazy, [[REPEATS]], 1, BACKENDS["numpy"]),
        (NeverEnds, [[BLOCK]], 1, BACKENDS["numpy"]),
        (EndsTwice, [[BLOCK]], 1, BACKENDS["numpy"]),
        (OneVersion, [[WHOLE], [WHOLE]], 2, BACKENDS["numpy"]),
        (Store, [[REPEATS]], 1, LAST_REPEAT),
    ],
)
def test_the_hand_catches(broken, updates, n_versions, backend):
    with pytest.raises(AssertionError):
        check_updates(broken, updates, CHAIN, n_versions, backend)


@pytest.mark.parametrize("chain", ["sgd", "nesterov", "adam", "clamp:0.5+adam"])
def test_two_deltas_of_a_clock_are_the_one_delta_of_their_sum(chain):
    def run(*parts):
        store = Store([np.ones(N * WIDTH)], LO, WIDTH, BACKENDS["numpy"], make_chain(chain, RATE))
        for step in range(1, 5):
            store.apply([message(PUSH, WHOLE, Lease(step * part * np.linspace(-1, 1, N * WIDTH))) for part in parts])
        return store.at(4)

    assert np.array_equal(run(0.25, 0.75), run(1.0)), "quarters are exact"


def in_pieces(cls, chain, pieces, n_steps=5, backend=BACKENDS["numba"]):
    """Give each gradient in `pieces` (blocks and lists of rows, one after the other) and return values and state after some steps."""
    store = cls([np.ones(N * WIDTH)], LO, WIDTH, backend, make_chain(chain, RATE))
    for step in range(1, n_steps + 1):
        g = step * np.linspace(-1, 2, N * WIDTH).reshape(N, WIDTH) ** 3
        for where in pieces:
            store.apply([message(PUSH, where, Lease(g[rows_of(where)].ravel().copy()))])
    return [store.at(0).ravel(), *store.optimizer.values()]


class CountsPieces(Store):
    """Takes each piece of an update for a step of its own."""

    def _next_step(self, where):
        self.n_whole += 1
        return self.n_whole


PIECES = [[(LO, LO + 2), (LO + 2, LO + N)], [[LO + 1, LO + 4], [LO, LO + 2, LO + 3, LO + 5]], [[LO + 5], (LO, LO + 5)], [(LO, LO + N)]]


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=list(BACKENDS))
@pytest.mark.parametrize("chain", ["adam", "adamw", "momentum", "adagrad", "rmsprop", "adadelta", "lion", "ftrl", "l1:0.1+sgd"])
@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_an_update_in_pieces_is_the_update(chain, pieces, backend):
    for a, b in zip(in_pieces(Store, chain, pieces, backend=backend), in_pieces(Store, chain, [WHOLE], backend=backend), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("pieces", PIECES[:3], ids=str)
def test_pieces_catch_a_step_that_counts_each_of_them(pieces):
    broken, whole = in_pieces(CountsPieces, "adam", pieces), in_pieces(Store, "adam", [WHOLE])
    assert np.abs(broken[0] - whole[0]).max() > 0.1 * RATE


def test_a_row_makes_its_first_step_whenever_it_comes():
    """By a count of all updates its late first step would be as much too short or too long as the last line says, after thousands 3 times too long."""
    store = Store([np.zeros(N * WIDTH)], LO, WIDTH, BACKENDS["numpy"], make_chain("adam", RATE))
    for _ in range(50):
        store.apply([message(PUSH, [LO], Lease(np.ones(WIDTH)))])
    store.apply([message(PUSH, [LO + 1], Lease(np.ones(WIDTH)))])
    np.testing.assert_allclose(store.at(0)[:3, 0], [-50 * RATE, -RATE, 0], rtol=1e-6)
    store.apply([message(PUSH, [LO + 2, LO], Lease(np.ones(2 * WIDTH)))])  # one step for both: that of the one that has seen more
    np.testing.assert_allclose(store.at(0)[:2, 0], [-51 * RATE, -RATE], rtol=1e-6)
    assert store.at(0)[2, 0] == pytest.approx(-RATE * 0.1 / (1 - 0.9**51) / np.sqrt(0.001 / (1 - 0.999**51)), rel=1e-6)


def test_whole_updates_and_rows_apart_count_together():
    store = Store([np.zeros(N * WIDTH)], LO, WIDTH, BACKENDS["numpy"], make_chain("adam", RATE))
    for where in (WHOLE, [LO], (LO, LO + 2), WHOLE):
        store.apply([message(PUSH, where, Lease(np.ones(rows_of(where).size * WIDTH)))])
    np.testing.assert_allclose(store.at(0)[0], -4 * RATE, rtol=1e-6)


def test_a_tuning_scales_the_rate_and_shortens_the_memory():
    w, v, g = np.ones((N, WIDTH)), np.zeros((N, WIDTH)), np.full((N, WIDTH), 2.0)
    store = Store([w.ravel().copy()], LO, WIDTH, BACKENDS["numpy"], make_chain(CHAIN, RATE))
    for _ in range(3):
        store.apply([message(PUSH, WHOLE, Lease(g.ravel().copy()))], Tuning(0.5, 2.0))
        w = by_hand(w, v, CHAIN, [(WHOLE, g)], 0.5 * RATE, 1 - 2 * (1 - MU))
    np.testing.assert_allclose(store.at(3), w, rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=list(BACKENDS))
@pytest.mark.parametrize("where", [WHOLE, BLOCK, REPEATS, (LO, LO), [LO + N - 1]], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_read_is_a_copy_of_the_rows_of_its_version(backend, where, dtype):
    versions = np.random.default_rng(1).standard_normal((2, N * WIDTH)).astype(dtype)
    store = Store(list(versions.copy()), LO, WIDTH, backend)
    for version in (0, 1):
        lease = store.read(version, message(PULL, where), Buffers().allocate)
        store.versions[version][:] = 0
        assert lease.array.dtype == dtype
        assert np.array_equal(lease.array.reshape(-1, WIDTH), versions[version].reshape(N, WIDTH)[rows_of(where)])
