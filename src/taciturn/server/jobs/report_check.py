"""Does what a worker reports of its model agree with what the ledger has charged?

The worker is ours, and may still be wrong: an edited report, an engine of another version, a plan
that was not the one that was reserved. Its model leaves only if the report says the very event
that was planned, the ledger has charged no less, and epsilon, recomputed here, is what it says.
"""

from __future__ import annotations

import math

from dp_accounting.dp_event import DpEvent
from pydantic import ValidationError

from taciturn.accounting.compose import counted_steps
from taciturn.accounting.compose import epsilon as epsilon_of
from taciturn.accounting.events import event_from_dict, event_to_dict
from taciturn.errors import TaciturnError
from taciturn.reports.privacy import PrivacyReport
from taciturn.server.ledger import JobReport

_ROUNDING = 1e-9


def disagreement(
    text: bytes | None, planned: DpEvent, charged: JobReport, public: str | None
) -> str | None:
    """Describe, for the gateway's log, in what a report is wrong; None if it is right.

    Args:
        text: the report as the worker handed it in.
        planned: what was reserved.
        charged: what the ledger says was charged.
        public: name of the public data set that was asked for.
    """
    if text is None:
        return "there is no privacy report"
    try:
        report = PrivacyReport.model_validate_json(text)
    except ValidationError:
        return "the privacy report is none"
    if report.guarantee != "differential privacy" or report.dp_event is None:
        return "the report promises nothing"
    try:
        event = event_from_dict(report.dp_event)
    except TaciturnError:
        return "the report's event is none"
    if event_to_dict(event) != event_to_dict(planned):
        return "the report's event is not the one that was planned"
    if [learned.name for learned in report.public_data] != ([] if public is None else [public]):
        return "the report names other public text than the request"
    if not _covers(charged.event, event):
        return "fewer steps were charged than the report says were run"
    return _wrong_epsilon(report, event, charged)


def _wrong_epsilon(report: PrivacyReport, event: DpEvent, charged: JobReport) -> str | None:
    if report.epsilon is None or report.delta is None:
        return "the report has no epsilon or delta"
    epsilon = epsilon_of(event, report.delta)
    if not math.isclose(epsilon, report.epsilon, rel_tol=_ROUNDING):
        return f"the report says epsilon={report.epsilon:g}, its event costs {epsilon:g}"
    # Steps that were done again after a crash are charged again and not part of the model.
    if epsilon_of(charged.event, charged.delta) < epsilon_of(event, charged.delta) * (
        1 - _ROUNDING
    ):
        return "the ledger has charged less than the report says"
    return None


def _covers(charged: DpEvent, run: DpEvent) -> bool:
    have, need = counted_steps(charged), counted_steps(run)
    if have is None or need is None:
        return False
    return all(have.get(step, 0) >= count for step, count in need.items())
