"""Send a tensor in fewer bytes, and keep what was not sent for the next time.

    v = x + residual        code = encode(v)        residual = v - decode(code)

So what receivers have decoded, plus the residual, is all that was given, however coarse the code is. A codec is for one tensor at a time; a
`Compressor` holds one over the named tensors of a flat vector, with a residual for each of them.

Not a number, and infinity: `encode` raises FloatingPointError, for a code of few bits cannot carry them, and a residual keeps them forever. A `Compressor` sends
what decodes to no number in their place, so that a run that diverges goes on and says so, as without codes. A negative zero arrives as zero. Of finite values
nothing is lost but what each codec's file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core import plugins, rng
from mpidml.core.errors import UserError
from mpidml.core.flat import Array, FlatParams

State = dict[str, Array]
Shape = tuple[int, ...]

ALIGNMENT = 8
"""A code begins at a multiple of so many bytes."""
SMALL = 1024
"""Tensors of fewer bytes go as they are: their share of the traffic is nothing, and biases are worth more than that."""


def share(name: str, value: object) -> float:
    """Return `value` as a float if it is a number in (0, 1]; raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name} = {value} is not a share in (0, 1]; give one such as 0.01")
    return float(value)


def positive(name: str, value: object, multiple_of: int = 1) -> int:
    """Return `value` if it is a positive multiple of `multiple_of`; raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0 or value % multiple_of:
        wanted = "whole number > 0" if multiple_of == 1 else f"positive multiple of {multiple_of}"
        raise ValueError(f"{name} = {value} is not a {wanted}; give one such as {2 * multiple_of}")
    return value


def truth(name: str, value: object) -> bool:
    """Return `value` if it is true or false; raise ValueError otherwise."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} = {value} is neither true nor false; give one of them")
    return value


def packed(n: int, bits: int) -> int:
    """Return the bytes of n codes: whole words of 32 bits."""
    return 4 * -(-n * bits // 32)


def fields(code: Array, *parts: tuple[DTypeLike, int]) -> list[Array]:
    """Cut a code into arrays of (dtype, length), one behind the other; at most 3 bytes of padding may be left."""
    at, found = 0, []
    for dtype, n in parts:
        nbytes = np.dtype(dtype).itemsize * n
        found.append(code[at : at + nbytes].view(dtype))
        at += nbytes
    return found


class Codec:
    """Encode and decode tensors. Arrays are contiguous, float32 or float64, shaped like their tensor; nothing is allocated in proportion to them after `init`.

    They lie where `backend` computes, which may be a device: whatever is no kernel's goes by its own `copy`, `put` and `host`.

    `code`: uint8 (nbytes,), beginning at a multiple of ALIGNMENT.
    `has_residual`: what was not sent is kept, and sent later. `unbiased`: the mean of what is decoded, over the noise, is what was given. `votes`: what is
    decoded is no approximation of the values but a vote on their sign; `combine` makes a result of their sum.
    `whole`: the codec needs tensors in their own shape; any other may be given any part of a flat tensor as a tensor of its own.
    `same_noise`: all senders draw the same noise, so that their codes fit together; else each draws its own.
    """

    has_residual: bool = True
    unbiased: bool = False
    votes: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    same_noise: ClassVar[bool] = False

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return the size of a code: it depends on shape and item size alone, so that a receiver can have its buffer ready."""
        raise NotImplementedError

    def init(self, shape: Shape, dtype: DTypeLike) -> State:
        """Return the state of one tensor as named arrays; "residual" is flat and as long as the tensor."""
        return {"residual": np.zeros(prod(shape), dtype)} if self.has_residual else {}

    def encode(self, backend: Any, x: Array, state: State, code: Array, noise: int = 0) -> None:
        """Write x (plus the residual) into `code` and bring the state to what comes after; x is only read.

        noise: 64 bits that name this call's draws. FloatingPointError if x, or its sum with the residual, is not finite; the state is spoilt then.
        """
        code[max(0, code.size - 4) :].fill(0)  # padding, if there is any
        if not self.pack(backend, x, state, code, np.uint64(noise)):
            raise FloatingPointError("what is to be encoded holds NaN or infinity, or became so with its residual; look at the learning rate and the data")

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Do what `encode` says; tell whether all was finite."""
        raise NotImplementedError

    def spoil(self, x: Array, code: Array) -> None:
        """Make `code`, of an x that is not finite, one that decodes to NaN: bytes of ones are, where units or values are floats and no places are sent."""
        code.fill(255)

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Compute out += what the code holds; the code is only read."""
        raise NotImplementedError

    def decode(self, backend: Any, code: Array, out: Array) -> None:
        """Compute out = what the code holds."""
        out.fill(0)
        self.decode_add(backend, code, out)

    def combine(self, backend: Any, total: Array) -> None:
        """Turn the sum of all senders' decoded codes into the result, in place: for most codecs it is the result."""

    def of_results(self) -> Codec:
        """Return the codec by which a combined sum goes back to the senders: this one, unless that would change what a code can hold as it is."""
        return self


class HalfPrecision(Codec):
    """Round values to 16 bits each by the kernels `<name>_encode`, `<name>_round` and `<name>_decode_add`.

    `residual=false`: what rounding leaves is lost. That saves an array as large as the model, and half of the time.
    """

    name: ClassVar[str]

    def __init__(self, residual: bool = True) -> None:
        self.has_residual = truth("residual", residual)

    def nbytes(self, shape: Shape, itemsize: int = 4) -> int:
        """Return 2 bytes a value."""
        return 2 * prod(shape)

    def pack(self, backend: Any, x: Array, state: State, code: Array, noise: np.uint64) -> bool:
        """Round; `noise` is not needed."""
        given = (x.reshape(-1), state["residual"]) if self.has_residual else (x.reshape(-1),)
        return bool(getattr(backend, f"{self.name}_{'encode' if self.has_residual else 'round'}")(*given, code.view(np.uint16)))

    def decode_add(self, backend: Any, code: Array, out: Array) -> None:
        """Add the halves."""
        getattr(backend, f"{self.name}_decode_add")(code.view(np.uint16), out.reshape(-1))


def make_codec(text: str) -> Codec:
    """Build the codec that `text` describes, as in "two_bit:0.1" or "top_k:ratio=0.05:sampled=true"."""
    codec = plugins.make("mpidml.compression", text)
    if not isinstance(codec, Codec):
        raise UserError(f"compression '{text}': {type(codec).__name__} is not a codec; derive it from mpidml.compression.base.Codec")
    return codec


class Piece(NamedTuple):
    """What a range holds of one tensor: its values at `of_range`, its code at `of_code`, the tensor's shape if it is held in full, else (length,)."""

    name: str
    of_range: slice
    of_code: slice
    shape: Shape
    as_it_is: bool
    state: State
    noise: str


class Compressor:
    """Encode and decode ranges of a flat vector of named tensors, each by a state of its own: ranges may be cut otherwise from one step to the next.

    A range's code is the codes of the tensors in it, in order, each at a multiple of ALIGNMENT. A tensor, or the part of one that a range holds, goes
    as it is, with what codes of it have left, when it has fewer than SMALL bytes or its code would be no shorter; votes never do. Both sides must cut
    the same ranges.
    `held`: the range that this side ever encodes; it has states for that alone. `sender`: a number that tells apart those who draw their own noise.
    """

    def __init__(
        self, codec: Codec, params: FlatParams, dtype: DTypeLike, backend: Any, seed: int = 0, sender: int = 0, held: tuple[int, int] | None = None
    ) -> None:
        self.codec, self.params, self.dtype, self.backend = codec, params, np.dtype(dtype), backend
        self.seed, self.sender = seed, sender
        self.lo, self.hi = (0, params.size) if held is None else held
        tensors = self._tensors(self.lo, self.hi)
        self._states = {name: {key: backend.here(of) for key, of in codec.init(self._shape(name, a, b), dtype).items()} for name, a, b in tensors}
        self._ranges: dict[tuple[int, int], list[Piece]] = {}

    def _tensors(self, lo: int, hi: int) -> list[tuple[str, int, int]]:
        """List the tensors in a range: name, and the range of the flat vector that is theirs and in it."""
        parts = ((name, max(s.start, lo), min(s.stop, hi)) for name, s in self.params.slices.items())
        return [(name, a, b) for name, a, b in parts if a < b]

    def _shape(self, name: str, a: int, b: int) -> Shape:
        own = self.params.slices[name]
        if (a, b) == (own.start, own.stop):
            return self.params.shapes[name]
        if self.codec.whole:
            raise UserError(
                f"compression: {type(self.codec).__name__} needs tensors in full, and '{name}' is cut at {max(a - own.start, 0)}:{b - own.start} of"
                f" {own.stop - own.start}; cut between tensors, or take another codec"
            )
        return (b - a,)

    def pieces(self, lo: int, hi: int) -> list[Piece]:
        """Return how the range [lo, hi) is encoded; computed once a range."""
        if (lo, hi) not in self._ranges:
            found, at, itemsize = [], 0, self.dtype.itemsize
            for name, a, b in self._tensors(lo, hi):
                shape, plain = self._shape(name, a, b), (b - a) * itemsize
                coded = self.codec.nbytes(shape, itemsize)
                as_it_is = not self.codec.votes and (plain < SMALL or coded >= plain)
                code = slice(at, at + (plain if as_it_is else coded))
                found.append(Piece(name, slice(a - lo, b - lo), code, shape, as_it_is, self._state_of(name, a, b), f"{name}@{a - self.params.slices[name].start}"))
                at = -(-code.stop // ALIGNMENT) * ALIGNMENT
            self._ranges[lo, hi] = found
        return self._ranges[lo, hi]

    def _state_of(self, name: str, a: int, b: int) -> State:
        """Return a tensor's state with the residual of [a, b) alone, as views; nothing for what this side does not hold."""
        if not self.lo <= a < b <= self.hi or name not in self._states:
            return {}
        start = max(self.params.slices[name].start, self.lo)
        return {key: array[a - start : b - start] if key == "residual" else array for key, array in self._states[name].items()}

    def nbytes(self, lo: int, hi: int) -> int:
        """Return the size of the code of a range."""
        return max((-(-piece.of_code.stop // ALIGNMENT) * ALIGNMENT for piece in self.pieces(lo, hi)), default=0)

    def encode(self, x: Array, lo: int, hi: int, code: Array, step: int = 0) -> None:
        """Write x, (hi - lo,), the values of the range, into `code`; noise is drawn by (seed, tensor, step), and by sender where the codec wants it.

        A tensor that is not finite is sent as one that is NaN.
        """
        if not self.lo <= lo <= hi <= self.hi:
            raise ValueError(f"compression: {lo}:{hi} is to be encoded by a side that holds {self.lo}:{self.hi}; encode within that")
        index = (step,) if self.codec.same_noise else (step, self.sender)
        for _, of_range, of_code, shape, as_it_is, state, noise in self.pieces(lo, hi):
            if as_it_is:
                self.backend.copy(code[of_code], x[of_range].view(np.uint8))
                if "residual" in state:  # of codes of longer pieces, before ranges were cut otherwise
                    self.backend.add(code[of_code].view(self.dtype), state["residual"])
                    state["residual"].fill(0)
                continue
            try:
                self.codec.encode(self.backend, x[of_range].reshape(shape), state, code[of_code], rng.key(self.seed, f"compression:{noise}", *index))
            except FloatingPointError:
                self.codec.spoil(x[of_range], code[of_code])

    def decode(self, code: Array, lo: int, hi: int, out: Array) -> None:
        """Compute out = the values of the range."""
        for piece in self.pieces(lo, hi):
            if piece.as_it_is:
                self.backend.copy(out[piece.of_range], code[piece.of_code].view(self.dtype))
            else:
                self.codec.decode(self.backend, code[piece.of_code], out[piece.of_range].reshape(piece.shape))

    def decode_add(self, code: Array, lo: int, hi: int, out: Array) -> None:
        """Compute out += the values of the range."""
        for piece in self.pieces(lo, hi):
            if piece.as_it_is:
                self.backend.add(out[piece.of_range], code[piece.of_code].view(self.dtype))
            else:
                self.codec.decode_add(self.backend, code[piece.of_code], out[piece.of_range].reshape(piece.shape))

    def combine(self, total: Array, lo: int, hi: int) -> None:
        """Turn the sum of all senders' decoded ranges into the result, in place."""
        for piece in self.pieces(lo, hi):
            if not piece.as_it_is:
                self.codec.combine(self.backend, total[piece.of_range])

    def state(self) -> State:
        """Return all states as named arrays, `<tensor>.<array>`; a tensor held in part has the residual of that part."""
        return {f"{name}.{key}": array for name, state in self._states.items() for key, array in state.items()}

    def load(self, state: State) -> None:
        """Take over what `state` returned on a side that held the same range; ValueError names what does not fit."""
        own = self.state()
        if unlike := sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]:
            raise ValueError(f"compression: the saved state differs in '{unlike[0]}' from that of {type(self.codec).__name__} over these tensors")
        for name, array in own.items():
            self.backend.put(array, state[name])


def rows_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    """Return a tensor's shape as a table: its first axis, and all others."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
