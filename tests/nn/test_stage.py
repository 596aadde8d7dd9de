"""Hold a network that is cut into stages to the network in one piece: same bits, whatever the cut."""

import itertools

import numpy as np
import pytest

from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.layers.layer_norm import LayerNorm
from mpidml.nn.losses.base import make_loss
from mpidml.nn.models import connect
from mpidml.nn.stage import Stage, n_cuts
from mpidml.nn.step import Edges, Memory

M, ROWS, SEED = 4, 5, 3
SCALE = 0.1


def network(dtype="float64", backend="numba"):
    layers = [Dense(7, "relu"), Dropout(0.3), Dense(6, "gelu"), LayerNorm(), Dense(5, "tanh"), Dense()]
    return connect(layers, "test", 8, 3, make_loss("cross_entropy"), dtype, backend)


def stages_of(net, cuts):
    """Return the stages that end at `cuts`."""
    return [
        Stage(net, lo, hi, s == 0, s == len(cuts)) for s, (lo, hi) in enumerate(itertools.pairwise([0, *cuts, n_cuts(net)]))
    ]


def edges_of(stages, m=ROWS):
    """Make the arrays between stages: of stage s its own input's gradient, and its output's."""
    between = [(np.zeros((m, stage.n_out)), np.zeros((m, stage.n_out))) for stage in stages[:-1]]
    found = []
    for s, _ in enumerate(stages):
        x, dx = between[s - 1] if s else (None, None)
        out, dy = between[s] if s < len(stages) - 1 else (None, None)
        found.append(Edges(x, out, dy, dx))
    return found


def whole(net, batch):
    """Return loss, gradient and scores of the network in one piece."""
    x, y, ids = batch
    w, g = net.init(SEED), np.zeros(net.n_params)
    step = net.bind(ROWS, w, g)
    step.x[...], step.y[...], step.ids[...], step.salt[0] = x, y, ids, 11
    return step.run(SCALE), g, net.score(w, x, y)


def staged(net, batch, cuts, halves=False, cut_gradient=None):
    """Return what `whole` does, by stages that end at `cuts`; `halves`: gradients of weights are left to the end."""
    x, y, ids = batch
    stages = stages_of(net, cuts)
    ws, gs = [stage.init(SEED) for stage in stages], [np.zeros(stage.n_params) for stage in stages]
    edges = edges_of(stages)
    steps = [stage.bind(ROWS, w, g, Memory(ROWS + 2, net.backend), edge) for stage, w, g, edge in zip(stages, ws, gs, edges, strict=True)]
    steps[0].x[...] = x
    for step in steps:
        step.ids[...], step.salt[0] = ids, 11
        step.go()
    steps[-1].y[...] = y
    loss = steps[-1].lose(SCALE)
    for s, step in reversed(list(enumerate(steps))):
        (step.go_back_to_input if halves else step.go_back)()
        if cut_gradient == s:
            edges[s].dx[...] = 0
    if halves:
        made = np.concatenate([step.g[part] for stage, step in zip(stages, steps, strict=True) for part in stage.gradient_parts()[0]])
        assert made.any() and not any(step.g[part].any() for stage, step in zip(stages, steps, strict=True) for part in stage.gradient_parts()[1])
    for step in steps if halves else ():
        step.go_back_to_weights()
    assert np.array_equal(np.concatenate(ws), net.init(SEED))
    assert [(stage.start, stage.stop) for stage in stages] == list(itertools.pairwise([0, *np.cumsum([stage.n_params for stage in stages])]))
    scored = x
    for stage, w, edge in zip(stages, ws, edges, strict=True):
        thunks, outs = stage.scoring(ROWS, w, Memory(ROWS, net.backend), scored, edge.out)
        for function, arguments in thunks:
            function(*arguments)
        scored = edge.out
    return loss, np.concatenate(gs), net.heads[0].judge(net.backend, outs[0], y)


@pytest.fixture
def batch():
    random = np.random.default_rng(5)
    return random.normal(size=(ROWS, 8)), random.integers(3, size=ROWS), np.arange(100, 100 + ROWS)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("n_stages", [1, 2, 3, 5, 8])
def test_every_cut_gives_the_bits_of_one_piece(n_stages, backend, halves, batch):
    net = network(backend=backend)
    loss, gradient, score = whole(net, batch)
    for cuts in itertools.islice(itertools.combinations_with_replacement(range(n_cuts(net) + 1), n_stages - 1), 0, None, max(1, 2 ** (n_stages - 4))):
        found = staged(net, batch, cuts, halves)
        assert found[0] == loss and np.array_equal(found[1], gradient) and found[2] == score, cuts


def test_a_gradient_that_does_not_travel_is_seen(batch):
    net = network()
    _, gradient, _ = whole(net, batch)
    assert not np.array_equal(staged(net, batch, (3,), cut_gradient=1)[1], gradient)


def test_weights_of_the_wrong_place_are_seen():
    net = network()
    net.place = lambda i: 0
    with pytest.raises(AssertionError):
        assert np.array_equal(np.concatenate([stage.init(SEED) for stage in stages_of(net, (3,))]), net.init(SEED))


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_heads_go_with_the_last_stage(cut):
    from mpidml.nn.heads import Head

    heads = [
        Head("a", (Dense(),), 3, make_loss("cross_entropy"), 1.0, (0,), True, 0),
        Head("b", (Dense(4, "relu"), Dense()), 2, make_loss("squared_error"), 0.5, (1, 2), False, 3),
    ]
    net = connect([Dense(7, "relu"), Dense(6, "tanh")], "test", 8, 5, heads[0].loss, "float64", "numpy", heads)
    assert n_cuts(net) == 2
    random = np.random.default_rng(1)
    x, y = random.normal(size=(ROWS, 8)), np.column_stack([random.integers(3, size=ROWS), random.normal(size=(ROWS, 2))])
    w, g = net.init(SEED), np.zeros(net.n_params)
    step = net.bind(ROWS, w, g)
    step.x[...] = x
    step.load(y, np.arange(ROWS))
    loss = step.run(SCALE)
    stages = stages_of(net, (cut,))
    edges = edges_of(stages)
    gs = [np.zeros(stage.n_params) for stage in stages]
    first, last = (stage.bind(ROWS, stage.init(SEED), own, Memory(ROWS, net.backend), edge) for stage, own, edge in zip(stages, gs, edges, strict=True))
    first.x[...] = x
    first.go()
    last.go()
    last.load(y, np.arange(ROWS))
    assert last.lose(SCALE) == loss
    last.go_back()
    first.go_back()
    assert np.array_equal(np.concatenate(gs), g)
