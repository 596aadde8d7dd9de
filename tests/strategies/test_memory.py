"""A run whose rows stay on the disk ends in the bits of one that has them in memory, whatever the format and at any number of ranks."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.evaluate import evaluate
from mpidml.predict import predict
from mpidml.runtime import out_of_core
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.resume import resumed
from mpidml.runtime.training import Training
from mpidml.strategies.base import Run, train
from tests.data.written import NAMES, WRITERS, text

N, WIDTH, LIMIT = 20_000, 6, "900K"
SMALL = Job(hidden=(5,), steps=60, batch=32, dtype="float64", backend="numpy", deterministic=True, wait_limit=20.0, servers="colocated")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Let a small table be too large."""
    monkeypatch.setattr(out_of_core, "BLOCK_NBYTES", 1 << 11)


def table():
    x = np.arange(N * WIDTH).reshape(N, WIDTH) * 37 % 251
    return x, (x[:, 0] + x[:, 1] > 250) * 1 + (x[:, 2] > 200)


def run(comm, ranks_per_host=0, **changes):
    counted = CountedComm(comm, ranks_per_host)
    found = train(SMALL.with_values(changes, "test"), counted, quiet=True, write=bool(changes.get("out")))
    counted.free()
    return found


def written(comm, path, form, name, x, y):
    if comm.rank == 0:
        WRITERS[form][0](path / name.format(""), x, y)
    comm.Barrier()
    return str(path / name.format(""))


def limit_of(comm):
    """Return a limit that the rows are above; each rank's buffers must fit."""
    return LIMIT if comm.size <= 3 else "1100K"


def alike(comm, path, ranks_per_host=0, limit="", **changes):
    """Train in memory and on the disk; hold one to the other, and return the summary of the second."""
    limit = limit or limit_of(comm)
    whole = run(comm, **changes)
    (path / "scratch").mkdir(exist_ok=True)
    disk = run(comm, ranks_per_host, memory=limit, scratch=str(path / "scratch"), **changes)
    assert disk["model_sha256"] == whole["model_sha256"]
    assert disk["disk_nbytes"] and not whole["disk_nbytes"], "the rows were in memory"
    assert [disk[k] for k in disk if k.startswith(("test_", "val_"))] == [whole[k] for k in whole if k.startswith(("test_", "val_"))]
    assert not list((path / "scratch").iterdir()) and not [t for t in threading.enumerate() if "reads" in t.name]
    assert sum(disk["read_seconds"]) > 0 and sum(disk["read_wait_seconds"]) > 0, "the first rows at least are waited for"
    return disk


@pytest.mark.mpi
@pytest.mark.parametrize(("form", "name"), NAMES)
def test_the_model_has_the_same_bits_in_every_format(comm, mpi_tmp_path, form, name):
    source = written(comm, mpi_tmp_path, form, name, *table())
    first = alike(comm, mpi_tmp_path, data=source)
    assert run(comm, data=source, memory="1G")["model_sha256"] == first["model_sha256"]
    assert run(comm, data=source, seed=1)["model_sha256"] != first["model_sha256"]


@pytest.mark.mpi
@pytest.mark.parametrize(
    "changes",
    [
        {"validate": 0.2, "epochs": 1, "steps": 0, "batch": 500, "patience": 2},
        {"hold_out": 0.0, "accumulate": 3, "sync": "ssp:2"},
        {"scale": "maxabs"},
        {"scale": "minmax", "dropout": 0.2, "servers": "1", "sync": "warmup:5:2"},
        {"model": "softmax", "hidden": Job.hidden, "optimizer": "adam", "scale": "none", "transport": "mpi"},
    ],
)
def test_so_it_has_under_other_flags(comm, mpi_tmp_path, changes):
    if comm.size == 1:
        changes = {k: v for k, v in changes.items() if k != "servers"}
    alike(comm, mpi_tmp_path, data=written(comm, mpi_tmp_path, "npz", "t.npz", *table()), **changes)


@pytest.mark.mpi
def test_so_it_has_with_test_data_of_another_format_and_hosts_with_a_rank_each(comm, mpi_tmp_path):
    x, y = table()
    source = written(comm, mpi_tmp_path, "parquet", "t.parquet", x, y)
    other = written(comm, mpi_tmp_path, "csv", "u.csv", x[::-7], y[::-7])
    alike(comm, mpi_tmp_path, ranks_per_host=1, data=source, test_data=other, hold_out=Job.hold_out)


@pytest.mark.mpi
def test_so_it_has_on_words_missing_cells_and_targets(comm, mpi_tmp_path):
    if comm.rank == 0:
        lines = [f"{i * 0.7 % 11 if i % 9 else ''},{('red', 'blue', '', 'green')[i * i % 4]},{i % 13},{i % 5 - 0.25}" for i in range(N)]
        text(mpi_tmp_path / "t.csv", "\n".join(["a,colour,b,amount", *lines]) + "\n")
    comm.Barrier()
    alike(comm, mpi_tmp_path, data=str(mpi_tmp_path / "t.csv"), missing="impute", validate=0.1, model="mlp")


NET = """
[[layer]]
type = "dense"
units = 5
activation = "tanh"

[[head]]
name = "kind"
label = "kind"
class_weights = "balanced"

[[head]]
name = "amounts"
label = ["price", "size"]
weight = 0.3
"""


def several_labels(comm, folder, form):
    """Write a table of a word, a class that is one, and two amounts; and a net file with a head for each kind."""
    source = folder / f"t.{form}"
    if comm.rank == 0:
        (folder / "net.toml").write_text(NET)
        i = np.arange(N)
        a, b = i * 37 % 251 / 7, i * 53 % 101 - 50.0
        kind, town = np.array(["low", "mid", "high"])[(a > 12).astype(int) + (b > 20)], np.array(["Ulm", "Bonn"])[i % 3 // 2]
        columns = {"price": a - b + (i % 3 == 2), "a": a, "town": town, "kind": kind, "b": b, "size": 100 * (a + b), "c": i % 17, "d": i % 29, "e": i % 31}
        if form == "parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.table(columns), source, row_group_size=N // 5)
        else:
            rows = zip(*(of.tolist() for of in columns.values()), strict=True)
            text(source, "\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    comm.Barrier()
    return str(source)


@pytest.mark.mpi
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_so_it_has_on_several_targets_and_under_a_net_of_several_heads(comm, mpi_tmp_path, form):
    source = several_labels(comm, mpi_tmp_path, form)
    limit = "1.5M"
    amounts = alike(comm, mpi_tmp_path, limit=limit, data=source, label="size,price", categories="codes", validate=0.1)
    assert amounts["task"] == "regress" and amounts["test_rmse"] is not None
    other = run(comm, data=source, label="price,size", categories="codes", validate=0.1, memory=limit)
    assert other["model_sha256"] != amounts["model_sha256"], "the order of the columns shows"
    heads = alike(comm, mpi_tmp_path, limit=limit, data=source, model=str(mpi_tmp_path / "net.toml"), hidden=Job.hidden)
    assert heads["task"] == "heads" and set(heads["heads"]) == {"kind", "amounts"}


PARALLEL = {"strategy": "data_parallel", "servers": Job.servers}


@pytest.mark.mpi
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"collective": "ordered:8", "validate": 0.2, "dropout": 0.2},
        {"deterministic": False, "collective": "ring", "accumulate": 3, "bucket": 200},
        {"deterministic": False, "collective": "tree", "epochs": 1, "steps": 0, "batch": 500, "validate": 0.2, "patience": 2},
    ],
    ids=str,
)
def test_so_it_has_in_data_parallel_training(comm, mpi_tmp_path, changes):
    alike(comm, mpi_tmp_path, data=written(comm, mpi_tmp_path, "npz", "t.npz", *table()), **PARALLEL, **changes)


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", [{}, PARALLEL, PARALLEL | {"deterministic": False, "collective": "ring"}], ids=str)
@pytest.mark.parametrize("untold", [False, True])
def test_a_worker_is_given_rows_that_were_read_ahead(comm, mpi_tmp_path, monkeypatch, strategy, untold):
    """Only the first rows are read while the worker waits, unless nobody says which are next."""
    if untold:
        monkeypatch.setattr(Training, "_feed", lambda self: None)
    counted, source = CountedComm(comm), written(comm, mpi_tmp_path, "npy", "x.npy", *table())
    job = SMALL.with_values({"data": source, "memory": limit_of(comm), "hold_out": 0.0, "batch": 1000, **strategy}, "test")
    going = Run(job, counted, quiet=True, write=False, brief=True)
    reads, threads = going.data.reads, lambda: [t for t in threading.enumerate() if "reads" in t.name]
    try:
        going.drive()
        assert (reads.n_late >= 60 and not reads.n_early) if untold else (reads.n_late == 1 and reads.n_early)
        assert bool(threads()) != untold
        going.end(None)
    finally:
        going.data.close()
        counted.free()
    assert not threads()


@pytest.mark.mpi
@pytest.mark.parametrize("scale", ["maxabs", "none"])
def test_sparse_rows_that_stay_so_are_not_put_on_the_disk(comm, mpi_tmp_path, scale):
    source = written(comm, mpi_tmp_path, "svmlight", "t.svm", *(of[:50] for of in table()))
    with pytest.raises(UserError, match=f"^--memory 900K: the rows of {source} are sparse and stay so under --scale {scale}, .* --scale standard$"):
        run(comm, data=source, scale=scale, memory=LIMIT)
    assert run(comm, data=source, scale="minmax", memory=LIMIT)["model_sha256"] == run(comm, data=source, scale="minmax")["model_sha256"]


@pytest.mark.mpi
@pytest.mark.parametrize("assign", ["static", "dynamic"])
def test_a_free_worker_is_given_its_rows_though_they_were_not_foreseen(comm, mpi_tmp_path, assign):
    x, y = table()
    source = written(comm, mpi_tmp_path, "npy", "x.npy", x, y)
    found = run(comm, data=source, memory=LIMIT, assign=assign, deterministic=False, steps=0, epochs=1, sync="asp", lr=0.01)
    assert found["samples"] == N * 4 // 5 and found["disk_nbytes"] == N * WIDTH * 8


@pytest.mark.mpi
def test_a_run_goes_on_and_is_evaluated_with_its_rows_on_the_disk_or_in_memory(comm, mpi_tmp_path):
    source = written(comm, mpi_tmp_path, "npy", "x.npy", *table())
    options = {"data": source, "checkpoint_every": 20}
    found = {}
    for name, limits in (("memory", (LIMIT, "")), ("disk", ("", LIMIT))):
        out = mpi_tmp_path / name
        run(comm, **options, memory=limits[0], steps=40, out=str(out))
        counted = CountedComm(comm)
        job = resumed(out, {"steps": 60, "memory": limits[1]})
        comm.Barrier()
        found[name] = train(job, counted, quiet=True)
        judged = evaluate(out, counted, quiet=True)
        predict(out, source, str(mpi_tmp_path / f"{name}.csv"), counted, quiet=True)
        assert judged["accuracy"] == found[name]["test_accuracy"]
        counted.free()
        comm.Barrier()
    assert len({f["model_sha256"] for f in found.values()}) == 1 and [bool(f["disk_nbytes"]) for f in found.values()] == [False, True]
    if comm.rank == 0:
        assert len({(mpi_tmp_path / f"{name}.csv").read_bytes() for name in found}) == 1
        assert json.loads((mpi_tmp_path / "disk" / "summary.json").read_text())["disk_nbytes"] == N * WIDTH * 8
