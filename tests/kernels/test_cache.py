"""Show that importing the kernels costs nothing, and that compiled code lives in a safe folder of its own."""

import os
import subprocess
import sys

import mpidml_kernels
from mpidml_kernels import cache


def python(code, **environment):
    kept = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run([sys.executable, "-c", code], env={**kept, "PYTHONPATH": path, **environment}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_or_the_references_imports_no_compiler():
    code = "import sys, mpidml_kernels as k; k.backend('numpy'); print('numba' in sys.modules, 'llvmlite' in sys.modules)"
    assert python(code) == "False False"


def test_the_folder_is_the_users_own_and_a_chosen_one_wins(tmp_path):
    code = "from mpidml_kernels import cache; import os; cache.prepare(); print(os.environ['NUMBA_CACHE_DIR'])"
    assert python(code, XDG_CACHE_HOME=str(tmp_path)) == str(tmp_path / "mpidml" / f"kernels-{cache.key()}")
    assert python(code, XDG_CACHE_HOME=str(tmp_path), NUMBA_CACHE_DIR="/chosen") == "/chosen"


def test_a_chosen_folder_that_cannot_be_written_is_replaced_and_remembered(tmp_path):
    (tmp_path / "file").touch()
    code = "from mpidml_kernels import cache; import os; cache.prepare(); print(os.environ['NUMBA_CACHE_DIR'], cache.refused)"
    for chosen in (tmp_path / "file", tmp_path / "file" / "below"):
        assert python(code, XDG_CACHE_HOME=str(tmp_path), NUMBA_CACHE_DIR=str(chosen)).split() == [str(tmp_path / "mpidml" / f"kernels-{cache.key()}"), str(chosen)]


def test_numba_imported_before_us_uses_the_folder_too(tmp_path):
    code = "import numba; from mpidml_kernels import cache; cache.prepare(); print(numba.config.CACHE_DIR)"
    assert python(code, XDG_CACHE_HOME=str(tmp_path)).startswith(str(tmp_path))


def test_without_a_home_the_folder_is_temporary_and_private(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache.folder()
    assert folder.parent.parent == tmp_path and folder.stat().st_mode & 0o077 == 0


def test_a_folder_of_another_user_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    assert cache.folder().name.startswith("mpidml-kernels-")


def test_the_key_changes_with_any_source_file(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "dense").mkdir(parents=True)
    (package / "dense" / "cpu.py").write_text("x = 1")
    monkeypatch.setattr(cache, "__file__", str(package / "cache.py"))
    before = cache.key()
    assert cache.key() == before
    (package / "dense" / "cpu.py").write_text("x = 2")
    assert cache.key() != before


def test_whether_kernels_are_compiled_is_known_before_they_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not mpidml_kernels.is_compiled()
    (tmp_path / "cpu.add-1.py311.nbi").touch()
    assert mpidml_kernels.is_compiled()
