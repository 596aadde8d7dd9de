"""Hold the tables of broken kernels to the kernels that there are: none is without one that is caught."""

import importlib
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
from mpidml_kernels import LAWS
from mpidml_kernels.signatures import kernels

FOLDER = files("mpidml_kernels")
SOURCES = {folder.name: (folder / "gpu.cu").read_text() for folder in FOLDER.iterdir() if (folder / "gpu.cu").is_file()}
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_gpu*.py"))


def table():
    """Return the rows (family or "device", kernel, text, what takes its place, what is said of it) of every module that keeps some."""
    found = (importlib.import_module(f"{__package__}.{name}") for name in MODULES)
    return [row for module in found for row in getattr(module, "MUTANTS", [])]


def bodies(source):
    """Return the text of each kernel of a file, from its declaration to the brace in the first column."""
    found = {}
    for text in re.split(r'(?=extern\s+"C"\s+__global__)', source)[1:]:
        (name,) = kernels(text, np.float32)
        found[name] = text.partition("\n}")[0]
    return found


def without_mutant(sources, rows):
    """Name the kernels that no row breaks, by its name or, where only another kernel's call starts it, by a text that stands in it."""
    broken = [row for row in rows if row[4] is not None]
    return [
        f"{family}: {name}"
        for family, source in sources.items()
        for name, body in bodies(source).items()
        if not any(row[0] == family and (row[1] == name or (name not in LAWS and row[2] in body)) for row in broken)
    ]


def test_every_kernel_has_a_broken_variant_that_is_caught():
    assert without_mutant(SOURCES, table()) == []


def test_every_kernel_of_a_file_is_looked_at():
    for source in SOURCES.values():
        assert list(bodies(source)) == list(kernels(source, np.float32)) != []


def test_a_kernel_whose_mutants_are_taken_away_is_named_and_one_that_is_not_broken_counts_for_nothing():
    rows = [row for row in table() if row[1] != "dropout"]
    assert without_mutant(SOURCES, rows) == ["dense: dropout"]
    assert without_mutant(SOURCES, [*rows, ("dense", "dropout", "a", "a ", None)]) == ["dense: dropout"]
