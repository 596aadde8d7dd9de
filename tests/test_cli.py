"""The flags are the job's fields, a TOML file holds the same, flags win; what cannot be is one line."""

import json
import re
from dataclasses import fields, replace

import pytest

import mpidml
from mpidml.cli import COMMANDS, parse
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from tests.ranks import mpirun


def other(f):
    """Return a value of the field that can be and is not its default."""
    if f.name == "staleness":
        return "3"
    if f.name in ("test_data", "test_labels", "unseen", "steps", "order", "keep_checkpoints", "patience", "resume", "requeue", "scratch", "memory_per_rank"):
        return f.default  # beside another hold_out, codes, no test data, other epochs, budget, checkpoints, validation rows or folder they would be refused
    if f.name == "memory":
        return "2G"
    if f.name == "transport":
        return "mpi"  # the last is for another strategy
    if f.metadata["choices"]:
        return f.metadata["choices"][-1] if f.default != f.metadata["choices"][-1] else f.metadata["choices"][0]
    if isinstance(f.default, bool):
        return not f.default
    if isinstance(f.default, int | float):
        return f.default + (3 if isinstance(f.default, int) else 0.25)
    if f.name == "device":
        return "cpu"  # beside another backend a GPU would be refused
    if f.name == "target":
        return "0.5"
    return (7, 5) if isinstance(f.default, tuple) else "another"


OTHER = Job(**{f.name: other(f) for f in fields(Job)})
each_field = pytest.mark.parametrize("f", fields(Job), ids=lambda f: f.name)


def flags(job, names, joined):
    words = []
    for name in names:
        value, flag = getattr(job, name), name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{flag}={text}"] if joined else [f"--{flag}", text]
    return words


def toml(path, job, dash="_"):
    path.write_text("".join(f"{name.replace('_', dash)} = {json.dumps(value)}\n" for name, value in job.mapping().items()))
    return ["train", "--config", str(path)]


def fault(*argv):
    with pytest.raises(UserError) as error:
        parse(argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_flag_gives_the_default_job():
    assert parse(["train"]) == ("train", Job()) and parse(["info"]) == ("info", None)


def test_info_takes_the_file_of_a_job(tmp_path):
    (tmp_path / "job.toml").write_text("batch = 32\n")
    assert parse(["info", "--config", str(tmp_path / "job.toml")]) == ("info", Job(batch=32))
    (tmp_path / "job.toml").write_text("batch = 0\n")
    assert "--batch 0: is below 1" in fault("info", "--config", str(tmp_path / "job.toml"))


@each_field
@pytest.mark.parametrize("joined", [True, False])
def test_each_flag_sets_its_field_alone(f, joined):
    assert parse(["train", *flags(OTHER, [f.name], joined)])[1] == replace(Job(), **{f.name: other(f)})


@pytest.mark.parametrize("dash", ["_", "-"])
def test_all_flags_and_the_toml_file_give_the_same_job(tmp_path, dash):
    by_flags = parse(["train", *flags(OTHER, [f.name for f in fields(Job)], True)])[1]
    assert by_flags == parse(toml(tmp_path / "job.toml", OTHER, dash))[1] == OTHER


@each_field
def test_a_flag_wins_over_the_file_even_with_the_default(tmp_path, f):
    argv = toml(tmp_path / "job.toml", OTHER)
    for words in ([*argv, *flags(Job(), [f.name], True)], ["train", *flags(Job(), [f.name], True), *argv[1:]]):
        assert parse(words)[1] == replace(OTHER, **{f.name: f.default})


@each_field
def test_each_flag_is_explained(f, capsys):
    with pytest.raises(SystemExit) as left:
        parse(["train", "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out.replace("-\n", "-"))
    assert left.value.code == 0
    assert re.search(rf"--{f.name.replace('_', '-')}\b", text) and squeezed(f.metadata["help"]) in squeezed(text)
    assert all(choice in text for choice in f.metadata["choices"])


def squeezed(text):
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_command_on_a_run_takes_its_folder_and_explains_its_flags(command, capsys):
    more = ["--data", "new.csv", "--unseen", "ignore", "--out", "p.csv"]
    _, given = parse([command, "runs/x", *more])
    assert given == parse([command, *more, "runs/x"])[1]
    assert given["run"] == "runs/x" and given["data"] == "new.csv" and given["unseen"] == "ignore" and given["out"] == "p.csv"
    with pytest.raises(SystemExit) as left:
        parse([command, "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "[RUN]" in text and all(f"--{name}" in text for name in given if name != "run") and "list" not in text


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as left:
        parse(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"mpidml {mpidml.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"]], ids=" ".join)
def test_one_rank_shows_the_help(argv):
    result = mpirun(3, ["-m", "mpidml", *argv])
    assert result.code == 0 and len(re.findall("^usage: ", result.out, re.MULTILINE)) == 1, result


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"], ["info", "--help"]], ids=" ".join)
def test_help_is_no_fault(argv, capsys):
    with pytest.raises(SystemExit) as left:
        parse(argv)
    out, err = capsys.readouterr()
    assert left.value.code == 0 and not err and (argv[:1] == ["info"] or all(command in out for command in COMMANDS))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("trian", "known: compare, evaluate, export, info, plan, predict, scale, schedule, simulate, train, warm; did you mean 'train'?"),
        ("train --epohcs 3", "there is no option '--epohcs'; known: --accumulate"),
        ("train --epohcs 3", "did you mean '--epochs'?"),
        ("train --epohcs=3", "did you mean '--epochs'?"),
        ("train --epoch 3", "did you mean '--epochs'?"),
        ("train --no-epochs", "there is no option '--no-epochs'"),
        ("train digits", "there is no option 'digits'"),
        ("train --epochs", "argument --epochs: expected one argument"),
        ("train --tune=1", "ignored explicit argument '1'"),
        ("train --epochs ten", "epochs: 'ten' is not a whole number"),
        ("train --batch 2.5", "batch: '2.5' is not a whole number"),
        ("train --lr fast", "lr: 'fast' is not a number"),
        ("train --hidden 64,x", "hidden: '64,x' is not whole numbers"),
        ("train --batch 0", "--batch 0: is below 1"),
        ("train --hidden 0", "--hidden 0: a width is below 1"),
        ("train --sync ssp --staleness -1", "--staleness -1: is not a whole number from 0 up; give for example 3"),
        ("train --sync ssp --staleness 2.5", "--staleness 2.5: is not a whole number from 0 up"),
        ("train --sync ssp --staleness -2", "--staleness -2: is not a whole number from 0 up"),
        *((f"train --lr {value}", "is not a positive number; give for example 0.05") for value in ("nan", "0", "-0.1", "inf")),
        ("train --lr -inf", "argument --lr: expected one argument"),
        ("train --scale minmix", "--scale minmix: there is no such choice; known: maxabs, minmax, none, standard; did you mean 'minmax'?"),
        ("info --ranks 3", "info: unrecognized arguments: --ranks 3; python -m mpidml info --help lists the options"),
        ("evaluate", "evaluate: no run is named; give its folder"),
        ("evaluate runs/x --dta new.csv", "there is no option '--dta'; known: --data, --device, --labels, --out, --plot, --unseen; did you mean '--data'?"),
        ("evaluate runs/x --labels y.npy", "--labels y.npy: does nothing without --data; leave it out"),
        ("evaluate runs/x --unseen ignore", "--unseen ignore: does nothing without --data; leave it out"),
        ("evaluate runs/x --data new.csv --unseen ignroe", "--unseen ignroe: there is no such choice; known: ignore, refuse; did you mean 'ignore'?"),
        ("evaluate runs/x runs/y", "there is no option 'runs/y'"),
        ("evaluate --config x.toml runs/x", "there is no option '--config'"),
        ("predict runs/x --out p.csv", "--data: names no rows to predict; give a file"),
        ("predict runs/x --data new.csv", "--out: names no file; give one that ends in .csv or .npz"),
        ("predict runs/x --data new.csv --out p.parquet", "--out p.parquet: is of no known ending; give one that ends in .csv or .npz"),
        ("train --config nowhere.toml", "nowhere.toml: there is no such file; give the path"),
        ("train --config .", ".: cannot be read as TOML"),
    ],
)
def test_what_cannot_be_is_one_line(argv, says):
    assert says in fault(*argv.split())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch = 3", "there is no option 'epoch'; known: "),
        ("epoch = 3", "did you mean 'epochs'?"),
        ("config = 'x.toml'", "there is no option 'config'"),
        ("[train]\nepochs = 3", "there is no option 'train'"),
        ("epochs = 'ten'", "epochs: 'ten' is not a whole number"),
        ("epochs = 2.5", "epochs: 2.5 is not a whole number"),
        ("hidden = [64.5]", "hidden: [64.5] is not whole numbers"),
        ("tune = 'maybe'", "tune: 'maybe' is not true or false"),
        ("epochs = ", "cannot be read as TOML"),
        ("epochs = 1\nepochs = 2", "cannot be read as TOML"),
        (b"\xff", "cannot be read as TOML"),
    ],
)
def test_a_file_that_cannot_be_is_one_line_with_its_name(tmp_path, text, says):
    path = tmp_path / "job.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert (found := fault("train", "--config", str(path))).startswith(f"{path}: ") and says in found


def test_what_the_file_says_is_checked_like_a_flag(tmp_path):
    assert fault(*toml(tmp_path / "job.toml", replace(Job(), batch=0))).startswith("--batch 0: is below 1")
