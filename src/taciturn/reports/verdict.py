"""Meaning of an audit's figures, in words that need no statistics."""

from __future__ import annotations

from taciturn.reports.privacy import Audit, PrivacyReport

BROKEN = "THE GUARANTEE IS BROKEN"


def verdict(audit: Audit, report: PrivacyReport) -> str:
    """Four short paragraphs: what is promised, found, possible at most, and left unsaid."""
    parts = [
        _promise_text(audit, report),
        _lower_bound_text(audit),
        _possible(audit),
        _unsaid(audit),
    ]
    return "\n\n".join(part for part in parts if part)


def _promise_text(audit: Audit, report: PrivacyReport) -> str:
    if audit.promised_epsilon is None:
        return "Promised: nothing. This model was fitted without privacy."
    return (
        f"Promised: epsilon {audit.promised_epsilon:.4g} at delta {audit.delta:.3g}, for one unit "
        f"({report.privacy_unit})."
    )


def _lower_bound_text(audit: Audit) -> str:
    guesses = (
        f"Found: {audit.canaries} canaries ({audit.canary_kind}) were each in the training data or "
        f"not, by a fair coin. From the model's losses, {audit.correct} of {audit.guesses} guesses "
        "about who was in were right"
    )
    confidence = f"{audit.confidence:.4g}"
    if audit.epsilon_lower_bound == 0:
        return f"{guesses}, which proves no epsilon above 0 at confidence {confidence}."
    bound = f"{audit.epsilon_lower_bound:.3g}"
    conclusion = f"{guesses}: at confidence {confidence}, epsilon is at least {bound}."
    if audit.refuted:
        return (
            f"{conclusion}\n\n{BROKEN}: that is more than is promised. An audit of a model that "
            f"keeps its promise says so with probability {1 - audit.confidence:.2g} at most. Do "
            "not pass this model on; keep its folder, find the cause, and fit again."
        )
    if audit.promised_epsilon is None:
        return conclusion
    return f"{conclusion} That is within the promise."


def _possible(audit: Audit) -> str:
    if audit.largest_advantage is None:
        return "Nothing limits what an attacker can find out about the training data."
    right_share = (1 + audit.largest_advantage) / 2
    finds = ", or ".join(
        f"{limit.true_positive_rate:.1%} at {limit.false_positive_rate:.1%} false alarms"
        for limit in audit.attacker_limits
    )
    return (
        "Possible at most, if the promise holds: an attacker who knows everything but whether one "
        f"unit was in is right in {right_share:.1%} of all cases, where guessing is right in 50%. "
        f"Of the units that were in, such an attacker finds at most {finds}."
    )


def _unsaid(audit: Audit) -> str:
    attack = (
        "Not said: the bound is what one attack on losses found, and a better attack may find more"
    )
    if audit.promised_epsilon is None:
        return (
            f"{attack}; a low bound is no sign that this model is safe. Canaries stand for records "
            "like themselves; a record that is repeated, or told by many units, leaks more."
        )
    return (
        f"{attack}, up to what is promised. Facts that many units share are learned, a secret told "
        "by several units is protected less, and what the base model knew before is not covered."
    )
