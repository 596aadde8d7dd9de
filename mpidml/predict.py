"""Write what a saved run's model says of rows, in their order, at any number of ranks with the same bytes.

    chunk      | 0 | 1 | 2 | 3 | 4 | 5 |         each rank computes every size-th chunk, two ahead of what is written
    rank of 3  | 0 | 1 | 2 | 0 | 1 | 2 |   ->    rank 0 takes them in turn and writes one after the other: it never holds them all

A chunk is some blocks of `scoring`, which are computed alike whoever has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mpidml.core.evaluation import Prediction
from mpidml.core.role import Array
from mpidml.runtime import device as devices
from mpidml.runtime import prediction_files
from mpidml.runtime.agree import agree
from mpidml.runtime.arithmetic import compiled
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.ranks import given_or_all
from mpidml.runtime.saved import Saved, open_run
from mpidml.runtime.scoring import BLOCK
from mpidml.runtime.summary import say
from mpidml.runtime.threads import one_thread
from mpidml.runtime.watched import until

CHUNK = 16 * BLOCK
TAG = 11


def predict(
    run: Any, data: str = "", out: str = "", comm: CountedComm | None = None, quiet: bool = False, unseen: str = "", device: str = Prediction.device
) -> dict[str, Any]:
    """Write the predictions of the model in the folder `run` for the rows of `data` to `out`; return their number, and the classes' names (Collective).

    Options are the flags of their names. UserError for bad input, before any work; the file is whole or not there.
    """
    with given_or_all(comm) as ranks, one_thread():  # the same bits at any number of ranks
        given = {"run": str(run), "data": str(data), "out": str(out), "unseen": unseen, "device": device}
        asked = agree(ranks, lambda: Prediction().with_values(given, "predict"))
        return _predict(asked, ranks, quiet)


def _predict(asked: Prediction, comm: CountedComm, quiet: bool) -> dict[str, Any]:
    leads = comm.rank == 0
    agree(comm, lambda: prediction_files.check(asked.out) if leads else None)
    where = devices.choose(asked.device, comm)
    saved = open_run(asked.run, comm, lambda job: compiled(job, comm, quiet))
    rows = saved.rows(asked.data, "", asked.unseen, False, comm)
    saved = saved._replace(net=saved.net.on(where))
    n, chunks = len(rows.x), _chunks(saved, rows.x, comm)
    names = saved.known.classes
    if leads:
        told = _told(saved)
        prediction_files.write(asked.out, n, told, (_said(saved, outputs) for outputs in chunks))
        if not quiet:
            what = [(f"{of.head}: " if of.head else "") + (f"{len(of.classes)} classes" if of.classes else f"{len(of.targets)} target(s)") for of in told]
            say("".join(f"{line}\n" for line in devices.told(saved.net.device)) + f"{asked.run}: {n:,} rows of {asked.data}, {'; '.join(what)}\nwritten: {asked.out}")
    else:
        for _ in chunks:
            pass
    comm.Barrier()
    return {"run": str(asked.run), "data": rows.name, "rows": n, "classes": names, "out": asked.out}


def _chunks(saved: Saved, x: Any, comm: CountedComm) -> Iterator[Array]:
    """Compute this rank's chunks and send them; on rank 0 yield the outputs of all in the order of the rows, each to be used before the next."""
    starts = range(0, len(x), CHUNK)
    sent: list[tuple[Any, Array]] = []
    with np.errstate(all="ignore"):
        for number, lo in enumerate(starts):
            owner, rows = number % comm.size, x[lo : lo + CHUNK]
            if owner == comm.rank:
                outputs = saved.net.predict(saved.w, rows, BLOCK)
                if owner == 0:
                    yield outputs
                else:
                    sent.append((comm.Isend(outputs, 0, TAG), outputs))
                    if len(sent) > 2:
                        with comm.blocked("a chunk to rank 0"):
                            until(sent.pop(0)[0].Test)
            elif comm.rank == 0:
                outputs = np.empty((len(rows), saved.net.n_outputs), saved.net.dtype)
                with comm.blocked(f"a chunk from rank {owner}"):
                    until(comm.Irecv(outputs, owner, TAG).Test)
                yield outputs
    with comm.blocked("chunks to rank 0"):
        for request, _ in sent:
            until(request.Test)


def _told(saved: Saved) -> list[prediction_files.Told]:
    """Return what is written of each thing that was learnt."""
    known, found = saved.known, []
    things: Any = known.heads or (known,)
    for head, of in zip(saved.net.heads, things, strict=True):
        zeros = np.zeros((1, head.n_outputs), saved.net.dtype)
        has_probabilities = bool(of.classes) and head.loss.probabilities(zeros) is not None
        found.append(prediction_files.Told(of.classes, [] if of.classes else of.target_names, has_probabilities, saved.net.dtype, head.name))
    return found


def _said(saved: Saved, outputs: Array) -> list[prediction_files.Chunk]:
    """Return what is written of some rows: classes and their probabilities (or what the loss has in their place), or amounts in their own unit."""
    found = []
    for head, targets in zip(saved.net.heads, [of.targets for of in saved.known.heads] or [saved.targets], strict=True):
        own = head.cut(outputs)
        if targets is not None:
            found.append(prediction_files.Chunk(None, targets.unscaled(own)))
            continue
        probabilities = head.loss.probabilities(own)
        found.append(prediction_files.Chunk(head.loss.decide(own), (own if probabilities is None else probabilities).astype(saved.net.dtype)))
    return found
