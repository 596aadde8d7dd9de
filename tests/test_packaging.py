"""What pyproject.toml promises is there, and importing the package costs nothing."""

import ast
import tomllib

from tests.ranks import ROOT, python

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_named_in_pyproject_exists():
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (ROOT / package / "__init__.py").is_file(), package


def test_a_wheel_holds_the_kernels_that_a_gpu_compiles():
    """CUDA C is read at run time: a wheel takes all files of a package's folder but for what git ignores, unless it is told otherwise."""
    build = PROJECT["tool"]["hatch"]["build"]
    told_otherwise = {*build, *build["targets"]["wheel"]} & {"exclude", "only-include", "include"}
    assert "kernels/mpidml_kernels" in build["targets"]["wheel"]["packages"] and not told_otherwise
    assert ".cu" not in (ROOT / ".gitignore").read_text() and (ROOT / "kernels/mpidml_kernels/device.cuh").is_file()


def test_every_folder_with_code_is_a_package():
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        for file in (ROOT / package).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file.parent


def test_licence_and_notice_files_exist_and_are_not_empty():
    files = PROJECT["project"]["license-files"]
    assert "LICENSE" in files and any("NOTICE" in name for name in files)
    for name in files:
        assert (ROOT / name).stat().st_size > 0, name


def test_each_console_script_names_a_function_that_exists():
    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body), target


def test_importing_mpidml_loads_neither_mpi_nor_a_compiler_nor_a_plotter():
    heavy = {"mpi4py", "numba", "llvmlite", "scipy", "matplotlib", "safetensors", "tqdm", "numpy", "cupy", "torch"}
    result = python(["-c", "import sys, mpidml; print(*sys.modules)"])
    assert result.code == 0, result.err
    assert not heavy & set(result.out.split())


def test_a_run_without_a_report_loads_nothing_that_it_has_no_use_for():
    """Whatever is here costs each of 1,000 ranks time and looks at the file system. SciPy's linear algebra is there once a program's own kernel asks for it."""
    heavy = {"matplotlib", "PIL", "pandas", "tqdm", "rich", "safetensors", "pyarrow", "h5py", "torch", "sklearn", "onnx", "asyncio", "multiprocessing", "http"}
    heavy |= {"scipy.linalg", "scipy.sparse", "scipy.optimize", "scipy.stats", "scipy.special", "numpy.f2py", "numpy.testing", "unittest"}
    script = (
        "import sys, mpidml\nmpidml.train(mpidml.Job(steps=1, epochs=0), quiet=True, write=False)\nprint(*sys.modules)\n"
        "import numba, numpy as np\nprint(numba.njit(lambda a: np.dot(a, a))(np.ones((2, 2)))[0, 0], 'scipy.linalg' in sys.modules)"
    )
    result = python(["-c", script], timeout=240)
    loaded, own = result.out.splitlines()
    assert {"numba", "mpi4py"} <= set(loaded.split()) and not heavy & set(loaded.split()), heavy & set(loaded.split())
    assert own == "2.0 True"


def test_what_the_package_offers_is_the_same_at_each_look():
    """A module that is called as its function takes the function's place in the package when it is imported."""
    result = python(["-c", "import mpidml\nfor _ in range(2):\n    print(*(callable(getattr(mpidml, name)) for name in mpidml.__all__))"])
    assert result.code == 0 and set(result.out.split()) == {"True"}, result


def test_the_launcher_can_be_known_before_numpy_is_loaded():
    result = python(["-c", "import sys, mpidml.runtime.launch; print(*sys.modules)"])
    assert result.code == 0, result.err
    assert not {"numpy", "mpi4py", "numba"} & set(result.out.split())
