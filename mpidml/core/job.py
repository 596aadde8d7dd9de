"""Describe a whole job in one record: its fields are the command line's flags, the keys of the TOML file, and what a simulation takes.

A field appears here together with the code that gives it effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePath
from typing import Any

from mpidml.core.errors import UserError, nearest
from mpidml.core.sizes import parse_size
from mpidml.core.target import parse_target

EPOCHS = 30


def flag(default: Any, text: str, choices: tuple[str, ...] = (), plugins: str = "") -> Any:
    """Return a field that is a flag of the command line: its default, its help, its choices or the folder of plug-ins that are."""
    return field(default=default, metadata={"help": text, "choices": choices, "plugins": plugins})


@dataclass(frozen=True)
class Job:
    """Everything that decides what a training run computes and writes."""

    data: str = flag(
        "digits",
        "training data: 'digits' (shipped), a file (.npz, .npy, .csv, .parquet, .h5, .svm, IDX; x,y or x_train,y_train,x_test,y_test), a glob 'part-*.csv', or a folder",
    )
    test_data: str = flag("", "test data in a file (glob, folder) of its own")
    labels: str = flag("", "IDX, npy: file of the labels (default: beside the data, by its standard name)")
    test_labels: str = flag("", "the same for --test-data")
    label: str = flag("", "CSV, Parquet: name of the label's column (default: the last)")
    task: str = flag("auto", "what the labels are: names of classes, or amounts (auto: amounts where a number is not whole)", ("auto", "classify", "regress"))
    categories: str = flag("onehot", "CSV, Parquet: a column of words becomes a feature for each word, or one feature, its code", ("onehot", "codes"))
    unseen: str = flag("refuse", "a word of --test-data that training never saw (ignore: zero in all features of the column)", ("refuse", "ignore"))
    missing: str = flag(
        "refuse", "CSV, Parquet: a cell that is empty, NA, NaN or ? (impute: the mean, or the commonest word, of the training rows)", ("refuse", "impute")
    )
    view: str = flag("pix", "digits: which of the six views (pix, fou, fac, kar, zer, mor)")
    hold_out: float = flag(0.2, "share of the rows held out for testing where no test data are given (0: none)")
    validate: float = flag(0.0, "share of the training rows kept apart: looked at once an epoch in place of the test rows (0: none)")
    memory: str = flag("", "bytes that the data may take in the memory of a host, as 512M or 2G; what is more stays on the disk (default: no limit)")
    scratch: str = flag("", "with --memory: folder for rows that have to be decoded first (default: the system's for temporary files)")
    scale: str = flag("standard", "scaling of the features, fitted on the training rows", ("standard", "minmax", "none"))
    model: str = flag("mlp", "the network: mlp, softmax, or the path of a file that lists its layers, as net.toml")
    hidden: tuple[int, ...] = flag((256, 128), "mlp: widths of the hidden layers, as 512,512")
    activation: str = flag("relu", "mlp: activation of the hidden layers", ("relu", "leaky_relu", "gelu", "softplus", "tanh", "sigmoid"))
    dropout: float = flag(0.0, "mlp: share of hidden units dropped in training")
    loss: str = flag("cross_entropy", "the loss, with its argument as in huber:1.0", plugins="mpidml.nn.losses")
    class_weights: str = flag("", "factor of each class in the loss: balanced (the rarer a class, the larger) or a list as 1,2.5,1")
    label_smoothing: float = flag(0.0, "cross_entropy: share of each label that is spread over all classes")
    dtype: str = flag("float32", "floating-point type of parameters and arithmetic", ("float32", "float64"))
    strategy: str = flag("parameter_server", "how the model is trained over ranks", plugins="mpidml.strategies")
    sync: str = flag("bsp", "consistency policy, with its argument as in ssp:3, or a path to a file of your own", plugins="mpidml.sync")
    staleness: str = flag("", "the policy's staleness: --sync ssp --staleness 3 is --sync ssp:3")
    reads: str = flag(
        "fresh",
        "how a worker reads: fresh (asks each clock), cached (keeps a copy while the policy allows), eager (servers push fresh rows)",
        ("fresh", "cached", "eager"),
    )
    assign: str = flag(
        "static",
        "samples: static (each worker its share of every batch) or dynamic (the next block of the global order goes to the free worker)",
        ("static", "dynamic"),
    )
    servers: str = flag("colocated", "'colocated' (a server beside each worker) or a number of ranks that serve only")
    optimizer: str = flag("momentum", "chain of links joined by '+', as clip:1+decay:1e-4+adam", plugins="mpidml.optim")
    optimize: str = flag(
        "servers", "where the optimizer runs: on the servers, or on the workers (adam then steps by each one's own gradient)", ("servers", "workers")
    )
    lr: float = flag(0.05, "learning rate")
    lr_policy: str = flag(
        "constant", "how the learning rate goes on: factors joined by '+', as warmup:100+cosine", plugins="mpidml.rates"
    )
    tune: bool = flag(True, "soften stale updates by the policy's rule")
    early_push: str = flag(
        "auto", "push each layer's gradient during the backward pass (auto: under bsp with servers of their own)", ("auto", "on", "off")
    )
    budget: float = flag(0.0, "bytes of gradients that a worker sends a second (0: no limit); what is above waits and is summed up")
    order: str = flag(
        "fifo", "with --budget: which part is sent next (the one that waits longest, any, or the largest)", ("fifo", "random", "magnitude")
    )
    transport: str = flag("auto", "data inside a host: auto (shared window) or mpi", ("auto", "mpi"))
    epochs: int = flag(0, f"passes over the training data (0: {EPOCHS}, or no limit where --steps or --seconds is given)")
    steps: int = flag(0, "end after this many clocks (0: as many as the epochs have)")
    target: str = flag("", "end at a test (with --validate: validation) accuracy such as 0.97, or at loss:0.1; looked at once an epoch")
    patience: int = flag(0, "end when the validation loss was no less than before for so many epochs, and save the best parameters (0: off)")
    seconds: float = flag(0.0, "end after this many seconds of training (0: no limit)")
    batch: int = flag(64, "global batch: samples per clock over all workers")
    accumulate: int = flag(1, "parts in which a worker computes its share of a batch, summing the gradient: activations take so much less memory")
    seed: int = flag(0, "decides weights, order of samples and noise")
    deterministic: bool = flag(False, "repeat mode: same layout, same bits (bsp, ssp, warmup)")
    backend: str = flag("numba", "arithmetic: numba, or numpy (the reference)", ("numba", "numpy"))
    slowdown: str = flag("", "slow workers down: exponential:F, rotating:F or permanent:F")
    wait_limit: float = flag(300.0, "seconds after which a wait ends the job with a report")
    checkpoint_every: int = flag(0, "write a checkpoint each time so many clocks are done, and when SIGTERM or SIGUSR1 ends the run (0: none)")
    keep_checkpoints: int = flag(2, "how many checkpoints are kept, the newest")
    trace: bool = flag(False, "write trace.json (opens in Perfetto)")
    tensorboard: bool = flag(False, "write the metrics as events for TensorBoard, too")
    resume: str = flag("", "folder of a run to go on with, from its newest checkpoint; its config.toml says what is not given here")
    out: str = flag("", "folder of the run (default: runs/<time>, or that of --resume)")

    def policy(self) -> str:
        """Return the policy's specification with its staleness."""
        if self.staleness == "":
            return self.sync
        if ":" in self.sync:
            raise UserError(f"--staleness {self.staleness}: --sync {self.sync} names one already; give it in one place")
        return f"{self.sync}:{self.staleness}"

    @property
    def looks_at(self) -> str:
        """Name the rows that are looked at once an epoch: "val" or "test"."""
        return "val" if self.validate else "test"

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the widths of the hidden layers: the default ones are those of an mlp, widths given to a model without such layers are refused later."""
        return () if self.model == "softmax" and self.hidden == Job.hidden else self.hidden

    def checked(self) -> Job:
        """Return this job with every value in its field's type, or raise UserError naming the first one that cannot be or would do nothing."""
        return self.with_values({f.name: getattr(self, f.name) for f in fields(self)}, "job")._in_range()

    def _in_range(self) -> Job:
        least: dict[str, float] = {"epochs": 0, "batch": 1, "steps": 0, "checkpoint_every": 0, "keep_checkpoints": 1, "accumulate": 1, "patience": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: is below {bound:g}; give a whole number from {bound:g} up")
        for name in ("hold_out", "validate", "dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: is not a share; give a number from 0 to below 1")
        for name in ("lr", "wait_limit"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"--{name.replace('_', '-')} {value}: is not a positive number; give for example {getattr(Job(), name)}")
        if any(width < 1 for width in self.hidden):
            raise UserError(f"--hidden {','.join(map(str, self.hidden))}: a width is below 1; give positive widths, as 512,512")
        if self.staleness != "" and not str(self.staleness).isdecimal():
            raise UserError(f"--staleness {self.staleness}: is not a whole number from 0 up; give for example 3")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise UserError(f"--seconds {self.seconds}: is not a number of seconds; give one from 0 up")
        if not (math.isfinite(self.budget) and self.budget >= 0):
            raise UserError(f"--budget {self.budget}: is not a number of bytes a second; give one from 0 up")
        parse_target(self.target)
        if self.memory:
            parse_size(self.memory, "--memory")
        elif self.scratch:
            raise UserError(f"--scratch {self.scratch}: does nothing without --memory; give a limit, or leave it out")
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            if (choices or f.metadata["plugins"]) and "," in value:
                raise UserError(f"--{f.name.replace('_', '-')} {value}: is a list, and one value is taken here; `compare` takes lists")
            if choices and value not in choices:
                raise UserError(f"--{f.name.replace('_', '-')} {value}: there is no such choice; {nearest(str(value), choices)}")
        if self.test_data and self.hold_out != Job.hold_out:
            raise UserError(f"--hold-out {self.hold_out}: does nothing beside --test-data {self.test_data}; leave one of them out")
        if not self.test_data:
            for name in ("test_labels", "unseen"):
                if getattr(self, name) != getattr(Job, name):
                    raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: does nothing without --test-data; leave it out")
        if self.unseen == "ignore" and self.categories == "codes":
            raise UserError("--unseen ignore: --categories codes has no code for a word that was never seen; use --categories onehot")
        if self.steps and self.epochs:
            raise UserError(f"--epochs {self.epochs}: does nothing beside --steps {self.steps}, which says when to end; leave one of them out")
        if self.keep_checkpoints != Job.keep_checkpoints and not self.checkpoint_every:
            raise UserError(f"--keep-checkpoints {self.keep_checkpoints}: does nothing without --checkpoint-every; give one, or leave it out")
        if self.patience and not self.validate:
            raise UserError(
                f"--patience {self.patience}: needs rows to judge by that are not the test rows, whose score would then be too good; give for example --validate 0.1"
            )
        if self.order != Job.order and not self.budget:
            raise UserError(f"--order {self.order}: does nothing without --budget; give one, or leave it out")
        if self.budget and self.early_push == "on":
            raise UserError("--early-push on: cannot go beside --budget, which sends a gradient in pieces of its own; leave one of them out")
        if self.model == "mlp" and not self.hidden:
            raise UserError("--hidden: names no width; give widths as 512,512, or --model softmax, which has no hidden layers")
        for name in ("hidden", "activation", "dropout") if self.model.endswith(".toml") else ():
            if getattr(self, name) != getattr(Job, name):
                raise UserError(f"--{name}: does nothing in --model {self.model}, which lists its layers itself; leave it out")
        if self.model == "softmax" and self.activation != Job.activation:
            raise UserError(f"--activation {self.activation}: does nothing in --model softmax, which has no hidden layers; use --model mlp")
        return self

    def with_values(self, values: Mapping[str, Any], where: str) -> Job:
        """Return a job with `values` (field name -> TOML value or text of a flag); UserError names unknown keys and wrong types."""
        known = {f.name: f for f in fields(self)}
        changed = {}
        for raw, value in values.items():
            name = raw.replace("-", "_")
            if name not in known:
                raise UserError(f"{where}: there is no option '{raw}'; {nearest(name, known)}")
            changed[name] = parsed(value, getattr(Job(), name), f"{where}: {raw}")
        return replace(self, **changed)

    def mapping(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}


def _whole(value: Any) -> int:
    """Return `value` as an int; ValueError where that would change it."""
    if isinstance(value, bool) or float(value) != int(float(value)):
        raise ValueError
    return int(value)


def parsed(value: Any, like: Any, where: str) -> Any:
    """Bring a TOML value or a flag's text to the type of `like`."""
    try:
        if isinstance(like, bool):
            if isinstance(value, bool):
                return value
            return {"true": True, "false": False}[str(value).lower()]
        if isinstance(like, int) and not isinstance(value, bool):
            return _whole(value)
        if isinstance(like, float) and not isinstance(value, bool):
            return float(value)
        if isinstance(like, tuple):
            parts = (value.split(",") if value.strip() else []) if isinstance(value, str) else list(value)
            return tuple(_whole(p) for p in parts)
        if isinstance(like, str) and isinstance(value, str | int | float | PurePath) and not isinstance(value, bool):
            return str(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    if isinstance(value, str) and "," in value and not isinstance(like, tuple):
        raise UserError(f"{where}: '{value}' is a list, and one value is taken here; `compare` takes lists")
    kind = {bool: "true or false", int: "a whole number", float: "a number", tuple: "whole numbers such as 512,512", str: "text"}[type(like)]
    raise UserError(f"{where}: {value!r} is not {kind}; the default is {like!r}")
