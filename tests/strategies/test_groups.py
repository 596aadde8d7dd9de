"""Hold groups to their laws: servers see an N-th of the traffic, to the byte, and what is learnt is what one rank learns."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.core.placement import Placement, place
from mpidml.core.role import KINDS, Send
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.driver import Driver
from mpidml.runtime.group_training import GroupTraining, joined
from mpidml.runtime.groups import Group
from mpidml.runtime.scoring import Scores
from mpidml.strategies import parameter_server
from mpidml.strategies.base import Run
from tests.ranks import mpirun, python
from tests.strategies.test_identities import SMALL, run, serial
from tests.strategies.test_resume import STEPS, go_on, start

pytestmark = pytest.mark.shows_from(3)

LIMIT = {"wait_limit": 30.0}


def test_neighbours_are_one_worker_as_evenly_as_can_be():
    assert place(5, "1", 2) == Placement(5, (0,), (1, 3), ((1, 2), (3, 4)))
    assert place(5, "1", 2).names() == [["server 0"], ["worker 0"], ["member 1 of worker 0"], ["worker 1"], ["member 1 of worker 1"]]
    assert place(5, "colocated", 2) == Placement(5, (0, 1, 3), (0, 1, 3), ((0,), (1, 2), (3, 4)))
    assert place(7, "colocated", 3).groups == ((0, 1), (2, 3), (4, 5, 6))
    assert place(4, "colocated", 1) == place(4, "colocated") and place(1, "2", 8) == place(1, "2") and place(2, "1", 5).groups == ()
    with pytest.raises(UserError, match="--group 4: 3 rank\\(s\\) compute; give at most 3"):
        place(4, "1", 4)


@pytest.mark.mpi
def test_flags_of_groups_that_decide_nothing_with_one_worker_are_named(comm):
    def words(part, **changes):
        counted = CountedComm(part)
        whole = Run(SMALL.with_values(changes, "test"), counted, quiet=True, write=False, brief=True)
        said = whole.strategy.words()
        whole.strategy.free()
        counted.free()
        return said

    part = comm.Split(comm.rank // 2, comm.rank)
    assert ("; with one worker --group 5 changes nothing" in words(part, servers="1", group=5))
    alone = comm.Split(comm.rank, 0)
    assert words(alone, group=3, collective="ring").endswith("; with one worker --group 3, --collective ring change nothing")
    assert "nothing" not in words(alone) and "nothing" not in words(part, servers="1")
    if comm.size > 1:
        assert "nothing" not in words(comm, group=comm.size, collective="ring")
    alone.Free()
    part.Free()


def test_scores_of_neighbouring_rows_are_joined_in_their_order():
    parts = [Scores((1.0, 2.0), (3.0,), 70, (Scores((0.5,), (), 70),)), Scores((), (), 0, (Scores((), (), 0),)), Scores((4.0,), (5.0,), 6, (Scores((7.0,), (), 6),))]
    assert joined(parts) == Scores((1.0, 2.0, 4.0), (3.0, 5.0), 76, (Scores((0.5, 7.0), (), 76),))


def traffic(comm, monkeypatch, **changes):
    """Return (of each kind of message between workers and servers how many there were, and of data the bytes), the summary and the parameters."""
    found, perform = Counter(), Driver.perform

    def counting(self, me, effects):
        effects = list(effects)
        for effect in effects:
            if type(effect) is Send:
                kind, data = KINDS[effect.message.kind], effect.message.data
                found[kind] += 1
                found[f"bytes of {kind}"] += 0 if data is None else data.array.nbytes
        perform(self, me, effects)

    with monkeypatch.context() as patch:
        patch.setattr(Driver, "perform", counting)
        summary, values = run(comm, **LIMIT, **changes)
    return sum(comm.allgather(found), Counter()), summary, values


def check(comm, monkeypatch, size, transport):
    """Fail unless groups of `size` ask, tell and send as many times less, to the byte; return the parameters."""
    n_apart = comm.size - 1
    apart, of_ranks, _ = traffic(comm, monkeypatch, servers="1", transport=transport, early_push="off")
    together, of_groups, values = traffic(comm, monkeypatch, servers="1", transport=transport, group=str(size))
    assert apart["push"] == n_apart * SMALL.steps, apart
    assert apart == Counter({kind: size * n for kind, n in together.items()}), "not every message is a group's"
    assert of_ranks["messages"][0] == size * of_groups["messages"][0]
    assert of_groups["samples"] == of_ranks["samples"]
    if transport == "mpi":  # on the wire, with every header: what the server sends, and what workers send to others than their group
        to_servers = [sent - within for sent, within in zip(of_groups["bytes_sent"], of_groups["bytes_in_groups"], strict=True)]
        assert of_ranks["bytes_sent"][0] == size * to_servers[0] > of_groups["n_parameters"] * 8, "bytes of the server"
        assert sum(of_ranks["bytes_sent"][1:]) == size * sum(to_servers[1:]), "bytes of workers"
        assert not any(sent for sent, roles in zip(to_servers, of_groups["roles"], strict=True) if roles[0].startswith("member"))
    return values


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("transport", ["mpi", "auto"])
def test_what_servers_are_asked_told_and_sent_falls_by_the_size_of_the_groups_to_the_byte(comm, monkeypatch, transport):
    for size in {2, comm.size - 1}:
        assert np.abs(check(comm, monkeypatch, size, transport) - serial()).max() < 1e-9


BROKEN = {
    "every rank is a worker": ((parameter_server, "place", lambda n_ranks, servers, group=1: place(n_ranks, servers)), "not every message"),
    "what members send leaves their group": ((Group, "nbytes_sent", 0), "bytes of workers"),
}


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("broken", BROKEN)
def test_the_count_catches_that(comm, monkeypatch, broken):
    changes, says = BROKEN[broken]
    monkeypatch.setattr(*changes)
    with pytest.raises(AssertionError, match=says):
        check(comm, monkeypatch, 2, "mpi")


WAYS = [
    {}, {"transport": "mpi"}, {"servers": "1"}, {"servers": "1", "transport": "mpi"}, {"optimize": "workers"}, {"deterministic": True}, {"sync": "ssp:0"},
    {"assign": "dynamic"}, {"budget": 4e6}, {"reads": "cached"}, {"reads": "eager"}, {"accumulate": 2}, {"collective": "ring"}, {"slowdown": "permanent:1"},
    {"collective": "tree", "transport": "mpi"}, {"collective": "mpi"}, {"collective": "hierarchical"},
]  # fmt: skip


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_groups_of_any_size_learn_what_a_serial_loop_does(comm, way):
    expected = serial()
    most = comm.size - ("servers" in way)
    for size in sorted({min(2, most), most}):
        summary, values = run(comm, group=str(size), **LIMIT, **(way if size > 1 or "collective" not in way else {}))
        if way.get("sync") == "ssp:0":  # gradients count as they come
            assert summary["samples"] == SMALL.steps * SMALL.batch and np.abs(values - expected).max() < 0.3
        else:
            assert np.abs(values - expected).max() < 1e-9


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("ranks_per_host", [1, 2])
@pytest.mark.parametrize("servers", ["colocated", "1"])
def test_groups_within_hosts_and_between_them_learn_what_a_serial_loop_does(comm, ranks_per_host, servers):
    _, values = run(comm, ranks_per_host=ranks_per_host, group="2", servers=servers, **LIMIT)
    assert np.abs(values - serial()).max() < 1e-9


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    "way", [{"dropout": 0.3}, {"epochs": 2, "steps": 0, "batch": 533}, {"validate": 0.1, "patience": 2, "epochs": 3, "steps": 0, "batch": 200}], ids=str
)
def test_dropout_short_batches_and_looks_of_groups_are_those_of_one_rank(comm, way):
    """533 leaves a last batch of one sample: some groups have none, and members of the one that has it."""
    alone = run(comm, 1, **way)
    summary, values = run(comm, group="2", **LIMIT, **way)
    reference, expected = comm.bcast(alone)
    assert np.abs(values - expected).max() < 1e-9
    assert summary["samples"] == reference["samples"] and summary["test_loss"] == pytest.approx(reference["test_loss"], rel=1e-9)
    assert summary.get("best_epoch") == reference.get("best_epoch")


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("sync", "more"),
    [
        *((sync, {}) for sync in ("ssp:2", "asp", "dssp:1:4", "adaptive:1:4", "quorum:1", "warmup:3:2")),
        *((sync, {"assign": "dynamic"}) for sync in ("asp", "adaptive:1:4")),
        *((sync, {"seconds": 0.2, "steps": 0}) for sync in ("bsp", "adaptive:1:4", "quorum:1")),
        *((sync, {"target": "0.6", "steps": 4000, "batch": 200}) for sync in ("bsp", "ssp:2", "quorum:1")),
    ],
    ids=str,
)
def test_to_every_policy_a_group_is_one_worker(comm, sync, more):
    summary, values = run(comm, sync=sync, group="2", **LIMIT, **more)
    assert np.isfinite(values).all() and summary["samples"] > 0
    if not more and sync != "quorum:1":
        assert summary["samples"] == SMALL.steps * SMALL.batch
    if "target" in more:
        assert summary["target_seconds"] is not None and summary["clocks"] < 4000


@pytest.mark.mpi(min_size=2)
def test_a_member_whose_gradient_is_not_summed_is_seen(comm, monkeypatch):
    whole = GroupTraining._sum_up

    def kept_back(self, rows, batch, w, g, scale, report):
        return whole(self, rows, batch, w, g, scale if self.group.leads else 0.0, report)

    monkeypatch.setattr(GroupTraining, "_sum_up", kept_back)
    assert np.abs(run(comm, group="2", **LIMIT)[1] - serial()).max() > 1e-3


@pytest.mark.mpi(min_size=2)
def test_a_run_goes_on_with_groups_of_another_size(comm, mpi_tmp_path):
    sizes = ["1", "2", str(comm.size)]
    for before, after in zip(sizes, [*sizes[1:], sizes[0]], strict=True):
        path = mpi_tmp_path / f"{before} {after}"
        start(comm, path, 14, group=before)
        _, values = go_on(comm, path, group=after)
        assert np.abs(values - serial(SMALL.with_values({"steps": STEPS}, "test"))).max() < 1e-9


SCRIPT = """
import sys, time
import mpidml
from mpidml.runtime.group_training import GroupTraining
whole = GroupTraining._sum_up
def faulty(self, rows, batch, *more):
    if batch == 3 and self.group.comm.rank == int(sys.argv[1]):
        FAULT
    return whole(self, rows, batch, *more)
GroupTraining._sum_up = faulty
mpidml.train(mpidml.Job(steps=9, hidden=(4,), backend="numpy", servers="1", group=2, wait_limit=float(sys.argv[2])), write=False, quiet=True)
"""
FAULTS = {
    "a member is late": (1, 1, "time.sleep(60)", "[rank 1/3] worker 0 waits for the gradient of rank 2 of its group, since 1."),
    "the leader is late": (0, 1, "time.sleep(60)", "[rank 2/3] member 1 of worker 0 waits for its leader, rank 1, since 3."),
    "a member fails": (1, 30, "raise ZeroDivisionError('in a member')", "[rank 2/3] ZeroDivisionError: in a member"),
}


@pytest.mark.parametrize("member,limit,fault,says", FAULTS.values(), ids=FAULTS)
def test_who_is_late_in_a_group_is_named_and_a_failure_ends_the_job_once(tmp_path, member, limit, fault, says):
    (tmp_path / "script.py").write_text(SCRIPT.replace("FAULT", fault))
    result = mpirun(3, [tmp_path / "script.py", member, limit])
    assert result.code not in (0, None) and not result.timed_out, result
    assert says in result.err and result.err.count("Traceback (most recent call last)") == 1, result.err




def test_a_simulation_is_told_of_workers_alone():
    result = python(["-m", "mpidml", "simulate", "--group", "2", "--workers", "4", "--compute", "0.01"])
    assert result.code == 2 and "--group 2: to its servers a group is one worker; give the number of groups as --workers" in result.err, result
