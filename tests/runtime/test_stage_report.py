"""What is said of stages in the end: a line each, aligned, and a sentence where there is one."""

from itertools import product

import pytest

from mpidml.data.sampler import Sampler
from mpidml.runtime.stage_report import closing, cut_words
from mpidml.runtime.staged_training import _parts


def row(stage, layers, ranks, seconds, parameters=1000):
    return {"stage": stage, "layers": layers, "ranks": ranks, "seconds": seconds, "parameters": parameters, "busy_share": 0.5, "wait_share": 0.25}


def test_a_line_for_each_stage_and_the_sentence():
    rows = [row(0, [1, 2, 3], [0, 2], 0.0021), row(1, [], [1, 3], None, 0), row(2, [4], list(range(8)), 1.25, 1234567)]
    assert closing({"stages": rows, "stages_sentence": "stage 2 is slow"}).splitlines() == [
        "",
        "stage  layers      ranks  parameters  ms/microbatch  busy  waiting",
        "    0  1 to 3       0, 2       1,000            2.1   50%      25%",
        "    1    none       1, 3           0              -   50%      25%",
        "    2       4  0, 1 .. 7   1,234,567          1,250   50%      25%",
        "stage 2 is slow",
    ]
    assert closing({"stages": rows, "stages_sentence": ""}).count("\n") == 4


def test_nothing_is_said_of_a_run_without_stages():
    assert closing({}) == ""


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((48, 2, 6, (2, 2), "batch"), "6 microbatches of 4 rows a batch; 2 stage(s) of 2,2 layers"),
        ((50, 2, 8, (1, 0, 3), "batch"), "8 microbatches of 3 to 4 rows a batch; 3 stage(s) of 1,0,3 layers, those of 0 hand on"),
        ((5, 1, 5, (4,), "batch"), "5 microbatches of 1 row a batch; 1 stage(s) of 4 layers"),
        ((9, 2, 1, (4,), "clock"), "1 microbatch of 4 to 5 rows a clock; 1 stage(s) of 4 layers"),
    ],
)
def test_a_heading_says_how_microbatches_and_layers_divide(given, says):
    assert cut_words(*given) == says


def test_so_many_rows_are_in_the_microbatches():
    for batch, n_replicas, n_items in product(range(1, 40), range(1, 5), range(1, 8)):
        sampler = Sampler(100, batch, n_replicas, 0)
        shares = [len(sampler.indices(0, worker)) for worker in range(n_replicas)]
        rows = {part.stop - part.start for share in shares for part in _parts(share, n_items)}
        words = f"{min(rows)} row{'s' * (min(rows) != 1)} " if len(rows) == 1 else f"{min(rows)} to {max(rows)} rows "
        assert f" of {words}a batch;" in cut_words(batch, n_replicas, n_items, (1,), "batch")
