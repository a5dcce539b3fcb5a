"""The commands against a gateway in memory: what they ask for, print and exit with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from fakegateway import TOKEN, URL, Fake
from taciturn.sdk import client as clients
from taciturn.sdk.transport import Patience
from taciturn.wire.jobs import JobState
from taciturn.wire.values import Problem

FIT = ("fit", "--data", "gateway:phee", "--model", "m", "--target-epsilon", "3")
MODEL = "gateway:mod_00000000000000000001"


class Shell:
    """Runs `taciturn ...` in this process; what it prints, once it ended as it should."""

    def __init__(self, taciturn: Callable[..., tuple[int, str, str]]) -> None:
        self.taciturn = taciturn

    def __call__(self, *arguments: str, code: int = 0) -> str:
        ended, out, err = self.taciturn(*arguments)
        assert ended == code, out + err
        return out + err


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    """A gateway that every client of this process reaches."""
    gateway = Fake()

    class Transport(clients.Transport):
        def __init__(self, url: str, token: str | None, **_: object) -> None:
            haste = Patience(attempts=2, first_wait_s=0.0)
            super().__init__(url, token, patience=haste, http=gateway.http())

    monkeypatch.setattr(clients, "Transport", Transport)
    monkeypatch.setenv("TACITURN_URL", URL)
    monkeypatch.setenv("TACITURN_TOKEN", TOKEN)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return gateway


@pytest.fixture
def shell(taciturn: Callable[..., tuple[int, str, str]]) -> Shell:
    return Shell(taciturn)


def test_login_keeps_a_token_that_works(
    fake: Fake, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TACITURN_URL")
    monkeypatch.delenv("TACITURN_TOKEN")
    assert "taciturn login" in shell("whoami", code=1)
    monkeypatch.setattr(sys, "stdin", _Lines(f"{TOKEN}\n"))
    assert "as ada (owner)" in shell("login", URL, "--token-stdin")
    kept = tmp_path / "config" / "taciturn" / "credentials.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "jobs:create" in shell("whoami")
    assert "logged out" in shell("logout")
    assert "was not logged in" in shell("logout")
    monkeypatch.setattr(sys, "stdin", _Lines("tac_wrong\n"))
    assert "valid token" in shell("login", URL, "--token-stdin", code=1)
    assert not kept.exists()


class _Lines:
    def __init__(self, text: str) -> None:
        self.text = text

    def readline(self) -> str:
        return self.text


def test_the_line_of_the_data_owner(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    mock = tmp_path / "mock.jsonl"
    mock.write_text('\ufeff{"id": "1"}\n\n{"id": "2\u2028"}\r\n', encoding="utf-8")
    arguments = (
        *("dataset", "add", "phee", "s3://bucket/phee.parquet"),
        *("--unit", "split_part(id,'_',1)", "--namespace", "patients-2026"),
        *("--epsilon", "8", "--delta", "1e-6", "--units", "1100", "--mock", str(mock)),
    )
    assert "phee: ready" in shell(*arguments)
    mock.write_text("not json: secret\n")
    output = shell(*arguments, code=1)
    assert "line 1 is not a JSON object" in output
    assert "secret" not in output


def test_datasets(fake: Fake, shell: Shell) -> None:
    assert "phee" in shell("dataset", "list")
    assert json.loads(shell("dataset", "list", "--json"))["name"] == "phee"
    assert "mock (invented rows)" in shell("dataset", "show", "phee")
    assert "selected" in shell("dataset", "select", "phee", "upper(text) AS text")
    assert "aggregate" in shell("dataset", "select", "phee", "count(*)", code=1)
    assert "removed" in shell("dataset", "remove", "phee")
    assert "there is no dataset 'phee'" in shell("dataset", "show", "phee", code=1)


@pytest.mark.parametrize("name", [(), ("phee",)])
def test_a_synthetic_preview_needs_a_budget_and_no_more(
    fake: Fake, shell: Shell, name: tuple[str, ...]
) -> None:
    shell("dataset", "synthesize", *name, "--epsilon", "1")
    fit, written = fake.jobs.values()
    asked = fit.request
    assert (asked["model"], asked["text_field"], asked["target_epsilon"]) == (
        "taciturn/tiny-medical",
        "text",
        1,
    )
    assert fake.synthetic["phee"].model_dump() == {"job": written.id, "column": "text"}
    fake.datasets["other"] = fake.datasets["phee"].model_copy(update={"name": "other"})
    assert "other, phee" in shell("dataset", "synthesize", "--epsilon", "1", code=1)
    assert len(fake.jobs) == 2


def test_terms(fake: Fake, shell: Shell) -> None:
    assert "epsilon=2" in shell(
        "grant", "add", "patients", "user:eve", "--epsilon", "2", "--delta", "1e-7"
    )
    assert "user:eve" in shell("grant", "list", "patients")
    assert "user:eve" in shell("budget", "patients")
    assert "1 release(s) that no budget covers" in shell("budget", "patients")
    assert "patients" in shell("budget")
    assert "revoked" in shell("grant", "revoke", "patients", "user:eve")
    shell("policy", "set", "patients", "--approver", "user:ada", "--approver", "user:bob")
    assert fake.policies["patients"].approvers == ("user:ada", "user:bob")
    assert "user:bob" in shell("policy", "show", "patients")
    assert "nothing to change" in shell("policy", "set", "patients", code=1)


def test_fit_runs_where_the_data_is(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    output = shell(*FIT, "--select", "text", "--held-out", "0.1", "--output", str(folder))
    (job,) = fake.jobs.values()
    assert job.request["data"] == {
        "dataset": "phee",
        "select": "text",
        "part": {"side": "train", "test_share": 0.1},
    }
    assert f"fitted model: {MODEL}" in output
    assert "epsilon 2.00" in output
    assert (folder / "privacy_report.json").is_file()


def test_fit_from_a_file_without_waiting(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: m\ndata: gateway:phee\ntarget_epsilon: unlimited\n")
    output = shell("fit", "-f", str(path), "--no-wait")
    (job,) = fake.jobs
    assert "NO PRIVACY" in output
    assert f"taciturn job wait {job}" in output
    assert job in shell("job", "list")
    assert "no guarantee" in shell("job", "show", job)
    assert MODEL in shell("job", "wait", job)
    events = [json.loads(line) for line in shell("job", "events", job).splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, 9))
    assert "none" in shell("job", "machines", job)
    assert "cancelled" in shell("job", "cancel", job)


def test_what_is_not_for_a_gateway_is_refused(fake: Fake, shell: Shell) -> None:
    assert "resume is for data on this machine" in shell(*FIT, "--resume", code=1)
    assert "not yours to choose" in shell(*FIT, "--threads", "2", code=1)
    assert "wait is for data behind a gateway" in shell(
        *("fit", "--data", "x.csv", "--model", "m", "--target-epsilon", "3", "--no-wait"), code=1
    )
    assert fake.jobs == {}


def test_a_failed_job_exits_with_1(fake: Fake, shell: Shell) -> None:
    fake.outcome = JobState.FAILED
    output = shell(*FIT, code=1)
    assert "ask the owner (incident inc_1)" in output
    assert "Traceback" not in output


def test_plan_and_models(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    assert "there is room for it" in shell("plan", *FIT[1:])
    assert fake.jobs == {}
    assert "mod_0" in shell("model", "list")
    assert "epsilon=3" in shell("model", "show", MODEL)
    assert "downloaded" in shell("model", "download", MODEL, "-o", str(tmp_path / "downloaded"))
    assert "The patient coughs" in shell("model", "sample", MODEL, "-p", "The patient")
    assert "The patient coughs" in shell("sample", MODEL, "-p", "The patient")
    path = tmp_path / "public.csv"
    path.write_text("text\nabc\n")
    output = shell("evaluate", MODEL, str(path), "--text-field", "text")
    assert "4.48" in output
    shell("evaluate", MODEL, "gateway:phee", "--target-epsilon", "0.5", "--held-out", "0.1")
    assert [job.request.get("data", {}).get("part") for job in fake.jobs.values()][-1] == {
        "side": "test",
        "test_share": 0.1,
    }


def test_approvals_and_people(fake: Fake, shell: Shell) -> None:
    assert "no_guarantee" in shell("approval", "list")
    assert "1 of 2 have approved" in shell("approval", "approve", "apr_1", "--comment", "fine")
    assert "open" in shell("approval", "reject", "apr_1")
    assert fake.decisions == [("apr_1", "approve"), ("apr_1", "reject")]
    assert "ada" in shell("user", "list")
    assert "eve: practitioner" in shell("user", "add", "eve", "--role", "practitioner")
    assert shell("token", "add", "ci").strip() == "tac_secret"
    assert "a row" in shell("incident", "show", "inc_1")
    assert json.loads(shell("audit-log", "--limit", "1"))["actor"] == "ada"


def test_an_administrator_says_where_an_owner_may_register(fake: Fake, shell: Shell) -> None:
    places = ("s3://hospital/", "/data/eve/")
    flags = [part for place in places for part in ("--source", place)]
    shell("user", "add", "eve", "--role", "owner", *flags)
    assert fake.sources["eve"] == places
    assert "s3://hospital/" in shell("user", "change", "eve", "--source", places[0])
    assert fake.sources["eve"] == places[:1]
    shell("user", "change", "eve", "--no-source")
    assert fake.sources["eve"] == ()
    shell("user", "change", "eve", "--enable")
    assert fake.sources["eve"] is None


def test_errors_are_one_line(fake: Fake, shell: Shell) -> None:
    fake.failing = Problem(type="t", title="t", status=403, detail="not you", code="forbidden")
    assert shell("budget", "patients", code=1).splitlines() == ["error: not you"]


def test_no_gateway_there(shell: Shell, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> httpx.Response:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx.Client, "send", refuse)
    assert "did not answer (ConnectError)" in shell("whoami", code=1)
