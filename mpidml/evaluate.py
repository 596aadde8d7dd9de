"""Say how good a saved run's model is: on the rows that the run held out, or on others, at any number of ranks with the same bits.

    mpirun -n 4 python -m mpidml evaluate runs/20260131-120000 --plot

    each rank scores its blocks of rows  ->  outputs, in the order of the rows, on rank 0  ->  evaluation.json, evaluation.png, a report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mpidml.core.errors import UserError
from mpidml.core.evaluation import Evaluation
from mpidml.runtime import device, evaluation_plot, judging, scoring
from mpidml.runtime.agree import agree
from mpidml.runtime.arithmetic import compiled
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.evaluation_text import report
from mpidml.runtime.outputs import RunFolder
from mpidml.runtime.ranks import given_or_all
from mpidml.runtime.saved import open_run
from mpidml.runtime.summary import say


def evaluate(run: Any, comm: CountedComm | None = None, quiet: bool = False, write: bool = True, **options: Any) -> dict[str, Any]:
    """Evaluate the model in the folder `run` and return what evaluation.json holds, on every rank (Collective on comm; default: all ranks).

    `options`: data, labels, unseen, plot, out, device, as the flags of their names. UserError for bad input, before any work.
    """
    with given_or_all(comm) as ranks:
        asked = agree(ranks, lambda: Evaluation().with_values({"run": str(run), **options}, "evaluate"))
        return _evaluate(asked, ranks, quiet, write)


def _evaluate(asked: Evaluation, comm: CountedComm, quiet: bool, write: bool) -> dict[str, Any]:
    leads = comm.rank == 0
    folder = RunFolder(Path(asked.out or asked.run))
    agree(comm, lambda: _check_out(asked.out) if leads and write and asked.out else None)
    where = device.choose(asked.device, comm)
    saved = open_run(asked.run, comm, lambda job: compiled(job, comm, quiet))
    rows = saved.rows(asked.data, asked.labels, asked.unseen, True, comm) if asked.data else saved.own_rows(comm)
    saved = saved._replace(net=saved.net.on(where))
    n = len(rows.x)
    assert rows.y is not None
    lo, hi = scoring.share(n, comm.rank, comm.size)
    outputs = np.empty((hi - lo, saved.net.n_outputs), saved.net.dtype)
    with np.errstate(all="ignore"):
        scores = scoring.score(saved.net, saved.w, rows.x[lo:hi], rows.y[lo:hi], rows.targets, outputs, rows.heads)
    found = comm.gather((scores, outputs))
    result: dict[str, Any] | None = None
    if found is not None:
        whole = np.concatenate([part for _, part in found])
        loss, score, _ = scoring.total(of for of, _ in found)
        common = {"run": str(asked.run), "data": rows.name, "own_test_rows": not asked.data, "rows": n}
        each = judging.things(saved, rows.y, rows.targets, rows.heads, whole)
        told = [thing.judged(*of) for thing, of in zip(each, scoring.pairs(scoring.of_heads(of for of, _ in found)) or [(loss, score)], strict=True)]
        result = common | {"loss": loss / n}
        if rows.heads:
            weights = [{"weight": head.weight} for head in saved.net.heads]
            result |= {"task": "heads", "heads": {thing.name: weight | of for thing, weight, of in zip(each, weights, told, strict=True)}}
        else:
            result |= told[0]
        drawn = [f"evaluation{'.' * bool(thing.name)}{thing.name}.png" for thing in each] if asked.plot and write else []
        if write:
            folder.create()
            for thing, of, name in zip(each, told, drawn, strict=False):
                folder.write_bytes(name, evaluation_plot.draw(common | of, thing))
            folder.write_json("evaluation.json", result)
        if not quiet:
            say("\n".join([*device.told(saved.net.device), report(result)]) + (f"\nwritten: {folder.path}/ ({', '.join(['evaluation.json', *drawn])})" if write else ""))
    found_by_all: dict[str, Any] = comm.bcast(result)
    return found_by_all


def _check_out(out: str) -> None:
    """Refuse a folder that cannot be written."""
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if (path / "evaluation.json").exists():
        raise UserError(f"--out {out}: the folder holds another evaluation; choose another --out or remove it")
    if not path.exists():
        RunFolder.prepare(path)
