"""Webhooks, signed as Standard Webhooks has it (https://www.standardwebhooks.com).

A person names the receiver, so it may be anywhere: it has to be public, or in a network that the
operator allows; its address is looked up once and only that one is used; no redirect is followed;
time and the size of an answer are limited, and nothing of the answer but its status is looked at.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import secrets
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from taciturn._version import __version__
from taciturn.data.addresses import is_allowed, is_reachable
from taciturn.server.notifications.mail import Outcome
from taciturn.server.notifications.messages import Message
from taciturn.server.problems import ProblemError

CONNECT_S, TOTAL_S = 5.0, 15.0
_PREFIX = "whsec_"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """Receiver whose address was looked up."""

    parts: SplitResult
    address: str

    @property
    def port(self) -> int:
        """Port of the receiver."""
        return self.parts.port or _PORTS[self.parts.scheme]


def new_secret() -> str:
    """Return a new secret, 256 bits."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def signature(secret: str, delivery_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature of a message."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = hmac.digest(key, f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(signed).decode()


def body_of(
    form: str, delivery_id: str, kind: str, at_ms: int, message: Message, url: str
) -> bytes:
    """Return what is sent: our fields with a `text` that Slack shows, or a card for Teams."""
    link = f"{url}{message.path}"
    fields: dict[str, Any] = {
        "id": delivery_id,
        "type": kind,
        "timestamp": datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(),
        "title": message.title,
        "url": link,
        "data": dict(message.facts),
    }
    if form == "teams":
        body = {"type": "message", "attachments": [_card(message, link)], "taciturn": fields}
    else:
        body = {"text": _slack(f"{message.title}\n{message.text}\n") + link, **fields}
    return json.dumps(body, ensure_ascii=False).encode()


def _slack(text: str) -> str:
    """Return a text that Slack shows as it is, whatever names are in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _card(message: Message, link: str) -> dict[str, Any]:
    """Return an adaptive card. Its runs of text are no Markdown, so that names stay names."""

    def run(text: str, **style: str) -> dict[str, Any]:
        return {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": text, **style}]}

    content = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [run(message.title, weight="Bolder", size="Medium"), run(message.text)],
        "actions": [{"type": "Action.OpenUrl", "title": "Open in taciturn", "url": link}],
    }
    return {
        "contentType": "application/vnd.microsoft.card.adaptive",
        "contentUrl": None,
        "content": content,
    }


def target(url: str, networks: Sequence[str]) -> Target:
    """Return the receiver of a URL; raises ProblemError `invalid` where nothing may be sent, and
    OSError where its name is not known."""
    parts = _parts(url)
    answers = socket.getaddrinfo(
        parts.hostname, parts.port or _PORTS[parts.scheme], type=socket.SOCK_STREAM
    )
    addresses = [str(answer[4][0]) for answer in answers]
    if not all(is_reachable(ip_address(address), networks) for address in addresses):
        raise ProblemError(
            "invalid",
            "url: its host has an address that is not public; whoever runs the gateway allows its "
            "network with TACITURN_NOTIFICATION_NETWORKS",
        )
    private = all(is_allowed(ip_address(address), networks) for address in addresses)
    if parts.scheme != "https" and not private:
        raise ProblemError("invalid", "url: write https://, for http sends it in the clear")
    return Target(parts, addresses[0])


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
        is_known = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_plain = is_known = False
    if not is_plain or not is_known or "@" in parts.netloc or parts.fragment:
        raise ProblemError(
            "invalid", "url: write https://HOST/PATH, without a user, a password or a fragment"
        )
    return parts


def send(
    receiver: Target, delivery_id: str, keys: Sequence[str], body: bytes, now_s: int
) -> Outcome:
    """Send a signed message, once.

    Args:
        keys: secrets that sign it: after a change, the one before does too.
    """
    signatures = " ".join(signature(key, delivery_id, now_s, body) for key in keys)
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "User-Agent": f"taciturn/{__version__}",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": signatures,
    }
    path = receiver.parts.path or "/"
    query = f"?{receiver.parts.query}" if receiver.parts.query else ""
    connection = _PinnedConnection(receiver)
    timer = threading.Timer(TOTAL_S, connection.cut)
    timer.daemon = True
    timer.start()
    try:
        connection.request("POST", path + query, body=body, headers=headers)
        status = connection.getresponse().status
    except TimeoutError:
        return Outcome(False, "it did not answer in time")
    except (OSError, http.client.HTTPException) as error:
        late = connection.was_cut
        words = "in time" if late else f"as a web server does ({type(error).__name__})"
        return Outcome(False, f"it did not answer {words}")
    finally:
        timer.cancel()
        connection.close()
    return _judged(status)


def _judged(status: int) -> Outcome:
    if 200 <= status < 300:
        return Outcome(True, f"it answered {status}")
    if status == 410:
        return Outcome(False, "it answered 410: it wants no more", final=True)
    if 300 <= status < 400:
        return Outcome(False, f"it answered {status}; redirects are not followed")
    return Outcome(False, f"it answered {status}")


class _PinnedConnection(http.client.HTTPConnection):
    """Connection to the address that was checked, whatever its name leads to by now."""

    def __init__(self, receiver: Target) -> None:
        super().__init__(receiver.parts.hostname or "", receiver.port, timeout=CONNECT_S)
        self.receiver, self.was_cut = receiver, False
        self.default_port = _PORTS[receiver.parts.scheme]

    def connect(self) -> None:
        """Connect, and check the certificate against the name."""
        self.sock = socket.create_connection((self.receiver.address, self.port), CONNECT_S)
        self.sock.settimeout(TOTAL_S)
        if self.receiver.parts.scheme == "https":
            context = ssl.create_default_context()
            # `cut` has to reach the socket while it shakes hands, so it is kept before.
            self.sock = encrypted = context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            encrypted.do_handshake()

    def cut(self) -> None:
        """End it from another thread: its time is over."""
        self.was_cut = True
        with suppress(OSError):
            if self.sock is not None:
                self.sock.shutdown(socket.SHUT_RDWR)
