"""A job is one record: what it says of itself makes it again, and no impossible value gets in."""

import math
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpidml.core.errors import UserError
from mpidml.core.job import Job, members

OF_TYPE = {
    str: st.text(max_size=8),
    int: st.integers(-(2**70), 2**70),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    tuple: st.lists(st.integers(0, 4096), max_size=4).map(tuple),
}
ANY_JOB = st.fixed_dictionaries({f.name: OF_TYPE[type(f.default)] for f in fields(Job)}).map(lambda values: Job(**values))


def as_text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@settings(max_examples=20)
@given(ANY_JOB)
def test_a_job_made_of_its_own_mapping_or_its_flags_is_the_same_job(job):
    assert Job().with_values(job.mapping(), "again") == job
    assert Job().with_values({f.name.replace("_", "-"): as_text(getattr(job, f.name)) for f in fields(Job)}, "flags") == job


def test_the_defaults_can_be():
    assert Job().checked() == Job()


def test_the_rate_grows_with_the_batch_it_was_not_meant_for():
    assert Job(lr=0.1, batch=64).rate == 0.1
    assert Job(lr=0.1, batch=64, lr_batch=64).rate == 0.1
    assert Job(lr=0.1, batch=1024, lr_batch=64).rate == pytest.approx(1.6)


@pytest.mark.parametrize("f", fields(Job), ids=lambda f: f.name)
def test_each_field_says_what_it_does_and_its_default_is_one_of_its_choices(f):
    assert f.metadata["help"] and not f.metadata["help"].endswith(".")
    assert not f.metadata["choices"] or f.default in f.metadata["choices"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("epochs", 2.5, f"2.5 is not a whole number; the default is {Job().epochs}"),
        ("epochs", "ten", "'ten' is not a whole number"),
        ("epochs", True, "True is not a whole number"),
        ("epochs", math.inf, "inf is not a whole number"),
        ("epochs", math.nan, "nan is not a whole number"),
        ("epochs", [1], "[1] is not a whole number"),
        ("lr", "fast", f"'fast' is not a number; the default is {Job().lr}"),
        ("lr", False, "False is not a number"),
        ("tune", 1, "1 is not true or false"),
        ("tune", "yes", "'yes' is not true or false"),
        ("hidden", 64, "64 is not whole numbers with commas between them"),
        ("hidden", "64,x", "'64,x' is not whole numbers"),
        ("hidden", [64.5], "[64.5] is not whole numbers"),
        ("hidden", [True], "[True] is not whole numbers"),
        ("data", ["a"], "['a'] is not text"),
        ("data", {"path": "a"}, "is not text"),
        ("sync", True, "True is not text"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_line(name, value, says):
    with pytest.raises(UserError) as error:
        Job().with_values({name: value}, "job.toml")
    assert str(error.value).startswith(f"job.toml: {name}: ") and says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [("epochs", 3.0, 3), ("lr", 1, 1.0), ("data", 7, "7"), ("hidden", "", ()), ("hidden", [64.0, "32"], (64, 32))],
)
def test_a_value_that_says_the_same_is_taken(name, value, wanted):
    found = getattr(Job().with_values({name: value}, "job.toml"), name)
    assert found == wanted and type(found) is type(wanted)


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match=r"job.toml: there is no option 'epoch'; known: .*; did you mean 'epochs'\?"):
        Job().with_values({"epoch": 3}, "job.toml")


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("data", "data test_data labels test_labels label task categories unseen missing view hold_out validate"),
        ("fixed", "label task categories unseen missing view hold_out validate scale model hidden activation loss dtype optimizer optimize compress batch seed"),
        (
            "one",
            "data test_data labels test_labels label task categories unseen missing view hold_out validate memory scratch hidden class_weights "
            "memory_per_rank epochs steps target seconds seed deterministic wait_limit report trace tensorboard out",
        ),
        ("commas", "label hidden class_weights grid mix replicas partition"),
    ],
)
def test_fields_say_themselves_in_which_groups_they_are(group, names):
    assert members(group) == tuple(f.name for f in fields(Job) if f.name in names.split())


def test_no_field_is_in_a_group_that_nobody_asks_for():
    """A group that is misspelt would change nothing."""
    assert {group for f in fields(Job) for group in f.metadata["groups"]} == {"data", "fixed", "one", "commas"}


IMPOSSIBLE = [
    ("epochs", -1, "--epochs -1: is below 0"),
    ("batch", 0, "--batch 0: is below 1"),
    ("steps", -1, "--steps -1: is below 0"),
    ("hidden", (64, 0), "--hidden 64,0: a width is below 1"),
    *(("staleness", value, "is not a whole number from 0 up") for value in ("-2", "-1", "2.5", "many", -1)),
    *(("lr", value, "is not a positive number") for value in (0.0, -0.1, math.nan, math.inf)),
    *(("wait_limit", value, "--wait-limit") for value in (0.0, math.nan, math.inf)),
    *((name, value, "is not a share") for name in ("hold_out", "dropout") for value in (-0.1, 1.0, math.nan)),
    *((f.name, "nonsense", "there is no such choice; known: ") for f in fields(Job) if f.metadata["choices"]),
]


@pytest.mark.parametrize(("name", "value", "says"), IMPOSSIBLE)
def test_a_value_that_cannot_be_is_one_line_with_its_flag(name, value, says):
    with pytest.raises(UserError) as error:
        Job(**{name: value}).checked()
    assert str(error.value).startswith(f"--{name.replace('_', '-')} ") and says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sync", "staleness", "policy"), [("ssp", "3", "ssp:3"), ("ssp", "0", "ssp:0"), ("ssp", 0, "ssp:0"), ("ssp:2", "", "ssp:2"), ("bsp", "", "bsp")]
)
def test_the_staleness_is_the_policys_argument(sync, staleness, policy):
    assert Job(sync=sync, staleness=staleness).policy() == policy


def test_the_staleness_is_given_in_one_place():
    with pytest.raises(UserError, match="--staleness 3: --sync ssp:2 names one already; give it in one place"):
        Job(sync="ssp:2", staleness="3").policy()
