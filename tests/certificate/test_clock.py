"""Times have one form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taciturn.certificate.clock import next_minute, now, parse_time, time_text


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)))
def test_round_trip(moment: datetime) -> None:
    whole = moment.replace(microsecond=0, tzinfo=UTC)
    assert parse_time(time_text(whole)) == whole


@pytest.mark.parametrize(
    "text", ["2026-1-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00+00:00", "x", ""]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


def test_now_is_in_whole_seconds() -> None:
    assert parse_time(time_text(now())).tzinfo is UTC


def test_what_is_issued_says_the_minute_alone() -> None:
    before = now()
    minute = next_minute()
    assert minute.second == minute.microsecond == 0
    assert timedelta(0) <= minute - before <= timedelta(seconds=61)
