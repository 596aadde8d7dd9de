"""The identities of a scaling table, and what a run's seconds are without its first steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.scaling.rows import gain, measured, of_run, rows
from mpidml.scaling.text import table

SECONDS = st.dictionaries(st.integers(1, 2000), st.floats(1e-6, 10.0), min_size=1, max_size=6)


def point(seconds, n=1, kind="strong"):
    batch = 64 * n if kind == "weak" else 64
    return {"seconds_per_step": seconds, "samples_per_second": batch / seconds}


def breaks(kind, found, gained=gain):
    """List the identities that rows break, were their gains those of `gained`."""
    by_ranks = {row["ranks"]: row for row in found}
    m = min(by_ranks)
    wrong = []
    for n, row in by_ranks.items():
        own = gained(n, row["samples_per_second"], m, by_ranks[m]["samples_per_second"])
        ratio = by_ranks[m]["seconds_per_step"] / row["seconds_per_step"]
        rates = row["samples_per_second"] / by_ranks[m]["samples_per_second"]
        wrong += ["speed-up"] * (own.speed_up != pytest.approx(ratio if kind == "strong" else rates))
        wrong += ["efficiency"] * (own.efficiency != pytest.approx(own.speed_up * m / n))
        wrong += ["weak efficiency"] * (kind == "weak" and own.efficiency != pytest.approx(ratio))
        wrong += ["row"] * ((row["speed_up"], row["efficiency"], row["relative_to"]) != (*own, m))
    return wrong


@given(seconds=SECONDS, kind=st.sampled_from(["strong", "weak"]))
def test_speed_up_and_efficiency_are_those_of_seconds(seconds, kind):
    found = rows(kind, {n: point(s, n, kind) for n, s in seconds.items()}, {})
    assert [row["ranks"] for row in found] == sorted(seconds) and not breaks(kind, found)
    assert (found[0]["speed_up"], found[0]["efficiency"]) == (1, 1), "the fewest ranks are what all are held against"


def test_gains_that_are_wrong_break_them():
    found = rows("weak", {1: point(1.0, 1, "weak"), 4: point(1.25, 4, "weak")}, {})
    assert found[1]["efficiency"] == pytest.approx(0.8) and found[1]["speed_up"] == pytest.approx(3.2)
    assert breaks("weak", found, lambda n, rate, m, base: gain(n, rate * m / n, m, base)), "weak scaling counted as strong"
    assert breaks("weak", found, lambda n, rate, m, base: gain(n, base, m, rate)), "slower counted as faster"
    served = rows("weak", {1: point(1.0), 3: point(1.0)}, {})[1]
    assert (served["speed_up"], served["efficiency"]) == (1, pytest.approx(1 / 3)), "two of three ranks serve: the third computes as much as one alone"


def test_what_is_left_out_has_a_row_and_the_next_takes_its_place():
    found = rows("strong", {1: {"skipped": "no"}, 2: point(1.0), 4: point(0.5)}, {2: point(1.1), 4: point(0.6), 64: point(0.1), 128: {"skipped": "batch"}})
    assert [(row["ranks"], row["relative_to"], row["skipped"], row["not_simulated"]) for row in found[:2]] == [(1, 2, "no", None), (2, 2, None, None)]
    assert found[2]["speed_up"] == 2 and found[2]["efficiency"] == 1 and found[2]["ratio"] == pytest.approx(1.2)
    assert "speed_up" not in found[3] and found[3]["simulated_speed_up"] == pytest.approx(11) and found[3]["simulated_efficiency"] == pytest.approx(11 / 32)
    assert found[4]["not_simulated"] == "batch" and "ratio" not in found[4]


def test_what_is_simulated_says_over_which_ranks_where_those_that_were_measured_have_no_simulation():
    found = rows("strong", {1: point(1.0), 2: point(0.6)}, {1: {"skipped": "no"}, 2: point(0.6), 8: point(0.2)})
    assert [(row["relative_to"], row["simulated_relative_to"]) for row in found] == [(1, 2)] * 3
    assert found[2]["simulated_speed_up"] == pytest.approx(3) and found[2]["simulated_efficiency"] == pytest.approx(3 / 4)
    told = {"rows": found, "assumed": "simulated"}
    assert "the batch stays; simulated speed-up: relative to 2 ranks\n" in table(told)
    same = rows("strong", {1: point(1.0), 2: point(0.6)}, {1: point(1.0), 2: point(0.6)})
    assert same[1]["simulated_relative_to"] == 1 and "relative" not in table(told | {"rows": same})


def test_the_first_steps_do_not_count_and_the_median_of_runs_does():
    metrics = [{"clock": c, "seconds": 10.0 + c, "samples": 64 * (c + 1)} for c in range(10)]  # a slow first step
    summary = {"compute_seconds": [3.0, 1.0], "wait_seconds": [1.0, 3.0], "comm_seconds": [0.0, None], "bytes_sent": [40, 0], "bytes_window": [], "ranks": 2, "clocks": 10}
    run = of_run(summary, metrics, 4, 64)
    assert run["seconds_per_step"] == pytest.approx(1.0) and run["samples_per_second"] == pytest.approx(64)
    assert of_run(summary, metrics, 0, 64)["seconds_per_step"] == pytest.approx(1.9)
    assert (run["compute_share"], run["wait_share"], run["comm_share"], run["nbytes_per_rank_and_step"]) == (0.5, 0.5, 0.0, 2.0)
    of = measured([point(s) for s in (3.0, 1.0, 2.0)], 64)
    assert (of["seconds_per_step"], of["least_seconds"], of["most_seconds"]) == (2.0, 1.0, 3.0)
