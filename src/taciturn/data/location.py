"""Location of rows: a path, glob, directory or URL becomes files of one format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from taciturn.data.filesystem import open_filesystem
from taciturn.data.huggingface import ABOUT, saved_dataset
from taciturn.data.rows import shield
from taciturn.data.suffixes import COMPRESSIONS, FORMATS, compression_of, suffix_of
from taciturn.errors import DataError, DataNotFoundError, MissingDependencyError

_PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Location:
    """Files of one format on one file system.

    `label` is what messages call them: the caller's own words, without credentials or signatures.
    Names of single files inside a directory are not shown: they can be a patient's name. Names of
    folders below `root`, which the caller did not write out, can name partitions. `columns` are
    those that whoever saved the files wants to be seen; all without.
    """

    filesystem: Any
    paths: tuple[str, ...]
    format: str
    label: str
    root: str
    columns: tuple[str, ...] | None = None

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Open one of the files for reading, decompressed."""
        with self.filesystem.open(path, "rb", compression=compression_of(path)) as file:
            yield file

    def partition(self, path: str) -> dict[str, str | None]:
        """Columns that the folders below `root` name, as Hive does: hospital=north/part-0.parquet.

        Values are text, like those of CSV: a guessed type would turn the hospital 007 into 7.

        Raises DataError if two folders of one path name the same column.
        """
        columns: dict[str, str | None] = {}
        for part in PurePosixPath(path.removeprefix(self.root)).parts[:-1]:
            name, equals, value = part.partition("=")
            if not (name and equals):
                continue
            if (name := unquote(name)) in columns:
                raise DataError(
                    f"{self.label} has folders inside each other that both name the column "
                    f"{name!r}; rename one of them"
                )
            columns[name] = None if value == _NULL_PARTITION else unquote(value)
        return columns

    def check_columns(self, path: str, names: Sequence[str]) -> None:
        """Raise DataError if one of a file's columns is also named by a folder it is in."""
        twice = [name for name in self.partition(path) if name in names]
        if twice:
            raise DataError(
                f"{self.label} has {', '.join(map(repr, twice))} twice: as a folder's name "
                f"({twice[0]}=...) and as a column in its files; rename the folders or the column"
            )


def locate(location: str, filesystem: Any = None) -> Location:
    """Resolve a path, glob, directory or fsspec URL.

    Args:
        filesystem: that of fsspec which it is on; by default the one that its protocol has.

    Raises DataNotFoundError if nothing is there, DataError for an unknown or mixed suffix,
    MissingDependencyError if the protocol needs a package that is not installed.
    """
    label = _label(location)
    if not location:
        raise DataNotFoundError("the path of the data is empty; give a path, pattern or URL")
    if filesystem is None:
        filesystem, path = _filesystem(location, label)
    else:
        path = filesystem._strip_protocol(location)

    def unreachable(kind: str) -> DataNotFoundError:
        return DataNotFoundError(
            f"{label} cannot be reached ({kind}); check the address, the network and your "
            "credentials"
        )

    if suffix_of(path) not in FORMATS:
        saved = shield(lambda: saved_dataset(filesystem, path, label), unreachable)
        if saved is not None:
            return Location(filesystem, saved.paths, "arrow", label, path, saved.columns)
    files = shield(lambda: tuple(_files(filesystem, path)), unreachable)
    if not files:
        raise DataNotFoundError(f"{label} leads to no file; check the path or the pattern")
    return Location(filesystem, files, _format(files, label), label, _root(filesystem, path, files))


def _label(location: str) -> str:
    """The location without user, password, query or fragment, which can carry a secret."""
    if "://" not in location:
        return repr(location)
    try:
        parts = urlsplit(location)
    except ValueError:
        raise DataNotFoundError(
            "the URL of the data has brackets where its host should be; write the host out"
        ) from None
    return repr(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))


def _filesystem(location: str, label: str) -> tuple[Any, str]:
    try:
        filesystem, path = open_filesystem(location)
    except ImportError:
        protocol = location.partition("://")[0].rpartition("::")[2]
        package = _PACKAGES.get(protocol, f"fsspec[{protocol}]")
        raise MissingDependencyError(
            f"{label} needs a package that is not installed; run: pip install {package}"
        ) from None
    except ValueError:
        accepted = "a path, or a URL such as s3://, https://, file://"
        raise DataNotFoundError(
            f"{label} has a protocol that is not supported; give {accepted}"
        ) from None
    except Exception as error:  # archives and caches are opened here
        raise DataNotFoundError(
            f"{label} cannot be opened ({type(error).__name__}); check the address and what it "
            "leads to"
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


def _root(filesystem: Any, path: str, files: Sequence[str]) -> str:
    """Part of the path that the caller wrote out: up to the first part with a wildcard."""
    if files == (path,) or filesystem.isdir(path):
        return path
    folder = path[: wildcard.start()] if (wildcard := _GLOB.search(path)) else path
    return folder[: folder.rfind("/") + 1]


def _is_data(name: str, folder: str) -> bool:
    """True for files of a known format; writers leave _SUCCESS, .crc and README.md behind, and the
    library datasets leaves what it knows about a data set."""
    inside = PurePosixPath(name.removeprefix(folder).lstrip("/"))
    hidden = any(part.startswith((".", "_")) for part in inside.parts) or inside.name in ABOUT
    return not hidden and suffix_of(name) in FORMATS


def _format(paths: Sequence[str], label: str) -> str:
    suffixes = {suffix_of(path) for path in paths}
    unknown = sorted(suffixes - FORMATS.keys())
    if unknown:
        raise DataError(
            f"{label} has the suffix {unknown[0]!r}; known are {', '.join(FORMATS)} "
            f"(text formats also with {', '.join(COMPRESSIONS)})"
        )
    formats = sorted({FORMATS[suffix] for suffix in suffixes})
    if len(formats) > 1:
        raise DataError(
            f"{label} mixes the formats {', '.join(formats)}; "
            "give a pattern that matches one of them, such as 'folder/*.jsonl'"
        )
    return formats[0]
