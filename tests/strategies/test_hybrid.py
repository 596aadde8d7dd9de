"""Hold training on a grid of ranks to one rank's: every factorisation of the ranks over replicas, stages and parts of layers."""

import itertools
import math

import numpy as np
import pytest

from mpidml.collectives.base import Sum
from mpidml.core.errors import UserError
from mpidml.core.grid import parse_grid
from mpidml.core.job import Job
from mpidml.nn.split import dense
from mpidml.ps.store import Store
from mpidml.runtime import alike, grid_updates
from mpidml.runtime.bands import Bands
from mpidml.runtime.grid_updates import Norms, Updates
from mpidml.runtime.resume import resumed
from tests.strategies.test_heads import job_in
from tests.strategies.test_identities import NET, SMALL, serial
from tests.training import driven, trained

pytestmark = pytest.mark.shows_from(3)

JOB = SMALL.with_values({"strategy": "hybrid", "wait_limit": 20.0, "microbatches": 2, "collective": "ring"}, "test")


def grids(n):
    """List all grids of n ranks."""
    return [f"data={a},pipe={b},tensor={c}" for a, b, c in itertools.product(range(1, n + 1), repeat=3) if a * b * c == n]


def run(comm, job=JOB, n_ranks=None, per_host=0, **changes):
    """Train on the first `n_ranks`; nothing is found on others."""
    n_ranks = n_ranks or comm.size
    part = comm.Split(0 if comm.rank < n_ranks else 1, comm.rank)
    found = trained(part, job, per_host, **changes) if comm.rank < n_ranks else (None, None)
    part.Free()
    return found


def alone(comm, job=JOB, **changes):
    return comm.bcast(run(comm, job, 1, grid="data=1", **changes))


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("transport", ["auto", "mpi"])
def test_every_grid_gives_the_training_of_one_rank(comm, transport):
    for grid in grids(comm.size):
        summary, values = run(comm, grid=grid, transport=transport)
        assert np.abs(values - serial()).max() < 1e-9, grid
        assert (summary["ranks"], summary["samples"]) == (comm.size, 400)


@pytest.mark.mpi
def test_every_grid_of_four_does(comm):
    """On five ranks the first four, on one host, on two, and on hosts of three and one."""
    if comm.size < 4:
        return  # needs four ranks
    for grid, per_host in zip(grids(4), itertools.cycle((0, 2, 3)), strict=False):
        _, values = run(comm, n_ranks=4, per_host=per_host, grid=grid)
        assert values is None or np.abs(values - serial()).max() < 1e-9, grid


WAYS = [
    {"optimizer": "clip:0.1+momentum"}, {"optimizer": "lars:0.1"}, {"optimizer": "decay:0.01+clip:0.3+lamb", "lr": 0.01}, {"dropout": 0.3, "hidden": (24, 16, 12)},
    {"activation": "gelu", "optimizer": "adam", "lr": 0.01}, {"batch": 63, "epochs": 1, "steps": 0}, {"class_weights": "balanced", "label_smoothing": 0.1},
    {"loss": "hinge:0.5"}, {"schedule": "zero_bubble", "dropout": 0.2}, {"schedule": "interleaved", "optimizer": "clip:0.1+momentum"},
    {"recompute": True, "schedule": "gpipe"}, {"collective": "auto"}, {"epochs": 3, "steps": 0, "patience": 1, "validate": 0.1},
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_to_train_gives_the_weights_of_one_rank(comm, way):
    n = min(comm.size, 4)
    expected = alone(comm, **way)
    for grid in grids(n)[: 1 if n == 1 else None : max(1, len(grids(n)) // 3)]:
        summary, values = run(comm, n_ranks=n, grid=grid, **way)
        if summary is not None:
            np.testing.assert_allclose(values, expected[1], rtol=1e-9, atol=1e-12, err_msg=grid)
            assert summary["test_loss"] == pytest.approx(expected[0]["test_loss"], rel=1e-9)


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["lars:0.1", "clip:0.1+lamb"])
def test_norms_count_parts_without_elements(comm, optimizer):
    """A layer narrower than the ranks may leave some of them nothing of its weight."""
    how = {"hidden": (24, 2, 16), "optimizer": optimizer, "lr": 0.01}
    _, values = run(comm, grid=f"tensor={comm.size}", **how)
    np.testing.assert_allclose(values, alone(comm, **how)[1], rtol=1e-9, atol=1e-12)


def own_part(self, a):
    return float(self.backend.sum_of_squares(a)) if a.size else 0.0


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("where", "name", "broken", "optimizer"),
    [(Norms, "sum_of_squares", own_part, "lars:0.1"), (Updates, "_squares", lambda self: 1e-3, "clip:0.1+momentum")],
)
def test_the_check_catches_norms_of_parts(comm, monkeypatch, where, name, broken, optimizer):
    if comm.size == 1 and where is Norms:
        return  # one rank has all parts
    expected = alone(comm, optimizer=optimizer)[1]
    monkeypatch.setattr(where, name, broken)
    _, values = run(comm, grid=f"tensor={comm.size}", optimizer=optimizer)
    assert np.abs(values - expected).max() > 1e-6


@pytest.mark.mpi
def test_the_check_catches_a_sum_that_is_left_out(comm, monkeypatch):
    if comm.size == 1:
        return  # one rank sums nothing
    monkeypatch.setattr(dense, "summed", lambda line, buffer: (int, ()))
    with pytest.raises(RuntimeError, match="parts differ: "):
        run(comm, grid=f"tensor={comm.size}", deterministic=True)
    assert np.abs(run(comm, grid=f"tensor={comm.size}")[1] - serial()).max() > 1e-3


@pytest.mark.mpi
@pytest.mark.parametrize("grid", ["tensor=0", "pipe=0"])
def test_net_files_and_heads(comm, tmp_path, grid):
    (tmp_path / "net.toml").write_text(NET)
    changes = {"model": str(tmp_path / "net.toml"), "hidden": Job.hidden}
    np.testing.assert_allclose(run(comm, grid=grid, **changes)[1], alone(comm, **changes)[1], rtol=1e-9, atol=1e-12)
    job = job_in(tmp_path, strategy="hybrid", microbatches=2, wait_limit=20.0)
    summary, values = run(comm, job, grid=grid)
    one, expected = alone(comm, job)
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)
    assert summary["heads"].keys() == one["heads"].keys()
    for name, of in one["heads"].items():
        assert {k: v for k, v in summary["heads"][name].items() if isinstance(v, float)} == pytest.approx({k: v for k, v in of.items() if isinstance(v, float)}, rel=1e-7)


MEASURING = ["lars:0.1", "lamb", "clip:0.1+lamb", "heavy.py+clip:0.1+sgd"]
"""Their state is that of links which measure more than a rank has, or come before one."""
HEAVY = """
import numpy as np
from mpidml.optim.base import Link


class Heavy(Link):
    def init(self, n, dtype):
        return {"v": np.zeros(n, dtype)}

    def transform(self, backend, g, state, w, step, memory=1.0):
        backend.momentum_transform(state["v"], g, 0.9)
"""


def folder_of(comm, tmp_path):
    """Return a folder's path, the same on all ranks, with the link that a user has written beside it."""
    (tmp_path / "heavy.py").write_text(HEAVY)
    return comm.bcast(str(tmp_path / "run"))


def beside(folder, optimizer):
    return optimizer.replace("heavy.py", f"{folder[:-3]}heavy.py")


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["momentum", "adam", *MEASURING])
def test_a_run_goes_on_bit_by_bit_and_at_any_other_grid(comm, tmp_path, optimizer):
    folder, n = folder_of(comm, tmp_path), min(comm.size, 4)
    how = {"optimizer": beside(folder, optimizer), "lr": 0.01, "deterministic": True}
    for k, grid in enumerate(grids(n)):
        _, expected = run(comm, n_ranks=n, grid=grid, **how)
        run(comm, n_ranks=n, steps=4, checkpoint_every=4, write=True, out=f"{folder}{k}", grid=grid, **how)
        comm.Barrier()
        same = resumed(f"{folder}{k}", {"steps": 8})
        _, values = run(comm, same, n)
        assert values is None or np.array_equal(values, expected), grid
        other = grids(n)[k - 1]
        _, values = run(comm, same, n, grid=other)
        assert values is None or np.abs(values - expected).max() < 1e-12, (grid, other)
        comm.Barrier()


PLAIN = {"strategy": "data_parallel", "grid": "", "microbatches": 0}


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", MEASURING)
def test_what_links_have_measured_goes_on_without_stages_and_comes_from_there(comm, tmp_path, optimizer):
    folder, n = folder_of(comm, tmp_path), min(comm.size, 4)
    how = {"optimizer": beside(folder, optimizer), "lr": 0.01}
    expected = alone(comm, **how)[1]
    cut = {f"tensor={n}", f"pipe={n}", "data=2,pipe=2" if n == 4 else f"data={n}"}
    for k, grid in enumerate(sorted(cut)):
        run(comm, n_ranks=n, steps=4, checkpoint_every=4, write=True, out=f"{folder}{k}", grid=grid, **how)
    run(comm, steps=4, checkpoint_every=4, write=True, out=folder, **PLAIN, **how)
    comm.Barrier()
    for k, grid in enumerate(sorted(cut)):
        for values in (
            run(comm, resumed(f"{folder}{k}", {"steps": 8, "strategy": "data_parallel"}))[1],
            run(comm, resumed(folder, {"steps": 8, "strategy": "hybrid", "grid": grid, "microbatches": 2}), n)[1],
        ):
            assert values is None or np.abs(values - expected).max() < 1e-12, grid
    _, values = run(comm, resumed(folder, {"steps": 8}), max(1, comm.size - 1))
    assert values is None or np.abs(values - expected).max() < 1e-12


@pytest.mark.mpi
@pytest.mark.parametrize("how", [{"grid": "pipe=0"}, {"grid": "tensor=0"}, PLAIN], ids=str)
def test_the_check_catches_what_links_have_measured_that_is_not_saved(comm, tmp_path, monkeypatch, how):
    folder, whole = comm.bcast(str(tmp_path / "run")), Store.state
    monkeypatch.setattr(Store, "state", lambda self, back: {name: array for name, array in whole(self, back).items() if "lamb" not in name})
    how = {"optimizer": "lamb", "lr": 0.01, **how}
    run(comm, steps=4, checkpoint_every=4, write=True, out=folder, **how)
    comm.Barrier()
    assert np.abs(run(comm, resumed(folder, {"steps": 8}))[1] - alone(comm, optimizer="lamb", lr=0.01)[1]).max() > 1e-3


@pytest.mark.mpi
def test_the_check_catches_bands_that_lose_an_element(comm, tmp_path, monkeypatch):
    if comm.size == 1:
        return  # one rank needs no bands
    folder = comm.bcast(str(tmp_path / "run"))
    whole = Bands._of
    monkeypatch.setattr(Bands, "_of", lambda self, band, turn, also_shared: whole(self, band, turn, also_shared)[: -1 if also_shared and self.line.rank == 1 else None])
    run(comm, steps=4, checkpoint_every=4, write=True, out=folder, grid=f"tensor={comm.size}")
    comm.Barrier()
    assert np.abs(run(comm, resumed(folder, {"steps": 8}))[1] - serial()).max() > 1e-9


@pytest.mark.mpi
@pytest.mark.parametrize("codec", ["two_bit", "low_rank", "bf16"])
def test_codes_between_replicas_are_those_of_data_parallel_training(comm, codec):
    """One stage, one microbatch, one bucket: the same gradients, cut and coded alike."""
    if comm.size == 1:
        return  # nothing is sent
    how = {"compress": codec, "collective": "auto", "transport": "mpi", "hidden": (40, 30)}
    summary, values = run(comm, grid=f"data={comm.size}", microbatches=1, **how)
    _, expected = run(comm, strategy="data_parallel", microbatches=0, bucket=1 << 30, **how)
    assert np.array_equal(values, expected)
    plain = run(comm, grid=f"data={comm.size}", microbatches=1, **{**how, "compress": "", "collective": "ring"})[0]
    assert sum(summary["bytes_sent"]) < 0.7 * sum(plain["bytes_sent"])


@pytest.mark.mpi
def test_what_codes_have_left_goes_on_at_another_cut(comm, tmp_path):
    if comm.size < 4:
        return  # needs two replicas of two stages
    folder = comm.bcast(str(tmp_path / "run"))
    how = {"grid": "data=2,pipe=2", "compress": "two_bit", "collective": "auto", "transport": "mpi", "hidden": (40, 30), "deterministic": True}
    _, expected = run(comm, n_ranks=4, **how)
    run(comm, n_ranks=4, steps=4, checkpoint_every=4, write=True, out=folder, **how)
    comm.Barrier()
    for changes in ({}, {"partition": "2,1"}, {"partition": "1,2"}):
        _, values = run(comm, resumed(folder, {"steps": 8, **changes}), 4)
        assert values is None or np.array_equal(values, expected) or (changes and np.abs(values - expected).max() < 0.1), changes


def holds_its_part(comm, grid):
    """Tell whether no rank has more than its part of the weights, and 5 % more for what cannot be cut."""
    how = {"grid": grid, "hidden": (120, 240, 120), "steps": 1, "partition": "equal" if grid == "tensor=0" else "auto"}
    with driven(comm, JOB, **how) as running:
        n_whole, n_own = running.net.n_params, sum(held.stage.n_params for held in running.strategy.held.values())
    return n_own <= n_whole / comm.size * 1.05 + 2 * math.ceil(10 / comm.size) * 120


@pytest.mark.mpi
def test_each_rank_holds_its_part_of_the_weights_alone(comm):
    assert holds_its_part(comm, "tensor=0")


@pytest.mark.mpi(min_size=2)
def test_the_check_catches_ranks_that_hold_all(comm):
    assert not holds_its_part(comm, "data=0")


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("grid", ["data=0", "tensor=0", "data=2,pipe=0"])
def test_sums_over_replicas_and_parts_name_ranks_by_their_numbers_in_the_job(comm, monkeypatch, grid):
    if grid.startswith("data=2") and comm.size % 2:
        return  # there is no such grid
    named = []

    def wait(total, *rest):
        named.append(tuple(total.ranks))
        return real(total, *rest)

    real = Sum.wait
    monkeypatch.setattr(Sum, "wait", wait)
    run(comm, grid=grid, steps=1)
    place = parse_grid(grid, comm.size)
    axis = "tensor" if grid.startswith("tensor") else "data"
    assert tuple(place.line(axis, comm.rank)) in named and comm.rank in next(ranks for ranks in named if ranks)


@pytest.mark.mpi
def test_an_exception_in_one_place_of_the_grid_is_no_hang(comm, monkeypatch):
    """The others come to the limit of their waits, or are ended: here each says so."""
    if comm.size == 1:
        return  # nobody else waits
    finish = grid_updates.Updates.finish

    def fails(self, held, item):
        if comm.rank == comm.size - 1 and self.clock == 2:
            raise RuntimeError("one place fails")
        return finish(self, held, item)

    monkeypatch.setattr(grid_updates.Updates, "finish", fails)
    with pytest.raises((RuntimeError, TimeoutError, Exception), match=r"one place fails|wait-limit"):
        run(comm, grid=f"data={comm.size}", wait_limit=1.0)


def flips(comm, monkeypatch, what):
    """Flip a bit of what each part has whole, on the last rank in clock 2, and of its own part alone where `what` says so."""
    finish, last = grid_updates.Updates.finish, comm.rank == comm.size - 1

    def flipped(self, held, item):
        finish(self, held, item)
        if last and self.clock == 2:
            array = next(iter(held.here.optimizer.values())) if what == "optimizer" else held.here.at(held.here.latest).ravel()
            at = held.stage.layer_views(0, array)["weight"] if what == "own weight" else array[held.stage.shared()[0]]
            at.reshape(-1)[:1].view(np.uint64)[:] ^= np.uint64(1 << 30)

    monkeypatch.setattr(grid_updates.Updates, "finish", flipped)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("what", ["weights", "optimizer"])
def test_parts_that_come_apart_in_what_each_has_whole_are_named(comm, monkeypatch, what):
    flips(comm, monkeypatch, what)
    said = f"parts differ: after clock 8 rank {comm.size - 1} has other weights or optimizer state of stage 0 than part 0, in what each has whole$"
    with pytest.raises(RuntimeError, match=said):
        run(comm, grid="tensor=0", deterministic=True)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("broken", ["own weight", "nothing is whole"])
def test_the_check_catches_a_comparison_of_nothing(comm, monkeypatch, broken):
    """What a rank alone has is not compared."""
    flips(comm, monkeypatch, "own weight" if broken == "own weight" else "weights")
    if broken != "own weight":
        monkeypatch.setattr(alike, "digest", lambda held, ranges: "")
    run(comm, grid="tensor=0", deterministic=True)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grid": ""}, "needs a grid"), ({"grid": "pipe=7"}, "were started"), ({"grid": "pip=1"}, "did you mean 'pipe'"),
        ({"compress": "two_bit", "grid": "tensor=0"}, "has one"), ({"compress": "two_bits", "grid": "data=0"}, "did you mean 'two_bit'"),
        ({"partition": "3", "grid": "tensor=0"}, "has one stage"), ({"partition": "2,1", "grid": "data=0"}, "has one stage"),
        ({"optimizer": "clip+sgd", "schedule": "pipedream", "microbatches": 0}, "use clamp"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(comm, changes, told):
    if comm.size == 1 and "optimizer" in changes:
        return  # one stage changes at once
    with pytest.raises(UserError) as caught:
        run(comm, **{"grid": f"pipe={comm.size}", **changes})
    assert told in str(caught.value) and "\n" not in str(caught.value)
