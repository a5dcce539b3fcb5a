"""The notebook runs from its first cell to its last, and what it says about the secret is so."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("ipykernel")

LIMIT_S = 360


@pytest.mark.thorough
@pytest.mark.timeout(LIMIT_S + 30)
def test_patient_notes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    # Processors are shared among the tests: more threads would be slower.
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    notebook = nbformat.read(root / "examples" / "patient_notes.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=LIMIT_S, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = "".join(
        str(output.get("text", "")) + "".join(output.get("data", {}).values())
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    assert "no guarantee" in shown
    assert "pancreatic cancer" in shown
    assert "DP (epsilon=" in shown
    assert "signed by demonstration" in shown


def test_the_notebook_is_kept_without_outputs(root: Path) -> None:
    notebook = nbformat.read(root / "examples" / "patient_notes.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)
