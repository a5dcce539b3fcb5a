"""Budgets: what is spent, held and left, as the ledger has it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.datasets import BudgetView
from taciturn.wire.values import Name, Page

router = APIRouter(tags=["budgets"], prefix="/budgets", route_class=Route)
Reader = Annotated[Principal, Depends(Requires(Action.BUDGETS_READ))]


@router.get("")
def list_budgets(caller: Reader, services: Svc, paging: PageQuery) -> Page[BudgetView]:
    """Balances of the namespaces that the caller may know of, by namespace."""
    return services.budgets.page(caller, paging)


@router.get("/{namespace}")
def read_budget(caller: Reader, services: Svc, namespace: Name) -> BudgetView:
    """A namespace's balance; practitioners see the joint one and their own grants."""
    return services.budgets.read(namespace, caller)
