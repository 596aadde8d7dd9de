"""Input that cannot be trained on ends before training: exit code 2, one line that says what, where and what to do, nothing on the disk."""

import gzip
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

from tests.ranks import Result, mpirun, python

# Fork a child for each command line: each is a whole program, start to exit, but imports are paid for once. MPI starts in the child.
MANY = """
import json, os, runpy, sys
from mpidml.runtime.threads import budget_threads
budget_threads(os.environ)
import mpidml.cli, mpidml.data.readers, mpidml.nn.step, mpidml.ps.shard, mpidml.ps.worker, mpidml_kernels
for number, (argv, env) in enumerate(json.load(open(sys.argv[1]))):
    if (child := os.fork()) == 0:
        os.environ.update(env)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{sys.argv[1]}.{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        sys.argv[1:] = argv
        runpy.run_module("mpidml", run_name="__main__", alter_sys=True)
        raise SystemExit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    open(f"{sys.argv[1]}.{number}.code", "w").write(str(code))
"""

GOOD = {"x": np.arange(40.0).reshape(10, 4), "y": np.arange(10) % 2}
TEST = {"x_test": np.ones((2, 4)), "y_test": np.array([0, 1])}
TRAIN = {"x_train": GOOD["x"], "y_train": GOOD["y"]}


def spoilt(value):
    """Return the good rows with `value` in row 7, column 2."""
    x = GOOD["x"].copy()
    x[7, 2] = value
    return x


ARRAYS = {
    "good": GOOD,
    "nan": {**GOOD, "x": spoilt(np.nan)},
    "inf": {**GOOD, "x": spoilt(-np.inf)},
    "nan_test": {**TRAIN, **TEST, "x_test": np.full((2, 4), np.nan)},
    "no_y": {"x": GOOD["x"]},
    "short_y": {**GOOD, "y": GOOD["y"][:9]},
    "negative": {**GOOD, "y": GOOD["y"] - 1},
    "half": {**GOOD, "y": GOOD["y"] / 2},
    "words": {**GOOD, "y": GOOD["y"].astype(str)},
    "out_of_range": {**TRAIN, **TEST, "y_test": np.array([0, 5])},
    "huge_label": {**GOOD, "y": GOOD["y"] + 99},
    "narrow_test": {**TRAIN, **TEST, "x_test": np.ones((2, 3))},
    "narrow": {"x": GOOD["x"][:, :3], "y": GOOD["y"]},
    "own_test": {**TRAIN, **TEST},
    "two_sets": {**GOOD, **TRAIN},
    "more_labels": {"x": GOOD["x"], "y": np.arange(10) % 7},
    "no_rows": {"x": np.empty((0, 4)), "y": np.empty(0, int)},
}
TEXTS = {
    "nan.csv": "a,b,label\n1,2,0\n3,nan,1\n5,6,0\n",
    "ragged.csv": "a,b,label\n1,2,0\n3,1\n",
    "word.csv": "a,b,label\n1,2,0\n3,four,1\n",
    "half.csv": "a,b,label\n1,2,0\n3,4,1.5\n",
    "mixed.csv": "a,b,label\n1,2,0\n3,4,cat\n5,6,1\n7,8,1\n",
    "mostly_words.csv": "a,b,label\n1,2,dog\n3,4,cat\n5,6,1\n7,8,cat\n",
    "headerless.csv": "1.5,2,0\n3,4.5,1\n5,6,1\n",
    "empty.csv": "",
    "header.csv": "a,b,label\n",
    "towns.csv": "a,town,label\n1,Bonn,0\n2,Ulm,1\n3,Bonn,0\n",
    "other_towns.csv": "a,town,label\n1,Bonn,0\n2,Kiel,1\n",
    "gaps.csv": "a,town,label\n1,Bonn,0\n2,?,1\n",
    "back.svm": "0 1:1 2:1\n1 2:1 1:1\n",
    "part-1.csv": "a,b,label\n1,2,0\n",
    "part-2.csv": "b,a,label\n1,2,0\n",
    "plain.txt": "hello",
    "unknown.toml": "epochs = 1\nbacth = 4\n",
    "type.toml": "epochs = 'ten'\n",
    "broken.toml": "epochs = \n",
    "batch.toml": "batch = 0\n",
    "flat.toml": "\ufeffhidden = []\n",
    "a_file": "a regular file\n",
    "empty.net.toml": "",
    "layer.net.toml": "[[layer]]\ntype = 'dens'\n",
    "key.net.toml": "[[layer]]\ntype = 'dense'\nunit = 3\n",
    "codes.net.toml": "[[layer]]\ntype = 'embedding'\ncolumns = [2]\nrows = 6\n[[layer]]\ntype = 'dense'\n",
}


class Case(NamedTuple):
    """Arguments after `train`, or with a command of their own ("{}" is the folder of the files), and what the one line must hold."""

    argv: str
    says: tuple[str, ...]


CASES = {
    "missing npz": Case("--data {}/nowhere.npz", ("/nowhere.npz: there is no such file", "give the path")),
    "missing csv": Case("--data {}/nowhere.csv.gz", ("/nowhere.csv.gz: there is no such file", "give the path")),
    "missing test file": Case("--data {}/good.npz --test-data {}/nowhere.npz", ("/nowhere.npz: there is no such file", "give the path")),
    "misspelt set": Case("--data digist", ("digist: there is no such file or shipped data set", "did you mean 'digits'?")),
    "unknown format": Case("--data {}/plain.txt", ("/plain.txt: is not of a known format", ".npz")),
    "a folder": Case("--data {}/folder.npz", ("/folder.npz: is not a file", "give the path")),
    "truncated npz": Case("--data {}/truncated.npz", ("/truncated.npz: the file cannot be decoded", "write it again")),
    "damaged npz": Case("--data {}/damaged.npz", ("/damaged.npz: the file cannot be decoded", "write it again")),
    "truncated csv.gz": Case("--data {}/truncated.csv.gz", ("/truncated.csv.gz: the file cannot be decoded", "write it again")),
    "empty npz": Case("--data {}/empty.npz", ("/empty.npz: the file is empty", "give a data file")),
    "empty csv": Case("--data {}/empty.csv", ("/empty.csv: the file is empty", "give a data file")),
    "no rows": Case("--data {}/no_rows.npz", ("/no_rows.npz: x is empty, shape (0, 4)", "give at least one row")),
    "header alone": Case("--data {}/header.csv", ("/header.csv: the file holds a header but no rows", "give at least one row")),
    "nan": Case("--data {}/nan.npz", ("/nan.npz: x holds nan in row 7, column 2", "remove or replace")),
    "inf": Case("--data {}/inf.npz", ("/inf.npz: x holds -inf in row 7, column 2", "remove or replace")),
    "nan in the test part": Case("--data {}/nan_test.npz", ("/nan_test.npz: x_test holds nan in row 0, column 0", "remove or replace")),
    "nan in a csv": Case("--data {}/nan.csv", ("/nan.csv: row 1 (line 3), column 1 ('b') holds 'nan'", "finite number")),
    "a word in a csv": Case("--data {}/word.csv", ("/word.csv: row 1 (line 3), column 1 ('b') holds 'four'", "give such numbers only")),
    "a ragged csv": Case("--data {}/ragged.csv", ("/ragged.csv: row 1 (line 3) has 2 cells", "the same number")),
    "no such column": Case("--data {}/half.csv --label lable", ("/half.csv: there is no column 'lable'", "did you mean 'label'?")),
    "no labels": Case("--data {}/no_y.npz", ("/no_y.npz: missing array(s) y", "give x, y")),
    "negative label": Case("--data {}/negative.npz", ("/negative.npz, y: label -1 in row 0 is negative", "code the labels as 0..k-1")),
    "half a label": Case("--data {}/half.npz --task classify", ("/half.npz, y: label 0.5 in row 1 is not an integer", "code the labels as 0..k-1")),
    "half a label in a csv": Case("--data {}/half.csv --task classify", ("/half.csv, y: label 1.5 in row 1 is not an integer", "code the labels as 0..k-1")),
    "words as labels": Case("--data {}/words.npz", ("/words.npz, y: labels are <U", "code the labels as 0..k-1")),
    "label out of range": Case("--data {}/out_of_range.npz", ("/out_of_range.npz, y_test: label 5 in row 1 is out of range 0..1", "correct")),
    "label above the rows": Case("--data {}/huge_label.npz", ("/huge_label.npz: label 100 in row 1", "code the labels as 0..k-1")),
    "other features to test": Case("--data {}/narrow_test.npz", ("train rows have 4 features, test rows have 3", "the same features")),
    "other features in the test file": Case(
        "--data {}/good.npz --test-data {}/narrow.npz", ("have 4 features, test rows have 3", "the same features")
    ),
    "x longer than y": Case("--data {}/short_y.npz", ("/short_y.npz: x has 10 rows, y has 9 labels", "give one label a row")),
    "a word among numeric labels": Case("--data {}/mixed.csv", ("/mixed.csv: label 'cat' in row 1 (line 3) is a word, others are numbers", "label all rows alike")),
    "a number among words": Case("--data {}/mostly_words.csv", ("/mostly_words.csv: label '1' in row 2 (line 4) is a number, others are words", "alike")),
    "a named column without a header": Case("--data {}/headerless.csv --label 0", ("the first line holds numbers, not names", "give the file a header")),
    "labels of the test file": Case(
        "--data {}/good.npz --test-data {}/more_labels.npz", ("/more_labels.npz, y: label 2 in row 2 is out of range 0..1", "correct the labels")
    ),
    "two sets of rows": Case("--data {}/two_sets.npz", ("/two_sets.npz: holds x or y and x_train, y_train", "keep x, y or x_train, y_train")),
    "hold-out beside test rows": Case("--data {}/own_test.npz --hold-out 0.5", ("--hold-out 0.5: does nothing", "leave it out")),
    "epochs beside steps": Case("--steps 5 --epochs 2", ("--epochs 2: does nothing beside --steps 5", "leave one of them out")),
    "an mlp without hidden layers": Case("--config {}/flat.toml", ("--hidden: names no width", "--model softmax")),
    "an empty width": Case("--hidden 5,,5", ("hidden: '5,,5' is not whole numbers", "the default is")),
    "a limit of 0": Case("--optimizer clip:0+sgd", ("'clip:0': limit = 0 is not above 0", "give a positive number")),
    "a link missing": Case("--optimizer sgd+", ("optimizer 'sgd+': a link is missing beside a '+'", "join names")),
    "batch 0": Case("--batch 0", ("--batch 0: is below 1", "give a whole number from 1 up")),
    "no server": Case("--servers 0", ("--servers 0: not a number of servers", "give 'colocated'")),
    "servers misspelt": Case("--servers collocated", ("--servers collocated: not a number of servers", "give 'colocated'")),
    "unknown policy": Case("--sync spp:2", ("sync: there is no 'spp'", "did you mean 'ssp'?")),
    "no such policy file": Case("--sync {}/mine.py:2", ("/mine.py: there is no such file", "give the path")),
    "unknown optimizer": Case("--optimizer clip:1+adma", ("optim: there is no 'adma'", "did you mean 'adam'?")),
    "unknown model": Case("--model sofmax", ("there is no", "'sofmax'", "did you mean 'softmax'?")),
    "unknown strategy": Case("--strategy paramter-server", ("strategies: there is no 'paramter_server'", "did you mean 'parameter_server'?")),
    "unknown choice": Case("--activation relo", ("--activation relo: there is no such choice", "did you mean 'relu'?")),
    "unknown loss": Case("--loss hingle", ("losses: there is no 'hingle'", "did you mean 'hinge'?")),
    "a delta of 0": Case("--loss huber:0", ("'huber:0': delta = 0 is not a positive number", "give one such as")),
    "binary loss, ten classes": Case("--loss binary-cross-entropy", ("--loss binary-cross-entropy: takes labels 0 and 1, the data have 10", "use cross_entropy")),
    "too few class weights": Case("--class-weights 1,2", ("--class-weights 1,2: are 2 weight(s), the data have 10 classes", "give one for each")),
    "weights of a loss without": Case("--loss huber --class-weights balanced", ("--class-weights: does nothing in --loss huber", "leave it out")),
    "smoothing of a loss without": Case("--loss hinge --label-smoothing 0.1", ("--label-smoothing: does nothing in --loss hinge", "leave it out")),
    "missing net file": Case("--model {}/nowhere.net.toml", ("/nowhere.net.toml: there is no such file", "give the path of a net file")),
    "empty net file": Case("--model {}/empty.net.toml", ("/empty.net.toml: the file is empty", "list layers")),
    "broken net file": Case("--model {}/broken.toml", ("/broken.toml: cannot be read as TOML", "correct the file")),
    "a net file without layers": Case("--model {}/batch.toml", ("/batch.toml: there is no key 'batch'", "known: head, layer")),
    "unknown layer": Case("--model {}/layer.net.toml", ("/layer.net.toml: layer 1: there is no type 'dens'", "did you mean 'dense'?")),
    "unknown key of a layer": Case("--model {}/key.net.toml", ("/key.net.toml: layer 1 (dense): there is no key 'unit'", "did you mean 'units'?")),
    "codes that are none": Case("--data {}/own_test.npz --model {}/codes.net.toml", ("(embedding): column 2 holds 6 in row 1", "from 0 to 5; correct")),
    "widths beside a net file": Case("--model {}/key.net.toml --hidden 5", ("--hidden: does nothing in --model ", "leave it out")),
    "unknown slowdown": Case("--slowdown permanant:2", ("--slowdown permanant:2: there is no pattern", "did you mean 'permanent'?")),
    "negative staleness": Case("--sync ssp --staleness -1", ("--staleness -1: is not a whole number from 0 up", "give for example 3")),
    "more negative staleness": Case("--sync ssp --staleness -2", ("--staleness -2: is not a whole number from 0 up", "give for example 3")),
    "negative staleness in the policy": Case("--sync ssp:-1", ("'ssp:-1': the staleness -1 is not a whole number", "give for example ssp:3")),
    "staleness where there is none": Case("--sync bsp --staleness 3", ("'bsp:3': 'bsp' takes 0 argument(s)",)),
    **{
        f"learning rate {value}": Case(f"--lr={value}", (f"--lr {float(value)}: is not a positive number", "give for example 0.05"))
        for value in ("0", "-0.1", "nan", "inf", "-inf")
    },
    "a word as learning rate": Case("--lr fast", ("lr: 'fast' is not a number", "the default is")),
    "out below a file": Case("--out {}/a_file/run", ("/a_file/run: ", "choose another --out")),
    "out is a file": Case("--out {}/a_file", ("/a_file is not a folder", "choose another --out")),
    "out holds another run": Case("--out {}/old_run", ("/old_run: the folder holds another run (summary.json)", "choose another --out")),
    "unknown key": Case("--config {}/unknown.toml", ("/unknown.toml: there is no option 'bacth'", "did you mean 'batch'?")),
    "wrong type in the file": Case("--config {}/type.toml", ("/type.toml: epochs: 'ten' is not a whole number", "the default is")),
    "broken file": Case("--config {}/broken.toml", ("/broken.toml: cannot be read as TOML", "correct the file")),
    "bad value in the file": Case("--config {}/batch.toml", ("--batch 0: is below 1", "give a whole number from 1 up")),
    "missing file of options": Case("--config {}/nowhere.toml", ("/nowhere.toml: there is no such file", "give the path")),
    "unknown option": Case("--epohcs 3", ("there is no option '--epohcs'", "did you mean '--epochs'?")),
    "asp cannot repeat": Case("--sync asp --deterministic", ("--deterministic: asp cannot repeat", "use bsp or ssp")),
    "copies that are never too old": Case("--sync asp --reads cached", ("--reads cached: under asp nothing says when a copy is too old", "fresh or eager")),
    "a list of policies": Case("--sync bsp,ssp:3", ("--sync bsp,ssp:3: is a list", "`compare` takes lists")),
    "a list of rates": Case("--lr 0.1,0.2", ("lr: '0.1,0.2' is a list", "`compare` takes lists")),
    "a quorum above the workers": Case("--sync quorum:4", ("--sync quorum:4: a quorum of 4 gradients needs as many workers, there are 1", "quorum:1")),
    "a cap below the minimum": Case("--sync adaptive:4:2", ("'adaptive:4:2': the cap of executions 2 is not a whole number from 4 up", "adaptive:1:8")),
    "bounds the wrong way": Case("--sync dssp:5:2", ("'dssp:5:2': the largest staleness 2 is not a whole number from 5 up", "dssp:1:8")),
    "an argument that is none": Case("--sync adaptive:minimal=2", ("'adaptive' has no argument 'minimal'", "did you mean 'minimum'?")),
    "a target that is none": Case("--target 97", ("--target 97: is no accuracy", "0.97 for 97%")),
    "a target without test rows": Case("--data {}/good.npz --hold-out 0 --target 0.9", ("--target 0.9: there are no test rows", "--hold-out")),
    "seconds below 0": Case("--seconds -1", ("--seconds -1.0: is not a number of seconds", "from 0 up")),
    "dynamic cannot repeat": Case("--assign dynamic --deterministic", ("--deterministic: --assign dynamic cannot repeat", "leave one of them out")),
    "a target cannot repeat": Case("--target 0.9 --deterministic", ("--deterministic: --target cannot repeat", "leave one of them out")),
    "a share of nothing to validate on": Case("--validate 1", ("--validate 1.0: is not a share", "from 0 to below 1")),
    "patience without rows to judge by": Case("--patience 3", ("--patience 3: needs rows to judge by", "give for example --validate 0.1")),
    "patience below 0": Case("--validate 0.1 --patience -1", ("--patience -1: is below 0", "from 0 up")),
    "adaptive cannot repeat": Case("--sync adaptive --deterministic", ("--deterministic: adaptive cannot repeat", "use bsp or ssp")),
    "a budget below 0": Case("--budget -1", ("--budget -1.0: is not a number of bytes a second", "from 0 up")),
    "a budget that is no number": Case("--budget nan", ("--budget nan: is not a number of bytes a second", "from 0 up")),
    "a group of nobody": Case("--group 0", ("--group 0: is below 1", "from 1 up")),
    "a group without servers": Case("--group 2 --strategy data_parallel", ("--group 2: does nothing under --strategy data_parallel, which has no servers",)),
    "a collective without a group": Case("--collective ring", ("--collective ring: does nothing under --strategy parameter_server", "leave it out")),
    "a group that does not sum": Case("--group 2 --collective gossip", ("--collective gossip: sums no gradient inside a group", "use one of ring")),
    "a group that shares no memory": Case("--group 2 --collective shared --transport mpi", ("--transport mpi: uses no shared memory", "leave one")),
    "a group that cannot repeat": Case("--group 2 --collective auto:memory=true --deterministic", ("chooses by timing", "leave it out")),
    "a group that pushes early": Case("--group 2 --early-push on", ("--early-push on: needs several ranks", "no --group")),
    "an order without a budget": Case("--order magnitude", ("--order magnitude: does nothing without --budget", "leave it out")),
    "an unknown order": Case("--budget 9 --order lifo", ("--order lifo: there is no such choice", "known: fifo, magnitude, random")),
    "a budget cannot repeat": Case("--budget 9 --deterministic", ("--deterministic: --budget cannot repeat", "leave one of them out")),
    "codes inside a host": Case("--compress two_bit", ("--compress two_bit: is off where all ranks share memory", "add --transport mpi, or leave it out")),
    "codes of small tensors": Case(
        "--compress two_bit --transport mpi --data {}/good.npz --hidden 8", ("--compress two_bit: would code nothing", "fewer than 1024 bytes", "leave it out")
    ),
    "codes that are no shorter": Case("--compress top_k:1.0 --transport mpi", ("--compress top_k:1.0: would code nothing", "no shorter", "take another codec")),
    "a rate for more rows than there are": Case(
        "--batch 4096 --lr-batch 32", ("--lr-batch 32: would scale the rate to --batch 4096", "a batch has the 1600 training rows at most", "give --batch 1600")
    ),
    "codes beside a budget": Case("--compress two_bit --transport mpi --budget 9", ("--budget 9 sends it in pieces", "leave one of them out")),
    "codes of rows that are not asked for": Case("--compress two_bit --transport mpi --reads eager", ("--reads eager does not ask for each", "use --reads fresh")),
    "a budget beside early pushes": Case("--budget 9 --early-push on", ("--early-push on: cannot go beside --budget", "leave one of them out")),
    "an unknown rate policy": Case("--lr-policy cosin", ("rates: there is no 'cosin'", "did you mean 'cosine'?")),
    "a rate policy without an end": Case("--seconds 5 --lr-policy warmup+poly", ("--lr-policy warmup+poly: takes the whole run", "give --steps or --epochs")),
    "a constant beside others": Case("--lr-policy constant+step", ("--lr-policy constant+step: constant does nothing beside others", "leave it out")),
    "a list of rate policies": Case("--lr-policy step,inv", ("--lr-policy step,inv: is a list", "`compare` takes lists")),
    "no part": Case("--accumulate 0", ("--accumulate 0: is below 1", "give a whole number from 1 up")),
    "more parts than rows": Case("--batch 8 --accumulate 9", ("--accumulate 9: a worker's share of --batch 8 is 8 sample(s)", "give at most 8")),
    "a word that training never saw": Case(
        "--data {}/towns.csv --test-data {}/other_towns.csv", ("/other_towns.csv: row 1 (line 3), column 1 ('town') holds 'Kiel'", "--unseen ignore")
    ),
    "a missing cell": Case("--data {}/gaps.csv", ("/gaps.csv: row 1 (line 3), column 1 ('town') holds '?'", "--missing impute")),
    "indices out of order": Case("--data {}/back.svm", ("/back.svm: line 2 has index 1 after 2", "sort each line by index")),
    "files with other headers": Case("--data {}/part-*.csv", ("/part-2.csv: feature 0 is 'b', in ", "/part-1.csv it is 'a'", "the same columns")),
    "a pattern that matches nothing": Case("--data {}/nothing-*.csv", ("/nothing-*.csv: matches no file of a known format", "give the path")),
    "labels beside an npz": Case("--data {}/good.npz --labels y.npy", ("--labels y.npy: does nothing", "leave it out")),
    "categories without words": Case("--data {}/half.csv --task classify --categories codes", ("--categories codes: does nothing", "leave it out")),
    "test labels without test data": Case("--test-labels y.npy", ("--test-labels y.npy: does nothing without --test-data", "leave it out")),
    "unseen words without test data": Case("--data {}/towns.csv --unseen ignore", ("--unseen ignore: does nothing without --test-data", "leave it out")),
    "no code for an unseen word": Case(
        "--data {}/towns.csv --test-data {}/other_towns.csv --unseen ignore --categories codes", ("--unseen ignore: --categories codes has no code", "onehot")
    ),
    "an accuracy for a regression": Case("--data {}/good.npz --task regress --target 0.9", ("--target 0.9: a regression has no accuracy", "loss:0.1")),
    "evaluate without a folder": Case("evaluate {}/nowhere", ("/nowhere: there is no such folder", "give that of a run")),
    "evaluate a folder without a run": Case("evaluate {}/folder.npz", ("/folder.npz: holds no run (no config.toml)", "give the folder of a run")),
    "evaluate a run that has not ended": Case("evaluate {}/begun", ("/begun: holds no model (model.safetensors), the run has not ended", "wait for its end")),
    "predict with a run that has paused": Case(
        "predict {}/paused --data {}/good.npz --out {}/p.csv", ("/paused: the run has not ended, it has checkpoints", "train --resume ")
    ),
    "predict to a file that is there": Case("predict {}/begun --data {}/good.npz --out {}/half.csv", ("/half.csv: is there already", "choose another --out")),
    "predict to an unknown format": Case("predict {}/begun --data {}/good.npz --out {}/p.txt", ("/p.txt: is of no known ending", "predictions.csv")),
    "predict into no folder": Case("predict {}/begun --data {}/good.npz --out {}/no/p.csv", ("/no/p.csv: there is no folder", "make it")),
    "evaluate into a file": Case("evaluate {}/begun --out {}/a_file", ("/a_file: is a file", "name a folder")),
    "evaluate without its data": Case("evaluate {}/begun --labels y.npy", ("--labels y.npy: does nothing without --data", "leave it out")),
    "ranks that hosts cannot share": Case("plan --ranks 6 --hosts 4", ("--ranks 6: are not as many on each of --hosts 4", "give a multiple of 4")),
    "a plan for no memory": Case(
        "plan --ranks 4 --memory-per-rank 10K --hidden 64", ("--memory-per-rank 10K: nothing fits, the least that is needed is", "give as much, or more ranks")
    ),
    "a plan without a known size": Case("plan --memory-per-rank lots", ("--memory-per-rank lots: is not a number of bytes", "512M or 2G")),
    "a plan by an unknown schedule": Case("plan --schedule one_f_one_c", ("schedules: there is no 'one_f_one_c'", "did you mean 'one_f_one_b'?")),
    "a plan by a schedule without a flush": Case("plan --schedule pipedream", ("--schedule pipedream: ends no batch by a flush", "give another")),
    "a plan on a grid of other ranks": Case("plan --ranks 4 --grid data=3", ("--grid data=3: 3 = 3 ranks, and 4 were", "give a grid of 4")),
    "a plan that is told its strategy": Case("plan --strategy hybrid", ("--strategy hybrid: does nothing under plan", "leave it out")),
    "a plan with a link to nowhere": Case("plan --latency 1e-3", ("--latency 1e-3: does nothing on one host", "give --hosts")),
    "a plan for a bandwidth that is none": Case("plan --hosts 2 --bandwidth -1", ("--bandwidth -1.0: is not a number from 0 up", "give one")),
    "a plan without samples for all": Case("plan --batch 4 --microbatches 9", ("--microbatches 9: no grid's share of --batch 4", "give fewer")),
    "a plan that no strategy runs": Case("plan --ranks 4 --servers 2 --hidden 8", ("plan: none of ", "--servers 2: does nothing", "leave it out")),
    "a plan of a run": Case("plan --resume {}/begun", ("--resume ", "a run that goes on has its plan", "leave it out")),
    "a device that is none": Case("--device gpu", ("--device gpu: is none of auto, cpu, cuda and cuda:N", "give for example cuda:1")),
    "a GPU below 0": Case("--device cuda:-1", ("--device cuda:-1: is none of auto, cpu, cuda and cuda:N", "give for example cuda:1")),
    "a GPU for the CPU's reference": Case("--device cuda", ("--device cuda: --backend numpy is the CPU's reference", "leave one of them out")),
    "evaluate on a device that is none": Case("evaluate {}/begun --device cuda:one", ("--device cuda:one: is none of auto, cpu, cuda", "give for example")),
    "a column of an npz": Case("--data {}/good.npz --label y", ("/good.npz: column 'y' was named", "drop it")),
}


def lay_out(folder):
    """Write every file that the cases name."""
    for name, arrays in ARRAYS.items():
        np.savez(folder / f"{name}.npz", **arrays)
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    whole = (folder / "good.npz").read_bytes()
    (folder / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "damaged.npz").write_bytes(whole.replace(whole[200:220], bytes(20)))
    (folder / "truncated.csv.gz").write_bytes(gzip.compress(TEXTS["half.csv"].encode())[:-12])
    (folder / "empty.npz").write_bytes(b"")
    (folder / "folder.npz").mkdir()
    (folder / "old_run").mkdir()
    (folder / "old_run" / "summary.json").write_text("{}")
    for name in ("begun", "paused/checkpoints/000000000400"):
        (folder / name).mkdir(parents=True)
        (folder / name.partition("/")[0] / "config.toml").write_text("epochs = 3\n")
    return folder


def words(argv, folder):
    """Return the command line; where it names no --out, one that must not come to be."""
    given = argv.format(*[folder] * 3).split()
    if given[0] in ("evaluate", "predict"):
        return given
    if given[0] == "plan":
        return [*given, "--backend", "numpy", "--flops-per-second", "1e9", "--out", str(folder / "out")]
    return ["train", "--backend", "numpy", *given, *([] if "--out" in given else ["--out", str(folder / "out")])]


def snapshot(folder):
    """Return what is in a folder: every path, and the size and time of every file; without what Python keeps of a plug-in's source."""
    paths = [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts]
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths if not p.is_dir()], paths


def check_one_line(result, says, launched=False):
    """Fail unless the program ended with code 2 and one line of ours; a launcher may add its own banner."""
    assert result.code == 2, result
    assert "Traceback" not in result.err and not result.timed_out, result
    ours = [line for line in result.err.splitlines() if says[0] in line]
    assert len(ours) == 1, result
    assert launched or result.err == ours[0] + "\n", result
    assert all(part in ours[0] for part in says), ours
    assert re.fullmatch(r".+: .+; .+", ours[0]), ours
    assert result.out == "", "nothing is said of a training that never began"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("files"))


def run_many(jobs, argvs, env=None):
    """Run command lines, each with variables of its own, in processes of their own; `jobs`: a file beside which they write."""
    jobs.write_text(json.dumps(argvs))
    whole = python(["-c", MANY, jobs], timeout=120, env=env)
    assert whole.code == 0, whole

    def text(number, name):
        return (jobs.parent / f"{jobs.name}.{number}.{name}").read_text()

    return [Result(int(text(i, "code")), text(i, "out"), text(i, "err")) for i in range(len(argvs))]


@pytest.fixture(scope="module")
def ended(folder, tmp_path_factory):
    """Run every case in a process of its own: name -> its result and whether the folder of the files is as it was."""
    before = snapshot(folder)
    found = run_many(tmp_path_factory.mktemp("jobs") / "jobs.json", [(words(case.argv, folder), {}) for case in CASES.values()])
    assert snapshot(folder) == before, "a refused run left something on the disk"
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_trained_ends_with_one_line_and_leaves_nothing(ended, folder, name):
    check_one_line(ended[name], CASES[name].says)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "broken",
    [
        Result(1, "", "a: is wrong; correct it\n"),
        Result(0, "", "a: is wrong; correct it\n"),
        Result(2, "", "a: is wrong; correct it\n" * 2),
        Result(2, "", "a: is wrong\n"),
        Result(2, "", "a: is wrong; correct it\nTraceback (most recent call last):\n"),
        Result(2, "epoch 1\n", "a: is wrong; correct it\n"),
    ],
)
def test_the_check_sees_a_wrong_code_a_second_line_a_traceback_and_a_training_that_began(broken):
    check_one_line(Result(2, "", "a: is wrong; correct it\n"), ("a: is wrong",))
    with pytest.raises(AssertionError):
        check_one_line(broken, ("a: is wrong",))


ONE_RANK = """
import os
from mpidml.sync.base import SyncPolicy
class OneRank(SyncPolicy):
    def __init__(self, bound=1):
        if "1" in (os.environ.get("PMI_RANK"), os.environ.get("OMPI_COMM_WORLD_RANK")):
            raise ValueError("rank 1 alone does not like it; use another policy")
        self.bound = bound
    def oldest_readable(self, clock, worker=-1, view=None):
        return clock - self.bound
"""


@pytest.mark.openmpi
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--epohcs 3", ("there is no option '--epohcs'", "did you mean")),
        ("--data {}/nan.npz", ("/nan.npz: x holds nan in row 7, column 2", "remove or replace")),
        ("--batch 2", ("--batch 2: is below the 3 workers", "start fewer ranks")),
        ("--servers 3", ("--servers 3: 3 server(s) leave no worker on 3 ranks", "start at least 4 ranks")),
        ("--out {}/a_file/run", ("/a_file/run: ", "choose another --out")),
        ("--sync {}/one_rank.py:2", ("rank 1 alone does not like it", "use another policy")),
    ],
    ids=["option", "data", "batch", "servers", "out", "one rank's fault"],
)
def test_on_three_ranks_the_line_comes_once_and_all_end(folder, argv, says):
    (folder / "one_rank.py").write_text(ONE_RANK)
    before = snapshot(folder)
    result = mpirun(3, ["-m", "mpidml", *words(argv, folder)])
    check_one_line(result, says, launched=True)
    assert snapshot(folder) == before


NO_NUMBERS = ["OMP_NUM_THREADS=0", "OMP_NUM_THREADS=all", "NUMBA_NUM_THREADS=two", "OPENBLAS_NUM_THREADS=-3"]


@pytest.fixture(scope="module")
def told():
    """Start a job with each: all sleep for seconds, so that rank 0 tells it first, and do so at once."""
    with ThreadPoolExecutor(len(NO_NUMBERS)) as threads:
        yield {given: threads.submit(mpirun, 2, ["-m", "mpidml", "info"], env=dict([given.split("=")])) for given in NO_NUMBERS}


@pytest.mark.parametrize("given", NO_NUMBERS)
def test_a_number_of_threads_that_is_none_is_one_line(told, given):
    """Numba ends by a traceback at the first, warns at the third on each rank; OpenBLAS takes all cores at the last."""
    says = f"{given}: is not a number of threads", "give a whole number from 1 up"
    check_one_line(told[given].result(), says, launched=True)


def test_a_number_of_ranks_that_is_none_is_one_line():
    for given in (["-n", "0"], ["-n", "two"], ["-n", "²"], ["-n"]):
        result = python(["-m", "mpidml", *given])
        check_one_line(result, ("is not a number of ranks", "give a whole number from 1 up"))


@pytest.mark.openmpi
def test_fewer_rows_than_ranks_train_and_each_row_is_used(tmp_path):
    np.savez(tmp_path / "two.npz", x=np.array([[0.0, 1.0], [1.0, 0.0]]), y=np.array([0, 1]))
    out = tmp_path / "run"
    argv = ["--data", tmp_path / "two.npz", "--hold-out", "0", "--batch", "3", "--epochs", "20", "--hidden", "4", "--backend", "numpy", "--out", out]
    result = mpirun(3, ["-m", "mpidml", "train", *argv])
    assert result.code == 0, result
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["ranks"], summary["samples"], summary["clocks"]) == (3, 40, 20)
    assert summary["test_accuracy"] is None and os.path.getsize(out / "model.safetensors") > 0
