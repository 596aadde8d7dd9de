"""Lists mean every combination, in their order; what takes no list says so."""

from __future__ import annotations

import pytest

from mpidml.core import plugins
from mpidml.core import variants as variants_module
from mpidml.core.errors import UserError
from mpidml.core.idle import BESIDES, idle
from mpidml.core.job import Job
from mpidml.core.variants import MOST_VARIANTS, alone, expand
from tests.changed import changed


def test_a_list_makes_a_variant_of_each_value_and_leaves_the_rest_alone():
    variants = expand({"sync": "bsp, ssp:3,asp", "epochs": "5", "hidden": "32,16"}, "compare")
    assert [v.name for v in variants] == ["bsp", "ssp:3", "asp"]
    assert [v.job for v in variants] == [Job(sync=s, epochs=5, hidden=(32, 16)) for s in ("bsp", "ssp:3", "asp")]
    assert variants == expand({"sync": ["bsp", "ssp:3", "asp"], "epochs": 5, "hidden": [32, 16]}, "job.toml")


def test_two_lists_make_all_pairs():
    variants = expand({"sync": "bsp,asp", "lr": "0.1,0.2", "early-push": "off"}, "compare")
    assert [v.name for v in variants] == ["bsp, lr 0.1", "bsp, lr 0.2", "asp, lr 0.1", "asp, lr 0.2"]
    assert [(v.job.sync, v.job.lr, v.job.early_push) for v in variants][2] == ("asp", 0.1, "off")


def test_values_that_hold_commas_are_listed_with_semicolons():
    values = {"strategy": "hybrid", "grid": "data=2,pipe=2; tensor=4", "schedule": "gpipe,naive"}
    variants = expand(values, "compare")
    assert [v.name for v in variants] == [f"grid {grid}, schedule {name}" for grid in ("data=2,pipe=2", "tensor=4") for name in ("gpipe", "naive")]
    assert [v.job.grid for v in variants] == ["data=2,pipe=2"] * 2 + ["tensor=4"] * 2
    assert variants == expand(values | {"grid": ["data=2,pipe=2", "tensor=4"]}, "job.toml")
    assert [v.job.partition for v in expand({"strategy": "pipeline", "partition": "2,1;auto"}, "compare")] == ["2,1", "auto"]


def test_no_list_is_one_variant_named_by_its_policy():
    assert [v.name for v in expand({"sync": "ssp", "staleness": "2"}, "compare")] == ["ssp:2"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"epochs": "1,2"}, "compare: epochs: is the same for all that are compared, '1,2' is a list"),
        ({"data": "a.npz,b.npz"}, "compare: data: is the same for all"),
        ({"sync": "bsp,"}, "compare: sync: 'bsp,' has an empty value"),
        ({"strategy": "hybrid", "grid": "data=4;"}, "compare: grid: 'data=4;' has an empty value; give values joined by semicolons, as a;b"),
        ({"sync": "bsp,asp,bsp"}, "compare: sync: 'bsp,asp,bsp' names a value twice"),
        ({"sync": "bsp,asp", "lr": ",".join(str(1 + i) for i in range(40))}, "compare: the lists make 80 variants, more than 64"),
        ({"lr": "0.1,0.10"}, "compare: 'lr 0.1' and 'lr 0.10' are the same job; name each once"),
        ({"sync": "bsp,ssp,ssp:1"}, "compare: 'ssp' and 'ssp:1' are the same job; name each once"),
        ({"snyc": "bsp,asp"}, "compare: there is no option 'snyc'; "),
        ({"lr": "0.1,fast"}, "compare: lr: 'fast' is not a number"),
    ],
)
def test_what_cannot_be_is_one_line(values, says):
    with pytest.raises(UserError) as error:
        expand(values, "compare")
    assert str(error.value).startswith(says) and "\n" not in str(error.value)


def built(values, module=variants_module):
    """Return how often a job was given values before the lists were refused."""
    n = 0

    class Counted(Job):
        def with_values(self, *arguments):
            nonlocal n
            n += 1
            return super().with_values(*arguments)

    before, module.Job = module.Job, Counted
    try:
        with pytest.raises(UserError, match=f"variants, more than {MOST_VARIANTS}; shorten them"):
            module.expand(values, "compare")
    finally:
        module.Job = before
    return n


def numbers(n):
    return ",".join(str(1 + i) for i in range(n))


def test_too_many_variants_are_refused_before_any_is_built():
    huge = {"batch": numbers(2500), "lr": numbers(2500), "accumulate": numbers(2500)}
    assert built(huge) == built(huge | {"strategy": "parameter_server,data_parallel", "sync": "bsp,ssp:3", "group": numbers(9)}) == 0
    check = """    if (n := _count(lists, single)) > MOST_VARIANTS:
        raise UserError(f"{where}: the lists make {n:,} variants, more than {MOST_VARIANTS}; shorten them")
"""
    late = changed(variants_module, [(check, ""), ("    return variants\n", check + "    return variants\n")])
    assert built({"batch": numbers(8), "lr": numbers(9)}, late) >= 72, "the broken variant: it looks after all are made"


def test_what_is_counted_is_what_would_be_made(monkeypatch):
    """A list that is for one of the strategies alone is not multiplied by those of the others."""
    lists = {"strategy": "data_parallel,averaging,parameter_server", "sync": "bsp,ssp:3,asp", "bucket": numbers(30), "average_every": numbers(20), "lr": "0.1,0.2"}
    counted, count = [], variants_module._count
    monkeypatch.setattr(variants_module, "_count", lambda *of: counted.append(count(*of)) or 0)
    for values in (lists, lists | {"group": "1,2", "collective": "ring,tree"}, {"lr": "0.1,0.2"}, {"sync": "bsp"}):
        assert len(expand(values, "compare")) == counted.pop()


def test_one_process_has_no_policy_and_only_the_slowness_that_everybody_has():
    job = Job(sync="asp", servers="2", reads="cached", assign="dynamic", slowdown="permanent:3", lr=0.2)
    assert alone(job) == Job(lr=0.2)
    assert alone(Job(strategy="pipeline", memory_per_rank="1M")).memory_per_rank == "", "a limit is of one rank of many"
    assert alone(Job(slowdown="exponential:2")).slowdown == "exponential:2"


def test_flags_of_stages_are_for_the_strategies_that_have_some():
    values = {"strategy": "data_parallel,pipeline,parameter_server", "schedule": "gpipe,one_f_one_b", "microbatches": "4"}
    assert [(v.name, v.job) for v in expand(values, "compare")] == [
        ("data_parallel", Job(strategy="data_parallel")),
        ("pipeline, schedule gpipe", Job(strategy="pipeline", schedule="gpipe", microbatches=4)),
        ("pipeline, schedule one_f_one_b", Job(strategy="pipeline", schedule="one_f_one_b", microbatches=4)),
        ("parameter_server", Job()),
    ]
    others = expand({"strategy": "data_parallel,averaging", "schedule": "gpipe"}, "compare")
    assert [v.job.schedule for v in others] == ["gpipe"] * 2, "which they refuse"


def test_a_flag_goes_to_the_strategies_that_it_decides_something_under():
    def told(**values):
        return [(v.name, v.job) for v in expand(values, "compare")]

    assert told(strategy="data_parallel,averaging", average_every="4", bucket="999") == [
        ("data_parallel", Job(strategy="data_parallel", bucket=999)), ("averaging", Job(strategy="averaging", average_every=4)),
    ]  # fmt: skip
    assert told(strategy="parameter_server,data_parallel", sync="ssp:3,asp", tune=False, collective="ring") == [
        ("parameter_server, ssp:3", Job(sync="ssp:3", tune=False)), ("parameter_server, asp", Job(sync="asp", tune=False)),
        ("data_parallel", Job(strategy="data_parallel", collective="ring")),
    ]  # fmt: skip
    assert [job.collective for _, job in told(strategy="parameter_server,data_parallel", group=2, collective="ring")] == ["ring", "ring"]
    assert told(strategy="parameter_server,data_parallel", group="2,1", collective="ring") == [
        ("parameter_server, group 2", Job(group=2, collective="ring")), ("parameter_server, group 1", Job()),
        ("data_parallel", Job(strategy="data_parallel", collective="ring")),
    ], "servers' workers sum where they are groups"  # fmt: skip
    assert [job.average_every for _, job in told(strategy="data_parallel,parameter_server", average_every=4)] == [4, 4], "which both refuse"
    assert told(strategy="averaging", sync="asp")[0][1].sync == "asp", "which it refuses"


def test_what_is_known_of_strategies_is_what_they_refuse():
    assert set(BESIDES) == set(plugins.names("mpidml.strategies"))
    assert all(hasattr(Job, name) for strategy in BESIDES for name in idle(strategy))


def test_one_process_is_a_grid_of_one():
    job = Job(strategy="hybrid", grid="data=2,pipe=2", partition="2,1", schedule="gpipe", microbatches=4)
    assert alone(job) == Job(strategy="hybrid", grid="data=1", schedule="gpipe", microbatches=4)
