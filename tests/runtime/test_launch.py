"""The launcher is read from its environment alone, and `-n N` becomes mpirun with what that MPI needs, once."""

import os
import stat
import subprocess
import sys
import time

import pytest

from mpidml.core.errors import UserError
from mpidml.runtime import launch
from mpidml.runtime.launch import World
from tests.ranks import ROOT, mpirun, run


@pytest.mark.parametrize(
    ("env", "world"),
    [
        ({}, World(0, 1, None, 0, 1)),
        ({"PMI_RANK": "3", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "HYDI_CONTROL_FD": "7"}, World(3, 8, "hydra", 1, 2)),
        (
            {
                "OMPI_COMM_WORLD_RANK": "2",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "PMIX_RANK": "2",
            },
            World(2, 4, "openmpi", 0, 2),
        ),
        (
            {"PMIX_RANK": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2),4"},
            World(5, 6, "srun", 1, 4),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "4", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "0"}, World(1, 4, "srun", 0, 4)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}, World(2, 4, "srun", 0, 4)),
        ({"PMIX_RANK": "1"}, World(1, None, "pmix", 0, 1)),
    ],
)
def test_the_world_is_read_from_each_launchers_variables(env, world):
    assert launch.world_from_environment(env) == world


def test_a_batch_script_is_a_plain_python():
    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    assert launch.world_from_environment(batch).launcher is None


def test_mpirun_beside_python_comes_before_path_and_a_missing_one_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setattr(launch.sysconfig, "get_path", lambda name: str(tmp_path / "bin"))
    with pytest.raises(UserError, match=r"no mpirun beside .* pip install 'mpidml\[mpich\]'"):
        launch.find_mpirun({"PATH": str(tmp_path / "other")})
    for folder in ("bin", "other"):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "mpirun"
        file.write_text("#!/bin/sh\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    assert launch.find_mpirun({"PATH": str(tmp_path / "other")}) == str(tmp_path / "bin/mpirun")
    assert launch.find_mpirun({"MPIDML_MPIRUN": str(tmp_path / "other/mpirun")}) == str(tmp_path / "other/mpirun")
    with pytest.raises(UserError, match="not an executable"):
        launch.find_mpirun({"MPIDML_MPIRUN": str(tmp_path / "nowhere")})


@pytest.mark.parametrize(("said", "name"), [("mpirun (Open MPI) 5.0.11", "openmpi"), ("HYDRA build details:", "mpich"), ("srun 23", "other")])
def test_the_flavour_is_what_the_launcher_says_of_itself(tmp_path, said, name):
    file = tmp_path / "mpirun"
    file.write_text(f"#!/bin/sh\necho '{said}'\n")
    file.chmod(0o755)
    assert launch.flavour(str(file)) == name


def test_open_mpi_gets_what_it_lacks_and_what_the_user_set_stays():
    n_many = len(os.sched_getaffinity(0)) + 1
    added = launch.openmpi_environment({"HOME": "/h", "OMPI_MCA_btl": "self,tcp"}, n_many)
    assert "OMPI_MCA_btl" not in added and "HOME" not in added
    assert added["OMPI_MCA_mtl"] == "^ofi"
    assert added["PRTE_MCA_rmaps_default_mapping_policy"] == ":oversubscribe"
    assert "PRTE_MCA_rmaps_default_mapping_policy" not in launch.openmpi_environment({"HOME": "/h"}, 1)
    assert not any(name.startswith("OMPI_MCA") for name in launch.openmpi_environment({"HOME": "/h", "SLURM_JOB_NUM_NODES": "2"}, n_many))


def test_more_ranks_than_cores_sleep_while_they_wait_and_what_the_user_set_stays():
    name, n_cores = "MPIR_CVAR_ENABLE_HEAVY_YIELD", len(os.sched_getaffinity(0))
    assert launch.mpich_environment({}, n_cores) == {} == launch.mpich_environment({name: "0"}, n_cores + 1)
    assert launch.mpich_environment({}, n_cores + 1) == {name: "1"}
    if launch.flavour(launch.find_mpirun(os.environ)) == "mpich":
        clean = {key: value for key, value in os.environ.items() if key != name}
        assert name not in launch.mpirun_command(n_cores, clean)[1]
        assert launch.mpirun_command(n_cores + 1, clean)[1][name] == "1"
        assert name not in launch.mpirun_command(n_cores + 1, clean | {"SLURM_JOB_NUM_NODES": "2"})[1]


def test_between_hosts_the_mpich_wheel_sends_by_a_way_that_loses_nothing(monkeypatch):
    monkeypatch.setattr(launch, "_is_installed", lambda name: name == "mpich")
    assert launch.mpich_environment({}, 1, 4) == {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "^sockets"}
    assert launch.mpich_environment({"FI_PROVIDER": "verbs"}, 1, 4) == {"MPIR_CVAR_CH4_NETMOD": "ofi"}
    assert launch.mpich_environment({}, 1, 1) == {}
    monkeypatch.setattr(launch, "_is_installed", lambda name: False)
    assert launch.mpich_environment({}, 1, 4) == {}, "a site's own MPICH may know other names"


@pytest.mark.parametrize(
    ("installed", "env", "says"),
    [
        ("mpich", {"PMI_RANK": "0"}, None),
        ("openmpi", {"PMIX_RANK": "0"}, None),
        ("mpich", {}, "srun started 4 rank(s) without --mpi, this environment holds mpich; name its interface: srun --mpi=pmi2"),
        ("mpich", {"PMIX_RANK": "0"}, "srun started 4 rank(s) with --mpi=pmix, this environment holds mpich; name its interface: srun --mpi=pmi2"),
        ("openmpi", {"PMI_RANK": "0"}, "srun started 4 rank(s) with --mpi=pmi2, this environment holds openmpi; name its interface: srun --mpi=pmix"),
        ("openmpi", {}, "srun started 4 rank(s) without --mpi, this environment holds openmpi; name its interface: srun --mpi=pmix"),
        ("", {}, None),  # an MPI of the site, of which nothing is known
    ],
)
def test_srun_speaks_the_interface_of_the_mpi_that_is_here(monkeypatch, installed, env, says):
    monkeypatch.setattr(launch, "_is_installed", lambda name: name == installed)
    assert launch.foreign(World(0, 4, "srun", 0, 4), env) == (says and f"launch: {says}")
    assert launch.foreign(World(0, 1, None, 0, 1), env) is None


def test_a_launcher_started_by_hand_is_no_other(tmp_path):
    """Ranks see for themselves, before MPI starts, how many share their cores."""
    (tmp_path / "told.py").write_text("import os, mpidml.runtime.comm\nprint(os.environ.get('MPIR_CVAR_ENABLE_HEAVY_YIELD') + '\\n', end='', flush=True)\n")
    words, env = launch.mpirun_command(n := len(os.sched_getaffinity(0)) + 1, os.environ)
    if launch.flavour(words[0]) == "mpich":
        del env["MPIR_CVAR_ENABLE_HEAVY_YIELD"]
        result = run([*words, sys.executable, str(tmp_path / "told.py")], 60, env)
        assert result.code == 0 and result.out.split() == ["1"] * n, result


def test_the_export_line_survives_a_shell():
    assert launch.export_line({"A": "1", "B": "^ofi", "C": "x y"}) == "export A=1 B='^ofi' C='x y'"


def test_relaunch_execs_once_with_the_command_line_as_given(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execve", lambda path, words, env: calls.append((words, env)))
    argv = ["-n", "4", "train"]
    launch.relaunch(4, argv, launch.without_launcher(os.environ))
    words, env = calls.pop()
    assert words[1:3] == ["-n", "4"] and words[-6:] == [sys.executable, "-m", "mpidml", *argv]
    assert env[launch.LAUNCHED] == "1"
    launch.relaunch(4, argv, env)
    launch.relaunch(1, argv, {})
    launch.relaunch(4, argv, {"PMI_RANK": "0", "PMI_SIZE": "4"})
    assert not calls
    with pytest.raises(UserError, match="4 ranks were asked for, but hydra already started 2"):
        launch.relaunch(4, argv, {"PMI_RANK": "0", "PMI_SIZE": "2"})
    with pytest.raises(UserError, match="give 1 or more"):
        launch.relaunch(0, argv, {})


def test_a_launcher_that_does_not_fit_the_library_is_one_line_with_the_remedy():
    assert launch.mismatch(World(0, 4, "hydra", 0, 4), 4) is None
    assert launch.mismatch(World(0, 1, None, 0, 1), 1) is None
    text = launch.mismatch(World(0, 4, "hydra", 0, 4), 1)
    assert "hydra started 4 rank(s), but COMM_WORLD has 1" in text and "mpirun" in text and "\n" not in text
    assert "--mpi=pmi2" in launch.mismatch(World(0, 4, "srun", 0, 4), 1)


@pytest.mark.openmpi
def test_under_mpirun_the_environment_and_mpi_agree_on_rank_and_size(tmp_path):
    script = tmp_path / "agree.py"
    script.write_text(
        "import os\nfrom mpidml.runtime.launch import mismatch, world_from_environment\n"
        "w = world_from_environment(os.environ)\nfrom mpi4py import MPI\nc = MPI.COMM_WORLD\n"
        "assert (w.rank, w.size, w.local_size) == (c.rank, c.size, c.size), w\n"
        "assert sorted(c.allgather(w.local_rank)) == list(range(c.size)), w\n"  # Open MPI numbers them in its own order
        "assert mismatch(w, c.size) is None\nprint('agreed\\n', end='', flush=True)\n"
    )
    result = mpirun(3, [script])
    assert result.code == 0, result.err
    assert result.out.split() == ["agreed"] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_who_refuses_to_start_ends_with_code_2_though_its_launcher_ends_it_for_another_that_has_ended(rank):
    """srun --kill-on-bad-exit sends SIGTERM to all tasks once one has ended: the line of rank 0 is not to be cut off, nor its code to become 143."""
    start = "from mpidml.runtime import launch; from mpidml.runtime.launch import World; "
    code = start + f"import sys, time; print(flush=True)\ntry: launch.refuse(World({rank}, 2, 'srun', 0, 2), 'a: b; c')\nfinally:\n  print(flush=True); time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        child.stdout.readline()
        if rank == 0:
            child.stdout.readline()  # it has told
        else:
            time.sleep(0.5)
            assert child.poll() is None, "its end would take rank 0 along, which has not told yet"
        child.terminate()
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (2, "mpidml: a: b; c\n" if rank == 0 else "")
