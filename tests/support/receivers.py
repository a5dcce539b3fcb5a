"""Receivers of notifications: a mail server that asks for STARTTLS and a password, and a web server
that answers as a test says."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default as default_policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from taciturn.server.notifications import webhooks

USER, PASSWORD = "taciturn", "mail secret"


@dataclass
class Mailbox:
    """Mail that has arrived; addresses in `refused` are refused with the code there."""

    port: int = 0
    letters: list[EmailMessage] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    async def handle_RCPT(
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        letter = BytesParser(policy=default_policy).parsebytes(envelope.content)
        assert isinstance(letter, EmailMessage)
        self.letters.append(letter)
        return "250 OK"


@contextmanager
def mail_server(
    folder: Path, *, port: int = 0, mailbox: Mailbox | None = None
) -> Iterator[Mailbox]:
    """A server on this machine; its certificate, for `localhost`, is folder/ca.pem."""
    mailbox = mailbox or Mailbox()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = folder / "ca.pem", folder / "mail.key"
    if not certificate.exists():
        write_certificate(certificate, key)
    context.load_cert_chain(certificate, key)

    def authenticated(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        known = LoginPassword(USER.encode(), PASSWORD.encode())
        return AuthResult(success=data == known)

    controller = Controller(
        mailbox, hostname="127.0.0.1", port=port or free_port(), tls_context=context,
        require_starttls=True, auth_required=True, authenticator=authenticated,
    )  # fmt: skip
    controller.start()
    mailbox.port = controller.port
    try:
        yield mailbox
    finally:
        controller.stop()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def write_certificate(path: Path, key_path: Path) -> None:
    """Write a certificate for `localhost` that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@dataclass
class Arrival:
    """A request that has arrived."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """A web server; `answer` says what it does with each request: a status, or seconds to wait."""

    port: int = 0
    arrivals: list[Arrival] = field(default_factory=list)
    answer: Callable[[Arrival], int | float] = lambda arrival: 204

    @property
    def url(self) -> str:
        """Where webhooks may be sent."""
        return f"http://127.0.0.1:{self.port}/hook?team=1"

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        size = int(handler.headers["Content-Length"])
        headers = {name.lower(): text for name, text in handler.headers.items()}
        arrival = Arrival(handler.path, headers, handler.rfile.read(size))
        self.arrivals.append(arrival)
        answer = self.answer(arrival)
        if isinstance(answer, float):
            time.sleep(answer)
            answer = 204
        handler.send_response(answer)
        handler.send_header("Location", "http://169.254.169.254/latest/")
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@contextmanager
def receiver(answer: Callable[[Arrival], int | float] = lambda arrival: 204) -> Iterator[Receiver]:
    """A receiver on this machine."""
    own = Receiver(answer=answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            own.handle(self)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    own.port = int(server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield own
    finally:
        server.shutdown()
        server.server_close()


def assert_signed(arrival: Arrival, secret: str) -> None:
    """Check that one of the signatures of a request is made with this secret."""
    headers = arrival.headers
    own = webhooks.signature(
        secret, headers["webhook-id"], int(headers["webhook-timestamp"]), arrival.body
    )
    assert own in headers["webhook-signature"].split(" ")
