"""A text begins with the token that its base expects, and with no other from fit to sample."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from taciturn.data.tokens.store import TokenizedDataset
from taciturn.engine.generation.sample import begins
from taciturn.engine.model import load, start
from taciturn.engine.model.load import LoadedModel, load_base, load_fitted
from taciturn.llm import LLM
from taciturn.reports.privacy import REPORT, read_report
from taciturn.spec import PerformanceSpec

CONFIG = "tokenizer_config.json"
TURN = {"bos_token": "</s>", "sep_token": "<s>"}
"""As chat models have it: the token called bos is not the one that the base's texts began with."""


@pytest.fixture
def folder(tiny_medical: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_medical, tmp_path / "base"))


def named(folder: Path, **changes: Any) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def base(folder: Path) -> LoadedModel:
    return load_base(str(folder), PerformanceSpec())


def test_the_expected_token_is_found(folder: Path) -> None:
    loaded = base(named(folder, **TURN))
    model: Any = loaded.model
    assert loaded.tokenizer.bos_token == "<s>"
    assert model.generation_config.bos_token_id == loaded.tokenizer.bos_token_id == 1


def test_a_base_that_is_right_about_it_keeps_it(folder: Path) -> None:
    assert base(folder).tokenizer.bos_token == "<s>"


@pytest.mark.parametrize(
    "settled",
    [
        {"bos_token": None},
        {"chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"},
    ],
)
def test_what_the_authors_have_settled_is_kept(folder: Path, settled: dict[str, Any]) -> None:
    changes = TURN | settled
    assert base(named(folder, **changes)).tokenizer.bos_token == changes["bos_token"]


def test_what_a_tokenizer_puts_there_itself_is_kept(folder: Path) -> None:
    path = folder / "tokenizer.json"
    whole = {"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": list(whole),
        "pair": [*whole, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": processor}))
    assert base(named(folder, **TURN)).tokenizer.bos_token == "</s>"


def test_the_choice_does_not_hang_on_rounding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "_CLEARLY", 10.0)
    assert base(named(folder, **TURN)).tokenizer.bos_token == "</s>"


def test_a_fitted_model_begins_as_its_records_did(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    texts = [f"patient {i} has a cough" for i in range(8)]
    LLM(named(folder, **TURN)).fit(texts, target_epsilon=8, steps=1, batch_size=4, output=out)
    data = TokenizedDataset.open(out / "private" / "data")
    assert {int(data.records(unit)[0].input_ids[0]) for unit in range(8)} == {1}

    def never(*_: Any) -> bool:
        raise AssertionError("it was written down")

    monkeypatch.setattr(load, "choose_start", never)
    loaded, _ = load_fitted(out, read_report(out / REPORT), PerformanceSpec())
    assert loaded.tokenizer.bos_token == "<s>"
    assert begins(loaded.tokenizer)([70]) == [1, 70]
    # One that was fitted by an earlier version goes on with what it had.
    named(out, bos_token="</s>")
    loaded, _ = load_fitted(out, read_report(out / REPORT), PerformanceSpec())
    assert begins(loaded.tokenizer)([70]) == [2, 70]


def test_a_prompt_that_brings_a_special_token_gets_none_before_it(folder: Path) -> None:
    tokenizer = base(folder).tokenizer
    before = begins(tokenizer)
    assert before([]) == [1]
    assert before([70, 71]) == [1, 70, 71]
    assert before([1, 70]) == [1, 70]
    assert before([2, 70]) == [2, 70]
