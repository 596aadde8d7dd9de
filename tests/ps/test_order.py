"""Hold the one order of pushes to its laws under any interleaving: one version a wave on all stages, each gradient once, the same values everywhere."""

from __future__ import annotations

from collections import defaultdict, deque

import mpidml_kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidml.optim.base import make_chain
from mpidml.ps.order import Grant, OrderedServer, Place, Pushed, Sequencer, Stages
from mpidml.ps.store import Store
from mpidml.sync.base import make_policy

BACKEND = mpidml_kernels.backend("numpy")
N_WAVES, SLOTS = 9, 2
SHAPES = st.sampled_from([(2, 1), (2, 2), (3, 2), (2, 3), (4, 1)])


def gradient(replica, stage, wave):
    return np.array([1.0 + replica, 10.0 * stage + wave])


def store():
    """Return one whose values depend on the order of updates."""
    return Store([np.zeros(2)], 0, 1, BACKEND, make_chain("momentum:0.5", 0.1))


class Simulation:
    """Ranks (replica, stage), and channels that keep their order; `choose` picks which rank goes on or which channel delivers next.

    Each rank goes through the waves of its replica forward and back, with `n_flight` of them under way, and pushes at the end of each; it may push where
    all have a slot free. `reads[replica, wave]`: the values by stage; `order`: what the sequencer has said.
    """

    def __init__(self, text, n_replicas, n_stages, choose, n_flight=1, asleep=(), server=OrderedServer, stages=Stages):
        self.policy, self.n, self.n_stages, self.choose, self.n_flight, self.asleep = make_policy(text), n_replicas, n_stages, choose, n_flight, set(asleep)
        self.by_clock = self.policy.commit == "clock"
        self.ranks = {
            (r, s): stages([server(self.policy, n_replicas, store(), n_flight + 1)], s == 0) for r in range(n_replicas) for s in range(n_stages)
        }
        self.sequencer = Sequencer(self.policy, (0,) * n_replicas)
        self.channels = defaultdict(deque)
        self.order, self.reads, self.pushed = [], defaultdict(dict), defaultdict(list)
        self.unfreed = defaultdict(int)  # (sender, receiver, stage) -> slots in use
        self.opened, self.told = {r: [] for r in range(n_replicas)}, defaultdict(list)  # told: waves that a rank knows of
        self.grants = defaultdict(deque)
        self.forward, self.back = defaultdict(int), defaultdict(int)
        self.ended, self.most_slots = set(), 0
        self.arrays, self.lies = {key: list(rank.servers[0].free) for key, rank in self.ranks.items()}, defaultdict(list)  # lies: which array has what a wave reads
        for grant in self.sequencer.begin():
            self.say(grant)

    def server(self, r, s):
        return self.ranks[r, s].servers[0]

    def say(self, word):
        if isinstance(word, Place):
            wave = self.pushed[word.replica, 0][sum(place.replica == word.replica for place, _ in self.order)]
            self.order.append((word, wave))
        for r in range(self.n):
            self.channels["words", r].append(word)

    def advance(self, r, s):
        taken, freed = self.ranks[r, s].advance(0.0)
        for replica in freed[0]:
            self.unfreed[replica, r, s] -= 1
        if s == 0:
            for other in range(1, self.n_stages):
                self.channels["down", r, other].extend(taken)

    def deliver(self, channel):
        word, (kind, r, *rest) = self.channels[channel].popleft(), channel
        s = 0
        if kind == "words":
            if isinstance(word, Grant):
                if word.replica == r:
                    self.grants[r].append(word)
                return
            self.ranks[r, 0].place(word)
        elif kind == "down":
            s = rest[0]
            if isinstance(word, Place):
                self.ranks[r, s].place(word)
            elif word is not None:
                self.server(r, s).open(*word)
                self.told[r, s].append(word[0])
        else:
            sender, s = rest
            self.server(r, s).push(sender, word)
            if s == 0 and r == 0:
                for each in self.sequencer.pushed(0.0, sender, word.wave):
                    self.say(each)
        self.advance(r, s)

    def open(self, r):
        """Open a replica's next wave if it may; return whether anything was done."""
        server = self.server(r, 0)
        if r in self.ended or len(self.opened[r]) - self.back[r, 0] >= self.n_flight:
            return False
        wave = len(self.opened[r])
        if self.sequencer.gate is not None:
            if not self.grants[r]:
                return False
            wave = max(self.grants[r][0].wave, server.clocks.reached)
        if wave >= N_WAVES:
            self.ended.add(r)
            return True
        if not server.start(r, wave):
            return False
        if self.sequencer.gate is not None:
            self.grants[r].popleft()
        version = server.latest
        server.open(wave, version)
        self.opened[r].append(wave)
        self.told[r, 0].append(wave)
        for s in range(1, self.n_stages):
            self.channels["down", r, s].append((wave, version))
        self.advance(r, 0)
        return True

    def go_on(self, r, s):
        """Let a rank do its next thing; return whether it could."""
        if s == 0 and self.open(r):
            return True
        f, b = self.forward[r, s], self.back[r, s]
        waves = self.told[r, s]
        if b < f and (s == self.n_stages - 1 or self.back[r, s + 1] > b):
            return self.push(r, s, waves[b])
        if f < len(waves) and f - b < self.n_flight and (s == 0 or self.forward[r, s - 1] > f):
            values = self.server(r, s).read(waves[f])
            if values is None:
                return False
            self.reads[r, waves[f]][s] = values.copy()
            self.lies[r, s] += [i for i, each in enumerate(self.arrays[r, s]) if each is values]
            self.forward[r, s] += 1
            return True
        return False

    def push(self, r, s, wave):
        if any(self.unfreed[r, other, s] >= SLOTS for other in range(self.n)):
            return False
        server = self.server(r, s)
        assert np.array_equal(server.read(wave), self.reads[r, wave][s]), "what a wave reads has changed under way"
        version = server.clocks.reached if self.by_clock else server.latest
        pushed = Pushed(wave, version, gradient(r, s, wave))
        server.close(wave)
        self.pushed[r, s].append(wave)
        self.back[r, s] += 1
        for other in range(self.n):
            self.unfreed[r, other, s] += 1
            self.most_slots = max(self.most_slots, self.unfreed[r, other, s])
            self.channels["push", other, r, s].append(pushed)
        return True

    def run(self, until=lambda self: False):
        ranks = list(self.ranks)
        while not until(self):
            ways = [("deliver", c) for c, waiting in self.channels.items() if waiting] + [("go", key) for key in ranks if key[0] not in self.asleep]
            while ways:
                kind, what = ways.pop(self.choose(len(ways)))
                if kind == "deliver":
                    self.deliver(what)
                    break
                if self.go_on(*what):
                    break
            else:
                return self
        return self

    def check(self):
        """Hold what was found to the laws."""
        assert self.ended == set(range(self.n)) and not any(self.channels.values()), "stands still"
        places = [place for place, _ in self.order]
        counting = [(place.replica, wave) for place, wave in self.order if place.counts]
        assert sorted((place.replica, wave) for place, wave in self.order) == sorted((r, wave) for r in range(self.n) for wave in self.opened[r])
        assert len(set(counting)) == len(counting) and self.most_slots <= SLOTS
        reference = [self.values(s) for s in range(self.n_stages)]
        for (r, wave), found in self.reads.items():
            assert len(found) == self.n_stages
            versions = [{v for v, values in enumerate(reference[s]) if np.array_equal(values, found[s])} for s in range(self.n_stages)]
            assert set.intersection(*versions), f"replica {r} mixes weights in wave {wave}"
        for (r, s), rank in self.ranks.items():
            (server,) = rank.servers
            assert np.array_equal(server.store.versions[0], reference[s][-1]) and server.latest == len(places)
            assert self.lies[r, s] == [k % (self.n_flight + 1) for k in range(len(self.opened[r]))], "ranks of a stage make steps for other arrays"
            assert server.n_dropped == len(places) - len(counting) and not server.copies and len(server.free) == self.n_flight + 1, (r, s)
        return self

    def values(self, stage):
        """Return what a stage has after each place of the order, applied one after the other."""
        one, needed, group, found = store(), self.server(0, 0).needed, [], [np.zeros(2)]
        for place, wave in self.order:
            if place.counts:
                group.append((place.replica, wave))
            if len(group) == needed:
                one.step(sum((gradient(r, stage, w) for r, w in sorted(group)), np.zeros(2)))
                group = []
            found.append(one.versions[0].copy())
        assert not group
        return found


def chooser(random):
    return lambda n: random.randrange(n)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["asp", "quorum:1", "quorum:2", "quorum"]), SHAPES, st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_wave_reads_one_place_of_one_order_and_each_gradient_is_taken_once(text, shape, n_flight, random):
    done = Simulation(text, *shape, chooser(random), n_flight if text == "asp" else 1).run().check()
    if text == "asp":
        assert all(place.counts for place, _ in done.order) and len(done.order) == N_WAVES * done.n
    else:
        counted = [wave for place, wave in done.order if place.counts]
        assert counted == sorted(counted) and len(counted) == N_WAVES * done.server(0, 0).needed


@settings(max_examples=20, deadline=None)
@given(SHAPES, st.randoms(use_true_random=False))
def test_a_quorum_of_all_drops_nothing_and_reads_what_is_due(shape, random):
    done = Simulation(f"quorum:{shape[0]}", *shape, chooser(random)).run().check()
    assert all(place.counts for place, _ in done.order)
    for (_, wave), found in done.reads.items():
        for s, values in found.items():
            assert np.array_equal(values, done.values(s)[wave * done.n])


@settings(max_examples=20, deadline=None)
@given(SHAPES, st.integers(0, 3), st.randoms(use_true_random=False))
def test_replicas_go_on_while_one_does_not_compute(shape, asleep, random):
    """It serves all the same; also where the sequencer is at its first stage."""
    asleep %= shape[0]
    done = Simulation("asp", *shape, chooser(random), asleep=[asleep]).run()
    assert done.ended == set(range(shape[0])) - {asleep} and all(done.back[r, 0] == N_WAVES for r in done.ended)
    done.asleep.clear()
    done.run().check()


class Hasty(Stages):
    """Let other stages take what the first has not taken."""

    def place(self, place):
        super().place(place)
        self.hasty = [*getattr(self, "hasty", ()), place]

    def advance(self, now):
        _, freed = super().advance(now)
        taken, self.hasty = getattr(self, "hasty", []), []
        return taken, freed


class Newest(OrderedServer):
    """Keep no copy."""

    def read(self, wave):
        return self.store.versions[0] if wave in self.copies else None


class Twice(OrderedServer):
    """Take what was dropped."""

    def advance(self, now):
        self.order = type(self.order)(Place(place.replica, True) for place in self.order)
        return super().advance(now)


class ByArrival(OrderedServer):
    """Take pushes as they come here, whatever their places."""

    def advance(self, now):
        here = [r for r in range(self.n) for _ in self.here[r]]
        n = min(len(here), len(self.order))
        self.order = type(self.order)([Place(r, True) for r in here[:n]] + list(self.order)[n:])
        return super().advance(now)


class LastFreed(OrderedServer):
    """Copy to the array that was let go of last, so that it matters whether a wave's opening is heard before the one before is closed."""

    def close(self, wave):
        self.free.appendleft(self.copies.pop(wave))


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("asp", {"stages": Hasty}), ("asp", {"server": Newest}), ("quorum:1", {"server": Twice}), ("asp", {"server": ByArrival}), ("asp", {"server": LastFreed}),
        ("quorum:1", {"server": LastFreed}),
    ],
    ids=str,
)  # fmt: skip
def test_the_laws_catch_a_stage_that_is_ahead_values_that_change_and_orders_of_its_own(text, broken):
    import random

    for seed in range(10):  # not every interleaving shows it
        try:
            Simulation(text, 3, 2, chooser(random.Random(seed)), **broken).run().check()
        except (AssertionError, RuntimeError, IndexError):
            return
    raise AssertionError("nothing was caught")


def arrays(kind, n_copies, early):
    """Return in which array each wave's copy lies where a rank hears of a wave before (`early`, by wave) or after it has closed the oldest one."""
    server = kind(make_policy("asp"), 1, store(), n_copies)
    copies, found = list(server.free), []

    def opens(wave):
        server.open(wave, server.latest)
        server.advance(0.0)
        found.append(next(i for i, each in enumerate(copies) if each is server.read(wave)))

    for wave in range(n_copies - 1):
        opens(wave)
    for wave, is_early in enumerate(early):
        later = wave + n_copies - 1
        if is_early:
            opens(later)
        server.close(wave)
        if not is_early:
            opens(later)
    return found


@pytest.mark.parametrize("n_copies", [2, 3, 4])
def test_a_wave_s_copy_lies_in_one_array_whenever_its_opening_is_heard(n_copies):
    """Ranks that hold parts of a stage make, all together, a step for each array: where one of them had another array, the others would wait for it."""

    def agree(kind):
        return len({tuple(arrays(kind, n_copies, early)) for early in ([False] * 4, [True] * 4, [False, True, False, True])}) == 1

    assert agree(OrderedServer) and not agree(LastFreed)


def test_a_push_that_comes_twice_or_out_of_order_is_an_error():
    server = OrderedServer(make_policy("asp"), 2, store(), 1)
    server.push(0, Pushed(0, 0, np.ones(2)))
    for wave in (0, 2):
        with pytest.raises(RuntimeError, match=f"replica 0 pushes wave {wave}, its next is 1"):
            server.push(0, Pushed(wave, 0, np.ones(2)))


def test_updates_are_softened_by_what_they_missed():
    """In waves of all replicas: three of two replicas are one and a half."""
    rates = []
    one = store()
    one.step = lambda total, tuning: rates.append((float(total[0]), *tuning))
    server = OrderedServer(make_policy("asp"), 2, one, 1, tuned=True, rate=lambda wave: 10.0 + wave)
    for wave in range(3):
        server.push(0, Pushed(wave, wave, np.array([1.0, 0.0])))
    server.push(1, Pushed(0, 0, np.array([2.0, 0.0])))
    server.order.extend([Place(0, True)] * 3 + [Place(1, True)])
    assert server.advance(0.0)[1] == [0, 0, 0, 1]
    assert rates == [(1.0, 10.0, 1.0), (1.0, 11.0, 1.0), (1.0, 12.0, 1.0), (2.0, 10.0 / 2.5, 2.5)]


def test_a_run_goes_on_where_each_replica_stood():
    server, sequencer = OrderedServer(make_policy("asp"), 2, store(), 1), Sequencer(make_policy("asp"), (5, 2))
    server.begin((5, 2))
    assert server.clocks.reached == sequencer.clocks.reached == 2 and not sequencer.begin()
    server.push(1, Pushed(2, 0, np.ones(2)))
    assert sequencer.pushed(0.0, 1, 2) == [Place(1, True)] and sequencer.clocks.reached == 3
    quorum = Sequencer(make_policy("quorum:1"), (5, 5))
    assert quorum.begin() == [Grant(0, 5, 2.0), Grant(1, 5, 2.0)]
    assert quorum.pushed(0.0, 1, 5) == [Place(1, True), Grant(1, 6, 2.0)]
    assert quorum.pushed(0.0, 0, 5) == [Place(0, False), Grant(0, 6, 2.0)]
