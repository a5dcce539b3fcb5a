"""The notebooks run from their first cell to their last, and what they say is so."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("ipykernel")

LIMIT_S = 1500
SHOWN = {
    "patient_notes": (
        "no guarantee",
        "pancreatic cancer",
        "DP (epsilon=",
        "signed by demonstration",
    ),
    "local": ("1,200 invented patients", "DP (epsilon=", "model files 5: unchanged"),
    "bring_your_model": ("DP (epsilon=", "model.safetensors"),
}


@pytest.mark.thorough
@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize("name", SHOWN)
def test_a_notebook_runs(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    # Processors are shared among the tests: more threads would be slower.
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    # As in an environment that was activated: cells call the command.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(root / "examples" / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=LIMIT_S, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = "".join(
        str(output.get("text", "")) + "".join(output.get("data", {}).values())
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    for text in SHOWN[name]:
        assert text in shown


def test_notebooks_are_kept_without_outputs(root: Path) -> None:
    paths = sorted((root / "examples").glob("*.ipynb"))
    assert {path.stem for path in paths} == SHOWN.keys()
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert all(not cell.get("outputs") for cell in notebook.cells)
