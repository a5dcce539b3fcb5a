"""Log-probabilities of the tokens of a text, as a model gives them.

Each text is read by itself, without padding and without a neighbour, so that its figures are the
same bit for bit whatever else is asked for in the same request. They are those of the model's own
distribution, in float32: temperature and top_p of a sample have no part in them.

Figures are functions of the model and of a text that its asker wrote or was told. Of a model with
a guarantee they are post-processing: they tell no more of any unit than the model's files do.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taciturn.data.tokens.plain import special_tokens

LOWEST = -9999.0
"""Stands for minus infinity, which JSON has no number for; OpenAI's API has the same."""

_AT_ONCE = 256  # positions whose figures are made at a time: float32 of all would fill a memory
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token's place and probability.

    Attributes:
        text: all of them, joined, are the text; a special token has its name, which is not in it.
        special: it ends a text or has another meaning, and is not in the text.
        log_probability: natural logarithm, after all tokens before it; None after none.
        likeliest: the tokens that were likeliest here, and their log-probabilities.
    """

    text: str
    special: bool
    log_probability: float | None
    likeliest: tuple[tuple[str, float], ...] = ()


@torch.no_grad()
def score(
    model: Any,
    tokenizer: Any,
    lead: Sequence[int],
    prompt: Sequence[int],
    continuation: Sequence[int] = (),
    n_likeliest: int = 0,
) -> tuple[list[ScoredToken], list[ScoredToken]]:
    """Score the tokens of a prompt and of what was written after it.

    Args:
        lead: tokens before the prompt's own, which are not scored.
    """
    figures = list(_figures(model, [*lead, *prompt, *continuation], n_likeliest))[len(lead) :]
    # Apart, as the texts are: some tokenizers write a token otherwise where a text begins.
    texts = [*texts_of(tokenizer, prompt), *texts_of(tokenizer, continuation)]
    tokens = [
        ScoredToken(
            text,
            special,
            log_p,
            tuple((_alone(tokenizer, token), value) for token, value in top),
        )
        for (text, special), (log_p, top) in zip(texts, figures, strict=True)
    ]
    return tokens[: len(prompt)], tokens[len(prompt) :]


def texts_of(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, bool]]:
    """Text of each token, and whether it is a special one; a character of several tokens is the
    last one's."""
    special = {number: name for name, number in special_tokens(tokenizer).items()}
    texts: list[tuple[str, bool]] = []
    # Tokens from `first` on are decoded together, for some are written otherwise at a beginning;
    # those before `n_read` were read.
    first = n_read = 0
    for index, token in enumerate(ids):
        if token in special:
            texts.append((special[token], True))
            first = n_read = index + 1
            continue
        whole = _decoded(tokenizer, ids[first : index + 1])
        ends = index + 1 == len(ids) or ids[index + 1] in special
        if whole.endswith(_INCOMPLETE) and not ends:
            texts.append(("", False))
            continue
        texts.append((whole[len(_decoded(tokenizer, ids[first:n_read])) :], False))
        first, n_read = n_read, index + 1
    return texts


def _figures(
    model: Any, row: list[int], n_likeliest: int
) -> Iterator[tuple[float | None, list[tuple[int, float]]]]:
    if not row:
        return
    yield None, []
    if len(row) == 1:
        return
    logits_TV = model(
        input_ids=torch.tensor([row[:-1]], device=model.device), use_cache=False
    ).logits[0]
    for start in range(0, len(logits_TV), _AT_ONCE):
        log_p_TV = logits_TV[start : start + _AT_ONCE].float().log_softmax(-1)
        next_T = torch.tensor(row[start + 1 : start + 1 + len(log_p_TV)], device=log_p_TV.device)
        own = log_p_TV.gather(1, next_T[:, None])[:, 0].tolist()
        values, tokens = log_p_TV.topk(n_likeliest)
        tops = zip(tokens.tolist(), values.tolist(), strict=True)
        for log_p, (top_tokens, top_values) in zip(own, tops, strict=True):
            top = zip(top_tokens, map(_finite, top_values), strict=True)
            yield _finite(log_p), list(top)


def _finite(log_probability: float) -> float:
    # A model that has diverged has figures that are no numbers.
    return log_probability if log_probability >= LOWEST else LOWEST


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def _alone(tokenizer: Any, token: int) -> str:
    (text, _), *_ = texts_of(tokenizer, [token])
    return text
