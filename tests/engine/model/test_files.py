"""A base is its name and its digests: found where it moved to, refused where it is another."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from taciturn.engine.model.files import base_digests, check_base, find_base
from taciturn.errors import AdapterError, ModelNotFoundError, SpecError
from taciturn.llm import LLM

TEXTS = [f"patient {i} has a cough" for i in range(8)]
QUICK: dict[str, Any] = {"target_epsilon": 8, "steps": 1, "batch_size": 4}


@pytest.fixture(params=["auto", "full"])
def fitted(
    request: pytest.FixtureRequest,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """work/out, fitted in work/ on "base", by a name that means something there alone."""
    work = tmp_path / "work"
    shutil.copytree(tiny_llama, work / "base")
    monkeypatch.chdir(work)
    LLM("base").fit(TEXTS, **QUICK, output="out", method=request.param)
    return work / "out"


def judged(folder: Path, **named: Any) -> None:
    """Sampling needs the base of an adapter, an evaluation that of a full fit as well."""
    model = LLM(str(folder), **named)
    model.sample(["The"], max_new_tokens=2)
    model.evaluate(["A public text."])


def other(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({k: v * 2 for k, v in weights.items()}, path, metadata={"format": "pt"})


def test_from_another_folder(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    judged(fitted)
    # A folder of that name that is another model is not taken for it.
    shutil.copytree(fitted.parent / "base", tmp_path / "base")
    other(tmp_path / "base")
    judged(fitted)


def test_both_moved_and_where_the_base_is_alone(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fitted.parent.rename(tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere" / "out"
    judged(folder)
    (tmp_path / "elsewhere" / "base").rename(tmp_path / "renamed")
    with pytest.raises(ModelNotFoundError, match=r"say where it is: base=\.\.\. \(--base"):
        judged(folder)
    judged(folder, base=str(tmp_path / "renamed"))
    assert LLM(str(folder), base="renamed").policy.startswith("DP (epsilon=")


def test_other_weights_are_refused(fitted: Path, tmp_path: Path) -> None:
    other(fitted.parent / "base")
    with pytest.raises(AdapterError, match="does not hold the weights that the model was fitted"):
        judged(fitted)
    with pytest.raises(AdapterError, match="does not hold the weights"):
        judged(fitted, base=str(fitted.parent / "base"))


def test_a_base_is_for_a_fitted_model(tiny_llama: Path) -> None:
    with pytest.raises(SpecError, match="says where the base of a fitted model is"):
        LLM(str(tiny_llama), base="x").sample(["The"])


@pytest.fixture
def cached(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's cache holds of somebody/cached: links to files named by their digests."""
    root = tmp_path / "models--somebody--cached"
    revision = root / "snapshots" / ("0" * 40)
    for folder in (root / "refs", root / "blobs", revision):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    for file in tiny_llama.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, root / "blobs" / digest)
        (revision / file.name).symlink_to(root / "blobs" / digest)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = Path  # for the type of the line below
    downloaded: Callable[..., str] = lambda *_, **__: str(snapshot(revision))  # noqa: E731
    monkeypatch.setattr("taciturn.engine.model.files.snapshot_download", downloaded)
    return revision


def test_another_revision_of_the_hubs_model(cached: Path, tiny_llama: Path) -> None:
    expected = base_digests("somebody/cached")
    assert expected == base_digests(str(tiny_llama))
    check_base("somebody/cached", expected)
    assert find_base("somebody/cached", expected, None) == "somebody/cached"
    with pytest.raises(AdapterError, match="somebody/cached does not hold the weights"):
        check_base("somebody/cached", {"model.safetensors": "0" * 64})
    check_base("somebody/cached", {})  # an old report that does not say
