"""Say how many bytes a clock of a job moves between a worker and its servers: all parameters each way, or their codes."""

from __future__ import annotations

from typing import NamedTuple

from mpidml.compression.base import Compressor, make_codec
from mpidml.core.errors import UserError
from mpidml.core.job import Job
from mpidml.core.partition import shards
from mpidml.nn.network import Network
from mpidml.ps.coded import codes_answers
from mpidml.runtime.agree import agree
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.dataset import Dataset, load
from mpidml.runtime.net import build_net

SIMULATED_WHOLE = "use --scale standard, or leave out --learn and --bandwidth"
"""What `simulate` does about sparse rows."""


class Payload(NamedTuple):
    """Bytes of all `values`, of a gradient as it is `pushed`, and of the `answer` to a read between the first and the last one."""

    values: int
    pushed: int
    answer: int


def payload(job: Job, net: Network | None, n_servers: int) -> Payload:
    """Return what travels where parameters lie on `n_servers`; without a network 8 bytes, which nobody counts."""
    if net is None:
        return Payload(8, 8, 8)
    values = net.n_params * net.dtype.itemsize
    if not job.compress or job.strategy != Job.strategy:
        return Payload(values, values, values)
    codec = make_codec(job.compress)
    coder = Compressor(codec, net.params, net.dtype, net.backend, held=(0, 0))
    starts = [of.start for of in net.params.slices.values()] if codec.whole else []
    code = sum(coder.nbytes(lo, hi) for lo, hi, _ in shards(net.n_params, n_servers, align=16, starts=starts))
    return Payload(values, code, code if codes_answers(codec) else values)


def net_of(job: Job, comm: CountedComm, remedy: str = SIMULATED_WHOLE) -> Network:
    """Return the network whose parameters travel; `remedy` for sparse rows (Collective on comm)."""
    data = load(job, comm)
    refuse_sparse(data, "simulate", remedy)
    return agree(comm, lambda: build_net(job, data, "numpy"))


def refuse_sparse(data: Dataset, where: str, remedy: str = "use --scale standard") -> None:
    """Refuse rows whose features decide what is computed and what travels: what is priced is that of all parameters."""
    if data.is_sparse:
        raise UserError(f"{where}: the rows of {data.name} are sparse, so what they cost and what travels differs from clock to clock, which has no price; {remedy}")
