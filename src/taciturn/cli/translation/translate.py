"""A file of theirs, read by the tables, to the fields and the text of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import yaml

from taciturn.cli.translation.datasets import translated_data
from taciturn.cli.translation.rules import (
    TOOLS,
    Elsewhere,
    Needless,
    Refused,
    Takes,
    Tool,
    whole,
)
from taciturn.errors import SpecError
from taciturn.spec import JobSpec, parse

_REQUIRED = {"model": "any-model", "data": "any.jsonl"}
_ADAPTER = ("r", "alpha", "target_modules")


@dataclass(slots=True)
class Translation:
    """Outcome of a translation.

    Attributes:
        fields: of our job file.
        decisions: their key -> what it became.
        left_out: their key -> why it is not honoured.
        needless: their key -> why nothing has to be done.
        unknown: their keys that no table has.
        missing: fields that are still to be given.
    """

    tool: Tool
    fields: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    needless: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def take(self, key: str, fields: Mapping[str, Any], note: str = "") -> None:
        """Add the fields that a key decides, each by itself as a job file has to have it."""
        for name, value in fields.items():
            current = self.fields.get(name)
            try:
                if name not in JobSpec.model_fields:
                    raise SpecError(f"this version has no field {name}")
                parse(JobSpec, _REQUIRED | {name: value})
                if name == "report_to":
                    value = list(dict.fromkeys([*(current or []), *value]))
                elif current is not None and current != value:
                    raise SpecError(f"{name} is {current} already, by another key")
            except SpecError as error:
                self.left_out[key] = str(error)
                continue
            self.fields[name] = value
            before = f"{self.decisions[key]}, " if key in self.decisions else ""
            self.decisions[key] = f"{before}{name}: {value}"
        if note and key in self.decisions:
            self.decisions[key] += f" ({note})"
        if not fields:
            self.needless[key] = note or "it asks for what is so anyway"


def translate(keys: Mapping[str, Any], folder: Path, own_fields: Mapping[str, Any]) -> Translation:
    """Translate the keys of a file.

    Args:
        folder: of the file.
        own_fields: fields of ours that theirs cannot have, or that go before theirs.

    Raises SpecError if they are neither Axolotl's nor LLaMA-Factory's, or one of ours is wrong.
    """
    translation = Translation(_tool(keys))
    job = parse(JobSpec, _REQUIRED | dict(own_fields))
    translation.fields |= {name: getattr(job, name) for name in own_fields}
    rules = translation.tool.rules
    for key, value in keys.items():
        rule = rules.get(key)
        if rule is None:
            translation.unknown.append(key)
        elif isinstance(rule, Needless):
            translation.needless[key] = rule.reason
        elif isinstance(rule, Refused):
            is_empty = value in (None, False, 0, "", "no", [], {}) or value in rule.harmless
            reasons = translation.needless if is_empty else translation.left_out
            reasons[key] = "it asks for nothing" if is_empty else rule.reason
        elif isinstance(rule, Takes):
            _take(translation, key, value, rule)
        else:
            assert isinstance(rule, Elsewhere)
    _take_batch(translation, keys)
    _take_data(translation, keys, folder)
    _settle(translation)
    translation.missing = [
        name for name in ("model", "data", "target_epsilon") if name not in translation.fields
    ]
    parse(JobSpec, _REQUIRED | translation.fields)
    return translation


def _tool(keys: Mapping[str, Any]) -> Tool:
    signs = {tool.name: len(tool.signs & keys.keys()) for tool in TOOLS}
    best = max(TOOLS, key=lambda tool: signs[tool.name])
    if not signs[best.name] or list(signs.values()).count(signs[best.name]) > 1:
        raise SpecError(
            "the file has neither Axolotl's keys (base_model, datasets, ...) nor LLaMA-Factory's "
            "(model_name_or_path, dataset, ...), or as many of both; give a file of one of them. "
            "A job file of taciturn needs no translation: taciturn fit -f FILE"
        )
    return best


def _take(translation: Translation, key: str, value: Any, rule: Takes) -> None:
    try:
        translation.take(key, rule.convert(value), rule.note)
    except SpecError as error:
        translation.left_out[key] = f"{value!r:.60}: {error}"


def _take_batch(translation: Translation, keys: Mapping[str, Any]) -> None:
    """Read the factors of a batch: what is left of them once memory is planned by itself."""
    factors = [key for key in translation.tool.batch if keys.get(key) is not None]
    name = " x ".join(factors)
    if not factors:
        return
    try:
        size = prod(whole(keys[key]) for key in factors)
    except SpecError as error:
        translation.left_out[name] = str(error)
        return
    translation.take(
        name,
        {"batch_size": size},
        "expected units of a step of all processes; left out, the plan chooses a larger one, which "
        "needs less noise",
    )


def _take_data(translation: Translation, keys: Mapping[str, Any], folder: Path) -> None:
    data = translated_data(translation.tool.name, keys, folder)
    own = translation.fields.get("data")
    for name, value in data.fields.items():
        if name not in JobSpec.model_fields:
            data.left_out[f"data set, {name}"] = f"this version has no field {name}"
        elif not (name == "data" and own):
            translation.fields[name] = value
    if own:
        data.left_out.pop("dataset", None)
        data.left_out.pop("datasets[0].path", None)
    translation.decisions |= data.decisions
    translation.left_out |= data.left_out
    read = data.decisions.keys() | data.left_out.keys()
    for key in ("datasets", "dataset", "dataset_dir"):
        if key in keys and not any(name.startswith(key) for name in read):
            translation.needless[key] = "data are given otherwise"


def _settle(translation: Translation) -> None:
    """Leave out what contradicts the rest, where the programs have an order of their own."""
    fields = translation.fields
    if "steps" in fields and "epochs" in fields:
        _drop(translation, "epochs", "steps go before epochs, as in their own program")
    if fields.get("method") == "full":
        for name in _ADAPTER:
            if name in fields:
                _drop(translation, name, "there is no adapter where all weights are trained")


def _drop(translation: Translation, name: str, reason: str) -> None:
    value = translation.fields.pop(name)
    for key, text in list(translation.decisions.items()):
        if text.startswith(f"{name}: {value}"):
            del translation.decisions[key]
            translation.left_out[key] = reason


_PRIVACY = {
    "target_epsilon": (3, 'the budget; smaller is more private. "unlimited" promises nothing'),
    "privacy_unit": (
        "patient_id",
        "column that names whom a row is about; without it a row is protected for itself",
    ),
}


def job_text(translation: Translation, source: str) -> str:
    """Return the job file, with a marked line for each field that is still to be given."""
    tool = translation.tool.name
    fields = {name: value for name, value in translation.fields.items() if name not in _PRIVACY}
    lines = [f"# Translated by taciturn import-config from {source} ({tool})."]
    for name in translation.missing:
        if name not in _PRIVACY:
            lines.append(f"# {name}: ...  # GIVE THIS: fit needs it")
    lines.append(_yaml(fields))
    lines.append(f"\n# The promise, which {tool} has no words for.")
    for name, (example, text) in _PRIVACY.items():
        if name in translation.fields:
            lines.append(_yaml({name: translation.fields[name]}))
        else:
            mark = "GIVE THIS" if name in translation.missing else "or"
            lines.append(f"# {name}: {example}  # {mark}: {text}")
    return "\n".join(lines) + "\n"


def _yaml(fields: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True).rstrip("\n")
