"""Text to token ids, with a mark on every token that is to be predicted.

Four formats, written here and nowhere else:

- text: `[bos] text [eos]`; every token after the first is a target.
- question and answer: `[bos] question "\\n" answer [eos]`; the tokens of the answer and eos are
  targets. Prompt and answer are tokenised apart, as they are when the model is asked.
- messages: the tokenizer's own chat template (`chat.py`); what the assistant says is a target.
- pairs: `[bos] prompt answer [eos]`, or the template, of a chosen and of a rejected answer, which
  make one record of twice the tokens (`pairs.py`).

bos and eos stand only where the tokenizer has them; bos is the token that the base expects
(`model/start.py`). A record is cut at `max_tokens`, eos first. The first token is never a target:
nothing precedes it. A record left without targets is kept and contributes zero: to drop it would
make the number of records depend on private text.

No text becomes a special token (`plain.py`). Of a text only as many characters are read as
`max_tokens` tokens can stand for (`most_characters`), so that no row takes more memory or time than
a public number says.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from taciturn.data.rows import Skipped, attempted, parts, shield
from taciturn.data.schema_fields import Fields
from taciturn.data.tokens.chat import ChatTokenizer, encode_messages
from taciturn.data.tokens.deadline import within
from taciturn.data.tokens.pairs import chat_pairs, text_pair
from taciturn.data.tokens.plain import plain_tokens
from taciturn.errors import RowError

PAIRS = frozenset(("pairs", "chat pairs"))
"""Kinds of record that are two sequences."""

NO_TARGET = -100
"""Label of a token that is not to be predicted, as everybody writes it."""

_CHARACTERS_PER_CALL = 1 << 20
_CHARACTERS_PER_TOKEN = 16  # at least; the longest words of a vocabulary may have more
_MOST_CHARACTERS = 1 << 20  # or _CHARACTERS_PER_TOKEN for each token, where that is more

_SEVERAL_LIMIT_S, _EACH_LIMIT_S, _CHARACTER_LIMIT_S = 0.5, 5e-4, 2e-6


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
    """Tokenizer as this module needs it; Hugging Face's fast tokenizers have it."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that opens a text, if there is one."""

    @property
    def eos_token_id(self) -> int | None:
        """The token that closes a text, if there is one."""


def most_characters(tokenizer: Any, max_tokens: int) -> int:
    """Number of characters of a text that are read; public.

    Whatever `max_tokens` tokens of the tokenizer's longest can stand for, and some more, since the
    end of what is read may be tokenised otherwise than in the midst of a text. So the first
    `max_tokens` tokens are those of the whole text, unless a tokenizer drops characters (blanks,
    say) or takes more of them for one word. Never more than a million, or 16 for each token where
    that is more: a vocabulary with words of hundreds of characters has few of them.
    """
    words: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    longest = max(_CHARACTERS_PER_TOKEN, max(map(len, words), default=0))
    few = max(_MOST_CHARACTERS, _CHARACTERS_PER_TOKEN * max_tokens)
    return min(few, longest * max_tokens) + 2 * min(longest, _CHARACTERS_PER_CALL)


def encode_batch(
    batch: pa.RecordBatch,
    fields: Fields,
    tokenizer: Tokenizer,
    max_tokens: int,
    vocabulary: int | None = None,
) -> Iterator[EncodedRecords]:
    """Encode the first `len(fields.parts)` columns of a batch, some rows at a time.

    Args:
        vocabulary: number of token ids that the model knows; a row with others is an error.

    Raises RowError if a row cannot be encoded.
    """
    parts = [_strings(batch.column(i), name) for i, name in enumerate(fields.parts)]
    encode = _ENCODERS[fields.kind]
    for start, stop in _chunks(parts):
        chunk = [part[start:stop] for part in parts]
        uncut = shield(lambda: encode(chunk, fields, tokenizer, max_tokens), _failed)  # noqa: B023
        sequences = 2 if fields.kind in PAIRS else 1
        yield _checked(_cut(uncut, sequences * max_tokens), vocabulary)


def _failed(kind: str) -> RowError:
    return RowError(
        f"the model's tokenizer fails on some rows ({kind}); leave those rows out of the data"
    )


def _checked(records: EncodedRecords, vocabulary: int | None) -> EncodedRecords:
    ids = records.input_ids
    if ids.min(initial=0) < 0:
        raise RowError("the model's tokenizer gives some rows tokens below 0; repair it")
    if vocabulary is not None and ids.max(initial=0) >= vocabulary:
        raise RowError(
            f"some rows become tokens that the model, which knows {vocabulary}, has no embedding "
            "for; take the tokenizer that came with the model, or resize its embeddings"
        )
    return records


@dataclass(slots=True, repr=False)
class DeclaredEncoder:
    """Encodes rows that somebody else prepares; one that cannot be encoded contributes zero.

    Guarantee: whether it can depends on the row alone. Whatever is raised over it, of any class,
    and a tokenizer or template that does not come back from it, cost that row and nothing else.

    Attributes:
        skipped: counts them.
    """

    fields: Fields
    tokenizer: Tokenizer
    max_tokens: int
    vocabulary: int | None = None
    skipped: Skipped = field(default_factory=Skipped)
    _own: Any = field(init=False)

    def __post_init__(self) -> None:
        # Rows have a tokenizer of their own: a call that does not come back may keep it for ever.
        self._own = copy.deepcopy(self.tokenizer)

    def encode(self, batch: pa.RecordBatch) -> Iterator[EncodedRecords]:
        """Encode as `encode_batch` does; a row that cannot be encoded becomes one token that is no
        target."""
        if not batch.num_rows:
            return
        self.skipped.check()
        records = attempted(lambda: self._try_to_encode(batch))
        if records is not None:
            yield from records
        elif batch.num_rows == 1:
            self.skipped.rows += 1
            ids, targets = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.bool_)
            yield EncodedRecords(ids, targets, np.ones(1, dtype=np.int64))
        else:
            for part in parts(batch):
                yield from self.encode(part)

    def _try_to_encode(self, batch: pa.RecordBatch) -> list[EncodedRecords]:
        def encode() -> list[EncodedRecords]:
            encoded = encode_batch(batch, self.fields, own, self.max_tokens, self.vocabulary)
            records = list(encoded)
            if sum(len(part.lengths) for part in records) != batch.num_rows:
                raise RowError("the tokenizer gives another number of records than of rows")
            return records

        own = self._own
        limit_s = self.skipped.row_limit_s
        if batch.num_rows > 1:
            limit_s = _SEVERAL_LIMIT_S + _EACH_LIMIT_S * batch.num_rows
            limit_s += _CHARACTER_LIMIT_S * batch.nbytes
        try:
            return within(limit_s, encode)
        except TimeoutError:
            self._own = copy.deepcopy(self.tokenizer)
            raise


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


def _tokens(tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[list[int]]:
    """Token ids of the beginning of each text, at least `max_tokens` if it has as many."""
    if max(map(len, texts), default=0) > _CHARACTERS_PER_TOKEN * max_tokens:
        limit = most_characters(tokenizer, max_tokens)
        texts = [text[:limit] for text in texts]
    return plain_tokens(tokenizer, texts)


def _last_tokens(tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[list[int]]:
    """Token ids of the end of each text, at least `max_tokens` if it has as many."""
    if max(map(len, texts), default=0) > _CHARACTERS_PER_TOKEN * max_tokens:
        limit = most_characters(tokenizer, max_tokens)
        texts = [text[-limit:] for text in texts]
    return plain_tokens(tokenizer, texts)


def _present(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _encode_text(
    parts: list[list[str]], fields: Fields, tokenizer: Tokenizer, max_tokens: int
) -> _Uncut:
    bos, eos = _present(tokenizer.bos_token_id), _present(tokenizer.eos_token_id)
    texts = _tokens(tokenizer, parts[0], max_tokens)
    around = len(bos) + len(eos)
    lengths = np.fromiter((len(ids) + around for ids in texts), np.int64, len(texts))
    pieces = (piece for ids in texts for piece in (bos, ids, eos))
    ids = np.fromiter(chain.from_iterable(pieces), np.int32, int(lengths.sum()))
    return ids, np.ones(len(ids), dtype=np.bool_), lengths


def _encode_answer(
    parts: list[list[str]], fields: Fields, tokenizer: Tokenizer, max_tokens: int
) -> _Uncut:
    bos, eos = _present(tokenizer.bos_token_id), _present(tokenizer.eos_token_id)
    prompts = _tokens(tokenizer, [question + "\n" for question in parts[0]], max_tokens)
    answers = _tokens(tokenizer, parts[1], max_tokens)
    context = np.fromiter((len(bos) + len(ids) for ids in prompts), np.int64, len(prompts))
    rest = np.fromiter((len(ids) + len(eos) for ids in answers), np.int64, len(answers))
    pairs = zip(prompts, answers, strict=True)
    pieces = (piece for prompt, answer in pairs for piece in (bos, prompt, answer, eos))
    lengths = context + rest
    ids = np.fromiter(chain.from_iterable(pieces), np.int32, int(lengths.sum()))
    return ids, _positions(lengths) >= np.repeat(context, lengths), lengths


def _encode_messages(
    parts: list[list[str]], fields: Fields, tokenizer: Tokenizer, max_tokens: int
) -> _Uncut:
    limit = None
    if max(map(len, parts[0]), default=0) > _CHARACTERS_PER_TOKEN * max_tokens:
        limit = most_characters(tokenizer, max_tokens)
    chats = encode_messages(parts[0], fields.columns[0], tokenizer, limit)
    lengths = np.fromiter((len(ids) for ids, _ in chats), np.int64, len(chats))
    ids = np.fromiter(chain.from_iterable(ids for ids, _ in chats), np.int32, int(lengths.sum()))
    masks = np.frombuffer(b"".join(mask for _, mask in chats), np.uint8)
    return ids, masks.astype(np.bool_), lengths


def _encode_pairs(
    parts: list[list[str]], fields: Fields, tokenizer: Tokenizer, max_tokens: int
) -> _Uncut:
    bos, eos = _present(tokenizer.bos_token_id), _present(tokenizer.eos_token_id)
    prompts = _last_tokens(tokenizer, parts[0], max_tokens)
    winners, losers = (_tokens(tokenizer, part, max_tokens) for part in parts[1:])
    return _together(
        [
            text_pair(bos, *pair, eos, max_tokens)
            for pair in zip(prompts, winners, losers, strict=True)
        ]
    )


def _encode_chat_pairs(
    parts: list[list[str]], fields: Fields, tokenizer: Tokenizer, max_tokens: int
) -> _Uncut:
    limit = None
    if max(len(text) for part in parts for text in part) > _CHARACTERS_PER_TOKEN * max_tokens:
        limit = most_characters(tokenizer, max_tokens)
    return _together(chat_pairs(parts, fields.columns, tokenizer, max_tokens, limit))


def _together(records: list[tuple[NDArray[np.int32], NDArray[np.bool_]]]) -> _Uncut:
    ids, targets = zip(*records, strict=True)
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.concatenate(ids), np.concatenate(targets), lengths


def _positions(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each token's position within its record."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def _cut(uncut: _Uncut, max_tokens: int) -> EncodedRecords:
    """Cut every record to `max_tokens`; its first token is no target."""
    ids, targets, lengths = _without_gaps(*uncut)
    positions = _positions(lengths)
    within_limit = positions < max_tokens
    return EncodedRecords(
        ids[within_limit],
        (targets & (positions > 0))[within_limit],
        np.minimum(lengths, max_tokens),
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
_Encoder: TypeAlias = Callable[[list[list[str]], Fields, Any, int], _Uncut]


def _encode_tokens(
    parts: list[list[str]], fields: Fields, tokenizer: Tokenizer, max_tokens: int
) -> _Uncut:
    """Records that are tokens already, as JSON: ids, labels (-100: no target), attention mask."""
    read = ([json.loads(row) for row in part] for part in parts)
    columns = dict(zip(fields.parts, read, strict=True))
    all_ids: list[int] = []
    targets: list[bool] = []
    lengths = []
    for index, ids in enumerate(columns["input_ids"]):
        labels = columns["labels"][index] if "labels" in columns else ids
        mask = columns["attention_mask"][index] if "attention_mask" in columns else [1] * len(ids)
        if not len(ids) == len(labels) == len(mask):
            raise RowError(
                "in some rows input_ids, labels and attention_mask are not of the same length; "
                "make them so"
            )
        tokens = [
            (token, label != NO_TARGET)
            for token, label, visible in zip(ids, labels, mask, strict=True)
            if visible
        ]
        if any(label not in (token, NO_TARGET) for token, label in zip(ids, labels, strict=True)):
            raise RowError(
                f"labels of some rows are neither their own input_ids nor {NO_TARGET}: a causal "
                "language model predicts its own input; make labels of input_ids"
            )
        all_ids += [token for token, _ in tokens]
        targets += [target for _, target in tokens]
        lengths.append(len(tokens))
    return (
        np.array(all_ids, dtype=np.int32),
        np.array(targets, dtype=np.bool_),
        np.array(lengths, dtype=np.int64),
    )


_ENCODERS: dict[str, _Encoder] = {
    "tokens": _encode_tokens,
    "text": _encode_text,
    "answer": _encode_answer,
    "messages": _encode_messages,
    "pairs": _encode_pairs,
    "chat pairs": _encode_chat_pairs,
}
