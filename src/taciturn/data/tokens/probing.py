"""Checks of what a tokenizer and its chat template must do, tried on public texts before a row is
read.

A fit that stops at a row says something about that row. So whatever can be known without rows is
found out here: with invented text of every kind of character, and conversations of several shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taciturn.data.rows import attempted
from taciturn.data.schema_fields import Fields
from taciturn.data.tokens.chat import check_template, encode_messages
from taciturn.data.tokens.deadline import within
from taciturn.data.tokens.plain import plain_tokens, special_tokens
from taciturn.errors import ModelError, RowError, TaciturnError

_LIMIT_S = 120.0  # for all of it: it takes milliseconds
_SURROGATES = range(0xD800, 0xE000)
_MOST_SPECIAL = 100  # some tokenizers have thousands
_STEP = 32  # every script has a block of its own, of which this finds a few characters


def check_tokenizer(tokenizer: Any, fields: Fields, vocabulary: int | None = None) -> None:
    """Raise ModelError unless the tokenizer can read whatever rows may hold, of this kind.

    Args:
        vocabulary: number of token ids that the model knows; None if that is not known.
    """
    _in_time(lambda: _check_texts(tokenizer, vocabulary))
    if fields.kind in ("messages", "chat pairs"):
        check_template(tokenizer, fields.columns[0])
        _in_time(lambda: _check_chats(tokenizer, fields.columns[0], vocabulary))


def _in_time(check: Callable[[], None]) -> None:
    try:
        within(_LIMIT_S, check)
    except TimeoutError:
        raise ModelError(
            f"the model's tokenizer or chat template has not read a few short public texts in "
            f"{_LIMIT_S:g} s; repair it, or take another base model"
        ) from None


def public_texts() -> list[str]:
    """Text of every kind: all bytes' characters, some of each script, blanks, nothing."""
    low = [chr(code) for code in range(256)]
    sampled = [chr(code) for code in range(256, 0x110000, _STEP) if code not in _SURROGATES]
    scripts = ["".join(sampled[start : start + 64]) for start in range(0, len(sampled), 64)]
    return [
        *low,
        *scripts,
        "",
        " ",
        "\n\n\t  \r\n",
        "word " * 50,
        "a" * 500,
        "The patient, 47, has a cough.",
        "e\u0301 \u200d \ufeff \ufffd \U0001f469\u200d\u2695\ufe0f",
    ]


def _check_ids(ids: Sequence[int], vocabulary: int | None) -> None:
    highest = max(ids, default=0)
    if vocabulary is not None and highest >= vocabulary:
        raise ModelError(
            f"the tokenizer, or its chat template, writes token {highest}, and the model has "
            f"embeddings for {vocabulary}; call model.resize_token_embeddings(len(tokenizer)), or "
            "take the tokenizer that came with the model"
        )


def _check_texts(tokenizer: Any, vocabulary: int | None) -> None:
    special = special_tokens(tokenizer)
    texts = [*public_texts(), *(f"a{token}b" for token in sorted(special)[:_MOST_SPECIAL])]
    together = attempted(lambda: plain_tokens(tokenizer, texts, special))
    alone = [_encoded(tokenizer, text, special) for text in texts]
    if together != alone:
        raise ModelError(
            "the model's tokenizer reads a text otherwise when it reads others with it; save it "
            "without padding and truncation"
        )
    _check_ids([token for ids in alone for token in ids], vocabulary)


def _encoded(tokenizer: Any, text: str, special: Mapping[str, int]) -> list[int]:
    tokens = attempted(lambda: plain_tokens(tokenizer, [text], special)[0])
    if tokens is None:
        raise ModelError(
            f"the model's tokenizer fails on text such as {text[:20]!r}; give it an unknown token "
            "(unk_token), or take another base model"
        )
    return tokens


_USER = {"role": "user", "content": "What helps?"}
_ASSISTANT = {"role": "assistant", "content": "Rest, and tea."}
_SYSTEM = {"role": "system", "content": "Be brief."}
_SHAPES: tuple[list[dict[str, str]], ...] = (
    [_USER, _ASSISTANT],
    [_USER, _ASSISTANT, _USER, _ASSISTANT],
    [_SYSTEM, _USER, _ASSISTANT],
    [_SYSTEM, _USER, _ASSISTANT, _USER, _ASSISTANT, _USER],
    [_USER, _ASSISTANT, _USER],
)


def _check_chats(tokenizer: Any, column: str, vocabulary: int | None) -> None:
    """The first shape must be read; a template may refuse others, and must not rewrite them."""
    for index, shape in enumerate(_SHAPES):
        error = _rendering_error(tokenizer, shape)
        if error is None:
            _check_chat(tokenizer, shape, column, vocabulary)
        elif index == 0:
            raise ModelError(
                "the model's chat template does not render a question of the user and an answer of "
                f"the assistant ({error}); repair it, or take another base model"
            )


def _rendering_error(tokenizer: Any, shape: list[dict[str, str]]) -> str | None:
    """Reason that the template does not render a conversation; None if it does."""
    try:
        tokenizer.apply_chat_template(shape, tokenize=False)
    except Exception as error:  # no row has a part in it
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _check_chat(
    tokenizer: Any, shape: list[dict[str, str]], column: str, vocabulary: int | None
) -> None:
    try:
        ((ids, mask),) = encode_messages([json.dumps(shape)], column, tokenizer)
    except RowError as error:
        reason = str(error)
    except TaciturnError:
        raise
    else:
        _check_ids(ids, vocabulary)
        if len(ids) == len(mask) and any(mask):
            return
        reason = "it marks no token as the assistant's"
    raise ModelError(f"the model's chat template cannot be used on public conversations: {reason}")
