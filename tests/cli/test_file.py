"""Every command takes its fields from a YAML file; flags win over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from taciturn.cli.main import app
from taciturn.errors import OutputError, UnknownFieldError


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, list(arguments))


def write(path: Path, fields: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(fields))
    return str(path)


@pytest.fixture
def job(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "notes.csv").write_text("patient,text\np1,The patient coughs.\np2,No fever.\n")
    return {
        "model": str(tiny_llama),
        "data": str(tmp_path / "notes.csv"),
        "text_field": "text",
        "privacy_unit": "patient",
        "target_epsilon": 3,
        "output": str(tmp_path / "out"),
    }


def test_sample(tiny_llama: Path, tmp_path: Path) -> None:
    fields = {"model": str(tiny_llama), "prompt": ["A", "B"], "max_new_tokens": 2, "n": 3}
    file = write(tmp_path / "sample.yaml", fields)
    output = tmp_path / "out.jsonl"
    done = run("sample", "-f", file, "-n", "1", "-o", str(output))
    assert done.exit_code == 0, done.exception
    assert len(output.read_text().splitlines()) == 2


def test_demo(tmp_path: Path) -> None:
    file = write(tmp_path / "demo.yaml", {"output": str(tmp_path / "no" / "page.html")})
    assert isinstance(run("demo", "-f", file).exception, OutputError)
    file = write(tmp_path / "demo.yaml", {"seeds": 3})
    assert isinstance(run("demo", "-f", file).exception, UnknownFieldError)


def test_doctor_finds_a_job_fit_to_start(job: dict[str, Any], tmp_path: Path) -> None:
    done = run("doctor", "-f", write(tmp_path / "job.yaml", job))
    assert "LlamaForCausalLM" in done.output
    assert "columns and SQL fit" in done.output
    assert "PROBLEM" not in done.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/no/such/model"}, "is not there"),
        ({"text_field": "note"}, "note"),
        ({"privacy_unit": "split_part(patint, '_', 1)"}, "patint"),
        ({"data": "/no/such.csv"}, "/no/such.csv"),
        ({"output": "."}, "is not empty"),
        ({"target_epsilon": 0}, r"[0.01, 1000]"),
        ({"targt_epsilon": 1}, "did you mean 'target_epsilon'"),
    ],
)
def test_doctor_says_why_a_job_could_not_start(
    changes: dict[str, Any], message: str, job: dict[str, Any], tmp_path: Path
) -> None:
    done = run("doctor", "-f", write(tmp_path / "job.yaml", {**job, **changes}))
    assert done.exit_code == 1
    assert "PROBLEM" in done.output
    assert message in done.output
