"""A program's own gradients: ranks with unlike numbers of batches end together, and every sample counts once."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from mpidml.core.errors import UserError, WaitTimeout
from mpidml.runtime import abort, gradients
from mpidml.runtime.gradients import Gradients
from tests.changed import changed

pytestmark = pytest.mark.shows_from(3)

SHAPES = {"a": (5, 3), "b": (3,), "c": (3, 4), "d": (4,)}
RATE = 0.1


def batches(rank):
    """Rank r has 10 + 3 r batches of unlike sizes."""
    draws = np.random.default_rng(rank)
    return [draws.standard_normal((draws.integers(1, 6), 5)) for _ in range(10 + 3 * rank)]


def gradient(w, x):
    """Return the gradients of the sum over samples of |x a + b|^2 / 2, and something of c and d."""
    out = x @ w["a"] + w["b"]
    return {"a": x.T @ out, "b": out.sum(0), "c": w["c"] * len(x), "d": np.full(4, float(len(x)))}


def start():
    return {name: np.random.default_rng(9).standard_normal(shape) for name, shape in SHAPES.items()}


def serial(n_ranks):
    """Step on the mean over the samples of the k-th batches of all who have one."""
    w, of = start(), [batches(rank) for rank in range(n_ranks)]
    for k in range(max(map(len, of))):
        x = np.concatenate([own[k] for own in of if k < len(own)])
        g = gradient(w, x)
        for name in w:
            w[name] -= RATE * g[name] / len(x)
    return w


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("collective", ["auto", "ring", "rabenseifner"])
def test_uneven_batches_end_together_as_one_serial_loop(comm, collective):
    w, seen, rounds = start(), 0, 0
    with Gradients(SHAPES, "float64", collective, comm=comm, wait_limit=20) as total:
        for batch in total.over(batches(comm.rank)):
            n = 0
            if batch is not None:
                n = len(batch)
                for name, g in gradient(w, batch).items():
                    total[name][:] = g
            seen += total.reduce(n)
            rounds += 1
            for name in w:
                w[name] -= RATE * total[name]
    assert rounds == 10 + 3 * (comm.size - 1)
    assert seen == sum(len(batch) for rank in range(comm.size) for batch in batches(rank))
    for name, expected in serial(comm.size).items():
        np.testing.assert_allclose(w[name], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.mpi(min_size=2)
def test_without_rounds_of_zeros_the_one_with_more_batches_waits_for_nobody(comm):
    """The broken variant: a rank that simply stops."""
    total = Gradients(SHAPES, "float64", "ring", comm=comm, wait_limit=0.2)
    for k in range(2 + (comm.rank == 0)):
        if k < 2:
            total.reduce(1)
            continue
        with pytest.raises(WaitTimeout, match=r"the limit is 0\.2 s \(wait_limit\)"):
            total.reduce(1)
    comm.Barrier()


@pytest.mark.mpi
@pytest.mark.parametrize("seed", range(3))
def test_tensors_that_some_ranks_do_not_use_are_zero_there_in_whatever_order_they_come(comm, seed, monkeypatch):
    monkeypatch.setattr("mpidml.runtime.gradients.BUCKET_NBYTES", 8)
    draws = random.Random(100 * seed + comm.rank)
    with Gradients(SHAPES, "float64", "ring", comm=comm, wait_limit=20) as total:
        assert len(total.sums) > 2
        for _ in total.over(range(5)):
            names = draws.sample(sorted(SHAPES), draws.randint(0, 4))
            for name in names:
                total[name][:] = comm.rank + 1
                total.ready(name)
            n = total.reduce(1)
            assert n == comm.size
            used = comm.allgather(names)
            for name in SHAPES:
                expected = sum(rank + 1 for rank, of in enumerate(used) if name in of) / comm.size
                np.testing.assert_allclose(total[name], expected)


def uses(draws, rank, k):
    """Return which tensors a rank uses in round k: "b" in the first by all, later by rank 0 alone, and in the last two by nobody."""
    names = draws.sample("acd", draws.randint(1, 3))
    return [*names, "b"] if k == 0 or (rank == 0 and k < 4) else names


def means(comm, of, seed, over):
    """Sum 6 rounds in which tensors are filled with rank + 1, most of them said to be ready; return each round's means and what they must be."""
    found, expected = [], []
    every = [random.Random(100 * seed + rank) for rank in range(comm.size)]
    with of.Gradients(SHAPES, "float64", "ring", comm=comm, wait_limit=20) as total:
        for k, _ in enumerate(total.over(range(6)) if over else range(6)):
            names = [uses(draws, rank, k) for rank, draws in enumerate(every)]
            for name in SHAPES if over else names[comm.rank]:  # what is filled and not ready does not count
                total[name][:] = comm.rank + 1
            for name in names[comm.rank]:
                total.ready(name)
            assert total.reduce(1) == comm.size
            found.append([total[name].copy() for name in SHAPES])
            expected.append([np.full(SHAPES[name], sum(rank + 1 for rank, own in enumerate(names) if name in own) / comm.size) for name in SHAPES])
    return found, expected


def alike(found, expected):
    return all(np.allclose(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True))


@pytest.mark.mpi
@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_a_tensor_that_a_rank_does_not_say_is_ready_counts_as_zeros_and_not_as_the_last_mean(comm, seed, over, monkeypatch):
    for nbytes in (8, 1 << 20):
        monkeypatch.setattr(gradients, "BUCKET_NBYTES", nbytes)
        assert alike(*means(comm, gradients, seed, over))
    keeps = changed(gradients, [("            self.views[name][...] = 0\n", "            pass\n")])
    assert not alike(*means(comm, keeps, seed, over))


@pytest.mark.mpi
def test_a_tensor_is_ready_once_a_round(comm, monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET_NBYTES", 8)
    with Gradients(SHAPES, "float64", "ring", comm=comm, wait_limit=20) as total:
        for k in range(2):
            total["d"][:] = k + 1
            total.ready("d")  # its sum has begun: nothing may be put there any more
            with pytest.raises(UserError, match=r"ready\('d'\) for the second time in one round; call it once"):
                total.ready("d")
            total.reduce(1)
            np.testing.assert_allclose(total["d"], k + 1)


@pytest.mark.mpi
def test_a_tensor_without_gradient_is_named_on_every_rank_where_that_is_an_error(comm):
    total = Gradients(SHAPES, "float64", comm=comm, unused="error", wait_limit=20)
    with pytest.raises(UserError, match=r"rank 0 has no gradient of 'b'; call ready\(\)"):
        for _ in total.over(range(3)):
            for name in SHAPES:
                if name != "b" or comm.rank:
                    total.ready(name)
            total.reduce(1)
    with pytest.raises(UserError, match="there is no tensor 'e'"):
        total["e"]
    with pytest.raises(UserError, match="no tensor is named"):
        Gradients({}, comm=comm)
    with pytest.raises(UserError, match="neither 'zero' nor 'error'"):
        Gradients(SHAPES, comm=comm, unused="ignore")


def round_of(total, tensors, n=1):
    """Fill and sum one round, in which this rank is ready with `tensors`; return the error's line, or whether the means are right."""
    for name in SHAPES:
        total[name][...] = n
    for name in tensors:
        total.ready(name)
    try:
        total.reduce(n)
    except UserError as error:
        return str(error)
    return all((total[name] == 1).all() for name in SHAPES)


def rounds(comm, of):
    """Return what becomes of rounds in which ranks but the first say nothing, have nothing, or all say all, with errors between them."""
    quiet, every = comm.rank > 0, list(SHAPES)
    with of.Gradients(SHAPES, "float64", comm=comm, unused="error", wait_limit=20) as total:
        return [
            round_of(total, []), round_of(total, [] if quiet else every), round_of(total, [] if quiet else every, int(not quiet)),
            round_of(total, ["a", "b", "c"]), round_of(total, every),
        ]  # fmt: skip


@pytest.mark.mpi
def test_a_rank_that_says_of_no_tensor_that_it_is_ready_is_named_and_the_next_round_goes_on(comm):
    others, all_of = range(1, comm.size), "has no gradient of 'd', 'c', 'b'; call ready() for it, or take unused='zero'"
    silent = f"gradients: rank {', '.join(map(str, others))} {all_of}" if others else True
    one = f"gradients: rank {', '.join(map(str, range(comm.size)))} has no gradient of 'd'; call ready() for it, or take unused='zero'"
    assert rounds(comm, gradients) == [True, silent, True, one, True]
    passed = rounds(comm, changed(gradients, [(" and (self.is_ready or n_samples)", " and self.is_ready")]))
    assert (passed[1] is True) and passed[3] == one, "who says nothing passes"
    told = rounds(comm, changed(gradients, [("if self.counts[MISSING] and self.counts[READY]:", "if self.counts[MISSING]:")]))
    assert told[0] is not True, "a program that never says what is ready is refused"
    reset, after = "        self.n_begun, self.owes = 0, False\n        self.is_ready.clear()\n", "        n = int(self.counts[SAMPLES])\n"
    kept = changed(gradients, [(f"{reset}        if", "        if"), (after, reset + after)])
    total = kept.Gradients(SHAPES, "float64", comm=comm, unused="error", wait_limit=20)
    assert round_of(total, ["a", "b", "c"]) == one
    with pytest.raises(UserError, match="for the second time in one round"):
        round_of(total, list(SHAPES))


@pytest.mark.mpi
def test_sums_begin_as_soon_as_all_behind_a_tensor_is_ready(comm, monkeypatch):
    monkeypatch.setattr("mpidml.runtime.gradients.BUCKET_NBYTES", 8)
    with Gradients(SHAPES, "float64", "ring", comm=comm, wait_limit=20) as total:
        for _ in total.over(range(2)):
            total.ready("c")
            assert total.n_begun == 0  # d, behind it, is not
            total.ready("d")
            assert total.n_begun == 2
            total.ready("a")
            assert total.n_begun == 2
            total.reduce(1)


@pytest.mark.mpi
def test_without_rounds_every_reduce_sums_and_a_round_without_one_is_told(comm):
    with Gradients({"w": (3,)}, "float64", comm=comm, wait_limit=20) as total:
        for _ in range(3):
            total["w"][:] = comm.rank + 1
            total.reduce(1)
            np.testing.assert_allclose(total["w"], (comm.size + 1) / 2)
    for use in (lambda: total["w"], lambda: total.ready("w"), lambda: total.reduce(1), lambda: next(total.over(range(3)))):
        with pytest.raises(UserError, match="they are closed"):
            use()
    total.close()  # has nothing left to free
    total = Gradients({"w": (3,)}, "float64", comm=comm, wait_limit=20)
    with pytest.raises(UserError, match="a round ended without reduce"):
        for _ in total.over(range(3)):
            pass
    wrong = {"collective": "gossip"}, {"dtype": "int64"}, {"collective": "hierarchical:rign"}
    for changes, what in zip(wrong, ("does not sum over all ranks", "no type to take a mean in", "did you mean 'ring'"), strict=True):
        with pytest.raises(UserError, match=what):
            Gradients({"w": (3,)}, comm=comm, **changes)
    wrong = [
        ({"shapes": None}, "no tensor is named"), ({"shapes": [3]}, "no tensor is named"), ({"shapes": {"w": 3}}, "the shape of 'w' is 3; give a tuple"),
        ({"shapes": {"w": (3, -1)}}, "whole numbers from 0 up"), ({"shapes": {"w": (2.0,)}}, "whole numbers"), ({"shapes": {5: (2,)}}, "is named 5; give text"),
        ({"dtype": "floaty"}, "'floaty' is no type"), ({"dtype": None}, "None is no type"), ({"collective": 5}, "collective = 5 is no text"),
        ({"wait_limit": 0}, "no positive number of seconds"), ({"wait_limit": "9"}, "no positive number"), ({"comm": 5}, "comm = 5 is no communicator"),
        ({"unused": 5}, "neither 'zero' nor 'error'"), ({"shapes": {"w": (True,)}}, r"the shape of 'w' is \(True,\)"),
    ]  # fmt: skip
    for changes, what in wrong:
        with pytest.raises(UserError, match=what):
            Gradients(**({"shapes": {"w": (3,)}, "comm": comm} | changes))
    with Gradients({"w": (3,)}, comm=comm, wait_limit=20) as total:
        for n in (-1, 0.5, 2.0, None, "3"):
            with pytest.raises(UserError, match=r"reduce\(.*\): is no number of samples; give how many"):
                total.reduce(n)
        assert total.reduce(np.int64(2)) == 2 * comm.size
        with pytest.raises(UserError, match=r"over\(7\): are no batches"):
            next(total.over(7))
    if comm.size > 1:
        with pytest.raises(UserError, match="ordered:32: blocks are of a batch's samples"):
            Gradients({"w": (3,)}, collective="ordered:32", comm=comm)
        with pytest.raises(UserError, match=r"rank 1 sums float32 by tree|rank 0 sums float32 by ring"):
            Gradients({"w": (3,)}, "float32", "ring" if comm.rank == 0 else "tree", comm=comm)
        names = ("a", "b") if comm.rank else ("b", "a")
        with pytest.raises(UserError, match="in one order, on every rank"):
            Gradients(dict.fromkeys(names, (3,)), comm=comm)


MANY = dict.fromkeys("abcdefg", (2, 3))
UNLIKE = [
    ({}, {"shapes": MANY | {"e": (3, 2)}}, r"tensor 4 is 'e' \(2, 3\) on rank 0, 'e' \(3, 2\) on rank L; name the same, in one order, on every rank"),
    ({}, {"shapes": {name: MANY[name] for name in "abcdegf"}}, r"tensor 5 is 'f' \(2, 3\) on rank 0, 'g' \(2, 3\) on rank L; name"),
    ({}, {"shapes": MANY | {"h": (np.int64(1),)}}, r"tensor 7 is none on rank 0, 'h' \(1,\) on rank L; name"),
    ({"shapes": MANY | {"h": ()}}, {}, r"tensor 7 is 'h' \(\) on rank 0, none on rank L; name"),
    ({"unused": "error"}, {}, "unused = 'error' on rank 0, 'zero' on rank L; give the same on every rank"),
    ({}, {"unused": "error"}, "unused = 'zero' on rank 0, 'error' on rank L; give the same on every rank"),
    ({}, {"unused": "eror"}, "unused = 'eror' is neither 'zero' nor 'error'"),
    ({}, {"dtype": "float64"}, "rank 0 sums float32 by ring, rank L sums float64 by ring; give the same on every rank"),
    ({}, {"dtype": ">f4"}, "'>f4' is no type to take a mean in"),
]


def told_of(comm, of, first, last):
    """Return what each rank is told where rank 0 and the last one give other arguments than the rest; "" where nothing is."""
    changes = last if comm.rank == comm.size - 1 else first if comm.rank == 0 else {}
    try:
        of.Gradients(**({"shapes": MANY, "collective": "ring", "comm": comm} | changes)).close()
    except UserError as error:
        return comm.allgather(str(error))
    return comm.allgather("")


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("first", "last", "what"), UNLIKE)
def test_arguments_that_differ_between_ranks_are_told_on_all_by_the_first_difference(comm, first, last, what):
    texts = told_of(comm, gradients, first, last)
    assert len(set(texts)) == 1
    assert re.search(what.replace("rank L", f"rank {1 if first else comm.size - 1}"), texts[0]), texts[0]


@pytest.mark.mpi(min_size=2)
def test_the_check_of_arguments_catches_one_that_is_not_compared(comm):
    lax = changed(gradients, [("        if unlike != unused:\n", "        if False:\n")])
    assert set(told_of(comm, lax, {}, {"unused": "error"})) == {""}
    blind = changed(gradients, [("enumerate(zip_longest(first, other)) if pair[0] != pair[1])", "enumerate(zip_longest(first, other)))")])
    assert "tensor 0 is 'a' (2, 3) on rank 0, 'a' (2, 3) on" in told_of(comm, blind, {}, {"shapes": MANY | {"e": (3, 2)}})[0]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("reduces", [False, True])
@pytest.mark.parametrize("collective", ["auto", "ring", "mpi"])
def test_a_rank_that_breaks_its_rounds_is_named_by_all_and_all_may_leave_at_once(comm, collective, reduces):
    def leave(who):
        with Gradients({"w": (300,), "b": (3,)}, "float64", collective, comm=comm, wait_limit=20) as total:
            for k, _ in enumerate(total.over(range(5))):
                if k == 2 and comm.rank in who and not reduces:
                    break
                total.ready("b")
                total.reduce(1)
                if k == 2 and comm.rank in who:
                    break

    leave(range(comm.size))
    with pytest.raises(UserError, match="rank 1 has left its rounds, and others go on; let all leave in one round"):
        leave([1])


def test_alone_it_leaves_the_program_its_signals_and_exceptions(monkeypatch):
    monkeypatch.setattr(abort, "install", lambda comm: pytest.fail("a program of one process keeps its own ends"))
    with Gradients(SHAPES) as total:
        total["a"][:] = 2
        assert total.reduce(2) == 2 and total["a"][0, 0] == 1
    assert not abort._limits
