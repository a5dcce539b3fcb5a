"""The API server's HTTP: paths, verbs, watches in chunks, logs."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fake_kubernetes.api import Api, ApiError, Target
from fake_kubernetes.store import Change, Object
from fake_kubernetes.strictness import MODELS

Logs = Callable[[Object], bytes]

_PATH = re.compile(
    r"^/(?:api/v1|apis/(?P<group>[^/]+)/v1)"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/[a-z]))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?$"
)
_GROUPS = {"jobs": "batch", "networkpolicies": "networking.k8s.io"}
_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_BOOKMARK_S = 0.5


class Server(ThreadingHTTPServer):
    """Serves an API on a port of this machine."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, api: Api, logs: Logs, port: int = 0, context: ssl.SSLContext | None = None
    ) -> None:
        self.api, self.logs = api, logs
        self.open: set[socket.socket] = set()
        self.requests: list[tuple[str, str]] = []
        self.failures: list[int] = []
        self.page: int | None = (
            None  # what a proxy before the server answers, with words of its own
        )
        self.broken: list[Exception] = []
        super().__init__(("127.0.0.1", port), _Handler)
        if context is not None:  # who connects and says nothing keeps nobody else waiting
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def cut(self) -> None:
        """Break all connections, as a restart of the API server does."""
        for each in list(self.open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(
            lambda target, query: (200, self.server.api.replace(target, self._body(), query)),
            "update",
        )

    def do_PATCH(self) -> None:
        media_type = self.headers.get("Content-Type", "")
        self._answer(
            lambda target, query: (
                200,
                self.server.api.patch(target, self._body(), media_type, query),
            ),
            "patch",
        )

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def _answer(
        self,
        act: Callable[[Target, dict[str, str]], tuple[int, Object] | None],
        verb: str | None = None,
    ) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        self._read = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, url.path))
        if self.server.page is not None:
            self.send_error(self.server.page)
            return
        try:
            if self.server.failures:
                raise ApiError(self.server.failures.pop(0), "the server is not able to answer now")
            if url.path in ("/version", "/version/"):
                self._send(200, {"major": "1", "minor": "36", "gitVersion": "v1.36.0-fake",
                                 "gitCommit": "", "gitTreeState": "", "buildDate": "",
                                 "goVersion": "", "compiler": "", "platform": ""})  # fmt: skip
                return
            if url.path == _ACCESS_REVIEWS:
                self._send(201, self.server.api.review(self._body()))
                return
            target = self._target(url.path)
            self.server.api.allow(verb or self._verb(target, query), target)
            answer = act(target, query)
            if answer is not None:
                self._send(*answer)
        except ApiError as error:
            self._send(error.code, error.status())
        except OSError:
            raise  # the client is gone
        except Exception as error:
            self.server.broken.append(error)
            self._send(500, ApiError(500, f"{type(error).__name__}: {error}").status())

    def _target(self, path: str) -> Target:
        found = _PATH.match(path)
        if not found or found["resource"] not in MODELS:
            raise ApiError(404, "the server could not find the requested resource")
        if found["group"] != _GROUPS.get(found["resource"]):
            raise ApiError(404, "the server could not find the requested resource")
        return Target(found["resource"], found["namespace"], found["name"], found["sub"])

    def _verb(self, target: Target, query: dict[str, str]) -> str:
        if self.command == "GET":
            if target.name:
                return "get"
            return "watch" if query.get("watch") in ("true", "True", "1") else "list"
        if self.command == "DELETE" and not target.name:
            return "deletecollection"
        return {"POST": "create", "DELETE": "delete"}[self.command]

    def _get(self, target: Target, query: dict[str, str]) -> tuple[int, Object] | None:
        if target.sub == "log":
            self._log(self.server.api.get(Target("pods", target.namespace, target.name)), query)
            return None
        if target.name:
            return 200, self.server.api.get(target)
        if query.get("watch") in ("true", "True", "1"):
            self._watch(target, query)
            return None
        return 200, self.server.api.list(target, query)

    def _post(self, target: Target, query: dict[str, str]) -> tuple[int, Object]:
        return 201, self.server.api.create(target, self._body(), query)

    def _delete(self, target: Target, query: dict[str, str]) -> tuple[int, Object]:
        options = {**query, **(self._body() or {})}
        if target.name:
            return 200, self.server.api.delete(target, options)
        found = self.server.api.list(target, query)
        for each in found["items"]:
            with suppress(ApiError):
                name = each["metadata"]["name"]
                self.server.api.delete(Target(target.resource, target.namespace, name), options)
        return 200, found

    def _body(self) -> Any:
        if not self._read:
            return None
        try:
            return json.loads(self._read)
        except ValueError as error:
            raise ApiError(400, f"error decoding the body: {error}") from None

    def _send(self, code: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for words in self.server.api.warnings[:10]:
            self.send_header("Warning", f'299 - "{words}"')
        self.server.api.warnings.clear()
        if code == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)

    def _log(self, pod: Object, query: dict[str, str]) -> None:
        """The pod's output; `follow` waits for its end."""
        states = pod["status"].get("containerStatuses") or [{"state": {"waiting": {}}}]
        if "waiting" in states[0]["state"]:
            raise ApiError(400, f'container "{pod["spec"]["containers"][0]["name"]}" in pod '
                           f'"{pod["metadata"]["name"]}" is waiting to start')  # fmt: skip
        store = self.server.api.store
        while query.get("follow") in ("true", "True") and "running" in states[0]["state"]:
            time.sleep(0.02)
            found = store.find("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
            states = (found or {"status": {}})["status"].get("containerStatuses") or [{"state": {}}]
        data = self.server.logs(pod)
        if "tailLines" in query:
            data = b"".join(data.splitlines(keepends=True)[-int(query["tailLines"]) :])
        data = data[: int(query.get("limitBytes") or len(data))]
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _watch(self, target: Target, query: dict[str, str]) -> None:
        chosen = self.server.api.selection(target, query)
        asked, newest = int(query.get("resourceVersion") or 0), self.server.api.store.version
        if asked > newest:
            words = f"Timeout: Too large resource version: {asked}, current: {newest}"
            raise ApiError(504, words)
        self.send_response(200)
        self.send_header("Content-Type", "application/json;stream=watch")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = time.monotonic() + float(query.get("timeoutSeconds") or 1800)
        try:
            for line in self._events(target, query, chosen, end):
                data = json.dumps(line).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            pass
        self.close_connection = True

    def _events(
        self, target: Target, query: dict[str, str], chosen: Callable[[Object], bool], end: float
    ) -> Iterator[Object]:
        store = self.server.api.store
        version = int(query.get("resourceVersion") or 0)
        if version == 0:
            with store.lock:
                version = store.version
                present = store.all(target.resource, target.namespace)
            yield from ({"type": "ADDED", "object": each} for each in present if chosen(each))
        bookmarks = query.get("allowWatchBookmarks") in ("true", "True")
        marked = time.monotonic()
        while time.monotonic() < end:
            with store.changed:
                oldest, newest = store.oldest, store.version
                changes = list(store.since(version, target.resource))
                if not changes and version >= oldest:
                    store.changed.wait(min(0.25, max(0.0, end - time.monotonic())))
            if version < oldest:
                gone = ApiError(410, f"too old resource version: {version} ({oldest})")
                yield {"type": "ERROR", "object": gone.status()}
                return
            for change in changes:
                seen = _seen(change, chosen)
                if seen is not None:
                    yield {"type": seen, "object": change.last}
            version = max(version, newest)
            if bookmarks and time.monotonic() - marked > _BOOKMARK_S:
                marked = time.monotonic()
                yield {"type": "BOOKMARK", "object": _bookmark(target, version)}


def _seen(change: Change, chosen: Callable[[Object], bool]) -> str | None:
    """Return the type of event that a selecting watch sees; None if it sees nothing."""
    before = change.old is not None and chosen(change.old)
    after = change.new is not None and chosen(change.new)
    if before and after:
        return "MODIFIED"
    return "ADDED" if after else "DELETED" if before else None


def _bookmark(target: Target, version: int) -> Object:
    kind = MODELS[target.resource].__name__.removeprefix("Core").removeprefix("V1")
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    return {"kind": kind, "apiVersion": "v1", "metadata": metadata}


def serve(server: Server) -> threading.Thread:
    """Serve in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    return thread
