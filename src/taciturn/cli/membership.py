"""`taciturn membership`: can a model tell who was in its training data? For the data's owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from taciturn.cli.gateway import Answer, say
from taciturn.cli.options import open_model, spec_command
from taciturn.spec import MembershipJobSpec, MembershipSpec, parse

if TYPE_CHECKING:
    from taciturn.engine.auditing.membership import AttackResult, Membership
    from taciturn.engine.auditing.roc import OperatingPoint


@spec_command(
    MembershipJobSpec,
    keys="policy, basis, confidence, n_members, n_non_members, attacks",
)
def membership(fields: dict[str, Any], answer: Answer) -> None:
    """Show the owner whether the model can tell who was in its training data."""
    job = parse(MembershipJobSpec, fields)
    result = open_model(job).membership(
        job.members, job.non_members, output=job.output, **job.arguments(MembershipSpec)
    )
    names = ("policy", "basis", "confidence", "n_members", "n_non_members", "attacks")
    answer({name: getattr(result, name) for name in names})  # and no unit's own score
    say(f"policy: {result.policy}", style="bold")
    Console(highlight=False).print(_membership_table(result))
    if any(_differs(attack) for attack in result.attacks if attack.model == "base"):
        say(
            "the base model, which saw nobody, tells the groups apart: they differ by themselves, "
            "so the figures do not measure membership alone"
        )
    say("exact figures of private units: do not pass them on", style="bold yellow")
    if job.output:
        say(f"written: {job.output} in the model's private folder")


def _membership_table(result: Membership) -> Table:
    from taciturn.engine.auditing.roc import FALSE_POSITIVE_RATES

    table = Table(
        title=f"{result.n_members} members, {result.n_non_members} non-members "
        f"({result.confidence:.0%} intervals)",
        title_justify="left",
    )
    table.add_column("score")
    table.add_column("model")
    for column in ("AUC", *(f"TPR at {fpr:.1%} FPR" for fpr in FALSE_POSITIVE_RATES)):
        table.add_column(column, justify="right")
    for attack in result.attacks:
        points = (_point(point) for point in attack.roc.points)
        table.add_row(attack.attack, attack.model, _area(attack), *points)
    limits = [point.promised_tpr for point in result.attacks[0].roc.points]
    if None not in limits:
        table.add_section()
        table.add_row("promise", "at most", "", *(f"{tpr:.1%}" for tpr in limits))
    return table


def _area(result: AttackResult) -> str:
    low, high = result.roc.auc_interval
    return f"{result.roc.auc:.3f} ({low:.3f} to {high:.3f})"


def _point(point: OperatingPoint) -> str:
    if point.tpr is None or point.tpr_interval is None:
        return f"needs {point.non_members_needed} non-members"
    low, high = point.tpr_interval
    return f"{point.tpr:.1%} ({low:.1%} to {high:.1%})"


def _differs(result: AttackResult) -> bool:
    low, high = result.roc.auc_interval
    return not low <= 0.5 <= high
