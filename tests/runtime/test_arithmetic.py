"""What a job computes with is known before its clock runs: families of kernels by layers, grid, optimizer, rows and codes."""

from types import SimpleNamespace

import pytest
from mpidml_kernels import CODES, adaptive, csr, norm, rows, split

from mpidml.core.grid import parse_grid
from mpidml.core.job import Job
from mpidml.nn.layers.dense import Dense
from mpidml.nn.layers.embedding import Embedding
from mpidml.nn.layers.layer_norm import LayerNorm
from mpidml.runtime.arithmetic import beyond

PLAIN = [Dense(4), Dense()]


@pytest.mark.parametrize(
    ("values", "layers", "grid", "is_sparse", "expected"),
    [
        ({}, PLAIN, None, False, ()),
        ({}, [Embedding([0]), LayerNorm(), LayerNorm(), Dense()], None, False, (rows, norm)),
        ({}, PLAIN, "pipe=2,tensor=1", False, ()),
        ({}, PLAIN, "pipe=1,tensor=2", False, (split,)),
        ({"mix": "embedding=tensor"}, PLAIN, "data=2", False, (split,)),
        ({"optimizer": "adam"}, PLAIN, None, False, (adaptive,)),
        ({}, PLAIN, None, True, (csr, rows)),
        ({"compress": "bf16"}, PLAIN, None, False, CODES),
        ({"compress": "bf16"}, [Embedding([0]), Dense()], None, True, (rows, csr, *CODES)),
    ],
)
def test_each_family_is_named_once_by_what_calls_it(values, layers, grid, is_sparse, expected):
    job, net = Job(**values), SimpleNamespace(layers=layers)
    assert beyond(job, is_sparse, net, grid and parse_grid(grid, 2)) == expected
