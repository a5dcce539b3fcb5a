"""Files and streams on their way out."""

from __future__ import annotations

import re
from urllib.parse import quote

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Send

from taciturn.server.models.artifacts import Download
from taciturn.server.problems import ProblemError
from taciturn.wire.values import PolicyLine

POLICY_HEADER = "Taciturn-Policy"
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")
_READ_S = 30.0  # a reader who takes nothing for so long has gone, or is too slow to be waited for


def policy_header(policy: PolicyLine) -> dict[str, str]:
    """The policy line as a header; what is not ASCII is percent-encoded."""
    return {POLICY_HEADER: quote(policy.text, safe=" !#$&'()*+,/:;=?@[]{}|~<>\"^`")}


def bounds(header: str | None) -> tuple[int | None, int | None]:
    """First and last byte of a Range header; all of the file where there is none.

    Raises:
        ProblemError: `range_not_satisfiable`, also for several ranges at once.
    """
    if header is None:
        return (None, None)
    match = _RANGE.match(header.strip())
    if match is None or match.groups() == ("", "") or len(header) > 100:
        raise ProblemError("range_not_satisfiable", "ask for one range: bytes=FIRST-LAST")
    first, last = (int(digits) if digits else None for digits in match.groups())
    return (first, last)


def file_response(
    download: Download, policy: PolicyLine | None, *, part: bool = False
) -> StreamingResponse:
    """A file to be saved, never to be shown by a browser in the gateway's own name."""
    file = download.file
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store",
        "Content-Disposition": f'attachment; filename="{file.name}"',
        "Content-Length": str(download.length),
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "ETag": f'"{file.sha256}"',
        "X-Content-Type-Options": "nosniff",
        **({} if policy is None else policy_header(policy)),
    }
    if part:
        end = download.start + download.length - 1
        headers["Content-Range"] = f"bytes {download.start}-{end}/{file.size_bytes}"
    return StreamingResponse(
        download.chunks,
        status_code=206 if part else 200,
        media_type="application/octet-stream",
        headers=headers,
    )


class EventStream(StreamingResponse):
    """Server-sent events. A reader who does not read is let go, so that nothing piles up."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Send) -> None:
        """Send pieces as they come."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        async for chunk in self.body_iterator:
            data = chunk.encode() if isinstance(chunk, str) else bytes(chunk)
            with anyio.move_on_after(_READ_S) as patience:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if patience.cancelled_caught:
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
