"""Files of a base model and their digests: what a certificate says was fine-tuned.

A base is its name and its digests. A folder that moved is the same base; another folder, or another
revision, under the same name is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from taciturn.certificate.files import digests, model_files
from taciturn.embedded import TINY_MEDICAL, model_path
from taciturn.errors import AdapterError, ModelNotFoundError

WHERE = "say where it is: base=... (--base on the command line)"


def base_digests(name: str) -> dict[str, str]:
    """File name -> SHA-256 of base model `name` as it is on this machine; empty if not found.

    A folder of an earlier fit is no base: its privacy report is left out, its weights count.
    """
    paths = [path for path in _paths(name) if path.name != "privacy_report.json"]
    return {file.name: file.digest.sha256 for file in digests(paths)}


def find_base(name: str, expected: Mapping[str, str], beside: Path | None) -> str:
    """Return the place of the base that was called `name`: that name, or a folder near its fitted
    model.

    Args:
        expected: the base's digests when it was fitted; none where they are not known.
        beside: the fitted model's folder, if it has one.

    Returns:
        A folder or file that holds those weights; `name` itself where it is none of this machine.

    Raises:
        ModelNotFoundError: it is the path of something that is not here.
        AdapterError: what is here under that name holds other weights.
    """
    if name == TINY_MEDICAL:
        return name
    existing_paths = [path for path in _candidates(name, expected, beside) if os.path.exists(path)]
    for path in existing_paths:
        if _same_weights(expected, _paths(str(path))):
            return str(path)
    if existing_paths:
        raise _other_weights(str(existing_paths[0]))
    if Path(name).is_absolute() or name.startswith((".", "~")):
        raise ModelNotFoundError(f"the base {name} that the model was fitted on is gone; {WHERE}")
    return name


def check_base(name: str, expected: Mapping[str, str]) -> None:
    """Raise AdapterError unless base `name`, as it is here, holds the weights that were fitted."""
    if not _same_weights(expected, _paths(name)):
        raise _other_weights(name)


def _candidates(name: str, expected: Mapping[str, str], beside: Path | None) -> Iterator[Path]:
    path = Path(name).expanduser()
    yield path
    # What is merely near is taken for the base by its digests alone.
    if beside is not None and any(_is_weights(Path(file)) for file in expected):
        folder = beside.resolve()
        for home in (folder, *list(folder.parents)[:2]):
            yield home / path
            yield home / path.name


def _same_weights(expected: Mapping[str, str], paths: list[Path]) -> bool:
    """True if the weights among `paths` are those of `expected`, and where nothing is known.

    Of a model that is there in two formats, one may be here and the other not.
    """
    if not paths or not any(_is_weights(Path(name)) for name in expected):
        return True
    common = [path for path in paths if _is_weights(path) and path.name in expected]
    return bool(common) and all(expected[path.name] == _digest(path) for path in common)


def _is_weights(path: Path) -> bool:
    """True if a loader takes weights from it; the state of an optimiser beside them is none."""
    return path.suffix in (".safetensors", ".gguf") or path.match("pytorch_model*.bin")


def _digest(path: Path) -> str:
    """SHA-256; the hub's cache has it for the name of what a file of weights leads to."""
    target = path.resolve()
    if target.parent.name == "blobs" and len(target.name) == 64:
        return target.name
    (file,) = digests([path])
    return file.digest.sha256


def _other_weights(name: str) -> AdapterError:
    return AdapterError(
        f"{name} does not hold the weights that the model was fitted on (their SHA-256 differ from "
        f"those in its privacy report), so it would write something else; {WHERE}"
    )


def _paths(name: str) -> list[Path]:
    if name.endswith(".gguf"):
        path = Path(name).expanduser()
        repository, _, file = name.rpartition("/")
        return [path] if os.path.isfile(path) else [p for p in _hub(repository) if p.name == file]
    folder = model_path() if name == TINY_MEDICAL else Path(name).expanduser()
    return model_files(folder) if os.path.isdir(folder) else _hub(name)


def _hub(repository: str) -> list[Path]:
    try:
        return model_files(Path(snapshot_download(repository, local_files_only=True)))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        return []
