"""Start: `mpirun -n N python -m mpidml ...`, or `python -m mpidml -n N ...` which starts mpirun itself, or one process without either."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

from mpidml.runtime import launch
from mpidml.runtime.threads import budget_threads, misread


def main() -> None:
    """Run the command line of this process; exit code 0, 1 (failed) or 2 (bad input)."""
    budget_threads(os.environ)  # before NumPy is imported
    world = launch.world_from_environment(os.environ)
    from mpidml.cli import parse
    from mpidml.core.errors import UserError

    stdout = sys.stdout
    if world.rank != 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until it is known that this is no --help, which one rank shows
    try:
        if problem := misread(os.environ):
            raise UserError(problem)
        argv = _launched(sys.argv[1:], world.launcher is not None)
        command, given = parse(argv)
        if command == "schedule":  # nothing is sent: one process does it, without MPI
            if world.rank == 0:
                from mpidml.schedule import schedule

                schedule(**given)
            return
        if command == "scale" and _starts_ranks(given, world.launcher):
            from mpidml.scale import scale

            scale(given)
            return
        if command == "warm":  # one process of each host
            if world.local_rank == 0:
                from mpidml_kernels import warm

                from mpidml.runtime import device

                tell = partial(print, file=stdout, flush=True)
                warm(tell)
                device.warm(tell)
            return
    except UserError as error:
        launch.refuse(world, str(error))  # every rank reads the same words, so every rank finds the same fault
    sys.stdout = stdout
    from mpidml.runtime import abort
    from mpidml.runtime.comm import world as start_mpi

    comm = start_mpi(checked=command != "info")  # `info` reports what does not fit
    abort.install(comm, keeps_limits=True)
    if command == "info":
        from mpidml.core import plugins
        from mpidml.runtime.info import info

        text = info(comm, given, given and plugins.load("mpidml.strategies", given.strategy))
        if world.rank == 0:
            sys.stdout.write(text + "\n")
    elif command == "export":
        from mpidml.interop.onnx_file import to_onnx
        from mpidml.runtime.agree import agree
        from mpidml.runtime.comm import CountedComm

        agree(CountedComm(comm), lambda: to_onnx(*given) if world.rank == 0 else None)
        if world.rank == 0:
            sys.stdout.write(f"written: {given[1]}\n")
    elif command == "train":
        from mpidml.strategies.base import train

        train(given)
    elif command == "compare":
        from mpidml.compare import compare

        compare(given)
    elif command == "simulate":
        from mpidml.simulate import simulate

        simulate(given)
    elif command == "plan":
        from mpidml.plan import plan

        plan(given)
    elif command == "scale":
        from mpidml.scale import point

        point(given)
    elif command == "evaluate":
        from mpidml.evaluate import evaluate

        evaluate(**given)
    elif command == "predict":
        from mpidml.predict import predict

        predict(**given)


def _starts_ranks(given: dict[str, Any], launcher: str | None) -> bool:
    """Tell whether a study starts ranks, or this process is one of a point's."""
    from mpidml.core.errors import UserError
    from mpidml.core.scale_request import asked

    only = asked(given)[0].only
    if launcher is not None and not only:
        raise UserError(f"scale: starts the ranks of each point itself, and {launcher} has started these; leave it out, or give --only")
    return launcher is None and only != 1


def _launched(argv: list[str], has_launcher: bool) -> list[str]:
    """Take `-n N` off the arguments and start N ranks with the rest, or return the rest to run here."""
    from mpidml.core.errors import UserError

    if not argv or argv[0] not in ("-n", "--n-ranks"):
        return argv
    if len(argv) < 2 or not argv[1].isdecimal() or int(argv[1]) < 1:
        raise UserError(f"-n {argv[1] if len(argv) > 1 else ''}: is not a number of ranks; give a whole number from 1 up")
    if has_launcher:
        raise UserError(f"-n {argv[1]}: this process was started by a launcher already; give the number of ranks to one of them")
    if argv[1] != "1":
        launch.relaunch(int(argv[1]), argv[2:], os.environ)
    return argv[2:]


if __name__ == "__main__":
    main()
