"""Hold what a replay says is sent at once to its word: with channels of so many slots every program ends that ends with channels of any."""

import random

from mpidml.core.action import Action
from mpidml.core.lowering import lower
from mpidml.core.replay import replay
from mpidml.nn.room import channel_slots
from mpidml.schedules.base import Schedule


class Given(Schedule):
    """Orders of computes, as lists."""

    def __init__(self, orders):
        self.orders = orders

    def order(self, rank, n_ranks, n_microbatches):
        return iter(self.orders[rank])


def drawn(seed, n_stages, n):
    """Return orders that are met when ranks take turns by lot, each doing whatever it can: forwards, and backwards in halves of which the second is late;
    now and then all wait for each other."""
    draws, done, orders = random.Random(seed), [dict.fromkeys("FIW", 0) for _ in range(n_stages)], [[] for _ in range(n_stages)]
    while any(of["W"] < n for of in done):
        if draws.random() < 0.2:
            for rank, order in enumerate(orders):
                order.append(Action(rank, "X", 0))
        s = draws.randrange(n_stages)
        of = done[s]
        ready = ["F"] * (of["F"] < (done[s - 1]["F"] if s else n))
        ready += ["I"] * (of["I"] < (of["F"] if s == n_stages - 1 else min(of["F"], done[s + 1]["I"]))) + ["W"] * (of["W"] < of["I"])
        if ready:
            op = draws.choice(ready)
            orders[s].append(Action(s, op, of[op]))
            of[op] += 1
    return orders


def ends(program, slots):
    """Run a program by hand, a stage a rank, over channels that have so many slots behind each stage; tell whether all ranks come to their end."""
    at, done, moved = [0] * program.n_ranks, set(), True
    passed = [0] * program.n_ranks  # waits for all

    def free(s, item):  # the stage that reads is done with what the slot held before
        return item < 0 or (s, "B", item) in done or (s, "W", item) in done

    while moved:
        moved = False
        for rank, actions in enumerate(program.lists):
            while at[rank] < len(actions):
                s, op, item, _ = actions[at[rank]]
                if op == "F" and s + 1 < program.n_stages and not free(s + 1, item - slots[s]):
                    break
                if op in ("B", "I") and s and not free(s - 1, item - slots[s - 1]):
                    break
                if op in ("RF", "RB") and (s, op, item) not in done:
                    break
                if op == "X":
                    done.add((rank, "X", passed[rank]))
                    if any((other, "X", passed[rank]) not in done for other in range(program.n_ranks)):
                        break
                    passed[rank] += 1
                done.add((s + 1, "RF", item) if op == "SF" else (s - 1, "RB", item) if op == "SB" else (s, op, item))
                at[rank], moved = at[rank] + 1, True
    return at == [len(actions) for actions in program.lists]


def ended(sent_of):
    """Tell of drawn programs in how many ranks come to their end, and of how many."""
    found = []
    for seed in range(200):
        n_stages, n = 2 + seed % 3, 3 + seed % 5
        program = lower(Given(drawn(seed, n_stages, n)), n_stages, n)
        run = replay(program)
        found.append(ends(program, [channel_slots(run.activations, sent_of(run), s) for s in range(n_stages - 1)]))
    return sum(found), len(found)


def test_channels_for_what_is_sent_at_once_stop_no_program():
    found, n = ended(lambda run: run.sent)
    assert found == n


def test_the_check_catches_channels_for_what_their_ends_keep_alone():
    found, n = ended(lambda run: ())
    assert 0 < found < n
