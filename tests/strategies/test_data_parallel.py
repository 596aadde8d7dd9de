"""Hold data-parallel training to one rank's: whatever sums the gradients, in whatever buckets, and wherever a run pauses."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mpidml.collectives.base import Collective
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.rounds import moved
from mpidml.core.shares import EVERY
from mpidml.core.trace import KINDS
from mpidml.ps.store import Store
from mpidml.runtime import stepping, training
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.resume import resumed
from mpidml.runtime.stepping import Stepper
from mpidml.runtime.training import Training
from mpidml.strategies.base import Run
from mpidml.strategies.data_parallel import DataParallel
from tests.changed import changed
from tests.strategies.test_identities import SMALL, serial, warmup_cosine
from tests.training import trained

SUMS = [name for name in plugins.names("mpidml.collectives") if plugins.load("mpidml.collectives", name).exact]
JOB = SMALL.with_values({"strategy": "data_parallel", "bucket": 512, "wait_limit": 20.0}, "test")


def run(comm, job=JOB, **changes):
    return trained(comm, job, **changes)


def alone(comm, **changes):
    """Return what rank 0 finds by itself."""
    part = comm.Split(comm.rank, 0)
    found = run(part, **changes)[1] if comm.rank == 0 else None
    part.Free()
    return comm.bcast(found)


@pytest.mark.mpi
@pytest.mark.openmpi
@pytest.mark.parametrize("per_host", [0, 2])
@pytest.mark.parametrize("name", SUMS)
def test_on_any_number_of_ranks_it_is_a_serial_loop(comm, name, per_host):
    if name == "shared" and per_host and comm.size > 2:
        with pytest.raises(UserError, match="hierarchical"):
            run(comm, ranks_per_host=per_host, collective=name)
        return
    summary, values = run(comm, ranks_per_host=per_host, collective=name, bucket=Job.bucket if name == "ordered" else 999)
    assert np.abs(values - serial()).max() < 1e-9
    assert summary["samples"] == 8 * 50 and summary["staleness_max"] == 0


WAYS = [
    {"optimizer": "adam", "lr": 0.01}, {"optimizer": "clip:0.1+momentum"}, {"optimizer": "lars:0.1"}, {"optimizer": "clip:1+lamb", "lr": 0.01},
    {"optimizer": "clamp:0.01+adagrad"}, {"accumulate": 3},
    {"dropout": 0.3}, {"batch": 63, "epochs": 1, "steps": 0}, {"bucket": 1}, {"bucket": 1 << 24}, {"class_weights": "balanced", "label_smoothing": 0.1},
]  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("name", ["shared", "ring"])
def test_every_way_to_train_gives_the_weights_of_one_rank(comm, name, way):
    np.testing.assert_allclose(run(comm, collective=name, **way)[1], alone(comm, collective=name, **way), rtol=1e-9, atol=1e-12)


@pytest.mark.mpi
def test_a_schedule_is_that_of_a_serial_loop(comm):
    job = SMALL.with_values({"steps": 8, "batch": 200}, "test")
    _, values = run(comm, lr_policy="warmup:3+cosine", batch=200)
    assert np.abs(values - serial(job, warmup_cosine)).max() < 1e-9


def prepared(comm, **changes):
    whole = Run(JOB.with_values(changes, "test"), comm, quiet=True, write=False, brief=True)
    return whole.strategy, whole


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["data_parallel", "averaging"])
def test_flags_that_decide_nothing_on_these_ranks_are_named_and_what_was_measured_is(comm, strategy, monkeypatch):
    def words(**changes):
        found, _ = prepared(counted := CountedComm(comm), strategy=strategy, **{"bucket": Job.bucket} | changes)
        said = found.words()
        found.free()
        counted.free()
        return said

    alone, of_sums = comm.size == 1, strategy == "data_parallel"
    assert ("; on one rank --collective ring changes nothing" in words(collective="ring")) == alone
    assert ("on one host nothing goes by tree" in words(collective="hierarchical:between=tree")) == (not alone)
    said = words(collective="auto:memory=false")
    assert "(chosen by measurement)" in said and "auto" not in said.partition("(chosen")[0], said
    if of_sums:
        assert ("--shares measured, --check-replicas 2 change nothing" in words(shares="measured", check_replicas=2, steps=9)) == alone
        assert ("; on one rank --bucket 99, --transport mpi change nothing" in words(bucket=99, transport="mpi")) == alone
        in_codes = words(bucket=99, transport="mpi", compress="bf16")
        assert "nothing" not in in_codes, "one rank, too, computes with what its codes say"
        as_without = "by messages with --transport mpi as without"
        assert (f"; blocks go {as_without}" in words(deterministic=True, transport="mpi")) == (not alone)
        for name in ("ring", "rabenseifner", "tree", "recursive_doubling", "mpi", "auto:memory=false"):
            assert (f"; what is summed goes {as_without}" in words(collective=name, transport="mpi")) == (not alone)
        for changes in ({}, {"collective": "ring"}, {"transport": "mpi"}, {"transport": "mpi", "compress": "bf16"}):
            assert as_without not in words(**changes), "there it does something, or was not given"
        assert "--collective" not in words(collective="ordered:32")
        monkeypatch.setattr(DataParallel, "asides", lambda self, *alone: "")
        assert "nothing" not in words(bucket=99, collective="ring"), "the heading says so by `asides` alone"
    else:
        assert ("the end alone, in 8 clocks" in words(average_every=9)) and "the end alone" not in words(average_every=8)


def tells_of_one_array(comm, per_host=0, **changes):
    """Tell whether the heading says that weights are one array exactly where all ranks see what one of them writes to its own."""
    found, _ = prepared(counted := CountedComm(comm, per_host), check_replicas=2, **{"bucket": Job.bucket} | changes)
    comm.Barrier()
    if comm.rank == 0:
        found.weights[0] = 7.25
    comm.Barrier()
    one = comm.size > 1 and comm.allreduce(int(found.weights[0] == 7.25)) == comm.size
    said = "; --check-replicas 2 finds no difference: the weights are one array, which all ranks read" in found.words()
    found.free()
    counted.free()
    return said == one


@pytest.mark.mpi
@pytest.mark.parametrize("per_host", [0, 2])
@pytest.mark.parametrize("name", SUMS)
def test_where_no_comparison_of_replicas_can_find_anything_it_is_said(comm, name, per_host):
    if name != "shared" or not per_host or comm.size <= per_host:
        assert tells_of_one_array(comm, per_host, collective=name)
    assert tells_of_one_array(comm, per_host, collective="hierarchical", optimizer="lars:0.1"), "each rank has all weights then"


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", ["shared", "hierarchical"])
def test_the_check_catches_a_heading_that_does_not_say_so(comm, name, monkeypatch):
    monkeypatch.setattr(plugins.load("mpidml.collectives", name), "in_memory", False)
    assert not tells_of_one_array(comm, collective=name)


def is_named(comm, out, strategy, name):
    """Tell whether summary and trace of a run name what summed, which is what the heading says; None on one rank."""
    counted = CountedComm(comm)
    job = JOB.with_values({"strategy": strategy, "bucket": Job.bucket, "collective": name, "trace": True, "out": str(out)}, "test")
    whole = Run(job, counted, quiet=True, write=True, brief=True)
    words = whole.strategy.words()
    whole.drive()
    found = [whole.end(None)["collective"]]
    counted.free()
    comm.Barrier()
    found += [json.loads((out / "summary.json").read_text())["collective"], json.loads((out / "trace.json").read_text())["otherData"]["collective"]]
    if comm.size == 1 or len(set(found)) > 1:
        return set(found) == {None}
    chosen = " (chosen by measurement)" if name.startswith("auto") else ""
    return (name == found[0] or bool(chosen)) and found[0] in SUMS and found[0] != "auto" and f"by {found[0]}{chosen}" in words


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["data_parallel", "averaging"])
@pytest.mark.parametrize("name", ["auto:memory=false", "ring", "auto"])
def test_summary_and_trace_name_what_summed_as_the_heading_does(comm, mpi_tmp_path, strategy, name, monkeypatch):
    assert is_named(comm, mpi_tmp_path / "run", strategy, name)
    told = plugins.load("mpidml.strategies", strategy).told
    monkeypatch.setattr(plugins.load("mpidml.strategies", strategy), "told", lambda self: told(self) | {"collective": "mpi" if self.picked != "mpi" else "tree"})
    assert not is_named(comm, mpi_tmp_path / "other", strategy, name)


BY_MESSAGES = pytest.mark.parametrize("name", ["ring", "rabenseifner", "recursive_doubling", "tree"])


def accumulated(comm, name, monkeypatch):
    """Train 4 clocks in three parts each; return which part each report is of and the bytes sent by then, what was sent in all, and the strategy's sums."""
    counted, seen = CountedComm(comm), []
    adding = Training._adding

    def watched(self, g, part, is_last, report):
        seen.append((part, counted.nbytes_sent))
        return adding(self, g, part, is_last, report)

    monkeypatch.setattr(Training, "_adding", watched)
    strategy, whole = prepared(counted, collective=name, accumulate=3, steps=4, target="", hold_out=0.0)
    strategy.settle = lambda: None  # what is sent too early is a wrong sum, which is not looked at here
    sent = counted.nbytes_sent
    whole.drive()
    sent = counted.nbytes_sent - sent
    parts = [strategy.collective.rounds(comm.rank, comm.size, bucket.hi - bucket.lo) for bucket in strategy.driver.buckets]
    whole.end(None)
    counted.free()
    return seen, sent, parts


def waits_for_the_last(comm, seen):
    """Tell whether no rank sends anything from the begin of a clock until its last part."""
    assert [part for part, _ in seen] == [0, 1, 2] * 4
    return all(comm.allgather(all(len({nbytes for _, nbytes in seen[at : at + 3]}) == 1 for at in range(0, 12, 3))))


@pytest.mark.mpi
@pytest.mark.shows_from(3)
@BY_MESSAGES
def test_bytes_are_the_formula_and_accumulation_sends_none_before_its_last_part(comm, name, monkeypatch):
    seen, sent, parts = accumulated(comm, name, monkeypatch)
    reduce, gather = sum(moved(part.reduce) for part in parts), sum(moved(part.gather) for part in parts)
    rest = sent - 8 * (4 * (reduce + gather) + gather)  # before the first step the first weights are brought together
    assert 0 <= rest < 10_000  # what is reported to rank 0
    assert comm.size == 1 or waits_for_the_last(comm, seen)


@pytest.mark.mpi(min_size=2)
@BY_MESSAGES
def test_the_check_catches_parts_that_start_sums_before_the_last(comm, name, monkeypatch):
    adding = Training._adding
    monkeypatch.setattr(Training, "_adding", lambda self, g, part, is_last, report: adding(self, g, part, True, report))
    assert not waits_for_the_last(comm, accumulated(comm, name, monkeypatch)[0])


def overlaps(comm, early=True):
    """Tell whether the first sum of a step begins before the last gradient is there."""
    counted = CountedComm(comm)
    _, whole = prepared(counted, collective="ring", trace=True, steps=3, hold_out=0.0)
    whole.drive()
    events = whole.trace.columns()
    whole.end(None)
    counted.free()
    of = {kind: events["kind"] == KINDS.index(kind) for kind in ("compute", "sum")}
    for clock in range(3):
        at = events["clock"] == clock
        end = (events["start"] + events["seconds"])[of["compute"] & at].max()
        if not events["start"][of["sum"] & at].min() < end:
            return False
        assert len(events["nbytes"][of["sum"] & at]) > 2
    return True


@pytest.mark.mpi(min_size=2)
def test_sums_begin_while_backward_still_runs(comm):
    assert overlaps(comm)


@pytest.mark.mpi(min_size=2)
def test_the_check_of_the_overlap_catches_a_step_that_sums_at_its_end(comm, monkeypatch):
    monkeypatch.setattr(Stepper, "_report", lambda self, lo, hi: None)
    assert not overlaps(comm)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("name", ["mpi", "ring"])
def test_ranks_that_come_apart_are_found_at_the_end_and_on_demand(comm, name, monkeypatch):
    step = Store.step

    def forgets(self, total, *tuning):
        if comm.rank == 1 and self.n_whole == 2:
            total = total * 0
        step(self, total, *tuning)

    monkeypatch.setattr(Store, "step", forgets)
    if name == "ring":  # weights that do not reach one rank
        monkeypatch.setattr(Store, "step", step)
        halves = Collective.halves
        lost = lambda self, g, w: halves(self, g, w.copy() if comm.rank == 1 else w)
        monkeypatch.setattr(Collective, "halves", lost)
    for changes, clock in (({}, 8), ({"check_replicas": 4}, 4)):
        with pytest.raises(RuntimeError, match=f"replicas differ: after clock {clock} rank 1 has"):
            run(comm, collective=name, **changes)


@pytest.mark.mpi
def test_two_runs_have_the_same_bits_and_deterministic_says_so(comm):
    first, second = (run(comm, deterministic=True, collective="shared")[0] for _ in range(2))
    assert first["model_sha256"] == second["model_sha256"]
    with pytest.raises(UserError, match="--target cannot repeat"):
        run(comm, deterministic=True, target="0.9")


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["adam", "clip:0.5+momentum", "lamb"])
@pytest.mark.parametrize("name", ["shared", "ring", "mpi", "hierarchical"])
def test_a_saved_run_goes_on_to_the_bits_of_one_that_was_not_and_within_rounding_on_fewer_ranks(comm, mpi_tmp_path, name, optimizer):
    options = {"collective": name, "optimizer": optimizer, "lr": 0.01, "steps": 20, "out": str(mpi_tmp_path / "whole")}
    whole, values = run(comm, write=True, **options)
    run(comm, write=True, **options | {"steps": 14, "checkpoint_every": 7, "out": str(mpi_tmp_path / "cut")})
    comm.Barrier()
    job = resumed(mpi_tmp_path / "cut", {"steps": 20, "out": str(mpi_tmp_path / "same")})
    same, _ = run(comm, job, write=True)
    assert same["model_sha256"] == whole["model_sha256"]
    part = comm.Split(comm.rank > 0, comm.rank)
    if comm.rank == 0:
        job = resumed(mpi_tmp_path / "cut", {"steps": 20, "out": str(mpi_tmp_path / "alone")})
        np.testing.assert_allclose(run(part, job, write=True)[1], values, rtol=1e-9, atol=1e-12)
        rows = [json.loads(line)["clock"] for line in (mpi_tmp_path / "same" / "metrics.jsonl").read_text().splitlines()]
        assert rows == list(range(20))
    part.Free()


@pytest.mark.mpi
def test_it_ends_at_a_target_at_a_time_and_when_nothing_gets_better(comm):
    summary, _ = run(comm, target="0.5", steps=0, epochs=60, collective="ring")
    assert summary["test_accuracy"] > 0.4 and summary["clocks"] < 60 * 32
    summary, _ = run(comm, seconds=0.3, steps=0)
    assert summary["clocks"] > 1 and summary["seconds"] < 5
    best = {"validate": 0.1, "patience": 1, "steps": 0, "epochs": 40, "lr": 0.3, "batch": 400}
    summary, values = run(comm, collective="ring", **best)
    assert summary["epochs"] < 40 and summary["best_epoch"] < summary["epochs"]
    np.testing.assert_allclose(values, alone(comm, **best), rtol=1e-6, atol=1e-9)  # many clocks at a high rate


@pytest.mark.mpi
@pytest.mark.parametrize("optimizer", ["lars:0.1", "lamb"])
def test_what_measures_tensors_is_the_same_under_every_strategy_and_refused_where_servers_have_parts_of_a_sum(comm, optimizer):
    ways = [{}, *({"strategy": "parameter_server", "bucket": 1 << 20, "optimize": of} for of in ("servers", "workers"))]
    first, *others = (alone(comm, optimizer=optimizer, **way) for way in ways)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-9, atol=1e-12)
    run(comm, SMALL, optimizer=optimizer, optimize="workers")
    if comm.size > 1:
        with pytest.raises(UserError, match="of which a server has a part; use --strategy data_parallel"):
            run(comm, SMALL, optimizer=optimizer)


@pytest.mark.mpi
def test_flags_of_servers_are_refused_here_and_those_of_sums_there(comm):
    for changes, what in (({"sync": "ssp:3"}, "--sync ssp:3"), ({"servers": "1"}, "--servers 1"), ({"reads": "eager"}, "--reads eager")):
        with pytest.raises(UserError, match=f"{what}: does nothing under --strategy data_parallel"):
            run(comm, **changes)
    for changes, what in (({"collective": "ring"}, "--collective ring"), ({"bucket": 1000}, "--bucket 1000")):
        with pytest.raises(UserError, match=f"{what}: does nothing under --strategy parameter_server"):
            run(comm, SMALL, **changes)
    with pytest.raises(UserError, match="--no-tune: does nothing under --strategy data_parallel"):
        run(comm, tune=False)
    with pytest.raises(UserError, match=r"--check-replicas 9: does nothing in a run of 8 clocks, .*; give at most 8"):
        run(comm, check_replicas=9)
    with pytest.raises(UserError, match=r"--shares measured: does nothing in a run of 8 clocks, which are learnt after 8; give at least 9, or leave it out"):
        run(comm, shares="measured")
    for collective, what in (("auto:memory=nope", "memory = nope is neither true nor false"), ("auto:5", "memory = 5 is"), ("ordered:true", "no power of two")):
        with pytest.raises(UserError, match=what):
            run(comm, collective=collective)
    with pytest.raises(UserError, match="did you mean 'ring'"):
        run(comm, collective="rong")
    with pytest.raises(UserError, match="does not sum over all ranks"):
        run(comm, collective="gossip")
    for collective in ("ring", "hierarchical:tree", "auto:memory=false"):  # codes go to owners and back, whatever is named
        with pytest.raises(UserError, match=f"{collective}: sums values, --compress two_bit sends codes"):
            run(comm, collective=collective, compress="two_bit")


@pytest.mark.mpi
def test_measured_shares_follow_speeds_and_change_no_result(comm, monkeypatch):
    share = Stepper._share
    speeds = [3.0] + [1.0] * (comm.size - 1)
    monkeypatch.setattr(Stepper, "_share", lambda self, n, seconds: share(self, n, n / speeds[comm.rank]))
    counted = CountedComm(comm)
    strategy, whole = prepared(counted, shares="measured", steps=30, batch=60, collective="ring")
    whole.drive()
    done = [strategy.sampler.indices(29, rank).size for rank in range(comm.size)]
    kept = {}
    whole.end(kept)
    counted.free()
    assert done[0] == pytest.approx(60 * 3 / (2 + comm.size), rel=0.1)
    np.testing.assert_allclose(kept["values"], alone(comm, steps=30, batch=60), rtol=1e-8, atol=1e-11)
    with pytest.raises(UserError, match="--shares measured cannot repeat"):
        run(comm, deterministic=True, shares="measured")
    with pytest.raises(UserError, match=r"^--memory 1G: counts equal shares of a batch, and --shares measured gives a fast rank more; leave one of them out"):
        run(comm, shares="measured", memory="1G", steps=30)


@pytest.mark.mpi
def test_shares_are_those_of_steps_where_looks_take_as_long(comm, monkeypatch):
    """Let rank 0 compute 3 times as fast, at looks as well, by a clock that only computing moves on: shares are 3 to 1 all the same."""

    def ratio(step):
        """Return how many times as many samples rank 0 has at the end as the last rank, with looks counted as `step` does."""
        passed, computing, scoring = [1.0], Training._sum_up, Training.score

        def sum_up(self, rows, *rest):
            passed[0] += rows.size / speed
            return computing(self, rows, *rest)

        def score(self, w, of):
            passed[0] += 100 / speed  # looks are cut equally
            return scoring(self, w, of)

        with monkeypatch.context() as patch:
            for of, name, value in ((Training, "_sum_up", sum_up), (Training, "score", score), (Stepper, "_step", step)):
                patch.setattr(of, name, value)
            for module in (stepping, without):
                patch.setattr(module, "clock_now", lambda: passed[0])
            patch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: passed[0], sleep=time.sleep))
            counted = CountedComm(comm)
            strategy, whole = prepared(counted, shares="measured", steps=24, batch=200, validate=0.1, collective="ring")
            assert strategy.sampler.clocks_per_epoch <= EVERY, "each window has a look"
            whole.drive()
            first, *_, last = (strategy.sampler.indices(23, rank).size for rank in range(comm.size))
            whole.end({})
            counted.free()
        return first / last

    speed = 1.0 if comm.rank else 3.0
    without = changed(stepping, [(" - measured[5]", "")])
    if comm.size > 1:
        assert ratio(Stepper._step) == pytest.approx(3, rel=0.1)
        assert ratio(without.Stepper._step) != pytest.approx(3, rel=0.1)


@pytest.mark.mpi
def test_no_repeat_is_promised_where_timing_chooses(comm):
    with pytest.raises(UserError, match="chooses by timing"):
        run(comm, deterministic=True, collective="auto:memory=false", bucket=Job.bucket)
    off, _ = run(comm, deterministic=True, compress="two_bit")  # off inside a host, and summed in one way
    assert off["model_sha256"] == run(comm, deterministic=True, compress="two_bit")[0]["model_sha256"]
