"""Workflows, hooks and templates can be read, and what they call exists."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

_TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)
_MAKE = re.compile(r"\bmake ((?:[a-z]+ ?)+)")
_SCRIPT = re.compile(r"(?<![\w/])\.ci/[\w-]+")
_TOOL = re.compile(r"(?:\.venv|\$\(VENV\)|\$\(BIN\))/(?:bin/)?([\w-]+)")
_PINNED = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40}")


def workflows(root: Path) -> dict[str, dict[Any, Any]]:
    """Name -> content. YAML 1.1 reads the key `on` as true."""
    files = (root / ".github" / "workflows").glob("*.yml")
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in files}


def steps(workflow: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def commands(root: Path) -> Iterator[str]:
    """Everything that workflows, the development container and CI run."""
    for workflow in workflows(root).values():
        yield from (step["run"] for step in steps(workflow) if "run" in step)
    container = (root / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    yield json.loads(container)["postCreateCommand"]
    yield (root / ".ci" / "run").read_text(encoding="utf-8")


def unknown_calls(command: str, root: Path) -> list[str]:
    """Make targets and scripts of `command` that are not in the repository."""
    lines = [line for line in command.splitlines() if not line.lstrip().startswith("#")]
    code = "\n".join(lines)
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    called = [target for words in _MAKE.findall(code) for target in words.split()]
    missing = [target for target in called if target not in _TARGET.findall(makefile)]
    return missing + [
        script for script in _SCRIPT.findall(code) if not os.access(root / script, os.X_OK)
    ]


def test_what_is_called_exists(root: Path) -> None:
    run = list(commands(root))
    assert len(run) >= 6
    assert {command: unknown for command in run if (unknown := unknown_calls(command, root))} == {}


@pytest.mark.parametrize(
    ("command", "unknown"),
    [
        ("make slow", []),
        ("time make lint\n.ci/run", []),
        ("make install && make tests", ["tests"]),
        ("make lint everything", ["everything"]),
        (".ci/nothing", [".ci/nothing"]),
    ],
)
def test_planted_call_is_found(command: str, unknown: list[str], root: Path) -> None:
    assert unknown_calls(command, root) == unknown


def test_workflows_do_what_their_names_say(root: Path) -> None:
    run = {
        name: [step.get("run") for step in steps(workflow)]
        for name, workflow in workflows(root).items()
    }
    assert run.keys() == {"check", "slow", "release"}
    assert ".ci/run" in run["check"]
    assert "make slow" in run["slow"]
    assert {".ci/run", "make sbom", "make extras"} <= set(run["release"])
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    assert "\nsbom: dist\n" in makefile
    assert ".ci/dist" in makefile.partition("\ndist:")[2].partition("\n\n")[0]


def test_actions_are_pinned_and_only_publishing_has_a_right(root: Path) -> None:
    for name, workflow in workflows(root).items():
        assert workflow["permissions"] == {"contents": "read"}, name
        actions = [step["uses"] for step in steps(workflow) if "uses" in step]
        assert [action for action in actions if not _PINNED.fullmatch(action)] == [], name
        jobs = workflow["jobs"]
        entitled = {job: jobs[job]["permissions"] for job in jobs if "permissions" in jobs[job]}
        assert entitled == ({"publish": {"id-token": "write"}} if name == "release" else {}), name
    publish = workflows(root)["release"]["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["environment"] == "pypi"
    assert [step for step in publish["steps"] if "run" in step] == []  # no code of ours


def test_hooks_run_the_tools_of_make_lint(root: Path) -> None:
    config = yaml.safe_load((root / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    tools = {tool for hook in hooks for tool in _TOOL.findall(hook["entry"])}
    rule = (root / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].split("\n\n")[0]
    assert tools == {"ruff", "mypy"}
    assert tools <= set(_TOOL.findall(rule))
    rooms = [path for path in (root / "src" / "taciturn").iterdir() if path.is_dir()]
    assert all(re.match(hooks[-1]["files"], f"src/taciturn/{room.name}/a.py") for room in rooms)


def test_issue_forms_have_what_the_site_asks_for(root: Path) -> None:
    folder = root / ".github" / "ISSUE_TEMPLATE"
    forms = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in folder.glob("*.yml")}
    assert forms.pop("config") == {"blank_issues_enabled": False}
    for name, form in forms.items():
        assert {"name", "description", "body"} <= form.keys(), name
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        ids = [field["id"] for field in fields]
        assert len(set(ids)) == len(ids) > 0, name
        assert all(field["attributes"]["label"] for field in fields), name
    assert "SECURITY.md" in str(forms["bug"])


def test_owners_are_of_places_that_exist(root: Path) -> None:
    text = (root / ".github" / "CODEOWNERS").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0][0] == "*"
    assert [place for place, *_ in lines[1:] if not (root / place.strip("/")).exists()] == []
    assert all(owner.startswith("@") for _, *owners in lines for owner in owners or [""])
