"""Files of a folder that make up a model and what is claimed of it, and their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from taciturn.certificate.statement import Digest, File
from taciturn.errors import CertificateError
from taciturn.reports.privacy import AUDIT, REPORT

# What a loader may read, or run. Cards and reports for people are not among it.
_SUFFIXES = frozenset(
    (
        *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"),
        *(".model", ".py", ".jinja"),
    )
)
_NAMES = frozenset(
    (
        *("config.json", "generation_config.json", "adapter_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.json"),
        *("processor_config.json", "preprocessor_config.json", "Modelfile"),
    )
)


def model_files(folder: Path) -> list[Path]:
    """Files of `folder` that a loader of models may read, with the report and the audit; sorted."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_covered(path.name))


def digests(paths: Iterable[Path]) -> tuple[File, ...]:
    """Name and SHA-256 of each file."""
    return tuple(File(name=path.name, digest=Digest(sha256=_sha256(path))) for path in paths)


def check_files(folder: Path, expected: tuple[File, ...], what: str) -> None:
    """Every file of `expected` is in `folder`, unchanged, and no other that a loader would read.

    Raises:
        CertificateError: the first file that is missing, changed or too many, by name.
    """
    if not folder.is_dir():
        raise CertificateError(f"{what} {folder} is not a folder; name the one with its files")
    for file in expected:
        path = folder / file.name
        if not path.is_file():
            raise CertificateError(
                f"{file.name} of {what} is not in {folder}; name the folder that holds it"
            )
        if _sha256(path) != file.digest.sha256:
            raise CertificateError(
                f"{path} is not the file that was certified (its SHA-256 differs): {what} was "
                "changed or swapped"
            )
    expected_names = {file.name for file in expected}
    extra = [path.name for path in model_files(folder) if path.name not in expected_names]
    if extra:
        raise CertificateError(
            f"{folder} holds {extra[0]}, which the certificate does not cover and a loader might "
            "read; remove it, or have the model certified anew"
        )


def is_covered(name: str) -> bool:
    """True for a file that a certificate speaks of: a loader may read it, or it says what the model
    is."""
    loaded = Path(name).suffix in _SUFFIXES or name in _NAMES or name.endswith(".index.json")
    return loaded or name in (REPORT, AUDIT)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}") from None
