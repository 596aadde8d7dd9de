"""Say which rank hosts which roles. Roles are numbered: shards first, then workers; a rank may host several.

servers=2, 5 ranks     rank 0  server 0      servers=colocated, 3 ranks     rank 0  server 0, worker 0
                       rank 1  server 1                                     rank 1  server 1, worker 1
                       rank 2  worker 0 ...                                 rank 2  server 2, worker 2

servers=1, group=2, 5 ranks    rank 0  server 0       a group is one worker: its first rank, the leader, is what the servers see
                               rank 1  worker 0, rank 2  member 1 of worker 0
                               rank 3  worker 1, rank 4  member 1 of worker 1
"""

from __future__ import annotations

from typing import NamedTuple

from mpidml.core.errors import UserError


class Placement(NamedTuple):
    """`server_ranks[k]` hosts server k, `worker_ranks[w]` hosts worker w, out of `n_ranks`; `groups[w]` are the ranks that are worker w, its host first.

    Where every worker is one rank there are no groups.
    """

    n_ranks: int
    server_ranks: tuple[int, ...]
    worker_ranks: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()

    def names(self) -> list[list[str]]:
        """List the roles of each rank, as they stand in summaries and plots."""
        roles: list[list[str]] = [[] for _ in range(self.n_ranks)]
        for kind, ranks in (("server", self.server_ranks), ("worker", self.worker_ranks)):
            for number, rank in enumerate(ranks):
                roles[rank].append(f"{kind} {number}")
        for number, ranks in enumerate(self.groups):
            for member, rank in enumerate(ranks[1:], 1):
                roles[rank].append(f"member {member} of worker {number}")
        return roles


def place(n_ranks: int, servers: str, group: int = 1) -> Placement:
    """Place roles: `colocated` puts a server beside each worker; K gives the first K ranks to servers alone.

    Neighbouring ranks are one worker, `group` of them, or as evenly as can be fewer. One rank hosts everything, whatever `servers` and `group` say.
    UserError when no rank is left for a worker, or too few for a group.
    """
    everyone = tuple(range(n_ranks))
    if servers == "colocated":
        groups = _groups(everyone, group)
        leaders = tuple(ranks[0] for ranks in groups) or everyone
        return Placement(n_ranks, leaders, leaders, groups)
    n_servers = int(servers) if servers.isdecimal() else 0
    if n_servers < 1:
        raise UserError(f"--servers {servers}: not a number of servers; give 'colocated' or a number from 1 up")
    if n_ranks == 1:
        return Placement(1, (0,) * n_servers, (0,))
    if n_servers >= n_ranks:
        raise UserError(
            f"--servers {servers}: {n_servers} server(s) leave no worker on {n_ranks} ranks; start at least {n_servers + 1} ranks or use --servers colocated"
        )
    groups = _groups(everyone[n_servers:], group)
    return Placement(n_ranks, everyone[:n_servers], tuple(ranks[0] for ranks in groups) or everyone[n_servers:], groups)


def computing(n_ranks: int, servers: str) -> int:
    """Count the ranks that compute, whatever their groups: all, or all but the servers, and one of them at least."""
    return max(1, n_ranks - int(servers)) if servers.isdecimal() else n_ranks


def _groups(ranks: tuple[int, ...], size: int) -> tuple[tuple[int, ...], ...]:
    """Cut ranks into the fewest groups of at most `size`, as even as can be; none where each would be alone."""
    if size == 1 or len(ranks) == 1:
        return ()
    if size > len(ranks):
        raise UserError(f"--group {size}: {len(ranks)} rank(s) compute; give at most {len(ranks)}, or start more ranks")
    n = -(-len(ranks) // size)
    return tuple(ranks[len(ranks) * k // n : len(ranks) * (k + 1) // n] for k in range(n))
