"""Several heads over one trunk: the gradient is that of the weighted sum of their losses, and one head is the net without heads, bit for bit."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.data.learnt import Learnt
from mpidml.data.targets import Targets
from mpidml.nn.models import for_data, layers_of
from mpidml.nn.net_file import parse
from tests.nn.test_network import assert_final_when_reported

BACKENDS = [mpidml_kernels.backend("numpy"), mpidml_kernels.backend("numba")]
both = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
M = 9
UNIT = Targets(np.zeros(2), 1.0, 1.0)
TRUNK = """
[[layer]]
type = "dense"
units = 6
activation = "{last}"

[[layer]]
type = "{end}"
"""
KIND = """
[[head]]
name = "kind"
label = 0
weight = {kind}
class_weights = [1, 2, 0.5]
label_smoothing = 0.1

[[head.layer]]
type = "{first}"

[[head.layer]]
type = "dense"
units = 4
activation = "tanh"

[[head.layer]]
type = "dense"
"""
PRICE = """
[[head]]
name = "price"
label = [1, 2]
weight = {price}
"""
ODD = """
[[head]]
name = "odd"
label = 3
loss = "binary_cross_entropy"
weight = {odd}

[[head.layer]]
type = "layer_norm"

[[head.layer]]
type = "dense"
"""
LEARNT = {
    "kind": Learnt("kind", (0,), ("0",), 3, ("0", "1", "2")),
    "price": Learnt("price", (1, 2), ("1", "2"), 2, (), UNIT),
    "odd": Learnt("odd", (3,), ("3",), 2, ("0", "1")),
}


class Data(NamedTuple):
    x: Any
    y: Any
    heads: tuple[Learnt, ...] = ()
    n_outputs: int = 0

    test_x = val_x = property(lambda self: self.x[:0])
    test_y = val_y = property(lambda self: self.y[:0])


def data(*names: str) -> Data:
    """Return rows with the columns of y that the heads learn, one after the other."""
    random = np.random.default_rng(0)
    x = random.standard_normal((M, 5))
    y = np.stack([np.arange(M) % 3, random.standard_normal(M), random.standard_normal(M), np.arange(M) % 2], axis=1)
    columns = [column for name in names for column in LEARNT[name].columns]
    heads = tuple(LEARNT[name]._replace(columns=tuple(map(columns.index, LEARNT[name].columns))) for name in names)
    return Data(x, y[:, columns].copy(), heads)


def text(*names: str, first: str = "dropout", last: str = "tanh", end: str = "layer_norm", **weights: float) -> str:
    weights = {"kind": 1.0, "price": 0.3, "odd": 2.0} | weights
    return (TRUNK + "".join({"kind": KIND, "price": PRICE, "odd": ODD}[name] for name in names)).format(first=first, last=last, end=end, **weights)


def net_of(*names: str, backend: Any = BACKENDS[1], dtype: str = "float64", **how: Any) -> Any:
    job = Job(model="net.toml", dtype=dtype)
    return for_data(job, layers_of(job, text(*names, **how)), data(*names), backend)


def step_of(net: Any, given: Data, w: Any) -> Any:
    step = net.bind(M, w, np.full(net.n_params, np.nan, net.dtype))
    step.x[...], step.ids[...], step.salt[0] = given.x, np.arange(M) * 7 + 3, 99
    step.load(given.y, np.arange(M))
    return step


def differences(net: Any, given: Data, w: Any, h: float = 1e-6) -> Any:
    found = np.empty_like(w)
    for i in range(w.size):
        up, down = w.copy(), w.copy()
        up[i] += h
        down[i] -= h
        found[i] = 0.25 * (step_of(net, given, up).run(0.25) - step_of(net, given, down).run(0.25)) / (2 * h)
    return found


def moved(net: Any) -> Any:
    return net.init(3) + np.random.default_rng(1).standard_normal(net.n_params).astype(net.dtype) * net.dtype.type(0.1)


@both
@pytest.mark.parametrize("first", ["dropout", "layer_norm"])
@pytest.mark.parametrize("names", [("kind", "price"), ("price", "kind", "odd"), ("odd", "kind")], ids="+".join)
def test_the_whole_gradient_equals_finite_differences(names: tuple[str, ...], first: str, backend: Any) -> None:
    net, given = net_of(*names, backend=backend, first=first, end="dropout" if first == "dropout" else "layer_norm"), data(*names)
    w = moved(net)
    step = step_of(net, given, w)
    step.run(0.25)
    np.testing.assert_allclose(step.g, differences(net, given, w), rtol=1e-6, atol=1e-8)


def test_finite_differences_catch_a_head_that_is_not_added_to_the_trunk() -> None:
    net, given = net_of("kind", "price"), data("kind", "price")
    w = moved(net)
    step = step_of(net, given, w)
    assert sum(function is net.backend.add for function, _ in step._backward) == 1
    step._backward = tuple(thunk for thunk in step._backward if thunk[0] is not net.backend.add)
    step.run(0.25)
    assert not np.allclose(step.g, differences(net, given, w), rtol=1e-3)


@both
def test_loss_and_gradient_of_the_trunk_are_weighted_sums_over_the_heads(backend: Any) -> None:
    """Each head by itself, the weights of others 0, has the same parameters."""
    names, weights = ("kind", "price", "odd"), {"kind": 0.5, "price": 3.0, "odd": 1.25}
    given = data(*names)
    net = net_of(*names, backend=backend, **weights)
    w = moved(net)
    step = step_of(net, given, w)
    loss = step.run(0.25)
    alone = []
    for name in names:
        one = net_of(*names, backend=backend, **{other: float(other == name) for other in names})
        only = step_of(one, given, w)
        alone.append((weights[name] * only.run(0.25), weights[name] * only.g))
    assert loss == pytest.approx(sum(of for of, _ in alone), rel=1e-12)
    np.testing.assert_allclose(step.g, sum(g for _, g in alone), rtol=1e-11, atol=1e-13)
    assert not np.allclose(step.g, sum(g / weights[name] for name, (_, g) in zip(names, alone, strict=True)), rtol=1e-2), "weights that are left out are seen"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_head_is_the_net_without_heads_to_the_last_bit(dtype: str) -> None:
    given = Data(data().x, np.arange(M) % 3, (), 3)
    one = Job(model="net.toml", dtype=dtype)
    chain = TRUNK + "\n[[layer]]" + "\n[[layer]]".join(KIND.split("[[head.layer]]")[1:])
    plain = chain.format(first="dropout", last="tanh", end="layer_norm")
    nets = [
        for_data(one, layers_of(one, text("kind")), given, BACKENDS[1]),
        for_data(Job(model="net.toml", dtype=dtype, class_weights="1,2,0.5", label_smoothing=0.1), layers_of(one, plain), given, BACKENDS[1]),
    ]
    found = []
    for net in nets:
        step = step_of(net, given, moved(net))
        found.append((list(net.params.shapes), step.run(1 / M), step.g.tobytes(), net.predict(step.w, given.x).tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_head_beside_one_of_weight_0_has_the_bits_of_the_head_alone(dtype: str) -> None:
    given = data("kind", "price")
    two = net_of("kind", "price", dtype=dtype, price=0.0)
    job = Job(model="net.toml", dtype=dtype)
    one = for_data(job, layers_of(job, text("kind")), Data(given.x, given.y[:, 0].astype(np.int64), (), 3), BACKENDS[1])
    w, n = two.init(5), one.n_params
    assert np.array_equal(w[:n], one.init(5)), "parameters and their initial values come trunk first, then head by head"
    pair, alone = step_of(two, given, w), step_of(one, Data(given.x, given.y[:, 0].astype(np.int64)), w[:n].copy())
    assert pair.run(0.25) == alone.run(0.25)
    assert np.array_equal(pair.g[:n], alone.g) and not pair.g[n:].any()
    other = net_of("kind", "price", dtype=dtype, price=1e-3)
    broken = step_of(other, given, w)
    broken.run(0.25)
    assert not np.array_equal(broken.g[:n], alone.g)


def test_ranges_tile_the_gradient_from_the_end_and_are_final_when_reported() -> None:
    names = ("kind", "price", "odd")
    net, given = net_of(*names), data(*names)
    step = step_of(net, given, moved(net))
    assert_final_when_reported(net, step, step.run)
    assert list(net.params.shapes)[-1].startswith("heads.odd.") and next(iter(net.params.shapes)) == "layers.0.weight"

    def before_the_other_heads(scale: float, progress: Any) -> None:
        """Go from the last head straight to the trunk, then to the others, as if their gradients were not added to it."""
        n_last, end = len(net.heads[-1].layers), net.params.slices["heads.kind.0.weight"].start
        for group in step.forward:
            for function, arguments in group.thunks:
                function(*arguments)
        step.lose(scale)
        rest = step.backward[n_last:]
        for group in [*step.backward[:n_last], *(of for of in rest if 0 < of.hi <= end), *(of for of in rest if not 0 < of.hi <= end)]:
            for function, arguments in group.thunks:
                function(*arguments)
            progress(group.lo, group.hi)

    with pytest.raises(AssertionError):
        assert_final_when_reported(net, step, before_the_other_heads)


def test_scores_and_outputs_of_all_heads_are_those_of_a_run_without_dropout() -> None:
    names = ("kind", "price", "odd")
    net, given = net_of(*names, first="layer_norm"), data(*names)
    w = moved(net)
    step = step_of(net, given, w)
    total, _ = net.score(w, given.x, given.y, 4)
    assert total == pytest.approx(step.run(1.0), rel=1e-12)
    outputs = net.predict(w, given.x, 4)
    assert outputs.shape == (M, 3 + 2 + 1)
    price = 0.5 * np.square(net.heads[1].cut(outputs) - given.y[:, 1:3]).sum()
    each = net.scored(w, given.x, given.y, M)[0]
    assert each[1] == (pytest.approx(price, rel=1e-12), 0)
    assert each[0][1] == (net.heads[0].cut(outputs).argmax(axis=1) == given.y[:, 0]).sum()
    assert each[2][1] == ((outputs[:, 5] > 0) == (given.y[:, 3] == 1)).sum()
    again = copy.deepcopy(net)
    assert np.array_equal(again.predict(w, given.x, 4), outputs) and again.n_params == net.n_params


def test_fewer_rows_in_the_memory_of_more_have_the_same_bits() -> None:
    names = ("kind", "price")
    given = data(*names)
    found = []
    for net in (net_of(*names), net_of(*names)):
        w, g = moved(net), np.empty(net.n_params)
        if found:
            net.bind(3 * M, w, g)
        step = step_of(net, given, w)
        found.append((step.run(0.25), step.g.tobytes()))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (TRUNK + "[[head]]\nlabel = 0", "net.toml: head 1: name is missing; give a word of letters"),
        (TRUNK + '[[head]]\nname = "a.b"', "name is 'a.b'; give a word"),
        (TRUNK + '[[head]]\nname = "a"\n[[head]]\nname = "b"\nlabel = 0', "head 1 ('a'): label is missing; name the column(s)"),
        (TRUNK + '[[head]]\nname = "a"\nlabel = 0\n[[head]]\nname = "a"\nlabel = 1', "heads 1 and 2 are both named 'a'"),
        (TRUNK + '[[head]]\nname = "a"\nlabel = [0, 1]\n[[head]]\nname = "b"\nlabel = 1', "heads 'a' and 'b' both learn 1"),
        (TRUNK + '[[head]]\nname = "a"\nlabel = 0.5', "label = 0.5 is no column"),
        (TRUNK + '[[head]]\nname = "a"\nweigth = 0.5', "there is no key 'weigth'; known: class_weights, label, label_smoothing, layer, loss, name, weight; did"),
        (TRUNK + '[[head]]\nname = "a"\nweight = -1', "weight = -1 is not a number from 0 up"),
        (TRUNK + '[[head]]\nname = "a"\nweight = 2', "weight = 2 does nothing but scale the one loss there is"),
        (TRUNK + '[[head]]\nname = "a"\nlabel = 0\nweight = 0\n[[head]]\nname = "b"\nlabel = 1\nweight = 0', "the weights of all heads are 0"),
        (TRUNK + '[[head]]\nname = "a"\n[[head.layer]]\ntype = "dens"', "head 1 ('a'): layer 1: there is no type 'dens'; known: "),
        (TRUNK + '[[head]]\nname = "a"\nlayer = []', "head 1 ('a'): lists no layers; open each by a line [[head.layer]]"),
        ('[[head]]\nname = "a"', "lists no layers; open each by a line [[layer]]"),
    ],
)
def test_a_head_that_cannot_be_is_one_line(given: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        parse(given.replace("{last}", "tanh").replace("{end}", "layer_norm"), "net.toml")
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": "hinge"}, "--loss hinge: does nothing beside --model net.toml, where each head says what it learns and how"),
        ({"label": "kind"}, "--label kind: does nothing"),
        ({"task": "regress"}, "--task regress: does nothing"),
        ({"class_weights": "balanced"}, "--class-weights balanced: does nothing"),
    ],
)
def test_what_a_head_says_is_no_flag(changes: dict[str, str], says: str) -> None:
    job = Job(model="net.toml", **changes)
    with pytest.raises(UserError) as error:
        for_data(job, layers_of(job, text("kind", "price")), data("kind", "price"), BACKENDS[1])
    assert says in str(error.value)


def test_a_loss_that_does_not_fit_what_its_head_learns_is_one_line() -> None:
    job = Job(model="net.toml")
    for key, says in (("hinge", "head 'price', loss = 'hinge': takes class labels, the targets are amounts"), ("binary_cross_entropy", "targets are amounts")):
        with pytest.raises(UserError, match=says):
            for_data(job, layers_of(job, text("kind", "price") + f'loss = "{key}"\n'), data("kind", "price"), BACKENDS[1])
    with pytest.raises(UserError, match=r"head 'kind', loss = 'hinge': --label-smoothing: does nothing"):
        for_data(job, layers_of(job, text("price", "kind").replace("label_smoothing", 'loss = "hinge"\nlabel_smoothing')), data("price", "kind"), BACKENDS[1])
