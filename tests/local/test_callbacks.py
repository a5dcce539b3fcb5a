"""Callbacks get public values alone, and one that raises ends a run in a whole state."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import taciturn
from support.ranks import in_processes
from taciturn.errors import CallbackError, SpecError
from taciturn.local.events import FitEvent
from taciturn.reports.privacy import PrivacyReport

SETTINGS: dict[str, Any] = {
    "text_field": "text",
    "target_epsilon": 8,
    "batch_size": 6,
    "steps": 3,
    "method": "lora",
    "r": 2,
    "checkpoint_every": 2,
    "max_tokens": 24,
}
KINDS = typing.get_args(FitEvent)
PRIVATE_WORDS = {"loss", "norm", "clipped", "seed", "index", "indices", "row", "rows", "gradient"}


def rows(n: int = 24) -> pd.DataFrame:
    return pd.DataFrame({"text": [f"patient {i} had a cough" for i in range(n)]})


def fit(model: Path, output: Path | None, *callbacks: Any, **more: Any) -> taciturn.LLM:
    llm = taciturn.LLM(str(model))
    llm.fit(rows(), output=output, callbacks=callbacks, **{**SETTINGS, **more})
    return llm


def raising_at(kind: type, step: int | None = None) -> Callable[[Any], None]:
    def planted(event: Any) -> None:
        if isinstance(event, kind) and step in (None, getattr(event, "step", None)):
            raise ValueError("planted")

    return planted


def test_events_come_in_order_and_say_what_was_spent(tiny_llama: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    model = fit(tiny_llama, tmp_path / "out", events.append)
    assert [type(event).__name__ for event in events] == [
        "PlanEvent",
        *("StepEvent", "EpsilonEvent"),
        *("StepEvent", "EpsilonEvent", "CheckpointEvent"),
        *("StepEvent", "EpsilonEvent", "CheckpointEvent"),
        "EndEvent",
    ]
    assert model.privacy is not None
    assert events[-3].epsilon == model.privacy.epsilon
    plan, end = events[0], events[-1]
    assert (plan.epsilon, plan.steps) == (model.privacy.epsilon, 3)
    assert (end.status, end.step, end.policy) == ("complete", 3, model.policy)
    names = {Path(path).name for path in end.files}
    assert {"adapter_model.safetensors", "privacy_report.json"} <= names
    assert all(Path(path).parent == (tmp_path / "out").resolve() for path in end.files)


def test_nothing_private_can_be_reached_from_an_event(tiny_llama: Path, tmp_path: Path) -> None:
    """Every value is plain text or a number; no name is that of something private."""
    events: list[Any] = []
    model = fit(tiny_llama, tmp_path / "out", events.append)
    model.evaluate(["a cough"] * 3, callbacks=[events.append])
    assert {type(event) for event in events} == set(KINDS)
    for event in events:
        walk(event)


def walk(value: object) -> None:
    if dataclasses.is_dataclass(value):
        assert not hasattr(value, "__dict__"), "slots keep other values out"
        for field in dataclasses.fields(value):
            walk(getattr(value, field.name))
    elif isinstance(value, tuple):
        for part in value:
            walk(part)
    else:
        assert type(value) in (str, int, float, types.NoneType), value


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_events_are_frozen_and_have_no_private_field(kind: Any) -> None:
    assert getattr(taciturn, kind.__name__) is kind
    assert kind.__dataclass_params__.frozen
    assert kind.__slots__ == tuple(field.name for field in dataclasses.fields(kind))
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        # The clip norm is a public parameter of the mechanism.
        words = set(field.name.split("_")) - ({"norm"} if field.name == "l2_clip_norm" else set())
        assert not words & PRIVATE_WORDS
        assert plain(hints[field.name]), field.name


def plain(hint: Any) -> bool:
    parts = [part for part in typing.get_args(hint) if part is not ...]
    if typing.get_origin(hint) is typing.Literal:
        return True
    if parts:
        return all(map(plain, parts))
    return hint in (str, int, float, types.NoneType)


def test_one_that_fails_at_the_plan_leaves_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    ledger = {"ledger": f"sqlite:///{tmp_path / 'l.db'}", "ledger_namespace": "notes"}
    output, planted = tmp_path / "out", raising_at(taciturn.PlanEvent)
    words = r"planted raised ValueError.*nothing was spent"
    with pytest.raises(CallbackError, match=words) as error:
        fit(tiny_llama, output, planted, report_to="csv", **ledger)
    assert isinstance(error.value.__cause__, ValueError)
    assert not output.exists()
    report = fit(tiny_llama, output, **ledger).privacy
    assert report is not None
    assert report.ledger is not None
    assert report.ledger.runs == 1, "the run that failed was not charged"


@pytest.mark.parametrize("kind", [taciturn.StepEvent, taciturn.EpsilonEvent])
def test_one_that_fails_in_a_step_leaves_a_checkpoint(
    kind: type, tiny_llama: Path, tmp_path: Path
) -> None:
    later: list[Any] = []
    output = tmp_path / "out"
    with pytest.raises(CallbackError, match=r"stopped after step 1 of 3.*--resume"):
        fit(tiny_llama, output, raising_at(kind, 1), later.append)
    assert [path.name for path in (output / "private" / "checkpoints").iterdir()] == [
        "step-00000001"
    ]
    assert not (output / "privacy_report.json").exists()
    assert (later[-1].status, later[-1].step) == ("stopped", 1)
    report = fit(tiny_llama, output, resume=True).privacy
    assert report is not None
    assert report.steps == 3


def test_what_was_paid_stays_paid(tiny_llama: Path, tmp_path: Path) -> None:
    """The plan is charged once, by a run that stops and is resumed."""
    ledger = {"ledger": f"sqlite:///{tmp_path / 'l.db'}", "ledger_namespace": "notes"}
    with pytest.raises(CallbackError):
        fit(tiny_llama, tmp_path / "out", raising_at(taciturn.StepEvent, 2), **ledger)
    resumed = fit(tiny_llama, tmp_path / "out", resume=True, **ledger).privacy
    assert resumed is not None
    assert resumed.ledger is not None
    assert resumed.ledger.runs == 1


@pytest.mark.parametrize("kind", [taciturn.EndEvent, taciturn.CheckpointEvent])
def test_one_that_fails_at_the_end_leaves_the_model(
    kind: type, tiny_llama: Path, tmp_path: Path
) -> None:
    model, output = taciturn.LLM(str(tiny_llama)), tmp_path / "out"
    with pytest.raises(CallbackError, match="The fit itself is complete"):
        model.fit(rows(), output=output, callbacks=[raising_at(kind, 3)], **SETTINGS)
    assert model.privacy == PrivacyReport.model_validate_json(
        (output / "privacy_report.json").read_text()
    )
    assert len(model.sample(["a"], max_new_tokens=2)) == 1


def test_without_a_folder_nothing_is_promised(tiny_llama: Path) -> None:
    with pytest.raises(CallbackError, match="without output= nothing is kept"):
        fit(tiny_llama, None, raising_at(taciturn.StepEvent, 1))


def test_an_exit_in_a_callback_waits_for_the_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    def leave(event: Any) -> None:
        if isinstance(event, taciturn.StepEvent):
            raise SystemExit(3)

    with pytest.raises(CallbackError, match="leave raised SystemExit"):
        fit(tiny_llama, tmp_path / "out", leave)
    assert (tmp_path / "out" / "private" / "checkpoints" / "step-00000001").is_dir()


def test_an_evaluation_is_told_of_and_survives_a_failure(tiny_llama: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    model = fit(tiny_llama, tmp_path / "out")
    model.evaluate(rows(), text_field="text", show_private=True, callbacks=[events.append])
    assert [type(event) for event in events] == [taciturn.EndEvent], "exact private figures"
    model.evaluate(rows(), text_field="text", target_epsilon=1, callbacks=[events.append])
    (released,) = [event for event in events if isinstance(event, taciturn.EvaluationEvent)]
    assert (released.basis, released.epsilon) == ("differential privacy", 1)
    with pytest.raises(CallbackError, match="complete and paid for") as error:
        model.evaluate(["a"] * 3, callbacks=[raising_at(taciturn.EvaluationEvent)])
    assert error.value.result.basis == "public"  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", ["print", 3, [3], [taciturn.StepEvent]])
def test_what_is_no_callback_is_refused(wrong: Any, tiny_llama: Path) -> None:
    with pytest.raises(SpecError, match=r"callbacks (is|has)"):
        taciturn.LLM(str(tiny_llama)).fit(rows(), callbacks=wrong, **SETTINGS)


def _fit_in_process(model: str, output: str) -> tuple[str, int]:
    events: list[Any] = []
    try:
        fit(Path(model), Path(output), events.append, raising_at(taciturn.StepEvent, 2))
    except Exception as error:
        return f"{type(error).__name__}: {error}", len(events)
    return "", len(events)


@pytest.mark.thorough
def test_of_two_processes_the_first_is_told_and_both_end(tiny_llama: Path, tmp_path: Path) -> None:
    ends = in_processes(2, _fit_in_process, str(tiny_llama), str(tmp_path / "out"))
    (first, many), (second, none) = (end.result for end in ends)
    assert first.startswith("CallbackError")
    assert second.startswith("ProcessError: process 0 of 2 failed: CallbackError")
    assert many > 0
    assert none == 0
    assert (tmp_path / "out" / "private" / "checkpoints" / "step-00000002").is_dir()
