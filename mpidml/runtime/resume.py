"""Save a run between two clocks and go on with it later, at any number of ranks: what a checkpoint holds, and where each part of it goes.

    weights                     elements lo to hi from each server's shard; `weights-1` ...: older versions that repeat mode still reads
    rows                        likewise, where rows are sparse: the first weight, apart from the others
    weights.optimizer.<state>   likewise, also of links that measure whole tensors or the gradient, where all ranks have the same
    worker.<w>.<state>          of optimizers that run on the workers; where the others have the same, it is all of theirs, and theirs the mean of it
    learnt.<name>               a number of each worker that was learnt of it, such as its speed; for as many workers as before
    facts                       the job, the position, the seconds, what rank 0's monitor knows, what each rank has measured

Everything else of a run is a function of these: order of samples and noise are drawn by (seed, purpose, index).
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.job import AUTO, OF_STRATEGIES, Job, members
from mpidml.core.patience import Patience
from mpidml.core.position import Position, saved_at
from mpidml.core.role import Array
from mpidml.ps.coordinator import Coordinator
from mpidml.ps.shard import Shard
from mpidml.runtime import data_print
from mpidml.runtime.checkpoint import Checkpoint, Piece, last
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.net import NET_FILE, net_text
from mpidml.runtime.outputs import RunFolder
from mpidml.runtime.progress import show
from mpidml.runtime.signals import Terminated, asked_to_end

LEARNT = "learnt."
OPTIMIZER = ".optimizer."
TELL_SECONDS = 2.5
"""Other ranks wait for rank 0's line, which ends them once it is told: so long only where rank 0 cannot."""


def resumed(folder: str | Path, changes: Mapping[str, Any]) -> Job:
    """Return the job of the run in `folder`, with `changes`, that goes on where its newest checkpoint is; UserError for what cannot change."""
    path = Path(folder)
    try:
        values = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--resume {folder}: holds no run (no config.toml); give the folder of a run, as runs/20260131-120000") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--resume {folder}: config.toml cannot be read ({error}); give the folder of a run") from None
    if (path / NET_FILE).exists():  # also where the folder has been moved
        values["model"] = str(path / NET_FILE)
    job = Job().with_values(values, f"{path}/config.toml")
    found = job.with_values({"out": str(path), **changes, "resume": str(path)}, "train")
    if found.strategy != job.strategy:  # what the other one alone knew of is not asked of this one
        given = {name.replace("-", "_") for name in changes}
        found = found.with_values({name: getattr(Job, name) for name in OF_STRATEGIES if name not in given}, "train")
    _fits(found, job, members("fixed"), "leave it out")
    if found.strategy != job.strategy and ("averaging" in (found.strategy, job.strategy) or job.compress):
        raise UserError(f"--strategy {found.strategy}: the run in {folder} has {job.strategy!r}, whose workers keep other state; leave it out, or start a new run")
    return found


def _fits(job: Job, had: Job, names: Sequence[str], remedy: str) -> None:
    """Refuse what does not fit what the run saved that `job` goes on with and that was `had`."""
    for name in names:
        if getattr(job, name) != (old := getattr(had, name)):
            old = ",".join(map(str, old)) if isinstance(old, tuple) else old
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}: the run in {job.resume} has {old!r}, and what it saved fits that alone; {remedy}, or start a new run")


def found(job: Job) -> Job:
    """Return the job of `--resume auto`, one line for each start: it goes on in --out where that has a checkpoint, else begins there. For one rank.

    UserError where what it asks for does not fit what is saved.
    """
    path = Path(job.out)
    if job.resume != AUTO:
        return job
    if last(path) is None:
        RunFolder(path).clear()
        return replace(job, resume="")
    values = {name: value for name, value in job.mapping().items() if name not in ("out", "resume")}
    if (path / NET_FILE).exists() and net_text(job) == (path / NET_FILE).read_text(encoding="utf-8"):
        values["model"] = str(path / NET_FILE)
    return resumed(path, values)


class Ended(UserError):
    """The run has come to its end."""


def ended(job: Job, comm: CountedComm, error: Ended, quiet: bool) -> dict[str, Any]:
    """Return the summary of a run that `--resume auto` finds at its end, where nothing is left to do; elsewhere raise `error` (Collective on comm)."""
    path = Path(job.out, "summary.json")
    text = comm.bcast(path.read_text() if job.resume == AUTO and comm.rank == 0 and path.exists() else "")
    if not text:
        raise error
    if comm.rank == 0 and not quiet:
        show(sys.stdout, f"nothing is left to do: {error}\n")
    return dict(json.loads(text))


@contextmanager
def asking(saves: bool, interrupted: Callable[[], None], goes_on: Callable[[], str] | None) -> Iterator[Callable[[], int]]:
    """Let signals ask where the run can be saved, end it as ever where it cannot; then `interrupted` is called, or while this rank is blocked `goes_on` said."""
    if not saves:
        yield lambda: 0
        return
    try:
        with asked_to_end(goes_on) as asked:
            yield asked
    except Terminated:
        interrupted()
        raise


def check(job: Job, strategy: Any, saved: Checkpoint) -> None:
    """Refuse to go on with a run that has come to its end, and say what would let it, `Ended` (Collective on comm).

    One that was saved at its end, and ended before it was written, is let come to its end again, where it stands.
    """
    stands, comm = saved_at(saved.facts, strategy.n_workers, job.assign), strategy.comm
    done = stands.batches if job.assign == "dynamic" else min(stands.turns)
    had = Job().with_values({name: saved.facts["job"][name] for name in members("fixed")}, f"{job.resume}/checkpoints")
    files = job.model.endswith(".toml") or had.model.endswith(".toml")  # the network's own file may have been moved since
    _fits(job, had, [name for name in members("fixed") if not (files and name == "model")], "give the same")
    if not (why := _end(job, strategy.n_clocks, done, saved.facts)):
        return
    mine = bool(job.checkpoint_every) and Path(job.out) == Path(job.resume)
    if comm.bcast(comm.rank > 0 or not mine or Path(job.out, "summary.json").exists()):
        raise Ended(f"--resume {job.resume}: {why} to go on")
    strategy.n_clocks = done


def _end(job: Job, n_clocks: int, done: int, known: Mapping[str, Any]) -> str:
    """Say by what a saved run has ended, and what would let it go on; "" where it has not."""
    if done >= n_clocks:
        return f"the run has done {done} of {n_clocks} clocks; give more --epochs or --steps"
    if job.target and job.target == known["job"]["target"] and known["monitor"]["reached"]:
        return f"the run has reached its target {job.target}; give another --target"
    had = known["seconds"] - known["monitor"]["evaluation_seconds"]
    ended_so = known["time_is_up"] and 0 < job.seconds <= known["job"]["seconds"]  # an evaluation told of later does not bring seconds back
    if job.seconds and (had >= job.seconds or ended_so):
        return f"the run has had its {job.seconds:g} s, which count from its first start; give more --seconds"
    if job.patience and "patience" in known:
        patience = Patience(job.patience)
        patience.restore(known["patience"])
        if patience.over:
            return f"its last {job.patience} looks brought nothing better; give a larger --patience"
    return ""


def position(strategy: Any) -> Position:
    """Return where a parameter server's run stands once its roles have stopped, and keep what they have learnt for those that go on (Collective on comm)."""
    roles, coordinator = strategy.driver.roles.values(), strategy.coordinator
    for role in roles:
        if isinstance(role, Shard):
            strategy.learnt |= role.clocks.learnt()
        elif isinstance(role, Coordinator) and role.gate is not None:
            strategy.learnt |= role.gate.learnt()
    clock = max((role.clocks.highest for role in roles if isinstance(role, Shard)), default=0)
    turns = {task.worker: strategy.workers[number].step for number, task in strategy.tasks.items()}
    everyone = strategy.comm.allgather((clock, turns, coordinator.turns_done() if coordinator is not None else ()))
    found: dict[int, int] = {}
    for _, own, _ in everyone:
        found |= own
    given = next((g for *_, g in everyone if g), tuple(found[w] for w in range(strategy.n_workers)))
    return Position(max(clock for clock, *_ in everyone), given)


def pieces(strategy: Any) -> list[Piece]:
    """Return what this rank has to save, once all roles have stopped."""
    found: list[Piece] = []
    size, back = strategy.net.n_params, (strategy.policy.bound or 0) if strategy.repeat else 0
    for number, store in mine(strategy):
        spec, (lo, hi, _) = strategy.shards[number]
        for name, array in store.state(back).items():  # all whose parts make up bands take part, also where a band is empty
            of_row = array.size // max(hi - lo, 1)  # values, or one count
            found += [Piece(f"{spec.name}{name}", lo * of_row, spec.n_rows * of_row, array)] if array.size else []
    for task in strategy.tasks.values():
        found += [Piece(f"worker.{task.worker}.{name}", 0, size, array) for name, array in task.kept().items()]
    if strategy.comm.rank == 0:  # with the coordinator and the first server, and all servers learn alike
        found += [Piece(f"{LEARNT}{name}", 0, len(of_each), np.array(of_each)) for name, of_each in strategy.learnt.items()]
    return found + [Piece(*kept) for kept in strategy.kept()]


def mine(strategy: Any) -> list[tuple[int, Any]]:
    """Return the stores that this rank saves; where every rank has the same, one does."""
    return [(number, store) for number, store in strategy.stores.items() if strategy.rank_of[number] == strategy.comm.rank]


def facts(
    strategy: Any, comm: CountedComm, position: Position, seconds: float, monitor: Any, data_sum: str, measured: dict[str, Any]
) -> dict[str, Any]:
    """Return on rank 0 what else is saved (Collective on comm); `data_sum` is the `data_print` of the data, `measured` what each rank has of `summary.of_rank`."""
    updates = comm.gather([(*strategy.extent(number), store.n_whole) for number, store in mine(strategy)])
    ranks = comm.gather(measured)
    if updates is None:
        return {}
    data = strategy.data
    return {
        "job": strategy.job.mapping(),
        "clock": position.clock,
        "turns": list(position.turns),
        "seconds": seconds,
        "n_keepers": strategy.n_keepers,
        "n_updates": sorted(of_shard for of in updates for of_shard in of),
        "rows": [*data.x.shape, len(data.test_x)],
        "data": data_sum,
        "roles": strategy.placement.names(),
        "ranks": ranks,
        "monitor": monitor.state(),
        "n_metrics": len(monitor.metrics),
    }


def restore(strategy: Any, saved: Checkpoint) -> Position:
    """Fill what `strategy.make` has allocated, and return where the run goes on; UserError where the data are others (Collective on comm)."""
    known, data = saved.facts, strategy.data
    if (rows := [*data.x.shape, len(data.test_x)]) != known["rows"]:
        of, now = (f"{n} training rows of {k} features and {t} test rows" for n, k, t in (known["rows"], rows))
        raise UserError(f"--resume {strategy.job.resume}: the run learnt from {of}, {strategy.job.data} has {now}; give the same data")
    if known["data"] != data_print.of(data):
        raise UserError(f"--resume {strategy.job.resume}: {strategy.job.data} is not what the run learnt from, it has changed since; restore it, or start a new run")
    position = saved_at(known, strategy.n_workers, strategy.job.assign)
    fill(strategy, saved, position)
    for task in strategy.tasks.values():
        task.scored_epoch = max(sum(position.turns) // strategy.n_workers - 1, 0) // strategy.sampler.clocks_per_epoch
    return position


def fill(strategy: Any, saved: Any, position: Position) -> None:
    """Fill parameters and optimizers with what is saved, a `Checkpoint` or the like, to go on from `position`."""
    known = saved.facts
    same = len(known["turns"]) == strategy.n_workers
    for name in [n for n in saved.arrays if n.startswith(LEARNT) and same]:
        saved.read(name, 0, of_each := np.empty(strategy.n_workers))
        strategy.learnt[name.removeprefix(LEARNT)] = of_each.tolist()
    for number, store in strategy.stores.items():
        (spec, (row, end_row, _)), (lo, hi) = strategy.shards[number], strategy.extent(number)
        whole = np.zeros(hi - lo, np.int64)
        for first, end, n in known["n_updates"]:
            whole[max(first - lo, 0) : max(end - lo, 0)] = n

        def read(name: str, out: Array, of: str = spec.name, row: int = row, n: int = end_row - row, lo: int = lo) -> bool:
            found = bool(saved.read(of + name, row * (out.size // max(n, 1)), out))
            return found or (name.startswith(OPTIMIZER) and mean(saved, name.removeprefix(OPTIMIZER), lo, out))

        store.restore(position.clock, read)
        store.count(whole[:: spec.width], read)
    for task in strategy.tasks.values():
        for name, array in (task.state or {}).items():
            own = same and saved.read(f"worker.{task.worker}.{name}", 0, array)
            if not own and not mean(saved, name, 0, array):
                saved.read(f"weights{OPTIMIZER}{name}", 0, array)
    strategy.restore(saved.read, known["n_keepers"])


def mean(saved: Any, name: str, lo: int, out: Array) -> bool:
    """Fill `out` with elements from `lo` on of the mean of what workers have had of a state; return false, and leave it, where they had none of their own."""
    n, other, total = len(saved.facts["turns"]), np.empty_like(out), np.zeros_like(out)
    for worker in range(n):
        if not saved.read(f"worker.{worker}.{name}", lo, other):
            return False
        total += other
    np.divide(total, n, out=out)
    return True


def measured(strategy: Any, saved: Checkpoint) -> dict[str, Any]:
    """Return what this rank has measured before: of another layout that nobody's, but for the staleness of all reads, which rank 0 is given."""
    rank, ranks = strategy.comm.rank, saved.facts["ranks"]
    if saved.facts["roles"] == strategy.placement.names():
        return dict(ranks[rank])
    histogram = Counter[str]()
    for each in ranks:
        histogram.update(each["histogram"])
    return {"histogram": histogram} if rank == 0 else {}


def metrics(folder: Path, n: int) -> list[dict[str, Any]]:
    """Return the first `n` rows of metrics.jsonl (null: NaN): those that its checkpoint knows of; the file comes with the first row, maybe after a checkpoint."""
    rows = []
    if (path := folder / "metrics.jsonl").exists():
        with path.open(encoding="utf-8") as file:
            rows = [{k: np.nan if v is None else v for k, v in json.loads(line).items()} for _, line in zip(range(n), file, strict=False)]
    if len(rows) < n:
        raise UserError(f"--resume {folder}: metrics.jsonl has {len(rows)} rows, the checkpoint knows of {n}; restore the file, or start the run anew")
    return rows

