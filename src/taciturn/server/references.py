"""References to private rows: whether a text has the shape of one. Nothing is opened."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from taciturn.preparation.formats import COMPRESSIONS, FORMATS, suffix_of
from taciturn.server.problems import ProblemError

_STORES = frozenset({"s3", "gs", "gcs", "az", "abfs", "abfss", "file", "hdfs"})
_WEB = frozenset({"http", "https"})
_NAMED_BY_USER = frozenset({"abfs", "abfss"})  # container@account is an address there
_SQL = "postgresql+psycopg"
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}(\.[A-Za-z_][A-Za-z0-9_$]{0,62})?")
_DATABASE = re.compile(r"/[A-Za-z0-9_.-]{1,63}")
_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?")
_PARAMETER = re.compile(r"\?[^/]*=")

_CREDENTIALS = (
    "a source holds no credentials: the worker has its own, from its environment (AWS_PROFILE, "
    "PGPASSFILE, ...); remove user, password, token or signature from the URL"
)


def check_source(source: str) -> None:
    """Raises ProblemError unless this is an absolute path, a glob or URL of a known format, or a
    table of PostgreSQL; and if it carries credentials. The message does not quote it: it may hold
    a secret."""
    if not source.isprintable() or source != source.strip():
        raise _invalid("it holds a character that cannot be printed, or blanks around it")
    if "::" in source:
        raise _invalid("chained URLs (::) are not supported; name the file itself")
    if "://" not in source:
        _check_path(source)
        return
    parts = _split(source)
    _check_credentials(parts)
    if parts.scheme == _SQL:
        _check_table(parts)
    elif parts.scheme in _STORES | _WEB:
        _check_url(parts)
    else:
        known = ", ".join(f"{each}://" for each in sorted(_STORES | _WEB | {_SQL}))
        raise _invalid(f"its scheme is not one of {known}")


def _split(source: str) -> SplitResult:
    try:
        parts = urlsplit(source)
        _ = parts.port  # parsed when it is read
    except ValueError:
        raise _invalid("the URL cannot be read") from None
    return parts


def _check_credentials(parts: SplitResult) -> None:
    user, at, _ = parts.netloc.rpartition("@")
    container = parts.scheme in _NAMED_BY_USER and ":" not in user
    if at and not container:
        raise ProblemError("invalid", _CREDENTIALS)
    query = f"?{parts.query}" if parts.query else ""
    if (parts.scheme in _WEB | {_SQL} and query) or _PARAMETER.search(query):
        raise ProblemError("invalid", _CREDENTIALS)
    if parts.fragment and parts.scheme != _SQL:
        raise _invalid("only a table of a database has a fragment (#TABLE)")


def _check_table(parts: SplitResult) -> None:
    good = (
        _HOST.fullmatch(parts.netloc)
        and _DATABASE.fullmatch(parts.path)
        and _TABLE.fullmatch(parts.fragment)
    )
    if not good:
        raise _invalid(f"a table is named {_SQL}://HOST[:PORT]/DATABASE#[SCHEMA.]TABLE")


def _check_url(parts: SplitResult) -> None:
    if parts.scheme == "file":
        if parts.netloc:
            raise _invalid("a file URL has three slashes: file:///data/notes.parquet")
        _check_path(parts.path)
        return
    if not parts.netloc:
        raise _invalid("the URL names no host or bucket")
    # in a glob, ? is a character of the path
    _check_format(f"{parts.path}?{parts.query}" if parts.query else parts.path)


def _check_path(path: str) -> None:
    if not path.startswith("/"):
        raise _invalid("a path must be absolute, for the worker runs elsewhere: /data/...")
    if any(part in ("..", ".") for part in path.split("/")):
        raise _invalid("a path with . or .. is not plain; write it out")
    _check_format(path)


def _check_format(path: str) -> None:
    folder = path.endswith("/") and path != "/"
    if not folder and suffix_of(path) not in FORMATS:
        known = ", ".join(FORMATS)
        raise _invalid(
            f"its suffix is not one of {known} (text formats also with "
            f"{', '.join(COMPRESSIONS)}); a folder ends in /"
        )


def _invalid(reason: str) -> ProblemError:
    return ProblemError("invalid", f"source: {reason}")
