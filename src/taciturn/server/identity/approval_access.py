"""Access to requests for approval: for the requester, the approvers of the data, and auditors."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import ColumnElement, Row, or_

from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.schema.tables import approvals, jobs, policies
from taciturn.wire.datasets import PolicyTerms
from taciturn.wire.identity import Role


def may_see_approval(caller: Principal, row: Row[Any]) -> bool:
    """True if the caller may know of a request.

    Args:
        row: of `approvals`, with `requester_id` of its job, `owner_id` and `terms` of its policy.
    """
    is_own = caller.user_id in (row.requester_id, row.owner_id)
    return is_own or caller.has(Role.AUDITOR) or _is_approver(caller, row)


def may_see_approvals(caller: Principal) -> ColumnElement[bool]:
    """Condition on rows of `approvals` that spares most of those refused by `may_see_approval`."""
    if caller.has(Role.AUDITOR):
        return approvals.c.id.is_not(None)
    names_holder = [
        policies.c.terms.contains(json.dumps(holder), autoescape=True) for holder in caller.holders
    ]
    is_own = or_(jobs.c.requester_id == caller.user_id, policies.c.owner_id == caller.user_id)
    return or_(is_own, *names_holder)


def check_may_decide(caller: Principal, row: Row[Any]) -> None:
    """Raise ProblemError unless the caller is an approver: `separation_of_duty` for the requester,
    `forbidden` for others. Takes a row as `may_see_approval` does."""
    if row.requester_id == caller.user_id:
        raise ProblemError(
            "separation_of_duty", "you asked for this yourself; two other people have to decide"
        )
    if not _is_approver(caller, row):
        raise ProblemError(
            "forbidden", "the policy of this data does not name you as an approver; ask its owner"
        )


def _is_approver(caller: Principal, row: Row[Any]) -> bool:
    if row.owner_id == caller.user_id:
        return True
    approvers = PolicyTerms.model_validate_json(row.terms).approvers
    return bool(set(approvers) & set(caller.holders))
