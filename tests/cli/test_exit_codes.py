"""Exit codes: those of the reference page are those that commands end with, and no others."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import typer

from support.commands import commands, names
from support.fake_gateway import FakeApi
from taciturn import errors
from taciturn.cli import ExitCode
from taciturn.cli import main as cli
from taciturn.sdk.client import Client

Taciturn = Callable[..., tuple[int, str, str]]

ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.TaciturnError)
]


@pytest.fixture(scope="module")
def reference(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", root / "docs/site/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_page_has_them_all(reference: ModuleType) -> None:
    page = reference.command_line()
    for code in ExitCode:
        assert f"| {int(code)} | {code.meaning} |" in page
    assert "| `taciturn evaluate` | policy, basis, base" in page
    assert "--show-completion" in page


def test_a_version_is_done(taciturn: Taciturn) -> None:
    assert taciturn("--version")[0] == ExitCode.DONE


@pytest.mark.parametrize(
    "error", [*ERRORS, TimeoutError, ModuleNotFoundError], ids=lambda kind: kind.__name__
)
def test_what_taciturn_refuses(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        if error is ModuleNotFoundError:
            raise ModuleNotFoundError("no torch", name="torch")
        # Past a constructor with arguments of its own. Ours are laid out as Exception.
        make = Exception.__new__ if issubclass(error, errors.TaciturnError) else error.__new__
        raise make(error, "the reason")

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == ExitCode.REFUSED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")


@pytest.mark.parametrize(
    "arguments", [("fit", "--no-such-option"), ("no-such-command",), ("login",), ("job", "shwo")]
)
def test_what_cannot_be_understood(taciturn: Taciturn, arguments: tuple[str, ...]) -> None:
    code, out, err = taciturn(*arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert "Traceback" not in err


def test_a_verdict_is_of_the_commands_that_its_meaning_names() -> None:
    """Each of them is seen to end with it: in test_audit.py and in test_export.py."""
    ending = {path for path, one in commands().items() if "VERDICT" in names(one.callback)}
    assert ending == {"audit", "cert verify"}
    assert all(f"`taciturn {path}`" in ExitCode.VERDICT.meaning for path in ending)


def test_ctrl_c_says_the_way_back(
    fake: FakeApi, taciturn: Taciturn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt("it runs on; come back")

    monkeypatch.setattr(Client, "whoami", stop)
    assert taciturn("whoami") == (ExitCode.INTERRUPTED, "", "it runs on; come back\n")


@pytest.mark.parametrize(
    ("end", "expected"),
    [(KeyboardInterrupt, ExitCode.INTERRUPTED), (EOFError, ExitCode.REFUSED)],
)
def test_an_end_at_a_question(
    end: type[BaseException],
    expected: ExitCode,
    fake: FakeApi,
    taciturn: Taciturn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(*_: object, **__: object) -> None:
        try:
            raise end
        except end:
            raise typer.Abort from None

    monkeypatch.setattr(typer, "prompt", ask)
    code, _, err = taciturn("login", "http://gateway", "--token")
    assert code == expected
    assert "Traceback" not in err


def test_no_code_is_a_bare_number(root: Path) -> None:
    """A code that is not in the table cannot slip in; a server's own is 0 or 1."""
    bare = [
        f"{path.name}:{call.lineno}"
        for path in sorted((root / "src/taciturn/cli").glob("*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in ("typer.Exit", "sys.exit", "exit")
        and not all(
            ast.unparse(code) == "code" or "ExitCode." in ast.unparse(code) for code in call.args
        )
    ]
    assert bare == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, tmp_path: Path) -> None:
    def run(**variables: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", "import sys; sys.argv[0] = 'taciturn'\n"
             "from taciturn.cli.main import main; main()"],
            env={**os.environ, "HOME": str(tmp_path), **variables},
            capture_output=True,
            text=True,
            check=True,
        )  # fmt: skip
        return result.stdout

    script = run(_TACITURN_COMPLETE=f"source_{shell}")
    assert f"_TACITURN_COMPLETE=complete_{shell}" in script
    assert "taciturn" in script.strip().splitlines()[-1]
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
    words = {
        "bash": {"COMP_WORDS": "taciturn eval", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "taciturn eval"},
    }
    assert "evaluate" in run(_TACITURN_COMPLETE=f"complete_{shell}", **words[shell])
    assert list(tmp_path.iterdir()) == []
