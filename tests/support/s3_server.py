"""A small S3 server on this machine: objects of any bucket in memory, for AWS's own client.

It knows what writing, moving, reading, listing and deleting need, uploads in parts included. No
signature is checked: credentials are the client's affair.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

_DATE = "Wed, 01 Jan 2025 00:00:00 GMT"
_MOMENT = "2025-01-01T00:00:00.000Z"


class Buckets(ThreadingHTTPServer):
    """The server, and what it holds.

    Attributes:
        objects: by bucket and key, such as "ward/folder/rows.jsonl".
        writable: what may be written, by how it begins, as a bucket's policy says.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.writable = ""

    @property
    def url(self) -> str:
        """Endpoint for AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> list[str]:
        """Return keys of objects that are no marks of folders."""
        return sorted(key for key in self.objects if not key.endswith("/"))


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Buckets]:
    """Serve, and lead AWS's client of this process there."""
    with Buckets() as buckets:
        threading.Thread(target=buckets.serve_forever, daemon=True).start()
        for name, value in {
            "AWS_ENDPOINT_URL": buckets.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield buckets
        buckets.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Buckets

    def do_PUT(self) -> None:
        """Store an object, a part of one, or a copy."""
        content, query = self._body(), self._query()
        if not self._key().startswith(self.server.writable):
            self._refuse(403, "AccessDenied")
        elif "uploadId" in query:
            self.server.parts[query["uploadId"]][int(query["partNumber"])] = content
            self._answer(200, headers={"ETag": _etag(content)})
        elif source := self.headers.get("x-amz-copy-source"):
            content = self.server.objects[unquote(source).lstrip("/")]
            self.server.objects[self._key()] = content
            self._answer(
                200,
                f"<CopyObjectResult><ETag>{_etag(content)}</ETag>"
                f"<LastModified>{_MOMENT}</LastModified></CopyObjectResult>",
            )
        else:
            self.server.objects[self._key()] = content
            self._answer(200, headers={"ETag": _etag(content)})

    def do_POST(self) -> None:
        """Begin an upload in parts, put the parts together, or delete several objects."""
        content, query, key = self._body(), self._query(), self._key()
        names = (
            f"<Bucket>{key.partition('/')[0]}</Bucket><Key>{escape(key.partition('/')[2])}</Key>"
        )
        if "uploads" in query:
            if not self._key().startswith(self.server.writable):
                self._refuse(403, "AccessDenied")
                return
            upload = f"upload-{len(self.server.parts)}"
            self.server.parts[upload] = {}
            result = f"{names}<UploadId>{upload}</UploadId>"
            self._answer(
                200, f"<InitiateMultipartUploadResult>{result}</InitiateMultipartUploadResult>"
            )
        elif "uploadId" in query:
            parts = self.server.parts.pop(query["uploadId"])
            whole = b"".join(parts[number] for number in sorted(parts))
            self.server.objects[key] = whole
            result = f"{names}<ETag>{_etag(whole)}</ETag>"
            self._answer(
                200, f"<CompleteMultipartUploadResult>{result}</CompleteMultipartUploadResult>"
            )
        else:
            for part in content.decode().split("<Key>")[1:]:
                name = part.partition("</Key>")[0]
                self.server.objects.pop(f"{key.rstrip('/')}/{name}", None)
            self._answer(200, "<DeleteResult/>")

    def do_DELETE(self) -> None:
        """Delete an object, or what was uploaded of one."""
        query = self._query()
        if "uploadId" in query:
            self.server.parts.pop(query["uploadId"], None)
        else:
            self.server.objects.pop(self._key(), None)
        self._answer(204)

    def do_HEAD(self) -> None:
        """Say how long an object is."""
        self._read()

    def do_GET(self) -> None:
        """Send an object or a part of it, or list a bucket."""
        if "list-type" in self._query():
            self._list()
        else:
            self._read()

    def _read(self) -> None:
        key = self._key()
        content = self.server.objects.get(key)
        if content is None:
            holds = "/" not in key.strip("/") and self.command == "HEAD"
            self._answer(200) if holds else self._refuse(404, "NoSuchKey")
            return
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, content)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        piece = content[int(first) : int(last) + 1 if last else None]
        span = f"bytes {first}-{int(first) + len(piece) - 1}/{len(content)}"
        self._send(206, piece, {"Content-Range": span})

    def _list(self) -> None:
        query, bucket = self._query(), self._key().strip("/")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        contents, folders = [], set()
        for name, content in sorted(self.server.objects.items()):
            own, _, key = name.partition("/")
            if own != bucket or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{_MOMENT}</LastModified>"
                f"<ETag>{_etag(content)}</ETag><Size>{len(content)}</Size></Contents>"
            )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            for name in sorted(folders)
        )
        self._answer(
            200,
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(contents) + len(folders)}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{''.join(contents)}{common}</ListBucketResult>",
        )

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/")

    def _query(self) -> dict[str, str]:
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        return {name: values[0] for name, values in query.items()}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        else:
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return content
        plain = b""
        while content:
            head, _, rest = content.partition(b"\r\n")
            size = int(head.split(b";")[0], 16)
            if not size:
                break
            plain, content = plain + rest[:size], rest[size + 2 :]
        return plain

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")

    def _answer(self, status: int, xml: str = "", headers: dict[str, str] | None = None) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?>{xml}' if xml else ""
        self._send(status, text.encode(), {"Content-Type": "application/xml", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        own = {"Last-Modified": _DATE, "Content-Length": str(len(content)), **(headers or {})}
        for name, value in own.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
