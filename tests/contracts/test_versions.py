"""Hold schedules without a flush to the age of the weights that they read, and to how many versions of them they keep."""

import pytest

from mpidml.core import plugins
from mpidml.core.lowering import lower
from mpidml.core.replay import replay
from mpidml.schedules.base import pairs
from tests.contracts.test_schedules import FOLDER, MICROBATCHES, RANKS, made


def reads(program):
    """Return of each stage which version of the weights each microbatch reads."""
    found = [{} for _ in range(program.n_stages)]
    for actions in program.lists:
        for action in actions:
            if action.op == "V":
                found[action.stage][action.item] = action.version
    return found


def most_kept(program):
    """Return of each stage how many versions lie there at most, if the oldest goes as soon as nobody will go back through it: found by looking ahead."""
    found = []
    for stage in range(program.n_stages):
        mine = [action for action in program.lists[program.rank_of(stage)] if action.stage == stage]
        version_of = reads(program)[stage]
        oldest = newest = 0
        most = 1
        for i, action in enumerate(mine):
            if action.op == "V":
                assert oldest <= action.version <= newest, "it is there to be read"
            if action.op == "U":
                newest += 1
                oldest = min((version_of[later.item] for later in mine[i + 1 :] if later.op == "B"), default=newest)
                most = max(most, newest - oldest + 1)
        found.append(most)
    return found


def ages(schedule, n_ranks, n, every=1):
    """Return of each stage how many updates old the weights are that each microbatch reads, and how many versions it keeps at most."""
    program = lower(schedule, n_ranks, n)
    versions = replay(program).versions
    assert versions == most_kept(program)
    return [[item // every - version_of[item] for item in range(n)] for version_of in reads(program)], versions


def stashed(K, every, n):
    return [[min(item, K - 1 - k) for item in range(n)] for k in range(K)], [K - k for k in range(K)]


def in_step(K, every, n):
    return [[min(item, K - 1) for item in range(n)]] * K, [K] * K


def double(K, every, n):
    return [[min(item // every, 1) for item in range(n)]] * K, [2] * K


AGES = {"pipedream": stashed, "pipedream:true": in_step, "two_bw:0": double, "two_bw:5": double, "two_bw:7": double}


def holds(schedule, law, n_ranks):
    every = schedule.update_every(n_ranks)
    n = 3 * n_ranks * every + (every > 1)
    return ages(schedule, n_ranks, n, every) == law(n_ranks, every, n)


@pytest.mark.parametrize("name", AGES)
def test_without_a_flush_weights_are_as_old_and_as_many_as_promised(name):
    """pipedream: as old as the stages behind are many, a version for each in flight; with vertical sync alike on all stages; two_bw: one update, two versions."""
    for n_ranks in RANKS:
        assert holds(made(name), AGES[name], n_ranks)
        for n in MICROBATCHES:
            ages(made(name), n_ranks, n)  # versions are as many as are kept where microbatches are few, too


def test_what_is_left_over_at_the_end_makes_an_update_of_two_bw_too():
    for n_ranks in RANKS:
        for every in (n_ranks, 5, 7):
            program = lower(made(f"two_bw:{every}"), n_ranks, 3 * every + 1)
            assert [sum(action.op == "U" for action in actions) for actions in program.lists] == [4] * n_ranks


class Deep(plugins.load(FOLDER, "pipedream")):
    """Broken: each stage has one minibatch more in flight."""

    def order(self, rank, n_ranks, n_microbatches):
        return pairs(rank, min(n_ranks - rank, n_microbatches), n_microbatches)


class Newest(plugins.load(FOLDER, "two_bw")):
    """Broken: microbatches read what each stage has."""

    def reads(self, item, n_ranks):
        return -1


@pytest.mark.parametrize(
    ("broken", "law"), [(made("pipedream:true"), stashed), (Deep(), stashed), (made("pipedream"), in_step), (Newest(), double)]
)
def test_the_check_catches_weights_of_another_age(broken, law):
    for n_ranks in RANKS[1:]:
        assert not holds(broken, law, n_ranks)
