"""Hold a network cut into stages to the network in one piece: any schedule, grid, cut and number of microbatches gives one rank's training."""

import subprocess
import sys

import numpy as np
import pytest

from mpidml.core import plugins
from mpidml.core.errors import UserError, WaitTimeout
from mpidml.core.job import Job
from mpidml.core.program import Program
from mpidml.nn.step import Step
from mpidml.runtime.channel import Channel
from mpidml.runtime.channel_here import ChannelHere
from mpidml.runtime.held import Held
from mpidml.runtime.monitor import N_COLUMNS
from mpidml.runtime.resume import resumed
from mpidml.runtime.staged import Staged
from tests.strategies.plain import Plain
from tests.strategies.test_identities import NET, SMALL, serial
from tests.training import driven, trained

pytestmark = pytest.mark.shows_from(3)

JOB = SMALL.with_values({"strategy": "pipeline", "wait_limit": 20.0, "microbatches": 5}, "test")
SCHEDULES = {name: plugins.make("mpidml.schedules", name) for name in plugins.names("mpidml.schedules")}
FLUSHED = [name for name, schedule in SCHEDULES.items() if schedule.trains and not schedule.update_every(2)]


def run(comm, job=JOB, **changes):
    return trained(comm, job, **changes)


def by_hand(layers):
    """Write the layers of each stage as --partition has them; one stage is not cut."""
    return ",".join(map(str, layers)) if len(layers) > 1 else "auto"


def alone(comm, job=JOB, **changes):
    """Return what rank 0 finds by itself, with as many microbatches as it takes on all ranks."""
    part = comm.Split(comm.rank, 0)
    found = trained(part, job, **changes) if comm.rank == 0 else None
    part.Free()
    return comm.bcast(found)


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("transport", ["auto", "mpi"])
@pytest.mark.parametrize("name", FLUSHED)
def test_every_schedule_gives_the_bits_of_one_rank(comm, name, transport):
    """The microbatches of one rank, summed up in their order, whatever order they are computed in."""
    summary, values = run(comm, schedule=name, transport=transport)
    one, expected = alone(comm)
    assert np.array_equal(values, expected) and np.abs(values - serial()).max() < 1e-9
    assert summary["samples"] == one["samples"] == 400
    assert summary["test_accuracy"] == one["test_accuracy"] and summary["test_loss"] == one["test_loss"]


@pytest.mark.mpi
@pytest.mark.parametrize("microbatches", [1, 2, 3, 7, 50])
def test_any_number_of_microbatches_does_also_below_the_number_of_stages(comm, microbatches):
    _, values = run(comm, microbatches=microbatches)
    assert np.abs(values - serial()).max() < 1e-9


def no_sum(self, item, parts):
    pass


@pytest.mark.mpi
@pytest.mark.parametrize(("where", "name", "broken"), [(Held, "add", no_sum), (Step, "go_back", Step.go_back_to_input)])
def test_the_check_catches_gradients_that_are_not_summed(comm, monkeypatch, where, name, broken):
    monkeypatch.setattr(where, name, broken)
    assert np.abs(run(comm)[1] - serial()).max() > 1e-3


WAYS = [
    {"optimizer": "adam", "lr": 0.01}, {"optimizer": "lars:0.1"}, {"dropout": 0.3}, {"activation": "gelu"}, {"batch": 63, "epochs": 1, "steps": 0},
    {"class_weights": "balanced", "label_smoothing": 0.1}, {"lr_policy": "warmup:3+cosine"}, {"schedule": "zero_bubble", "dropout": 0.2},
    {"schedule": "interleaved:3"}, {"recompute": True, "dropout": 0.3, "schedule": "gpipe"}, {"dtype": "float32", "backend": "numba"},
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_to_train_gives_the_bits_of_one_rank(comm, way):
    expected = alone(comm, **way)
    found = run(comm, **way)
    assert np.array_equal(found[1], expected[1]) and found[0]["test_loss"] == expected[0]["test_loss"]


@pytest.mark.mpi
def test_a_net_file_with_embeddings_is_cut_wherever(comm, tmp_path):
    """Pixels of the digits are whole numbers from 0 to 6, so they can be taken as codes."""
    (tmp_path / "net.toml").write_text(NET)
    changes = {"model": str(tmp_path / "net.toml"), "hidden": Job.hidden}
    assert np.array_equal(run(comm, **changes)[1], alone(comm, **changes)[1])


@pytest.mark.mpi
def test_stages_without_layers_hand_on(comm):
    layers = [0] * comm.size
    layers[comm.size // 2] = 3
    said, free = [], Staged.free
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Staged, "free", lambda self: (said.append(self.words()), free(self)))
        _, values = run(comm, partition=by_hand(layers))
    assert np.array_equal(values, alone(comm)[1])
    assert said[0].endswith(f" of 10 rows a batch; {comm.size} stage(s) of {','.join(map(str, layers))} layers" + ", those of 0 hand on" * (comm.size > 1))


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["pipedream", "pipedream:vertical=true", "two_bw:5"])
def test_without_a_flush_it_is_delayed_descent(comm, name):
    """Against a serial loop that reads, for each stage, the weights that the schedule says."""
    job = JOB.with_values({"microbatches": 0, "optimizer": "sgd", "schedule": name, "hidden": (24, 16, 12, 11), "activation": "tanh"}, "test")
    summary, values = run(comm, job, partition=by_hand(_cut(comm.size)))
    assert np.abs(values - delayed(job, _cut(comm.size), name)).max() < 1e-9
    old = 0 if comm.size == 1 and name != "two_bw:5" else 1 if name == "two_bw:5" else comm.size - 1
    assert summary["staleness_max"] == summary["staleness_bound"] == old and ("update(s) old" in summary["promise"]) == bool(old)
    assert summary["staleness_histogram"] == {str(s): 1 if s < old else 8 - old for s in range(old + 1)}


def _cut(n):
    return [5 - (n - 1), *[1] * (n - 1)]


def delayed(job, cut, name, stash=True):
    """Descend by gradients at old weights, on one rank: stage k of K computes with weights of updates before."""
    from itertools import accumulate, pairwise

    plain = Plain(job)
    net = plain.net
    n, size = len(cut), net.n_params
    bounds = [net.start(i) for i in [0, *accumulate(cut)]]
    past = [net.init(job.seed)]
    for clock in range(job.steps):
        at = np.empty(size)
        for k, (lo, hi) in enumerate(pairwise(bounds)):
            behind = 1 if name.startswith("two_bw") and n <= 5 else n - 1 if "vertical" in name else n - 1 - k
            at[lo:hi] = past[max(0, clock - behind)][lo:hi]
        past.append(past[-1] - job.lr * plain.gradient(clock, at))
    return past[-1]


@pytest.mark.mpi
def test_the_check_catches_a_backward_pass_by_other_weights_than_forward(comm, monkeypatch):
    """Without stashing, what goes back passes through newer weights."""
    if comm.size == 1:
        return  # one stage reads the newest weights
    job = JOB.with_values({"microbatches": 0, "optimizer": "sgd", "schedule": "pipedream", "hidden": (24, 16, 12, 11), "activation": "tanh"}, "test")
    monkeypatch.setattr(Held, "weights", lambda self, item=-1: self.store.versions[self.store.latest % len(self.store.versions)])
    assert np.abs(run(comm, job, partition=by_hand(_cut(comm.size)))[1] - delayed(job, _cut(comm.size), "pipedream")).max() > 1e-6


@pytest.mark.mpi
@pytest.mark.parametrize("how", [{}, {"schedule": "pipedream", "microbatches": 0}, {"optimizer": "adam", "lr": 0.01}])
def test_a_run_that_pauses_goes_on_bit_by_bit(comm, tmp_path, how):
    folder = comm.bcast(str(tmp_path / "run"))
    how = {"deterministic": True, **how}  # so that the layers are cut alike each time
    _, expected = run(comm, checkpoint_every=3, write=True, out=folder + "-whole", **how)
    run(comm, steps=6, checkpoint_every=3, write=True, out=folder, **how)
    _, values = trained(comm, resumed(folder, {"steps": 8}), write=True)
    assert np.array_equal(values, expected)


@pytest.mark.mpi
def test_a_run_goes_on_at_another_grid_and_by_another_strategy(comm, tmp_path):
    folder = comm.bcast(str(tmp_path / "run"))
    run(comm, steps=4, checkpoint_every=4, write=True, out=folder)
    grid = {"strategy": "hybrid", "grid": f"data={comm.size}", "microbatches": 2}
    for changes in ({"strategy": "data_parallel"}, {"strategy": "parameter_server"}, grid, {"partition": by_hand([3] + [0] * (comm.size - 1))}):
        _, values = trained(comm, resumed(folder, {"steps": 8, **changes}))
        assert np.abs(values - serial()).max() < 1e-9


DISORDERED = """
from mpidml.core.action import Action
from mpidml.schedules.base import Schedule


class Mine(Schedule):
    def order(self, rank, n_ranks, n):
        yield from (Action(rank, "F", i) for i in range(n))
        yield from (Action(rank, "I", i) for i in reversed(range(n)))
        yield from (Action(rank, "W", i) for i in range(n))
"""


@pytest.mark.mpi
def test_a_schedule_that_sends_back_in_disorder_is_refused_with_its_table(comm, tmp_path):
    """What a channel carries keeps its order, so the last would be taken for the first."""
    path = tmp_path / "mine.py"
    path.write_text(DISORDERED)
    with pytest.raises(UserError, match="order of microbatches") as caught:
        run(comm, schedule=str(path))
    assert f">>{comm.size - 1}I3<<" in str(caught.value)
    path.write_text(DISORDERED.replace("    def order", "    def update_every(self, n_ranks):\n        return None\n\n    def order"))
    with pytest.raises(UserError, match=r"^--schedule .*mine\.py: update_every gives None; let it give 0"):
        run(comm, schedule=str(path))
    path.write_text(DISORDERED.replace("    def order", "    n_chunks = 0\n\n    def order"))
    with pytest.raises(UserError, match="n_chunks of 1 or more"):
        run(comm, schedule=str(path))


HALF = """
from mpidml.core.action import Action
from mpidml.schedules.base import Schedule, pairs


class Half(Schedule):
    def order(self, rank, n_ranks, n):
        for action in pairs(rank, n if rank == 0 else 0, n):
            yield action._replace(op="I") if action.op == "B" and rank else action
        yield from (Action(rank, "W", i) for i in range(n if rank else 0))
"""


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("broken", [False, True])
def test_backwards_in_halves_on_any_rank_cannot_be_of_activations_that_are_computed_again(comm, tmp_path, monkeypatch, broken):
    """Rank 0 has whole ones. Looked at alone, as the broken variant does, it lets others take gradients of another microbatch's activations."""
    path = tmp_path / "half.py"
    path.write_text(HALF)
    schedule = comm.bcast(str(path))
    comm.Barrier()
    assert np.array_equal(run(comm, schedule=schedule)[1], alone(comm)[1])
    if broken:
        monkeypatch.setattr(Program, "splits", property(lambda program: any(action.op == "W" for action in program.lists[0])))
        assert not np.abs(run(comm, schedule=schedule, recompute=True)[1] - serial()).max() < 1e-3
        return
    with pytest.raises(UserError, match=r"^--recompute: --schedule .*half\.py comes back to activations twice"):
        run(comm, schedule=schedule, recompute=True)


@pytest.mark.mpi
def test_scoring_takes_one_set_of_activations_whatever_the_schedule_keeps(comm):
    with driven(comm, JOB, schedule="gpipe", microbatches=10, steps=1) as running:
        for held in running.strategy.held.values():
            assert held.scorings and held.scored.m == 64 and all(memory.m == 5 for memory in held.memory)


@pytest.mark.mpi
@pytest.mark.parametrize("target", [{"target": "0.5"}, {"patience": 2, "validate": 0.1}])
def test_it_ends_where_it_is_good_enough(comm, target):
    summary, values = run(comm, steps=0, epochs=4, **target)
    one, expected = alone(comm, steps=0, epochs=4, **target)
    if "patience" in target:
        assert np.array_equal(values, expected) and summary["best_val_loss"] == one["best_val_loss"]
    else:
        assert summary["target_seconds"] is not None


@pytest.mark.mpi
def test_a_stage_that_stays_away_is_named(comm, monkeypatch):
    if comm.size == 1:
        return  # nobody else to wait for
    send = ChannelHere.send
    monkeypatch.setattr(ChannelHere, "send", lambda self, item, rows: None if comm.rank == 0 and item == 3 else send(self, item, rows))
    if comm.rank == 1:
        with pytest.raises(WaitTimeout, match=r"waits for the output of stage 0 of microbatch [34] from rank 0 .*--wait-limit"):
            run(comm, wait_limit=0.5)
    else:
        with pytest.raises(WaitTimeout, match="pipeline: waits for"):
            run(comm, wait_limit=1.5)


def sent(comm, **changes):
    """Return the bytes that each rank sends, and those of the formula: each boundary's width for each sample forward and back, and forward where rows are scored."""
    cut = [3] if comm.size == 1 else [1, 1, 1, *[0] * (comm.size - 3)] if comm.size >= 3 else [2, 1]
    summary, _ = run(comm, transport="mpi", partition=by_hand(cut), **changes)
    widths = [24, 16, 10]
    edges = [widths[max(sum(cut[: k + 1]), 1) - 1] for k in range(comm.size - 1)]
    n_rows, n_scored = 400, 400
    forward = [8 * width * (n_rows + n_scored) for width in edges]
    back = [8 * width * n_rows for width in edges]
    tells = [8 * N_COLUMNS * 9 if rank == comm.size - 1 and rank else 0 for rank in range(comm.size)]  # of each clock and the end, on the way to rank 0
    return summary["bytes_sent"], [a + b + c for a, b, c in zip([*forward, 0], [0, *back], tells, strict=True)]


@pytest.mark.mpi
@pytest.mark.parametrize("how", [{}, {"schedule": "gpipe", "recompute": True}, {"microbatches": 7}, {"schedule": "zero_bubble"}], ids=str)
def test_what_travels_is_the_outputs_and_their_gradients(comm, how):
    """Whatever the order and the number of microbatches, and whether outputs are computed again."""
    found, formula = sent(comm, **how)
    assert found == formula


def whole_slots(self, item, rows, send=Channel.send):
    """Send all rows that a slot has room for."""
    return send(self, item, self.slots.shape[1])


@pytest.mark.mpi(min_size=2)
def test_the_count_catches_slots_that_travel_whole(comm, monkeypatch):
    """Scored rows come in blocks of which the last has fewer."""
    monkeypatch.setattr(Channel, "send", whole_slots)
    found, formula = sent(comm, microbatches=7)
    assert all(a > b for a, b in zip(found[:-1], formula, strict=False))


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schedule": "inference"}, "has no backward passes"), ({"microbatches": 51}, "at most 50"), ({"grid": "pipe=9"}, "were started"),
        ({"strategy": "hybrid"}, "needs a grid"), ({"schedule": "pipedream", "microbatches": 3}, "says itself"), ({"bucket": 7}, "does nothing"),
        ({"schedule": "interleaved:100000"}, "are over 200,000; give fewer of either"),
        ({"schedule": "two_bw:100", "microbatches": 0}, "makes an update of 100 microbatches: a replica's share"),
        ({"accumulate": 2}, "does nothing"), ({"servers": "1"}, "does nothing"), ({"partition": "1,1"}, "partition"), ({"collective": "gossip"}, "does not sum"),
        ({"recompute": True, "schedule": "zero_bubble"}, "use another schedule"), ({"sync": "ssp:3"}, "does nothing"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(comm, changes, told):
    if "partition" in changes and comm.size == 2:
        return  # two layers for two stages
    with pytest.raises(UserError) as caught:
        run(comm, **changes)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["data_parallel", "parameter_server", "averaging"])
def test_flags_of_stages_are_refused_elsewhere(comm, strategy):
    with pytest.raises(UserError, match="--schedule gpipe: does nothing"):
        run(comm, strategy=strategy, microbatches=0, schedule="gpipe")


@pytest.mark.mpi
@pytest.mark.parametrize("way", [{}, {"schedule": "pipedream", "microbatches": 0}, {"schedule": "gpipe", "recompute": True}], ids=str)
def test_rows_on_the_disk_flow_through_the_stages_as_those_in_memory_do(comm, tmp_path, way):
    """Under a schedule without a flush also those of a program that is longer than what is read ahead."""
    path = comm.bcast(str(tmp_path / "rows.npz"))
    if comm.rank == 0:
        draws = np.random.default_rng(2)
        np.savez(path, x=draws.normal(size=(60_000, 60)).astype(np.float32), y=draws.integers(3, size=60_000))
    comm.Barrier()
    how = {"data": path, "deterministic": True, "batch": 500, "steps": 60, **way}
    summary, values = run(comm, memory=f"{2 + 2 * comm.size}M", **how)
    assert summary["disk_nbytes"] > 0 and np.array_equal(values, run(comm, **how)[1])
    assert [seconds > 0 for seconds in summary["read_seconds"]] == [rank == 0 for rank in range(comm.size)]


LOOKS_ON = """
import sys
from mpidml import Job, train
from mpidml.runtime.staged import Staged
from mpidml.runtime.staged_step import Executor

run = Executor.run

def watched(self, *given):
    before = set(sys.modules)
    run(self, *given)
    print(*(name for name in set(sys.modules) - before if not name.startswith("numpy.ma")))

if sys.argv[1] == "broken":
    Staged.find_products = lambda self, net: None
Executor.run = watched
train(Job(strategy="pipeline", hidden=(16,), batch=48, steps=1, microbatches=4, report=False), quiet=True, write=False)
"""


def loaded_in_the_first_step(how):
    """Return the modules that the first program of a run in a new process imports."""
    return subprocess.run([sys.executable, "-c", LOOKS_ON, how], capture_output=True, text=True, check=True, timeout=120).stdout.split()


def test_nothing_is_loaded_in_the_first_step_as_if_that_were_what_its_stages_take():
    assert loaded_in_the_first_step("") == []


def test_the_check_catches_products_that_are_looked_for_in_the_first_step():
    assert "scipy.linalg.blas" in loaded_in_the_first_step("broken")
