"""Draw a pipeline schedule, as text and as a picture, and tell what it costs, before any model is trained by it.

    python -m mpidml schedule one_f_one_b --stages 4 --microbatches 8

    schedule -> program -> checked and timed by a replay on virtual clocks -> staircase, bubble, activations, versions of weights
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mpidml.core import plugins
from mpidml.core.checking import check, guarded, lowered, lowered_by_turns
from mpidml.core.drawing import draw
from mpidml.core.errors import UserError
from mpidml.core.program import Program
from mpidml.core.replay import Replay
from mpidml.core.schedule_request import ScheduleRequest
from mpidml.core.turns import agrees
from mpidml.runtime import schedule_plot
from mpidml.runtime.outputs import default_out
from mpidml.runtime.progress import show
from mpidml.schedules.base import Schedule, make

FOLDER = "mpidml.schedules"
_FEW = 16  # stages whose numbers are told one by one


def schedule(**values: Any) -> None:
    """Draw the schedule `name` on the terminal and to a PNG file, or list all without one; UserError for what cannot be. Starts no MPI.

    `values`: name, stages, microbatches, replicas, costs, travel, out, as the flags of their names.
    """
    asked = ScheduleRequest().with_values(values, "schedule")
    if not asked.name:
        say(listing())
        return
    made = make(asked.name)
    n_ranks = _ranks(asked, made)
    seconds = asked.seconds(made.trains)
    n, where = asked.microbatches, asked.name
    program = lowered_by_turns(made, asked.turns, n, where) if asked.turns else lowered(made, n_ranks, n, where)
    run = check(program, asked.name, seconds)
    path = _path(asked)
    say(text(asked, made, program, run, shutil.get_terminal_size((120, 24)).columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    schedule_plot.draw(path, program, run, f"{_name(asked)}: {_size(asked, program)}", finding(program, run), _costs(asked, made))
    say(f"written: {path}")


def say(text: str) -> None:
    """Print `text` on the terminal."""
    show(sys.stdout, f"{text}\n")


def listing() -> str:
    """Return a line for each schedule: its name and what its file says first."""
    lines = []
    for name in plugins.names(FOLDER):
        module = sys.modules[plugins.load(FOLDER, name).__module__]
        first = (inspect.getdoc(module) or "").partition("\n")[0]
        lines.append(f"{name:12} {re.split(r' *Sources?: ', first)[0]}")
    return "\n".join([*lines, "", "python -m mpidml schedule NAME draws one."])


def text(asked: ScheduleRequest, made: Schedule, program: Program, run: Replay, width: int) -> str:
    """Return what the terminal shows, the drawing in at most `width` letters."""
    drawing = draw(program, run, width)
    lines = [f"{_name(asked)}: {_size(asked, program)}; {_costs(asked, made)}", "", *drawing.lines, ""]
    if drawing.n_columns_left_out or drawing.n_ranks_left_out:
        columns = f"{drawing.n_columns_left_out} of {drawing.n_columns} columns" * bool(drawing.n_columns_left_out)
        ranks = f"{drawing.n_ranks_left_out} of {program.n_ranks} ranks" * bool(drawing.n_ranks_left_out)
        lines[-1:] = [f"left out here: {' and '.join(filter(None, (columns, ranks)))}; the picture has all", ""]
    lines.append(f"length       {run.seconds:g} unit{'s' * (run.seconds != 1)}")
    lines.append(f"bubble       {_share(run.bubble(program.n_ranks))} of the ranks' time{_formula(asked, made, program.n_ranks)}")
    lines.append(f"activations  of {_by_stage(run.activations, 'microbatch', 'es')} at once{_where(program)}")
    if any(staleness := _staleness(program, made)) or max(run.versions) > 1:
        lines.append(f"weights      of {_by_stage(run.versions, 'version')} at once, read up to {_by_stage(staleness, 'update')} old{_where(program)}")
    return "\n".join(lines)


def finding(program: Program, run: Replay) -> str:
    """Return the title of the picture."""
    kept = f"a stage keeps at most {_count(max(run.activations), 'microbatch', 'es')}"
    versions = f", {max(run.versions)} versions of its weights" * (max(run.versions) > 1)
    return f"{_share(run.bubble(program.n_ranks))} of the ranks' time is idle; {kept}{versions}"


def _ranks(asked: ScheduleRequest, made: Schedule) -> int:
    """Return how many ranks the stages are for; UserError where they are not level, or nothing travels that was given a time."""
    n_chunks = made.n_chunks
    if asked.turns:
        with guarded(asked.name, "update_every"):
            agrees(made, asked.name, asked.replicas)
    if asked.stages % n_chunks:
        default = " (the default)" * (asked.stages == ScheduleRequest.stages)
        raise UserError(f"--stages {asked.stages}{default}: {asked.name} has {n_chunks} stages a rank; give a multiple of {n_chunks}")
    n_ranks = asked.stages // n_chunks
    if asked.travel and n_ranks == 1:
        raise UserError(f"--travel {asked.travel:g}: does nothing on one {'stage' if asked.turns else 'rank'}, where nothing is sent; give more stages, or leave it out")
    return n_ranks


def _path(asked: ScheduleRequest) -> Path:
    """Return where the picture goes; UserError where that cannot be."""
    if not asked.out:
        name = re.sub(r"\W+", "-", Path(asked.name.partition(":")[0]).stem)
        return Path(f"{default_out(datetime.now())}-{name}.png")
    path = Path(asked.out)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: {'is a folder' if path.is_dir() else f'there is no folder {path.parent}'}; give the path of a file, as schedule.png")
    return path


def _name(asked: ScheduleRequest) -> str:
    """Return what a drawing calls the schedule: a file without its folder."""
    return asked.name.rpartition("/")[2]


def _size(asked: ScheduleRequest, program: Program) -> str:
    on_ranks = f" on {_count(program.n_ranks, 'rank')}" * (program.n_ranks != asked.stages) + f" ({asked.replicas})" * bool(asked.turns)
    return f"{_count(asked.stages, 'stage')}{on_ranks}, {_count(asked.microbatches, 'microbatch', 'es')}"


def _costs(asked: ScheduleRequest, made: Schedule) -> str:
    pairs = asked.pairs(made.trains)
    if len(set(pairs)) > 1:
        words = f"the stages' forwards{' and backwards' * made.trains} take {asked.costs if len(pairs) <= _FEW else 'what was given'}"
    else:
        words = f"a forward takes {pairs[0][0]:g}" + f", a backward {pairs[0][1]:g}" * made.trains
    return words + f", the way to another rank {asked.travel:g}" * (asked.travel > 0)


def _formula(asked: ScheduleRequest, made: Schedule, n_ranks: int) -> str:
    """Return what the formula of the schedule's source says, and its letters where they are written first in its docstring."""
    if asked.turns:
        return "; formulas are of one rank a stage"
    with guarded(asked.name, "bubble"):
        share = made.bubble(n_ranks, asked.microbatches)
    if share is None:
        return "; its source has no formula for this size"
    if not isinstance(share, int | float):
        raise UserError(f"{asked.name}: bubble gives {share!r}; let it give the share of idle time, or None where there is no formula")
    found = re.match(r"Return (\(.+?\) / \(.+?\)|\(.+?\) / \w+)(?=[ .:])", inspect.getdoc(type(made).bubble) or "")
    letters = f" {found[1]} for K = {n_ranks}, M = {asked.microbatches}" if found else ""
    limits = "" if asked.is_equal(made.trains) else f", for equal stages{', a backward of two forwards' * made.trains} and nothing on the way"
    return f"; its formula{letters} says {_share(share)}{limits}"


def _staleness(program: Program, made: Schedule) -> list[int]:
    """Return of each stage how many updates the oldest weights are behind that a microbatch reads, when it makes its own update."""
    oldest = [0] * program.n_stages
    for action in (action for actions in program.lists for action in actions if action.op == "V"):
        oldest[action.stage] = max(oldest[action.stage], action.item // made.update_every(program.n_ranks) - action.version)
    return oldest


def _by_stage(numbers: Sequence[int], what: str, plural: str = "s") -> str:
    if len(set(numbers)) == 1:
        return _count(numbers[0], what, plural)
    few = ", ".join(map(str, numbers)) if len(numbers) <= _FEW else f"{min(numbers)} to {max(numbers)}"
    return f"{few} {what}{plural}"


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{plural * (number != 1)}"


def _where(program: Program) -> str:
    return "" if program.n_stages == 1 else f" (stages 0 to {program.n_stages - 1})"


def _share(share: float) -> str:
    return f"{100 * max(share, 0.0):.1f}%"
