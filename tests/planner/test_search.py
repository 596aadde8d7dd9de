"""What is found is the best of everything there is: a slow look at all of it, by other code, finds the same, within a memory, and near or far."""

from __future__ import annotations

import time

import pytest

from mpidml.core.errors import UserError
from mpidml.planner.candidate import Candidate, candidates, factorisations
from mpidml.planner.machine import Link, Machine
from mpidml.planner.price import Pricer, Task
from mpidml.planner.search import can_recompute, forms, order, search
from tests.planner.plain import FLUSHING, Chain, costs, slow_seconds
from tests.planner.test_price import BETWEEN, INSIDE, chain

ONE = Candidate()


def everything(n_ranks, batch, schedules=FLUSHING):
    listed = list(candidates(list(factorisations(n_ranks)), batch, schedules))
    return listed if ONE in listed else [*listed, ONE]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_ranks", [1, 4, 6])
def test_the_best_are_those_of_a_slow_look_at_all(n_ranks, seed):
    net, given = chain(5 + seed % 3, seed)
    if seed % 2:
        given = given._replace(layers=tuple((f._replace(fixed=f.fixed * 30), b._replace(fixed=0.0)) for f, b in given.layers))
    machine = Machine(n_ranks, 2 if n_ranks > 1 else 1, 99, INSIDE, Link(10.0 ** -(2 + seed), 10.0 ** (7 + seed % 3)))
    task, listed = Task(24), everything(n_ranks, 24)
    slow = {of: slow_seconds(of, task, machine, given, net) for of in listed}
    best = sorted((seconds, order(of)) for of, seconds in slow.items() if seconds is not None)[:5]
    found = search(Pricer(task, machine, given, net), listed)
    assert [each.seconds for each in found.best] == pytest.approx([seconds for seconds, _ in best], rel=1e-9)
    assert slow[found.best[0].candidate] == pytest.approx(best[0][0], rel=1e-9)
    assert found.n + len(found.left_out) == len(listed) and {of for of, _ in found.left_out} == {of for of in listed if slow[of] is None}
    first_listed = search(Pricer(task, machine, given, net), listed[:1] + listed[-1:], n_best=1)
    assert n_ranks == 1 or first_listed.best[0].seconds >= found.best[0].seconds, "the broken variant looks at two alone"


def test_what_was_not_timed_is_slower():
    net, given = chain(8, 4)
    pricer = Pricer(Task(32), Machine(8, 2, 4, INSIDE, BETWEEN), given, net)
    found = search(pricer, everything(8, 32))
    assert found.slower and found.others
    for of, least in found.slower:
        assert pricer.price(of).seconds >= least >= found.best[-1].seconds
    assert [each.seconds for each in found.best] == sorted(each.seconds for each in (*found.best, *found.others))[:5]


def test_far_hosts_keep_parts_and_stages_inside_a_host():
    """Where a byte between hosts takes for ever, only as little as can be goes there; where it takes no time, nothing keeps it away."""
    net, given = Chain([5760 * 4] * 8, [5760 * 400] * 8, 5760 * 400.0), costs([(0, 1e-5, 0, 2e-5)] * 8)
    for n_hosts in (2, 4):
        far = Machine(8, n_hosts, 8, Link(1e-6, 1e11), Link(1e3, 1.0))
        listed = [of for of in everything(8, 32) if of.n_ranks == 8]
        for each in search(Pricer(Task(32), far, given, net), listed).best:
            assert each.candidate.pipe * each.candidate.tensor <= 8 // n_hosts, each
    assert search(Pricer(Task(32), far, given, net), everything(8, 32)).best[0].candidate == ONE, "one rank sends nothing"
    near = far._replace(between=Link())
    assert search(Pricer(Task(32), near, given, net), everything(8, 32)).best[0].candidate.n_ranks == 8


def test_what_does_not_fit_is_left_out_and_activations_are_computed_again_where_that_helps():
    net, given = Chain([1000] * 8, [5760 * 40] * 8, 8.0), costs([(0, 1e-5, 0, 2e-5)] * 8)
    pricer = Pricer(Task(64), Machine(4, 1, 4, INSIDE, BETWEEN), given, net)
    listed = list(candidates([(1, 4, 1)], 64, ["gpipe", "one_f_one_b"], 8))
    free = search(pricer, listed)
    assert not any(each.candidate.recompute for each in free.best)
    limit = min(map(pricer.memory_nbytes, listed)) - 1
    tight = search(pricer, listed, limit)
    assert all(each.candidate.recompute and each.memory_nbytes <= limit for each in tight.best) and tight.best[0].seconds > free.best[0].seconds
    assert all("needs" in why for _, why in tight.left_out) and not can_recompute(Candidate(1, 4, 1, "zero_bubble"))
    asked = search(pricer, listed, recompute=True)
    assert all(each.candidate.recompute for each in asked.best)
    with pytest.raises(UserError) as error:
        search(pricer, listed, 1000)
    least = min(pricer.memory_nbytes(of._replace(recompute=again)) for of in listed for again in (False, True) if not again or can_recompute(of))
    text = str(error.value)
    assert "\n" not in text and text.startswith("--memory-per-rank 1000: nothing fits, the least that is needed is ") and "give as much, or more ranks" in text
    found = search(pricer, listed, least)
    assert found.best[0].memory_nbytes == least
    plain = search(pricer, [ONE], pricer.memory_nbytes(ONE._replace(microbatches=8))).best[0]
    assert plain.candidate.microbatches == 8 and forms(Candidate(2), 12) == [Candidate(2, microbatches=n) for n in (1, 2, 3, 4, 6)]


def test_what_is_refused_is_told():
    net, given = chain(4, 1)
    pricer = Pricer(Task(8), Machine(4), given, net)
    found = search(pricer, everything(4, 8), refused=lambda of: "parts are not known" if of.tensor > 1 else "")
    assert {of.tensor for of, why in found.left_out if why == "parts are not known"} == {2, 4} and all(each.candidate.tensor == 1 for each in found.best)
    with pytest.raises(UserError, match=r"plan: none of \d+ candidates can be run: nothing can; try"):
        search(pricer, everything(4, 8), refused=lambda of: "nothing can; try")


def test_a_thousand_ranks_are_searched_in_seconds():
    net, given = chain(48, 7)
    pricer = Pricer(Task(4096, state=1.0), Machine(1024, 128, 8, INSIDE, BETWEEN), given, net)
    listed = everything(1024, 4096)
    began = time.process_time()
    found = search(pricer, listed)
    assert len(listed) > 2000 and found.n > 1000 and time.process_time() - began < 20
    assert len(found.others) < 0.5 * found.n, "most need not be timed"
