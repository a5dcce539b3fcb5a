"""`taciturn cert`: what its users type, and the one line they get when something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.released_files import private_report

Taciturn = Callable[..., tuple[int, str, str]]


@pytest.fixture
def taciturn(taciturn: Taciturn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Taciturn:
    """The program in an empty folder, with no key of the environment's."""
    monkeypatch.chdir(tmp_path)
    for name in ("TACITURN_SIGNING_KEY", "TACITURN_TRUST", "TACITURN_SIGNING_KEY_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    return taciturn


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A released folder, as `fit` leaves it, without its weights' weight."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "privacy_report.json").write_text(private_report().model_dump_json())
    return folder


@pytest.fixture
def signed(taciturn: Taciturn, model: Path) -> Path:
    assert taciturn("cert", "keygen", "-o", "k", "--name", "A hospital")[0] == 0
    assert taciturn("cert", "issue", "out", "--signing-key", "k.pem")[0] == 0
    return model


def test_from_key_to_verdict(taciturn: Taciturn, signed: Path) -> None:
    for trusted in (["--trust", "k.trust.json"], ["--public-key", "k.pub"]):
        for named in ("out", "out/certificate.json"):
            code, out, _ = taciturn("cert", "verify", named, *trusted)
            assert code == 0
            assert "VALID" in out
            assert "recomputed  epsilon=" in out
            assert "unchanged" in out


def test_trust_from_the_environment(
    taciturn: Taciturn, signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no key is trusted" in taciturn("cert", "verify", "out")[2]
    monkeypatch.setenv("TACITURN_TRUST", "k.trust.json")
    assert taciturn("cert", "verify", "out")[0] == 0


def test_sign_is_another_word_for_issue(
    taciturn: Taciturn, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taciturn("cert", "keygen", "-o", "k")
    monkeypatch.setenv("TACITURN_SIGNING_KEY", Path("k.pem").read_text())
    code, out, _ = taciturn("cert", "sign", "out")
    assert (code, (model / "certificate.json").is_file()) == (0, True)
    assert "certified: epsilon=" in out


def test_show_says_that_nothing_was_checked(taciturn: Taciturn, signed: Path) -> None:
    code, out, err = taciturn("cert", "show", "out")
    assert code == 0
    assert "not verified" in err
    assert json.loads(out)["predicate"]["guarantee"]["delta"] == 1e-4


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--trust", "other.trust.json"], "not among the 1 trusted"),
        (["--trust", "k.trust.json", "--at", "2099-01-01T00:00:00Z"], "is valid from"),
        (["--trust", "k.trust.json", "--at", "soon"], "must be written as"),
        (["--trust", "none.json"], "cannot be read"),
        (["--trust", "k.trust.json", "--model", "elsewhere"], "is not a folder"),
        (["--trust", "k.trust.json", "--base-model", "out"], "the base model"),
        (["--trust", "k.trust.json", "--private", "out"], "does not open"),
    ],
)
def test_refused_in_one_line(
    taciturn: Taciturn, signed: Path, arguments: list[str], reason: str
) -> None:
    taciturn("cert", "keygen", "-o", "other")
    code, out, err = taciturn("cert", "verify", "out", *arguments)
    assert code == 1
    assert reason in err
    assert "VALID" not in out
    assert "Traceback" not in err


def test_a_swapped_adapter(taciturn: Taciturn, signed: Path) -> None:
    (signed / "adapter_model.safetensors").write_bytes(b"other weights")
    trusted = ("--trust", "k.trust.json")
    code, _, err = taciturn("cert", "verify", "out", *trusted)
    assert (code, "changed or swapped" in err) == (1, True)
    code, out, _ = taciturn("cert", "verify", "out", *trusted, "--certificate-only")
    assert (code, "NOT checked" in out) == (0, True)


def test_a_truncated_certificate(taciturn: Taciturn, signed: Path) -> None:
    path = signed / "certificate.json"
    path.write_bytes(path.read_bytes()[:200])
    for command in (["verify", "out", "--trust", "k.trust.json"], ["show", "out"]):
        code, out, err = taciturn("cert", *command)
        assert code == 1
        assert "truncated" in err
        assert out == ""


def test_keys_are_not_overwritten(taciturn: Taciturn, signed: Path) -> None:
    code, _, err = taciturn("cert", "keygen", "-o", "k")
    assert code == 1
    assert "cannot be written" in err


def test_issue_needs_a_key_and_a_folder(taciturn: Taciturn, model: Path) -> None:
    assert "no signing key" in taciturn("cert", "issue", "out")[2]
    taciturn("cert", "keygen", "-o", "k")
    assert (
        "holds no privacy_report.json"
        in (taciturn("cert", "issue", ".", "--signing-key", "k.pem")[2])
    )
    assert not (model / "certificate.json").exists()


def test_an_audit_goes_in(taciturn: Taciturn, signed: Path) -> None:
    audit = {"epsilon_lower_bound": 0.5, "confidence": 0.95, "threat_model": "black box"}
    Path("audit.json").write_text(json.dumps({**audit, "canaries": 100, "method": "one run"}))
    arguments = ("cert", "issue", "out", "--signing-key", "k.pem", "--audit", "audit.json")
    assert taciturn(*arguments)[0] == 0
    out = taciturn("cert", "verify", "out", "--trust", "k.trust.json")[1]
    assert "epsilon at least 0.5 with confidence 95%" in out
