"""A browser's session: a cookie that scripts can't read, and a proof against forged requests.

A write needs, besides the cookie, the header `Taciturn-CSRF` with a value that only a page of ours
can read (it is bound to the session: no other cookie fits), and, where the browser says it, our own
origin.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from taciturn.server.problems import ProblemError
from taciturn.server.settings import Settings

CSRF_HEADER = "Taciturn-CSRF"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Sessions:
    """Cookies in and out."""

    settings: Settings

    @property
    def secure(self) -> bool:
        """True if cookies are for https only."""
        if self.settings.secure_cookies is not None:
            return self.settings.secure_cookies
        return (self.settings.public_url or "").startswith("https://")

    @property
    def cookie(self) -> str:
        """The session cookie's name; with __Host-, browsers take it from us alone."""
        return "__Host-taciturn" if self.secure else "taciturn"

    @property
    def csrf_cookie(self) -> str:
        """The name of the cookie that a page of ours reads and sends back as a header."""
        return f"{self.cookie}-csrf"

    def token(self, request: Request) -> str | None:
        """The session's token, where the request has one."""
        return request.cookies.get(self.cookie)

    def begin(self, response: Response, token: str) -> str:
        """Set the cookies; returns the value for the CSRF header."""
        proof = csrf_proof(token)
        age_s = round(self.settings.session_s)
        for name, value, hidden in (
            (self.cookie, token, True),
            (self.csrf_cookie, proof, False),
        ):
            response.set_cookie(
                name, value, max_age=age_s, secure=self.secure, httponly=hidden, samesite="lax"
            )
        return proof

    def end(self, response: Response) -> None:
        """Remove the cookies."""
        for name, hidden in ((self.cookie, True), (self.csrf_cookie, False)):
            response.delete_cookie(name, secure=self.secure, httponly=hidden, samesite="lax")

    def check_csrf(self, request: Request, token: str) -> None:
        """Raises ProblemError `csrf` for a write that may come from another site's page."""
        if request.method in _SAFE:
            return
        self.check_origin(request)
        proof = request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(proof.encode(), csrf_proof(token).encode()):
            raise ProblemError(
                "csrf",
                f"a write of a browser session needs the header {CSRF_HEADER} with the value of "
                f"the cookie {self.csrf_cookie!r}",
            )

    def check_origin(self, request: Request) -> None:
        """Raises ProblemError `csrf` if a browser says that another site's page asks."""
        if not self._own_origin(request):
            raise ProblemError(
                "csrf",
                "the request comes from another site; only pages of this gateway may send it",
            )

    def proof(self, request: Request) -> str:
        """The value for the CSRF header; empty where the caller has no session."""
        token = self.token(request)
        return csrf_proof(token) if token else ""

    def _own_origin(self, request: Request) -> bool:
        origin = request.headers.get("origin")
        if origin is None:
            return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
        public = self.settings.public_url
        own = urlsplit(public).netloc if public else request.headers.get("host", "")
        try:
            return urlsplit(origin).netloc == own
        except ValueError:
            return False


def csrf_proof(token: str) -> str:
    """Proof that a session's pages send back; it tells nothing of the token."""
    return hashlib.sha256(f"csrf:{token}".encode()).hexdigest()
