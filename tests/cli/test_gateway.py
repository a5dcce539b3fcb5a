"""The commands against a gateway in memory: what they ask for, print and exit with."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from support.fake_gateway import FOUND, TOKEN, URL, FakeApi, approval, dataset, exported
from taciturn.cli import dataset as dataset_commands
from taciturn.cli import gateway
from taciturn.cli import jobs as jobs_commands
from taciturn.wire.identity import LoginState
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
def shell(taciturn: Callable[..., tuple[int, str, str]]) -> Shell:
    return Shell(taciturn)


def test_login_keeps_a_token_that_works(
    fake: FakeApi, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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


def test_a_login_is_allowed_in_a_browser(fake: FakeApi, shell: Shell) -> None:
    fake.answers = [LoginState.OPEN, LoginState.OPEN, LoginState.ALLOWED]
    output = shell("login", URL)
    assert f"open {URL}/login-requests/BCDF-GHJK" in output
    assert "if it shows the code BCDF-GHJK" in output
    assert "as ada (owner)" in output
    assert "tac_device" not in output
    fake.answers = [LoginState.DENIED]
    assert "denied in the browser" in shell("login", URL, code=1)
    assert "exclude each other" in shell("login", URL, "--token", "--name", "ada", code=1)


class _Lines:
    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def readline(self) -> str:
        return self.lines.pop(0) if self.lines else ""


def test_a_password_comes_from_standard_input_where_it_is_asked_for(
    fake: FakeApi, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(*lines: str) -> None:
        monkeypatch.setattr(sys, "stdin", _Lines(*lines))

    given("correct horse\r\n")
    output = shell("login", URL, "--name", "ada", "--password-stdin")
    assert "as ada (owner)" in output
    assert "root made a link for your password" in output
    given("current horse\n", "another horse battery\n")
    assert "is changed" in shell("password", "--password-stdin")
    given("a third horse battery")
    assert "is set" in shell("password", f"{URL}/v1/password#tac_link", "--password-stdin")
    given(f"{URL}/v1/password#tac_link\n", "a fourth horse battery\n")
    assert f"taciturn login {URL} --name ada" in shell("password", "-", "--password-stdin")
    expected = ["correct horse", "another horse battery"]
    assert fake.passwords == [*expected, "a third horse battery", "a fourth horse battery"]
    assert "no line left" in shell("login", URL, "--name", "ada", "--password-stdin", code=1)
    assert "is for --name" in shell("login", URL, "--password-stdin", code=1)
    given("a fifth horse battery\n")
    assert "must be whole" in shell("password", f"{URL}/v1/password", "--password-stdin", code=1)
    assert len(fake.passwords) == 4


def test_prune_says_what_is_gone(fake: FakeApi, shell: Shell) -> None:
    assert "nothing is older than 365 days" in shell("admin", "prune")
    fake.exports = [exported(1, "0" * 64)]
    output = shell("admin", "prune")
    assert "audit log 1-1: exported, then removed" in output
    assert "incidents older than 30 days: 1 removed" in output
    assert json.loads(shell("admin", "prune", "--json"))["incidents"] == 1


def test_the_line_of_the_data_owner(fake: FakeApi, shell: Shell, tmp_path: Path) -> None:
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


ADD = ("dataset", "add", "notes", "/data/notes.csv", "--unit", "md5(id)", "--namespace", "patients",
       "--units", "1100")  # fmt: skip


def test_names_that_may_be_a_row_are_confirmed(fake: FakeApi, shell: Shell) -> None:
    fake.found = FOUND
    output = shell(*ADD, code=1)
    assert "'Dupont': string" in output
    assert "doubtful: column 1, '17', is a number" in output
    assert "taciturn dataset confirm notes --yes" in output
    assert fake.stated == {}
    assert "nobody else is shown" in shell("dataset", "show", "notes")
    shell("dataset", "confirm", "notes", code=1)
    assert fake.stated == {}
    assert "not the ones" in shell("dataset", "confirm", "notes", "--columns", "id, name", code=1)
    ready = shell("dataset", "confirm", "notes", "--no-header", "--columns", "id, name")
    assert "notes: ready" in ready
    assert [each.name for each in fake.stated["notes"].columns or ()] == ["id", "name"]
    shell(*ADD, code=1)
    assert "notes: ready" in shell("dataset", "confirm", "notes", "--yes")
    assert fake.stated["notes"].header
    assert "notes: ready" in shell(*ADD, "--columns", "17,Dupont")


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_on_a_terminal_they_are_asked_for(
    fake: FakeApi, shell: Shell, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    """So that registering is one command; to say nothing is to say no."""
    fake.found = FOUND
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(dataset_commands, "on_terminal", lambda: True)
    assert ("notes: ready" in shell(*ADD, code=code)) == (code == 0)
    assert bool(fake.stated) == (code == 0)


def test_datasets(fake: FakeApi, shell: Shell) -> None:
    assert "phee" in shell("dataset", "list")
    assert json.loads(shell("dataset", "list", "--json"))["name"] == "phee"
    assert "mock (invented rows)" in shell("dataset", "show", "phee")
    assert "selected" in shell("dataset", "select", "phee", "upper(text) AS text")
    assert "aggregate" in shell("dataset", "select", "phee", "count(*)", code=1)
    assert "removed" in shell("dataset", "remove", "phee")
    assert "there is no dataset 'phee'" in shell("dataset", "show", "phee", code=1)


@pytest.mark.parametrize("name", [(), ("phee",)])
def test_a_synthetic_preview_needs_a_budget_and_no_more(
    fake: FakeApi, shell: Shell, name: tuple[str, ...]
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


def test_terms(fake: FakeApi, shell: Shell) -> None:
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
    shell("policy", "set", "patients", "--reset-wait-h", "0")
    assert fake.policies["patients"].reset_wait_h == 0
    assert "nothing to change" in shell("policy", "set", "patients", code=1)


def test_fit_runs_where_the_data_is(fake: FakeApi, shell: Shell, tmp_path: Path) -> None:
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


def test_fit_from_a_file_without_waiting(fake: FakeApi, shell: Shell, tmp_path: Path) -> None:
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
    assert shell("job", "machines", job) == ""
    assert "cancelled" in shell("job", "cancel", job)


def test_public_data_are_declared_and_named(fake: FakeApi, shell: Shell, tmp_path: Path) -> None:
    declared = ("--licence", "CC BY 4.0", "--origin", "case reports of a journal")
    add = ("public-data", "add", "cases", "s3://open/cases.jsonl")
    assert "cases: public" in shell(*add, *declared)
    assert "CC BY 4.0" in shell("public-data", "list")
    assert "case reports" in shell("public-data", "show", "cases")
    job = tmp_path / "job.yaml"
    job.write_text(
        "data: gateway:phee\nmodel: m\ntext_field: text\ntarget_epsilon: 3\npublic_data: cases\n"
    )
    shell("fit", "-f", str(job), "--no-wait")
    (view,) = fake.jobs.values()
    assert view.request["public_data"] == "cases"
    assert "cases: removed" in shell("public-data", "remove", "cases")


def test_what_is_not_for_a_gateway_is_refused(fake: FakeApi, shell: Shell) -> None:
    assert "resume is for data on this machine" in shell(*FIT, "--resume", code=1)
    assert "not yours to choose" in shell(*FIT, "--threads", "2", code=1)
    refusal = shell(*FIT, "--public-data", "/data/cases.jsonl", code=1)
    assert "registered data and nothing else" in refusal
    assert "wait is for data behind a gateway" in shell(
        *("fit", "--data", "x.csv", "--model", "m", "--target-epsilon", "3", "--no-wait"), code=1
    )
    assert fake.jobs == {}


def test_a_failed_job_exits_with_1(fake: FakeApi, shell: Shell) -> None:
    fake.outcome = JobState.FAILED
    output = shell(*FIT, code=1)
    assert "ask the owner (incident inc_1)" in output
    assert "Traceback" not in output


def test_plan_and_models(fake: FakeApi, shell: Shell, tmp_path: Path) -> None:
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


def test_approvals_and_people(fake: FakeApi, shell: Shell) -> None:
    assert "no_guarantee" in shell("approval", "list")
    assert "1 of 2 have approved" in shell("approval", "approve", "apr_1", "--comment", "fine")
    assert "open" in shell("approval", "reject", "apr_1")
    assert "1 of 2 have approved" in shell("approval", "withdraw", "apr_1", "--comment", "oh")
    assert fake.decisions == [
        ("apr_1", "approve"),
        ("apr_1", "reject"),
        ("apr_1", "withdraw: oh"),
    ]
    assert "ada" in shell("user", "list")
    assert "eve: practitioner" in shell("user", "add", "eve", "--role", "practitioner")
    link = f"{URL}/v1/password#tac_link"
    assert link in shell("user", "add", "eve", "--role", "practitioner", "--link").splitlines()
    assert link in shell("user", "link", "eve").splitlines()
    assert shell("token", "add", "ci").strip() == "tac_secret"
    assert "a row" in shell("incident", "show", "inc_1")


def test_an_approver_is_shown_what_they_approve(fake: FakeApi, shell: Shell) -> None:
    shown = shell("approval", "show", "apr_1")
    facts = (
        *("eve, 2026-01-01 00:00 UTC", "a poster for the retreat", "fit job_1", "phee", "patients"),
        *("taciturn/tiny-medical", "train, 0.1 held out", "none: no guarantee", "40"),
        "the model may repeat any row",
        "the budget as it is, which says nothing about it (63.0% of the budget are left now)",
        *("by 1 of 2", "bob approved, 2026-01-01 00:00 UTC: fine by me"),
    )
    for fact in facts:
        assert fact in shown
    assert json.loads(shell("approval", "show", "apr_1", "--json"))["left"] == 0.63
    assert "a poster for the retreat" in shell("approval", "list")
    for after, words in ((0.5, "50.0% of the budget; 63.0%"), (-0.1, "nothing: it needs 73.0%")):
        view = approval().model_copy(update={"reason": "exceeds_grant", "left_after": after})
        assert words in jobs_commands._approval_facts(view)["it would leave"]


def test_a_fit_says_what_it_is_for(fake: FakeApi, shell: Shell) -> None:
    shell(*FIT, "--no-wait", "--purpose", "a poster", "--name", "first")
    (job,) = fake.jobs.values()
    assert (job.request["purpose"], job.request["name"]) == ("a poster", "first")
    local = ("--data", "x.csv", "--model", "m", "--target-epsilon", "3", "--purpose", "x")
    assert "purpose is for data behind a gateway" in shell("fit", *local, code=1)


def test_the_audit_log_is_asked_for_a_span_of_one_person(fake: FakeApi, shell: Shell) -> None:
    span = ("--since", "2026-03-01", "--until", "2026-03-01T12:30+01:00")
    shell("audit-log", "--user", "ada", "--action", "jobs:create", *span, "--limit", "1")
    asked = fake.asked[0]
    assert {name: asked[name] for name in ("actor", "action", "since", "until")} == {
        "actor": "user:ada",
        "action": "jobs:create",
        "since": "2026-03-01T00:00:00+00:00",
        "until": "2026-03-01T12:30:00+01:00",
    }
    shell("audit-log", "--user", "anonymous", "--since", "2h")
    assert fake.asked[-1]["actor"] == "anonymous"
    ago = datetime.now(UTC) - datetime.fromisoformat(fake.asked[-1]["since"])
    assert timedelta(hours=2) <= ago < timedelta(hours=2, minutes=5)
    assert "2026-03-01, 2026" in shell("audit-log", "--since", "yesterday", code=1)


def test_the_audit_log_is_exported_whole(fake: FakeApi, shell: Shell, tmp_path: Path) -> None:
    lines = shell("audit-log", "--json", "--limit", "2").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [3, 2]
    path = tmp_path / "march.jsonl"
    assert "3 record(s)" in shell("audit-log", "--output", str(path))
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [3, 2, 1]
    assert "already exists" in shell("audit-log", "--output", str(path), code=1)


def test_the_ledger_is_verified_by_the_gateway_where_no_database_is_named(
    fake: FakeApi, shell: Shell, tmp_path: Path
) -> None:
    anchor = tmp_path / "anchor.json"
    assert "IN ORDER: 6 entries of 1 namespace(s); seals checked; 0 anchor(s)" in shell(
        "ledger", "verify", "--write-anchor", str(anchor)
    )
    assert "1 anchor(s)" in shell("ledger", "verify", "--anchor", str(anchor))
    anchor.write_text(anchor.read_text().replace('"entries":6', '"entries":60'))
    output = shell("ledger", "verify", "--anchor", str(anchor), code=1)
    assert "namespace 'patients', entry 60: it is gone" in output
    assert "NOT IN ORDER" in output
    anchor.write_text("{}")
    assert "holds no anchors" in shell("ledger", "verify", "--anchor", str(anchor), code=1)
    assert "--key is for --database" in shell("ledger", "verify", "--key", "x", code=1)


LISTS = ("dataset list", "job list", "model list", "model bases", "approval list", "user list",
         "token list", "grant list patients", "budget", "audit-log")  # fmt: skip


@pytest.mark.parametrize("command", LISTS)
def test_off_a_terminal_a_list_is_tsv(fake: FakeApi, shell: Shell, command: str) -> None:
    fake.datasets["phee"] = dataset("phee", description="notes\tof the\nward")
    shell(*FIT, "--no-wait")
    shell("grant", "add", "patients", "user:eve", "--epsilon", "2", "--delta", "1e-7")
    header, *rows = shell(*command.split()).splitlines()
    names = header.split("\t")
    assert len(names) > 2
    assert rows
    assert all(len(row.split("\t")) == len(names) for row in rows)


@pytest.mark.parametrize("width", ["40", "80", "120", "300"])
@pytest.mark.parametrize("command", ["job list", "approval list", "model list", "job show JOB"])
def test_ids_are_never_cut(
    fake: FakeApi, shell: Shell, monkeypatch: pytest.MonkeyPatch, width: str, command: str
) -> None:
    shell(*FIT, "--no-wait")
    (job,) = fake.jobs
    ids = {"job": job, "model": "mod_00000000000000000001", "approval": "apr_00000000000000000001"}
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(gateway, "on_terminal", lambda: True)
    shown = shell(*command.replace("JOB", job).split())
    assert any(ids[command.split()[0]] in line for line in shown.splitlines())
    assert "…" not in shown


def test_a_terminal_obeys_nobody_who_wrote_a_cell(fake: FakeApi, shell: Shell) -> None:
    fake.datasets["phee"] = dataset("phee", description="notes\x1b[2J\x9b31m of the ward")
    shown = shell("dataset", "list")
    assert "of the ward" in shown
    assert not {"\x1b", "\x9b"} & set(shown)


def test_an_administrator_says_where_an_owner_may_register(fake: FakeApi, shell: Shell) -> None:
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


def test_errors_are_one_line(fake: FakeApi, shell: Shell) -> None:
    fake.failing = Problem(type="t", title="t", status=403, detail="not you", code="forbidden")
    assert shell("budget", "patients", code=1).splitlines() == ["error: not you"]


def test_no_gateway_there(shell: Shell, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> httpx.Response:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx.Client, "send", refuse)
    assert "did not answer (ConnectError)" in shell("whoami", code=1)
