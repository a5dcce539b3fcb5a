"""Consequences of a change of terms or grants, in words, before it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from markupsafe import Markup

from taciturn.server.console.rendering import clock_time, rounded_down, share
from taciturn.wire.datasets import BudgetView, GrantTerms, GrantView, PolicyTerms, PolicyView


def of_terms(before: PolicyView, after: PolicyTerms, budget: BudgetView) -> list[str]:
    """Return what new terms of a namespace mean, a sentence for each change."""
    return [
        *_of_budget(before, after, budget),
        *_of_limits(before, after),
        *_of_people(before, after),
    ]


def of_grant(
    holder: str,
    before: GrantView | None,
    after: GrantTerms,
    budget: BudgetView,
    now: datetime,
) -> list[str]:
    """Return what a grant means that is given or changed."""
    who = "Everybody in the group " + holder[6:] if holder.startswith("group:") else holder[5:]
    sentences = [
        f"{who} may start jobs on the data of {budget.namespace} that cost epsilon "
        f"{rounded_down(after.epsilon)} together, out of the {rounded_down(budget.epsilon)} that "
        "all people have together. Whoever comes first may use that up."
    ]
    if holder.startswith("group:"):
        sentences.append("They share this one grant; it is not for each of them.")
    if before is not None and before.revoked_at is not None:
        sentences.append("The grant was revoked, and is live again.")
    elif before is not None and before.epsilon != after.epsilon:
        sentences.append(
            f"Before, it was epsilon {rounded_down(before.epsilon)}, of which "
            f"{share(before.charged)} are spent. What is spent stays spent, and counts."
        )
    if after.expires_at is None:
        sentences.append("It ends when you revoke it.")
    elif after.expires_at <= now:
        sentences.append("It ends in the past: the holder can start nothing.")
    else:
        ends = Markup("It ends on {}; jobs that run then go on.")
        sentences.append(ends.format(clock_time(after.expires_at)))
    return sentences


def _of_budget(before: PolicyView, after: PolicyTerms, budget: BudgetView) -> Iterator[str]:
    old, new = before.budget, after.budget
    if new.epsilon > old.epsilon or new.delta > old.delta:
        yield (
            f"The budget rises from epsilon {old.epsilon:g} (delta {old.delta:g}) to "
            f"{new.epsilon:g} (delta {new.delta:g}). The promise to the people in the data gets "
            "weaker, and lowering it later does not undo that: what holds is the highest budget "
            "there ever was. It holds only if you do not raise it because of what a released model "
            "has said."
        )
    elif new != old:
        yield (
            f"The budget falls from epsilon {old.epsilon:g} (delta {old.delta:g}) to "
            f"{new.epsilon:g} (delta {new.delta:g}). What is spent or held stays so: "
            f"{share(budget.taken)} of the old budget, which is a larger part of the new one. If "
            "it is more than all of it, no further job starts."
        )


def _of_limits(before: PolicyView, after: PolicyTerms) -> Iterator[str]:
    if after.job_epsilon != before.job_epsilon:
        yield (
            "A job may cost as much as is left of the budget."
            if after.job_epsilon is None
            else f"A job that costs more than epsilon {after.job_epsilon:g} is refused."
        )
    dropped_kinds = sorted(set(before.kinds) - set(after.kinds))
    if dropped_kinds:
        yield (
            f"Nobody can start jobs of these kinds any more: {', '.join(dropped_kinds)}. Jobs that "
            "run go on."
        )
    new = sorted(set(after.kinds) - set(before.kinds))
    if new:
        yield f"People with a grant can start jobs of these kinds: {', '.join(new)}."
    if after.models != before.models:
        yield (
            f"These base models may be fitted: {', '.join(after.models)}. Models that were fitted "
            "already stay."
            if after.models
            else "No base model may be fitted."
        )
    if after.job_hours != before.job_hours:
        yield (
            "A job may run for as long as the gateway allows."
            if after.job_hours is None
            else f"A job that is not done after {after.job_hours:g} hours fails, and what it spent "
            "stays spent."
        )
    if after.expires_at != before.expires_at:
        yield (
            "These terms do not end."
            if after.expires_at is None
            else Markup("From {} on no job starts, whoever has a grant.").format(
                clock_time(after.expires_at)
            )
        )


def _of_people(before: PolicyView, after: PolicyTerms) -> Iterator[str]:
    if set(after.approvers) != set(before.approvers):
        yield (
            f"Two of these people together, not counting whoever asks, can let a job run without "
            f"any guarantee or beyond a grant: {_names(after.approvers)}."
            if after.approvers
            else "Nobody can let a job run without a guarantee or beyond a grant: such jobs are "
            "refused at once."
        )
    if after.reset_wait_h != before.reset_wait_h:
        yield (
            f"Whoever an administrator has let in anew waits {after.reset_wait_h:g} hours before "
            "they approve or change anything here."
        )


def _names(holders: Sequence[str]) -> str:
    return ", ".join(
        holder.replace("user:", "").replace("group:", "the group ") for holder in holders
    )
