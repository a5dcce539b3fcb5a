"""Policies and grants by forms, with what each change means before it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from taciturn.server.console.data.consequences import of_grant, of_terms
from taciturn.server.console.forms import built, lines, moment_of, moment_text
from taciturn.server.console.rendering import PageRoute, go_to, page
from taciturn.server.http.access import Requires, Svc
from taciturn.server.identity.permissions import Action
from taciturn.server.identity.principal import Principal
from taciturn.server.problems import ProblemError
from taciturn.server.services import Services
from taciturn.wire.datasets import BudgetTerms, GrantTerms, GrantView, PolicyTerms, PolicyView
from taciturn.wire.jobs import JobKind
from taciturn.wire.values import Holder, Name, WireValue

router = APIRouter(prefix="/policies", route_class=PageRoute)
Reader = Annotated[Principal, Depends(Requires(Action.POLICIES_READ))]
Writer = Annotated[Principal, Depends(Requires(Action.POLICIES_WRITE))]
Giver = Annotated[Principal, Depends(Requires(Action.GRANTS_WRITE))]
Text = Annotated[str, Form(max_length=30)]
Lines = Annotated[str, Form(max_length=20_000)]


@dataclass(frozen=True, slots=True)
class PolicyForm:
    """The fields of a policy: all terms, as the API puts them in force together."""

    version: Annotated[int, Form(ge=0, le=10**9)]
    epsilon: Text = ""
    delta: Text = ""
    job_epsilon: Text = ""
    models: Lines = ""
    kinds: Annotated[list[str] | None, Form()] = None
    approvers: Lines = ""
    expires_at: Text = ""
    job_hours: Text = ""
    reset_wait_h: Text = ""

    def terms(self, before: PolicyView) -> PolicyTerms:
        """Return the terms; raises ProblemError `invalid`. The form does not name probes, which
        owners alone start, so they stay as they are."""
        terms = built(
            PolicyTerms,
            budget=built(BudgetTerms, epsilon=self.epsilon, delta=self.delta),
            job_epsilon=self.job_epsilon,
            models=lines(self.models),
            kinds=tuple(self.kinds or ()),
            approvers=lines(self.approvers),
            expires_at=moment_of(self.expires_at, before.expires_at),
            job_hours=self.job_hours,
            reset_wait_h=self.reset_wait_h,
        )
        allowed_kinds = {*terms.kinds, *({JobKind.PROBE} & set(before.kinds))}
        return terms.model_copy(
            update={"kinds": tuple(kind for kind in JobKind if kind in allowed_kinds)}
        )


@dataclass(frozen=True, slots=True)
class GrantForm:
    """The fields of a grant."""

    holder: Annotated[str, Form(max_length=140)] = ""
    epsilon: Text = ""
    delta: Text = ""
    expires_at: Text = ""

    def terms(self, before: GrantView | None) -> GrantTerms:
        """Return the terms; raises ProblemError `invalid`."""
        ends = moment_of(self.expires_at, None if before is None else before.expires_at)
        return built(GrantTerms, epsilon=self.epsilon, delta=self.delta, expires_at=ends)


class _HolderOnly(WireValue):
    holder: Holder


Changed = Annotated[PolicyForm, Depends()]
Given = Annotated[GrantForm, Depends()]


@router.get("/{namespace}")
def read_policy(
    request: Request,
    caller: Reader,
    services: Svc,
    namespace: Name,
    holder: Annotated[str, Query(max_length=140)] = "",
) -> Response:
    """Show the terms of a namespace, and who may spend; in forms to its owner."""
    policy = services.policies.read(namespace, caller)
    budget = services.budgets.read(namespace, caller)
    grant = next((one for one in budget.grants if one.holder == holder), None)
    return page(
        request,
        "policy.html",
        caller,
        policy=policy,
        budget=budget,
        owned=policy.owner == caller.name and Action.POLICIES_WRITE in caller.actions,
        kinds=[kind.value for kind in JobKind if kind is not JobKind.PROBE],
        ends=moment_text(policy.expires_at),
        grant=grant,
        holder=holder,
        grant_ends=moment_text(grant.expires_at if grant else None),
        now=services.gateway.clock(),
    )


@router.post("/{namespace}")
def change_policy(caller: Writer, services: Svc, namespace: Name, form: Changed) -> Response:
    """Put new terms in force, unless somebody has changed them since the form was opened."""
    before = services.policies.read(namespace, caller)
    services.policies.change(namespace, form.terms(before), form.version, caller)
    return go_to(f"/policies/{namespace}")


@router.post("/{namespace}/consequences")
def read_consequences(
    request: Request, caller: Writer, services: Svc, namespace: Name, form: Changed
) -> Response:
    """Show what a change of terms would mean; nothing is changed."""
    before = services.policies.read(namespace, caller)
    budget = services.budgets.read(namespace, caller)
    items = of_terms(before, form.terms(before), budget)
    return page(request, "policy_consequences.html", caller, items=items)


@router.post("/{namespace}/grants")
def give_grant(caller: Giver, services: Svc, namespace: Name, form: Given) -> Response:
    """Give a grant, or change one."""
    holder = _holder(form.holder)
    services.grants.give(
        namespace, holder, form.terms(_grant(services, caller, namespace, holder)), caller
    )
    return go_to(f"/policies/{namespace}")


@router.post("/{namespace}/grants/consequences")
def read_grant_consequences(
    request: Request, caller: Giver, services: Svc, namespace: Name, form: Given
) -> Response:
    """Show what a grant would mean; nothing is given."""
    holder = _holder(form.holder)
    budget = services.budgets.read(namespace, caller)
    before = next((grant for grant in budget.grants if grant.holder == holder), None)
    items = of_grant(holder, before, form.terms(before), budget, services.gateway.clock())
    return page(request, "policy_consequences.html", caller, items=items)


@router.post("/{namespace}/grants/revocations")
def revoke_grant(
    caller: Giver, services: Svc, namespace: Name, holder: Annotated[str, Form(max_length=140)]
) -> Response:
    """Keep a holder from starting anything more."""
    services.grants.revoke(namespace, _holder(holder), caller)
    return go_to(f"/policies/{namespace}")


def _holder(text: str) -> str:
    """Return a holder as REST takes it in a path; raises ProblemError `invalid`."""
    return built(_HolderOnly, holder=text.strip()).holder


def _grant(services: Services, caller: Principal, namespace: str, holder: str) -> GrantView | None:
    try:
        return services.grants.read(namespace, holder, caller)
    except ProblemError as problem:
        if problem.code != "not_found":
            raise
        return None
