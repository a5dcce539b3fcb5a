"""Which files count, and that each must be the one that was certified."""

from __future__ import annotations

from pathlib import Path

import pytest

from taciturn.certificate.files import check_files, digests, model_files
from taciturn.errors import CertificateError


def test_what_a_loader_reads_counts(folder: Path) -> None:
    assert [path.name for path in model_files(folder)] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "privacy_report.json",
        "tokenizer.json",
    ]
    (folder / "audit.json").write_text("{}")
    assert "audit.json" in {path.name for path in model_files(folder)}


def test_unchanged_files_pass_whatever_else_lies_there(folder: Path) -> None:
    expected = digests(model_files(folder))
    (folder / "report.html").write_text("for people")
    (folder / "evaluations.json").write_text("{}")
    (folder / "README.md").write_text("another card")
    (folder / "private").mkdir()
    check_files(folder, expected, "the model")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "privacy_report.json"])
def test_a_changed_file(folder: Path, name: str) -> None:
    expected = digests(model_files(folder))
    data = bytearray((folder / name).read_bytes())
    data[0] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CertificateError, match=f"{name} is not the file that was certified"):
        check_files(folder, expected, "the model")


def test_a_missing_file(folder: Path) -> None:
    expected = digests(model_files(folder))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CertificateError, match=r"adapter_model.safetensors of the model is not in"):
        check_files(folder, expected, "the model")
    with pytest.raises(CertificateError, match="is not a folder"):
        check_files(folder / "none", expected, "the model")


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "adapter_model.bin",
        "modeling.py",
        "chat_template.jinja",
        "config.json",
        "audit.json",
    ],
)
def test_a_file_too_many(folder: Path, name: str) -> None:
    expected = digests(model_files(folder))
    (folder / name).write_text("x")
    with pytest.raises(CertificateError, match="does not cover"):
        check_files(folder, expected, "the model")
