"""Codes that are made and read on a device cross to and from messages whole, once, and before anybody looks; on the CPU nothing is copied."""

import numpy as np
import pytest
from mpidml_kernels import backend

from mpidml.compression.base import Compressor, make_codec
from mpidml.core import plugins
from mpidml.core.flat import FlatParams
from mpidml.ps import crossing
from mpidml.ps.crossing import Crossing
from tests.changed import changed
from tests.shim import cupy_double
from tests.shim.devices import PLACES, device, placed

PARAMS = FlatParams([("table", (40, 30)), ("small", (7,)), ("vector", (30, 100))])
SUMMING = {"low_rank", "one_bit", "qsgd", "two_bit"}
"""Their sums of many values are rounded in another order there."""
HOST = backend("numpy")
LO, HI = 0, PARAMS.size
X = np.random.default_rng(0).standard_normal(HI)


def crossed(codec, kernels, cls=Crossing):
    """Return a code that was made of X, and what is read of it once its memory is another's."""
    coder = Compressor(make_codec(codec), PARAMS, X.dtype, kernels, 3)
    over = cls(coder)
    code = np.full(coder.nbytes(LO, HI), 7, np.uint8)
    there = over.encode(kernels.here(X), LO, HI, code, 1)
    found = code.copy()
    assert kernels.gpu is not None or there is code is over.take(code)
    there = over.take(code)
    if kernels.gpu is not None:
        code.fill(0)
    coder.decode(there, LO, HI, out := kernels.zeros(HI, X.dtype))
    return found, kernels.host(out)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("codec", plugins.names("mpidml.compression"))
def test_a_code_comes_whole_and_is_read_whole(codec, place):
    found, values = crossed(codec, HOST)
    with placed(place):
        there, read = crossed(codec, device().kernels)
    coder = Compressor(make_codec(codec), PARAMS, X.dtype, HOST, 3)
    for piece in coder.pieces(LO, HI):
        if codec not in SUMMING:
            assert there[piece.of_code].tobytes() == found[piece.of_code].tobytes()
    np.testing.assert_allclose(read, values, rtol=1e-9, atol=1e-12)


def test_nothing_but_codes_crosses_and_room_is_made_once(monkeypatch):
    with placed("lazy"):
        kernels = device().kernels
        coder = Compressor(make_codec("int8"), PARAMS, X.dtype, kernels, 3)
        over, x, code = Crossing(coder), kernels.here(X), np.zeros(coder.nbytes(LO, HI), np.uint8)
        moved = []
        for name in ("get", "set"):
            real = getattr(cupy_double.ndarray, name)
            monkeypatch.setattr(cupy_double.ndarray, name, lambda self, *a, of=name, real=real, **k: moved.append((of, self.nbytes)) or real(self, *a, **k))
        rooms = [over.encode(x, LO, HI, code, 1), over.take(code), over.encode(x, LO, HI, code, 2)]
        assert rooms[0] is rooms[1] is rooms[2]
        assert [of for of in moved if of[1] > 8] == [("get", code.nbytes), ("set", code.nbytes), ("get", code.nbytes)]


BROKEN = {
    "a code that goes": ("there.get(out=code)", "pass"),
    "the wait for a code": ("there.get(out=code)", "there.get(out=code, blocking=False)"),
    "a code that comes": ("there.set(values)", "pass"),
    "the wait until a code is there": ("there.set(values)", "there.set(values, self.coder.backend.gpu.cupy.cuda.get_current_stream())"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_left_out_is_seen(name):
    with placed("lazy"):
        expected = crossed("int8", kernels := device().kernels)
        found = crossed("int8", kernels, cls := changed(crossing, [BROKEN[name]]).Crossing)
        if name == "a code that comes":  # what was made there is there anyway
            over = cls(Compressor(make_codec("int8"), PARAMS, X.dtype, kernels, 3))
            found = found[0], kernels.host(over.take(np.ones(16, np.uint8)))
            expected = expected[0], np.ones(16, np.uint8)
    assert not all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
