"""Run the scenarios of the virtual clocks on real MPI ranks: the same roles, the same checker."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mpidml.core.buffers import Buffers
from mpidml.core.errors import WaitTimeout
from mpidml.core.role import CLOCK, NOTHING, Compute, Message, Passive, Record, Send, Stop, Waiting
from mpidml.ps.shard import Shard
from mpidml.sync.asp import Asp
from mpidml.sync.bsp import Bsp
from mpidml.sync.ssp import Ssp
from tests.changed import changed
from tests.scenarios import Scenario, misses, run_on_mpi

POLICIES = {"bsp": Bsp(), "ssp0": Ssp(0), "ssp1": Ssp(1), "ssp3": Ssp(3), "asp": Asp()}


def naps(seed):
    """Sleep up to a millisecond, one worker at a time five times longer."""

    def nap(worker, clock):
        time.sleep(random.Random(seed * 1000 + worker * 100 + clock).random() * 1e-3 * (5 if clock // 4 % 3 == worker else 1))

    return nap


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize("way", ["window", "mpi", "mpi in chunks of 1 KB"])
def test_every_read_keeps_the_promise_on_mpi(comm, name, way):
    policy = POLICIES[name]
    for reads, sparse, repeat in (("fresh", False, False), ("fresh", True, policy.repeatable), ("cached", True, False), ("eager", False, False)):
        scenario = Scenario(policy, 3, 2, 12, repeat=repeat, reads=reads, sparse=sparse, width=40, on_compute=naps(len(reads)))
        options = {"chunk_nbytes": 1024} if "chunks" in way else {}
        seen = run_on_mpi(scenario, comm, window=way == "window", **options)
        assert len(seen) == 3 * 12
        assert misses(scenario, seen, policy.bound) == [], (reads, sparse, repeat)


class Ungated(Shard):
    """Serves every pull at once, except the last one, which asks for everything."""

    def _pull(self, now, source, message):
        return super()._pull(now, source, message) if message.version else (self._rows(source, message, 0),)


@pytest.mark.mpi(min_size=2)
def test_the_checker_catches_an_ungated_server_on_mpi(comm):
    def sleeper(worker, clock):
        time.sleep(0.003 if worker == 0 else 0.0)

    scenario = Scenario(Ssp(1), 3, 1, 12, shard_class=Ungated, on_compute=sleeper)
    with_gate = Scenario(Ssp(1), 3, 1, 12, on_compute=sleeper)
    assert misses(scenario, run_on_mpi(scenario, comm), 1)
    assert not misses(with_gate, run_on_mpi(with_gate, comm), 1)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("staleness", [1, 3])
def test_the_bound_is_reached_and_never_passed_on_mpi(comm, staleness):
    def sleeper(worker, clock):
        time.sleep(2e-3 if clock // 10 % 2 == worker % 2 else 1e-4)

    scenario = Scenario(Ssp(staleness), comm.size, 1, 40, on_compute=sleeper)
    seen = run_on_mpi(scenario, comm)
    assert misses(scenario, seen, staleness) == []
    assert max(s.clock - s.version for s in seen) == staleness


@pytest.mark.mpi
@pytest.mark.parametrize("policy", [Bsp(), Ssp(2)])
def test_both_interpreters_read_the_same_versions_in_repeat_mode(comm, policy):
    from mpidml.sim import virtual

    on_mpi = Scenario(policy, 3, 2, 10, repeat=True, on_compute=naps(7))
    seen = run_on_mpi(on_mpi, comm)
    on_clocks = Scenario(policy, 3, 2, 10, repeat=True)
    virtual.run(on_clocks.roles(), lambda role, clock, now: 1.0 + role)
    key = lambda s: (s.worker, s.clock)
    for a, b in zip(sorted(seen, key=key), sorted(on_clocks.seen(), key=key), strict=True):
        assert (a.worker, a.clock, a.version) == (b.worker, b.clock, b.version)
        assert np.array_equal(a.values, b.values)


@pytest.mark.mpi
def test_a_sparse_read_moves_the_rows_that_it_names(comm):
    """50 rows of 20,000: the bytes counted in the transport are those of 50 rows and their numbers, plus headers."""
    from mpidml_kernels import backend

    from mpidml.core.partition import shards
    from mpidml.ps.client import Client
    from mpidml.ps.store import Store
    from mpidml.ps.table import TableSpec
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.driver import Driver
    from mpidml.runtime.session import Session
    from mpidml.runtime.wire import HEADER_NBYTES

    n_rows, width, n_touched, n_clocks = 20_000, 16, 50, 4
    counted = CountedComm(comm)
    last = comm.size - 1
    cut = shards(n_rows, 1)
    spec = TableSpec("rows", n_rows, width, np.dtype(np.float64), cut, 0)
    roles = {}
    if comm.rank == 0:
        roles[0] = Shard("rows", [1], Ssp(1), Store([np.zeros(n_rows * width)], 0, width, backend("numpy")), Buffers().allocate)
    session = Session(Client([spec], Ssp(1), False)) if comm.rank == last else None
    if session is not None:
        roles[1] = session
    before = counted.nbytes_sent
    driver = Driver(counted, roles, [0, last], by_window=False, wait_limit_seconds=20)
    if session is None:
        if roles:
            driver.run()
    else:
        session.attach(driver)
        rows = np.arange(n_touched, dtype=np.int64) * 399
        for clock in range(n_clocks):
            got = session.pull(0, rows=rows).wait()
            assert np.array_equal(got, np.full((n_touched, width), float(clock)))
            session.push(0, np.ones((n_touched, width)), rows=rows)
            session.clock()
        session.close()
    sent = sum(counted.allgather(counted.nbytes_sent - before))
    payload = n_clocks * n_touched * (8 + 8 * width + 8 + 8 * width + 8)
    if comm.size > 1:
        # a question, an answer (it repeats the numbers), a push and a clock a clock, the end and back
        assert payload <= sent <= payload + (4 * n_clocks + 2) * HEADER_NBYTES
        assert sent < n_rows * width * 8 / 10
    counted.free()


@pytest.mark.mpi(min_size=2)
def test_a_wait_past_its_limit_says_who_waits_for_whom(comm):
    """Worker 1 sleeps through the limit: the server's rank reports it by name; the others are told by the test to stop."""
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.driver import Driver

    counted = CountedComm(comm)
    scenario = Scenario(Ssp(1), 2, 1, 8)
    text = ""
    if comm.rank == 0:
        buffers = Buffers()
        roles = {0: scenario.role(0, buffers), 1: scenario.role(1, buffers)}
        driver = Driver(counted, roles, [0, 0, 1], wait_limit_seconds=0.5)
        with pytest.raises(WaitTimeout) as caught:
            driver.run()
        text = str(caught.value)
        driver.end()
        assert "[rank 0/" in text and "table oracle" in text and "worker 1 is at clock 0 and last spoke" in text, text
        assert roles[0].waiting(0.0)[0].of == (2,), "the role of worker 1"
    counted.Barrier()
    counted.free()


@pytest.mark.mpi
def test_a_server_that_waits_for_a_worker_beside_it_lets_that_worker_speak(comm):
    """The worker lacks the answer of a server elsewhere; the read that it holds up is older."""
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.driver import Driver

    counted = CountedComm(comm)
    scenario, buffers = Scenario(Ssp(1), 2, 1, 8), Buffers()
    roles = {0: scenario.role(0, buffers), 1: scenario.role(1, buffers)}
    now = time.perf_counter()
    driver = Driver(counted, roles, [0, 0, 1], wait_limit_seconds=8)
    waits = Waiting(now - 9, "worker 1 is behind", (1,)), Waiting(now - 1, "asked of server(s) 5")
    driver.roles = {role: SimpleNamespace(waiting=lambda now, wait=wait: [wait]) for role, wait in enumerate(waits)}
    with pytest.raises(WaitTimeout, match=r"asked of server\(s\) 5; the limit is 8 s"):
        driver._look(now)
    counted.Barrier()
    counted.free()


def queued(alone, monkeypatch, module, look, answer_seconds=0.0):
    """Return the driver of a server that took 20 messages, each a second long and its answer as given, that had all come before; `look(clock)` looks for news."""
    clock = SimpleNamespace(now=0.0)

    class Slow(Passive):
        n = 0

        def start(self, now):
            return [Send(0, Message(CLOCK))] * 20

        def handle(self, now, source, message):
            clock.now, self.n = clock.now + 1.0, self.n + 1
            return self.answers()

        def answers(self):
            clock.now += answer_seconds
            yield Stop() if self.n == 20 else Record("answered", ())

        def waiting(self, now):
            return []

    monkeypatch.setattr(module, "clock_now", lambda: clock.now)
    driver = module.Driver(alone, {0: Slow()}, [0], look=lambda now: look(clock), look_seconds=1.0)
    driver.run()
    return driver


def looks(alone, monkeypatch, module):
    """Return when news are looked for meanwhile."""
    found = []
    queued(alone, monkeypatch, module, lambda clock: found.append(clock.now))
    return found


def test_a_server_with_a_long_queue_looks_for_news_meanwhile(alone, monkeypatch):
    """Else a drain would be silent, and no target met, until its queue is empty."""
    from mpidml.runtime import driver

    assert looks(alone, monkeypatch, driver) == [3.0, 6.0, 9.0, 12.0, 15.0, 18.0]
    assert looks(alone, monkeypatch, changed(driver, [("2 * self.look_seconds and", "2 * self.look_seconds and False and")])) == []


def taking(alone, monkeypatch, module):
    """Return the seconds of the messages in the server's hands, and besides, where an answer takes two and a look for news 100."""
    driver = queued(alone, monkeypatch, module, lambda clock: setattr(clock, "now", clock.now + 100.0), 2.0)
    return driver.serve_seconds, driver.take_seconds


def test_what_a_message_takes_besides_is_apart_from_what_its_role_does(alone, monkeypatch):
    """A simulation rests on it; news that are looked at meanwhile are neither."""
    from mpidml.runtime import driver

    assert taking(alone, monkeypatch, driver) == (20.0, 40.0)
    assert taking(alone, monkeypatch, changed(driver, [("began += clock_now() - before", "pass")]))[1] > 100
    since = [("served += now - start", "served += now - began")]
    assert taking(alone, monkeypatch, changed(driver, since))[0] > 20, "answers taken for a part of the next message"


def polled(alone, monkeypatch, module):
    """Return what two computes of 10 s each count, within each of which a message takes its role a second."""
    clock = SimpleNamespace(now=0.0)

    class Busy(Passive):
        n = 0

        def start(self, now):
            return [Compute(self.work, None, 0)]

        def work(self, turn, report):
            clock.now += 5.0
            driver.arrived.append((0, 0, Message(CLOCK)))
            report(0, 0)
            clock.now += 5.0

        def done(self, now, result):
            self.n += 1
            return [Stop() if self.n == 2 else Compute(self.work, None, 1)]

        def handle(self, now, source, message):
            clock.now += 1.0
            return NOTHING

        def waiting(self, now):
            return []

    monkeypatch.setattr(module, "clock_now", lambda: clock.now)
    driver = module.Driver(alone, {0: Busy()}, [0])
    driver.many = True  # else nobody could ask
    driver.run()
    return driver.compute_seconds, driver.polls_seconds, driver.serve_seconds


def test_what_is_served_within_a_compute_is_apart_from_it(alone, monkeypatch):
    from mpidml.runtime import driver

    assert polled(alone, monkeypatch, driver) == (20.0, 2.0, 2.0)
    assert polled(alone, monkeypatch, changed(driver, [(" - (self.polls_seconds - before)", "")]))[0] == 22.0


@pytest.mark.mpi(min_size=2)
def test_a_server_that_is_asked_now_and_then_has_waited_most_of_the_time(comm):
    """The report's shares rest on this: what was slept is counted as waiting, not as communication."""
    from mpidml.runtime.bell import Bell
    from mpidml.runtime.comm import CountedComm
    from mpidml.runtime.driver import Driver
    from mpidml.runtime.memory import WindowBuffers

    counted = CountedComm(comm)
    buffers = WindowBuffers(counted.host, 1 << 20)
    bell = Bell(counted.host)
    scenario = Scenario(Bsp(), 1, 1, 10, on_compute=lambda worker, clock: time.sleep(0.03))
    rank_of = [0, comm.size - 1]
    roles = {i: scenario.role(i, buffers) for i, rank in enumerate(rank_of) if rank == comm.rank}
    driver = Driver(counted, roles, rank_of, buffers, bell, wait_limit_seconds=20)
    comm.Barrier()
    started = time.perf_counter()
    driver.run()
    seconds = time.perf_counter() - started
    if comm.rank == 0:
        assert driver.wait_seconds > 0.7 * seconds > 0.2, (driver.wait_seconds, seconds)
    assert driver.wait_seconds + driver.compute_seconds + driver.serve_seconds <= 1.05 * seconds
    comm.Barrier()
    bell.close()
    buffers.free()
    counted.free()
