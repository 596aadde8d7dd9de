"""Hold training with layers along different axes to one rank's: the curve, the weights, what is sent, what is held, and where a run goes on."""

import numpy as np
import pytest

from mpidml.collectives.ring import Ring
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.rounds import moved
from mpidml.nn.split.spread import Whole
from mpidml.nn.split.spread_embedding import SpreadEmbedding
from mpidml.runtime.holding import Holding
from mpidml.runtime.resume import resumed
from mpidml.runtime.staged import Staged
from mpidml.runtime.staged_training import GridStepper, StageTraining
from tests.strategies.test_heads import job_in
from tests.strategies.test_hybrid import run
from tests.strategies.test_identities import NET, SMALL
from tests.training import driven

pytestmark = pytest.mark.shows_from(3)

JOB = SMALL.with_values({"strategy": "hybrid", "grid": "data=0", "wait_limit": 20.0, "collective": "ring", "hidden": Job.hidden}, "test")
MIXES = ["embedding=tensor,dense=data", "dense=tensor", "embedding=tensor,5=tensor", "embedding=tensor,dense=tensor"]
TABLE = 2 * (6 + 1) * 2
"""Values in the table of NET on the digits: two columns, whose codes are 0 to 6, by two units."""


@pytest.fixture
def job(comm, mpi_tmp_path):
    """Give a job whose net has an embedding, dense layers, a norm and dropout."""
    if comm.rank == 0:
        (mpi_tmp_path / "net.toml").write_text(NET)
    comm.Barrier()
    return JOB.with_values({"model": str(mpi_tmp_path / "net.toml")}, "test")


def alone(comm, job, **changes):
    return comm.bcast(run(comm, job, 1, mix="", **changes))


def looked_at(comm, job, look=lambda strategy: None, **changes):
    """Train; return the losses of all clocks, the final weights, and what `look` finds."""
    kept = {}
    with driven(comm, job, kept, **changes) as running:
        found = look(running.strategy)
    return comm.bcast([row["loss"] for row in kept["metrics"]] if comm.rank == 0 else None), kept["values"], found


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("mix", MIXES)
def test_a_mix_gives_the_curve_and_the_weights_of_one_rank(comm, job, mix):
    part = comm.Split(comm.rank, 0)
    losses, expected, _ = looked_at(part, job)
    part.Free()
    for how in ({}, {"transport": "mpi", "collective": "auto", "backend": "numba"}) if mix == MIXES[0] else ({},):
        got, values, _ = looked_at(comm, job, mix=mix, **how)
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12, err_msg=str(how))
        assert got == pytest.approx(losses, rel=1e-9)


WAYS = [
    {"optimizer": "clip:0.1+momentum"}, {"optimizer": "decay:0.01+lars:0.1"}, {"batch": 533, "epochs": 1, "steps": 0, "optimizer": "adam", "lr": 0.01},
    {"batch": 63, "microbatches": 3}, {"schedule": "zero_bubble", "microbatches": 4}, {"schedule": "interleaved", "microbatches": 2},
    {"recompute": True, "schedule": "gpipe", "microbatches": 2}, {"epochs": 2, "steps": 0, "patience": 1, "validate": 0.1, "collective": "auto"},
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_to_train_gives_the_weights_of_one_rank(comm, job, way):
    """With a batch of 533 the last one of an epoch has one row: fewer than ranks."""
    expected, mix = alone(comm, job, **way), MIXES[WAYS.index(way) % 3]
    summary, values = run(comm, job, mix=mix, **way)
    np.testing.assert_allclose(values, expected[1], rtol=1e-9, atol=1e-12, err_msg=mix)
    assert summary["test_loss"] == pytest.approx(expected[0]["test_loss"], rel=1e-9)


@pytest.mark.mpi
def test_heads_may_be_mixed(comm, tmp_path):
    job = job_in(tmp_path, strategy="hybrid", grid="data=0", wait_limit=20.0)
    one, expected = alone(comm, job)
    summary, values = run(comm, job, mix="dense=tensor")
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)
    assert {name: of["test_loss"] for name, of in summary["heads"].items()} == pytest.approx({name: of["test_loss"] for name, of in one["heads"].items()}, rel=1e-9)


def sends(comm, job, monkeypatch):
    """Fail unless codes of a rank's rows and their gradients go to each other rank, what it finds goes to whoever has the row, and a ring sums what is not cut.

    By the bytes that it sends, and by what it holds.
    """
    step, over_line, over_replicas = GridStepper._step, [], []

    def counted(self):
        line, replicas = self.strategy.line, self.strategy.replicas
        before = line.nbytes_sent, replicas.nbytes_sent
        step(self)
        over_line.append(line.nbytes_sent - before[0])
        over_replicas.append(replicas.nbytes_sent - before[1])

    def held(strategy):
        of = strategy.held[0]
        return of.weights().size, [array.size for array in of.store.optimizer.values()], of.gradient.size, strategy.net.n_params

    monkeypatch.setattr(GridStepper, "_step", counted)
    *_, found = looked_at(comm, job, held, mix="embedding=tensor", batch=63, optimizer="adam", lr=0.01)
    size, rank, batch, n_codes, width, itemsize = comm.size, comm.rank, 63, 2, 4, 8
    own = batch * (rank + 1) // size - batch * rank // size
    assert over_line == [itemsize * ((size - 1) * own * (n_codes + width) + (batch - own) * width)] * 8, "over the line"
    n_weights, n_state, n_gradient, n_params = found
    sums = Ring().rounds(rank, size, n_params - TABLE)
    assert over_replicas == [itemsize * moved((*sums.reduce, *sums.gather))] * 8, "over replicas"  # without the gradient of the table
    rows = round(TABLE / 2 * (rank + 1) / size) - round(TABLE / 2 * rank / size)
    assert n_weights == n_params - TABLE + rows * 2
    assert (n_gradient, n_state) == (n_weights, [n_weights] * 2)


@pytest.mark.mpi
def test_what_a_rank_sends_sums_and_holds_is_a_formula(comm, job, monkeypatch):
    sends(comm, job, monkeypatch)


def sums_all(self, stage, s, channels, whole=Holding.hold):
    """Sum as many values as all ranks have: parts of the table, too."""
    if stage.spread is not None and stage.spread.size > 1:
        stage.n_summed = min(self.strategy.replicas.allgather(stage.n_params))
    return whole(self, stage, s, channels)


def sums_less(self, stage, s, channels, whole=Holding.hold):
    stage.n_summed -= 10
    return whole(self, stage, s, channels)


BROKEN = {
    "the table's gradient is summed": (Holding, "hold", sums_all),
    "a gradient is not": (Holding, "hold", sums_less),
    "terms of others are lost": (Whole, "give", lambda self, backend, flat, rows: [(np.copyto, (rows, self.own(flat)))]),
    "every rank has the first rows of the table": (SpreadEmbedding, "initial", lambda self, random, parameters: parameters["table"].fill(0.1)),
    "noise depends on the rank": (StageTraining, "_salt", lambda self, epoch: np.uint64(self.worker + 1)),
}


@pytest.mark.mpi
@pytest.mark.parametrize("broken", BROKEN)
def test_the_comparison_catches(comm, job, monkeypatch, broken):
    if comm.size == 1:
        return  # nothing is sent
    expected = alone(comm, job)[1]
    monkeypatch.setattr(*BROKEN[broken])
    try:
        values = run(comm, job, mix="embedding=tensor")[1]
    except RuntimeError as error:
        assert "replicas differ" in str(error)
        return
    assert np.abs(values - expected).max() > 1e-6


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("broken", ["the table's gradient is summed", "a gradient is not", "rows come twice"])
def test_the_count_catches(comm, job, monkeypatch, broken):
    """Every rank sends something else, whatever its training finds."""
    twice = (Whole, "bring", lambda self, backend, rows, flat, bring=Whole.bring: [*bring(self, backend, rows, flat)] * 2)
    monkeypatch.setattr(Staged, "check_alike", lambda self: None)
    monkeypatch.setattr(*BROKEN.get(broken, twice))
    with pytest.raises(AssertionError, match="over replicas" if broken in BROKEN else "over the line"):
        sends(comm, job, monkeypatch)


@pytest.mark.mpi
def test_a_run_goes_on_bit_by_bit_at_any_other_mix_grid_and_strategy(comm, job, mpi_tmp_path):
    how = {"optimizer": "adam", "lr": 0.01, "deterministic": True}
    folder, mix = str(mpi_tmp_path / "run"), "embedding=tensor,dense=tensor"
    _, expected = run(comm, job, mix=mix, **how)
    run(comm, job, mix=mix, steps=4, checkpoint_every=4, write=True, out=folder, **how)
    comm.Barrier()
    others = [{}, {"mix": "dense=tensor"}, {"mix": "", "grid": "tensor=0"}, {"strategy": "data_parallel", "deterministic": False}]
    for k, changes in enumerate(others):
        _, values = run(comm, resumed(folder, {"steps": 8, **changes}))
        assert np.array_equal(values, expected) if not k else np.abs(values - expected).max() < 1e-9, changes
    run(comm, job, strategy="data_parallel", grid="", wait_limit=20.0, collective="auto", steps=4, checkpoint_every=4, write=True, out=f"{folder}2", **how)
    comm.Barrier()
    _, values = run(comm, resumed(f"{folder}2", {"steps": 8, "strategy": "hybrid", "grid": "data=0", "mix": mix}))
    assert np.abs(values - expected).max() < 1e-9


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mix": "embeddings=tensor"}, "did you mean 'embedding'"), ({"mix": "embedding=data"}, "does nothing"),
        ({"mix": "embedding=tensor", "grid": "pipe=0"}, "give --grid data="), ({"mix": "embedding=tensor", "grid": "tensor=0"}, "give --grid data="),
        ({"mix": "embedding=tensor", "sync": "ssp:1", "collective": "auto"}, "need all ranks at once"),
        ({"mix": "embedding=tensor", "strategy": "data_parallel", "grid": "", "collective": "auto"}, "--mix embedding=tensor: does nothing under --strategy data_parallel"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(comm, job, changes, told):
    if comm.size == 1 and changes.keys() & {"grid", "sync"}:
        return  # one rank is any grid, and has no replicas
    with pytest.raises(UserError) as caught:
        run(comm, job, **changes)
    assert told in str(caught.value) and "\n" not in str(caught.value)
