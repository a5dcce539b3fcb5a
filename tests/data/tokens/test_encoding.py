"""Token by token: what a record looks like, and which of its tokens are to be predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taciturn.data.schema_fields import Fields
from taciturn.data.tokens.encoding import EncodedRecords, encode_batch

TEXT = Fields("text", ("text",))
ANSWER = Fields("answer", ("question", "answer"))


class Letters:
    """A tokenizer with one token per letter, and as many special tokens as wanted."""

    def __init__(self, bos: int | None = None, eos: int | None = None) -> None:
        self.bos_token_id = bos
        self.eos_token_id = eos
        self.calls: list[int] = []

    def __call__(self, text: list[str], **options: Any) -> dict[str, list[list[int]]]:
        assert options["add_special_tokens"] is False
        self.calls.append(len(text))
        return {"input_ids": [[ord(letter) for letter in item if letter != "_"] for item in text]}

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        raise AssertionError("no chat here")


def encode(
    columns: list[list[str]], fields: Fields, tokenizer: Any, max_tokens: int = 99
) -> list[tuple[list[int], list[int]]]:
    batch = pa.record_batch(
        [pa.array(column, pa.large_string()) for column in columns],
        names=[f"part_{n}" for n in range(len(columns))],
    )
    return [
        record
        for records in encode_batch(batch, fields, tokenizer, max_tokens)
        for record in split(records)
    ]


def split(records: EncodedRecords) -> list[tuple[list[int], list[int]]]:
    stops = np.cumsum(records.lengths)[:-1]
    ids, targets = np.split(records.input_ids, stops), np.split(records.targets, stops)
    return [(a.tolist(), b.astype(int).tolist()) for a, b in zip(ids, targets, strict=True)]


A, B, NEWLINE = 97, 98, 10


@pytest.mark.parametrize(
    ("bos", "eos", "ids", "targets"),
    [
        (1, 2, [1, A, B, 2], [0, 1, 1, 1]),
        (1, None, [1, A, B], [0, 1, 1]),
        (None, 2, [A, B, 2], [0, 1, 1]),
        (None, None, [A, B], [0, 1]),
    ],
)
def test_text(bos: int | None, eos: int | None, ids: list[int], targets: list[int]) -> None:
    assert encode([["ab"]], TEXT, Letters(bos, eos)) == [(ids, targets)]


def test_text_is_cut_eos_first() -> None:
    assert encode([["abab", "a"]], TEXT, Letters(1, 2), 3) == [
        ([1, A, B], [0, 1, 1]),
        ([1, A, 2], [0, 1, 1]),
    ]


def test_question_and_answer() -> None:
    assert encode([["ab"], ["ba"]], ANSWER, Letters(1, 2)) == [
        ([1, A, B, NEWLINE, B, A, 2], [0, 0, 0, 0, 1, 1, 1])
    ]
    assert encode([["a"], ["b"]], ANSWER, Letters()) == [([A, NEWLINE, B], [0, 0, 1])]


def test_an_answer_that_is_cut_off_leaves_a_record_without_targets() -> None:
    assert encode([["abab", "a"], ["b", "b"]], ANSWER, Letters(1, 2), 4) == [
        ([1, A, B, A], [0, 0, 0, 0]),
        ([1, A, NEWLINE, B], [0, 0, 0, 1]),
    ]


def test_a_text_in_which_the_tokenizer_finds_nothing_is_kept_without_targets() -> None:
    assert encode([["_", "ab", "_"]], TEXT, Letters()) == [
        ([0], [0]),
        ([A, B], [0, 1]),
        ([0], [0]),
    ]


def test_long_texts_are_tokenised_a_few_at_a_time() -> None:
    tokenizer = Letters(1, 2)
    lengths = [5, 700_000, 700_000, 3, 2_000_000, 4]
    records = encode([["a" * length for length in lengths]], TEXT, tokenizer, 10**7)
    assert [len(ids) - 2 for ids, _ in records] == lengths
    assert tokenizer.calls == [2, 2, 1, 1]


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.text("ab_", max_size=6), st.text("ab_", max_size=6)), min_size=1),
    st.sampled_from([None, 1]),
    st.sampled_from([None, 2]),
    st.integers(2, 9),
)
def test_each_record_is_encoded_as_if_it_were_alone(
    pairs: list[tuple[str, str]], bos: int | None, eos: int | None, max_tokens: int
) -> None:
    tokenizer = Letters(bos, eos)
    questions, answers = (list(column) for column in zip(*pairs, strict=True))
    for fields, columns in ((ANSWER, [questions, answers]), (TEXT, [answers])):
        together = encode(columns, fields, tokenizer, max_tokens)
        alone = [
            encode([[column[n]] for column in columns], fields, tokenizer, max_tokens)[0]
            for n in range(len(pairs))
        ]
        assert together == alone
        assert all(1 <= len(ids) <= max_tokens and targets[0] == 0 for ids, targets in together)


def test_with_the_embedded_tokenizer(tiny_medical: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_medical)
    ((ids, targets),) = encode([["Fièvre après amoxicilline."]], TEXT, tokenizer)
    assert tokenizer.decode(ids) == "<s>Fièvre après amoxicilline.</s>"
    assert targets == [0] + [1] * (len(ids) - 1)
    ((ids, targets),) = encode([["Why?"], ["Rash."]], ANSWER, tokenizer)
    wanted = [token for token, target in zip(ids, targets, strict=True) if target]
    assert tokenizer.decode(wanted) == "Rash.</s>"
    assert tokenizer.decode(ids) == "<s>Why?\nRash.</s>"
