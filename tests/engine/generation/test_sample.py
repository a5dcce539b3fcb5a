"""Sampling does what the caller asked for, and nothing that a base's files say besides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from taciturn.engine.generation.sample import sample, stream
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.errors import SpecError
from taciturn.spec import PerformanceSpec, SampleSpec

GREEDY = SampleSpec(temperature=0, max_new_tokens=12)


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


def load(folder: Path) -> LoadedModel:
    return load_base(str(folder), PerformanceSpec())


def written(base: LoadedModel, prompt: str, spec: SampleSpec = GREEDY) -> tuple[str, int]:
    (found,) = sample(base.model, base.tokenizer, [prompt], spec, base.context_length)
    pieces = stream(base.model, base.tokenizer, prompt, spec, base.context_length)

    def counted() -> Iterator[str]:
        counts.append((yield from pieces))

    counts: list[int] = []
    assert "".join(counted()) == found.text
    assert counts == [found.tokens]
    return found.text, found.tokens


@pytest.mark.parametrize(
    "defaults",
    [
        {"repetition_penalty": 1.5},
        {"min_length": 10, "no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(3, 3000)), "bad_words_ids": [[9]]},
        {"do_sample": True, "temperature": 0.6, "top_k": 1, "top_p": 0.9},
        {"max_length": 4, "num_beams": 3, "stop_strings": ["a"]},
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_defaults_of_the_base_change_nothing(
    tiny_llama: Path, folder: Path, defaults: dict[str, Any], temperature: float
) -> None:
    spec = SampleSpec(temperature=temperature, max_new_tokens=12, seed=3)
    plain = written(load(tiny_llama), "The patient", spec)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | defaults))
    base = load(folder)
    assert written(base, "The patient", spec) == plain


class _Always(torch.nn.Module):
    """Stands for an output layer: every next token is `token`."""

    def __init__(self, weight: torch.Tensor, token: int) -> None:
        super().__init__()
        self.weight, self.token = torch.nn.Parameter(weight), token

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*x.shape[:-1], len(self.weight))
        logits[..., self.token] = 1
        return logits


def always(base: LoadedModel, token: int) -> LoadedModel:
    model: Any = base.model
    model.lm_head = _Always(model.lm_head.weight.detach(), token)
    return base


def test_a_text_ends_at_every_end_that_tokenizer_and_base_know(folder: Path) -> None:
    """Records end with the tokenizer's; a chat model was taught the others."""
    for name, ends in (("config.json", 5), ("generation_config.json", [6, 7, 9999])):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ends}))
    base = load(folder)
    own = base.tokenizer.eos_token_id
    for token in (own, 5, 6, 7):
        assert written(always(base, token), "The patient")[1] == 1, token
    assert written(always(base, 8), "The patient")[1] == GREEDY.max_new_tokens


def test_a_tokenizer_without_special_tokens(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(names)))
    base = load(folder)
    assert base.tokenizer.pad_token_id is None
    rows = sample(base.model, base.tokenizer, ["", "The patient"], GREEDY, base.context_length)
    assert [row.prompt for row in rows] == ["", "The patient"]


def test_a_prompt_is_cut_to_the_room_that_is_left(folder: Path) -> None:
    base = load(folder)
    long = "The patient has a cough. " * 60
    spec = GREEDY.model_copy(update={"max_new_tokens": base.context_length - 2})
    assert written(base, long, spec)[1] <= spec.max_new_tokens
    spec = GREEDY.model_copy(update={"max_new_tokens": base.context_length - 1})
    with pytest.raises(SpecError, match="no room for a prompt in the model's context of 160"):
        written(base, long, spec)


def test_a_prompt_that_begins_as_records_do_gets_no_second_first_token(folder: Path) -> None:
    base = load(folder)
    assert written(base, f"{base.tokenizer.bos_token}The patient") == written(base, "The patient")
