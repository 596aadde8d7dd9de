"""The self-check names each problem it is given, each with a remedy, and finds none where there is none."""

import pytest

from mpidml.core.job import Job
from mpidml.runtime.info import find_problems, info
from mpidml.runtime.launch import World
from mpidml.strategies.parameter_server import ParameterServer


def record(**changes):
    healthy = {
        "world": World(0, 1, None, 0, 1),
        "host": "h1",
        "cores": {0, 1},
        "given": 2,
        "python": "3.12.1",
        "numpy": "2.4.6",
        "numba": "0.68.1",
        "blas": "openblas 0.3.31",
        "kernel": "SkylakeX",
        "coretype": "",
        "blas_threads": 1,
        "numba_threads": 1,
        "avx512": True,
        "cache": "/cache",
        "cache_instead": "",
        "shm": 2**30,
    }
    return healthy | changes


def test_healthy_ranks_have_no_problems():
    assert find_problems([record()], 1) == []
    two_hosts = [record(world=World(i, 4, "hydra", i % 2, 2), host=f"h{i // 2}") for i in range(4)]
    assert find_problems(two_hosts, 4) == []


@pytest.mark.parametrize(
    ("records", "size", "problem", "remedy"),
    [
        ([record(world=World(0, 4, "hydra", 0, 4))], 1, "started 4 rank(s), but COMM_WORLD has 1", "mpirun"),
        ([record(), record(), record()], 1, "3 ranks share 2 core(s)", "at most 2 ranks"),
        ([record(blas_threads=2), record(numba_threads=2)], 1, "2 rank(s) have 4 threads on 2 core(s)", "unset OPENBLAS_NUM_THREADS"),
        ([record(kernel="Haswell", coretype="Haswell")], 1, "kernel Haswell on a CPU with AVX-512", "unset OPENBLAS_CORETYPE"),
        ([record(kernel="Haswell")], 1, "kernel Haswell on a CPU with AVX-512", "upgrade NumPy"),
        ([record(cache_instead="kernels: /a cannot be written, so they are kept in /b; set NUMBA_CACHE_DIR")], 1, "/a cannot be written", "NUMBA_CACHE_DIR"),
        ([record(cores={1}), record(cores={1})], 1, "2 ranks are bound to 1 of 2 cores", "-bind-to"),
        ([record(), record(numpy="2.3.0")], 1, "ranks differ in numpy: 2.3.0, 2.4.6", "same environment"),
    ],
)
def test_each_problem_is_named_once_with_its_remedy(records, size, problem, remedy):
    found = find_problems(records, size)
    assert len(found) == 1
    assert problem in found[0][0] and remedy in found[0][1]


def test_a_low_thread_level_is_a_problem():
    assert "serialized" in find_problems([record()], 1, "serialized")[0][0]


def test_threads_of_ranks_bound_to_different_cores_are_counted_over_all_cores_of_the_host():
    bound = [record(cores={core}) for core in range(4)]
    assert find_problems(bound, 1) == []
    assert find_problems([*bound, record(cores={0})], 1)


@pytest.mark.mpi
@pytest.mark.openmpi
def test_rank_0_reports_every_subject_and_counts_the_problems_it_lists(comm):
    text = info(comm)
    if comm.rank:
        assert text == ""
        return
    lines = text.splitlines()
    for subject in ("mpidml", "MPI", "ranks", "BLAS", "threads", "numba", "shared memory"):
        assert sum(line.startswith(subject.ljust(14)) for line in lines) == 1, subject
    assert f"window works on {comm.size} of {comm.size}" in text
    assert sum("us latency" in line for line in lines) == len({1, comm.size - 1}) * (comm.size > 1)
    n_problems = sum(line.startswith("problem: ") and "; remedy: " in line for line in lines)
    assert lines[-1] == (f"{n_problems} problem(s)" if n_problems else "no problems found")
    assert len(lines) <= 24


@pytest.mark.mpi
def test_a_job_that_the_ranks_do_not_fit_is_a_problem_with_its_remedy(comm):
    fits, many = (info(comm, Job(servers=servers), ParameterServer) for servers in ("colocated", str(comm.size)))
    if comm.rank == 0:
        assert "--servers" not in fits
        assert (f"problem: --servers {comm.size}: {comm.size} server(s) leave no worker on {comm.size} ranks; remedy: start at least" in many) == (comm.size > 1)
