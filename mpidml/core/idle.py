"""Name the flags of a job that decide nothing under a strategy: a run refuses them, a comparison of several strategies gives them to the others alone."""

from __future__ import annotations

from mpidml.core.job import OF_STAGES, STAGED

OF_SERVERS = ("sync", "staleness", "tune", "reads", "assign", "servers", "group", "optimize", "early_push", "budget", "order")
"""Those of a parameter server."""
OF_PUSHES = ("sync", "staleness", "tune")
"""Of these the ones that replicas of a grid have, too."""
OF_REPLICAS = ("averaging", "average_every")
BESIDES = {
    "parameter_server": ("bucket", "shares", "progress_thread", "check_replicas", "memory_per_rank", *OF_REPLICAS, *OF_STAGES),
    "data_parallel": (*OF_REPLICAS, *OF_STAGES),
    "averaging": ("bucket", "check_replicas", "compress", "memory_per_rank", "progress_thread", "shares", "transport", *OF_STAGES),
    **dict.fromkeys(STAGED, ("bucket", "shares", *OF_REPLICAS, "accumulate", "check_replicas", "progress_thread")),
}
"""Of each strategy those of others, besides servers'."""


def idle(strategy: str, grouped: bool = False) -> tuple[str, ...]:
    """Return the flags that decide nothing under `strategy`, none of one that is not known here; `grouped`: servers' workers are groups, which sum."""
    if strategy not in BESIDES:
        return ()
    if strategy == "parameter_server":
        return BESIDES[strategy] if grouped else ("collective", *BESIDES[strategy])
    return (*(name for name in OF_SERVERS if strategy != "hybrid" or name not in OF_PUSHES), *BESIDES[strategy])
