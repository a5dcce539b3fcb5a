"""Open consoles: what a page keeps asking for, asked by many at once."""

from __future__ import annotations

import asyncio
import http.client
import random
import re
from dataclasses import dataclass
from html.parser import HTMLParser

from sqlalchemy import Connection, select

from gateways.load import Line
from gateways.served import Served
from taciturn.server.context import Gateway
from taciturn.server.jobs.events import Events
from taciturn.server.schema.tables import jobs
from taciturn.wire.events import ProgressEvent


@dataclass(frozen=True)
class Reader:
    """Something that an open page does.

    Attributes:
        every_s: pause between two requests; None for a stream that stays open.
    """

    address: str
    headers: dict[str, str]
    every_s: float | None

    def __str__(self) -> str:
        what = "a stream" if self.every_s is None else f"every {self.every_s:g} s"
        return f"{what} of {re.sub(r'[a-z]+_[0-9a-z]{20}', '...', self.address)}"

    @property
    def request(self) -> bytes:
        """The request as it goes over the wire."""
        kind = "text/event-stream" if self.every_s is None else "text/html"
        lines = [f"{name}: {value}" for name, value in self.headers.items()]
        head = [f"GET {self.address} HTTP/1.1", "Host: gateway", f"Accept: {kind}", *lines]
        return "\r\n".join([*head, "HX-Request: true", "Accept-Encoding: gzip", "", ""]).encode()


class Askers(HTMLParser):
    """Elements that ask again by themselves."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.polls: list[tuple[str, float]] = []
        self.streams: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element with a timer or a stream."""
        values = {name: value or "" for name, value in attrs}
        timer = re.search(r"every ([\d.]+)(ms|s)", values.get("hx-trigger", ""))
        if timer and "hx-get" in values:
            self.polls.append(
                (values["hx-get"], float(timer[1]) / (1000 if timer[2] == "ms" else 1))
            )
        for name in ("hx-sse:connect", "data-live"):
            if name in values:
                self.streams.append(values[name])


def readers_of(port: int, address: str, headers: dict[str, str]) -> list[Reader]:
    """Return what an open page at this address keeps asking for."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", address, headers={**headers, "Accept": "text/html"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{address} answers {answer.status}")
    askers = Askers(answer.read().decode())
    polls = [Reader(path, headers, every_s) for path, every_s in askers.polls]
    return polls + [Reader(path, headers, None) for path in askers.streams]


async def cost_of(
    gateway: Gateway, process: Served, readers: list[Reader], number: int, seconds: float
) -> tuple[float, int]:
    """Return the share of a core that so many open pages cost, and the number of answers.

    Meanwhile every job that runs says at each tick how far it is.
    """
    answers, rng = 0, random.Random(5)

    async def open_page(reader: Reader) -> None:
        nonlocal answers
        if reader.every_s is None:
            source, sink = await asyncio.open_connection("127.0.0.1", process.port)
            sink.write(reader.request)
            try:
                async for line in source:
                    answers += line.startswith(b"data:")
            finally:
                sink.close()
            return
        await asyncio.sleep(rng.uniform(0, reader.every_s))
        line_to = Line(process.port)
        while True:
            await line_to.ask(reader.request)
            answers += 1
            await asyncio.sleep(reader.every_s)

    async def run_jobs() -> None:
        step = 10
        while True:
            await asyncio.to_thread(_say, gateway, step)
            step += 1
            await asyncio.sleep(gateway.settings.tick_s)

    tasks = [asyncio.create_task(open_page(reader)) for reader in readers for _ in range(number)]
    tasks.append(asyncio.create_task(run_jobs()))
    await asyncio.sleep(5)  # all have come
    before_s, answers = process.cpu_s(), 0
    await asyncio.sleep(seconds)
    share = (process.cpu_s() - before_s) / seconds
    broken = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if broken:
        raise RuntimeError(f"{len(broken)} readers ended: {broken[0]}")
    return share, answers


def _say(gateway: Gateway, step: int) -> None:
    events = Events(gateway)
    running = select(jobs.c.id).where(jobs.c.state == "running")

    def work(connection: Connection) -> None:
        for job in connection.execute(running).scalars():
            events.append(connection, job, ProgressEvent(step=step, steps=1000, epsilon=0.5))

    gateway.write(work)
