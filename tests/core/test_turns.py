"""Hold stages on unlike numbers of ranks to their laws: each microbatch once on each stage, in turn, as many in flight as the planner says, as fast as it says."""

from collections import Counter
from itertools import accumulate

import pytest

from mpidml.core import plugins, turns
from mpidml.core.action import COMPUTE, MOVES, Action
from mpidml.core.balance import Profile, planned, route
from mpidml.core.checking import check
from mpidml.core.errors import UserError
from mpidml.core.lowering import lower
from mpidml.core.pace import paced
from mpidml.core.plan_request import asked
from mpidml.core.program import read
from mpidml.core.replay import Fault, Seconds, replay, units
from mpidml.core.trace import KINDS
from mpidml.core.turns import TurnGrid, agrees, lower_by_turns, parse_replicas
from mpidml.sim.program import traces
from tests.changed import changed

LAYOUTS = [(2, 1), (1, 2), (2, 2), (3, 1, 1), (3, 2), (1, 3, 1), (3,), (1, 1, 2)]
SCHEDULES = {name: plugins.make("mpidml.schedules", name) for name in plugins.names("mpidml.schedules")}
FLUSHED = [name for name, of in SCHEDULES.items() if of.n_chunks == 1 and not of.update_every(1)]


def made(layout, n=5, name="one_f_one_b"):
    return lower_by_turns(SCHEDULES[name], layout, n)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", FLUSHED)
def test_every_microbatch_is_computed_once_on_each_stage_by_the_rank_whose_turn_it_is(name, layout):
    for n in (max(layout), 5, 8):
        program = made(layout, n, name)
        check(program)
        edges = (0, *accumulate(layout))
        found = Counter((rank, action) for rank, actions in enumerate(program.lists) for action in actions if action.op in (*COMPUTE, *MOVES))
        ops = {action.op for _, action in found if action.op in COMPUTE}
        whole = Counter((edges[s] + item % r, Action(s, op, item)) for s, r in enumerate(layout) for op in ops for item in range(n))
        assert Counter({key: found[key] for key in found if key[1].op in COMPUTE}) == whole
        for (rank, action), times in found.items():
            assert times == 1 and rank == program.rank_of(action.stage, action.item)
        sums = Counter((rank, action.op) for rank, actions in enumerate(program.lists) for action in actions if action.op in ("G", "U"))
        assert sums == {(rank, op): 1 for rank in range(sum(layout)) for op in ("GU" if SCHEDULES[name].trains else "")}
        assert read(program.text(), len(layout), n, SCHEDULES[name].trains, edges) == program, "the text form says all, beside the edges"


@pytest.mark.parametrize("name", FLUSHED)
def test_one_rank_a_stage_is_the_pipeline_without_turns(name):
    program, plain = made((1, 1, 1), 5, name), lower(SCHEDULES[name], 3, 5, sums=True)
    assert program.lists == plain.lists and replay(program) == replay(plain)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_as_many_microbatches_are_in_flight_as_the_planner_counts_for_memory(layout):
    """ceil(ranks from the stage on / its replicas), which is PipeDream's number for the first stage."""
    edges = (0, *accumulate(layout))
    assert replay(made(layout, 24)).activations == [-(-(edges[-1] - edge) // r) for edge, r in zip(edges, layout, strict=False)]


def seconds_each(layout, costs, name="one_f_one_b"):
    """Return the seconds that a further microbatch takes, once the pipeline is full."""
    seconds = Seconds(lambda action: costs[action.stage] * units(action))
    few, many = 6 * sum(layout), 18 * sum(layout)
    return (replay(made(layout, many, name), seconds).seconds - replay(made(layout, few, name), seconds).seconds) / (many - few)


@pytest.mark.parametrize("name", ["one_f_one_b", "gpipe", "zero_bubble"])
def test_a_stage_twice_as_costly_on_two_ranks_doubles_the_throughput_as_the_planner_says(name):
    plan = planned([Profile(2.0, 4.0, 8.0, 8.0), Profile(1.0, 2.0, 8.0, 1000.0)], 3, 8.0)
    assert [stage.replicas for stage in plan.stages] == [2, 1] and plan.seconds == 3.0
    assert plan.n_in_flight == replay(made((2, 1), 24)).activations[0] == 2
    assert seconds_each((2, 1), (2, 1), name) == pytest.approx(plan.seconds) and seconds_each((1, 1), (2, 1), name) == pytest.approx(6.0)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if len(layout) > 1], ids=str)
def test_stages_as_costly_as_they_have_ranks_leave_nobody_idle(layout):
    """But where one_f_one_b has a stage of more ranks than both its neighbours, whose backwards then come in bursts."""
    assert seconds_each(layout, layout, "gpipe") == pytest.approx(3.0)
    bursts = any(before < r > after for before, r, after in zip(layout, layout[1:], layout[2:], strict=False))
    assert seconds_each(layout, layout) == pytest.approx(2.0 * layout[1] if bursts else 3.0)


def test_a_sum_once_a_batch_costs_the_planner_less_than_one_a_turn():
    profiles = [Profile(1.0, 2.0, 1.0, 64.0)] * 2
    often, once = (planned(profiles, 2, 32.0, every=every) for every in (1, 64))
    assert len(often.stages) == 2 and [stage.replicas for stage in once.stages] == [2]


def test_a_sum_begins_when_the_last_replica_has_come_and_updates_wait_for_it():
    program = made((2, 1), 3)
    run = replay(program, Seconds(lambda action: 10.0 if action.op == "G" else units(action)))
    came = [event.start for event in run.events if event.action == Action(0, "G")]
    changed_at = [event.start for event in run.events if event.action == Action(0, "U")]
    assert len(came) == 2 and came[0] != came[1] and changed_at == [max(came) + 10.0] * 2


def replaced(program, rank, old, new):
    lines = program.text().splitlines()
    assert lines[rank].count(old) == 1
    lines[rank] = lines[rank].replace(old, new)
    return read("\n".join(lines), program.n_stages, program.n_items, program.trains, program.edges)


def fault(program):
    with pytest.raises(Fault) as found:
        replay(program)
    return str(found.value)


def test_what_takes_a_wrong_turn_or_lacks_a_sum_is_refused():
    program = made((2, 1), 4)
    assert "microbatch 1 is the turn of rank 1, not of this one" in fault(replaced(program, 0, "0F0 0SF0", "0F1 0SF1"))
    assert "stage 1 lives on rank 2, not here" in fault(replaced(program, 1, "0F1 ", "1F1 "))
    assert "is not summed over the replicas" in fault(replaced(program, 0, "0G 0U", "0U"))
    assert "waits for ever for 0G, which rank 1 does not come to" in fault(replaced(program, 1, "0G 0U", ""))
    none = replaced(replaced(program, 0, "0G ", ""), 1, "0G ", "")
    assert "is not summed over the replicas" in fault(replaced(none, 2, "1G ", ""))
    assert "0B2 is never done" in fault(replaced(program, 0, " 0RB2 0B2", ""))


def test_the_check_catches_a_pass_that_shares_out_by_halves_in_place_of_turns():
    wrong = changed(turns, [("route(action.item, r) == turn", "action.item * r // n_items == turn")])
    with pytest.raises(UserError, match="is the turn of rank"):
        check(wrong.lower_by_turns(SCHEDULES["gpipe"], (2, 1), 4))


def test_a_warm_up_of_stages_instead_of_ranks_would_leave_ranks_idle():
    """What each replica has in flight then is less than the way there and back takes."""
    wrong = changed(turns, [("schedule.order(edges[s], edges[-1], n_items)", "schedule.order(s, len(replicas), n_items)")])
    seconds = Seconds(lambda action: (2, 1)[action.stage] * units(action))
    ends = [replay(wrong.lower_by_turns(SCHEDULES["one_f_one_b"], (2, 1), n), seconds).seconds for n in (18, 54)]
    assert (ends[1] - ends[0]) / 36 > 3.5


def test_sends_and_receives_of_a_trace_name_the_rank_whose_turn_it_is():
    program = made((2, 1), 4)
    columns = [list(zip(of["kind"].tolist(), of["item"].tolist(), of["peer"].tolist(), strict=True)) for of in traces(program, replay(program))]
    sent = [[(clock, peer) for kind, clock, peer in of if KINDS[kind] == "send"] for of in columns]
    assert sent == [[(0, 2), (2, 2)], [(1, 2), (3, 2)], [(0, 0), (1, 1), (2, 0), (3, 1)]]


def test_ranks_lie_stage_by_stage():
    grid = TurnGrid((2, 1, 3))
    assert [grid.coords(rank)["pipe"] for rank in range(6)] == [0, 0, 1, 2, 2, 2] and [grid.turn(rank) for rank in (0, 1, 2, 5)] == [(0, 2), (1, 2), (0, 1), (2, 3)]
    assert [grid.rank(pipe=s) for s in range(3)] == [0, 2, 3] and grid.ranks(2) == [3, 4, 5] and grid.n_ranks == 6
    assert [grid.name(rank) for rank in (1, 2)] == ["pipe 0 turn 1", "pipe 1"] and str(grid) == "pipe=3 on 2,1,3 ranks"
    ways = grid.ways({"pipe": 0}, {"pipe": 2})
    assert ways == [(0, 3), (1, 4), (0, 5), (1, 3), (0, 4), (1, 5)] and all(ways[m % 6] == (route(m, 2), 3 + route(m, 3)) for m in range(12))


def test_layers_are_cut_by_what_a_stages_ranks_do_together():
    profiles = [Profile(1.0, 2.0, 0.0, 0.0)] * 6
    cut = [paced(profiles, TurnGrid(layout), [1.0] * 3, 2)[0].stages for layout in ((2, 1), (1, 2))]
    assert [[stage.hi - stage.lo for stage in of] for of in cut] == [[4, 2], [2, 4]]
    slow = paced(profiles, TurnGrid((2, 1)), [1.0, 0.25, 1.0], 2)[0].stages
    assert [stage.hi - stage.lo for stage in slow] == [2, 4], "turns are alike, so the slower replica says how fast both are"


@pytest.mark.parametrize("text", ["2,0", "2,,1", "2,-1", "two", "1.5,1", "2," + "9" * 5000], ids=lambda text: text[:6])
def test_what_is_no_number_of_ranks_is_refused_in_a_line(text):
    with pytest.raises(UserError, match=r"^--replicas .*: '.*' is no number of ranks from 1 up; give one for each stage, as 2,1$"):
        parse_replicas(text)
    assert parse_replicas(" 2, 1") == (2, 1)


def test_a_plan_looks_at_no_turns_and_says_so():
    with pytest.raises(UserError, match="--replicas 2,1: does nothing under plan, which looks at grids alone"):
        asked({"replicas": "2,1"})


@pytest.mark.parametrize(("name", "why"), [("interleaved", "has 2"), ("looped_bfs", "has 2"), ("pipedream", "weights under way"), ("two_bw", "weights under way")])
def test_schedules_under_which_no_turns_can_be_taken_are_refused(name, why):
    with pytest.raises(UserError, match=why):
        agrees(SCHEDULES[name], name, "2,1")
