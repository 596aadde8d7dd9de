"""Codes between replicas of parts of layers: nothing is lost, who has the same keeps the same bits, and a saved run goes on to the same bits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from mpidml_kernels import backend

from mpidml.core.flat import FlatParams
from mpidml.runtime import compressed_sum
from mpidml.runtime.coded_parts import CodedParts
from mpidml.runtime.compressed_sum import Compressed, CompressedSum
from mpidml.runtime.resume import resumed
from mpidml.runtime.staged import Staged
from tests.changed import changed
from tests.strategies.test_hybrid import JOB, run
from tests.training import driven

CODECS = ["fp16", "two_bit", "top_k:0.1", "low_rank"]
HOW = {"compress": "two_bit", "collective": "auto", "transport": "mpi", "hidden": (45, 35), "deterministic": True}
GRID = {"grid": "data=2,tensor=2", "microbatches": 2}
"""On five ranks the first four have it; widths are odd, so parts are unequal."""


def ways(comm):
    """List the grids of parts on these ranks, with how many of them take part."""
    return [(GRID, 4)] * (comm.size >= 4) + [({"grid": f"data={comm.size}", "mix": "2=tensor"}, comm.size)] * (comm.size > 1)


def watched(monkeypatch):
    """Add up what each rank gives to sums in codes, and what comes back."""
    moved = SimpleNamespace(given=0.0, came=0.0)
    start, test = CompressedSum.start, CompressedSum.test

    def starts(self):
        moved.given = moved.given + np.concatenate(self.values)
        start(self)

    def tests(self):
        was = self.phase
        if (done := test(self)) and was < 2:
            moved.came = moved.came + np.concatenate(self.values)
        return done

    monkeypatch.setattr(CompressedSum, "start", starts)
    monkeypatch.setattr(CompressedSum, "test", tests)
    return moved


def difference(part, moved, way, codec):
    """Train; return how far what came and what is kept are from what was given, of the parts that replicas have, at most."""
    with driven(part, JOB, **{**HOW, **way, "compress": codec}) as running:
        strategy = running.strategy
        (coded,) = strategy.codes.values()
        kept = np.zeros(coded.params.size)
        for coder in (coded.up, *coded.downs):
            for name, array in coder.state().items():
                if name.endswith(".residual"):
                    at = max(coded.params.slices[name.removesuffix(".residual")].start, coder.lo)
                    kept[at : at + array.size] += array
        given, owed = np.sum(strategy.replicas.allgather((moved.given, kept)), axis=0)
        strategy.check_alike()
        (held,) = strategy.held.values()
        shared = [held.weights()[at].tobytes() for at in held.stage.shared()]
        assert len(set(map(tuple, strategy.line.allgather(shared)))) == 1, "who has the same keeps the same bits"
        assert coded.params.size == held.stage.n_summed > 0
    return np.abs(moved.came + owed - given).max()


@pytest.mark.mpi
@pytest.mark.parametrize("codec", CODECS)
def test_what_comes_back_and_what_is_kept_is_what_replicas_gave_of_their_parts(comm, monkeypatch, codec):
    for way, n in ways(comm):
        part = comm.Split(comm.rank >= n, comm.rank)
        if comm.rank < n:
            with monkeypatch.context() as patch:
                assert difference(part, watched(patch), way, codec) < 1e-9, way
        part.Free()


@pytest.mark.mpi(min_size=2)
def test_the_sum_catches_a_residual_that_is_lost(comm, monkeypatch):
    encode = compressed_sum.Compressor.encode

    def forgets(self, x, lo, hi, code, step=0):
        encode(self, x, lo, hi, code, step)
        for name, array in self.state().items() if step == 3 else ():
            array[...] = 0 if name.endswith("residual") else array

    monkeypatch.setattr(compressed_sum.Compressor, "encode", forgets)
    assert difference(comm, watched(monkeypatch), ways(comm)[-1][0], "two_bit") > 1e-6


def edges(of, n_ranks, sizes, longest):
    """Return where a vector of shared tensors and a part of each of `sizes` is cut."""
    found = []
    for size in sizes:
        params = FlatParams([("a", (30, 10)), ("b", (100,)), ("part", (size,))])
        codes = of(HOW["compress"], params, "f8", backend("numpy"), 5, None, longest)
        codes.comm = SimpleNamespace(size=n_ranks)
        found.append([edge for edge in codes._edges(0, params.size) if edge < 400])
    return found


@pytest.mark.parametrize("n_ranks", [2, 3, 7])
def test_what_all_parts_have_is_cut_alike_whatever_else_they_have(n_ranks):
    sizes = (0, 10, 60, 300)
    first, *others = edges(Compressed, n_ranks, sizes, 700)
    assert all(other == first[: len(other)] and all(edge >= 400 for edge in first[len(other) :]) for other in others)
    broken = changed(compressed_sum, [("max(hi - lo, self.longest)", "(hi - lo)")]).Compressed
    first, *others = edges(broken, n_ranks, sizes, 700)
    assert any(other != first for other in others)


@pytest.mark.mpi(min_size=2)
def test_parts_learn_in_codes(comm):
    for way, n in ways(comm):
        coded, plain = (run(comm, n_ranks=n, **{**HOW, **way, "steps": 60, "compress": codec})[0] for codec in ("two_bit", ""))
        if comm.rank < n:
            assert coded["test_accuracy"] >= plain["test_accuracy"] - 0.06, way
            assert sum(coded["bytes_sent"]) < sum(plain["bytes_sent"]), way


def cut(comm, folder, way, n, codec):
    """Train a run as a whole, and another one that is saved after half; return the values of the first."""
    how = {**HOW, **way, "compress": codec}
    _, expected = run(comm, n_ranks=n, **how)
    run(comm, n_ranks=n, **how, steps=4, checkpoint_every=4, write=True, out=folder)
    comm.Barrier()
    return expected


def owed(strategy, kept):
    """Return what codes have left, all that ranks list of it, as one vector of the network's elements."""
    found, slices = np.zeros(strategy.net.n_params), strategy.net.params.slices
    for name, first, _, array in (piece for of in strategy.comm.allgather(kept) for piece in of):
        if name == "compress.sum" or name.endswith(".residual"):
            at = first if name == "compress.sum" else first + slices[name.removesuffix(".residual").split(".", 2)[2]].start
            found[at : at + array.size] += array
    return found


OTHERS = [{"grid": "data=2,pipe=2"}, {"grid": "data=2,pipe=2", "partition": "1,2"}, {"grid": "data=4"}]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("codec", ["two_bit", "low_rank"])
def test_a_saved_run_goes_on_to_the_same_bits_and_on_other_grids_with_all_that_is_owed(comm, tmp_path, monkeypatch, codec):
    saved, restored, kept, restore = [], [], Staged.kept, Staged.restore

    def keeps(self):
        found = kept(self)
        saved.append(owed(self, found))
        return found

    def restores(self, read, n_before):
        restore(self, read, n_before)
        restored.append(owed(self, kept(self)))
        states = [coder.state() for codes in self.codes.values() for coder in (codes.up, *codes.downs)]
        assert all(array.any() for state in states for name, array in state.items() if not name.endswith(".residual") and array.size), "what is 0 stays 0"

    monkeypatch.setattr(Staged, "kept", keeps)
    monkeypatch.setattr(Staged, "restore", restores)
    for i, (way, n) in enumerate(ways(comm)):
        saved.clear(), restored.clear()
        folder = comm.bcast(str(tmp_path / f"{codec}{i}"))
        expected = cut(comm, folder, way, n, codec)
        for changes in [{}, *OTHERS] if n == 4 else [{}]:
            _, values = run(comm, resumed(folder, {"steps": 8, **changes}), n)
            assert values is None or (np.array_equal(values, expected) if not changes else np.isfinite(values).all()), changes
        assert all(np.abs(saved[0] - each).max() < 1e-12 < np.abs(each).max() for each in restored), [
            np.abs(saved[0] - each).max() for each in restored
        ]
        assert len(restored) == (comm.rank < n) * (1 + len(OTHERS) * (n == 4))


@pytest.mark.mpi(min_size=5)
def test_the_bits_catch_residuals_of_parts_that_are_not_saved(comm, tmp_path, monkeypatch):
    folder = comm.bcast(str(tmp_path / "run"))
    monkeypatch.setattr(CodedParts, "kept", lambda self: [])
    expected = cut(comm, folder, GRID, 4, "two_bit")
    _, values = run(comm, resumed(folder, {"steps": 8}), 4)
    assert values is None or not np.array_equal(values, expected)
