"""A gateway on its defaults has what it needs, and keeps it."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

from taciturn.certificate.keys import keyid, read_trust
from taciturn.certificate.signers import find_signer
from taciturn.server.bootstrap import open_gateway
from taciturn.server.settings import Settings


def test_it_makes_itself_a_signing_key_once(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "own")
    found = open_gateway(settings).settings.signing_key
    assert found is not None
    path = Path(found)
    assert path.is_absolute()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert open_gateway(settings).settings.signing_key == found
    assert path.read_bytes() == before
    signer = find_signer(found)
    assert signer is not None
    (trusted,) = read_trust(path.with_name("signing.trust.json")).keys
    assert trusted.keyid == keyid(signer.public_key)
    assert trusted.valid_from <= datetime.now(UTC) < trusted.valid_until


def test_a_key_that_is_named_stays(tmp_path: Path) -> None:
    named = open_gateway(Settings(data_dir=tmp_path, signing_key="env:KEY"))
    assert named.settings.signing_key == "env:KEY"
    assert not list(tmp_path.glob("signing*"))
    elsewhere = open_gateway(Settings(data_dir=tmp_path, launcher="kubernetes"))
    assert elsewhere.settings.signing_key is None
