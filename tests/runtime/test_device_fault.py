"""A GPU that fails while it computes is one line of the rank that has it, all ranks end, and what was saved is whole. The double stands in for it."""

import json
from dataclasses import replace

import pytest

from mpidml.core.errors import DeviceFailed, UserError
from mpidml.runtime import device_fault
from mpidml.runtime.ranks import given_or_all
from tests.changed import changed
from tests.ranks import mpirun, python
from tests.shim import cupy_double
from tests.shim.driver import environment
from tests.test_bad_input import check_one_line, snapshot

SMALL = ["--hidden", "8", "--batch", "40", "--no-report"]
TRAIN = ["-m", "mpidml", "train", "--device", "cuda", *SMALL, "--steps", "12", "--checkpoint-every", "4"]
ILLEGAL = "cudaErrorIllegalAddress: an illegal memory access was encountered"
ERRORS = {
    "a launch": cupy_double.CUDADriverError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"),
    "a copy or a wait": cupy_double.CUDARuntimeError(ILLEGAL),
    "a sum of NCCL": cupy_double.cuda.nccl.NcclError("NCCL_ERROR_UNHANDLED_CUDA_ERROR: unhandled cuda error"),
    "of several lines": cupy_double.CUDARuntimeError("cudaErrorUnknown: one\n\ttwo"),
}
LACKING = {
    "an array of CuPy's own": cupy_double.OutOfMemoryError("Out of memory allocating 1,024 bytes (allocated so far: 0 bytes)."),
    "a graph": cupy_double.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"),
    "a kernel": cupy_double.CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
}


def caught(error, goes_on=lambda: "", module=device_fault):
    """Return what becomes of an error."""
    try:
        with module.told(goes_on):
            raise error
    except Exception as found:
        return found


@pytest.mark.parametrize("name", ERRORS)
def test_what_cuda_says_is_one_line_with_the_way_to_go_on(name):
    found = caught(ERRORS[name], lambda: "go on from clock 3")
    assert type(found) is DeviceFailed and found.__cause__ is ERRORS[name]
    text = " ".join(str(ERRORS[name]).split())
    assert f" has failed ({type(ERRORS[name]).__name__}: {text}); see what nvidia-smi" in str(found) and str(found).endswith("; go on from clock 3")
    assert "\n" not in str(found) and caught(found) is found  # within a call that tells as well it stays


@pytest.mark.parametrize("name", LACKING)
def test_memory_that_lacks_where_no_array_of_ours_was_asked_for_is_the_users_to_change(name):
    found = caught(LACKING[name])
    assert type(found) is UserError and str(found).endswith("or take --device cpu") and f"({type(LACKING[name]).__name__}: " in str(found)


@pytest.mark.parametrize("error", [RuntimeError(ILLEGAL), UserError("a: b; c"), KeyError("cupy"), MemoryError()])
def test_other_errors_stay_as_they_are(error):
    assert caught(error) is error


def test_a_call_from_a_program_tells_it_too():
    with pytest.raises(DeviceFailed, match="illegal memory access"), given_or_all(None):
        raise cupy_double.CUDARuntimeError(ILLEGAL)


def check_failed(result, n, place=""):
    """Fail unless the last of n ranks has said in one line that its GPU has failed, and all ranks ended."""
    assert result.code == 1 and "Traceback" not in result.err and not result.timed_out, result
    (line,) = [line for line in result.err.splitlines() if "GPU" in line]
    where = f"[rank {n - 1}/{n}{place}] " if n > 1 else ""
    assert line.startswith(f"mpidml: {where}GPU {n - 1} (Double {n - 1}) has failed (CUDARuntimeError: {ILLEGAL}); "), line
    return line


def dying(n, work):
    return environment(gpus=str(n), fault="," * (n - 1) + f"dies:{work}")


@pytest.mark.parametrize(
    ("strategy", "n"),
    [("data_parallel", 1), ("data_parallel", 2), ("data_parallel", 3), ("parameter_server", 2), ("parameter_server", 3), ("pipeline", 2), ("averaging", 3)],
)
def test_a_gpu_that_fails_in_mid_run_is_one_line_and_the_run_goes_on_from_what_was_saved(strategy, n, tmp_path):
    """The last rank's GPU fails in one piece of its work or another, until it is one between the first checkpoint and the end."""
    argv, place = [*TRAIN, "--strategy", strategy], f" pipe {n - 1}" if strategy == "pipeline" else ""
    early, late, work = 0, 0, {"parameter_server": 220, "pipeline": 300 if n > 1 else 200}.get(strategy, 120)
    for _ in range(6):
        run = tmp_path / f"run{work}"
        result = mpirun(n, [*argv, "--out", run], env=dying(n, work))
        assert not list(tmp_path.rglob("*.part")), snapshot(tmp_path)[1]
        if result.code == 0:
            late, work = work, (early + work) // 2
            continue
        line = check_failed(result, n, place)
        if "interrupted: nothing is saved yet" in line:
            early, work = work, (work + late) // 2 if late else 2 * work
        else:
            assert line.endswith(f"the last that is saved, with: python -m mpidml train --resume {run}"), line
            assert f"go on from clock {max(int(path.name) for path in (run / 'checkpoints').iterdir())}, " in line
            assert not (run / "summary.json").exists() and [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
            again = mpirun(n, ["-m", "mpidml", "train", "--resume", run, "--device", "cuda"], env=environment(gpus=str(n)))
            assert again.code == 0 and json.loads((run / "summary.json").read_text())["clocks"] == 12, again
            return
    pytest.fail(f"the GPU failed in no piece of work between a checkpoint and the end: {result}")


# The broken variant: errors of CUDA are known by another name.
BROKEN = "from mpidml.runtime import device_fault; device_fault.FROM = ('nowhere',); import runpy; runpy.run_module('mpidml', run_name='__main__')"


@pytest.mark.parametrize("n", [1, 2])
def test_the_check_sees_an_error_that_is_not_known_as_cudas(n, tmp_path):
    result = mpirun(n, ["-c", BROKEN, *TRAIN[2:], "--strategy", "data_parallel", "--out", tmp_path / "run"], env=dying(n, 60))
    assert result.code == 1 and ILLEGAL in result.err, result
    with pytest.raises(AssertionError):
        check_failed(result, n)
    broken = changed(device_fault, [('FROM = ("cupy_backends.", "cupy.cuda.memory")', 'FROM = ("cupy.",)')])
    assert caught(ERRORS["a launch"], module=broken) is ERRORS["a launch"]


def test_a_gpu_that_fails_where_a_model_is_used_leaves_no_half_of_a_file(tmp_path):
    run = tmp_path / "run"
    assert python(["-m", "mpidml", "train", "--device", "cpu", *SMALL, "--steps", "2", "--out", run]).code == 0
    before = snapshot(tmp_path)
    for words in (["evaluate", run], ["predict", run, "--data", "digits", "--out", tmp_path / "p.csv"]):
        check_failed(python(["-m", "mpidml", *words, "--device", "cuda"], env=dying(1, 40)), 1)
        assert snapshot(tmp_path) == before


def test_a_gpu_that_fails_before_the_first_step_leaves_a_folder_that_the_next_run_takes(tmp_path):
    argv = [*TRAIN, "--strategy", "data_parallel", "--out", tmp_path / "run"]
    check_failed(mpirun(2, argv, env=dying(2, 60)), 2)
    assert mpirun(2, argv, env=environment(gpus="2")).code == 0


ROOMS = {"while a run is prepared": "room", "in its first step": "room:100000"}  # at batch 400 the rows of a rank take more


@pytest.mark.parametrize("when", ROOMS)
@pytest.mark.parametrize("strategy", ["data_parallel", "parameter_server", "pipeline"])
def test_after_a_gpu_has_had_no_room_the_same_command_works_again(strategy, when, tmp_path):
    argv = ["-m", "mpidml", "train", "--device", "cuda", "--hidden", "64", "--batch", "400", "--steps", "2", "--no-report", "--strategy", strategy]
    argv += ["--microbatches", "1"] * (strategy == "pipeline") + ["--out", tmp_path / "run"]
    result = mpirun(2, argv, env=environment(gpus="2", fault=ROOMS[when]))
    check_one_line(replace(result, out=""), ("MiB are free", "take --device cpu"), launched=True)
    assert (tmp_path / "run").exists() == bool(result.out), snapshot(tmp_path)[1]  # a run that has begun says so
    assert bool(result.out) == (when == "in its first step" and strategy != "pipeline")  # which looks for room before
    assert mpirun(2, argv, env=environment(gpus="2")).code == 0
    assert (tmp_path / "run/summary.json").exists()


def test_a_score_in_mid_run_that_a_gpu_has_no_room_for_is_one_line_too(tmp_path):
    argv = [*TRAIN[:5], "--hidden", "8", "--batch", "20", "--steps", "2", "--no-report", "--strategy", "data_parallel", "--out", tmp_path / "run"]
    result = mpirun(2, argv, env=environment(gpus="2", fault=",room:40000"))
    says = "mpidml: [rank 1/2] GPU 1: the rows that are scored, an array (64, 240) of float32 takes 0.1 MiB", "take --device cpu"
    check_one_line(replace(result, out=""), says, launched=True)
    assert result.out and not (tmp_path / "run/summary.json").exists()
