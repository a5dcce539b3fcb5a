"""The ledger: its entries, what jobs took, and whether every row is as it was written."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from taciturn.server.http.access import Requires, Svc
from taciturn.server.http.blocking import Route
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.paging import PageQuery
from taciturn.wire.ledger import (
    AnchorView,
    LedgerEntryView,
    LedgerJobReport,
    LedgerJobView,
    NewVerification,
    VerificationView,
)
from taciturn.wire.values import Name, Page

router = APIRouter(tags=["ledger"], prefix="/ledger", route_class=Route)
Reader = Annotated[Principal, Depends(Requires(Action.LEDGER_READ))]
JobName = Name


@router.post("/verifications")
def verify_ledger(caller: Reader, services: Svc, verification: NewVerification) -> VerificationView:
    """Derive every balance and the chains again from the entries, and compare."""
    return services.ledger_view.verify(verification.anchors, caller, verification.namespace)


@router.get("/anchors")
def read_anchors(caller: Reader, services: Svc, response: Response) -> tuple[AnchorView, ...]:
    """Current end of every chain, if it is in order: a file to be kept where the database's owner
    cannot write, for `taciturn ledger verify --anchor` and for later verifications."""
    response.headers["Content-Disposition"] = 'attachment; filename="taciturn-anchors.json"'
    return services.ledger_view.verify((), caller).anchors


@router.get("/{namespace}/entries")
def list_entries(
    caller: Reader, services: Svc, namespace: Name, paging: PageQuery
) -> Page[LedgerEntryView]:
    """The namespace's chain, from its first entry on."""
    entries = services.ledger_view.entries(namespace, caller, paging.number(), paging.fetch)
    return paging.page(entries, lambda entry: entry, lambda entry: entry.sequence)


@router.get("/{namespace}/jobs")
def list_ledger_jobs(
    caller: Reader, services: Svc, namespace: Name, paging: PageQuery
) -> Page[LedgerJobView]:
    """Shares of the namespace's budget that jobs took, by id."""
    jobs = services.ledger_view.jobs(namespace, caller, paging.name(), paging.fetch)
    return paging.page(jobs, lambda job: job, lambda job: job.job)


@router.get("/{namespace}/jobs/{job}")
def read_ledger_job(
    caller: Reader, services: Svc, namespace: Name, job: JobName
) -> LedgerJobReport:
    """Cost of a job's charged steps by themselves."""
    return services.ledger_view.job(namespace, job, caller)
