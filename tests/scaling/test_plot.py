"""The picture shows each kind by a column: marks of what was measured, a line of what was simulated, and which ranks shared cores."""

from __future__ import annotations

from mpidml.scaling.plot import page
from mpidml.scaling.rows import rows


def point(n, seconds, **more):
    return {"seconds_per_step": seconds, "samples_per_second": 64 / seconds, "cores": 2, "ranks_per_host": n, "shares_cores": n > 2, **more}


def study(*kinds):
    found = []
    for kind in kinds:
        measured = {1: point(1, 1.0), 2: point(2, 0.6), 4: point(4, 0.5), 8: {"skipped": "grid"}}
        found += rows(kind, measured, {n: point(n, 1.1 / n + 0.02) for n in (1, 2, 4, 64)} | {8: {"skipped": "grid"}})
    return {"rows": found, "strategy": "data_parallel", "sync": "bsp", "model": "mlp", "data": "digits", "assumed": "simulated"}


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_marks_are_what_was_measured_and_the_line_is_simulated():
    figure = page(study("strong", "weak"))
    speed, weak, efficiency, _ = figure.axes
    drawn = lines(speed)
    assert drawn.keys() == {"ideal", "simulated", "measured", "measured, cores shared"}
    assert drawn["ideal"].get_xydata().tolist() == [[n, n] for n in (1, 2, 4, 64)]
    assert drawn["simulated"].get_xdata().tolist() == [1, 2, 4, 64] and drawn["simulated"].get_marker() == "."
    assert drawn["measured"].get_xydata().tolist() == [[1, 1], [2, 1 / 0.6]] and drawn["measured"].get_linestyle() == "None"
    assert drawn["measured, cores shared"].get_xydata().tolist() == [[4, 2]]
    assert (speed.get_xscale(), speed.get_yscale(), efficiency.get_xscale(), efficiency.get_yscale()) == ("log", "log", "log", "linear")
    assert [text.get_text() for text in efficiency.texts] == ["2 cores:\nshared"]
    assert lines(efficiency)["measured, cores shared"].get_ydata().tolist() == [0.5]
    assert weak.get_title("left").startswith("Weak, ") and speed.get_title("left") == "Strong, the batch stays: 30.1 times on 64 ranks (simulated)"


def test_only_what_was_simulated_says_where_efficiency_falls_below_half():
    def title(measured, simulated):
        found = rows("strong", {n: point(n, s) for n, s in measured.items()}, {n: point(n, s) for n, s in simulated.items()})
        return page(study("strong") | {"rows": found}).axes[1].get_title("left")

    alone = {1: 1.0, 4: 0.9}
    assert title(alone, {1: 1.0, 4: 0.9}) == "Below half from 4 ranks on (simulated)"
    assert title(alone, {1: 1.0, 4: 0.3}) == "Nowhere below half (simulated)"
    assert title(alone, {}) == "", "28% were measured"


def test_a_speed_up_over_other_ranks_says_over_which():
    found = rows("strong", {1: point(1, 1.0), 2: point(2, 0.6)}, {2: point(2, 0.6), 8: point(8, 0.2)})
    figure = page(study("strong") | {"rows": found})
    assert figure.axes[0].get_ylabel() == "speed-up over 1 rank (simulated: over 2)"
    assert page(study("strong")).axes[0].get_ylabel() == "speed-up over 1 rank"


def test_one_kind_is_one_column():
    assert len(page(study("weak")).axes) == 2
