"""The documentation's site: it builds without a warning, loads nothing from elsewhere, and its
guides have no sentence that has to be read twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.reference import reference
from taciturn import errors
from taciturn.server.launchers.kubernetes.settings import KubernetesSettings
from taciturn.server.problems import CODES, REMEDIES
from taciturn.server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
# All pages but those for people who write such code, and the list of changes.
GUIDES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"))
    if path.parent.name != "design" and path.stem not in ("pitfalls", "ARCHITECTURE", "CHANGELOG")
)
MOST_WORDS = 30
PROSE = sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT.glob("[!C]*.md")), ROOT / "CONTRIBUTING.md"])
# The American spelling of a word, and "data set" for the glossary's dataset. Names of classes and
# of products keep theirs.
_AMERICAN = re.compile(
    r"\b(?!(?:re|over|under)?siz|priz|seiz|tokeniz|optimizer|synthesizer|finalizer|authorization)\w+iz(?:e[drs]?|ing|ation)\w*\b"
    r"|\b\w+yz(?:e[drs]?|ing)\b|\b(?:behavior|color|favor|flavor|honor|labor|neighbor)\w*\b"
    r"|\b(?:center|fiber|meter)(?:ed|s)?\b|\b(?:cancel|label|model|signal|travel)(?:ed|ing)\b"
    r"|\b(?:catalog|defense|gray|(?<!Apache )license|fulfill|learnt|data sets?)\b",
    re.IGNORECASE,
)

_CODE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_SPAN = re.compile(r"`[^`\n]*`|<[^>\n]+>|https?://\S+")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def sentences(text: str) -> list[str]:
    """Return the sentences of a page, without code, tables' bars and addresses."""
    text = _COMMENT.sub("", _CODE.sub("\n\n", text))
    text = _LINK.sub(r"\1", text)
    parts = re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.) |\||^#+ ", text, flags=re.MULTILINE)
    return [
        sentence
        for part in parts
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(part.split()))
        if sentence
    ]


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_is_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    long_ones = [line for line in sentences(text) if len(line.split()) > MOST_WORDS]
    assert long_ones == []


def test_long_sentences_are_found() -> None:
    text = "A short one. " + "word " * 31 + "end.\n\n```sh\n" + "code " * 40 + "\n```\n"
    assert [len(line.split()) for line in sentences(text)] == [3, 32]


def american(text: str) -> list[str]:
    """Return the words of a page that are not spelled in the British way."""
    prose = _SPAN.sub("", _LINK.sub(r"\1", _COMMENT.sub("", _CODE.sub("", text))))
    return _AMERICAN.findall(prose)


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_spelling_is_british(path: Path) -> None:
    assert american(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "word",
    ["organized", "analyze", "behavior", "labeled", "catalog", "a license", "learnt", "data set"],
)
def test_american_spelling_is_found(word: str) -> None:
    assert american(f"It is {word}.") == [word.removeprefix("a ")]
    assert american(f"It is `{word}`; a tokenizer of this size is labelled.") == []


def test_every_error_says_its_remedy() -> None:
    assert REMEDIES.keys() == CODES.keys()
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.TaciturnError):
            cause, remedy, _ = (kind.__doc__ or "").partition("Remedy: ")
            assert cause, kind
            assert remedy, f"{kind.__name__} has no line 'Remedy: ...' in its docstring"


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, f"Settings.{name} has no description"
    page = reference()
    meanings = page.attributes(KubernetesSettings)
    assert meanings.keys() == KubernetesSettings.model_fields.keys()
    assert all(meanings.values())
    assert "own_signing_key` | Without a signing_secret" in page.settings()


def test_every_route_says_what_it_is_and_for_whom() -> None:
    rows = [line.split(" | ") for line in reference().rest().splitlines() if "/v1/" in line]
    rows = [row for row in rows if row[0].startswith("| `")]
    assert len(rows) > 100
    for request, meaning, permission in rows:
        assert meaning.endswith((".", ":")) or len(meaning.split()) > 2, request
        assert permission.removesuffix(" |"), request
    assert any(row[2].startswith("`datasets:write`: owner") for row in rows)


@pytest.mark.thorough
def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|icon)"[^>]*href="([^"]+)"', text)
        for address in loaded:
            assert not re.match(r"(?:https?:)?//", address), f"{page.name} loads {address}"
        assert '"provider": "mike"' in text, "no list of versions (make docs-version)"
        assert "<blockquote>\n<blockquote>" not in text, f"{page}: write 'Examples:' above >>>"
    reference = (tmp_path / "reference" / "settings" / "index.html").read_text(encoding="utf-8")
    for name in Settings.model_fields:
        assert f"TACITURN_{name.upper()}" in reference
