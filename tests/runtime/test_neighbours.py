"""What a rank does is seen from outside: it works, idles, waits, is stopped or gone; other hosts are asked, and an answer that no longer comes is noticed."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mpidml.core.current_wait import Call
from mpidml.runtime import host_table, processes
from mpidml.runtime.host_table import COMPUTES, HostTable, Seats, reached
from mpidml.runtime.host_table import LEFT as HAS_LEFT
from mpidml.runtime.host_table import WAITS as IS_WAITING
from mpidml.runtime.neighbours import GONE, IDLE, LEFT, SILENT, STALE_SECONDS, STOPPED, UNKNOWN, WAITS, WORKS, Look, Neighbours
from mpidml.runtime.other_hosts import N_LOST, OtherHosts
from mpidml.runtime.processes import glimpse

BUSY = "import time\nprint(flush=True)\nwhile True:\n    sum(range(1000))"
THREAD = """
import threading, time
def work():
    while True:
        {}
threading.Thread(target=work, daemon=True).start()
print(flush=True)
threading.Event().wait()
"""
CHILD = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", f"import os\\nwhile os.getppid() == {os.getpid()}: sum(range(1000))"])
print(flush=True)
child.wait()
"""
IDLES = "import time\nprint(flush=True)\ntime.sleep(99)"


class Host:
    """This process as the first of two ranks of a host; the other's row is written by the test."""

    rank, size = 0, 2

    def bcast(self, value):
        return value

    def Barrier(self):
        pass


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(host_table, "SEATS", Seats())
    return HostTable(Host(), 0)


@pytest.fixture
def other(table):
    """Give what starts a process as rank 1."""
    children = []

    def start(program):
        children.append(child := subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE))
        child.stdout.readline()
        row = table.rows[1]
        for name in table.own.dtype.names:
            row[name] = table.own[name]
        row["rank"], row["pid"], row["started"], row["state"], row["beat"] = 1, child.pid, glimpse(child.pid).started, COMPUTES, time.monotonic()
        row["text"] = b"computes at job.py:7 (main)"
        return child, row

    yield start
    for child in children:
        end(child)


def end(child):
    child.kill()
    child.wait()
    child.stdout.close()


def state(neighbours, seconds=0.0, call=None, after=None):
    """Look until the other rank is in a state other than at the first look, at most so many seconds; return the last look."""
    until = time.monotonic() + seconds
    while True:
        (look,) = neighbours.looks(time.monotonic(), call)
        if look.state == after or time.monotonic() > until:
            return look
        time.sleep(0.02)


def test_a_rank_that_computes_is_told_from_one_that_sleeps(table, other):
    child, _ = other(BUSY)
    assert state(Neighbours(table), 20, after=WORKS).state == WORKS
    end(child)
    other(IDLES)
    neighbours = Neighbours(table)
    assert state(neighbours, 1, after=IDLE).state == IDLE and "computes at job.py:7 (main)" in state(neighbours).text


@pytest.mark.parametrize(
    ("program", "seconds", "expected"),
    [(THREAD.format("sum(range(1000))"), 20, WORKS), (CHILD, 20, WORKS), (THREAD.format("time.sleep(0.2)"), 3, IDLE)],
)
def test_whose_threads_or_children_compute_works_and_whose_threads_only_look_around_does_not(table, other, program, seconds, expected):
    other(program)
    time.sleep(0.5)  # in which its main thread comes to rest
    assert state(Neighbours(table), seconds, after=WORKS).state == expected


def test_where_a_process_cannot_be_looked_up_its_beat_decides(table, other, monkeypatch, tmp_path):
    """No /proc, or no descriptor left to read it: neither says that a process has ended."""
    _, row = other(IDLES)
    watch, gone = Neighbours(table), FileNotFoundError(errno.ENOENT, "gone")
    for error, expected in ((OSError(errno.EMFILE, "too many open files"), WORKS), (PermissionError(errno.EACCES, "no"), WORKS), (gone, GONE)):

        def refuse(*_, error=error):
            raise error

        monkeypatch.setattr(processes, "open", refuse, raising=False)
        assert state(watch).state == expected
    monkeypatch.undo()
    monkeypatch.setattr(processes, "PROC", str(tmp_path))
    assert processes.own() == (0, 0)
    table.own["space"] = row["space"] = 0
    assert state(Neighbours(table)).state == WORKS
    row["beat"] -= STALE_SECONDS + 1
    assert state(Neighbours(table)).state == SILENT


def test_a_rank_that_is_stopped_or_gone_is_found_though_its_row_says_that_it_waits(table, other):
    child, row = other(IDLES)
    neighbours, row["state"] = Neighbours(table), IS_WAITING
    row["since"] = time.monotonic() - 3
    assert state(neighbours).state == WAITS and ", since 3." in state(neighbours).text
    os.kill(child.pid, signal.SIGSTOP)
    look = state(neighbours, 20, after=STOPPED)
    assert look.state == STOPPED and f"process {child.pid} is stopped (state T in /proc)" in look.text and "job.py:7" in look.text
    row["started"] += 1  # another process that has taken its number is not it
    assert state(neighbours).state == GONE
    row["started"] -= 1
    os.kill(child.pid, signal.SIGCONT)
    assert state(neighbours, 20, after=WAITS).state == WAITS
    end(child)
    assert state(neighbours).state == GONE
    assert state(neighbours).silent_seconds > 0


def test_a_rank_that_has_left_is_told_from_one_that_is_gone(table, other):
    _, row = other(IDLES)
    row["state"] = HAS_LEFT
    assert state(Neighbours(table)).state == LEFT


def test_a_row_that_is_not_kept_up_is_no_proof_that_its_rank_waits(table, other):
    """Code that keeps the interpreter to itself keeps the watchdog from its row; the CPU time tells."""
    _, row = other(BUSY)
    row["state"], row["beat"] = IS_WAITING, time.monotonic() - STALE_SECONDS - 1
    assert state(Neighbours(table), 20, after=WORKS).state == WORKS


def test_processes_that_are_numbered_elsewhere_are_judged_by_their_beat(table, other):
    _, row = other(IDLES)
    row["space"] += 1
    assert state(Neighbours(table)).state == WORKS
    row["beat"] -= STALE_SECONDS + 1
    assert state(Neighbours(table)).state == SILENT


def test_the_seats_tell_who_has_come_to_a_call(table, other):
    _, row = other(IDLES)
    neighbours, seats = Neighbours(table), Seats()
    seats.move(row["keys"], row["numbers"])
    seat = seats.take(77)
    for calls, come in ((2, False), (3, True), (4, True)):
        seats.numbers[seat] = calls
        assert reached(row, 77) == calls
        assert state(neighbours, call=Call(77, 3, (0, 1))).arrived is come
    assert state(neighbours, call=Call(78, 3, (0, 1))).arrived is None
    seats.leave(seat)
    assert reached(row, 77) is None
    assert [seats.take(key) for key in range(1, 70)][-2:] == [host_table.N_SEATS - 1] * 2, "who finds no seat gets the last, which says nothing"
    assert reached(row, 69) is None


def test_where_memory_has_no_room_the_table_lies_on_the_disk(monkeypatch, tmp_path):
    made = host_table._made_in

    def full(folder, nbytes):
        if folder == "/dev/shm":
            raise OSError("no space left")
        return made(tmp_path, nbytes)

    monkeypatch.setattr(host_table, "_made_in", full)
    monkeypatch.setattr(host_table, "SEATS", Seats())
    table = HostTable(Host(), 5)
    table.publish(3.0, IS_WAITING, 2.0, "waits")
    assert (table.own["rank"], table.own["beat"], bytes(table.rows[0]["text"])) == (5, 3.0, b"waits")
    assert not list(tmp_path.iterdir()), "the file has no name any more"


class Meeting:
    """What ranks that are threads of this process say to each other."""

    def __init__(self, n):
        self.said, self.meet = [None] * n, threading.Barrier(n)

    def of(self, rank):
        def allgather(value):
            self.said[rank] = value
            self.meet.wait(20)
            return self.said

        return type("Comm", (), {"allgather": staticmethod(allgather)})


def hosts(tokens=("job", "job")):
    """Return the correspondence of two ranks, each on a host of its own."""
    meeting, found = Meeting(2), [None, None]

    def make(rank):
        found[rank] = OtherHosts(meeting.of(rank), rank, tokens[rank])

    threads = [threading.Thread(target=make, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def exchange(asks, answers, told, now):
    """Let one ask, the other answer, and the first note it."""
    asks.ask(Call(7, 3, (0, 1)))
    came = [answers.take(now, told), asks.take(now, told)]
    for _ in range(500):
        if all(came):
            return True
        time.sleep(0.002)
        came = [came[0] or answers.take(now, told), came[1] or asks.take(now, told)]
    return False


def test_another_host_is_asked_and_says_what_its_ranks_do():
    first, second = hosts()
    assert first.looks(0.0)[0].state == UNKNOWN
    asked = []

    def told(call):
        asked.append((call.key, call.number))
        return [Look(1, STOPPED, True, "its process 9 is stopped", 4.5)]

    assert exchange(first, second, told, now=1.0)
    assert asked == [(7, 3)]
    assert first.looks(1.0) == [Look(1, STOPPED, True, "its process 9 is stopped", 4.5)]


def test_a_host_that_answers_no_more_is_silent_and_one_that_never_did_is_unknown():
    first, second = hosts()
    for _ in range(3 * N_LOST):
        first.ask(None)
    assert first.looks(1.0)[0].state == UNKNOWN
    while second.take(1.0, lambda call: [Look(1, WORKS, None, "")]):
        pass
    assert exchange(first, second, lambda call: [Look(1, WORKS, None, "")], now=1.0)
    for _ in range(N_LOST - 1):
        first.ask(None)
    assert first.looks(5.0)[0].state == WORKS, "a lost datagram is no lost host"
    first.ask(None)
    look = first.looks(31.0)[0]
    assert (look.state, look.silent_seconds) == (SILENT, 30.0) and "no answer from its host" in look.text


def test_another_job_and_noise_are_given_no_answer():
    first, second = hosts(("job", "another"))
    assert not exchange(first, second, lambda call: [Look(1, WORKS, None, "")], now=1.0)
    for noise in (b"", b"{", b"[1]", b"5", b"null", b'"job"', b"[" * 5000, b'{"job": "job", "ask": [1e999, 2]}', b'{"job": "job"}', b'{"job": "job", "say": 3}'):
        second.socket.sendto(noise, ("127.0.0.1", first.socket.getsockname()[1]))
    time.sleep(0.05)
    first.take(1.0, lambda call: [])
    assert first.looks(1.0)[0].state == UNKNOWN


def test_the_answer_of_a_large_host_fits_a_datagram():
    first, second = hosts()
    assert exchange(first, second, lambda call: [Look(1, WAITS, True, "x" * 320)] * 200, now=1.0)
    assert len(first.looks(1.0)) == 200
