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
class ObjectChange:
    """An object of the cluster has changed, or is gone.

    Attributes:
        item: the object as it is, or was.
        is_gone: it is no more.
    """

    kind: Kind
    item: Object
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Caught:
    """All that there is of a kind has been told; what follows are changes."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class Forbidden:
    """The gateway may not see objects of a kind."""

    kind: Kind


Change = ObjectChange | Caught | Forbidden


@dataclass
class Informer:
    """Tells a queue everything about one kind of objects, each version at least once.

    After 410 Gone, or where the server does not know a version as new as ours, everything is listed
    again and compared with what was told before, so that what went meanwhile is told as well. After
    any other break, the watch goes on where it was.
    """

    cluster: Cluster
    kind: Kind
    news: queue.SimpleQueue[Change]
    labels: str = ""
    everywhere: bool = False
    _reported: dict[str, Object] = field(default_factory=dict)
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
        wait_s, version, reported_error = _FIRST_WAIT_S, "", ""
        while not self._over.is_set():
            try:
                version = version or self._list()
                reported_error = ""
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
                if str(error) != reported_error:  # once, however long it lasts
                    reported_error = str(error)
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
        objects, version = self.cluster.list(
            self.kind, labels=self.labels, everywhere=self.everywhere
        )
        present = {item["metadata"]["uid"]: item for item in objects}
        for uid in set(self._reported) - set(present):
            self._tell(ObjectChange(self.kind, self._reported[uid], is_gone=True))
        for uid, item in present.items():
            if _version(item) != _version(self._reported.get(uid)):
                self._tell(ObjectChange(self.kind, item))
        self.news.put(Caught(self.kind))
        return version

    def _watch(self, version: str) -> str:
        """Tell changes until the server ends the watch; returns the version reached."""
        try:
            for what, item in self.cluster.watch(
                self.kind, version, labels=self.labels, everywhere=self.everywhere,
                on_response=self._keep_response,
            ):  # fmt: skip
                version = item["metadata"]["resourceVersion"]
                if what != "BOOKMARK":
                    self._tell(ObjectChange(self.kind, item, is_gone=what == "DELETED"))
        except GoneError:
            raise
        except ClusterError as error:
            if error.status == 403:
                raise
            # 504: of a version that the server does not have (yet), as after etcd was put back to
            # a backup. Waiting for it might take for ever.
            raise _BrokenError("" if error.status == 504 else version) from None
        return version

    def _keep_response(self, response: Any) -> None:
        self._response = response

    def _tell(self, change: ObjectChange) -> None:
        uid = change.item["metadata"]["uid"]
        if change.is_gone:
            self._reported.pop(uid, None)
        else:
            self._reported[uid] = change.item
        self.news.put(change)


class _BrokenError(Exception):
    """The watch broke; it can go on from a version."""

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.version = version


def _version(item: Object | None) -> str | None:
    return None if item is None else str(item["metadata"]["resourceVersion"])
