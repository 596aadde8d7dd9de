"""Hold a run to the bytes that a rank may take: counted as a plan counts the same candidate, refused in one line before anything is made, alike on all ranks."""

import math
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mpidml.collectives.base import Collective, make_collective
from mpidml.collectives.hierarchical import Hierarchical
from mpidml.core.balance import by_memory
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.pace import paced
from mpidml.nn import room
from mpidml.nn.parts import NetParts
from mpidml.optim.base import make_chain
from mpidml.planner.candidate import Candidate
from mpidml.planner.machine import Link, Machine
from mpidml.planner.price import Pricer, Task
from mpidml.runtime import rank_memory, stage_plan
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.own_links import needs_whole
from mpidml.runtime.rank_memory import Stages, hosts_of, owned, replica_needs
from mpidml.runtime.resume import resumed
from mpidml.runtime.scoring import BLOCK
from mpidml.strategies.base import Run
from tests.changed import changed
from tests.planner.plain import costs
from tests.strategies.test_identities import SMALL
from tests.training import trained

pytestmark = pytest.mark.shows_from(3)

JOB = SMALL.with_values({"strategy": "pipeline", "wait_limit": 20.0, "hidden": (80, 64, 48, 20), "batch": 400, "microbatches": 2, "steps": 1}, "test")
WAYS = [
    {}, {"schedule": "gpipe", "microbatches": 4}, {"schedule": "zero_bubble", "microbatches": 5}, {"schedule": "looped_bfs", "optimizer": "sgd"},
    {"recompute": True, "optimizer": "adam"}, {"strategy": "tensor"}, {"strategy": "hybrid", "grid": "data=0", "mix": "1=tensor"},
]  # fmt: skip
HOSTS = [1, 2]
"""One host, or each rank on one of its own."""


def pricer_of(strategy, hosts):
    """Return what prices a run's candidate in a plan, with the run's own cut."""
    job, net, n = strategy.job, strategy.net, strategy.comm.size
    chain = make_chain(job.optimizer, job.rate)
    parts = NetParts(net)
    task = Task(job.batch, chain.state_per_byte(net.dtype), not needs_whole(chain.split()[0]), job.collective, BLOCK)
    found = Pricer(task, Machine(n, n if hosts > 1 else 1, n, Link(1e-6, 1e9), Link(1e-4, 1e8)), costs([(0, 1, 0, 2)] * parts.n_layers), parts)
    if hasattr(strategy, "plan"):
        found.cut = lambda n_stages: strategy.plan.stages
    return found


@contextmanager
def built(comm, hosts=1, **changes):
    """Make the run of a job ready on hosts of all ranks, or of one each; give its strategy."""
    counted = CountedComm(comm, 1 if hosts > 1 else 0)
    run = Run(JOB.with_values(changes, "test").checked(), counted, quiet=True, write=False, brief=True)
    run.drive()
    yield run.strategy
    run.end(None)
    run.data.close()
    counted.free()


def both(comm, hosts, **way):
    """Return what the fullest rank of a run needs, and what a plan says of the same candidate."""
    with built(comm, hosts, **way) as strategy:
        sizes, job = strategy.grid.sizes, strategy.job
        schedule = job.schedule if sizes["pipe"] > 1 else ""
        of = Candidate(sizes["data"], sizes["pipe"], sizes["tensor"], schedule, strategy.n_items, job.recompute, job.mix)
        return max(Stages(strategy, strategy.plan.stages, hosts_of(strategy.comm)).needs()), pricer_of(strategy, hosts).memory_nbytes(of)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("hosts", HOSTS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_run_counts_what_a_plan_counts(comm, way, hosts):
    if hosts > 1 and "strategy" in way:
        return  # nothing goes along a pipe
    ours, planned = both(comm, hosts, **way)
    assert ours == planned > 0


BROKEN = {
    "what comes is kept as long as the own activations": ("channel_slots(kept, sent, s) * (lcm", "kept[end] * (lcm"),
    "the gradient of a microbatch has no room": ("(1 + (n_items > 1) + (versions", "(1 + (versions"),
    "one microbatch is under way": ("(1 if recompute else kept[s])", "1"),
}
LATE = {"hidden": (8, 200, 200, 200, 200, 20), "microbatches": 8}
"""The fullest rank is none of the first."""
CUTS = {2: "1,6", 3: "1,1,5", 5: "1,1,3,1,1"}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("broken", BROKEN)
def test_the_comparison_catches_that(comm, monkeypatch, broken):
    monkeypatch.setattr(rank_memory, "stages_nbytes", changed(room, [BROKEN[broken]]).stages_nbytes)
    ours, planned = both(comm, 1, schedule="gpipe" if BROKEN[broken][1] == "1" else "one_f_one_b", partition=CUTS[comm.size], **LATE)
    assert ours < planned


@pytest.mark.mpi
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("collective", ["ring", "rabenseifner", "recursive_doubling", "tree"])
@pytest.mark.parametrize("optimizer", ["momentum", "clip:1+adam"])
def test_a_rank_with_the_whole_network_counts_what_a_plan_counts(comm, collective, optimizer, accumulate):
    way = {"strategy": "data_parallel", "microbatches": 0, "collective": collective, "optimizer": optimizer, "accumulate": accumulate}
    with built(comm, **way) as strategy:
        ours = replica_needs(strategy, strategy.picked, accumulate)
        assert ours == pytest.approx(pricer_of(strategy, 1).memory_nbytes(Candidate(comm.size, microbatches=accumulate)), rel=1e-12)


@pytest.mark.mpi
def test_what_is_owned_of_shared_memory_is_a_share(comm):
    with built(comm, strategy="data_parallel", microbatches=0, collective="shared") as strategy:
        own, shared = replica_needs(strategy, "ring", 1), replica_needs(strategy, "shared", 1)
        assert shared == pytest.approx(own, rel=1e-12) and replica_needs(strategy, "mpi", 1) >= own


def shares(comm, name, per_host):
    """Return the largest share of 960 values that a rank really owns between the halves of a sum, and what is counted for it."""
    ranks = CountedComm(comm, ranks_per_host=per_host)
    found = make_collective(name, ranks)
    halves = found.halves(found.allocate(960, "f8"), found.weights(960, "f8"))
    hosts = tuple(Counter(hosts_of(ranks)).values())
    most = max(ranks.allgather(halves.hi - halves.lo if halves.shares else 960)) / 960
    for half in (halves.reduce, halves.gather):
        half.free()
    found.free()
    ranks.free()
    return most, owned(name, comm.size, hosts)


@pytest.mark.mpi
@pytest.mark.parametrize("per_host", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["hierarchical", "hierarchical:ring", "hierarchical:tree", "hierarchical:mpi", "hierarchical:recursive_doubling", "shared", "ring"])
def test_what_the_fullest_rank_owns_is_what_is_counted_also_where_hosts_are_unlike(comm, name, per_host):
    if name == "shared" and per_host:
        return  # it is for one host
    most, counted = shares(comm, name, per_host)
    assert most == pytest.approx(counted, abs=1 / 960)


@pytest.mark.mpi(min_size=3)
def test_the_check_catches_a_count_that_knows_no_hosts(comm, monkeypatch):
    monkeypatch.setattr(Hierarchical, "largest", Collective.largest)
    most, counted = shares(comm, "hierarchical", 2)
    assert most > counted + 1 / 960


@pytest.mark.mpi
def test_each_version_of_the_weights_counts(comm, monkeypatch):
    with built(comm, schedule="pipedream", microbatches=0) as strategy:
        (held,) = strategy.held.values()
        needs = Stages(strategy, strategy.plan.stages, hosts_of(strategy.comm)).needs()[comm.rank]
        monkeypatch.setattr(rank_memory, "stages_nbytes", lambda *given: room.stages_nbytes(*given[:8]))
        once = Stages(strategy, strategy.plan.stages, hosts_of(strategy.comm)).needs()[comm.rank]
        assert needs - once == (len(held.store.versions) - 1) * held.stage.n_params * 8


# ---- what is more than a rank may take


def needed(comm, **way):
    """Return the bytes that suffice, and the rank that needs most."""
    with built(comm, **way) as strategy:
        if strategy.job.strategy == "data_parallel":
            of_each = comm.allgather(sum(bucket.halves.hi - bucket.halves.lo for bucket in strategy.driver.buckets))
            return math.ceil(replica_needs(strategy, strategy.picked, strategy.job.accumulate)), of_each.index(max(of_each))
        needs = Stages(strategy, strategy.plan.stages, hosts_of(strategy.comm)).needs()
        return math.ceil(max(needs)), strategy.grid.rank(pipe=int(np.argmax(needs)), tensor=strategy.n_parts - 1)


def refused(comm, **way):
    """Return the line by which a run is refused, the same on all ranks; "" where it is not."""
    try:
        trained(comm, JOB, **way)
        found = ""
    except UserError as error:
        found = str(error)
    assert len(set(comm.allgather(found))) == 1 and "\n" not in found
    return found


@pytest.mark.mpi(min_size=2)
def test_seconds_of_layers_decide_nothing_of_what_fits(comm, monkeypatch):
    """By seconds the first layer has a stage for itself; a cut that evens out memory fits, and is taken. Without it the run is refused."""
    way = {"hidden": (200,) * 6, "schedule": "gpipe", "microbatches": 2}
    net_of = stage_plan.of_all

    def skewed(comm, net, m, *more):  # of ranks that are as fast as each other: one that waits for a core counts as slow, and has fewer layers
        profiles, _ = net_of(comm, net, m, *more)
        return [each._replace(forward_seconds=1000.0 if i == 0 else 1e-3, backward_seconds=0.0) for i, each in enumerate(profiles)], [1.0] * comm.size

    monkeypatch.setattr(stage_plan, "of_all", skewed)
    by_seconds, _ = needed(comm, **way)
    monkeypatch.setattr(stage_plan, "paced", lambda profiles, *more: paced(by_memory(profiles), *more))
    least, _ = needed(comm, **way)
    monkeypatch.undo()
    monkeypatch.setattr(stage_plan, "of_all", skewed)
    assert least < by_seconds and refused(comm, memory_per_rank=str(least), **way) == ""
    monkeypatch.setattr(stage_plan, "by_memory", lambda profiles: profiles)
    assert "the fullest, needs" in refused(comm, memory_per_rank=str(least), **way)


RUNS = [
    {"deterministic": True}, {"deterministic": True, "schedule": "gpipe", "microbatches": 4}, {"strategy": "tensor"},
    {"strategy": "data_parallel", "collective": "ring", "microbatches": 0},
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("way", RUNS, ids=str)
def test_what_a_rank_has_not_is_refused_in_one_line_and_what_the_line_says_fits(comm, way):
    enough, rank = needed(comm, **way)
    assert not refused(comm, memory_per_rank=str(enough), **way)
    for given in (enough - 1, int(enough * 0.8), 1000):
        line = refused(comm, memory_per_rank=str(given), **way)
        assert line.startswith("--memory-per-rank ") and f": rank {rank} (" in line and ", the fullest, needs " in line and "; give as much, or " in line
        if "what would fit: " in line:
            for option in line.partition("what would fit: ")[2].split(" or "):
                name, _, value = option.removeprefix("--").partition(" ")
                if not value.startswith("stages"):
                    assert not refused(comm, memory_per_rank=str(given), **{**way, name: value or True}), option
    assert "more ranks, a smaller batch, or an optimizer with less state" in line, "1000 bytes"


@pytest.mark.mpi
def test_a_limit_to_the_byte_says_bytes(comm):
    enough, _ = needed(comm, strategy="tensor")
    line = refused(comm, memory_per_rank=str(enough - 1), strategy="tensor")
    assert f"--memory-per-rank {enough - 1}: rank " in line and f"needs {enough};" in line


@pytest.mark.mpi
def test_more_stages_would_fit_where_one_is_too_much(comm):
    with built(comm, deterministic=True) as strategy:
        found = Stages(strategy, strategy.plan.stages, hosts_of(strategy.comm))
        needs = [max(found.needs(n_pipe=n)) for n in range(1, 6)]
        assert max(found.needs()) == needs[comm.size - 1]
        fits = {limit: [option for option in found.fitting(limit) if " stages on " in option] for limit in needs}
    for limit, options in fits.items():
        assert options == [f"{n} stages on {n} ranks" for n in range(comm.size + 1, 6) if needs[n - 1] <= limit][:1]


FOUR = """
from mpidml.schedules.base import Schedule, pairs


class Four(Schedule):
    def order(self, rank, n_ranks, n):
        return pairs(rank, min(n, {2: n_ranks, 4: n_ranks}[n] - 1 - rank), n)
"""


@pytest.mark.mpi
@pytest.mark.parametrize("broken", [False, True])
def test_what_cannot_be_is_nothing_that_would_fit(comm, tmp_path, monkeypatch, broken):
    """A schedule that knows some numbers of microbatches alone, and is looked at for others."""
    (tmp_path / "four.py").write_text(FOUR)
    way = {"schedule": comm.bcast(str(tmp_path / "four.py")), "microbatches": 4, "memory_per_rank": "1K"}
    comm.Barrier()
    if broken:
        monkeypatch.setattr(Stages, "_most", lambda self, **given: max(self.needs(**given)))
    line = refused(comm, **way)
    assert line.startswith("--memory-per-rank 1K: rank ") != broken and (f"{way['schedule']}: its order ends by KeyError" in line) == broken


@pytest.mark.mpi
def test_nothing_is_begun_and_a_run_that_goes_on_is_held_to_it_too(comm, tmp_path):
    folder = Path(comm.bcast(str(tmp_path / "run")))
    assert refused(comm, write=True, memory_per_rank="1K", checkpoint_every=1, out=str(folder)).startswith("--memory-per-rank 1K: rank ")
    assert not comm.bcast([path.name for path in folder.glob("*")])
    trained(comm, JOB, write=True, steps=2, checkpoint_every=1, out=str(folder))
    before = comm.bcast(sorted(path.name for path in folder.iterdir()))
    with pytest.raises(UserError, match=r"^--memory-per-rank 1K: rank \d \(.*\), the fullest, needs "):
        trained(comm, resumed(str(folder), {"steps": 4, "memory_per_rank": "1K"}), write=True)
    assert comm.bcast(sorted(path.name for path in folder.iterdir())) == before
    assert trained(comm, resumed(str(folder), {"steps": 4, "memory_per_rank": "1G"}), write=True)[0]["samples"] > 0


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"compress": "two_bit"}, "--compress two_bit has others"), ({"device": "cuda", "backend": "numba"}, "--device cuda has others"),
        ({"memory_per_rank": "lots"}, "is not a number of bytes"),
        ({"strategy": "averaging", "microbatches": 0}, "does nothing under"), ({"strategy": "parameter_server", "microbatches": 0}, "does nothing under"),
        ({"strategy": "data_parallel", "microbatches": 0, "deterministic": True}, "does not count gradients of each block"),
        ({"strategy": "data_parallel", "microbatches": 0, "shares": "measured"}, "counts equal shares of a batch, and --shares measured gives a fast rank more"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_counted_is_refused(comm, changes, told):
    line = refused(comm, **{"memory_per_rank": "1G", **changes})
    assert line.startswith("--memory-per-rank ") and told in line


def test_the_flag_is_of_the_job():
    assert Job().with_values({"memory-per-rank": "4G"}, "test").memory_per_rank == "4G"

