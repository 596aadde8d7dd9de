"""Do harm to real jobs and see that each ends as promised: `python -m tests.campaign --seeds 200`. At the end a table of faults and strategies."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mpidml.core.errors import UserError
from tests.campaign.judge import Seen, judge
from tests.campaign.observe import observe
from tests.campaign.trials import FAULTS, STRATEGIES, Trial, draw
from tests.ranks import descendants


class Verdict(NamedTuple):
    """A trial, what was seen of it, and what is wrong with that."""

    trial: Trial
    seen: Seen
    wrong: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds that are asked for; exit code 0 where all of them ended as they should."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, metavar="N", help="how many trials (40)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them (0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many at a time (1)")
    parser.add_argument("--only", type=int, metavar="SEED", help="this one alone")
    parser.add_argument("-v", action="store_true", help="show what each job said")
    given = parser.parse_args(argv)
    seeds = range(given.first, given.first + given.seeds) if given.only is None else range(given.only, given.only + 1)
    found = []
    with ThreadPoolExecutor(given.jobs) as threads:
        trials = [threads.submit(tried, seed) for seed in seeds]
        try:
            for trial in trials:
                found.append(verdict := trial.result())
                print(line(verdict), flush=True)
                if given.v:
                    print(told(verdict.seen), flush=True)
        except KeyboardInterrupt:  # jobs have sessions of their own, which Ctrl-C does not reach
            threads.shutdown(wait=False, cancel_futures=True)
            for child in descendants(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
            return 130
    print(table(found), end="")
    for verdict in found:
        if verdict.wrong:
            print(f"\n{verdict.trial}\n    {'; '.join(verdict.wrong)}\n    python -m tests.campaign --only {verdict.trial.seed} -v")
    return int(any(verdict.wrong for verdict in found))


def tried(seed: int) -> Verdict:
    """Carry out the trial of a seed."""
    trial = draw(seed)
    with tempfile.TemporaryDirectory(prefix="mpidml-campaign-") as home:
        seen = observe(trial, Path(home))
        return Verdict(trial, seen, judge(trial, seen))


def line(verdict: Verdict) -> str:
    """Say in one line how a trial went."""
    seconds = "" if verdict.seen.seconds is None else f", {verdict.seen.seconds:.1f} s"
    return f"{verdict.trial}: {'; '.join(verdict.wrong) or 'ok'}{seconds}"


def told(seen: Seen) -> str:
    """Return all that a job said."""
    parts = (("stdout", seen.out), ("stderr", seen.err), ("stacks", seen.stacks))
    return "\n".join(f"---- {name}\n{text.rstrip()}" for name, text in parts if text.strip())


def table(verdicts: Sequence[Verdict]) -> str:
    """Return as Markdown how many of how many trials of each fault and strategy ended as they should, and the slowest end, in seconds after the harm."""
    lines = [["fault", *STRATEGIES, "all"]]
    for fault in (*FAULTS, "all"):
        cells = [fault]
        for strategy in (*STRATEGIES, "all"):
            own = [v for v in verdicts if fault in (v.trial.fault, "all") and strategy in (v.trial.strategy, "all")]
            slowest = max((v.seen.seconds for v in own if v.seen.seconds is not None), default=0.0)
            cells.append(f"{sum(not v.wrong for v in own)}/{len(own)} {slowest:.1f} s" if own else "-")
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(f"| {' | '.join(f'{cell:<{width}}' for cell, width in zip(cells, widths, strict=True))} |\n" for cells in lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"mpidml: {error}")
