"""Hold every file of mpidml/sync to the contract of a policy, found by the folder alone."""

from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidml.core import plugins
from mpidml.core.clocks import ENDED
from mpidml.core.errors import UserError
from mpidml.sync.base import SyncPolicy, Tuning, make_policy

make = partial(plugins.make, "mpidml.sync")
NAMES = plugins.names("mpidml.sync")
LATE = 500
each = pytest.mark.parametrize("name", NAMES)
EVENTS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40)


def moments(policy, events):
    """The states of four workers' clocks in a run in which some of them leave."""
    clocks = policy.clocks(range(4))
    yield clocks
    for now, (worker, ends) in enumerate(events, 1):
        if clocks.completed[worker] != ENDED:
            clocks.end(worker) if ends and worker else clocks.tick(worker, float(now))
            yield clocks


def check_reads(policy, events, clock=7):
    """Hold the read rule to its laws, with the clocks of a server and as a client asks."""
    answers = []
    blind = [policy.oldest_readable(c) for c in range(LATE)]
    behind = [c - max(oldest, 0) for c, oldest in enumerate(blind)]
    assert min(behind) >= 0 and all(a <= b for a, b in pairwise(blind))
    for clocks in moments(policy, events):
        answers.append(policy.oldest_readable(clock, 0, clocks))
        now = [policy.oldest_readable(c, 0, clocks) for c in range(20)]
        assert all(oldest <= c for c, oldest in enumerate(now)), "a read waits for its own future"
        if policy.timed:
            assert all(c - policy.bound <= oldest <= blind[c] for c, oldest in enumerate(now)), (
                "allows more than its bound, or less than it tells a client"
            )
        else:
            assert all(a <= b for a, b in pairwise(now)), "a later read may show less"
    assert policy.timed or all(a <= b for a, b in pairwise(answers)), "falls as the others' clocks grow"
    if policy.bound is None:
        assert max(behind) > LATE / 2, "a bound that is not declared"
    elif policy.gate_at:
        assert max(behind) == 0, "the gate alone says who may start; a clock shows all that went before"
    else:
        assert max(behind) == policy.bound or policy.timed


def check_tuning(policy):
    assert policy.tuning(0) == Tuning(1.0, 1.0), "a fresh update is softened"
    tunings = [policy.tuning(s) for s in range(30)]
    assert all(0 < b.rate < a.rate and a.memory < b.memory for a, b in pairwise(tunings))


def test_the_folder_holds_the_promised_policies():
    assert {"bsp", "ssp", "asp", "warmup", "dssp", "adaptive", "quorum"} <= set(NAMES)


@each
def test_a_policy_works_without_arguments_and_declares_itself(name):
    policy = make(name)
    assert isinstance(policy, SyncPolicy) and policy.__doc__
    assert policy.commit in ("arrival", "clock") and isinstance(policy.repeatable, bool)
    assert policy.bound is None or (type(policy.bound) is int and policy.bound >= 0)
    assert not policy.repeatable or policy.bound is not None, "a server keeps `bound` versions to repeat from"


@each
@settings(max_examples=25)
@given(events=EVENTS)
def test_reads_never_wait_for_their_future_and_are_as_old_as_the_bound_at_most(name, events):
    check_reads(make(name), events)


@each
def test_a_stale_update_is_softened_the_more_the_staler_it_is_and_a_fresh_one_not_at_all(name):
    check_tuning(make(name))


@each
def test_a_policy_holds_no_state_of_its_own(name):
    policy, asked = make(name), make(name)
    for clock in (5, 0, 9, 3):
        asked.oldest_readable(clock, 0, asked.clocks(range(2)))
        asked.tuning(clock)
    assert vars(policy) == vars(asked)


MINE = """
from mpidml.sync.base import SyncPolicy

class Mine(SyncPolicy):
    def __init__(self, staleness=1):
        self.bound = staleness

    def oldest_readable(self, clock, worker=-1, view=None):
        return clock - self.bound
"""


def test_a_policy_given_by_path_works_like_a_shipped_one(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    mine, shipped = make("./mine.py:3"), make("ssp:3")
    check_reads(mine, [(1, False)] * 5)
    check_tuning(mine)
    assert mine.bound == shipped.bound == 3
    assert [mine.oldest_readable(c) for c in range(20)] == [shipped.oldest_readable(c) for c in range(20)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("    bound = 1\n", "Mine has no method oldest_readable"),
        ('    gate_at = "push"\n    oldest_readable = lambda self, clock, w=-1, v=None: 0\n', "Mine has no method gate"),
    ],
)
def test_a_policy_that_lacks_a_method_is_one_line(tmp_path, body, says):
    (tmp_path / "mine.py").write_text(f"from mpidml.sync.base import SyncPolicy\n\n\nclass Mine(SyncPolicy):\n{body}")
    with pytest.raises(UserError, match=says):
        make_policy(str(tmp_path / "mine.py"))


class Broken(SyncPolicy):
    bound = 2

    def __init__(self, oldest):
        self.oldest = oldest

    def oldest_readable(self, clock, worker=-1, view=None):
        return self.oldest(clock, view)


@pytest.mark.parametrize(
    "oldest",
    [
        lambda clock, clocks: clock + 1,
        lambda clock, clocks: 2 - clock,
        lambda clock, clocks: clock - 3,
        lambda clock, clocks: clock - 1,
        lambda clock, clocks: clock - 2 if clocks is None else clock - 1 - clocks.reached,
    ],
    ids=["from the future", "falls with the clock", "older than its bound", "newer than its bound", "falls with the others"],
)
def test_the_contract_catches_a_read_rule_that(oldest):
    with pytest.raises(AssertionError):
        check_reads(Broken(oldest), [(w, False) for _ in range(3) for w in range(4)])


@pytest.mark.parametrize("rule", [lambda s: Tuning(0.5, 1), lambda s: Tuning(), lambda s: Tuning(1 + s, 1 + s)])
def test_the_contract_catches_a_tuning_that_softens_nothing_or_the_fresh(rule):
    policy = Broken(None)
    policy.tuning = rule
    with pytest.raises(AssertionError):
        check_tuning(policy)
