"""Nets that are numbers alone, and a second way to price a candidate: slow, from the formulas, without the planner's code."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

from mpidml.core import plugins
from mpidml.core.balance import Profile, balanced
from mpidml.core.cost import CostModel
from mpidml.core.lowering import lower
from mpidml.core.replay import Seconds, replay
from mpidml.nn.parts import Part
from mpidml.planner.price import Cost, Costs
from mpidml.sim.data_parallel import sum_of
from mpidml.sim.parameter_server import Plan
from mpidml.sync.base import make_policy

FLUSHING = ["gpipe", "one_f_one_b", "zero_bubble", "interleaved:2", "looped_bfs:2", "naive", "three_step"]


class Chain:
    """Layers of so many bytes of parameters and of outputs a row, evenly split over a line: a sum of what a stage takes, one of what it gives."""

    def __init__(self, parameters, outputs, comes=8.0):
        self.parameters, self.outputs = parameters, [comes, *outputs]
        self.n_layers = len(parameters)

    def part(self, lo, hi, n, is_first, is_last):
        comes, goes = self.outputs[lo], self.outputs[hi]
        kept = sum(self.outputs[lo + 1 : hi + 1]) * 2 / n
        sums = ((goes,), () if is_first else (comes,)) if n > 1 else ((), ())
        return Part((1 / n,) * (hi - lo), sum(self.parameters[lo:hi]) / n, kept, comes, goes, *sums)


def costs(layers, **more):
    """Return costs of (forward fixed, per row, backward fixed, per row) a layer."""
    return Costs(tuple((Cost(a, b), Cost(c, d)) for a, b, c, d in layers), **more)


def factorised(n):
    return [(d, p, t) for d in range(1, n + 1) for p in range(1, n + 1) for t in range(1, n + 1) if d * p * t == n]


def crossing(machine, grid):
    """Return of each axis whether some rank and the next one on it are on different hosts, by looking at all of them."""
    data, pipe, tensor = grid
    each = machine.n_ranks // machine.n_hosts
    host = {(d, p, t): ((d * pipe + p) * tensor + t) // each for d in range(data) for p in range(pipe) for t in range(tensor)}
    lines = {"data": False, "pipe": [False] * pipe, "tensor": False}
    for (d, p, t), h in host.items():
        lines["data"] |= h != host[0, p, t]
        lines["tensor"] |= h != host[d, p, 0]
        lines["pipe"][p] |= h != host[d, (p + 1) % pipe, t]
    return lines


@cache
def summed(n, nbytes, link):
    """Return the seconds of a sum over n ranks as the simulation of data_parallel has them; n has to divide the bytes."""
    if n == 1:
        return 0.0
    cost = CostModel((1.0,), latency=link.latency, bytes_per_second=link.bytes_per_second)
    return sum_of(Plan(make_policy("bsp"), n, 1, cost, 0, int(nbytes)), "auto")[0].seconds


made = cache(lambda schedule: plugins.make("mpidml.schedules", schedule or "one_f_one_b"))
lowered = cache(lambda schedule, pipe, n_items, sums: lower(made(schedule), pipe, n_items, sums))


@cache
def cuts(given, n_stages):
    """Return where stages begin, and where the last one ends."""
    layers = [Profile(f.fixed + f.per_row * given.rows, b.fixed + b.per_row * given.rows, 0, 0) for f, b in given.layers]
    return [0, *(stage.hi for stage in balanced(layers, n_stages, 0.0).stages)]


def slow_seconds(of, task, machine, given, chain):
    """Return the seconds of a batch of a candidate on cores of its own, or None where it cannot be."""
    data, pipe, tensor = of[:3]
    if data > task.batch:
        return None
    cross = crossing(machine, of[:3])
    along = machine.between if cross["data"] else machine.inside
    rows = math.ceil(math.ceil(task.batch / data) / of.microbatches)
    if of.is_plain:
        total = sum(chain.parameters)
        compute = sum(f.fixed + f.per_row * rows + b.fixed + b.per_row * rows for f, b in given.layers) * of.microbatches
        owned = {"": 1, "ring": 1 / data, "rabenseifner": 1 / data, "recursive_doubling": 1}
        name = ""
        if data > 1:
            cost = CostModel((1.0,), latency=along.latency, bytes_per_second=along.bytes_per_second)
            name = sum_of(Plan(make_policy("bsp"), data, 1, cost, 0, int(total)), "auto")[1]
        return compute + (of.microbatches - 1) * given.add * total + summed(data, total, along) + given.update * total * owned[name]
    n_stages = pipe * made(of.schedule).n_chunks
    if n_stages > chain.n_layers:
        return None
    ends = cuts(given, n_stages)
    across = machine.between if cross["tensor"] else machine.inside
    table = []
    for s, (lo, hi) in enumerate(pairwise(ends)):
        half = [sum(each[i].fixed + each[i].per_row * rows / tensor for each in given.layers[lo:hi]) for i in (0, 1)]
        way = [summed(tensor, rows * chain.outputs[hi], across), summed(tensor, rows * chain.outputs[lo], across) if s else 0.0]
        table.append((half[0] + way[0], half[1], way[1], sum(chain.parameters[lo:hi]) / tensor))

    def take(action):
        s, op, item, _ = action
        forward, backward, way, parameters = table[s]
        added = given.add * parameters if item > 0 else 0.0
        again = forward if of.recompute else 0.0
        return {
            "F": forward, "B": again + backward + way + added, "I": again + backward / 2 + way, "W": backward / 2 + added,
            "U": given.update * parameters, "G": summed(data, parameters, along),
        }.get(op, 0.0)  # fmt: skip

    def travel(s, forward):
        link = machine.between if cross["pipe"][s % pipe if forward else (s - 1) % pipe] else machine.inside
        return link.seconds(rows * chain.outputs[ends[s + 1] if forward else ends[s]])

    return replay(lowered(of.schedule, pipe, of.microbatches, data > 1), Seconds(take, travel)).seconds
