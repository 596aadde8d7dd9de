"""What is said of stages in the end: a line each, aligned, and a sentence where there is one."""

from mpidml.runtime.stage_report import closing


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
