"""Hold networks whose layers lie along different axes to the whole: losses and gradients of a batch whose rows are spread over ranks, and what they send."""

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.core.rounds import carried_out, moved
from mpidml.nn.heads import Head
from mpidml.nn.layers.dense import ACTIVATIONS, Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.layers.layer_norm import LayerNorm
from mpidml.nn.losses.base import make_loss
from mpidml.nn.models import connect
from mpidml.nn.split import mix, spread
from mpidml.nn.split.mix import cut_layers, mixed
from mpidml.nn.stage import Stage, n_cuts
from mpidml.nn.step import ALONE, Memory
from tests.nn.lines import BACKENDS, ThreadLine, on_ranks

SEED, SALT, SCALE = 3, 11, 0.1
LINES = [(1,), (1, 1), (3, 1), (1, 2, 1), (1, 0, 5), (1, 1, 1, 1, 1)]
"""Weights by which widths are cut: of 1, 2, 3 and 5 ranks, of which some have nothing."""


class CarryingLine(ThreadLine):
    """A line of threads that carries rounds out, and counts what is sent."""

    n_sent = 0

    def carry(self, rounds, buffer):
        assert buffer.ndim == 1 and buffer.flags.c_contiguous
        meeting = self.meeting

        def run():
            meeting.given[self.rank] = rounds, buffer.copy()
            meeting.barrier.wait()
            buffers = [each.copy() for _, each in meeting.given]
            carried_out([each for each, _ in meeting.given], buffers)
            meeting.barrier.wait()
            buffer[...] = buffers[self.rank]
            self.n_sent += moved(rounds)

        return run


def network(backend=BACKENDS[1], units=7, activation="gelu"):
    layers = [Embedding([1, 3], 3, 5), Dense(units, activation), LayerNorm(), Dropout(0.3), Dense(4, "tanh"), Dense()]
    return connect(layers, "test", 6, 5, make_loss("cross_entropy"), "float64", backend)


def headed():
    heads = [Head("a", (Dense(6, "relu"), Dense()), 3, make_loss("cross_entropy"), 1.0, (0,)), Head("b", (Dense(),), 2, make_loss("hinge"), 0.3, (1,), True, 3)]
    return connect([Embedding([1, 3], 3, 5), Dense(8, "softplus")], "test", 6, 5, heads[0].loss, "float64", BACKENDS[1], heads)


def batch_of(net, m, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((m, net.n_features))
    x[:, [1, 3]] = random.integers(0, 5, (m, 2))
    y = random.integers(0, 2, (m, 2)).astype(float) if net.given_heads else random.integers(0, net.n_outputs, m)
    return x, y, np.arange(m) * 13 + 5


def filled(step, batch, rows):
    x, y, ids = batch
    step.x[...], step.ids[...], step.salt[0] = x[rows], ids[rows], SALT
    step.load(y, np.arange(len(x))[rows])
    return step


def whole(net, batch):
    """Return loss, gradient and outputs of the network in one piece."""
    w, g = net.init(SEED), np.zeros(net.n_params)
    m = len(batch[0])
    step = filled(net.bind(m, w, g), batch, slice(0, m))
    return step.run(SCALE), g, net.predict(w, batch[0])


def spread_over(net, cut, weights, counts, batch, n_passes=1, halves=False):
    """Return what `whole` does, of ranks that have `counts` rows each, and of each rank what it has, and the elements sent by training and by scoring."""
    edges = np.cumsum([0, *counts])

    def body(given):
        line = CarryingLine(given.rank, weights, given.meeting)
        stage = Stage(net, 0, n_cuts(net), True, True, mixed(net, line, cut))
        rows, m = slice(edges[line.rank], edges[line.rank + 1]), counts[line.rank]
        stage.spread.counts = counts
        w, g, total = stage.init(SEED), np.full(stage.n_params, np.nan), np.zeros(stage.n_params)
        memory = Memory(max(counts) + 2, net.backend)
        step = filled(stage.bind(m, w, g, memory, ALONE), batch, rows)
        again = filled(stage.bind(m, w, g.copy(), memory, ALONE, total), batch, rows)
        out = np.zeros((m, net.n_outputs))
        thunks, outs = stage.scoring(m, w, Memory(max(counts), net.backend), batch[0][rows], None)
        for function, arguments in thunks:
            function(*arguments)
        for head, each in zip(net.heads, outs, strict=True):
            head.cut(out)[...] = each
        n_scored, loss = line.n_sent, 0.0
        for each in (step, *[again] * (n_passes - 1)):
            each.go()
            loss += each.lose(SCALE)
            each.go_back_to_input() if halves else each.go_back()
            if halves:
                each.go_back_to_weights()
        line.n_sent -= n_scored
        parts = [part for found in stage.gradient_parts(adding=True) for part in found]
        for part in parts if n_passes > 1 else ():
            total[part] += again.g[part] * (n_passes - 1)
        return loss, stage, g + total, out, memory, line.n_sent, n_scored

    found = on_ranks(weights, body)
    gradient, holders = np.zeros(net.n_params), np.zeros(net.n_params, int)
    for _, stage, g, *_ in found:
        np.add.at(gradient, stage.elements()[0], g)
        np.add.at(holders, stage.elements()[0], 1)
    for _, stage, *_ in found:
        places, shared = stage.elements()
        n = stage.n_summed
        assert (n == net.n_params) if len(weights) == 1 else shared[:n].all() and not shared[n:].any()  # what is summed over ranks comes first
        assert (holders[places] == np.where(shared, len(weights), 1)).all()  # and of what is not, each element is on one rank
    return sum(each[0] for each in found), gradient, np.concatenate([each[3] for each in found]), found


def counts_of(n_ranks, m):
    return tuple(m * (r + 1) // n_ranks - m * r // n_ranks for r in range(n_ranks))


def compare(net, cut, weights, counts, n_passes=1, halves=False):
    """Return the largest difference from the whole."""
    batch = batch_of(net, sum(counts))
    loss, g, out = whole(net, batch)
    loss_of, g_of, out_of, _ = spread_over(net, cut, weights, counts, batch, n_passes, halves)
    return max(abs(loss_of - n_passes * loss), np.abs(g_of - n_passes * g).max(), np.abs(out_of - out).max())


CUTS = ["embedding=tensor", "dense=tensor", "embedding=tensor,dense=tensor", "dense=tensor,2=data", "embedding=tensor,6=tensor", "5=tensor"]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("text", CUTS)
@pytest.mark.parametrize("weights", LINES, ids=str)
def test_a_mix_has_the_losses_and_gradients_of_the_whole(backend, text, weights):
    net = network(backend)
    cut = cut_layers(text, net.layers)
    for m in (11, len(weights) - 1):  # and fewer rows than ranks
        assert m == 0 or compare(net, cut, weights, counts_of(len(weights), m)) < 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_any_rows_on_any_ranks_and_any_layers_do(seed):
    random = np.random.default_rng(seed)
    net = network(units=int(random.integers(1, 12)), activation=str(random.choice(ACTIVATIONS)))
    weights, counts = LINES[seed % len(LINES)], tuple(int(n) for n in random.integers(0, 4, len(LINES[seed % len(LINES)])))
    cut = frozenset(int(i) for i in random.choice([0, 1, 4, 5], random.integers(1, 4), replace=False))
    if sum(counts):
        assert compare(net, cut, weights, counts, n_passes=int(random.integers(1, 4)), halves=bool(seed % 2)) < 1e-12


def test_heads_may_be_mixed():
    net = headed()
    for text in ("embedding=tensor", "dense=tensor", "2=tensor", "embedding=tensor,4=tensor"):
        assert compare(net, cut_layers(text, net.layers), (1, 1, 1), (3, 2, 0)) < 1e-12


def without_sum(self, backend, flat, rows):
    return [(np.copyto, (rows, self.own(flat)))]


def own_columns_alone(self, backend, flat, rows):
    return [(rows.fill, (0,)), *((np.copyto, (of, block)) for block, of in self._pairs(flat, rows))]


@pytest.mark.parametrize(("kind", "name", "broken"), [("Whole", "give", without_sum), ("Cut", "give", own_columns_alone), ("Whole", "gather", lambda self, flat: [])])
def test_the_comparison_catches_what_is_not_sent(monkeypatch, kind, name, broken):
    net = network()
    monkeypatch.setattr(getattr(spread, kind), name, broken)
    assert compare(net, cut_layers("embedding=tensor,dense=tensor", net.layers), (1, 1), (3, 2)) > 1e-3


@pytest.mark.parametrize("counts", [(4, 3, 4), (1, 0, 1)], ids=str)
def test_what_a_rank_sends_is_a_formula(counts):
    sends(counts)


def sends(counts):
    """Fail unless of m of M own rows a rank sends codes and rows found of an embedding; of a dense layer the shorter side whole, of the longer the columns of others."""
    net, total, n_codes, units = network(), sum(counts), 2, 3
    cut = cut_layers("embedding=tensor,dense=tensor", net.layers)
    *_, found = spread_over(net, cut, (1, 1, 1), counts, batch_of(net, total))
    edges = {n: [round(n * r / 3) for r in range(4)] for n in (4, 5, 7, 10)}
    for rank, (m, (*_, n_trained, n_scored)) in enumerate(zip(counts, found, strict=True)):

        def own(n, rank=rank):
            return edges[n][rank + 1] - edges[n][rank]

        def whole_side(n, m=m):  # gathered, and summed where rows belong
            return n * m * 2, n * (total - m)

        def cut_side(n, m=m, own=own):  # columns of others, of own rows; own columns, of others' rows
            return m * (n - own(n)), (total - m) * own(n)

        gathered, given = whole_side(n_codes)[0], whole_side(n_codes * units)
        forward, backward = gathered + given[1], given[0]
        for n_in, n_out in ((10, 7), (7, 4), (4, 5)):  # every one wants the gradient of its input
            short, long = whole_side(min(n_in, n_out)), cut_side(max(n_in, n_out))
            by_columns = n_out >= n_in
            forward += short[0] + long[1] if by_columns else long[0] + short[1]
            backward += long[0] + short[1] if by_columns else short[0] + long[1]
        assert (n_trained, n_scored) == (forward + backward, forward)


def to_all(self, backend, flat, rows, give=spread.Whole.give):
    """Sum the rows of all on every rank, as a ring would, and take the own ones."""
    return [*give(self, backend, flat, rows), *self.gather(flat)]


@pytest.mark.parametrize(
    ("kind", "name", "broken"),
    [
        ("Whole", "bring", lambda self, backend, rows, flat, bring=spread.Whole.bring: [*bring(self, backend, rows, flat), *self.gather(flat)]),
        ("Whole", "give", to_all),
        ("Cut", "bring", lambda self, backend, rows, flat, bring=spread.Cut.bring: [*bring(self, backend, rows, flat)] * 2),
        ("Whole", "gather", lambda self, flat: []),
    ],
)
def test_the_count_catches_what_is_sent_to_more_ranks_or_to_none(monkeypatch, kind, name, broken):
    monkeypatch.setattr(getattr(spread, kind), name, broken)
    with pytest.raises(AssertionError):
        sends((4, 3, 4))


def test_a_rank_holds_its_part_of_what_is_cut_and_all_of_what_is_not():
    net = network()
    cut = cut_layers("embedding=tensor", net.layers)
    *_, found = spread_over(net, cut, (1, 1, 1), (1, 1, 1), batch_of(net, 3))
    assert [each[1].n_params - each[1].n_summed for each in found] == [3 * 3, 4 * 3, 3 * 3]
    assert {each[1].n_summed for each in found} == {net.n_params - 10 * 3}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("embeding=tensor", "did you mean 'embedding'"), ("embedding=tensr", "did you mean 'tensor'"), ("embedding=pipe", "no axis 'pipe'"),
        ("embedding", "embedding=tensor"), ("dense=tensor,dense=data", "twice"), ("9=tensor", "has 6"), ("0=tensor", "from 1 to 6"),
        ("embedding=data", "does nothing"), ("layer_norm=tensor", "cannot be cut"),
        ("dropout=tensor", "layer 4 (dropout) cannot be cut; lay dense or embedding"), ("", "lays nothing"),
    ],
)  # fmt: skip
def test_a_mix_that_cannot_be_is_refused_in_one_line(text, told):
    with pytest.raises(UserError) as caught:
        cut_layers(text, network().layers)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_mix_that_names_what_the_network_lacks_is_refused():
    with pytest.raises(UserError, match=r"has no layer embedding, it has dense, dropout; leave it out"):
        cut_layers("embedding=tensor", [Dense(3), Dropout(0.1), Dense()])
    assert set(mix.MAKERS) == {Dense, Embedding}
