"""`python -m mpidml schedule` as users start it: a drawing, a picture, and what a schedule costs, in one process and without MPI."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mpidml.cli import parse
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.schedule_request import MOST, ScheduleRequest
from mpidml.runtime import schedule_plot
from mpidml.schedule import schedule
from tests.ranks import mpirun, python

SCHEDULE = ("-m", "mpidml", "schedule")
WITHOUT_MPI = """
import runpy, sys
sys.argv = ["mpidml", "schedule", *sys.argv[1:]]
runpy.run_module("mpidml", run_name="__main__", alter_sys=True)
assert not [name for name in sys.modules if name.startswith("mpi4py")], "MPI was started"
"""
MINE = """
from mpidml.core.action import Action
from mpidml.schedules.base import Schedule

class Mine(Schedule):
    def order(self, rank, n_ranks, n_microbatches):
        for item in range(n_microbatches):
            for op in {}:
                yield Action(rank, op, item)
"""


METHODS = {
    "no_formula": "bubble(self, n_ranks, n): return 1 / 0", "words": "bubble(self, n_ranks, n): return 'much'",
    "no_number": "update_every(self, n_ranks): return None", "no_key": "update_every(self, n_ranks): return {}[n_ranks]",
}  # fmt: skip
"""Of a schedule of one's own, besides its order."""


@pytest.fixture
def told(tmp_path, capsys, monkeypatch):
    """Run the command here and return what it says; of pictures, whose tests are elsewhere, there is but the file, in the folder of the test."""
    monkeypatch.setattr(schedule_plot, "draw", lambda path, *_: Path(path).touch())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(words):
        command, given = parse(["schedule", *words.split()])
        assert command == "schedule"
        schedule(**given)
        out, err = capsys.readouterr()
        assert not err
        return out

    return run


def test_it_draws_and_tells_and_starts_no_mpi(tmp_path):
    result = python(["-c", WITHOUT_MPI, "one_f_one_b", "--stages", "2", "--microbatches", "3", "--out", tmp_path / "picture.png"])
    assert result.code == 0 and not result.err, result
    assert result.out.splitlines() == [
        "one_f_one_b: 2 stages, 3 microbatches; a forward takes 1, a backward 2",
        "",
        "rank 0   F0 F1       B0--- F2 B1---    B2---",
        "rank 1      F0 B0--- F1 B1--- F2 B2---",
        "",
        "length       12 units",
        "bubble       25.0% of the ranks' time; its formula (K - 1) / (M + K - 1) for K = 2, M = 3 says 25.0%",
        "activations  of 2, 1 microbatches at once (stages 0 to 1)",
        f"written: {tmp_path / 'picture.png'}",
    ]
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_of_several_ranks_one_draws(tmp_path):
    result = mpirun(3, [*SCHEDULE, "gpipe", "--out", tmp_path / "picture.png"])
    assert result.code == 0 and result.out.count("length ") == 1, result


def test_without_a_name_the_schedules_are_listed_with_what_they_are(told):
    lines = told("").splitlines()
    assert [line.split()[0] for line in lines[:-2]] == plugins.names("mpidml.schedules")
    assert all(re.fullmatch(r"\w+ +[A-Z].*\.", line) and "Source" not in line for line in lines[:-2]), lines
    assert lines[-1] == "python -m mpidml schedule NAME draws one."


def test_a_picture_goes_below_runs_unless_it_is_told_where(told, tmp_path):
    told("interleaved:2 --stages 4 --microbatches 2")
    told("interleaved:2 --stages 4 --microbatches 2")
    pictures = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert pictures and all(re.fullmatch(r"\d{8}-\d{6}-interleaved\.png", name) for name in pictures)
    assert f"written: {tmp_path / 'a.png'}" in told(f"gpipe --out {tmp_path / 'a.png'}")


@pytest.mark.parametrize("name", plugins.names("mpidml.schedules"))
def test_every_schedule_is_drawn_and_meets_its_formula(told, name):
    said = told(f"{name} --out a.png")
    found = re.search(r"^bubble +([\d.]+)% of the ranks' time; its formula .*says ([\d.]+)%$", said, re.MULTILINE)
    assert found and found[1] == found[2], said
    assert ("weights " in said) == (name in ("pipedream", "two_bw"))


def test_versions_and_their_age_are_told_where_weights_change_under_way(told):
    assert "weights      of 4, 3, 2, 1 versions at once, read up to 3, 2, 1, 0 updates old (stages 0 to 3)\n" in told("pipedream --out a.png")
    assert "weights      of 4 versions at once, read up to 3 updates old (stages 0 to 3)\n" in told("pipedream:true --out a.png")
    assert "weights      of 2 versions at once, read up to 1 update old (stages 0 to 3)\n" in told("two_bw --out a.png")


def test_costs_of_each_stage_and_the_way_are_counted_and_formulas_say_what_they_are_for(told):
    equal = "for K = 3, M = 8 says 20.0%"
    said = told("one_f_one_b --stages 3 --costs 0.5,1 --out a.png")
    assert "length       15 units" in said and f"time; its formula (K - 1) / (M + K - 1) {equal}\n" in said, "any unit"
    said = told("one_f_one_b --stages 3 --costs 1:2,2:4,1:2 --out a.png")
    assert "the stages' forwards and backwards take 1:2,2:4,1:2\n" in said
    assert "length       52 units" in said and f"{equal}, for equal stages, a backward of two forwards and nothing on the way\n" in said
    said = told("one_f_one_b --stages 3 --travel 0.5 --out a.png")
    assert "a backward 2, the way to another rank 0.5\n" in said and f"{equal}, for equal stages" in said and "length       30 units" not in said
    said = told("inference --stages 2 --costs 1,3 --microbatches 4 --out a.png")
    assert "the stages' forwards take 1,3\n" in said and "length       13 units" in said
    assert "its source has no formula for this size" in told("interleaved --microbatches 3 --out a.png")


def test_stages_on_unlike_numbers_of_ranks_are_drawn_by_turns(told):
    lines = told("one_f_one_b --replicas 2,1 --costs 2:4,1:2 --microbatches 6 --out a.png").splitlines()
    assert lines[0] == "one_f_one_b: 2 stages on 3 ranks (2,1), 6 microbatches; the stages' forwards and backwards take 2:4,1:2"
    assert [re.findall(r"F\d|B\d", line) for line in lines if line.startswith("rank ")] == [
        ["F0", "F2", "B0", "F4", "B2", "B4"], ["F1", "F3", "B1", "F5", "B3", "B5"], [f"{op}{m}" for m in range(6) for op in "FB"],
    ]  # fmt: skip
    assert any(re.fullmatch(r"bubble +[\d.]+% of the ranks' time; formulas are of one rank a stage", line) for line in lines)
    assert "activations  of 2, 1 microbatches at once (stages 0 to 1)" in lines


def test_a_wide_drawing_is_cut_to_the_terminal_and_says_so(told, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    lines = told("one_f_one_b --stages 4 --microbatches 40 --out a.png").splitlines()
    drawn = [line for line in lines if line.startswith("rank ")]
    assert len(drawn) == 4 and max(map(len, drawn)) <= 70 and all("..." in line for line in drawn)
    assert "left out here: 115 of 129 columns; the picture has all" in lines
    said = told("naive --stages 40 --microbatches 2 --out a.png")
    assert re.search(r"left out here: \d+ of 240 columns and 8 of 40 ranks; the picture has all\n", said)


def test_a_schedule_of_ones_own_is_drawn_and_a_wrong_one_is_shown_with_what_it_lacks(tmp_path):
    (tmp_path / "mine.py").write_text(MINE.format('("F", "B")'))
    good = python([*SCHEDULE, tmp_path / "mine.py", "--stages", "2", "--microbatches", "1", "--out", tmp_path / "a.png"])
    assert good.code == 0 and "its source has no formula" in good.out and "rank 1      F0 B0---" in good.out, good
    (tmp_path / "mine.py").write_text(MINE.format('("B", "F")'))
    bad = python([*SCHEDULE, tmp_path / "mine.py", "--stages", "2", "--microbatches", "1", "--out", tmp_path / "b.png"])
    assert bad.code == 2 and not bad.out and not (tmp_path / "b.png").exists(), bad
    assert bad.err.splitlines() == [
        f"mpidml: {tmp_path / 'mine.py'}: rank 1, action 0 (1B0): its forward 1F0 is not done; correct the order of the schedule",
        "rank 0: 0RB0 0B0 0F0 0SF0 0U",
        "rank 1: >>1B0<< 1SB0 1RF0 1F0 1U",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("one_f_one_bee", "schedules: there is no 'one_f_one_bee'; known: gpipe, inference, interleaved, looped_bfs, naive, "),
        ("one_f_one_bee", "did you mean 'one_f_one_b'?"),
        ("gpipe --stages 0", "--stages 0: is below 1; give a whole number from 1 up"),
        ("gpipe --microbatches -3", "--microbatches -3: is below 1; give a whole number from 1 up"),
        ("gpipe --stages four", "schedule: stages: 'four' is not a whole number; the default is 4"),
        (f"gpipe --microbatches {MOST}", f"--microbatches {MOST}: times 4 stages are too many to draw; give at most {MOST // 4}, or fewer stages"),
        ("--stages 5", "--stages 5: does nothing without the name of a schedule; give one, as one_f_one_b, or leave it out"),
        ("--out a.png", "--out a.png: does nothing without the name of a schedule"),
        ("gpipe --replicas 2,0", "--replicas 2,0: '0' is no number of ranks from 1 up; give one for each stage, as 2,1"),
        ("gpipe --replicas 2,1 --stages 3", "--stages 3: --replicas 2,1 are of 2; leave one of them out"),
        ("gpipe --replicas 3,1 --microbatches 2", "--microbatches 2: are fewer than the 3 ranks that take turns; give 3 or more"),
        ("interleaved --replicas 2,1", "--replicas 2,1: takes schedules of one stage a rank, --schedule interleaved has 2; give one such as one_f_one_b"),
        ("pipedream --replicas 2,1", "--replicas 2,1: takes schedules that end a batch by a flush, --schedule pipedream changes weights under way; give one"),
        ("gpipe --replicas 3 --travel 1", "--travel 1: does nothing on one stage"),
        ("--replicas 2,1", "--replicas 2,1: does nothing without the name of a schedule; give one"),
        ("interleaved --stages 5", "--stages 5: interleaved has 2 stages a rank; give a multiple of 2"),
        ("interleaved:3", "--stages 4 (the default): interleaved:3 has 3 stages a rank; give a multiple of 3"),
        ("interleaved:0", "'interleaved:0': chunks = 0 is not a whole number from 1 up; give the number of stages of a rank"),
        ("two_bw:2", "two_bw:2: every = 2 is below the 4 ranks, and more than two versions would be read; give 4 or more"),
        ("pipedream:3", "'pipedream:3': vertical = 3 is neither true nor false; give one of them"),
        ("gpipe --stages 1 --travel 1", "--travel 1: does nothing on one rank, where nothing is sent; give more stages, or leave it out"),
        ("interleaved:3 --stages 3 --travel 1", "--travel 1: does nothing on one rank"),
        ("gpipe --travel -1", "--travel -1.0: is not a number from 0 up; give one"),
        ("gpipe --travel nan", "--travel nan: is not a number from 0 up; give one"),
        ("gpipe --costs 1", "--costs 1: '1' is not two positive numbers; give forward and backward, as 1,2, or a pair for each of 4 stages"),
        ("gpipe --costs 0,1", "--costs 0,1: '0,1' is not two positive numbers; give"),
        ("gpipe --costs 1,2,3,4", "--costs 1,2,3,4: '1' is not two positive numbers; give"),
        ("gpipe --costs 1:2,1:2", "--costs 1:2,1:2: holds 2 costs, there are 4 stages; give"),
        ("gpipe --costs 1:2,1:x,1:2,1:2", "'1:x' is not two positive numbers; give"),
        ("gpipe --costs inf,1", "'inf,1' is not two positive numbers; give"),
        ("inference --costs 1,2", "--costs 1,2: holds 2 costs, there are 4 stages; there are forwards alone: give one number, or one for each of 4 stages"),
        ("inference --costs 1:2", "'1:2' is not a positive number; there are forwards alone"),
        ("gpipe --out a.pdf", "--out a.pdf: is of no known ending; give one that ends in .png, as schedule.png"),
        ("gpipe --out nowhere/a.png", "--out nowhere/a.png: there is no folder nowhere; give the path of a file, as schedule.png"),
        ("gpipe --out folder.png", "--out folder.png: is a folder; give the path of a file"),
        ("none.py", "none.py: there is no such file; give the path of a plug-in file"),
        ("other.py", "other.py: holds no schedule with an order and n_chunks of 1 or more; derive its class from mpidml.schedules.base.Schedule"),
        ("none_a_rank.py", "none_a_rank.py: holds no schedule with an order and n_chunks of 1 or more"),
        ("updates.py", "updates.py: its order yields 0U0; let it yield F, B, I and W of whole microbatches, and X, alone"),
        ("unknown.py", "unknown.py: its order yields 0Q0; let it yield F, B, I and W of whole microbatches, and X, alone"),
        ("halves.py", "halves.py: its order yields 0F0.5; let it yield"),
        ("without.py", "without.py: holds no schedule with an order and n_chunks of 1 or more"),
        ("fails.py", "fails.py: its order ends by ZeroDivisionError: "),
        ("fails.py --replicas 2,1", "fails.py: its order ends by ZeroDivisionError: "),
        ("updates.py --replicas 2,1", "updates.py: its order yields 0U0; let it yield F, B, I and W of whole microbatches, and X, alone"),
        ("no_formula.py --stages 1", "no_formula.py: its bubble ends by ZeroDivisionError: "),
        ("words.py --stages 1", "words.py: bubble gives 'much'; let it give the share of idle time, or None where there is no formula"),
        ("no_number.py", "no_number.py: update_every gives None; let it give 0 for once a batch, or how many microbatches make an update"),
        ("no_number.py --replicas 2,1", "no_number.py: update_every gives None; let it give 0"),
        ("no_key.py --replicas 2,1", "no_key.py: its update_every ends by KeyError: 1, at "),
        ("gpipe --costs 1e-300,1e300", "--costs 1e-300,1e300: the largest is more than 1,000,000 times the smallest, which nobody could see; give costs that are nearer"),
        ("three_step --stages 3000 --microbatches 4", "--stages 3000: are too many to draw; give at most 1000"),
        ("gpipe --cost 1,2", "schedule: there is no option '--cost'; known: --costs, --microbatches, --out, --replicas, --stages, --travel; did you mean '--costs'?"),
        ("gpipe naive", "schedule: there is no option 'naive'; known: "),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(told, tmp_path, words, says):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "other.py").write_text("class Other:\n    pass\n")
    mine = MINE.format("('F', 'B')")
    (tmp_path / "none_a_rank.py").write_text(mine.replace("Mine", "NoneARank").replace("    def order", "    n_chunks = 0\n\n    def order"))
    (tmp_path / "updates.py").write_text(MINE.replace("Mine", "Updates").format("('F', 'B', 'U')"))
    (tmp_path / "unknown.py").write_text(MINE.replace("Mine", "Unknown").format("('F', 'Q')"))
    (tmp_path / "halves.py").write_text(mine.replace("Mine", "Halves").replace("op, item)", "op, item + 0.5)"))
    (tmp_path / "without.py").write_text(mine.replace("Mine", "Without").replace("def order", "def orders"))
    (tmp_path / "fails.py").write_text(mine.replace("Mine", "Fails").replace("range(n_microbatches)", "range(n_microbatches // 0)"))
    for name, method in METHODS.items():
        (tmp_path / f"{name}.py").write_text(mine.replace("Mine", name.replace("_", "")) + f"\n    def {method}\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        told(words)
    assert says in str(error.value) and "\n" not in str(error.value) and "; " in str(error.value), error.value
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before


def test_a_fault_ends_the_command_with_code_2_and_nothing_but_that_line(tmp_path):
    result = python([*SCHEDULE, "gpipe", "--stages", "0", "--out", tmp_path / "a.png"])
    assert result.code == 2 and result.err == "mpidml: --stages 0: is below 1; give a whole number from 1 up\n" and not result.out
    assert not list(tmp_path.iterdir())


def test_each_flag_is_explained(capsys):
    with pytest.raises(SystemExit) as left:
        parse(["schedule", "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "[NAME]" in text and "--config" not in text
    assert all(f"--{name}" in text for name in vars(ScheduleRequest()) if name != "name")
