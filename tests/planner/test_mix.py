"""A mix costs its computes, an exchange of rows at each side of a layer that is cut, and a sum of what is not: by formulas, and by what ranks send."""

import numpy as np
import pytest

from mpidml.core.rounds import cut
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.losses.base import make_loss
from mpidml.nn.models import connect
from mpidml.nn.parts import NetParts
from mpidml.nn.split.mix import cut_layers, dominant
from mpidml.plan import plan
from mpidml.planner.candidate import Candidate, candidates
from mpidml.planner.machine import Link, Machine, sum_costs
from mpidml.planner.price import Pricer, Task
from tests.held import owners
from tests.nn.lines import BACKENDS
from tests.nn.test_mix import CarryingLine, batch_of, network, spread_over
from tests.planner.plain import costs

BOTH = "embedding=tensor,dense=tensor"


def wide(rows=300, units=4):
    """Return a net most of whose weights are a table."""
    return connect([Embedding([1, 3], units, rows), Dense(6, "relu"), Dense()], "test", 6, 3, make_loss("cross_entropy"), "float64", BACKENDS[1])


@pytest.fixture
def evenly(monkeypatch):
    """Cut as a plan does: by whole numbers, so that the last rank has most of every width."""
    monkeypatch.setattr(CarryingLine, "edges", lambda line, n: [*(cut(n, line.size, rank)[0] for rank in range(line.size)), n])


@pytest.mark.parametrize("mix", ["embedding=tensor", "dense=tensor", BOTH])
@pytest.mark.parametrize("n", [2, 3])
def test_what_a_plan_counts_is_what_ranks_send(evenly, mix, n):
    net, m = network(), 4
    *_, found = spread_over(net, cut_layers(mix, net.layers), (1,) * n, (m,) * n, batch_of(net, n * m))
    part = NetParts(net).mixed(n, mix)
    assert max(each[-2] for each in found) * 8 == m * (sum(part.backward_moves) + sum(part.forward_moves))
    assert part.parameter_nbytes == 8 * max(each[1].n_params for each in found) and part.summed_nbytes == 8 * found[0][1].n_summed


def test_a_price_is_a_formula():
    """3 replicas on a host each, 6 rows in 2 microbatches: computes, 3 exchanges of each, one sum of a ring, one update."""
    net, n, rows, per_row = wide(), 3, 1, 1e-3
    link, task = Link(1e-4, 1e6), Task(6, collective="ring", block=1)
    given = costs([(0, per_row, 0, 2 * per_row)] * 3, update=1e-8, add=1e-9)
    found = Pricer(task, Machine(n, n, 4, Link(), link), given, NetParts(net)).price(Candidate(n, 1, 1, "", 2, mix="embedding=tensor"))
    table, width, n_codes, others = 2 * 300 * 4 * 8 / n, 8 * 8, 2 * 8, 8 * (net.n_params - 2 * 300 * 4)
    codes, rows_of_table = ((n - 1) * rows * each for each in (n_codes, width))
    compute = 2 * rows * 3 * (per_row + 2 * per_row)
    exchanges = 2 * (link.seconds(codes) + 2 * link.seconds(rows_of_table))
    (ring,) = sum_costs("ring", n)
    more = 1e-9 * (table + others) + ring.seconds(others, link) + 1e-8 * (table + others)
    assert found.seconds == pytest.approx(compute + exchanges + more, rel=1e-9)
    assert found.nbytes == pytest.approx(2 * (codes + 2 * rows_of_table) + 2 * (n - 1) / n * others)
    forgetful = Pricer(task, Machine(n, n, 4, Link(), Link()), given, NetParts(net)).price(found.candidate)
    assert forgetful.seconds < found.seconds - exchanges


def test_what_a_mix_keeps_is_what_it_allocates(evenly):
    """The arrays of a slot on the rank that has most; the rows and the keys of masks are left out."""
    for mix in ("embedding=tensor", BOTH):
        net, m = network(), 4
        *_, found = spread_over(net, cut_layers(mix, net.layers), (1, 1, 1), (m,) * 3, batch_of(net, 3 * m))
        kept = []
        for *_, memory, _, _ in found:
            own = [array for array in owners([{**memory.arrays, "x": None}]).values() if array.size > 1]
            kept.append(sum(array.nbytes for array in own) / memory.m)
        assert NetParts(net).mixed(3, mix).kept == max(kept)


def test_mixes_are_looked_at_where_a_layer_has_half_of_the_weights():
    assert dominant(wide()) == ["embedding=tensor"] and dominant(network()) == []
    assert dominant(connect([Dense(4), Dense(900), Dense()], "test", 6, 3, make_loss("hinge"), "float64", BACKENDS[1])) == ["2=tensor"]
    listed = list(candidates([(4, 1, 1), (2, 2, 1), (1, 1, 4), (1, 1, 1)], 8, ["gpipe"], 2, ("", "embedding=tensor")))
    assert [of.mix for of in listed if of.mix] == ["embedding=tensor"] and len(listed) == 5
    assert all(of.mix for of in candidates([(4, 1, 1), (2, 2, 1), (1, 1, 1)], 8, ["gpipe"], 0, ("embedding=tensor",)))


def test_a_plan_cuts_a_large_table_where_the_link_is_slow(tmp_path):
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 4))
    x[:, 0] = np.arange(64) * 200
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(64) % 3)
    (tmp_path / "net.toml").write_text('[[layer]]\ntype = "embedding"\ncolumns = [0]\nunits = 16\n\n[[layer]]\ntype = "dense"\n')
    values = {"data": str(tmp_path / "d.npz"), "model": str(tmp_path / "net.toml"), "ranks": 4, "hosts": 4, "flops_per_second": 1e9, "apply": 1e-4, "bandwidth": 1e7}
    found = plan({**values, "grid": "data=4"}, quiet=True, write=False)
    best, *others = found["candidates"]
    assert (best["strategy"], best["grid"], best["mix"]) == ("hybrid", "data=4", "embedding=tensor")
    plain = next(each for each in others if each["mix"] is None)
    assert plain.get("seconds", plain.get("at_least_seconds")) > 10 * best["seconds"]
    given = plan({**values, "mix": "dense=tensor", "out": str(tmp_path / "plan")}, quiet=True)
    assert {each["mix"] for each in given["candidates"]} == {"dense=tensor"} and 'mix = "dense=tensor"' in (tmp_path / "plan" / "plan.toml").read_text()
