"""Hold networks whose layers are cut to the whole ones: losses, gradients, noise and initial weights do not depend on how a network is cut over ranks."""

import tracemalloc

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.nn.heads import Head
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.losses.base import make_loss
from mpidml.nn.models import connect
from mpidml.nn.network import Network
from mpidml.nn.split.chain import split
from mpidml.nn.split.dense import Columns
from mpidml.nn.split.dropout import DropoutPart
from mpidml.nn.split.line import gathered, own, summed
from mpidml.nn.split.loss import SplitCrossEntropy
from mpidml.nn.split.traffic import nbytes
from mpidml.nn.split.ways import choose
from tests.nn.lines import BACKENDS, CASES, LINES, Bound, MuteLine, connected, data_of, on_ranks, random_chain, ways_of, whole_of
from tests.nn.test_split_parts import ColumnsWithoutSum, DropoutByOwnColumn, M, lines, near

pytestmark = pytest.mark.shows_from(3)

cases = pytest.mark.parametrize("name", CASES)


def bound(net, parts, w, x, y):
    """Bind a split chain to the data; answers are targets where the loss reads them."""
    read = y
    if net.loss.from_values:
        read = np.zeros((len(x), net.n_outputs), net.dtype)
        net.loss.fill(y, read) if net.loss.kernel != "binary_xent" else np.copyto(read, (y[:, None] > np.arange(net.n_outputs)))
    chain = Bound(parts, w, len(x), net.backend, read=read)
    chain.x[...] = x
    return chain


def put_together(line, layout, local):
    """Return a flat array of the whole network, in which every rank has put its part of `local`."""
    whole = np.zeros(layout.whole.size, local.dtype)
    flat = local.copy()
    if line.rank:
        for name in layout.shared:
            layout.local.view(flat, name)[...] = 0  # what all hold, one gives
    layout.put(flat, whole)
    line.sum(whole)()
    return whole


def faults_of_chain(line, name, cut=split, m=M, backend=BACKENDS[1]):
    """List what a split chain does otherwise than the network, on this rank."""
    net, ways = whole_of(name, backend)
    w = net.init(3) + np.random.default_rng(1).standard_normal(net.n_params) * 0.1
    x, y = data_of(net, m)
    step = net.bind(m, w, np.empty_like(w))
    step.x[...], step.y[...], step.ids[...], step.salt[0] = x, y, np.arange(m) * 13 + 5, 99
    parts = cut(net.layers, net.loss, line, ways=ways)
    layout = parts.layout()
    assert layout.whole.slices == net.params.slices
    local = bound(net, parts, layout.cut(w), x, y)
    if step.targets is not None:
        step.targets[...] = local.y
    expected, (loss, out) = step.run(0.25), local.run(0.25)
    losses = np.zeros(line.size)
    losses[line.rank] = loss
    line.sum(losses)()
    found = [] if abs(loss - expected) <= 1e-12 * max(1, abs(expected)) else [f"loss {loss} for {expected}"]
    found += [] if len(set(losses.tolist())) == 1 else ["loss differs between ranks"]
    found += [] if near(local.g, layout.cut(step.g)) else ["gradient"]
    found += [] if near(put_together(line, layout, local.g), step.g) else ["gradient, put together"]
    shared = [layout.local.view(local.g, key) for key in layout.shared]
    same = np.concatenate([each.ravel() for each in shared] or [np.zeros(0)])
    most, least = same.copy(), -same
    line.most(most)(), line.most(least)()
    found += [] if np.array_equal(most, -least) else ["gradients of what all hold are not alike to the bit"]
    return found + ([] if len(out) == m else ["rows"])


@lines
@cases
def test_a_split_network_has_the_losses_and_gradients_of_the_whole(name, weights):
    for backend, m in zip(BACKENDS, (M, 1), strict=True):
        assert on_ranks(weights, lambda line, b=backend, m=m: faults_of_chain(line, name, m=m, backend=b)) == [[]] * len(weights)


@pytest.mark.mpi
@cases
def test_a_network_split_over_ranks_has_the_losses_and_gradients_of_the_whole(name, line):
    assert faults_of_chain(line, name) == []


def broken(kind):
    """Return `split` with one thing wrong."""

    def cut(layers, loss, line, **given):
        parts = split(layers, loss, line, **given)
        if kind == "maximum over own columns":
            line.most = lambda buffer: lambda: None
        makers = {Columns: ColumnsWithoutSum, DropoutPart: DropoutByOwnColumn}
        changed = {"no sum of dx": Columns, "noise by own column": DropoutPart}.get(kind)
        swapped = [makers[changed](layer.whole, line) if type(layer) is changed else layer for layer in parts.layers]
        return parts._replace(layers=tuple(swapped))

    return cut


@pytest.mark.parametrize(("kind", "name"), [("no sum of dx", "tail"), ("noise by own column", "mlp"), ("maximum over own columns", "softmax")])
def test_the_comparison_catches_a_broken_chain(kind, name):
    assert not any(on_ranks((1, 2, 1), lambda line: faults_of_chain(line, name)))
    assert any(on_ranks((1, 2, 1), lambda line: faults_of_chain(line, name, broken(kind))))


@pytest.mark.parametrize("seed", range(25))
def test_any_way_to_cut_a_random_network_over_any_ranks_gives_the_same(seed):
    random = np.random.default_rng(seed)
    layers, loss = random_chain(random)
    net = connect(layers, "test", int(random.integers(1, 7)), int(random.integers(2, 5)), loss, "float64", BACKENDS[seed % 2])
    every = ways_of(net.layers, loss)
    ways = every[random.integers(len(every))]
    weights = (*random.choice([0, 0.5, 1, 2], random.integers(1, 5)), 1)
    w, m = net.init(seed), 4
    x, y = data_of(net, m)
    step = net.bind(m, w, np.empty_like(w))
    step.x[...], step.y[...], step.ids[...], step.salt[0] = x, y, np.arange(m) * 13 + 5, 99
    step.load_labels()
    loss = step.run(0.25)

    def body(line):
        parts = split(net.layers, net.loss, line, ways=ways)
        layout = parts.layout()
        chain = bound(net, parts, layout.cut(w), x, y)
        assert chain.run(0.25)[0] == pytest.approx(loss, rel=1e-12)
        assert near(chain.g, layout.cut(step.g))

    on_ranks(weights, body)


def trained(line, name="mlp", n_steps=20, rate=0.2):
    """Return the losses of steps of SGD on a split network, which begins with its own initial weights."""
    net, ways = whole_of(name)
    x, y = data_of(net, 16)
    parts = split(net.layers, net.loss, line, ways=ways)
    w = parts.layout().init(7, "float64")
    chain, losses = bound(net, parts, w, x, y), []
    for clock in range(n_steps):
        chain.salt[0] = clock
        losses.append(chain.run(1 / 16)[0])
        w -= rate * chain.g
    return losses


def trained_whole(name="mlp", n_steps=20, rate=0.2):
    net, _ = whole_of(name)
    x, y = data_of(net, 16)
    w = net.init(7)
    step, losses = net.bind(16, w, np.empty_like(w)), []
    step.x[...], step.y[...], step.ids[...] = x, y, np.arange(16) * 13 + 5
    for clock in range(n_steps):
        step.salt[0] = clock
        losses.append(step.run(1 / 16))
        w -= rate * step.g
    return losses


@pytest.mark.parametrize("name", ["mlp", "tail"])
def test_twenty_steps_on_three_ranks_lose_what_one_rank_loses(name):
    expected = trained_whole(name)
    assert expected[-1] < 0.97 * expected[0]
    for losses in on_ranks((2, 1, 2), lambda line: trained(line, name)):
        assert losses == pytest.approx(expected, rel=1e-9)


@pytest.mark.mpi
def test_twenty_steps_on_ranks_lose_what_one_rank_loses(line):
    assert trained(line, "tail") == pytest.approx(trained_whole("tail"), rel=1e-9)


# ---- plugging in


def test_parts_are_layers_of_a_network_like_any_other():
    for name in ("pair", "norm", "embedding"):
        net, _ = whole_of(name)
        w, (x, y) = net.init(3), data_of(net, M)
        ways = choose(net.layers, None, net.first, 2)  # the end is whole, so that the network's own loss takes it
        step = net.bind(M, w, np.empty_like(w))

        def run(step, x=x, y=y):
            step.x[...], step.y[...], step.salt[0] = x, y, 9
            step.load_labels()
            return step.run(0.5), step.g

        expected = run(step)

        def body(line, net=net, w=w, ways=ways, run=run, expected=expected):
            parts = split(net.layers, net.loss, line, ways=ways)
            part, layout = Network(parts.layers, net.n_features, net.n_outputs, net.loss, "float64", net.backend), parts.layout()
            assert part.params.slices == layout.local.slices
            local = layout.cut(w)
            loss, g = run(part.bind(M, local, np.empty_like(local)))
            assert loss == pytest.approx(expected[0], rel=1e-12) and near(g, layout.cut(expected[1]))

        on_ranks((1, 2), body)


def test_a_part_refuses_another_width_before_it():
    layer = connected([Dense(4)], 6)[0]
    with pytest.raises(ValueError, match="takes 6 columns on rank 0, the layer before it gives 5"):
        Columns(layer, MuteLine(0, (1, 1))).connect(0, 5, None)


def test_own_columns_are_laid_beside_those_of_others():
    whole = np.arange(12.0).reshape(2, 6)

    def body(line):
        found = np.full_like(whole, np.nan)
        for function, arguments in gathered(BACKENDS[1], line, whole[:, own(line, 6)], found):
            function(*arguments)
        return np.array_equal(found, whole)

    assert all(on_ranks((1, 0, 2), body))


@pytest.mark.parametrize("name", ["weighted", "softmax", "pair"])
def test_whole_outputs_can_be_had_wherever_a_chain_ends(name):
    net, ways = whole_of(name)
    w, (x, y) = net.init(3), data_of(net, M)
    expected, n_correct = net.predict(w, x), net.score(w, x, y)[1]

    def body(line):
        parts = split(net.layers, net.loss, line, ways=ways)
        chain = bound(net, parts, parts.layout().cut(w), x, y)
        thunks, out = parts.loss.whole_outputs(net.backend, chain.outputs[-1])
        for function, arguments in (*chain.forward, *thunks):
            function(*arguments)
        assert near(out, expected) and net.loss.n_correct(net.backend, out, y, None) == n_correct

    on_ranks((1, 2, 1), body)


def test_a_run_of_parts_allocates_no_array():
    for name in CASES:
        net, ways = whole_of(name, dtype="float32")
        parts = split(net.layers, net.loss, MuteLine(1, (1, 1, 1)), ways=ways)
        x, y = data_of(net, 256)
        chain = bound(net, parts, parts.layout().cut(net.init(0)), x, y)
        for _ in range(3):
            chain.run(1 / 256)
        out = chain.outputs[-1]
        chain.outputs[-1] = np.zeros(0)  # whose copy is none
        tracemalloc.start()
        try:
            for _ in range(10):
                chain.run(1 / 256)
            assert tracemalloc.get_traced_memory()[1] < 4096, name
        finally:
            tracemalloc.stop()
            chain.outputs[-1] = out


def test_heads_share_a_split_trunk():
    heads = [
        Head("kind", (Dense(8, "tanh"), Dense()), 3, make_loss("cross_entropy"), 0.5, (0,), True, 0),
        Head("amount", (Dropout(0.2), Dense()), 2, make_loss("squared_error"), 2.0, (1, 2), False, 3),
    ]
    net = connect([Dense(9, "gelu"), Dropout(0.3), Dense(7, "relu")], "test", 6, 5, heads[0].loss, "float64", BACKENDS[1], heads)
    w, random = net.init(2), np.random.default_rng(3)
    x, y = random.standard_normal((M, 6)), np.column_stack([random.integers(0, 3, M), random.standard_normal((M, 2))])
    step = net.bind(M, w, np.empty_like(w))
    step.x[...], step.ids[...], step.salt[0] = x, np.arange(M) * 13 + 5, 99
    step.load(y, np.arange(M))
    loss, edge = step.run(0.5), len(net.trunk)

    def body(line):
        trunk = split(net.layers[:edge], None, line)
        ends = [split(net.layers[edge:][:2], heads[0].loss, line, inner=True), split(net.layers[edge:][2:], heads[1].loss, line, inner=True)]
        layouts = [trunk.layout(), ends[0].layout("heads.kind"), ends[1].layout("heads.amount")]
        assert [name for layout in layouts for name in layout.whole.slices] == list(net.params.slices)
        edges = np.cumsum([0, *(layout.whole.size for layout in layouts)])
        flats = [layout.cut(w[lo:hi]) for layout, lo, hi in zip(layouts, edges, edges[1:], strict=False)]
        places = np.cumsum([0, 2, 2])
        assert [f.tobytes() for f in flats] == [layout.init(2, "float64", int(at)).tobytes() for layout, at in zip(layouts, places, strict=True)]
        base = Bound(trunk, flats[0], M, net.backend)
        chains = [Bound(end, flat, M, net.backend, of.read) for end, flat, of in zip(ends, flats[1:], step.answers, strict=True)]
        base.x[...] = x
        _, out = base.run(d=0)
        for chain in chains:
            chain.x[...] = out
        total = sum(head.weight * chain.run(0.5 * head.weight)[0] for head, chain in zip(heads, chains, strict=True))
        base.run(d=chains[0].dx + chains[1].dx)
        assert total == pytest.approx(loss, rel=1e-12)
        for layout, chain, lo, hi in zip(layouts, [base, *chains], edges, edges[1:], strict=False):
            assert near(chain.g, layout.cut(step.g[lo:hi]))

    for weights in LINES:
        on_ranks(weights, body)


@pytest.mark.parametrize("name", ["mlp", "weighted", "embedding"])
def test_in_float32_a_split_network_is_near_the_whole(name):
    net, ways = whole_of(name, dtype="float32")
    w, (x, y) = net.init(3), data_of(net, 50)
    step = net.bind(50, w, np.empty_like(w))
    step.x[...], step.y[...], step.ids[...], step.salt[0] = x, y, np.arange(50) * 13 + 5, 99
    step.load_labels()
    loss = step.run(0.02)

    def body(line):
        parts = split(net.layers, net.loss, line, ways=ways)
        chain = bound(net, parts, parts.layout().cut(w), x, y)
        assert chain.run(0.02)[0] == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(chain.g, parts.layout().cut(step.g), rtol=1e-3, atol=1e-5)

    on_ranks((1, 2, 1), body)


def test_a_buffer_whose_sum_would_be_lost_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 2\) is not contiguous"):
        summed(MuteLine(0, (1, 1)), np.zeros((3, 4))[:, :2])


# ---- bytes


def test_the_loss_of_parts_sums_two_numbers_of_a_row_and_three_with_smoothing():
    for name, n_sums in (("softmax", 2), ("weighted", 3)):
        net, ways = whole_of(name)
        parts = split(net.layers, net.loss, MuteLine(0, (1, 1)), ways=ways)
        assert isinstance(parts.loss, SplitCrossEntropy)
        end = [(each.n, each.itemsize, each.most) for each in parts.exchanges(7, "float32") if each.most or each.itemsize == 8]
        assert end == [(7, 4, True), (7 * n_sums, 8, False)]


def sent(ranks, line, collective, name, forgets=0):
    """Return the bytes that a run sends, and what the formula says; `forgets` leaves as many exchanges out of it."""
    from mpidml.collectives.recursive_doubling import RecursiveDoubling
    from mpidml.core.rounds import moved

    def elements(algorithm, n):
        part = algorithm.rounds(ranks.rank, ranks.size, n)
        return moved((*part.reduce, *part.gather))

    net, ways = whole_of(name)
    x, y = data_of(net, M)
    parts = split(net.layers, net.loss, line, ways=ways)
    chain = bound(net, parts, parts.layout().cut(net.init(0)), x, y)
    before = ranks.nbytes_sent
    chain.run(1.0)
    listed = parts.exchanges(M, "float64")
    formula = nbytes(listed[forgets:], lambda n: elements(collective, n), lambda n: elements(RecursiveDoubling(), n))
    return ranks.nbytes_sent - before, formula


@pytest.mark.mpi
@pytest.mark.parametrize("algorithm", ["ring", "recursive_doubling", "rabenseifner", "tree"])
def test_the_transport_counts_the_bytes_of_the_formula(algorithm, comm):
    from mpidml.collectives.base import make_collective
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.line import TensorLine

    ranks = CountedComm(comm)
    collective = make_collective(algorithm, ranks)
    line = TensorLine(collective)
    for name in CASES:
        counted, formula = sent(ranks, line, collective, name)
        assert counted == formula, name
    counted, formula = sent(ranks, line, collective, "tail", forgets=1)
    assert ranks.size == 1 or counted != formula or not any(ranks.allgather(counted)), "a sum that is left out is noticed"
    line.free()
    ranks.free()


# ---- the line of ranks


@pytest.mark.mpi
def test_a_line_gives_every_rank_sums_and_largest_values(line):
    for n in (0, 1, 7):
        given = [np.random.default_rng([n, rank]).standard_normal(n) for rank in range(line.size)]
        total, most = given[line.rank].copy(), given[line.rank].copy()
        add_up, find = line.sum(total), line.most(most)
        for _ in range(2):
            total[:], most[:] = given[line.rank], given[line.rank]
            add_up(), find()
            assert np.array_equal(most, np.max(given, axis=0))
            np.testing.assert_allclose(total, np.sum(given, axis=0), rtol=1e-14, atol=1e-14)


@pytest.mark.mpi
def test_a_line_refuses_weights_and_collectives_that_do_not_fit(comm):
    from mpidml.collectives.base import make_collective
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.line import TensorLine

    ranks = CountedComm(comm)
    with pytest.raises(UserError, match=f"{ranks.size + 1} weights are given for {ranks.size} ranks"):
        TensorLine(make_collective("ring", ranks), [1] * (ranks.size + 1))
    with pytest.raises(UserError, match="cut nothing"):
        TensorLine(make_collective("ring", ranks), [0] * ranks.size)
    with pytest.raises(UserError, match="leaves no sum"):
        TensorLine(make_collective("gossip", ranks))
    ranks.free()
