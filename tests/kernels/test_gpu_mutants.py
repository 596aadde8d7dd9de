"""Hold the tables of broken kernels to the kernels that there are: none is without one that is caught."""

import importlib
import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mpidml_kernels import FAMILIES, LAWS
from mpidml_kernels.signatures import kernels

FOLDER = files("mpidml_kernels")
SOURCES = {folder.name: (folder / "gpu.cu").read_text() for folder in FOLDER.iterdir() if (folder / "gpu.cu").is_file()}
FAMILY_OF = {name: family.__name__.rpartition(".")[2] for family in FAMILIES for name in family.LAWS}
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_gpu*.py"))


class Mutant(NamedTuple):
    """A broken kernel: the family's file (or "device") in which `old` is replaced, the kernel of a backend that is called then, and what is said of it."""

    family: str
    name: str
    old: str
    said: str | None


def tables():
    """Return the rows of every table of broken kernels: what a test of these modules is parametrized by as `name`, `old`, `new` and `said`, and `where`."""
    found = []
    for test in (test for name in MODULES for test in vars(importlib.import_module(f"{__package__}.{name}")).values()):
        for mark in getattr(test, "pytestmark", []):
            names = mark.args[0] if mark.name == "parametrize" else ()
            if {"name", "old", "new", "said"} <= set(names):
                rows = (dict(zip(names, getattr(row, "values", row), strict=True)) for row in mark.args[1])
                found += [Mutant(row.get("where") or FAMILY_OF[row["name"]], row["name"], row["old"], row["said"]) for row in rows]
    return found


def bodies(source):
    """Return the text of each kernel of a file, from its declaration to the brace in the first column."""
    found = {}
    for text in re.split(r'(?=extern\s+"C"\s+__global__)', source)[1:]:
        (name,) = kernels(text, np.float32)
        found[name] = text.partition("\n}")[0]
    return found


def without_mutant(sources, mutants):
    """Name the kernels that no mutant breaks, by its name or, where only another kernel's call starts it, by a text that stands in it."""

    def breaks(mutant, family, name, body):
        return mutant.family == family and mutant.said is not None and (mutant.name == name or (name not in LAWS and mutant.old in body))

    kernels_of_files = ((family, name, body) for family, source in sources.items() for name, body in bodies(source).items())
    return [f"{family}: {name}" for family, name, body in kernels_of_files if not any(breaks(mutant, family, name, body) for mutant in mutants)]


def test_every_kernel_has_a_broken_variant_that_is_caught():
    assert without_mutant(SOURCES, tables()) == []


def test_every_kernel_of_a_file_is_looked_at():
    for source in SOURCES.values():
        assert list(bodies(source)) == list(kernels(source, np.float32)) != []


def test_a_kernel_whose_mutants_are_taken_away_is_named_and_one_that_is_not_broken_counts_for_nothing():
    dense, mutants = {"dense": SOURCES["dense"]}, [mutant for mutant in tables() if mutant.name != "dropout"]
    assert without_mutant(dense, mutants) == ["dense: dropout"]
    assert without_mutant(dense, [*mutants, Mutant("dense", "dropout", "x[i", None)]) == ["dense: dropout"]
    assert without_mutant(dense, [*mutants, Mutant("dense", "dropout", "x[i", "differs")]) == []
    assert "dense: add_up_columns" in without_mutant(dense, [mutant for mutant in tables() if "i < k" not in mutant.old])
