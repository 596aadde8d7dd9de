"""Hold the sharing of parameter sets between numbers of ranks to its promise: each set at one that shows it, each function and most values at all."""

import itertools

import pytest

from tests import shares
from tests.changed import changed

SIZES = (2, 3, 5)
FUNCTIONS = {n: [f"m.py::test_{n}[{k}]" for k in range(n)] for n in (1, 3, 4, 5, 6, 12, 60)}
TESTS = dict.fromkeys(itertools.chain(*FUNCTIONS.values(), ["m.py::test"]), 1)
LATE = {name.replace("m.py", "late.py"): 3 for name in TESTS}
ALL = TESTS | LATE


def taken(size, tests=ALL, others=shares.others):
    return set(tests) - others(tests, size, SIZES)


def kept(others):
    """Return whether each set runs at a number of ranks that shows it, and each function at every number."""
    at = {size: taken(size, others=others) for size in SIZES}
    shown = all(any(name in at[size] for size in SIZES if size >= least) for name, least in ALL.items())
    functions = {name.partition("[")[0] for name in ALL}
    return shown and all({name.partition("[")[0] for name in of} == functions for of in at.values())


def test_each_set_runs_where_it_shows_and_each_function_everywhere():
    assert kept(shares.others)


@pytest.mark.parametrize(
    "change",
    [
        ("max(1, n * k // total)", "n * k // total"),  # a function is missing where its part is less than one set
        ("n if each == sizes[0] else", "lo + n * k // total if each == sizes[0] else"),  # what is left over runs nowhere
        ("if each >= least]", "]"),  # a set may run on two ranks alone, which do not show it
    ],
)
def test_the_promise_catches_what_is_lost(change):
    assert not kept(changed(shares, [change]).others)


def test_no_set_runs_twice_but_of_functions_with_few_sets():
    for a, b in itertools.combinations(SIZES, 2):
        both = taken(a, TESTS) & taken(b, TESTS)
        assert both == {name for n, names in FUNCTIONS.items() for name in names if n <= 3} | {"m.py::test"}
    assert taken(3, LATE) & taken(5, LATE) == {name for name in LATE if name.startswith(("late.py::test_1[", "late.py::test_3[")) or name == "late.py::test"}


def test_fewer_ranks_take_more_of_each_function():
    counts = {n: [len(taken(size) & set(names)) for size in SIZES] for n, names in FUNCTIONS.items()}
    assert counts == {1: [1, 1, 1], 3: [3, 3, 3], 4: [2, 1, 1], 5: [3, 1, 1], 6: [3, 2, 1], 12: [6, 4, 2], 60: [30, 20, 10]}
    late = [len([name for name in taken(size) if name.startswith("late.py::test_60[")]) for size in SIZES]
    assert late == [30, 40, 20]


def test_the_order_of_collection_does_not_count():
    assert shares.others(dict(reversed(ALL.items())), 5, SIZES) == shares.others(ALL, 5, SIZES)


def test_no_parameter_has_one_value_everywhere():
    names = [f"m.py::test[{a}-{b}]" for a in "abcde" for b in "vwxyz"]
    for size in SIZES:
        left = taken(size, dict.fromkeys(names, 1))
        assert len({name[-4] for name in left}) > 1 and len({name[-2] for name in left}) > 1
