"""`taciturn evaluate`, `synthesize` and `downstream`, in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from taciturn.cli import main as module
from taciturn.cli.synthesize import _prompts
from taciturn.errors import SpecError
from taciturn.llm import LLM


@pytest.fixture(scope="module")
def fitted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    frame = pd.DataFrame(
        {
            "patient": [f"p{i // 2}" for i in range(40)],
            "text": [f"Patient {i} has a {'cough' if i % 2 else 'fever'}." for i in range(40)],
            "label": ["cough" if i % 2 else "fever" for i in range(40)],
        }
    )
    frame.to_parquet(folder / "notes.parquet")
    LLM(str(tiny_llama)).fit(
        frame,
        output=folder / "out",
        text_field="text",
        privacy_unit="patient",
        target_epsilon=8,
        steps=2,
        batch_size=8,
    )
    return folder


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["taciturn", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        module.main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_commands(
    fitted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fitted)
    monkeypatch.delenv("TACITURN_SIGNING_KEY", raising=False)
    common = ["out", "notes.parquet", "--text-field", "text"]
    code, out, err = run(monkeypatch, capsys, "evaluate", *common)
    assert code == 0, err
    assert "token accuracy" in out
    assert "(public)" in out
    private = ["--privacy-unit", "patient", "--target-epsilon", "1", "--samples", "20"]
    private += ["--max-new-tokens", "6"]
    code, out, err = run(monkeypatch, capsys, "evaluate", *common, *private)
    assert code == 0, err
    assert "±" in out
    assert "MAUVE-style" in out
    assert "guarantee is now DP (epsilon=" in out
    code, out, _ = run(monkeypatch, capsys, "evaluate", *common, "--show-private")
    assert (code, "do not pass them on" in out) == (0, True)
    synthesize = ["synthesize", "out", "-n", "4", "-o", "s.parquet", "--max-new-tokens", "4"]
    prompts = ["--prompt", "cough=A cough", "--prompt", "fever=A fever"]
    code, out, err = run(monkeypatch, capsys, *synthesize, *prompts)
    assert code == 0, err
    assert "4 records: s.parquet" in out
    code, out, err = run(
        monkeypatch,
        capsys,
        "downstream",
        "out",
        "s.parquet",
        "notes.parquet",
        "--text-field",
        "text",
    )
    assert code == 0, err
    assert "accuracy" in out
    code, _, err = run(monkeypatch, capsys, *synthesize)
    assert (code, "already exists" in err) == (1, True)
    code, _, err = run(monkeypatch, capsys, "evaluate", "out")
    assert (code, "data is missing" in err) == (1, True)


def test_how_exact_an_evaluation_would_be_is_said_before_anything_is_spent(
    fitted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fitted)
    asked = ["evaluate", "out", "--target-epsilon", "2", "--plan"]
    before = (fitted / "out" / "privacy_report.json").read_bytes()
    code, out, err = run(monkeypatch, capsys, *asked, "--n-units", "200")
    assert code == 0, err
    assert "would tell of 200 units" in out
    assert "nats per token" in out
    assert (fitted / "out" / "privacy_report.json").read_bytes() == before
    for wrong, said in (
        ([*asked], "n_units"),
        (["evaluate", "out", "--plan", "--n-units", "200"], "free and exact"),
        (["evaluate", "out", "notes.parquet", "--n-units", "5"], "--plan"),
    ):
        code, _, err = run(monkeypatch, capsys, *wrong)
        assert code == 1
        assert said in err


def test_labels_of_prompts() -> None:
    assert _prompts(("a", "b")) == ("a", "b")
    assert _prompts(("x=a", "y=b=c")) == {"x": "a", "y": "b=c"}
    for mixed in (("x=a", "b"), ("x=a", "x=b")):
        with pytest.raises(SpecError, match="LABEL=TEXT"):
            _prompts(mixed)
