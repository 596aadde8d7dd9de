"""What is asked of a scaling study is understood, and what cannot be, or would do nothing, is one line."""

from __future__ import annotations

import pytest

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.scale_request import KINDS, STEPS, ScaleRequest, asked, sized


def kinds(**values):
    return ScaleRequest().with_values(values, "scale").kinds(values)


def test_neither_kind_is_both_one_is_that_one_and_no_kind_is_refused():
    assert kinds() == kinds(strong=True, weak=True) == KINDS
    assert kinds(weak=True) == kinds(strong=False) == kinds(weak=True, strong=False) == ("weak",)
    assert kinds(strong=True) == kinds(weak=False) == ("strong",)
    with pytest.raises(UserError, match="leave nothing to measure"):
        kinds(weak=False, strong=False)


def test_a_study_counts_steps_whatever_says_when_training_ends():
    request, job = asked({"ranks": "1,2", "epochs": 30, "target": "0.9", "checkpoint-every": 5, "trace": True, "lr": 0.1, "out": "x"})
    assert request.ranks == (1, 2) and job is not None and (job.steps, job.epochs, job.target, job.trace, job.report, job.out) == (STEPS, 0, "", False, False, "")
    assert job.lr == 0.1 and job.checkpoint_every == 0
    assert asked({"ranks": "1", "out": "x"})[1] is None, "nothing was said of a job"
    assert [sized(job, kind, 3).batch for kind in KINDS] == [64, 192] and sized(job, "weak", 3).lr == 0.1


def test_a_share_is_that_of_a_rank_that_computes():
    served, groups = Job().with_values({"servers": "2"}, "test"), Job().with_values({"servers": "1", "group": 2}, "test")
    assert [sized(served, "weak", n).batch // 64 for n in (1, 2, 3, 6)] == [1, 1, 1, 4], "two ranks serve, as far as there are others"
    assert sized(groups, "weak", 5).batch == 4 * 64, "the ranks of a group share what their worker has"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ranks": "1,two"}, "scale: ranks: '1,two' is not whole numbers"),
        ({"ranks": "0,1"}, "--ranks 0,1: 0 is below 1"),
        ({"ranks": ""}, "--ranks : names no number"),
        ({"ranks": "2,1,2"}, "--ranks 2,1,2: names a number twice"),
        ({"simulate": "16,-4"}, "--simulate 16,-4: -4 is below 1"),
        ({"ranks": "1,2", "only": 3}, "--only 3: is none of --ranks 1,2"),
        ({"only": 0}, "--only 0: is below 1"),
        ({"only": 2, "simulate": "16"}, "--simulate: does nothing beside --only"),
        ({"only": 2, "table": True}, "--table: does nothing beside --only"),
        ({"table": True, "ranks": "1"}, "--ranks: does nothing beside --table"),
        ({"lr": 0.1}, "--ranks: names no number of ranks to measure; give some, as --ranks 1,2,4, or --table"),
        ({"repeat": 0}, "--repeat 0: is below 1"),
        ({"warm-up": -1}, "--warm-up -1: is below 0"),
        ({"bandwidth": 0}, "--bandwidth 0.0: is not a positive number"),
        ({"ranks": "1", "resume": "runs/x"}, "--resume runs/x: a study begins each of its runs anew"),
        ({"ranks": "1", "bacth": 3}, "there is no option 'bacth'"),
        ({"ranks": "1", "sync": "bsp,asp"}, "--sync bsp,asp: is a list, and one value is taken here"),
    ],
)
def test_what_cannot_be_is_one_line(values, says):
    with pytest.raises(UserError) as error:
        asked(values)
    assert says in str(error.value) and "\n" not in str(error.value)
