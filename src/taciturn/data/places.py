"""Places where registered rows may be: one spelling of each place, and what lies in what.

    /data/ward/notes.parquet               a file; a pattern; a folder, which ends in /
    s3://bucket/key.parquet                gs, abfs and https alike
    postgresql+psycopg://HOST/DB#TABLE     one table

Texts alone are looked at, and nothing is opened: that two places of other names have the same rows
is found where the rows are (`worker/sources.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import SplitResult, quote, unquote, urlsplit

from taciturn.data.suffixes import COMPRESSIONS, FORMATS, suffix_of
from taciturn.errors import SpecError

TABLES = "postgresql+psycopg"
WEB = frozenset({"http", "https"})
_STORES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "abfs",
    "abfs": "abfs",
    "abfss": "abfs",
}
"""What a store is called, and the one name that is kept of it."""

_PORTS = {"http": 80, "https": 443, TABLES: 5432}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_CONTAINER = re.compile(r"[a-z0-9$][a-z0-9-]*(@[a-z0-9]{3,24}\.(dfs|blob)\.core\.windows\.net)?")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}(\.[A-Za-z_][A-Za-z0-9_$]{0,62})?")
_DATABASE = re.compile(r"/[A-Za-z0-9_.-]{1,63}")
_PARAMETER = re.compile(r"\?[^/]*=")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_OF_THE_SYSTEM = frozenset({"dev", "proc", "sys"})  # other names for what has one already

_CREDENTIALS = (
    "a source holds no credentials: the worker has its own, from its environment (AWS_PROFILE, "
    "PGPASSFILE, ...); remove user, password, token or signature from the URL"
)


def canonical(source: str) -> str:
    """The one spelling of a place.

    Raises SpecError unless it is an absolute path, a pattern or URL of a known format, or a table
    of PostgreSQL; and if it carries credentials. No message quotes it: it may hold a secret.
    """
    place = _spelled(source)
    if place.partition("://")[0] != TABLES:
        _check_format(place)
    elif "#" not in place:
        raise _invalid(f"a table is named {TABLES}://HOST[:PORT]/DATABASE#[SCHEMA.]TABLE")
    return place


def prefix(text: str) -> str:
    """The one spelling of a folder, file, bucket, host or database that sources may lie in.

    Raises SpecError if it is none, or a pattern.
    """
    place = _outer(text)
    if set("*?[") & set(place.partition("://[")[2] or place):
        raise _invalid("a pattern is no prefix; name the folder that the pattern is in")
    return place


def inside(place: str, outer: str) -> bool:
    """True if a place is another one or lies in it: /data/a.csv in /data and in /data/, but not in
    /dat; a host's files in the host, but not in one whose name only begins so."""
    if place == outer or not place.startswith(outer):
        return place == outer
    ends = "/#" if outer.startswith(TABLES) else "/"
    return outer.endswith("/") or place[len(outer)] in ends


def meet(one: str, other: str) -> bool:
    """True if one of two places is the other, or a folder that the other lies in."""
    return any(
        a == b or (a.endswith("/") and inside(b, a)) for a, b in ((one, other), (other, one))
    )


def is_allowed(place: str, prefixes: Iterable[str]) -> bool:
    """True if a place lies in one of these, which may be spelled in any way."""
    return any(inside(place, outer) for outer in spelled(prefixes))


def spelled(places: Iterable[str]) -> tuple[str, ...]:
    """Valid places, each in its one spelling."""
    outer_places = []
    for place in places:
        with suppress(SpecError):
            outer_places.append(_outer(place))
    return tuple(outer_places)


def host_and_port(place: str) -> tuple[str, int] | None:
    """Host and port that a worker connects to; None where the place does not name them."""
    parts = urlsplit(place)
    if parts.scheme not in _PORTS or parts.hostname is None:
        return None
    return parts.hostname, parts.port or _PORTS[parts.scheme]


def is_local(place: str) -> bool:
    """True if it is a path of the worker's own file system."""
    return place.startswith("/")


def _outer(text: str) -> str:
    """One spelling of what others lie in: also a whole scheme, or every path."""
    scheme, separator, rest = text.partition("://")
    if separator and not rest and scheme in {*_STORES, *_PORTS}:
        return f"{_STORES.get(scheme, scheme)}://"
    return "/" if text == "/" else _spelled(text)


def _spelled(source: str) -> str:
    if not source.isprintable() or source != source.strip():
        raise _invalid("it holds a character that cannot be printed, or blanks around it")
    if "::" in source.partition("://[")[0] or "::" in source.partition("]")[2]:
        raise _invalid("chained URLs (::) are not supported; name the file itself")
    if "://" not in source:
        return _path(source)
    parts = _split(source)
    _check_credentials(parts)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path  # ? is part of a pattern
    if parts.scheme == "file":
        if parts.netloc:
            raise _invalid("a file URL has three slashes: file:///data/notes.parquet")
        return _path(path)
    if parts.scheme == TABLES:
        return _table(parts)
    if parts.scheme in WEB:
        return f"{parts.scheme}://{_host(parts)}{_parts(_escaped(path))}"
    if parts.scheme in _STORES:
        return f"{_STORES[parts.scheme]}://{_bucket(parts)}{_parts(path)}"
    schemes = ", ".join(f"{scheme}://" for scheme in sorted({*_STORES, *WEB, TABLES, "file"}))
    raise _invalid(f"its scheme is not one of {schemes}")


def _split(source: str) -> SplitResult:
    try:
        parts = urlsplit(source)
        _ = parts.port  # parsed when it is read
    except ValueError:
        raise _invalid("the URL cannot be read") from None
    return parts


def _check_credentials(parts: SplitResult) -> None:
    user, at, _ = parts.netloc.rpartition("@")
    container = _STORES.get(parts.scheme) == "abfs" and ":" not in user
    if at and not container:
        raise SpecError(_CREDENTIALS)
    query = f"?{parts.query}" if parts.query else ""
    if (parts.scheme in WEB | {TABLES} and query) or _PARAMETER.search(query):
        raise SpecError(_CREDENTIALS)
    if parts.fragment and parts.scheme != TABLES:
        raise _invalid("only a table of a database has a fragment (#TABLE)")


def _table(parts: SplitResult) -> str:
    where = f"{TABLES}://{_host(parts)}"
    if not parts.path and not parts.fragment:
        return where
    names_a_table = not parts.fragment or _TABLE.fullmatch(parts.fragment)
    if not _DATABASE.fullmatch(parts.path) or not names_a_table:
        raise _invalid(f"a table is named {TABLES}://HOST[:PORT]/DATABASE#[SCHEMA.]TABLE")
    return f"{where}{parts.path}" + (f"#{parts.fragment}" if parts.fragment else "")


def _host(parts: SplitResult) -> str:
    """Host in lower case, without the default port and the dot that ends a full name."""
    host, port = parts.netloc.lower(), parts.port
    if port is not None:
        host = host.rpartition(":")[0]
    host = host.removesuffix(":").removesuffix(".")
    if not _HOST.fullmatch(host):
        raise _invalid("the URL names no host, or one of characters that no host's name has")
    return host if port in (None, _PORTS[parts.scheme]) else f"{host}:{port}"


def _bucket(parts: SplitResult) -> str:
    azure = _STORES[parts.scheme] == "abfs"
    name = parts.netloc.lower() if azure else parts.netloc
    if not (_CONTAINER if azure else _BUCKET).fullmatch(name):
        raise _invalid("the URL names no host or bucket, or one of characters that no bucket has")
    return name


def _escaped(path: str) -> str:
    """A web path in which one character is written in one way."""

    def once(escape: re.Match[str]) -> str:
        plain = unquote(escape[0])
        return plain if plain in _PLAIN else escape[0].upper()

    return quote(_ESCAPE.sub(once, path), safe="%/!$&'()*+,;=:@~-._")


def _parts(path: str) -> str:
    """The path of a URL as it is: of two slashes a store may make something else than of one."""
    inner = path.strip("/").split("/") if path.strip("/") else []
    if "//" in path or any(part in ("", ".", "..") for part in inner):
        raise _invalid("a path with . or .. or nothing between two slashes is not plain")
    return path


def _path(path: str) -> str:
    if not path.startswith("/"):
        raise _invalid("a path must be absolute, for the worker runs elsewhere: /data/...")
    parts = [part for part in path.split("/") if part]
    if any(part in ("..", ".") for part in parts):
        raise _invalid("a path with . or .. is not plain; write it out")
    if not parts or parts[0] in _OF_THE_SYSTEM:
        raise _invalid("it is no folder of data; name one, such as /data/...")
    return "/" + "/".join(parts) + ("/" if path.endswith("/") else "")


def _check_format(place: str) -> None:
    path = place.partition("://")[2].partition("/")[2] if "://" in place else place
    if (not path or not path.endswith("/")) and suffix_of(f"/{path}") not in FORMATS:
        suffixes = ", ".join(FORMATS)
        raise _invalid(
            f"its suffix is not one of {suffixes} (text formats also with "
            f"{', '.join(COMPRESSIONS)}); a folder ends in /"
        )


def _invalid(reason: str) -> SpecError:
    return SpecError(f"source: {reason}")
