"""A fine-tuning job of OpenAI's API as a fit of the gateway's: mapped, or refused by name.

The privacy terms stand beside OpenAI's hyperparameters, or in `metadata` for clients that let no
others through. `target_epsilon` has no default: nobody spends a budget without saying how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from taciturn.server.problems import ProblemError
from taciturn.wire.fine_tuning import FineTuningMethod, NewFineTuningJob, Term
from taciturn.wire.jobs import RemoteFit

METHODS = {"supervised": "sft", "dpo": "dpo"}
"""Types of methods, and the objectives that they are."""

TERMS = (
    "target_epsilon",
    "delta",
    "l2_clip_norm",
    "max_records_per_unit",
    "max_tokens",
    "learning_rate",
    "steps",
    "max_minutes",
    "r",
    "alpha",
    "canaries",
    "canary_kind",
    "text_field",
    "question_field",
    "answer_field",
    "messages_field",
    "prompt_field",
    "chosen_field",
    "rejected_field",
    "format",
    "public_data",
    "public_text_field",
    "select",
    "purpose",
)
"""The gateway's own terms, by the names that they have in a fit."""

OPENAI_NAMES = {"n_epochs": "epochs", "batch_size": "batch_size", "beta": "beta"}
"""OpenAI's hyperparameters, and the fields of a fit that they are."""

_NO_MULTIPLIER = (
    "there is no rate of OpenAI's to multiply, and one that was good without noise is not with it; "
    'leave it out or give "auto", and the plan chooses; or give learning_rate'
)
_NO_LABEL = (
    "the gateway keeps no labels: metadata holds its own terms only ({terms}); give suffix for a "
    "name, and purpose for a line to whoever has to approve it"
)
_NO_VALIDATION = (
    "figures about private rows cost budget, so that none come along with a fit; leave it out, and "
    "evaluate the model afterwards with a job of kind evaluate (POST /v1/jobs)"
)
_NO_INTEGRATIONS = (
    "the gateway sends nothing of a job to where a request says; leave it out, events and the "
    "model's report have what may be known"
)
_EPSILON = (
    "is required: how much of the privacy budget this fit may spend, for example 3; there is no "
    "default. It may stand in metadata, too"
)
_PREFERENCES = frozenset({"input", "preferred_output", "non_preferred_output"})
_SELECT = "input.messages AS prompt, preferred_output AS chosen, non_preferred_output AS rejected"


@dataclass(slots=True)
class _Fields:
    """Fields of a fit, and the parameters that they come from."""

    values: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)

    def set(self, name: str, value: Any, parameter: str) -> None:
        earlier = self.values.get(name, value)
        if str(earlier) != str(value):
            raise refusal(parameter, f"{self.parameters[name]} says something else; give one")
        self.values[name], self.parameters[name] = value, parameter

    def has(self, *names: str) -> bool:
        return any(name in self.values for name in names)


def refusal(parameter: str, why: str) -> ProblemError:
    """Return the problem of one parameter, which is named as OpenAI's errors name it."""
    return ProblemError("invalid", f"{parameter}: {why}", param=parameter)


def to_fit(request: NewFineTuningJob, columns: Sequence[str]) -> RemoteFit:
    """Return the fit that a request asks for; raises ProblemError `invalid`, with its `param`."""
    fields = _fields(request, columns)
    try:
        return RemoteFit.model_validate(fields.values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        # An error about several fields names them in its words: epochs=2 and steps=5 ...
        names = [*map(str, first["loc"]), message.partition("=")[0]]
        parameters = [fields.parameters[name] for name in names if name in fields.parameters]
        if parameters:
            raise refusal(parameters[0], message) from None
        raise ProblemError("invalid", message) from None


def fit_fields(request: NewFineTuningJob, columns: Sequence[str]) -> dict[str, Any]:
    """Return the fields of the fit that a request asks for, before they are checked.

    Args:
        columns: of the dataset, by which OpenAI's own forms of records are known.

    Raises:
        ProblemError: `invalid`: something is missing, or nothing here.
    """
    return _fields(request, columns).values


def _fields(request: NewFineTuningJob, columns: Sequence[str]) -> _Fields:
    method = _method(request)
    _check_absent(request)
    fields = _Fields()
    fields.set("model", request.model, "model")
    if method != "supervised":
        fields.set("objective", METHODS[method], "method.type")
    for name, value, parameter in _terms(request, method):
        if name == "learning_rate_multiplier":
            if value != 1:
                raise refusal(parameter, _NO_MULTIPLIER)
        elif name in OPENAI_NAMES:
            _check_method(name, method, parameter)
            fields.set(OPENAI_NAMES[name], value, parameter)
        elif name in TERMS:
            fields.set(name, value, parameter)
        else:
            raise refusal(parameter, _unknown(parameter))
    if not fields.has("target_epsilon"):
        raise refusal(f"method.{method}.hyperparameters.target_epsilon", _EPSILON)
    if request.seed is not None:
        fields.set("seed", request.seed, "seed")
    if request.suffix:
        fields.set("name", request.suffix, "suffix")
    _set_data(fields, request.training_file, method, frozenset(columns))
    return fields


def _method(request: NewFineTuningJob) -> str:
    """Return the type of the method; OpenAI's default is the supervised one."""
    method = request.method or FineTuningMethod(type="supervised")
    if method.type not in METHODS:
        raise refusal(
            "method.type",
            f"{method.type!r} is none of {', '.join(METHODS)}: these have a guarantee here",
        )
    for other in ("supervised", "dpo", "reinforcement"):
        if other != method.type and getattr(method, other) is not None:
            raise refusal(f"method.{other}", f"method.type is {method.type!r}; leave it out")
    return method.type


def _check_absent(request: NewFineTuningJob) -> None:
    if request.validation_file:
        raise refusal("validation_file", _NO_VALIDATION)
    if request.integrations:
        raise refusal("integrations", _NO_INTEGRATIONS)


def _terms(request: NewFineTuningJob, method: str) -> Iterator[tuple[str, Term, str]]:
    """Yield name, value and parameter of everything that was given, but for "auto"."""
    of_method = getattr(request.method, method) if request.method else None
    parts = {
        f"method.{method}.hyperparameters": of_method and of_method.hyperparameters,
        "hyperparameters": request.hyperparameters,
        "metadata": request.metadata,
    }
    for place, terms in parts.items():
        for name, value in (terms or {}).items():
            if value is not None and value != "auto":
                yield name, value, f"{place}.{name}"


def _check_method(name: str, method: str, parameter: str) -> None:
    if name == "beta" and method != "dpo":
        raise refusal(parameter, 'it is of method.type "dpo" alone; leave it out')


def _unknown(parameter: str) -> str:
    terms = ", ".join(TERMS)
    if parameter.startswith("metadata."):
        return _NO_LABEL.format(terms=terms)
    names = ", ".join((*OPENAI_NAMES, "learning_rate_multiplier"))
    return f"there is no such term; there are {names}, and of the gateway's own {terms}"


def _set_data(fields: _Fields, name: str, method: str, columns: frozenset[str]) -> None:
    """Name the dataset, and the columns of OpenAI's own forms unless the request names some."""
    data: dict[str, Any] = {"dataset": name}
    select = fields.values.pop("select", None)
    if method == "dpo" and not fields.has("prompt_field", "chosen_field", "rejected_field"):
        if columns >= _PREFERENCES and select is None:
            select = _SELECT
        for column in ("prompt", "chosen", "rejected"):
            fields.set(f"{column}_field", column, "training_file")
    elif {"prompt", "completion"} <= columns and not fields.has(
        "text_field", "question_field", "messages_field", "prompt_field"
    ):
        fields.set("question_field", "prompt", "training_file")
        fields.set("answer_field", "completion", "training_file")
    if select is not None:
        data["select"] = select
    fields.set("data", data, "training_file")
