"""Canaries in prepared data: read as rows are, silent where they are out, kept as they were."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taciturn.data.tokens.planted import CANARIES, Planted, PlantedUnits, own_words
from taciturn.data.tokens.store import TokenizedDataset
from taciturn.data.tokens.tokenize import prepare
from taciturn.engine.training.batch import collate
from taciturn.errors import DataError, DataNotFoundError
from taciturn.spec import DataSpec

TEXTS = ("alpha beta", "gamma delta epsilon", "zeta")
OTHERS = ("eta", "theta iota", "kappa")
COINS = np.array([True, False, True])
UNITS = PlantedUnits("secret", TEXTS, COINS)
NOTES = [
    {"patient": "a", "text": "A cough."},
    {"patient": "a", "text": "No fever."},
    {"patient": "b", "text": "A fall."},
]
PAIR = {"prompt_field": "p", "chosen_field": "c", "rejected_field": "r"}
CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_medical: Path) -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(tiny_medical)
    found.chat_template = CHAT
    return found


def prepared(
    folder: Path,
    tokenizer: Any,
    data: list[dict[str, str]] = NOTES,
    units: PlantedUnits | None = UNITS,
    **fields: Any,
) -> TokenizedDataset:
    return prepare(data, DataSpec(**fields), tokenizer, 32, folder / "data", 0, units)


def tokens(dataset: TokenizedDataset, unit: int) -> list[int]:
    (record,) = dataset.records(unit)
    return record.input_ids.tolist()


def test_they_follow_the_rows_as_units_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    dataset = prepared(tmp_path, tokenizer, text_field="text", privacy_unit="patient")
    assert (dataset.n_units, dataset.n_records) == (5, 6)
    plain = prepare(list(TEXTS), DataSpec(), tokenizer, 32, tmp_path / "plain", 0)
    assert [tokens(dataset, 2 + n) for n in range(3)] == [tokens(plain, n) for n in range(3)]


def test_rows_are_what_they_are_without_canaries(tmp_path: Path, tokenizer: Any) -> None:
    with_them = prepared(tmp_path / "a", tokenizer, text_field="text", privacy_unit="patient")
    without = prepared(
        tmp_path / "b", tokenizer, units=None, text_field="text", privacy_unit="patient"
    )
    for unit in range(without.n_units):
        pairs = zip(with_them.records(unit), without.records(unit), strict=True)
        assert all((left.input_ids == right.input_ids).all() for left, right in pairs)
    assert not (tmp_path / "b" / "data" / CANARIES).exists()


def test_one_that_is_out_weighs_nothing_and_looks_the_same(tmp_path: Path, tokenizer: Any) -> None:
    other = PlantedUnits("secret", TEXTS, ~COINS)
    first, second = (
        prepared(tmp_path / name, tokenizer, units=units, text_field="text")
        for name, units in (("a", UNITS), ("b", other))
    )
    for unit, coin in zip(range(3, 6), COINS, strict=True):
        assert tokens(first, unit) == tokens(second, unit)
        (inside,), (outside,) = (
            pair.records(unit) for pair in ((first, second) if coin else (second, first))
        )
        batches = [collate([(record, 0)], 1, 32) for record in (inside, outside)]
        assert batches[0].input_ids_BT.shape == batches[1].input_ids_BT.shape
        assert float(batches[0].loss_weights_BT.sum()) == pytest.approx(1)
        assert torch.count_nonzero(batches[1].loss_weights_BT) == 0


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"text": "A cough."}, {"text_field": "text"}),
        ({"q": "What?", "a": "A cough."}, {"question_field": "q", "answer_field": "a"}),
        (
            {
                "chat": json.dumps(
                    [
                        {"role": "user", "content": "What?"},
                        {"role": "assistant", "content": "A cough."},
                    ]
                )
            },
            {"messages_field": "chat"},
        ),
        ({"p": "What?", "c": "A cough.", "r": "A fall."}, PAIR),
        (
            {
                "p": [{"role": "user", "content": "What?"}],
                "c": [{"role": "assistant", "content": "A cough."}],
                "r": [{"role": "assistant", "content": "A fall."}],
            },
            PAIR,
        ),
    ],
    ids=["text", "answer", "messages", "pairs", "chat pairs"],
)
def test_they_come_in_the_format_of_the_rows_and_can_be_read_again(
    row: dict[str, str], fields: dict[str, str], tmp_path: Path, tokenizer: Any
) -> None:
    units = PlantedUnits("secret", TEXTS, COINS, OTHERS) if fields == PAIR else UNITS
    dataset = prepared(tmp_path, tokenizer, data=[row], units=units, **fields)
    planted = Planted.read(tmp_path / "data")
    assert planted.units.rejected == units.rejected
    again = own_words(planted, tokenizer, tmp_path)
    for index, (text, coin) in enumerate(zip(TEXTS, COINS, strict=True)):
        (fitted,), (scored,) = dataset.records(1 + index), again.records(index)
        assert fitted.input_ids.tolist() == scored.input_ids.tolist()
        assert fitted.targets.any() == coin
        chosen = slice(None, None, 2 if fields == PAIR else 1)
        said = tokenizer.decode(scored.input_ids[chosen][scored.targets[chosen]])
        # A template may count a role's name before it and a line's end after it as well.
        assert said.rstrip().endswith(text)


def test_the_file_says_what_was_planted(tmp_path: Path, tokenizer: Any) -> None:
    prepared(tmp_path, tokenizer)
    path = tmp_path / "data" / CANARIES
    planted = Planted.read(path.parent)
    assert (planted.units.kind, planted.units.texts) == ("secret", TEXTS)
    assert planted.units.included_N.tolist() == COINS.tolist()
    assert (planted.format, planted.max_tokens) == ("text", 32)
    assert planted.commitment == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_commitment_hides_the_coins(tmp_path: Path, tokenizer: Any) -> None:
    """Of the same canaries with the same coins there are as many commitments as nonces."""
    for name in "ab":
        prepared(tmp_path / name, tokenizer)
    found = [Planted.read(tmp_path / name / "data").commitment for name in "ab"]
    assert found[0] != found[1]


def test_no_canaries(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"canaries.json cannot be read"):
        Planted.read(tmp_path)


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text[:-20],
        lambda text: "",
        lambda text: text.replace('"101"', '"10"'),
        lambda text: text.replace('"101"', '"1x1"'),
        lambda text: text.replace('"secret"', '"gold"'),
        lambda text: text.replace('"version":1', '"version":2'),
    ],
)
def test_a_broken_file(broken: Any, tmp_path: Path, tokenizer: Any) -> None:
    prepared(tmp_path, tokenizer)
    path = tmp_path / "data" / CANARIES
    text = broken(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(DataError, match="truncated or was edited"):
        Planted.read(path.parent)


def test_a_pair_without_its_other_answer(tmp_path: Path, tokenizer: Any) -> None:
    row = {"p": "What?", "c": "A cough.", "r": "A fall."}
    units = PlantedUnits("secret", TEXTS, COINS, OTHERS)
    prepared(tmp_path, tokenizer, data=[row], units=units, **PAIR)
    path = tmp_path / "data" / CANARIES
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "rejected": fields["rejected"][1:]}))
    with pytest.raises(DataError, match="truncated or was edited"):
        Planted.read(path.parent)


def test_nothing_shows_in_a_repr() -> None:
    assert "alpha" not in repr(UNITS)
    assert "alpha" not in repr(Planted(UNITS, "text", 32, "00"))
