"""Text to token ids, with a mark on every token that is to be predicted.

Three formats, written here and nowhere else:

- text: `[bos] text [eos]`; every token after the first is a target.
- question and answer: `[bos] question "\\n" answer [eos]`; the tokens of the answer and eos are
  targets. Prompt and answer are tokenised apart, as they are when the model is asked.
- messages: the tokenizer's own chat template (`chat.py`); what the assistant says is a target.

bos and eos stand only where the tokenizer has them. A record is cut at `max_tokens`, eos first. The
first token is never a target: nothing precedes it. A record left without targets is kept and
contributes zero: to drop it would make the number of records depend on private text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from taciturn.engine.data.chat import ChatTokenizer, encode_messages
from taciturn.engine.data.fields import Fields
from taciturn.errors import RowError

Encoded: TypeAlias = tuple[list[int], bytes]
"""Token ids, and for each of them 1 if it is a target, else 0."""

_CHARACTERS_PER_CALL = 1 << 20


class Tokenizer(ChatTokenizer, Protocol):
    """What is needed of a tokenizer; Hugging Face's fast tokenizers have it."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that opens a text, if there is one."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that closes a text, if there is one."""


def encode_batch(
    batch: pa.RecordBatch, fields: Fields, tokenizer: Tokenizer, max_tokens: int
) -> Iterator[list[Encoded]]:
    """Encode the first `len(fields.columns)` columns of a batch, some rows at a time.

    Raises RowError if a row cannot be encoded.
    """
    parts = [_strings(batch.column(i), name) for i, name in enumerate(fields.columns)]
    encode = _ENCODERS[fields.kind]
    for start, stop in _chunks(parts):
        chunk = [part[start:stop] for part in parts]
        yield encode(chunk, fields, tokenizer, max_tokens)


def _strings(column: pa.Array, name: str) -> list[str]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        pass
    raise RowError(f"column {name!r} holds text that is not UTF-8; convert it first")


def _chunks(parts: Sequence[Sequence[str]]) -> Iterator[tuple[int, int]]:
    """Row ranges of about a million characters, or of one row."""
    start = size = 0
    for row, texts in enumerate(zip(*parts, strict=True)):
        length = sum(map(len, texts))
        if size and size + length > _CHARACTERS_PER_CALL:
            yield start, row
            start, size = row, 0
        size += length
    yield start, len(parts[0])


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids without special tokens.

    verbose=False: a warning about a text longer than the model's context would state its length.
    """
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    return list(found)


def _present(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _cut(ids: list[int], first_target: int, max_tokens: int) -> Encoded:
    """Cut to `max_tokens`; everything from `first_target` on is a target, the first token never."""
    ids = ids[:max_tokens] or [0]  # a tokenizer may find nothing in a text; zero targets, then
    context = min(max(1, first_target), len(ids))
    return ids, b"\0" * context + b"\1" * (len(ids) - context)


def _encode_text(
    parts: list[list[str]], fields: Fields, tokenizer: Tokenizer, max_tokens: int
) -> list[Encoded]:
    bos, eos = _present(tokenizer.bos_token_id), _present(tokenizer.eos_token_id)
    texts = _tokens(tokenizer, parts[0])
    return [_cut([*bos, *ids, *eos], 1, max_tokens) for ids in texts]


def _encode_answer(
    parts: list[list[str]], fields: Fields, tokenizer: Tokenizer, max_tokens: int
) -> list[Encoded]:
    bos, eos = _present(tokenizer.bos_token_id), _present(tokenizer.eos_token_id)
    prompts = _tokens(tokenizer, [question + "\n" for question in parts[0]])
    answers = _tokens(tokenizer, parts[1])
    return [
        _cut([*bos, *prompt, *answer, *eos], len(bos) + len(prompt), max_tokens)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _encode_messages(
    parts: list[list[str]], fields: Fields, tokenizer: Tokenizer, max_tokens: int
) -> list[Encoded]:
    found = encode_messages(parts[0], fields.columns[0], tokenizer)
    return [_masked(ids, mask, max_tokens) for ids, mask in found]


def _masked(ids: list[int], mask: bytes, max_tokens: int) -> Encoded:
    kept = ids[:max_tokens] or [0]
    return kept, (b"\0" + mask[1 : len(kept)]).ljust(len(kept), b"\0")


_Encoder: TypeAlias = Callable[[list[list[str]], Fields, Any, int], list[Encoded]]
_ENCODERS: dict[str, _Encoder] = {
    "text": _encode_text,
    "answer": _encode_answer,
    "messages": _encode_messages,
}
