"""Canaries: units that are not rows, planted among them and read as a row of their format is.

All of them are in the prepared data, whichever are in by their coins. One that is out keeps its
tokens and has no targets: its loss and gradient are zero, so a step's sum is what it is without the
unit, and neither the number of units nor a shape or a time tells which ones they are.

`canaries.json` in the prepared folder says what was planted and how the coins fell. It is private;
its SHA-256 is a commitment that may be published, because the file holds a secret nonce.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taciturn.data.schema_fields import Fields, Kind
from taciturn.data.tokens.encoding import PAIRS, EncodedRecords, Tokenizer, encode_batch
from taciturn.data.tokens.store import TokenizedDataset, TokenWriter
from taciturn.errors import DataError, DataNotFoundError
from taciturn.spec import CanaryKind

CANARIES = "canaries.json"

# What a canary answers, where records are questions and answers, chats, or pairs of answers.
_QUESTION = "Recall."


@dataclass(frozen=True, slots=True, repr=False)
class PlantedUnits:
    """N canaries, each a unit of one record. Private.

    Attributes:
        kind: how their texts were made.
        texts: what they say, one each.
        included_N: their coins: True where the canary is in the training data.
        rejected: of pairs, the answers that are not chosen; of others, none.
    """

    kind: CanaryKind
    texts: tuple[str, ...]
    included_N: NDArray[np.bool_]
    rejected: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True, repr=False)
class Planted:
    """Content of `canaries.json`. Private, but for the commitment.

    Attributes:
        units: the canaries.
        format: of their records, the data's own.
        max_tokens: kept of a record.
        commitment: SHA-256 of the file, in hexadecimal.
    """

    units: PlantedUnits
    format: Kind
    max_tokens: int
    commitment: str

    @classmethod
    def read(cls, folder: Path) -> Planted:
        """Read what `plant` wrote.

        Raises:
            DataNotFoundError: there is no such file.
            DataError: it is truncated or was edited.
        """
        path = folder / CANARIES
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataNotFoundError(f"{path} cannot be read: {error.strerror}") from None
        try:
            fields = _CanaryFile.model_validate_json(content)
        except ValidationError:
            fields = None
        if fields is None or not fields.whole:
            raise DataError(f"{path} is truncated or was edited; take the file that the fit wrote")
        coins = np.array([coin == "1" for coin in fields.included])
        units = PlantedUnits(fields.kind, fields.texts, coins, fields.rejected)
        return cls(units, fields.format, fields.max_tokens, hashlib.sha256(content).hexdigest())


class _CanaryFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    kind: CanaryKind
    format: Kind
    max_tokens: int
    texts: tuple[str, ...]
    rejected: tuple[str, ...] = ()
    included: str = Field(pattern=r"^[01]+$")
    nonce: str = Field(min_length=64, max_length=64)

    @property
    def whole(self) -> bool:
        """Return whether there is a coin for each canary, and a rejected answer for each pair."""
        pairs = len(self.texts) if self.format in PAIRS else 0
        return len(self.texts) == len(self.included) and len(self.rejected) == pairs


def plant(
    units: PlantedUnits,
    writer: TokenWriter,
    kind: Kind,
    tokenizer: Tokenizer,
    max_tokens: int,
    folder: Path,
) -> None:
    """Append the canaries to prepared data, and write `canaries.json` into `folder`."""
    included = units.included_N
    for records in _encoded(units, kind, tokenizer, max_tokens):
        count = len(records.lengths)
        counted = np.repeat(included[:count], records.lengths)
        silenced = EncodedRecords(records.input_ids, records.targets & counted, records.lengths)
        writer.add(silenced, np.ones(count, dtype=np.bool_))
        included = included[count:]
    content = _CanaryFile(
        kind=units.kind,
        format=kind,
        max_tokens=max_tokens,
        texts=units.texts,
        rejected=units.rejected,
        included="".join("1" if coin else "0" for coin in units.included_N),
        nonce=os.urandom(32).hex(),
    )
    (folder / CANARIES).write_text(content.model_dump_json(), encoding="utf-8")


def own_words(planted: Planted, tokenizer: Tokenizer, folder: Path) -> TokenizedDataset:
    """All canaries as the fit read them, whether in or out, in the existing `folder`.

    Targets are a canary's own words only: that a text ends, and how, is common to all.
    """
    writer = TokenWriter(folder)
    try:
        for records in _encoded(planted.units, planted.format, tokenizer, planted.max_tokens):
            own = records.targets & (records.input_ids != tokenizer.eos_token_id)
            alone = np.ones(len(records.lengths), dtype=np.bool_)
            writer.add(EncodedRecords(records.input_ids, own, records.lengths), alone)
        writer.close("canaries")
    finally:
        writer.abandon()
    return TokenizedDataset.open(folder)


def _encoded(
    units: PlantedUnits, kind: Kind, tokenizer: Tokenizer, max_tokens: int
) -> Iterator[EncodedRecords]:
    columns = _columns(units, kind)
    names = [f"part_{index}" for index in range(len(columns))]
    batch = pa.record_batch([pa.array(column, pa.large_string()) for column in columns], names)
    return encode_batch(batch, Fields(kind, tuple(names)), tokenizer, max_tokens)


def _columns(units: PlantedUnits, kind: Kind) -> list[list[str]]:
    if kind == "text":
        return [list(units.texts)]
    questions = [_QUESTION] * len(units)
    if kind == "answer":
        return [questions, list(units.texts)]
    if kind == "pairs":
        return [questions, list(units.texts), list(units.rejected)]
    question = _turn("user", _QUESTION)
    answers, rejected = (
        [_turn("assistant", text) for text in texts] for texts in (units.texts, units.rejected)
    )
    if kind == "messages":
        return [[_chat(question, answer) for answer in answers]]
    return [[_chat(question)] * len(units), [*map(_chat, answers)], [*map(_chat, rejected)]]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _chat(*turns: dict[str, str]) -> str:
    return json.dumps(turns, ensure_ascii=False)
