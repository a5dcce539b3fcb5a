"""`--json`: every command that prints a table has it, and prints JSON and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from support.commands import commands, names
from support.databases import open_quickly
from support.fake_gateway import FakeApi
from support.ledger import LedgerWorld
from taciturn.certificate.clock import now
from taciturn.certificate.keygen import write_key
from taciturn.certificate.sign import issue
from taciturn.certificate.signers import need_signer
from taciturn.llm import LLM
from taciturn.server.schema import versions

Taciturn = Callable[..., tuple[int, str, str]]

TABLES = {"Table", "figures", "table", "preview", "show", "show_facts", "show_rows", "show_value"}
"""Names by which a table is printed, of a line of figures to a column."""

GATEWAY = {
    "dataset list": "",
    "dataset show": "phee",
    "dataset select": "phee text",
    "dataset synthesize": "phee --epsilon 1",
    "policy show": "patients",
    "policy set": "patients --job-hours 3",
    "grant list": "patients",
    "budget": "patients",
    "job list": "",
    "job show": "JOB",
    "job machines": "JOB",
    "approval list": "",
    "approval show": "apr_1",
    "public-data list": "",
    "public-data show": "cases",
    "model list": "",
    "model bases": "",
    "model show": "gateway:mod_00000000000000000001",
    "user list": "",
    "user change": "ada --enable",
    "token list": "",
    "whoami": "",
    "audit-log": "",
    "admin prune": "",
}
"""Command -> arguments with which it has something to print."""

_NOTES = "notes.parquet --text-field text"
HERE = {
    "plan": ("--model MODEL --n-units 1000 --target-epsilon 3", "plan"),
    "evaluate": (f"out {_NOTES}", "base"),
    "audit": ("out", "epsilon_lower_bound"),
    "extract": ("out --secret gout --samples 1 --max-new-tokens 2", "base"),
    "membership": ("out notes.parquet others.parquet --text-field text --show-private", "attacks"),
    "import-config": ("theirs.yaml --output job.yaml", "translated"),
    "downstream": (f"out {_NOTES.replace(' ', ' notes.parquet ', 1)}", "accuracy"),
    "doctor": ("", "findings"),
    "demo": ("--notes invented.jsonl", "records"),
    "serve": ("--check --data-dir server", "findings"),
    "cert verify": ("certified --trust key.trust.json", "statement"),
    "ledger show": ("patients --database sqlite:///ledger.db", "namespaces"),
}
"""Command -> arguments, and one of the keys that it answers."""


def with_json() -> set[str]:
    return {
        path
        for path, command in commands().items()
        if any("--json" in option.opts for option in command.params)
    }


def test_a_command_that_prints_a_table_also_prints_json() -> None:
    tables = {path for path, command in commands().items() if names(command.callback) & TABLES}
    assert len(tables) > 25
    assert tables - with_json() == set(), "give these --json: taciturn.cli.gateway.Json, or keys"


def test_every_answer_is_tried_here() -> None:
    assert with_json() == GATEWAY.keys() | HERE.keys(), "add a line to GATEWAY or to HERE"


def test_the_help_says_which_keys_there_are() -> None:
    for path, command in commands().items():
        for option in command.params:
            if "--json" in option.opts:
                assert re.match("Print only JSON, for programs: .{8}", option.help), path


@pytest.mark.parametrize("command", GATEWAY)
def test_a_gateways_answers(fake: FakeApi, taciturn: Taciturn, command: str) -> None:
    taciturn("fit", "--data", "gateway:phee", "--model", "m", "--target-epsilon", "3", "--no-wait")
    taciturn(
        *("public-data", "add", "cases", "s3://open/cases.jsonl", "--text-field", "case"),
        *("--licence", "CC0", "--origin", "a journal"),
    )
    taciturn("grant", "add", "patients", "user:eve", "--epsilon", "2", "--delta", "1e-7")
    (job,) = fake.jobs
    arguments = GATEWAY[command].replace("JOB", job).split()
    code, out, err = taciturn(*command.split(), *arguments, "--json")
    assert code == 0, err
    # A list is an object a line, anything else is one object.
    values = [json.loads(line) for line in out.splitlines()] if _is_list(out) else [json.loads(out)]
    assert all(isinstance(value, dict) and value for value in values)
    assert values or command == "job machines"  # none of this gateway had a machine


def _is_list(out: str) -> bool:
    return all(line.startswith("{") and line.endswith("}") for line in out.splitlines())


@pytest.fixture(scope="module")
def folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notes, a model that was fitted on them with canaries, and a ledger with one job."""
    folder = tmp_path_factory.mktemp("here")
    for name, words in (("notes", ("cough", "fever")), ("others", ("gout", "asthma"))):
        frame = pd.DataFrame(
            {
                "text": [f"Patient {i} has {words[i % 2]}." for i in range(40)],
                "label": [words[i % 2] for i in range(40)],
            }
        )
        frame.to_parquet(folder / f"{name}.parquet")
    (folder / "theirs.yaml").write_text("base_model: m\nadapter: lora\n", encoding="utf-8")
    LLM(str(tiny_llama)).fit(
        str(folder / "notes.parquet"),
        output=folder / "out",
        text_field="text",
        target_epsilon=8,
        steps=1,
        batch_size=8,
        canaries=20,
    )
    shutil.copytree(folder / "out", folder / "certified")
    key = write_key(folder / "key", name="me", valid_from=now(), days=9, password=None)
    issue(folder / "certified", need_signer(str(key.private)))
    engine = open_quickly(f"sqlite:///{folder / 'ledger.db'}")
    versions.upgrade(engine)
    world = LedgerWorld(engine)
    world.open()
    world.grant("user:ada")
    world.charge(2, world.started("job-7", grants=["user:ada"]), "job-7")
    engine.dispose()
    return folder


@pytest.mark.parametrize("command", HERE)
def test_answers_of_what_runs_here(
    command: str,
    folder: Path,
    tiny_llama: Path,
    taciturn: Taciturn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    for name in ("TACITURN_SIGNING_KEY", "TACITURN_LEDGER_KEY", "TACITURN_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    arguments, key = HERE[command]
    words = arguments.replace("MODEL", str(tiny_llama)).split()
    code, out, err = taciturn(*command.split(), *words, "--json")
    answer: dict[str, Any] = json.loads(out)
    assert code == 0 or not answer["healthy"], err
    assert answer[key] is not None
    if command == "extract":
        assert "greedy_text" not in out
    if command == "membership":
        assert "scores" not in answer


def test_json_is_for_the_check_of_a_server(taciturn: Taciturn) -> None:
    code, out, err = taciturn("serve", "--json")
    assert (code, out) == (1, "")
    assert "give --check" in err


def test_an_error_leaves_standard_output_empty(taciturn: Taciturn) -> None:
    code, out, err = taciturn("evaluate", "/no/such/model", "x.csv", "--json")
    assert (code, out) == (1, "")
    assert "check the path" in err
