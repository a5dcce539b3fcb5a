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
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from taciturn.engine.data.chat import ChatTokenizer, encode_messages
from taciturn.errors import RowError
from taciturn.preparation.fields import Fields
from taciturn.preparation.rows import Skipped

_CHARACTERS_PER_CALL = 1 << 20


@dataclass(frozen=True, slots=True)
class EncodedRecords:
    """R records of T tokens in all, one after the other.

    Attributes:
        input_ids: int32 [T].
        targets: bool [T], True where the token is to be predicted.
        lengths: int64 [R], at least 1 each, T in sum.
    """

    input_ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    lengths: NDArray[np.int64]


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
) -> Iterator[EncodedRecords]:
    """Encode the first `len(fields.columns)` columns of a batch, some rows at a time.

    Raises RowError if a row cannot be encoded.
    """
    parts = [_strings(batch.column(i), name) for i, name in enumerate(fields.columns)]
    encode = _ENCODERS[fields.kind]
    for start, stop in _chunks(parts):
        chunk = [part[start:stop] for part in parts]
        yield _cut(encode(chunk, fields, tokenizer), max_tokens)


def encode_what_can_be(
    batch: pa.RecordBatch, fields: Fields, tokenizer: Tokenizer, max_tokens: int, skipped: Skipped
) -> Iterator[EncodedRecords]:
    """The same; a row that cannot be encoded becomes one token that is no target, and is counted.

    So it contributes zero. Which rows those are depends on each row alone.
    """
    if not batch.num_rows:
        return
    found = None
    with suppress(RowError):
        found = list(encode_batch(batch, fields, tokenizer, max_tokens))
    if found is not None:
        yield from found
    elif batch.num_rows == 1:
        skipped.rows += 1
        ids, targets = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.bool_)
        yield EncodedRecords(ids, targets, np.ones(1, dtype=np.int64))
    else:
        half = batch.num_rows // 2
        for part in (batch.slice(0, half), batch.slice(half)):
            yield from encode_what_can_be(part, fields, tokenizer, max_tokens, skipped)


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
    return cast(list[list[int]], found)


def _present(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _encode_text(parts: list[list[str]], fields: Fields, tokenizer: Tokenizer) -> _Uncut:
    bos, eos = _present(tokenizer.bos_token_id), _present(tokenizer.eos_token_id)
    texts = _tokens(tokenizer, parts[0])
    around = len(bos) + len(eos)
    lengths = np.fromiter((len(ids) + around for ids in texts), np.int64, len(texts))
    pieces = (piece for ids in texts for piece in (bos, ids, eos))
    ids = np.fromiter(chain.from_iterable(pieces), np.int32, int(lengths.sum()))
    return ids, np.ones(len(ids), dtype=np.bool_), lengths


def _encode_answer(parts: list[list[str]], fields: Fields, tokenizer: Tokenizer) -> _Uncut:
    bos, eos = _present(tokenizer.bos_token_id), _present(tokenizer.eos_token_id)
    prompts = _tokens(tokenizer, [question + "\n" for question in parts[0]])
    answers = _tokens(tokenizer, parts[1])
    context = np.fromiter((len(bos) + len(ids) for ids in prompts), np.int64, len(prompts))
    rest = np.fromiter((len(ids) + len(eos) for ids in answers), np.int64, len(answers))
    pairs = zip(prompts, answers, strict=True)
    pieces = (piece for prompt, answer in pairs for piece in (bos, prompt, answer, eos))
    lengths = context + rest
    ids = np.fromiter(chain.from_iterable(pieces), np.int32, int(lengths.sum()))
    return ids, _positions(lengths) >= np.repeat(context, lengths), lengths


def _encode_messages(parts: list[list[str]], fields: Fields, tokenizer: Tokenizer) -> _Uncut:
    found = encode_messages(parts[0], fields.columns[0], tokenizer)
    lengths = np.fromiter((len(ids) for ids, _ in found), np.int64, len(found))
    ids = np.fromiter(chain.from_iterable(ids for ids, _ in found), np.int32, int(lengths.sum()))
    masks = np.frombuffer(b"".join(mask for _, mask in found), np.uint8)
    return ids, masks.astype(np.bool_), lengths


def _positions(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each token's position within its record."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def _cut(uncut: _Uncut, max_tokens: int) -> EncodedRecords:
    """Cut every record to `max_tokens`; its first token is no target."""
    ids, targets, lengths = _without_gaps(*uncut)
    positions = _positions(lengths)
    kept = positions < max_tokens
    return EncodedRecords(
        ids[kept], (targets & (positions > 0))[kept], np.minimum(lengths, max_tokens)
    )


def _without_gaps(
    ids: NDArray[np.int32], targets: NDArray[np.bool_], lengths: NDArray[np.int64]
) -> _Uncut:
    """A tokenizer may find no token in a text: such a record gets token 0, which is no target."""
    empty = np.flatnonzero(lengths == 0)
    if not len(empty):
        return ids, targets, lengths
    starts = (np.cumsum(lengths) - lengths)[empty]
    return np.insert(ids, starts, 0), np.insert(targets, starts, False), np.maximum(lengths, 1)


_Uncut: TypeAlias = tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]
_Encoder: TypeAlias = Callable[[list[list[str]], Fields, Any], _Uncut]
_ENCODERS: dict[str, _Encoder] = {
    "text": _encode_text,
    "answer": _encode_answer,
    "messages": _encode_messages,
}
