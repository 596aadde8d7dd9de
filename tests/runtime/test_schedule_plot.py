"""Hold the picture of a schedule to what a reader needs: every compute a bar, numbers only where all have room, nothing cut off or printed over another."""

from itertools import combinations

import pytest

from mpidml.core import plugins
from mpidml.core.lowering import lower
from mpidml.core.replay import replay
from mpidml.core.turns import lower_by_turns
from mpidml.runtime.schedule_plot import draw, page


def drawn(name, n_ranks=4, n=8):
    program = lower(plugins.make("mpidml.schedules", name), n_ranks, n)
    run = replay(program)
    return program, run, page(program, run, f"{name}: a headline", "a finding", "details")


def bars(figure):
    return [path for collection in figure.axes[0].collections[:-1] for path in collection.get_paths()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("name", plugins.names("mpidml.schedules"))
def test_every_compute_is_a_bar_with_the_number_of_its_microbatch(name):
    program, run, figure = drawn(name)
    computes = [event for event in run.events if event.action.op in "FBIW"]
    boxes = [path.get_extents() for path in bars(figure)]
    found = sorted((round((box.y0 + box.y1) / 2), round(box.x0, 9), round(box.x1, 9)) for box in boxes)
    idle = [(rank, 0.0, run.seconds) for rank in range(program.n_ranks)]
    assert found == sorted([*idle, *((event.rank, event.start, event.end) for event in computes)])
    texts = sorted((round(text.get_position()[1]), text.get_position()[0], text.get_text()) for text in figure.axes[0].texts)
    assert texts == sorted((event.rank, (event.start + event.end) / 2, str(event.action.item)) for event in computes)
    assert figure.axes[0].get_title(loc="left") == "a finding"


def test_stages_whose_ranks_take_turns_have_a_row_a_rank():
    program = lower_by_turns(plugins.make("mpidml.schedules", "one_f_one_b"), (2, 1), 4)
    figure = page(program, replay(program), "a headline", "a finding", "details")
    assert len(bars(figure)) == 3 + 2 * 2 * 4 and len(figure.axes[0].get_yticks()) == 3 and not any("stages" in text for text in legend(figure))


@pytest.mark.parametrize(("name", "n_ranks", "n"), [("interleaved:4", 4, 8), ("gpipe", 16, 64), ("naive", 1, 1), ("zero_bubble", 8, 24), ("three_step", 3, 9)])
def test_nothing_is_cut_off_or_printed_over_another(name, n_ranks, n):
    _, _, figure = drawn(name, n_ranks, n)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    axes = figure.axes[0]
    words = [*figure.texts, axes._left_title, axes.xaxis.label, *axes.texts, *axes.get_yticklabels(), *figure.legends[0].get_texts()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in words if text.get_text()]
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, text
    for (one, a), (other, b) in combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)


def test_numbers_are_left_out_where_they_have_no_room():
    assert not drawn("gpipe", 16, 64)[2].axes[0].texts
    _, _, figure = drawn("pipedream", 2, 60)
    assert not figure.axes[0].texts or {text.get_text() for text in figure.axes[0].texts} == {str(item) for item in range(60)}


def test_the_legend_names_what_is_there():
    assert legend(drawn("one_f_one_b")[2]) == ["forward", "backward", "idle"]
    assert legend(drawn("zero_bubble")[2]) == ["forward", "backward: gradient of the input", "backward: gradient of the weights", "idle"]
    assert legend(drawn("three_step")[2])[-1] == "all wait for all" and legend(drawn("two_bw")[2])[-1] == "weights change"
    assert legend(drawn("pipedream", 4, 100)[2]) == ["forward", "backward", "idle"], "marks without end would hide all else"
    assert legend(drawn("interleaved:2", 2)[2])[:2] == ["forward, stages 0 to 1", "forward, stages 2 to 3"]
    assert legend(drawn("interleaved:5", 1, 2)[2])[:2] == ["forward, stage 0", "forward, stage 4"]


def test_a_picture_of_very_many_is_small_enough_to_be_made(tmp_path):
    program = lower(plugins.make("mpidml.schedules", "one_f_one_b"), 32, 64)
    draw(tmp_path / "many.png", program, replay(program), "many", "a finding", "details")
    assert (tmp_path / "many.png").stat().st_size < 1_000_000
