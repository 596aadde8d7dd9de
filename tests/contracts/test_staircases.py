"""Read what the schedules are: each one drawn, forwards of 1 unit and backwards of 2, in two halves where so written; time goes across, ranks go down."""

from textwrap import dedent

import pytest

from mpidml.core import plugins
from mpidml.core.drawing import MOST_RANKS, draw
from mpidml.core.lowering import lower
from mpidml.core.program import read
from mpidml.core.replay import Seconds, replay, units

STAIRCASES = {
    # (schedule, ranks, microbatches)
    ("naive", 4, 2): """
        rank 0   F0                            B0--- F1                            B1---
        rank 1      F0                   B0---          F1                   B1---
        rank 2         F0          B0---                   F1          B1---
        rank 3            F0 B0---                            F1 B1---
    """,
    ("gpipe", 4, 4): """
        rank 0   F0 F1 F2 F3                            B0--- B1--- B2--- B3---
        rank 1      F0 F1 F2 F3                   B0--- B1--- B2--- B3---
        rank 2         F0 F1 F2 F3          B0--- B1--- B2--- B3---
        rank 3            F0 F1 F2 F3 B0--- B1--- B2--- B3---
    """,
    ("one_f_one_b", 4, 4): """
        rank 0   F0 F1 F2 F3                   B0---    B1---    B2---    B3---
        rank 1      F0 F1 F2             B0--- F3 B1---    B2---    B3---
        rank 2         F0 F1       B0--- F2 B1--- F3 B2---    B3---
        rank 3            F0 B0--- F1 B1--- F2 B2--- F3 B3---
    """,
    ("one_f_one_b", 4, 2): """
        rank 0   F0 F1                         B0---    B1---
        rank 1      F0 F1                B0---    B1---
        rank 2         F0 F1       B0---    B1---
        rank 3            F0 B0--- F1 B1---
    """,
    ("interleaved", 2, 4): """
        rank 0   0F0 0F1 2F0 2F1 0F2     2B0---- 0F3 2B1---- 2F2 0B0---- 2F3 0B1----     2B2----     2B3---- 0B2---- 0B3----
        rank 1       1F0 1F1 3F0 3B0---- 3F1 3B1---- 1F2 1B0---- 1F3 1B1---- 3F2 3B2---- 3F3 3B3---- 1B2---- 1B3----
    """,
    ("interleaved", 2, 3): """
        rank 0   0F0 0F1 2F0 2F1 0F2     2B0----     2B1---- 2F2 0B0---- 0B1----     2B2----         0B2----
        rank 1       1F0 1F1 3F0 3B0---- 3F1 3B1---- 1F2 1B0---- 1B1---- 3F2 3B2----         1B2----
    """,
    ("looped_bfs", 2, 3): """
        rank 0   0F0 0F1 0F2 2F0 2F1 2F2             2B0---- 2B1---- 2B2---- 0B0---- 0B1---- 0B2----
        rank 1       1F0 1F1 1F2 3F0 3F1 3F2 3B0---- 3B1---- 3B2---- 1B0---- 1B1---- 1B2----
    """,
    ("zero_bubble", 4, 4): """
        rank 0   F0 F1 F2 F3          I0 W0 I1 W1 I2 W2 I3 W3
        rank 1      F0 F1 F2       I0 F3 I1 W0 I2 W1 I3 W2 W3
        rank 2         F0 F1    I0 F2 I1 F3 I2 W0 I3 W1 W2 W3
        rank 3            F0 I0 F1 I1 F2 I2 F3 I3 W0 W1 W2 W3
    """,
    ("three_step", 4, 4): """
        rank 0   F0|F1|F2|F3      |        |        |B0---   |B1---|B2---|B3---|
        rank 1     |F0|F1|F2      |F3      |B0---   |B1---   |B2---|B3---|     |
        rank 2     |  |F0|F1      |F2 B0---|F3 B1---|B2---   |B3---|     |     |
        rank 3     |  |  |F0 B0---|F1 B1---|F2 B2---|F3 B3---|     |     |     |
    """,
    ("three_step", 2, 5): """
        rank 0   F0|F1      |F2 B0---|F3 B1---|F4 B2---|B3---   |B4---|
        rank 1     |F0 B0---|F1 B1---|F2 B2---|F3 B3---|F4 B4---|     |
    """,
    ("pipedream", 4, 5): """
        rank 0   F0 F1 F2 F3                   B0--- F4 B1---    B2---    B3---    B4---
        rank 1      F0 F1 F2             B0--- F3 B1--- F4 B2---    B3---    B4---
        rank 2         F0 F1       B0--- F2 B1--- F3 B2--- F4 B3---    B4---
        rank 3            F0 B0--- F1 B1--- F2 B2--- F3 B3--- F4 B4---
    """,
    ("two_bw", 4, 5): """
        rank 0   F0 F1 F2 F3                   B0--- F4 B1---    B2---    B3---    B4---
        rank 1      F0 F1 F2             B0--- F3 B1--- F4 B2---    B3---    B4---
        rank 2         F0 F1       B0--- F2 B1--- F3 B2--- F4 B3---    B4---
        rank 3            F0 B0--- F1 B1--- F2 B2--- F3 B3--- F4 B4---
    """,
    ("inference", 4, 4): """
        rank 0   F0 F1 F2 F3
        rank 1      F0 F1 F2 F3
        rank 2         F0 F1 F2 F3
        rank 3            F0 F1 F2 F3
    """,
}


def drawn(name, n_ranks, n, width=0, seconds=None):
    program = lower(plugins.make("mpidml.schedules", name), n_ranks, n)
    return draw(program, replay(program, seconds), width)


@pytest.mark.parametrize("case", STAIRCASES, ids=lambda case: f"{case[0]}, {case[1]} ranks, {case[2]} microbatches")
def test_a_schedule_is_as_drawn(case):
    assert str(drawn(*case)) == dedent(STAIRCASES[case]).strip()


def test_every_schedule_is_drawn_above():
    assert {name for name, _, _ in STAIRCASES} == set(plugins.names("mpidml.schedules"))


def test_a_program_in_another_order_is_another_drawing():
    text = lower(plugins.make("mpidml.schedules", "gpipe"), 2, 2).text()
    other = read(text.replace("0RB0 0B0 0RB1 0B1", "0RB0 0RB1 0B0 0B1"), 2, 2)
    assert str(draw(other, replay(other))) != str(drawn("gpipe", 2, 2))
    assert str(draw(other, replay(other))) == "rank 0   F0 F1                B0--- B1---\nrank 1      F0 F1 B0--- B1---"


def test_unequal_costs_are_measured_in_the_shortest_compute_or_a_part_that_goes_into_all():
    halves = Seconds(lambda action: {"F": 0.2, "B": 0.3}.get(action.op, 0.0) * (1 + action.stage))
    assert str(drawn("gpipe", 2, 2, 0, halves)) == (
        "rank 0   F0--- F1---                                     B0------          B1------\n"
        "rank 1         F0--------- F1--------- B0--------------- B1---------------"
    )
    uneven = Seconds(lambda action: {"F": 1.0, "B": 2.137}.get(action.op, 0.0))
    assert str(drawn("gpipe", 2, 2, 0, uneven)) == "rank 0   F0 F1          B0--- B1---\nrank 1      F0 F1 B0--- B1---"


def test_what_travels_for_long_leaves_room():
    assert str(drawn("gpipe", 2, 1, 0, Seconds(units, lambda stage, forward: 2.0))) == "rank 0   F0                      B0---\nrank 1            F0 B0---"


@pytest.mark.parametrize("width", [30, 41, 60, 97])
def test_a_long_drawing_loses_its_middle_and_says_how_much(width):
    whole, cut = drawn("one_f_one_b", 4, 30), drawn("one_f_one_b", 4, 30, width)
    assert whole.n_columns == cut.n_columns == 99 and whole.n_columns_left_out == 0
    assert max(map(len, cut.lines)) <= width and len(cut.lines) == 4
    n_letters = len("B29 ")
    for line, of in zip(cut.lines, whole.lines, strict=True):
        head, tail = (part for part in line.ljust(width).split("... "))
        assert of.startswith(head)
        shown = (len(head) - len("rank 0   ")) // n_letters
        begin = len("rank 0   ") + n_letters * (shown + cut.n_columns_left_out)
        assert of[begin:].rstrip() == tail.rstrip()


def test_a_drawing_that_just_fits_is_whole():
    whole = drawn("one_f_one_b", 4, 4)
    width = max(map(len, whole.lines)) + 1
    assert drawn("one_f_one_b", 4, 4, width) == whole and drawn("one_f_one_b", 4, 4, width - 3).n_columns_left_out > 0
    assert drawn("one_f_one_b", 4, 4, 1).n_columns_left_out == 19, "something is shown in any case"


def test_of_many_ranks_the_middle_is_left_out():
    few, many = drawn("gpipe", MOST_RANKS, 2, 80), drawn("gpipe", 100, 2, 80)
    assert few.n_ranks_left_out == 0 and len(few.lines) == MOST_RANKS
    assert many.n_ranks_left_out == 100 - MOST_RANKS and len(many.lines) == MOST_RANKS + 1
    assert many.lines[15].startswith("rank 15 ") and many.lines[16] == "..." and many.lines[17].startswith("rank 84 ") and many.lines[-1].startswith("rank 99 ")
