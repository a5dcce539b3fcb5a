"""A copy of what the cluster has, kept up to date by watches that survive what ends them."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from taciturn.server.launchers.kubernetes.client import (
    Cluster,
    ClusterError,
    GoneError,
    Kind,
    Object,
)

log = logging.getLogger("taciturn.server.launchers.kubernetes")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """An object of the cluster has changed, or is gone.

    Attributes:
        found: as it is, or was.
        gone: it is no more.
    """

    kind: Kind
    found: Object
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Caught:
    """All that there is of a kind has been told; what follows are changes."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class Forbidden:
    """The gateway may not see objects of a kind."""

    kind: Kind


News = Seen | Caught | Forbidden


@dataclass
class Follower:
    """Tells a queue everything about one kind of objects, each version at least once.

    After 410 Gone, or where the server does not know a version as new as ours, everything is listed
    again and compared with what was told before, so that what went meanwhile is told as well. After
    any other break, the watch goes on where it was.
    """

    cluster: Cluster
    kind: Kind
    news: queue.SimpleQueue[News]
    labels: str = ""
    everywhere: bool = False
    _told: dict[str, Object] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _response: Any = None

    def start(self) -> threading.Thread:
        """Follow in a thread of its own."""
        thread = threading.Thread(target=self._run, name=f"taciturn-{self.kind}", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End; the thread notices at once."""
        self._over.set()
        with suppress(Exception):
            self._response.connection.sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        wait_s, version, said = _FIRST_WAIT_S, "", ""
        while not self._over.is_set():
            try:
                version = version or self._list()
                said = ""
                version = self._watch(version)
                wait_s = _FIRST_WAIT_S
            except GoneError:
                version = ""
            except _BrokenError as resumed:
                version, wait_s = resumed.version, self._pause(wait_s)
            except ClusterError as error:
                if error.status == 403:
                    self.news.put(Forbidden(self.kind))
                    wait_s = _LONGEST_WAIT_S
                if str(error) != said:  # once, however long it lasts
                    said = str(error)
                    log.warning("the cluster's %s are not followed: %s", self.kind, error)
                wait_s = self._pause(wait_s)
            except Exception:
                log.exception("the cluster's %s are not followed", self.kind)
                version, wait_s = "", self._pause(wait_s)

    def _pause(self, wait_s: float) -> float:
        self._over.wait(wait_s)
        return min(2 * wait_s, _LONGEST_WAIT_S)

    def _list(self) -> str:
        """Tell what is there, and what is there no more; returns the version it is of."""
        found, version = self.cluster.list(
            self.kind, labels=self.labels, everywhere=self.everywhere
        )
        present = {each["metadata"]["uid"]: each for each in found}
        for uid in set(self._told) - set(present):
            self._tell(Seen(self.kind, self._told[uid], gone=True))
        for uid, each in present.items():
            if _version(each) != _version(self._told.get(uid)):
                self._tell(Seen(self.kind, each))
        self.news.put(Caught(self.kind))
        return version

    def _watch(self, version: str) -> str:
        """Tell changes until the server ends the watch; returns the version reached."""
        try:
            for what, found in self.cluster.watch(
                self.kind, version, labels=self.labels, everywhere=self.everywhere,
                opened=self._opened,
            ):  # fmt: skip
                version = found["metadata"]["resourceVersion"]
                if what != "BOOKMARK":
                    self._tell(Seen(self.kind, found, gone=what == "DELETED"))
        except GoneError:
            raise
        except ClusterError as error:
            if error.status == 403:
                raise
            # 504: of a version that the server does not have (yet), as after etcd was put back to
            # a backup. Waiting for it might take for ever.
            raise _BrokenError("" if error.status == 504 else version) from None
        return version

    def _opened(self, response: Any) -> None:
        self._response = response

    def _tell(self, seen: Seen) -> None:
        uid = seen.found["metadata"]["uid"]
        if seen.gone:
            self._told.pop(uid, None)
        else:
            self._told[uid] = seen.found
        self.news.put(seen)


class _BrokenError(Exception):
    """The watch broke; it can go on from a version."""

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.version = version


def _version(found: Object | None) -> str | None:
    return None if found is None else str(found["metadata"]["resourceVersion"])
