"""A file in a folder is a plug-in; its words become its constructor's arguments, or one line that says why not."""

import math

import pytest

from mpidml.core import plugins
from mpidml.core.errors import UserError

PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass

class Helper: pass

@dataclass
class MyRule:
    first: int = 1
    second_word: object = "x"
    given: object = None
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package with two plug-ins, a base, a folder of its own and a file without its class."""
    package = tmp_path / "plugged"
    (package / "nested").mkdir(parents=True)
    texts = {"__init__": "", "base": "class Base: pass", "my_rule": PLUGIN, "other": "class Other:\n    def __init__(self, **rest): pass",
             "empty": "from plugged.other import Other as Empty", "nested/__init__": ""}
    for name, text in texts.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for known in (plugins._installed, plugins._files):
        known.cache_clear()
    yield "plugged"
    for known in (plugins._installed, plugins._files):
        known.cache_clear()


def test_the_files_are_the_names(folder):
    assert plugins.names(folder) == ["empty", "my_rule", "other"]
    assert {"asp", "bsp", "ssp"} <= set(plugins.names("mpidml.sync"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("my_rule", (1, "x")),
        ("my-rule", (1, "x")),
        ("my_rule:3", (3, "x")),
        ("my_rule:3:0.5", (3, 0.5)),
        ("my_rule:second-word=true", (1, True)),
        ("my_rule:second_word=text:7", (1, "text")),
        ("my_rule:-1:1e-4", (-1, 1e-4)),
        ("my_rule:second_word=inf", (1, math.inf)),
        ("my_rule:second_word=a=b", (1, "a=b")),
        ("my_rule:second_word=", (1, "")),
    ],
)
@pytest.mark.parametrize("by", ["name", "path"])
def test_words_become_arguments(folder, tmp_path, by, text, wanted):
    if text.endswith("text:7"):  # a word without a name takes its position: the second
        with pytest.raises(UserError, match="given twice"):
            plugins.make(folder, text)
        return
    if by == "path":
        text = text.replace("my-rule", "my_rule").replace("my_rule", f"{tmp_path}/plugged/my_rule.py", 1)
    rule = plugins.make(folder, text, given="from outside", unknown=1)
    assert (rule.first, rule.second_word) == wanted and type(rule.second_word) is type(wanted[1])
    assert rule.given == "from outside", "taken where the constructor has it"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("my_rle", "plugged: there is no 'my_rle'; known: empty, my_rule, other; did you mean 'my_rule'?"),
        ("base", "there is no 'base'"),
        ("", "there is no ''"),
        ("my_rule:1:2:3", "takes 2 argument(s), 3 were given; its arguments are: first, second_word"),
        ("my_rule:frist=1", "has no argument 'frist'; known: first, second_word; did you mean 'first'?"),
        ("my_rule:given=1", "has no argument 'given'"),
        ("my_rule:1:first=2", "argument 'first' is given twice; give it once"),
        ("other:1", "takes 0 argument(s), 1 were given; its arguments are: none"),
        ("other:a=1", "it takes none"),
        ("empty", "holds no class named like the file; define class Empty"),
        ("./nowhere.py:3", "nowhere.py: there is no such file"),
    ],
)
def test_what_cannot_be_is_one_line(folder, text, says):
    with pytest.raises(UserError) as error:
        plugins.make(folder, text, given=0)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_constructor_that_refuses_its_values_is_one_line():
    with pytest.raises(UserError, match="'ssp:half': the staleness half is not a whole number from 0 up; give for example ssp:3"):
        plugins.make("mpidml.sync", "ssp:half")


def test_a_file_with_a_dash_and_an_installed_entry_point_work_like_a_shipped_one(folder, tmp_path, monkeypatch):
    path = tmp_path / "my-rule.py"
    path.write_text(PLUGIN)
    assert plugins.make(folder, f"{path}:5").first == 5

    class Entry:
        name = "installed"

        def load(self):
            return plugins.load(folder, "other")

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Entry()] if group == folder else [])
    assert "installed" in plugins.names(folder) and type(plugins.make(folder, "installed")).__name__ == "Other"


def test_installed_entry_points_are_looked_up_once_a_folder(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: asked.append(group) or [])
    for _ in range(5):
        plugins.make(folder, "my_rule:1")
        plugins.names(folder)
    assert asked == [folder]
    for other in ("mpidml.sync", "mpidml.optim"):
        plugins.names(other)
    assert len(asked) == len(set(asked))
    plugins._installed.cache_clear()
    plugins.names(folder)
    assert asked.count(folder) == 2, "the broken variant, which asks anew, is seen"


def test_a_plug_in_that_is_made_again_costs_no_look_at_its_folder_and_constructor(folder, monkeypatch):
    looks = []
    for module, name in ((plugins.pkgutil, "iter_modules"), (plugins.inspect, "signature")):
        of = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, of=of, name=name: looks.append(name) or of(*given))
    plugins._parameters.cache_clear()
    for first in range(5):
        assert plugins.make(folder, f"my_rule:{first}").first == first
    assert looks == ["iter_modules", "signature"]
    plugins._files.cache_clear()
    plugins.make(folder, "my_rule:1")
    assert looks.count("iter_modules") == 2, "the broken variant, which looks anew, is seen"
