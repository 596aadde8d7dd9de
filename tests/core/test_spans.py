"""Hold the lengths of a run's programs that are known before it to those of a walk through it, clock by clock."""

import pytest

from mpidml.core import rng
from mpidml.core.job import NO_END
from mpidml.core.spans import Spans


def walk(spans, end):
    """List the lengths of all programs up to `end`, each of as many clocks as come before the next cut."""
    found, length = list[int](), 0
    for clock in range(1, end + 1):
        length += 1
        if length == spans.longest or clock == end or any(not clock % cut for cut in spans.cuts):
            found.append(length)
            length = 0
    return found


def drawn():
    """Yield spans with an end, the end often before all cuts have come together."""
    draw = rng.stream(5, "spans", 0)
    for _ in range(400):
        cuts = tuple(int(n) for n in draw.integers(1, 40, draw.integers(1, 4)))
        yield Spans(int(draw.integers(1, 30)), cuts), int(draw.integers(1, 400))


def differing(kind):
    """Return where the lengths that `kind` knows before are not those of a walk."""
    return [(spans, end) for spans, end in drawn() if kind(*spans).every(end) != set(walk(spans, end))]


def test_all_lengths_are_known_before():
    assert not differing(Spans)


class NoEnd(Spans):
    """Kept broken: the last program is taken for one of those before it."""

    def every(self, end):
        return super().every(NO_END)


def test_the_check_catches_a_last_program_that_is_forgotten():
    assert differing(NoEnd)


def test_each_next_program_is_one_of_the_walk():
    for spans, end in drawn():
        clock, found = 0, []
        while clock < end:
            found.append(spans.next(clock, end))
            clock += found[-1]
        assert found == walk(spans, end)


@pytest.mark.parametrize(("spans", "expected"), [(Spans(64, (150,)), {64, 22}), (Spans(64, (150, 40)), {40, 30, 10, 20}), (Spans(1, (1,)), {1})])
def test_of_a_run_without_an_end_what_comes_again_and_again_is_known(spans, expected):
    assert spans.every(NO_END) == expected
