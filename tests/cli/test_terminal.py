"""Terminals as people have them: paths with spaces, ASCII pipes, bytes that are no UTF-8."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from taciturn.cli.main import main

Taciturn = Callable[..., tuple[int, str, str]]


def test_what_is_printed_to_try_can_be_pasted(
    taciturn: Taciturn, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.jsonl").write_text(
        "".join(json.dumps({"text": f"note {i}"}) + "\n" for i in range(16)), encoding="utf-8"
    )
    output = tmp_path / 'Ada\'s "fit" $HOME'
    code, out, err = taciturn(
        "fit", "--model", str(tiny_llama), "--data", str(tmp_path / "notes.jsonl"),
        "--text-field", "text", "--target-epsilon", "8", "--steps", "1", "--canaries", "6",
        "--output", str(output),
    )  # fmt: skip
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("  taciturn sample"))
    words = shlex.split(line)
    assert words == ["taciturn", "sample", str(output), "--prompt", "The patient"]
    audit = re.search(r"what they prove: (taciturn audit .*)", out)
    assert audit is not None
    assert shlex.split(audit.group(1)) == ["taciturn", "audit", str(output)]
    assert taciturn(*words[1:], "--max-new-tokens", "1")[0] == 0


def printed(arguments: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What a command leaves in a pipe of that encoding."""
    pipes = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "argv", ["taciturn", *arguments])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipes[0])
        patch.setattr(sys, "stderr", pipes[1])
        with pytest.raises(SystemExit) as stop:
            main()
    for pipe in pipes:
        pipe.flush()
    written = b"".join(pipe.buffer.getvalue() for pipe in pipes)  # type: ignore[attr-defined]
    assert b"Traceback" not in written
    assert (stop.value.code or 0) in (0, 1), written
    return bytes(written)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_pipe_cannot_take(
    tiny_llama: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["sample", str(tiny_llama), "--prompt", "café \u2603", "--max-new-tokens", "2"]
    shown = printed(asked, encoding, monkeypatch)
    assert "café \u2603".encode(encoding, "replace") in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "MODEL", "--prompt", "caf\udce9"],
        ["sample", "MODEL", "--prompt", "a", "--output", "no/caf\udce9"],
        ["sample", "caf\udce9", "--prompt", "a"],
        ["sample", "MODEL", "--prompt", "a", "--device", "caf\udce9"],
        ["sample", "-f", "caf\udce9.yaml"],
        ["plan", "--model", "MODEL", "--target-epsilon", "8", "--data", "caf\udce9"],
        ["fit", "--model", "MODEL", "--target-epsilon", "8", "--data", "no.csv",
         "--privacy-unit", "h\udcf4pital"],
        ["extract", "MODEL", "--secret", "caf\udce9"],
        ["evaluate", "MODEL", "caf\udce9"],
        ["cert", "verify", "caf\udce9"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_arguments_of_another_encoding(
    tiny_llama: Path,
    tmp_path: Path,
    arguments: list[str],
    encoding: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [str(tiny_llama) if each == "MODEL" else each for each in arguments]
    assert b"error: " in printed(named, encoding, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_rows_in_a_file_whose_name_is_no_utf8(
    taciturn: Taciturn, tiny_llama: Path, tmp_path: Path
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    path.write_text("".join('{"text": "a note"}\n' for _ in range(12)), encoding="utf-8")
    code, out, err = taciturn(
        "plan", "--model", str(tiny_llama), "--data", str(path), "--text-field", "text",
        "--target-epsilon", "8",
    )  # fmt: skip
    assert code == 0, err
    assert "noise multiplier" in out
