"""Figures about a model from the jobs that judged or attacked it, and the odds of any attacker."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Row, select

from taciturn.accounting.events import event_from_dict
from taciturn.accounting.tradeoff import tradeoff
from taciturn.errors import TaciturnError
from taciturn.reports.figures import ReleasedEvaluation, ReleasedFigures
from taciturn.reports.privacy import Audit
from taciturn.server.context import Gateway
from taciturn.server.identity.job_access import holds_job
from taciturn.server.identity.principal import Principal
from taciturn.server.models.artifacts import AUDIT, EVALUATION, FIGURES, Artifacts
from taciturn.server.models.models import Models
from taciturn.server.schema.tables import jobs
from taciturn.server.timestamps import moment
from taciturn.wire.jobs import JobKind, JobState, ModelView

_FALSE_ALARMS = 0.01
_NEWEST = 20


@dataclass(frozen=True, slots=True)
class Odds:
    """The most that any attacker can find out about one unit, whatever else they know.

    Attributes:
        right: share of right verdicts about a unit that was in by a fair coin.
        caught: share of units in the data that are named where 1% of the others are, too.
    """

    right: float
    caught: float
    false_alarms: float = _FALSE_ALARMS


@dataclass(frozen=True, slots=True)
class JudgedAt:
    """An evaluation, and when its job was asked for; None: with the fit."""

    figures: ReleasedEvaluation
    job: str | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Findings about one model.

    Attributes:
        odds: None without a guarantee, or where the report does not say what ran.
        evaluations: newest first.
        audit: the newest; None where nobody attacked the model.
    """

    odds: Odds | None
    evaluations: tuple[JudgedAt, ...]
    audit: Audit | None


@dataclass(frozen=True, slots=True)
class EvidenceDesk:
    """Collects findings for whoever may have them."""

    gateway: Gateway
    models: Models
    artifacts: Artifacts

    def of(self, caller: Principal, model_id: str) -> Evidence:
        """All that is known; results of others' jobs are not. Raises ProblemError `not_found`."""
        model = self.models.get(caller, model_id)
        rows = self._jobs(caller, model)
        judged = [row for row in rows if row.kind == JobKind.EVALUATE]
        attacked = [row for row in rows if row.kind == JobKind.AUDIT]
        evaluations = [
            JudgedAt(
                ReleasedEvaluation.model_validate_json(text), row.id, moment(row.created_at_ms)
            )
            for row in judged
            if (text := self._document(row.id, EVALUATION)) is not None
        ]
        # What was found with the fit is the owner's and the fitter's, as its files are.
        figures = audit = None
        if self.models.is_held(caller, model_id):
            figures, audit = self._document(model.job, FIGURES), self._document(model.job, AUDIT)
        if figures is not None:
            with_fit = ReleasedFigures.model_validate_json(figures).evaluations
            evaluations += [JudgedAt(one) for one in reversed(with_fit)]
        if attacked:
            audit = self._document(attacked[0].id, AUDIT) or audit
        return Evidence(
            odds_of(model),
            tuple(evaluations),
            None if audit is None else Audit.model_validate_json(audit),
        )

    def _jobs(self, caller: Principal, model: ModelView) -> list[Row[Any]]:
        query = (
            select(jobs.c.id, jobs.c.kind, jobs.c.created_at_ms)
            .where(
                jobs.c.namespace == model.namespace,
                jobs.c.model_id == model.id,
                jobs.c.kind.in_((JobKind.EVALUATE, JobKind.AUDIT)),
                jobs.c.state == JobState.SUCCEEDED,
                holds_job(caller),
            )
            .order_by(jobs.c.created_at_ms.desc())
            .limit(_NEWEST)
        )
        return list(self.gateway.rows(query))

    def _document(self, job_id: str, name: str) -> str | None:
        return self.gateway.read(
            lambda connection: self.artifacts.document(connection, job_id, name)
        )


def _figures(text: str) -> ReleasedEvaluation:
    return ReleasedEvaluation.model_validate_json(text)


def odds_of(model: ModelView) -> Odds | None:
    """The odds, from the mechanism that ran; seconds at first, then remembered."""
    event = model.report.get("dp_event")
    if event is None or model.report.get("epsilon") is None:
        return None
    try:
        return _odds(json.dumps(event, sort_keys=True))
    except TaciturnError:
        return None


@lru_cache(maxsize=256)
def _odds(event: str) -> Odds:
    limits = tradeoff(event_from_dict(json.loads(event)))
    return Odds((1 + limits.advantage) / 2, limits.true_positive_rate(_FALSE_ALARMS))
