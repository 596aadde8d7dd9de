"""Find the arrays that a rank really holds, and add them up."""

from __future__ import annotations

from functools import partial
from types import FunctionType

import numpy as np

from mpidml.nn.heads import Answers
from mpidml.nn.step import Memory, Step
from mpidml.ps.store import Store
from mpidml.runtime.bands import Bands
from mpidml.runtime.channel import Channel
from mpidml.runtime.held import Held
from mpidml.runtime.stage_channels import Turns

FOLLOWED = (Held, Store, Bands, Memory, Answers, Step)
"""Whose attributes are looked at, besides what is in tuples, lists and dicts, in calls that are made ready, and in what a function has around it."""
FEW_NBYTES = 64
"""What is left out of each array: by so much an aligned one may begin later than its memory, and a key or a salt is no larger."""


def owner(array):
    """Return the array whose memory another one shows."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def inside(thing):
    """List what is looked at in a thing."""
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, tuple | list):
        return thing
    if isinstance(thing, partial):
        return [thing.func, *thing.args]
    if isinstance(thing, FunctionType):
        return [cell.cell_contents for cell in thing.__closure__ or ()]
    return list(vars(thing).values()) if isinstance(thing, FOLLOWED) else []


def owners(things):
    """Return the arrays that can be found from things, each that owns its memory once."""
    waiting, seen, found = [*things], set(), {}
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, np.ndarray):
            found[id(owner(thing))] = owner(thing)
        elif id(thing) not in seen:
            seen.add(id(thing))
            waiting += inside(thing)
    return found


def held_nbytes(strategy):
    """Add up what this rank holds of its stages; of slots that two ranks share those that things come to."""
    found, lying, apart = 0, owners([strategy.held, strategy.link_states, strategy.stores]), {}
    for held in strategy.held.values():
        for channel in (held.taken, held.given, held.taken_back, held.given_back):
            for side in filter(None, channel.sides if isinstance(channel, Turns) else [channel]):
                apart |= owners(list(side.slots))
                found += sum(slot.nbytes for slot in side.slots) * (isinstance(side, Channel) or channel in (held.taken, held.taken_back))
    sizes = [array.nbytes - FEW_NBYTES * (array.dtype == np.uint8 or array.size == 1) for number, array in lying.items() if number not in apart]
    return found + sum(size for size in sizes if size > 0)
