"""`taciturn export` and `push`: what their users type, up to the certificate of an export."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taciturn.llm import LLM

Taciturn = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def fitted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted folder, without a certificate."""
    output = tmp_path_factory.mktemp("fit") / "out"
    rows = [f"patient {i} has a cough" for i in range(8)]
    options: dict[str, Any] = {"target_epsilon": 50, "steps": 2, "batch_size": 4}
    LLM(str(tiny_llama)).fit(rows, output=output, **options)
    return output


@pytest.fixture
def taciturn(
    taciturn: Taciturn, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Taciturn:
    """The program in a folder that holds `out`, certified by `k`."""
    monkeypatch.chdir(tmp_path)
    for name in ("TACITURN_SIGNING_KEY", "TACITURN_TRUST", "TACITURN_SIGNING_KEY_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(fitted, tmp_path / "out")
    assert taciturn("cert", "keygen", "-o", "k", "--name", "A hospital")[0] == 0
    assert taciturn("cert", "issue", "out", "--signing-key", "k.pem")[0] == 0
    return taciturn


def test_signed_export_is_verified(taciturn: Taciturn) -> None:
    code, out, err = taciturn("export", "out", "--gguf", "q8_0", "--signing-key", "k.pem")
    assert (code, out.split(":")[0]) == (0, "out-gguf"), err
    for place in (["out-gguf"], ["out-gguf/certificate.json"], ["out", "--model", "out-gguf"]):
        code, out, err = taciturn("cert", "verify", *place, "--trust", "k.trust.json")
        assert code == 0, err
        assert out.startswith("VALID")
        assert "export      gguf, weights in q8_0" in out
        assert out.count("A hospital (key ") == 2
    Path("out-gguf/Modelfile").write_text("FROM other", encoding="utf-8")
    assert "does not cover" in taciturn("cert", "verify", "out-gguf", "--trust", "k.trust.json")[2]


def test_unsigned_export_is_said_to_be_so(taciturn: Taciturn) -> None:
    code, out, _ = taciturn("export", "out", "--merged", "-o", "whole")
    assert (code, out.split(":")[0]) == (0, "whole")
    code, out, _ = taciturn("cert", "verify", "whole", "--trust", "k.trust.json")
    assert code == 3
    assert out.startswith("CERTIFICATE VALID, EXPORT NOT SIGNED")
    assert "signed by   nobody" in out
    code, out, _ = taciturn(
        "cert", "verify", "whole", "--trust", "k.trust.json", "--certificate-only"
    )
    assert (code, "model files" in out) == (0, True)
    code, out, _ = taciturn("cert", "show", "whole")
    assert (code, out.count('"_type"')) == (0, 2)


def test_one_form_at_a_time(taciturn: Taciturn) -> None:
    for arguments, message in (
        (["out"], "give one of --merged"),
        (["out", "--merged", "--ollama"], "give one of --merged"),
        (["out", "--merged", "q8_0"], "a merged folder is in fp32"),
        (["out", "--gguf", "q4_0"], "none of f32, f16, q8_0"),
        (["out", "--gguf", "-o", "out"], "already exists"),
        (["nothing", "--gguf"], "nothing to export"),
    ):
        code, _, err = taciturn("export", *arguments)
        assert (code, message in err) == (1, True), err


def test_push_refuses_what_promises_nothing(taciturn: Taciturn) -> None:
    path = Path("out/privacy_report.json")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"differential privacy"', '"none"', 1), encoding="utf-8")
    code, _, err = taciturn("push", "out", "org/adapter")
    assert (code, "--without-guarantee" in err) == (1, True)
    assert "is no name of a hub's" in taciturn("push", "out", "a/b/c")[2]
