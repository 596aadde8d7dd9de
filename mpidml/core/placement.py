"""Say which rank hosts which roles. Roles are numbered: shards first, then workers; a rank may host several.

servers=2, 5 ranks     rank 0  server 0      servers=colocated, 3 ranks     rank 0  server 0, worker 0
                       rank 1  server 1                                     rank 1  server 1, worker 1
                       rank 2  worker 0 ...                                 rank 2  server 2, worker 2
"""

from __future__ import annotations

from typing import NamedTuple

from mpidml.core.errors import UserError


class Placement(NamedTuple):
    """`server_ranks[k]` hosts server k, `worker_ranks[w]` hosts worker w, out of `n_ranks`."""

    n_ranks: int
    server_ranks: tuple[int, ...]
    worker_ranks: tuple[int, ...]

    def names(self) -> list[list[str]]:
        """List the roles of each rank, as they stand in summaries and plots."""
        roles: list[list[str]] = [[] for _ in range(self.n_ranks)]
        for kind, ranks in (("server", self.server_ranks), ("worker", self.worker_ranks)):
            for number, rank in enumerate(ranks):
                roles[rank].append(f"{kind} {number}")
        return roles


def place(n_ranks: int, servers: str) -> Placement:
    """Place roles: `colocated` puts a server beside each worker; K gives the first K ranks to servers alone.

    One rank hosts everything, whatever `servers` says. UserError when no rank is left for a worker.
    """
    everyone = tuple(range(n_ranks))
    if servers == "colocated":
        return Placement(n_ranks, everyone, everyone)
    n_servers = int(servers) if servers.isdecimal() else 0
    if n_servers < 1:
        raise UserError(f"--servers {servers}: not a number of servers; give 'colocated' or a number from 1 up")
    if n_ranks == 1:
        return Placement(1, (0,) * n_servers, (0,))
    if n_servers >= n_ranks:
        raise UserError(
            f"--servers {servers}: {n_servers} server(s) leave no worker on {n_ranks} ranks; start at least {n_servers + 1} ranks or use --servers colocated"
        )
    return Placement(n_ranks, everyone[:n_servers], everyone[n_servers:])
