"""Sizing: what a job needs of the cluster, from public facts that the gateway knows of it, and the
cheapest machine on which its memory estimate fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from taciturn.planning.memory import MemoryNeed, memory_need, reading_need
from taciturn.planning.plan import TrainingPlan
from taciturn.server.context import Gateway
from taciturn.server.launchers.base import LaunchError
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool
from taciturn.server.schema.tables import base_models, jobs, models
from taciturn.spec import PerformanceSpec
from taciturn.wire.jobs import JobKind, RemoteFit
from taciturn.wire.machines import MachinePlan, MachineWish
from taciturn.wire.worker import BaseModelFacts

_USABLE = 0.9  # of a GPU's memory: the driver's own part, fragments
_LIBRARIES = 3 * 2**30  # what a process of torch takes before it does anything
_GIB = 2**30
_READS_DATA = (JobKind.PROBE, JobKind.FIT, JobKind.EVALUATE)
_KEEPS = (JobKind.FIT, JobKind.AUDIT)  # checkpoints of one, and canaries for the other
_CACHED_TOKENS = 16_384

NeedOn = Callable[[bool], MemoryNeed]
"""What is needed, on a GPU or without."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Machine of a job: `nodes` machines of a pool, with `gpus` on each."""

    pool: Pool
    nodes: int = 1
    gpus: int = 0

    @property
    def processes(self) -> int:
        """One for each GPU, or one."""
        return self.nodes * max(1, self.gpus)

    @property
    def text(self) -> str:
        """Kind and number, in words."""
        gpus = {0: "without a GPU", 1: "with one GPU"}.get(self.gpus, f"with {self.gpus} GPUs")
        machines = f"{self.nodes} machines, each" if self.nodes > 1 else "one machine"
        return f"{machines} {gpus}, of the kind {self.pool.name}"

    @property
    def price_per_hour(self) -> float:
        """Price of all its nodes."""
        return self.nodes * self.pool.price_per_hour


def fit_need(plan: TrainingPlan, facts: BaseModelFacts, spec: PerformanceSpec) -> NeedOn:
    """Memory need of a fit."""
    return lambda on_gpu: memory_need(facts.parameters, facts.vocabulary, plan, spec, on_gpu=on_gpu)


def model_need(facts: BaseModelFacts, tokens: int) -> NeedOn:
    """Memory need of a job that writes or judges text with a model."""
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
    candidates = [machine for pool in pools for machine in _machines(pool, wish, several)]
    if not candidates:
        names = ", ".join(f"{pool.name} ({pool.gpus} GPUs)" for pool in pools)
        wished = ", ".join(f"{k}={v}" for k, v in wish.model_dump(exclude_none=True).items())
        raise LaunchError(f"no machine has {wished}; there are {names}")
    fitting = [machine for machine in candidates if need is None or _fits(machine, need)]
    if not fitting and not (wish.gpus is not None or wish.pool):
        raise LaunchError(_too_small(candidates, need))
    # Whoever names GPUs or a pool knows better than an estimate.
    eligible = fitting or candidates
    return min(eligible, key=lambda machine: (machine.price_per_hour, machine.processes))


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
    largest = max(candidates, key=lambda machine: (machine.gpus > 0, machine.processes))
    needed_gib = need(largest.gpus > 0).on(largest.processes) / _GIB
    return (
        f"no machine is large enough: about {needed_gib:.0f} GiB on each of {largest.processes} "
        f"processes of pool {largest.pool.name}; add a larger pool, or ask for a smaller "
        "microbatch_tokens, gradient_checkpointing or quantization"
    )


@dataclass(frozen=True, slots=True)
class Need:
    """Needs of a job: machine and Secrets.

    Attributes:
        data_secret: name of the Secret with its data's credentials; empty for none.
        checkpoint_secret: name of the Secret with the key of its checkpoints; empty for none.
    """

    machine: Machine
    data_secret: str = ""
    checkpoint_secret: str = ""


@dataclass(frozen=True, slots=True)
class Needs:
    """Looks jobs up in the gateway's database."""

    gateway: Gateway
    settings: KubernetesSettings

    def __call__(self, job_id: str) -> Need:
        """Needs of a job. Raises LaunchError."""
        row, facts = self.gateway.read(lambda connection: _look_up(connection, job_id))
        if row is None:
            raise LaunchError(f"there is no job {job_id}")
        keeps = self.settings.checkpoint_secret if row.kind in _KEEPS else ""
        return Need(self._machine(row, facts), self._data_secret(row), keeps)

    def planned(self, request: RemoteFit, plan: TrainingPlan, facts: BaseModelFacts) -> MachinePlan:
        """Plan of the machine that a fit would get, with its price."""
        spec = request.fit_spec()
        need, wish = fit_need(plan, facts, spec), request.machine
        wished = wish is not None and (wish.gpus or 0) > 1
        several = self.settings.several and (spec.sharding == "full" or wished)
        try:
            machine = choose(self._pools(), need, wish, several=several)
        except LaunchError as error:
            return MachinePlan(text=str(error)[:400], fits=False)
        priced = machine.price_per_hour > 0
        return MachinePlan(
            text=machine.text,
            memory_bytes=need(machine.gpus > 0).on(machine.processes),
            nodes=machine.nodes,
            gpus=machine.gpus,
            price_per_hour=machine.price_per_hour if priced else None,
            currency=machine.pool.currency if priced else None,
        )

    def _machine(self, row: Row[Any], facts: BaseModelFacts | None) -> Machine:
        pools, request = self._pools(), json.loads(row.request)
        wish = MachineWish.model_validate(request.get("machine") or {})
        if facts is None:
            return choose(pools, None, wish)
        need, sharded = _need(row, facts)
        wished = row.kind == JobKind.FIT and (wish.gpus or 0) > 1
        return choose(pools, need, wish, several=self.settings.several and (sharded or wished))

    def _pools(self) -> tuple[Pool, ...]:
        """Several machines need a folder that all of them see: prepared rows are in it."""
        pools = self.settings.pools
        if self.settings.workspace_claim:
            return pools
        return tuple(pool.model_copy(update={"max_nodes": 1}) for pool in pools)

    def _data_secret(self, row: Row[Any]) -> str:
        """Secret with the credentials of rows; only workers that read rows get it."""
        if row.kind not in _READS_DATA:
            return ""
        return self.settings.data_secrets.get(row.namespace or "", self.settings.data_secret)


def _need(row: Row[Any], facts: BaseModelFacts) -> tuple[NeedOn, bool]:
    """Memory that is needed, and whether the job is to be spread over as many GPUs as that
    takes."""
    if row.kind != JobKind.FIT or row.plan is None:
        return model_need(facts, max(_CACHED_TOKENS, facts.context_length)), False
    spec = RemoteFit.model_validate_json(row.request).fit_spec()
    plan = TrainingPlan.model_validate_json(row.plan)
    return fit_need(plan, facts, spec), spec.sharding == "full"


def _look_up(connection: Connection, job_id: str) -> tuple[Row[Any] | None, BaseModelFacts | None]:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
    if row is None:
        return None, None
    name = json.loads(row.request).get("model")
    if row.kind != JobKind.FIT and row.model_id is not None:
        query = select(models.c.base_model).where(models.c.id == row.model_id)
        name = connection.execute(query).scalar()
    base_model = connection.execute(select(base_models).where(base_models.c.name == name)).first()
    if base_model is None:
        return row, None
    facts = BaseModelFacts(
        name=base_model.name,
        parameters=base_model.parameters,
        context_length=base_model.context_length,
        vocabulary=base_model.vocabulary,
    )
    return row, facts
