"""A model hub on this machine: what `huggingface_hub` asks of one to create, commit and fetch.

One revision, kept in memory. Large files go up by Git LFS's "basic" transfer, others in the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_this_test"
_LARGE = (".safetensors", ".gguf")


@dataclass
class Repository:
    """A repository: its files, and who may see it."""

    visibility: str | None
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        """Return an id of what is in it now."""
        content = repr(sorted((name, data) for name, data in self.files.items()))
        return hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """All that the hub holds, and what was asked of it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    refuses_commits: bool = False


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Write nothing."""

    def do_HEAD(self) -> None:
        self._get(with_body=False)

    def do_GET(self) -> None:
        self._get(with_body=True)

    def do_PUT(self) -> None:
        self._note()
        data = self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self._send(200, b"")

    def do_POST(self) -> None:
        self._note()
        path, body = urlsplit(self.path).path, self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Unauthorized"}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---\n")[1]
            self._json({"errors": [] if yaml.safe_load(front) else ["empty"], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            self._json({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/commit/" in path:
            self._commit(path, body)
        else:
            self._json({"error": "no such route"}, 404)

    def _get(self, *, with_body: bool) -> None:
        self._note()
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            name, _, rest = path.removeprefix("/api/models/").partition("/revision/")
            if not rest:
                name = name.partition("/tree/")[0]
            repository = self.hub.repositories.get(name)
            if repository is None:
                self._missing("RepoNotFound")
            elif "/tree/" in path:
                self._json([self._entry(n, data) for n, data in repository.files.items()])
            else:
                siblings = [{"rfilename": name} for name in repository.files]
                about = {"id": name, "sha": repository.commit, "siblings": siblings}
                self._json(about)
            return
        name, _, rest = path[1:].partition("/resolve/")
        file = rest.partition("/")[2]
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._missing("RepoNotFound")
        elif file not in repository.files:
            self._missing("EntryNotFound", repository.commit)
        else:
            data = repository.files[file]
            headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": repository.commit}
            self._send(200, data, headers, with_body=with_body)

    def _create(self, request: dict[str, Any]) -> None:
        name = "/".join(part for part in (request["organization"], request["name"]) if part)
        if name in self.hub.repositories:
            self._json({"error": "exists", "url": f"{self.hub.url}/{name}"}, 409)
            return
        self.hub.repositories[name] = Repository(request.get("visibility"))
        self._json({"url": f"{self.hub.url}/{name}"})

    def _batch(self, request: dict[str, Any]) -> None:
        objects = [
            {
                **item,
                "actions": {"upload": {"href": f"{self.hub.url}/objects/{item['oid']}"}},
            }
            for item in request["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, path: str, body: bytes) -> None:
        if self.hub.refuses_commits:
            self._json({"error": "no"}, 403)
            return
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        repository = self.hub.repositories[name]
        for line in body.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "header":
                repository.messages.append(value["summary"])
            elif kind == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
            elif kind == "deletedFile":
                del repository.files[value["path"]]
        url = f"{self.hub.url}/{name}/commit/{repository.commit}"
        self._json({"success": True, "commitOid": repository.commit, "commitUrl": url})

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
        if name.endswith(_LARGE):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return entry

    def _note(self) -> None:
        self.hub.requests.append((self.command, self.path))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _missing(self, code: str, commit: str = "") -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Repo-Commit": commit})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        with_body: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    header = b"blob %d\0" % len(data)
    return hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
