"""Who may be given packed rows, what a fit says where it may not, and that both learn the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from taciturn import worker
from taciturn.engine.data import batch as batches
from taciturn.engine.model.packed import apart_in_rows
from taciturn.llm import LLM
from taciturn.planning.plan import TrainingPlan
from tinymodels import build

pytestmark = pytest.mark.filterwarnings("ignore")
NOTES = pd.DataFrame(
    {"text": [f"Note {i}: " + "the patient has a cough. " * (i % 5) for i in range(48)]}
)


@pytest.mark.parametrize(("name", "packs"), [("llama", True), ("bloom", False), ("opt", False)])
def test_tried_on_public_tokens(name: str, packs: bool) -> None:
    assert apart_in_rows(build(name)) == packs


def test_a_model_that_takes_no_positions_is_padded() -> None:
    model: Any = build("llama")
    forward = model.forward
    model.forward = lambda input_ids, use_cache: forward(input_ids=input_ids, use_cache=use_cache)
    assert not apart_in_rows(model)


def test_a_model_whose_longest_row_decides_is_padded() -> None:
    model: Any = build("llama")
    model.model.rotary_emb.rope_type = "dynamic"
    assert not apart_in_rows(model)


def fitted(base: Path, output: Path, packed: bool, epsilon: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = LLM(str(base))
    settings: dict[str, Any] = {"method": "lora", "r": 2, "batch_size": 24, "steps": 2}
    model.fit(
        NOTES,
        text_field="text",
        output=output,
        target_epsilon=epsilon,
        packed_rows=packed,
        **settings,
    )
    weights = model._here("sample")._fitted.state_dict()
    return {name: value for name, value in weights.items() if "lora_" in name}


def test_an_ordinary_fit_learns_the_same(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[bool] = []
    real = batches._parts

    def noting(*arguments: Any) -> Any:
        parts = real(*arguments)
        packed.extend(part.packing is not None for part in parts)
        return parts

    monkeypatch.setattr(batches, "_parts", noting)
    one = fitted(tiny_llama, tmp_path / "packed", True, "unlimited")
    assert any(packed)
    other = fitted(tiny_llama, tmp_path / "padded", False, "unlimited")
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, rtol=1e-3, atol=1e-5)


def test_a_private_fit_packs(tiny_llama: Path, tmp_path: Path) -> None:
    assert fitted(tiny_llama, tmp_path / "out", True, 4)


def test_fit_says_where_rows_stay_padded(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taciturn.engine.training.trainable.apart_in_rows", lambda model: False)
    said: list[TrainingPlan] = []
    real = worker.fit

    def listening(*arguments: Any, **settings: Any) -> Any:
        settings["observer"] = worker.Observer(on_plan=said.append)
        return real(*arguments, **settings)

    monkeypatch.setattr("taciturn.local.fit", listening)
    fitted(tiny_llama, tmp_path / "out", True, 4)
    assert any(reason.startswith("rows: padded") for reason in said[0].reasons)
