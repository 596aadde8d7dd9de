"""Hold the run's folder to three promises: refused before training, never half written, read back as it was given."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.runtime import outputs, run_files
from mpidml.runtime.outputs import RunFolder, default_out, plain, to_toml
from tests.changed import changed


def made(path: Path) -> RunFolder:
    folder = RunFolder.prepare(path)
    folder.create()
    return folder


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value) and "choose another --out" in str(caught.value)
    return str(caught.value)


def test_nothing_is_created_before_create(tmp_path: Path) -> None:
    folder = RunFolder.prepare(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    folder.create()
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("name", ["summary.json", "config.toml", "metrics.jsonl", "model.safetensors"])
def test_the_folder_of_another_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    message = refusal(lambda: RunFolder.prepare(tmp_path))
    assert f"holds another run ({name})" in message and "remove it" in message


def test_a_folder_with_other_files_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert RunFolder.prepare(tmp_path).path == tmp_path


def test_a_path_at_or_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "file" / "deep" / "run", tmp_path / "link" / "run"):
        assert "is not a folder" in refusal(lambda path=path: RunFolder.prepare(path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    assert "cannot be used" in refusal(lambda: RunFolder.prepare(tmp_path / name))


def test_a_read_only_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    fields = [*real]
    fields[8] |= os.ST_RDONLY
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    assert "read-only file system" in refusal(lambda: RunFolder.prepare(tmp_path / "run"))


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as root the permission bits themselves do not bind
    assert f"no permission to write to {tmp_path}" in refusal(lambda: RunFolder.prepare(tmp_path / "run"))


def test_create_says_what_the_system_refused(tmp_path: Path) -> None:
    folder = RunFolder.prepare(tmp_path / "a" / "run")
    (tmp_path / "a").touch()
    assert "cannot be created" in refusal(folder.create)


def test_files_read_back_as_they_were_written(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    folder.write_bytes("a.bin", b"\0\1")
    folder.write_text("b.txt", "größer\n")
    folder.write_json("c.json", {"seconds": np.float32(0.5), "counts": np.arange(3), "loss": math.nan, 3: (True, None, np.int64(7))})
    assert (folder.path / "a.bin").read_bytes() == b"\0\1" and (folder.path / "b.txt").read_text("utf-8") == "größer\n"
    assert json.loads((folder.path / "c.json").read_text()) == {"seconds": 0.5, "counts": [0, 1, 2], "loss": None, "3": [True, None, 7]}
    assert sorted(p.name for p in folder.path.iterdir()) == ["a.bin", "b.txt", "c.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    folder = made(tmp_path / "run")
    folder.write_text("a.txt", "old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space"):
        folder.write_text("a.txt", "new")
    assert {p.name: p.read_text() for p in folder.path.iterdir()} == {"a.txt": "old"}


def test_a_write_in_place_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class InPlace(RunFolder):
        def write_bytes(self, name: str, data: bytes) -> None:
            with (self.path / name).open("wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                os.fsync(file.fileno())
                file.write(data[len(data) // 2 :])

    folder = InPlace(tmp_path)
    folder.write_text("a.txt", "old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write_text("a.txt", "newer!")
    assert (tmp_path / "a.txt").read_text() != "old"


def test_each_row_of_metrics_is_on_the_disk_at_once(tmp_path: Path) -> None:
    folder = made(tmp_path / "run")
    for clock in range(3):
        folder.append_metrics({"clock": clock, "loss": math.inf if clock == 1 else 0.5})
        lines = (folder.path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["clock"] for line in lines] == list(range(clock + 1))
    assert json.loads(lines[1])["loss"] is None
    folder.close()


def test_a_model_reads_back_with_its_metadata(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = made(tmp_path / "run")
    params = {"layers.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T, "scale": np.array(2.5), "empty": np.zeros((0, 4))}
    folder.write_model(params, {"model": "mlp", "seed": "3"})
    with safe_open(folder.path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"model": "mlp", "seed": "3"}
        for name, array in params.items():
            got = file.get_tensor(name)
            assert got.shape == array.shape and got.dtype == array.dtype and (got == array).all()
    assert [p.name for p in folder.path.iterdir()] == ["model.safetensors"]


def test_equal_models_are_equal_bytes(tmp_path: Path) -> None:
    folder = made(tmp_path)
    params = {name: np.arange(4.0) for name in "zbca"}
    written = set()
    for keys in ("qwertyuiop", "poiuytrewq") * 5:
        folder.write_model(params, {key: f'"{key}"\n\x01 ö' for key in keys})
        written.add((folder.path / "model.safetensors").read_bytes())
    assert len(written) == 1


values = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(st.characters(exclude_categories=["Cs"])))


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.one_of(values, st.lists(values, max_size=3)), max_size=5))
def test_toml_reads_back_to_the_same_values_and_types(mapping: dict[str, Any]) -> None:
    back = tomllib.loads(to_toml(mapping))
    assert back == mapping
    assert {key: type(value) for key, value in back.items()} == {key: type(value) for key, value in mapping.items()}


def test_toml_leaves_none_out_and_takes_paths_tuples_and_numpy_scalars() -> None:
    text = to_toml({"resume": None, "out": Path("a/b"), "hidden": (64, 32), "lr": np.float64(0.1), "rate": 1e-5, "limit": math.inf})
    assert tomllib.loads(text) == {"out": "a/b", "hidden": [64, 32], "lr": 0.1, "rate": 1e-5, "limit": math.inf}
    with pytest.raises(TypeError, match="dict"):
        to_toml({"nested": {"a": 1}})


def test_plain_leaves_finite_values_alone() -> None:
    assert plain({"a": [1, 2.5, "x", None, True]}) == {"a": [1, 2.5, "x", None, True]}


def test_the_default_folder_is_named_by_the_time_and_numbered_when_taken(tmp_path: Path) -> None:
    now = datetime(2024, 2, 3, 4, 5, 6)
    names = []
    for _ in range(3):
        path = default_out(now, tmp_path)
        path.mkdir()
        names.append(path.name)
    assert names == ["20240203-040506", "20240203-040506-2", "20240203-040506-3"]
    assert default_out(now) == Path("runs/20240203-040506")


def began(path: Path) -> None:
    """Leave what a run leaves that ends before its first row."""
    folder = made(path)
    folder.claim("epochs = 1\n")
    folder.lock()
    (path / "checkpoints/.000000000004.part").mkdir(parents=True)  # as it was killed while it wrote its first
    folder.leave()


def check_taken(module: Any, path: Path) -> None:
    """Fail unless the next run takes the folder, alone, and one whose claim goes on, or came to a row or a checkpoint, is left alone."""
    began(path)
    first, second = module.RunFolder.prepare(path), module.RunFolder.prepare(path)
    third = module.RunFolder(path)
    assert (path / "config.toml").exists(), "looking changes nothing"
    first.claim("epochs = 2\n")
    first.lock()
    third._only_began = lambda: True  # it looked a moment before
    for late in (lambda: second.claim("epochs = 3\n"), lambda: third.claim("epochs = 4\n"), lambda: module.RunFolder.prepare(path)):
        assert "another run is going on in this folder" in refusal(late)
    saves, reports = (lambda: (path / "checkpoints/000000000004").mkdir()), (lambda: first.append_metrics({"clock": 0}))
    for comes, held in ((saves, "checkpoints"), (reports, "metrics.jsonl, checkpoints")):
        comes()
        first.leave()
        assert f"holds another run (config.toml, {held})" in refusal(lambda: module.RunFolder.prepare(path))
        for late in (second, third):  # which looked before
            assert "another run took this folder" in refusal(partial(late.claim, "epochs = 3\n"))
    assert (path / "config.toml").read_text() == "epochs = 2\n"


BROKEN = {
    "what is no claim": ('if self._held() != ["config.toml"] or', "if"),
    "a run that goes on": ("told = probe.lock()", 'told = ""'),
    "the lock": ("and not self.lock() and", "and"),
    "what came since it looked": (' and self._held() == ["config.toml"]:', ":"),
    "checkpoints": (' + [CHECKPOINTS] * any((self.path / CHECKPOINTS).glob("[0-9]*"))', ""),
    "what is half written": ('glob("[0-9]*")', 'glob("*")'),
}


def test_the_claim_of_a_run_that_came_to_no_row_is_taken_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_taken(outputs, tmp_path / "right")
    for name, change in BROKEN.items():
        with pytest.raises((AssertionError, pytest.fail.Exception, UserError)):
            check_taken(changed(outputs, [change]), tmp_path / name)
    began(tmp_path / "without locks")
    monkeypatch.setattr(RunFolder, "lock", lambda self: "nothing keeps another run from it\n")
    assert "holds another run (config.toml)" in refusal(lambda: RunFolder.prepare(tmp_path / "without locks"))


def test_of_two_runs_that_begin_at_once_the_second_takes_the_next_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_files, "default_out", lambda now: default_out(datetime(2024, 2, 3)))
    first, second = (run_files.open_folder(Job(), False) for _ in range(2))
    assert first.path == second.path
    for folder in (first, second):
        run_files.claim(folder, Job())
    assert [str(folder.path) for folder in (first, second)] == ["runs/20240203-000000", "runs/20240203-000000-2"]
    for late in (RunFolder(first.path), RunFolder(second.path)):
        assert "another run is going on" in refusal(late.lock)
