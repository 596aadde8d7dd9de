"""Build an optimizer as a chain of links: each but the last transforms the gradient, the last descends.

    clip:1.0 + decay:1e-4 + momentum:0.9        g -> clip(g) -> g + 1e-4 w -> v = 0.9 v + g, w = w - rate v

A link is elementwise when it treats every element alike, whatever its neighbours are; then a server may run it on its shard alone. One that needs norms of
the whole gradient, or of each of its tensors, runs before the cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike

from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.core.flat import Array, FlatParams

FOLDER = "mpidml.optim"
State = dict[str, Array]


def number(name: str, value: object, at_least: float = 0.0, below: float = math.inf) -> float:
    """Return `value` as a float if it is one in [at_least, below); raise ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value < below:
        raise ValueError(f"{name} = {value} is not a number in [{at_least:g}, {below:g}); give one that is")
    return float(value)


def shortened(beta: float, memory: float) -> float:
    """Return the decay rate whose memory 1 / (1 - beta) is `memory` times shorter, at the shortest one step (0)."""
    return 1.0 - min(1.0, (1.0 - beta) * memory)


class Link:
    """One gradient transform. All arrays are flat, contiguous, of one length and dtype; nothing is allocated after `init`.

    They lie where `backend` computes, which may be a device (`init` makes NumPy's all the same): what a link does with them goes by the backend.

    `descends`: it ends a chain and has `apply` and `delta`; the others have `transform` alone. `normalised`: the size of its step does not
    shrink with the gradient.
    `share`: the part of the global batch that a gradient given to this link stands for. What does not shrink with the gradient by itself (a
    limit, a decay, a normalised step) must shrink by it, or n workers would do it n times.
    `rests`: a step with a gradient of zero makes no difference, so that rows without one may be left out (else that is lazy: a momentum does not
    go on, a decay does not act on them meanwhile).
    """

    share = 1.0
    rests = False

    scope: ClassVar[Literal["elementwise", "tensor", "global"]] = "elementwise"
    descends: ClassVar[bool] = False
    normalised: ClassVar[bool] = False

    def see(self, params: FlatParams) -> None:
        """Learn where the tensors lie in the flat arrays; only a link of scope "tensor" minds."""

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Return the state for n elements as named arrays; none unless a link says otherwise."""
        return {}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Change the gradient `g` in place and bring the state to `step` (the first is 1); `w` is only read.

        `memory` >= 1 makes the link's momentum that many times shorter.
        """
        raise NotImplementedError

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute out = w - rate u in one pass, u being what `transform` makes of g; `out is w` means in place."""
        raise NotImplementedError

    def delta(self, backend: Any, g: Array, state: State, w: Array, rate: float, step: int, memory: float = 1.0) -> None:
        """Turn `g` into the change of the weights, -rate u; `w` is only read. A worker calls it, on a state that sees its own gradients alone.

        A link whose step is no multiple of the rate has a `delta` of its own, and no `transform`.
        """
        self.transform(backend, g, state, w, step, memory)
        backend.scale(g, -rate)


class Moments(Link):
    """What adam and adamw share: running means `m` of the gradient and `v` of its square, and u = m' / (sqrt(v') + eps) + decay w without their bias."""

    descends = True
    normalised = True

    def __init__(self, beta1: float, beta2: float, eps: float, decay: float) -> None:
        self.beta1 = number("beta1", beta1, below=1)
        self.beta2 = number("beta2", beta2, below=1)
        self.eps = number("eps", eps)
        self.decay = number("decay", decay)

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Start from zero; the bias corrections make up for it."""
        return {"m": np.zeros(n, dtype), "v": np.zeros(n, dtype)}

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Turn `g` into u."""
        backend.adam_transform(w, state["m"], state["v"], g, *self._constants(step, memory))

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Compute m, v and out in one pass."""
        if out is w:
            backend.adam_in_place(w, state["m"], state["v"], g, rate, *self._constants(step, memory))
        else:
            backend.adam(w, out, state["m"], state["v"], g, rate, *self._constants(step, memory))

    def _constants(self, step: int, memory: float) -> tuple[float, float, float, float, float, float]:
        beta1 = shortened(self.beta1, memory)  # the mean of squares is no momentum: its memory stays
        return beta1, self.beta2, self.eps, 1 - beta1**step, 1 - self.beta2**step, self.decay


class PerTensor(Link):
    """What lars and lamb share: the step of a tensor is measured against the norm of its weights.

    Tensors of one dimension (biases, gains) are neither measured nor decayed, unless `vectors`. Until `see` is called all elements are one tensor.
    """

    scope: ClassVar[Literal["elementwise", "tensor", "global"]] = "tensor"
    descends = True
    normalised = True

    def __init__(self, vectors: bool) -> None:
        if not isinstance(vectors, bool):
            raise ValueError(f"vectors = {vectors} is neither true nor false; give one of them")
        self.vectors = vectors
        self.tensors = [(slice(None), True)]

    def see(self, params: FlatParams) -> None:
        """Take each tensor's range, and whether it is measured."""
        self.tensors = [(params.slices[name], self.vectors or len(shape) > 1) for name, shape in params.shapes.items()]

    def apply(self, backend: Any, w: Array, out: Array, g: Array, state: State, rate: float, step: int, memory: float = 1.0) -> None:
        """Turn `g` into u, then compute out = w - rate u."""
        self.transform(backend, g, state, w, step, memory)
        if out is w:
            backend.descend_in_place(w, g, rate)
        else:
            backend.descend(w, out, g, rate)


def norm(backend: Any, a: Array) -> float:
    """Return the Euclidean norm."""
    return math.sqrt(backend.sum_of_squares(a))


class Transforms:
    """Links that transform the gradient, in order; a descent among them gives its direction u.

    State arrays are named `<index in the whole chain>.<link>.<array>`; `first` is the index of the first link.
    """

    def __init__(self, links: Sequence[Link], first: int = 0) -> None:
        self.links = tuple(links)
        self.first = first
        self._keys = [(link, self._named(i, link)) for i, link in enumerate(self.links)]
        self._transforming = self._keys

    def named(self) -> list[tuple[Link, list[tuple[str, str]]]]:
        """Return every link with the names of its state arrays, each its own and that in the state of all."""
        return self._keys

    def see(self, params: FlatParams) -> None:
        """Tell every link where the tensors lie."""
        for link in self.links:
            link.see(params)

    def each_sees(self, share: float) -> None:
        """Tell every link that the gradients it will see stand for `share` of the global batch."""
        for link in self.links:
            link.share = share

    def _named(self, i: int, link: Link) -> list[tuple[str, str]]:
        return [(name, f"{self.first + i}.{type(link).__name__.lower()}.{name}") for name in link.init(0, np.float32)]

    def init(self, n: int, dtype: DTypeLike) -> State:
        """Return the state of all links for n elements."""
        return {key: array for link, keys in self._keys for (_, key), array in zip(keys, link.init(n, dtype).values(), strict=True)}

    def state_per_byte(self, dtype: DTypeLike) -> float:
        """Return the bytes of state for each byte of parameters."""
        n = 1000
        return sum(a.nbytes for a in self.init(n, dtype).values()) / (n * np.dtype(dtype).itemsize)

    def transform(self, backend: Any, g: Array, state: State, w: Array, step: int, memory: float = 1.0) -> None:
        """Apply every transforming link to `g` in place; the descent that ends a chain is not run, one that is left of the cut gives its share of u."""
        for link, keys in self._transforming:
            link.transform(backend, g, {name: state[key] for name, key in keys}, w, step, memory)
            if link.normalised and link.share != 1.0:
                backend.scale(g, link.share)


class Chain(Transforms):
    """Transforming links and one descent at `learning_rate`."""

    def __init__(self, links: Sequence[Link], learning_rate: float, first: int = 0) -> None:
        if not links or [link.descends for link in links] != [False] * (len(links) - 1) + [True]:
            raise ValueError("a chain has exactly one descending link, as its last")
        super().__init__(links, first)
        self.learning_rate = learning_rate
        *self._transforming, (self.descent, self._descent_keys) = self._keys

    def apply(
        self, backend: Any, w: Array, out: Array, g: Array, state: State, step: int, rate_factor: float = 1.0, memory: float = 1.0
    ) -> None:
        """Compute out = w - learning_rate rate_factor u; `out is w` means in place; `g` may be overwritten."""
        if len(self.links) > 1:
            self.transform(backend, g, state, w, step, memory)
        own = {name: state[key] for name, key in self._descent_keys}
        self.descent.apply(backend, w, out, g, own, self._rate(rate_factor), step, memory)

    def delta(self, backend: Any, g: Array, state: State, w: Array, step: int, rate_factor: float = 1.0, memory: float = 1.0) -> None:
        """Turn `g` into the change to add to the weights, -learning_rate rate_factor u; `w` is only read."""
        self.transform(backend, g, state, w, step, memory)
        own = {name: state[key] for name, key in self._descent_keys}
        self.descent.delta(backend, g, own, w, self._rate(rate_factor), step, memory)

    def _rate(self, rate_factor: float) -> float:
        return self.learning_rate * rate_factor * (self.descent.share if self.descent.normalised else 1.0)

    def split(self, whole_tensors: bool = False) -> tuple[Transforms | None, Chain]:
        """Cut after the last link that is not elementwise: what needs the whole gradient, and what a server may run on its own shard.

        With `whole_tensors` a server has all of each tensor, and runs what measures these, too.
        The parts keep the names of their state, so a saved state fits either form. Of a descent that is not elementwise the step alone is left to servers.
        """
        cut = max((i + 1 for i, link in enumerate(self.links) if link.scope == "global" or (link.scope == "tensor" and not whole_tensors)), default=0)
        before = Transforms(self.links[:cut], self.first) if cut else None
        return before, Chain(self.links[cut:] or [plugins.make(FOLDER, "sgd")], self.learning_rate, self.first + cut)


def make_chain(text: str, learning_rate: float) -> Chain:
    """Parse links joined by `+`, as in "clip:1.0+momentum:0.9"; the `+` of an exponent (1e+2) joins nothing."""
    if isinstance(learning_rate, bool) or not isinstance(learning_rate, int | float) or not 0 < learning_rate < math.inf:
        raise UserError(f"learning rate: {learning_rate} is not a finite number > 0; give one such as 0.01")
    parts = re.split(r"(?<!\d[eE])\+", text)
    if len(parts) > 1 and not all(part.strip() for part in parts):
        raise UserError(f"optimizer '{text}': a link is missing beside a '+'; join names, as in clip:1+adam")
    links = [plugins.make(FOLDER, part.strip()) for part in parts]
    for part, link in zip(parts, links, strict=True):
        if not isinstance(link, Link):
            raise UserError(f"optimizer '{part.strip()}': {type(link).__name__} is not a link; derive it from mpidml.optim.base.Link")
    descents = [part.strip() for part, link in zip(parts, links, strict=True) if link.descends]
    if len(descents) > 1:
        raise UserError(f"optimizer '{text}': both '{descents[0]}' and '{descents[1]}' descend; keep one of them, as the last link")
    if not links[-1].descends:
        raise UserError(f"optimizer '{text}': the last link '{parts[-1].strip()}' does not descend; end with one that does, as in '{text}+sgd'"
                        if not descents else f"optimizer '{text}': '{descents[0]}' descends but is not the last link; move it to the end")
    return Chain(links, float(learning_rate))
