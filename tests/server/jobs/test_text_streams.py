"""Pieces of text come in order, once, and only so many are kept."""

from __future__ import annotations

import asyncio

import pytest

from taciturn.server.jobs import text_streams as texts_module
from taciturn.server.jobs.text_streams import Texts
from taciturn.wire.worker import TextChunk


def _chunk(text: str, offset: int | None = None, *, last: bool = False) -> TextChunk:
    return TextChunk(text=text, offset=offset, last=last)


async def _all(texts: Texts) -> list[str]:
    found, number = [], 0
    while (chunk := await texts.read("job", number, 0.05)) is not None:
        found.append(chunk.text)
        number += 1
        if chunk.last:
            break
    return found


def test_pieces_come_in_order_whoever_comes_first() -> None:
    async def run() -> None:
        texts = Texts()
        texts.put("job", _chunk("On"))
        reader = asyncio.create_task(_all(texts))
        await asyncio.sleep(0.01)
        texts.put("job", _chunk("ce"))
        texts.put("job", _chunk("", last=True))
        texts.put("job", _chunk("after the end"))
        assert await reader == ["On", "ce", ""]
        texts.close("job")

    asyncio.run(run())


def test_repeats_and_gaps_are_dropped() -> None:
    async def run() -> None:
        texts = Texts()
        for chunk in (_chunk("On", 0), _chunk("On", 0), _chunk("ce", 2), _chunk("gap", 9)):
            texts.put("job", chunk)
        assert await _all(texts) == ["On", "ce"]

    asyncio.run(run())


def test_what_nobody_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "_UNREAD_CHARS", 3)
    monkeypatch.setattr(texts_module, "_MOST", 5)

    async def run() -> None:
        texts = Texts()
        for number in range(20):
            for _ in range(9):
                texts.put(f"job{number}", _chunk("x"))
        texts.put("job", _chunk("xxx"))
        texts.put("job", _chunk("y"))
        assert await _all(texts) == ["xxx"]
        assert len(texts._channels) <= 5

    asyncio.run(run())
