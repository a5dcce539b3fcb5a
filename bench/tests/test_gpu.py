"""The script for GPUs works from end to end, on the CPU and with tiny shapes: it cannot rot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpus.items import FAIL, PASS, SHOWN, SKIP, Item, Outcome, Run, SkippedError, cases, chosen

SCRIPT = Path(__file__).resolve().parents[1] / "gpu.py"


def run_script(folder: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what was printed, and the file."""
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(folder)]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert (folder / "gpu.json").exists(), done.stdout + done.stderr
    return done.returncode, done.stdout, json.loads((folder / "gpu.json").read_text("utf-8"))


def verdicts(content: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["verdict"] for item in content["items"]}


def test_checks_and_a_step(tmp_path: Path) -> None:
    names = ["norms/llama", "chacha20", "noise law", "noise grid", "matrix", "step 1B lora T=512"]
    code, out, content = run_script(
        tmp_path, "--only", *names, "--skip", "opacus", "--minutes", "4"
    )
    found = verdicts(content)
    assert code == 0, out
    assert {found[name] for name in names[:4]} == {PASS}
    assert found["matrix peak"] == found["step 1B lora T=512"] == SHOWN
    rows = {row["variant"]: row for row in content["summary"]["speed"]}
    assert set(rows) == {"plain", "ordinary", "private", "trainer"}
    assert all(row["tokens_per_second"] > 0 for row in rows.values()), rows
    assert rows["private"]["fixed_seconds"]["noise"] > 0
    goals = {goal["what"]: goal["met"] for goal in content["summary"]["goals"]}
    assert goals["1B LoRA, time of 1,024 units / plain"] is not None
    assert goals["8B LoRA, time of 1,024 units / plain"] is None
    assert "4 pass, 0 FAIL" in out
    assert (tmp_path / "gpu.md").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_of_it(tmp_path: Path) -> None:
    code, out, content = run_script(tmp_path, "--minutes", "9")
    assert code == 0, out
    assert len(out) < 12_000
    found = verdicts(content)
    # What takes a GPU says so.
    assert {name for name, verdict in found.items() if verdict == SKIP} <= {
        "synchronisation",
        "kernels",
        *(name for name in found if name.startswith("profile")),
    }


def _item(name: str, outcome: Outcome | BaseException, seconds: float = 0.0) -> Item:
    def work() -> Outcome:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return Item(name, seconds, work)


def test_nothing_stops_the_other_items(tmp_path: Path) -> None:
    run = Run(tmp_path / "gpu.json", 1.0, {})
    items = [
        _item("good", Outcome(True, "1")),
        _item("bad", Outcome(False, "2")),
        _item("broken", RuntimeError("CUDA error\nmore")),
        _item("absent", SkippedError("not here")),
        _item("long", Outcome(True, "3"), seconds=1e6),
        _item("shown", Outcome(None, "4")),
    ]
    seen = []
    for item in items:
        run.try_item(item)
        seen.append(len(json.loads((tmp_path / "gpu.json").read_text("utf-8"))["items"]))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert [line.verdict for line in run.lines] == [PASS, FAIL, FAIL, SKIP, SKIP, SHOWN]
    broken = run.lines[2]
    assert broken.figure == "RuntimeError: CUDA error"
    assert broken.trace[-1] == "more"
    assert len(broken.trace) <= 15


def test_a_failed_case_fails_them_all_and_is_said_first() -> None:
    def broken() -> Outcome:
        raise ValueError("no")

    def absent() -> Outcome:
        raise SkippedError("not installed")

    outcome = cases(
        {"one": lambda: Outcome(True, "1"), "two": broken, "three": absent, "four": _shown}
    )
    assert outcome.passed is False
    assert outcome.figure == "FAIL two ValueError: no; one 1; three skipped (not installed); four 4"
    with pytest.raises(SkippedError, match="not installed"):
        cases({"three": absent})


def _shown() -> Outcome:
    return Outcome(None, "4")


def test_items_by_parts_of_names() -> None:
    items = [_item(name, Outcome(True, "")) for name in ("norms/llama", "norms/qwen3", "noise")]
    assert [item.name for item in chosen(items, ["norms"], ["qwen"])] == ["norms/llama"]
    assert len(chosen(items, [], [])) == 3
