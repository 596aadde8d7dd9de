"""A store by codes whose values, versions and copies lie on a device is that of the host: whatever is asked of it, in whatever order."""

import random
from functools import partial

import numpy as np
import pytest
from mpidml_kernels import backend

from mpidml.compression.base import Compressor, make_codec
from mpidml.core.flat import FlatParams
from mpidml.core.role import PUSH, Lease, Message
from mpidml.optim.base import make_chain
from mpidml.ps import coded_there
from mpidml.ps.coded import CodedStore
from mpidml.ps.coded_there import CodedStoreThere
from mpidml.sync.base import Tuning
from tests.changed import changed
from tests.shim import cupy_double
from tests.shim.devices import PLACES, device, placed

PARAMS = FlatParams([("table", (40, 30)), ("small", (7,)), ("vector", (30, 100))])
HOST = backend("numpy")
LO, HI = 100, PARAMS.size
N, N_WORKERS = HI - LO, 3
CODECS = ["two_bit", "top_k:0.1", "int8", "fp16", "sign_majority"]
KEPT = {"": 0, "-1": 1, "-2": 2}


class Driven:
    """A store, what workers send it, and what its answers have made of their copies."""

    def __init__(self, codec, n_versions, shares, cls=None):
        kernels = HOST if cls is None else device().kernels
        self.kernels, self.codec = kernels, codec
        self.coder = Compressor(make_codec(codec), PARAMS, np.float64, HOST, 3)  # as workers of the host encode
        coder = Compressor(make_codec(codec), PARAMS, np.float64, kernels, 3, N_WORKERS, (LO, HI))
        given = [np.zeros(N) for _ in range(n_versions)], LO, 1, HOST, make_chain("momentum:0.9", 0.1), coder, N_WORKERS, shares
        self.store = CodedStore(*given) if cls is None else cls(*given, kernels)
        self.reader, self.copies = Compressor(make_codec(codec), PARAMS, np.float64, HOST, 3), {}

    def push(self, n, draw):
        """Apply n codes, whose memory is another's then."""
        codes = []
        for _ in range(n):
            codes.append(code := np.zeros(self.coder.nbytes(LO, HI), np.uint8))
            self.coder.encode(draw.standard_normal(N), LO, HI, code, n)
        self.store.apply([Message(PUSH, data=Lease(code)) for code in codes], Tuning(0.5))
        for code in codes:
            code.fill(1)

    def read(self, worker, version):
        """Bring a worker's copy to a version by a code, and return it."""
        code, held = self.store.go_on(worker, version), self.copies.get(worker)
        if held is None:
            self.copies[worker] = self.kernels.host(self.store.copies[worker].values).copy()
        elif code.size:
            for piece in self.reader.pieces(LO, HI):
                of = held[piece.of_range]
                if piece.as_it_is:
                    of[...] = code[piece.of_code].view(of.dtype)
                else:
                    self.reader.codec.decode_add(HOST, code[piece.of_code], of.reshape(piece.shape))
        return self.copies[worker]

    def held(self):
        return [self.kernels.host(copy.values) for copy in self.store.copies if copy is not None]

    def saved(self, back):
        return {name: array.copy() for name, array in self.store.state(back).items()}


def agree(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-11)


def check(cls, codec, n_versions, seed, n=40):
    """Drive both stores by one script drawn from `seed`, and compare all that anybody can see."""
    there, here = (Driven(codec, n_versions, n_versions > 1, of) for of in (cls, None))
    draws, draw = [np.random.default_rng(seed) for _ in range(2)], random.Random(seed)
    asked = [0] * N_WORKERS

    def both(do):
        return [do(driven, rng) for driven, rng in zip((there, here), draws, strict=True)]

    for _ in range(n):
        latest, op = here.store.latest, draw.choice(["push", "push", "read", "read", "look", "none", "put", "begin", "restore"])
        oldest = max(0, latest - n_versions + 1)
        if op in ("push", "none"):
            k = draw.randrange(1, 4) if op == "push" else 0
            both(lambda of, rng, k=k: of.push(k, rng))
        elif op == "read" and make_codec(codec).votes is False:
            worker = draw.randrange(N_WORKERS)
            asked[worker] = draw.randrange(max(asked[worker], oldest), latest + 1)
            agree(*([of] for of in both(lambda of, _, w=worker: of.read(w, asked[w]))))
            agree(there.held(), here.held())
        elif op == "look":
            version = draw.randrange(oldest, latest + 1)
            agree(*([of] for of in both(lambda of, _, v=version: of.store.at(v))))
        elif op == "put":
            value = draw.random()
            both(lambda of, _, x=value: of.store.put(np.full((N, 1), x)))
        elif op == "begin" and n_versions > 1:
            both(lambda of, _, clock=latest + 1: of.store.begin(clock))
        elif op == "restore":
            saved = both(lambda of, _: of.saved(n_versions - 1))
            assert saved[0].keys() == saved[1].keys()
            agree(saved[0].values(), saved[1].values())

            def fill(name, out, saved=saved[1]):
                if name in saved:
                    out[...] = saved[name].reshape(out.shape) + 0.5
                return name in saved

            both(lambda of, _, fill=fill, clock=latest: of.store.restore(clock, fill))
    for version in range(max(0, here.store.latest - n_versions + 1), here.store.latest + 1):
        agree(*([of] for of in both(lambda of, _, v=version: of.store.at(v))))
    agree(*([of] for of in both(lambda of, _: of.store.optimizer["0.momentum.v"])))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("n_versions", [1, 2, 3])
@pytest.mark.parametrize("codec", CODECS)
def test_whatever_is_asked_of_it_it_is_the_store_of_the_host(codec, n_versions, place):
    with placed(place):
        for seed in range(8):
            check(CodedStoreThere, codec, n_versions, seed)


def test_codes_cross_and_a_version_when_it_is_asked_for(monkeypatch):
    with placed("lazy"):
        mine = Driven("int8", 2, True, CodedStoreThere)
        moved = {"get": [], "set": []}

        def counted(move, calls):
            return lambda self, *given, **named: (calls.append(self.nbytes) if self.size > 8 else None) or move(self, *given, **named)

        for name, calls in moved.items():
            monkeypatch.setattr(cupy_double.ndarray, name, counted(getattr(cupy_double.ndarray, name), calls))
        code, draw = mine.coder.nbytes(LO, HI), np.random.default_rng(0)
        for worker in range(N_WORKERS):
            mine.store.go_on(worker, 0)
        mine.push(3, draw)
        assert moved == {"get": [], "set": [code] * 3}
        for worker in range(N_WORKERS):
            mine.store.go_on(worker, 1)
        assert moved == {"get": [code], "set": [code] * 3}  # which all workers share
        for _ in range(2):
            mine.store.at(1)
        assert moved["get"] == [code, N * 8]


BROKEN = {
    "that the host is behind": ("self.behind.add(self.latest % len(self.versions))", "pass"),
    "a version of its own": ("self.coder.backend.copy(place, values)", "pass"),
    "what is restored": ("        super()._changed()\n        self._up()", "        super()._changed()"),
    "what the host has before it is put": ("    def _changed(self) -> None:\n        self._down()", "    def _changed(self) -> None:"),
    "a clock that is begun": ("            super().begin(clock)\n            self._up()", "            super().begin(clock)"),
    "what is begun with": ("            self._down()\n            super().begin", "            super().begin"),
    "the version after a clock without deltas": ("        self._keep(old)", "        pass"),
    "the update": ("self._device.step(step, tuning)", "pass"),
}

@pytest.mark.parametrize("name", BROKEN)
def test_what_is_left_out_is_seen(name):
    with placed("lazy"), pytest.raises((AssertionError, RuntimeError)):
        for seed in range(8):
            for n_versions in (1, 3):
                check(partial(changed(coded_there, [BROKEN[name]]).CodedStoreThere), "fp16", n_versions, seed)
