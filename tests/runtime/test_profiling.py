"""Hold what layers are said to cost to what they are."""

import pytest

from mpidml.nn.models import build
from mpidml.runtime.profiling import counted, profiles


@pytest.mark.parametrize("measure", [profiles, counted])
def test_each_layer_has_its_bytes_and_some_cost(measure):
    net = build("mlp", 30, 4, (20, 10), dtype="float64", backend="numpy")
    found = measure(net, 6)
    assert [each.parameter_nbytes for each in found] == [8 * (30 * 20 + 20), 8 * (20 * 10 + 10), 8 * (10 * 4 + 4)]
    assert [each.activation_nbytes for each in found] == [8 * 6 * width for width in (20, 10, 4)]
    assert all(each.forward_seconds > 0 and each.backward_seconds > 0 for each in found)


def test_counts_are_operations_and_alike_each_time():
    net = build("mlp", 30, 4, (20, 10), dtype="float64", backend="numpy")
    assert counted(net, 6) == counted(net, 6)
    sizes = [30 * 20, 20 * 10, 10 * 4]
    ratios = [(each.forward_seconds + each.backward_seconds) / size for each, size in zip(counted(net, 6), sizes, strict=True)]
    assert 0.5 < ratios[0] / ratios[1] < 0.8  # nobody wants the gradient of the rows: two products, not three
