"""OpenAI's requests as fits: what is mapped, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from taciturn.server.fine_tuning.requests import TERMS, fit_fields, to_fit
from taciturn.server.problems import ProblemError
from taciturn.wire.fine_tuning import NewFineTuningJob
from taciturn.wire.jobs import RemoteFit


def request(given: dict[str, Any] | None = None, **changes: Any) -> NewFineTuningJob:
    """A supervised job of epsilon 3, with changes."""
    terms = {"target_epsilon": 3} if given is None else given
    method = {"type": "supervised", "supervised": {"hyperparameters": terms}}
    fields = {"model": "tiny", "training_file": "phee", "method": method, **changes}
    return NewFineTuningJob.model_validate(fields)


def refusal(wanted: NewFineTuningJob, columns: tuple[str, ...] = ("messages",)) -> tuple[str, str]:
    """Parameter and words of a refusal."""
    with pytest.raises(ProblemError) as caught:
        to_fit(wanted, columns)
    return caught.value.more["param"], caught.value.detail


def test_hyperparameters_and_terms_are_those_of_a_fit() -> None:
    terms = {"n_epochs": 2, "batch_size": 64, "learning_rate_multiplier": "auto"}
    terms |= {"target_epsilon": 3, "delta": 1e-6, "l2_clip_norm": 1, "purpose": "triage"}
    fit = to_fit(request(terms, seed=7, suffix="support"), ["patient", "messages"])
    assert (fit.epochs, fit.batch_size, fit.target_epsilon, fit.delta) == (2, 64, 3, 1e-6)
    assert (fit.seed, fit.name, fit.purpose, fit.l2_clip_norm) == (7, "support", "triage", 1)
    assert fit.data.dataset == "phee"
    assert fit.learning_rate is None


def test_terms_may_stand_in_metadata_or_beside_older_hyperparameters() -> None:
    in_metadata = request({}, metadata={"target_epsilon": "0.5", "max_tokens": "128"})
    fit = to_fit(in_metadata, ["messages"])
    assert (fit.target_epsilon, fit.max_tokens) == (0.5, 128)
    older = request(method=None, hyperparameters={"n_epochs": 1, "target_epsilon": 2})
    assert to_fit(older, ["messages"]).target_epsilon == 2
    twice = request({"target_epsilon": 3}, metadata={"target_epsilon": "5"})
    assert refusal(twice)[0] == "metadata.target_epsilon"


def test_epsilon_has_no_default() -> None:
    parameter, words = refusal(request({"n_epochs": 3}))
    assert parameter == "method.supervised.hyperparameters.target_epsilon"
    assert "required" in words
    assert refusal(request(method=None))[0] == parameter


@pytest.mark.parametrize(
    ("changes", "parameter", "reason"),
    [
        ({"validation_file": "phee"}, "validation_file", "cost budget"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "sends nothing"),
        ({"metadata": {"team": "blue"}}, "metadata.team", "keeps no labels"),
        ({"method": {"type": "reinforcement"}}, "method.type", "supervised, dpo"),
        (
            {"method": {"type": "supervised", "dpo": {"hyperparameters": {}}}},
            "method.dpo",
            "leave it out",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    changes: dict[str, Any], parameter: str, reason: str
) -> None:
    name, words = refusal(request(**changes))
    assert name == parameter
    assert reason in words


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        ({"learning_rate_multiplier": 2}, "learning_rate_multiplier"),
        ({"beta": 0.1}, "beta"),
        ({"top_k": 3}, "top_k"),
        ({"n_epochs": -1}, "n_epochs"),
        ({"target_epsilon": 10_000.0}, "target_epsilon"),
        ({"steps": 5, "n_epochs": 2}, "n_epochs"),
        ({"batch_size": "many"}, "batch_size"),
    ],
)
def test_wrong_hyperparameters_are_named(terms: dict[str, Any], name: str) -> None:
    with pytest.raises(ProblemError) as caught:
        to_fit(request({"target_epsilon": 3, **terms}), ["messages"])
    parameter = caught.value.more.get("param")
    assert parameter == f"method.supervised.hyperparameters.{name}"
    assert caught.value.code == "invalid"


def test_forms_of_records_are_known_by_their_columns() -> None:
    completion = fit_fields(request(), ["customer", "prompt", "completion"])
    assert (completion["question_field"], completion["answer_field"]) == ("prompt", "completion")
    assert "question_field" not in fit_fields(request(), ["messages"])
    own = request({"target_epsilon": 3, "text_field": "completion"})
    assert "question_field" not in fit_fields(own, ["prompt", "completion"])


def test_preferences_are_asked_for_by_the_fields_of_a_fit() -> None:
    """They make a fit as `POST /v1/jobs` takes it."""
    terms = {"target_epsilon": 3, "beta": 0.2}
    method = {"type": "dpo", "dpo": {"hyperparameters": terms}}
    stored = fit_fields(request(method=method), ["prompt", "chosen", "rejected"])
    assert stored["objective"] == "dpo"
    assert stored["beta"] == 0.2
    fields = ("prompt_field", "chosen_field", "rejected_field")
    assert [stored[name] for name in fields] == ["prompt", "chosen", "rejected"]
    assert "select" not in stored["data"]
    openai_form = ["input", "preferred_output", "non_preferred_output"]
    nested = fit_fields(request(method=method), openai_form)
    assert "input.messages AS prompt" in nested["data"]["select"]
    for fields in (stored, nested):
        fit = RemoteFit.model_validate(fields)
        assert (fit.objective, fit.beta, fit.chosen_field) == ("dpo", 0.2, "chosen")


def test_every_term_is_a_field_of_a_fit() -> None:
    """But for `select`, which is the data's."""
    assert set(TERMS) - {"select"} <= RemoteFit.model_fields.keys()
