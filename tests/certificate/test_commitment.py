"""A commitment opens with its salt and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from taciturn.certificate.commitment import OPENING, commit, committed, open_commitment
from taciturn.errors import CertificateError


def test_same_data_with_other_salts_cannot_be_linked(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert committed(first, "data") != committed(second, "data")


def test_it_opens(tmp_path: Path) -> None:
    value = committed(tmp_path, "data")
    assert (
        value
        == committed(tmp_path, "data")
        == open_commitment(tmp_path)
        == open_commitment(tmp_path, "data")
    )
    assert open_commitment(tmp_path, "other data") != value
    assert (tmp_path / OPENING).stat().st_mode & 0o077 == 0


def test_it_is_keyed() -> None:
    assert commit("data", bytes(32)) != commit("data", bytes(31) + b"\1")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"salt":"zz","fingerprint":"x"}'])
def test_damaged_openings(tmp_path: Path, text: str) -> None:
    (tmp_path / OPENING).write_text(text)
    with pytest.raises(CertificateError, match="does not open"):
        open_commitment(tmp_path)
