"""Hold training to its identities: N ranks are one rank, layouts and transports do not matter, repeat mode repeats."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from mpidml.core import rng
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.nn.models import build
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.training import Training
from mpidml.strategies.base import train
from mpidml.strategies.parameter_server import ParameterServer
from tests.strategies.plain import rows_of

SMALL = Job(data="digits", hidden=(24, 16), steps=8, batch=50, dtype="float64", backend="numpy", seed=3, report=False)


def run(comm, n_ranks=None, ranks_per_host=0, **changes):
    """Train on the first n_ranks ranks; return (summary, final parameters) on those, None on the others."""
    n_ranks = comm.size if n_ranks is None else n_ranks
    part = comm.Split(0 if comm.rank < n_ranks else 1, comm.rank)
    try:
        if comm.rank >= n_ranks:
            return None
        counted = CountedComm(part, ranks_per_host)
        kept = {}
        summary = train(SMALL.with_values(changes, "test"), counted, quiet=True, write=False, keep=kept)
        counted.free()
        return summary, kept["values"]
    finally:
        part.Free()


def serial(job=SMALL, factor=lambda it: 1.0):
    """Train in a plain loop: momentum SGD on the same batches, the rate times `factor(clock)`, a network from NumPy alone."""
    x, y = rows_of(job)
    widths = [x.shape[1], *job.hidden, 10]
    flat = build("mlp", widths[0], 10, job.hidden, dtype="float64", backend="numpy").init(job.seed)
    weights, at = [], 0
    for a, b in pairwise(widths):
        weights.append([flat[at : at + a * b].reshape(a, b), flat[at + a * b : at + a * b + b]])
        at += a * b + b
    velocity = [[np.zeros_like(t) for t in pair] for pair in weights]
    order = rng.stream(job.seed, "order", 0).permutation(len(x))
    for k in range(job.steps):
        rows = order[k * job.batch : (k + 1) * job.batch]
        outputs = [x[rows]]
        for i, (w, b) in enumerate(weights):
            z = outputs[-1] @ w + b
            outputs.append(np.maximum(z, 0) if i < len(weights) - 1 else z)
        p = np.exp(outputs[-1] - outputs[-1].max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(rows)), y[rows]] -= 1
        d = p / len(rows)
        for i in reversed(range(len(weights))):
            gradient = [outputs[i].T @ d, d.sum(axis=0)]
            d = (d @ weights[i][0].T) * (outputs[i] > 0)
            for j in range(2):
                velocity[i][j] = 0.9 * velocity[i][j] + gradient[j]
                weights[i][j] -= job.lr * factor(k) * velocity[i][j]
    return flat


NET = """
[[layer]]
type = "embedding"
columns = [3, 7]
units = 2

[[layer]]
type = "dense"
units = 12
activation = "gelu"

[[layer]]
type = "layer_norm"

[[layer]]
type = "dropout"
rate = 0.2

[[layer]]
type = "dense"
"""
LOSSES = {
    "balanced and smoothed": {"class_weights": "balanced", "label_smoothing": 0.1},
    "weights as a list": {"class_weights": "1,2,3,4,5,0.1,0.2,0.3,0.4,0.5"},
    "hinge": {"loss": "hinge:0.5", "class_weights": "balanced"},
    "huber": {"loss": "huber:0.3", "activation": "softplus"},
    "a net file": {"model": "net.toml", "hidden": Job.hidden, "label_smoothing": 0.1},
}


@pytest.mark.mpi
@pytest.mark.parametrize("changes", LOSSES.values(), ids=LOSSES)
def test_every_loss_and_layer_on_any_number_of_ranks_is_one_rank(comm, changes, tmp_path):
    if "model" in changes:  # pixels of the digits are whole numbers from 0 to 6, so they can be taken as codes
        (tmp_path / "net.toml").write_text(NET)
        changes = {**changes, "model": str(tmp_path / "net.toml")}
    alone = run(comm, 1, **changes)
    summary, values = run(comm, **changes)
    reference, expected = comm.bcast(alone)
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)
    assert summary["test_loss"] == pytest.approx(reference["test_loss"], rel=1e-9)


@pytest.mark.mpi
@pytest.mark.openmpi
def test_bsp_on_any_number_of_ranks_is_a_serial_loop(comm):
    _, values = run(comm)
    assert np.abs(values - serial()).max() < 1e-9


def warmup_cosine(it):
    """--lr-policy warmup:3+cosine over the 8 clocks of SMALL."""
    return min(1, (it + 1) / 3) * (1 + np.cos(np.pi * it / SMALL.steps)) / 2


SCHEDULED = [
    {}, {"optimize": "workers"}, {"deterministic": True}, {"transport": "mpi"}, {"servers": "1"}, {"servers": "1", "early_push": "on"},
    {"deterministic": True, "sync": "ssp:0"}, {"budget": 4e6}, {"epochs": 1, "steps": 0, "batch": 200}, {"target": "1.0"},
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.shows_from(3)
@pytest.mark.parametrize("way", SCHEDULED, ids=str)
def test_with_a_schedule_any_number_of_ranks_is_a_serial_loop(comm, way):
    if "servers" in way and comm.size == 1:
        return
    job = SMALL.with_values({"steps": 8, "batch": 200, **way}, "test") if "epochs" in way else SMALL
    _, values = run(comm, lr_policy="warmup:3+cosine", **way)
    assert np.abs(values - serial(job.with_values({"steps": 8}, "test"), warmup_cosine)).max() < 1e-9
    assert np.abs(values - serial(job.with_values({"steps": 8}, "test"))).max() > 1e-3  # and it does something


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["ssp:3", "asp", "dssp:1:4", "adaptive:2:6", "quorum"])
@pytest.mark.parametrize("assign", ["static", "dynamic"])
def test_one_process_follows_the_schedule_under_every_policy(comm, sync, assign):
    found = run(comm, 1, sync=sync, assign=assign, lr_policy="warmup:3+cosine", tune=False)
    if found is not None:
        assert np.abs(found[1] - serial(factor=warmup_cosine)).max() < 1e-9


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adagrad", "rmsprop", "adadelta", "lion", "ftrl:0.001", "l1:0.01+sgd"])
def test_every_descent_on_any_number_of_ranks_is_that_of_one(comm, optimizer):
    same = {"optimizer": optimizer, "lr": 0.01, "lr_policy": "step:3:0.5"}
    alone, everyone = run(comm, 1, **same), run(comm, **same)
    if alone is not None:
        np.testing.assert_allclose(everyone[1], alone[1], rtol=1e-6, atol=1e-8)


ACCUMULATED = [
    {}, {"dropout": 0.3}, {"optimizer": "clip:0.5+adam"}, {"optimize": "workers"}, {"deterministic": True, "sync": "ssp:2"}, {"transport": "mpi"},
    {"servers": "1", "early_push": "on", "hidden": (200, 180)}, {"servers": "1", "early_push": "on", "transport": "mpi"}, {"budget": 4e6},
    {"batch": 533}, {"loss": "squared_error"}, {"slowdown": "exponential:1"},
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.shows_from(3)
@pytest.mark.parametrize("way", ACCUMULATED, ids=str)
def test_a_share_in_parts_gives_the_weights_of_the_whole(comm, way):
    """With a batch of 533 the last one of an epoch has one row, fewer than parts."""
    if "servers" in way and comm.size == 1:
        return
    whole, halves, fifths = (run(comm, accumulate=k, **way) for k in (1, 2, 5))
    assert np.abs(halves[1] - whole[1]).max() < 1e-9 and np.abs(fifths[1] - whole[1]).max() < 1e-9
    if way.get("sync", "bsp") == "bsp":  # else it is the mean of what came last
        assert whole[0]["final_loss"] == pytest.approx(fifths[0]["final_loss"], rel=1e-9)


@pytest.mark.mpi
def test_the_identity_catches_a_part_that_is_left_out(comm, monkeypatch):
    whole = Training._sum_up
    monkeypatch.setattr(Training, "_sum_up", lambda self, rows, *more: whole(self, rows[rows.size // 2 :], *more))
    assert np.abs(run(comm)[1] - serial()).max() > 1e-3


@pytest.mark.mpi
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5])
def test_activations_take_one_part_of_the_memory(comm, parts):
    """Counted in rows of the buffers that steps are bound to."""
    batch = 10 * comm.size
    part = comm.Dup()
    counted, kept = CountedComm(part), {}
    train(SMALL.with_values({"batch": batch, "accumulate": parts}, "test"), counted, quiet=True, write=False, keep=kept)
    counted.free()
    part.Free()
    assert [memory.m for memory in kept["network"]._memory.values()] == [-(-10 // parts)]


@pytest.mark.mpi
def test_a_share_with_fewer_rows_than_parts_is_refused(comm):
    share = 50 // comm.size
    with pytest.raises(UserError, match=f"--accumulate {share + 1}: a worker's share of --batch 50 is {share} sample"):
        run(comm, accumulate=share + 1)


@pytest.mark.mpi
def test_dropout_does_not_depend_on_the_number_of_workers(comm):
    alone = run(comm, 1, dropout=0.3)
    everyone = run(comm, dropout=0.3)
    plain = run(comm)
    if alone is not None:
        assert np.abs(everyone[1] - alone[1]).max() < 1e-9
        assert np.abs(everyone[1] - plain[1]).max() > 1e-3  # and it does something


@pytest.mark.mpi
def test_ssp_of_staleness_0_is_bsp_bit_by_bit_in_repeat_mode(comm):
    for servers in ("colocated", *(["1"] if comm.size > 1 else [])):
        bsp, ssp0, ssp1 = (run(comm, deterministic=True, sync=s, servers=servers) for s in ("bsp", "ssp:0", "ssp:1"))
        assert bsp[0]["model_sha256"] == ssp0[0]["model_sha256"]
        assert bsp[0]["model_sha256"] != ssp1[0]["model_sha256"]  # staleness does change the weights
        assert ssp0[0]["staleness_max"] == 0 and ssp1[0]["staleness_max"] == 1


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["ssp:3", "asp"])
def test_one_process_is_never_stale(comm, sync):
    """Alone it reads in place what it has just written, so every policy is a serial loop, nothing softened."""
    found = run(comm, 1, sync=sync)
    if found is not None:
        assert found[0]["staleness_max"] == 0 and np.abs(found[1] - serial()).max() < 1e-9


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:2"])
def test_repeat_mode_repeats_under_jitter(comm, sync):
    first, second = (run(comm, deterministic=True, sync=sync, slowdown=f"exponential:{f}") for f in (1, 3))
    assert first[0]["model_sha256"] == second[0]["model_sha256"]
    assert first[0]["staleness_histogram"] == second[0]["staleness_histogram"]


@pytest.mark.mpi(min_size=5)
@pytest.mark.parametrize("sync", ["bsp", "ssp:1"])
def test_weights_do_not_depend_on_the_number_of_servers(comm, sync):
    """Three workers each time: beside three servers, with one server, with two."""
    layouts = [run(comm, n, deterministic=True, sync=sync, servers=servers) for n, servers in ((3, "colocated"), (4, "1"), (5, "2"))]
    hashes = {found[0]["model_sha256"] for found in layouts if found is not None}
    assert len(hashes) == 1


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:1"])
def test_transport_early_pushes_and_reads_do_not_change_a_bit(comm, sync):
    ways = [{}, {"transport": "mpi"}, {"reads": "cached"}, {"reads": "eager"}, {"early_push": "off"}]
    if comm.size > 1:
        ways += [
            {"early_push": "on", "hidden": (200, 180)},
            {"early_push": "on", "transport": "mpi", "hidden": (200, 180)},
            {"early_push": "off", "hidden": (200, 180)},
        ]
    found = [(way.get("hidden"), run(comm, deterministic=True, sync=sync, **way)[0]["model_sha256"]) for way in ways]
    for hidden in {h for h, _ in found}:
        assert len({sha for h, sha in found if h == hidden}) == 1, found


@pytest.mark.mpi(min_size=2)
@pytest.mark.shows_from(3)
@pytest.mark.parametrize("sync", ["bsp", "ssp:1"])
@pytest.mark.parametrize("servers", ["colocated", "1"])
def test_several_hosts_give_the_bits_of_one(comm, sync, servers):
    one, each, pairs = (run(comm, ranks_per_host=k, deterministic=True, sync=sync, servers=servers) for k in (0, 1, 2))
    assert one[0]["model_sha256"] == each[0]["model_sha256"] == pairs[0]["model_sha256"]
    assert sum(each[0]["bytes_window"]) == 0 < sum(each[0]["bytes_sent"])


@pytest.mark.mpi
def test_linear_optimizers_give_one_result_on_servers_and_on_workers(comm):
    """Momentum is linear in the gradient, so the workers' own velocities sum up to the server's (tuning off, synchronous)."""
    servers, workers = run(comm, optimize="servers"), run(comm, optimize="workers")
    assert np.abs(servers[1] - workers[1]).max() < 1e-9
    clipped = run(comm, optimizer="clip:0.01+momentum")
    assert np.abs(clipped[1] - servers[1]).max() > 1e-4


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:3", "asp"])
def test_every_policy_learns_and_keeps_its_bound(comm, sync):
    summary, _ = run(comm, sync=sync, steps=120, dtype="float32", backend="numba")
    assert summary["test_accuracy"] > 0.85
    bound = summary["staleness_bound"]
    assert bound is None or summary["staleness_max"] <= bound
    assert sum(summary["staleness_histogram"].values()) == 121 * sum("worker" in r for roles in summary["roles"] for r in roles)


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("assign", ["static", "dynamic"])
@pytest.mark.parametrize("sync", ["bsp", "ssp:2", "asp", "dssp:1:4", "warmup:10:2", "adaptive:2:6", "quorum"])
def test_every_policy_learns_under_either_assignment(comm, sync, assign):
    """Every sample counts once an epoch, or is reported as dropped or never computed."""
    summary, _ = run(comm, sync=sync, assign=assign, steps=128, dtype="float32", backend="numba")
    n_workers = sum("worker" in r for roles in summary["roles"] for r in roles)
    assert summary["test_accuracy"] > 0.85
    assert summary["staleness_bound"] is None or summary["staleness_max"] <= summary["staleness_bound"]
    if sync != "quorum":
        assert (summary["samples"], summary["dropped_samples"]) == (50 * 128, 0)
    elif assign == "dynamic":
        assert summary["samples"] + summary["dropped_samples"] == 50 * 128
    if sync == "quorum" and n_workers > 1:
        assert summary["samples"] < 50 * 128
        assert summary["samples"] == pytest.approx(50 * 128 * (n_workers - 1) / n_workers, rel=0.12) or assign == "dynamic"


@pytest.mark.mpi
@pytest.mark.parametrize("servers", ["colocated", "1"])
def test_dynamic_bsp_computes_the_same_batches_as_static(comm, servers):
    """Which worker computes a block does not matter to the sum: equal within rounding, where every worker computes one of each clock."""
    if servers == "1" and comm.size == 1:
        return
    static, dynamic = (run(comm, assign=assign, servers=servers, steps=24) for assign in ("static", "dynamic"))
    assert dynamic[0]["samples"] == static[0]["samples"]
    if comm.size == 1:
        assert np.array_equal(static[1], dynamic[1])
    assert np.abs(static[1] - dynamic[1]).max() < 0.25  # a block may slip into the next clock


@pytest.mark.mpi
@pytest.mark.parametrize("reads", ["cached", "eager"])
@pytest.mark.parametrize("more", [{"assign": "dynamic"}, {"target": "loss:0.3"}, {"seconds": 0.2, "steps": 0, "epochs": 30}], ids=str)
def test_reads_that_are_held_go_with_a_coordinator(comm, reads, more):
    """Where no read has to be waited for, the last thing missing may be the grant: the coordinator is then whom a worker waited for."""
    for sync in ("ssp:2", *(["asp"] if reads == "eager" else [])):
        summary, _ = run(comm, sync=sync, reads=reads, **{"steps": 60, **more})
        assert summary["samples"] > 0 and np.isfinite(summary["final_loss"])


@pytest.mark.mpi
def test_a_quorum_of_all_is_bsp(comm):
    bsp, quorum = run(comm), run(comm, sync=f"quorum:{comm.size}")
    assert np.abs(bsp[1] - quorum[1]).max() < 1e-9 and quorum[0]["dropped_samples"] == 0


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:2", "asp", "adaptive", "quorum"])
def test_a_run_ends_at_its_target_and_says_when(comm, sync):
    """The limit is far away: only the target can end the run; one that cannot be met ends at the limit."""
    same = {"dtype": "float32", "backend": "numba", "hidden": (64,), "steps": 40_000}
    summary, _ = run(comm, sync=sync, target="0.9", **same)
    assert summary["target_seconds"] > 0 and summary["clocks"] < 40_000
    assert 0 < summary["target_samples"] <= summary["samples"] + summary["dropped_samples"]
    summary, _ = run(comm, sync=sync, target="1.0", **{**same, "steps": 40})
    assert summary["target_seconds"] is None
    assert sync == "quorum" or summary["clocks"] == 40


@pytest.mark.mpi
@pytest.mark.parametrize("sync", ["bsp", "ssp:2", "asp", "adaptive", "quorum"])
@pytest.mark.parametrize("assign", ["static", "dynamic"])
def test_a_run_ends_at_its_time(comm, sync, assign):
    summary, _ = run(comm, sync=sync, assign=assign, seconds=0.3, steps=0)
    assert summary["seconds"] >= 0.25 and summary["wall_seconds"] < 20
    assert summary["samples"] > 0 and summary["epochs"] > 0


@pytest.mark.mpi
def test_fewer_rows_than_workers_works(comm, mpi_tmp_path):
    path = mpi_tmp_path / "few.npz"
    if comm.rank == 0:
        np.savez(path, x=np.eye(3), y=np.arange(3))
    comm.Barrier()
    summary, _ = run(comm, data=str(path), hold_out=0, batch=50, steps=4, hidden=(4,))
    assert summary["samples"] == 12
    assert np.isfinite(summary["final_loss"])


@pytest.mark.mpi
def test_stale_updates_are_softened_and_without_it_momentum_fails(comm):
    """At a rate where bsp learns, staleness 1 under momentum 0.9 does not, unless rate and momentum follow the staleness."""
    same = {"n_ranks": 1, "deterministic": True, "lr": 0.1, "steps": 100, "hidden": (256, 128), "batch": 64, "dtype": "float32", "backend": "numba"}
    bsp, tuned, plain = (run(comm, **same, **more) for more in ({}, {"sync": "ssp:1"}, {"sync": "ssp:1", "tune": False}))
    if bsp is not None:
        assert tuned[0]["final_loss"] < 0.1 * plain[0]["final_loss"]
        assert bsp[0]["final_loss"] < 0.2 and tuned[0]["final_loss"] < 0.2 and plain[0]["final_loss"] > 1
        assert (tuned[0]["rate_factor"], tuned[0]["memory_factor"]) == (0.5, 2.0)
        assert (plain[0]["rate_factor"], bsp[0]["rate_factor"]) == (1.0, 1.0)


@pytest.mark.mpi
@pytest.mark.parametrize("where", [{"optimize": "servers"}, {"optimize": "workers"}, {"optimizer": "decay:0.3+clip:1e9+sgd"}])
def test_weight_decay_counts_once_whatever_the_number_of_workers(comm, where):
    same = {"optimizer": "decay:0.3+sgd", "lr": 0.1, **where}
    alone, everyone, none = run(comm, 1, **same), run(comm, **same), run(comm, 1, optimizer="sgd", lr=0.1)
    if alone is not None:
        assert np.abs(everyone[1] - alone[1]).max() < 1e-9
        assert np.abs(none[1] - alone[1]).max() > 1e-3  # it does something


@pytest.mark.mpi
def test_arrival_does_not_multiply_decay_or_normalised_steps(comm):
    """Pushes that count one by one must not decay, or step, once for each worker: the weights stay near those of one worker."""
    for optimizer, lr in (("decay:0.5+sgd", 0.05), ("adam", 0.002)):
        alone = run(comm, 1, sync="ssp:0", optimizer=optimizer, lr=lr)
        everyone = run(comm, sync="ssp:0", optimizer=optimizer, lr=lr)
        if alone is not None:
            start = build("mlp", 240, 10, SMALL.hidden, dtype="float64", backend="numpy").init(SMALL.seed)
            moved_alone, moved = np.linalg.norm(alone[1] - start), np.linalg.norm(everyone[1] - start)
            assert 0.3 * moved_alone < moved < 2 * moved_alone


@pytest.mark.mpi
def test_eager_reads_that_cannot_repeat_are_refused(comm):
    with pytest.raises(UserError, match="staleness above 1 depends on when rows arrive"):
        run(comm, deterministic=True, sync="ssp:2", reads="eager")


@pytest.mark.mpi
def test_values_that_differ_little_are_told_apart_before_they_are_rounded(comm, mpi_tmp_path):
    """A column around 1.7e9 whose classes lie 20 apart is one value in float32, but not after it was scaled."""
    path = mpi_tmp_path / "tall.npz"
    if comm.rank == 0:
        y = np.arange(400) % 2
        np.savez(path, x=1.7e9 + 20.0 * y[:, None] + np.random.default_rng(0).normal(0, 1, (400, 1)), y=y)
    comm.Barrier()
    summary, _ = run(comm, data=str(path), hidden=(8,), steps=60, lr=0.1, dtype="float32")
    assert summary["test_accuracy"] > 0.99


@pytest.mark.mpi
def test_a_run_that_diverges_says_since_when(comm):
    summary, _ = run(comm, lr=1e150, steps=6)
    assert summary["diverged_at_clock"] is not None and summary["diverged_at_clock"] < 6
    assert run(comm)[0]["diverged_at_clock"] is None


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["momentum", "adam", "decay:1e-3+sgd"])
def test_under_bsp_a_budget_changes_the_pieces_and_not_the_sum(comm, optimizer):
    plain = run(comm, optimizer=optimizer)
    for changes in ({}, {"transport": "mpi"}, {"order": "magnitude", "reads": "cached"}):
        other = run(comm, optimizer=optimizer, budget=4e6, **changes)
        np.testing.assert_allclose(other[1], plain[1], rtol=1e-9, atol=1e-12)


RACES = ("", "permanent:3", "exponential:2")


def rows_of_races(comm):
    """Train one job under ssp as often as there are ways to be slow; return of each the rows' losses and samples, and the hash of the weights."""
    found = []
    for slowdown in RACES:
        job = SMALL.with_values({"sync": "ssp:2", "deterministic": True, "batch": 15, "steps": 9, "slowdown": slowdown}, "test")
        kept = {}
        counted = CountedComm(comm)
        summary = train(job, counted, quiet=True, write=False, keep=kept)
        counted.free()
        found.append(comm.bcast(([(row["loss"], row["samples"]) for row in kept.get("metrics") or []], summary["final_loss"], summary["model_sha256"])))
    return found


@pytest.mark.mpi
def test_a_run_that_is_promised_to_repeat_has_the_same_rows_whoever_comes_first(comm):
    first, *others = rows_of_races(comm)
    assert first[0]
    assert all(each == first for each in others)


@pytest.mark.mpi
def test_rows_in_the_order_of_arrival_would_not_repeat(comm, monkeypatch):
    prepare = ParameterServer.__init__

    def by_arrival(self, *given):
        prepare(self, *given)
        self.in_step = False

    monkeypatch.setattr(ParameterServer, "__init__", by_arrival)
    first, *others = rows_of_races(comm)
    if comm.size > 2:
        assert any(each[0] != first[0] for each in others)
    assert all(each[2] == first[2] for each in others)
