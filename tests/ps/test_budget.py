"""No second carries more than the budget, nothing that is kept back is lost or sent twice, and the order is the one chosen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.ps.budget import ORDERS, Backlog, TokenBucket

RATE = 1000.0
GAPS = st.floats(0, 0.05) | st.floats(0, 3)


def granted(cls, requests, start=0.0):
    """Ask for each (gap, nbytes) after its gap, and again when the bucket says; return the times and sizes of the grants."""
    bucket, now, grants = cls(RATE), start, []
    for gap, nbytes in requests:
        now += gap
        wait = bucket.wait_seconds(now, nbytes)
        if wait:
            assert not bucket.take(now, nbytes)
            now += wait
        assert bucket.take(now, nbytes), "not granted after the wait that was asked for"
        grants.append((now, nbytes))
    return np.array(grants).reshape(-1, 2)


def check_windows(grants, most):
    """Hold each closed window of a second, from one grant on, to `most` bytes."""
    for now, _ in grants:
        within = (grants[:, 0] >= now) & (grants[:, 0] <= now + 1)
        assert grants[within, 1].sum() <= most * (1 + 1e-9)


@given(st.lists(st.tuples(GAPS, st.integers(1, 100)), max_size=60), st.sampled_from([0.0, 1e6, 1.8e9]))
def test_no_second_carries_more_than_a_tenth_over_the_rate(requests, start):
    assert TokenBucket(RATE).piece_nbytes == 100
    check_windows(granted(TokenBucket, requests, start), 1.1 * RATE)


@given(st.lists(st.tuples(GAPS, st.integers(1, 700)), max_size=60))
def test_with_larger_pieces_a_second_carries_at_most_one_piece_over_the_rate(requests):
    check_windows(granted(TokenBucket, requests), RATE + max([100, *(nbytes for _, nbytes in requests)]))


@pytest.mark.parametrize("nbytes", [1, 30, 100, 700])
def test_a_sender_in_haste_gets_the_rate(nbytes):
    grants = granted(TokenBucket, [(0.0, nbytes)] * (20_000 // nbytes))
    assert grants[:, 1].sum() / grants[-1, 0] == pytest.approx(RATE, rel=0.05)


class NoCap(TokenBucket):
    def _level(self, now):
        return self.tokens + (0.0 if self.since is None else (now - self.since) * self.rate)


class NoDebt(TokenBucket):
    def take(self, now, nbytes):
        taken = super().take(now, nbytes)
        self.tokens = max(self.tokens, 0.0)
        return taken


class StartsTwice(TokenBucket):
    """Counts time from the start again after each grant."""

    def take(self, now, nbytes):
        taken, self.since = super().take(now, nbytes), 0.0
        return taken


@pytest.mark.parametrize(("broken", "nbytes"), [(NoCap, 50), (NoCap, 500), (NoDebt, 500), (StartsTwice, 50), (StartsTwice, 500)])
def test_the_windows_catch(broken, nbytes):
    requests = [(2.0, nbytes)] + [(3.0, nbytes)] + [(0.0, nbytes)] * 60
    check_windows(granted(TokenBucket, requests), RATE + max(100, nbytes))
    with pytest.raises(AssertionError):
        check_windows(granted(broken, requests), RATE + max(100, nbytes))


def test_a_bucket_without_rate_is_refused():
    for rate, burst in ((0.0, None), (-1.0, None), (1.0, 0.0)):
        with pytest.raises(ValueError, match="above 0"):
            TokenBucket(rate, burst)


N, WIDTH, PIECE = 11, 3, 4
INSIDE = st.integers(0, N - 1)
BLOCKS = st.tuples(INSIDE, INSIDE).map(lambda ends: (min(ends), max(ends) + 1, None))
LISTED = st.lists(INSIDE, max_size=6).map(lambda rows: (-1, -1, np.array(rows, np.int64)))
ADDS = st.tuples(BLOCKS | LISTED, st.integers(-9, 9), st.booleans())
STEPS = st.lists(ADDS | st.none(), max_size=25)


def rows_of(lo, hi, rows):
    return np.arange(lo, hi) if rows is None else rows


def mean_squares(values):
    return [np.square(values[lo : lo + PIECE]).mean() for lo in range(0, N, PIECE)]


def overlaid(backlog, region):
    out = np.zeros((rows_of(*region).size, WIDTH))
    backlog.overlay(out, region)
    return out


def check_backlog(cls, order, steps, exact=False):
    """Do `steps`, None to take a piece out or (region, value, ends a clock) to add, then drain; hold all to plain sums and a dictionary of blocks."""
    backlog, unsent, clock = cls(N, WIDTH, np.float64, PIECE, order, 1, exact), np.zeros((N, WIDTH)), 0
    dirty: dict[int, list] = {}  # block, in the order of becoming dirty: oldest clock, newest clock, changed rows, oldest version
    for step in [*steps, *[None] * 4]:
        if step is not None:
            (lo, hi, listed), value, ends_clock = step
            rows = rows_of(lo, hi, listed)
            delta = value * (1.0 + np.arange(rows.size * WIDTH).reshape(-1, WIDTH))
            np.add.at(unsent, rows, delta)
            for row in sorted(set(rows.tolist())):
                block = dirty.setdefault(row // PIECE, [clock, clock, set(), 99])
                block[1], block[3] = clock, min(block[3], value)
                block[2].add(row)
            backlog.add(clock, delta.ravel(), lo, hi, listed, version=value)
            delta[:] = np.nan  # the caller reuses its buffer
            clock += ends_clock
        else:
            before = backlog.nbytes
            piece = backlog.next()
            assert (piece is None) == (not dirty)
            if piece is not None:
                rows = rows_of(*piece.region)
                k = int(rows[0]) // PIECE
                _, newest, changed, version = dirty[k]
                whole = list(range(k * PIECE, min(N, (k + 1) * PIECE)))
                assert rows.tolist() in (sorted(changed), whole) and rows.size <= PIECE
                assert rows.tolist() == (sorted(changed) if backlog.exact else rows.tolist())
                least = min(len(whole) * WIDTH * 8, len(changed) * (WIDTH + 1) * 8)
                listed = backlog.exact and len(changed) < len(whole)
                assert piece.nbytes == (len(changed) * (WIDTH + 1) * 8 if listed else least) == before - backlog.nbytes
                assert piece.version == version and np.array_equal(unsent[rows], overlaid(backlog, piece.region) + piece.values)
                assert piece.nbytes == piece.values.nbytes + (0 if piece.region.rows is None else rows.nbytes)
                assert piece.newest_clock == newest
                assert np.array_equal(piece.values, unsent[rows])
                if order == "fifo":
                    assert k == next(iter(dirty)) and dirty[k][0] == min(oldest for oldest, *_ in dirty.values())
                if order == "magnitude":
                    squares = mean_squares(unsent)
                    assert squares[k] == max(squares[j] for j in dirty)
                unsent[rows] = 0
                del dirty[k]
                piece.values[:] = np.nan  # an array of its own
        assert np.array_equal(backlog.unsent, unsent)
        assert backlog.oldest_clock() == min((oldest for oldest, *_ in dirty.values()), default=None)
    assert not dirty and not unsent.any() and not backlog.nbytes


@pytest.mark.parametrize("order", ORDERS)
@given(STEPS, st.booleans())
def test_what_is_sent_and_unsent_is_what_was_added(order, steps, exact):
    check_backlog(Backlog, order, steps, exact)


class SendsTwice(Backlog):
    """Forgets to zero what it has sent."""

    def _clear(self, k, lo, hi):
        kept = self.unsent[lo:hi].copy()
        super()._clear(k, lo, hi)
        self.unsent[lo:hi] = kept


class KeepsTheClock(Backlog):
    def _clear(self, k, lo, hi):
        oldest = self.oldest[k]
        super()._clear(k, lo, hi)
        self.oldest[k] = oldest


class LastClock(Backlog):
    """Counts a block as dirty since it was last changed."""

    def add(self, clock, delta, lo, hi, rows=None, version=0):
        super().add(clock, delta, lo, hi, rows, version)
        self.oldest[:] = np.where(self.newest >= 0, self.newest, self.oldest)


class Shares(Backlog):
    """Hands out the memory that it sums into."""

    def next(self, granted=None):
        piece = super().next(granted)
        return piece if piece is None or piece.region.rows is not None else piece._replace(values=self.unsent[piece.region.lo : piece.region.hi])


class Ascending(Backlog):
    """Takes the smallest, or the newest, first."""

    def _pick(self):
        keys = self.scores if self.order == "magnitude" else -self.turns
        return int(np.where(self.n_changed > 0, keys, np.inf).argmin())


@pytest.mark.parametrize("broken", [SendsTwice, KeepsTheClock, LastClock, Shares, Ascending])
@pytest.mark.parametrize("order", ["fifo", "magnitude"])
def test_the_sums_catch(broken, order):
    steps = [((0, 4, None), 2, True), ((4, N, None), 5, True), None, ((2, 6, None), 3, True), None, ((1, 3, None), 7, True)]
    check_backlog(Backlog, order, steps)
    with pytest.raises(AssertionError):
        check_backlog(broken, order, steps)


def random_order(seed, n=50):
    backlog = Backlog(n, 1, np.float32, 1, "random", seed)
    backlog.add(0, np.ones(n, np.float32), 0, n)
    return [backlog.next().region.lo for _ in range(n)]


def test_a_random_order_is_repeated_by_its_seed():
    assert random_order(3) == random_order(3) != random_order(4)
    assert sorted(random_order(3)) == list(range(50)) != random_order(3)


def test_one_row_of_many_travels_alone():
    backlog = Backlog(1000, 8, np.float32, 100)
    backlog.add(7, np.ones((2, 8), np.float32), -1, -1, np.array([250, 250]))
    piece = backlog.next()
    assert piece.region.rows.tolist() == [250] and piece.values.tolist() == [[2.0] * 8] and piece.nbytes == 8 * 4 + 8


def test_a_large_value_of_a_narrow_type_is_the_largest():
    backlog = Backlog(2, 1, np.float32, 1, "magnitude")
    backlog.add(0, np.array([2e30, 3e30], np.float32), 0, 2)
    assert backlog.next().region.lo == 1


def test_a_backlog_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="fifo, random, magnitude"):
        Backlog(N, WIDTH, np.float64, PIECE, "lifo")
    with pytest.raises(ValueError, match="one row at least"):
        Backlog(N, WIDTH, np.float64, 0)


def test_a_piece_that_is_refused_stays():
    backlog, asked = Backlog(N, WIDTH, np.float64, PIECE), []
    backlog.add(0, np.ones(N * WIDTH), 0, N)
    assert backlog.next(lambda nbytes: asked.append(nbytes)) is None and backlog.nbytes == N * WIDTH * 8
    assert backlog.next(lambda nbytes: asked.append(nbytes) or True).region.lo == 0 and asked == [PIECE * WIDTH * 8] * 2
