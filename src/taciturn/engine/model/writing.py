"""How a model writes: by what is asked for, and by nothing else that its files bring."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig

from taciturn.errors import SpecError


def generate(
    model: Any, inputs: dict[str, Tensor], config: GenerationConfig, streamer: Any = None
) -> Tensor:
    """Prompt and continuation of each row, as `config` alone says; token ids [B, T].

    The library fills what a configuration leaves open from the model's own: a base's penalty for
    repetition would change what is called greedy. So a copy writes, which shares weights and has no
    such defaults; the model itself is as it was, whoever else uses it meanwhile.
    """
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    writer = copy.copy(whole)
    writer.generation_config = GenerationConfig()
    found: Tensor = writer.generate(**inputs, generation_config=config, streamer=streamer)
    return found


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids at which a text ends: what records end with, and what the base was taught to end with."""
    rows = len(model.get_input_embeddings().weight)
    ids = {
        token
        for source in (tokenizer, model.config.get_text_config(), model.generation_config)
        for token in tokens_below(rows, getattr(source, "eos_token_id", None))
    }
    return sorted(ids)


def check_tokens(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Raise SpecError if a prompt has a token without an embedding, as of another modality."""
    size = len(model.get_input_embeddings().weight)
    highest = max((token for row in rows for token in row), default=0)
    if highest >= size:
        raise SpecError(
            f"a prompt has a special token with id {highest}, and the model has embeddings for "
            f"ids below {size}; leave that token out"
        )


def tokens_below(rows: int, token: int | Sequence[int] | None) -> list[int]:
    """A configuration's token or tokens, without those that the model has no embedding for."""
    tokens = [] if token is None else [token] if isinstance(token, int) else list(token)
    return [each for each in tokens if 0 <= each < rows]
