"""Each rank computes with its share of the cores, promises of bits with one thread, and ranks that crowd are told once."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mpidml.collectives import base
from mpidml.core.job import Job
from mpidml.runtime import scoring, threads
from mpidml.runtime.launch import BUDGETED, THREAD_VARIABLES, World, without_launcher
from mpidml.runtime.threads import Place, budget_threads, chosen, crowding, one_thread, quota, share
from mpidml.strategies.base import train
from tests.ranks import ROOT, python


def ranks(n_local, size=None):
    return World(0, n_local if size is None else size, "hydra", 0, n_local)


@pytest.mark.parametrize(
    ("world", "mine", "given", "limit", "n"),
    [
        (World(0, 1, None, 0, 1), 8, 8, np.inf, 8),
        (World(0, 1, None, 0, 1), 2, 8, np.inf, 2),
        (World(0, 1, None, 0, 1), 64, 64, 2.5, 2),
        (ranks(4), 8, 8, np.inf, 2),
        (ranks(4), 2, 8, np.inf, 2),
        (ranks(2), 1, 8, np.inf, 1),
        (ranks(3), 8, 8, np.inf, 2),
        (ranks(16), 8, 8, np.inf, 1),
        (ranks(2, size=64), 8, 8, np.inf, 4),
        (World(1, None, "pmix", 0, 1), 8, 8, np.inf, 1),
    ],
)
def test_a_rank_has_its_share_of_the_cores(world, mine, given, limit, n):
    assert share(world, mine, given, limit) == n


@pytest.mark.parametrize(
    ("above", "n"),
    [
        ({9: ("hydra_pmi_proxy", 1, 8)}, 8),
        ({9: ("run.sh", 8, 2), 8: ("hydra_pmi_proxy", 1, 8)}, 8),
        ({9: ("run (a) b", 8, 2), 8: ("conda", 7, 2), 7: ("prted", 1, 8)}, 8),
        ({9: ("taskset", 8, 2), 8: ("mpirun", 7, 2), 7: ("bash", 1, 8)}, 2),  # a launcher that is bound itself has no more to give
        ({9: ("bash", 8, 2), 8: ("sshd", 1, 8)}, 2),
    ],
)
def test_the_launchers_cores_are_found_behind_a_script_that_started_the_rank(above, n, tmp_path, monkeypatch):
    """Ranks bound to 2 of 8 cores: their script is bound as they are."""
    for pid, (name, parent, _) in above.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 0 0")
    monkeypatch.setattr(threads, "PROC", tmp_path)
    monkeypatch.setattr(os, "getppid", lambda: 9)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(2 if pid == 0 else above[pid][2])))
    assert len(threads.launchers_cores()) == n


def test_ranks_never_have_more_threads_than_the_host_has_cores_unless_they_are_more_themselves():
    for n, cores in itertools.product(range(1, 20), range(1, 20)):
        bound = max(1, cores // n)
        for mine in {cores, bound}:
            assert n * share(ranks(n), mine, cores) <= max(n, cores)
    assert 3 * 8 > 8 >= 3 * share(ranks(3), 8, 8)  # the broken variant: each rank as many as it may use


def test_the_quota_of_a_container_counts(tmp_path):
    for text, n in (("150000 100000", 1.5), ("50000 100000", 1.0), ("max 100000", np.inf)):
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert quota(tmp_path / "cpu.max") == n
    assert quota(tmp_path / "none") == np.inf


def test_what_the_user_set_stays_and_what_was_set_for_a_rank_is_no_other_processes(monkeypatch):
    monkeypatch.setattr(threads, "budget", lambda env: 3)
    env: dict[str, str] = {}
    budget_threads(env)
    assert {env[name] for name in THREAD_VARIABLES} == {"3"} and env["OMP_WAIT_POLICY"] == "passive" and not chosen(env)
    assert not {*THREAD_VARIABLES, BUDGETED} & without_launcher(env).keys()
    monkeypatch.setattr(threads, "budget", lambda env: 5)
    budget_threads(env)  # a child of such a process finds its own share
    assert {env[name] for name in THREAD_VARIABLES} == {"5"}
    own = {"OPENBLAS_NUM_THREADS": "4"}
    budget_threads(own)
    assert own["OPENBLAS_NUM_THREADS"] == "4" and own["NUMBA_NUM_THREADS"] == "5" and chosen(own)
    assert without_launcher(own) == {"OPENBLAS_NUM_THREADS": "4", "OMP_WAIT_POLICY": "passive"}
    for_all = {"OMP_NUM_THREADS": "4"}
    budget_threads(for_all)
    assert {for_all[name] for name in THREAD_VARIABLES} == {"4"}


def test_a_number_for_each_level_of_nesting_and_none_at_all_are_read():
    for text in ("4", " 4", "4,2", ""):
        assert threads.misread({"OMP_NUM_THREADS": text}) is None
    assert threads.misread({"NUMBA_NUM_THREADS": "4,2"})


def free():
    """Return this environment as of a user who has set no number of threads."""
    return {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES} | {"PYTHONPATH": str(ROOT)}


def test_the_budget_reaches_the_loaded_libraries_before_numpy_and_after():
    """Of a rank beside as many others as there are cores it is one thread; a number that the user set stays."""
    n = len(os.sched_getaffinity(0))
    told = {"PMI_RANK": "0", "PMI_SIZE": str(n), "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": str(n)}
    ask = "import numpy as np, threadpoolctl\nprint(max(pool['num_threads'] for pool in threadpoolctl.threadpool_info() if pool['user_api'] == 'blas'))\n"
    first = "import os, sys\nfrom mpidml.runtime.threads import *\nbudget_threads(os.environ)\nassert 'numpy' not in sys.modules\n" + ask
    later = ask + "from mpidml.runtime.threads import limit_threads\nlimit_threads()\nimport scipy.linalg.blas\n" + ask
    for script, env, expected in (
        (first, free() | told, ["1"]),
        (first, free(), [str(n)]),
        (later, free() | told, [str(n), "1"]),  # SciPy's, with a BLAS of its own, counts too
        (later, free() | told | {"OPENBLAS_NUM_THREADS": "2"}, ["2", "2"] if n > 1 else None),
    ):
        result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
        assert expected is None or result.stdout.split() == expected, (script, result)


def n_blas_threads():
    return max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


def test_one_thread_is_for_a_while(monkeypatch):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with threadpool_limits(2, "blas"):
        if n_blas_threads() < 2:
            pytest.skip("a BLAS of one thread")
        with one_thread():
            assert n_blas_threads() == 1 and os.environ["MKL_NUM_THREADS"] == "1"
        assert n_blas_threads() == 2 and "MKL_NUM_THREADS" not in os.environ


random = np.random.default_rng(0)
ROWS = random.standard_normal((66, 784)), np.arange(66) % 10


def weights(n_threads, **changes):
    """Train for two steps where BLAS has so many threads; return what the model's bits sum up to."""
    job = Job(hidden=(512,), batch=33, steps=2, epochs=0, hold_out=0.0, **changes)
    with threadpool_limits(n_threads, "blas"):
        return train(job, quiet=True, write=False, data=ROWS)["model_sha256"]


def test_promised_bits_know_nothing_of_threads(monkeypatch):
    """Without the promise they do: a product's last bits follow how it is shared out."""
    ordered = {"strategy": "data_parallel", "deterministic": True}
    assert weights(1, **ordered) == weights(2, **ordered)
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert weights(1, strategy="pipeline") == weights(2, strategy="pipeline")
    if len(os.sched_getaffinity(0)) > 1:
        assert weights(1, strategy="data_parallel") != weights(2, strategy="data_parallel")
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")  # a pipeline takes what the user has set
        assert weights(1, strategy="pipeline") != weights(2, strategy="pipeline")


def test_a_model_is_found_as_good_by_any_number_of_threads(monkeypatch):
    """So `evaluate` finds what a run with other ranks has found; blocks that were computed with as many threads as there are would not agree."""
    keep: dict = {}
    train(Job(hidden=(512,), batch=33, steps=1, epochs=0, hold_out=0.0), quiet=True, write=False, data=ROWS, keep=keep)
    given = keep["network"], keep["values"], ROWS[0].astype(np.float32), ROWS[1]
    found, raw = [], []
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for n in (1, 2):
        with threadpool_limits(n, "blas"):
            found.append(scoring.score(*given, None))
            raw.append(keep["network"].scored(*given[1:], scoring.BLOCK))
    assert found[0] == found[1]
    assert raw[0] != raw[1] or len(os.sched_getaffinity(0)) == 1


def places(*cores, n_threads=1, n_given=4):
    return [Place("h", frozenset(of), n_threads, n_given) for of in cores]


@pytest.mark.parametrize(
    ("here", "problem"),
    [
        (places({0, 1, 2, 3}, {0, 1, 2, 3}, n_threads=2), ""),
        (places({0}, {1}, {2}, {3}), ""),
        (places({0, 1}, {0, 1}, {2, 3}, {2, 3}), ""),
        (places({0, 1, 2, 3}, {0, 1, 2, 3}, n_threads=3), "2 rank(s) have 6 threads on 4 core(s)"),
        (places(*[{0, 1, 2, 3}] * 5), "5 ranks share 4 core(s)"),
        (places({0}, {0}, {1, 2, 3}), "2 ranks are bound to 1 of 4 cores"),
        (places({0}, {0}), "2 ranks are bound to 1 of 4 cores"),
        (places({0}, {0, 1}, {1}), "3 ranks are bound to 2 of 4 cores"),
        (places({0, 1}, {2, 3}, n_threads=4), "2 rank(s) have 8 threads on 4 core(s)"),
    ],
)
def test_ranks_crowd_where_those_that_can_run_nowhere_else_have_more_threads_than_cores(here, problem):
    found = crowding(here)
    assert (found is None) == (not problem)
    assert found is None or (problem in found[0] and found[1])


@pytest.fixture
def unbound():
    """Let this rank run on all cores that its launcher has, which may have bound it to some."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, threads.launchers_cores())
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.mpi
@pytest.mark.openmpi
def test_rank_0_is_told_once_of_ranks_that_crowd(comm, unbound):
    n = len(os.sched_getaffinity(0)) + 1
    with threadpool_limits(n, "blas"):
        told = threads.warning(comm)
    assert comm.rank or (told.count("\n") == 1 and f"have {n * comm.size} threads" in told)
    with threadpool_limits(1, "blas"):
        assert bool(threads.warning(comm)) == (comm.rank == 0 and comm.size >= n)


@pytest.mark.mpi
@pytest.mark.openmpi
def test_waits_spin_where_each_rank_has_a_core_also_if_it_is_bound_to_it(comm):
    """Open MPI binds two ranks to a core each, Slurm any number: that a rank may run on fewer cores than there are ranks says nothing."""
    n = int(min(len(threads.launchers_cores()), threads.quota()))
    assert (base.SPIN_SECONDS > 0) == (comm.size <= n)
    assert base.spin_seconds(comm.size, n) == base.SPIN_SECONDS


def test_start_up_loads_no_numpy_to_count_threads():
    assert python(["-c", "import sys, mpidml.runtime.threads; print('numpy' in sys.modules)"]).out.strip() == "False"
