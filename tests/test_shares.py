"""Hold the sharing of parameter sets between two numbers of ranks to its promise: each set at one of them, each function and most values at both."""

import itertools

from tests.shares import others

FUNCTIONS = {f"test_{n}": [f"m.py::test_{n}[{k}]" for k in range(n)] for n in (1, 3, 4, 12)} | {"test": ["m.py::test"]}
NAMES = list(itertools.chain(*FUNCTIONS.values()))


def taken(larger):
    return set(NAMES) - others(NAMES, larger)


def test_each_set_runs_at_one_number_of_ranks_and_few_sets_at_both():
    assert taken(True) | taken(False) == set(NAMES)
    both = taken(True) & taken(False)
    assert both == {name for function, names in FUNCTIONS.items() for name in names if len(names) <= 3}


def test_the_larger_number_takes_a_third_of_each_function():
    for names in FUNCTIONS.values():
        n = len(taken(True) & set(names))
        assert n == (len(names) if len(names) <= 3 else len(names) // 3) > 0


def test_the_order_of_collection_does_not_count():
    assert others(reversed(NAMES), True) == others(NAMES, True)


def test_no_parameter_has_one_value_everywhere():
    names = [f"m.py::test[{a}-{b}]" for a in "abcd" for b in "wxyz"]
    left = set(names) - others(names, True)
    assert len({name[-4] for name in left}) > 1 and len({name[-2] for name in left}) > 1
