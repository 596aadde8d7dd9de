"""Hold collectives that are written down as rounds to what their source says: rounds that are carried out here, for any number of ranks, on numbers alone."""

import itertools
import math

import numpy as np
import pytest

from mpidml.collectives import base
from mpidml.collectives.base import Collective
from mpidml.collectives.gossip import GRAPHS, Gossip
from mpidml.core import plugins
from mpidml.core.rounds import Move, Round, Rounds, carried_out, cut, moved, priced, sizes

BY_ROUNDS = [name for name in plugins.names(base.FOLDER) if (of := plugins.load(base.FOLDER, name)).exact and of.rounds is not Collective.rounds]
SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17]
LENGTHS = [0, 1, 2, 5, 16, 97]

# Elements that all ranks send together, over n, and rounds of the rank with the most, for P ranks with p = the power of two below and r = P - p beyond it.
FORMULAS = {
    "ring": (lambda P, p, r: 2 * (P - 1), lambda P, p, r: 2 * (P - 1)),
    "recursive_doubling": (lambda P, p, r: p * math.log2(p) + 2 * r, lambda P, p, r: math.log2(p) + 2 * (r > 0)),
    "rabenseifner": (lambda P, p, r: 2 * (p - 1) + 2 * r, lambda P, p, r: 2 * math.log2(p) + 2 * (r > 0)),
    "tree": (lambda P, p, r: 2 * (P - 1), lambda P, p, r: 2 * math.ceil(math.log2(P)) if P > 1 else 0),
}


def parts_of(collective, size, n):
    return [collective.rounds(rank, size, n) for rank in range(size)]


def summed(parts, n):
    """Run the rounds on whole numbers; return whether every rank holds the sum, and after `reduce` that of its own range."""
    size = len(parts)
    given = [np.random.default_rng([rank, n]).integers(-50, 50, n) for rank in range(size)]
    total, buffers = sum(given), [values.copy() for values in given]
    carried_out([part.reduce for part in parts], buffers)
    owned = all((buffer[part.lo : part.hi] == total[part.lo : part.hi]).all() for buffer, part in zip(buffers, parts, strict=True))
    carried_out([part.gather for part in parts], buffers)
    return owned and all((buffer == total).all() for buffer in buffers)


@pytest.mark.parametrize("name", BY_ROUNDS)
@pytest.mark.parametrize("size", SIZES)
def test_rounds_sum_up_and_cost_what_their_source_says(name, size):
    collective = plugins.make(base.FOLDER, name)
    power = 1 << (size.bit_length() - 1)
    elements, rounds = (formula(size, power, size - power) for formula in FORMULAS[name])
    for n in LENGTHS:
        parts = parts_of(collective, size, n)
        assert summed(parts, n)
        assert sum(moved((*part.reduce, *part.gather)) for part in parts) == round(elements * n)
        assert max(len(part.reduce) + len(part.gather) for part in parts) == rounds
        owned = np.zeros(n, int)
        for part in parts:
            owned[part.lo : part.hi] += 1
        assert (owned == (size if name == "recursive_doubling" else 1)).all()  # nobody's slice is missing


def same_sizes(collective, n_ranks, n, ranks):
    """Return whether what a collective says of its rounds is what they are."""
    pairs = [(sizes(collective.rounds(rank, n_ranks, n)), collective.sizes(rank, n_ranks, n)) for rank in ranks]
    return all(np.array_equal(a, b) for of in pairs for a, b in zip(*of, strict=True))


@pytest.mark.parametrize("name", BY_ROUNDS)
def test_what_rounds_move_is_told_without_building_them(name):
    collective = plugins.make(base.FOLDER, name)
    assert all(same_sizes(collective, n_ranks, n, range(n_ranks)) for n_ranks in SIZES for n in [*LENGTHS, 10**12 + 7])
    assert same_sizes(collective, 1500, 12_345_677, (0, 1, 749, 1499))


def test_the_check_catches_a_ring_that_takes_what_it_sends():
    class Same(type(plugins.make(base.FOLDER, "ring"))):
        def sizes(self, rank, size, n):
            found = super().sizes(rank, size, n)
            return found._replace(taken=found.sent)

    assert same_sizes(Same(), 4, 60, range(4)) and not same_sizes(Same(), 4, 61, range(4))


def test_in_a_ring_no_rank_sends_more_than_another():
    for size in SIZES:
        parts = parts_of(plugins.make(base.FOLDER, "ring"), size, 16 * 17 * 60)
        assert max(moved((*part.reduce, *part.gather)) for part in parts) <= 2 * (size - 1) * math.ceil(16 * 17 * 60 / size)


class NextChunk(Collective):
    """Broken: passes on its own chunk each time."""

    def rounds(self, rank, size, n):
        to, of = (rank + 1) % size, (rank - 1) % size
        step = Round((Move(to, *cut(n, size, rank)),), (Move(of, *cut(n, size, of)),))
        return Rounds((step,) * (size - 1), (), *cut(n, size, rank))


class AddingGather(Collective):
    """Broken: adds in the second half, too."""

    def rounds(self, rank, size, n):
        part = plugins.make(base.FOLDER, "ring").rounds(rank, size, n)
        return part._replace(gather=tuple(each._replace(adds=True) for each in part.gather))


@pytest.mark.parametrize("broken", [NextChunk, AddingGather])
def test_the_check_catches_rounds_that_do_not_sum_up(broken):
    assert summed(parts_of(plugins.make(base.FOLDER, "ring"), 4, 60), 60)
    assert not summed(parts_of(broken(), 4, 60), 60)


def test_rounds_that_wait_for_each_other_or_send_to_nobody_are_refused():
    waits = [(Round(receives=(Move(1 - rank, 0, 1),)), Round(sends=(Move(1 - rank, 0, 1),))) for rank in range(2)]
    with pytest.raises(ValueError, match="nobody can go on"):
        carried_out(waits, [np.zeros(1), np.zeros(1)])
    with pytest.raises(ValueError, match="nobody takes"):
        carried_out([(Round(sends=(Move(1, 0, 1),)),), ()], [np.zeros(1), np.zeros(1)])
    with pytest.raises(ValueError, match="2 elements came"):
        carried_out([(Round(sends=(Move(1, 0, 2),)),), (Round(receives=(Move(0, 0, 1),)),)], [np.zeros(2), np.zeros(2)])


def test_few_rounds_are_cheaper_for_short_buffers_and_few_bytes_for_long_ones():
    def seconds(name, n):
        return max(priced(sizes(part), 4, 10e-6, 1e9) for part in parts_of(plugins.make(base.FOLDER, name), 16, n))

    assert seconds("recursive_doubling", 64) < seconds("rabenseifner", 64) < seconds("ring", 64)
    assert seconds("rabenseifner", 10**6) < seconds("recursive_doubling", 10**6)
    assert seconds("ring", 10**6) == pytest.approx(30 * (10e-6 + 4 * 10**6 / 16 / 1e9))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("size", [2, 3, 4, 5, 9, 12, 16])
def test_gossip_keeps_the_mean_and_contracts_by_the_second_eigenvalue(graph, size):
    gossip, n_times = Gossip(graph), 40
    weights = gossip.matrix(size)
    second = np.sort(np.abs(np.linalg.eigvalsh(weights)))[-2]
    np.testing.assert_allclose(weights, weights.T)
    buffers = [np.random.default_rng([7, rank]).standard_normal(2000) for rank in range(size)]
    mean = np.mean(buffers, 0)
    distances = []
    for _ in range(n_times):
        distances.append(math.sqrt(sum(np.square(buffer - mean).sum() for buffer in buffers)))
        carried_out([part.reduce for part in parts_of(gossip, size, 2000)], buffers)
    np.testing.assert_allclose(np.mean(buffers, 0), mean, atol=1e-13)
    if second < 1e-9:
        assert distances[1] < 1e-12 * distances[0]  # the graph is complete
    else:
        rates = [after / before for before, after in itertools.pairwise(distances) if before > 1e-6]
        assert max(rates) <= second * (1 + 1e-6)
        assert rates[-1] == pytest.approx(second, rel=0.1)


def test_gossip_with_weights_that_are_not_symmetric_moves_the_mean():
    def lopsided(rank, size, n):
        neighbours = [(rank + 1) % size] if rank % 2 else [(rank + 1) % size, (rank - 1) % size]
        own = 1 / (1 + len(neighbours))
        return [own if r == rank else own if r in neighbours else 0.0 for r in range(size)]

    weights = np.array([lopsided(rank, 4, 1) for rank in range(4)])
    values = np.arange(4.0)
    assert abs((weights @ values).mean() - values.mean()) > 0.05
