"""The audit log's page: filters that stay, pages, and files of what they leave."""

from __future__ import annotations

import csv
import io
import json

from support.console import look
from support.gateway import GatewayWorld


def test_filters_leave_what_they_say(console: GatewayWorld) -> None:
    look(console, "paul", "/datasets")
    look(console, "paul", "/ledger")  # refused
    look(console, "olga", "/datasets")
    page = look(console, "ann", "/audit-log?actor=paul").text
    assert '<th scope="row">paul</th>' in page
    assert '<th scope="row">olga</th>' not in page
    refused = look(console, "ann", "/audit-log?actor=user:paul&answer=refused").text
    assert "/ledger</td>" in refused
    assert "/datasets</td>" not in refused
    granted = look(console, "ann", "/audit-log?answer=granted&resource=/datasets").text
    assert "/datasets</td>" in granted
    assert "/ledger</td>" not in granted
    nothing = look(console, "ann", "/audit-log?action=grants:write").text
    assert "Nothing on record fits these filters" in nothing
    span = look(console, "ann", "/audit-log?until=2026-02-01T00:00").text
    assert "Nothing on record fits these filters" in span


def test_a_time_that_is_none_is_refused(console: GatewayWorld) -> None:
    answer = look(console, "ann", "/audit-log?since=yesterday")
    assert answer.status_code == 422
    assert "is no time" in answer.text
    span = "since=2026-03-02T00:00&until=2026-03-01T00:00"
    for path in (f"/audit-log?{span}", f"/audit-log/export?{span}"):
        answer = look(console, "ann", path)
        assert answer.status_code == 422
        assert "is not before" in answer.text


def test_pages_keep_the_filters(console: GatewayWorld) -> None:
    for _ in range(3):
        look(console, "paul", "/datasets")
    page = look(console, "ann", "/audit-log?actor=paul&limit=2").text
    assert 'href="/audit-log?actor=paul&amp;cursor=' in page
    assert 'href="/audit-log/export?actor=paul&amp;format=csv"' in page


def test_a_file_has_every_page(console: GatewayWorld) -> None:
    for _ in range(3):
        look(console, "paul", "/datasets")
    lines = look(console, "ann", "/audit-log/export?actor=paul").text.splitlines()
    assert [json.loads(line)["actor"] for line in lines] == ["user:paul"] * 3
    answer = look(console, "ann", "/audit-log/export?actor=paul&format=csv")
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.headers["cache-control"] == "no-store"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["resource"] for row in rows] == ["/datasets"] * 3


def test_a_file_is_read_in_pieces(console: GatewayWorld) -> None:
    from taciturn.server import audit_log

    for _ in range(5):
        look(console, "paul", "/datasets")
    whole = look(console, "ann", "/audit-log/export?actor=paul").text
    before, audit_log._PIECE = audit_log._PIECE, 2
    try:
        assert look(console, "ann", "/audit-log/export?actor=paul").text == whole
    finally:
        audit_log._PIECE = before


def test_a_spreadsheet_runs_nothing(console: GatewayWorld) -> None:
    from taciturn.server.console.oversight.audit_log import _row

    assert _row(('=cmd|"/c calc"!A1', "@x", "plain")).startswith("\"'=cmd")
    assert "'@x,plain" in _row(("@x", "plain"))


def test_the_log_is_for_auditors(console: GatewayWorld) -> None:
    for who in ("olga", "paul", "adam"):
        assert look(console, who, "/audit-log").status_code == 403
        assert look(console, who, "/audit-log/export").status_code == 403


def test_rest_has_the_same_filters(console: GatewayWorld) -> None:
    look(console, "paul", "/ledger")
    path = "/audit-log?refusal=true&resource=/ledger"
    items = console.ask("ann", "GET", path).json()["items"]
    assert [(item["actor"], item["status"]) for item in items] == [("user:paul", 403)]
