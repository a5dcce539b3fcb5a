"""`taciturn job` and `approval`: what runs behind a gateway, and what waits for two people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from taciturn.cli.gateway import Json, connected, group, say, show, show_facts, show_value

if TYPE_CHECKING:
    from taciturn.wire.jobs import ApprovalView

job = group("Jobs of a gateway: list, watch, wait, cancel.")
approval = group("Approvals: what waits for two people, neither of them the asker.")

_REASONS = {
    "no_guarantee": "it has no guarantee: the model may repeat any row",
    "exceeds_grant": "the asker's grant has no room for it; it comes from the joint budget",
}
_WORDS = {"approved": "approved", "rejected": "rejected", "withdrawn": "took a yes back"}

Id = Annotated[str, typer.Argument(help="Id of the job.")]
Request = Annotated[str, typer.Argument(help="Id of the request; `approval list` shows them.")]
Everybodys = Annotated[
    bool,
    typer.Option("--everybody", help="For administrators: of everybody, without what it is about."),
]
Comment = Annotated[str | None, typer.Option(help="One line for the record.")]


@job.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="For example running.")] = None,
    kind: Annotated[str | None, typer.Option(help="For example fit.")] = None,
    everybody: Everybodys = False,
    as_json: Json = False,
) -> None:
    """List jobs that you may know of, newest first."""
    from taciturn.cli.choices import choice
    from taciturn.wire.jobs import JobKind, JobState

    with connected() as client:
        if everybody:
            if kind is not None:
                raise typer.BadParameter("--kind is not for --everybody; leave it out")
            show(client.admin.jobs(state=choice(JobState, state)), as_json=as_json)
            return
        found = client.jobs(state=choice(JobState, state), kind=choice(JobKind, kind))
        show(found, as_json=as_json)


@job.command("show")
def show_job(id: Id, as_json: Json = False) -> None:
    """Show where a job stands, and what its result is or will be."""
    from taciturn.sdk.job import job_facts

    with connected() as client:
        found = client.job(id)
        if as_json:
            show_value(found.view, as_json=True)
            return
        say(f"{found.view.kind.value} {found.id}: {found.policy}", style="bold")
        show_facts(job_facts(found))


@job.command()
def wait(id: Id) -> None:
    """Wait until a job is over; exit code 1 unless it succeeded. Ctrl-C leaves it running."""
    with connected() as client:
        found = client.job(id).wait(progress=True)
        say(f"{found.id}: {found.policy}")
        if found.view.model is not None:
            say(f"model: gateway:{found.view.model}")


@job.command()
def events(
    id: Id, after: Annotated[int | None, typer.Option(help="Number of the last one seen.")] = None
) -> None:
    """Print what a job says as lines of JSON, until it is over."""
    with connected() as client:
        for event in client.job(id).events(after):
            typer.echo(event.model_dump_json(exclude_none=True))


@job.command()
def machines(id: Id, as_json: Json = False) -> None:
    """Show the machines that a job had: node-seconds, and what they cost."""
    with connected() as client:
        show(client.job(id).machines(), as_json=as_json)


@job.command()
def cancel(id: Id, everybody: Everybodys = False) -> None:
    """Stop a job. What it has charged stays spent; what never ran is free again."""
    from taciturn.sdk.job import cost_words

    with connected() as client:
        if everybody:
            say(f"{id}: {client.admin.cancel_job(id).state.value}")
        else:
            view = client.job(id).cancel().view
            cost = cost_words(view)
            say(f"{id}: {view.state.value}" + ("" if cost is None else f"; {cost}"))


@approval.command("list")
def list_approvals(
    all_: Annotated[bool, typer.Option("--all", help="Also those that were decided.")] = False,
    as_json: Json = False,
) -> None:
    """List requests that you may know of, newest first."""
    with connected() as client:
        show(client.approvals(state=None if all_ else "open"), as_json=as_json)


@approval.command("show")
def show_approval(id: Request, as_json: Json = False) -> None:
    """Show what is asked for and what for, who has said what, and what it would leave."""
    with connected() as client:
        found = client.approval(id)
        if as_json:
            show_value(found, as_json=True)
            return
        say(f"{found.id}: {found.state}", style="bold")
        show_facts(_approval_facts(found))


def _approval_facts(found: ApprovalView) -> dict[str, str]:
    from taciturn.sdk.listing import readable

    data = found.request.get("data") or {}
    part = data.get("part")
    facts = {
        "asked by": f"{found.requester}, {found.created_at:%Y-%m-%d %H:%M} UTC",
        "purpose": found.purpose or "not said",
        "job": f"{readable(found.kind)} {found.job}".strip(),
        "model": readable(found.model),
        "dataset": readable(found.dataset),
        "select": readable(data.get("select")),
        "part": "" if part is None else f"{part['side']}, {part['test_share']:g} held out",
        "namespace": found.namespace,
        "epsilon": "none: no guarantee" if found.epsilon is None else f"{found.epsilon:.4g}",
        "delta": "" if found.delta is None else f"{found.delta:.3g}",
        "steps": readable(found.steps),
        "why approval": _REASONS[found.reason],
        "it would leave": _left(found),
        "approved": f"by {len(found.approved_by)} of {found.needed}",
    }
    for number, said in enumerate(found.decisions, start=1):
        comment = "" if said.comment is None else f": {said.comment}"
        facts[f"decision {number}"] = (
            f"{said.approver} {_WORDS[said.decision]}, {said.at:%Y-%m-%d %H:%M} UTC{comment}"
        )
    return {**facts, "until": f"{found.expires_at:%Y-%m-%d %H:%M} UTC"}


def _left(found: ApprovalView) -> str:
    """Return what it would leave of the joint budget."""
    if found.left is None or found.left_after is None:
        return ""
    now = f"{max(found.left, 0):.1%} of the budget are left now"
    if found.reason == "no_guarantee":
        return f"the budget as it is, which says nothing about it ({now})"
    if found.left_after < 0:
        return f"nothing: it needs {found.left - found.left_after:.1%} of the budget; {now}"
    return f"{found.left_after:.1%} of the budget; {now}"


@approval.command()
def approve(id: Request, comment: Comment = None) -> None:
    """Say yes; another person has to, too."""
    with connected() as client:
        found = client.approve(id, comment)
        say(f"{id}: {len(found.approved_by)} of {found.needed} have approved; {found.state}")


@approval.command()
def reject(id: Request, comment: Comment = None) -> None:
    """Say no; one no is enough."""
    with connected() as client:
        say(f"{id}: {client.reject(id, comment).state}")


@approval.command()
def withdraw(id: Request, comment: Comment = None) -> None:
    """Take your yes back: until the last one who is needed has approved, too."""
    with connected() as client:
        found = client.withdraw(id, comment)
        say(f"{id}: {len(found.approved_by)} of {found.needed} have approved; {found.state}")
