"""Measure every codec's encode and decode_add beside memcpy, on one core and in one process: `python benchmarks/codecs/run.py [--rounds N] [--values N] [--smoke]`.

Rates are of the float32 side, by CPU time: 4 bytes a value over seconds. See README.md beside this file for the question, the law and the results.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import Watch, describe
from benchmarks.rounds import Rounds, Sample, interleave
from mpidml.runtime.launch import THREAD_VARIABLES

SMOKE_VALUES = 1 << 12
COLUMNS = 1 << 10
PLAIN = dict.fromkeys(["bf16:residual=false", "fp16:residual=false", "int8:residual=false"], 1.0)
KEEPING = {"bf16": 1.0, "fp16": 1.0, "int8": 1.0, "one_bit": 0.8, "two_bit": 0.8, "top_k:0.01:sampled=true": 0.5}
ENCODE = PLAIN | KEEPING
"""What each codec's encode must reach, in rates of memcpy; the others stand beside without a target."""
OTHERS = ["top_k:0.01", "random_k:0.01", "random_k:0.01:unbiased=true", "ternary", "qsgd", "sign_majority", "low_rank"]


def timed(work: Callable[[], Any]) -> Callable[[], Sample]:
    """Return a measurement of one call by its CPU time."""

    def measure() -> Sample:
        with Watch() as watch:
            started = time.process_time()
            work()
            cpu = time.process_time() - started
        return Sample(cpu, watch.others())

    return measure


def variants(n: int) -> tuple[dict[str, Callable[[], Sample]], dict[str, int]]:
    """Return what is measured, and the bytes of each codec's code; every codec has arrays of its own but for the gradient, which all read."""
    import mpidml_kernels
    import numpy as np

    from mpidml.compression.base import make_codec

    backend = mpidml_kernels.backend("numba")
    shape = (n // COLUMNS, COLUMNS)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    out = np.zeros(shape, np.float32)
    found: dict[str, Callable[[], Sample]] = {"memcpy": timed(lambda: np.copyto(out, x))}
    sizes = {}
    for text in [*ENCODE, *OTHERS]:
        codec = make_codec(text)
        state, code = codec.init(shape, x.dtype), np.zeros(codec.nbytes(shape), np.uint8)
        sizes[text] = code.size
        found[f"{text} encode"] = timed(lambda codec=codec, state=state, code=code: codec.encode(backend, x, state, code, 1))
        found[f"{text} decode_add"] = timed(lambda codec=codec, code=code: codec.decode_add(backend, code, out))
        for _ in range(3):  # loads kernels, touches pages, and brings thresholds and residuals to where they stay
            found[f"{text} encode"]()
        found[f"{text} decode_add"]()
    return found, sizes


def lower_quartile(rounds: Rounds, name: str) -> float:
    """Return the seconds that a quarter of the rounds stayed below: the least disturbed of a busy machine, without hanging on one of them."""
    seconds = sorted(sample.seconds for sample in rounds.samples[name])
    return seconds[len(seconds) // 4]


def report(rounds: Rounds, sizes: dict[str, int], n: int) -> list[str]:
    """Print a line a codec; return what missed its target."""
    copy, missed = lower_quartile(rounds, "memcpy"), []
    print(f"{'memcpy':30s}{'':10s}{4e-9 * n / copy:8.1f} GB/s                       others {rounds.others('memcpy'):.2f} cores")
    for text, size in sizes.items():
        encode, decode = (4e-9 * n / lower_quartile(rounds, f"{text} {what}") for what in ("encode", "decode_add"))
        ratios = [rate / (4e-9 * n / copy) for rate in (encode, decode)]
        print(
            f"{text:30s}{8 * size / n:6.2f} bit{encode:8.1f} GB/s x{ratios[0]:.2f}{decode:8.1f} GB/s x{ratios[1]:.2f} added"
            f"   others {rounds.others(f'{text} encode'):.2f} cores",
            flush=True,
        )
        if ratios[0] < ENCODE.get(text, 0):
            missed.append(f"{text} encode: x{ratios[0]:.2f} of memcpy, target x{ENCODE[text]:g}")
    return missed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--values", type=int, default=1 << 24, help=f"of float32; a multiple of {COLUMNS}")
    parser.add_argument("--smoke", action="store_true", help="run once at the smallest size; the figures mean nothing")
    options = parser.parse_args()
    n_rounds, n = (1, SMOKE_VALUES) if options.smoke else (options.rounds, options.values)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    print("\n".join(describe(os.environ, options.smoke)))
    print(f"\n{n} values, {4e-6 * n:.1f} MB; lower quartile of {n_rounds} rounds of CPU time; rates are of the float32 side, x: over memcpy's")
    measured, sizes = variants(n)
    missed = report(interleave(measured, n_rounds), sizes, n)
    if not options.smoke:
        print("\n".join(f"MISSED {what}" for what in missed) or "met    all targets")


if __name__ == "__main__":
    main()
