"""Describe a whole job in one record: its fields are the command line's flags, the keys of the TOML file, and what a simulation takes.

A field appears here together with the code that gives it effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mpidml.core.device import WANTED
from mpidml.core.errors import UserError, nearest
from mpidml.core.parsing import parsed

EPOCHS = 30
NO_END = 1 << 40
"""Clocks of a run that ends at a time."""


OF_STAGES = ("grid", "mix", "schedule", "microbatches", "replicas", "partition", "recompute")
"""Flags of the strategies that cut a network into stages."""
OF_STRATEGIES = (
    *OF_STAGES, "sync", "staleness", "tune", "reads", "assign", "servers", "group", "early_push", "budget", "order", "collective", "bucket", "shares", "check_replicas",
    "averaging", "average_every", "progress_thread", "memory_per_rank",
)  # fmt: skip
"""Flags that do nothing under some strategy: a run that goes on by another one begins with their defaults."""
STAGED = ("pipeline", "tensor", "hybrid")
"""These strategies."""
AUTO = "auto"
"""In place of a folder to go on with."""
NCCL = "nccl"
EXPERIMENTAL = "experimental: has not run on a GPU"
"""Said wherever NCCL is."""


def flag(default: Any, text: str, choices: tuple[str, ...] = (), plugins: str = "", groups: str = "") -> Any:
    """Return a field that is a flag of the command line: its default, its help, its choices or the folder of plug-ins that are, and its `groups`.

    data      says what is read; where it lies may change, so that is not `fixed`
    fixed     what a run has saved fits this value alone
    one       the same for all that are compared
    commas    one value may hold commas
    """
    return field(default=default, metadata={"help": text, "choices": choices, "plugins": plugins, "groups": groups.split()})


@dataclass(frozen=True)
class Job:
    """Everything that decides what a training run computes and writes."""

    data: str = flag(
        "digits",
        "training data: 'digits' (shipped), a file (.npz, .npy, .csv, .parquet, .h5, .svm, IDX; x,y or x_train,y_train,x_test,y_test), a glob 'part-*.csv', or a folder",
        groups="data one",
    )
    test_data: str = flag("", "test data in a file (glob, folder) of its own", groups="data one")
    labels: str = flag("", "IDX, npy: file of the labels (default: beside the data, by its standard name)", groups="data one")
    test_labels: str = flag("", "the same for --test-data", groups="data one")
    label: str = flag(
        "", "CSV, Parquet: name of the label's column, or of several, the targets of one regression, as a,b,c (default: the last)",
        groups="data fixed one commas",
    )
    task: str = flag(
        "auto", "what the labels are: names of classes, or amounts (auto: amounts where a number is not whole)", ("auto", "classify", "regress"),
        groups="data fixed one",
    )
    categories: str = flag(
        "onehot", "CSV, Parquet: a column of words becomes a feature for each word, or one feature, its code", ("onehot", "codes"),
        groups="data fixed one",
    )
    unseen: str = flag(
        "refuse", "a word of --test-data that training never saw (ignore: zero in all features of the column)", ("refuse", "ignore"),
        groups="data fixed one",
    )
    missing: str = flag(
        "refuse", "CSV, Parquet: a cell that is empty, NA, NaN or ? (impute: the mean, or the commonest word, of the training rows)", ("refuse", "impute"),
        groups="data fixed one",
    )
    view: str = flag("pix", "digits: which of the six views (pix, fou, fac, kar, zer, mor)", groups="data fixed one")
    hold_out: float = flag(0.2, "share of the rows held out for testing where no test data are given (0: none)", groups="data fixed one")
    validate: float = flag(
        0.0, "share of the training rows kept apart: looked at once an epoch in place of the test rows (0: none)", groups="data fixed one"
    )
    memory: str = flag(
        "", "bytes that the data may take in the memory of a host, as 512M or 2G; what is more stays on the disk (default: no limit)", groups="one"
    )
    scratch: str = flag(
        "", "with --memory: folder for rows that have to be decoded first (default: the system's for temporary files)", groups="one"
    )
    scale: str = flag(
        "standard", "scaling of the features, fitted on the training rows; sparse ones stay sparse under maxabs (largest absolute value 1) and none",
        ("standard", "minmax", "maxabs", "none"), groups="fixed",
    )
    model: str = flag("mlp", "the network: mlp, softmax, or the path of a file that lists its layers, as net.toml", groups="fixed")
    hidden: tuple[int, ...] = flag((256, 128), "mlp: widths of the hidden layers, as 512,512", groups="fixed one commas")
    activation: str = flag(
        "relu", "mlp: activation of the hidden layers", ("relu", "leaky_relu", "gelu", "softplus", "tanh", "sigmoid"), groups="fixed"
    )
    dropout: float = flag(0.0, "mlp: share of hidden units dropped in training")
    loss: str = flag(
        "auto", "the loss, with its argument as in huber:1.0 (auto: cross_entropy, of amounts squared_error)", plugins="mpidml.nn.losses", groups="fixed"
    )
    class_weights: str = flag(
        "", "factor of each class in the loss: balanced (the rarer a class, the larger) or a list as 1,2.5,1", groups="one commas"
    )
    label_smoothing: float = flag(0.0, "cross_entropy: share of each label that is spread over all classes")
    dtype: str = flag("float32", "floating-point type of parameters and arithmetic", ("float32", "float64"), groups="fixed")
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
    group: int = flag(
        1, "parameter_server: so many neighbouring ranks are one worker; they sum their gradients (by --collective), and the first of them alone talks to servers"
    )
    optimizer: str = flag("momentum", "chain of links joined by '+', as clip:1+decay:1e-4+adam", plugins="mpidml.optim", groups="fixed")
    optimize: str = flag(
        "servers", "where the optimizer runs: on the servers, or on the workers (adam then steps by each one's own gradient)", ("servers", "workers"),
        groups="fixed",
    )
    lr: float = flag(0.05, "learning rate")
    lr_batch: int = flag(0, "the batch for which --lr is meant: at another --batch the rate is lr x batch / lr-batch (0: the rate is --lr)")
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
    collective: str = flag("auto", "data_parallel, averaging, and inside a --group: how buffers are summed over ranks (averaging: or gossip)", plugins="mpidml.collectives")
    grid: str = flag("", "pipeline, tensor, hybrid: ranks along named axes, as data=2,pipe=2,tensor=1 (default: all along pipe, or tensor)", groups="commas")
    mix: str = flag("", "pipeline, tensor, hybrid: layers cut over the ranks of --grid data=4, while others share out the batch, as embedding=tensor", groups="commas")
    schedule: str = flag("one_f_one_b", "pipeline, tensor, hybrid: in which order stages compute microbatches", plugins="mpidml.schedules")
    microbatches: int = flag(0, "pipeline, tensor, hybrid: parts of a batch that flow through the stages (0: 4 for each stage, with --replicas for each rank)")
    replicas: str = flag("", "pipeline: ranks of each stage, which take its microbatches by turns, as 2,1 (auto: by what is measured; default: one)", groups="commas")
    partition: str = flag("auto", "pipeline, tensor, hybrid: layers of each stage, as 3,2,4 (auto: by costs and ranks' speeds; equal: by costs alone)", groups="commas")
    recompute: bool = flag(False, "pipeline, tensor, hybrid: keep a stage's inputs alone, and compute its activations again on the way back")
    memory_per_rank: str = flag(
        "", "pipeline, tensor, hybrid, data_parallel, plan: bytes that a rank may take, rows of data aside, as 512M or 4G; what needs more is refused (default: no limit)",
        groups="one",
    )
    bucket: int = flag(1 << 20, "data_parallel: bytes of gradient that are summed together, as soon as they are final")
    compress: str = flag(
        "", "send gradients, and what comes back, in fewer bytes, as by two_bit or top_k:0.01; what a code leaves is sent later", plugins="mpidml.compression",
        groups="fixed",
    )
    shares: str = flag(
        "equal", "data_parallel: samples of a batch: equal shares, or measured (in proportion to what each rank gets done, learnt anew as it changes)",
        ("equal", "measured"),
    )
    progress_thread: str = flag(
        "auto", "data_parallel: a thread that keeps sums going while a rank computes (auto: between hosts, where a core is free)", ("auto", "on", "off")
    )
    check_replicas: int = flag(0, "data_parallel: compare the ranks' weights and optimizer each time so many clocks are done (0: at the end alone)")
    averaging: str = flag("mean", "averaging: the replicas become their mean, or are pulled to a centre: elastic, elastic_async, with a moving rate as in elastic:0.1")
    average_every: int = flag(8, "averaging: each time after so many clocks")
    transport: str = flag("auto", f"data inside a host: auto (shared window), mpi, or nccl (data_parallel on GPUs; {EXPERIMENTAL})", ("auto", "mpi", NCCL))
    epochs: int = flag(0, f"passes over the training data (0: {EPOCHS}, or no limit where --steps or --seconds is given)", groups="one")
    steps: int = flag(0, "end after this many clocks (0: as many as the epochs have)", groups="one")
    target: str = flag("", "end at a test (with --validate: validation) accuracy such as 0.97, or at loss:0.1; looked at once an epoch", groups="one")
    patience: int = flag(0, "end when the validation loss was no less than before for so many epochs, and save the best parameters (0: off)")
    seconds: float = flag(0.0, "end after this many seconds of training (0: no limit)", groups="one")
    batch: int = flag(64, "global batch: samples per clock over all workers", groups="fixed")
    accumulate: int = flag(1, "parts in which a worker computes its share of a batch, summing the gradient: activations take so much less memory")
    seed: int = flag(0, "decides weights, order of samples and noise", groups="fixed one")
    deterministic: bool = flag(False, "same layout, same bits (bsp, ssp, warmup); under data_parallel the same bits at any number of ranks", groups="one")
    backend: str = flag("numba", "arithmetic on the CPU: numba, or numpy (the reference)", ("numba", "numpy"))
    device: str = flag("auto", WANTED)
    slowdown: str = flag("", "slow workers (ranks of a grid) down: exponential:F, rotating:F or permanent:F")
    wait_limit: float = flag(300.0, "seconds after which a wait ends the job with a report", groups="one")
    checkpoint_every: int = flag(0, "write a checkpoint each time so many clocks are done, and when SIGTERM or SIGUSR1 ends the run (0: none)")
    keep_checkpoints: int = flag(2, "how many checkpoints are kept, the newest")
    report: bool = flag(True, "draw report.png at the end, in about half a second", groups="one")
    trace: bool = flag(False, "write trace.json (opens in Perfetto)", groups="one")
    tensorboard: bool = flag(False, "write the metrics as events for TensorBoard, too", groups="one")
    resume: str = flag("", "folder of a run to go on with, from its newest checkpoint; its config.toml says what is not given here. auto: go on in --out, or begin there")
    requeue: bool = flag(False, "with --resume auto, in a Slurm job: when SIGUSR1 has saved and ended the run, the job goes back into its queue")
    out: str = flag("", "folder of the run (default: runs/<time>, or that of --resume)", groups="one")

    def policy(self) -> str:
        """Return the policy's specification with its staleness."""
        if self.staleness == "":
            return self.sync
        if ":" in self.sync:
            raise UserError(f"--staleness {self.staleness}: --sync {self.sync} names one already; give it in one place")
        return f"{self.sync}:{self.staleness}"

    @property
    def rate(self) -> float:
        """Return the learning rate at this batch: linear scaling (Goyal et al. 2017), where --lr is meant for another."""
        return self.lr * self.batch / self.lr_batch if self.lr_batch else self.lr

    @property
    def looks_at(self) -> str:
        """Name the rows that are looked at once an epoch: "val" or "test"."""
        return "val" if self.validate else "test"

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the widths of the hidden layers: the default ones are those of an mlp, widths given to a model without such layers are refused later."""
        return () if self.model == "softmax" and self.hidden == Job.hidden else self.hidden

    @property
    def endless(self) -> bool:
        """Whether a time alone ends the run."""
        return bool(self.seconds and not self.steps and not self.epochs)

    def n_clocks(self, clocks_per_epoch: int) -> int:
        """Return after how many clocks the run ends at the latest."""
        return NO_END if self.endless else self.steps or (self.epochs or EPOCHS) * clocks_per_epoch

    def check_workers(self, n_workers: int) -> None:
        """Refuse a batch that so many workers cannot share, in the parts in which each computes."""
        if self.batch < n_workers:
            raise UserError(f"--batch {self.batch}: is below the {n_workers} workers; give each at least one sample, or start fewer ranks")
        if self.accumulate > (least := self.batch // n_workers):
            raise UserError(
                f"--accumulate {self.accumulate}: a worker's share of --batch {self.batch} is {least} sample(s), which make no {self.accumulate} parts; "
                f"give at most {least}, or a larger batch"
            )

    def check_repeats(self, unsure: Mapping[str, object]) -> None:
        """Refuse --deterministic beside a flag (its text -> whether it was given) whose effect depends on timing."""
        for text, given in unsure.items():
            if self.deterministic and given:
                raise UserError(f"--deterministic: {text} cannot repeat, it depends on timing; leave one of them out")

    def refuse(self, names: Sequence[str], what: str) -> None:
        """Refuse the first of some flags that was given and decides nothing under `what`."""
        for name in names:
            if (value := getattr(self, name)) != getattr(Job, name):
                flag = f"{'no-' * (value is False)}{name.replace('_', '-')}{'' if isinstance(value, bool) else f' {value}'}"
                raise UserError(f"--{flag}: does nothing under {what}; leave it out")

    def checked(self) -> Job:
        """Return this job with every value in its field's type, or raise UserError naming the first one that cannot be or would do nothing."""
        from mpidml.core.job_rules import check  # which knows this record

        return check(self.with_values({f.name: getattr(self, f.name) for f in fields(self)}, "job"))

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


def members(group: str) -> tuple[str, ...]:
    """Name the fields of a job that say of themselves that they are in `group`."""
    return tuple(f.name for f in fields(Job) if group in f.metadata["groups"])
