"""Hold the README to what is true: its Python example runs, its command lines parse, its floors are the floors."""

from __future__ import annotations

import re
import shlex

import pytest

from mpidml.cli import parse
from tests.ranks import ROOT, mpirun, python

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE, OF_TORCH, OF_SKLEARN = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LINES = re.findall(r"`(?:mpirun -n \d+ )?python -m mpidml ([^`]*)`", README) + re.findall(r"`(--[^`]*)`", README)


def numbers_printed(text, folder, n):
    """Run a program alone or on n ranks; return what its ranks print, a number each."""
    script = folder / "script.py"
    script.write_text(text)
    env = {"PYTHONUNBUFFERED": ""}  # else print tears lines of several ranks apart
    result = python([str(script)], 60, env) if n == 1 else mpirun(n, [str(script)], 60, env)
    assert result.code == 0, result
    found = [float(word) for word in result.out.split()]
    assert len(found) == n
    return found


@pytest.mark.bench
@pytest.mark.parametrize("n", [1, 3])
def test_a_module_of_pytorch_learns_in_under_30_lines_alone_and_under_mpirun(tmp_path, n):
    assert len(OF_TORCH.splitlines()) < 30 and 'sync="ssp:1"' in OF_TORCH
    assert max(numbers_printed(OF_TORCH, tmp_path, n)) < 0.1  # predicting the mean would lose 3.5
    never = OF_TORCH.replace("w.push(", "(")
    assert never != OF_TORCH and (n > 1 or min(numbers_printed(never, tmp_path, n)) > 2)


@pytest.mark.bench("sklearn")
@pytest.mark.parametrize("n", [1, 3])
def test_an_estimator_is_as_good_on_every_rank(tmp_path, n):
    scores = numbers_printed(OF_SKLEARN, tmp_path, n)
    assert min(scores) == max(scores) > 0.88


@pytest.mark.parametrize("n", [1, 3])
def test_the_python_example_runs_alone_and_under_mpirun(tmp_path, n):
    means = numbers_printed(EXAMPLE, tmp_path, n)
    # one worker: 1 - 0.9**20; several add more in the same time, stale reads make them overshoot a little
    assert all(0.8 < mean < 1.5 for mean in means), means


def test_every_command_line_of_the_readme_is_understood(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("class Mine:\n    pass\n")
    checked = 0
    for line in LINES:
        words = [word for word in shlex.split(line) if word != "..."]
        if words and words[0] == "-n":
            words = words[2:]
        if words and words[0].startswith("--") and not words[0].startswith("--config"):
            words = ["train", *words]
        if not words or words[0] not in ("train", "info", "compare", "simulate") or "--help" in words:
            continue
        if words[-1].startswith("--") and words[-1] not in ("--trace", "--tensorboard", "--deterministic", "--no-tune"):
            continue  # a flag named in a sentence, without its value
        parse(words)
        checked += 1
    assert checked >= 18
    with pytest.raises(Exception, match="no option"):
        parse(["train", "--no-such-flag", "1"])


def test_the_two_commands_stand_alone_in_a_block_each():
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2 and all(len(block.strip().splitlines()) == 1 for block in blocks)
    assert "mpirun -n 4" in blocks[0] and "-m mpidml train" in blocks[0]
    assert blocks[1].strip().endswith("-m tests")
