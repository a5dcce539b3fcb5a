"""What a job needs of the cluster, from what the gateway knows of it: public facts alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from taciturn.planning.plan import TrainingPlan
from taciturn.server.context import Gateway
from taciturn.server.launchers.base import LaunchError
from taciturn.server.launchers.kubernetes.launcher import Need
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings, Pool
from taciturn.server.launchers.kubernetes.sizing import (
    Machine,
    NeedOn,
    choose,
    fit_need,
    model_need,
)
from taciturn.server.schema.tables import base_models, jobs, models
from taciturn.wire.jobs import JobKind, RemoteFit
from taciturn.wire.machines import MachineWish
from taciturn.wire.worker import BaseModelFacts

_READS_DATA = (JobKind.PROBE, JobKind.FIT, JobKind.EVALUATE)
_KEEPS = (JobKind.FIT, JobKind.AUDIT)  # checkpoints of one, and canaries for the other
_CACHED_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Needs:
    """Looks jobs up in the gateway's database."""

    gateway: Gateway
    settings: KubernetesSettings

    def __call__(self, job_id: str) -> Need:
        """Of a job. Raises LaunchError."""
        row, facts = self.gateway.read(lambda connection: _look_up(connection, job_id))
        if row is None:
            raise LaunchError(f"there is no job {job_id}")
        keeps = self.settings.checkpoint_secret if row.kind in _KEEPS else ""
        return Need(self._machine(row, facts), self._data_secret(row), keeps)

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
        """Only workers that read rows get their credentials."""
        if row.kind not in _READS_DATA:
            return ""
        return self.settings.data_secrets.get(row.namespace or "", self.settings.data_secret)


def _need(row: Row[Any], facts: BaseModelFacts) -> tuple[NeedOn, bool]:
    """What is needed, and whether it is to be spread over as many GPUs as that takes."""
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
        made = select(models.c.base_model).where(models.c.id == row.model_id)
        name = connection.execute(made).scalar()
    found = connection.execute(select(base_models).where(base_models.c.name == name)).first()
    if found is None:
        return row, None
    facts = BaseModelFacts(
        name=found.name,
        parameters=found.parameters,
        context_length=found.context_length,
        vocabulary=found.vocabulary,
    )
    return row, facts
