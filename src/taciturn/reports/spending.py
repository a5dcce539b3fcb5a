"""Cost of several private steps together: sequential composition into one report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dp_accounting.dp_event import ComposedDpEvent, DpEvent

from taciturn.accounting.compose import epsilon
from taciturn.accounting.events import event_from_dict, event_to_dict
from taciturn.errors import GuaranteeError, SpecError
from taciturn.reports.privacy import PrivacyReport, PrivateStep


def composed(steps: Sequence[PrivateStep]) -> DpEvent:
    """The event of all steps; one step's is its own.

    Composition is sequential: it counts every unit as present in each step's data, which is right
    where data sets share units and an upper bound where they do not.

    Raises:
        SpecError: steps protect different units, so no one epsilon covers them.
    """
    check_units([step.privacy_unit for step in steps])
    events = [event_from_dict(step.dp_event) for step in steps]
    return events[0] if len(events) == 1 else ComposedDpEvent(events)


def epsilon_of_steps(steps: Sequence[PrivateStep], delta: float) -> float:
    """Epsilon of all steps together at `delta`; 0 of none. Raises GuaranteeError if infinite."""
    if not steps:
        return 0.0
    total = epsilon(composed(steps), delta)
    if not math.isfinite(total):
        raise GuaranteeError("a step without privacy is among those to be composed")
    return total


def with_steps(report: PrivacyReport, steps: Sequence[PrivateStep]) -> PrivacyReport:
    """`report`, promising what all of `steps` cost; a model without guarantee stays without.

    delta stays the report's; epsilon is recomputed from the composed events.
    """
    if report.guarantee == "none" or report.delta is None:
        return report.model_copy(update={"private_steps": tuple(steps)})
    total = epsilon_of_steps(steps, report.delta)
    return report.model_copy(
        update={
            "epsilon": total,
            "dp_event": event_to_dict(composed(steps)),
            "private_steps": tuple(steps),
            "max_records_per_unit": max(step.max_records_per_unit for step in steps),
        }
    )


def check_units(units: Sequence[str]) -> None:
    """Refuse to compose steps that protect different units; raises SpecError."""
    if len(set(units)) > 1:
        raise SpecError(
            f"privacy_unit={units[-1]!r} differs from {units[0]!r}, which this model's earlier "
            "steps protect; no one epsilon covers both. Use the same privacy_unit"
        )
