"""Hold what layers are said to cost to what they are."""

import pytest

from mpidml.core.slowdown import Slowdown
from mpidml.nn.models import build
from mpidml.nn.stage import Stage
from mpidml.runtime import profiling, slowness
from mpidml.runtime.profiling import counted, profiles
from mpidml.runtime.slowness import Slowness


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
