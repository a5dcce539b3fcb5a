"""A private fit to pairs of answers, from rows to report, and how it is judged and attacked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from taciturn.certificate.keygen import KeyFiles
from taciturn.engine.evaluation.release import ReleasedPreferences
from taciturn.engine.privacy import noise
from taciturn.errors import DataError, SpecError
from taciturn.llm import LLM
from taciturn.local.fit import Observer
from taciturn.planning.plan import TrainingPlan
from taciturn.reports.privacy import PrivacyReport
from taciturn.spec import FitSpec

COLUMNS: dict[str, Any] = {
    "prompt_field": "prompt",
    "chosen_field": "chosen",
    "rejected_field": "rejected",
    "max_tokens": 24,
}
QUICK: dict[str, Any] = {
    "objective": "dpo",
    "beta": 0.2,
    "privacy_unit": "id",
    "target_epsilon": 8,
    "batch_size": 8,
    "steps": 3,
    "method": "lora",
    "r": 2,
    "max_tokens": 24,
}


def rows(first: int = 0, n: int = 24) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"Patient {i} has a cough.",
            "chosen": "Please rest, and drink tea.",
            "rejected": "No idea." if i % 3 else "Go away now, and do not come back.",
            "id": f"p{i // 2}",
        }
        for i in range(first, first + n)
    ]


def test_report_plan_and_card_say_what_was_learned(original: Path) -> None:
    report = PrivacyReport.model_validate_json((original / "privacy_report.json").read_bytes())
    assert report.objective == "preferences between two answers (DPO), beta=0.2"
    assert report.privacy_unit == "id"
    assert report.n_units == 12
    assert report.epsilon == pytest.approx(8, rel=0.01)
    assert report.steps == 3
    for name in ("README.md", "report.html"):
        assert "preferences between two answers" in (original / name).read_text(encoding="utf-8")
    assert json.loads((original / "certificate.json").read_text(encoding="utf-8"))


def test_the_plan_knows_that_a_record_is_two_sequences(tiny_llama: Path) -> None:
    plan = LLM(str(tiny_llama)).plan(n_units=100, **QUICK)
    assert (plan.objective, plan.beta, plan.max_tokens, plan.record_tokens) == ("dpo", 0.2, 24, 48)
    assert plan.worth is None
    assert any("adapters off" in reason for reason in plan.reasons)


def test_pairs_are_judged_against_the_base(folder: Path) -> None:
    found = LLM(str(folder)).evaluate(rows(100, 10), **COLUMNS)
    assert found.preferences is not None
    assert found.preferences.pairs == 10
    assert 0 <= found.preferences.right <= 10
    assert found.base.tokens == found.fitted.tokens > 10
    figures = json.loads((folder / "evaluations.json").read_text(encoding="utf-8"))
    assert figures["evaluations"][0]["preferred"] == found.preferences.accuracy
    assert "ranked as people did" in (folder / "report.html").read_text(encoding="utf-8")


def test_an_ordinary_fit_learns_the_preference(tiny_llama: Path, tmp_path: Path) -> None:
    """Without noise, and judged on other patients: the loss goes where it should."""
    settings = {**QUICK, "target_epsilon": "unlimited", "steps": 20, "learning_rate": 1e-2}
    plans: list[TrainingPlan] = []
    model = LLM(str(tiny_llama)).fit(
        rows(), output=tmp_path / "out", observer=Observer(on_plan=plans.append), **settings
    )
    assert plans[0].beta == 0.2
    found = model.evaluate(rows(200, 20), **COLUMNS)
    assert found.preferences is not None
    assert found.preferences.accuracy >= 0.9
    assert model.privacy is not None
    assert model.privacy.objective is not None
    assert len(model.sample(["Patient 3"], max_new_tokens=3)) == 1


def test_members_are_told_by_scores_of_pairs(folder: Path) -> None:
    found = LLM(str(folder)).membership(rows(), rows(300), show_private=True, **COLUMNS)
    attacks = {(attack.attack, attack.model) for attack in found.attacks}
    assert attacks == {("margin", "fitted"), ("reward", "fitted"), ("margin", "base")}
    assert set(found.scores) == {"member", "margin", "reward"}
    assert found.scores["member"].tolist() == [True] * 12 + [False] * 12


def test_pairs_need_a_fitted_adapter(tiny_llama: Path) -> None:
    with pytest.raises(SpecError, match="adapter has moved its base"):
        LLM(str(tiny_llama)).evaluate(rows(), **COLUMNS)


def test_private_pairs_are_judged_with_noise_and_paid_for(folder: Path, key: KeyFiles) -> None:
    model = LLM(str(folder))
    assert model.privacy is not None
    before = model.privacy.epsilon
    columns = {**COLUMNS, "privacy_unit": "id"}
    plan = model.plan_evaluation(n_units=20, target_epsilon=4, **columns)
    assert plan.preferred_std is not None
    settings = {"target_epsilon": 4, "signing_key": str(key.private), **columns}
    events: list[Any] = []
    result = model.evaluate(rows(100, 40), callbacks=[events.append], **settings)
    figures = dict(events[0].figures)
    assert isinstance(result.preferences, ReleasedPreferences)
    assert result.preferences.accuracy_std == pytest.approx(plan.preferred_std)
    assert 0 <= result.preferences.accuracy <= 1
    assert figures["preferred"] == result.preferences.accuracy
    assert figures["preferred_std"] == result.preferences.accuracy_std
    assert (result.basis, result.epsilon) == ("differential privacy", 4)
    assert LLM(str(folder)).privacy.epsilon > before  # type: ignore[union-attr]
    (figures,) = json.loads((folder / "evaluations.json").read_text("utf-8"))["evaluations"]
    assert (figures["preferred"], figures["preferred_std"]) == (
        result.preferences.accuracy,
        result.preferences.accuracy_std,
    )
    assert "ranked as people did" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wider(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base that is wide enough for an adapter to learn pairs by heart."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("wider") / "base"))
    config = AutoConfig.from_pretrained(folder)
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 32})
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.thorough
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("broken", [True, False])
def test_canaries_of_pairs_tell_a_broken_engine_from_one_that_keeps_its_promise(
    broken: bool, wider: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = noise.add_noise
    if broken:
        monkeypatch.setattr(noise, "add_noise", lambda total, _, *rest: honest(total, 1e-6, *rest))
    settings = {**QUICK, "target_epsilon": 0.3, "batch_size": 50, "steps": 40, "r": 16}
    canaries = {"canaries": 40, "canary_kind": "random", "learning_rate": 0.02}
    model = LLM(str(wider)).fit(rows(), output=tmp_path / "out", **settings, **canaries)
    assert model.privacy is not None
    assert model.privacy.n_units == 52
    result = model.audit()
    assert result.refuted == broken
    assert result.method.startswith("one run, reward of canaries")


def test_exact_figures_of_private_pairs_are_for_their_owner_alone(folder: Path) -> None:
    found = LLM(str(folder)).evaluate(rows(), show_private=True, **COLUMNS)
    assert found.basis == "private, exact: for the owner's eyes only"
    assert not (folder / "evaluations.json").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "full", "r": None}, "method='lora'"),
        ({"sharding": "full"}, "leave sharding out"),
        ({"public_data": ["text"]}, "export that model merged"),
        ({"text_field": "prompt"}, "exclude each other"),
        ({"beta": 0}, "beta"),
        ({"objective": "sft"}, 'objective="dpo"'),
        ({"objective": "ppo"}, "objective"),
    ],
)
def test_what_does_not_go_with_pairs_is_refused_by_name(
    tiny_llama: Path, tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError) as error:
        LLM(str(tiny_llama)).fit(rows(), output=tmp_path / "out", **{**QUICK, **fields})
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_column_that_is_not_there_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    other = [{**row, "better": row["chosen"]} for row in rows()]
    for row in other:
        del row["chosen"]
    with pytest.raises(DataError, match="'chosen'"):
        LLM(str(tiny_llama)).fit(other, output=tmp_path / "out", **QUICK)
    LLM(str(tiny_llama)).fit(other, output=tmp_path / "out", chosen_field="better", **QUICK)


def test_columns_have_the_names_that_everybody_gives_them() -> None:
    spec = FitSpec(objective="dpo", chosen_field="better")
    assert (spec.prompt_field, spec.chosen_field, spec.rejected_field) == (
        "prompt",
        "better",
        "rejected",
    )
    assert FitSpec.model_validate_json(spec.model_dump_json()) == spec
