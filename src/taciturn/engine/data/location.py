"""Where rows lie: a path, glob, directory or URL becomes files of one format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

from taciturn.errors import DataError, DataNotFoundError, MissingDependencyError
from taciturn.filesystem import open_filesystem
from taciturn.preparation.formats import COMPRESSIONS, FORMATS, suffix_of
from taciturn.preparation.rows import shield

_PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}


@dataclass(frozen=True, slots=True)
class Location:
    """Files of one format on one file system.

    `shown` is what messages call them: the caller's own words, without credentials or signatures.
    Names of single files inside a directory are not shown: they can be a patient's name.
    """

    filesystem: Any
    paths: tuple[str, ...]
    format: str
    shown: str

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Open one of the files for reading, decompressed."""
        compression = "infer" if path.endswith(COMPRESSIONS) else None
        with self.filesystem.open(path, "rb", compression=compression) as file:
            yield file


def locate(location: str) -> Location:
    """Resolve a path, glob, directory or fsspec URL.

    Raises DataNotFoundError if nothing is there, DataError for an unknown or mixed suffix,
    MissingDependencyError if the protocol needs a package that is not installed.
    """
    shown = _shown(location)
    filesystem, path = _filesystem(location, shown)
    found = shield(
        lambda: tuple(_files(filesystem, path)),
        lambda kind: DataNotFoundError(
            f"{shown} cannot be reached ({kind}); check the address, the network and your "
            "credentials"
        ),
    )
    if not found:
        raise DataNotFoundError(f"{shown} leads to no file; check the path or the pattern")
    return Location(filesystem, found, _format(found, shown), shown)


def _shown(location: str) -> str:
    """The location without user, password, query or fragment, which can carry a secret."""
    if "://" not in location:
        return repr(location)
    parts = urlsplit(location)
    return repr(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))


def _filesystem(location: str, shown: str) -> tuple[Any, str]:
    try:
        filesystem, path = open_filesystem(location)
    except ImportError:
        protocol = location.partition("://")[0].rpartition("::")[2]
        package = _PACKAGES.get(protocol, f"fsspec[{protocol}]")
        raise MissingDependencyError(
            f"{shown} needs a package that is not installed; run: pip install {package}"
        ) from None
    except ValueError:
        known = "a path, or a URL such as s3://, https://, file://"
        raise DataNotFoundError(
            f"{shown} has a protocol that nobody here knows; give {known}"
        ) from None
    return filesystem, path


def _files(filesystem: Any, path: str) -> Sequence[str]:
    if "http" in filesystem.protocol:  # a web server lists nothing reliably: the URL is one file
        return [path] if filesystem.exists(path) else []
    if filesystem.isfile(path):
        return [path]
    if filesystem.isdir(path):
        return [name for name in sorted(filesystem.find(path)) if _is_data(name, path)]
    if any(character in path for character in "*?["):
        return [name for name in sorted(filesystem.glob(path)) if filesystem.isfile(name)]
    return []


def _is_data(name: str, folder: str) -> bool:
    """True for files of a known format; writers leave _SUCCESS, .crc and README.md behind."""
    inside = PurePosixPath(name.removeprefix(folder).lstrip("/"))
    hidden = any(part.startswith((".", "_")) for part in inside.parts)
    return not hidden and suffix_of(name) in FORMATS


def _format(paths: Sequence[str], shown: str) -> str:
    suffixes = {suffix_of(path) for path in paths}
    unknown = sorted(suffixes - FORMATS.keys())
    if unknown:
        raise DataError(
            f"{shown} has the suffix {unknown[0]!r}; known are {', '.join(FORMATS)} "
            f"(text formats also with {', '.join(COMPRESSIONS)})"
        )
    formats = sorted({FORMATS[suffix] for suffix in suffixes})
    if len(formats) > 1:
        raise DataError(
            f"{shown} mixes the formats {', '.join(formats)}; "
            "give a pattern that matches one of them, such as 'folder/*.jsonl'"
        )
    return formats[0]
