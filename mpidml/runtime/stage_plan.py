"""Cut the layers of a network into stages: by hand, by what they cost here and how fast each rank is, or where bits are to repeat by what is computed.

    --partition 2,1      --partition auto: profiles, speeds -> cut          --replicas auto: profiles, link -> cut, and on how many ranks each stage is
"""

from __future__ import annotations

from typing import Any

from mpidml.core.balance import Plan, balanced, by_hand, by_memory, priced
from mpidml.core.job import AUTO, Job
from mpidml.core.pace import paced, stage_speeds
from mpidml.core.sizes import parse_size
from mpidml.core.turn_plan import chosen
from mpidml.core.turns import TurnGrid
from mpidml.nn.stage import n_cuts
from mpidml.runtime.agree import agree
from mpidml.runtime.info import pingpong
from mpidml.runtime.profiling import counted, of_all
from mpidml.runtime.rank_memory import FLAG, Stages, check_stages, hosts_of

EQUAL = "equal"
"""The --partition that takes all ranks for equally fast."""


def stages(strategy: Any) -> Plan:
    """Return the stages of a `strategy` that is cut, which is told the profiles, speeds and weights of parts that they follow (Collective on its comm).

    UserError where they take more than a rank has.
    """
    plan = _stages(strategy)
    check_stages(strategy, plan.stages)
    return plan


def _stages(strategy: Any) -> Plan:
    job, comm, net, grid, n_layers = strategy.job, strategy.comm, strategy.net, strategy.grid, n_cuts(strategy.net)
    strategy.profiles, strategy.speeds, strategy.part_weights = [], [1.0] * comm.size, (1.0,) * strategy.n_parts
    if strategy.n_pipe * strategy.n_parts * strategy.n_stages > 1 or job.replicas == AUTO:
        found = of_all(comm, net, strategy.m, strategy.slowness.slowdown, strategy.n_parts) if not job.deterministic else (counted(net, strategy.m), strategy.speeds)
        strategy.profiles, strategy.speeds = found
    if job.replicas == AUTO:
        rate = comm.bcast(pingpong(comm.mpi, comm.size - 1)[1] if comm.size > 1 else 0.0)
        hosts, limit = hosts_of(comm), parse_size(job.memory_per_rank, FLAG) if job.memory_per_rank else 0

        def nbytes(plan: Plan) -> float:
            return max(Stages(strategy, plan.stages, hosts, TurnGrid([stage.replicas for stage in plan.stages])).needs())

        def choose() -> Plan | None:  # as each rank would, but the others sleep meanwhile
            if comm.rank:
                return None
            return chosen(strategy.profiles, comm.size, strategy.n_items, strategy.schedule, rate, nbytes, limit, f"--schedule {job.schedule}")

        plan: Plan = comm.bcast(agree(comm, choose))
        strategy.lie(TurnGrid([stage.replicas for stage in plan.stages]))
        strategy.n_stages = len(plan.stages)
        return plan
    if strategy.profiles and job.partition == Job.partition:
        plan, strategy.part_weights = _lighter(strategy, *paced(strategy.profiles, grid, strategy.speeds, strategy.n_stages))
        return plan
    if strategy.n_stages == 1:
        return Plan((by_hand(str(n_layers), n_layers, 1)), 0.0, "stage", 0, "")
    if job.partition == EQUAL:
        return balanced(strategy.profiles, strategy.n_stages, 0.0, speeds=stage_speeds(grid, [1.0] * comm.size, strategy.part_weights, strategy.n_stages))
    return priced(strategy.profiles, by_hand(job.partition, n_layers, strategy.n_stages), 0.0)


def _lighter(strategy: Any, plan: Plan, weights: tuple[float, ...]) -> tuple[Plan, tuple[float, ...]]:
    """Return `plan` and the proportion of parts; where the fullest rank takes more than it may equal parts, and then a cut that evens out memory, too, which
    the seconds of layers decide nothing of. Where nothing fits, what takes least.
    """
    if not strategy.job.memory_per_rank or strategy.n_stages * strategy.n_parts == 1:
        return plan, weights
    hosts, limit, profiles, n = hosts_of(strategy.comm), parse_size(strategy.job.memory_per_rank, FLAG), strategy.profiles, strategy.n_stages
    alike = (1.0,) * strategy.n_parts
    equal = balanced(profiles, n, 0.0, speeds=stage_speeds(strategy.grid, strategy.speeds, alike, n)) if weights != alike else plan
    ways = [(plan, weights), (equal, alike), (priced(profiles, balanced(by_memory(profiles), n, 0.0).stages, 0.0), alike)]
    needs = [max(Stages(strategy, each.stages, hosts, weights=parts).needs()) for each, parts in ways]
    return ways[next((i for i, nbytes in enumerate(needs) if nbytes <= limit), needs.index(min(needs)))]
