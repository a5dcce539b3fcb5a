"""Token by token: a pair is two sequences in turn, cut from the public limit and from itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.data.schema_fields import choose_fields
from taciturn.data.tokens.pairs import kept_of_prompt, text_pair
from taciturn.data.tokens.tokenize import prepare
from taciturn.errors import DataError, MissingColumnError, RowError, SpecError
from taciturn.spec import DataSpec

PAIRS = DataSpec(prompt_field="prompt", chosen_field="chosen", rejected_field="rejected")
BOS, EOS = [1], [2]


def sides(record: Any) -> list[tuple[list[int], list[int]]]:
    ids, targets = record
    return [(ids[n::2].tolist(), np.flatnonzero(targets[n::2]).tolist()) for n in (0, 1)]


def test_both_sequences_have_the_prompt_and_their_own_targets() -> None:
    chosen, rejected = sides(text_pair(BOS, [5, 6], [7], [8, 9, 10], EOS, 99))
    assert chosen == ([1, 5, 6, 7, 2, 0, 0], [3, 4])
    assert rejected == ([1, 5, 6, 8, 9, 10, 2], [3, 4, 5, 6])


def test_a_prompt_is_kept_from_its_end_and_an_answer_from_its_start() -> None:
    prompt, answer = list(range(100, 120)), list(range(200, 220))
    for ids, targets in sides(text_pair(BOS, prompt, answer, answer[:2], EOS, 11)):
        assert ids[:6] == [1, *prompt[-5:]]
        assert targets[0] == 6
        assert ids[6:8] == answer[:2]
        assert len(ids) == 11
    short = sides(text_pair(BOS, prompt, [7], [8], EOS, 11))
    assert short[0][0] == [1, *prompt[-8:], 7, 2]


@given(
    prompt=st.integers(0, 40),
    chosen=st.integers(0, 40),
    rejected=st.integers(0, 40),
    most=st.integers(2, 50),
    bos=st.booleans(),
)
def test_never_longer_than_the_limit_and_the_same_prompt(
    prompt: int, chosen: int, rejected: int, most: int, bos: bool
) -> None:
    before = BOS if bos else []
    record = text_pair(
        before, list(range(3, 3 + prompt)), [50] * chosen, [60] * rejected, EOS, most
    )
    (first, own), (second, others) = sides(record)
    assert len(first) == len(second) <= most
    context = len(before) + kept_of_prompt(prompt, max(chosen, rejected) + 1, most - len(before))
    assert first[:context] == second[:context]
    assert 0 not in own + others
    assert all(place >= context for place in own + others)


def rows(**changes: Any) -> pd.DataFrame:
    row = {"prompt": "What helps?", "chosen": "Rest.", "rejected": "Nothing at all.", "id": "p"}
    return pd.DataFrame([{**row, **changes}] * 3)


def test_columns_are_those_named_and_all_three() -> None:
    schema = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
    assert choose_fields(schema, PAIRS).kind == "pairs"
    with pytest.raises(SpecError, match="give all three"):
        choose_fields(schema, DataSpec(chosen_field="chosen"))
    with pytest.raises(MissingColumnError, match="rejected"):
        choose_fields(schema.remove(2), PAIRS)


@pytest.mark.parametrize("column", ["chosen", "rejected"])
@pytest.mark.parametrize("other", [pa.int64(), pa.list_(pa.string())])
def test_a_column_of_another_type_is_named_with_its_type(column: str, other: pa.DataType) -> None:
    types = {"prompt": pa.string(), "chosen": pa.string(), "rejected": pa.string(), column: other}
    with pytest.raises(RowError, match=f"{column!r} holds .*not text") as error:
        choose_fields(pa.schema(list(types.items())), PAIRS)
    assert str(other) in str(error.value)
    assert "select" in str(error.value)


def test_an_empty_answer_is_an_error_that_quotes_nothing(
    tmp_path: Path, tiny_medical: Path
) -> None:
    with pytest.raises(DataError) as error:
        prepare(rows(rejected=" "), PAIRS, tokenizer_of(tiny_medical), 32, tmp_path / "d", 0)
    assert "'rejected'" in str(error.value)
    assert "What helps" not in str(error.value)


def test_pairs_of_a_unit_are_its_records(tmp_path: Path, tiny_medical: Path) -> None:
    spec = PAIRS.model_copy(update={"privacy_unit": "id"})
    dataset = prepare(rows(), spec, tokenizer_of(tiny_medical), 32, tmp_path / "d", 0)
    assert (dataset.n_units, dataset.n_records) == (1, 3)
    record = dataset.records(0)[0]
    (chosen, _), (rejected, _) = sides((record.input_ids, record.targets))
    text = tokenizer_of(tiny_medical)
    assert text.decode(chosen, skip_special_tokens=True).strip("\0 ").startswith("What helps?Rest.")
    assert "Nothing" in text.decode(rejected)


def test_chats_differ_from_where_their_answers_differ(tmp_path: Path, tiny_medical: Path) -> None:
    tokenizer = tokenizer_of(tiny_medical)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )

    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    prompt = [turn("user", "Cough?"), turn("assistant", "Yes."), turn("user", "And fever?")]
    chat = pd.DataFrame(
        [
            {
                "prompt": prompt,
                "chosen": [turn("assistant", "No fever.")],
                "rejected": [turn("assistant", "High fever, sadly.")],
            }
        ]
    )
    dataset = prepare(chat, PAIRS, tokenizer, 64, tmp_path / "d", 0)
    record = dataset.records(0)[0]
    (chosen, own), (rejected, others) = sides((record.input_ids, record.targets))
    assert own[0] == others[0]
    assert chosen[: own[0]] == rejected[: own[0]]
    assert "And fever?" in tokenizer.decode(chosen[: own[0]])
    assert "fever" in tokenizer.decode([chosen[place] for place in own])
    assert "sadly" in tokenizer.decode([rejected[place] for place in others])


def test_prompts_and_answers_are_alike(tmp_path: Path, tiny_medical: Path) -> None:
    mixed = pd.DataFrame(
        [{"prompt": "x", "chosen": [{"role": "assistant", "content": "y"}], "rejected": "z"}]
    )
    with pytest.raises(RowError, match="make prompt, chosen and rejected alike in select"):
        prepare(mixed, PAIRS, tokenizer_of(tiny_medical), 32, tmp_path / "d", 0)


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
