"""Show that importing the kernels costs nothing, and that compiled code lives in a safe folder of its own."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import mpidml_kernels
import pytest
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
    assert python(code, XDG_CACHE_HOME=str(tmp_path), NUMBA_CACHE_DIR=str(tmp_path / "chosen")) == str(tmp_path / "chosen" / f"kernels-{cache.key()}")


def test_numba_imported_before_us_uses_the_folder_too(tmp_path):
    code = "import numba; from mpidml_kernels import cache; cache.prepare(); print(numba.config.CACHE_DIR)"
    assert python(code, XDG_CACHE_HOME=str(tmp_path)).startswith(str(tmp_path))


def test_without_a_home_the_folder_is_temporary_and_private(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)  # which whoever has loaded kernels has set
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder, said = cache.folder()
    assert str(blocked) in said and str(folder) in said and "NUMBA_CACHE_DIR" in said and "\n" not in said
    assert folder.parent.parent == tmp_path and folder.stat().st_mode & 0o077 == 0


def test_a_folder_of_another_user_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    assert cache.folder()[0].name.startswith("mpidml-kernels-")


def test_the_key_changes_with_any_source_file(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "dense").mkdir(parents=True)
    (package / "dense" / "cpu.py").write_text("x = 1")
    monkeypatch.setattr(cache, "__file__", str(package / "cache.py"))
    before = cache.key()
    assert cache.key() == before
    (package / "dense" / "cpu.py").write_text("x = 2")
    assert cache.key() != before


def test_a_cache_of_another_cpu_is_another_folder(monkeypatch):
    before = cache.key()
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert cache.key() != before


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cold cache of this test's own."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cold"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache, "_used", set())
    return cache.folder()[0]


def test_whether_kernels_are_compiled_is_known_before_they_are_loaded(folder):
    assert not mpidml_kernels.is_compiled()
    for family in ("dense", "loss", "update"):
        (folder / f"{family}.compiled").touch()
    assert mpidml_kernels.is_compiled() and not mpidml_kernels.is_compiled(mpidml_kernels.norm)


def at_once(folder, n=4):
    """Let n threads want the same family; return how many found it not compiled, and compiled it."""
    compiled, names = [], {"x"}

    def load():
        if (folder / "made").exists():
            return
        time.sleep(0.05)
        compiled.append(threading.get_ident())
        (folder / "made").touch()

    cache.prepare()
    threads = [threading.Thread(target=cache.once, args=(*names, load)) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return len(compiled)


def test_of_all_that_want_a_family_one_compiles_it(folder):
    assert at_once(folder) == 1 and (folder / "x.compiled").exists()


def test_without_the_lock_each_of_them_would(folder, monkeypatch):
    monkeypatch.setattr(cache, "_alone", lambda path: contextlib.nullcontext())
    assert at_once(folder) > 1


def test_a_failure_to_compile_is_not_taken_for_compiled(folder):
    cache.prepare()
    with pytest.raises(ZeroDivisionError):
        cache.once("x", lambda: 1 / 0)
    assert not cache.is_compiled("x")
    done = []
    cache.once("x", lambda: done.append(7))
    cache.once("x", lambda: done.append(8))
    assert done == [7] and cache.is_compiled("x")


def test_who_holds_the_lock_for_ever_is_not_waited_for_for_ever(folder, monkeypatch):
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 0.1)
    cache.prepare()
    done = []
    with cache._alone(folder / "x.lock"):
        cache.once("x", lambda: done.append(7))
    assert done == [7]


COUNT = """
import sys, mpidml_kernels as k
kernels = k.Backend(name="numba")
print(k.cache.prepare(), file=sys.stderr)
kernels.load(k.norm)
kernels.fetch('f4')
kernels.fetch('f8')
found = [kernels.layer_norm.stats, kernels.layer_norm_backward.stats]
print(sum(sum(of.cache_misses.values()) for of in found), sum(sum(of.cache_hits.values()) for of in found))
"""


def start(code, **environment):
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_four_cold_processes_compile_each_kernel_once_and_a_copy_serves_where_the_folder_is_read_only(tmp_path):
    """Ranks of one job or of several: two kernels for two types are four compilations. Then the folder is another user's image, and nothing is compiled again."""
    cold = {"NUMBA_CACHE_DIR": str(tmp_path / "image"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    found = [of.communicate(timeout=200) for of in [start(COUNT, **cold) for _ in range(4)]]
    counts = [[int(word) for word in out.split()] for out, _ in found]
    assert sum(misses for misses, _ in counts) == 4 and sum(hits for _, hits in counts) == 12, found
    blocked = "import pathlib, tempfile\nmade = tempfile.TemporaryFile\n"  # root may write anywhere, so the system's refusal is played
    blocked += "def refuse(dir, **_):\n    if 'image' in str(dir): raise OSError\n    return made(dir=dir)\ntempfile.TemporaryFile = refuse\n"
    out, err = start(blocked + COUNT, **cold).communicate(timeout=100)
    assert out.split() == ["0", "4"], err
    assert "image" in err and "home" in err and err.count("kernels:") == 1


def test_a_kernel_that_ran_in_parallel_before_keeps_its_threads(tmp_path):
    """Numba refuses another number of threads once it has started some; the environment may name another one by then."""
    code = "import os, numba; numba.config.THREADING_LAYER = 'workqueue'; numba.set_num_threads(1); os.environ['NUMBA_NUM_THREADS'] = '1'\n"
    code += "from mpidml_kernels import cache; cache.prepare(); print(numba.config.CACHE_DIR)"
    assert python(code, XDG_CACHE_HOME=str(tmp_path), NUMBA_NUM_THREADS="2").startswith(str(tmp_path))
