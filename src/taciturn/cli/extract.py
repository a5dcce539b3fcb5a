"""`taciturn extract`: does a model tell a secret, and would its base have guessed it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from taciturn.cli.gateway import Answer, figures, say
from taciturn.cli.options import open_model, spec_command
from taciturn.errors import SpecError
from taciturn.spec import ExtractJobSpec, ExtractSpec, parse

if TYPE_CHECKING:
    from taciturn.engine.auditing.exposure import Exposure
    from taciturn.engine.auditing.extraction import Extracted, Extraction

_METHODS = {
    "exact": "all scored",
    "sampled": "estimated from a sample",
    "extrapolated": "extrapolated from a sample",
    "at least": "at least, from a sample",
}


@spec_command(ExtractJobSpec, keys="policy, confidence, base, fitted")
def extract(fields: dict[str, Any], answer: Answer) -> None:
    """Show whether a model tells a secret: rank, exposure, samples, beside the base model."""
    template = fields.get("template") is not None
    alternatives = _alternatives(fields.get("alternatives", ()), template)
    job = parse(ExtractJobSpec, {**fields, "alternatives": alternatives})
    result = open_model(job).extract(
        job.secret,
        prefix=job.prefix,
        telltale=job.telltale,
        output=job.output,
        **job.arguments(ExtractSpec),
    )
    models = {"base": result.base, "fitted": result.fitted}
    answer(
        {
            "policy": result.policy,
            "confidence": result.confidence,
            **{name: None if one is None else _plain(one) for name, one in models.items()},
        }
    )
    say(f"policy: {result.policy}", style="bold")
    Console(highlight=False).print(_extraction_table(result))
    say(f"intervals: {result.confidence:.0%}")
    if job.output:
        say(f"written: {job.output}")


def _plain(result: Extracted) -> dict[str, Any]:
    """Return what the table tells; the model's own words, which may be the secret, stay out."""
    values = asdict(result)
    del values["greedy_text"]
    return values


def _alternatives(values: Any, template: bool) -> Any:
    """Read options: FIELD=LIST pairs of a template, one list's name, or whole secrets."""
    if isinstance(values, str | Mapping) or not values:
        return values
    if not template:
        return values[0] if len(values) == 1 else tuple(values)
    pairs = [str(value).partition("=") for value in values]
    if not all(equals for _, equals, _ in pairs):
        raise SpecError(
            "with a template, give alternatives as FIELD=LIST, where LIST is the name of an "
            "embedded list or of a text file with one value a line"
        )
    return {field: name for field, _, name in pairs}


def _extraction_table(result: Extraction) -> Table:
    results = [result.base] if result.fitted is None else [result.base, result.fitted]
    rows = [
        ("probability", *(f"10^{result.log10_probability:.1f}" for result in results)),
        ("rank", *(_rank(result.exposure) for result in results)),
        ("exposure", *(_exposure(result.exposure) for result in results)),
        ("greedy decoding", *(_greedy(result) for result in results)),
        ("samples that tell it", *(_telling(result) for result in results)),
    ]
    return figures("the secret, asked of", ("", "base", "fitted")[: 1 + len(results)], rows)


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


def _greedy(result: Extracted) -> str:
    return "tells it" if result.told_greedily else "does not tell it"


def _telling(result: Extracted) -> str:
    if not result.samples:
        return "none taken"
    low, high = result.told_interval
    return f"{result.told} of {result.samples} ({low:.1%} to {high:.1%})"
