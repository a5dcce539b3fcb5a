"""`taciturn policy`, `grant` and `budget`: who may spend how much on what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from taciturn.cli.gateway import Json, connected, group, say, show, show_facts, show_value
from taciturn.errors import SpecError

policy = group("Policies: the terms of a namespace.")
grant = group("Grants: what one user or group may spend of a namespace's budget.")

Namespace = Annotated[str, typer.Argument(help="Namespace: the people whom the rows are about.")]
Holder = Annotated[str, typer.Argument(help="user:NAME or group:NAME.")]
Expires = Annotated[datetime | None, typer.Option("--expires", help="When it ends (UTC).")]


@policy.command("show")
def show_policy(namespace: Namespace, as_json: Json = False) -> None:
    """Show the terms in force."""
    with connected() as client:
        show_value(client.policy(namespace), as_json=as_json)


@policy.command("set")
def set_policy(
    namespace: Namespace,
    epsilon: Annotated[float | None, typer.Option(help="The budget.")] = None,
    delta: Annotated[float | None, typer.Option(help="Of the budget.")] = None,
    job_epsilon: Annotated[float | None, typer.Option(help="Largest epsilon of one job.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Base model that may be fitted, * as wildcard.")
    ] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Kind of job that may run.")] = None,
    approver: Annotated[
        list[str] | None,
        typer.Option(help="Holder who may approve exceptions; at least two people, repeatable."),
    ] = None,
    job_hours: Annotated[float | None, typer.Option(help="Hours that a job may run.")] = None,
    expires: Expires = None,
    reset_wait_h: Annotated[
        float | None,
        typer.Option(
            help="Hours for which nobody approves after an administrator made a link for their "
            "password, or gave them a role or group."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Change terms, for owners; what is not given stays. Repeat --model, --kind, --approver."""
    options: dict[str, Any] = {
        "job_epsilon": job_epsilon,
        "models": model,
        "kinds": kind,
        "approvers": approver,
        "job_hours": job_hours,
        "expires_at": _utc(expires),
        "reset_wait_h": reset_wait_h,
    }
    terms = {name: value for name, value in options.items() if value is not None}
    with connected() as client:
        if epsilon is not None or delta is not None:
            budget = client.policy(namespace).budget
            changed = {"epsilon": epsilon or budget.epsilon, "delta": delta or budget.delta}
            terms["budget"] = changed
        if not terms:
            raise SpecError("nothing to change; give, for example, --approver user:ada")
        show_value(client.set_policy(namespace, **terms), as_json=as_json)


@grant.command("add")
def add_grant(
    namespace: Namespace,
    holder: Holder,
    epsilon: Annotated[float, typer.Option(help="Largest epsilon that the holder may spend.")],
    delta: Annotated[float, typer.Option(help="Goes with --epsilon.")],
    expires: Expires = None,
) -> None:
    """Let somebody spend so much of a budget, for owners."""
    with connected() as client:
        view = client.grant(
            namespace, holder, epsilon=epsilon, delta=delta, expires_at=_utc(expires)
        )
        say(
            f"{view.holder} may spend epsilon={view.epsilon:g}, delta={view.delta:g} of {namespace}"
        )


@grant.command("list")
def list_grants(namespace: Namespace, as_json: Json = False) -> None:
    """List who may spend how much, and how much of it is gone."""
    with connected() as client:
        show(client.grants(namespace), as_json=as_json)


@grant.command("revoke")
def revoke_grant(namespace: Namespace, holder: Holder) -> None:
    """End a grant, for owners; what was spent of it stays spent."""
    with connected() as client:
        client.revoke(namespace, holder)
        say(f"{holder}: revoked")


def budget(
    namespace: Annotated[str | None, typer.Argument(help="Namespace; by default all.")] = None,
    as_json: Json = False,
) -> None:
    """Show what of a budget and of your grants is spent, held by jobs, and left."""
    from taciturn.notebook.cards import budget_line

    with connected() as client:
        if namespace is None:
            show(client.budgets(), as_json=as_json)
            return
        view = client.budget(namespace)
        if as_json:
            show_value(view, as_json=True)
            return
        facts = {namespace: budget_line(view)}
        if view.exceptions:
            facts["without guarantee"] = f"{view.exceptions} release(s) that no budget covers"
        show_facts(facts | {share.holder: budget_line(share) for share in view.grants})


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)
