"""Where a base model's files are, and their digests: what a certificate says was fine-tuned."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from taciturn.certificate.files import digests, model_files
from taciturn.embedded import TINY_MEDICAL, model_path


def base_digests(name: str) -> dict[str, str]:
    """File name -> SHA-256 of base model `name` as it is on this machine; empty if not found.

    A folder of an earlier fit is no base: its privacy report is left out, its weights count.
    """
    paths = [path for path in _paths(name) if path.name != "privacy_report.json"]
    return {file.name: file.digest.sha256 for file in digests(paths)}


def _paths(name: str) -> list[Path]:
    if name.endswith(".gguf"):
        path = Path(name).expanduser()
        repository, _, file = name.rpartition("/")
        return [path] if path.is_file() else [p for p in _hub(repository) if p.name == file]
    folder = model_path() if name == TINY_MEDICAL else Path(name).expanduser()
    return model_files(folder) if folder.is_dir() else _hub(name)


def _hub(repository: str) -> list[Path]:
    try:
        return model_files(Path(snapshot_download(repository, local_files_only=True)))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        return []
