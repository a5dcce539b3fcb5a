"""The processes that serve one gateway together: which of them this is, and what they tell others.

The first one dispatches, and keeps what lives in memory: text on its way from a worker to a reader,
workers that wait for another request. The others hand requests for these on to it (`forwarding`).
Everything else is in the database, so that any of them answers any request.

News are single words, sent to all the others. They may be lost: each says no more than "look now"
to somebody who would look within a second anyway.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

DISPATCH, FORGET = "dispatch", "forget"
"""A job was queued; people or tokens have changed."""
AWAY, ANSWERS = "away", "answers"
"""Whether the launcher answers. The first is said again as long as it does not."""

_WORD_BYTES = 64
_log = logging.getLogger("taciturn.siblings")


@dataclass(eq=False, slots=True)
class Siblings:
    """This process among those of its gateway.

    Attributes:
        number: 0 is the first.
        count: how many there are.
        folder: where their sockets are, which nobody else may enter; None: there is one only.
    """

    number: int = 0
    count: int = 1
    folder: Path | None = None
    _heard: dict[str, list[Callable[[], object]]] = field(default_factory=dict)
    _socket: socket.socket | None = None

    @property
    def first(self) -> bool:
        """Whether this one dispatches and keeps what lives in memory."""
        return self.number == 0

    @property
    def door(self) -> Path | None:
        """The socket at which the first one takes requests that others hand on."""
        return None if self.folder is None else self.folder / "first"

    def on(self, word: str, do: Callable[[], object]) -> None:
        """Call this when another process has said this word. Must not block."""
        self._heard.setdefault(word, []).append(do)

    def tell(self, word: str) -> None:
        """Say a word to all the others; whoever is not there, or has no time, misses it."""
        if self.folder is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.setblocking(False)
            for number in range(self.count):
                if number != self.number:
                    with contextlib.suppress(OSError):
                        speaker.sendto(word.encode(), self._ear(self.folder, number))

    def start(self) -> None:
        """Listen to the others."""
        if self.folder is None:
            return
        ear = Path(self._ear(self.folder, self.number))
        ear.unlink(missing_ok=True)  # of one who had this number and has died
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(ear))
        threading.Thread(target=self._listen, name="taciturn-siblings", daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self._socket.close()

    def _listen(self) -> None:
        assert self._socket is not None
        while True:
            try:
                word = self._socket.recv(_WORD_BYTES).decode(errors="replace")
            except OSError:
                return
            for do in self._heard.get(word, ()):
                try:
                    do()
                except Exception:
                    _log.exception("what another process said could not be done")

    @staticmethod
    def _ear(folder: Path, number: int) -> str:
        return str(folder / f"ear-{number}")
