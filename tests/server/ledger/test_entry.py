"""An entry has one text and one digest, which cover all that it says."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from taciturn.accounting.filter import ORDERS
from taciturn.errors import LedgerTamperedError, SpecError
from taciturn.server.ledger.entry import (
    START,
    Charged,
    Entry,
    Granted,
    checked_name,
    details_text,
    parse_details,
    request_digest,
)

UNITS = tuple(range(len(ORDERS)))
GRANTED = Granted(holder="user:ada", epsilon=3.0, delta=1e-6)
ENTRY = Entry("patients", 7, "op", "0" * 64, 1_769_860_800_000, GRANTED, START)


def test_the_form_is_fixed() -> None:
    assert details_text(GRANTED) == (
        '{"delta":1e-06,"epsilon":3.0,"holder":"user:ada","kind":"granted"}'
    )
    assert ENTRY.digest == "079f6b4a05471c41b6fb91d006becee305bbbc3a45d41a7316cba93fc9f42190"


def test_details_read_as_they_were_written() -> None:
    charged = Charged(job="j", token=1, event={"type": "NoOpDpEvent"}, cost=UNITS)
    for details in (GRANTED, charged):
        assert parse_details(details_text(details)) == details


@pytest.mark.parametrize("name", [each.name for each in fields(Entry)])
def test_the_digest_covers_every_field(name: str) -> None:
    others: dict[str, Any] = {
        "sequence": 8,
        "recorded_at_ms": 1_769_860_800_001,
        "details": GRANTED.model_copy(update={"epsilon": 3.1}),
    }
    other = replace(ENTRY, **{name: others.get(name, "x")})
    assert other.digest != ENTRY.digest


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + " ",
        lambda text: text.replace("3.0", "3"),
        lambda text: text.replace("3.0", "3.00"),
        lambda text: text.replace("3.0", "NaN"),
        lambda text: text.replace("3.0", '"3.0"'),
        lambda text: text.replace("granted", "gifted"),
        lambda text: text.replace('"kind"', '"color":1,"kind"'),
        lambda text: text.replace("user:ada", ""),
        lambda text: json.dumps(json.loads(text)),
        lambda text: "",
        lambda text: "[]",
    ],
)
def test_any_other_text_is_refused(change: Any) -> None:
    with pytest.raises(LedgerTamperedError):
        parse_details(change(details_text(GRANTED)))


def test_a_request_is_its_operation_and_arguments() -> None:
    one = request_digest("charge", {"job": "a", "token": 1})
    assert one == request_digest("charge", {"token": 1, "job": "a"})
    assert one != request_digest("commit", {"job": "a", "token": 1})
    assert one != request_digest("charge", {"job": "a", "token": 2})


@pytest.mark.parametrize("name", ["", "a" * 201, "a\n", "\x00", "a\x7f"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="control character"):
        checked_name(name, "job")
    assert checked_name("patients-2026 / Zürich", "job") == "patients-2026 / Zürich"
