"""Hold what layers are said to cost to what they are."""

import importlib
import os
from itertools import pairwise

import numpy as np
import pytest

from mpidml.core.slowdown import Slowdown
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.losses.cross_entropy import CrossEntropy
from mpidml.nn.models import build
from mpidml.nn.network import Network, kernels
from mpidml.nn.stage import Stage
from mpidml.runtime import profiling, slowness
from mpidml.runtime.profiling import counted, profiles
from mpidml.runtime.slowness import Slowness
from tests.changed import changed

plan = importlib.import_module("mpidml.plan")  # whose function is called like it


@pytest.mark.parametrize("measure", [profiles, counted])
def test_each_layer_has_its_bytes_and_some_cost(measure):
    net = build("mlp", 30, 4, (20, 10), dtype="float64", backend="numpy")
    found = measure(net, 6)
    assert [each.parameter_nbytes for each in found] == [8 * (30 * 20 + 20), 8 * (20 * 10 + 10), 8 * (10 * 4 + 4)]
    assert [each.activation_nbytes for each in found] == [8 * 6 * width for width in (20, 10, 4)]
    assert all(each.forward_seconds > 0 and each.backward_seconds > 0 for each in found)


def test_counts_are_operations_and_alike_each_time():
    net = build("mlp", 30, 4, (20, 10), dtype="float64", backend="numpy")
    assert counted(net, 6) == counted(net, 6)
    sizes = [30 * 20, 20 * 10, 10 * 4]
    ratios = [(each.forward_seconds + each.backward_seconds) / size for each, size in zip(counted(net, 6), sizes, strict=True)]
    assert 0.5 < ratios[0] / ratios[1] < 0.8  # nobody wants the gradient of the rows: two products, not three


class Clock:
    """Time that passes in passes, 0.2 ms forward and 0.4 ms back, and in sleeps, each 1.5 ms too long: more than all that is owed for a layer."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for module, name in ((profiling, "cpu_now"), (profiling, "clock_now"), (slowness, "clock_now")):
            monkeypatch.setattr(module, name, lambda: self.now)
        monkeypatch.setattr(slowness.time, "sleep", lambda seconds: self.passes(seconds + 1.5e-3))
        bind = Stage.bind

        def timed(stage, *rest):
            step = bind(stage, *rest)
            step.go, step.go_back = lambda: self.passes(0.2e-3), lambda: self.passes(0.4e-3)
            return step

        monkeypatch.setattr(Stage, "bind", timed)

    def passes(self, seconds):
        self.now += seconds


def slow_seconds(monkeypatch):
    """Return what each layer and way is said to cost a rank that is three times as slow."""
    Clock(monkeypatch)
    found = profiles(build("mlp", 30, 4, (20, 20, 10), dtype="float64", backend="numpy"), 6, Slowness(Slowdown("permanent:3", 2, 0), 0))
    return [(each.forward_seconds, each.backward_seconds) for each in found]


def test_each_layer_of_a_slowed_rank_costs_as_many_times_more_however_badly_sleeps_keep_their_time(monkeypatch):
    assert slow_seconds(monkeypatch) == [(pytest.approx(3 * 0.2e-3), pytest.approx(3 * 0.4e-3))] * 4


def test_the_check_catches_layers_that_are_charged_with_sleeps_and_not_with_what_they_owe(monkeypatch):
    end = Slowness.end

    def forgetful(self):
        end(self)
        self.owed_seconds = 0.0

    monkeypatch.setattr(Slowness, "end", forgetful)
    assert slow_seconds(monkeypatch) != [(pytest.approx(3 * 0.2e-3), pytest.approx(3 * 0.4e-3))] * 4


class Alone:
    """A rank whose times nobody else's are compared with."""

    size = 1

    def __init__(self, rank):
        self.rank = rank

    def Barrier(self):
        """Wait for nobody."""

    def allgather(self, value):
        return [value]


def paces(monkeypatch, text):
    """Return how many times as long each of three ranks is found to take."""
    Clock(monkeypatch)
    net = build("mlp", 30, 4, (20, 20, 10), dtype="float64", backend="numpy")
    each = [profiling.of_all(Alone(rank), net, 6, Slowdown(text, 3, 0))[0] for rank in range(3)]
    return [sum(layer.forward_seconds + layer.backward_seconds for layer in of) / (len(of) * 0.6e-3) for of in each]


def test_ranks_that_are_slow_in_turn_are_found_equally_fast_and_one_that_always_is_is_not(monkeypatch):
    """What is measured before the first clock decides the cut of the whole run."""
    assert paces(monkeypatch, "rotating:3") == pytest.approx([1, 1, 1])
    assert paces(monkeypatch, "permanent:3") == pytest.approx([3, 1, 1])


def test_the_check_catches_ranks_that_are_measured_in_the_first_one_s_turn(monkeypatch):
    monkeypatch.setattr(Slowdown, "lasting", lambda self: self)
    assert paces(monkeypatch, "rotating:3") == pytest.approx([3, 1, 1])


# ---- what is read is in memory, not one page of zeros that any cache holds


def resident_nbytes():
    """Return the bytes of this process that are in memory of their own: pages that were read alone, and never written, are none."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def table(n_rows=1 << 20, units=16):
    """Return a network whose first layer is a table of 64 MB, which no allocator has at hand from before."""
    return Network([Embedding([0, 2], units, n_rows // 2), Dense(2)], 3, 2, CrossEntropy(), np.float32, kernels("numpy"))


def grown(monkeypatch, module):
    """Return by how much the weights of a table, and all that is written before the first pass over it, make the process larger, and their bytes."""
    bind, before, found = Stage.bind, resident_nbytes(), []

    def looked(stage, rows, w, *rest):
        found.append((resident_nbytes() - before, w.nbytes))
        return bind(stage, rows, w, *rest)

    monkeypatch.setattr(Stage, "bind", looked)
    module.profiles(table(), 8)
    return found[0]


def test_layers_are_measured_on_weights_that_are_in_memory(monkeypatch):
    nbytes, due = grown(monkeypatch, profiling)
    assert due == 1 << 26 and nbytes > 0.9 * due


def test_the_check_catches_weights_that_are_one_page_of_zeros(monkeypatch):
    wrong = changed(profiling, [("written(stage.n_params, dtype)", "np.zeros(stage.n_params, dtype)")])
    nbytes, due = grown(monkeypatch, wrong)
    assert nbytes < 0.1 * due


class Still:
    """An optimizer that changes nothing, and tells how large the process is by the time its first update is done."""

    def init(self, n, dtype):
        return {}

    def apply(self, backend, w, old, g, state, step):
        self.nbytes, self.due = resident_nbytes(), w.nbytes + g.nbytes


def updated(module):
    """Return by how much the measurement of an update makes the process larger before it, and the bytes of weights and gradient."""
    net, before, optimizer = table(), resident_nbytes(), Still()
    module._update_seconds(net, optimizer)
    return optimizer.nbytes - before, optimizer.due


def test_updates_are_measured_on_gradients_that_are_in_memory():
    nbytes, due = updated(plan)
    assert nbytes > 0.9 * due


def test_the_check_catches_gradients_that_are_one_page_of_zeros():
    given = "from mpidml.runtime.profiling import counted, profiles"
    nbytes, due = updated(changed(plan, [(f"{given}, written", f"{given}\nfrom numpy import zeros as written")]))
    assert nbytes < 0.6 * due


def looked_up(monkeypatch, module):
    """Return of each pass over a table of 500 rows a column the codes of its rows."""
    bind, found = Stage.bind, []

    def watched(stage, *rest):
        step = bind(stage, *rest)
        if stage.is_first:
            go = step.go
            step.go = lambda: (found.append(step.x[:, [0, 2]].copy()), go())
        return step

    monkeypatch.setattr(Stage, "bind", watched)
    module.profiles(table(1000), 200)
    return found


def spread(codes):
    """Tell whether codes are all over their column's rows, and other ones in each pass."""
    alike = any(np.array_equal(a, b) for a, b in pairwise(codes))
    return not alike and all(of.min() >= 0 and of.max() < 500 and len(np.unique(of[:, c])) > 100 for of in codes for c in (0, 1))


def test_a_table_is_looked_up_anywhere_and_elsewhere_in_each_pass(monkeypatch):
    assert spread(looked_up(monkeypatch, profiling))


@pytest.mark.parametrize("broken", ["draws.integers(1, size=rows)", "np.arange(rows) % n_codes"])
def test_the_check_catches_passes_over_one_row_or_over_the_same_ones(monkeypatch, broken):
    assert not spread(looked_up(monkeypatch, changed(profiling, [("draws.integers(n_codes, size=rows)", broken)])))
