"""What is uploaded: built twice alike, and with a list of what it brings."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def clone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the last commit; what is not committed would be in one build alone."""
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("a release is built from a clone, with git")
    folder = tmp_path_factory.mktemp("release") / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{root}", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def built(clone: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "sbom", f"PYTHON={sys.executable}"],
        cwd=clone,
        capture_output=True,
        text=True,
        check=False,
    )


def test_both_builds_are_alike_and_dated_by_the_commit(
    clone: Path, built: subprocess.CompletedProcess[str]
) -> None:
    assert built.returncode == 0, built.stdout + built.stderr
    assert "built twice, alike:" in built.stdout
    wheel, source = sorted((clone / "dist").iterdir(), key=lambda path: path.suffix, reverse=True)
    command = ["git", "log", "-1", "--format=%ct"]
    moment = int(subprocess.run(command, cwd=clone, capture_output=True, check=True).stdout)
    with tarfile.open(source) as archive:
        members = archive.getmembers()
    assert {member.mtime for member in members} == {moment}
    assert {member.mode & 0o777 for member in members} <= {0o644, 0o755}
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}
    with zipfile.ZipFile(wheel) as archive:
        assert len({info.date_time for info in archive.infolist()}) == 1


def test_a_file_that_is_not_committed_is_found(
    clone: Path, built: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    planted = clone / "src" / "taciturn" / "planted.py"
    planted.write_text("secret = 1\n", encoding="utf-8")
    try:
        result = subprocess.run(
            [".ci/dist", ".venv-dist/bin/python", str(tmp_path)],
            cwd=clone,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        planted.unlink()
    assert result.returncode == 1, result.stdout
    assert "a file that is not committed" in result.stderr


def test_the_lists_name_what_is_installed(
    clone: Path, built: subprocess.CompletedProcess[str]
) -> None:
    """The tool has checked both against CycloneDX's schema."""
    assert built.returncode == 0, built.stdout + built.stderr
    for path in (clone / "build" / "sbom").iterdir():
        assert "file://" not in path.read_text(encoding="utf-8"), "a path of the builder's machine"
    installed = components(clone / "build" / "sbom" / "taciturn.cdx.json")
    own = installed.pop("taciturn")
    assert own["version"] == importlib.metadata.version("taciturn")
    assert own["licenses"][0]["license"]["id"] == "Apache-2.0"
    direct = [Requirement(line) for line in importlib.metadata.requires("taciturn") or ()]
    names = {canonicalize_name(line.name) for line in direct if line.marker is None}
    assert names <= installed.keys()
    assert not {"torch", "fastapi", "pip"} & installed.keys()
    tested = components(clone / "build" / "sbom" / "tested.cdx.json")
    assert {"torch", "fastapi"} <= tested.keys()
    assert {name: value["version"] for name, value in installed.items()} == {
        name: tested[name]["version"] for name in installed
    }


def components(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> component, of a CycloneDX file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["bomFormat"] == "CycloneDX"
    return {canonicalize_name(part["name"]): part for part in content["components"]}
