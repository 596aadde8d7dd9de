"""Hold the formats to one law: the same table gives the same data and the same model, whatever it is written in and however it is cut."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpidml
from mpidml.core import plugins
from mpidml.core.errors import UserError
from mpidml.data.readers import read, read_pair
from tests.data.written import NAMES, WRITERS, csv, idx, idx_array, npy, npz, parquet, svmlight, text

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def table() -> tuple[Array, Array]:
    """Rows of the shipped digits, small whole numbers that every format holds exactly; no column is empty."""
    raw = read("digits")
    x, y = raw.x[::12], raw.y[::12]
    return x[:, x.any(axis=0)][:, -60:], y


def cut(folder: Path, form: str, name: str, x: Array, y: Array, n: int = 3) -> str:
    """Write the rows to n files of different sizes; return their glob."""
    edges = [0, *(len(x) * k // n + k for k in range(1, n)), len(x)]
    for k, (lo, hi) in enumerate(pairwise(edges)):
        WRITERS[form][0](folder / name.format(k), x[lo:hi], y[lo:hi])
    return str(folder / name.format("?"))


def dense(x: Any) -> Array:
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x, np.float64)


def differs(source: str, x: Array, y: Array) -> bool:
    raw = read(source)
    return dense(raw.x).tolist() != x.tolist() or raw.y.tolist() != y.tolist() or raw.test_x is not None


def model(source: str) -> str:
    job = mpidml.Job(data=source, hidden=(8,), steps=12, batch=20, backend="numpy", deterministic=True)
    return str(mpidml.train(job, quiet=True, write=False)["model_sha256"])


def test_every_format_of_the_folder_is_written_by_these_tests() -> None:
    assert sorted(WRITERS) == plugins.names("mpidml.data.formats")


@pytest.mark.parametrize(("form", "name"), NAMES)
def test_a_table_is_the_same_data_in_every_format_whole_and_in_three_files(tmp_path: Path, table: tuple[Array, Array], form: str, name: str) -> None:
    x, y = table
    whole = WRITERS[form][0](tmp_path / name.format(""), x, y)
    assert not differs(whole, x, y)
    (tmp_path / "parts").mkdir()
    pattern = cut(tmp_path / "parts", form, name, x, y)
    source = pattern if form != "npy" else str(tmp_path / "parts")
    assert not differs(source, x, y)
    assert not differs(str(tmp_path / "parts"), x, y)  # the folder


def test_the_check_sees_one_value_one_label_and_the_order_of_the_files(tmp_path: Path, table: tuple[Array, Array]) -> None:
    x, y = table
    other = x.copy()
    other[7, 3] += 1
    assert differs(npz(tmp_path / "a.npz", other, y), x, y) and differs(npz(tmp_path / "b.npz", x, np.roll(y, 1)), x, y)
    (tmp_path / "t2.csv").write_text(Path(cut_first(tmp_path, x, y)).read_text())
    assert differs(str(tmp_path / "t?.csv"), x, y)  # the first file comes last


def cut_first(folder: Path, x: Array, y: Array) -> str:
    csv(folder / "t1.csv", x[100:], y[100:])
    return csv(folder / "first.csv", x[:100], y[:100])


def test_training_ends_in_the_same_bits_whatever_the_format(tmp_path: Path, table: tuple[Array, Array]) -> None:
    x, y = table
    models = {}
    for form, name in NAMES:
        (folder := tmp_path / name.format("")).mkdir()
        models[name] = model(WRITERS[form][0](folder / name.format(""), x, y))
        for path in list(folder.iterdir()):
            path.unlink()
        cut(folder, form, name, x, y)
        models[f"cut {name}"] = model(str(folder))
    assert len(set(models.values())) == 1, models
    x = x.copy()
    x[:9, 0] += 1
    assert model(npz(tmp_path / "other.npz", x, y)) not in models.values()


def test_real_numbers_keep_every_bit_in_formats_of_text(tmp_path: Path) -> None:
    x, y = np.array([[0.1, -1 / 3, 1e-300], [2.5e17, 7.0, 1 + 2**-52]]), np.array([0, 1])
    for source in (csv(tmp_path / "t.csv", x, y), svmlight(tmp_path / "t.svm", x, y), parquet(tmp_path / "t.parquet", x, y)):
        assert dense(read(source).x).tobytes() == x.tobytes()


def test_mnist_files_are_found_beside_each_other_by_their_names(tmp_path: Path) -> None:
    x, y = np.arange(24).reshape(4, 6), np.array([0, 1, 2, 1])
    source = idx(tmp_path / "train-images-idx3-ubyte", x, y)
    raw = read(source)
    assert raw.x.dtype == np.uint8 and raw.x.tolist() == x.tolist() and raw.y.tolist() == y.tolist() and raw.test_x is None
    idx(tmp_path / "t10k-images-idx3-ubyte.gz", x[:2] + 1, y[:2])
    raw = read(source)
    assert raw.test_x is not None and raw.test_y is not None and raw.test_x.tolist() == (x[:2] + 1).tolist() and raw.test_y.tolist() == [0, 1]
    assert read(str(tmp_path)).test_x.tolist() == raw.test_x.tolist(), "the folder of the four files is the same data set"


def test_idx_numbers_of_every_type_come_in_the_order_of_this_machine(tmp_path: Path) -> None:
    idx_array(tmp_path / "y.idx", np.arange(2, dtype=np.uint8))
    for code, kind in enumerate((">u1", ">i1", None, ">i2", ">i4", ">f4", ">f8"), 8):
        if kind is not None:
            x = np.array([[1, 2, 100], [3, 0, 7]], kind)
            (tmp_path / "x.idx").write_bytes(bytes([0, 0, code, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + x.tobytes())
            raw = read(str(tmp_path / "x.idx"), labels=str(tmp_path / "y.idx"))
            assert raw.x.tolist() == x.tolist() and raw.x.dtype == np.dtype(kind).newbyteorder("=") and raw.x.dtype.isnative


def test_labels_in_a_file_of_any_name_are_given_by_a_flag(tmp_path: Path) -> None:
    x, y = np.arange(12).reshape(4, 3), np.array([0, 1, 2, 1])
    np.save(tmp_path / "rows.npy", x)
    np.save(tmp_path / "answers.npy", y)
    idx_array(tmp_path / "answers.idx", y.astype(np.uint8))
    idx_array(tmp_path / "rows.idx", x.astype(np.uint8))
    for end in ("npy", "idx"):
        raw = read(str(tmp_path / f"rows.{end}"), labels=str(tmp_path / f"answers.{end}"))
        assert raw.x.tolist() == x.tolist() and raw.y.tolist() == y.tolist()
        both = read_pair(
            str(tmp_path / f"rows.{end}"),
            str(tmp_path / "rows.npy"),
            labels=str(tmp_path / f"answers.{end}"),
            test_labels=str(tmp_path / "answers.npy"),
        )
        assert both.test_y is not None and both.test_y.tolist() == y.tolist()


def test_rows_of_npy_are_mapped_not_read(tmp_path: Path) -> None:
    raw = read(npy(tmp_path / "x.npy", np.arange(12.0).reshape(4, 3), np.array([0, 1, 2, 1])))
    assert isinstance(raw.x.base, np.memmap) or isinstance(raw.x, np.memmap)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def fail(name: str) -> None:
        raise ImportError(name)

    sources = [WRITERS[form][0](tmp_path / f"t.{end}", np.eye(2), np.arange(2)) for form, end in (("parquet", "parquet"), ("hdf5", "h5"))]
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: fail(name) if name.startswith(("pyarrow", "h5py")) else real(name))
    for source, package in zip(sources, ("pyarrow", "h5py"), strict=True):
        with pytest.raises(UserError, match=rf"needs {package}, which is not installed; pip install 'mpidml\[data\]'"):
            read(source)


def test_headers_and_widths_of_several_files_must_agree(tmp_path: Path) -> None:
    text(tmp_path / "a1.csv", "p,q,y\n1,2,0\n3,4,1\n")
    text(tmp_path / "a2.csv", "q,p,y\n1,2,0\n")
    with pytest.raises(UserError, match=r"a2.csv: feature 0 is 'q', in .*a1.csv it is 'p'"):
        read(str(tmp_path / "a?.csv"))
    text(tmp_path / "b1.csv", "p,q,y\n1,2,0\n3,4,1\n")
    text(tmp_path / "b2.csv", "5,6,0\n")
    assert read(str(tmp_path / "b?.csv")).x.tolist() == [[1, 2], [3, 4], [5, 6]], "a table cut by lines has one header"
    text(tmp_path / "c1.csv", "1,2,0\n")
    text(tmp_path / "c2.csv", "1,2,3,0\n")
    with pytest.raises(UserError, match=r"c2.csv: has 4 columns, the label in 3, .*c1.csv has 3 columns"):
        read(str(tmp_path / "c?.csv"))
    npz(tmp_path / "d1.npz", np.eye(3), np.arange(3))
    npz(tmp_path / "d2.npz", np.eye(4), np.arange(4))
    with pytest.raises(UserError, match=r"d2.npz: its rows have 4 features, those of .*d1.npz have 3 features"):
        read(str(tmp_path / "d?.npz"))
    bad = np.eye(3)
    bad[1, 2] = np.nan
    npz(tmp_path / "d2.npz", bad, np.arange(3))
    with pytest.raises(UserError, match=r"d2.npz: x holds nan in row 1, column 2"):
        read(str(tmp_path / "d?.npz"))


def test_a_folder_of_two_formats_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder holds no file of a known format"):
        read(str(tmp_path))
    (tmp_path / "README.txt").write_text("notes are no data")
    npz(tmp_path / "a.npz", np.eye(3), np.arange(3))
    assert len(read(str(tmp_path)).y) == 3
    csv(tmp_path / "b.csv", np.eye(3), np.arange(3))
    with pytest.raises(UserError, match=r"holds files of several formats \(a.npz, b.csv\)"):
        read(str(tmp_path))
    with pytest.raises(UserError, match="matches no file of a known format"):
        read(str(tmp_path / "*.parquet"))
    with pytest.raises(UserError, match=r"1 file\(s\) of labels for 2 file\(s\)"):
        np.save(tmp_path / "p.npy", np.eye(3))
        np.save(tmp_path / "q.npy", np.eye(3))
        read(str(tmp_path / "?.npy"), labels=str(tmp_path / "p.npy"))


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    source = npz(tmp_path / "a.npz", np.eye(3), np.arange(3))
    for option, value in (("labels", "y.npy"), ("missing", "impute"), ("categories", "codes")):
        with pytest.raises(UserError, match=rf"--{option} {value}: does nothing.*leave it out"):
            read(source, **{option: value})
    with pytest.raises(UserError, match=r"--categories codes: does nothing, .*t.csv has no column of words"):
        read(csv(tmp_path / "t.csv", np.eye(3), np.arange(3)), categories="codes")
