"""The benchmark of sums on a GPU sums, by every variant, and tells of what it measured; without a GPU it says why it is left out."""

from __future__ import annotations

import shutil
from contextlib import ExitStack

import mpidml_kernels
import pytest

from benchmarks.rounds import Rounds, Sample
from tests.ranks import ROOT, need, python
from tests.shim import cupy_double


@pytest.mark.mpi
@pytest.mark.parametrize(("takes_pointers", "has_nccl"), [(False, False), (True, False), (False, True)])
def test_every_variant_sums(comm, takes_pointers, has_nccl):
    from benchmarks.gpu_allreduce.measure import COPIES, DIRECT, NCCL, STAGED, variants
    from mpidml.runtime.comm import CountedComm

    need(shutil.which("g++"), "a C++ compiler (g++)")
    ranks = CountedComm(comm)
    with ExitStack() as held:
        found = variants(ranks, mpidml_kernels.cuda(cupy_double), 1000, takes_pointers, has_nccl, held)  # each is held to its sum there
        assert list(found) == [COPIES, STAGED, *[DIRECT] * takes_pointers, *[NCCL] * has_nccl]
        for go in found.values():
            go()
        assert cupy_double.locked
    ranks.free()


def test_the_staged_sum_is_held_to_its_copies_at_real_sizes():
    from benchmarks.gpu_allreduce.measure import COPIES, STAGED, TARGET_NBYTES, told

    for seconds, verdict in [(1.2, ": met"), (2.0, ": MISSED, target x0.8")]:
        rounds = Rounds()
        rounds.add(COPIES, Sample(1.0))
        rounds.add(STAGED, Sample(seconds))
        assert told(rounds, TARGET_NBYTES, False)[1].endswith(verdict)
        assert all("met" not in line and "MISSED" not in line for line in (*told(rounds, TARGET_NBYTES, True), *told(rounds, 1024, False)))


def test_without_a_gpu_it_says_why_it_is_left_out():
    from benchmarks import card

    if not card.lacking():
        return  # there it runs, and test_benchmarks.py sees to it
    result = python([ROOT / "benchmarks/gpu_allreduce/run.py", "--smoke"], 100)
    assert result.code == 0 and f"left out: {card.lacking()}\n" in result.out and "met" not in result.out.split(), result
