"""Named tensors tile one buffer, and their views are the buffer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.flat import FlatParams

SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=6).map(lambda found: [(f"t{i}", s) for i, s in enumerate(found)])


def check_layout(cls, shapes):
    layout = cls(shapes)
    assert layout.size == sum(int(np.prod(shape)) for _, shape in shapes)
    flat = np.arange(layout.size, dtype=float)
    views = layout.views(flat)
    assert [(name, view.shape) for name, view in views.items()] == shapes
    assert np.array_equal(np.concatenate([np.empty(0), *(v.ravel() for v in views.values())]), flat), "each element lies in one tensor, in order"
    for view in views.values():
        view += 1
    assert np.array_equal(flat, np.arange(layout.size) + 1.0), "writing to a view writes to the buffer"


@given(SHAPES)
def test_tensors_tile_the_buffer_and_are_views_of_it(shapes):
    check_layout(FlatParams, shapes)


class Copies(FlatParams):
    def view(self, flat, name):
        return super().view(flat, name).copy()


class Overlaps(FlatParams):
    def view(self, flat, name):
        return flat[: super().view(flat, name).size].reshape(self.shapes[name])


@pytest.mark.parametrize("broken", [Copies, Overlaps])
def test_the_check_catches(broken):
    with pytest.raises(AssertionError):
        check_layout(broken, [("a", (2, 3)), ("b", (4,))])


def test_two_tensors_of_one_name_are_an_error():
    with pytest.raises(ValueError, match="same name"):
        FlatParams([("a", (2,)), ("a", (3,))])
