"""A candidate costs what its program's replay and the rounds of its sums say, each way to run a job comes once, and memory is what a stage allocates."""

from __future__ import annotations

import random
from math import prod

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core import plugins
from mpidml.core.lowering import lower
from mpidml.core.replay import Seconds, replay
from mpidml.nn.models import build
from mpidml.nn.parts import Fullest, NetParts
from mpidml.nn.split.chain import split
from mpidml.nn.stage import Stage
from mpidml.nn.step import Edges, Memory
from mpidml.planner.candidate import Candidate, candidates, factorisations, numbers
from mpidml.planner.course import Course
from mpidml.planner.machine import Link, Machine, Places, places, sum_costs
from mpidml.planner.price import Pricer, Task
from tests.held import owners
from tests.planner.plain import FLUSHING, Chain, costs, crossing, factorised, slow_seconds, summed

INSIDE, BETWEEN = Link(1e-6, 1e10), Link(1e-4, 1e8)


def chain(n, seed):
    """Return a chain of n layers, of bytes that any line of the tests divides, and what they cost."""
    draw = random.Random(seed)
    net = Chain([draw.randrange(1, 40) * 5760 for _ in range(n)], [draw.randrange(1, 9) * 5760 for _ in range(n)], 5760.0)
    return net, costs([[draw.random() * 1e-4 for _ in range(4)] for _ in range(n)], update=1e-10, add=5e-11, rows=8)


@pytest.mark.parametrize("n", [1, 2, 7, 12, 64, 96])
def test_every_factorisation_comes_once(n):
    found = list(factorisations(n))
    assert sorted(found) == sorted(factorised(n)) and all(prod(grid) == n for grid in found)
    assert len(found[1:]) != len(factorised(n)), "the broken variant forgets one"


def test_candidates_are_all_combinations_once():
    listed = list(candidates(list(factorisations(8)), 12, ["gpipe", "naive"]))
    assert len(listed) == len(set(listed)) and {each[:3] for each in listed} == set(factorised(8))
    assert {each.microbatches for each in listed if each.data == 1} == {1, 2, 3, 4, 6, 8, 12}
    assert {each.microbatches for each in listed if each.is_plain} == {1}, "a share in parts is slower"
    assert {each.schedule for each in listed if each.pipe > 1} == {"gpipe", "naive"} and {each.schedule for each in listed if each.pipe == 1} == {""}
    assert {each.microbatches for each in candidates([(2, 2, 1)], 12, ["gpipe"], 5)} == {5} and not list(candidates([(4, 2, 1)], 12, ["gpipe"], 5))
    assert not list(candidates([(16, 1, 1)], 12, [])) and numbers(0) == []
    assert (Candidate(2, 3).grid, Candidate(2, 3).strategy, Candidate(4).strategy, Candidate(1, 1, 2).strategy) == ("data=2,pipe=3", "hybrid", "data_parallel", "hybrid")


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("grid", [(12, 1, 1), (2, 3, 2), (1, 4, 3), (3, 1, 4), (1, 12, 1), (6, 2, 1)])
def test_lines_cross_hosts_where_two_of_their_ranks_do(hosts, grid):
    machine = Machine(12, hosts, 2, INSIDE, BETWEEN)
    found, seen = places(Candidate(*grid), machine), crossing(machine, grid)
    assert (found.tensor, found.data, list(found.hops)) == (seen["tensor"], seen["data"], seen["pipe"] if grid[1] > 1 else [False])
    assert found.crowd == max(1, max(max(row) for row in found.on_host) / 2)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 8, 12, 64, 100])
def test_a_sum_costs_what_the_simulation_of_data_parallel_says(n):
    nbytes = 5760 * 100 * 7 * 64
    for link in (INSIDE, BETWEEN, Link(0.0, 1e9), Link(1e-3, 1e12)):
        mine = min(cost.seconds(nbytes, link) for cost in sum_costs("auto", n))
        assert mine == pytest.approx(summed(n, nbytes, link), rel=1e-9)
        odd = min(cost.seconds(nbytes + 1, link) for cost in sum_costs("auto", n))
        assert odd == pytest.approx(summed(n, nbytes + 1, link), abs=2 * n / link.bytes_per_second, rel=1e-9)


@pytest.mark.parametrize("schedule", FLUSHING)
@pytest.mark.parametrize("grid", [(1, 3, 1), (1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 2, 2), (4, 1, 2), (1, 1, 4), (4, 1, 1)])
def test_a_price_is_the_replay_of_the_program(schedule, grid):
    net, given = chain(9, 3)
    machine, task = Machine(prod(grid), 2 if prod(grid) % 2 == 0 else 1, 99, INSIDE, BETWEEN), Task(48)
    pricer = Pricer(task, machine, given, net)
    for n in (1, 2, 3, 6, 12):
        for recompute in (False, True):
            if (of := Candidate(*grid, schedule if grid[1] > 1 else "", n, recompute)).is_plain and recompute:
                continue
            if recompute and schedule == "zero_bubble":
                continue
            assert pricer.price(of).seconds == pytest.approx(slow_seconds(of, task, machine, given, net), rel=1e-9)


def test_a_planner_that_forgets_the_sends_is_found():
    net, given = chain(6, 1)
    task, of = Task(32), Candidate(1, 4, 1, "gpipe", 8)
    far = Machine(4, 4, 99, INSIDE, BETWEEN)
    forgetful = Pricer(task, far._replace(between=Link()), given, net)
    slow = slow_seconds(of, task, far, given, net)
    assert Pricer(task, far, given, net).price(of).seconds == pytest.approx(slow) and forgetful.price(of).seconds < 0.9 * slow


@pytest.mark.parametrize("schedule", FLUSHING)
@pytest.mark.parametrize(("pipe", "n"), [(1, 3), (2, 1), (2, 7), (3, 4), (4, 12)])
def test_a_course_is_the_replay_to_the_last_bit(schedule, pipe, n):
    draw, made = random.Random(n), plugins.make("mpidml.schedules", schedule)
    if pipe == 1 and made.n_chunks > 1:
        return
    table = {(s, op, later): draw.random() for s in range(pipe * made.n_chunks) for op in "FBIWUG" for later in (False, True)}
    ways = {(s, forward): draw.random() / 4 for s in range(pipe * made.n_chunks) for forward in (False, True)}
    seconds = Seconds(lambda action: table.get((action.stage, action.op, action.item > 0), 0.0), lambda s, forward: ways[s, forward])
    found, run = Course(made, pipe, n), replay(lower(made, pipe, n, True), seconds)
    assert found.ends(seconds) == run.seconds and found.kept == run.activations
    assert found.ends(Seconds(seconds.of)) != run.seconds or pipe == 1, "the broken variant forgets the way"


def test_no_replay_falls_below_what_a_candidate_takes_at_least():
    net, given = chain(9, 5)
    machine, task = Machine(12, 3, 2, INSIDE, BETWEEN), Task(48)
    pricer = Pricer(task, machine, given, net)
    for of in candidates(list(factorisations(12)), 48, FLUSHING):
        if not pricer.why_not(of):
            least, seconds = pricer.least_seconds(of), pricer.price(of).seconds
            assert 0 < least <= seconds
            if of.schedule == "gpipe":
                assert least > 0.2 * seconds, "a bound that says nothing leaves nothing out"


def test_more_bandwidth_less_latency_and_more_cores_are_never_slower():
    net, given = chain(8, 2)
    listed = list(candidates(list(factorisations(8)), 32, FLUSHING))

    def seconds(machine):
        pricer = Pricer(Task(32), machine, given, net)
        return [pricer.price(of).seconds for of in listed if not pricer.why_not(of)]

    base = Machine(8, 2, 2, INSIDE, BETWEEN)
    slow = seconds(base)
    for better in (
        base._replace(between=Link(1e-4, 1e9)), base._replace(between=Link(1e-5, 1e8)), base._replace(inside=Link(0.0, 1e11)), base._replace(n_cores=4),
    ):
        faster = seconds(better)
        assert all(b <= a * (1 + 1e-12) for a, b in zip(slow, faster, strict=True)) and faster != slow


def test_links_that_take_no_time_leave_pure_arithmetic():
    """Equal layers, each forward 1 and backward 2 a row: a pipeline takes (M + K - 1) times a microbatch's part, replicas a share, parts a part."""
    net, given = Chain([0] * 8, [0] * 8), costs([(0, 1, 0, 2)] * 8, rows=1)
    pricer = Pricer(Task(48), Machine(8, 1, 8), given, net)
    assert pricer.price(Candidate(8)).seconds == 6 * 24 and pricer.price(Candidate()).seconds == 48 * 24
    assert pricer.price(Candidate(1, 1, 8)).seconds == 48 * 3 and pricer.price(Candidate(2, 1, 4, "", 6)).seconds == 24 * 6
    for k, m in ((2, 4), (4, 12), (8, 48)):
        found = pricer.price(Candidate(8 // k, k, 1, "one_f_one_b", m // (8 // k)))
        n, rows = m // (8 // k), 48 // m
        assert found.seconds == (n + k - 1) * rows * 24 / k and found.idle == pytest.approx((k - 1) / (n + k - 1))


def test_ranks_beyond_the_cores_share_them():
    net, given = Chain([0] * 8, [0] * 8), costs([(0, 1, 0, 2)] * 8, rows=1)

    def seconds(of, n_cores):
        return Pricer(Task(64), Machine(4, 1, n_cores), given, net).price(of).seconds

    everything = 64 * 24
    for of in (Candidate(4), Candidate(1, 1, 4), Candidate(2, 1, 2)):
        assert seconds(of, 4) == everything / 4 and seconds(of, 2) == everything / 2 and seconds(of, 1) == everything
    pipeline = Candidate(1, 4, 1, "gpipe", 64)
    assert seconds(pipeline, 1) == everything and seconds(pipeline, 2) == everything / 2 and seconds(pipeline, 4) == 67 * 6
    assert seconds(Candidate(1, 4, 1, "naive", 64), 2) == seconds(Candidate(1, 4, 1, "naive", 64), 4) == everything, "one of them works at a time"
    assert seconds(Candidate(2, 2, 1, "gpipe", 32), 2) == everything / 2


def test_ranks_that_share_cores_wake_late():
    net, given = Chain([0] * 4, [0] * 4), costs([(0, 1, 0, 2)] * 4, rows=1)

    def seconds(of, n_cores):
        return Pricer(Task(8), Machine(4, 1, n_cores, wake=100.0), given, net).price(of).seconds

    assert seconds(Candidate(4), 4) == 8 * 12 / 4 and seconds(Candidate(4), 2) == 8 * 12 / 2 + 200 and seconds(Candidate(), 1) == 8 * 12
    assert seconds(Candidate(1, 4, 1, "gpipe"), 4) == 8 * 12 and seconds(Candidate(1, 4, 1, "gpipe"), 2) == 8 * 12 + 6 * 100, "three there, three back"
    assert seconds(Candidate(1, 1, 4), 2) == 8 * 12 / 2 + 200, "one sum, forward"


def test_what_a_rank_sends_is_counted():
    net, given = Chain([6400] * 4, [100] * 4, 100.0), costs([(0, 1, 0, 2)] * 4)
    pricer = Pricer(Task(16), Machine(4, 1, 4, Link(0.0, 1.0)), given, net)
    assert pricer.price(Candidate(4)).nbytes == 2 * 3 / 4 * 4 * 6400, "a ring sends 2 (P - 1) / P of the buffer"
    assert pricer.price(Candidate(1, 4, 1, "gpipe", 4)).nbytes == 16 * 100 * 2, "a stage in the middle hands on rows, and back their gradients"
    assert pricer.price(Candidate(1, 1, 4)).nbytes == 16 * 100 * 2 * 3 / 4, "what the chain gives is summed"
    assert pricer.price(Candidate(2, 2, 1, "gpipe", 2)).nbytes == 8 * 100 + 2 * 6400
    assert pricer.price(Candidate()).nbytes == 0


NET = {"n_features": 12, "n_outputs": 6, "hidden": (16, 8, 24), "dropout": 0.1, "backend": mpidml_kernels.backend("numpy")}


@pytest.mark.parametrize(("lo", "hi"), [(0, 7), (0, 3), (3, 5), (5, 7), (0, 1), (2, 7)])
def test_what_a_stage_keeps_is_what_it_allocates(lo, hi):
    """The arrays of a slot, made by the code that trains; the keys of masks are left out."""
    net = build("mlp", **NET)
    rows, stage = 5, Stage(net, lo, hi, lo == 0, hi == 7)
    dy = None if stage.is_last else np.zeros((rows, stage.n_out), net.dtype)
    dx = None if stage.is_first else np.zeros((rows, stage.n_features), net.dtype)
    x, out = np.zeros((rows, stage.n_features), net.dtype), None if stage.is_last else np.zeros((rows, stage.n_out), net.dtype)
    memory = Memory(rows, net.backend)
    stage.bind(rows, *np.zeros((2, stage.n_params), net.dtype), memory, Edges(x, out, dy, dx))
    own = [array for array in owners([memory]).values() if len(array) == rows]
    part = NetParts(net).part(lo, hi, 1, lo == 0, hi == 7)
    assert part.kept * rows == sum(array.nbytes for array in own)
    assert (part.parameter_nbytes, part.comes, part.goes) == (stage.n_params * 4, stage.n_features * 4, stage.n_out * 4) and set(part.shares) == {1.0}


def test_memory_is_weights_gradients_state_and_what_is_in_flight():
    net = build("mlp", **NET)
    parts = NetParts(net)
    pricer = Pricer(Task(32, state=2.0, block=4), Machine(4, 1, 4), costs([(0, 1, 0, 2)] * 7), parts)
    whole = parts.part(0, 7, 1, True, True)
    assert pricer.memory_nbytes(Candidate()) == net.n_params * 4 * 4 + 32 * (whole.kept + whole.comes)
    assert pricer.memory_nbytes(Candidate(1, microbatches=4)) == net.n_params * 4 * 5 + 8 * (whole.kept + whole.comes)
    assert pricer.memory_nbytes(Candidate(4)) == pytest.approx(net.n_params * 4 * (2 + 2 / 4) + 8 * (whole.kept + whole.comes))
    cut = pricer.cut(2)[0].hi
    first, last = parts.part(0, cut, 1, True, False), parts.part(cut, 7, 1, False, True)
    for schedule, n, kept in (("gpipe", 4, (4, 4)), ("one_f_one_b", 4, (2, 1)), ("gpipe", 16, (16, 16))):
        rows, most, slots = 32 // n, max(32 // n, 4), max(kept[0], kept[1] + 1)
        sides = [
            first.parameter_nbytes * 5 + kept[0] * (rows * first.kept + most * first.comes) + slots * most * first.goes + 4 * first.scored,
            last.parameter_nbytes * 5 + kept[1] * rows * last.kept + slots * most * last.comes + 4 * last.scored,
        ]
        assert pricer.memory_nbytes(Candidate(1, 2, 1, schedule, n)) == max(sides)
        assert pricer.memory_nbytes(Candidate(1, 2, 1, schedule, n, True)) <= max(sides)
    late = Pricer(Task(8), Machine(2, 1, 2), costs([(0, 1, 0, 2)] * 2), Chain([7] * 2, [1000, 5000]))
    assert late.memory_nbytes(Candidate(1, 2, 1, "one_f_one_b", 4)) == 3 * 7 + 2 * (1 * 10000 + 2 * 1000), "what comes has as many slots as its sender keeps"
    alone = Pricer(Task(32, state=2.0, block=4, apart=True), Machine(4, 1, 4), costs([(0, 1, 0, 2)] * 7), parts).memory_nbytes(Candidate(1, 2, 1, "gpipe", 4))
    far = Pricer(Task(32, state=2.0, block=4), Machine(2, 2, 4), costs([(0, 1, 0, 2)] * 7), parts)
    assert far.memory_nbytes(Candidate(1, 2, 1, "gpipe", 4)) > pricer.memory_nbytes(Candidate(1, 2, 1, "gpipe", 4)), "between hosts each side has slots"
    assert alone == far.memory_nbytes(Candidate(1, 2, 1, "gpipe", 4)), "and where ranks of one host share no memory"


def test_parts_of_a_real_net_hold_a_share_and_sum_what_the_split_sums():
    net = build("mlp", **NET | {"dropout": 0.0})
    parts = NetParts(net)
    whole, half = parts.part(0, 4, 1, True, True), parts.part(0, 4, 2, True, True)
    assert 0.5 * whole.parameter_nbytes < half.parameter_nbytes < 0.7 * whole.parameter_nbytes and half.kept < whole.kept
    assert half.forward_sums and half.backward_sums and all(0.4 < share <= 1 for share in half.shares)
    middle = parts.part(1, 3, 2, False, False)
    assert middle.forward_sums == middle.backward_sums == (8 * 4.0,), "rows, then columns: one sum each way"
    assert (middle.comes, middle.goes) == (16 / 2 * 4, 24 / 2 * 4), "stages hand on the columns that a rank has"
    ends = [parts.part(0, 1, 2, True, False), parts.part(3, 4, 2, False, True)]
    n = len(split(net.layers, net.loss, Fullest(2)).exchanges(1, net.dtype, trains=False))
    cut = {"forward_sums": (0, n), "backward_sums": (n, None)}
    for way in cut:
        assert sum(sum(getattr(part, way)) for part in (*ends, middle)) == sum(getattr(half, way)) == sum(
            each.n * each.itemsize for each in split(net.layers, net.loss, Fullest(2)).exchanges(1, net.dtype)[slice(*cut[way])]
        )


def test_why_a_candidate_cannot_be():
    net, given = chain(4, 1)
    pricer = Pricer(Task(8), Machine(16, 1, 16), given, net)
    assert "16 replicas have no 16 samples" in pricer.why_not(Candidate(16)) and not pricer.why_not(Candidate(4, 4, 1, "gpipe"))
    assert "8 stages are more than the net's 4 layer(s)" in pricer.why_not(Candidate(2, 4, 1, "interleaved:2"))
    net.part = lambda *_: "its layers cannot be cut"
    odd = Pricer(Task(8), Machine(16, 1, 16), given, net)
    assert odd.why_not(Candidate(4, 2, 2, "gpipe")) == "its layers cannot be cut"
    with pytest.raises(ValueError, match="cannot be cut"):
        odd.price(Candidate(4, 2, 2, "gpipe"))


def test_hosts_are_filled_one_after_the_other_also_where_the_last_one_is_not_full():
    machine = Machine(10, 3, 4, INSIDE, BETWEEN, per_host=4)
    assert set(places(Candidate(10, 1, 1), machine).on_host) == {(4,), (2,)}
    assert set(places(Candidate(10, 1, 1), Machine(10, 3, 4, INSIDE, BETWEEN)).on_host) == {(4,), (2,)}, "three hosts are no four"
    assert set(places(Candidate(9, 1, 1), machine._replace(n_ranks=9)).on_host) == {(4,), (1,)}, "full hosts, not even ones"
    assert machine.waking(Candidate(10)) == 0.0 and machine._replace(n_cores=3, wake=1.0).waking(Candidate(10)) == 1.0


def test_a_grid_without_neighbours_has_no_hops():
    assert places(Candidate(4), Machine(4, 2, 1)) == Places(False, True, (False,), ((2,),), 2.0)
