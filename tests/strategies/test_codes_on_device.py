"""Workers whose gradients stay on a device: codes and links made there leave what the CPU's leave, and nothing else crosses to the host or back."""

import numpy as np
import pytest
from mpidml_kernels import CODES

from mpidml.ps import coded, codes
from mpidml.ps.coded import CodedClient
from mpidml.ps.coded_there import CodedStoreThere
from mpidml.ps.codes import Codes
from mpidml.runtime import group_there, groups, training_there
from mpidml.runtime.driver import Driver
from mpidml.runtime.resume import resumed
from mpidml.strategies import parameter_server
from mpidml.strategies.parameter_server import ParameterServer
from tests.changed import changed
from tests.nn.test_on_device import TOLERANCE
from tests.shim import cupy_double
from tests.shim.devices import PLACES, device, placed
from tests.strategies.test_codes import coder_of
from tests.strategies.test_on_device import JOB, SAME, both, on_device
from tests.strategies.test_resume import go_on, start
from tests.training import trained

ALONE = {"strategy": "parameter_server", "sync": "bsp", "dropout": 0.2}
CODED = {**ALONE, "transport": "mpi", "compress": "two_bit"}
EVERY = ["two_bit", "two_bit:0.01", "top_k:0.05", "low_rank", "sign_majority", "int8", "one_bit", "ternary", "random_k:0.1", "fp16", "bf16", "qsgd"]
WAYS = {
    **{codec: {**CODED, "compress": codec} for codec in EVERY},
    "float32": {**CODED, "compress": "int8", "dtype": "float32"},
    "repeated": {**CODED, "sync": "ssp:1", "assign": "static", "deterministic": True},
    "apart": {**CODED, "servers": "1"},
    "layer by layer": {**CODED, "early_push": "on", "accumulate": 2},
    "codes of what clip makes": {**CODED, "optimizer": "clip:0.5+momentum:0.9"},
    "clip": {**ALONE, "optimizer": "clip:0.5+momentum:0.9"},
    "clip, in parts": {**ALONE, "optimizer": "clip:0.5+momentum:0.9", "accumulate": 3},
    "workers": {**ALONE, "optimizer": "clip:0.5+adam", "lr": 0.01, "optimize": "workers"},
    "lars of workers": {**ALONE, "optimizer": "lars:0.02", "optimize": "workers", "sync": "ssp:1", "assign": "static", "deterministic": True},
    "looks": {**CODED, "steps": 0, "epochs": 3, "batch": 400, "validate": 0.2},
    "patience": {**CODED, "steps": 0, "epochs": 4, "batch": 400, "validate": 0.2, "patience": 1, "optimizer": "adam", "lr": 0.1},
    "groups": {**CODED, "group": 2},
    "groups, whole tensors, in parts": {**CODED, "compress": "low_rank", "group": 2, "accumulate": 2, "servers": "1"},
    "groups, votes": {**CODED, "compress": "sign_majority", "group": 2},
    "groups, codes of what clip makes": {**CODED, "group": 2, "optimizer": "clip:0.5+momentum:0.9", "servers": "1"},
    "groups, looks": {**CODED, "group": 2, "steps": 0, "epochs": 3, "batch": 400, "validate": 0.2},
    "groups, clip": {**ALONE, "group": 2, "optimizer": "clip:0.5+momentum:0.9"},
    "groups, clip, by messages": {**ALONE, "group": 2, "transport": "mpi", "optimizer": "clip:0.5+momentum:0.9", "collective": "ring"},
    "groups between hosts": {**CODED, "group": 2, "transport": "auto", "ranks_per_host": 1, "accumulate": 2},
    "groups between hosts, clip": {**ALONE, "group": 2, "optimizer": "clip:0.5+momentum:0.9", "ranks_per_host": 1},
    "groups, workers": {**ALONE, "group": 2, "optimizer": "clip:0.5+adam", "lr": 0.01, "optimize": "workers"},
    "groups, lars of workers": {**ALONE, "group": 2, "optimizer": "lars:0.02", "optimize": "workers", "sync": "ssp:1", "assign": "static", "deterministic": True},
}


def ways(comm, way):
    """Return a way's changes; None where it needs others."""
    changes = WAYS[way]
    return changes if comm.size > 1 or not {"early_push", "group", "servers"} & changes.keys() else None


@pytest.mark.mpi
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.shows_from(3)) if changes.keys() & {"group", "servers"} else way for way, changes in WAYS.items()])
def test_what_workers_make_there_is_what_they_make_here(comm, monkeypatch, way, place):
    if (changes := ways(comm, way)) is None:
        return  # alone nobody takes a part early, or shares
    (summary, w), (plain, v) = both(comm, monkeypatch, place, **changes)
    assert [summary.get(name) for name in SAME] == [plain.get(name) for name in SAME]
    assert np.abs(w - v).max() <= TOLERANCE[str(v.dtype)] * 100


class Summing(CodedStoreThere):
    """Sums up what it decodes."""

    summed = 0.0

    def step(self, total, *tuning):
        self.summed = self.summed + total.get()
        super().step(total, *tuning)


class Noting(CodedClient):
    """Sums up what is pushed, which lies on the device."""

    given = None

    def push(self, table, delta, rows=None, block=None, *rest, **options):
        lo, hi = block or (0, self.tables[0].n_rows)
        self.given = np.zeros(self.tables[0].n_rows) if self.given is None else self.given
        self.given[lo:hi] += delta.array.get()
        return super().push(table, delta, rows, block, *rest, **options)


class ForgetsResidual(Noting):
    def push(self, *arguments, **options):
        for name, array in self.coder.state().items():
            if name.endswith("residual"):
                array.fill(0)
        return super().push(*arguments, **options)


def lost(comm, monkeypatch, job, client=Noting):
    """Return by how much what servers decode and what workers keep differs from what these have pushed, in parts of the most that was pushed."""
    found, clients, free = [], [], ParameterServer.free

    class Kept(client):
        def __init__(self, *given):
            super().__init__(*given)
            clients.append(self)

    def freed(self):
        params, sums = self.net.params, np.zeros((2, self.net.n_params))
        for store in self.codes.stores:
            sums[1, store.lo : store.hi] += store.summed
        for name, array in (of for coder in self.codes.coders.values() for of in coder.state().items()):
            if name.endswith(".residual"):
                sums[1, params.slices[name.removesuffix(".residual")]] += array.get()
        found.append(sums)
        free(self)

    with monkeypatch.context() as patched, placed("lazy"):
        on_device(patched)
        patched.setattr(codes, "CodedClient", Kept)
        patched.setattr(codes, "CodedStoreThere", Summing)
        patched.setattr(ParameterServer, "free", freed)
        trained(comm, job)
    for of in clients:
        found[0][0] += 0.0 if of.given is None else of.given  # others were faster
    given, came = comm.allreduce(found[0])
    return float(np.abs(given - came).max() / np.abs(given).max())


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:3", "asp", "dssp", "adaptive", "quorum", "warmup:3:2"])
def test_what_servers_decode_and_what_workers_keep_there_is_what_was_given(comm, monkeypatch, sync):
    job = JOB.with_values({**CODED, "sync": sync, "steps": 12}, "test")
    assert lost(comm, monkeypatch, job) < 1e-12


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "asp"])
def test_the_sum_catches_a_residual_that_is_lost_there(comm, monkeypatch, sync):
    assert lost(comm, monkeypatch, JOB.with_values({**CODED, "sync": sync, "steps": 12}, "test"), ForgetsResidual) > 1e-3


def crossed(comm, monkeypatch, job, n_steps):
    """Return the bytes that arrays of more than a few numbers have down and up in a run of so many steps."""
    moved = {"get": 0, "set": 0}

    def counting(name):
        real = getattr(cupy_double.ndarray, name)

        def call(self, *given, **named):
            moved[name] += self.nbytes if self.size > 8 else 0
            return real(self, *given, **named)

        return call

    with monkeypatch.context() as patched, placed("lazy"):
        on_device(patched)
        for name in moved:
            patched.setattr(cupy_double.ndarray, name, counting(name))
        trained(comm, job, steps=n_steps)
    return np.array([moved["get"], moved["set"]])


@pytest.mark.mpi
@pytest.mark.shows_from(3)
@pytest.mark.parametrize("codec", ["two_bit", "fp16", "top_k:0.05", "sign_majority"])
@pytest.mark.parametrize("sync", ["bsp", "ssp:1"])
def test_codes_alone_cross_each_way(comm, monkeypatch, codec, sync):
    """Of a step: beside its rows, one code each way of a worker; of its server those of all workers, and one answer, which they share."""
    if comm.size == 1 or (codec, sync) == ("sign_majority", "ssp:1"):
        return  # a worker alone is its own server, and votes are counted by the clock
    how = {"sync": sync, "assign": "static", "deterministic": sync != "bsp"}
    job = JOB.with_values({**CODED, **how, "compress": codec, "servers": "1", "dropout": 0.0}, "test")
    more, less = (crossed(comm, monkeypatch, job, n) for n in (8, 3))
    down, up = (more - less) / 5
    net, coder = coder_of(job)
    n_workers, code = comm.size - 1, coder.nbytes(0, net.n_params)
    answer = net.n_params * 8 if codec == "sign_majority" else code  # of votes no difference is sent
    if comm.rank:
        rows = len(range(*(JOB.batch * w // n_workers for w in (comm.rank - 1, comm.rank))))
        assert down == code
        assert up == answer + rows * (net.n_features * 8 + 8)
    else:
        assert down == answer
        assert up == n_workers * code


@pytest.mark.mpi
@pytest.mark.parametrize("what", ["codes", "clip"])
def test_of_a_group_gradients_cross_to_be_summed_and_what_is_made_of_the_sum(comm, monkeypatch, what):
    """On a member the parameters go up; on the leader, which reads them by codes, they go down for the members instead."""
    if comm.size < 3:
        return  # a server, and a group of two
    how = {"servers": "1", "group": comm.size - 1, "dropout": 0.0}
    job = JOB.with_values({**(WAYS["int8"] if what == "codes" else WAYS["clip"]), **how}, "test")
    more, less = (crossed(comm, monkeypatch, job, n) for n in (8, 3))
    if comm.rank == 0:
        return  # the server has been counted, or makes its update in the host's memory
    net, coder = coder_of(JOB.with_values(WAYS["int8"], "test"))
    values, code = net.n_params * 8, coder.nbytes(0, net.n_params)
    down, up = (more - less) / 5
    leads, last = comm.rank == 1, comm.rank == comm.size - 1
    edges = [-(-JOB.batch * r // (comm.size - 1)) for r in (comm.rank - 1, comm.rank)]
    rows = (edges[1] - edges[0]) * (net.n_features * 8 + 8)
    assert not last or edges[1] == JOB.batch
    pushed, read = (code + values, code) if what == "codes" else (values, values)
    assert down == values + leads * pushed
    assert up == rows + (values + read if leads else values)


OF_GROUPS = {
    "what members compute with": (group_there, "read.get(out=self.handed[self.slot])", "pass", "groups"),
    "that the leader has the sum": (groups, "lands=self.leads", "lands=False", "groups, clip"),
    "where the leader makes something of the sum": (group_there, "        return self.there.gradient\n", "        return self.there.gradient.copy()\n", "groups, clip"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", OF_GROUPS)
def test_what_is_left_out_of_a_group_is_seen(comm, monkeypatch, name):
    if comm.size == 1:
        return  # there is no group
    module, old, new, way = OF_GROUPS[name]
    broken = changed(module, [(old, new)])
    monkeypatch.setattr(parameter_server, *(("make_group", broken.make_group) if module is groups else ("GroupThere", broken.GroupThere)))
    (_, w), (_, v) = both(comm, monkeypatch, "lazy", **WAYS[way])
    assert not np.abs(w - v).max() <= 1e-9


def held(comm, monkeypatch, job):
    """Return how many copies workers hold, and how many of them are to the bit what their shards know."""
    clients, stores, free = {}, {}, ParameterServer.free

    class Kept(CodedClient):
        def __init__(self, *given):
            super().__init__(*given)
            clients[given[3].sender] = self

    def freed(self):
        stores.update({number: [copy and copy.values.get().tobytes() for copy in store.copies] for number, store in self.stores.items()})
        for worker, client in clients.items():
            clients[worker] = {number: values.get().tobytes() for number, values in client.held.items()}
        free(self)

    with monkeypatch.context() as patched, placed("lazy"):
        on_device(patched)
        patched.setattr(codes, "CodedClient", Kept)
        patched.setattr(ParameterServer, "free", freed)
        trained(comm, job)
    known = {number: copies for of in comm.allgather(stores) for number, copies in of.items()}
    found = {worker: copies for of in comm.allgather(clients) for worker, copies in of.items()}
    same = [known[number][worker] == values for worker, copies in found.items() for number, values in copies.items()]
    return len(same), sum(same)


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "asp", "ssp:2"])
@pytest.mark.parametrize("codec", ["two_bit", "low_rank", "bf16"])
def test_a_worker_holds_to_the_bit_what_its_shard_knows(comm, monkeypatch, codec, sync):
    n, same = held(comm, monkeypatch, JOB.with_values({**CODED, "compress": codec, "sync": sync, "steps": 9}, "test"))
    assert same == n > 0


@pytest.mark.mpi
def test_the_bits_catch_a_code_that_a_copy_is_not_brought_to(comm, monkeypatch):
    calls, follow = [], coded.follow
    monkeypatch.setattr(coded, "follow", lambda *given: calls.append(1) or (None if len(calls) == 5 else follow(*given)))
    n, same = held(comm, monkeypatch, JOB.with_values({**CODED, "steps": 9}, "test"))
    assert sum(comm.allgather(same < n)) == comm.size


BROKEN = {
    "the weights of clip": ("self.there.put(w)", "pass"),
    "which weights were read": ("            return w\n", "            return self.there.values\n"),
    "the way down of what clip makes": ("there.gradient.get(out=g)", "pass"),
    "what clip makes": ("self._change(there.gradient, ", "(lambda *given: None)(there.gradient, "),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_left_out_is_seen(comm, monkeypatch, name):
    monkeypatch.setattr(parameter_server, "TrainingThere", changed(training_there, [BROKEN[name]]).TrainingThere)
    (_, w), (_, v) = both(comm, monkeypatch, "lazy", **WAYS["clip" if "clip" in name else "two_bit"])
    assert not np.abs(w - v).max() <= 1e-9


KEPT = {
    "what codes leave is not brought down": ("coder.backend.host(array).reshape(-1))\n", "np.zeros(array.size))\n"),
    "what codes leave is not brought up": ("coder.backend.put(array, here)", "pass"),
    "what workers hold is not brought down": ("store.coder.backend.host(copy.values))", "np.zeros(copy.values.size))"),
    "what workers hold is not brought up": ("shared = Copy(backend.here(values)", "shared = Copy(backend.zeros(n, dtype)"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", KEPT)
def test_a_run_that_goes_on_without_what_its_codes_have_left_is_seen(comm, monkeypatch, mpi_tmp_path, name):
    job = JOB.with_values(CODED, "test")
    _, expected = trained(comm, job)
    with monkeypatch.context() as patched, placed("lazy"):
        on_device(patched)
        for folder, is_broken in (("run", False), ("broken", True)):
            if is_broken:
                patched.setattr(parameter_server, "Codes", changed(codes, [KEPT[name]]).Codes)
            out = str(mpi_tmp_path / folder)
            trained(comm, job, steps=4, out=out, checkpoint_every=4, write=True)
            comm.Barrier()
            _, values = trained(comm, resumed(out, {"steps": 6}))
            assert (np.abs(values - expected).max() <= TOLERANCE["float64"] * 100) != is_broken


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "asp"])
def test_a_run_saved_there_goes_on_there_at_another_number_of_workers(comm, monkeypatch, mpi_tmp_path, sync):
    if comm.size < 3:
        return  # there are to be several, and then fewer
    with monkeypatch.context() as patched, placed("lazy"):
        on_device(patched)
        start(comm, mpi_tmp_path / "run", 8, 3, sync=sync, transport="mpi", compress="two_bit", checkpoint_every=4)
        found = go_on(comm, mpi_tmp_path / "run", 2, steps=14)
    if found is not None:
        assert np.isfinite(found[1]).all() and found[0]["clocks"] == 14


@pytest.mark.mpi
def test_kernels_of_codes_are_compiled_before_the_roles_run(comm, monkeypatch):
    compiled, run = [], Driver.run
    monkeypatch.setattr(Driver, "run", lambda self: compiled.append({family for family, _ in device().kernels.gpu.modules}) or run(self))
    on_device(monkeypatch)
    with placed("lazy"):
        trained(comm, JOB.with_values({**CODED, "servers": "1" if comm.size > 1 else "colocated"}, "test"))
    assert compiled[0] >= {family.__name__.rpartition(".")[2] for family in CODES}


@pytest.mark.mpi
def test_a_device_without_room_for_codes_is_told_of_with_what_it_lacks_room_for(comm, monkeypatch):
    job, kept = JOB.with_values(CODED, "test"), Codes._coder

    def crowded(self, *given):
        with cupy_double.room(100):
            return kept(self, *given)

    monkeypatch.setattr(Codes, "_coder", crowded)
    on_device(monkeypatch)
    with placed("lazy"), pytest.raises(MemoryError, match="GPU 0: what codes leave, an array"):
        trained(comm, job)
