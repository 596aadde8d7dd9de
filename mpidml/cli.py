"""Read the command line: the flags of `train` are the fields of `Job`; a TOML file holds the same; flags win."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn

import mpidml
from mpidml.core import plugins
from mpidml.core.errors import UserError, nearest
from mpidml.core.evaluation import Evaluation, Prediction
from mpidml.core.job import AUTO, Job
from mpidml.core.plan_request import PlanRequest, asked
from mpidml.core.scale_request import ScaleRequest
from mpidml.core.scale_request import asked as asked_to_scale
from mpidml.core.schedule_request import ScheduleRequest
from mpidml.core.simulation import NAMES, Simulation
from mpidml.core.variants import LISTED, expand

COMMANDS = {
    "train": "train a network; writes a run folder",
    "compare": "run one job under several policies or settings (lists as bsp,ssp:3,asp), and on one process; writes a table and a plot",
    "simulate": "the same job on virtual clocks at any number of workers, one policy or several; writes what compare or train writes",
    "plan": "propose how to run a job on so many ranks: grid, schedule, microbatches; writes plan.toml, which train --config runs",
    "scale": "measure how a job scales on few ranks and simulate it on many, strong and weak: a table and a plot; goes on where it stopped",
    "evaluate": "how good a run's model is, on the rows it held out or on others; writes evaluation.json",
    "predict": "what a run's model says of rows, with labels or without; writes a table",
    "schedule": "draw a pipeline schedule and tell its idle time, activations and versions of weights; without a name: list them",
    "export": "write the model of a run's folder as an ONNX file, with the scaling of its data: export RUN --out model.onnx",
    "warm": "compile all kernels into the cache (NUMBA_CACHE_DIR, or the user's; a GPU's into CuPy's), so that no job has to: a line of a container's recipe",
    "info": "check this installation, its MPI and its ranks; says what to fix",
}
OF_A_WORD: dict[str, Any] = {"evaluate": Evaluation, "predict": Prediction, "schedule": ScheduleRequest}
"""Commands on a run's folder, or on a schedule: their records, whose first field needs no dashes."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{self.prog.removeprefix('python -m mpidml ')}: {message}; python -m mpidml {self.prog.split()[-1]} --help lists the options"
        )


def parse(argv: Sequence[str]) -> tuple[str, Any]:
    """Return the command and what it runs: the job of `train`, the values of the others; None for `info` and `warm`.

    `--help` prints and exits; UserError for anything else that cannot be.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        raise SystemExit(0)
    if argv[0] == "--version":
        sys.stdout.write(f"mpidml {mpidml.__version__}\n")
        raise SystemExit(0)
    command, *rest = argv
    if command not in COMMANDS:
        raise UserError(f"'{command}': there is no such command; {nearest(command, COMMANDS)}")
    if command == "warm":
        _Parser(prog=f"python -m mpidml {command}", description=COMMANDS[command]).parse_args(rest)
        return command, None
    if command == "info":
        parser = _Parser(prog="python -m mpidml info", description=COMMANDS["info"], allow_abbrev=False)
        parser.add_argument("--config", metavar="FILE", help="TOML file of a job: also check that these ranks fit it")
        config = parser.parse_args(rest).config
        return command, None if config is None else Job().with_values(_toml(config), config).checked()
    if command == "export":
        parser = _Parser(prog="python -m mpidml export", description=COMMANDS["export"], allow_abbrev=False)
        parser.add_argument("run", metavar="RUN", help="folder of a run that has ended")
        parser.add_argument("--out", metavar="FILE", required=True, help="the file to write")
        given_words = parser.parse_args(rest)
        return command, (given_words.run, given_words.out)
    parsed, unknown = _parser(command, "-h" in rest or "--help" in rest).parse_known_args(rest)
    if unknown:
        known = [*([] if command in OF_A_WORD else ["--config"]), *(_flag(f) for f in _fields(command) if f.name != _word(command))]
        raise UserError(f"{command}: there is no option '{unknown[0]}'; {nearest(unknown[0].partition('=')[0], known)}")
    given = vars(parsed)
    if command in OF_A_WORD:
        given = {name: value for name, value in given.items() if value is not None}
        return command, vars(OF_A_WORD[command]().with_values(given, command))
    config = given.pop("config", None)
    if command == "train":
        values = ({} if config is None else _toml(config)) | given
        if values.get("resume") not in (None, "", AUTO):
            from mpidml.runtime.resume import resumed

            return command, resumed(values["resume"], {name: value for name, value in values.items() if name != "resume"}).checked()
        return command, Job().with_values({} if config is None else _toml(config), config or "").with_values(given, "train").checked()
    values = {} if config is None else {name.replace("-", "_"): value for name, value in _toml(config).items()}
    values |= given
    if command == "plan":
        asked(values)
        return command, values
    if command == "scale":
        asked_to_scale(values)
        return command, values
    if command == "simulate":
        Simulation().with_values({name: value for name, value in values.items() if name in NAMES}, command)
    expand({name: value for name, value in values.items() if command != "simulate" or name not in NAMES}, command)
    return command, values


def _help() -> str:
    lines = [
        "usage: mpirun -n N python -m mpidml COMMAND [options]",
        "       python -m mpidml [-n N] COMMAND [options]      (starts mpirun itself; without -n: one process)",
        "",
    ]
    return "\n".join(
        [*lines, *(f"  {name:8} {text}" for name, text in COMMANDS.items()), "", "python -m mpidml COMMAND --help lists the options.", ""]
    )


def _parser(command: str, for_help: bool) -> argparse.ArgumentParser:
    """Make a flag of every field of Job; the plug-in folders are listed only where their names are shown."""
    parser = _Parser(
        prog=f"python -m mpidml {command}",
        description=COMMANDS[command],
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )
    if word := _word(command):
        parser.add_argument(word, nargs="?", metavar=word.upper(), help=_fields(command)[0].metadata["help"])
    else:
        parser.add_argument("--config", metavar="FILE", help="TOML file with any of these options (without the dashes); flags win over it")
    for f in _fields(command):
        if f.name == word:
            continue
        flag, default, text = _flag(f), f.default, f.metadata["help"].replace("%", "%%")
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=f"{text} (default: {'on' if default else 'off'})")
            continue
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        listed = plugins.names(f.metadata["plugins"]) if for_help and f.metadata["plugins"] else f.metadata["choices"]
        choices = f" [{'|'.join(listed)}]" if listed else ""
        choices += " (takes a list)" if command in ("compare", "simulate") and f.name in LISTED else ""
        parser.add_argument(flag, metavar=_metavar(default), help=f"{text}{choices}" + (f" (default: {shown})" if shown != "" else ""))
    return parser


def _fields(command: str) -> tuple[Field[Any], ...]:
    if command in OF_A_WORD:
        return fields(OF_A_WORD[command])
    more: dict[str, Any] = {"simulate": Simulation, "plan": PlanRequest, "scale": ScaleRequest}
    return (*(fields(more[command]) if command in more else ()), *fields(Job))


def _word(command: str) -> str:
    """Return the argument of a command that needs no dashes; "" where all have them."""
    return fields(OF_A_WORD[command])[0].name if command in OF_A_WORD else ""


def _flag(field: Field[Any]) -> str:
    return "--" + field.name.replace("_", "-")


def _metavar(default: Any) -> str:
    return {int: "N", float: "X", tuple: "N,N"}.get(type(default), "TEXT")


def _toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read as TOML ({error}); correct the file") from None
