"""mypy rejects a step that forgets to clip or to add noise: the privacy boundary is a type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.program import run_python

STEP = """
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from taciturn.engine.privacy import clipping, noise
from taciturn.engine.privacy.mechanism import DpSgdMechanism
from taciturn.engine.privacy.per_example import per_example_gradients, sum_parts
from taciturn.engine.privacy.rng import SecureStream
from taciturn.engine.privacy.types import UnitBatch
from taciturn.engine.training.state import TrainingState


class Generator: ...


def step(
    loss: nn.Module,
    batch: UnitBatch,
    parameters: Mapping[str, Tensor],
    mechanism: DpSgdMechanism,
    state: TrainingState,
    stream: SecureStream,
) -> None:
    gradients = per_example_gradients(loss, batch)
"""

ACCEPTED = {
    "whole step": """
    total = mechanism.clip_and_sum(parameters, [gradients, sum_parts(loss, [batch])])
    state.apply(mechanism.add_noise(total, stream))
""",
    "by the functions": """
    empty = clipping.empty_sum(parameters, 1.0)
    total = clipping.merge_disjoint(empty, clipping.clip_and_sum(gradients, 1.0))
    state.apply(noise.add_noise(total, 1.0, 64, stream))
""",
}

REJECTED = {
    # name: (the lines, the error that mypy must give on the last of them)
    "no clip": ("    state.apply(mechanism.add_noise(gradients, stream))", "BoundedSum"),
    "no clip, by the function": (
        "    state.apply(noise.add_noise(gradients, 1.0, 64, stream))",
        "BoundedSum",
    ),
    "no noise": (
        "    state.apply(mechanism.clip_and_sum(parameters, [gradients]))",
        "PrivateGradient",
    ),
    "neither": ("    state.apply(gradients)", "PrivateGradient"),
    "values of a sum": (
        "    total = mechanism.clip_and_sum(parameters, [gradients])\n"
        "    state.apply(total.values)",
        "PrivateGradient",
    ),
    "ordinary gradients": (
        "    state.apply({name: torch.ones(1) for name in parameters})",
        "PrivateGradient",
    ),
    "clip of a batch": ("    mechanism.clip_and_sum(parameters, [batch])", "PerUnitGradients"),
    "clip of a sum": (
        "    once = mechanism.clip_and_sum(parameters, [gradients])\n"
        "    clipping.clip_and_sum(once, 1.0)",
        "PerUnitGradients",
    ),
    "noise twice": (
        "    total = mechanism.clip_and_sum(parameters, [gradients])\n"
        "    mechanism.add_noise(mechanism.add_noise(total, stream), stream)",
        "BoundedSum",
    ),
    "noise of a seed": (
        "    mechanism.add_noise(mechanism.clip_and_sum(parameters, [gradients]), 42)",
        "SecureStream",
    ),
    "noise of a torch generator": (
        "    mechanism.add_noise(mechanism.clip_and_sum(parameters, [gradients]), Generator())",
        "SecureStream",
    ),
    "private gradient summed again": (
        "    total = mechanism.clip_and_sum(parameters, [gradients])\n"
        "    clipping.merge_disjoint(total, mechanism.add_noise(total, stream))",
        "BoundedSum",
    ),
    "misspelled argument": (
        "    mechanism.add_noise(mechanism.clip_and_sum(parameters, [gradients]), streem=stream)",
        "streem",
    ),
}

# Torch's own types are left out: they cost a minute, and nothing here rests on them.
CONFIGURATION = """
[mypy]
strict = true
mypy_path = {source}
explicit_package_bases = true

[mypy-taciturn.*]
follow_imports = silent

[mypy-torch.*,numpy.*,transformers.*,peft.*,dp_accounting.*,scipy.*,cryptography.*,pydantic.*,yaml.*]
follow_imports = skip
ignore_missing_imports = true
"""


@pytest.fixture(scope="module")
def verdicts(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of each snippet, from one run over all of them."""
    folder = tmp_path_factory.mktemp("snippets")
    (folder / "mypy.ini").write_text(CONFIGURATION.format(source=root / "src"), encoding="utf-8")
    snippets = {**ACCEPTED, **{name: lines for name, (lines, _) in REJECTED.items()}}
    files = {}
    for number, (name, lines) in enumerate(snippets.items()):
        files[f"snippet_{number}.py"] = name
        (folder / f"snippet_{number}.py").write_text(STEP + lines + "\n", encoding="utf-8")
    options = ("--config-file=mypy.ini", "--no-error-summary")
    result = run_python("-m", "mypy", *options, *files, cwd=folder, MYPYPATH=str(root / "src"))
    assert result.returncode in (0, 1), result.stdout + result.stderr
    said: dict[str, list[str]] = {name: [] for name in snippets}
    for line in result.stdout.splitlines():
        match = re.match(r"(snippet_\d+\.py):\d+: error: (.*)", line)
        if match:
            said[files[match[1]]].append(match[2])
    return said


@pytest.mark.parametrize("name", ACCEPTED)
def test_right_step_is_accepted(name: str, verdicts: dict[str, list[str]]) -> None:
    assert verdicts[name] == []


@pytest.mark.parametrize("name", REJECTED)
def test_wrong_step_is_rejected(name: str, verdicts: dict[str, list[str]]) -> None:
    expected = REJECTED[name][1]
    assert len(verdicts[name]) == 1, verdicts[name]
    (error,) = verdicts[name]
    assert expected in error
    assert re.search(r"\[(arg-type|list-item|call-arg)\]", error), error
