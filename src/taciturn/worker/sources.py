"""Opens the source of a job's rows, where its owner may read, and says what it is.

An owner names the source, and the worker can reach more than they may. So a name is looked up once,
and only the addresses that it had then are asked; a web server that points elsewhere is not
followed; links lead to files within the owner's prefixes and never to what the worker keeps. What
was looked at is what is read: a file that takes another's place afterwards is refused.

What a source is goes to the gateway as keyed digests, which it compares with those of the other
datasets: where the files and tables are, once links, patterns and views are followed, and all that
is in them.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import io
import json
import os
import platform
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from taciturn.data import places
from taciturn.data.addresses import is_reachable
from taciturn.data.database import Table, identity
from taciturn.data.location import Location, locate
from taciturn.data.rows import shield
from taciturn.data.suffixes import compression_of
from taciturn.errors import DataNotFoundError, MissingDependencyError, SpecError
from taciturn.wire.worker import PlaceRef, SourceMarks
from taciturn.worker.failures import SourceRefusedError

_FILES_AT_ONCE = 1000  # of which a message tells
_CHUNK_BYTES = 1 << 20
_GENERATION = 0x80087601  # FS_IOC_GETVERSION: which of the files that have had an inode's number

_Stat = tuple[int, int, int, int, int]
_Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Source:
    """A source that may be read.

    Attributes:
        rows: a Location or a Table.
        places: digests of where it is, for each file.
        contents: of what is in it; made when they are asked for, one file after the other.
    """

    rows: Location | Table
    places: tuple[tuple[str, ...], ...]
    contents: Callable[[], Iterator[tuple[str, ...]]]

    def marks(self) -> Iterator[SourceMarks]:
        """The messages that say what it is; none before all of it was read."""
        file_marks = list(zip(self.places, self.contents(), strict=True))
        for start in range(0, len(file_marks), _FILES_AT_ONCE):
            part = file_marks[start : start + _FILES_AT_ONCE]
            yield SourceMarks(
                first=start == 0,
                places=tuple(dict.fromkeys(mark for marks, _ in part for mark in marks)),
                contents=tuple(dict.fromkeys(mark for _, marks in part for mark in marks)),
            )


def open_source(source: PlaceRef, own: Sequence[str] = (), check: _Check = lambda: None) -> Source:
    """Look where a source leads.

    Args:
        own: further places where workers keep what is theirs.
        check: called now and then while files are read; what it raises ends that.

    Raises:
        SourceRefusedError: it, or something that it leads to, is where nothing may be read.
        DataError: what opening it raises.
    """
    try:
        place = places.canonical(source.source)
    except SpecError as error:
        raise SourceRefusedError(str(error)) from None
    if not places.is_allowed(place, source.prefixes):
        raise SourceRefusedError(
            "the source lies in no folder or URL that its owner may register; an administrator "
            "allows one: taciturn user change NAME --source FOLDER-OR-URL"
        )
    marker = _Marker(bytes.fromhex(source.mark_key), check)
    private_places = places.spelled((*source.own, *own))
    if places.is_local(place):
        return _local(place, source.prefixes, private_places, marker)
    address = places.host_and_port(place)
    addresses = () if address is None else known_addresses(*address, source.networks)
    if place.partition("://")[0] == places.TABLES:
        return _table(Table(place, addresses), marker)
    filesystem = None if address is None else _web(address[0], addresses)
    return _remote(locate(place, filesystem), place, private_places, marker)


@dataclass(frozen=True, slots=True, repr=False)
class _Marker:
    """Makes digests that only those who have the same key can compare."""

    key: bytes
    check: _Check

    def mark(self, *words: object) -> str:
        """Mark of some words: the same for the same words, under this gateway's key."""
        text = json.dumps(words, default=str).encode()
        return hmac.new(self.key, text, hashlib.sha256).hexdigest()[:32]

    def contents(self, location: Location) -> Iterator[tuple[str, ...]]:
        """Marks of each file's decompressed content; none of an empty file, as these are alike."""

        def failed(kind: str) -> DataNotFoundError:
            return DataNotFoundError(
                f"{location.label} cannot be read to its end ({kind}); is it complete?"
            )

        for path in location.paths:
            yield shield(lambda path=path: self._content(location, path), failed)  # type: ignore[misc]

    def _content(self, location: Location, path: str) -> tuple[str, ...]:
        digest, size = hashlib.sha256(), 0
        with location.open(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                self.check()
                digest.update(chunk)
                size += len(chunk)
        return (self.mark("content", digest.hexdigest()),) if size else ()


def _table(table: Table, marker: _Marker) -> Source:
    table_identity = identity(table)
    if table_identity.of_a_gateway:
        raise SourceRefusedError("the source is in the database of a gateway; name another one")
    where = tuple(marker.mark("table", *relation) for relation in table_identity.relations)
    content = () if table_identity.rows is None else (marker.mark("rows", *table_identity.rows),)
    return Source(table, (where,), lambda: iter([content]))


def _remote(location: Location, place: str, own: Sequence[str], marker: _Marker) -> Source:
    parts = urlsplit(place)
    store = "" if parts.scheme in places.WEB else f"{parts.scheme}://"
    urls = [f"{store}{path.lstrip('/')}" for path in location.paths]
    if any(places.inside(url, own_place) for url in urls for own_place in own):
        raise _own()
    account = parts.netloc if "@" in parts.netloc else ""
    where = tuple((marker.mark("url", account, url),) for url in urls)
    return Source(location, where, lambda: marker.contents(location))


def _own() -> SourceRefusedError:
    return SourceRefusedError(
        "the source leads to what the gateway or its workers keep; name a folder of data alone"
    )


@dataclass(frozen=True, slots=True)
class _Local(Location):
    """Files of this machine, each as it was when it was looked at.

    Attributes:
        seen: the file that each path led to, and what the system said of it.
    """

    files: Mapping[str, tuple[str, _Stat]] = field(default_factory=dict)

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Open one of the files, if it is the same still."""
        real, stat_before = self.files[path]
        with _regular_file(real) as file:
            if _stat_of(file.fileno()) != stat_before:
                raise DataNotFoundError(
                    f"{self.label} was replaced while it was read; try again when nobody writes it"
                )
            compression = compression_of(path)
            if compression is None:
                yield file
                return
            from fsspec.compression import compr

            with compr[compression](file, mode="rb") as plain:
                yield plain


def _local(place: str, prefixes: Sequence[str], own: Sequence[str], marker: _Marker) -> Source:
    location = locate(place)
    roots = [_folder(prefix) for prefix in places.spelled(prefixes) if places.is_local(prefix)]
    private_paths = [os.path.realpath(name) for name in own if places.is_local(name)]
    files, where = {}, []
    for path in location.paths:
        real = os.path.realpath(path)
        if not any(places.inside(real, root) for root in roots):
            raise SourceRefusedError(
                "the source has a link that leads out of what its owner may register; put the file "
                "itself there"
            )
        if any(places.inside(real, private) for private in private_paths):
            raise _own()
        files[path], inode = _looked_at(real, location.label)
        where.append((marker.mark("path", real), marker.mark("inode", *inode)))
    values = {item.name: getattr(location, item.name) for item in fields(Location)}
    pinned = _Local(**values, files=files)
    return Source(pinned, tuple(where), lambda: marker.contents(pinned))


def _folder(prefix: str) -> str:
    """Real path of a prefix; of a pattern, that of the folder in which it begins."""
    while set("*?[") & set(prefix):
        prefix = os.path.dirname(prefix)
    return os.path.realpath(prefix)


def _looked_at(real: str, label: str) -> tuple[tuple[str, _Stat], tuple[object, ...]]:
    """A file, and what tells it from all others, whatever it is called."""
    try:
        with _regular_file(real) as file:
            status = _stat_of(file.fileno())
            generation = bytearray(8)
            with suppress(OSError):
                fcntl.ioctl(file.fileno(), _GENERATION, generation)
            same = os.path.realpath(real) == real and os.stat(real).st_ino == status[1]
    except OSError as error:
        raise DataNotFoundError(
            f"{label} cannot be read ({type(error).__name__}); check who may read it"
        ) from None
    if not same:
        raise DataNotFoundError(f"{label} was replaced while it was looked at; try again")
    return (real, status), (_machine(), *status[:2], generation.hex())


@contextmanager
def _regular_file(real: str) -> Iterator[io.BufferedReader]:
    """A regular file, by no link; raises OSError."""
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError("it is no file")
        yield file


def _stat_of(descriptor: int) -> _Stat:
    of = os.fstat(descriptor)
    return of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns


def _machine() -> str:
    """Id of this start of the machine: numbers of devices mean nothing after the next one."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return platform.node()


def known_addresses(host: str, port: int, networks: Sequence[str] = ()) -> tuple[str, ...]:
    """The addresses of a host, looked up once; raises SourceRefusedError if one of them is not
    public and in none of the networks."""
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DataNotFoundError(
            f"the host of the source is not known here ({type(error).__name__}); check its name"
        ) from None
    addresses = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))
    if not all(is_reachable(ip_address(address), networks) for address in addresses):
        raise SourceRefusedError(
            "the host of the source has an address that is not public; whoever runs the gateway "
            "allows its network with TACITURN_SOURCE_NETWORKS"
        )
    return addresses


class RedirectError(OSError):
    """A web server says that the file is elsewhere, which nobody has allowed."""


def _web(host: str, addresses: Sequence[str]) -> Any:
    """fsspec's file system of the web, on which one host alone can be asked, at these addresses,
    and no answer leads elsewhere."""
    try:
        import aiohttp
        from aiohttp.abc import AbstractResolver
        from fsspec.implementations.http import HTTPFileSystem
    except ImportError as error:
        raise MissingDependencyError(
            f"sources on the web need {error.name}, which is not installed here; run: pip install "
            "aiohttp"
        ) from None

    class Known(AbstractResolver):
        async def resolve(self, name: str, port: int = 0, family: int = 0) -> list[Any]:
            if name.lower().rstrip(".") != host:
                raise RedirectError("another host is asked than was looked up")
            return [
                {
                    "hostname": name,
                    "host": address,
                    "port": port,
                    "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                    "proto": 0,
                    "flags": socket.AI_NUMERICHOST,
                }
                for address in addresses
            ]

        async def close(self) -> None:
            pass

    async def refuse(*_: object) -> None:
        raise RedirectError("redirects are not followed")

    async def client(**settings: Any) -> Any:
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(refuse)
        connector = aiohttp.TCPConnector(resolver=Known(), use_dns_cache=False)
        return aiohttp.ClientSession(connector=connector, trace_configs=[trace], **settings)

    return HTTPFileSystem(skip_instance_cache=True, get_client=client)
