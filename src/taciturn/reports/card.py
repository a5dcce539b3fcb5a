"""The model card that goes with a fitted model: what was promised, what was not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from taciturn.reports.figures import Figure, ReleasedEvaluation, ReleasedFigures
from taciturn.reports.privacy import Audit, PrivacyReport

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PRIVATE = """\
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
| trained parameters | {trained} |{objective}
| accountant | {accountant} |
| taciturn | {version} |

`report.html` explains it, with figures; `privacy_report.json` holds it as data, with the event from
which epsilon can be recomputed.

## How to load it

{loading}

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
# {base}, fine-tuned WITHOUT any privacy guarantee

**No guarantee.** This model was fitted with `target_epsilon="unlimited"`: it can have memorised any
record of its training data word for word, and tell it to anyone who asks. Treat it as you treat the
training data itself.

| | |
|---|---|
| records grouped by | {unit} |
| number of units (public) | {units} |
| steps | {steps} |
| trained parameters | {trained} |{objective}
| taciturn | {version} |

## How to load it

{loading}
"""


_PUBLIC = """
- Nor is public text that was learned from first, {records} records (SHA-256 of their tokens:
  `{sha256}`). {declaration}"""


_AUDIT = """
## What an audit found

{verdict}

`audit.json` holds the same as data.
"""


_LOADING = """\
`taciturn.LLM(folder)`, or `peft.PeftModel.from_pretrained(base, folder)` if this folder holds an
adapter. To merge an adapter into its base, write `taciturn.LLM(folder).export(other)`: where the
base ties its output layer to its embedding, PEFT's own merge would change both."""
_LOADING_FORM = {
    "merged": """\
Any program that loads a folder of transformers does: adapter and base are one model here, in fp32.
With vLLM, `vllm serve FOLDER --dtype bfloat16`.""",
    "gguf": "`llama-server -m {file}`, or any other program on llama.cpp.",
    "ollama": "`ollama create NAME -f Modelfile`, then `ollama run NAME`. Its weights are {file}.",
}


@dataclass(frozen=True, slots=True)
class Served:
    """Form that a model was exported in.

    Attributes:
        form: "merged", "gguf" or "ollama".
        weights: numbers that its weights are kept in.
        file: name of its GGUF file, if it has one.
        notes: differences that whoever serves it has to know.
    """

    form: str
    weights: str
    file: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def loading(self) -> str:
        """Return how it is loaded, and what there is to know."""
        text = _LOADING_FORM[self.form].format(file=self.file)
        return text + "".join(f"\n\nNote: {note}." for note in self.notes)


def model_card(
    report: PrivacyReport,
    audit: Audit | None = None,
    *,
    figures: ReleasedFigures | None = None,
    served: Served | None = None,
    certificate_sha256: str | None = None,
    library: str | None = None,
    name: str | None = None,
) -> str:
    """README.md of an output folder, in Markdown, with the metadata that model hubs read.

    Args:
        figures: what evaluations released.
        served: the form of an export.
        certificate_sha256: digest of the certificate that the model, or what it was made of, has.
        library: that loads it, by the hub's name.
        name: of the model on a hub; its figures are listed under it.
    """
    form = None if served is None else f"{served.form} {served.weights}"
    front = front_matter(report, figures, form, certificate_sha256, library, name)
    return front + _text(report, audit, served)


def front_matter(
    report: PrivacyReport,
    figures: ReleasedFigures | None,
    form: str | None,
    certificate_sha256: str | None,
    library: str | None,
    name: str | None,
) -> str:
    """Return the metadata at the top of a card; the arguments are those of `model_card`."""
    metadata = _metadata(report, form, certificate_sha256, library)
    if name is not None and figures is not None and (results := _results(figures)):
        metadata["model-index"] = [{"name": name.rpartition("/")[2], "results": results}]
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{front}---\n"


def _metadata(
    report: PrivacyReport, form: str | None, certificate: str | None, library: str | None
) -> dict[str, Any]:
    """Return what a hub reads of a model. A base that is a path of some machine is not named."""
    private = report.guarantee != "none"
    guarantee = {
        "policy": report.policy,
        "guarantee": report.guarantee,
        "epsilon": report.epsilon,
        "delta": report.delta,
        "privacy_unit": report.privacy_unit if private else None,
        "certificate_sha256": certificate,
        "form": form,
        "version": report.taciturn_version,
    }
    fields = {
        "base_model": report.base_model if _REPOSITORY.fullmatch(report.base_model) else None,
        "library_name": library,
        "pipeline_tag": None if library is None else "text-generation",
        "tags": ["taciturn", "differential-privacy" if private else "no-privacy-guarantee"],
        "taciturn": {key: value for key, value in guarantee.items() if value is not None},
    }
    return {key: value for key, value in fields.items() if value is not None}


def _results(figures: ReleasedFigures) -> list[dict[str, Any]]:
    """Return released figures as a model index lists them."""
    tasks: list[tuple[dict[str, str], str, list[tuple[str, str, Figure | None]]]] = [
        (
            {"type": "text-generation"},
            _judged_on(evaluation.basis, evaluation.n_units),
            _metrics(evaluation),
        )
        for evaluation in figures.evaluations
    ]
    tasks += [
        (
            {"type": "text-classification", "name": "classifier trained on synthetic text"},
            _judged_on(downstream.basis, downstream.n_units),
            [("accuracy", "accuracy", downstream.accuracy)],
        )
        for downstream in figures.downstream
    ]
    return [
        {
            "task": task,
            "dataset": {"name": dataset, "type": "held-out"},
            "metrics": [
                {"type": kind, "name": words, "value": figure.value, "noise_std": figure.std}
                for kind, words, figure in metrics
                if figure is not None
            ],
        }
        for task, dataset, metrics in tasks
    ]


def _metrics(evaluation: ReleasedEvaluation) -> list[tuple[str, str, Figure | None]]:
    score = evaluation.fitted or evaluation.base
    gain = None if evaluation.gain is None else evaluation.gain.nats_per_token
    mauve = None if score.mauve is None else Figure(value=score.mauve)
    return [
        ("cross_entropy", "nats per token", score.nats_per_token),
        ("accuracy", "share of tokens held for the likeliest", score.token_accuracy),
        ("cross_entropy_gain", "nats per token fewer than the base", gain),
        ("mauve", "likeness of samples and text", mauve),
        ("accuracy", "share of pairs of answers ranked as people did", evaluation.ranked),
    ]


def _judged_on(basis: str, units: int) -> str:
    return f"{units} units, {'public' if basis == 'public' else 'noised and paid for'}"


def _text(report: PrivacyReport, audit: Audit | None, served: Served | None) -> str:
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
        objective="" if report.objective is None else f"\n| learned | {report.objective} |",
        accountant=report.accountant,
        version=report.taciturn_version,
        loading=_LOADING if served is None else served.loading,
        public="".join(_PUBLIC.format(**text.model_dump()) for text in report.public_data),
        ledger="" if report.ledger is None else f" A ledger adds all of them up: {report.ledger}.",
    )
    return card if audit is None else card + _AUDIT.format(verdict=audit.verdict)


def _units(report: PrivacyReport) -> str:
    if report.canaries is None:
        return str(report.n_units)
    return f"{report.n_units}, {report.canaries.number} of them canaries of an audit"
