"""Hold every file of mpidml/schedules to the contract of a schedule, found by the folder alone: it can run, and is what its source says it is."""

import inspect
from collections import Counter
from itertools import pairwise

import pytest

from mpidml.core import plugins
from mpidml.core.action import Action
from mpidml.core.checking import check as ends
from mpidml.core.checking import lowered
from mpidml.core.errors import UserError
from mpidml.core.lowering import computes, lower
from mpidml.core.program import read
from mpidml.nn.room import channel_slots
from mpidml.schedules.base import Schedule, pairs

FOLDER = "mpidml.schedules"
NAMES = plugins.names(FOLDER)
WITH_CHUNKS = [name for name in NAMES if "chunks" in inspect.signature(plugins.load(FOLDER, name)).parameters]
VARIANTS = [*NAMES, *(f"{name}:{chunks}" for name in WITH_CHUNKS for chunks in (1, 3)), "pipedream:true", "two_bw:5", "two_bw:7"]
RANKS, MICROBATCHES = range(1, 6), range(1, 10)

# The most microbatches whose activations stage k of K keeps, of M.
PEAKS = {
    "gpipe": lambda k, K, M: M,
    "looped_bfs": lambda k, K, M: M,
    "naive": lambda k, K, M: 1,
    "inference": lambda k, K, M: 1,
    "one_f_one_b": lambda k, K, M: min(M, K - k),
    "pipedream": lambda k, K, M: min(M, K - k),
    "two_bw": lambda k, K, M: min(M, K - k),
    "zero_bubble": lambda k, K, M: min(M, K),
    "three_step": lambda k, K, M: min(M, 2 * (K - k) - 1),
}
# Where there is a bound alone, as microbatches come in groups.
MOST = {"interleaved": lambda K, M: min(M, 2 * K)}


def made(text):
    return plugins.make(FOLDER, text)


def check(schedule, n_ranks, n, peak=None):
    """Hold a schedule to its laws on so many ranks and microbatches; return its replay."""
    program = lower(schedule, n_ranks, n)
    run = ends(program)
    n_stages = n_ranks * schedule.n_chunks
    assert program.n_stages == len(run.activations) == n_stages
    found = Counter(action for actions in computes(program) for action in actions)
    whole = ("F",) if not schedule.trains else ("F", "I", "W") if any(action.op == "I" for action in found) else ("F", "B")
    assert found == Counter(Action(s, op, item) for s in range(n_stages) for op in whole for item in range(n)), "each once on each stage"
    for rank in range(n_ranks):
        order = [action for action in schedule.order(rank, n_ranks, n) if action.op != "X"]
        assert order == computes(program)[rank], "asked twice it answers the same, and passes only add to it"
        for s in range(rank, n_stages, n_ranks):
            for op in ("F", "B", "I", "W"):
                items = [action.item for action in order if action.op == op and action.stage == s]
                assert items == sorted(items), "all schedules sum gradients in the order of microbatches"
    formula = schedule.bubble(n_ranks, n)
    assert formula is None or run.bubble(n_ranks) == pytest.approx(formula, abs=1e-12), "the bubble is that of the formula"
    if peak is not None:
        assert run.activations == [peak(s, n_ranks, n) for s in range(n_stages)], "activations are kept as long as promised"
    assert all(channel_slots(run.activations, run.sent, s) == channel_slots(run.activations, (), s) for s in range(n_stages - 1)), "a plan counts no more slots"
    assert read(program.text(), n_stages, n, schedule.trains) == program, "the text form says all"
    if not schedule.trains or not schedule.update_every(n_ranks):
        assert run.versions == [1] * n_stages, "with a flush one version of the weights is enough"
    return run


def test_the_folder_holds_the_promised_schedules():
    promised = {"naive", "gpipe", "one_f_one_b", "interleaved", "looped_bfs", "zero_bubble", "three_step", "pipedream", "two_bw", "inference"}
    assert promised <= set(NAMES) and set(WITH_CHUNKS) == {"interleaved", "looped_bfs"} and promised == {*PEAKS, *MOST}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_schedule_keeps_its_laws_on_any_number_of_ranks_and_microbatches(name):
    for n_ranks in RANKS:
        schedule = made(name)
        if getattr(schedule, "every", 0) and schedule.every < n_ranks:
            continue
        for n in MICROBATCHES:
            run = check(schedule, n_ranks, n, PEAKS.get(name.partition(":")[0]))
            if bound := MOST.get(name.partition(":")[0]):
                assert max(run.activations) <= bound(n_ranks, n)


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_works_without_arguments_and_says_what_it_is(name):
    schedule = made(name)
    assert isinstance(schedule, Schedule) and schedule.__doc__ and "rank 0" in schedule.__doc__ + "rank 0" * (name in ("pipedream", "two_bw"))
    assert schedule.bubble(4, 8) is not None, "its source has a formula"


@pytest.mark.parametrize("name", [name for name in NAMES if made(name).trains])
def test_sums_over_replicas_stand_before_each_update(name):
    for n_ranks, n in ((1, 3), (2, 5), (4, 9)):
        program = lower(made(name), n_ranks, n, sums=True)
        ends(program)
        counts = Counter(action.op for actions in program.lists for action in actions)
        assert counts["G"] == counts["U"] > 0
        plain = [[action for action in actions if action.op != "G"] for actions in program.lists]
        assert plain == [list(actions) for actions in lower(made(name), n_ranks, n).lists], "nothing else is changed by them"


class Broken(Schedule):
    """one_f_one_b, but for what the test breaks."""

    def __init__(self, break_it, share=None):
        self.break_it, self.share = break_it, share

    def order(self, rank, n_ranks, n_microbatches):
        yield from self.break_it(list(pairs(rank, min(n_ranks - rank - 1, n_microbatches), n_microbatches)), rank, n_ranks, n_microbatches)

    def bubble(self, n_ranks, n_microbatches):
        return self.share if self.share is not None else (n_ranks - 1) / (n_microbatches + n_ranks - 1)


def whole(order, *_):
    return order


BREAKS = {
    "forgets a backward": lambda order, *_: order[:-1],
    "forgets a forward": lambda order, *_: order[1:],
    "does one twice": lambda order, *_: [*order, order[0]],
    "goes back before it came": lambda order, *_: [order[-1], *order[:-1]],
    "goes back in descending order": lambda order, rank, n_ranks, n: [*pairs(rank, n, n)][:n] + [*pairs(rank, n, n)][: n - 1 : -1],
    "keeps too much": lambda order, rank, n_ranks, n: [*pairs(rank, n, n)],
    "fills less on the first ranks than on the last": lambda order, rank, n_ranks, n: [*pairs(rank, min(rank, n), n)],
    "knows a microbatch that is not there": lambda order, rank, n_ranks, n: [*order, Action(rank, "F", n), Action(rank, "B", n)],
    "does what another rank does": lambda order, rank, n_ranks, n: [action._replace(stage=(rank + 1) % n_ranks) for action in order],
}


def test_the_schedule_that_is_broken_below_is_sound():
    check(Broken(whole), 3, 4, PEAKS["one_f_one_b"])


@pytest.mark.parametrize("broken", BREAKS)
def test_the_contract_catches_a_schedule_that(broken):
    with pytest.raises((AssertionError, UserError)):
        check(Broken(BREAKS[broken]), 3, 4, PEAKS["one_f_one_b"])


def test_the_contract_catches_a_formula_that_is_not_met_and_an_order_that_is_drawn():
    with pytest.raises(AssertionError, match="formula"):
        check(Broken(whole, 0.25), 3, 4)
    calls = iter(range(99))
    with pytest.raises(AssertionError, match="asked twice"):
        check(Broken(lambda order, rank, n_ranks, n: [*pairs(rank, n_ranks - rank - (next(calls) < 3), n)]), 3, 4)


def results_a_step(program):
    """Count of each step of a program in lock step the microbatches that come back to stage 0; the ranks' steps are as many."""
    assert len({sum(action.op == "X" for action in actions) for actions in program.lists}) == 1
    found = [0]
    for action in program.lists[0]:
        if action.op == "X":
            found.append(0)
        elif action.op == "B":
            found[-1] += 1
    return found[:-1]


def keeps_step(schedule, n_ranks, n):
    """Tell whether the steps are filled in 2 (K - 1) steps and then give a result each."""
    return results_a_step(lower(schedule, n_ranks, n)) == [0] * (2 * (n_ranks - 1)) + [1] * n


def test_three_step_fills_in_two_k_less_two_steps_and_then_gives_a_result_a_step():
    for n_ranks in RANKS:
        for n in MICROBATCHES:
            assert keeps_step(made("three_step"), n_ranks, n)


class BeginsLate(plugins.load(FOLDER, "three_step")):
    """Broken: the first step is empty."""

    def order(self, rank, n_ranks, n_microbatches):
        yield Action(rank, "X", 0)
        for action in super().order(rank, n_ranks, n_microbatches):
            yield action._replace(item=action.item + (action.op == "X"))


class EverySecondStep(BeginsLate.__base__):
    """Broken: a microbatch begins in every second step alone."""

    def order(self, rank, n_ranks, n_microbatches):
        for step in range(2 * n_microbatches + 2 * (n_ranks - 1)):
            for op, since in (("F", step - rank), ("B", step - 2 * (n_ranks - 1) + rank)):
                if 0 <= since < 2 * n_microbatches and since % 2 == 0:
                    yield Action(rank, op, since // 2)
            yield Action(rank, "X", step)


@pytest.mark.parametrize("broken", [BeginsLate, EverySecondStep])
def test_the_check_catches_steps_that_begin_late_or_give_a_result_too_seldom(broken):
    for n_ranks in RANKS:
        for n in MICROBATCHES:
            assert ends(lower(broken(), n_ranks, n)) and not keeps_step(broken(), n_ranks, n)


def test_a_gradient_travels_before_the_update_that_it_makes():
    for name in ("pipedream", "two_bw:2"):
        for actions in lower(made(name), 2, 6, sums=True).lists[1:]:
            for before, after in pairwise(actions):
                assert not (before.op == "B" and after.op in ("G", "U")), "another rank would wait for it"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("interleaved:0", "'interleaved:0': chunks = 0 is not a whole number from 1 up; give the number of stages of a rank"),
        ("looped_bfs:-1", "chunks = -1 is not a whole number from 1 up; give"),
        ("looped_bfs:1.5", "chunks = 1.5 is not a whole number from 1 up; give"),
        ("interleaved:chunks=true", "chunks = True is not a whole number from 1 up; give"),
        ("pipedream:3", "vertical = 3 is neither true nor false; give one of them"),
        ("two_bw:-1", "every = -1 is not a whole number from 0 up; give"),
        ("two_bw:three", "every = three is not a whole number from 0 up; give"),
        ("gpipe:2", "'gpipe' takes 0 argument(s), 1 were given"),
        ("one_f_one_bee", "schedules: there is no 'one_f_one_bee'; known: "),
    ],
)
def test_arguments_that_cannot_be_are_one_line(text, says):
    with pytest.raises(UserError) as error:
        made(text)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_updates_more_often_than_two_versions_allow_are_one_line():
    with pytest.raises(UserError) as error:
        lowered(made("two_bw:3"), 4, 8, "two_bw:3")
    assert str(error.value).startswith("two_bw:3: every = 3 is below the 4 ranks") and "give 4 or more" in str(error.value) and "\n" not in str(error.value)
    assert lowered(made("two_bw:4"), 4, 8, "two_bw:4").n_ranks == 4
