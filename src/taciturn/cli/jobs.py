"""`taciturn job` and `approval`: what runs behind a gateway, and what waits for two people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from taciturn.cli.gateway import Json, connected, group, say, show, show_facts, show_value
from taciturn.cli.options import choice

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
    all_users: Everybodys = False,
    as_json: Json = False,
) -> None:
    """List jobs that you may know of, newest first."""
    from taciturn.wire.jobs import JobKind, JobState

    with connected() as client:
        if all_users:
            if kind is not None:
                raise typer.BadParameter("--kind is not for --everybody; leave it out")
            show(client.admin.jobs(state=choice(JobState, state)), as_json=as_json)
            return
        listing = client.jobs(state=choice(JobState, state), kind=choice(JobKind, kind))
        show(listing, as_json=as_json)


@job.command("show")
def show_job(id: Id, as_json: Json = False) -> None:
    """Show where a job stands, and what its result is or will be."""
    from taciturn.sdk.job import job_facts

    with connected() as client:
        job = client.job(id)
        if as_json:
            show_value(job.view, as_json=True)
            return
        say(f"{job.view.kind.value} {job.id}: {job.policy}", style="bold")
        show_facts(job_facts(job))


@job.command()
def wait(id: Id) -> None:
    """Wait until a job is over; exit code 1 unless it succeeded. Ctrl-C leaves it running."""
    with connected() as client:
        job = client.job(id).wait(progress=True)
        say(f"{job.id}: {job.policy}")
        if job.view.model is not None:
            say(f"model: gateway:{job.view.model}")


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
def cancel(id: Id, all_users: Everybodys = False) -> None:
    """Stop a job. What it has charged stays spent; what never ran is free again."""
    from taciturn.sdk.job import cost_words

    with connected() as client:
        if all_users:
            say(f"{id}: {client.admin.cancel_job(id).state.value}")
        else:
            view = client.job(id).cancel().view
            cost = cost_words(view)
            say(f"{id}: {view.state.value}" + ("" if cost is None else f"; {cost}"))


@approval.command("list")
def list_approvals(
    all_: Annotated[bool, typer.Option("--all", help="Show decided requests, too.")] = False,
    as_json: Json = False,
) -> None:
    """List requests that you may know of, newest first."""
    with connected() as client:
        show(client.approvals(state=None if all_ else "open"), as_json=as_json)


@approval.command("show")
def show_approval(id: Request, as_json: Json = False) -> None:
    """Show what is asked for and what for, who has said what, and what it would leave."""
    with connected() as client:
        request = client.approval(id)
        if as_json:
            show_value(request, as_json=True)
            return
        say(f"{request.id}: {request.state}", style="bold")
        show_facts(_approval_facts(request))


def _approval_facts(request: ApprovalView) -> dict[str, str]:
    from taciturn.sdk.listing import readable

    data = request.request.get("data") or {}
    part = data.get("part")
    facts = {
        "asked by": f"{request.requester}, {request.created_at:%Y-%m-%d %H:%M} UTC",
        "purpose": request.purpose or "not said",
        "job": f"{readable(request.kind)} {request.job}".strip(),
        "model": readable(request.model),
        "dataset": readable(request.dataset),
        "select": readable(data.get("select")),
        "part": "" if part is None else f"{part['side']}, {part['test_share']:g} held out",
        "namespace": request.namespace,
        "epsilon": "none: no guarantee" if request.epsilon is None else f"{request.epsilon:.4g}",
        "delta": "" if request.delta is None else f"{request.delta:.3g}",
        "steps": readable(request.steps),
        "why approval": _REASONS[request.reason],
        "it would leave": _remainder(request),
        "approved": f"by {len(request.approved_by)} of {request.needed}",
    }
    for number, answer in enumerate(request.decisions, start=1):
        comment = "" if answer.comment is None else f": {answer.comment}"
        facts[f"decision {number}"] = (
            f"{answer.approver} {_WORDS[answer.decision]}, {answer.at:%Y-%m-%d %H:%M} UTC{comment}"
        )
    return {**facts, "until": f"{request.expires_at:%Y-%m-%d %H:%M} UTC"}


def _remainder(request: ApprovalView) -> str:
    """Return what it would leave of the joint budget."""
    if request.left is None or request.left_after is None:
        return ""
    now = f"{max(request.left, 0):.1%} of the budget are left now"
    if request.reason == "no_guarantee":
        return f"the budget as it is, which says nothing about it ({now})"
    if request.left_after < 0:
        return f"nothing: it needs {request.left - request.left_after:.1%} of the budget; {now}"
    return f"{request.left_after:.1%} of the budget; {now}"


@approval.command()
def approve(id: Request, comment: Comment = None) -> None:
    """Approve a request; a second person has to approve it, too."""
    with connected() as client:
        request = client.approve(id, comment)
        say(f"{id}: {len(request.approved_by)} of {request.needed} have approved; {request.state}")


@approval.command()
def reject(id: Request, comment: Comment = None) -> None:
    """Reject a request; one rejection ends it."""
    with connected() as client:
        say(f"{id}: {client.reject(id, comment).state}")


@approval.command()
def withdraw(id: Request, comment: Comment = None) -> None:
    """Take your approval back, until the last approval that is needed is there."""
    with connected() as client:
        request = client.withdraw(id, comment)
        say(f"{id}: {len(request.approved_by)} of {request.needed} have approved; {request.state}")
