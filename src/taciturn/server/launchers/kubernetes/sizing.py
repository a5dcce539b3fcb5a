"""Which machine a job needs: the cheapest on which its memory estimate fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from taciturn.planning.memory import MemoryNeed, memory_need, reading_need
from taciturn.planning.plan import TrainingPlan
from taciturn.server.launchers.base import LaunchError
from taciturn.server.launchers.kubernetes.settings import Pool
from taciturn.spec import PerformanceSpec
from taciturn.wire.machines import MachineWish
from taciturn.wire.worker import BaseModelFacts

_USABLE = 0.9  # of a GPU's memory: the driver's own part, fragments
_LIBRARIES = 3 * 2**30  # what a process of torch takes before it does anything
_GIB = 2**30

NeedOn = Callable[[bool], MemoryNeed]
"""What is needed, on a GPU or without."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is asked for: `nodes` machines of a pool, with `gpus` on each."""

    pool: Pool
    nodes: int = 1
    gpus: int = 0

    @property
    def processes(self) -> int:
        """One for each GPU, or one."""
        return self.nodes * max(1, self.gpus)

    @property
    def price_per_hour(self) -> float:
        """Of all its nodes."""
        return self.nodes * self.pool.price_per_hour


def fit_need(plan: TrainingPlan, facts: BaseModelFacts, spec: PerformanceSpec) -> NeedOn:
    """Of a fit."""
    return lambda on_gpu: memory_need(facts.parameters, facts.vocabulary, plan, spec, on_gpu=on_gpu)


def model_need(facts: BaseModelFacts, tokens: int) -> NeedOn:
    """Of a job that writes or judges text with a model."""
    return lambda on_gpu: reading_need(facts.parameters, facts.vocabulary, tokens, on_gpu=on_gpu)


def choose(
    pools: Sequence[Pool],
    need: NeedOn | None,
    wish: MachineWish | None = None,
    *,
    several: bool = False,
) -> Machine:
    """The machine for a job.

    Args:
        pools: smallest first; among machines of the same price the earlier one is taken.
        need: None for jobs without a model, such as a look at a schema.
        several: the job can be spread over several GPUs and machines.

    Raises:
        LaunchError: nothing is large enough, or there is no such pool; says what is needed.
    """
    wish = wish or MachineWish()
    candidates = [each for pool in pools for each in _machines(pool, wish, several)]
    if not candidates:
        names = ", ".join(f"{pool.name} ({pool.gpus} GPUs)" for pool in pools)
        wished = ", ".join(f"{k}={v}" for k, v in wish.model_dump(exclude_none=True).items())
        raise LaunchError(f"no machine has {wished}; there are {names}")
    fitting = [each for each in candidates if need is None or _fits(each, need)]
    if not fitting and not (wish.gpus is not None or wish.pool):
        raise LaunchError(_too_small(candidates, need))
    # Whoever names GPUs or a pool knows better than an estimate.
    chosen = fitting or candidates
    return min(chosen, key=lambda each: (each.price_per_hour, each.processes))


def _machines(pool: Pool, wish: MachineWish, several: bool) -> Iterator[Machine]:
    """One GPU, more of them, then more machines; of those only what is wished."""
    if wish.pool is not None and pool.name != wish.pool:
        return
    if wish.gpu_memory_gib is not None and pool.gpu_memory_bytes < wish.gpu_memory_gib * _GIB:
        return
    shapes = [(1, min(1, pool.gpus))]
    if several:
        shapes = [(1, gpus) for gpus in _doublings(pool.gpus)]
        shapes += [(nodes, pool.gpus) for nodes in _doublings(pool.max_nodes) if nodes > 1]
    for nodes, gpus in shapes:
        if wish.gpus is None or nodes * gpus == wish.gpus:
            yield Machine(pool, nodes, gpus)


def _doublings(largest: int) -> list[int]:
    if largest == 0:
        return [0]
    steps = [1]
    while steps[-1] * 2 < largest:
        steps.append(steps[-1] * 2)
    return sorted({*steps, largest})


def _fits(machine: Machine, need: NeedOn) -> bool:
    if machine.gpus == 0:
        return need(False).on(machine.processes) + _LIBRARIES <= machine.pool.memory_bytes
    return need(True).on(machine.processes) <= _USABLE * machine.pool.gpu_memory_bytes


def _too_small(candidates: Sequence[Machine], need: NeedOn | None) -> str:
    assert need is not None
    largest = max(candidates, key=lambda each: (each.gpus > 0, each.processes))
    needed = need(largest.gpus > 0).on(largest.processes) / _GIB
    return (
        f"no machine is large enough: about {needed:.0f} GiB on each of {largest.processes} "
        f"processes of pool {largest.pool.name}; add a larger pool, or ask for a smaller "
        "microbatch_tokens, gradient_checkpointing or quantization"
    )
