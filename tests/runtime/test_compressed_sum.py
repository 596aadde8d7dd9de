"""Sums in codes lose nothing in the end: what all were given back, and what codecs keep, is what all gave."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from mpidml_kernels import backend

from mpidml.compression.base import make_codec
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.flat import FlatParams
from mpidml.core.job import Job
from mpidml.runtime import compressed_sum
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.compressed_sum import Compressed
from mpidml.runtime.resume import resumed
from tests.changed import changed
from tests.shim import cupy_double
from tests.shim.devices import PLACES, device, placed
from tests.strategies.test_identities import SMALL
from tests.training import trained

PARAMS = FlatParams([("a", (40, 30)), ("b", (7,)), ("c", (30, 50)), ("d", (300,))])
KEEPING = [name for name in plugins.names("mpidml.compression") if (codec := make_codec(name)).has_residual and not codec.votes]
STEPS = 30
HOST = backend("numpy")
JOB = SMALL.with_values({"strategy": "data_parallel", "transport": "mpi", "wait_limit": 20.0, "steps": 20}, "test")


def opened(comm, codec, dtype="f8", kernels=HOST):
    collective = Compressed(codec, PARAMS, dtype, kernels, seed=5)
    collective.open(comm)
    gradient = collective.look_at(kernels.zeros(PARAMS.size, dtype))
    cuts = [(2707, 3007), (1207, 2707), (0, 1207)]  # at tensors, as a network's buckets
    return collective, gradient, [collective.plan(gradient[lo:hi]) for lo, hi in cuts]


def given(rank, step):
    return np.random.default_rng([rank, step]).standard_normal(PARAMS.size)


def exchanged(comm, codec, steps=STEPS, kernels=HOST):
    """Sum made-up gradients for some steps; return the sum of the results, and what all ranks keep at the end."""
    collective, gradient, sums = opened(comm, codec, kernels=kernels)
    received = np.zeros(PARAMS.size)
    for step in range(steps):
        collective.step.number = step
        kernels.put(gradient, given(comm.rank, step))
        for each in sums:
            each.start()
        for each in sums:
            each.wait(20)
        found = kernels.host(gradient)
        assert len(set(comm.allgather(found.tobytes()))) == 1
        received += found
    return received, owed(comm, collective), collective


def owed(comm, collective):
    """Return the vector of all residuals: of what was given, by every rank, and of the sums, by their owners."""
    mine = np.zeros(PARAMS.size)
    for name, first, _, array in collective.kept():
        if name.endswith(".residual"):
            mine[PARAMS.slices[name.split(".")[-2]]] += array
        elif name == "compress.sum":
            mine[first : first + array.size] += array
    return np.sum(comm.allgather(mine), axis=0)


@pytest.fixture
def counted(comm):
    own = CountedComm(comm)
    yield own
    own.free()


@pytest.mark.mpi
@pytest.mark.parametrize("codec", KEEPING)
def test_what_is_given_back_and_what_is_kept_is_what_all_gave(counted, codec):
    received, kept, _ = exchanged(counted, codec)
    total = sum(given(rank, step) for rank in range(counted.size) for step in range(STEPS))
    np.testing.assert_allclose(received + kept, total, rtol=1e-9, atol=1e-9)


@pytest.mark.mpi
def test_the_sum_catches_a_residual_that_is_lost(counted, monkeypatch):
    encode = compressed_sum.Compressor.encode

    def forgets(self, x, lo, hi, code, step=0):
        encode(self, x, lo, hi, code, step)
        if step == 3:
            for name, array in self.state().items():
                array[...] = 0 if name.endswith("residual") else array

    monkeypatch.setattr(compressed_sum.Compressor, "encode", forgets)
    received, kept, _ = exchanged(counted, "two_bit")
    total = sum(given(rank, step) for rank in range(counted.size) for step in range(STEPS))
    assert np.abs(received + kept - total).max() > 0.1


@pytest.mark.mpi
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("codec", ["two_bit", "bf16", "top_k", "low_rank"])
def test_on_a_device_nothing_is_lost_either_and_codes_alone_come_to_the_host(counted, codec, place, monkeypatch):
    with placed(place):
        kernels = device().kernels
        received, kept, _ = exchanged(counted, codec, 6, kernels)
        total = sum(given(rank, step) for rank in range(counted.size) for step in range(6))
        np.testing.assert_allclose(received + kept, total, rtol=1e-9, atol=1e-9)
        if place == "gpu":
            return  # whose copies nobody counts
        _, _, sums = opened(counted, codec, kernels=kernels)
        moved = {"get": 0, "set": 0}
        for name in moved:
            before = getattr(cupy_double.ndarray, name)

            def count(self, *given, before=before, name=name, **named):
                moved[name] += self.nbytes if self.dtype == np.uint8 else 0
                return before(self, *given, **named)

            monkeypatch.setattr(cupy_double.ndarray, name, count)
        for each in sums:
            each.start()
            each.wait(20)
        others = [r for r in range(counted.size) if r != counted.rank]
        given_up, own = (sum(of.here.size for each in sums for of in which(each)) for which in (lambda e: [e.given[r] for r in others], lambda e: [e.sums[counted.rank]]))
        came = sum(of.here.size for each in sums for r in others for of in (each.taken[r], each.sums[r]))
        assert moved == {"get": given_up + own, "set": came}


@pytest.mark.mpi
def test_a_device_without_room_is_told_of_with_what_for(counted):
    with placed("lazy"):
        kernels = device().kernels
        collective, gradient, _ = opened(counted, "sign_majority", kernels=kernels)  # whose codes leave nothing
        with cupy_double.room(100), pytest.raises(MemoryError, match=r"^GPU 0: codes of gradients, an array"):
            collective.plan(gradient)
        with cupy_double.room(100), pytest.raises(MemoryError, match=r"^GPU 0: what codes leave, an array"):
            opened(counted, "two_bit", kernels=kernels)


MUTANTS = {
    "the wait for codes": ("            stream.synchronize()\n", ""),
    "codes that came": ("            self.of.from_host([self.taken[r] for r in self.others])\n", ""),
    "sums that came": ("            self.of.from_host([self.sums[r] for r in self.others])\n", ""),
    "codes of sums": ("            self.of.to_host([sums])\n", ""),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", MUTANTS)
def test_on_a_device_each_copy_and_wait_is_needed(counted, name, monkeypatch):
    if counted.size == 1:
        return  # nothing goes
    monkeypatch.setattr(sys.modules[__name__], "Compressed", changed(compressed_sum, [MUTANTS[name]]).Compressed)
    with placed("lazy"):
        try:
            received, kept, _ = exchanged(counted, "bf16", steps=3, kernels=device().kernels)
        except (AssertionError, FloatingPointError):
            received = kept = np.full(1, np.nan)
    total = sum(given(rank, step) for rank in range(counted.size) for step in range(3))
    assert any(counted.allgather(not np.abs(received + kept - total).max() <= 1e-9))


@pytest.mark.mpi
@pytest.mark.parametrize("codec", ["two_bit", "bf16", "low_rank"])
def test_the_transport_counts_two_codes_of_every_part(counted, codec):
    collective, _, sums = opened(counted, codec, "f4")
    before = counted.nbytes_sent
    for each in sums:
        each.start()
    for each in sums:
        each.wait(20)
    sent = counted.nbytes_sent - before
    assert sent == sum(each.nbytes for each in sums)
    P = counted.size
    codes = sum(collective.up.nbytes(lo, hi) for each in sums for lo, hi in each.parts)
    assert sum(counted.allgather(sent)) == 2 * (P - 1) * codes  # every part to its owner from each other rank, and back to each
    plain = 4 * PARAMS.size
    if codec == "two_bit" and P <= 3:  # five cut them so that most pieces go as they are
        assert codes < plain / 6  # its thresholds and the small tensors are many in so few values


@pytest.mark.mpi
def test_of_a_large_tensor_two_bits_are_a_sixteenth_both_ways(counted):
    params = FlatParams([("a", (1000, 640))])
    collective = Compressed("two_bit", params, "f4", backend("numpy"), seed=5)
    collective.open(counted)
    total = collective.plan(collective.look_at(np.zeros(params.size, "f4")))
    formula = 2 * (counted.size - 1) / counted.size * params.size * 4 / 16
    assert total.nbytes == pytest.approx(formula, rel=0.01)


@pytest.mark.mpi
@pytest.mark.parametrize("codec", ["two_bit", "low_rank", "top_k"])
def test_what_is_kept_goes_to_other_ranks_without_loss(counted, codec):
    _, kept, collective = exchanged(counted, codec)
    saved = {}
    for of in counted.allgather(collective.kept()):
        for name, first, size, array in of:
            saved.setdefault(name, np.zeros(size))[first : first + array.size] = array

    def read(name, first, out):
        out[:] = saved[name][first : first + out.size] if name in saved else 0
        return name in saved

    same, _, _ = opened(counted, codec)
    same.restore(read, counted.size)
    np.testing.assert_array_equal(owed(counted, same), kept)
    part = counted.split(counted.rank)
    alone, _, _ = opened(part, codec)
    alone.restore(read, counted.size)
    np.testing.assert_allclose(owed(part, alone), kept, rtol=1e-12, atol=1e-12)
    part.free()


def run(comm, job=JOB, **changes):
    return trained(comm, job, **changes)


@pytest.mark.mpi
@pytest.mark.parametrize(("codec", "loses"), [("two_bit", 0.04), ("top_k:0.1", 0.05), ("bf16", 0.01), ("int8", 0.01), ("low_rank", 0.03)])
def test_training_in_codes_is_nearly_as_good_and_repeats(comm, codec, loses):
    plain, _ = run(comm, steps=100, collective="ring")
    options = {"steps": 100, "compress": codec, "bucket": 4096}
    first, second = (run(comm, **options)[0] for _ in range(2))
    assert first["model_sha256"] == second["model_sha256"]
    assert first["test_accuracy"] >= plain["test_accuracy"] - loses
    if comm.size > 1:
        assert sum(first["bytes_sent"]) < sum(plain["bytes_sent"])


@pytest.mark.mpi
@pytest.mark.parametrize("codec", ["random_k:0.1:unbiased=true", "ternary", "qsgd"])
def test_training_in_unbiased_codes_is_nearly_as_good(comm, codec):
    plain, coded = (run(comm, steps=100, optimizer="sgd", **way)[0] for way in ({"collective": "ring"}, {"compress": codec}))
    assert coded["test_accuracy"] >= plain["test_accuracy"] - 0.03


@pytest.mark.mpi
def test_a_saved_run_in_codes_goes_on_to_the_same_bits(comm, mpi_tmp_path):
    options = {"compress": "two_bit", "bucket": 4096}
    whole, _ = run(comm, **options)
    run(comm, write=True, **options, steps=14, checkpoint_every=7, out=str(mpi_tmp_path / "cut"))
    comm.Barrier()
    job = resumed(mpi_tmp_path / "cut", {"steps": 20, "out": str(mpi_tmp_path / "same")})
    assert run(comm, job, write=True)[0]["model_sha256"] == whole["model_sha256"]
    part = comm.Split(comm.rank > 0, comm.rank)
    if comm.rank == 0:
        job = resumed(mpi_tmp_path / "cut", {"steps": 20, "out": str(mpi_tmp_path / "alone")})
        assert run(part, job, write=True)[0]["clocks"] == 20
        assert json.loads((mpi_tmp_path / "alone" / "summary.json").read_text())["diverged_at_clock"] is None
    part.Free()


@pytest.mark.mpi
def test_inside_a_host_codes_are_off_unless_asked_for_and_between_hosts_they_are_on(comm):
    plain, values = run(comm, transport="auto")
    off, same = run(comm, transport="auto", compress="two_bit")
    assert off["model_sha256"] == plain["model_sha256"] and (values == same).all()
    if comm.size > 2:
        plain, values = run(comm, transport="auto", ranks_per_host=2, collective="hierarchical")
        on, other = run(comm, transport="auto", ranks_per_host=2, compress="bf16")
        assert sum(on["bytes_sent"]) < sum(plain["bytes_sent"]) and not (values == other).all()
        assert run(comm, transport="auto", ranks_per_host=2, compress="bf16", target="0.99")[0]["clocks"] <= 20  # with votes
        np.testing.assert_allclose(values, other, atol=0.05)


@pytest.mark.mpi
def test_what_does_not_go_together_is_refused(comm):
    for changes, what in (
        ({"compress": "tow_bit"}, "did you mean 'two_bit'"),
        ({"compress": "two_bit", "collective": "ring"}, "--collective ring: sums values, --compress two_bit sends codes"),
        ({"collective": "shared"}, "--transport mpi: uses no shared memory, --collective shared does"),
    ):
        with pytest.raises(UserError, match=what):
            run(comm, **changes)
    with pytest.raises(UserError, match="--compress two_bit: does nothing under --strategy averaging"):
        run(comm, SMALL, compress="two_bit", strategy="averaging")
    assert Job.compress == ""
