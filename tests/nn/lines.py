"""Run ranks of a line as threads of one process, chains of layers without a network around them, and networks to cut."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import mpidml_kernels
import numpy as np

from mpidml.core.partition import weighted_cut
from mpidml.nn.layers.base import Pass
from mpidml.nn.layers.dense import ACTIVATIONS, Dense
from mpidml.nn.layers.dropout import Dropout
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.layers.layer_norm import LayerNorm
from mpidml.nn.losses.base import make_loss
from mpidml.nn.models import connect
from mpidml.nn.split.ways import GIVES_PART, possible

BACKENDS = [mpidml_kernels.backend("numpy"), mpidml_kernels.backend("numba")]
BACKENDS[1].load(mpidml_kernels.split)  # before there are threads
LINES = [(1,), (1, 1), (3, 1), (0, 1), (1, 2, 1), (1, 0, 5), (1, 1, 1, 1, 1), (2, 0, 1, 0.3, 4)]
"""Weights of lines of 1, 2, 3 and 5 ranks, some with nothing."""


class ThreadLine:
    """One rank of several threads; sums go in rank order, and ranks that sum other buffers, or in another order, are found."""

    def __init__(self, rank, weights, meeting):
        self.rank, self.size, self.weights, self.meeting = rank, len(weights), weights, meeting
        self.n_planned = 0

    def edges(self, n):
        return weighted_cut(n, self.weights)

    def sum(self, buffer):
        return self._call(buffer, lambda given: np.sum(given, axis=0))

    def most(self, buffer):
        return self._call(buffer, lambda given: np.max(given, axis=0))

    def _call(self, buffer, joined):
        assert buffer.ndim == 1 and buffer.flags.c_contiguous
        self.n_planned += 1
        number, meeting = self.n_planned, self.meeting

        def run():
            meeting.given[self.rank] = number, buffer.dtype, buffer.copy()
            meeting.barrier.wait()
            assert len({(k, dtype, len(values)) for k, dtype, values in meeting.given}) == 1, "every rank calls the same sums"
            total = joined([values for *_, values in meeting.given])
            meeting.barrier.wait()
            buffer[...] = total

        return run


class MuteLine(ThreadLine):
    """A rank that is alone with its parts: its sums leave its own terms."""

    def __init__(self, rank, weights):
        super().__init__(rank, weights, None)

    def _call(self, buffer, joined):
        return _nothing


def _nothing():
    pass


def on_ranks(weights, body):
    """Call body(line) on a thread for each weight, and return what each returns; the first error of any ends all, and so does a wait of 20 s."""
    meeting = SimpleNamespace(barrier=threading.Barrier(len(weights), timeout=20), given=[None] * len(weights))
    found, errors, broken = [None] * len(weights), [], []

    def run(rank):
        try:
            found[rank] = body(ThreadLine(rank, weights, meeting))
        except threading.BrokenBarrierError:
            broken.append(rank)
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(weights))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    assert not broken, f"ranks {broken} of {len(weights)} wait for a sum that others do not call"
    return found


def connected(layers, n_in, n_outputs=None):
    """Connect a chain; the last layer gets n_outputs."""
    for i, layer in enumerate(layers):
        n_in = layer.connect(i, n_in, n_outputs if i + 1 == len(layers) else None)
    return layers


class Bound:
    """A chain's calls for m rows: `split` of mpidml.nn.split, weights and gradient flat and local. Fill x, y, d, then run."""

    def __init__(self, split, w, m, backend, read=None):
        layers, dtype = split.layers, w.dtype
        self.split, self.w, self.g = split, w, np.full_like(w, np.nan)
        self.x = np.zeros((m, layers[0].n_in), dtype)
        self.ids, self.salt = np.arange(m) * 13 + 5, np.array([99], np.uint64)
        self.y = np.zeros(m, np.int64) if read is None else read
        self.outputs = [np.zeros((m, layer.n_out), dtype) for layer in layers]
        layout = split.layout()
        parameters, gradients = layout.views(w), layout.views(self.g)
        kept = [layer.kept(m, dtype) for layer in layers]
        self.forward, self.backward = [], []
        for i, layer in enumerate(layers):
            a = Pass(self.outputs[i - 1] if i else self.x, self.outputs[i], kept[i], parameters[i], ids=self.ids, salt=self.salt)
            self.forward += layer.forward(backend, a)
        self.lose = split.loss.bind(backend, self.outputs[-1], self.y) if split.loss else None
        self.d = d = self.outputs[-1] if split.loss else np.zeros_like(self.outputs[-1])  # where the loss leaves the gradient
        for i in reversed(range(len(layers))):
            x = self.outputs[i - 1] if i else self.x
            wanted = i > split.first
            dx = None if not wanted else d if layers[i].in_place else np.zeros_like(x)
            a = Pass(x, self.outputs[i], kept[i], parameters[i], d, dx, gradients[i], self.ids, self.salt)
            if i >= split.first:
                for group in layers[i].backward(backend, a):
                    self.backward += group.thunks
            d = dx
        self.dx = d

    def run(self, scale=1.0, d=None):
        """Run forward, the loss or the given gradient, and backward; return (loss, a copy of the output)."""
        for function, arguments in self.forward:
            function(*arguments)
        out = self.outputs[-1].copy()
        loss = self.lose(scale) if self.lose else 0.0
        if d is not None:
            self.d[...] = d
        for function, arguments in self.backward:
            function(*arguments)
        return loss, out


def case(name):
    """Return (layers, loss, features, outputs, ways or None) of a network by name."""
    plain, smoothed = make_loss("cross_entropy"), make_loss("cross_entropy", np.linspace(0.5, 2, 5), 0.1)
    return {
        "pair": ([Dense(9, "gelu"), Dense()], make_loss("squared_error"), 6, 3, None),
        "mlp": ([Dense(9, "relu"), Dropout(0.3), Dense(8, "softplus"), Dropout(0.3), Dense(7, "gelu"), Dropout(0.3), Dense()], plain, 6, 5, None),
        "softmax": ([Dense()], plain, 6, 5, ["columns"]),
        "weighted": ([Dense(8, "tanh"), Dense()], smoothed, 6, 5, ["slices", "columns"]),
        "tail": ([Dense(8, "tanh"), Dropout(0.3), Dense(7, "gelu"), Dense()], smoothed, 6, 5, ["columns", "part", "rows", "columns"]),
        "norm": ([Dense(9, "tanh"), LayerNorm(), Dropout(0.3), Dense(8, "relu"), Dense(6, "sigmoid"), LayerNorm(), Dense()], plain, 6, 5, None),
        "embedding": ([Embedding([0], 3, 4), Dense(9, "leaky_relu"), Dense()], make_loss("huber"), 6, 3, None),
        "whole": ([Dense(9, "tanh"), Dense()], make_loss("hinge"), 6, 3, ["whole", "slices"]),
        "binary": ([Dense(9, "tanh"), Dropout(0.5), Dense()], make_loss("binary_cross_entropy"), 6, 3, None),
    }[name]


CASES = ("pair", "mlp", "softmax", "weighted", "tail", "norm", "embedding", "whole", "binary")
def data_of(net, m, seed=0):
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((m, net.n_features)), random.integers(0, net.n_outputs, m)
    x[:, 0] = random.integers(0, 4, m)
    return x, y


def whole_of(name, backend=BACKENDS[1], dtype="float64"):
    layers, loss, n_features, n_outputs, ways = case(name)
    return connect(layers, "test", n_features, n_outputs, loss, dtype, backend), ways


def random_chain(random):
    """Draw layers, whose last is dense, and a loss."""
    layers = []
    for _ in range(random.integers(0, 4)):
        layers.append(Dense(int(random.integers(1, 9)), str(random.choice(ACTIVATIONS))))
        layers += [Dropout(0.3)] * (random.random() < 0.4) + [LayerNorm()] * (random.random() < 0.2)
    return [*layers, Dense()], make_loss(str(random.choice(["cross_entropy", "squared_error"])))


def ways_of(layers, loss):
    """List all ways that fit."""
    chains = [()]
    for layer in layers:
        chains = [(*chain, way) for chain in chains for way in possible(layer, bool(chain) and chain[-1] in GIVES_PART)]
    return [chain for chain in chains if chain[-1] not in GIVES_PART or loss.kernel == "softmax_xent"]
