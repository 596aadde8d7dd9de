"""Hold norms over the parts of a stage to what each of them is a part of."""

from types import SimpleNamespace

import numpy as np
import pytest
from mpidml_kernels import backend

from mpidml.runtime.grid_updates import Norms

GRADIENT = np.arange(1.0, 6.0)
SHARED = [slice(0, 2)]
OTHERS = 100.0


def norm_of(part, gathered):
    """Return the sum of squares that the first of two ranks finds, the other having OTHERS, and what it was asked for."""

    def gather(line, own, what):
        gathered.append(own)
        return [own, OTHERS]

    held = SimpleNamespace(gradient=GRADIENT, weights=lambda: np.zeros(5))
    norms = Norms(backend("numpy"), held, SimpleNamespace(size=2), SHARED, None, SimpleNamespace(gather=gather))
    return norms.sum_of_squares(part)


@pytest.mark.parametrize(
    ("part", "expected", "asked"),
    [
        (GRADIENT[0:2], 5.0, []),  # every part has it
        (GRADIENT[2:5], 9.0 + 16.0 + 25.0 + OTHERS, [50.0]),
        (GRADIENT[3:3], OTHERS, [0.0]),  # a view without elements begins where its array does, and the others wait for this part of it
    ],
)
def test_a_part_is_summed_with_those_of_the_others_and_what_all_have_is_not(part, expected, asked):
    gathered = []
    assert norm_of(part, gathered) == expected and gathered == asked
