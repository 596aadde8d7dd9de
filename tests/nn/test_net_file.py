"""A net file lists layers: what it means, what an embedding does with codes, and errors that name file, layer, key and the nearest known one."""

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.nn.models import build, categories, for_data, layers_of
from mpidml.nn.net_file import parse
from tests.nn.test_losses import Data

BACKEND = mpidml_kernels.backend("numba")
MLP = """
[[layer]]
type = "dense"
units = 6
activation = "tanh"

[[layer]]
type = "dropout"
rate = 0.4

[[layer]]
type = "dense"
"""
EMBEDDED = """
[[layer]]
type = "embedding"
columns = [1, 3]
units = 2

[[layer]]
type = "dense"
"""


def codes(n=9):
    random = np.random.default_rng(0)
    x = random.standard_normal((n, 4))
    x[:, 1], x[:, 3] = np.arange(n) % 3, np.arange(n) % 5
    return Data(x, np.arange(n) % 2, x[:4].copy(), np.arange(4) % 2, 2)


def net_for(text, data, **changes):
    job = Job(**{"model": "net.toml", "dtype": "float64", **changes})
    return for_data(job, layers_of(job, text), data, BACKEND)


def test_the_short_form_and_the_same_net_in_a_file_are_one_net():
    short = build("mlp", 4, 2, (6,), "tanh", 0.4, dtype="float64", backend=BACKEND)
    net = net_for(MLP, codes())
    assert net.params.shapes == short.params.shapes and np.array_equal(net.init(3), short.init(3))
    data, losses = codes(), []
    for one in (net, short):
        w = one.init(3)
        step = one.bind(9, w, np.empty_like(w))
        step.x[...], step.y[...] = data.x, data.y
        losses.append((step.run(1.0), *step.g))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", plugins.names("mpidml.nn.layers"))
def test_every_layer_can_be_listed_by_its_file_name(name):
    columns = "columns = [1]" if name == "embedding" else ""
    text = f'[[layer]]\ntype = "{name}"\n{columns}\n' + ("units = 3\n" if name == "dense" else "") + '[[layer]]\ntype = "dense"\n'
    assert net_for(text, codes()).n_outputs == 2


def test_a_layer_of_your_own_is_a_path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from mpidml.nn.layers.dropout import Dropout\nclass Mine(Dropout):\n    pass\n")
    net = net_for(f'[[layer]]\ntype = "{path}"\nrate = 0.25\n[[layer]]\ntype = "dense"\n', codes())
    assert net.layers[0].rate == 0.25 and net.random


def test_an_embedded_column_has_a_row_for_each_code_and_the_others_pass():
    data = codes()
    net = net_for(EMBEDDED, data)
    assert net.params.shapes["layers.0.table"] == (3 + 5, 2) and net.layers[1].n_in == 2 + 2 * 2
    w = net.init(0)
    table, weight = net.params.view(w, "layers.0.table"), net.params.view(w, "layers.1.weight")
    hidden = np.hstack([data.x[:, [0, 2]], table[data.x[:, 1].astype(int)], table[3 + data.x[:, 3].astype(int)]])
    np.testing.assert_allclose(net.predict(w, data.x, 4), hidden @ weight, rtol=1e-12)
    shared = np.hstack([data.x[:, [0, 2]], table[data.x[:, 1].astype(int)], table[data.x[:, 3].astype(int)]])  # broken: columns share rows
    assert not np.allclose(net.predict(w, data.x, 4), shared @ weight)


def test_codes_that_only_test_rows_hold_have_rows_too_and_a_number_of_rows_can_be_given():
    data = codes()
    data.test_x[0, 1] = 6
    assert net_for(EMBEDDED, data).params.shapes["layers.0.table"] == (7 + 5, 2)
    assert net_for(EMBEDDED.replace("units = 2", "units = 2\nrows = 10"), data).params.shapes["layers.0.table"] == (20, 2)


def test_categories_are_the_columns_of_the_embedding():
    assert categories(parse(EMBEDDED, "net.toml")) == (1, 3) and categories(parse(MLP, "net.toml")) == ()


def test_an_embedding_learns_what_no_number_could():
    data = codes(60)
    y = (np.isin(data.x[:, 3], (0, 2, 4))).astype(np.int64)  # every other code: no line through the numbers tells them apart
    net = net_for(EMBEDDED, data._replace(y=y))
    w = net.init(0)
    step = net.bind(60, w, np.empty_like(w))
    step.x[...], step.y[...] = data.x, y
    for _ in range(300):
        step.run(1 / 60)
        w -= 0.5 * step.g
    assert net.score(w, data.x, y)[1] == 60


def altered(column, value, row=7):
    data = codes()
    data.x[row, column] = value
    return data


DENSE = '[[layer]]\ntype = "dense"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("layer = ", "net.toml: cannot be read as TOML ("),
        ('[[layers]]\ntype = "dense"', "net.toml: there is no key 'layers'; known: head, layer; did you mean 'layer'?"),
        ('[layer]\ntype = "dense"', "net.toml: lists no layers; open each by a line [[layer]]"),
        ("layer = [1]", "net.toml: lists no layers; open each by a line [[layer]]"),
        ("[[layer]]\nunits = 3", "net.toml: layer 1: type is missing; known: dense, dropout, embedding, layer_norm"),
        (DENSE + "units = 3\n[[layer]]\ntype = 3", "net.toml: layer 2: type is 3; known: "),
        (DENSE + 'units = 3\n[[layer]]\ntype = "dens"', "net.toml: layer 2: there is no type 'dens'; known: dense, dropout, embedding, layer_norm; did you mean 'dense'?"),
        (DENSE + "unit = 3", "net.toml: layer 1 (dense): there is no key 'unit'; known: activation, units; did you mean 'units'?"),
        (DENSE + 'activation = "rely"', "net.toml: layer 1 (dense): activation: there is no 'rely'; known: gelu, "),
        (DENSE + "units = 2.5", "net.toml: layer 1 (dense): units = 2.5 is not a whole number from 1 up"),
        (DENSE + 'units = "many"', "units = 'many' is not a whole number"),
        (DENSE + "units = true", "units = True is not a whole number"),
        ('[[layer]]\ntype = "dropout"\nrate = 1', "net.toml: layer 1 (dropout): rate 1 is not in [0, 1)"),
        ('[[layer]]\ntype = "layer_norm"\neps = 0', "net.toml: layer 1 (layer_norm): eps = 0 is not a positive number"),
        ('[[layer]]\ntype = "embedding"', "net.toml: layer 1 (embedding): key 'columns' is missing"),
        ('[[layer]]\ntype = "embedding"\ncolumns = 3', "columns = 3 names no columns; give a list"),
        ('[[layer]]\ntype = "embedding"\ncolumns = [1, 1]', "columns = [1, 1] names a column twice"),
    ],
)
def test_a_file_that_lists_no_layers_is_one_line(text, says):
    with pytest.raises(UserError) as error:
        parse(text, "net.toml")
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "data", "says"),
    [
        (DENSE + DENSE, codes(), "--model net.toml: layer 1 (dense): units: is missing, and only the last layer takes"),
        (DENSE + "units = 5", codes(), "layer 1 (dense): units = 5: the data and the loss have 2 output(s)"),
        (DENSE + 'activation = "relu"', codes(), "layer 1 (dense): activation = 'relu': a loss takes the last layer's sums"),
        ('[[layer]]\ntype = "dropout"', codes(), "layer 1 (dropout): cannot be the last layer"),
        (DENSE + 'units = 3\n[[layer]]\ntype = "embedding"\ncolumns = [0]\nrows = 3\n' + DENSE, codes(), "layer 2 (embedding): must be the first layer"),
        (EMBEDDED, altered(1, 0.5), "layer 1 (embedding): column 1 holds 0.5 in row 7, which is no code"),
        (EMBEDDED, altered(3, -1), "column 3 holds -1 in row 7"),
        (EMBEDDED, altered(3, 2.0**40), "column 3 holds 1.09951e+12 in row 7"),
        (EMBEDDED.replace("units = 2", "rows = 4"), codes(), "column 3 holds 4 in row 4, which is no code from 0 to 3"),
        (EMBEDDED.replace("[1, 3]", "[1, 4]"), codes(), "column 4: the data have 4 columns; name columns from 0 to 3"),
    ],
)
def test_a_layer_that_does_not_fit_is_one_line(text, data, says):
    with pytest.raises(UserError) as error:
        net_for(text, data)
    assert says in str(error.value) and str(error.value).startswith("--model net.toml: layer") and "\n" not in str(error.value)
