"""Policies: the terms of a namespace. They open with its first dataset."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Response

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.server.problems import ProblemError
from taciturn.wire.datasets import PolicyTerms, PolicyView
from taciturn.wire.values import Name, Page

router = APIRouter(tags=["policies"], prefix="/policies", route_class=Route)
Reader = Annotated[Principal, Depends(Requires(Action.POLICIES_READ))]
Writer = Annotated[Principal, Depends(Requires(Action.POLICIES_WRITE))]
IfMatch = Annotated[
    str | None,
    Header(description="The ETag, that is the version, of the policy as it was read."),
]
_VERSION = re.compile(r'"?(\d{1,9})"?')


@router.get("")
def list_policies(caller: Reader, services: Svc, paging: PageQuery) -> Page[PolicyView]:
    """Policies of the namespaces that the caller may know of, by namespace."""
    policies = services.policies.page(caller, paging.name(), paging.fetch)
    return paging.page(policies, lambda policy: policy.view(), lambda policy: policy.namespace)


@router.get("/{namespace}")
def read_policy(caller: Reader, services: Svc, namespace: Name, response: Response) -> PolicyView:
    """The terms in force."""
    return _tagged(services.policies.read(namespace, caller), response)


@router.put("/{namespace}")
def change_policy(
    caller: Writer,
    services: Svc,
    namespace: Name,
    terms: PolicyTerms,
    response: Response,
    if_match: IfMatch = None,
) -> PolicyView:
    """Put new terms in force, all of them. `If-Match` names the version that they were made from,
    so that nobody's change is lost.

    A budget may go up or down; what is spent stays spent. The guarantee of a namespace is that of
    the highest budget it ever had, and it holds only if a budget is not raised because of what
    released models say.
    """
    return _tagged(services.policies.change(namespace, terms, _version(if_match), caller), response)


def _tagged(policy: PolicyView, response: Response) -> PolicyView:
    response.headers["ETag"] = f'"{policy.version}"'
    return policy


def _version(if_match: str | None) -> int:
    if if_match is None:
        raise ProblemError(
            "precondition_missing",
            'give the header If-Match with the version that you have read, such as "3"',
        )
    match = _VERSION.fullmatch(if_match.strip())
    if match is None:
        raise ProblemError("invalid", 'If-Match: give one version, such as "3"')
    return int(match[1])
