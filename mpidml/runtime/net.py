"""Build a job's network for its data, from the file that lists its layers where the job names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpidml.compression.base import SMALL, Compressor, make_codec
from mpidml.core.device import CPU, Device
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.data.learnt import Asked
from mpidml.data.raw import Label
from mpidml.data.readers import HEADS
from mpidml.nn import models
from mpidml.nn.network import Network

NET_FILE = "net.toml"
"""The name of the net file's copy in a run folder."""


def net_text(job: Job) -> str:
    """Return the text of the file that lists the layers, "" where the model is a short form."""
    if not job.model.endswith(".toml"):
        return ""
    try:
        text = Path(job.model).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"--model {job.model}: there is no such file; give the path of a net file, or mlp or softmax") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--model {job.model}: cannot be read ({error}); correct the file") from None
    if not text.strip():
        raise UserError(f"--model {job.model}: the file is empty; list layers, each opened by a line [[layer]]")
    return text


def categories(job: Job) -> tuple[int, ...]:
    """Return which columns of the data the job's network takes as codes, which are not scaled."""
    return models.categories(models.layers_of(job, net_text(job)))


def labels(job: Job) -> tuple[Label, str, tuple[Asked, ...]]:
    """Return which labels the job's network learns, as what, and of several heads what each asks for; UserError where flags say so, too."""
    plan = models.layers_of(job, net_text(job))
    models.check(job, plan)
    if len(plan.heads) > 1:
        asked = tuple(Asked(head.name, head.label, models.learns_amounts(head.loss)) for head in plan.heads)
        return tuple(label for head in plan.heads for label in head.label), HEADS, asked
    return (plan.heads[0].label if plan.heads else ()) or job.label or None, job.task, ()


def build_net(job: Job, data: Any, backend: Any, device: Device = CPU) -> Network:
    """Return the network, on `device`; UserError for what does not fit the data."""
    if job.lr_batch and job.batch > (n := len(data.x)):
        raise UserError(f"--lr-batch {job.lr_batch}: would scale the rate to --batch {job.batch}, and a batch has the {n} training rows at most; give --batch {n}")
    net = models.for_data(job, models.layers_of(job, net_text(job)), data, backend)
    if job.compress:
        _check_codes(job, net)
    return net.on(device)


def _check_codes(job: Job, net: Network) -> None:
    """Refuse a codec by which no tensor would go in fewer bytes."""
    of_net = Compressor(make_codec(job.compress), net.params, net.dtype, net.backend, held=(0, 0))
    if all(piece.as_it_is for piece in of_net.pieces(0, net.n_params)):
        raise UserError(
            f"--compress {job.compress}: would code nothing, for each tensor has fewer than {SMALL} bytes, or a code that is no shorter;"
            " leave it out, or take another codec"
        )
