"""First token of a text, where a model's own files do not settle it.

Records, prompts and texts that are judged begin with the tokenizer's `bos_token`. Most tokenizers
put it there themselves. Chat models may name the token that opens a turn instead, which no plain
text began with when the base was trained: SmolLM2-Instruct has `<|im_start|>`, and its texts began
with `<|endoftext|>`. After a token that it does not expect there, a base predicts worse, and a fit
spends a part of what it may learn on the first tokens.

The choice is made from the base's weights and from text in this file, so it is public. It is kept
as `bos_token` in the tokenizer's configuration, which is saved with a fitted model: whatever is
done with that model begins as its records did.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

_TEXTS = (
    "The patient was admitted to the hospital with a fever and a cough. An X-ray of the chest was "
    "normal.",
    "In the early morning the streets of the old town were still empty, and the first trams had "
    "not yet left the depot.",
    "Water boils at a lower temperature on a mountain than at sea level, because the pressure of "
    "the air is lower there.",
)
_CLEARLY = 0.25
"""Nats per token by which another token must be better: far above what machines round apart."""

_ROLES = ("eos", "pad", "unk", "sep", "cls")
_CONFIG = "tokenizer_config.json"


def choose_start(model: Any, tokenizer: Any) -> bool:
    """Make the token that the base expects the tokenizer's `bos_token`; says whether it changed.

    A tokenizer without one keeps none. One that puts it before texts itself, or whose chat template
    uses it, keeps its own: its authors have said what it is.
    """
    own = tokenizer.bos_token_id
    candidates = _candidates(model, tokenizer)
    if not candidates:
        return False
    texts = tokenizer(list(_TEXTS), add_special_tokens=False)["input_ids"]
    nats = {token: _nats(model, token, texts) for token in (own, *candidates)}
    best = min(candidates, key=nats.__getitem__)
    if not nats[own] - nats[best] > _CLEARLY:
        return False
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(best)
    return True


def saved_start(tokenizer: Any, folder: Path) -> bool:
    """Make what the model in `folder` was fitted with its base tokenizer's `bos_token`.

    Says whether it changed. A folder without a tokenizer's configuration says nothing.
    """
    path = folder / _CONFIG
    if not path.is_file():
        return False
    token = json.loads(path.read_text(encoding="utf-8")).get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token == tokenizer.bos_token or token not in tokenizer.get_vocab():
        return False
    tokenizer.bos_token = token
    return True


def _candidates(model: Any, tokenizer: Any) -> list[int]:
    """Other special tokens that a text could begin with; none where it is settled."""
    own = tokenizer.bos_token_id
    if own is None or "bos_token" in str(getattr(tokenizer, "chat_template", None)):
        return []
    if tokenizer(_TEXTS[0])["input_ids"][:1] == [own]:
        return []
    # It must stay special when it is no longer named.
    special = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    if own not in special:
        return []
    rows = len(model.get_input_embeddings().weight)
    tokens_in_use = {getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}
    return sorted(token for token in special & tokens_in_use - {own} if token < rows)


@torch.no_grad()
def _nats(model: Any, start: int, texts: list[list[int]]) -> float:
    """Mean nats per token of the texts, each after the start token."""
    total, tokens = 0.0, 0
    for text in texts:
        ids_T = torch.tensor([start, *text], device=model.device)
        logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits_TV, ids_T[1:], reduction="sum"))
        tokens += len(text)
    return total / max(1, tokens)
