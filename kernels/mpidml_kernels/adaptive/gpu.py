"""Lay the steps whose size each element sets by itself over threads; their meaning is in reference.py. Constants are computed here, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mpidml_kernels.launch import Gpu, each

Numbers = tuple[float, ...]

_each = partial(each, "adaptive")


def _with(constants: Callable[..., Numbers], n_arrays: int, name: str) -> Callable[..., None]:
    """Return what launches a kernel on as many arrays, and on the constants that it makes of the numbers after them."""
    step = _each(name)

    def go(gpu: Gpu, *given: Any) -> None:
        step(gpu, *given[:n_arrays], *constants(*given[n_arrays:]))

    return go


def _decaying(*numbers: float) -> Numbers:
    """Give a mean's decay, the last number but one, and what it leaves to the new value."""
    *rate, decay, eps = numbers
    return *rate, decay, 1 - decay, eps


def _of_adam(*numbers: float) -> Numbers:
    *rate, beta1, beta2, eps, bias1, bias2, decay = numbers
    return *rate, beta1, 1 - beta1, beta2, 1 - beta2, eps, 1 / bias1, 1 / bias2, decay


def _of_lion(*numbers: float) -> Numbers:
    *rate, beta1, beta2, decay = numbers
    return *rate, beta1, 1 - beta1, beta2, 1 - beta2, decay


def _of_ftrl(rate: float, *numbers: float) -> Numbers:
    return 1 / rate, *numbers


adagrad = _each("adagrad")
adagrad_in_place = _each("adagrad_in_place")
adagrad_transform = _each("adagrad_transform")
rmsprop = _with(_decaying, 4, "rmsprop")
rmsprop_in_place = _with(_decaying, 3, "rmsprop_in_place")
rmsprop_transform = _with(_decaying, 2, "rmsprop_transform")
adadelta = _with(_decaying, 5, "adadelta")
adadelta_in_place = _with(_decaying, 4, "adadelta_in_place")
adadelta_transform = _with(_decaying, 3, "adadelta_transform")
adam = _with(_of_adam, 5, "adam")
adam_in_place = _with(_of_adam, 4, "adam_in_place")
adam_transform = _with(_of_adam, 4, "adam_transform")
lion = _with(_of_lion, 4, "lion")
lion_in_place = _with(_of_lion, 3, "lion_in_place")
lion_transform = _with(_of_lion, 3, "lion_transform")
ftrl = _with(_of_ftrl, 6, "ftrl")
ftrl_in_place = _with(_of_ftrl, 5, "ftrl_in_place")
ftrl_delta = _with(_of_ftrl, 5, "ftrl_delta")
