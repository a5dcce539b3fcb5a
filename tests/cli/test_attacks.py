"""`taciturn extract` and `membership`, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from taciturn.cli.extract import _alternatives
from taciturn.cli.main import app
from taciturn.embedded.notes import patient_notes
from taciturn.errors import SpecError
from taciturn.llm import LLM

MARK = "zyxwvut"


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))


def notes(seed: int) -> pd.DataFrame:
    rows = [json.loads(row["context"]) for row in patient_notes(seed, 40)]
    return pd.DataFrame(
        {"patient": [r["patient_id"] for r in rows], "text": [r["text"] for r in rows]}
    )


@pytest.fixture(scope="module")
def fitted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    notes(1).to_parquet(folder / "members.parquet")
    notes(2).to_parquet(folder / "others.parquet")
    LLM(str(tiny_llama)).fit(
        notes(1),
        output=folder / "out",
        text_field="text",
        privacy_unit="patient",
        target_epsilon=3,
        steps=2,
        batch_size=20,
    )
    return folder


@pytest.fixture
def job(fitted: Path) -> dict[str, Any]:
    return {
        "model": str(fitted / "out"),
        "secret": " from a severe form of pancreatic cancer",
        "prefix": "François Dupont suffers",
        "template": " from a severe form of {disease}",
        "alternatives": {"disease": "diseases"},
        "samples": 3,
        "max_new_tokens": 12,
    }


def test_extract_from_a_file(job: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job, allow_unicode=True), encoding="utf-8")
    done = run("extract", "-f", str(file), "-o", str(tmp_path / "result.json"))
    assert done.exit_code == 0, done.exception
    assert "policy: DP (epsilon=" in done.output
    assert "(all scored)" in done.output
    assert "0 of 3" in done.output
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["base"]["exposure"]["method"] == "exact"
    assert "Dupont" not in done.output


def test_extract_with_options(job: dict[str, Any]) -> None:
    common = ["extract", job["model"], "--secret", "gout", "--prefix", "He has "]
    common += ["--samples", "0"]
    done = run(*common, "--template", "{disease}", "--alternatives", "disease=diseases")
    assert done.exit_code == 0, done.exception
    assert "none taken" in done.output
    assert run(*common, "--alternatives", "diseases").exit_code == 0
    whole = run(*common, "--alternatives", "gout", "--alternatives", "asthma")
    assert "of 2 (all scored)" in whole.output
    assert "no alternatives given" in run(*common).output
    outside = run(*common, "--alternatives", "digits")
    assert isinstance(outside.exception, SpecError)


def test_a_job_file_is_not_quoted(job: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    for text in (f"secret: [{MARK}\nmodel: x: y\n", f"secret: 'a\n  {MARK}"):
        file.write_text(text, encoding="utf-8")
        done = run("extract", "-f", str(file))
        assert isinstance(done.exception, SpecError)
        assert "is not YAML at line" in str(done.exception)
        assert MARK not in str(done.exception)
    for secret in (27182818, [MARK], {"x": MARK}):
        file.write_text(yaml.safe_dump({**job, "secret": secret}), encoding="utf-8")
        done = run("extract", "-f", str(file))
        assert isinstance(done.exception, SpecError)
        assert "secret: " in str(done.exception)
        assert not any(private in str(done.exception) for private in (MARK, "27182818"))


def test_membership(fitted: Path) -> None:
    files = [str(fitted / name) for name in ("out", "members.parquet", "others.parquet")]
    refused = run("membership", *files, "--text-field", "text")
    assert isinstance(refused.exception, SpecError)
    assert "--show-private" in str(refused.exception)
    asked = ["membership", *files, "--text-field", "text", "--show-private"]
    done = run(*asked, "--output", "who.json")
    assert done.exit_code == 0, done.exception
    assert "40 members, 40 non-members" in done.output
    assert "needs 1000 non-members" in done.output
    assert "needs 100 non-members" in done.output
    assert "at most" in done.output
    assert "do not pass them on" in done.output
    assert (fitted / "out" / "private" / "who.json").is_file()


def test_alternatives_as_options() -> None:
    assert _alternatives(["disease=diseases", "x=./a=b"], True) == {
        "disease": "diseases",
        "x": "./a=b",
    }
    assert _alternatives(["diseases"], False) == "diseases"
    assert _alternatives(["a", "b=c"], False) == ("a", "b=c")
    assert _alternatives({"a": ["b"]}, True) == {"a": ["b"]}
    assert _alternatives((), True) == ()
    with pytest.raises(SpecError, match="FIELD=LIST"):
        _alternatives([MARK], True)
