"""Gateway and token: from arguments, then the environment, then what `login` kept.

A kept token is for the gateway that gave it: it is sent to no other address.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from taciturn.errors import AuthenticationError, OutputError

URL_VARIABLE, TOKEN_VARIABLE = "TACITURN_URL", "TACITURN_TOKEN"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A gateway's address and a token for it.

    Attributes:
        ours: `login` has got the token for itself, so `logout` revokes it.
    """

    url: str
    token: str = field(repr=False)
    name: str | None = None
    ours: bool = False


def credentials_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the file of `taciturn login`."""
    config = environment.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "taciturn" / "credentials.json"


def find_credentials(
    url: str | None, token: str | None, environment: Mapping[str, str] = os.environ
) -> Credentials:
    """The credentials in force; raises AuthenticationError where there are none."""
    stored = read_credentials(environment)
    url = url or environment.get(URL_VARIABLE) or (stored.url if stored else None)
    if url is None:
        raise AuthenticationError(
            f"no gateway is named; give Client(url, token), set {URL_VARIABLE} and "
            f"{TOKEN_VARIABLE}, or run: taciturn login URL",
            code="unauthenticated",
        )
    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise AuthenticationError(f"{url} must begin with https:// or http://", code="invalid")
    token = token or environment.get(TOKEN_VARIABLE)
    name = None
    if token is None and stored is not None and stored.url == url:
        token, name = stored.token, stored.name
    if token is None:
        raise AuthenticationError(
            f"no token for {url}; give Client(url, token), set {TOKEN_VARIABLE}, or run: "
            f"taciturn login {url}",
            code="unauthenticated",
        )
    return Credentials(url, token, name)


def read_credentials(environment: Mapping[str, str] = os.environ) -> Credentials | None:
    """Read what `login` kept, if anything; raises AuthenticationError if others can read it."""
    path = credentials_path(environment)
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    if stat.S_IMODE(mode) & 0o077:
        raise AuthenticationError(
            f"{path} can be read by others; run: chmod 600 {path}", code="unauthenticated"
        )
    try:
        return Credentials(**json.loads(text))
    except (ValueError, TypeError):
        raise AuthenticationError(
            f"{path} is damaged; run: taciturn login", code="unauthenticated"
        ) from None


def keep_credentials(credentials: Credentials, environment: Mapping[str, str] = os.environ) -> Path:
    """Write them for this user only, whole or not at all."""
    path = credentials_path(environment)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(credentials), file)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def forget_credentials(environment: Mapping[str, str] = os.environ) -> bool:
    """Remove what `login` kept; whether there was anything."""
    path = credentials_path(environment)
    exists = path.is_file()
    path.unlink(missing_ok=True)
    return exists
