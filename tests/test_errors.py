"""Messages of errors."""

from __future__ import annotations

import pytest

from taciturn import LLM, errors
from taciturn.errors import RowError, TaciturnError


def test_a_message_that_quotes_a_long_value_ends_with_its_remedy() -> None:
    message = str(RowError(f"select={'x' * 100_000!r} is too long; make it shorter"))
    assert len(message) < 2000
    assert message.startswith("select='xxx")
    assert message.endswith("is too long; make it shorter")
    assert "98438 characters" in message


def test_a_short_message_stays_as_it_is() -> None:
    assert str(TaciturnError("x" * 1600)) == "x" * 1600


@pytest.mark.parametrize("field", ["text_field", "answer_field", "select", "privacy_unit"])
def test_a_long_argument_is_not_repeated(field: str) -> None:
    with pytest.raises(TaciturnError) as caught:
        LLM("taciturn/tiny-medical").plan([{"text": "a"}], **{field: "x y " * 20_000})
    assert len(str(caught.value)) < 2000


def test_the_tree_names_every_error() -> None:
    assert errors.__doc__ is not None
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    for kind in kinds:
        assert kind.__name__ in errors.__doc__
