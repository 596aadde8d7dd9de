"""Training through servers in codes: bytes are what the formula says, little is lost, and a saved run goes on to the same bits."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from mpidml.compression.base import Compressor, make_codec
from mpidml.core.cost import CostModel
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.partition import shards
from mpidml.core.role import PUSH, ROWS
from mpidml.data.readers import read
from mpidml.nn.models import build
from mpidml.ps.coded import UNKNOWN, CodedClient
from mpidml.ps.codes import Codes
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.driver import Driver
from mpidml.runtime.payload import payload
from mpidml.runtime.resume import resumed
from mpidml.runtime.wire import HEADER_NBYTES
from mpidml.sim.parameter_server import Plan, simulate
from mpidml.strategies.base import train
from mpidml.strategies.parameter_server import ParameterServer
from mpidml.sync.asp import Asp
from mpidml.sync.bsp import Bsp
from tests.strategies.test_identities import SMALL
from tests.strategies.test_resume import go_on, start
from tests.strategies.test_sparse import SMALL as SPARSE
from tests.strategies.test_sparse import rows
from tests.training import trained

pytestmark = pytest.mark.shows_from(3)

CODED = SMALL.with_values({"transport": "mpi", "wait_limit": 20.0, "compress": "two_bit"}, "test")
LOGISTIC = Job(
    data="digits", model="softmax", optimizer="sgd", lr=0.5, epochs=12, batch=60, report=False, backend="numpy", dtype="float64", transport="mpi",
    wait_limit=20.0,
)  # fmt: skip


def apart(comm):
    return "1" if comm.size > 1 else "colocated"


def coder_of(job):
    n_features = read(job.data).x[0].size
    net = build(job.model, n_features, 10, job.widths, dtype=job.dtype, backend="numpy")
    return net, Compressor(make_codec(job.compress), net.params, net.dtype, net.backend)


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["parameter_server", "data_parallel"])
@pytest.mark.parametrize("codec", ["two_bit", "top_k:0.05", "fp16", "low_rank", "random_k:0.1", "sign_majority"])
def test_a_run_that_diverges_goes_on_and_says_since_when_as_without_codes(comm, codec, strategy):
    job = CODED.with_values({"compress": codec, "strategy": strategy, "hidden": (64,), "optimizer": "sgd", "lr": 1e200, "steps": 8}, "test")
    assert trained(comm, job)[0]["diverged_at_clock"] is not None


def counting(monkeypatch):
    """Return where the bytes that this rank sends from now on, of pushes and of answers, are counted, and the answers that are values to be kept."""
    sent = {PUSH: 0, ROWS: 0, "values": 0}
    send = Driver._send

    def counted(self, me, target, rank, message):
        if message.data is not None:
            sent[message.kind] += message.data.array.nbytes
            sent["values"] += message.kind == ROWS and not message.batch
        send(self, me, target, rank, message)

    monkeypatch.setattr(Driver, "_send", counted)
    return sent


@pytest.mark.mpi
@pytest.mark.parametrize("codec", ["two_bit", "bf16", "top_k:0.05", "sign_majority"])
def test_the_transport_counts_one_code_each_way_a_clock_and_values_first_and_last(comm, monkeypatch, codec):
    if comm.size == 1:
        return
    sent = counting(monkeypatch)
    job = CODED.with_values({"compress": codec, "servers": "1"}, "test")
    summary, _ = trained(comm, job)
    net, coder = coder_of(job)
    code, full, n = coder.nbytes(0, net.n_params), net.n_params * 8, comm.size - 1
    answer = full if codec == "sign_majority" else code
    pushes, answers = comm.allreduce(sent[PUSH]), comm.allreduce(sent[ROWS])
    assert pushes == n * job.steps * code
    assert answers == n * ((job.steps - 1) * answer + 2 * full)
    moved = payload(job, net, 1)
    plan = Plan(Bsp(), n, job.steps, CostModel(bytes_per_second=1e9), nbytes=moved.values, pushed=moved.pushed, answer=moved.answer)
    assert simulate(plan).nbytes == pushes + answers
    reports = sum(summary["bytes_sent"]) - (pushes + answers + sum(summary["messages"]) * HEADER_NBYTES)
    assert 0 <= reports < 200 * job.steps * n  # what workers tell of their clocks


@pytest.mark.mpi
def test_of_a_large_net_two_bits_are_a_sixteenth_both_ways(comm):
    if comm.size != 2:
        return
    job = CODED.with_values({"hidden": (400, 400), "servers": "1", "dtype": "float32", "early_push": "off"}, "test")
    few, many = (sum(trained(comm, job, steps=steps)[0]["bytes_sent"]) for steps in (5, 8))
    plain, more = (sum(trained(comm, job, steps=steps, compress="")[0]["bytes_sent"]) for steps in (5, 8))
    assert 15 < (more - plain) / (many - few) <= 16


class NoResidual(CodedClient):
    def push(self, *arguments, **options):
        for name, array in self.coder.state().items():
            if name.endswith("residual"):
                array.fill(0)
        return super().push(*arguments, **options)


def without_residuals(monkeypatch):
    monkeypatch.setattr(Codes, "client", lambda self, tables, w, allocate: NoResidual(tables, self.policy, self.by_clock, self.coders[w], allocate))


@pytest.mark.mpi
def test_codes_lose_little_and_without_residuals_much(comm, monkeypatch):
    if comm.size > 3:  # it takes long, and two workers are several
        return
    job = LOGISTIC.with_values({"servers": apart(comm)}, "test")
    plain, *coded = (trained(comm, job, compress=codec)[0]["final_loss"] for codec in ("", "two_bit", "one_bit"))
    assert max(coded) <= 1.02 * plain
    without_residuals(monkeypatch)
    assert trained(comm, job, compress="one_bit")[0]["final_loss"] > 2 * plain


@pytest.mark.mpi
@pytest.mark.parametrize("codec", ["two_bit", "low_rank", "random_k:0.1", "sign_majority"])
def test_under_bsp_a_run_repeats_whatever_the_delays(comm, codec):
    options = {"compress": codec, "servers": apart(comm), "early_push": "off"}
    first, second = (trained(comm, CODED, **options, slowdown=slowdown)[0] for slowdown in ("", "exponential:0.5"))
    assert first["model_sha256"] == second["model_sha256"]


@pytest.mark.mpi
@pytest.mark.parametrize(
    "options",
    [{}, {"early_push": "on"}, {"servers": "colocated"}, {"sync": "ssp:2", "deterministic": True}, {"compress": "low_rank:8", "hidden": (1200, 16)}],
    ids=str,
)
def test_any_layout_in_codes_ends_near_the_run_without(comm, options):
    if comm.size == 1:
        return
    options = {"servers": "1", "compress": "two_bit", **options}
    plain, coded = (trained(comm, CODED, **{**options, "steps": 60, "compress": codec})[0] for codec in ("", options["compress"]))
    assert coded["test_accuracy"] >= plain["test_accuracy"] - 0.06
    assert sum(coded["bytes_sent"]) < sum(plain["bytes_sent"]) / 3  # small tensors, the first and the last values are many in so few clocks


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["ssp:3", "asp", "dssp", "adaptive", "quorum", "warmup:5:2"])
def test_every_policy_trains_in_codes(comm, sync):
    summary, values = trained(comm, CODED, sync=sync, steps=60, servers=apart(comm))
    assert np.isfinite(values).all() and summary["test_accuracy"] > 0.7


@pytest.mark.mpi
@pytest.mark.parametrize("options", [{"assign": "dynamic", "sync": "asp"}, {"validate": 0.2, "patience": 2, "steps": 0, "epochs": 6}], ids=str)
def test_blocks_of_free_workers_and_looks_between_epochs_go_with_codes(comm, options):
    summary, values = trained(comm, CODED, **{"steps": 60, "servers": apart(comm), **options})
    assert np.isfinite(values).all() and summary["test_accuracy"] > 0.7


@pytest.mark.mpi(min_size=3)
def test_between_hosts_codes_are_on_without_being_asked_for(comm):
    plain, coded = (trained(comm, CODED, ranks_per_host=2, transport="auto", steps=30, compress=codec)[0] for codec in ("", "two_bit"))
    assert sum(coded["bytes_sent"]) < sum(plain["bytes_sent"]) / 3
    assert sum(coded["bytes_window"]) < sum(plain["bytes_window"]) / 3  # what stays on a host, in the window, is the code, too


RESUMED = {"transport": "mpi", "compress": "two_bit", "optimizer": "adam", "lr": 0.01}


@pytest.mark.mpi
@pytest.mark.parametrize(
    "options",
    [{"sync": "bsp"}, {"sync": "bsp", "compress": "low_rank"}, {"sync": "ssp:2", "deterministic": True}, {"sync": "bsp", "servers": "1"}],
    ids=str,
)
def test_a_saved_run_goes_on_to_the_same_bits(comm, mpi_tmp_path, options):
    options = {**RESUMED, **options, "servers": apart(comm) if "servers" in options else "colocated"}
    whole = start(comm, mpi_tmp_path / "whole", 20, checkpoint_every=0, **options)[0]
    paused = start(comm, mpi_tmp_path / "paused", 20, **options)[0]
    start(comm, mpi_tmp_path / "cut", 14, **options)
    cut = go_on(comm, mpi_tmp_path / "cut")[0]
    assert whole["model_sha256"] == paused["model_sha256"] == cut["model_sha256"]


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:2", "asp"])
def test_a_run_that_pauses_sends_the_bytes_of_one_that_does_not(comm, mpi_tmp_path, monkeypatch, sync):
    if comm.size == 1:
        return
    sent, roles = counting(monkeypatch), ParameterServer.roles

    def answers(name, **changes):
        sent[ROWS] = sent["values"] = 0
        start(comm, mpi_tmp_path / name, 20, sync=sync, servers="1", **{**RESUMED, **changes})
        return comm.allreduce(sent["values"]), comm.allreduce(sent[ROWS]) * (sync == "bsp")  # else a read that finds nothing new has no bytes

    def forgetful(self, *arguments):
        self.codes.clients.clear()
        for store in self.codes.stores:
            store.n_codes.clear()
        return roles(self, *arguments)

    whole, often = answers("whole", checkpoint_every=20), answers("often", checkpoint_every=2)
    assert often == whole and whole[0] == comm.size - 1, "values go to each worker once"
    monkeypatch.setattr(ParameterServer, "roles", forgetful)
    values, nbytes = answers("forgetful", checkpoint_every=2)
    assert values > 2 * whole[0] and nbytes >= 2 * whole[1]


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["residual", "compress.copy"])
def test_the_bits_catch_what_is_not_saved(comm, mpi_tmp_path, monkeypatch, name):
    whole = start(comm, mpi_tmp_path / "whole", 20, checkpoint_every=0, **RESUMED)[0]
    kept = Codes.kept
    monkeypatch.setattr(Codes, "kept", lambda self: [piece for piece in kept(self) if name not in piece[0]])
    start(comm, mpi_tmp_path / "cut", 14, **RESUMED)
    assert whole["model_sha256"] != go_on(comm, mpi_tmp_path / "cut")[0]["model_sha256"]


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("sync", ["bsp", "asp"])
def test_a_saved_run_goes_on_at_other_numbers_of_workers_and_servers(comm, mpi_tmp_path, sync):
    start(comm, mpi_tmp_path / "run", 14, 3, sync=sync, **RESUMED)
    found = go_on(comm, mpi_tmp_path / "run", 2, servers="1")
    if found is not None:
        assert np.isfinite(found[1]).all() and found[0]["clocks"] == 20
    for strategy in ("data_parallel", "averaging"):
        with pytest.raises(UserError, match="whose workers keep other state"):
            resumed(mpi_tmp_path / "run", {"steps": 30, "strategy": strategy})


def made(codec, n_workers, policy):
    net, _ = coder_of(CODED)
    codes = Codes(CODED.with_values({"compress": codec}, "test"), net, range(n_workers), n_workers, policy, policy.commit == "clock")
    half = net.n_params // 3 // 16 * 16 if not codes.starts else codes.starts[2]
    for lo, hi in ((0, half), (half, net.n_params)):
        codes.store([np.zeros(hi - lo)], lo, 1, net.backend, None)
    return codes


@pytest.mark.parametrize("split", [False, True])
def test_a_codec_that_needs_tensors_in_full_takes_the_parts_of_layers_that_are_not_split(split):
    net = build("mlp", 240, 10, (1200, 16), dtype="float64", backend="numpy")
    codes = Codes(CODED.with_values({"compress": "low_rank"}, "test"), net, [0], 1, Bsp(), True)
    net.split = split
    cut = shards(net.n_params, 1, net.parts(), 16, codes.starts)
    assert len(cut) == 3 + split
    with pytest.raises(UserError, match=r"'layers\.0\.weight' is cut at 0:72000") if split else nullcontext():
        for lo, hi, _ in cut:
            codes.store([np.zeros(hi - lo)], lo, 1, net.backend, None)


def owed(codes):
    return {name: sum(coder.state()[f"{name}.residual"] for coder in codes.coders.values()) for name in codes.net.params.shapes}


@pytest.mark.parametrize("codec", ["two_bit", "low_rank"])
@pytest.mark.parametrize("policy", [Bsp(), Asp()], ids=["bsp", "asp"])
def test_what_is_owed_and_held_goes_to_as_many_workers_bit_by_bit_and_to_others_in_sum(codec, policy):
    codes, draw = made(codec, 3, policy), np.random.default_rng(0)
    for worker, coder in codes.coders.items():
        coder.encode(draw.standard_normal(coder.hi), 0, coder.hi, np.zeros(coder.nbytes(0, coder.hi), np.uint8), worker)
    for store in codes.stores:
        for version in (1, 2):
            store.versions[0][:] = draw.standard_normal(store.total.size)
            for worker in range(3):
                store.go_on(worker, version if codes.shares else 10 * version + worker)
    saved = {}
    for name, first, size, array in codes.kept():
        saved.setdefault(name, np.zeros(size, array.dtype))[first : first + array.size] = array
    assert ("compress.copy" in saved) == codes.shares == ("compress.copy.2" not in saved)

    def read(name, first, out):
        if name in saved:
            out[:] = saved[name][first : first + out.size]
        return name in saved

    same, fewer = made(codec, 3, policy), made(codec, 2, policy)
    same.restore(read, 3)
    fewer.restore(read, 3)
    for name, total in owed(codes).items():
        assert owed(same)[name].tobytes() == total.tobytes()
        np.testing.assert_allclose(owed(fewer)[name], total, rtol=1e-12, atol=1e-12)
    for store, other, less in zip(codes.stores, same.stores, fewer.stores, strict=True):
        assert [copy.values.tobytes() for copy in store.copies] == [copy.values.tobytes() for copy in other.copies]
        assert {copy.version for copy in other.copies} == ({2} if codes.shares else {UNKNOWN})
        assert all((copy is None) != codes.shares for copy in less.copies)
        assert all(store.coder.state()[name].tobytes() == array.tobytes() for name, array in other.coder.state().items() if "residual" not in name)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"transport": "auto"},
            "--compress two_bit: is off where all ranks share memory, for nothing is sent there; add --transport mpi, or leave it out",
        ),
        ({"budget": 1e6}, "encodes a gradient as a whole, --budget 1e.06 sends it in pieces; leave one of them out"),
        ({"optimize": "workers"}, "--optimize workers adds to a worker's reads what it has sent, .*; use --optimize servers"),
        ({"reads": "cached"}, "--reads cached does not ask for each; use --reads fresh"),
        ({"reads": "eager"}, "--reads eager does not ask for each; use --reads fresh"),
        ({"compress": "sign_majority", "sync": "asp"}, "under --sync asp each gradient counts by itself; use --sync bsp, or a codec such as one_bit"),
        ({"compress": "tow_bit"}, "did you mean 'two_bit'"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(comm, changes, what):
    with pytest.raises(UserError, match=what) as error:
        trained(comm, CODED, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.mpi
def test_sparse_rows_are_refused(comm):
    x, y = rows()
    counted = CountedComm(comm)
    with pytest.raises(UserError, match=r"--compress two_bit: the rows of .* are sparse .*; leave it out, or make them dense"):
        train(SPARSE.with_values({"compress": "two_bit", "transport": "mpi"}, "test"), counted, quiet=True, write=False, data=(x, y))
    counted.free()
