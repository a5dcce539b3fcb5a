"""The model card that goes with a fitted model: what was promised, what was not."""

from __future__ import annotations

from taciturn.reports.privacy import Audit, PrivacyReport

_PRIVATE = """\
---
base_model: {base}
tags: [taciturn, differential-privacy]
---
# {base}, fine-tuned with differential privacy

**{policy}**, when one unit is added or removed; at most {k} records of a unit are used.

| | |
|---|---|
| epsilon, delta | {epsilon:.4g}, {delta:.3g} |
| privacy unit | {unit} |
| number of units (public) | {units} |
| mechanism | {mechanism} |
| noise multiplier | {sigma:.4g} |
| sampling probability | {q:.4g} |
| steps | {steps} |
| clip norm | {clip:.4g} |
| trained parameters | {trained} |
| accountant | {accountant} |
| taciturn | {version} |

`report.html` explains it, with figures; `privacy_report.json` holds it as data, with the event from
which epsilon can be recomputed.

## How to load it

`taciturn.LLM(folder)`, or `peft.PeftModel.from_pretrained(base, folder)` if this folder holds an
adapter. To merge an adapter into its base, write `taciturn.LLM(folder).save(other, merged=True)`:
where the base ties its output layer to its embedding, PEFT's own merge would change both.

## What this promises

Whoever has this model, and everything else there is to know, can tell whether any one unit's
records were in the training data hardly better than without it; how much better is bounded by
epsilon and delta. That covers secrets in the records: what only one unit's records say is not
learned beyond that bound.

## What it does not promise

- Facts that many units share are learned: that is what the model is for.
- What the base model already knew from its own training is not covered.{public}
- Other models of the same data, kept or thrown away, are not in this epsilon, nor are figures that
  were looked at to choose among them.{ledger}
- A secret that appears under several units is protected less, in proportion to how many.
- The model can be wrong. It has not been checked for medical or any other use.
"""

_NONE = """\
---
base_model: {base}
tags: [taciturn, no-privacy-guarantee]
---
# {base}, fine-tuned WITHOUT any privacy guarantee

**No guarantee.** This model was fitted with `target_epsilon="unlimited"`: it can have memorised any
record of its training data word for word, and tell it to anyone who asks. Treat it as you treat the
training data itself.

| | |
|---|---|
| records grouped by | {unit} |
| number of units (public) | {units} |
| steps | {steps} |
| trained parameters | {trained} |
| taciturn | {version} |
"""


_PUBLIC = """
- Nor is public text that was learned from first, {records} records (SHA-256 of their tokens:
  `{sha256}`). {declaration}"""


_AUDIT = """
## What an audit found

{verdict}

`audit.json` holds the same as data.
"""


def model_card(report: PrivacyReport, audit: Audit | None = None) -> str:
    """README.md of an output folder, in Markdown."""
    template = _NONE if report.guarantee == "none" else _PRIVATE
    card = template.format(
        base=report.base_model,
        policy=report.policy,
        k=report.max_records_per_unit,
        epsilon=report.epsilon,
        delta=report.delta,
        unit=report.privacy_unit,
        units=_units(report),
        mechanism=report.mechanism,
        sigma=report.noise_multiplier,
        q=report.sampling_probability,
        steps=report.steps,
        clip=report.l2_clip_norm,
        trained=report.trainable_parameters,
        accountant=report.accountant,
        version=report.taciturn_version,
        public="".join(_PUBLIC.format(**text.model_dump()) for text in report.public_data),
        ledger="" if report.ledger is None else f" A ledger adds all of them up: {report.ledger}.",
    )
    return card if audit is None else card + _AUDIT.format(verdict=audit.verdict)


def _units(report: PrivacyReport) -> str:
    if report.canaries is None:
        return str(report.n_units)
    return f"{report.n_units}, {report.canaries.number} of them canaries of an audit"
