"""Hold data-parallel training whose sums are in a fixed order of blocks to the same bits at any number of ranks: under --deterministic, and by ordered:N."""

from __future__ import annotations

import itertools
import json
import os

import numpy as np
import pytest

from mpidml.collectives.ordered import Ordered
from mpidml.core import plugins
from mpidml.core.block_tree import BlockTree
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.data.sampler import Sampler
from mpidml.runtime import scoring
from mpidml.runtime.block_training import BlockTraining
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.resume import resumed
from mpidml.runtime.threads import THREAD_VARIABLES
from mpidml.strategies.base import train
from mpidml.strategies.data_parallel import DataParallel
from tests.ranks import mpirun, need
from tests.strategies.test_data_parallel import JOB, run


def curves(comm, rows=("loss", "samples", "test_loss", "test_accuracy", "val_loss", "val_accuracy"), data=None, **changes):
    """Train on the first 1, 2, ... ranks; return on every rank the different (model, curve, final scores) that they found."""
    found = []
    for n in range(1, comm.size + 1):
        part = comm.Split(0 if comm.rank < n else 1, comm.rank)
        if comm.rank < n:
            counted, kept = CountedComm(part), {}
            job = JOB.with_values({"bucket": Job.bucket, "deterministic": True, "dtype": "float32", "batch": 70, **changes}, "test")
            summary = train(job, counted, quiet=True, write=False, keep=kept, data=data)
            if comm.rank == 0:
                curve = tuple(tuple(row.get(name) for name in rows) for row in kept["metrics"])
                found.append((summary["model_sha256"], curve, summary["test_loss"], summary["final_loss"]))
            counted.free()
        part.Free()
    return comm.bcast(set(found))


LOOKS = {"model": "softmax", "hidden": Job.hidden, "batch": 1600, "epochs": 30, "steps": 0}
"""As many looks as clocks: what each rank rounds for itself shows in some of them."""
ORDERED = [
    {}, {"optimizer": "adam", "lr": 0.01, "backend": "numba"}, {"optimizer": "clip:0.1+momentum"}, {"dropout": 0.2}, {"batch": 9, "collective": "ordered:8"},
    {"collective": "ordered:64", "optimizer": "adagrad"}, LOOKS, LOOKS | {"validate": 0.25},
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("way", ORDERED, ids=str)
def test_deterministic_gives_the_same_curve_and_model_bit_by_bit_at_any_number_of_ranks(comm, way):
    found = curves(comm, **way)
    assert len(found) == 1
    _, curve, *_ = found.pop()
    assert len(curve) == way.get("epochs", 8)
    assert all(row[0] > 0 for row in curve)
    looked_at = 4 if "validate" in way else 2
    assert sum(row[looked_at] is not None for row in curve) == way.get("epochs", 1) - 1


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("way", [LOOKS, LOOKS | {"validate": 0.25}], ids=str)
def test_the_bits_catch_scores_that_each_rank_rounds(comm, way, monkeypatch):
    monkeypatch.setattr(scoring, "rests", lambda of: (0.0,) * len(scoring.sums(of)))
    found = curves(comm, **way)
    assert len(found) > 1 and len({(model, tuple(row[0] for row in curve), *final) for model, curve, *final in found}) == 1


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("broken", ["shares cut across blocks", "sums in the order of ranks", "the loss summed by each rank"])
def test_the_bits_catch_what_depends_on_the_ranks(comm, broken, monkeypatch):
    if broken == "shares cut across blocks":
        monkeypatch.setattr(Sampler, "_edge", lambda self, clock, block: self.batch_size(clock) * (block * self.n_workers // 16) // self.n_workers)
    elif broken == "sums in the order of ranks":
        init = BlockTree.__init__

        def by_rank(self, n_blocks, n_ranks):
            init(self, n_blocks, n_ranks)
            self.adds = [(0, row) for row in range(1, len(self.rows))]

        monkeypatch.setattr(BlockTree, "__init__", by_rank)
    else:  # each adds its blocks' losses up as they come

        def summed(self, rows, batch, w, g, scale, report):
            sum_up(self, rows, batch, w, g, scale, report)
            edges = self.sampler.edges(batch, self.worker)
            scratch = np.zeros_like(g)
            return sum(self._run(rows[a:b], a, batch, w, scratch, scale, None) for a, b in itertools.pairwise(edges) if a < b)

        sum_up = BlockTraining._sum_up
        monkeypatch.setattr(BlockTraining, "_sum_up", summed)
        monkeypatch.setattr(DataParallel, "loss", property(lambda self: None, lambda self, value: None))
    assert len(curves(comm)) > 1


def curves_of_63_parameters(comm):
    """Train a model whose gradient ends one element before a part may begin: the two numbers of the loss come right behind it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20))
    return curves(comm, data=(x, (x[:, :3] + rng.normal(size=(400, 3))).argmax(axis=1)), model="softmax", hidden=Job.hidden)


@pytest.mark.mpi
def test_the_loss_has_one_owner_whatever_the_number_of_parameters(comm):
    assert len(curves_of_63_parameters(comm)) == 1


@pytest.mark.mpi(min_size=2)
def test_the_bits_catch_a_loss_of_two_owners(comm, monkeypatch):
    monkeypatch.setattr(Ordered, "room", lambda self, n, more: n + more)
    assert len(curves_of_63_parameters(comm)) > 1


ANY_THREADS = """
from mpidml.strategies.data_parallel import DataParallel

class AnyThreads(DataParallel):
    same_bits = property(lambda self: False, lambda self, value: None)
"""


@pytest.mark.parametrize("broken", [False, True])
def test_ordered_sums_have_the_same_bits_though_nobody_has_set_threads(tmp_path, monkeypatch, broken):
    """One rank alone has all cores for its products, whose bits go by the number of threads, unless the strategy asks for one."""
    need(not broken or len(os.sched_getaffinity(0)) > 1, "two cores")
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "any_threads.py").write_text(ANY_THREADS)
    words = ["--strategy", tmp_path / "any_threads.py" if broken else "data_parallel", "--collective", "ordered", "--hidden", "512,512", "--batch", "1600"]
    words += ["--steps", "2", "--hold-out", "0", "--backend", "numpy", "--no-report", "--out"]
    found = set()
    for n in (1, 2):
        result = mpirun(n, ["-m", "mpidml", "train", *words, tmp_path / str(n)])
        assert result.code == 0, result
        found.add(json.loads((tmp_path / str(n) / "summary.json").read_text())["model_sha256"])
    assert (len(found) > 1) == broken


@pytest.mark.mpi
def test_an_ordered_run_that_was_saved_goes_on_to_the_same_bits_on_other_ranks(comm, mpi_tmp_path):
    options = {"deterministic": True, "bucket": Job.bucket, "steps": 14, "checkpoint_every": 7, "optimizer": "adam", "lr": 0.01}
    whole, _ = run(comm, **options | {"steps": 20, "checkpoint_every": 0})
    run(comm, write=True, **options | {"out": str(mpi_tmp_path / "cut")})
    comm.Barrier()
    part = comm.Split(comm.rank > 0, comm.rank)
    if comm.rank == 0:
        job = resumed(mpi_tmp_path / "cut", {"steps": 20, "out": str(mpi_tmp_path / "alone")})
        assert run(part, job, write=True)[0]["model_sha256"] == whole["model_sha256"]
    part.Free()


VOTED = [{"checkpoint_every": 2}, {"target": "loss:1e-9"}, {"seconds": 0.2, "steps": 0}, {"patience": 9, "validate": 0.1}]


def ends_as_without(comm, out, option):
    """Tell whether a run of 32 blocks that votes on its end has the model of one of as many clocks that does not."""
    given = {"collective": "ordered:32", "bucket": Job.bucket, "batch": 400, "validate": option.get("validate", 0.0)}
    voted, _ = run(comm, write=True, out=str(out), **given | option)
    return voted["model_sha256"] == run(comm, **given, steps=voted["clocks"])[0]["model_sha256"]


@pytest.mark.mpi
@pytest.mark.parametrize("option", VOTED, ids=str)
def test_votes_have_no_blocks_and_are_summed_beside_any_number_of_them(comm, mpi_tmp_path, option):
    assert ends_as_without(comm, mpi_tmp_path / "voted", option)


@pytest.mark.mpi
def test_the_check_catches_votes_that_are_planned_as_gradients_are(comm, mpi_tmp_path, monkeypatch):
    monkeypatch.delattr(plugins.load("mpidml.collectives", "ordered"), "plan_beside")
    with pytest.raises(UserError, match="ordered:32: blocks are of a batch's samples"):
        ends_as_without(comm, mpi_tmp_path / "voted", VOTED[0])


@pytest.mark.mpi
def test_blocks_that_cannot_be_are_refused(comm):
    plain = {"bucket": Job.bucket}
    for changes, what in (
        ({"collective": "ordered:12", **plain}, "12 blocks are no power of two"),
        ({"deterministic": True, "accumulate": 2, **plain}, "--accumulate 2: does nothing where gradients are computed block by block"),
        ({"deterministic": True}, "--bucket 512: does nothing where"),
    ):
        with pytest.raises(UserError, match=what):
            run(comm, **changes)
    if comm.size > 2:
        with pytest.raises(UserError, match=f"2 blocks are too few for {comm.size} ranks; use --collective ordered:{1 << (comm.size - 1).bit_length()}"):
            run(comm, collective="ordered:2", **plain)
