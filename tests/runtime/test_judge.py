"""A wait is ended when it has become a hang, and no other: each law beside a judge that breaks it."""

import pytest

from mpidml.core.current_wait import Call, Wait
from mpidml.runtime.judge import Judge
from mpidml.runtime.neighbours import GONE, IDLE, LEFT, SILENT, STOPPED, UNKNOWN, WAITS, WORKS, Look

LIMIT, SHORT, FOREVER = 60.0, 15.0, 10_000
CALL = Call(7, 3, (0, 1, 2))


def ended(judge_class, states, call=CALL, arrived=False, limited=True, gaps=(), begun_at=0, grace=0.0, late=()):
    """Let rank 0 wait from 0 on while ranks 1, 2 ... are in `states(now)`; return when, and by whom, the wait is ended (None: never).

    `gaps`: seconds after which this process itself stood still for 100.
    """
    judge, wait, now = judge_class(LIMIT, SHORT), Wait("Barrier 3 of all ranks", begun_at, call, limited, lambda: late), 0.0
    judge.grace_seconds = grace
    while now < FOREVER:
        now += 100 if now in gaps else 1
        looks = [Look(rank + 1, state, arrived, f"is {state}") for rank, state in enumerate(states(now))]
        if (verdict := judge.hear(now, wait if now >= begun_at else None, looks)) is not None:
            return now, verdict.ranks
    return None


def always(*states):
    return lambda now: states


def broken_laws(judge_class):
    """Name the laws that a judge breaks."""

    def of(*args, **more):
        return ended(judge_class, *args, **more)

    laws = {
        "a blocking call ends at the limit if nobody works": of(always(IDLE, WAITS)) == (LIMIT + 1, (1, 2)),
        "of those that have come nobody is named": of(always(WAITS, WAITS), arrived=True) == (LIMIT + 1, ()),
        "who works is waited for": of(always(WAITS, WORKS)) is None,
        "the limit counts from the last work": of(lambda now: (WORKS if now <= 500 else IDLE,)) == (500 + LIMIT + 1, (1,)),
        "work of those that have come delays nothing": of(always(WORKS), arrived=True) == (LIMIT + 1, ()),
        "who is unknown counts as idle": of(always(UNKNOWN)) == (LIMIT + 1, (1,)),
        "a rank of other ranks' call is none to wait for": of(always(IDLE, WORKS), call=Call(7, 3, (0, 1))) == (LIMIT + 1, (1,)),
        "a wait with a limit of its own goes on": of(always(IDLE), call=None) is None,
        "who has left lets those speak first who wait for it": of(always(IDLE), grace=5.0) == (LIMIT + 6, (1,)),
        "a wait for the end has no limit": of(always(IDLE), limited=False) is None,
        "who was stopped for a short time goes on": of(lambda now: (STOPPED if 10 < now % 40 < 20 else WORKS,)) is None,
        "a stop of all is nobody's": of(lambda now: (STOPPED if now in (110, 111) else WORKS,), gaps=(10.0,)) is None,
        "a host whose network was away for less than the limit goes on": of(lambda now: (SILENT if 10 < now % 100 < 60 else WORKS,)) is None,
        "who has left is not waited for": of(always(LEFT)) == (SHORT + 1, (1,)),
        "who has left after it came is": of(always(LEFT), arrived=True) == (LIMIT + 1, ()),
        "a sum knows whom it waits for, and none that has left is waited for": of(always(WORKS, LEFT), call=None, late=[2]) == (SHORT + 1, (2,)),
        "who has left after it gave its part of a sum is": of(always(WORKS, LEFT), call=None, late=[1]) is None,
        "what cannot be told ends nothing": of(always(LEFT), call=None, late=None) is None,
        "who has left keeps nobody from the end": of(always(LEFT), limited=False) is None,
        "a wait that is young is let live": of(always(STOPPED), begun_at=100) == (100 + SHORT, (1,)),
    }
    for state, patience in ((STOPPED, SHORT), (GONE, SHORT), (SILENT, LIMIT)):
        for call in (CALL, None):
            laws[f"{state} ends a wait in time, with call {call}"] = of(always(WORKS, state), call=call) == (patience + 1, (2,))
        laws[f"{state} ends a wait also after it came"] = of(always(WORKS, state), arrived=True) == (patience + 1, (2,))
        laws[f"{state} ends the wait for the end"] = of(always(WORKS, state), limited=False) == (patience + 1, (2,))
    return {law for law, holds in laws.items() if not holds}


class Never(Judge):
    def hear(self, *args, **more):
        return None


class Impatient(Judge):
    """It takes whoever works for idle."""

    def hear(self, now, wait, looks, every_seconds=1.0):
        return super().hear(now, wait, [look._replace(state=IDLE) if look.state == WORKS else look for look in looks], every_seconds)


class Hasty(Judge):
    """It gives nobody time to come to itself."""

    def __init__(self, limit_seconds, silent_seconds):
        super().__init__(limit_seconds, 1.0)


class Blind(Judge):
    """It does not see who is lost."""

    def hear(self, now, wait, looks, every_seconds=1.0):
        return super().hear(now, wait, [look._replace(state=IDLE) for look in looks], every_seconds)


class Deaf(Judge):
    """It does not ask a wait whom it waits for."""

    def hear(self, now, wait, looks, every_seconds=1.0):
        return super().hear(now, wait and wait._replace(late=tuple), looks, every_seconds)


class Suspicious(Judge):
    """It takes all that have left for missing."""

    def hear(self, now, wait, looks, every_seconds=1.0):
        return super().hear(now, wait and wait._replace(late=lambda: range(3)), looks, every_seconds)


class Unheard(Judge):
    """It takes whoever is silent for gone."""

    def hear(self, now, wait, looks, every_seconds=1.0):
        return super().hear(now, wait, [look._replace(state=GONE) if look.state == SILENT else look for look in looks], every_seconds)


class Forgetful(Judge):
    """It begins to count anew each time."""

    def hear(self, now, wait, looks, every_seconds=1.0):
        self.since = -1.0
        if wait is not None:
            wait = wait._replace(since=now)
        return super().hear(now, wait, looks, every_seconds)


class Rude(Judge):
    """It lets nobody speak first."""

    def hear(self, *args, **more):
        self.grace_seconds = 0.0
        return super().hear(*args, **more)


class Unforgiving(Judge):
    """It counts the time in which it stood still itself."""

    def hear(self, now, wait, looks, every_seconds=1.0):
        return super().hear(now, wait, looks, 1e9)


def test_a_hang_is_ended_and_slow_work_is_not():
    assert broken_laws(Judge) == set()


@pytest.mark.parametrize("judge_class", [Never, Impatient, Hasty, Blind, Deaf, Suspicious, Unheard, Forgetful, Rude, Unforgiving])
def test_the_laws_catch_a_judge_that_breaks_them(judge_class):
    assert broken_laws(judge_class)


def test_the_verdict_says_who_and_since_when():
    judge = Judge(LIMIT, SHORT)
    wait, looks = Wait("Barrier 3 of all ranks", 0.0, CALL), [Look(1, STOPPED, False, "its process 7 is stopped (state T in /proc)", 16.2)]
    found = [verdict for now in range(20) if (verdict := judge.hear(now, wait, looks))]
    assert found[0].text == "rank 1 has not answered for 16.2 s: its process 7 is stopped (state T in /proc)"
    judge = Judge(5.0, SHORT)
    found = [verdict for now in range(20) if (verdict := judge.hear(now, wait, [Look(1, IDLE, False, ""), Look(2, WAITS, False, "")]))]
    assert found[0].text == "waits for rank 1, 2 for 6.0 s; the limit is 5 s (--wait-limit)"


def test_where_nothing_is_known_of_others_nothing_is_claimed():
    def text(looks):
        judge = Judge(5.0, SHORT)
        return next(verdict.text for now in range(20) if (verdict := judge.hear(now, Wait("the start of all 3 ranks", 0.0, Call(0, 0, range(3))), looks)))

    assert text([]) == "has not ended, and nothing is known of other ranks, for 6.0 s; the limit is 5 s (--wait-limit)"
    assert "although every rank has come" in text([Look(1, WAITS, True, "")])
