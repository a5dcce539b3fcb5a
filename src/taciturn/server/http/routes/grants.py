"""Grants: what a user or group may spend of a namespace's budget."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.datasets import GrantTerms, GrantView
from taciturn.wire.values import Holder, Name, Page

router = APIRouter(tags=["grants"], prefix="/policies/{namespace}/grants", route_class=Route)
Reader = Annotated[Principal, Depends(Requires(Action.GRANTS_READ))]
Writer = Annotated[Principal, Depends(Requires(Action.GRANTS_WRITE))]


@router.get("")
def list_grants(
    caller: Reader, services: Svc, namespace: Name, paging: PageQuery
) -> Page[GrantView]:
    """The namespace's grants by holder; practitioners see their own and their groups'."""
    grants = services.grants.page(namespace, caller, paging.name(), paging.fetch)
    return paging.page(grants, lambda grant: grant, lambda grant: grant.holder)


@router.get("/{holder}")
def read_grant(caller: Reader, services: Svc, namespace: Name, holder: Holder) -> GrantView:
    """One grant, and how much of it is gone."""
    return services.grants.read(namespace, holder, caller)


@router.put("/{holder}")
def give_grant(
    caller: Writer, services: Svc, namespace: Name, holder: Holder, terms: GrantTerms
) -> GrantView:
    """Let a user or group spend up to a sub-cap, or change it. The joint budget holds too."""
    return services.grants.give(namespace, holder, terms, caller)


@router.delete("/{holder}", status_code=204)
def revoke_grant(caller: Writer, services: Svc, namespace: Name, holder: Holder) -> None:
    """Let the holder start nothing more. What is spent stays spent."""
    services.grants.revoke(namespace, holder, caller)
