"""One rank's failure ends the job with its message once and the right code; whole jobs are started to see it."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from mpidml.runtime import abort, segment_files, start_limit
from mpidml.runtime.launch import mpirun_command
from tests.ranks import ROOT, descendants, mpirun, python

HEAD = """
import os, signal, sys, threading, time
from mpi4py import MPI
from mpidml.core.errors import UserError
from mpidml.runtime.abort import install
comm = MPI.COMM_WORLD
install(comm)
"""
pytestmark = pytest.mark.openmpi


@pytest.fixture
def job(tmp_path):
    """Write a script that begins with install(comm) and return its path."""

    def write(body):
        path = tmp_path / "job.py"
        path.write_text(HEAD + body)
        return path

    return write


def test_an_exception_on_one_rank_ends_the_others_with_its_traceback(job):
    result = mpirun(3, [job("if comm.rank == 1: raise ValueError('row 7 is bad')\ncomm.Barrier()")])
    assert result.code not in (0, 2) and not result.timed_out
    assert result.err.count("Traceback (most recent call last)") == 1
    assert "[rank 1/3] ValueError: row 7 is bad" in result.err


MEMORY = """
names = [line.split()[5] for line in open("/proc/self/maps") if "/dev/shm/mpich_shm_" in line]
if comm.rank == 0: print(*names, sep="\\n", flush=True)
comm.Barrier()
if comm.rank == 1: os.kill(os.getpid(), signal.SIGKILL)
comm.Barrier()
"""


@pytest.mark.parametrize("installs", [True, False])
def test_a_job_that_is_killed_leaves_no_shared_memory(job, installs):
    script = job(MEMORY)
    if not installs:
        script.write_text(script.read_text().replace("install(comm)\n", ""))
    result = mpirun(2, [script])
    names = set(re.findall(r"^/dev/shm/mpich_shm_\S+", result.out, re.MULTILINE))
    left = [name for name in names if os.path.exists(name)]
    for name in left:
        os.unlink(name)
    assert result.code != 0 and bool(left) == (bool(names) and not installs), "the memory has a name as long as nobody takes it off"


def test_memory_without_a_name_and_other_memory_stay():
    lines = ["7f0-7f1 rw-s 00000000 00:19 5   /dev/shm/mpich_shm_a_0", "7f0-7f1 rw-s 00000000 00:19 6   /dev/shm/mpich_shm_b_0 (deleted)"]
    assert segment_files.named([*lines, *lines, "7f0-7f1 r--p 0 0:1 7  /usr/lib/libmpi.so", "7f0-7f1 rw-p 0 0:0 0"]) == ["/dev/shm/mpich_shm_a_0"]
    assert segment_files.named(["7f0-7f1 rw-s 00000000 00:19 5   /dev/shm/sm_segment.vm.0.1"]) == []


def test_without_install_the_same_job_hangs_and_the_limit_sees_it(tmp_path):
    script = tmp_path / "plain.py"
    script.write_text(
        "import faulthandler, signal\nfaulthandler.register(signal.SIGUSR2)\nfrom mpi4py import MPI\nc = MPI.COMM_WORLD\n"
        "if c.rank == 1: raise ValueError('row 7 is bad')\nc.Barrier()\n"
    )
    result = mpirun(2, [script], timeout=4)
    assert result.timed_out and "row 7 is bad" in result.err


def test_when_all_ranks_fail_at_once_one_traceback_is_printed(job):
    result = mpirun(4, [job("comm.Barrier()\nraise KeyError('all of us')")])
    assert result.code not in (0, 2)
    assert result.err.count("Traceback (most recent call last)") == 1


def test_an_exception_in_a_thread_ends_the_job_too(job):
    body = (
        "def f(): raise OSError('disk is full')\nif comm.rank == 1: threading.Thread(target=f, name='writer').start()\ncomm.Barrier()\ntime.sleep(99)"
    )
    result = mpirun(2, [job(body)])
    assert result.code != 0 and not result.timed_out
    assert "[rank 1/2] OSError in writer: disk is full" in result.err


def test_a_user_error_on_all_ranks_is_one_line_from_rank_0_and_code_2(job):
    result = mpirun(3, [job("raise UserError('data: x.csv: no such file; give a path')")])
    assert result.code == 2
    assert result.err.count("data: x.csv: no such file; give a path") == 1
    assert "Traceback" not in result.err and "[rank" not in result.err


@pytest.mark.parametrize("rank", [0, 2])
def test_a_user_error_on_one_rank_is_neither_lost_nor_waited_for(job, rank):
    result = mpirun(3, [job(f"if comm.rank == {rank}: raise UserError('data: shard is empty; use fewer ranks')\ncomm.Barrier()")])
    assert result.code == 2 and not result.timed_out
    assert result.err.count("data: shard is empty") == 1
    assert ("[rank 2/3]" in result.err) == (rank == 2)


def test_a_user_error_on_one_rank_is_not_taken_for_one_of_all_where_the_others_have_come_to_their_end(job):
    result = mpirun(2, [job("if comm.rank == 1: raise UserError('data: shard is empty; use fewer ranks')")])
    assert result.code == 2 and not result.timed_out
    assert result.err.count("[rank 1/2] data: shard is empty") == 1


def test_one_process_ends_as_usual_with_code_2_or_1(job):
    result = python([job("raise UserError('a: b; c')")])
    assert (result.code, result.err) == (2, "mpidml: a: b; c\n")
    result = python([job("1 / 0")])
    assert result.code == 1 and result.err.count("ZeroDivisionError") == 1
    result = python([job("threading.Thread(target=lambda: 1 / 0).start()\ntime.sleep(99)")])
    assert result.code == 1 and "ZeroDivisionError" in result.err


def check_ended(result, number):
    """Hold what one process leaves that a signal has ended to: its code, and one line."""
    assert (result.code, result.err) == (128 + number, f"mpidml: ended by {number.name}\n") and not result.timed_out, result


ENDED = """
import ctypes
libc, lock = ctypes.CDLL(None), (ctypes.c_byte * 64)()
def block():
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)  # no signal ends that
def unwind():
    try: signal.raise_signal(number)
    finally: print("closed", flush=True)
def fail():
    try: signal.raise_signal(number)
    finally: raise OSError("while it unwound")
def wait():
    threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("how", ["unwind()", "fail()", "wait(); time.sleep(60)", "wait(); block()"])
def test_a_signal_ends_one_process_with_its_code_and_one_line(job, number, how):
    """Also where the main thread is blocked for good, or fails while it unwinds."""
    result = python([job(f"number = {int(number)}\n{ENDED}\n{how}")], timeout=30)
    check_ended(result, number)
    assert (result.out == "closed\n") == (how == "unwind()")


@pytest.mark.parametrize(
    "broken",
    [
        "from mpidml.runtime import signals\nsignals.line = lambda code: ''",
        "signal.signal(number, signal.SIG_DFL)",
        "signal.signal(number, lambda *_: sys.exit(128 + number))",
    ],
    ids=["says nothing", "has no handler", "has a handler of its own that says nothing"],
)
def test_the_check_of_a_signal_catches_a_process_that(job, broken):
    result = python([job(f"number = {int(signal.SIGTERM)}\n{broken}\n{ENDED}\nunwind()")], timeout=30)
    with pytest.raises(AssertionError):
        check_ended(result, signal.SIGTERM)


def test_what_goes_wrong_while_a_signal_ends_a_rank_is_no_news(job):
    """The first failing rank has told the cause; the launcher's SIGTERM to the others must not look like a second one."""
    body = f"if comm.rank == 1:\n  try: signal.raise_signal({int(signal.SIGTERM)})\n  finally: raise OSError('while it unwound')\ncomm.Barrier()"
    result = mpirun(3, [job(body)])
    assert result.code not in (0, 2) and not result.timed_out
    assert "Traceback" not in result.err, result.err


def test_a_user_error_of_all_ranks_keeps_code_2_though_srun_ends_the_last_for_the_first_that_has_ended(job):
    result = mpirun(2, [job("import atexit\natexit.register(signal.raise_signal, signal.SIGTERM)\nraise UserError('a: b; c')")])
    assert result.code == 2 and "mpidml: a: b; c\n" in result.err and "ended by" not in result.err, result


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])  # MPICH takes SIGUSR1 for itself
def test_a_signal_to_one_rank_unwinds_it_and_ends_the_others(job, number, code):
    body = f"if comm.rank == 1:\n  try: signal.raise_signal({int(number)})\n  finally: print('closed', flush=True)\ncomm.Barrier()"
    result = mpirun(2, [job(body)])
    assert "closed" in result.out and not result.timed_out
    assert result.code == code


@pytest.mark.parametrize("target", ["launcher", "one rank"])
def test_ranks_blocked_inside_mpi_end_on_sigterm(job, target):
    words, env = mpirun_command(2, os.environ)
    script = job("print(f'{os.getpid()}\\n', end='', flush=True)\ncomm.Recv(bytearray(1), 1 - comm.rank)")
    command = [*words, sys.executable, str(script)]
    with subprocess.Popen(command, env={**env, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        guard = threading.Timer(60, child.kill)
        guard.start()
        ranks = [int(child.stdout.readline()) for _ in range(2)]
        assert set(ranks) <= set(descendants(child.pid))
        os.kill(child.pid if target == "launcher" else ranks[0], signal.SIGTERM)
        child.communicate()
        guard.cancel()
    assert child.returncode not in (0, -signal.SIGKILL)
    for _ in range(1000):
        if not any(os.path.exists(f"/proc/{rank}") for rank in ranks):
            return
        time.sleep(0.01)
    pytest.fail("the job ended, its ranks did not")


BLOCKED = """
from mpidml.runtime.signals import asked_to_end
try:
    with asked_to_end({told}):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        comm.Recv(bytearray(1), 1 - comm.rank) if comm.rank in {blocked} else time.sleep(60)
finally:
    time.sleep(2.5)
"""


@pytest.mark.parametrize("blocked", [(0,), (0, 1)])
@pytest.mark.parametrize("told", ["lambda: 'interrupted: here' if comm.rank == 0 else 'no'", "None"])
def test_a_rank_0_that_is_blocked_while_a_signal_ends_all_still_says_from_where_the_run_can_go_on(job, told, blocked):
    """Without anything to say it says nothing."""
    result = mpirun(2, [job(BLOCKED.format(told=told, blocked=blocked))], timeout=30)
    assert result.code not in (0, 2) and not result.timed_out
    assert result.out.count("interrupted: here\n") == (told != "None"), result


def test_a_stuck_job_shows_every_ranks_stack_at_the_limit(job):
    result = mpirun(2, [job("def waits_for_nobody(): comm.Recv(bytearray(1), 1 - comm.rank)\nwaits_for_nobody()")], timeout=6)
    assert result.timed_out
    assert "--- rank 0" in result.stacks and "--- rank 1" in result.stacks
    assert result.stacks.count("in waits_for_nobody") == 2


SIGNALS = """
from mpidml.runtime.signals import asked_to_end
def say(text): print(text + "\\n", end="", flush=True)
def late(): time.sleep(2.5)  # the watch has had its time

sys.setswitchinterval(60)  # the watch hears of the signal after the handler has run
with asked_to_end() as asked:
    signal.raise_signal(signal.SIGTERM)
    sys.setswitchinterval(0.005)
    late()
    say(f"asked {asked()}")

child = os.fork()
if child == 0: time.sleep(60); os._exit(9)
os.kill(child, signal.SIGTERM)
say(f"child {os.waitstatus_to_exitcode(os.wait()[1])}")
late()

signal.signal(signal.SIGTERM, lambda *_: say("mine"))
signal.raise_signal(signal.SIGTERM)
late()
say("here")

import ctypes
libc, lock = ctypes.CDLL(None), (ctypes.c_byte * 64)()
libc.pthread_mutex_lock(lock)
signal.signal(signal.SIGUSR1, lambda *_: None)
with asked_to_end():
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    libc.pthread_mutex_lock(lock)  # no signal ends that
"""


def test_the_watch_lets_signals_be_that_only_ask_or_are_a_childs_or_the_programs_own_and_ends_what_is_blocked(job):
    result = python([job(SIGNALS)], timeout=30)
    assert result.out.splitlines() == ["asked 15", "child -15", "mine", "here"], result
    assert result.code == 130 and result.err == "mpidml: ended by SIGINT\n"


ENDS = """
import atexit, faulthandler, os, signal, sys, time
from mpi4py import MPI
def last():
    if os.getpid() != rank: return
    signal.raise_signal(signal.SIGUSR1)  # a batch system may yet send it, which fails no job that is over
    print(f"finalized {MPI.Is_finalized()}, alarm {signal.alarm(0)}\\n", end="", flush=True)
rank = os.getpid()
atexit.register(last)
signal.alarm(50)  # the program's own
from mpidml.runtime import start_limit, abort
import mpidml.runtime.comm
assert 40 < signal.alarm(0) <= 50
abort.install(MPI.COMM_WORLD)
if MPI.COMM_WORLD.rank == 0:
    if os.fork() == 0: atexit._run_exitfuncs(); os._exit(7)  # as a child of multiprocessing does
    print(f"child {os.waitstatus_to_exitcode(os.wait()[1])}\\n", end="", flush=True)
MPI.COMM_WORLD.Barrier()
"""


OWN = """
import signal
signal.signal(signal.SIGUSR1, lambda *_: print("mine", flush=True))
from mpi4py import MPI
from mpidml.runtime import abort
abort.install(MPI.COMM_WORLD)
from mpidml.runtime.signals import asked_to_end
signal.raise_signal(signal.SIGUSR1)
with asked_to_end() as asked:
    signal.raise_signal(signal.SIGUSR1)
    print(asked())
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_program_that_takes_sigusr1_itself_keeps_it(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(OWN)
    result = python([script], timeout=30)
    assert (result.code, result.out.splitlines()) == (0, ["mine", "10", "mine"]), result


def test_mpi_ends_with_the_program_and_leaves_no_alarm_and_a_child_ends_as_no_rank(tmp_path):
    script = tmp_path / "ends.py"
    script.write_text(ENDS)
    result = mpirun(2, [script], timeout=40)
    assert result.code == 0 and sorted(result.out.splitlines()) == ["child 7", *["finalized True, alarm 0"] * 2], result
    result = python([script], timeout=40)  # whose MPI mpi4py ends, when Python has ended
    assert result.code == 0 and sorted(result.out.splitlines()) == ["child 7", "finalized False, alarm 0"], result


def test_a_limit_of_waits_holds_until_it_is_lifted(monkeypatch):
    limits = []
    monkeypatch.setattr(abort, "_limits", [])
    monkeypatch.setattr(abort, "_end", (end := SimpleNamespace(watchdog=SimpleNamespace(limit=limits.append), keeps_limits=False)))
    outer = abort.limit_waits(3)
    inner = abort.limit_waits(5)
    with abort.limit_waits(3):
        outer.close()
    inner.close()
    inner.close()
    assert limits == [3, 5, 3, 3, 5, 300]
    end.keeps_limits = True  # of a command
    with abort.limit_waits(4):
        pass
    assert limits[6:] == [4]


@pytest.mark.parametrize(("number", "is_first"), [(errno.EMFILE, True), (errno.EAFNOSUPPORT, True), (errno.EADDRINUSE, False)])
def test_who_cannot_know_whether_another_tells_tells(monkeypatch, number, is_first):
    end = abort._End.__new__(abort._End)
    end.mark, end.job = None, "x"

    def fails(*_):
        raise OSError(number, "no socket")

    monkeypatch.setattr(socket, "socket", fails)
    assert end.claim() is is_first


def test_the_limit_of_the_start_is_the_environments(capsys):
    assert start_limit.start_seconds({}) == 300
    assert start_limit.start_seconds({"MPIDML_START_LIMIT": "1200"}) == 1200
    for text in ("soon", "0", "nan", ""):
        with pytest.raises(SystemExit, match="2"):
            start_limit.start_seconds({"MPIDML_START_LIMIT": text})
        assert capsys.readouterr().err == f"mpidml: MPIDML_START_LIMIT={text}: is not a number of seconds; give one such as 300\n"


def test_who_has_begun_mpi_ends_it(monkeypatch):
    assert abort._ends_mpi()
    with monkeypatch.context() as patch:
        patch.setattr("mpi4py.rc.finalize", False)
        assert not abort._ends_mpi(), "the program says that it does"
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(MPI_Finalize=None))
    assert not abort._ends_mpi(), "a program linked with MPI, which has Python in it"
