"""Codes made and read on a device say what those of the host say, leave what those leave, and are no number where those are none."""

import numpy as np
import pytest
from mpidml_kernels import backend

from mpidml.compression.base import Compressor, make_codec
from mpidml.core.flat import FlatParams
from tests.contracts.test_compression import LOSSY, VARIANTS, draws
from tests.shim.devices import PLACES, device, placed

PARAMS = FlatParams([("table", (40, 30)), ("small", (7,)), ("vector", (3000,)), ("plain", (300,))])
HOST = backend("numpy")
N = PARAMS.size


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])
@pytest.mark.parametrize("text", VARIANTS + LOSSY)
def test_the_host_reads_what_the_device_has_written_and_the_other_way_round(text, dtype, place):
    """A code may begin anywhere, and end with tensors that are sent as they are."""
    near = {"rtol": 1e-3, "atol": 1e-3} if dtype == np.float32 else {"rtol": 1e-9, "atol": 1e-9}
    with placed(place):
        kernels = device().kernels
        there, here = (Compressor(make_codec(text), PARAMS, dtype, of, seed=3) for of in (kernels, HOST))
        for step, x in enumerate(draws(3, (N,), dtype)):
            codes = np.zeros((2, here.nbytes(0, N)), np.uint8)
            here.encode(x, 0, N, codes[0], step)
            there.encode(kernels.here(x), 0, N, code := kernels.zeros(codes[1].size, np.uint8), step)
            codes[1] = code.get()
            found = np.empty((2, 2, N), dtype)  # by who wrote and who read
            for written, of in zip(found, codes, strict=True):
                here.decode(of, 0, N, written[0])
                there.decode(kernels.here(of), 0, N, out := kernels.zeros(N, dtype))
                there.decode_add(kernels.here(of), 0, N, out)
                there.combine(out, 0, N)
                total = written[0] * 2
                here.combine(total, 0, N)
                np.testing.assert_allclose(out.get(), total, **near)
                there.decode(kernels.here(of), 0, N, out)
                written[1] = out.get()
            np.testing.assert_allclose(found[1:], found[:1].repeat(1, 0), **near)
        assert there.state().keys() == here.state().keys()
        for name, array in there.state().items():
            np.testing.assert_allclose(array.get(), here.state()[name], **near)


@pytest.mark.parametrize("text", VARIANTS + LOSSY)
def test_what_is_not_finite_arrives_as_no_number_from_there_too(text):
    with placed("lazy"):
        kernels = device().kernels
        coder = Compressor(make_codec(text), PARAMS, np.float32, kernels)
        x = next(draws(1, (N,), np.float32))
        x[PARAMS.slices["table"].start + 2] = np.nan
        coder.encode(kernels.here(x), 0, N, code := kernels.zeros(coder.nbytes(0, N), np.uint8))
        coder.decode(code, 0, N, out := kernels.zeros(N, np.float32))
        found = PARAMS.views(out.get())
        assert np.isfinite(found["table"]).all() == coder.codec.votes and np.isfinite(found["vector"]).all()


def test_a_state_is_taken_over_from_the_host():
    with placed("lazy"):
        kernels = device().kernels
        here, there = (Compressor(make_codec("low_rank"), PARAMS, np.float64, of) for of in (HOST, kernels))
        here.encode(next(draws(1, (N,), np.float64)), 0, N, np.zeros(here.nbytes(0, N), np.uint8))
        there.load(here.state())
        for name, array in there.state().items():
            assert np.array_equal(array.get(), here.state()[name])
