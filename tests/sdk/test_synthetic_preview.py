"""Where an owner does not say what a synthetic preview is made with, public facts do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from support.fake_gateway import FakeApi, dataset
from taciturn.errors import SpecError
from taciturn.sdk.synthetic_preview import chosen_column, chosen_dataset, chosen_model
from taciturn.wire.datasets import ColumnView
from taciturn.wire.models import BaseModelView

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def model(name: str, parameters: int) -> BaseModelView:
    return BaseModelView(
        name=name, parameters=parameters, context_length=10, vocabulary=10, created_at=NOW
    )


def columns(**types: str) -> tuple[ColumnView, ...]:
    return tuple(ColumnView(name=name, type=kind) for name, kind in types.items())


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ({"id": "string", "text": "string", "note": "string"}, "text"),
        ({"id": "string", "note": "large_string", "age": "int64"}, "note"),
    ],
)
def test_the_column_is_text_or_the_only_one(types: dict[str, str], expected: str) -> None:
    assert chosen_column(columns(**types), "split_part(id, '_', 1)") == expected


@pytest.mark.parametrize(
    "types", [{"id": "string"}, {"id": "string", "a": "string", "b": "string"}, {}]
)
def test_else_the_owner_says_which(types: dict[str, str]) -> None:
    with pytest.raises(SpecError, match="--column"):
        chosen_column(columns(**types), "id")
    with pytest.raises(SpecError, match="--column"):
        chosen_column(None, "id")


def test_the_model_is_the_smallest_that_the_policy_allows() -> None:
    known = [model("large", 100), model("b/small", 2), model("a/small", 2), model("tiny", 1)]
    assert chosen_model(known, ["large", "*/small"]) == "a/small"
    assert chosen_model(known, ["*"]) == "tiny"
    with pytest.raises(SpecError, match="nothing/like/this"):
        chosen_model(known, ["nothing/like/this"])


def test_the_dataset_is_the_only_one_that_is_theirs() -> None:
    mine, other = dataset("phee"), dataset("notes").model_copy(update={"owner": "bob"})
    assert chosen_dataset([mine, other], mine.owner) == "phee"
    for found in ([other], [mine, dataset("xray")]):
        with pytest.raises(SpecError, match="synthesize NAME"):
            chosen_dataset(found, mine.owner)


def test_a_fake_has_what_these_look_at() -> None:
    assert (
        chosen_column(FakeApi().datasets["phee"].columns, FakeApi().datasets["phee"].unit) == "text"
    )
