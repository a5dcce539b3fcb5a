"""Code blocks of a page of the documentation, and the comments before them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"(?:^ *<!-- ([^>]*?) -->\n)?^( *)```(\w*)[^\n]*\n(.*?)^\2```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """Code of a page, and the comment before it: the test that runs it, or why none does."""

    comment: str
    language: str
    code: str


def blocks(text: str) -> list[Block]:
    """Return the code blocks of a page, those in tabs and lists included."""
    return [
        Block(match[1] or "", match[3], textwrap.dedent(match[4])) for match in BLOCK.finditer(text)
    ]


def copied(page: Path) -> list[Block]:
    """Return what a reader of a page copies and runs: shell and Python that CI can run, too."""
    return [
        block
        for block in blocks(page.read_text(encoding="utf-8"))
        if block.language in ("sh", "python") and not block.comment.startswith("not run")
    ]
