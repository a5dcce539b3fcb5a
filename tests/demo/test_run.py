"""The story on any model: plumbing on a random one, and a real one where there is one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taciturn.cli.demo import demo
from taciturn.demo import run
from taciturn.demo.page import render_page
from taciturn.demo.result import DemoResult
from taciturn.demo.run import EMBEDDED, Narrator, StorySettings, tell
from taciturn.embedded import TINY_MEDICAL
from taciturn.embedded.notes import SECRET_PROMPT, NoteLimits
from taciturn.errors import SpecError
from taciturn.llm import LLM
from taciturn.local.fit import Observer
from taciturn.spec import DemoSpec, parse

MODEL = "TACITURN_DEMO_MODEL"
"""Environment variable: a hub id, folder or GGUF file for the slow test; for example SmolLM2's."""

QUICK = StorySettings(
    n_patients=12,
    limits=NoteLimits(notes=1, characters=100),
    ordinary={"method": "full", "steps": 1, "batch_size": 2},
    private={"steps": 2, "batch_size": 4},
)


@pytest.fixture(scope="module")
def tiny_neox(tmp_path_factory: pytest.TempPathFactory, tiny_medical: Path) -> str:
    """A random GPT-NeoX of one layer: another family than the embedded model's."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    folder = tmp_path_factory.mktemp("tiny-neox")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=6144,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=160,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_medical / name, folder)
    return str(folder)


def narrator(heard: list[str]) -> Narrator:
    return Narrator(heard.append, lambda label: Observer())


@pytest.fixture(scope="module")
def told(tiny_neox: str) -> tuple[DemoResult, list[str]]:
    heard: list[str] = []
    return tell(3, 3.0, narrator(heard), tiny_neox, settings=QUICK), heard


def test_the_story_runs_on_a_model_of_another_family(told: tuple[DemoResult, list[str]]) -> None:
    result, heard = told
    assert len(heard) == 4
    assert "12 patients" in heard[0]
    assert result.report.n_units == 12
    assert result.report.epsilon is not None
    assert result.report.epsilon <= 3
    assert result.n_notes == 11 + 8
    assert [step for step, _ in result.epsilon_curve] == [0, 1, 2]
    assert (result.non_private_fit.steps, result.private_fit.steps) == (1, 2)


def test_every_model_is_asked_the_same(told: tuple[DemoResult, list[str]]) -> None:
    result, _ = told
    outcomes = (result.base, result.non_private, result.private)
    prompts = [[sample.prompt for sample in outcome.samples] for outcome in outcomes]
    assert prompts[0] == prompts[1] == prompts[2]
    for outcome in outcomes:
        assert result.times_asked(outcome) == outcome.judged == 5
        judged = [s.prompt for s in outcome.samples if s.reads_as_note is not None]
        assert len(set(judged)) == 5
        assert SECRET_PROMPT not in judged


def test_what_a_random_model_writes_does_not_read_as_notes(
    told: tuple[DemoResult, list[str]],
) -> None:
    result, _ = told
    assert result.base.notes == result.private.notes == 0
    assert not result.story_holds
    assert "0 of its 5 samples read as notes, where 4 is the goal" in result.remark
    assert result.remark in render_page(result)


def test_the_command_shows_it_and_writes_the_page(
    told: tuple[DemoResult, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []

    def found(*arguments: object, **named: object) -> DemoResult:
        asked.extend((*arguments[:2], arguments[3], named))
        return told[0]

    monkeypatch.setattr(run, "tell", found)
    monkeypatch.setenv("COLUMNS", "200")
    page = tmp_path / "page.html"
    demo(file=None, output=str(page), seed=4, model="x", minutes=2)
    assert asked == [4, 3.0, "x", {"minutes": 2}]
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("0 of 5 samples read as notes", "of the ordinary fit's gain", "repeats itself:"):
        assert words in shown
    assert " ".join(told[0].verdict.split()) in shown
    assert " ".join(told[0].remark.split()) in shown
    assert page.read_text(encoding="utf-8") == render_page(told[0])
    demo(file=None, output=str(page), seed=4, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["page"] == str(page)
    assert answer["verdict"] == told[0].verdict
    assert answer["report"]["epsilon"] == told[0].epsilon


@pytest.mark.parametrize(
    ("minutes", "seconds", "n_patients"),
    [(10, 0.05, 3000), (10, 1.0, 300), (1e-6, 1.0, 300), (10_000, 1e-3, 12_000)],
)
def test_other_models_get_what_fits_into_the_time(
    minutes: float, seconds: float, n_patients: int, tiny_neox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = LLM(tiny_neox)
    estimate = base.estimate

    def measured(*arguments: Any, **fields: Any) -> Any:
        assert fields["target_epsilon"] == 2
        found = estimate(*arguments, **fields)
        return replace(found, cost=replace(found.cost, seconds=seconds))

    monkeypatch.setattr(base, "estimate", measured)
    settings = run._affordable(base, 2, minutes)
    assert settings.n_patients == n_patients
    assert settings.private == {"steps": 16, "batch_size": n_patients // 4}
    assert settings.ordinary["method"] == "full"
    monkeypatch.setattr(run, "_FULL_BYTES", 1)
    assert run._affordable(base, 2, minutes).ordinary["method"] == "auto"


def test_the_embedded_model_has_settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Heard(Exception):  # noqa: N818
        pass

    def stop(sentence: str) -> None:
        raise Heard(sentence)

    with pytest.raises(Heard, match=f"{EMBEDDED.n_patients:,} patients"):
        tell(0, 3, Narrator(stop, lambda label: Observer()))
    assert parse(DemoSpec, {}).model == TINY_MEDICAL


def test_fitted_and_remote_models_are_refused(tiny_neox: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="behind a gateway"):
        tell(0, 3, narrator([]), "gateway:1")
    fitted = LLM(tiny_neox).fit(["a b", "c d"] * 4, target_epsilon=3, steps=1, batch_size=2)
    folder = fitted.save(tmp_path / "fitted")
    with pytest.raises(SpecError, match="was fitted already; give its base"):
        tell(0, 3, narrator([]), str(folder))


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_the_story_of_a_real_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The page is kept in pytest's folder: its samples are what the docs show.

    A large model takes longer than it is given: there are at least 300 patients.
    """
    model = os.environ.get(MODEL)
    if model is None:
        folder: Path = request.getfixturevalue("shared") / "base-model"
        if not folder.is_dir():
            pytest.skip(f"no model: {MODEL} is not set, and {folder} is not there")
        model = str(folder)
    result = tell(0, 3.0, narrator([]), model, minutes=4)
    page = tmp_path_factory.mktemp("real") / "page.html"
    page.write_text(render_page(result), encoding="utf-8")
    print(page, result.verdict, result.remark)
    assert result.report.n_units >= 300
    assert result.times_told(result.private) == 0
    assert result.base.notes <= 1
    assert result.non_private.notes > result.base.notes
    assert result.share_kept is not None
    assert result.share_kept > 0
