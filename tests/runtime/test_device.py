"""All ranks compute on one kind of device, which was tried; what a GPU lacks is the reason for the CPU, or one line with its remedy. No GPU is used here:
a library stands in for the driver, the double for CuPy, and the kernel that is tried runs on the CPU."""

import importlib.util
import json

import mpidml_kernels
import numpy as np
import pytest

from mpidml.core.device import Device
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.runtime import device
from mpidml.runtime.cuda_driver import Card
from mpidml.runtime.device import Found, told
from tests.ranks import mpirun, need, python
from tests.shim import cupy_double
from tests.shim.driver import environment, no_driver
from tests.test_bad_input import check_one_line, run_many, snapshot

SMALL = ["--hidden", "8", "--steps", "2", "--no-report"]

# Choose on every rank; rank 0 writes what all of them found. A second argument breaks it: ranks that do not hear each other, or that compare nothing.
PROGRAM = """
import json, sys, types
from mpidml.runtime import abort, device
from mpidml.runtime.comm import CountedComm, world
abort.install(world())
comm = CountedComm()
asks, broken = comm, sys.argv[2:]
if "alone" in broken:
    asks = types.SimpleNamespace(rank=comm.rank, size=comm.size, allgather=lambda mine: [mine])
if "trusting" in broken:
    device._compare = lambda *given: None
found = comm.allgather(device.choose(sys.argv[1], asks)._replace(kernels=None))
if comm.rank == 0:
    sys.stdout.write(json.dumps(found))
"""


def choices(n, wanted, *broken, **answers):
    """Return what each of n ranks has chosen."""
    result = mpirun(n, ["-c", PROGRAM, wanted, *broken], env=environment(**answers), timeout=100)
    assert result.code == 0, result
    return [Device(name, reason, kernels, facts) for name, reason, kernels, facts in json.loads(result.out)]


def check_alike(found):
    """Fail unless all ranks have chosen the same, for the same reason, and say the same of it."""
    assert len({json.dumps(of) for of in found}) == 1, found


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_each_rank_of_a_host_takes_the_next_gpu_and_all_say_so(n):
    found = choices(n, "auto", gpus="2")
    check_alike(found)
    assert found[0][:2] == ("cuda", "tried, and right")
    facts = found[0].facts
    assert facts["numbers"] == [rank % 2 for rank in range(n)]
    assert facts["cards"] == ["Double 0", "Double 1"][: min(n, 2)] and facts["memory_nbytes"] == [8 << 30] * n
    assert (facts["CuPy"], facts["CUDA"], facts["NVRTC"], facts["driver"]) == ("14.2.0+double", "13.1", "13.1", "13.1")
    assert ("warning" in facts) == (n > 2), facts
    if n > 2:
        assert f"{n} ranks share 2 GPU(s)" in facts["warning"] and facts["warning"].endswith("start at most 2 there, or accept that timings mean little")


@pytest.mark.parametrize("n", [2, 3, 5])
def test_one_rank_that_cannot_takes_all_to_the_cpu(n):
    found = choices(n, "auto", fault="," * (n - 1) + "nvrtc")  # the last rank lacks a compiler
    check_alike(found)
    assert found[0].name == "cpu" and found[0].reason.startswith(f"rank {n - 1} of {n} (") and "NVRTC" in found[0].reason
    assert found[0].facts["warning"].startswith("device: all ranks compute on the CPU, though there is a GPU: rank ")


def test_a_gpu_that_nobody_can_use_is_told_once_and_none_is_no_news():
    found = choices(1, "auto", fault="missing")[0]
    assert (found.name, found.reason) == ("cpu", "CuPy is not installed")
    assert found.facts["warning"].startswith("device: all ranks compute on the CPU, though there is a GPU: CuPy is not installed; pip install ")
    assert choices(1, "auto", gpus="0")[0] == Device("cpu", "NVIDIA's driver finds no GPU", None, {})


def test_the_check_sees_ranks_that_do_not_hear_each_other():
    with pytest.raises(AssertionError):
        check_alike(choices(2, "auto", "alone", fault=",nvrtc"))


def test_a_number_and_what_a_launcher_shows_are_kept_to():
    assert choices(2, "cuda:1", gpus="3")[0].facts["numbers"] == [1, 1]
    found = choices(2, "cuda:1", gpus="3")[0].facts["warning"]
    assert found.endswith("2 ranks share 1 GPU(s): each waits for the others' kernels; --device cuda gives each rank another")
    result = mpirun(2, ["-c", "import os; os.environ['CUDA_VISIBLE_DEVICES'] = str(2 - int(os.environ['PMI_RANK']))\n" + PROGRAM, "cuda"], env=environment(gpus="3"))
    facts = json.loads(result.out)[0][3]
    assert facts["numbers"] == [0, 0] and facts["cards"] == ["Double 2", "Double 1"] and "warning" not in facts


def test_a_gpu_that_computes_wrongly_is_not_taken_and_the_comparison_is_what_sees_it():
    reason = choices(1, "auto", fault="wrong")[0].reason
    assert reason == "GPU 0 (Double 0) computes wrongly: a sum of squares is nan there, not 3877"
    assert choices(1, "cuda", "trusting", fault="wrong")[0].name == "cuda"


REFUSED = {  # what is wrong -> --device, and what the line holds
    "no GPU at all": ("cuda", {"DOUBLE_GPUS": "0"}, ("NVIDIA's driver finds no GPU", "take a host that has one")),
    "none shown": ("cuda", {"CUDA_VISIBLE_DEVICES": ""}, ("CUDA_VISIBLE_DEVICES='' shows no GPU", "unset it, or name one that nvidia-smi -L lists")),
    "one shown that is not there": ("cuda", {"CUDA_VISIBLE_DEVICES": "7"}, ("CUDA_VISIBLE_DEVICES='7' shows no GPU", "unset it, or name one")),
    "a driver that does not start": ("cuda", {"DOUBLE_INIT": "803"}, ("driver does not start (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)", "see what nvidia-smi says")),
    "an error without a name": ("cuda", {"DOUBLE_INIT": "999"}, ("driver does not start (error 999)", "see what nvidia-smi says")),
    "a number beyond": ("cuda:2", {"DOUBLE_GPUS": "2"}, ("there is no GPU 2, this process sees 2", "give a number from 0 to 1")),
    "an old driver": ("cuda", {"DOUBLE_DRIVER": "11040"}, ("NVIDIA's driver speaks CUDA 11.4, which no CuPy here runs on", "install one for CUDA 12.0 or newer")),
    "no CuPy": ("cuda", {"DOUBLE_FAULT": "missing"}, ("CuPy is not installed", "pip install 'mpidml[cuda13]' (extras cuda12 and cuda13: this driver speaks CUDA 13.1)")),
    "no CuPy, a driver of before": ("cuda", {"DOUBLE_FAULT": "missing", "DOUBLE_DRIVER": "12040"}, ("CuPy is not installed", "pip install 'mpidml[cuda12]' (")),
    "a CuPy that does not load": ("cuda", {"DOUBLE_FAULT": "broken"}, ("CuPy cannot be imported (ImportError: libcublas.so.13", "install it anew, one cupy package alone")),
    "a CuPy that is too new": (
        "cuda", {"DOUBLE_DRIVER": "12040"}, ("CuPy 14.2.0+double is made for CUDA 13.1, NVIDIA's driver speaks 12.4", "a newer driver, or pip uninstall cupy-cuda13x")
    ),
    "no NVRTC": ("cuda", {"DOUBLE_FAULT": "nvrtc"}, ("NVRTC, which compiles kernels, cannot be loaded (RuntimeError", "pip install 'mpidml[cuda13]', which brings it")),
    "a GPU that is held": ("cuda", {"DOUBLE_FAULT": "context"}, ("GPU 0 (Double 0) does not start (RuntimeError: cudaErrorDevicesUnavailable", "nvidia-smi")),
    "a GPU too old for CUDA 13": (
        "cuda", {"DOUBLE_FAULT": "volta"},
        (
            "GPU 0 (Double 0) has compute capability 7.0, and CUDA 13 compiles for 7.5 and newer",
            "pip uninstall cupy-cuda13x and pip install 'mpidml[cuda12]', or take --device cpu",
        ),
    ),
    "a GPU too old for all": ("cuda", {"DOUBLE_FAULT": "kepler"}, ("has compute capability 3.7, and CUDA 13 compiles for 7.5 and newer; take --device cpu",)),
    "no memory": ("cuda", {"DOUBLE_FAULT": "memory"}, ("GPU 0 (Double 0) has no memory left for a trial of some numbers (OutOfMemoryError", "end what else runs on it")),
    "a launch that fails": ("cuda", {"DOUBLE_FAULT": "launch"}, ("GPU 0 (Double 0) does not run a kernel (RuntimeError: CUDA_ERROR_LAUNCH_FAILED", "nvidia-smi")),
    "a wrong result": ("cuda", {"DOUBLE_FAULT": "wrong"}, ("computes wrongly: a sum of squares is nan there, not 3877", "try another one by --device cuda:N")),
    "no cuBLAS": ("cuda", {"DOUBLE_FAULT": "cublas"}, ("does not multiply matrices, which is cuBLAS's work (RuntimeError: CUBLAS", "which brings it")),
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Run a training for each fault in a process of its own, which writes nothing."""
    folder = tmp_path_factory.mktemp("runs")
    argvs = [(["train", "--device", wanted, *SMALL, "--out", str(folder / "out")], env) for wanted, env, _ in REFUSED.values()]
    found = run_many(tmp_path_factory.mktemp("jobs") / "jobs.json", argvs, environment())
    assert snapshot(folder)[1] == []
    return dict(zip(REFUSED, found, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_lacks_is_one_line_with_its_remedy(ended, name):
    wanted, _, says = REFUSED[name]
    check_one_line(ended[name], (f"--device {wanted}: ", *says))


def test_every_remedy_is_of_its_own_fault():
    assert len({says[0] for _, _, says in REFUSED.values()}) == len(REFUSED) - 1  # CuPy is missing twice, under two drivers


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_under_cuda_a_rank_that_cannot_names_itself_and_all_end(n, tmp_path):
    argv = ["-m", "mpidml", "train", "--device", "cuda", *SMALL, "--out", tmp_path / "out"]
    result = mpirun(n, argv, env=environment(fault="," * (n - 1) + "missing"))
    check_one_line(result, (f"--device cuda: {f'rank {n - 1} of {n} (' * (n > 1)}", "CuPy is not installed", "pip install 'mpidml[cuda13]'"), launched=True)
    assert snapshot(tmp_path)[1] == []


NCCL = ["--transport", "nccl", "--strategy", "data_parallel"]
REFUSED_NCCL = {  # what is wrong -> command line, what the host answers, and what the line holds
    "no device asked for": ([*NCCL, "--device", "cpu"], {}, ("--transport nccl: sums on GPUs, --device cpu computes on none", "give --device cuda, or leave it out")),
    "the reference": ([*NCCL, "--backend", "numpy"], {}, ("--transport nccl: sums on GPUs, --backend numpy computes on none", "leave it out")),
    "no device found": ([*NCCL], {"DOUBLE_GPUS": "0"}, ("networks compute on the CPU (NVIDIA's driver finds no GPU)", "--device cuda says what a GPU needs")),
    "no NCCL": ([*NCCL], {"DOUBLE_FAULT": "nccl"}, ("--transport nccl: CuPy finds no NCCL on rank 0 (", "pip install nvidia-nccl-cu13 there, or leave it out")),
    "no NCCL of an older CUDA": ([*NCCL], {"DOUBLE_FAULT": "nccl", "DOUBLE_CUDA": "12040"}, ("CuPy finds no NCCL", "pip install nvidia-nccl-cu12 there")),
    "servers": (["--transport", "nccl"], {}, ("--strategy parameter_server does not do", "give --strategy data_parallel, or leave it out")),
    "stages": ([*NCCL[:2], "--strategy", "pipeline"], {}, ("--strategy pipeline does not do", "give --strategy data_parallel")),
    "codes": ([*NCCL, "--compress", "two_bit"], {}, ("--compress two_bit: sends codes by MPI", "leave one of them out")),
    "repeated bits": ([*NCCL, "--deterministic"], {}, ("--deterministic: --transport nccl sums in an order that NCCL chooses", "leave one of them out")),
    "an algorithm between no hosts": ([*NCCL, "--collective", "ring"], {}, ("--collective ring: does nothing on one host under --transport nccl", "leave it out")),
}  # fmt: skip


def test_what_nccl_lacks_is_one_line_with_its_remedy_before_any_work(tmp_path):
    cases = [(["train", *argv, *SMALL, "--out", f"{tmp_path}/runs/out"], env) for argv, env, _ in REFUSED_NCCL.values()]
    found = run_many(tmp_path / "jobs.json", cases, environment())
    for (_, _, says), result in zip(REFUSED_NCCL.values(), found, strict=True):
        check_one_line(result, says)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"gpus": "1"}, ("--transport nccl: ranks 0 and 1 of one host share GPU 0000:00:00.0, and NCCL takes one rank a GPU", "no more ranks there than it has GPUs")),
        ({"gpus": "2", "fault": ",nccl"}, ("--transport nccl: CuPy finds no NCCL on rank 1 (", "pip install nvidia-nccl-cu13 there, or leave it out")),
    ],
    ids=["shared", "one rank lacks it"],
)  # fmt: skip
def test_what_nccl_lacks_on_one_rank_ends_all(answers, says, tmp_path):
    for command in ("train", "compare"):
        result = mpirun(2, ["-m", "mpidml", command, *NCCL, *SMALL, "--device", "cuda", "--out", tmp_path / "out"], env=environment(**answers))
        check_one_line(result, says, launched=True)
        assert snapshot(tmp_path)[1] == []


def test_where_nccls_library_is_not_found_cupys_own_words_are_not_said():
    need(importlib.util.find_spec("cupy"), "CuPy (pip install '.[test]')")
    source = """
import sys
sys.modules["cupy_backends.cuda.libs.nccl"] = None  # what CuPy loads with the library
import cupy
from mpidml.runtime.device import _nccl
assert not hasattr(cupy.cuda, "nccl") and not _nccl(cupy).available
"""
    result = python(["-c", source])
    assert (result.code, result.err) == (0, ""), result


def test_a_run_by_nccl_says_what_sums_and_that_it_is_an_experiment(tmp_path):
    result = mpirun(2, ["-m", "mpidml", "train", *NCCL, *SMALL, "--device", "cuda", "--out", tmp_path / "run"], env=environment(gpus="2"))
    assert result.code == 0, result
    assert "sums by nccl, buckets from" in result.out and "NCCL sums gradients inside each host (experimental: has not run on a GPU)" in result.out
    assert json.loads((tmp_path / "run/summary.json").read_text())["device"]["NCCL"] == "2.30.7"
    told = python(["-m", "mpidml", "train", "--help"])
    assert "nccl (data_parallel on GPUs; experimental: has not run on a GPU)" in " ".join(told.out.split())


def test_a_host_without_a_driver_says_nothing_imports_nothing_and_refuses_cuda(tmp_path):
    source = """
import sys
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.device import choose, told
comm, before = CountedComm(), set(sys.modules)
found = choose("auto", comm)
assert found.name == "cpu" and found.reason.startswith("there is no NVIDIA driver (") and told(found) == [], found
assert set(sys.modules) == before, set(sys.modules) - before
assert choose("cpu", comm).reason == "--device cpu" and set(sys.modules) == before
choose("cuda", comm)
"""
    result = python(["-c", source], env=no_driver(tmp_path))
    assert result.code == 1 and "UserError: --device cuda: there is no NVIDIA driver (" in result.err, result


@pytest.mark.parametrize("n", [1, 2])
def test_a_run_says_where_it_computed(n, tmp_path):
    result = mpirun(n, ["-m", "mpidml", "train", *SMALL, "--out", tmp_path / "run"], env=environment(gpus="2"))
    assert result.code == 0, result
    said = json.loads((tmp_path / "run/summary.json").read_text())["device"]
    assert said["name"] == "cuda" and said["numbers"] == list(range(n))
    assert f"device cuda: {', '.join(['Double 0', 'Double 1'][:n])} (tried, and right); CuPy 14.2.0" in result.out
    assert 'device = "auto"' in (tmp_path / "run/config.toml").read_text()


def test_commands_that_compute_refuse_a_device_before_they_write(tmp_path):
    assert python(["-m", "mpidml", "train", *SMALL, "--device", "cpu", "--out", tmp_path / "run"]).code == 0
    before = snapshot(tmp_path)
    missing = {"DOUBLE_FAULT": "missing"}
    no_cupy = ("--device cuda: CuPy is not installed", "pip install")
    cases = [
        (["evaluate", f"{tmp_path}/run", "--device", "cuda"], missing, no_cupy),
        (["predict", f"{tmp_path}/run", "--data", "digits", "--device", "cuda", "--out", f"{tmp_path}/p.csv"], missing, no_cupy),
        (["compare", "--device", "cpu,cuda", *SMALL, "--out", f"{tmp_path}/c"], missing, no_cupy),
        (["simulate", "--device", "cuda", "--workers", "4", "--clocks", "5", "--out", f"{tmp_path}/s"], missing, no_cupy),
        (["simulate", "--device", "cpu,cuda", "--learn", "--workers", "4", "--clocks", "5", "--out", f"{tmp_path}/s"], {}, ("simulate: device: costs are", "one value")),
        (["plan", "--device", "cuda", "--out", f"{tmp_path}/plan"], {}, ("--device cuda: a plan prices what CPUs compute", "leave it out")),
    ]  # fmt: skip
    found = run_many(tmp_path.parent / f"{tmp_path.name}.json", [(argv, env) for argv, env, _ in cases], environment())
    for (argv, _, says), result in zip(cases, found, strict=True):
        assert result.code == 2, (argv, result)
        check_one_line(result, says)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("strategy", ["data_parallel", "parameter_server", "pipeline"])
def test_a_gpu_of_one_rank_without_room_for_an_array_ends_all_with_one_line(strategy, tmp_path):
    argv = ["train", "--device", "cuda", "--strategy", strategy, "--hidden", "64", "--batch", "16", "--steps", "2", "--no-report", "--out", tmp_path / "run"]
    result = mpirun(2, ["-m", "mpidml", *argv], env=environment(gpus="2", fault=",room"))
    assert result.code == 2 and "Traceback" not in result.err and not result.timed_out, result
    (line,) = [line for line in result.err.splitlines() if line.startswith("mpidml: ")]
    what = {"data_parallel": "the gradient, an array 16074", "parameter_server": "a shard's values and gradient, an array 8042"}
    what |= {"pipeline": "the weights, an array 15424"}
    assert line.startswith("mpidml: [rank 1/2") and f"] GPU 1: {what[strategy]} of float32 takes 0." in line and "and 0.0 of 8,192.0 MiB are free; " in line, line
    assert line.endswith("or take --device cpu"), line


def test_a_score_that_a_gpu_has_no_room_for_is_one_line(tmp_path):
    run = tmp_path / "run"
    assert python(["-m", "mpidml", "train", "--device", "cpu", "--hidden", "64", "--steps", "2", "--no-report", "--out", run]).code == 0
    before = snapshot(tmp_path)
    says = ("GPU 0: the weights, an array (16074,) of float32 takes", "take --device cpu")
    check_one_line(python(["-m", "mpidml", "evaluate", run], env=environment(fault="room")), says)
    assert snapshot(tmp_path) == before


def test_the_reference_is_the_cpus_and_looks_for_nothing():
    assert device.of_job(Job(backend="numpy"), None) == Device("cpu", "--backend numpy is the CPU's")  # no communicator is asked


def test_ranks_that_share_a_gpu_are_told_by_what_it_is_not_by_its_number():
    one, other = (Card("A", 1, uuid) for uuid in ("aa", "bb"))
    apart = [Found("h1", (one,), 0), Found("h1", (other,), 0), Found("h2", (one,), 0)]  # a launcher shows each its own
    assert device._sharing(apart, "cuda") == ""
    assert device._sharing([*apart, Found("h2", (one,), 0)], "cuda").startswith("device: h2: 2 ranks share 1 GPU(s)")


def test_the_opening_lines_name_what_was_taken_and_warn():
    of = {"cards": ["A", "B"], "CuPy": "14.2.0", "CUDA": "13.1", "driver": "13.0"}
    assert told(Device("cuda", "--device cuda", None, of)) == ["device cuda: A, B (--device cuda); CuPy 14.2.0, CUDA 13.1, the driver's 13.0"]
    assert told(Device("cpu", "none", None, {"warning": "device: look"})) == ["device: look"]
    assert told(Device("cpu", "none")) == []


@pytest.mark.parametrize(
    ("answers", "lines", "problem"),
    [
        (
            {"gpus": "2"},
            (
                "device         cuda: rank 0 {host}:0, rank 1 {host}:1",
                "GPU by MPI     sums go through the host: ",
                "CuPy           14.2.0+double for CUDA 13.1, NVRTC 13.1, driver for CUDA 13.1",
            ),
            "",
        ),
        ({"gpus": "1"}, ("device         cuda: rank 0 {host}:0, rank 1 {host}:0",), "2 ranks share 1 GPU(s)"),
        ({"gpus": "0"}, ("device         cpu: NVIDIA's driver finds no GPU",), ""),
        ({"fault": ",nvrtc"}, ("device         cpu: rank 0: has one; rank 1: NVRTC",), "NVRTC, which compiles kernels, cannot be loaded"),
        ({"fault": "missing"}, ("device         cpu: CuPy is not installed", "CuPy           not installed", "GPUs           {host}:0 Double 0 8.0 GiB"), "CuPy is not"),
    ],
    ids=["two", "shared", "none", "one rank lacks a compiler", "no CuPy"],
)  # fmt: skip
def test_info_names_devices_versions_and_what_to_mend(answers, lines, problem):
    import socket

    result = mpirun(2, ["-m", "mpidml", "info"], env=environment(**answers))
    assert result.code == 0, result
    for line in lines:
        assert line.format(host=socket.gethostname()) in result.out, result.out
    about = [line for line in result.out.splitlines() if line.startswith("problem") and ("GPU" in line or "CuPy" in line or "NVRTC" in line)]
    assert len(about) == bool(problem) and all(problem in line and "; remedy: " in line for line in about), about


def test_evaluate_and_predict_take_a_device(tmp_path):
    from mpidml import train
    from mpidml.evaluate import evaluate
    from mpidml.predict import predict

    train(Job(hidden=(4,), steps=2, out=str(tmp_path / "run"), report=False), quiet=True)
    found = evaluate(tmp_path / "run", quiet=True, device="cpu")
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 240)))
    assert found["rows"] == 400 and predict(tmp_path / "run", tmp_path / "rows.npz", tmp_path / "p.npz", quiet=True, device="cpu")["rows"] == 3
    with pytest.raises(UserError, match="--device tpu: is none of"):
        evaluate(tmp_path / "run", quiet=True, device="tpu")


def test_warm_compiles_every_file_for_the_gpu_that_is_here_and_says_why_not(monkeypatch):
    kernels, compiled, lines = mpidml_kernels.cuda(cupy_double), [], []
    monkeypatch.setattr(kernels.gpu, "compile", lambda family, real: compiled.append((family, real)))
    card = Card("A card", 1, "aa")
    for found, there in ((Found("h", (card,), 0), kernels), (Found("h", (card,), lacks="CuPy is not installed", remedy="pip install it"), None), (Found("h"), None)):
        monkeypatch.setattr(device, "_look", lambda wanted, rank, given=(found, there): given)
        device.warm(lines.append)
    assert {family for family, _ in compiled} == {each.__name__.rpartition(".")[2] for each in mpidml_kernels.FAMILIES}
    assert all((family, real) in compiled for family, _ in compiled for real in ("f4", "f8"))
    assert lines[0].startswith(f"{len(mpidml_kernels.LAWS)} kernels are compiled for A card in ") and len(lines) == 2
    assert lines[1] == "for GPUs nothing is compiled: CuPy is not installed; pip install it"
