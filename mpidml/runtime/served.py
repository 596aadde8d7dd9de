"""What the run around a strategy with servers asks of it: where it stands, what is to be saved, what it has come to; `serverless` is its counterpart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpidml.core.job import Job
from mpidml.core.placement import Placement
from mpidml.core.position import Position
from mpidml.core.role import Array
from mpidml.ps.codes import Codes
from mpidml.ps.shard import Shard
from mpidml.ps.worker import Worker
from mpidml.runtime import resume
from mpidml.runtime.bell import Bell
from mpidml.runtime.comm import CountedComm
from mpidml.runtime.groups import Group, bytes_in_groups
from mpidml.runtime.memory import WindowBuffers
from mpidml.runtime.summary import AGREES
from mpidml.runtime.summed_there import verdict
from mpidml.runtime.training import Training


class Served:
    """What a strategy with servers tells of its parameters, codes and ranks; one that derives from this makes them."""

    same_bits = False
    job: Job
    comm: CountedComm
    placement: Placement
    n_workers: int
    in_place: bool
    copies: int
    codes: Codes | None
    driver: Any
    views: list[Array]
    tasks: dict[int, Training]
    workers: dict[int, Worker]
    window: WindowBuffers | None
    bell: Bell | None
    group: Group | None
    whole = True
    """A rank that has the parameters has all."""

    def position(self) -> Position:
        """Return where the run stands once its roles have stopped, and keep what they have learnt for those that go on (Collective on comm)."""
        return resume.position(self)

    @property
    def n_keepers(self) -> int:
        """How many workers keep what their codes have left."""
        return self.n_workers if self.codes else 0

    @property
    def drain_seconds(self) -> float:
        """How long a worker of this rank went on sending what a budget had kept back, at the end."""
        return max((worker.client.drain_seconds for worker in self.workers.values()), default=0.0)

    def kept(self) -> list[tuple[str, int, int, Array]]:
        """List what is to be saved besides values and optimizer: name, first element, elements in all, array."""
        return self.codes.kept() if self.codes else []

    def restore(self, read: Callable[[str, int, Array], bool], n_before: int) -> None:
        """Let `read` fill what `kept` lists, and workers take what was read of theirs; a run without codes has nothing for them."""
        for task in self.tasks.values():
            task.refresh()
        if self.codes and n_before:
            self.codes.restore(read, n_before)

    def refresh(self) -> None:
        """Let all ranks see what was changed in the shared window (Collective on comm)."""
        self.comm.Barrier()

    @property
    def promise(self) -> str:
        """Say what is repeated."""
        return "repeat: same layout, same bits" if self.job.deterministic else AGREES

    def told(self) -> dict[str, Any]:
        """Return on rank 0 what the summary says of groups (Collective on comm)."""
        if not self.placement.groups:
            return {}
        return bytes_in_groups(self.comm, self.group) | verdict(self.comm, *([] if self.group is None else [self.group.gpu_mpi]))

    def words(self) -> str:
        """Say how the ranks work together."""
        beside = " beside them" if self.job.servers == "colocated" else ""
        where = "in place" if self.in_place else f"by copy, {self.codes.words()}" if self.codes else "by copy"
        groups = f" of {self.job.group} ranks at most" if self.placement.groups else ""
        given = [f"--{name} {getattr(self.job, name)}" for name in ("group", "collective") if getattr(self.job, name) != getattr(Job, name)]
        aside = f"; with one worker {', '.join(given)} change{'s' * (len(given) == 1)} nothing" if given and not self.placement.groups else ""
        return f"{self.n_workers} worker(s){groups}, {len(self.placement.server_ranks)} server(s){beside}; sync {self.job.policy()}, {where}{aside}"

    def final_values(self) -> Array | None:
        """Return the parameters after the last clock on the ranks that have them."""
        if self.views:
            last = next((role.clocks.highest for role in self.driver.roles.values() if isinstance(role, Shard)), None)
            if last is None and not self.workers:
                return None
            if last is None:
                last = next(worker.turn.versions[0] for worker in self.workers.values())
            return self.views[last % self.copies]
        return next(iter(self.tasks.values())).final if self.tasks else None

    def free(self) -> None:
        """Free windows and sockets (Collective on comm)."""
        if self.group is not None:
            self.group.free()
        if self.bell is not None:
            self.bell.close()
        if self.window is not None:
            self.window.free()
