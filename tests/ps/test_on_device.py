"""A store whose updates are made on a device is the store of the host: the same laws, values within rounding, and no copy that nobody asked for."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings

from mpidml.core.role import PUSH, Lease
from mpidml.optim.base import make_chain
from mpidml.ps import on_device, store
from mpidml.ps.store import Store
from mpidml.runtime.bands import Bands
from tests.changed import changed
from tests.ps import test_store
from tests.ps.test_store import BACKENDS, BLOCK, CHAIN, LO, PIECES, RATE, REPEATS, UPDATES, WHOLE, WIDTH, N, check_updates, in_pieces, message
from tests.shim import cupy_double
from tests.shim.devices import PLACES, device, over_the_double, placed

NUMPY = BACKENDS["numpy"]
OPTIMIZERS = ["sgd", "adam", "adamw", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta", "lion", "ftrl", "l1:0.1+sgd", "clamp:0.5+adam"]


def there(cls=Store):
    return partial(cls, kernels=device().kernels)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("n_versions", [1, 2, 3])
@settings(max_examples=10)
@given(updates=UPDATES)
@example(updates=[[WHOLE, WHOLE], [], [BLOCK], [BLOCK, (LO, LO + 1), BLOCK], [REPEATS, REPEATS, BLOCK], [WHOLE], [REPEATS, WHOLE, BLOCK]])
def test_an_update_there_is_the_one_by_hand(place, n_versions, updates):
    with placed(place):
        check_updates(there(), updates, CHAIN, n_versions)
        check_updates(there(), updates, None, n_versions)  # which adds rows, and that the host does


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("n_versions", [1, 2])
def test_changes_that_workers_make_are_added_there_and_leave_the_state_of_the_host(place, n_versions, monkeypatch):
    monkeypatch.setattr(test_store, "WIDTH", 1)
    updates = [[WHOLE, WHOLE], [], [BLOCK], [BLOCK, (LO, LO + 1), BLOCK], [REPEATS, REPEATS, BLOCK], [WHOLE]]
    updates += [[REPEATS, WHOLE, BLOCK], [(LO, LO + 2), (LO + 1, LO + 4)], [WHOLE]]
    with placed(place):
        check_updates(there(), updates, None, n_versions)
        mine, plain = (cls([np.ones(N)], LO, 1, NUMPY) for cls in (there(), Store))
        assert mine.device is not None
        for store_of in (mine, plain):
            store_of.apply([message(PUSH, WHOLE, Lease(np.arange(6.0))), message(PUSH, WHOLE, Lease(np.ones(6)))])
            store_of.apply([message(PUSH, BLOCK, Lease(np.ones(3)))])
        assert mine.state(0).keys() == plain.state(0).keys()
        assert (mine.at(mine.latest) == plain.at(plain.latest)).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("chain", OPTIMIZERS)
@pytest.mark.parametrize("pieces", [[WHOLE], *PIECES[:2]], ids=str)
def test_every_optimizer_leaves_what_it_leaves_on_the_host(place, chain, pieces):
    with placed(place):
        for a, b in zip(in_pieces(there(), chain, pieces), in_pieces(Store, chain, [WHOLE]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def steps(of, n=3):
    for step in range(1, n + 1):
        of.step(step * np.linspace(-1, 2, N * WIDTH))
    return of


@pytest.mark.parametrize("place", PLACES)
def test_what_is_put_and_restored_on_the_host_is_gone_on_from(place):
    with placed(place):
        mine, plain = (steps(cls([np.ones(N * WIDTH), np.ones(N * WIDTH)], LO, WIDTH, NUMPY, make_chain("adam", RATE))) for cls in (there(), Store))
        saved = {name: array.copy() for name, array in mine.state(1).items()}
        assert saved.keys() == plain.state(1).keys()
        for again in (mine, plain):
            steps(again).put(np.full((N, WIDTH), 7.0))  # which is no new optimizer
        np.testing.assert_allclose(steps(mine).at(9), steps(plain).at(9), rtol=1e-12)

        def fill(name, out):
            if name in saved:
                out[...] = saved[name].reshape(out.shape)
            return name in saved

        other = there()([np.zeros(N * WIDTH), np.zeros(N * WIDTH)], LO, WIDTH, NUMPY, make_chain("adam", RATE))
        other.restore(3, fill)
        other.count(np.full(N, 3), fill)
        plain.restore(3, fill)
        plain.n_whole = 3
        np.testing.assert_allclose(steps(other).at(6), steps(plain).at(6), rtol=1e-12)


def test_an_update_is_its_gradient_up_and_its_values_down_and_the_optimizer_comes_when_it_is_asked_for(monkeypatch):
    with placed("lazy"):
        mine = there()([np.ones(N * WIDTH)], LO, WIDTH, NUMPY, make_chain("adam", RATE))
        moved = {"set": [], "get": []}

        def counted(move, calls):
            return lambda self, *given, **named: calls.append(self.size) or move(self, *given, **named)

        for name, calls in moved.items():
            monkeypatch.setattr(cupy_double.ndarray, name, counted(getattr(cupy_double.ndarray, name), calls))
        steps(mine)
        mine.apply([message(PUSH, BLOCK, Lease(np.ones(3 * WIDTH)))])
        assert moved == {"set": [N * WIDTH] * 3 + [3 * WIDTH], "get": [N * WIDTH] * 3 + [3 * WIDTH]}
        assert set(mine.optimizer) == set(mine.optimizer) == {"0.adam.m", "0.adam.v"}
        assert moved["get"][4:] == [N * WIDTH] * 2  # once, for nothing has changed since


def test_gradients_of_several_workers_go_up_each_once_and_are_added_there_to_the_bits_of_the_host(monkeypatch):
    draws = np.random.default_rng(3).standard_normal((3, N * WIDTH))
    with placed("lazy"):
        mine, plain = (cls([np.ones(N * WIDTH)], LO, WIDTH, NUMPY, make_chain("sgd", RATE)) for cls in (there(), Store))
        plain.apply([message(PUSH, WHOLE, Lease(given.copy())) for given in draws])
        moved = over_the_double(monkeypatch)
        mine.apply([message(PUSH, WHOLE, Lease(given)) for given in draws.copy()])
        assert moved == {"set": 8 * 3 * N * WIDTH, "get": 8 * N * WIDTH}
        assert (mine.at(mine.latest) == plain.at(plain.latest)).all()


def test_of_an_update_of_rows_those_that_were_sent_go_up_and_those_that_change_come_down_each_once(monkeypatch):
    with placed("lazy"):
        mine = there()([np.ones(N * WIDTH)], LO, WIDTH, NUMPY, make_chain("adam", RATE))
        sent = message(PUSH, REPEATS, Lease(np.ones(len(REPEATS) * WIDTH)))
        moved = over_the_double(monkeypatch)
        mine.apply([sent, sent])
        k, touched = 2 * len(REPEATS), len(set(REPEATS))
        assert moved == {"set": 8 * (k * WIDTH + k + touched), "get": 8 * touched * WIDTH}  # with the numbers of the rows
        assert mine.device._gradient is None  # of all rows nobody has asked for one


def test_what_is_put_through_bands_is_gone_on_from():
    line = SimpleNamespace(rank=0, size=1, new_tag=int, allgather=lambda of: [of], blocked=nullcontext)
    with placed("lazy"):
        mine = there()([np.ones(N)], 0, 1, NUMPY, make_chain("sgd", RATE))
        mine.step(np.zeros(N))  # until which nothing has gone up
        Bands(mine, (np.arange(N), np.zeros(N, bool)), 0, N, line).put(np.full((N, 1), 7.0))
        mine.step(np.zeros(N))
        assert (mine.at(mine.latest) == 7).all()


BROKEN = {
    "the wait for the values": ("values.get(out=new)", "values.get(out=new, blocking=False)"),
    "the gradient": ("self.kernels.put(gradient, gradients[0])", "pass"),
    "the gradients of others": ("            self.kernels.add(gradient, there)\n", ""),
    "where others' lie": ("            self.kernels.put(there, term)\n", ""),
    "that the optimizer is ahead": ("self.is_ahead = True", "pass"),
    "which elements": ("self.values[where], self.gradient[where]", "self.values[: gradients[0].size], self.gradient[: gradients[0].size]"),
}


BROKEN_ROWS = {
    "the sum of what was sent": ("kernels.add_rows(", "kernels.put_rows("),
    "what was there": ("        total.fill(0)\n", ""),
    "the rows themselves": ("            kernels.take(table, ids, part)\n", "            part.fill(0)\n"),
    "the way back to the table": ("            kernels.put_rows(table, ids, part)\n", "            pass\n"),
    "the way down": ("        new[where] = kernels.host(parts[0])\n", ""),
}


@pytest.mark.parametrize("name", [*BROKEN, *BROKEN_ROWS])
def test_the_laws_catch_what_is_left_out(name, monkeypatch):
    monkeypatch.setattr(store, "OnDevice", changed(on_device, [(BROKEN | BROKEN_ROWS)[name]]).OnDevice)
    with placed("lazy"), pytest.raises(AssertionError):
        check_updates(there(), [[WHOLE], [BLOCK], [WHOLE, WHOLE]] if name in BROKEN else [[WHOLE], [REPEATS], [REPEATS], [WHOLE]], CHAIN, 1)
