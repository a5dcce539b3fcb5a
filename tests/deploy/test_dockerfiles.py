"""The images: linted, without root; what they install is installed for real by the slow test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from taciturn.wire.exits import WorkerExit

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))


@pytest.mark.parametrize(
    "path", [*FILES, ROOT / ".devcontainer" / "Dockerfile"], ids=lambda path: path.stem
)
def test_lint(path: Path) -> None:
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nobody_is_root_and_everything_is_pinned(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1] == "10001:10001"
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) for base in bases)
    for install in re.findall(r"pip install ([^\\\n]*)", text):
        assert "-c constraints.txt" in install or "==" in install or "--no-deps" in install
    assert "sbom.json" in text


def test_gateway_has_no_torch() -> None:
    assert "torch" not in re.sub(
        r"^#.*$", "", (ROOT / "deploy/gateway.Dockerfile").read_text(), flags=re.M
    )


def test_only_what_is_built_is_sent() -> None:
    """Nothing of a working copy (keys, notebooks, data) can get into an image."""
    allowed = (ROOT / ".dockerignore").read_text().split()
    assert allowed[0] == "*"
    assert set(allowed[1:]) == {
        "!constraints.txt",
        "!pyproject.toml",
        "!README.md",
        "!LICENSE",
        "!src",
        "**/__pycache__",
    }


def _steps(path: Path, target: Path) -> str:
    """The build stage's RUN and COPY lines, on this machine: /opt and /build are in `target`."""
    stage = re.split(r"^FROM ", path.read_text(), flags=re.MULTILINE)[1].replace("\\\n", " ")
    script = "\n".join(_lines(stage))
    assert "pip install" in script
    return script.replace("/opt/", f"{target}/").replace("/build/", f"{target}/build/")


def _lines(stage: str) -> list[str]:
    found = []
    for line in stage.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "RUN":
            found.append(rest)
        if kind == "COPY":
            found.append(_copy(rest))
    return found


def _copy(line: str) -> str:
    *sources, target = line.split()
    if len(sources) == 1:
        return f'mkdir -p "$(dirname {target})" && cp -rT "{ROOT}/{sources[0]}" "{target}"'
    return " && ".join(f'cp "{ROOT}/{source}" .' for source in sources)


def _installed(file: str, folder: Path, *without: str) -> Path:
    """Run a build stage's steps in a fresh environment; returns where its programs are."""
    build = folder / "build"
    build.mkdir()
    script = _steps(ROOT / "deploy" / file, folder)
    script = script.replace("python -m venv", f"{sys.executable} -m venv")
    for each in without:
        assert each in script
        script = script.replace(each, "")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=build,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"bomFormat": "CycloneDX"' in (build / "sbom.json").read_text()
    return folder / "taciturn" / "bin"


def _packages(binary: Path) -> str:
    command = [binary / "pip", "list", "--format=freeze"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_install_steps_of_the_gateway(tmp_path: Path) -> None:
    """The gateway starts, and has no torch."""
    binary = _installed("gateway.Dockerfile", tmp_path)
    assert "torch" not in _packages(binary)
    assert "kubernetes==" in _packages(binary)
    subprocess.run([binary / "taciturn", "--version"], check=True, cwd=tmp_path)
    subprocess.run(
        [binary / "python", "-c", "import taciturn.server.app"], check=True, cwd=tmp_path
    )


FIT = """
import taciturn
rows = [f"Note {i}: the patient has a cough." for i in range(40)]
model = taciturn.LLM("taciturn/tiny-medical")
model.fit(rows, target_epsilon=4, steps=2, batch_size=8, max_tokens=32)
assert model.policy.startswith("DP (epsilon=")
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_install_steps_of_the_worker(tmp_path: Path) -> None:
    """The worker starts, fits, and has no server. Torch comes from pip's own index."""
    binary = _installed("worker.Dockerfile", tmp_path, '--extra-index-url "$TORCH_INDEX" ')
    assert "torch==" in _packages(binary)
    assert "fastapi" not in _packages(binary)
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [binary / "python", "-m", "taciturn.worker"]
    untold = subprocess.run(command, env=bare, cwd=tmp_path, capture_output=True, check=False)
    assert untold.returncode == WorkerExit.BAD_CONFIGURATION
    subprocess.run([binary / "python", "-c", FIT], env=bare, cwd=tmp_path, check=True)
