"""`taciturn extract` and `membership`: what a fitted model gives away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from taciturn.engine.auditing.exposure import Exposure
from taciturn.engine.auditing.extraction import Extracted, Extraction
from taciturn.engine.auditing.membership import AttackResult, Membership
from taciturn.engine.auditing.roc import FALSE_POSITIVE_RATES, OperatingPoint
from taciturn.errors import SpecError
from taciturn.llm import LLM
from taciturn.spec import ExtractJobSpec, MembershipJobSpec, parse

_METHODS = {
    "exact": "all scored",
    "sampled": "estimated from a sample",
    "extrapolated": "extrapolated from a sample",
    "at least": "at least, from a sample",
}


def run_extract(fields: dict[str, Any]) -> None:
    """Print what base and fitted model say of a secret, side by side."""
    given = fields.get("alternatives", ())
    named = _alternatives(given, fields.get("template") is not None)
    job = parse(ExtractJobSpec, {**fields, "alternatives": named})
    model = LLM(job.model, base=job.base, device=job.device)
    result = model.extract(
        job.secret,
        prefix=job.prefix,
        telltale=job.telltale,
        output=job.output,
        **job.extract_spec().model_dump(),
    )
    console = Console(highlight=False)
    console.print(f"policy: {result.policy}", style="bold", markup=False)
    console.print(_extraction_table(result))
    console.print(f"intervals: {result.confidence:.0%}", markup=False)
    _say_where(console, job.output)


def run_membership(job: MembershipJobSpec) -> None:
    """Print how well members are told from non-members, and what the promise allows."""
    model = LLM(job.model, base=job.base, device=job.device)
    spec = job.membership_spec().model_dump(exclude_unset=True)
    result = model.membership(job.members, job.non_members, output=job.output, **spec)
    console = Console(highlight=False)
    console.print(f"policy: {result.policy}", style="bold", markup=False)
    console.print(_membership_table(result))
    for line in _remarks(result):
        console.print(line, markup=False)
    console.print(
        "exact figures of private units: do not pass them on", style="bold yellow", markup=False
    )
    _say_where(console, job.output and f"{job.output} in the model's private folder")


def _alternatives(given: Any, template: bool) -> Any:
    """What options say: FIELD=LIST pairs of a template, one list's name, or whole secrets."""
    if isinstance(given, str | Mapping) or not given:
        return given
    if not template:
        return given[0] if len(given) == 1 else tuple(given)
    pairs = [str(each).partition("=") for each in given]
    if not all(equals for _, equals, _ in pairs):
        raise SpecError(
            "with a template, give alternatives as FIELD=LIST, where LIST is the name of an "
            "embedded list or of a text file with one value a line"
        )
    return {field: name for field, _, name in pairs}


def _extraction_table(result: Extraction) -> Table:
    found = [result.base] if result.fitted is None else [result.base, result.fitted]
    table = Table(title="the secret, asked of", title_justify="left")
    for column in ("", "base", "fitted")[: 1 + len(found)]:
        table.add_column(column)
    table.add_row("probability", *(f"10^{each.log10_probability:.1f}" for each in found))
    table.add_row("rank", *(_rank(each.exposure) for each in found))
    table.add_row("exposure", *(_exposure(each.exposure) for each in found))
    table.add_row("greedy decoding", *(_greedy(each) for each in found))
    table.add_row("samples that tell it", *(_told(each) for each in found))
    return table


def _rank(exposure: Exposure | None) -> str:
    if exposure is None:
        return "no alternatives given"
    if exposure.method == "exact":
        return f"{exposure.rank:.0f} of {exposure.size} ({_METHODS['exact']})"
    return f"about {exposure.rank:.3g} of {exposure.size:.4g} ({_METHODS[exposure.method]})"


def _exposure(exposure: Exposure | None) -> str:
    if exposure is None:
        return ""
    text = f"{exposure.bits:.2f} of {exposure.most:.2f} bits"
    if exposure.method == "exact":
        return text
    return f"{text} ({exposure.interval[0]:.2f} to {exposure.interval[1]:.2f})"


def _greedy(found: Extracted) -> str:
    return "tells it" if found.told_greedily else "does not tell it"


def _told(found: Extracted) -> str:
    if not found.samples:
        return "none taken"
    low, high = found.told_interval
    return f"{found.told} of {found.samples} ({low:.1%} to {high:.1%})"


def _membership_table(result: Membership) -> Table:
    table = Table(
        title=f"{result.n_members} members, {result.n_non_members} non-members "
        f"({result.confidence:.0%} intervals)",
        title_justify="left",
    )
    table.add_column("score")
    table.add_column("model")
    for column in ("AUC", *(f"TPR at {fpr:.1%} FPR" for fpr in FALSE_POSITIVE_RATES)):
        table.add_column(column, justify="right")
    for each in result.attacks:
        points = (_point(point) for point in each.roc.points)
        table.add_row(each.attack, each.model, _area(each), *points)
    promised = [point.promised_tpr for point in result.attacks[0].roc.points]
    if None not in promised:
        table.add_section()
        table.add_row("promise", "at most", "", *(f"{tpr:.1%}" for tpr in promised))
    return table


def _area(result: AttackResult) -> str:
    low, high = result.roc.auc_interval
    return f"{result.roc.auc:.3f} ({low:.3f} to {high:.3f})"


def _point(point: OperatingPoint) -> str:
    if point.tpr is None or point.tpr_interval is None:
        return f"needs {point.non_members_needed} non-members"
    low, high = point.tpr_interval
    return f"{point.tpr:.1%} ({low:.1%} to {high:.1%})"


def _remarks(result: Membership) -> Sequence[str]:
    remarks = []
    if any(_differs(each) for each in result.attacks if each.model == "base"):
        remarks.append(
            "the base model, which saw nobody, tells the groups apart: they differ by themselves, "
            "so the figures do not measure membership alone"
        )
    return remarks


def _differs(result: AttackResult) -> bool:
    low, high = result.roc.auc_interval
    return not low <= 0.5 <= high


def _say_where(console: Console, place: str | None) -> None:
    if place:
        console.print(f"written: {place}", markup=False, soft_wrap=True)
